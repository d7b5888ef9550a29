//! Counts what the origin's two ports send, each by the class of its listener; it never waits.

use std::sync::Arc;

use freshet_api::Class;
use freshet_engine::{Observer, ResponseRecord};
use http::StatusCode;

use crate::front_door::{FrontDoorCounters, OriginLoad};
use crate::sync_site::SyncCounters;

/// The engine's observer for control.
#[derive(Debug)]
pub struct OriginObserver {
    front_door: Arc<FrontDoorCounters>,
    sync: Arc<SyncCounters>,
    load: Arc<OriginLoad>,
}

impl OriginObserver {
    /// Counts into these, and settles what the origin owed.
    pub fn new(front_door: Arc<FrontDoorCounters>, sync: Arc<SyncCounters>, load: Arc<OriginLoad>) -> Self {
        Self { front_door, sync, load }
    }
}

impl Observer for OriginObserver {
    fn progressed(&self, class: u8, status: StatusCode, body_bytes: u64) {
        if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            if class == Class::Delivery.number() {
                self.front_door.sent(body_bytes);
            } else if class == Class::Sync.number() {
                self.sync.sent(body_bytes);
            }
        }
    }

    fn responded(&self, record: &ResponseRecord<'_>) {
        if record.class == Class::Delivery.number() {
            self.load.ended(record.peer);
        }
        if matches!(record.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            if record.class == Class::Delivery.number() {
                self.front_door.sent(record.body_bytes - record.body_bytes_told);
            } else if record.class == Class::Sync.number() {
                self.sync.sent(record.body_bytes - record.body_bytes_told);
                self.sync.blob_ended();
            }
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
