//! One bundle being copied: pieces in from origin and peers, contents out into the mirror, news to the tracker.
//!
//! One task owns all state here; what waits for network or disk runs beside it and reports back. It ends when the
//! bundle is done with, when it can't go on, or when nobody wants it any more.

mod outcome;
mod plan;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use freshet_api::swarm::{Complaint, LEASES_MAX, Runs, SwarmPoll};
use freshet_api::{ContentHash, NodeId};
use freshet_policy::swarm::{Picker, PieceOrder, PieceSet, Pull};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinSet};

use self::outcome::Chore;
use super::SwarmOptions;
use super::fetch::{Address, Fetcher, PieceError};
use super::harvest::{self, Barn};
use super::layout::Layout;
use super::meter::Meter;
use super::peers::Peers;
use super::shelf::Shelf;
use super::tracker::Tracker;
use crate::mirror::{Want, blocking};
use crate::sync::OriginEndpoint;

/// What a session tells the client.
#[derive(Debug)]
pub(super) enum Report {
    /// These contents are on disk under their names.
    Committed(Vec<ContentHash>),
    /// These can't be had from this bundle.
    Refused(Vec<ContentHash>),
    /// What stops it for now, or that nothing does any more.
    Trouble(Option<String>),
    /// It has ended.
    Ended(End),
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Everybody who wants the bundle has it: what was kept for peers can go.
    Complete,
    /// The tracker does not copy it (any more).
    Closed,
    /// It did not get on.
    Stuck(String),
}

/// What a session works with.
pub(super) struct Parts<T> {
    pub(super) tracker: Arc<T>,
    pub(super) barn: Barn,
    pub(super) shelf: Arc<Shelf>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) origin: watch::Receiver<Option<OriginEndpoint>>,
    pub(super) meter: Arc<Meter>,
    pub(super) options: SwarmOptions,
}

pub(super) struct Session<T> {
    parts: Parts<T>,
    layout: Arc<Layout>,
    reports: mpsc::Sender<Report>,
    /// What is to be taken out of this bundle.
    wants: HashMap<ContentHash, Want>,
    /// Which of them lie in which object.
    by_object: BTreeMap<usize, Vec<ContentHash>>,
    /// Which of them a recipe makes.
    by_recipe: BTreeMap<usize, ContentHash>,
    /// Pieces that `wants` need.
    needed: PieceSet,
    /// Pieces that are verified and durable.
    have: PieceSet,
    picker: Picker,
    peers: Peers,
    leases: VecDeque<(u32, Instant)>,
    origin: OriginState,
    fetches: JoinSet<Fetched>,
    asked: HashMap<Id, Asked>,
    chores: JoinSet<Chore>,
    /// Verified and written, and not durable yet.
    written: PieceSet,
    /// Those of them that no sync is under way for.
    unsynced: Vec<u32>,
    syncing: bool,
    sync_at: Instant,
    /// When pieces came lately, and of how many bytes.
    came: VecDeque<(Instant, u64)>,
    /// Objects whose contents can be taken out, and those where that is under way.
    ripe: HashSet<usize>,
    harvesting: HashSet<usize>,
    making: bool,
    make_at: Instant,
    poll: PollState,
    paused_until: Option<Instant>,
    /// Why the rest comes from the origin without leases, if it does.
    alone: Option<Alone>,
    /// Whether the client was told of a trouble that is not over yet.
    troubled: bool,
    progress_at: Instant,
}

/// From whom a piece is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// Under a lease that ends then.
    Origin(Instant),
    Peer(NodeId),
}

/// Why pieces are fetched from the origin without the tracker's leave.
///
/// Whole contents would come from there otherwise; so what is durable here need not come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alone {
    /// Nothing came for long.
    Stalled,
    /// The tracker does not copy the bundle any more.
    Closed,
}

struct Asked {
    from: From,
    piece: u32,
    since: Instant,
    task: AbortHandle,
}

type Fetched = Result<(), PieceError>;

#[derive(Default)]
struct OriginState {
    /// Requests under way.
    open: usize,
    failures: u32,
    /// Wrong or missing pieces in a row.
    useless: u32,
    not_before: Option<Instant>,
    /// When the last pieces came from it.
    came: VecDeque<Instant>,
}

