//! The routing table: an immutable snapshot of all volunteers and of who holds what, rebuilt beside the traffic and
//! swapped in.
//!
//! The front door reads nothing else about volunteers. A rebuild costs what changed: volunteers stand in chunks, files
//! in blocks, and both are shared with the table before where nothing happened. Building it does no I/O.

mod holders;
mod route;

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use freshet_api::{FileId, NodeId};
use freshet_policy::Moment;
use freshet_policy::reservation::ReservationLedger;
use freshet_policy::selection::Standing;
use tokio::sync::watch;

use self::holders::HolderBook;
pub use self::holders::{FileHolders, HolderIndex};
pub use self::route::{DELIVERY_URL_BYTES_MAX, DeliveryTarget, MirrorState, Route};
use crate::balance::{Desk, NetworkMap};
use crate::clock::Clock;
use crate::registry::{Nodes, Registry};
use crate::tracker::Tracker;

/// All volunteers that have joined, and who holds what.
#[derive(Clone, Debug, Default)]
pub struct RoutingTable {
    /// Routes by number, `1 << CHUNK_BITS` numbers to a chunk.
    chunks: Vec<Chunk>,
    holders: Arc<HolderIndex>,
}

type Chunk = Arc<[Option<Route>]>;

impl RoutingTable {
    /// All of them, in the order of their numbers.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().flatten())
    }

    /// By number.
    pub fn route(&self, node: NodeId) -> Option<&Route> {
        let chunk = self.chunks.get((node.0 >> CHUNK_BITS) as usize)?;
        chunk.get((node.0 & CHUNK_MASK) as usize)?.as_ref()
    }

    /// Who may hold a file.
    pub fn holders(&self, file: FileId) -> FileHolders<'_> {
        self.holders.of(file)
    }
}

/// The table in force, and how it is kept current.
pub struct Routing {
    table: ArcSwap<RoutingTable>,
    builder: Mutex<Builder>,
    /// Volunteers of whom something changed since the last rebuild.
    touched: Mutex<BTreeSet<NodeId>>,
    all: AtomicBool,
    /// Rebuilds so far.
    rebuilt: watch::Sender<u64>,
    registry: Arc<dyn Registry>,
    tracker: Arc<dyn Tracker>,
    reservations: Arc<ReservationLedger>,
    balance: Arc<Desk>,
    clock: Clock,
}

impl Routing {
    /// With the table as of now.
    pub fn new(
        registry: Arc<dyn Registry>,
        tracker: Arc<dyn Tracker>,
        reservations: Arc<ReservationLedger>,
        balance: Arc<Desk>,
        clock: Clock,
    ) -> Self {
        let routing = Self {
            table: ArcSwap::default(),
            builder: Mutex::default(),
            touched: Mutex::default(),
            all: AtomicBool::new(false),
            rebuilt: watch::Sender::new(0),
            registry,
            tracker,
            reservations,
            balance,
            clock,
        };
        routing.rebuild();
        routing
    }

    /// The table in force; lock-free.
    pub fn load(&self) -> Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    /// Says that something changed about a volunteer: it is in the table within [`REBUILD_EVERY`].
    pub fn touch(&self, node: NodeId) {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
    }

    /// Waits until what changed about a volunteer is in the table. So many who join at once share a rebuild.
    pub async fn settled(&self, node: NodeId) {
        let mut rebuilt = self.rebuilt.subscribe();
        self.touch(node);
        // What is being built now may have been begun before; an error means that control is stopping.
        let next = *rebuilt.borrow_and_update() + 2;
        let _ = tokio::time::timeout(SETTLED_WITHIN, rebuilt.wait_for(|done| *done >= next)).await;
    }

    /// Rebuilds all of the table at once.
    pub fn rebuild(&self) {
        self.all.store(true, Ordering::Release);
        self.rebuild_changed();
    }

