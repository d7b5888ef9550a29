//! The same share always, whatever there is to do.

use super::{Arbiter, Targets, Work};
use crate::moment::Moment;

/// What an administrator sets once, as a baseline.
#[derive(Clone, Copy, Debug)]
pub struct FixedSplit {
    delivery: f32,
}

impl FixedSplit {
    /// Always `delivery` (clamped to 0 ..= 1) for customers.
    pub fn new(delivery: f32) -> FixedSplit {
        FixedSplit { delivery: if delivery.is_nan() { 0.5 } else { delivery.clamp(0.0, 1.0) } }
    }
}

impl Arbiter for FixedSplit {
    fn name(&self) -> &'static str {
        "fixed-split"
    }

    fn share(&mut self, _work: &Work, _targets: &Targets, _now: Moment) -> f32 {
        self.delivery
    }
}
