//! How much of the time a volunteer is there, estimated from when it came and went.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::moment::Moment;

/// One volunteer's history, fading: last month counts less than last week.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Availability {
    present: f64,
    observed: f64,
    sessions: f64,
    here: bool,
    #[serde(skip)]
    at: Option<Moment>,
}

impl Availability {
    /// The volunteer is here, or not, from `now` on. Repeating what is known only moves time on.
    pub fn seen(&mut self, here: bool, now: Moment) {
        self.pass(now);
        if here && !self.here {
            self.sessions += 1.0;
        }
        self.here = here;
    }

    /// The fraction of the time it is there (0 ..= 1); what is not known counts as a coin toss of
    /// [`PRIOR`].
    pub fn fraction(&self, now: Moment) -> f64 {
        let (present, observed, _) = self.passed(now);
        let prior = PRIOR.as_secs_f64();
        (present + 0.5 * prior) / (observed + prior)
    }

    /// How long it stays on average once it has come.
    pub fn session(&self, now: Moment) -> Duration {
        let (present, _, sessions) = self.passed(now);
        Duration::from_secs_f64(present / sessions.max(1.0))
    }

    fn pass(&mut self, now: Moment) {
        (self.present, self.observed, self.sessions) = self.passed(now);
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
    }

    fn passed(&self, now: Moment) -> (f64, f64, f64) {
        let Some(at) = self.at else { return (self.present, self.observed, self.sessions) };
        let seconds = now.since(at).as_secs_f64();
        let fade = FADE.as_secs_f64();
        let kept = (-seconds / fade).exp();
        // The stretch just passed fades too while it passes.
        let weight = fade * (1.0 - kept);
        let present = self.present * kept + if self.here { weight } else { 0.0 };
        (present, self.observed * kept + weight, self.sessions * kept)
    }
}

/// History weighs 1/e after ten days.
const FADE: Duration = Duration::from_secs(10 * 86_400);
/// The weight of knowing nothing.
const PRIOR: Duration = Duration::from_secs(12 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: f64) -> Moment {
        Moment::from_secs_f64(hours * 3600.0)
    }

    #[test]
    fn always_there_and_there_by_day() {
        let mut steady = Availability::default();
        steady.seen(true, at(0.0));
        assert!((steady.fraction(at(0.0)) - 0.5).abs() < 1e-9);
        assert!(steady.fraction(at(24.0 * 20.0)) > 0.96);
        assert!(steady.session(at(24.0 * 20.0)) > Duration::from_secs(7 * 86_400));
        let mut daily = Availability::default();
        for day in 0..30 {
            daily.seen(true, at(f64::from(day) * 24.0 + 8.0));
            daily.seen(false, at(f64::from(day) * 24.0 + 16.0));
        }
        let now = at(30.0 * 24.0);
        assert!((daily.fraction(now) - 1.0 / 3.0).abs() < 0.05, "{}", daily.fraction(now));
        let session = daily.session(now).as_secs_f64() / 3600.0;
        assert!((session - 8.0).abs() < 0.6, "{session}");
    }

    #[test]
    fn repeating_what_is_known_changes_nothing() {
        let (mut once, mut often) = (Availability::default(), Availability::default());
        once.seen(true, at(0.0));
        for hour in 0..=100 {
            often.seen(true, at(f64::from(hour)));
        }
        assert!((once.fraction(at(100.0)) - often.fraction(at(100.0))).abs() < 1e-9);
        assert!(once.session(at(100.0)).abs_diff(often.session(at(100.0))) < Duration::from_secs(3600 * 40));
    }
}
