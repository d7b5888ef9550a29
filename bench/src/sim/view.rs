//! What the front door knows of the volunteers: their last heartbeats, never the simulated truth.

use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec, NodeId};
use freshet_policy::Moment;
use freshet_policy::admission::{limit_of_backlog, node_limit};
use freshet_policy::liveness::{Life, Liveness, LivenessTerms};
use freshet_policy::rates::{CapacityEstimate, CounterRate};
use freshet_policy::reservation::{DeliveryReport, NodePace, ReservationLedger};
use freshet_policy::selection::{Candidate, Field, Nearness, Reach, RequestFacts, Standing};
use freshet_policy::steering::BudgetOutlook;

/// One heartbeat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub(super) node: u32,
    /// When it was written.
    pub(super) at: f64,
    pub(super) epoch: u64,
    pub(super) delivered: f64,
    /// Bytes sent for sync.
    pub(super) synced: f64,
    pub(super) active: usize,
    /// Whether there was more to send than the uplink carries.
    pub(super) saturated: bool,
    /// What is donated now, within the budget.
    pub(super) donated: f64,
    pub(super) outlook: Option<BudgetOutlook>,
    pub(super) draining: bool,
}

/// One volunteer, as known.
#[derive(Clone, Debug)]
pub(super) struct View {
    life: Liveness,
    standing: Standing,
    draining: bool,
    estimate: CapacityEstimate,
    delivered: Option<(f64, Moment)>,
    smoothed: CounterRate,
    rate: f64,
    load: f32,
    weight: u32,
    budget: Bytes,
    price: f32,
}

impl View {
    /// A volunteer that claims `claimed` bytes per second.
    /// Rates are smoothed over `rate_seconds`.
    pub(super) fn new(claimed: f64, rate_seconds: f64) -> View {
        View {
            life: Liveness::default(),
            standing: Standing::Dead,
            draining: false,
            estimate: CapacityEstimate::new(Some(BytesPerSec(claimed as u64)), None),
            delivered: None,
            smoothed: CounterRate::new(Duration::from_secs_f64(rate_seconds)),
            rate: claimed,
            load: 0.0,
            weight: (claimed / 125_000.0).max(1.0) as u32,
            budget: Bytes(u64::MAX),
            price: 1.0,
        }
    }

    /// Takes a heartbeat in.
    pub(super) fn hear(
        &mut self,
        report: &Report,
        ledger: &ReservationLedger,
        terms: &LivenessTerms,
        measure: bool,
        now: Moment,
    ) {
        let node = NodeId(report.node);
        self.life.heartbeat(report.epoch, now, terms);
        self.draining = report.draining;
        let delivery = DeliveryReport {
            epoch: report.epoch,
            delivered: Bytes(report.delivered as u64),
            in_flight: None,
        };
        ledger.confirm(node, delivery, now);
        let mut saturated = report.saturated;
        let mut sending = 0.0;
        let total = report.delivered + report.synced;
        self.smoothed.read(total as u64, now);
        if let Some((before, at)) = self.delivered
            && now > at
            && total >= before
        {
            let rate = (total - before) / now.since(at).as_secs_f64();
            // Many clients at once and still not what was claimed: not all of them can be slow.
            let behind =
                report.active >= MANY && ledger.outstanding(node).0 as f64 > self.rate * BEHIND_SECONDS;
            self.estimate.observe(BytesPerSec(rate as u64), report.saturated || behind, now);
            let smoothed = self.smoothed.smoothed().0 as f64;
            self.load = (smoothed / report.donated.max(1.0)) as f32;
            sending = smoothed;
            saturated = report.saturated || behind || smoothed > self.rate * FULL;
        }
        self.delivered = Some((total, now));
        let measured = self.estimate.capacity(now).rate.0 as f64;
        self.rate = if measure { measured.min(report.donated) } else { report.donated };
        let pace = NodePace {
            rate: BytesPerSec(self.rate as u64),
            sending: BytesPerSec(sending as u64),
            contending: report.active as u64,
            saturated,
            age: now.since(Moment::from_secs_f64(report.at)),
        };
        ledger.observe(node, pace, now);
        if let Some(outlook) = report.outlook {
            self.price = outlook.price();
            self.budget = outlook.promisable(BytesPerSec(self.rate as u64));
        }
        self.refresh(terms, now);
    }

    /// Lets time work on what is known.
    pub(super) fn refresh(&mut self, terms: &LivenessTerms, now: Moment) {
        self.standing = match self.life.state(now, terms) {
            _ if self.draining => Standing::Draining,
            Life::Alive => Standing::Ready,
            Life::Suspect => Standing::Suspect,
            Life::Flapping => Standing::Flapping,
            Life::Unknown | Life::Dead => Standing::Dead,
        };
    }

    /// It said goodbye.
    pub(super) fn goodbye(&mut self) {
        self.life.goodbye();
        self.standing = Standing::Dead;
    }

    /// Whether it can be used.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.standing, Standing::Ready | Standing::Suspect)
    }

    /// Its rate as known.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }
}

/// The holders of one file, as the front door sees them.
pub(super) struct Holders<'a> {
    pub(super) views: &'a [View],
    pub(super) nodes: &'a [u32],
    pub(super) ledger: &'a ReservationLedger,
    pub(super) now: Moment,
    /// The admission limit, as a time; none for no limit.
    pub(super) wait: Option<Duration>,
}

impl Field for Holders<'_> {
    fn len(&self) -> usize {
        self.nodes.len()
    }

    fn candidate(&self, index: usize, request: &RequestFacts<'_>) -> Candidate {
        let node = self.nodes[index];
        let view = &self.views[node as usize];
        let rate = BytesPerSec(view.rate as u64);
        let outstanding = self.ledger.outstanding(NodeId(node));
        let backlog = self.ledger.backlog(NodeId(node), request.size, self.now);
        Candidate {
            node: NodeId(node),
            standing: view.standing,
            reach: Reach::ALL,
            outstanding: backlog,
            rate,
            reported_load: view.load,
            weight: view.weight,
            nearness: Nearness::Elsewhere,
            admission: self.wait.map_or(Bytes(u64::MAX), |wait| {
                limit_of_backlog(node_limit(rate, wait), outstanding, backlog)
            }),
            budget: view.budget,
            budget_price: view.price,
        }
    }
}

/// So many clients at once are not all slow.
const MANY: usize = 8;
const BEHIND_SECONDS: f64 = 3.0;
/// Who sends this part of its rate is full.
const FULL: f64 = 0.95;
