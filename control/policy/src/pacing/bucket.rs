//! A rate for what is known only after it passed: each read is charged, and the reader waits for what it owes.
//!
//! The generic cell rate algorithm (ITU-T I.371): instead of counting tokens it keeps the theoretical time at which
//! the bytes so far would have passed at exactly the rate. That is one number, so threads share it in one atomic.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use freshet_api::BytesPerSec;

use super::{WAIT_MAX, burst};
use crate::moment::Moment;

/// One rate, kept over any stretch of time to within one [`burst`] and one read. Shared by threads.
#[derive(Debug)]
pub struct TokenBucket {
    /// Bytes per second; [`UNLIMITED`] for none.
    rate: AtomicU64,
    /// Theoretical arrival time, in [`TICKS_PER_NANO`]ths of a nanosecond.
    due: AtomicU64,
}

impl TokenBucket {
    /// A bucket that lets `rate` through, beginning with a full burst; 0 lets nothing through.
    pub fn new(rate: BytesPerSec) -> TokenBucket {
        TokenBucket { rate: AtomicU64::new(rate.0.min(UNLIMITED - 1)), due: AtomicU64::new(0) }
    }

    /// A bucket that lets everything through.
    pub fn unlimited() -> TokenBucket {
        TokenBucket { rate: AtomicU64::new(UNLIMITED), due: AtomicU64::new(0) }
    }

    /// The rate in force, or none when unlimited.
    pub fn rate(&self) -> Option<BytesPerSec> {
        match self.rate.load(Ordering::Relaxed) {
            UNLIMITED => None,
            rate => Some(BytesPerSec(rate)),
        }
    }

    /// Puts another rate in force; what was charged before is owed at the new rate.
    pub fn set_rate(&self, rate: Option<BytesPerSec>, now: Moment) {
        let new = rate.map_or(UNLIMITED, |rate| rate.0.min(UNLIMITED - 1));
        let old = self.rate.swap(new, Ordering::AcqRel);
        if old == new {
            return;
        }
        let now = ticks(now);
        // Debt is bytes: the time it stands for changes with the rate.
        let rescaled = self.due.fetch_update(Ordering::AcqRel, Ordering::Acquire, |due| {
            let debt = due.checked_sub(now).filter(|&debt| debt > 0)?;
            let bytes = if old == UNLIMITED || old == 0 { 0 } else { u128::from(debt) * u128::from(old) };
            let debt = if new == UNLIMITED || new == 0 { 0 } else { bytes / u128::from(new) };
            Some(now.saturating_add(u64::try_from(debt).unwrap_or(u64::MAX)))
        });
        // Nothing owed is nothing to rescale.
        let _ = rescaled;
    }

    /// How long until what was charged so far has passed at the rate; zero when nothing is owed.
    pub fn owed(&self, now: Moment) -> Duration {
        match self.rate.load(Ordering::Relaxed) {
            UNLIMITED => Duration::ZERO,
            0 => WAIT_MAX,
            _ => {
                let due = self.due.load(Ordering::Acquire);
                Duration::from_nanos(due.saturating_sub(ticks(now)).div_ceil(TICKS_PER_NANO))
            }
        }
    }

    /// Charges `bytes` that passed.
    pub fn charge(&self, bytes: u64, now: Moment) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == UNLIMITED || rate == 0 {
            return;
        }
        let cost = cost(bytes, rate);
        let floor = ticks(now).saturating_sub(cost_of_burst(rate));
        let charged = self.due.fetch_update(Ordering::AcqRel, Ordering::Acquire, |due| {
            Some(due.max(floor).saturating_add(cost))
        });
        // The closure always answers, so the update always succeeds.
        let _ = charged;
    }
}

/// Ticks that `bytes` take at `rate`, rounded up: rounding never makes the rate exceeded.
fn cost(bytes: u64, rate: u64) -> u64 {
    let ticks = (u128::from(bytes) * u128::from(TICKS_PER_SEC)).div_ceil(u128::from(rate));
    u64::try_from(ticks).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

fn cost_of_burst(rate: u64) -> u64 {
    cost(burst(BytesPerSec(rate)).0, rate)
}

/// A moment in ticks; exact for the first 9.1 years after the origin.
fn ticks(now: Moment) -> u64 {
    now.0.saturating_mul(TICKS_PER_NANO)
}

const UNLIMITED: u64 = u64::MAX;
/// Fractions of a nanosecond keep small charges at high rates exact.
const TICKS_PER_NANO: u64 = 64;
const TICKS_PER_SEC: u64 = TICKS_PER_NANO * 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_charged_is_owed_until_it_has_passed() {
        let bucket = TokenBucket::new(BytesPerSec(1_000_000));
        let start = Moment::from_secs_f64(10.0);
        let (mut now, mut passed) = (start, 0u64);
        while now.since(start) < Duration::from_secs(10) {
            bucket.charge(100_000, now);
            passed += 100_000;
            now += bucket.owed(now);
        }
        let rate = passed as f64 / now.since(start).as_secs_f64();
        assert!((rate / 1e6 - 1.0).abs() < 0.005, "{rate}");
        assert_eq!(bucket.owed(now), Duration::ZERO);
    }

    #[test]
    fn without_a_rate_nothing_is_owed_and_at_zero_there_is_no_end() {
        let now = Moment::from_secs_f64(3.0);
        let bucket = TokenBucket::unlimited();
        bucket.charge(1 << 40, now);
        assert_eq!((bucket.owed(now), bucket.rate()), (Duration::ZERO, None));
        assert_eq!(TokenBucket::new(BytesPerSec(0)).owed(now), WAIT_MAX);
    }

    #[test]
    fn what_is_owed_is_bytes_and_a_new_rate_changes_its_time() {
        let now = Moment::from_secs_f64(3.0);
        let bucket = TokenBucket::new(BytesPerSec(1_000_000));
        bucket.charge(520_000, now);
        let before = bucket.owed(now);
        assert_eq!(before, Duration::from_millis(500), "20 ms of it are the burst");
        bucket.set_rate(Some(BytesPerSec(10_000_000)), now);
        assert_eq!(bucket.owed(now), before / 10);
        bucket.set_rate(None, now);
        assert_eq!(bucket.owed(now), Duration::ZERO);
    }

    proptest! {
        /// Readers that wait for what they owe keep to the rate over any stretch, but for a burst and a read.
        #[test]
        fn never_more_than_the_rate(
            rate in 1_000u64..2_000_000_000,
            reads in proptest::collection::vec((1u64..200_000, 0u64..5_000_000), 1..300),
        ) {
            let bucket = TokenBucket::new(BytesPerSec(rate));
            let start = Moment::from_secs_f64(1e6);
            let (mut now, mut passed) = (start, 0u64);
            for (bytes, late) in reads {
                passed += bytes;
                let allowed = rate as f64 * now.since(start).as_secs_f64()
                    + (burst(BytesPerSec(rate)).0 + bytes) as f64 + 1.0;
                prop_assert!(passed as f64 <= allowed, "{passed} > {allowed}");
                bucket.charge(bytes, now);
                now += bucket.owed(now) + Duration::from_nanos(late);
            }
        }
    }
}
