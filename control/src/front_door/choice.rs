//! Which volunteer a customer is sent to: the policy's selection over the routing table, and its explanation.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use freshet_api::admin::{Considered, ExplainView};
use freshet_api::balance::Balance;
use freshet_api::{Bytes, BytesPerSec, FileId, NodeId};
use freshet_engine::{Method, Request};
use freshet_policy::Moment;
use freshet_policy::admission::{Admission, OriginHeadroom, request_limit};
use freshet_policy::network::ClientPlace;
use freshet_policy::reservation::{Promise, ReservationLedger};
use freshet_policy::selection::{
    Candidate, FINALISTS_MAX, Field, Nearness, Reach, RequestFacts, Selector, Standing, Verdict, Witness,
};
use http::{HeaderMap, header};

use super::FrontDoor;
use super::recent::Sent;
use crate::balance::Rules;
use crate::catalog::FileEntry;
use crate::routing::{FileHolders, Route, RoutingTable};

/// Who asks, and for how much.
#[derive(Debug)]
pub(super) struct Customer {
    address: IpAddr,
    identity: u64,
    /// Body bytes that the answer will carry.
    pub(super) bytes: u64,
    partial: bool,
    /// Volunteers that sent it back, oldest first.
    tried: Vec<NodeId>,
}

impl Customer {
    pub(super) fn of(
        request: &Request<'_>,
        entry: &FileEntry<'_>,
        tried: &[NodeId],
        keyed: &impl BuildHasher,
    ) -> Self {
        let range = request.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let bytes = match (request.method, range) {
            (Method::Head, _) => 0,
            (Method::Get, None) => entry.size,
            (Method::Get, Some(range)) => range_bytes(range, entry.size),
        };
        Self {
            address: request.peer.ip().to_canonical(),
            identity: identity(request.peer.ip().to_canonical(), request.headers, keyed),
            bytes,
            partial: range.is_some(),
            tried: tried.to_vec(),
        }
    }

    pub(super) fn tried(&self) -> &[NodeId] {
        &self.tried
    }

    pub(super) fn promise(&self, entry: &FileEntry<'_>) -> Promise {
        Promise { client: self.identity, file: entry.file, bytes: Bytes(self.bytes), partial: self.partial }
    }

    /// By which recent redirects of it are found.
    pub(super) fn key(&self, entry: &FileEntry<'_>) -> u64 {
        freshet_policy::draw::mix(self.identity ^ u64::from(entry.file.0))
    }
}

/// Volunteers for one request, best first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ranked<'a> {
    routes: [Option<&'a Route>; FINALISTS_MAX],
}

impl<'a> Ranked<'a> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &'a Route> + '_ {
        self.routes.iter().map_while(|route| *route)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.routes[0].is_none()
    }
}

impl FrontDoor {
    /// Volunteers to send a customer to, best first; none when the origin must serve.
    ///
    /// One that the customer was sent to just now comes only after all others, and not at all once it has
    /// missed a heartbeat since: control takes a volunteer for dead after some missed heartbeats, its customers
    /// know at once.
    pub(super) fn choose<'a, 'r>(&'r self, ask: &Ask<'a, 'r>) -> Ranked<'a> {
        let (tried, selector) = (&ask.customer.tried, ask.rules.selector());
        let sent = self.recent.sent(ask.customer.key(ask.entry), ask.now, self.options.avoid_window);
        if sent.is_empty() {
            return self.rank(ask, selector, tried);
        }
        let mut avoided = tried.clone();
        avoided.extend(sent.iter().map(|(node, _)| *node));
        let others = self.rank(ask, selector, &avoided);
        if !others.is_empty() {
            return others;
        }
        let mut silent = tried.clone();
        silent.extend(silent_since(ask.table, &sent, ask.now, self.options.heartbeat));
        self.rank(ask, selector, &silent)
    }

    /// The volunteers that were weighed for a request, the chosen one first, then by what decided.
    pub(super) fn rank<'a, 'r>(
        &'r self,
        ask: &Ask<'a, 'r>,
        selector: &dyn Selector,
        tried: &[NodeId],
    ) -> Ranked<'a> {
        let field = Holders::new(ask, self);
        let facts = facts(ask.customer.bytes, ask.customer.address, tried);
        let mut weighed = Weighed::default();
        let choice = selector.pick(&field, &facts, ask.now, self.next_seed(), &mut weighed);
        let mut ranked = Ranked::default();
        let Some(choice) = choice else { return ranked };
        let weighed = &mut weighed.seen[..weighed.count];
        weighed.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let others = weighed.iter().map(|(_, index)| *index).filter(|index| *index != choice.index);
        let indexes = std::iter::once(choice.index).chain(others);
        for (place, index) in ranked.routes.iter_mut().zip(indexes) {
            *place = field.route(index);
        }
        ranked
    }

