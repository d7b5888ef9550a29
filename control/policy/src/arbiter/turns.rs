//! Whose copy is made first while customers and mirrors share uplinks. It moves nothing itself and knows no clock.
//!
//! Mirrors that copy a release side by side are all done at the end; one after the other, most are done long before, and
//! nobody later (shortest remaining processing time; Schrage, 1968). What is done early counts early, as a mirror that is
//! current and as a holder that serves the customers of the release. So while customers wait at the same uplinks, only
//! some mirrors have their turn: those that lack least, of equals the one that can pass on most. The others get what the
//! origin leases them, which makes their uplinks useful to those whose turn it is, and nothing from peers.
//!
//! As many have their turn as take in together most of what all can send, by what one was seen to take in: too many
//! would share it and take in less each, so that the next look finds fewer enough; too few would leave uplinks idle.

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

/// Gives mirrors their turns.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    width: Option<usize>,
    looked: Option<Moment>,
    reviewed: Moment,
    missing: BTreeMap<NodeId, u64>,
    /// Bytes per second that one whose turn it is takes in.
    intake: Option<f64>,
    chosen: BTreeSet<NodeId>,
}

impl Turns {
    /// Whose turn it is among all that lack something, when all together can send `sendable` for sync. Look about once a
    /// second.
    pub fn look(
        &mut self,
        waiting: &[Waiting],
        sendable: BytesPerSec,
        targets: &Targets,
        now: Moment,
    ) -> &BTreeSet<NodeId> {
        self.measure(waiting, now);
        let count = waiting.len();
        let mut width = self.width.unwrap_or(count);
        if now.since(self.reviewed) >= REVIEW {
            self.reviewed = now;
            if let Some(intake) = self.intake.filter(|intake| *intake > 0.0) {
                let enough = (sendable.0 as f64 * COVERED / intake).ceil();
                width = (enough as usize).min(width.saturating_mul(2));
            }
        }
        let width = width.clamp(1, count.max(1));
        self.width = (count > 0).then_some(width);
        let mut order: Vec<&Waiting> = waiting.iter().collect();
        order.sort_unstable_by_key(|mirror| (mirror.missing, std::cmp::Reverse(mirror.uplink), mirror.node));
        let late = targets.sync.saturating_mul(LATE_TARGETS);
        let (first, rest) = order.split_at(width.min(count));
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
            if !self.chosen.is_empty() {
                let intake = sum / self.chosen.len() as f64 / passed;
                let step = -(-passed / SMOOTHING.as_secs_f64()).exp_m1();
                self.intake = Some(self.intake.map_or(intake, |before| before + (intake - before) * step));
            }
        }
        self.looked = Some(now);
        self.missing = waiting.iter().map(|mirror| (mirror.node, mirror.missing.0)).collect();
    }
}

/// The part of what all can send that those whose turn it is take in. Below 1: were it all, a width that is too large
/// would look just right.
const COVERED: f64 = 0.75;
/// How often the number of turns is changed.
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

    /// Copies under way: those whose turn it is share `sendable`, each at most at `most`. When each was done.
    fn copy(mut waiting: Vec<Waiting>, sendable: u64, most: u64, ordered: bool) -> Vec<u64> {
        let (mut turns, mut done) = (Turns::default(), Vec::new());
        for second in 0..100_000u64 {
            if waiting.is_empty() {
                return done;
            }
            let now = Moment::from_secs_f64(second as f64);
            let chosen = turns.look(&waiting, BytesPerSec(sendable), &targets(), now).clone();
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
        let mut turns = Turns { width: Some(2), ..Turns::default() };
        let strong = Waiting { uplink: BytesPerSec(9_000), ..mirror(4, 50) };
        let waiting = [mirror(1, 90), mirror(2, 50), strong, mirror(3, 10)];
        let chosen = turns.look(&waiting, BytesPerSec(100), &targets(), Moment::ZERO);
        assert_eq!(chosen.iter().copied().collect::<Vec<_>>(), [NodeId(3), NodeId(4)]);
    }

    #[test]
    fn who_has_waited_too_long_is_not_passed_over() {
        let mut turns = Turns { width: Some(1), ..Turns::default() };
        let forgotten = Waiting { since: Duration::from_secs(2_400), ..mirror(9, 1 << 40) };
        let chosen =
            turns.look(&[mirror(1, 5), mirror(2, 6), forgotten], BytesPerSec(1), &targets(), Moment::ZERO);
        assert!(chosen.contains(&NodeId(1)) && chosen.contains(&NodeId(9)) && !chosen.contains(&NodeId(2)));
    }

    #[test]
    fn the_mean_is_much_earlier_and_the_last_no_later_than_a_little() {
        let all = || (1..=12).map(|node| mirror(node, 600_000)).collect::<Vec<_>>();
        for most in [2_000, 20_000] {
            let (ours, together) = (copy(all(), 12_000, most, true), copy(all(), 12_000, most, false));
            let mean = |done: &[u64]| done.iter().sum::<u64>() as f64 / done.len() as f64;
            assert!(mean(&ours) < 0.85 * mean(&together), "{ours:?} {together:?}");
            let last = |done: &[u64]| done.iter().max().copied().unwrap_or_default() as f64;
            assert!(last(&ours) < 1.35 * last(&together), "{ours:?} {together:?}");
        }
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
