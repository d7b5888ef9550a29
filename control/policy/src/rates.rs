//! Rates from counters: smoothed, peak, and what a node can really do. No clock, no counters of its own.

use std::time::Duration;

use freshet_api::BytesPerSec;
use serde::{Deserialize, Serialize};

use crate::moment::Moment;

/// Turns readings of a growing counter into a rate, smoothed exponentially over irregular intervals.
#[derive(Clone, Debug)]
pub struct CounterRate {
    time_constant: Duration,
    last: Option<(Moment, u64)>,
    smoothed: Option<f64>,
    latest: Option<f64>,
}

impl CounterRate {
    /// A rate in which a reading's weight falls to 1/e after `time_constant` (at least 1 ms).
    pub fn new(time_constant: Duration) -> CounterRate {
        let time_constant = time_constant.max(Duration::from_millis(1));
        CounterRate { time_constant, last: None, smoothed: None, latest: None }
    }

    /// Takes in a reading. A counter that fell was reset: the reading only starts a new count.
    pub fn read(&mut self, counter: u64, now: Moment) {
        let Some((then, before)) = self.last else {
            self.last = Some((now, counter));
            return;
        };
        let seconds = now.since(then).as_secs_f64();
        if counter < before {
            self.last = Some((now, counter));
            return;
        }
        if seconds <= 0.0 {
            return;
        }
        let rate = (counter - before) as f64 / seconds;
        let weight = -(-seconds / self.time_constant.as_secs_f64()).exp_m1();
        self.smoothed = Some(self.smoothed.map_or(rate, |old| old + (rate - old) * weight));
        self.latest = Some(rate);
        self.last = Some((now, counter));
    }

    /// The smoothed rate; 0 before the second reading.
    pub fn smoothed(&self) -> BytesPerSec {
        BytesPerSec(self.smoothed.unwrap_or(0.0) as u64)
    }

    /// The rate between the last two readings; 0 before the second.
    pub fn latest(&self) -> BytesPerSec {
        BytesPerSec(self.latest.unwrap_or(0.0) as u64)
    }
}

/// The largest value of the last while, exactly at the start of a window and otherwise within a
/// quarter of it, in constant memory (Kathleen Nichols' filter, as in Linux `lib/win_minmax.c`).
#[derive(Clone, Debug)]
pub struct WindowedMax {
    window: Duration,
    best: [(Moment, u64); 3],
    empty: bool,
}

impl WindowedMax {
    /// A filter over `window`.
    pub fn new(window: Duration) -> WindowedMax {
        WindowedMax { window, best: [(Moment::ZERO, 0); 3], empty: true }
    }

    /// Takes in `value` and returns the largest of the window.
    pub fn add(&mut self, value: u64, now: Moment) -> u64 {
        let sample = (now, value);
        if self.empty || value >= self.best[0].1 || now.since(self.best[2].0) > self.window {
            self.empty = false;
            self.best = [sample; 3];
            return value;
        }
        if value >= self.best[1].1 {
            self.best[1] = sample;
            self.best[2] = sample;
        } else if value >= self.best[2].1 {
            self.best[2] = sample;
        }
        let age = now.since(self.best[0].0);
        if age > self.window {
            self.best = [self.best[1], self.best[2], sample];
            if now.since(self.best[0].0) > self.window {
                self.best = [self.best[1], self.best[2], sample];
            }
        } else if self.best[1].0 == self.best[0].0 && age > self.window / 4 {
            self.best[1] = sample;
            self.best[2] = sample;
        } else if self.best[2].0 == self.best[1].0 && age > self.window / 2 {
            self.best[2] = sample;
        }
        self.best[0].1
    }

    /// The largest value as of the last addition; 0 when there was none.
    pub fn max(&self) -> u64 {
        if self.empty { 0 } else { self.best[0].1 }
    }
}

