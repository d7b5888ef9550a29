//! What the origin's uplink gives to the swarm: what the operator says, or what is seen.

use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};

use crate::moment::Moment;
use crate::rates::CounterRate;
use crate::reservation::payload_of_wire;

/// An estimate of the rate at which the origin can send pieces.
///
/// Configured, it is that rate less what headers take. Otherwise it follows what is sent while volunteers hold as many
/// leases as they are let: up by a tenth beyond the measured rate each time, down to it as soon as it is lower.
#[derive(Debug)]
pub struct OriginRate {
    configured: Option<BytesPerSec>,
    sent: CounterRate,
    estimate: f64,
    read: Option<Moment>,
}

impl OriginRate {
    /// With the operator's limit, if there is one.
    pub fn new(configured: Option<BytesPerSec>) -> OriginRate {
        let estimate = configured.map_or(ASSUMED, |rate| payload_of_wire(Bytes(rate.0)).0 as f64);
        OriginRate { configured, sent: CounterRate::new(SMOOTHED_OVER), estimate, read: None }
    }

    /// Takes in what was sent in all (bytes of bodies), and whether there was more to send than could be.
    pub fn read(&mut self, sent: u64, saturated: bool, now: Moment) {
        if self.read.is_some_and(|read| now.since(read) < READ_EVERY) {
            return;
        }
        self.read = Some(now);
        self.sent.read(sent, now);
        if self.configured.is_none() && saturated {
            let seen = self.sent.smoothed().0 as f64;
            self.estimate = (self.estimate + STEP * (seen * GROWTH - self.estimate)).clamp(LEAST, MOST);
        }
    }

    /// The rate to reckon with.
    pub fn rate(&self) -> BytesPerSec {
        BytesPerSec(self.estimate as u64)
    }

    /// What was sent lately.
    pub fn measured(&self) -> BytesPerSec {
        self.sent.smoothed()
    }
}

/// Before anything was measured: 100 Mbit/s.
const ASSUMED: f64 = 12_500_000.0;
const GROWTH: f64 = 1.1;
/// How much of the way to what was seen the estimate goes at a time.
const STEP: f64 = 0.3;
const LEAST: f64 = 16_000.0;
const MOST: f64 = 12.5e9;
const READ_EVERY: Duration = Duration::from_millis(500);
const SMOOTHED_OVER: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(rate: &mut OriginRate, per_sec: u64, saturated: bool, from: u64, secs: u64) -> u64 {
        let mut sent = from;
        for second in 0..secs {
            sent += per_sec;
            rate.read(sent, saturated, Moment::from_secs_f64((from / per_sec.max(1) + second) as f64 + 1.0));
        }
        sent
    }

    #[test]
    fn the_operators_word_counts_less_the_headers() {
        let mut rate = OriginRate::new(Some(BytesPerSec(1_514_000)));
        follow(&mut rate, 10_000_000, true, 0, 60);
        assert_eq!(rate.rate(), BytesPerSec(1_448_000));
    }

    #[test]
    fn without_it_the_estimate_follows_what_is_seen_under_load() {
        for per_sec in [200_000, 60_000_000] {
            let mut rate = OriginRate::new(None);
            follow(&mut rate, per_sec, true, 0, 60);
            let ratio = rate.rate().0 as f64 / per_sec as f64;
            assert!((1.0..1.2).contains(&ratio), "{per_sec}: {ratio}");
        }
    }

    #[test]
    fn an_idle_origin_teaches_nothing() {
        let mut rate = OriginRate::new(None);
        let before = rate.rate();
        follow(&mut rate, 1_000, false, 0, 60);
        assert_eq!(rate.rate(), before);
    }
}
