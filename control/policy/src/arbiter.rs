//! How a node's donated uplink is shared between serving customers and keeping mirrors current.
//!
//! An arbiter sees backlogs and rates and names delivery's share; sync gets the rest. What one side
//! leaves unused the other borrows: that is the pacer's doing, so a share is a guarantee, not a cap.

mod delivery_first;
mod equal_lateness;
mod fixed_split;
mod shortest_remaining;
mod sync_first;
mod turns;

use std::fmt;
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};

pub use self::delivery_first::DeliveryFirst;
pub use self::equal_lateness::EqualLateness;
pub use self::fixed_split::FixedSplit;
pub use self::shortest_remaining::ShortestRemaining;
pub use self::sync_first::SyncFirst;
pub use self::turns::{Flow, Turns, Waiting};
use crate::moment::Moment;

/// A law that shares an uplink between delivery and sync. One instance per node.
pub trait Arbiter: Send + fmt::Debug {
    /// Its name, as `ctl balance` and reports print it.
    fn name(&self) -> &'static str;

    /// Delivery's share (0 ..= 1) of the uplink from `now` on.
    fn share(&mut self, work: &Work, targets: &Targets, now: Moment) -> f32;

    /// Whether mirrors have their [`Turns`] under this law, instead of all copying side by side.
    fn takes_turns(&self) -> bool {
        false
    }

    /// Whether small downloads go before large ones at the volunteers under this law (see
    /// [`Weight`](crate::pacing::Weight)), instead of all alike.
    fn puts_small_first(&self) -> bool {
        false
    }
}

/// What a node's uplink has to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// What the node may send in all.
    pub uplink: BytesPerSec,
    /// Bytes promised to customers and not yet delivered.
    pub delivery_backlog: Bytes,
    /// Bytes that mirrors still want from this node: its part of what they lack.
    pub sync_backlog: Bytes,
    /// How long ago the oldest release that is still being synced came out.
    pub sync_age: Duration,
    /// How much more than usual the releases being synced are asked for; 1 is neutral. See [`urgency`].
    pub urgency: f32,
}

/// What the operators want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// How long a customer may wait for a download to be done.
    pub customer_wait: Duration,
    /// How long a mirror may take to have a new release.
    pub sync: Duration,
}

impl Default for Targets {
    fn default() -> Targets {
        Targets { customer_wait: Duration::from_secs(30), sync: Duration::from_secs(30 * 60) }
    }
}

impl Work {
    /// How late customers will be, relative to their target, if delivery gets `share`.
    pub fn delivery_lateness(&self, share: f64, targets: &Targets) -> f64 {
        let rate = (self.uplink.0 as f64 * share).max(1.0);
        self.delivery_backlog.0 as f64 / rate / secs(targets.customer_wait)
    }

    /// How late mirrors will be, relative to their target, if delivery gets `share`.
    pub fn sync_lateness(&self, share: f64, targets: &Targets) -> f64 {
        if self.sync_backlog.0 == 0 {
            return 0.0;
        }
        let rate = (self.uplink.0 as f64 * (1.0 - share)).max(1.0);
        let left = self.sync_backlog.0 as f64 / rate;
        (self.sync_age.as_secs_f64() + left) / secs(targets.sync) * f64::from(self.urgency.max(0.0))
    }
}

/// How urgent it is to copy a release: 1 when nobody asks for it, more the larger the part of the
/// demand that its present holders cannot meet. `demand` and `capacity` are in bytes per second: what
/// customers ask of the release, and what those who hold it can deliver.
pub fn urgency(demand: BytesPerSec, capacity: BytesPerSec) -> f32 {
    let unmet = demand.0.saturating_sub(capacity.0) as f64 / demand.0.max(1) as f64;
    (1.0 + URGENCY_GAIN * unmet) as f32
}

/// Whether customers wait at volunteers' uplinks, so that it matters to whom sync's share goes: `owed` bytes were promised
/// to them by volunteers that can send `rate` in all.
pub fn contended(owed: Bytes, rate: BytesPerSec) -> bool {
    owed.0 as f64 > rate.0 as f64 * CONTENDED.as_secs_f64()
}

fn secs(duration: Duration) -> f64 {
    duration.as_secs_f64().max(1e-3)
}

/// A release that nobody can deliver yet and everybody wants weighs this much more.
const URGENCY_GAIN: f64 = 9.0;
/// What is owed to customers counts from this much of the uplinks' time on.
const CONTENDED: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgency_grows_with_the_demand_that_holders_cannot_meet() {
        let rate = BytesPerSec;
        assert_eq!(urgency(rate(0), rate(0)), 1.0);
        assert_eq!(urgency(rate(100), rate(100)), 1.0);
        assert_eq!(urgency(rate(100), rate(500)), 1.0);
        assert_eq!(urgency(rate(100), rate(0)), 10.0);
        assert!((urgency(rate(100), rate(50)) - 5.5).abs() < 1e-6);
    }

    #[test]
    fn a_few_customers_of_many_volunteers_do_not_count() {
        assert!(!contended(Bytes(0), BytesPerSec(0)) && !contended(Bytes(100), BytesPerSec(1_000)));
        assert!(contended(Bytes(101), BytesPerSec(1_000)) && contended(Bytes(1), BytesPerSec(0)));
    }

    #[test]
    fn the_simple_laws_do_what_they_are_called() {
        let busy = Work {
            uplink: BytesPerSec(1000),
            delivery_backlog: Bytes(10),
            sync_backlog: Bytes(10),
            sync_age: Duration::ZERO,
            urgency: 1.0,
        };
        let idle = Work { delivery_backlog: Bytes(0), sync_backlog: Bytes(0), ..busy };
        let targets = Targets::default();
        let ask = |law: &mut dyn Arbiter, work: &Work| law.share(work, &targets, Moment::ZERO);
        assert_eq!(ask(&mut DeliveryFirst, &busy), 1.0);
        assert_eq!(ask(&mut DeliveryFirst, &idle), 0.0);
        assert_eq!(ask(&mut SyncFirst, &busy), 0.0);
        assert_eq!(ask(&mut SyncFirst, &idle), 1.0);
        assert_eq!(ask(&mut FixedSplit::new(0.3), &busy), 0.3);
        assert_eq!(ask(&mut FixedSplit::new(7.0), &busy), 1.0);
        assert_eq!(ask(&mut FixedSplit::new(f32::NAN), &busy), 0.5);
    }
}
