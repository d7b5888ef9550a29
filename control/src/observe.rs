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

    /// Counts body bytes of a response for the port that its class stands for; whether they are of a file.
    fn sent(&self, class: u8, status: StatusCode, body_bytes: u64) -> bool {
        let is_file = matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
        if is_file && class == Class::Delivery.number() {
            self.front_door.sent(body_bytes);
        } else if is_file && class == Class::Sync.number() {
            self.sync.sent(body_bytes);
        }
        is_file
    }
}

impl Observer for OriginObserver {
    fn progressed(&self, class: u8, status: StatusCode, body_bytes: u64) {
        self.sent(class, status, body_bytes);
    }

    fn responded(&self, record: &ResponseRecord<'_>) {
        if record.class == Class::Delivery.number() {
            self.load.ended(record.peer);
        }
        let is_file = self.sent(record.class, record.status, record.body_bytes_untold());
        if is_file && record.class == Class::Sync.number() {
            self.sync.blob_ended();
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
