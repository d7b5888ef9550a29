//! Counts what sync brings in, by where it came from, for people and for heartbeats.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use freshet_api::BytesPerSec;
use freshet_api::heartbeat::Transfer;

/// Counters that many tasks add to. Bytes of payload.
#[derive(Debug, Default)]
pub struct Meter {
    pub(crate) origin: AtomicU64,
    pub(crate) peers: AtomicU64,
    pub(crate) disk: AtomicU64,
    pub(crate) recipes: AtomicU64,
    pub(crate) wasted: AtomicU64,
    /// Peers asked now, over all bundles.
    pub(crate) asked: AtomicU32,
}

impl Meter {
    pub(crate) fn add(counter: &AtomicU64, bytes: u64) {
        counter.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What came over the network.
    fn received(&self) -> u64 {
        self.origin.load(Ordering::Relaxed) + self.peers.load(Ordering::Relaxed)
    }

    /// All of them now, with the rate that `speed` knows.
    pub(crate) fn read(&self, speed: &mut Speed, now: Instant) -> Transfer {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Transfer {
            peers: self.asked.load(Ordering::Relaxed),
            rate: speed.seen(self.received(), now),
            origin_bytes: of(&self.origin),
            peer_bytes: of(&self.peers),
            disk_bytes: of(&self.disk),
            recipe_bytes: of(&self.recipes),
            wasted_bytes: of(&self.wasted),
        }
    }
}

/// The rate over the last seconds.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    seen: VecDeque<(Instant, u64)>,
}

impl Speed {
    fn seen(&mut self, bytes: u64, now: Instant) -> BytesPerSec {
        self.seen.push_back((now, bytes));
        while self.seen.len() > 2 && self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW)
        {
            self.seen.pop_front();
        }
        let Some(&(first, before)) = self.seen.front() else { return BytesPerSec(0) };
        let elapsed = now.duration_since(first).as_secs_f64();
        if elapsed <= 0.0 {
            return BytesPerSec(0);
        }
        BytesPerSec((bytes.saturating_sub(before) as f64 / elapsed) as u64)
    }
}

/// Over which the rate is taken.
const WINDOW: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (mut speed, start) = (Speed::default(), Instant::now());
        assert_eq!(speed.seen(0, start), BytesPerSec(0));
        for second in 1..=20 {
            let rate = speed.seen(second * 1_000, start + Duration::from_secs(second));
            assert_eq!(rate, BytesPerSec(1_000), "{second}");
        }
        for second in 21..=26 {
            speed.seen(20_000, start + Duration::from_secs(second));
        }
        assert_eq!(speed.seen(20_000, start + Duration::from_secs(27)), BytesPerSec(0));
    }
}
