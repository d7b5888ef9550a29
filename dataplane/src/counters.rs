//! What the delivery port did since the daemon's start, counted without locks.

use std::sync::atomic::{AtomicU64, Ordering};

use freshet_api::heartbeat::DeliveryCounters;
use freshet_api::ticket::TicketError;
use freshet_engine::ResponseRecord;
use http::StatusCode;

/// The counters behind [`DeliveryCounters`]; shared by all rings.
#[derive(Debug, Default)]
pub struct Counters {
    responses: AtomicU64,
    body_bytes: AtomicU64,
    abandoned_bytes: AtomicU64,
    sent_back: AtomicU64,
    malformed: AtomicU64,
    forged: AtomicU64,
    expired: AtomicU64,
    missing: AtomicU64,
    started: AtomicU64,
    ended: AtomicU64,
    open: AtomicU64,
    owed: AtomicU64,
}

impl Counters {
    /// A file is about to be served.
    pub fn file_started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// It can't be after all.
    pub fn file_unavailable(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// A customer was sent back to the front door.
    pub fn sent_back(&self) {
        self.sent_back.fetch_add(1, Ordering::Relaxed);
    }

    /// A request brought no ticket.
    pub fn ticket_missing(&self) {
        self.missing.fetch_add(1, Ordering::Relaxed);
    }

    /// A ticket was refused.
    pub fn ticket_refused(&self, why: &TicketError) {
        let counter = match why {
            TicketError::Forged => &self.forged,
            TicketError::Expired { .. } => &self.expired,
            TicketError::Malformed | TicketError::TooManyNodes => &self.malformed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was accepted.
    pub fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection ends.
    pub fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// A response with so many body bytes does not go out at once.
    pub fn lasts(&self, status: StatusCode, body_bytes: u64) {
        if is_file(status) {
            self.owed.fetch_add(body_bytes, Ordering::Relaxed);
        }
    }

    /// A part of such a response went out.
    pub fn progressed(&self, status: StatusCode, body_bytes: u64) {
        if is_file(status) {
            self.owed.fetch_sub(body_bytes, Ordering::Relaxed);
            self.body_bytes.fetch_add(body_bytes, Ordering::Relaxed);
        }
    }

    /// A response ended.
    ///
    /// On the delivery port 200, 206, 304, 412 and 416 answer for a file and nothing else does.
    pub fn responded(&self, record: &ResponseRecord<'_>) {
        match record.status {
            status if is_file(status) => {
                self.responses.fetch_add(1, Ordering::Relaxed);
                self.body_bytes.fetch_add(record.body_bytes_untold(), Ordering::Relaxed);
                if let Some(told) = record.body_bytes_told {
                    self.owed.fetch_sub(record.body_bytes_promised - told, Ordering::Relaxed);
                }
                let abandoned = record.body_bytes_promised.saturating_sub(record.body_bytes);
                self.abandoned_bytes.fetch_add(abandoned, Ordering::Relaxed);
            }
            StatusCode::NOT_MODIFIED
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::RANGE_NOT_SATISFIABLE => {}
            _ => return,
        }
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// All of them now.
    pub fn read(&self) -> DeliveryCounters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // What ended is read first, so that a transfer between the two reads counts as active, not as negative.
        let ended = of(&self.ended);
        DeliveryCounters {
            responses: of(&self.responses),
            body_bytes: of(&self.body_bytes),
            abandoned_bytes: of(&self.abandoned_bytes),
            sent_back: of(&self.sent_back),
            tickets_malformed: of(&self.malformed),
            tickets_forged: of(&self.forged),
            tickets_expired: of(&self.expired),
            tickets_missing: of(&self.missing),
            owed_bytes: Some(of(&self.owed)),
            // A connection carries one transfer at a time.
            active: of(&self.started).saturating_sub(ended).min(of(&self.open)),
        }
    }
}

/// Whether a response of this status has a file or a part of it.
fn is_file(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(status: u16, body_bytes: u64, body_bytes_promised: u64) -> ResponseRecord<'static> {
        ResponseRecord {
            connection: 1,
            class: 1,
            peer: "127.0.0.1:9".parse().unwrap(),
            request_line: "",
            path: b"/",
            referer: None,
            user_agent: None,
            status: StatusCode::from_u16(status).unwrap(),
            body_bytes,
            body_bytes_told: None,
            body_bytes_promised,
            elapsed: Duration::ZERO,
        }
    }

    #[test]
    fn transfers_are_counted_from_start_to_end() {
        let counters = Counters::default();
        counters.opened();
        counters.opened();
        counters.file_started();
        counters.file_started();
        assert_eq!(counters.read().active, 2);
        counters.responded(&record(200, 70, 100));
        counters.file_unavailable();
        let read = counters.read();
        assert_eq!((read.active, read.responses, read.body_bytes, read.abandoned_bytes), (0, 1, 70, 30));
    }

    #[test]
    fn what_went_out_of_a_transfer_is_counted_before_its_end_and_once() {
        let counters = Counters::default();
        counters.lasts(StatusCode::OK, 100);
        counters.lasts(StatusCode::NOT_FOUND, 9);
        assert_eq!((counters.read().body_bytes, counters.read().owed_bytes), (0, Some(100)));
        counters.progressed(StatusCode::OK, 40);
        counters.progressed(StatusCode::NOT_FOUND, 7);
        assert_eq!((counters.read().body_bytes, counters.read().owed_bytes), (40, Some(60)));
        counters.progressed(StatusCode::OK, 20);
        counters.responded(&ResponseRecord { body_bytes_told: Some(60), ..record(200, 70, 100) });
        let read = counters.read();
        assert_eq!((read.responses, read.body_bytes, read.abandoned_bytes), (1, 70, 30));
        assert_eq!(read.owed_bytes, Some(0));
    }

    #[test]
    fn refusals_are_no_transfers() {
        let counters = Counters::default();
        counters.opened();
        counters.file_started();
        counters.responded(&record(403, 10, 10));
        counters.responded(&record(302, 0, 0));
        assert_eq!((counters.read().active, counters.read().body_bytes), (1, 0));
        counters.responded(&record(304, 0, 0));
        assert_eq!((counters.read().active, counters.read().responses), (0, 0));
    }

    #[test]
    fn a_closed_connection_carries_no_transfer() {
        let counters = Counters::default();
        counters.opened();
        counters.file_started();
        counters.closed();
        assert_eq!(counters.read().active, 0);
    }

    #[test]
    fn tickets_are_refused_by_kind() {
        let counters = Counters::default();
        counters.ticket_refused(&TicketError::Forged);
        counters.ticket_refused(&TicketError::Expired { seconds: 1 });
        counters.ticket_refused(&TicketError::Malformed);
        counters.ticket_missing();
        let read = counters.read();
        let kinds = [read.tickets_forged, read.tickets_expired, read.tickets_malformed, read.tickets_missing];
        assert_eq!(kinds, [1; 4]);
    }
}
