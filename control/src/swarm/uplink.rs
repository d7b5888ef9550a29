//! Holds the sync port to what the operator gives to it; customers at the front door are never slowed.
//!
//! The operator's figure counts bits on the wire, the engine counts payload: the difference is the headers of full
//! segments. The decision is `freshet_policy::pacing`'s; here is only the clock.

use std::time::{Duration, Instant};

use freshet_api::{BytesPerSec, Class};
use freshet_engine::{Grant, Pacer, Place};
use freshet_policy::Moment;
use freshet_policy::pacing::{self, Pace, SharedPacer, Shares};

/// One rate for all connections of the sync port together.
#[derive(Debug)]
pub struct SyncPacer {
    origin: Instant,
    sending: SharedPacer,
}

impl SyncPacer {
    /// At `rate` on the wire.
    pub fn new(rate: BytesPerSec) -> Self {
        let payload = BytesPerSec((rate.0 as f64 * PAYLOAD) as u64);
        Self { origin: Instant::now(), sending: SharedPacer::new(payload, Shares::NONE) }
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment::ZERO + now.saturating_duration_since(self.origin)
    }
}

impl Pacer for SyncPacer {
    fn unlimited(&self, class: u8) -> bool {
        class != Class::Sync.number()
    }

    fn take(&self, class: u8, want: u64, place: &mut Place, now: Instant) -> Grant {
        let mut own = pacing::Place { end: place.end, bytes: place.bytes };
        let pace = self.sending.take(class, want, &mut own, self.moment(now));
        *place = Place { end: own.end, bytes: own.bytes };
        match pace {
            Pace::Bytes(bytes) => Grant::Bytes(bytes),
            Pace::Wait(wait) => Grant::Wait(wait.max(WAIT_MIN)),
        }
    }

    fn leave(&self, class: u8, place: Place, unused: u64) {
        let place = pacing::Place { end: place.end, bytes: place.bytes };
        self.sending.leave(class, place, unused, self.moment(Instant::now()));
    }
}

/// Payload of full segments on Ethernet, headers of TCP, IP and link counted.
const PAYLOAD: f64 = 1448.0 / 1514.0;
const WAIT_MIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sync_port_is_held_to_the_rate() {
        let pacer = SyncPacer::new(BytesPerSec(1_514_000));
        assert!(pacer.unlimited(Class::Delivery.number()) && !pacer.unlimited(Class::Sync.number()));
        let (class, begun) = (Class::Sync.number(), Instant::now());
        let (mut now, mut sent, mut place) = (begun, 0u64, Place::default());
        while sent < 14_480_000 {
            match pacer.take(class, 64 << 10, &mut place, now) {
                Grant::Bytes(bytes) => sent += bytes,
                Grant::Wait(wait) => now += wait,
            }
        }
        let secs = now.duration_since(begun).as_secs_f64();
        assert!((9.5..10.5).contains(&secs), "{secs}");
    }
}