    /// Rebuilds what changed, and what time changes.
    fn rebuild_changed(&self) {
        let mut builder = self.builder.lock().unwrap_or_else(PoisonError::into_inner);
        let touched = std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner));
        let all = self.all.swap(false, Ordering::AcqRel);
        let before = self.table.load_full();
        let (nodes, rules) = (self.registry.nodes(), self.balance.rules());
        let (tracker, network, now) = (&*self.tracker, &*rules.network, self.clock.now());
        let sources = Sources { nodes: &nodes, tracker, network, now };
        let table = builder.build(&before, &sources, &touched, all);
        self.table.store(Arc::new(table));
        // The last reader must not be the one who frees it: that would be a customer's time.
        builder.retired.push_back(before);
        if builder.retired.len() > RETIRED_MAX {
            builder.retired.pop_front();
        }
        self.rebuilt.send_modify(|rebuilt| *rebuilt += 1);
    }

    /// Keeps the table current until the task is aborted: after changes, and for silence, which is a change
    /// that nobody announces.
    pub async fn keep_current(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(REBUILD_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ageing = 0;
        loop {
            ticks.tick().await;
            let routing = Arc::clone(&self);
            let rebuilding = tokio::task::spawn_blocking(move || {
                routing.rebuild_changed();
                routing.age_reservations(ageing);
            });
            if let Err(error) = rebuilding.await {
                tracing::error!(%error, "the routing table stays as it was");
            }
            ageing = (ageing + 1) % AGEING_TICKS;
        }
    }

    /// Reservations of every volunteer age once a second, a part of them at each tick.
    fn age_reservations(&self, part: usize) {
        let now = self.clock.now();
        let table = self.load();
        for route in
            table.chunks.iter().skip(part).step_by(AGEING_TICKS).flat_map(|chunk| chunk.iter().flatten())
        {
            if route.standing == Standing::Dead {
                self.reservations.clear(route.node);
            } else {
                self.reservations.age(route.node, now);
            }
        }
    }
}

/// What a table is made from.
struct Sources<'a> {
    nodes: &'a Nodes,
    tracker: &'a dyn Tracker,
    network: &'a NetworkMap,
    now: Moment,
}

/// What is remembered from one table to the next.
#[derive(Debug, Default)]
struct Builder {
    book: HolderBook,
    /// By chunk, when time will have changed something in it.
    due: Vec<Moment>,
    /// Tables that may still be read, oldest first.
    retired: VecDeque<Arc<RoutingTable>>,
}

impl Builder {
    fn build(
        &mut self,
        before: &RoutingTable,
        sources: &Sources<'_>,
        touched: &BTreeSet<NodeId>,
        all: bool,
    ) -> RoutingTable {
        let count = sources.nodes.last_id().map_or(0, |last| (last.0 >> CHUNK_BITS) as usize + 1);
        let mut chunks = before.chunks.clone();
        // What was is looked at too: who was removed holds nothing any more.
        chunks.resize_with(count.max(chunks.len()), Arc::default);
        self.due.resize(chunks.len(), Moment::ZERO);
        let places: BTreeSet<usize> = touched.iter().map(|node| (node.0 >> CHUNK_BITS) as usize).collect();
        for (number, chunk) in chunks.iter_mut().enumerate() {
            let whole = all || self.due[number] <= sources.now;
            if whole || places.contains(&number) {
                *chunk = self.chunk(number, chunk, sources, |node| whole || touched.contains(&node));
            }
        }
        let mut table = RoutingTable { chunks, holders: Arc::default() };
        table.holders = self.book.publish(RENEWED_IN_TICKS);
        table
    }

