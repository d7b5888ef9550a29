//! What a run is judged by.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Collected while a run goes on.
#[derive(Debug)]
pub(super) struct Metrics {
    /// Completion time over the time at the customer's own rate, in thousandths.
    slowdown: Histogram<u64>,
    /// Completion times, milliseconds.
    wait: Histogram<u64>,
    /// Sync times, milliseconds.
    sync: Histogram<u64>,
    pub(super) requests: u64,
    pub(super) completed: u64,
    pub(super) turned_away: u64,
    pub(super) sent_back: u64,
    pub(super) broken: u64,
    pub(super) given_up: u64,
    pub(super) served_by_origin: u64,
    delivery_lateness: f64,
    sync_lateness: f64,
    syncs: u64,
    unfinished: u64,
    unsynced: u64,
    /// The most that was outstanding on a node, over its admission limit.
    pub(super) limit_excess: f64,
    pub(super) quota_excess: f64,
    pub(super) series: Vec<Sample>,
    /// Completion times of the requests that arrived in each stretch of time, for recovery.
    pub(super) stretches: Vec<Stretch>,
    pub(super) events: u64,
    /// When something went wrong first.
    pub(super) fault_at: Option<f64>,
}

/// A moment of the run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// Seconds.
    pub(crate) at: f64,
    /// Load of each node, 0 to 1 (the first [`SERIES_NODES_MAX`]).
    pub(crate) loads: Vec<f32>,
    /// Bytes per second that the origin sends.
    pub(crate) origin_rate: f64,
    /// Bytes per second delivered by all volunteers.
    pub(crate) delivery_rate: f64,
    /// Bytes per second that they send each other.
    pub(crate) sync_rate: f64,
}

/// Requests that arrived in a stretch of time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Stretch {
    /// How many of them completed.
    pub(crate) completed: u64,
    /// Sum of their slowdowns.
    pub(crate) slowdown: f64,
}

impl Metrics {
    pub(super) fn new() -> Metrics {
        let histogram = || Histogram::new_with_bounds(1, 1 << 42, 3).expect("the bounds are in order");
        Metrics {
            slowdown: histogram(),
            wait: histogram(),
            sync: histogram(),
            requests: 0,
            completed: 0,
            turned_away: 0,
            sent_back: 0,
            broken: 0,
            given_up: 0,
            served_by_origin: 0,
            delivery_lateness: 0.0,
            sync_lateness: 0.0,
            syncs: 0,
            unfinished: 0,
            unsynced: 0,
            limit_excess: 0.0,
            quota_excess: 0.0,
            series: Vec::new(),
            stretches: Vec::new(),
            events: 0,
            fault_at: None,
        }
    }

    /// A customer has the whole file. `alone` is how long it takes at the customer's own rate.
    pub(super) fn complete(&mut self, arrived: f64, waited: f64, alone: f64, target: f64) {
        let slowdown = waited / alone.max(ALONE_MIN);
        self.completed += 1;
        self.slowdown.saturating_record((slowdown * 1000.0) as u64);
        self.wait.saturating_record((waited * 1000.0) as u64);
        self.delivery_lateness += waited / (target + alone);
        let stretch = (arrived / STRETCH_SECONDS) as usize;
        if self.stretches.len() <= stretch {
            self.stretches.resize(stretch + 1, Stretch::default());
        }
        self.stretches[stretch].completed += 1;
        self.stretches[stretch].slowdown += slowdown;
    }

    /// A customer still waits at the end.
    pub(super) fn unfinished(&mut self, waited: f64, alone: f64, target: f64) {
        self.unfinished += 1;
        self.delivery_lateness += waited / (target + alone);
    }

    /// A mirror is still not current at the end.
    pub(super) fn unsynced(&mut self, took: f64, target: f64) {
        self.unsynced += 1;
        self.sync_lateness += took / target;
    }

    /// A mirror is current.
    pub(super) fn synced(&mut self, took: f64, target: f64) {
        self.syncs += 1;
        self.sync.saturating_record((took * 1000.0) as u64);
        self.sync_lateness += took / target;
    }

