//! What the front door did, counted. Nothing is decided by these numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use freshet_api::admin::FrontDoorView;

/// Counters since control's start; shared by all rings.
#[derive(Debug, Default)]
pub struct FrontDoorCounters {
    pub(super) redirects: AtomicU64,
    pub(super) redirected_bytes: AtomicU64,
    pub(super) direct: AtomicU64,
    pub(super) fallback: AtomicU64,
    pub(super) put_off: AtomicU64,
    pub(super) body_bytes: AtomicU64,
    pub(super) came_back: AtomicU64,
    pub(super) tickets_refused: AtomicU64,
    pub(super) not_found: AtomicU64,
}

impl FrontDoorCounters {
    pub(super) fn count(counter: &AtomicU64) {
        Self::add(counter, 1);
    }

    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// Counts body bytes that went to a customer.
    pub fn sent(&self, body_bytes: u64) {
        Self::add(&self.body_bytes, body_bytes);
    }

    /// As they stand now.
    pub fn view(&self) -> FrontDoorView {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FrontDoorView {
            redirects: read(&self.redirects),
            redirected_bytes: read(&self.redirected_bytes),
            direct: read(&self.direct),
            fallback: read(&self.fallback),
            put_off: read(&self.put_off),
            body_bytes: read(&self.body_bytes),
            came_back: read(&self.came_back),
            tickets_refused: read(&self.tickets_refused),
            not_found: read(&self.not_found),
        }
    }
}
