//! The simulated world: customers, volunteers, the origin, and the front door that runs the policies.
//!
//! Truth (what uplinks send, who is there) and knowledge (what heartbeats told) are kept apart; the
//! front door decides on knowledge alone, with the very policy code that control runs.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use anyhow::{Result, bail};
use freshet_api::{Bytes, BytesPerSec, FileId, NodeId};
use freshet_policy::Moment;
use freshet_policy::admission::{Admission, CascadeGuard, OriginHeadroom};
use freshet_policy::arbiter::{
    Arbiter, DeliveryFirst, EqualLateness, FixedSplit, ShortestRemaining, SyncFirst, Targets,
};
use freshet_policy::draw::{Draw, mix};
use freshet_policy::liveness::LivenessTerms;
use freshet_policy::pacing::Weight;
use freshet_policy::reservation::{Promise, ReservationLedger, ReservationTerms};
use freshet_policy::selection::{
    Choice, ExpectedFinishTime, LeastReportedLoad, Random, Reach, RequestFacts, RoundRobin, Selector,
    StaticWeights, TwoChoices,
};

use super::classes::Classes;
use super::metrics::{Metrics, Outcome, SERIES_NODES_MAX, Sample, Traffic};
use super::mirrors::Mirrors;
use super::node::Node;
use super::scenario::{FaultKind, Scenario, Sync};
use super::uplink::{FlowId, Group};
use super::view::{Holders, Report, View};
use super::workload::{Asked, Workload};

/// Simulates `scenario` from `seed`.
///
/// # Errors
/// When the scenario names an algorithm that there is not, or its trace cannot be read.
pub(crate) fn simulate(scenario: &Scenario, seed: u64) -> Result<Outcome> {
    World::new(scenario, seed)?.run()
}

/// What is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// The next request of the workload.
    Arrival,
    /// A customer comes back.
    Again(u32),
    /// The next flow of a node is done, unless its rates have changed since (second number).
    Done(u32, u32),
    /// Nodes of this slice send heartbeats.
    Heartbeats(u32),
    /// A release: mirrors may fetch it.
    Announce(u32),
    /// A release: customers may have it.
    Publish(u32),
    /// A node starts its daily sync.
    Daily(u32),
    /// The origin has compared a node's files, unless others have come since.
    Compared(u32),
    /// A fault.
    Fault(u32),
    /// A volunteer comes or goes.
    Churn(u32),
    /// An owner's traffic changes.
    Owner(u32),
    /// Placement is planned anew.
    Placement,
    /// A point for the plots.
    Sample,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Scheduled {
    at: f64,
    order: u64,
    what: What,
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        self.at.total_cmp(&other.at).then(self.order.cmp(&other.order))
    }
}

/// What a flow carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cargo {
    /// A customer's request.
    Request(u32),
    /// A piece of a bundle, from one node to another.
    Piece { bundle: u32, piece: u32, from: u32, to: u32 },
    /// What has changed since a node's last sync.
    Changes { node: u32 },
    /// Nothing: the number is free.
    Free,
}

/// A customer's request, until it has the whole file.
#[derive(Clone, Copy, Debug)]
struct Request {
    client: u64,
    asked: Asked,
    class: u8,
    arrived: f64,
    left: f64,
    attempts: u16,
    counted: bool,
    /// Has had a part of it.
    partial: bool,
}

