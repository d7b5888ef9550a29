//! Local time that can be believed, and hours of the week. Reads no clock: readings are passed in.

use std::time::Duration;

use freshet_api::BytesPerSec;
use jiff::SignedDuration;
use jiff::civil::DateTime;

use crate::moment::Moment;

/// What the machine's wall clock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallReading {
    /// Local civil time.
    pub local: DateTime,
    /// Whether the kernel says that the clock is synchronised (NTP).
    pub synchronised: bool,
}

/// Local time as far as it can be believed: it goes on by the monotonic clock, and a wall clock that
/// disagrees must keep disagreeing for a while before it is followed.
///
/// An hour for a clock that is synchronised, 25 hours for one that is not: so a clock that jumps by a
/// day and is put right, or a wrong clock at the end of a month, moves no period.
#[derive(Clone, Debug)]
pub struct TrustedClock {
    believed: Option<DateTime>,
    at: Option<Moment>,
    disagrees_since: Option<(Moment, SignedDuration)>,
}

impl TrustedClock {
    /// Continues after a restart from the last time that was believed.
    pub fn resume(believed: Option<DateTime>) -> TrustedClock {
        TrustedClock { believed, at: None, disagrees_since: None }
    }

    /// Takes in a reading and returns the time to go by.
    pub fn read(&mut self, wall: WallReading, now: Moment) -> DateTime {
        let Some(believed) = self.believed else {
            return self.follow(wall.local, now);
        };
        let Some(at) = self.at else {
            // The first reading after a restart: time has passed that nobody measured. A clock that is
            // vouched for is followed; so is any that moved on less than a usual pause.
            let gap = wall.local.duration_since(believed);
            let ordinary = gap >= -TOLERANCE && gap <= RESTART_PAUSE_MAX;
            if wall.synchronised || ordinary {
                return self.follow(wall.local, now);
            }
            self.at = Some(now);
            self.disagrees_since = Some((now, gap));
            return believed;
        };
        let expected = believed.saturating_add(signed(now.since(at)));
        let gap = wall.local.duration_since(expected);
        if gap.abs() <= TOLERANCE {
            self.disagrees_since = None;
            return self.follow(wall.local, now);
        }
        let since = match self.disagrees_since {
            Some((since, before)) if (gap - before).abs() <= TOLERANCE => since,
            _ => now,
        };
        self.disagrees_since = Some((since, gap));
        let patience = match (wall.synchronised, gap.abs() >= LONG_JUMP) {
            (true, false) => PATIENCE_SYNCHRONISED,
            _ => PATIENCE,
        };
        if now.since(since) >= patience {
            self.disagrees_since = None;
            return self.follow(wall.local, now);
        }
        self.believed = Some(expected);
        self.at = Some(now);
        expected
    }

    fn follow(&mut self, local: DateTime, now: Moment) -> DateTime {
        self.believed = Some(local);
        self.at = Some(now);
        local
    }
}

/// Hours of the week with their own rates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeekHours {
    spans: Vec<WeekSpan>,
}

impl WeekHours {
    /// Spans in order: the first that contains a time holds.
    pub fn new(spans: Vec<WeekSpan>) -> WeekHours {
        WeekHours { spans }
    }

    /// The rate of the first span that contains `local`, or none.
    pub fn rate_at(&self, local: DateTime) -> Option<BytesPerSec> {
        self.spans.iter().find(|span| span.contains(local)).map(|span| span.rate)
    }

    /// How long from `local` until the rate is 0, zero when it is 0 already; none when that is not within `ahead`.
    pub fn open_for(&self, local: DateTime, ahead: Duration) -> Option<Duration> {
        if self.spans.iter().all(|span| span.rate.0 > 0) {
            return None;
        }
        let minute = local.time().with().second(0).subsec_nanosecond(0).build().ok()?;
        let begun = local.date().to_datetime(minute);
        for minutes in 0..=ahead.as_secs().div_ceil(60) {
            let at = begun.saturating_add(SignedDuration::from_mins(i64::try_from(minutes).ok()?));
            if self.rate_at(at) == Some(BytesPerSec(0)) {
                let until = Duration::try_from(at.duration_since(local)).unwrap_or_default();
                return (until <= ahead).then_some(until);
            }
        }
        None
    }
}

