//! A simulated host: its uplink, its owner, and whether it is there. The origin is one too.

use std::collections::BTreeSet;
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};
use freshet_policy::Moment;
use freshet_policy::budget::{Budget, BudgetState, BudgetTerms, Counted, OwnerFirst, Quota, WallReading};
use freshet_policy::draw::Draw;
use freshet_policy::placement::Availability;
use freshet_policy::steering::BudgetOutlook;
use jiff::civil::DateTime;

use super::scenario::{Churn, NodeGroup, Scenario};
use super::uplink::{FlowId, Group, Receiver, Uplink};
use super::view::Report;

/// One host.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) uplink: Uplink,
    /// Counts the changes of its rates, so that outdated plans are known as such.
    pub(super) generation: u32,
    /// What its owner gives, bytes per second.
    pub(super) donation: f64,
    pub(super) claimed: f64,
    pub(super) downlink: f64,
    pub(super) whole_mirror: bool,
    /// Its part of the repository.
    pub(super) part: f64,
    pub(super) churn: Option<Churn>,
    pub(super) owner_load: f64,
    pub(super) is_up: bool,
    pub(super) history: Availability,
    /// Releases that it has completely.
    pub(super) releases: BTreeSet<u32>,
    /// Releases that placement ordered it to hold.
    pub(super) ordered: BTreeSet<u32>,
    owner_rate: f64,
    quota: Option<Bytes>,
    budget: Option<Budget>,
    outlook: Option<BudgetOutlook>,
    epoch: u64,
    epoch_sent: f64,
    up_since: f64,
    up_total: f64,
}

impl Node {
    /// The origin and all volunteers of `scenario`.
    pub(super) fn all(scenario: &Scenario, draw: &mut Draw) -> Vec<Node> {
        let origin = scenario.origin.uplink.0 as f64;
        let mut nodes = vec![Node::new(origin, origin, origin, None, 0)];
        for group in &scenario.nodes {
            for _ in 0..group.count {
                let low = group.uplink[0].0 as f64;
                let high = group.uplink.last().map_or(low, |rate| rate.0 as f64);
                let rate = low * (high / low).powf(draw.unit());
                let seed = draw.bits();
                let mut node =
                    Node::new(rate, rate * group.claims, group.downlink.0 as f64, Some(group), seed);
                node.part = group.part[0] + (group.part[1] - group.part[0]) * draw.unit();
                if let Some(churn) = group.churn {
                    // As if it had come and gone for ever.
                    node.is_up = draw.unit() < churn.stay_seconds / (churn.stay_seconds + churn.away_seconds);
                }
                node.history.seen(node.is_up, Moment::ZERO);
                nodes.push(node);
            }
        }
        nodes
    }

    fn new(donation: f64, claimed: f64, downlink: f64, group: Option<&NodeGroup>, seed: u64) -> Node {
        let owner_load = group.map_or(0.0, |group| group.owner_load);
        let quota = group.and_then(|group| group.quota);
        let terms = BudgetTerms {
            cap: Some(BytesPerSec(donation as u64)),
            quota: quota.map(|volume| Quota { volume, start_day: 1, start_spread: Duration::ZERO }),
            owner_first: (owner_load > 0.0).then_some(OwnerFirst {
                link: BytesPerSec(donation as u64),
                margin: BytesPerSec((donation * 0.01) as u64),
            }),
            ..BudgetTerms::default()
        };
        let budget =
            (quota.is_some() || owner_load > 0.0).then(|| Budget::new(terms, BudgetState::default(), seed));
        Node {
            uplink: Uplink::new(donation, 0),
            generation: 0,
            donation,
            claimed,
            downlink,
            whole_mirror: group.is_none_or(|group| group.whole_mirror),
            part: 1.0,
            churn: group.and_then(|group| group.churn),
            owner_load,
            is_up: true,
            history: Availability::default(),
            releases: BTreeSet::new(),
            ordered: BTreeSet::new(),
            owner_rate: 0.0,
            quota,
            budget,
            outlook: None,
            epoch: 1,
            epoch_sent: 0.0,
            up_since: 0.0,
            up_total: 0.0,
        }
    }

