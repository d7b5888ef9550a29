//! Delivery and sync equally late, each relative to its own target.
//!
//! Delivery's lateness falls and sync's rises with delivery's share, so there is exactly one share at
//! which they meet; it follows from measured backlogs alone. Backlogs are integrals and therefore
//! calm; what noise they have is taken off by a first-order filter. There is no further feedback:
//! nothing that was decided before enters the next decision other than through the filter, which is
//! why the law cannot oscillate by itself.

use std::time::Duration;

use super::{Arbiter, Targets, Work};
use crate::moment::Moment;

/// The law Freshet uses.
#[derive(Clone, Debug)]
pub struct EqualLateness {
    floor: f32,
    share: Option<f64>,
    at: Moment,
}

impl EqualLateness {
    /// A law under which neither side's share falls below `floor` (0 ..= 0.5) while it has work.
    pub fn new(floor: f32) -> EqualLateness {
        let floor = if floor.is_finite() { floor.clamp(0.0, 0.5) } else { FLOOR_DEFAULT };
        EqualLateness { floor, share: None, at: Moment::ZERO }
    }

    /// The share at which both are equally late, before smoothing.
    pub fn balance(&self, work: &Work, targets: &Targets) -> f64 {
        let floor = f64::from(self.floor);
        let (mut low, mut high) = (floor, 1.0 - floor);
        for _ in 0..BISECTIONS {
            let middle = 0.5 * (low + high);
            // A little is added to both, as if each always had some work: backlogs that are next to
            // nothing then leave the share near the middle instead of throwing it about.
            let delivery = work.delivery_lateness(middle, targets) + QUIET / middle.max(1e-6);
            let sync = work.sync_lateness(middle, targets) + QUIET / (1.0 - middle).max(1e-6);
            if delivery > sync {
                low = middle;
            } else {
                high = middle;
            }
        }
        0.5 * (low + high)
    }
}

impl Default for EqualLateness {
    fn default() -> EqualLateness {
        EqualLateness::new(FLOOR_DEFAULT)
    }
}

impl Arbiter for EqualLateness {
    fn name(&self) -> &'static str {
        "equal-lateness"
    }

    fn share(&mut self, work: &Work, targets: &Targets, now: Moment) -> f32 {
        let balance = self.balance(work, targets);
        let passed = now.since(self.at).as_secs_f64();
        let step = -(-passed / SMOOTHING.as_secs_f64()).exp_m1();
        let share = self.share.map_or(balance, |share| share + (balance - share) * step);
        self.share = Some(share);
        self.at = self.at.max(now);
        share as f32
    }
}

/// Work of this part of its target counts as none.
const QUIET: f64 = 0.02;
/// Neither side ever starves.
const FLOOR_DEFAULT: f32 = 0.05;
/// 95 % of a step within 4.5 s.
const SMOOTHING: Duration = Duration::from_millis(1500);
/// To 2^-24 of the interval: finer than a float share.
const BISECTIONS: u32 = 24;

#[cfg(test)]
mod tests {
    use freshet_api::{Bytes, BytesPerSec};
    use proptest::prelude::*;

    use super::*;
    use crate::draw::Draw;

    fn targets() -> Targets {
        Targets { customer_wait: Duration::from_secs(20), sync: Duration::from_secs(600) }
    }

    fn work(delivery: u64, sync: u64) -> Work {
        Work {
            uplink: BytesPerSec(10_000_000),
            delivery_backlog: Bytes(delivery),
            sync_backlog: Bytes(sync),
            sync_age: Duration::ZERO,
            urgency: 1.0,
        }
    }

    #[test]
    fn at_the_balance_both_are_equally_late() {
        let law = EqualLateness::default();
        let both = work(100_000_000, 3_000_000_000);
        let share = law.balance(&both, &targets());
        let (delivery, sync) =
            (both.delivery_lateness(share, &targets()), both.sync_lateness(share, &targets()));
        assert!((delivery / sync - 1.0).abs() < 1e-2, "{delivery} {sync}");
        assert!((share - 0.5).abs() < 1e-3, "100 MB in 20 s weigh as much as 3 GB in 600 s");
    }

    #[test]
    fn age_and_urgency_move_the_share_to_sync() {
        let law = EqualLateness::default();
        let plain = law.balance(&work(100_000_000, 3_000_000_000), &targets());
        let old = Work { sync_age: Duration::from_secs(300), ..work(100_000_000, 3_000_000_000) };
        let wanted = Work { urgency: 5.0, ..work(100_000_000, 3_000_000_000) };
        assert!(law.balance(&old, &targets()) < plain - 0.05);
        assert!(law.balance(&wanted, &targets()) < plain - 0.1);
    }