/// A stretch of the day on some days of the week, with its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeekSpan {
    days: u8,
    from: u16,
    until: u16,
    rate: BytesPerSec,
}

impl WeekSpan {
    /// From minute `from` of the day until before minute `until` (0 ..= 1440) on `days` (bit 0 is
    /// Monday). `until` before `from` runs past midnight into the next day; equal means the whole day.
    ///
    /// # Errors
    ///
    /// When no day is named, or a minute lies outside the day.
    pub fn new(days: u8, from: u16, until: u16, rate: BytesPerSec) -> Result<WeekSpan, WeekSpanError> {
        if days & 0x7f == 0 || days & 0x80 != 0 {
            return Err(WeekSpanError::Days { days });
        }
        if from >= DAY_MINUTES || until > DAY_MINUTES {
            return Err(WeekSpanError::Minutes { from, until });
        }
        Ok(WeekSpan { days, from, until, rate })
    }

    /// Whether `local` lies within.
    pub fn contains(&self, local: DateTime) -> bool {
        let day = local.weekday().to_monday_zero_offset() as u8;
        let minute = local.hour() as u16 * 60 + local.minute() as u16;
        let on = |day: u8| self.days >> day & 1 == 1;
        if self.from < self.until {
            on(day) && (self.from..self.until).contains(&minute)
        } else if self.from == self.until {
            on(day)
        } else {
            // Past midnight: the tail belongs to the day on which it began.
            (on(day) && minute >= self.from) || (on((day + 6) % 7) && minute < self.until)
        }
    }
}

/// Hours that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeekSpanError {
    /// No day of the week, or an eighth one.
    #[error("expected days of the week as bits 0 (Monday) to 6 (Sunday), at least one, found {days:#b}")]
    Days {
        /// What came.
        days: u8,
    },
    /// A minute outside the day.
    #[error("expected minutes of the day from 0 to 1440, found {from} to {until}")]
    Minutes {
        /// The start that came.
        from: u16,
        /// The end that came.
        until: u16,
    },
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

