//! How often one file was asked for, by days. No clock and no I/O: the day is told.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The sum, and the last days of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Days {
    pub(super) total: u64,
    /// Days since the epoch (UTC) on which it was asked for, oldest first; at most [`DAYS_KEPT`].
    days: VecDeque<(u32, u64)>,
}

impl Days {
    /// It was asked for so often on a day, which is never before the last one that was told.
    pub(super) fn add(&mut self, day: u32, times: u64) {
        self.total = self.total.saturating_add(times);
        match self.days.back_mut() {
            // A clock that was set back goes on with the day that it had.
            Some((last, sum)) if *last >= day => *sum = sum.saturating_add(times),
            _ => self.days.push_back((day, times)),
        }
        let oldest = self.days.back().map_or(0, |(last, _)| last.saturating_sub(DAYS_KEPT - 1));
        while self.days.front().is_some_and(|(first, _)| *first < oldest) {
            self.days.pop_front();
        }
    }

    /// In the last so many days, `today` among them.
    pub(super) fn within(&self, today: u32, days: u32) -> u64 {
        let first = today.saturating_sub(days.saturating_sub(1));
        self.days.iter().filter(|(day, _)| *day >= first).map(|(_, times)| times).sum()
    }
}

/// Days that are kept one by one.
pub(super) const DAYS_KEPT: u32 = 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_kept_for_a_month_and_the_sum_for_good() {
        let mut days = Days::default();
        (100..200).for_each(|day| days.add(day, 2));
        assert_eq!((days.total, days.within(199, 1), days.within(199, 7)), (200, 2, 14));
        assert_eq!((days.within(199, 30), days.days.len()), (60, 31));
        assert_eq!((days.within(250, 30), days.within(205, 7)), (0, 2));
    }

    #[test]
    fn a_clock_that_is_set_back_loses_nothing() {
        let mut days = Days::default();
        days.add(100, 1);
        days.add(90, 5);
        assert_eq!((days.total, days.within(100, 1)), (6, 6));
    }
}