    #[test]
    fn nobody_starves_and_the_idle_side_keeps_the_floor() {
        let law = EqualLateness::default();
        assert!((law.balance(&work(u64::MAX, 1), &targets()) - 0.95).abs() < 1e-6);
        assert!((law.balance(&work(1, u64::MAX), &targets()) - 0.05).abs() < 1e-6);
        assert!((law.balance(&work(0, 1 << 40), &targets()) - 0.05).abs() < 1e-6);
        assert!((law.balance(&work(0, 0), &targets()) - 0.5).abs() < 1e-6);
        assert!((EqualLateness::new(f32::NAN).floor - FLOOR_DEFAULT).abs() < 1e-9);
    }

    /// Both backlogs served at their shares while bytes keep arriving; the law sees reports that are
    /// `delay` seconds old and wrong by up to `noise`. Shares by tenths of a second.
    fn closed_loop(arrivals: (f64, f64), delay: f64, noise: f64, seconds: f64, seed: u64) -> Vec<f32> {
        let mut law = EqualLateness::default();
        let mut draw = Draw::new(seed);
        let (mut delivery, mut sync) = (50e6, 3e9);
        let mut reports = std::collections::VecDeque::new();
        let mut shares = Vec::new();
        let step = 0.1;
        let mut share = 0.5;
        for tick in 0..(seconds / step) as u64 {
            let now = Moment::from_secs_f64(tick as f64 * step);
            reports.push_back((delivery, sync));
            if reports.len() as f64 * step > delay {
                let (seen_delivery, seen_sync) = reports.pop_front().unwrap();
                let wrong = |draw: &mut Draw| 1.0 + noise * (2.0 * draw.unit() - 1.0);
                let seen =
                    work((seen_delivery * wrong(&mut draw)) as u64, (seen_sync * wrong(&mut draw)) as u64);
                share = law.share(&seen, &targets(), now);
            }
            delivery = f64::max(0.0, delivery + (arrivals.0 - 10e6 * f64::from(share)) * step);
            sync = f64::max(0.0, sync + (arrivals.1 - 10e6 * f64::from(1.0 - share)) * step);
            shares.push(share);
        }
        shares
    }

    #[test]
    fn a_step_settles_within_ten_seconds_without_overshoot() {
        let mut law = EqualLateness::default();
        let calm = work(100_000_000, 3_000_000_000);
        let crowd = work(400_000_000, 3_000_000_000);
        let mut now = Moment::ZERO;
        let before = law.share(&calm, &targets(), now);
        let goal = law.balance(&crowd, &targets()) as f32;
        let mut settled = None;
        for tenth in 0..200 {
            now += Duration::from_millis(100);
            let share = law.share(&crowd, &targets(), now);
            assert!(share <= goal + 0.1 * (goal - before), "overshoot: {share} over {goal}");
            if settled.is_none() && (share - goal).abs() < 0.05 * (goal - before) {
                settled = Some(tenth);
            }
        }
        assert!(settled.is_some_and(|tenth| tenth < 100), "{settled:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// With reports up to 10 s old and 20 % wrong, the share still doesn't swing: in the last
        /// minute it stays within a band that the noise alone explains.
        #[test]
        fn late_and_noisy_reports_cause_no_oscillation(
            delivery_load in 0.1f64..0.6, delay in 0.0f64..10.0, noise in 0.0f64..0.2, seed: u64
        ) {
            let shares = closed_loop((delivery_load * 10e6, 2e6), delay, noise, 400.0, seed);
            let last = &shares[3400..];
            let (low, high) = last.iter().fold((1f32, 0f32), |(l, h), &s| (l.min(s), h.max(s)));
            prop_assert!(f64::from(high - low) < 0.08 + 0.6 * noise, "{low} .. {high}");
        }

        /// More backlog on one side never gets it less.
        #[test]
        fn the_share_is_monotone(delivery in 1u64..1 << 40, sync in 1u64..1 << 40, more in 0u64..1 << 40) {
            let law = EqualLateness::default();
            let share = |delivery, sync| law.balance(&work(delivery, sync), &targets());
            prop_assert!(share(delivery + more, sync) >= share(delivery, sync) - 1e-6);
            prop_assert!(share(delivery, sync + more) <= share(delivery, sync) + 1e-6);
        }
    }
}
