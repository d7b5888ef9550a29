//! The routing table: an immutable snapshot of all volunteers, rebuilt beside the traffic and swapped in.
//!
//! The front door reads nothing else about volunteers. Building it does no I/O.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use freshet_api::admin::NodeState;
use freshet_api::heartbeat::{BudgetReport, Heartbeat, Readiness};
use freshet_api::{Bytes, BytesPerSec, NodeId, TicketKey};
use freshet_policy::Moment;
use freshet_policy::liveness::Life;
use freshet_policy::reservation::ReservationLedger;
use freshet_policy::selection::{Reach, Standing};
use freshet_policy::steering::BudgetOutlook;
use roaring::RoaringBitmap;

use crate::clock::Clock;
use crate::registry::{Node, NodeName, Registry};
use crate::tracker::{Session, Tracker};

/// All volunteers that have joined, in the order of their numbers.
#[derive(Debug, Default)]
pub struct RoutingTable {
    routes: Vec<Route>,
}

/// One volunteer as the front door sees it.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Seals its tickets.
    pub ticket_key: TicketKey,
    /// Whether customers may be sent there, the file aside.
    pub standing: Standing,
    /// Where it stands, for people.
    pub state: NodeState,
    /// Why it gets no customers, if it gets none.
    pub reason: Option<Arc<str>>,
    /// When it was last heard of.
    pub heard: Option<Moment>,
    /// Where customers are sent, without a trailing `/`.
    pub delivery_url: Arc<str>,
    /// By which families and schemes.
    pub reach: Reach,
    /// Whether `delivery_url` names this very host.
    pub loopback: bool,
    /// What it can send.
    pub rate: BytesPerSec,
    /// What it sent lately, as a fraction of that.
    pub reported_load: f32,
    /// Bytes that its owner's budget had room for when it was last heard of.
    pub budget: Bytes,
    /// How much dearer its month makes it.
    pub budget_price: f32,
    /// What it holds.
    pub holdings: Arc<RoaringBitmap>,
}

impl RoutingTable {
    /// Brings together who has joined and where everybody stands at `now`.
    pub fn build(registry: &dyn Registry, tracker: &dyn Tracker, now: Moment) -> Self {
        let nodes = registry.nodes();
        let routes = nodes.iter().filter_map(|node| Route::of(node, tracker.session(node.id, now)));
        Self { routes: routes.collect() }
    }

    /// All of them.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// By number.
    pub fn route(&self, node: NodeId) -> Option<&Route> {
        let index = self.routes.binary_search_by_key(&node, |route| route.node).ok()?;
        Some(&self.routes[index])
    }
}

impl Route {
    fn of(node: &Node, session: Option<Session>) -> Option<Self> {
        let membership = node.membership.as_ref()?;
        let (standing, state, reason) = standing(node, session.as_ref());
        let target =
            session.as_ref().and_then(|session| DeliveryTarget::parse(&session.heartbeat.delivery_url));
        let budget = session.as_ref().and_then(|session| session.heartbeat.budget.as_ref());
        let (budget, budget_price) = (room(budget), price(budget));
        let load = session.as_ref().map_or(0.0, |s| s.delivery_rate.0 as f32 / s.capacity.0.max(1) as f32);
        Some(Self {
            node: node.id,
            name: node.name.clone(),
            ticket_key: membership.ticket_key.clone(),
            standing,
            state,
            reason: reason.map(Into::into),
            heard: session.as_ref().map(|session| session.heard),
            reach: target.as_ref().map_or(Reach::default(), |target| target.reach),
            loopback: target.as_ref().is_some_and(|target| target.loopback),
            delivery_url: target.map_or_else(|| "".into(), |target| target.url),
            rate: session.as_ref().map_or(BytesPerSec(0), |session| session.capacity),
            reported_load: load,
            budget,
            budget_price,
            holdings: session.map(|session| session.holdings).unwrap_or_default(),
        })
    }
}

/// What the owner's budget has room for.
fn room(budget: Option<&BudgetReport>) -> Bytes {
    budget.and_then(|budget| budget.promisable).unwrap_or(Bytes(u64::MAX))
}

fn price(budget: Option<&BudgetReport>) -> f32 {
    let Some(month) = budget.and_then(|budget| budget.month.as_ref()) else { return 1.0 };
    let outlook = BudgetOutlook {
        left: Some(month.left),
        volume: month.volume,
        period_left: Duration::from_secs(month.ends_in_secs),
        period: Duration::from_secs(month.lasts_secs),
        open_for: None,
    };
    outlook.price()
}