const DAY_MINUTES: u16 = 24 * 60;
/// Clocks are corrected by steps of seconds every day; a quarter of an hour is no correction.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(15);
/// The change to or from summer time, and somewhat more.
const LONG_JUMP: SignedDuration = SignedDuration::from_mins(150);
const RESTART_PAUSE_MAX: SignedDuration = SignedDuration::from_hours(1);
const PATIENCE_SYNCHRONISED: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(25 * 3600);

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn reading(local: DateTime) -> WallReading {
        WallReading { local, synchronised: false }
    }

    #[test]
    fn spans_past_midnight_belong_to_the_day_they_began() {
        // Friday 22:00 to Saturday 06:00. 2026-01-02 is a Friday.
        let span = WeekSpan::new(1 << 4, 22 * 60, 6 * 60, BytesPerSec(7)).unwrap();
        assert!(span.contains(date(2026, 1, 2).at(23, 0, 0, 0)));
        assert!(span.contains(date(2026, 1, 3).at(5, 59, 0, 0)));
        assert!(!span.contains(date(2026, 1, 3).at(6, 0, 0, 0)));
        assert!(!span.contains(date(2026, 1, 2).at(5, 0, 0, 0)));
        assert!(!span.contains(date(2026, 1, 3).at(23, 0, 0, 0)));
    }

    #[test]
    fn the_first_span_that_fits_holds() {
        let night = WeekSpan::new(0x7f, 0, 360, BytesPerSec(100)).unwrap();
        let always = WeekSpan::new(0x7f, 0, 0, BytesPerSec(10)).unwrap();
        let hours = WeekHours::new(vec![night, always]);
        assert_eq!(hours.rate_at(date(2026, 1, 2).at(5, 0, 0, 0)), Some(BytesPerSec(100)));
        assert_eq!(hours.rate_at(date(2026, 1, 2).at(12, 0, 0, 0)), Some(BytesPerSec(10)));
        assert_eq!(WeekHours::default().rate_at(date(2026, 1, 2).at(12, 0, 0, 0)), None);
    }

    #[test]
    fn closing_hours_are_seen_coming() {
        let office = WeekSpan::new(0x1f, 8 * 60, 18 * 60, BytesPerSec(0)).unwrap();
        let hours = WeekHours::new(vec![office]);
        let hour = Duration::from_secs(3600);
        // 2026-01-02 is a Friday.
        let friday = |h, m, s| date(2026, 1, 2).at(h, m, s, 0);
        assert_eq!(hours.open_for(friday(6, 0, 0), hour), None);
        assert_eq!(hours.open_for(friday(7, 0, 0), hour), Some(hour));
        assert_eq!(hours.open_for(friday(7, 59, 30), hour), Some(Duration::from_secs(30)));
        assert_eq!(hours.open_for(friday(8, 0, 0), hour), Some(Duration::ZERO));
        assert_eq!(hours.open_for(friday(17, 59, 59), hour), Some(Duration::ZERO));
        assert_eq!(hours.open_for(friday(18, 0, 0), hour), None);
        assert_eq!(hours.open_for(date(2026, 1, 3).at(7, 30, 0, 0), hour), None, "not on a Saturday");
        let always = WeekSpan::new(0x7f, 0, 0, BytesPerSec(5)).unwrap();
        assert_eq!(WeekHours::new(vec![always]).open_for(friday(8, 0, 0), hour), None);
    }

    #[test]
    fn hours_that_cannot_be_are_refused() {
        assert!(WeekSpan::new(0, 0, 10, BytesPerSec(1)).is_err());
        assert!(WeekSpan::new(0x80, 0, 10, BytesPerSec(1)).is_err());
        assert!(WeekSpan::new(1, 1440, 10, BytesPerSec(1)).is_err());
        assert!(WeekSpan::new(1, 0, 1441, BytesPerSec(1)).is_err());
    }

    #[test]
    fn a_wall_clock_that_stays_is_followed_in_the_end() {
        let start = date(2026, 1, 2).at(0, 0, 0, 0);
        let mut clock = TrustedClock::resume(None);
        assert_eq!(clock.read(reading(start), Moment::ZERO), start);
        let jumped = start.saturating_add(SignedDuration::from_hours(24));
        for hour in 1..=25 {
            let now = Moment::from_secs_f64(f64::from(hour) * 3600.0);
            let passed = SignedDuration::from_hours(hour.into());
            assert_eq!(clock.read(reading(jumped.saturating_add(passed)), now), start.saturating_add(passed));
        }
        let now = Moment::from_secs_f64(26.0 * 3600.0);
        let passed = SignedDuration::from_hours(26);
        let believed = clock.read(reading(jumped.saturating_add(passed)), now);
        assert_eq!(believed, jumped.saturating_add(passed));
    }

    #[test]
    fn summer_time_is_followed_within_an_hour_by_a_synchronised_clock() {
        let start = date(2026, 3, 29).at(1, 59, 0, 0);
        let mut clock = TrustedClock::resume(None);
        let read = |clock: &mut TrustedClock, minutes: i64, shift: i64| {
            let local = start.saturating_add(SignedDuration::from_mins(minutes + shift));
            let now = Moment::from_secs_f64(minutes as f64 * 60.0);
            (clock.read(WallReading { local, synchronised: true }, now), local)
        };
        read(&mut clock, 0, 0);
        read(&mut clock, 1, 60);
        let (believed, wall) = read(&mut clock, 62, 60);
        assert_eq!(believed, wall);
    }
}
