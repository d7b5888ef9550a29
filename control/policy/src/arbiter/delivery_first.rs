//! Customers first: sync gets what they leave.

use super::{Arbiter, Targets, Work};
use crate::moment::Moment;

/// A strict priority, as a baseline.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeliveryFirst;

impl Arbiter for DeliveryFirst {
    fn name(&self) -> &'static str {
        "delivery-first"
    }

    fn share(&mut self, work: &Work, _targets: &Targets, _now: Moment) -> f32 {
        if work.delivery_backlog.0 > 0 { 1.0 } else { 0.0 }
    }
}