/// A checked `delivery_url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryTarget {
    /// `scheme://host:port`, nothing behind it.
    pub url: Arc<str>,
    /// What a client must be able to speak.
    pub reach: Reach,
    /// Whether it is a literal loopback address.
    pub loopback: bool,
}

impl DeliveryTarget {
    /// Reads `http://host:port` or `https://host:port`; `None` for anything else, which could not stand in a
    /// `Location`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > DELIVERY_URL_BYTES_MAX {
            return None;
        }
        let uri: http::Uri = text.parse().ok()?;
        let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
        let scheme_reach = match scheme {
            "http" => Reach::HTTP,
            "https" => Reach::HTTPS,
            _ => return None,
        };
        let bare = uri.query().is_none() && matches!(uri.path(), "" | "/");
        if !bare || authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let address: Option<IpAddr> = host.parse().ok();
        let families = match address {
            Some(IpAddr::V4(_)) => Reach::V4,
            Some(IpAddr::V6(_)) => Reach::V6,
            None => Reach::V4.and(Reach::V6),
        };
        Some(Self {
            url: format!("{scheme}://{authority}").into(),
            reach: families.and(scheme_reach),
            loopback: address.is_some_and(|address| address.is_loopback()),
        })
    }
}

fn standing(node: &Node, session: Option<&Session>) -> (Standing, NodeState, Option<String>) {
    if let Some(ban) = &node.ban {
        return (Standing::Untrusted, NodeState::Banned, Some(ban.to_string()));
    }
    let Some(session) = session else {
        return (Standing::Dead, NodeState::Lost, Some("no heartbeat since control's start".into()));
    };
    let heartbeat: &Heartbeat = &session.heartbeat;
    match session.life {
        Life::Unknown | Life::Dead => {
            return (Standing::Dead, NodeState::Lost, Some("its heartbeats stopped".into()));
        }
        Life::Flapping | Life::Alive | Life::Suspect => {}
    }
    if node.draining {
        return (Standing::Draining, NodeState::Draining, Some("drained by an operator".into()));
    }
    if let Readiness::Closed { why } = &heartbeat.readiness {
        return (Standing::OutsideHours, NodeState::Closed, Some(why.clone()));
    }
    match session.life {
        Life::Flapping => {
            (Standing::Flapping, NodeState::Closed, Some("it comes and goes too often just now".into()))
        }
        Life::Suspect => (Standing::Suspect, NodeState::Active, None),
        _ => (Standing::Ready, NodeState::Active, None),
    }
}

/// The table in force, and how it is kept current.
pub struct Routing {
    table: ArcSwap<RoutingTable>,
    stale: AtomicBool,
    registry: Arc<dyn Registry>,
    tracker: Arc<dyn Tracker>,
    reservations: Arc<ReservationLedger>,
    clock: Clock,
}

impl Routing {
    /// With the table as of now.
    pub fn new(
        registry: Arc<dyn Registry>,
        tracker: Arc<dyn Tracker>,
        reservations: Arc<ReservationLedger>,
        clock: Clock,
    ) -> Self {
        let table = RoutingTable::build(&*registry, &*tracker, clock.now());
        Self {
            table: ArcSwap::from_pointee(table),
            stale: AtomicBool::new(false),
            registry,
            tracker,
            reservations,
            clock,
        }
    }

    /// The table in force; lock-free.
    pub fn load(&self) -> Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    /// Says that something changed: the table is rebuilt within [`REBUILD_EVERY`].
    pub fn touch(&self) {
        self.stale.store(true, Ordering::Release);
    }

    /// Rebuilds the table at once.
    pub fn rebuild(&self) {
        self.stale.store(false, Ordering::Release);
        let table = RoutingTable::build(&*self.registry, &*self.tracker, self.clock.now());
        let before = self.table.swap(Arc::new(table));
        tell_changes(&before, &self.load());
    }

