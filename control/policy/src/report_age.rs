//! How old a report was when it arrived, by the reporter's own clock and ours, which need not agree. Never reads either.
//!
//! What lies between the two clocks is the difference of their origins and the time that a report took. The origins stay
//! where they are, so the least difference of late is that of a report that took next to nothing, and what another has
//! above it is its age (the one-way variant of the filter in NTP, RFC 5905 section 10). The window slides, because
//! quartz does not run evenly: within it, clocks drift apart by less than a report's age matters.

use std::time::Duration;

use crate::moment::Moment;

/// What is known of one reporter's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReportAge {
    boot: Option<u64>,
    written_ms: u64,
    /// When `least` was begun.
    since: Moment,
    /// The least difference in the present half of the window, and in the one before, nanoseconds.
    least: [i128; 2],
}

impl ReportAge {
    /// A report arrives: `written_ms` is the reporter's monotonic clock when it was written, from an origin that stays
    /// for a `boot`. Returns its age, at most [`AGE_MAX`]; zero where nobody can tell.
    pub fn heard(&mut self, boot: u64, written_ms: Option<u64>, now: Moment) -> Duration {
        let Some(written_ms) = written_ms else {
            *self = Self::default();
            return Duration::ZERO;
        };
        let difference = i128::from(now.0) - i128::from(written_ms) * 1_000_000;
        if self.boot != Some(boot) || written_ms < self.written_ms {
            self.begin(difference, now);
        }
        (self.boot, self.written_ms) = (Some(boot), written_ms);
        if now.since(self.since) >= HALF_WINDOW {
            self.least = [difference, self.least[0]];
            self.since = now;
        }
        self.least[0] = self.least[0].min(difference);
        let age = difference - self.least[0].min(self.least[1]);
        match u64::try_from(age).map(Duration::from_nanos) {
            Ok(age) if age <= AGE_MAX => age,
            // Nobody waits so long for an answer: its clock stood still (a host that slept), or it says anything.
            _ => {
                self.begin(difference, now);
                Duration::ZERO
            }
        }
    }

    fn begin(&mut self, difference: i128, now: Moment) {
        (self.least, self.since) = ([difference; 2], now);
    }
}

/// An older report is of another clock.
pub const AGE_MAX: Duration = Duration::from_secs(30);
/// Clocks that differ by 100 millionths drift apart by 60 ms within it.
const HALF_WINDOW: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: f64) -> Moment {
        Moment::from_secs_f64(seconds)
    }

    /// Ages of reports that are written every second and take so long, by a clock that began at `origin` and is fast by
    /// `drift` millionths.
    fn ages(origin: u64, drift: f64, delays: impl IntoIterator<Item = f64>) -> Vec<(f64, f64)> {
        let mut age = ReportAge::default();
        let mut told = Vec::new();
        for (delay, second) in delays.into_iter().zip(1u32..) {
            let written = f64::from(second) * 1_000.0 * (1.0 + drift / 1e6);
            let came = at(1_000.0 + f64::from(second) + delay);
            told.push((delay, age.heard(1, Some(origin + written as u64), came).as_secs_f64()));
        }
        told
    }

    #[test]
    fn what_a_report_took_is_told_whatever_the_clocks_say() {
        let delays = (0..2_000).map(|n| if n % 10 == 0 { 0.01 } else { f64::from(n * 7919 % 100) / 20.0 });
        for (origin, drift) in [(0, 0.0), (1 << 50, 0.0), (77, 100.0), (77, -100.0)] {
            for (delay, age) in ages(origin, drift, delays.clone()).into_iter().skip(1) {
                assert!((age - delay).abs() < 0.09, "{age} s for {delay} s at {drift}");
            }
        }
    }

    #[test]
    fn a_clock_that_begins_anew_or_stands_still_is_another_clock() {
        let mut age = ReportAge::default();
        assert_eq!(age.heard(1, Some(500_000), at(1.0)), Duration::ZERO);
        assert_eq!(age.heard(1, Some(501_000), at(4.0)), Duration::from_secs(2));
        // A restart: its origin is another one.
        assert_eq!(age.heard(2, Some(900_000), at(5.0)), Duration::ZERO);
        // It went back within a boot.
        assert_eq!(age.heard(2, Some(10), at(6.0)), Duration::ZERO);
        assert_eq!(age.heard(2, Some(1_010), at(8.0)), Duration::from_secs(1));
        // A host that slept for an hour: its clock did not go on.
        assert_eq!(age.heard(2, Some(2_010), at(3_608.0)), Duration::ZERO);
        assert_eq!(age.heard(2, Some(3_010), at(3_609.5)), Duration::from_millis(500));
        // One that does not tell.
        assert_eq!(age.heard(2, None, at(3_610.0)), Duration::ZERO);
        assert_eq!(age.heard(2, Some(4_010), at(3_619.0)), Duration::ZERO);
    }

    proptest! {
        /// Whatever somebody says, a report is between fresh and half a minute old.
        #[test]
        fn no_liar_makes_a_report_older_than_the_bound(
            says in proptest::collection::vec((0u64..3, prop::option::of(any::<u64>()), 0u64..1 << 40), 1..60)
        ) {
            let (mut age, mut now) = (ReportAge::default(), Moment::ZERO);
            for (boot, written, pause) in says {
                now += Duration::from_nanos(pause);
                prop_assert!(age.heard(boot, written, now) <= AGE_MAX);
            }
        }
    }
}
