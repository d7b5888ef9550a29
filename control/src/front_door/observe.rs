//! Counts the body bytes that the origin sends to customers; the sync port's are not among them.

use std::sync::Arc;

use freshet_api::Class;
use freshet_engine::{Observer, ResponseRecord};
use http::StatusCode;

use super::counters::FrontDoorCounters;

/// The engine's observer for control.
#[derive(Debug)]
pub struct FrontDoorObserver {
    counters: Arc<FrontDoorCounters>,
}

impl FrontDoorObserver {
    /// Counts into `counters`.
    pub fn new(counters: Arc<FrontDoorCounters>) -> Self {
        Self { counters }
    }
}

impl Observer for FrontDoorObserver {
    fn responded(&self, record: &ResponseRecord<'_>) {
        let content = matches!(record.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
        if content && record.class == Class::Delivery.number() {
            FrontDoorCounters::add(&self.counters.body_bytes, record.body_bytes);
        }
        tracing::debug!(
            peer = %record.peer,
            request = record.request_line,
            status = record.status.as_u16(),
            bytes = record.body_bytes,
            "answered"
        );
    }
}