    /// The same, for receivers of `classes` classes.
    pub(super) fn with_classes(mut self, classes: usize) -> Node {
        self.uplink = Uplink::new(self.donation, classes);
        self
    }

    /// Whether it has the files: those of `release`, or the repository's.
    pub(super) fn holds(&self, release: Option<u32>) -> bool {
        release.map_or(self.whole_mirror, |release| self.releases.contains(&release))
    }

    /// What it may send now, if its budget or owner has a say; asked at every heartbeat.
    pub(super) fn allowance(&mut self, now: Moment) -> Option<f64> {
        let budget = self.budget.as_mut()?;
        let sent = self.uplink.sent(Group::Delivery) + self.uplink.sent(Group::Sync);
        let counted = Counted { epoch: 1, total: Bytes(sent as u64) };
        let seconds = jiff::SignedDuration::from_millis((now.as_secs_f64() * 1000.0) as i64);
        let wall = WallReading { local: start().saturating_add(seconds), synchronised: true };
        let allowance = budget.tick(counted, BytesPerSec(self.owner_rate as u64), wall, now);
        if let (Some(left), Some(volume)) = (allowance.left, self.quota) {
            let period_left = allowance.period_left.unwrap_or_default();
            let period = Duration::from_secs(31 * 86_400);
            let outlook = BudgetOutlook { left: Some(left), volume, period_left, period, open_for: None };
            self.outlook = Some(outlook);
        }
        Some(allowance.rate.map_or(self.donation, |rate| rate.0 as f64))
    }

    /// Whether its budget is used up.
    pub(super) fn is_spent(&self) -> bool {
        self.uplink.capacity() <= 0.0
    }

    /// The owner's own traffic changes; `chance` is evenly distributed.
    pub(super) fn owner_changes(&mut self, chance: f64) {
        self.owner_rate = self.donation * (2.0 * self.owner_load * chance).min(0.9);
    }

    /// What it says about itself.
    pub(super) fn report(&self, node: u32, now: f64, receivers: &[Receiver]) -> Report {
        Report {
            node,
            at: now,
            epoch: self.epoch,
            delivered: self.uplink.sent(Group::Delivery) - self.epoch_sent,
            synced: self.uplink.sent(Group::Sync),
            active: self.uplink.flows(Group::Delivery),
            // Who claims more than it has believes that the others are slow.
            saturated: self.claimed <= self.donation && self.uplink.is_saturated(receivers),
            donated: self.uplink.capacity() / self.donation * self.claimed,
            outlook: self.outlook,
            draining: self.is_spent(),
        }
    }

    /// It comes (back).
    pub(super) fn come(&mut self, now: f64) {
        if !self.is_up {
            self.is_up = true;
            self.up_since = now;
            self.epoch += 1;
            self.epoch_sent = self.uplink.sent(Group::Delivery);
            self.history.seen(true, Moment::from_secs_f64(now));
        }
    }

    /// It goes; what breaks off.
    pub(super) fn leave(&mut self, now: f64) -> Vec<(FlowId, f64)> {
        if self.is_up {
            self.is_up = false;
            self.up_total += now - self.up_since;
            self.history.seen(false, Moment::from_secs_f64(now));
        }
        // Outdated plans must not look at what is gone.
        self.generation = self.generation.wrapping_add(1);
        self.uplink.break_off()
    }

    /// What it sent over what it could have sent while it was there.
    pub(super) fn utilisation(&self, now: f64) -> f64 {
        let up = self.up_total + if self.is_up { now - self.up_since } else { 0.0 };
        let sent = self.uplink.sent(Group::Delivery) + self.uplink.sent(Group::Sync);
        if up > 0.0 { sent / (self.donation * up) } else { 0.0 }
    }

    /// What it sent over its volume; 0 without one.
    pub(super) fn quota_excess(&self) -> f64 {
        let sent = self.uplink.sent(Group::Delivery) + self.uplink.sent(Group::Sync);
        self.quota.map_or(0.0, |quota| sent / quota.0.max(1) as f64)
    }
}

/// Simulated time begins on a Monday, the first day of a period.
fn start() -> DateTime {
    jiff::civil::date(2026, 6, 1).at(0, 0, 0, 0)
}
