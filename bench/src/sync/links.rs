//! The links of an experiment, and the shortest time in which they can carry a release to every mirror.

use freshet_api::Bytes;
use freshet_testbed::{Link, Rate};
use serde::Serialize;

/// Rates in Mbit/s, both directions alike.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Links {
    pub(super) origin: u64,
    pub(super) mirrors: Vec<u64>,
    /// Whether they carry single packets, so that the kernel's counters are those of a wire.
    pub(super) single_packets: bool,
}

impl Links {
    /// `count` mirrors whose rates go from `from` to `to` in equal ratios.
    pub(super) fn new(count: usize, origin: u64, from: u64, to: u64) -> Self {
        let ratio = to as f64 / from as f64;
        let steps = (count.max(2) - 1) as f64;
        let rate = |number: usize| (from as f64 * ratio.powf(number as f64 / steps)).round() as u64;
        Self { origin, mirrors: (0..count).map(rate).collect(), single_packets: false }
    }

    pub(super) fn origin_link(&self) -> Link {
        self.link(self.origin)
    }

    pub(super) fn mirror_links(&self) -> impl Iterator<Item = Link> + '_ {
        self.mirrors.iter().map(|&mbit| self.link(mbit))
    }

    fn link(&self, mbit: u64) -> Link {
        let link = Link::new().rate(Rate::mbit(mbit));
        if self.single_packets { link.single_packets() } else { link }
    }

    /// Seconds that `bytes` of payload take at least to be on every mirror.
    pub(super) fn secs_min(&self, bytes: u64) -> f64 {
        let payload = |mbit: u64| mbit as f64 * 1e6 / 8.0 * PAYLOAD_PART;
        let uplinks = self.mirrors.iter().map(|&mbit| payload(mbit)).sum();
        let slowest = self.mirrors.iter().copied().min().map_or(f64::INFINITY, payload);
        let peers = self.mirrors.len();
        freshet_policy::swarm::distribution_secs_min(
            Bytes(bytes),
            peers,
            payload(self.origin),
            uplinks,
            slowest,
        )
    }
}

/// Of a full Ethernet frame as the links count it (1,514 bytes), TCP carries 1,448 with timestamps.
pub(crate) const PAYLOAD_PART: f64 = 1_448.0 / 1_514.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_spread_by_ratio_and_the_bound_counts_headers() {
        assert_eq!(Links::new(3, 50, 10, 1_000).mirrors, [10, 100, 1_000]);
        assert_eq!(Links::new(2, 50, 40, 40).mirrors, [40, 40]);
        assert_eq!(Links::new(1, 50, 40, 40).mirrors, [40]);
        // One mirror: the origin's link is the limit.
        let seconds = Links::new(1, 8, 80, 80).secs_min(1_448_000);
        assert!((seconds - 1.514).abs() < 1e-9, "{seconds}");
    }
}