/// The world.
pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) now: f64,
    pub(super) draw: Draw,
    /// Receiver rates, ascending, one per class.
    pub(super) limits: Vec<f64>,
    classes: Classes,
    /// The origin first, then the volunteers; a node's number is its index.
    pub(super) nodes: Vec<Node>,
    pub(super) views: Vec<View>,
    pub(super) ledger: ReservationLedger,
    pub(super) targets: Targets,
    pub(super) arbiters: Vec<Box<dyn Arbiter>>,
    pub(super) mirrors: Mirrors,
    pub(super) metrics: Metrics,
    pub(super) workload: Workload,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    flows: Vec<Cargo>,
    free_flows: Vec<FlowId>,
    requests: Vec<Request>,
    free_requests: Vec<u32>,
    client_classes: Vec<(usize, f64)>,
    liveness: LivenessTerms,
    guard: CascadeGuard,
    selector: Box<dyn Selector>,
    reports: VecDeque<(f64, Report)>,
    sampled: [f64; 3],
    sampled_nodes: Vec<f64>,
    done: Vec<FlowId>,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> Result<World<'a>> {
        let mut draw = Draw::new(mix(seed));
        let nodes = Node::all(scenario, &mut draw);
        let mut limits: Vec<f64> = scenario.clients.iter().map(|class| class.rate.0 as f64).collect();
        limits.extend(scenario.nodes.iter().map(|group| group.downlink.0 as f64 / PULLS_AT_ONCE));
        limits.extend(nodes.iter().map(|node| node.downlink));
        limits.sort_by(f64::total_cmp);
        limits.dedup();
        let arbiters: Vec<Box<dyn Arbiter>> =
            nodes.iter().map(|_| arbiter(&scenario.front_door.arbiter)).collect::<Result<_>>()?;
        let small_first = arbiters.iter().any(|law| law.puts_small_first());
        let classes = Classes::of(&limits, small_first);
        let count = classes.receivers.len();
        let nodes: Vec<Node> = nodes.into_iter().map(|node| node.with_classes(count)).collect();
        let parts: f64 = scenario.clients.iter().map(|class| class.part).sum();
        let client_classes = scenario
            .clients
            .iter()
            .map(|class| {
                let place = limits.iter().position(|&limit| limit == class.rate.0 as f64).unwrap_or(0);
                (place, class.part / parts)
            })
            .collect();
        let views =
            nodes.iter().map(|node| View::new(node.claimed, scenario.front_door.rate_seconds)).collect();
        let volunteers: f64 = nodes[1..].iter().map(|node| node.donation).sum();
        let mut world = World {
            scenario,
            now: 0.0,
            workload: Workload::new(scenario, volunteers, seed)?,
            draw,
            limits,
            classes,
            mirrors: Mirrors::new(scenario, &nodes),
            nodes,
            views,
            ledger: ReservationLedger::new(ReservationTerms::default(), 1 << 16),
            targets: Targets {
                customer_wait: Duration::from_secs_f64(scenario.front_door.customer_wait_seconds),
                sync: Duration::from_secs_f64(scenario.front_door.sync_target_seconds),
            },
            arbiters,
            metrics: Metrics::new(),
            queue: BinaryHeap::new(),
            order: 0,
            flows: Vec::new(),
            free_flows: Vec::new(),
            requests: Vec::new(),
            free_requests: Vec::new(),
            client_classes,
            liveness: LivenessTerms {
                interval: Duration::from_secs_f64(scenario.heartbeat.interval_seconds),
                ..LivenessTerms::default()
            },
            guard: CascadeGuard::default(),
            selector: selector(&scenario.front_door.selector)?,
            reports: VecDeque::new(),
            sampled: [0.0; 3],
            sampled_nodes: Vec::new(),
            done: Vec::new(),
        };
        world.prepare();
        Ok(world)
    }

    /// Plans what is known from the start.
    fn prepare(&mut self) {
        for slice in 0..SLICES {
            let at = f64::from(slice) / f64::from(SLICES) * self.scenario.heartbeat.interval_seconds;
            self.plan(at, What::Heartbeats(slice));
        }
        for (number, release) in self.scenario.releases.iter().enumerate() {
            self.plan((release.at_seconds - release.ahead_seconds).max(0.0), What::Announce(number as u32));
            self.plan(release.at_seconds, What::Publish(number as u32));
        }
        for (number, fault) in self.scenario.faults.iter().enumerate() {
            self.plan(fault.at_seconds, What::Fault(number as u32));
        }
        for node in 1..self.nodes.len() as u32 {
            if let Some(at) = Mirrors::first_daily(self.scenario, node, &mut self.draw) {
                self.plan(at, What::Daily(node));
            }
            if let Some(churn) = self.nodes[node as usize].churn {
                let at = exponential(&mut self.draw, churn.stay_seconds);
                self.plan(at, What::Churn(node));
            }
            if self.nodes[node as usize].owner_load > 0.0 {
                self.plan(0.0, What::Owner(node));
            }
        }
        if self.nodes.iter().any(|node| !node.whole_mirror) {
            self.plan(0.0, What::Placement);
        }
        self.plan(0.0, What::Sample);
        self.next_arrival();
    }

    fn run(mut self) -> Result<Outcome> {
        let end = self.scenario.seconds;
        while let Some(Reverse(next)) = self.queue.pop() {
            if next.at > end {
                break;
            }
            self.now = next.at;
            self.metrics.events += 1;
            match next.what {
                What::Arrival => self.arrival(),
                What::Again(request) => self.route(request),
                What::Done(node, generation) => {
                    if self.nodes[node as usize].generation == generation {
                        self.settle(node);
                    }
                }
                What::Heartbeats(slice) => self.heartbeats(slice),
                What::Announce(release) => self.announce(release),
                What::Publish(release) => self.workload.publish(release, self.now),
                What::Daily(node) => self.daily(node),
                What::Compared(generation) => self.compared(generation),
                What::Fault(number) => self.fault(number),
                What::Churn(node) => self.churn(node),
                What::Owner(node) => self.owner(node),
                What::Placement => self.placement(),
                What::Sample => self.sample(),
            }
            // A publication may have brought the next request forward.
            if matches!(next.what, What::Publish(_)) {
                self.next_arrival();
            }
        }
        if let Some(error) = self.workload.take_error() {
            return Err(error);
        }
        self.now = end;
        Ok(self.finish())
    }

    fn finish(mut self) -> Outcome {
        let end = self.now;
        for node in &mut self.nodes {
            node.uplink.advance(end);
            self.metrics.quota_excess = self.metrics.quota_excess.max(node.quota_excess());
        }
        let of = |group: Group| self.nodes[1..].iter().map(|node| node.uplink.sent(group)).sum::<f64>();
        let traffic = Traffic {
            origin: self.nodes[0].uplink.sent(Group::Delivery) + self.nodes[0].uplink.sent(Group::Sync),
            delivered: of(Group::Delivery),
            synced: of(Group::Sync),
        };
        self.count_unfinished();
        let utilisation: Vec<f64> = self.nodes[1..].iter().map(|node| node.utilisation(end)).collect();
        self.metrics.finish(&utilisation, traffic)
    }

    /// What is still under way at the end has been late for at least so long as it has been under way: leaving it
    /// out would reward whoever never finishes what is slow.
    fn count_unfinished(&mut self) {
        let target = self.scenario.front_door.customer_wait_seconds;
        let free: BTreeSet<u32> = self.free_requests.iter().copied().collect();
        for (number, request) in self.requests.iter().enumerate() {
            if request.counted && !free.contains(&(number as u32)) {
                let alone = request.asked.size() / self.limits[request.class as usize];
                self.metrics.unfinished(self.now - request.arrived, alone, target);
            }
        }
        let target = self.scenario.front_door.sync_target_seconds;
        for since in self.mirrors.unfinished() {
            self.metrics.unsynced(self.now - since, target);
        }
    }

    /// Puts `what` on the calendar.
    pub(super) fn plan(&mut self, at: f64, what: What) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), order: self.order, what }));
    }

    /// The moment of now, for the policies.
    pub(super) fn moment(&self) -> Moment {
        Moment::from_secs_f64(self.now)
    }

    /// Opens a flow from `node`.
    pub(super) fn open(&mut self, node: u32, group: Group, class: usize, cargo: Cargo, size: f64) {
        let weight = match cargo {
            // The origin knows no such order.
            Cargo::Request(number) if node != 0 => {
                Weight::of(Bytes(self.requests[number as usize].asked.size() as u64))
            }
            _ => Weight::Large,
        };
        let class = self.classes.place(weight, class);
        let flow = self.free_flows.pop().unwrap_or_else(|| {
            self.flows.push(Cargo::Free);
            self.flows.len() as FlowId - 1
        });
        self.flows[flow as usize] = cargo;
        self.advance(node);
        self.nodes[node as usize].uplink.open(group, class, flow, size);
        self.reshare(node);
    }

    /// Brings a node's uplink to the present and ends the flows that are done.
    pub(super) fn settle(&mut self, node: u32) {
        self.advance(node);
        self.reshare(node);
    }

    pub(super) fn advance(&mut self, node: u32) {
        self.nodes[node as usize].uplink.advance(self.now);
    }

    /// Ends what is done and shares a node's uplink out anew.
    pub(super) fn reshare(&mut self, node: u32) {
        let mut done = std::mem::take(&mut self.done);
        done.clear();
        let it = &mut self.nodes[node as usize];
        it.uplink.done(&mut done);
        let next = it.uplink.share_out(&self.classes.receivers);
        it.generation = it.generation.wrapping_add(1);
        let generation = it.generation;
        if let Some(at) = next {
            self.plan(at, What::Done(node, generation));
        }
        // A completed piece opens new flows, perhaps on this very node; so the list is taken apart from it.
        for flow in done.drain(..) {
            let cargo = std::mem::replace(&mut self.flows[flow as usize], Cargo::Free);
            self.free_flows.push(flow);
            match cargo {
                Cargo::Request(request) => self.completed(request),
                Cargo::Piece { bundle, piece, from, to } => self.piece_done(bundle, piece, from, to),
                Cargo::Changes { node } => self.changes_done(node),
                Cargo::Free => {}
            }
        }
        self.done = done;
    }

    fn next_arrival(&mut self) {
        if let Some(at) = self.workload.peek() {
            self.plan(at, What::Arrival);
        }
    }

    fn arrival(&mut self) {
        // After a publication two plans exist for one request; the second finds nothing due.
        if self.workload.peek().is_none_or(|at| at > self.now) {
            return;
        }
        let Some(asked) = self.workload.take() else { return };
        for published in self.workload.take_published() {
            self.published(published.size);
        }
        if let Some(file) = asked.file {
            self.mirrors.asked(file.release, file.size);
            let class = self.draw_class(file.client);
            let request = Request {
                client: file.client,
                asked,
                class,
                arrived: self.now,
                left: file.size,
                attempts: 0,
                counted: self.now >= self.scenario.warmup_seconds,
                partial: false,
            };
            let number = self.free_requests.pop().unwrap_or_else(|| {
                self.requests.push(request);
                self.requests.len() as u32 - 1
            });
            self.requests[number as usize] = request;
            self.metrics.requests += u64::from(request.counted);
            self.route(number);
        }
        self.next_arrival();
    }

    /// A customer's access rate is its own for good.
    fn draw_class(&self, client: u64) -> u8 {
        let mut place = (mix(client) >> 11) as f64 / (1u64 << 53) as f64;
        for &(class, part) in &self.client_classes {
            place -= part;
            if place < 0.0 {
                return class as u8;
            }
        }
        self.client_classes.last().map_or(0, |&(class, _)| class as u8)
    }

    /// The front door answers a request.
    fn route(&mut self, number: u32) {
        let request = self.requests[number as usize];
        if request.attempts >= ATTEMPTS_MAX {
            self.metrics.given_up += u64::from(request.counted);
            self.free_requests.push(number);
            return;
        }
        self.requests[number as usize].attempts += 1;
        if !self.scenario.origin.redirects || request.asked.size() < DIRECT_BELOW {
            self.serve(0, number);
            return;
        }
        let now = self.moment();
        let seed = self.draw.bits();
        let choice = self.choose(&request, now, seed);
        let admission = {
            let origin = &self.nodes[0];
            let rate = BytesPerSec(origin.uplink.capacity() as u64);
            let headroom = OriginHeadroom {
                outstanding: Bytes(origin.uplink.backlog(Group::Delivery) as u64),
                rate,
                limit: freshet_policy::admission::node_limit(rate, self.targets.customer_wait),
            };
            let drain: f64 = match choice {
                Some(_) => 0.0,
                None => {
                    origin.uplink.capacity()
                        + self.mirrors.usable_rate(&self.views, request.asked.release(), self.now)
                }
            };
            let size = Bytes(request.left as u64);
            self.guard.decide(
                choice,
                size,
                headroom,
                BytesPerSec(drain as u64),
                now,
                mix(u64::from(number)),
                seed,
            )
        };
        match admission {
            Admission::Redirect(choice) => self.redirect(choice, number, now),
            Admission::Origin => {
                self.metrics.served_by_origin += u64::from(request.counted);
                self.serve(0, number);
            }
            Admission::RetryAfter(wait) => {
                self.metrics.turned_away += u64::from(request.counted);
                self.plan(self.now + wait.as_secs_f64(), What::Again(number));
            }
        }
    }

    fn choose(&self, request: &Request, now: Moment, seed: u64) -> Option<Choice> {
        let field = Holders {
            views: &self.views,
            nodes: self.mirrors.holders(request.asked.release()),
            ledger: &self.ledger,
            now,
            wait: self.scenario.front_door.admission.then_some(self.targets.customer_wait),
        };
        let facts = RequestFacts {
            size: Bytes(request.left as u64),
            reach: Reach::V4.and(Reach::HTTP),
            client_rate: None,
            tried: &[],
        };
        self.selector.select(&field, &facts, now, seed)
    }

    fn redirect(&mut self, choice: Choice, number: u32, now: Moment) {
        let request = self.requests[number as usize];
        let promise = Promise {
            client: request.client,
            file: FileId(request.asked.file_number()),
            bytes: Bytes(request.left as u64),
            partial: request.partial,
        };
        self.ledger.reserve(choice.node, promise, now);
        let node = choice.node.0;
        if !self.nodes[node as usize].is_up {
            // Nobody answers: the client's tool tries again at the front door.
            self.metrics.broken += u64::from(request.counted);
            self.plan(self.now + CONNECT_SECONDS, What::Again(number));
            return;
        }
        if self.nodes[node as usize].is_spent() || !self.nodes[node as usize].holds(request.asked.release()) {
            self.metrics.sent_back += u64::from(request.counted);
            self.ledger.bounce(choice.node, promise, now);
            self.plan(self.now + BOUNCE_SECONDS, What::Again(number));
            return;
        }
        self.serve(node, number);
        let it = &self.nodes[node as usize];
        if self.scenario.front_door.admission && it.uplink.flows(Group::Delivery) > 1 {
            let limit = self.views[node as usize].rate() * self.scenario.front_door.customer_wait_seconds;
            let excess = it.uplink.backlog(Group::Delivery) / limit.max(1.0);
            self.metrics.limit_excess = self.metrics.limit_excess.max(excess);
        }
    }

    fn serve(&mut self, node: u32, number: u32) {
        let request = self.requests[number as usize];
        self.open(
            node,
            Group::Delivery,
            request.class as usize,
            Cargo::Request(number),
            request.left.max(1.0),
        );
    }

    fn completed(&mut self, number: u32) {
        let request = self.requests[number as usize];
        if request.counted {
            let alone = request.asked.size() / self.limits[request.class as usize];
            let target = self.scenario.front_door.customer_wait_seconds;
            self.metrics.complete(request.arrived, self.now - request.arrived, alone, target);
        }
        self.free_requests.push(number);
    }

    fn heartbeats(&mut self, slice: u32) {
        let heartbeat = self.scenario.heartbeat;
        let mut node = 1 + slice;
        while (node as usize) < self.nodes.len() {
            self.settle(node);
            self.tick(node);
            if self.nodes[node as usize].is_up && self.draw.unit() >= heartbeat.loss {
                let report = self.nodes[node as usize].report(node, self.now, &self.classes.receivers);
                self.reports.push_back((self.now + heartbeat.delay_seconds, report));
            }
            let now = self.moment();
            self.views[node as usize].refresh(&self.liveness, now);
            if !self.views[node as usize].is_up() {
                self.ledger.age(NodeId(node), now);
            }
            node += SLICES;
        }
        while let Some((due, report)) = self.reports.front().copied()
            && due <= self.now
        {
            self.reports.pop_front();
            self.hear(&report);
        }
        if slice == 0 {
            self.swarm_tick();
        }
        self.plan(self.now + heartbeat.interval_seconds, What::Heartbeats(slice));
    }

    fn hear(&mut self, report: &Report) {
        let now = self.moment();
        let measure = self.scenario.front_door.measure_capacity;
        self.views[report.node as usize].hear(report, &self.ledger, &self.liveness, measure, now);
        self.balance(report.node);
    }

    /// The volunteer's own tick: its budget decides what it donates.
    fn tick(&mut self, node: u32) {
        let now = self.moment();
        let it = &mut self.nodes[node as usize];
        if let Some(capacity) = it.allowance(now) {
            let share = it.uplink.delivery_share();
            it.uplink.set(capacity, share);
            self.reshare(node);
        }
    }

    fn owner(&mut self, node: u32) {
        let spread = self.draw.unit();
        self.nodes[node as usize].owner_changes(spread);
        let pause = exponential(&mut self.draw, OWNER_SECONDS);
        self.plan(self.now + pause, What::Owner(node));
    }

    fn fault(&mut self, number: u32) {
        let fault = self.scenario.faults[number as usize];
        let largest = || {
            (1..self.nodes.len()).max_by(|&a, &b| self.nodes[a].donation.total_cmp(&self.nodes[b].donation))
        };
        let Some(node) = fault.node.or_else(|| largest().map(|node| node as u32)) else { return };
        if node == 0 || node as usize >= self.nodes.len() {
            return;
        }
        self.metrics.fault_at.get_or_insert(self.now);
        match fault.what {
            FaultKind::Crash => self.leave(node, true),
            FaultKind::Return => self.come(node),
        }
    }

    fn churn(&mut self, node: u32) {
        let Some(churn) = self.nodes[node as usize].churn else { return };
        let stay = if self.nodes[node as usize].is_up {
            let crash = self.draw.unit() < churn.crash_part;
            self.leave(node, crash);
            churn.away_seconds
        } else {
            self.come(node);
            churn.stay_seconds
        };
        let pause = exponential(&mut self.draw, stay);
        self.plan(self.now + pause, What::Churn(node));
    }

    fn come(&mut self, node: u32) {
        self.nodes[node as usize].come(self.now);
        self.rejoin(node);
    }

    /// A volunteer goes, with a word or without; its customers come back for the rest.
    fn leave(&mut self, node: u32, crash: bool) {
        self.advance(node);
        let broken = self.nodes[node as usize].leave(self.now);
        if !crash {
            self.views[node as usize].goodbye();
            self.ledger.clear(NodeId(node));
        }
        for (flow, left) in broken {
            let cargo = std::mem::replace(&mut self.flows[flow as usize], Cargo::Free);
            self.free_flows.push(flow);
            match cargo {
                Cargo::Request(number) => {
                    let request = &mut self.requests[number as usize];
                    request.partial |= left < request.left;
                    request.left = left.max(1.0);
                    self.metrics.broken += u64::from(request.counted);
                    let again = self.now + CONNECT_SECONDS;
                    self.plan(again, What::Again(number));
                }
                Cargo::Piece { bundle, from, to, .. } => self.piece_failed(bundle, from, to),
                Cargo::Changes { .. } | Cargo::Free => {}
            }
        }
        self.unjoin(node);
    }

    fn sample(&mut self) {
        let step = (self.scenario.seconds / SAMPLES).max(1.0);
        let mut sent = [0.0; 3];
        let mut loads = Vec::new();
        for node in 0..self.nodes.len() {
            self.nodes[node].uplink.advance(self.now);
            let (delivery, sync) =
                (self.nodes[node].uplink.sent(Group::Delivery), self.nodes[node].uplink.sent(Group::Sync));
            if node == 0 {
                sent[0] = delivery + sync;
                continue;
            }
            sent[1] += delivery;
            sent[2] += sync;
            if node <= SERIES_NODES_MAX {
                if self.sampled_nodes.len() < node {
                    self.sampled_nodes.push(0.0);
                }
                let before = std::mem::replace(&mut self.sampled_nodes[node - 1], delivery + sync);
                loads.push(((delivery + sync - before) / step / self.nodes[node].donation) as f32);
            }
        }
        if self.now > 0.0 {
            self.metrics.series.push(Sample {
                at: self.now,
                loads,
                origin_rate: (sent[0] - self.sampled[0]) / step,
                delivery_rate: (sent[1] - self.sampled[1]) / step,
                sync_rate: (sent[2] - self.sampled[2]) / step,
            });
        }
        self.sampled = sent;
        // Uplinks were moved on without looking for what is done; their own events will.
        self.plan(self.now + step, What::Sample);
    }

    /// Whether anything is copied between mirrors.
    pub(super) fn is_swarm(&self) -> bool {
        matches!(self.scenario.sync, Sync::Swarm { .. })
    }
}

