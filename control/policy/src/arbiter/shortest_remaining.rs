//! Customers' share falls as what mirrors lack shrinks, mirrors copy one after the other, and of downloads small ones go
//! first.
//!
//! A copy that is nearly made counts as soon as it is made, and one that is far from it delays every customer who
//! shares the uplink with it: so what has little left goes first (shortest remaining processing time; the cµ rule, Cox
//! and Smith, "Queues", 1961). Not all or nothing, because downloads share what delivery gets: with some share left the
//! small ones among them still pass, which keeps the number of those who wait low. For the same reason a small one counts
//! several times as much as a large one within delivery's share.
//!
//! How much is left is told in time at the node's whole uplink and weighed against how long a customer may wait, on a
//! logarithmic scale. As for equal lateness there is no feedback but a first-order filter, so it cannot oscillate by
//! itself.

use std::time::Duration;

use super::{Arbiter, Targets, Work};
use crate::moment::Moment;

/// What is nearly copied goes before customers, what is far from it behind them.
#[derive(Clone, Debug, Default)]
pub struct ShortestRemaining {
    share: Option<f64>,
    at: Moment,
}

impl ShortestRemaining {
    /// Delivery's share before smoothing.
    pub fn goal(&self, work: &Work, targets: &Targets) -> f64 {
        let left = work.sync_backlog.0 as f64 / work.uplink.0.max(1) as f64;
        if left <= 0.0 {
            return DELIVERY_MOST;
        }
        // Urgency stands for the customers who wait for that very release.
        let middle = EVEN_WAITS
            * targets.customer_wait.as_secs_f64().max(1e-3)
            * f64::from(work.urgency.max(1.0)).sqrt();
        let place = ((left / middle).ln() / SPREAD).clamp(-1.0, 1.0);
        0.5 * (DELIVERY_MOST + DELIVERY_LEAST) + 0.5 * (DELIVERY_MOST - DELIVERY_LEAST) * place
    }
}

impl Arbiter for ShortestRemaining {
    fn name(&self) -> &'static str {
        "shortest-remaining"
    }

    fn share(&mut self, work: &Work, targets: &Targets, now: Moment) -> f32 {
        let goal = self.goal(work, targets);
        let passed = now.since(self.at).as_secs_f64();
        let step = -(-passed / SMOOTHING.as_secs_f64()).exp_m1();
        let share = self.share.map_or(goal, |share| share + (goal - share) * step);
        self.share = Some(share);
        self.at = self.at.max(now);
        share as f32
    }

    fn takes_turns(&self) -> bool {
        true
    }

    fn puts_small_first(&self) -> bool {
        true
    }
}

/// Customers' share while mirrors lack much, and when they lack next to nothing.
const DELIVERY_MOST: f64 = 0.8;
const DELIVERY_LEAST: f64 = 0.1;
/// What mirrors lack is neither much nor little when the whole uplink would take so many customers' waits for it.
const EVEN_WAITS: f64 = 10.0;
/// So many e-folds around that are between much and little.
const SPREAD: f64 = 3.0;
/// 95 % of a step within 4.5 s.
const SMOOTHING: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use freshet_api::{Bytes, BytesPerSec};
    use proptest::prelude::*;

    use super::*;
    use crate::draw::Draw;

    fn targets() -> Targets {
        Targets { customer_wait: Duration::from_secs(20), sync: Duration::from_secs(600) }
    }

    fn lacks(sync: u64) -> Work {
        Work {
            uplink: BytesPerSec(10_000_000),
            delivery_backlog: Bytes(50_000_000),
            sync_backlog: Bytes(sync),
            sync_age: Duration::ZERO,
            urgency: 1.0,
        }
    }

    #[test]
    fn who_lacks_little_gets_much_and_nobody_starves() {
        let law = ShortestRemaining::default();
        let goal = |sync| law.goal(&lacks(sync), &targets());
        assert!((goal(2_000_000_000) - 0.45).abs() < 1e-6, "ten waits of twenty seconds");
        assert!((goal(1) - 0.1).abs() < 1e-6 && (goal(u64::MAX) - 0.8).abs() < 1e-6);
        assert!((goal(0) - 0.8).abs() < 1e-6, "there is nothing to copy");
        let wanted = Work { urgency: 10.0, ..lacks(2_000_000_000) };
        assert!(law.goal(&wanted, &targets()) < 0.4);
    }

    #[test]
    fn a_step_settles_within_ten_seconds_without_overshoot() {
        let mut law = ShortestRemaining::default();
        let mut now = Moment::ZERO;
        let before = law.share(&lacks(100_000_000), &targets(), now);
        let goal = law.goal(&lacks(20_000_000_000), &targets()) as f32;
        let mut settled = None;
        for tenth in 0..200 {
            now += Duration::from_millis(100);
            let share = law.share(&lacks(20_000_000_000), &targets(), now);
            assert!(share <= goal + 0.1 * (goal - before), "overshoot: {share} over {goal}");
            if settled.is_none() && (goal - share).abs() < 0.05 * (goal - before) {
                settled = Some(tenth);
            }
        }
        assert!(settled.is_some_and(|tenth| tenth < 100), "{settled:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// With reports up to 10 s old and 20 % wrong the share still goes one way while the copy shrinks, but for what
        /// the noise explains.
        #[test]
        fn late_and_noisy_reports_cause_no_oscillation(delay in 0.0f64..10.0, noise in 0.0f64..0.2, seed: u64) {
            let mut law = ShortestRemaining::default();
            let mut draw = Draw::new(seed);
            let (mut left, mut reports, mut share) = (4e9, std::collections::VecDeque::new(), None);
            let mut least = 1f32;
            for tick in 0..6000u32 {
                let now = Moment::from_secs_f64(f64::from(tick) * 0.1);
                reports.push_back(left);
                if f64::from(tick) * 0.1 >= delay {
                    let seen = reports.pop_front().unwrap() * (1.0 + noise * (2.0 * draw.unit() - 1.0));
                    if seen < 1.0 {
                        break;
                    }
                    let next = law.share(&lacks(seen as u64), &targets(), now);
                    least = least.min(next);
                    prop_assert!(f64::from(next - least) < 0.01 + 0.3 * noise, "{} over {}", next, least);
                    share = Some(next);
                }
                left = f64::max(0.0, left - 10e6 * f64::from(1.0 - share.unwrap_or(0.5)) * 0.1);
            }
        }

        /// The more is lacking, the less goes to sync at once; more urgency never takes from it.
        #[test]
        fn the_share_is_monotone(sync in 1u64..1 << 40, more in 0u64..1 << 40, urgency in 1f32..10.0) {
            let law = ShortestRemaining::default();
            let goal = |sync| law.goal(&lacks(sync), &targets());
            prop_assert!(goal(sync + more) >= goal(sync) - 1e-9);
            let urgent = Work { urgency, ..lacks(sync) };
            prop_assert!(law.goal(&urgent, &targets()) <= goal(sync) + 1e-9);
        }
    }
}
