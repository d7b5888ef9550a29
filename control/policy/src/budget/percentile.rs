//! The 95th percentile that some owners pay by: 5 % of the month's five-minute samples are free.
//!
//! The provider sorts the samples and charges by the one at 95 %. So a rate above the commitment costs
//! nothing as long as fewer than 5 % of the samples exceed it; those are kept for crowds.

use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};
use serde::{Deserialize, Serialize};

use crate::moment::Moment;

/// What the owner pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentile95Terms {
    /// The rate that is paid for anyway, the owner's own traffic included.
    pub commitment: BytesPerSec,
    /// The rate that may be used in a free sample.
    pub burst: BytesPerSec,
}

/// The account of samples of a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentile95 {
    /// Samples of this period above the commitment.
    exceeded: u32,
    sample_bytes: u64,
    sample_spent: Duration,
    #[serde(skip)]
    last: Option<Moment>,
}

impl Percentile95 {
    /// Samples that may still exceed the commitment in this period.
    pub fn free_samples(&self) -> u32 {
        SAMPLES_FREE.saturating_sub(self.exceeded)
    }

    /// Starts a new period.
    pub fn reset(&mut self) {
        self.exceeded = 0;
    }

    /// Books what was sent since the last call, beside the owner's `owner`, and says how much may go
    /// out now without raising the bill.
    pub fn account(
        &mut self,
        terms: &Percentile95Terms,
        sent: Bytes,
        owner: BytesPerSec,
        now: Moment,
    ) -> BytesPerSec {
        let passed = self.last.map_or(Duration::ZERO, |last| now.since(last));
        self.last = Some(now);
        let owners = (owner.0 as f64 * passed.as_secs_f64()) as u64;
        self.sample_bytes = self.sample_bytes.saturating_add(sent.0).saturating_add(owners);
        self.sample_spent += passed;
        while self.sample_spent >= SAMPLE {
            let allowed = terms.commitment.0 as f64 * SAMPLE.as_secs_f64();
            let part = SAMPLE.as_secs_f64() / self.sample_spent.as_secs_f64();
            let bytes = (self.sample_bytes as f64 * part) as u64;
            if bytes as f64 > allowed {
                self.exceeded = self.exceeded.saturating_add(1);
            }
            self.sample_bytes -= bytes;
            self.sample_spent -= SAMPLE;
        }
        let rate = if self.free_samples() > 0 { terms.burst } else { terms.commitment };
        BytesPerSec(rate.0.saturating_sub(owner.0))
    }
}

const SAMPLE: Duration = Duration::from_secs(300);
/// 5 % of the 8064 samples of the shortest month, less a few for the edges.
const SAMPLES_FREE: u32 = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_samples_are_used_and_then_the_commitment_holds() {
        let terms = Percentile95Terms { commitment: BytesPerSec(1000), burst: BytesPerSec(9000) };
        let mut account = Percentile95::default();
        let mut now = Moment::ZERO;
        let mut above = 0u32;
        let mut rate = account.account(&terms, Bytes(0), BytesPerSec(0), now);
        for _ in 0..8064 {
            above += u32::from(rate.0 > 1000);
            now += SAMPLE;
            rate = account.account(&terms, Bytes(rate.0 * 300), BytesPerSec(0), now);
        }
        assert!(f64::from(above) < 8064.0 * 0.05, "{above}");
        assert_eq!(rate, BytesPerSec(1000));
        account.reset();
        assert_eq!(account.account(&terms, Bytes(0), BytesPerSec(400), now), BytesPerSec(8600));
    }

    #[test]
    fn staying_within_the_commitment_uses_up_nothing() {
        let terms = Percentile95Terms { commitment: BytesPerSec(1000), burst: BytesPerSec(9000) };
        let mut account = Percentile95::default();
        let before = account.free_samples();
        for minute in 0..1000 {
            let now = Moment::from_secs_f64(f64::from(minute) * 60.0);
            account.account(&terms, Bytes(50_000), BytesPerSec(0), now);
        }
        assert_eq!(account.free_samples(), before);
    }
}