    /// Keeps the table current until the task is aborted: after changes, and for silence, which is a change
    /// that nobody announces.
    pub async fn keep_current(&self) {
        let mut ticks = tokio::time::interval(REBUILD_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut quiet = 0;
        let mut since_ageing = 0;
        loop {
            ticks.tick().await;
            quiet += 1;
            if self.stale.load(Ordering::Acquire) || quiet >= SILENCE_TICKS {
                quiet = 0;
                self.rebuild();
            }
            since_ageing += 1;
            if since_ageing >= AGEING_TICKS {
                since_ageing = 0;
                self.age_reservations();
            }
        }
    }

    fn age_reservations(&self) {
        let now = self.clock.now();
        for route in self.load().routes() {
            if route.standing == Standing::Dead {
                self.reservations.clear(route.node);
            } else {
                self.reservations.age(route.node, now);
            }
        }
    }
}

/// Tells in the log who came and went.
fn tell_changes(before: &RoutingTable, after: &RoutingTable) {
    for route in after.routes() {
        let was = before.route(route.node).map(|route| route.state);
        if was.is_some_and(|was| was != route.state) {
            let reason = route.reason.as_deref().unwrap_or("takes customers");
            tracing::info!(node = %route.node, name = %route.name, state = ?route.state, reason, "volunteer");
        }
    }
}

impl std::fmt::Debug for Routing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routing").field("table", &self.table).finish_non_exhaustive()
    }
}

/// Between two rebuilds at least.
pub const REBUILD_EVERY: Duration = Duration::from_millis(50);
/// Rebuilt after so many quiet ticks all the same (250 ms).
const SILENCE_TICKS: u32 = 5;
/// Reservations age once a second.
const AGEING_TICKS: u32 = 20;
/// Bytes of a `delivery_url` at most.
pub const DELIVERY_URL_BYTES_MAX: usize = 300;

#[cfg(test)]
pub(crate) mod testing {
    //! Routing tables for tests.

    use super::*;

    /// Volunteers that hold nothing, by number and when they were last heard of.
    pub(crate) fn table<const N: usize>(nodes: [(u32, Moment); N]) -> RoutingTable {
        let routes = nodes.map(|(node, heard)| Route {
            node: NodeId(node),
            name: format!("n{node}").parse().unwrap(),
            ticket_key: TicketKey([1; 32]),
            standing: Standing::Ready,
            state: NodeState::Active,
            reason: None,
            heard: Some(heard),
            delivery_url: "http://192.0.2.1".into(),
            reach: Reach::ALL,
            loopback: false,
            rate: BytesPerSec(1),
            reported_load: 0.0,
            budget: Bytes(u64::MAX),
            budget_price: 1.0,
            holdings: Arc::default(),
        });
        RoutingTable { routes: routes.into() }
    }
}

#[cfg(test)]
mod tests {
    use freshet_api::heartbeat::MonthReport;

    use super::*;

    #[test]
    fn delivery_urls_are_checked_and_say_how_they_are_reached() {
        let target = |text| DeliveryTarget::parse(text);
        let v4 = target("http://192.0.2.7:8080").unwrap();
        assert_eq!((&*v4.url, v4.reach), ("http://192.0.2.7:8080", Reach::V4.and(Reach::HTTP)));
        let v6 = target("http://[2001:db8::1]:80/").unwrap();
        assert_eq!((&*v6.url, v6.reach), ("http://[2001:db8::1]:80", Reach::V6.and(Reach::HTTP)));
        assert_eq!(
            target("https://mirror.example").unwrap().reach,
            Reach::V4.and(Reach::V6).and(Reach::HTTPS)
        );
        assert!(target("http://127.0.0.1:1").unwrap().loopback && !v4.loopback);
    }

    #[test]
    fn a_month_that_is_used_too_fast_makes_dear_and_one_without_end_does_not() {
        let mut report = BudgetReport {
            promisable: Some(Bytes(7)),
            month: Some(MonthReport {
                volume: Bytes(100),
                left: Bytes(10),
                ends_in_secs: 500,
                lasts_secs: 1000,
            }),
            ..BudgetReport::default()
        };
        assert_eq!(room(Some(&report)), Bytes(7));
        assert!(price(Some(&report)) > 10.0);
        (report.month, report.promisable) = (None, None);
        assert_eq!((room(Some(&report)), price(Some(&report))), (Bytes(u64::MAX), 1.0));
        assert_eq!((room(None), price(None)), (Bytes(u64::MAX), 1.0));
    }

    #[test]
    fn what_could_not_stand_in_a_location_is_refused() {
        let long = format!("http://{}", "a".repeat(DELIVERY_URL_BYTES_MAX));
        for text in [
            "",
            "mirror",
            "/x",
            "ftp://a",
            "http://",
            "http://u@a",
            "http://a/b",
            "http://a?x",
            "http://a\r\nb",
            &long,
        ] {
            assert_eq!(DeliveryTarget::parse(text), None, "{text:?}");
        }
    }
}