    /// As [`FrontDoor::choose`] would answer a first visit from `client`, in words and numbers.
    pub(super) fn explain_entry(
        &self,
        path: &str,
        entry: &FileEntry<'_>,
        client: IpAddr,
        direct: Option<&'static str>,
    ) -> ExplainView {
        let table = self.routing.load();
        let rules = self.balance.rules();
        let customer = Customer {
            address: client.to_canonical(),
            identity: 0,
            bytes: entry.size,
            partial: false,
            tried: Vec::new(),
        };
        let ask = Ask { table: &table, rules: &rules, entry, customer: &customer, now: self.clock.now() };
        let field = Holders::new(&ask, self);
        let facts = facts(entry.size, customer.address, &[]);
        let mut record = Record { field: &field, verdicts: HashMap::new() };
        let choice = rules.selector().pick(&field, &facts, ask.now, self.next_seed(), &mut record);
        let considered = table.routes().map(|route| {
            let candidate = field.candidate_of(route, &facts, false);
            let verdict = match (record.verdicts.get(&route.node), candidate.exclusion(&facts)) {
                (Some(verdict), _) => *verdict,
                (None, Some(exclusion)) => Verdict::Excluded(exclusion),
                (None, None) => Verdict::NotSampled,
            };
            considered_view(route, &candidate, &verdict, &field)
        });
        let considered = considered.collect();
        let chosen = choice.map(|choice| choice.node).filter(|_| direct.is_none());
        let origin = self.origin_headroom(&ask);
        let decision =
            match (direct, chosen.and_then(|node| table.route(node)), origin.takes(Bytes(entry.size))) {
                (Some(reason), ..) => format!("the origin sends it: {reason}"),
                (None, Some(route), _) => {
                    format!("302 to {} ({}), by {}", route.name, route.delivery_url, rules.selector().name())
                }
                (None, None, false) => {
                    "503 with a time to come back: no volunteer is eligible and the origin has given \
                                    away all that it may"
                        .to_owned()
                }
                (None, None, true) => "the origin sends it: no volunteer is eligible".to_owned(),
            };
        let balance = &rules.balance;
        let numbers = vec![
            ("customer_wait_secs".to_owned(), balance.customer_wait_secs.to_string()),
            ("customer_rate".to_owned(), balance.customer_rate.to_string()),
            ("selection".to_owned(), rules.selector().name().to_owned()),
            ("holders drawn from".to_owned(), field.len().to_string()),
            ("client is at".to_owned(), rules.network.describe(client)),
            ("origin owes".to_owned(), origin.outstanding.to_string()),
            (
                "origin may owe".to_owned(),
                if origin.limit.0 == u64::MAX { "no limit".to_owned() } else { origin.limit.to_string() },
            ),
        ];
        ExplainView { path: path.to_owned(), client, decision, chosen, considered, numbers }
    }

