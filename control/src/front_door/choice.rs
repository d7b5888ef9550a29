//! Which volunteer a customer is sent to: the policy's selection over the routing table, and its explanation.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::Duration;

use freshet_api::admin::{Considered, ExplainView};
use freshet_api::{Bytes, FileId, NodeId};
use freshet_engine::{Method, Request};
use freshet_policy::Moment;
use freshet_policy::reservation::{Promise, ReservationLedger};
use freshet_policy::selection::{
    Candidate, Field, Nearness, Reach, RequestFacts, Standing, Verdict, Witness,
};
use http::{HeaderMap, header};

use super::FrontDoor;
use super::recent::Sent;
use crate::catalog::FileEntry;
use crate::routing::{Route, RoutingTable};

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

impl FrontDoor {
    /// Volunteers to send a customer to, best first; none when the origin must serve.
    ///
    /// One that the customer was sent to just now comes only after all others, and not at all once it has
    /// missed a heartbeat since: control takes a volunteer for dead after some missed heartbeats, its customers
    /// know at once.
    pub(super) fn choose<'a>(
        &self,
        table: &'a RoutingTable,
        entry: &FileEntry<'_>,
        customer: &Customer,
    ) -> Vec<&'a Route> {
        let now = self.clock.now();
        let sent = self.recent.sent(customer.key(entry), now, self.options.avoid_window);
        let mut avoided = customer.tried.clone();
        avoided.extend(sent.iter().map(|(node, _)| *node));
        let others = self.rank(table, entry, customer, &avoided, now);
        if !others.is_empty() || sent.is_empty() {
            return others;
        }
        let mut silent = customer.tried.clone();
        silent.extend(silent_since(table, &sent, now, self.options.heartbeat));
        self.rank(table, entry, customer, &silent, now)
    }

    /// The volunteers that were weighed for a request, the chosen one first, then by what decided.
    pub(super) fn rank<'a>(
        &self,
        table: &'a RoutingTable,
        entry: &FileEntry<'_>,
        customer: &Customer,
        tried: &[NodeId],
        now: Moment,
    ) -> Vec<&'a Route> {
        let field = Holders::new(table, entry.file, customer.address, &self.reservations, now);
        let facts = facts(customer.bytes, customer.address, tried);
        let mut weighed = Weighed::default();
        let choice = self.selector.pick(&field, &facts, now, self.next_seed(), &mut weighed);
        let Some(choice) = choice else { return Vec::new() };
        weighed.0.retain(|&(_, index)| index != choice.index);
        weighed.0.sort_by(|a, b| a.0.total_cmp(&b.0));
        let indexes = std::iter::once(choice.index).chain(weighed.0.into_iter().map(|(_, index)| index));
        indexes.filter_map(|index| table.routes().get(index)).collect()
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
        let client = client.to_canonical();
        let now = self.clock.now();
        let field = Holders::new(&table, entry.file, client, &self.reservations, now);
        let facts = facts(entry.size, client, &[]);
        let explanation = self.selector.explain(&field, &facts, now, self.next_seed());
        let considered = table.routes().iter().zip(&explanation.verdicts);
        let considered = considered.map(|(route, (_, verdict))| considered_view(route, verdict, &field));
        let chosen = explanation.choice.map(|choice| choice.node).filter(|_| direct.is_none());
        let decision = match (direct, chosen.and_then(|node| table.route(node))) {
            (Some(reason), _) => format!("the origin sends it: {reason}"),
            (None, Some(route)) => {
                format!("302 to {} ({}), by {}", route.name, route.delivery_url, explanation.algorithm)
            }
            (None, None) => "the origin sends it: no volunteer is eligible".to_owned(),
        };
        ExplainView { path: path.to_owned(), client, decision, chosen, considered: considered.collect() }
    }
}

/// What decided about each candidate that was weighed, with its place in the field.
#[derive(Debug, Default)]
struct Weighed(Vec<(f64, usize)>);

impl Witness for Weighed {
    fn saw(&mut self, index: usize, verdict: Verdict) {
        if let Verdict::Weighed(score) = verdict {
            self.0.push((score.value, index));
        }
    }
}

/// All volunteers as candidates for one file and client.
struct Holders<'a> {
    table: &'a RoutingTable,
    file: FileId,
    client: IpAddr,
    reservations: &'a ReservationLedger,
    now: Moment,
}

impl<'a> Holders<'a> {
    fn new(
        table: &'a RoutingTable,
        file: FileId,
        client: IpAddr,
        reservations: &'a ReservationLedger,
        now: Moment,
    ) -> Self {
        Self { table, file, client, reservations, now }
    }
}

impl Field for Holders<'_> {
    fn len(&self) -> usize {
        self.table.routes().len()
    }

    fn candidate(&self, index: usize, request: &RequestFacts<'_>) -> Candidate {
        let route = &self.table.routes()[index];
        let standing = match route.standing {
            Standing::Ready | Standing::Suspect if !route.holdings.contains(self.file.0) => {
                Standing::LacksFile
            }
            standing => standing,
        };
        // A volunteer that calls itself loopback is reached from this host only. `Reach` without a family
        // is excluded as unreachable.
        let hidden = route.loopback && !self.client.is_loopback() && !self.client.is_unspecified();
        Candidate {
            node: route.node,
            standing,
            reach: if hidden { Reach(route.reach.0 & !FAMILIES) } else { route.reach },
            // Not the raw promises: those of slow clients would send everybody to whoever reported last.
            outstanding: self.reservations.backlog(route.node, request.size, self.now),
            rate: route.rate,
            reported_load: route.reported_load,
            weight: 1,
            nearness: Nearness::Elsewhere,
            admission: Bytes(u64::MAX),
            // What was promised since it was heard of comes out of it too.
            budget: Bytes(route.budget.0.saturating_sub(self.reservations.outstanding(route.node).0)),
            budget_price: route.budget_price,
        }
    }
}

fn considered_view(route: &Route, verdict: &Verdict, field: &Holders<'_>) -> Considered {
    let (excluded, finish) = match verdict {
        Verdict::Weighed(score) => (None, Some(score.finish.as_secs_f64() * 1e3)),
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
