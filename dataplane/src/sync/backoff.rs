//! How long to wait before the next attempt: doubling, bounded, and jittered so that volunteers that failed
//! together don't come back together. It reads no clock and draws no number.

use std::time::Duration;

/// Bounds of the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) most: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row (from 1), for a `draw` in 0 ..= 1.
    ///
    /// Between half of the doubled time and all of it; never less than the other side asked for, to which
    /// the jitter is added, since others were asked the same.
    pub(super) fn delay(&self, failures: u32, at_least: Option<Duration>, draw: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.most);
        let jittered = doubled.mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0);
        match at_least {
            Some(asked) if asked.saturating_add(jittered / 2) > jittered => {
                asked.min(ASKED_MAX).saturating_add(jittered / 2)
            }
            _ => jittered,
        }
    }
}

/// What another side may ask us to wait at most.
const ASKED_MAX: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), most: Duration::from_secs(60) };

    #[test]
    fn waits_double_up_to_the_bound() {
        let waits: Vec<u64> =
            (1..=9).map(|n| BACKOFF.delay(n, None, 1.0).as_millis().try_into().unwrap()).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
    }

    proptest! {
        #[test]
        fn bounds_hold(failures in 0..u32::MAX, asked in proptest::option::of(0u64..100_000), draw in 0.0..=1.0f64) {
            let asked = asked.map(Duration::from_secs);
            let delay = BACKOFF.delay(failures, asked, draw);
            prop_assert!(delay >= BACKOFF.first / 2);
            prop_assert!(delay >= asked.unwrap_or_default().min(ASKED_MAX));
            prop_assert!(delay <= asked.unwrap_or_default().min(ASKED_MAX) + BACKOFF.most);
        }
    }
}
