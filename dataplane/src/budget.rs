//! What the owner donates, kept in the serving path: the engine asks before each chunk, sync before each read.
//!
//! The owner's figure counts bits on the wire, the engine counts payload; the difference is the headers of
//! full segments. The decision is `freshet_policy::pacing`'s; here is only the clock.

use std::time::{Duration, Instant};

use freshet_api::BytesPerSec;
use freshet_engine::{Grant, Pacer};
use freshet_policy::Moment;
use freshet_policy::pacing::{Pace, SharedPacer, Shares, TokenBucket};

use crate::sync::ReadPacer;

/// The pacers of one volunteer. Shared by all rings and by sync; never blocks.
#[derive(Debug)]
pub struct Budget {
    origin: Instant,
    sending: SharedPacer,
    receiving: TokenBucket,
}

impl Budget {
    /// At most `sending` on the wire; receiving is not limited.
    pub fn new(sending: Option<BytesPerSec>) -> Self {
        let budget = Self {
            origin: Instant::now(),
            sending: SharedPacer::unlimited(),
            receiving: TokenBucket::unlimited(),
        };
        budget.set(sending, None);
        budget
    }

    /// Puts other rates in force, from the next chunk on; `None` lifts a limit.
    pub fn set(&self, sending: Option<BytesPerSec>, receiving: Option<BytesPerSec>) {
        let now = self.moment(Instant::now());
        self.sending.set(sending.map(payload), Shares::NONE, now);
        self.receiving.set_rate(receiving.map(payload), now);
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment::ZERO + now.saturating_duration_since(self.origin)
    }
}

impl Pacer for Budget {
    fn unlimited(&self, class: u8) -> bool {
        self.sending.is_unlimited(class)
    }

    fn take(&self, class: u8, want: u64, now: Instant) -> Grant {
        match self.sending.take(class, want, self.moment(now)) {
            Pace::Bytes(bytes) => Grant::Bytes(bytes),
            Pace::Wait(wait) => Grant::Wait(wait.max(WAIT_MIN)),
        }
    }
}

impl ReadPacer for Budget {
    fn after_read(&self, bytes: u64) -> Duration {
        let now = self.moment(Instant::now());
        self.receiving.charge(bytes, now);
        self.receiving.owed(now)
    }
}

/// Payload that fits into a rate on the wire: full segments of 1448 bytes in frames of 1514.
fn payload(wire: BytesPerSec) -> BytesPerSec {
    let scaled = u128::from(wire.0) * SEGMENT_PAYLOAD_BYTES / SEGMENT_WIRE_BYTES;
    BytesPerSec(u64::try_from(scaled).unwrap_or(u64::MAX))
}

const SEGMENT_PAYLOAD_BYTES: u128 = 1_448;
const SEGMENT_WIRE_BYTES: u128 = 1_514;
/// No timer is finer than this.
const WAIT_MIN: Duration = Duration::from_micros(50);

#[cfg(test)]
mod tests {
    use freshet_api::Class;

    use super::*;

    /// Payload that greedy senders get in `seconds` of simulated time.
    fn sent(budget: &Budget, seconds: u64) -> u64 {
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let (mut now, mut sent) = (start, 0);
        while now < end {
            match budget.take(Class::Delivery.number(), 1 << 20, now) {
                Grant::Bytes(bytes) => sent += bytes,
                Grant::Wait(wait) => now += wait,
            }
        }
        sent
    }

    #[test]
    fn the_wire_keeps_to_what_is_donated() {
        let budget = Budget::new(Some(BytesPerSec(10_000_000)));
        let wire = sent(&budget, 10) as f64 * 1_514.0 / 1_448.0;
        assert!((wire / 100e6 - 1.0).abs() < 0.01, "{wire} bytes on the wire in 10 s at 10 MB/s");
    }

    #[test]
    fn a_lifted_limit_is_none() {
        let budget = Budget::new(Some(BytesPerSec(1_000_000)));
        assert!(!budget.unlimited(Class::Delivery.number()));
        budget.set(None, Some(BytesPerSec(5)));
        assert!(budget.unlimited(Class::Delivery.number()));
        assert_eq!(budget.take(1, 1 << 30, Instant::now()), Grant::Bytes(1 << 30));
    }

    #[test]
    fn sync_reads_are_paced_by_themselves() {
        let budget = Budget::new(None);
        assert_eq!(budget.after_read(1 << 40), Duration::ZERO);
        budget.set(None, Some(BytesPerSec(1_514_000)));
        assert!(budget.unlimited(Class::Delivery.number()));
        let waits: Vec<Duration> = (0..10).map(|_| budget.after_read(1_448_000)).collect();
        let last = waits[9].as_secs_f64();
        assert!((8.0..=10.1).contains(&last), "10 s worth of reads at once wait {last} s");
    }
}
