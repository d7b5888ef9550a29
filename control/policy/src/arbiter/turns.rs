//! Whose copy is made first while customers and mirrors share uplinks. It moves nothing itself and knows no clock.
//!
//! Mirrors that copy a release side by side are all done at the end; one after the other, most are done long before, and
//! nobody later (shortest remaining processing time; Schrage, 1968). What is done early counts early, as a mirror that is
//! current and as a holder that serves the customers of the release. So while customers wait at the same uplinks, only
//! some mirrors have their turn: those that lack least, of equals the one that can pass on most. The others get what the
//! origin leases them, which makes their uplinks useful to those whose turn it is, and nothing from peers.
//!
//! Until somebody has everything, nobody takes in more than the origin gives out, and as many have their turn as take in
//! so most of what all can send. After that one alone can keep all uplinks busy. Where it cannot (its own link is slow, its
//! disk is full), too little is seen to move, and there are more turns until enough does; the last is then done later than
//! side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec, NodeId};

use super::Targets;
use crate::moment::Moment;

/// A mirror that lacks something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Who.
    pub node: NodeId,
    /// What it lacks.
    pub missing: Bytes,
    /// What it can pass on per second once it has it.
    pub uplink: BytesPerSec,
    /// For how long it has lacked something.
    pub since: Duration,
}

/// What all can send for sync, and what is new among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What all together can send, the origin among them.
    pub sendable: BytesPerSec,
    /// What the origin gives out.
    pub origin: BytesPerSec,
    /// Whether some mirror has everything.
    pub is_held: bool,
}

/// Gives mirrors their turns.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    /// Times as many as should be enough, less one: more when too little moves.
    more: usize,
    looked: Option<Moment>,
    reviewed: Moment,
    missing: BTreeMap<NodeId, u64>,
    /// Bytes per second that those whose turn it is take in together.
    moving: f64,
    chosen: BTreeSet<NodeId>,
}

impl Turns {
    /// Whose turn it is among all that lack something. Look about once a second.
    pub fn look(
        &mut self,
        waiting: &[Waiting],
        flow: Flow,
        targets: &Targets,
        now: Moment,
    ) -> &BTreeSet<NodeId> {
        self.measure(waiting, now);
        let sendable = flow.sendable.0 as f64;
        if now.since(self.reviewed) >= REVIEW {
            self.reviewed = now;
            if self.moving < sendable * TOO_LITTLE && self.chosen.len() < waiting.len() {
                self.more = (self.more * 2 + 1).min(waiting.len());
            } else if self.moving > sendable * ENOUGH {
                self.more /= 2;
            }
        }
        let enough =
            if flow.is_held { 1.0 } else { (sendable * COVERED / flow.origin.0.max(1) as f64).ceil() };
        let width = (enough as usize).max(1).saturating_mul(self.more + 1);
        let mut order: Vec<&Waiting> = waiting.iter().collect();
        order.sort_unstable_by_key(|mirror| (mirror.missing, std::cmp::Reverse(mirror.uplink), mirror.node));
        let late = targets.sync.saturating_mul(LATE_TARGETS);
        let (first, rest) = order.split_at(width.min(order.len()));
        let overdue = rest.iter().filter(|mirror| mirror.since >= late);
        self.chosen = first.iter().chain(overdue).map(|mirror| mirror.node).collect();
        &self.chosen
    }

    /// Nothing is shared: everybody has a turn, and the next look begins anew.
    pub fn clear(&mut self) {
        *self = Turns::default();
    }

    fn measure(&mut self, waiting: &[Waiting], now: Moment) {
        let passed = self.looked.map_or(0.0, |looked| now.since(looked).as_secs_f64());
        if passed > 0.0 {
            let mut sum = 0.0;
            for node in &self.chosen {
                let Some(&before) = self.missing.get(node) else { continue };
                // Who is not among them any more has got the rest; who lacks more than before was told of something new.
                let left =
                    waiting.iter().find(|mirror| mirror.node == *node).map_or(0, |mirror| mirror.missing.0);
                sum += before.saturating_sub(left) as f64;
            }
            let step = -(-passed / SMOOTHING.as_secs_f64()).exp_m1();
            self.moving += (sum / passed - self.moving) * step;
        }
        self.looked = Some(now);
        self.missing = waiting.iter().map(|mirror| (mirror.node, mirror.missing.0)).collect();
    }
}