    /// What becomes of a request for which there is nobody; who is told to come back is given a place.
    pub(super) fn origin_or_later(&self, ask: &Ask<'_, '_>) -> Admission {
        let (origin, size) = (self.origin_headroom(ask), Bytes(ask.customer.bytes));
        let drain = BytesPerSec(self.drain.load(Ordering::Relaxed));
        let asker = ask.customer.key(ask.entry);
        self.guard.decide(None, size, origin, drain, ask.now, asker, self.next_seed())
    }

    fn origin_headroom(&self, ask: &Ask<'_, '_>) -> OriginHeadroom {
        let balance = &ask.rules.balance;
        let rate = balance.origin_rate.unwrap_or(BytesPerSec(u64::MAX));
        OriginHeadroom {
            outstanding: self.origin_load.outstanding(),
            rate,
            limit: match balance.origin_rate {
                Some(rate) => request_limit(
                    rate,
                    balance.customer_wait(),
                    balance.customer_rate,
                    Bytes(ask.customer.bytes),
                ),
                None => Bytes(u64::MAX),
            },
        }
    }
}

/// A request and what it is decided by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a, 'r> {
    pub(super) table: &'a RoutingTable,
    pub(super) rules: &'r Rules,
    pub(super) entry: &'r FileEntry<'r>,
    pub(super) customer: &'r Customer,
    pub(super) now: Moment,
}

/// What decided about each candidate that was weighed, with its place in the field.
#[derive(Debug)]
struct Weighed {
    seen: [(f64, usize); FINALISTS_MAX],
    count: usize,
}

impl Default for Weighed {
    fn default() -> Self {
        Self { seen: [(0.0, 0); FINALISTS_MAX], count: 0 }
    }
}

impl Witness for Weighed {
    fn saw(&mut self, index: usize, verdict: Verdict) {
        if let (Verdict::Weighed(score), Some(place)) = (verdict, self.seen.get_mut(self.count)) {
            *place = (score.value, index);
            self.count += 1;
        }
    }
}

/// What came of everybody who was looked at.
struct Record<'f, 'a, 'r> {
    field: &'f Holders<'a, 'r>,
    verdicts: HashMap<NodeId, Verdict>,
}

impl Witness for Record<'_, '_, '_> {
    fn saw(&mut self, index: usize, verdict: Verdict) {
        self.verdicts.insert(self.field.holders.node(index), verdict);
    }
}

/// Those who may hold one file, as candidates for one client.
struct Holders<'a, 'r> {
    table: &'a RoutingTable,
    holders: FileHolders<'a>,
    file: FileId,
    client: IpAddr,
    place: ClientPlace<'r>,
    balance: &'r Balance,
    reservations: &'r ReservationLedger,
    now: Moment,
}

impl<'a, 'r> Holders<'a, 'r> {
    fn new(ask: &Ask<'a, 'r>, door: &'r FrontDoor) -> Self {
        Self {
            table: ask.table,
            holders: ask.table.holders(ask.entry.file),
            file: ask.entry.file,
            client: ask.customer.address,
            place: ask.rules.network.place(ask.customer.address),
            balance: &ask.rules.balance,
            reservations: &door.reservations,
            now: ask.now,
        }
    }

