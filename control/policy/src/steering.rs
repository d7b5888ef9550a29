//! Sparing a volunteer's budget beforehand rather than failing when it is gone.
//!
//! A volunteer that uses its month faster than the month passes becomes dearer: its finish times are
//! multiplied, so customers go elsewhere while there is an elsewhere. At the pace of the month the
//! price is 1; it never excludes anybody, the end of the quota does that.

use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};

/// What is known of a volunteer's budget at a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetOutlook {
    /// What is left of the period's volume; none for no quota.
    pub left: Option<Bytes>,
    /// The whole period's volume.
    pub volume: Bytes,
    /// How long the period still lasts.
    pub period_left: Duration,
    /// How long it lasts in all.
    pub period: Duration,
    /// How long the present hour's rule still allows donating; none for no end in sight.
    pub open_for: Option<Duration>,
}

impl BudgetOutlook {
    /// The factor for finish times: 1 (plenty) ..= [`PRICE_MAX`].
    pub fn price(&self) -> f32 {
        let Some(left) = self.left else { return 1.0 };
        if left.0 == 0 {
            return PRICE_MAX;
        }
        let left_part = left.0 as f64 / self.volume.0.max(1) as f64;
        let time_part = self.period_left.as_secs_f64() / self.period.as_secs_f64().max(1.0);
        // The last bytes of a period are worth nothing when it ends; a day's worth is never spared.
        let spared = (time_part - RELAXED_PART).max(0.0);
        let shortage = spared / left_part;
        (shortage.max(1.0).powi(STEEPNESS) as f32).min(PRICE_MAX)
    }

    /// The bytes that may be promised now: what is left, and what can still go out at `rate` before
    /// the hours end. Both with a tenth kept back for what is on its way already.
    pub fn promisable(&self, rate: BytesPerSec) -> Bytes {
        let by_volume = self.left.map_or(u64::MAX, |left| left.0 - left.0 / KEPT_BACK);
        let by_hours = self.open_for.map_or(u64::MAX, |open| {
            let bytes = (rate.0 as f64 * open.as_secs_f64()) as u64;
            bytes - bytes / KEPT_BACK
        });
        Bytes(by_volume.min(by_hours))
    }

    /// The rate that would use up what is left exactly at the end of the period.
    pub fn sustainable(&self) -> Option<BytesPerSec> {
        self.left.map(|left| BytesPerSec((left.0 as f64 / self.period_left.as_secs_f64().max(1.0)) as u64))
    }
}

/// A volunteer is avoided at most this much.
pub const PRICE_MAX: f32 = 64.0;
/// A thirtieth of the period may be used up early without any price.
const RELAXED_PART: f64 = 1.0 / 30.0;
/// Twice too fast costs eight times.
const STEEPNESS: i32 = 3;
const KEPT_BACK: u64 = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn outlook(left: u64, days_left: u32) -> BudgetOutlook {
        BudgetOutlook {
            left: Some(Bytes(left)),
            volume: Bytes(30_000),
            period_left: DAY * days_left,
            period: DAY * 30,
            open_for: None,
        }
    }

    #[test]
    fn at_the_pace_of_the_month_the_price_is_one() {
        for day in 0..=30 {
            assert_eq!(outlook(u64::from(day) * 1000, day).price(), if day == 0 { PRICE_MAX } else { 1.0 });
        }
        assert_eq!(BudgetOutlook { left: None, ..outlook(0, 3) }.price(), 1.0);
    }

    #[test]
    fn who_is_ahead_of_the_month_is_spared() {
        let ahead = outlook(10_000, 20).price();
        assert!((6.0..8.0).contains(&ahead), "{ahead}");
        assert_eq!(outlook(100, 26).price(), PRICE_MAX);
        assert_eq!(outlook(100, 1).price(), 1.0, "the last day's rest may go");
    }

    #[test]
    fn promises_end_with_the_hours_and_the_volume() {
        let closing = BudgetOutlook { open_for: Some(Duration::from_secs(10)), ..outlook(30_000, 30) };
        assert_eq!(closing.promisable(BytesPerSec(100)), Bytes(900));
        assert_eq!(closing.promisable(BytesPerSec(1_000_000)), Bytes(27_000));
        let free = BudgetOutlook { left: None, ..outlook(0, 1) };
        assert_eq!(free.promisable(BytesPerSec(1)), Bytes(u64::MAX));
        assert_eq!(outlook(86_400, 1).sustainable(), Some(BytesPerSec(1)));
    }

    proptest! {
        /// Less left, or longer to go, never makes a volunteer cheaper.
        #[test]
        fn the_price_is_monotone(left in 0u64..30_000, less in 0u64..30_000, days in 1u32..30) {
            let price = |left, days| outlook(left, days).price();
            prop_assert!(price(left.saturating_sub(less), days) >= price(left, days));
            prop_assert!(price(left, days + 1) >= price(left, days));
            prop_assert!((1.0..=PRICE_MAX).contains(&price(left, days)));
        }
    }
}
