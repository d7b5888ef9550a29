//! Holds the sync port to what the operator gives to it; customers at the front door are never slowed.
//!
//! The operator's figure counts bits on the wire, the engine counts payload: the difference is the headers of full
//! segments. What the API answers to volunteers (catalogues, descriptions of bundles, the tracker) leaves by the same
//! uplink and is taken off, or the queue in front of it would stand full and drop what is small first. The decision is
//! `freshet_policy::pacing`'s; here is only the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use freshet_api::{Bytes, BytesPerSec, Class};
use freshet_engine::{Grant, Pacer, Place, Want};
use freshet_policy::Moment;
use freshet_policy::pacing::{self, Pace, SharedPacer, Shares};
use freshet_policy::reservation::payload_of_wire;

/// One rate for all connections of the sync port together.
#[derive(Debug)]
pub struct SyncPacer {
    origin: Instant,
    sending: SharedPacer,
    elsewhere: Arc<SentElsewhere>,
    /// Grants so far, those among them that were held back for.
    grants: AtomicU64,
}

/// Bytes that volunteers got from another port of this host and that the sync port has not yet held back for.
#[derive(Debug, Default)]
pub struct SentElsewhere(AtomicU64);

impl SentElsewhere {
    /// Notes an answer with a body of `bytes`.
    pub fn note(&self, bytes: u64) {
        // Bounded, so that what nobody holds back for while nothing is copied does not stop what comes then.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| {
            Some((owed + bytes + AROUND_BODY).min(OWED_MAX))
        });
    }

    /// Whether `bytes` of the rate were used there, and are now accounted for.
    fn settle(&self, bytes: u64) -> bool {
        let less = |owed: u64| owed.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

impl SyncPacer {
    /// At `rate` on the wire, of which what is sent `elsewhere` takes at most half.
    pub fn new(rate: BytesPerSec, elsewhere: Arc<SentElsewhere>) -> Self {
        let payload = BytesPerSec(payload_of_wire(Bytes(rate.0)).0);
        let sending = SharedPacer::new(payload, Shares::NONE);
        Self { origin: Instant::now(), sending, elsewhere, grants: AtomicU64::new(0) }
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment::ZERO + now.saturating_duration_since(self.origin)
    }
}

impl Pacer for SyncPacer {
    fn unlimited(&self, class: u8) -> bool {
        class != Class::Sync.number()
    }

    fn take(&self, class: u8, want: Want, place: &mut Place, now: Instant) -> Grant {
        let mut own = pacing::Place { end: place.end, bytes: place.bytes };
        let mut pace = self.sending.take(class, want.bytes, &mut own, self.moment(now));
        if let Pace::Bytes(bytes) = pace
            && self.grants.fetch_add(1, Ordering::Relaxed).is_multiple_of(2)
            && self.elsewhere.settle(bytes)
        {
            // These went out by the other port; at least every second grant is for those who ask here.
            own = pacing::Place::NOWHERE;
            pace = self.sending.take(class, want.bytes, &mut own, self.moment(now));
        }
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

const WAIT_MIN: Duration = Duration::from_millis(1);
/// TLS, the head of the response, and headers of the packets, about.
const AROUND_BODY: u64 = 400;
const OWED_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn want(bytes: u64) -> Want {
        Want { bytes, file_bytes: bytes }
    }

    #[test]
    fn only_the_sync_port_is_held_to_the_rate() {
        let pacer = SyncPacer::new(BytesPerSec(1_514_000), Arc::default());
        assert!(pacer.unlimited(Class::Delivery.number()) && !pacer.unlimited(Class::Sync.number()));
        let (class, begun) = (Class::Sync.number(), Instant::now());
        let (mut now, mut sent, mut place) = (begun, 0u64, Place::default());
        while sent < 14_480_000 {
            match pacer.take(class, want(64 << 10), &mut place, now) {
                Grant::Bytes(bytes) => sent += bytes,
                Grant::Wait(wait) => now += wait,
            }
        }
        let secs = now.duration_since(begun).as_secs_f64();
        assert!((9.5..10.5).contains(&secs), "{secs}");
    }

    #[test]
    fn what_the_api_sends_is_taken_off_up_to_half() {
        let elsewhere = Arc::new(SentElsewhere::default());
        let pacer = SyncPacer::new(BytesPerSec(1_514_000), Arc::clone(&elsewhere));
        let class = Class::Sync.number();
        let begun = Instant::now();
        let sent_in = |from: u64, to: u64, noted: u64| {
            let (mut now, mut sent, mut place) = (begun + Duration::from_secs(from), 0u64, Place::default());
            elsewhere.note(noted);
            while now < begun + Duration::from_secs(to) {
                match pacer.take(class, want(16 << 10), &mut place, now) {
                    Grant::Bytes(bytes) => sent += bytes,
                    Grant::Wait(wait) => now += wait,
                }
            }
            sent as f64 / 1e6
        };
        let alone = sent_in(0, 2, 0);
        assert!((2.7..3.1).contains(&alone), "{alone}");
        let beside = sent_in(2, 4, 1_000_000);
        assert!((1.7..2.1).contains(&beside), "{beside}");
        let crowded = sent_in(4, 6, 4_000_000);
        assert!((1.3..1.6).contains(&crowded), "{crowded}");
    }
}