/// What an interface can send, from what is claimed and what is seen.
///
/// The owner's figure is believed, but never beyond the link's speed; without one, the link's speed;
/// without either, the largest rate ever seen. A node that stays below its claim while it has more
/// work than it can do is taken at what it does: that is how one that lies, or whose path has become
/// narrow, is found out.
#[derive(Clone, Debug)]
pub struct CapacityEstimate {
    configured: Option<BytesPerSec>,
    link: Option<BytesPerSec>,
    seen: WindowedMax,
    saturated: WindowedMax,
    saturated_since: Option<Moment>,
    saturated_heard: Option<Moment>,
}

impl CapacityEstimate {
    /// An estimate from the owner's figure and the link's speed, each if known.
    pub fn new(configured: Option<BytesPerSec>, link: Option<BytesPerSec>) -> CapacityEstimate {
        CapacityEstimate {
            configured: configured.filter(|rate| rate.0 > 0),
            link: link.filter(|rate| rate.0 > 0),
            seen: WindowedMax::new(SEEN_WINDOW),
            saturated: WindowedMax::new(SATURATED_WINDOW),
            saturated_since: None,
            saturated_heard: None,
        }
    }

    /// Takes in the rate of the last interval, and whether there was more to send than went out.
    pub fn observe(&mut self, rate: BytesPerSec, backlogged: bool, now: Moment) {
        self.seen.add(rate.0, now);
        if backlogged {
            let since = *self.saturated_since.get_or_insert(now);
            if now.since(since) >= SATURATED_PROOF {
                self.saturated.add(rate.0, now);
                self.saturated_heard = Some(now);
            }
        } else {
            self.saturated_since = None;
        }
    }

    /// The estimate, and where it comes from.
    pub fn capacity(&self, now: Moment) -> Capacity {
        let claimed = match (self.configured, self.link) {
            (Some(configured), Some(link)) if link < configured => {
                Some(Capacity { rate: link, source: CapacitySource::Link })
            }
            (Some(rate), _) => Some(Capacity { rate, source: CapacitySource::Configured }),
            (None, Some(rate)) => Some(Capacity { rate, source: CapacitySource::Link }),
            (None, None) => None,
        };
        // Proof by saturation holds for a while after the backlog is gone, then the claim is tried again.
        let proven = self
            .saturated_heard
            .filter(|&heard| now.since(heard) < SATURATED_WINDOW)
            .map(|_| BytesPerSec(self.saturated.max()));
        match (claimed, proven) {
            (Some(claimed), Some(proven)) if (proven.0 as f64) < claimed.rate.0 as f64 * BELIEVED => {
                Capacity { rate: proven, source: CapacitySource::Saturated }
            }
            (Some(claimed), _) => claimed,
            (None, _) => Capacity { rate: BytesPerSec(self.seen.max()), source: CapacitySource::Observed },
        }
    }
}

/// How much, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// The rate.
    pub rate: BytesPerSec,
    /// Where it comes from.
    pub source: CapacitySource,
}

/// Where a capacity comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapacitySource {
    /// The owner said so.
    Configured,
    /// The driver's link speed.
    Link,
    /// The largest rate seen.
    Observed,
    /// What it does while it has more to do than it can: less than was claimed.
    Saturated,
}

