//! Time as the policies see it: a number handed in by whoever holds a clock. Never reads one.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on the caller's monotonic axis, in nanoseconds since an origin the caller chose.
///
/// The daemons take the origin at process start, the simulator at the start of the run. Two moments
/// are comparable only when they come from the same origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// The origin of the axis.
    pub const ZERO: Moment = Moment(0);

    /// The moment `seconds` after the origin; negative and non-finite values become the origin.
    pub fn from_secs_f64(seconds: f64) -> Moment {
        // A float-to-int cast saturates and takes NaN to 0, which is what is wanted here.
        Moment((seconds * 1e9) as u64)
    }

    /// Seconds since the origin.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// How long after `earlier` this is; zero when it is before it.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// `duration` before this moment, or the origin when that would be before it.
    pub fn before(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_sub(nanos(duration)))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Moment) -> Duration {
        self.since(earlier)
    }
}

/// Nanoseconds of a duration, saturated at 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_saturate_instead_of_wrapping() {
        let early = Moment(5);
        let late = early + Duration::from_secs(2);
        assert_eq!(late - early, Duration::from_secs(2));
        assert_eq!(early - late, Duration::ZERO);
        assert_eq!(early.before(Duration::from_secs(1)), Moment::ZERO);
        assert_eq!(Moment(u64::MAX) + Duration::from_secs(1), Moment(u64::MAX));
    }

    #[test]
    fn seconds_that_make_no_sense_become_the_origin() {
        assert_eq!(Moment::from_secs_f64(-3.0), Moment::ZERO);
        assert_eq!(Moment::from_secs_f64(f64::NAN), Moment::ZERO);
        assert_eq!(Moment::from_secs_f64(1.5), Moment(1_500_000_000));
    }
}
