//! The time of one ring: coarse milliseconds for deadlines, and the `Date` that is written once a second.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::http::response::Date;

/// Coarse time (a few milliseconds), cheap enough for every request.
#[derive(Debug)]
pub(crate) struct Clock {
    second: Cell<i64>,
    date: Cell<Date>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { second: Cell::new(i64::MIN), date: Cell::new([b' '; 29]) }
    }

    /// Milliseconds of the monotonic clock.
    pub(crate) fn millis(&self) -> u64 {
        let now = clock_gettime(ClockId::MonotonicCoarse);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        seconds * 1_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
    }

    /// The wall clock.
    pub(crate) fn wall(&self) -> SystemTime {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        UNIX_EPOCH
            + Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    /// The second that [`date`](Self::date) stands for; the same number means the same date.
    pub(crate) fn second(&self) -> i64 {
        let now = clock_gettime(ClockId::RealtimeCoarse).tv_sec;
        if now != self.second.get() {
            let since = Duration::from_secs(u64::try_from(now).unwrap_or(0));
            let text = httpdate::fmt_http_date(UNIX_EPOCH + since);
            if let Ok(date) = text.as_bytes().try_into() {
                self.date.set(date);
            }
            self.second.set(now);
        }
        now
    }

    /// The `Date` of now.
    pub(crate) fn date(&self) -> Date {
        self.second();
        self.date.get()
    }
}