    fn chunk(
        &mut self,
        number: usize,
        before: &[Option<Route>],
        sources: &Sources<'_>,
        changed: impl Fn(NodeId) -> bool,
    ) -> Chunk {
        let first = (number as u32) << CHUNK_BITS;
        let ids = NodeId(first)..=NodeId(first + CHUNK_MASK);
        let mut routes: Vec<Option<Route>> = Vec::new();
        routes.resize_with(CHUNK_MASK as usize + 1, || None);
        let mut due = sources.now + REFRESHED_WITHIN;
        for node in sources.nodes.range(ids) {
            let place = (node.id.0 & CHUNK_MASK) as usize;
            let was = before.get(place).and_then(Option::as_ref);
            routes[place] = match was {
                Some(was) if !changed(node.id) => Some(was.clone()),
                was => Route::of(node, sources.tracker.session(node.id, sources.now), was, |address| {
                    sources.network.locate(address)
                }),
            };
            due = due.min(routes[place].as_ref().and_then(|route| route.changes_at).unwrap_or(due));
        }
        self.due[number] = due;
        for (place, route) in routes.iter().enumerate() {
            let was = before.get(place).and_then(Option::as_ref);
            let node = NodeId(first + place as u32);
            match (was, route) {
                (_, Some(route)) => self.book.hold(node, &route.holdings),
                (Some(_), None) => self.book.hold(node, &Arc::default()),
                (None, None) => {}
            }
            self.book.weigh(node, route.as_ref().map_or(0.0, Route::weight));
            if let (Some(was), Some(route)) = (was, route) {
                tell_change(was, route);
            }
        }
        routes.into()
    }
}

/// Tells in the log who came and went.
fn tell_change(was: &Route, route: &Route) {
    if was.state != route.state {
        let reason = route.reason.as_deref().unwrap_or("takes customers");
        tracing::info!(node = %route.node, name = %route.name, state = ?route.state, reason, "volunteer");
    }
}

impl std::fmt::Debug for Routing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routing").field("table", &self.table).finish_non_exhaustive()
    }
}

/// Between two rebuilds.
pub const REBUILD_EVERY: Duration = Duration::from_millis(50);
/// Volunteers that are looked at again together: 64.
const CHUNK_BITS: u32 = 6;
const CHUNK_MASK: u32 = (1 << CHUNK_BITS) - 1;
/// What time changes beside liveness (rates that age) is seen within this.
const REFRESHED_WITHIN: Duration = Duration::from_secs(5);
/// What holders count for when they are drawn is renewed every two seconds.
const RENEWED_IN_TICKS: usize = 40;
/// No request takes so many rebuilds.
const RETIRED_MAX: usize = 4;
/// Reservations age once a second.
const AGEING_TICKS: usize = 20;
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
impl RoutingTable {
    /// A table of these alone.
    fn of(routes: impl IntoIterator<Item = Route>) -> Self {
        let mut chunks: Vec<Vec<Option<Route>>> = Vec::new();
        let mut book = HolderBook::default();
        for route in routes {
            let (chunk, place) =
                ((route.node.0 >> CHUNK_BITS) as usize, (route.node.0 & CHUNK_MASK) as usize);
            chunks.resize_with(chunks.len().max(chunk + 1), Vec::new);
            let chunk = &mut chunks[chunk];
            chunk.resize_with(chunk.len().max(place + 1), || None);
            book.hold(route.node, &route.holdings);
            book.weigh(route.node, route.weight());
            chunk[place] = Some(route);
        }
        Self { chunks: chunks.into_iter().map(Into::into).collect(), holders: book.publish(1) }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Routing tables for tests.

    use freshet_api::admin::NodeState;
    use freshet_api::{Bytes, BytesPerSec, TicketKey};
    use freshet_policy::network::Whereabouts;
    use freshet_policy::selection::{Reach, Standing};

    use super::*;

    /// Volunteers that hold nothing, by number and when they were last heard of.
    pub(crate) fn table<const N: usize>(nodes: [(u32, Moment); N]) -> RoutingTable {
        let routes = nodes.map(|(node, heard)| Route {
            node: NodeId(node),
            name: format!("n{node}").parse().unwrap(),
            ticket_key: TicketKey([1; 32]),
            sealer: TicketKey([1; 32]).sealer(),
            standing: Standing::Ready,
            state: NodeState::Active,
            reason: None,
            heard: Some(heard),
            changes_at: None,
            delivery_url: "http://192.0.2.1".into(),
            reach: Reach::ALL,
            loopback: false,
            rate: BytesPerSec(1),
            reported_load: 0.0,
            budget: Bytes(u64::MAX),
            budget_price: 1.0,
            weight: 1,
            whereabouts: Whereabouts::default(),
            holdings: Arc::default(),
            mirror: MirrorState::default(),
            trouble: None,
            offer: None,
        });
        RoutingTable::of(routes)
    }
}
