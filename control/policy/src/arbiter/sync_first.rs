//! Mirrors first: customers get what they leave.

use super::{Arbiter, Targets, Work};
use crate::moment::Moment;

/// A strict priority, as a baseline.
#[derive(Clone, Copy, Debug, Default)]
pub struct SyncFirst;

impl Arbiter for SyncFirst {
    fn name(&self) -> &'static str {
        "sync-first"
    }

    fn share(&mut self, work: &Work, _targets: &Targets, _now: Moment) -> f32 {
        if work.sync_backlog.0 > 0 { 0.0 } else { 1.0 }
    }
}