/// The selection algorithm of this name.
fn selector(name: &str) -> Result<Box<dyn Selector>> {
    Ok(match name {
        "expected-finish-time" => Box::new(ExpectedFinishTime::default()),
        "random" => Box::new(Random),
        "round-robin" => Box::new(RoundRobin::default()),
        "static-weights" => Box::new(StaticWeights),
        "least-reported-load" => Box::new(LeastReportedLoad),
        "two-choices" => Box::new(TwoChoices),
        _ => bail!(
            "expected one of expected-finish-time, random, round-robin, static-weights, least-reported-load, \
             two-choices, found {name:?}"
        ),
    })
}

/// The arbiter of this name.
fn arbiter(name: &str) -> Result<Box<dyn Arbiter>> {
    Ok(match name {
        "equal-lateness" => Box::new(EqualLateness::default()),
        "delivery-first" => Box::new(DeliveryFirst),
        "shortest-remaining" => Box::new(ShortestRemaining::default()),
        "sync-first" => Box::new(SyncFirst),
        _ => match name.strip_prefix("fixed-split:").and_then(|part| part.parse().ok()) {
            Some(part) => Box::new(FixedSplit::new(part)),
            None => bail!(
                "expected one of equal-lateness, shortest-remaining, delivery-first, sync-first, fixed-split:PART, \
                 found {name:?}"
            ),
        },
    })
}

/// An exponentially distributed time.
pub(super) fn exponential(draw: &mut Draw, mean: f64) -> f64 {
    -(1.0 - draw.unit()).ln() * mean
}

/// Heartbeats are spread over so many slices of the interval.
const SLICES: u32 = 16;
/// Points of the plots.
const SAMPLES: f64 = 400.0;
/// A client's tool notices a dead server, and comes back, in this time.
const CONNECT_SECONDS: f64 = 2.0;
/// A bounce costs two round trips.
const BOUNCE_SECONDS: f64 = 0.1;
/// Then a customer gives up.
const ATTEMPTS_MAX: u16 = 200;
/// Files below this are served by the front door itself.
const DIRECT_BELOW: f64 = 65_536.0;
/// A mirror pulls from several at once: each gets this part of its downlink.
pub(super) const PULLS_AT_ONCE: f64 = 8.0;
/// An owner's traffic changes about this often.
const OWNER_SECONDS: f64 = 120.0;