/// The part of what all can send that those whose turn it is should take in.
const COVERED: f64 = 0.75;
/// When less than the first part of it moves there are more turns, when more than the second there are fewer again.
const TOO_LITTLE: f64 = 0.6;
const ENOUGH: f64 = 0.95;
/// How often that is looked at.
const REVIEW: Duration = Duration::from_secs(5);
const SMOOTHING: Duration = Duration::from_secs(5);
/// Who has waited for so many targets has a turn whatever it lacks: nobody waits for ever.
const LATE_TARGETS: u32 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mirror(node: u32, missing: u64) -> Waiting {
        Waiting {
            node: NodeId(node),
            missing: Bytes(missing),
            uplink: BytesPerSec(1_000),
            since: Duration::ZERO,
        }
    }

    fn targets() -> Targets {
        Targets { customer_wait: Duration::from_secs(30), sync: Duration::from_secs(600) }
    }

    fn flow(sendable: u64, is_held: bool) -> Flow {
        Flow { sendable: BytesPerSec(sendable), origin: BytesPerSec(sendable / 4), is_held }
    }

    /// Copies under way: those whose turn it is share `sendable`, each at most at `most`. When each was done.
    fn copy(mut waiting: Vec<Waiting>, sendable: u64, most: u64, ordered: bool) -> Vec<u64> {
        let (mut turns, mut done) = (Turns::default(), Vec::new());
        for second in 0..100_000u64 {
            if waiting.is_empty() {
                return done;
            }
            let now = Moment::from_secs_f64(second as f64);
            let chosen = turns.look(&waiting, flow(sendable, !done.is_empty()), &targets(), now).clone();
            let served = if ordered { chosen.len() } else { waiting.len() };
            let each = (sendable / served as u64).min(most);
            for mirror in &mut waiting {
                if !ordered || chosen.contains(&mirror.node) {
                    mirror.missing.0 = mirror.missing.0.saturating_sub(each);
                }
            }
            done.extend(waiting.iter().filter(|mirror| mirror.missing.0 == 0).map(|_| second + 1));
            waiting.retain(|mirror| mirror.missing.0 > 0);
        }
        panic!("somebody waits for ever");
    }

    #[test]
    fn who_lacks_least_goes_first_and_the_strongest_of_equals() {
        let mut turns = Turns::default();
        let strong = Waiting { uplink: BytesPerSec(9_000), ..mirror(4, 50) };
        let waiting = [mirror(1, 90), mirror(2, 50), strong, mirror(3, 10), mirror(5, 70)];
        let chosen = turns.look(&waiting, flow(100, false), &targets(), Moment::ZERO);
        assert_eq!(chosen.iter().copied().collect::<Vec<_>>(), [NodeId(2), NodeId(3), NodeId(4)]);
        let chosen = turns.look(&waiting, flow(100, true), &targets(), Moment::ZERO);
        assert_eq!(chosen.iter().copied().collect::<Vec<_>>(), [NodeId(3)]);
    }

    #[test]
    fn who_has_waited_too_long_is_not_passed_over() {
        let mut turns = Turns::default();
        let forgotten = Waiting { since: Duration::from_secs(2_400), ..mirror(9, 1 << 40) };
        let chosen =
            turns.look(&[mirror(1, 5), mirror(2, 6), forgotten], flow(8, true), &targets(), Moment::ZERO);
        assert!(chosen.contains(&NodeId(1)) && chosen.contains(&NodeId(9)) && !chosen.contains(&NodeId(2)));
    }

    #[test]
    fn the_mean_is_much_earlier_and_slow_receivers_make_the_last_later() {
        let all = || (1..=12).map(|node| mirror(node, 600_000)).collect::<Vec<_>>();
        // One takes in all that is sent, or a sixth of it.
        for (most, mean_within, last_within) in [(20_000, 0.75, 1.1), (2_000, 1.0, 1.75)] {
            let (ours, together) = (copy(all(), 12_000, most, true), copy(all(), 12_000, most, false));
            let mean = |done: &[u64]| done.iter().sum::<u64>() as f64 / done.len() as f64;
            assert!(mean(&ours) <= mean_within * mean(&together), "{ours:?} {together:?}");
            let last = |done: &[u64]| done.iter().max().copied().unwrap_or_default() as f64;
            assert!(last(&ours) <= last_within * last(&together), "{ours:?} {together:?}");
        }
    }

    #[test]
    fn one_that_is_stuck_holds_nobody_up() {
        let (mut turns, waiting) =
            (Turns::default(), [mirror(1, 5), mirror(2, 6), mirror(3, 7), mirror(4, 8)]);
        let mut chosen = BTreeSet::new();
        for second in 0..60 {
            chosen = turns
                .look(&waiting, flow(100, true), &targets(), Moment::from_secs_f64(f64::from(second)))
                .clone();
        }
        assert_eq!(chosen.len(), 4);
    }

    proptest! {
        /// Somebody always has a turn, and everybody is done in the end.
        #[test]
        fn nobody_waits_for_ever(
            missing in proptest::collection::vec(1u64..5_000, 1..30),
            sendable in 50u64..1_000,
            most in 20u64..1_000,
        ) {
            let count = missing.len();
            let waiting = missing.into_iter().zip(1..).map(|(missing, node)| mirror(node, missing)).collect();
            prop_assert_eq!(copy(waiting, sendable.max(count as u64), most, true).len(), count);
        }
    }
}