struct PollState {
    at: Instant,
    last: Option<Instant>,
    under_way: bool,
    failures: u32,
    whole: bool,
    /// What the tracker knows to be here.
    reported: PieceSet,
    complaints: Vec<Complaint>,
    /// Whether the last answer granted leases: only then it is worth asking for more at once.
    granting: bool,
    leaving: Option<End>,
    /// The list of peers that the tracker gave last.
    peers_known: u64,
}

impl<T: Tracker> Session<T> {
    /// Runs until it ends; wants come by `plans`, the last one counts.
    pub(super) async fn run(
        parts: Parts<T>,
        mut plans: watch::Receiver<Arc<Vec<Want>>>,
        reports: mpsc::Sender<Report>,
    ) {
        let now = Instant::now();
        let layout = Arc::clone(&parts.barn.layout);
        let pieces = layout.pieces();
        let have = parts.barn.store.durable();
        parts.shelf.set(&have);
        if !have.is_empty() {
            let here: u64 = have.iter().map(|piece| layout.piece_bytes(piece)).sum();
            tracing::info!(bundle = %layout.id, here, "goes on with the pieces that are here");
        }
        let mut session = Self {
            layout,
            reports,
            wants: HashMap::new(),
            by_object: BTreeMap::new(),
            by_recipe: BTreeMap::new(),
            needed: PieceSet::new(pieces),
            picker: Picker::new(PieceSet::new(pieces), PieceOrder::Random),
            have,
            peers: Peers::default(),
            leases: VecDeque::new(),
            origin: OriginState::default(),
            fetches: JoinSet::new(),
            asked: HashMap::new(),
            chores: JoinSet::new(),
            written: PieceSet::new(pieces),
            unsynced: Vec::new(),
            syncing: false,
            sync_at: now,
            came: VecDeque::new(),
            ripe: HashSet::new(),
            harvesting: HashSet::new(),
            making: false,
            make_at: now,
            poll: PollState {
                at: now,
                last: None,
                under_way: false,
                failures: 0,
                whole: true,
                reported: PieceSet::new(pieces),
                complaints: Vec::new(),
                granting: false,
                leaving: None,
                peers_known: 0,
            },
            paused_until: None,
            alone: None,
            troubled: false,
            progress_at: now,
            parts,
        };
        let first = Arc::clone(&plans.borrow_and_update());
        session.plan(&first);
        // What is here, and what nobody wants here, is asked of nobody, also where nothing is wanted at all.
        session.adjust_picker();
        let end = session.until_end(&mut plans).await;
        session.stop_asking();
        if let Some(end) = end {
            session.trouble_over().await;
            let _ = session.reports.send(Report::Ended(end)).await;
        }
    }