    /// The figures of a finished run; `utilisation` is by node.
    pub(super) fn finish(self, utilisation: &[f64], bytes: Traffic) -> Outcome {
        let mean = utilisation.iter().sum::<f64>() / utilisation.len().max(1) as f64;
        let variance = utilisation.iter().map(|u| (u - mean).powi(2)).sum::<f64>();
        let deviation = (variance / utilisation.len().max(1) as f64).sqrt();
        let at =
            |histogram: &Histogram<u64>, quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        let delivery_lateness = self.delivery_lateness / (self.completed + self.unfinished).max(1) as f64;
        let sync_lateness = self.sync_lateness / (self.syncs + self.unsynced).max(1) as f64;
        Outcome {
            recovery_seconds: self.fault_at.map_or(0.0, |at| recovery(&self.stretches, at)),
            requests: self.requests,
            completed: self.completed,
            slowdown_mean: self.slowdown.mean() / 1000.0,
            slowdown_p50: at(&self.slowdown, 0.5),
            slowdown_p99: at(&self.slowdown, 0.99),
            wait_mean: self.wait.mean() / 1000.0,
            wait_p50: at(&self.wait, 0.5),
            wait_p99: at(&self.wait, 0.99),
            wait_cdf: cdf(&self.wait),
            syncs: self.syncs,
            sync_mean: if self.syncs == 0 { 0.0 } else { self.sync.mean() / 1000.0 },
            sync_min: if self.syncs == 0 { 0.0 } else { self.sync.min() as f64 / 1000.0 },
            sync_max: self.sync.max() as f64 / 1000.0,
            delivery_lateness,
            sync_lateness,
            total_lateness: delivery_lateness + sync_lateness,
            utilisation_mean: mean,
            utilisation_cv: if mean > 0.0 { deviation / mean } else { 0.0 },
            limit_excess: self.limit_excess,
            quota_excess: self.quota_excess,
            turned_away: self.turned_away,
            sent_back: self.sent_back,
            broken: self.broken,
            given_up: self.given_up,
            served_by_origin: self.served_by_origin,
            origin_bytes: bytes.origin,
            delivered_bytes: bytes.delivered,
            synced_bytes: bytes.synced,
            events: self.events,
            series: self.series,
            stretches: self.stretches,
        }
    }
}

/// Bytes sent in all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    pub(super) origin: f64,
    pub(super) delivered: f64,
    pub(super) synced: f64,
}

/// The figures of a run. Times in seconds, amounts in bytes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    /// From the first fault until customers who come are as fast as in the end; 0 without one.
    pub(crate) recovery_seconds: f64,
    pub(crate) requests: u64,
    pub(crate) completed: u64,
    pub(crate) slowdown_mean: f64,
    pub(crate) slowdown_p50: f64,
    pub(crate) slowdown_p99: f64,
    pub(crate) wait_mean: f64,
    pub(crate) wait_p50: f64,
    pub(crate) wait_p99: f64,
    pub(crate) wait_cdf: Vec<(f64, f64)>,
    pub(crate) syncs: u64,
    pub(crate) sync_mean: f64,
    pub(crate) sync_min: f64,
    pub(crate) sync_max: f64,
    /// Mean of waiting time over (target + time at the customer's own rate).
    pub(crate) delivery_lateness: f64,
    /// Mean of sync time over target.
    pub(crate) sync_lateness: f64,
    /// Their sum.
    pub(crate) total_lateness: f64,
    pub(crate) utilisation_mean: f64,
    pub(crate) utilisation_cv: f64,
    /// The most that was outstanding on a node over its admission limit (1 = at the limit).
    pub(crate) limit_excess: f64,
    pub(crate) quota_excess: f64,
    pub(crate) turned_away: u64,
    pub(crate) sent_back: u64,
    pub(crate) broken: u64,
    pub(crate) given_up: u64,
    pub(crate) served_by_origin: u64,
    pub(crate) origin_bytes: f64,
    pub(crate) delivered_bytes: f64,
    pub(crate) synced_bytes: f64,
    pub(crate) events: u64,
    pub(crate) series: Vec<Sample>,
    pub(crate) stretches: Vec<Stretch>,
}

/// Seconds from a fault at `at` to the end of the first stretch whose mean slowdown is within [`STEADY`] of what is
/// usual from half way to the run's end on.
fn recovery(stretches: &[Stretch], at: f64) -> f64 {
    let mean = |stretch: &Stretch| stretch.slowdown / stretch.completed.max(1) as f64;
    let first = ((at / STRETCH_SECONDS) as usize).min(stretches.len());
    let after = &stretches[first..];
    let mut later: Vec<f64> = after[after.len() / 2..].iter().map(mean).collect();
    later.sort_by(f64::total_cmp);
    let Some(&steady) = later.get(later.len() / 2) else { return 0.0 };
    let stretches = after.iter().position(|stretch| mean(stretch) <= steady * STEADY).unwrap_or(after.len());
    (first + stretches + 1) as f64 * STRETCH_SECONDS - at
}

/// Points of a cumulative distribution: value in seconds, part of the requests up to it.
fn cdf(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    (0..=200)
        .map(|step| {
            let quantile = f64::from(step) / 200.0;
            (histogram.value_at_quantile(quantile) as f64 / 1000.0, quantile)
        })
        .collect()
}

/// Loads of more nodes than this are not kept.
pub(super) const SERIES_NODES_MAX: usize = 64;
/// Length of a stretch.
pub(crate) const STRETCH_SECONDS: f64 = 5.0;
/// As fast as usual: slower by no more than this.
const STEADY: f64 = 1.25;
/// A response takes at least a round trip: what is smaller is not slower for that.
const ALONE_MIN: f64 = 0.02;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_is_told_by_those_who_come_after_the_fault() {
        let stretch = |slowdown: f64| Stretch { completed: 10, slowdown: slowdown * 10.0 };
        let run = [1.0, 1.0, 9.0, 4.0, 2.2, 2.0, 2.1, 1.9, 2.0, 2.0].map(stretch);
        assert_eq!(recovery(&run, 10.0), 15.0);
        assert_eq!(recovery(&run, 12.0), 13.0);
        assert_eq!(recovery(&[], 3.0), 0.0);
    }
}
