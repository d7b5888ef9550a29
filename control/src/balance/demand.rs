//! What customers ask for: a sample of the last requests in a ring of fixed size, read once a second.
//!
//! A request costs two atomic writes and waits for nobody. When more came than the ring holds, those that are left
//! stand for all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use freshet_api::FileId;
use freshet_policy::Moment;

/// The last requests.
#[derive(Debug)]
pub struct Demand {
    /// File in the upper half, kibibytes in the lower.
    ring: Box<[AtomicU64]>,
    /// Requests so far.
    count: AtomicU64,
    rates: Mutex<Rates>,
}

#[derive(Debug, Default)]
struct Rates {
    read: u64,
    at: Option<Moment>,
    by_file: HashMap<FileId, f64>,
}

impl Default for Demand {
    fn default() -> Self {
        Self {
            ring: (0..RING).map(|_| AtomicU64::new(0)).collect(),
            count: AtomicU64::new(0),
            rates: Mutex::default(),
        }
    }
}

impl Demand {
    /// Somebody asks for `bytes` of `file`.
    pub fn note(&self, file: FileId, bytes: u64) {
        let place = self.count.fetch_add(1, Ordering::Relaxed) as usize % RING;
        let kibibytes = bytes.div_ceil(1 << 10).min(u64::from(u32::MAX));
        self.ring[place].store(u64::from(file.0) << 32 | kibibytes, Ordering::Relaxed);
    }

    /// Takes in what was asked since the last call, and says what is asked of every file that matters, bytes per second,
    /// smoothed over [`SMOOTHED`].
    pub fn rates(&self, now: Moment) -> HashMap<FileId, f64> {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.count.load(Ordering::Relaxed);
        let (came, begun) = (count - rates.read, rates.at.replace(now));
        rates.read = count;
        let Some(seconds) =
            begun.map(|begun| now.since(begun).as_secs_f64()).filter(|seconds| *seconds > 0.0)
        else {
            return HashMap::new();
        };
        let kept = (-seconds / SMOOTHED.as_secs_f64()).exp();
        rates.by_file.values_mut().for_each(|rate| *rate *= kept);
        let seen = came.min(RING as u64);
        // Each that is left stands for so many; and the mean of the interval weighs as much as its length.
        let weight = (came as f64 / seen.max(1) as f64) * (1.0 - kept) / seconds;
        for step in 0..seen {
            let entry = self.ring[(count - 1 - step) as usize % RING].load(Ordering::Relaxed);
            let bytes = ((entry & u64::from(u32::MAX)) << 10) as f64;
            *rates.by_file.entry(FileId((entry >> 32) as u32)).or_default() += bytes * weight;
        }
        rates.by_file.retain(|_, rate| *rate >= FORGOTTEN);
        rates.by_file.clone()
    }
}

/// Requests that are remembered (128 KiB).
const RING: usize = 1 << 14;
/// Over which demand is smoothed.
const SMOOTHED: Duration = Duration::from_secs(60);
/// Bytes per second below which nobody cares.
const FORGOTTEN: f64 = 1_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Moment {
        Moment::from_secs_f64(seconds)
    }

    #[test]
    fn a_steady_demand_is_its_rate_whether_all_is_remembered_or_not() {
        for per_second in [10u64, 100_000] {
            let demand = Demand::default();
            assert!(demand.rates(at(0.0)).is_empty());
            let mut rates = HashMap::new();
            for second in 1..=300 {
                for number in 0..per_second {
                    demand.note(FileId(u32::from(number % 2 == 0)), 1 << 20);
                }
                rates = demand.rates(at(f64::from(second)));
            }
            let expected = (per_second / 2) as f64 * f64::from(1 << 20);
            for file in [0, 1] {
                let rate = rates[&FileId(file)];
                assert!((rate / expected - 1.0).abs() < 0.02, "{rate} {expected}");
            }
        }
    }

    #[test]
    fn a_crowd_that_ebbs_is_forgotten() {
        let demand = Demand::default();
        demand.rates(at(0.0));
        demand.note(FileId(7), 4 << 30);
        let first = demand.rates(at(1.0))[&FileId(7)];
        assert!(first > 1e7);
        assert!(demand.rates(at(61.0))[&FileId(7)] < first * 0.4);
        assert!(demand.rates(at(2_000.0)).is_empty());
    }
}