    fn route(&self, index: usize) -> Option<&'a Route> {
        self.table.route(self.holders.node(index))
    }

    /// `certain` when the list it stands in says that it holds the file; otherwise it is asked.
    fn candidate_of(&self, route: &Route, request: &RequestFacts<'_>, certain: bool) -> Candidate {
        let standing = match route.standing {
            Standing::Ready | Standing::Suspect if !certain && !route.holdings.contains(self.file.0) => {
                Standing::LacksFile
            }
            standing => standing,
        };
        // A volunteer that calls itself loopback is reached from this host only. `Reach` without a family
        // is excluded as unreachable.
        let hidden = route.loopback && !self.client.is_loopback() && !self.client.is_unspecified();
        let wait = self.balance.customer_wait();
        // Not the raw promises: those of slow clients would send everybody to whoever reported last.
        let backlog = self.reservations.backlog(route.node, request.size, self.now);
        Candidate {
            node: route.node,
            standing,
            reach: if hidden { Reach(route.reach.0 & !FAMILIES) } else { route.reach },
            outstanding: backlog,
            rate: route.rate,
            reported_load: route.reported_load,
            weight: route.weight,
            nearness: self.place.nearness(route.node, &route.whereabouts),
            admission: request_limit(route.rate, wait, self.balance.customer_rate, request.size),
            // What was promised since it was heard of comes out of it too.
            budget: if route.budget.0 == u64::MAX {
                route.budget
            } else {
                Bytes(route.budget.0.saturating_sub(self.reservations.outstanding(route.node).0))
            },
            budget_price: route.budget_price,
        }
    }
}

impl Field for Holders<'_, '_> {
    fn len(&self) -> usize {
        self.holders.len()
    }

    fn candidate(&self, index: usize, request: &RequestFacts<'_>) -> Candidate {
        match self.route(index) {
            Some(route) => self.candidate_of(route, request, self.holders.is_certain(index)),
            None => gone(self.holders.node(index)),
        }
    }

    fn draw(&self, unit: f64) -> Option<usize> {
        self.holders.draw(unit)
    }
}

/// Somebody who was removed since the lists were made.
fn gone(node: NodeId) -> Candidate {
    Candidate {
        node,
        standing: Standing::Dead,
        reach: Reach::default(),
        outstanding: Bytes(0),
        rate: BytesPerSec(0),
        reported_load: 0.0,
        weight: 0,
        nearness: Nearness::Elsewhere,
        admission: Bytes(0),
        budget: Bytes(0),
        budget_price: 1.0,
    }
}

fn considered_view(
    route: &Route,
    candidate: &Candidate,
    verdict: &Verdict,
    field: &Holders<'_, '_>,
) -> Considered {
    let mut factor = None;
    let (excluded, finish) = match verdict {
        Verdict::Weighed(score) => {
            factor = Some(score.factor);
            (None, Some(score.finish.as_secs_f64() * 1e3))
        }
        Verdict::Excluded(exclusion) => {
            let words = match (&route.reason, route.standing) {
                (Some(reason), standing) if standing != Standing::Ready => reason.to_string(),
                _ => exclusion.to_string(),
            };
            (Some(words), None)
        }
        Verdict::NotSampled => (Some("not among those sampled this time".to_owned()), None),
    };
    Considered {
        node: route.node,
        name: route.name.as_str().to_owned(),
        excluded,
        expected_finish_ms: finish,
        outstanding_bytes: field.reservations.outstanding(route.node).0,
        rate: (route.rate.0 > 0).then_some(route.rate),
        backlog_bytes: candidate.outstanding.0,
        limit_bytes: (candidate.admission.0 != u64::MAX).then_some(candidate.admission.0),
        budget_bytes: (candidate.budget.0 != u64::MAX).then_some(candidate.budget.0),
        budget_price: candidate.budget_price,
        nearness: candidate.nearness.name().to_owned(),
        factor,
        reported_load: candidate.reported_load,
        weight: candidate.weight,
    }
}

fn facts(bytes: u64, client: IpAddr, tried: &[NodeId]) -> RequestFacts<'_> {
    let family = match client {
        // Nobody in particular, as `ctl explain` asks without a client.
        client if client.is_unspecified() => Reach::default(),
        IpAddr::V4(_) => Reach::V4,
        IpAddr::V6(_) => Reach::V6,
    };
    // The family the client came by is one it has; of its schemes nothing is known, and all HTTP clients in
    // use follow a redirect to HTTPS.
    RequestFacts { size: Bytes(bytes), reach: family, client_rate: None, tried }
}

