//! What a volunteer could send to peers just now: what its owner gives, less what customers take.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use freshet_api::BytesPerSec;

/// Measures what customers take between two questions.
#[derive(Debug, Default)]
pub struct Spare {
    seen: Mutex<Option<Seen>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Instant,
    delivered: u64,
    rate: u64,
}

impl Spare {
    /// What is left of `offered` when `delivered` bytes have gone to customers by `now`; `None` when no limit is known.
    pub fn of(&self, offered: Option<BytesPerSec>, delivered: u64, now: Instant) -> Option<BytesPerSec> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let last = seen.unwrap_or(Seen { at: now, delivered, rate: 0 });
        let elapsed = now.saturating_duration_since(last.at);
        let current = if elapsed >= APART {
            let rate = delivered.saturating_sub(last.delivered) as f64 / elapsed.as_secs_f64();
            Seen { at: now, delivered, rate: rate as u64 }
        } else {
            last
        };
        *seen = Some(current);
        offered.map(|offered| BytesPerSec(offered.0.saturating_sub(current.rate)))
    }
}

/// Between two measurements at least.
const APART: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_customers_take_is_not_spare() {
        let (spare, start) = (Spare::default(), Instant::now());
        let offered = Some(BytesPerSec(1_000));
        assert_eq!(spare.of(offered, 5_000, start), offered);
        let later = start + Duration::from_secs(2);
        assert_eq!(spare.of(offered, 5_800, later), Some(BytesPerSec(600)));
        assert_eq!(spare.of(offered, 9_999, later + APART / 2), Some(BytesPerSec(600)), "too soon to tell");
        assert_eq!(spare.of(None, 9_999, later), None);
        assert_eq!(spare.of(offered, 1 << 40, later + APART), Some(BytesPerSec(0)));
    }
}