const SEEN_WINDOW: Duration = Duration::from_secs(24 * 3600);
const SATURATED_WINDOW: Duration = Duration::from_secs(60);
/// A backlog must last this long before it proves anything: the first seconds are TCP's.
const SATURATED_PROOF: Duration = Duration::from_secs(3);
/// A rate of at least this part of the claim is the claim kept.
const BELIEVED: f64 = 0.9;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: f64) -> Moment {
        Moment::from_secs_f64(seconds)
    }

    #[test]
    fn a_steady_counter_gives_its_rate_at_once() {
        let mut rate = CounterRate::new(Duration::from_secs(5));
        assert_eq!(rate.smoothed(), BytesPerSec(0));
        rate.read(1000, at(1.0));
        assert_eq!(rate.smoothed(), BytesPerSec(0), "one reading is no rate");
        rate.read(3000, at(2.0));
        assert_eq!(rate.smoothed(), BytesPerSec(2000));
    }

    #[test]
    fn smoothing_does_not_depend_on_how_often_it_is_read() {
        let read_every = |step: f64| {
            let mut rate = CounterRate::new(Duration::from_secs(5));
            rate.read(0, at(0.0));
            rate.read(10_000, at(10.0));
            let mut time = 10.0;
            while time < 20.0 - 1e-9 {
                time += step;
                rate.read(10_000 + ((time - 10.0) * 5000.0).round() as u64, at(time));
            }
            rate.smoothed().0
        };
        // 1000 + 4000 (1 - e^-2)
        assert!(read_every(0.1).abs_diff(4458) <= 3, "{}", read_every(0.1));
        assert!(read_every(2.5).abs_diff(4458) <= 3, "{}", read_every(2.5));
    }

    #[test]
    fn a_reset_counter_makes_no_spike_and_no_negative_rate() {
        let mut rate = CounterRate::new(Duration::from_secs(1));
        rate.read(1 << 40, at(0.0));
        rate.read((1 << 40) + 500, at(1.0));
        rate.read(7, at(2.0));
        assert_eq!(rate.latest(), BytesPerSec(500));
        rate.read(507, at(3.0));
        assert_eq!(rate.latest(), BytesPerSec(500));
        rate.read(900, at(3.0));
        assert_eq!(rate.latest(), BytesPerSec(500), "no time passed, no rate");
    }

    #[test]
    fn the_link_bounds_what_the_owner_claims() {
        let gbit = BytesPerSec(125_000_000);
        let ten = BytesPerSec(1_250_000);
        let of = |configured, link| CapacityEstimate::new(configured, link).capacity(at(1.0));
        assert_eq!(of(Some(gbit), Some(ten)), Capacity { rate: ten, source: CapacitySource::Link });
        assert_eq!(of(Some(ten), Some(gbit)), Capacity { rate: ten, source: CapacitySource::Configured });
        assert_eq!(of(None, Some(gbit)), Capacity { rate: gbit, source: CapacitySource::Link });
        let none = Capacity { rate: BytesPerSec(0), source: CapacitySource::Observed };
        assert_eq!(of(None, None), none);
        assert_eq!(of(Some(BytesPerSec(0)), None), none);
    }

    #[test]
    fn a_node_that_lies_is_taken_at_what_it_does() {
        let mut node = CapacityEstimate::new(Some(BytesPerSec(100_000_000)), None);
        for second in 0..3 {
            node.observe(BytesPerSec(4_000_000), true, at(f64::from(second)));
            assert_eq!(node.capacity(at(f64::from(second))).source, CapacitySource::Configured);
        }
        for second in 3..10 {
            node.observe(BytesPerSec(4_000_000 + second), true, at(second as f64));
        }
        let found = Capacity { rate: BytesPerSec(4_000_009), source: CapacitySource::Saturated };
        assert_eq!(node.capacity(at(10.0)), found);
        assert_eq!(node.capacity(at(100.0)).source, CapacitySource::Configured, "tried again later");
    }

    #[test]
    fn an_idle_node_is_not_taken_for_a_slow_one() {
        let mut node = CapacityEstimate::new(Some(BytesPerSec(100_000_000)), None);
        for second in 0..100 {
            node.observe(BytesPerSec(10), false, at(f64::from(second)));
        }
        assert_eq!(node.capacity(at(100.0)).source, CapacitySource::Configured);
    }

    proptest! {
        /// Never below the latest value, never above the true maximum of the window, and never older.
        #[test]
        fn windowed_max_is_within_the_window(values in proptest::collection::vec((0u64..1000, 1u64..2000), 1..300)) {
            let window = Duration::from_secs(10);
            let mut filter = WindowedMax::new(window);
            let mut now = Moment::ZERO;
            let mut history: Vec<(Moment, u64)> = Vec::new();
            for (value, pause_ms) in values {
                now += Duration::from_millis(pause_ms);
                history.push((now, value));
                let max = filter.add(value, now);
                let truth = history.iter().filter(|(at, _)| now.since(*at) <= window).map(|h| h.1).max().unwrap();
                prop_assert!(max >= value && max <= truth, "{value} <= {max} <= {truth}");
            }
        }
    }
}