    /// `None` when nobody listens any more.
    async fn until_end(&mut self, plans: &mut watch::Receiver<Arc<Vec<Want>>>) -> Option<End> {
        loop {
            let now = Instant::now();
            if let Some(end) = self.stuck(now) {
                return Some(end);
            }
            self.drive(now);
            let wake_at = self.wake_at(now);
            tokio::select! {
                changed = plans.changed() => {
                    changed.ok()?;
                    let plan = Arc::clone(&plans.borrow_and_update());
                    self.plan(&plan);
                }
                Some(fetched) = self.fetches.join_next_with_id() => {
                    if let Some(end) = self.fetched(fetched).await {
                        return Some(end);
                    }
                }
                Some(chore) = self.chores.join_next() => {
                    if let Ok(chore) = chore
                        && let Some(end) = self.chore_done(chore).await
                    {
                        return Some(end);
                    }
                }
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    /// Starts what can be started now.
    fn drive(&mut self, now: Instant) {
        if self.paused_until.is_some_and(|until| until > now) {
            return;
        }
        if self.paused_until.take().is_some() {
            self.progress_at = now;
        }
        self.ask_origin(now);
        while self.asked.len() < REQUESTS_MAX
            && let Some(pull) = self.picker.next(rand::random())
        {
            self.ask_peer(pull, now);
        }
        self.ask_again(now);
        for (node, address) in self.peers.have_due(now) {
            let (fetcher, bundle) = (Arc::clone(&self.parts.fetcher), self.layout.id);
            self.chores.spawn(async move { Chore::Have(node, fetcher.have(&address, bundle).await) });
        }
        self.poll_tracker(now);
        self.sync(now);
        self.harvest();
        self.make(now);
    }

    /// Fetches pieces that only this volunteer may fetch from the origin.
    fn ask_origin(&mut self, now: Instant) {
        if self.origin.not_before.is_some_and(|at| at > now) {
            return;
        }
        if self.alone.is_some() && self.leases.is_empty() {
            let have = self.picker.have();
            let missing = have.missing_from(&self.needed).filter(|&piece| !self.picker.is_asked(piece));
            let open = ORIGIN_REQUESTS_MAX.saturating_sub(self.origin.open);
            self.leases.extend(missing.take(open).map(|piece| (piece, now + ORIGIN_PATIENCE)));
        }
        let address = self.parts.origin.borrow().clone();
        let Some(OriginEndpoint { url, token }) = address else { return };
        let mut busy = Vec::new();
        while self.origin.open < ORIGIN_REQUESTS_MAX
            && let Some((piece, until)) = self.leases.pop_front()
        {
            if until <= now || self.is_had(piece) || !self.needed.contains(piece) {
                continue;
            }
            if !self.picker.reserve(piece) {
                // A peer is being asked for it; should that fail, the lease may still be used.
                busy.push((piece, until));
                continue;
            }
            self.origin.open += 1;
            let address = Address { url: url.clone(), token: token.clone() };
            self.ask(From::Origin(until), address, piece, ORIGIN_PATIENCE, now);
        }
        self.leases.extend(busy);
    }

    fn ask_peer(&mut self, pull: Pull, now: Instant) {
        let Some(address) = self.peers.address(pull.peer).cloned() else {
            self.picker.forget(pull.peer);
            return;
        };
        let patience = self.peers.patience();
        self.ask(From::Peer(pull.peer), address, pull.piece, patience, now);
        self.parts.meter.asked.fetch_add(1, Ordering::Relaxed);
    }

    fn ask(&mut self, from: From, address: Address, piece: u32, patience: Duration, now: Instant) {
        let fetcher = Arc::clone(&self.parts.fetcher);
        let task = self.fetches.spawn(async move { fetcher.piece(&address, piece, patience).await });
        self.asked.insert(task.id(), Asked { from, piece, since: now, task });
    }

    /// At the end, what takes long is asked for once more elsewhere.
    fn ask_again(&mut self, now: Instant) {
        let patience = self.peers.overdue();
        let mut times: HashMap<u32, (usize, Instant)> = HashMap::new();
        for asked in self.asked.values() {
            let (count, since) = times.entry(asked.piece).or_insert((0, asked.since));
            *count += 1;
            *since = (*since).max(asked.since);
        }
        for (piece, (count, since)) in times {
            let late = count < COPIES_MAX && since + patience <= now && self.asked.len() < REQUESTS_MAX;
            if late && let Some(pull) = self.picker.again(piece, rand::random()) {
                self.ask_peer(pull, now);
            }
        }
    }

    fn poll_tracker(&mut self, now: Instant) {
        if self.poll.under_way || self.alone == Some(Alone::Closed) {
            return;
        }
        let missing = self.missing();
        let wanted = self.leases_wanted(missing, now);
        let hungry = self.poll.granting
            && wanted > 0
            && self.leases.is_empty()
            && self.origin.open < ORIGIN_REQUESTS_MAX
            && self.poll.last.is_none_or(|last| last + POLLS_APART <= now);
        if self.poll.at > now && !hungry {
            return;
        }
        let whole = self.poll.whole;
        let have: Runs = if whole {
            self.have.iter().collect()
        } else {
            self.poll.reported.missing_from(&self.have).collect()
        };
        let unwanted = if whole {
            (0..self.layout.pieces())
                .filter(|&piece| !self.needed.contains(piece) && !self.have.contains(piece))
                .collect()
        } else {
            Runs::default()
        };
        let poll = SwarmPoll {
            bundle: self.layout.id,
            whole,
            have,
            unwanted,
            leases: wanted,
            spare: (self.parts.options.spare)(),
            complaints: self.poll.complaints.clone(),
            leaving: self.poll.leaving.is_some(),
            peers_known: self.poll.peers_known,
        };
        self.poll.under_way = true;
        self.poll.last = Some(now);
        self.poll.whole = false;
        let (tracker, told, within) =
            (Arc::clone(&self.parts.tracker), self.have.clone(), self.parts.options.poll_within);
        self.chores.spawn(async move {
            let answer = tokio::time::timeout(within, tracker.poll(&poll)).await;
            Chore::Polled { complaints: poll.complaints.len(), whole, told, answer: answer.ok() }
        });
    }

    /// How many leases more it can use: what comes from the origin in two seconds, and a few to begin with.
    fn leases_wanted(&mut self, missing: usize, now: Instant) -> u32 {
        while self.origin.came.front().is_some_and(|&came| came + LEASE_AHEAD < now) {
            self.origin.came.pop_front();
        }
        let can_use = self.origin.came.len().clamp(LEASES_LEAST, LEASES_MAX);
        let open = self.leases.len() + self.origin.open;
        u32::try_from(can_use.min(missing).saturating_sub(open)).unwrap_or(0)
    }

    /// Makes what was written durable, often enough that peers learn of it, and not for each piece.
    fn sync(&mut self, now: Instant) {
        if self.syncing || self.unsynced.is_empty() || (self.sync_at > now && !self.fetches.is_empty()) {
            return;
        }
        self.syncing = true;
        let pieces = std::mem::take(&mut self.unsynced);
        let store = Arc::clone(&self.parts.barn.store);
        self.chores.spawn(async move {
            let to_sync = pieces.clone();
            let synced = blocking(move || store.sync(&to_sync)).await;
            Chore::Synced { pieces, synced, since: now }
        });
    }

    /// Takes contents out of objects that are here as far as they are wanted.
    fn harvest(&mut self) {
        while self.harvesting.len() < HARVESTS_MAX
            && let Some(&object) = self.ripe.iter().find(|object| !self.harvesting.contains(*object))
        {
            self.ripe.remove(&object);
            let wants = self.by_object.get(&object).map(Vec::as_slice).unwrap_or_default();
            let wants: Vec<Want> = wants.iter().filter_map(|want| self.wants.get(want)).cloned().collect();
            if wants.is_empty() {
                continue;
            }
            self.harvesting.insert(object);
            let Barn { mirror, layout, store } = self.parts.barn.clone();
            self.chores.spawn(async move {
                let harvest =
                    blocking(move || harvest::object(&mirror, &layout, &store, object, &wants)).await;
                Chore::Harvested { object: Some(object), harvest }
            });
        }
    }

    /// Follows one recipe whose bases are all here.
    fn make(&mut self, now: Instant) {
        if self.making || self.by_recipe.is_empty() || self.make_at > now {
            return;
        }
        let bundle = &self.layout.bundle;
        let ready = self.by_recipe.iter().find(|(number, _)| {
            let bases = &bundle.recipes[**number].bases;
            let source = self.layout.recipe_source(**number);
            source.is_some_and(|source| self.layout.pieces_of(source).all(|piece| self.have.contains(piece)))
                && bases.iter().all(|base| self.parts.barn.mirror.holds(base))
        });
        let found = ready.and_then(|(&number, target)| Some((number, self.wants.get(target)?.clone())));
        let Some((number, want)) = found else {
            self.make_at = now + MAKE_AGAIN;
            return;
        };
        self.by_recipe.remove(&number);
        self.making = true;
        let Barn { mirror, layout, store } = self.parts.barn.clone();
        let meter = Arc::clone(&self.parts.meter);
        self.chores.spawn(async move {
            let size = want.size;
            let harvest = blocking(move || harvest::make(&mirror, &layout, &store, number, &want)).await;
            if harvest.as_ref().is_ok_and(|harvest| !harvest.committed.is_empty()) {
                Meter::add(&meter.recipes, size);
            }
            Chore::Harvested { object: None, harvest }
        });
    }

    /// Whether it has stopped getting on, so that its contents are better fetched otherwise.
    fn stuck(&mut self, now: Instant) -> Option<End> {
        let missing = self.missing();
        if self.alone == Some(Alone::Closed) && missing == 0 && !self.is_working() {
            return Some(End::Closed);
        }
        let stall = self.parts.options.stall;
        if missing == 0 || self.paused_until.is_some() || self.progress_at + stall > now {
            return None;
        }
        if self.alone.is_none() && self.has_some(missing) {
            tracing::warn!(
                bundle = %self.layout.id, missing, ?stall,
                "no piece came for long; the rest is fetched from the origin piece by piece"
            );
            self.alone = Some(Alone::Stalled);
            self.progress_at = now;
            return None;
        }
        // While control is away altogether, whole contents would not come either.
        if self.poll.failures > 0 && self.origin.failures > 0 {
            return None;
        }
        Some(End::Stuck(format!("no piece came within {} s", stall.as_secs())))
    }

    /// The tracker does not copy the bundle (any more).
    fn closed(&mut self, now: Instant) -> Option<End> {
        let missing = self.missing();
        if missing == 0 || !self.has_some(missing) {
            return Some(End::Closed);
        }
        tracing::info!(bundle = %self.layout.id, missing, "a bundle was closed; the rest is fetched from the origin piece by piece");
        self.alone = Some(Alone::Closed);
        self.progress_at = now;
        None
    }

    /// Whether pieces are here that would come again with whole contents, when `missing` are not.
    fn has_some(&self, missing: usize) -> bool {
        self.needed.count() as usize > missing
    }

    /// Whether something is on its way from the pieces into the mirror.
    fn is_working(&self) -> bool {
        self.making
            || self.syncing
            || !(self.unsynced.is_empty() && self.ripe.is_empty() && self.harvesting.is_empty())
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let mut wake_at = now + IDLE;
        if let Some(until) = self.paused_until {
            return until.min(wake_at);
        }
        let mut earlier = |at: Instant| wake_at = wake_at.min(at);
        if !self.poll.under_way && self.alone != Some(Alone::Closed) {
            earlier(self.poll.at);
            if self.poll.granting && self.leases.is_empty() {
                earlier(self.poll.last.map_or(now, |last| last + POLLS_APART).max(now + TICK));
            }
        }
        if let Some(at) = self.peers.next_due(now) {
            earlier(at);
        }
        if !self.unsynced.is_empty() && !self.syncing {
            earlier(self.sync_at);
        }
        if !self.by_recipe.is_empty() && !self.making {
            earlier(self.make_at);
        }
        if !self.asked.is_empty() {
            earlier(now + OVERDUE_CHECK);
        }
        if !self.leases.is_empty()
            && let Some(at) = self.origin.not_before
        {
            earlier(at.max(now + TICK));
        }
        wake_at
    }

    /// Needed pieces that are not here.
    fn missing(&self) -> usize {
        self.have.missing_from(&self.needed).count()
    }

    /// Whether a piece is here, be it not durable yet.
    fn is_had(&self, piece: u32) -> bool {
        self.picker.have().contains(piece)
    }

    /// Ends all requests for pieces; leases that were being used may be used again.
    fn stop_asking(&mut self) {
        self.fetches = JoinSet::new();
        for (_, asked) in self.asked.drain() {
            match asked.from {
                From::Origin(until) => self.leases.push_front((asked.piece, until)),
                From::Peer(_) => drop(self.parts.meter.asked.fetch_sub(1, Ordering::Relaxed)),
            }
        }
        self.origin.open = 0;
    }
}

/// Requests for pieces under way at once at most, the origin's among them.
const REQUESTS_MAX: usize = 20;
/// Requests to the origin under way at once at most: enough to fill its link beside others.
const ORIGIN_REQUESTS_MAX: usize = 4;
/// How long a piece may take from the origin, which all others ask too.
const ORIGIN_PATIENCE: Duration = Duration::from_secs(300);
/// Requests for the same piece at most.
const COPIES_MAX: usize = 2;
/// Leases are asked for so far ahead.
const LEASE_AHEAD: Duration = Duration::from_secs(2);
const LEASES_LEAST: usize = 4;
/// Between two polls when leases have run out.
const POLLS_APART: Duration = Duration::from_millis(100);
const HARVESTS_MAX: usize = 2;
const MAKE_AGAIN: Duration = Duration::from_millis(500);
const OVERDUE_CHECK: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(5);
const IDLE: Duration = Duration::from_secs(5);