/// Of the volunteers the customer was sent to, those that should have been heard of since and were not.
///
/// Before a heartbeat is overdue nothing is known: most who ask again so soon fetch several parts at once, and on a
/// busy host a heartbeat is late by a good part of its interval.
fn silent_since(
    table: &RoutingTable,
    sent: &Sent,
    now: Moment,
    heartbeat: Duration,
) -> impl Iterator<Item = NodeId> {
    sent.iter().filter_map(move |&(node, at)| {
        let heard = table.route(node).and_then(|route| route.heard);
        let overdue = now.since(at) > heartbeat * OVERDUE_INTERVALS;
        (overdue && heard.is_none_or(|heard| heard <= at)).then_some(node)
    })
}

/// Intervals after which a heartbeat is overdue.
const OVERDUE_INTERVALS: u32 = 2;

/// What stays the same when a client asks again: its address and what it calls itself, never its port.
fn identity(address: IpAddr, headers: &HeaderMap, keyed: &impl BuildHasher) -> u64 {
    keyed.hash_one((address, headers.get(header::USER_AGENT).map(|agent| agent.as_bytes())))
}

/// Body bytes of an answer to this `Range` field; the whole file's where it is not understood. The engine
/// that serves it parses for itself: this is an estimate for the ledger of promises only.
fn range_bytes(range: &str, size: u64) -> u64 {
    let Some(list) = range.trim().strip_prefix("bytes=") else { return size };
    let mut bytes = 0u64;
    for part in list.split(',').take(RANGES_MAX) {
        let Some((first, last)) = part.trim().split_once('-') else { return size };
        let (first, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) => (first, last.saturating_add(1).min(size)),
            (Ok(first), Err(_)) if last.is_empty() => (first, size),
            (Err(_), Ok(suffix)) if first.is_empty() => (size.saturating_sub(suffix), size),
            _ => return size,
        };
        bytes = bytes.saturating_add(end.saturating_sub(first));
    }
    bytes.min(size)
}

const FAMILIES: u8 = Reach::V4.0 | Reach::V6.0;
const RANGES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::testing;

    #[test]
    fn a_volunteer_is_silent_when_a_heartbeat_is_overdue() {
        let at = Moment::from_secs_f64;
        let table = testing::table([(1, at(9.0)), (2, at(11.5))]);
        let sent = vec![(NodeId(1), at(10.0)), (NodeId(2), at(10.0)), (NodeId(3), at(10.0))];
        let silent = |now| -> Vec<u32> {
            silent_since(&table, &sent, now, Duration::from_secs(1)).map(|node| node.0).collect()
        };
        assert!(silent(at(10.9)).is_empty());
        assert!(silent(at(11.9)).is_empty(), "late is not silent");
        assert_eq!(silent(at(12.1)), [1, 3]);
    }

    #[test]
    fn ranges_are_estimated() {
        for (range, bytes) in [
            ("bytes=0-99", 100),
            ("bytes=900-", 100),
            ("bytes=-30", 30),
            ("bytes=-3000", 1000),
            ("bytes=0-9,20-29", 20),
            ("bytes=990-5000", 10),
            ("bytes=5000-", 0),
            ("bytes=x", 1000),
            ("lines=1-2", 1000),
            ("bytes=5-x", 1000),
        ] {
            assert_eq!(range_bytes(range, 1000), bytes, "{range}");
        }
    }

    #[test]
    fn a_customer_is_known_by_address_and_agent() {
        let mut curl = HeaderMap::new();
        curl.insert(header::USER_AGENT, "curl/8".parse().unwrap());
        let keyed = std::hash::RandomState::new();
        let identity = |address, headers| super::identity(address, headers, &keyed);
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert_eq!(identity(a, &curl), identity(a, &curl));
        assert_ne!(identity(a, &curl), identity(b, &curl));
        assert_ne!(identity(a, &curl), identity(a, &HeaderMap::new()));
    }
}
