//! What the engine tells about its connections and responses; it never waits for the listener of it.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

/// Told of connections and responses, on the ring's own thread; must not block.
pub trait Observer: Send + Sync + 'static {
    /// A connection was accepted. `id` is unique among the open connections of this server.
    fn opened(&self, id: u64, class: u8, socket: BorrowedFd<'_>, local: SocketAddr, peer: SocketAddr) {
        let _ = (id, class, socket, local, peer);
    }

    /// The connection is about to be closed; the socket still answers `TCP_INFO`.
    fn closed(&self, id: u64, class: u8, socket: BorrowedFd<'_>) {
        let _ = (id, class, socket);
    }

    /// A response whose head promises `body_bytes` does not go out at once; short ones end without.
    fn lasts(&self, class: u8, status: StatusCode, body_bytes: u64) {
        let _ = (class, status, body_bytes);
    }

    /// A part of the body of such a response went to the kernel, and it goes on.
    fn progressed(&self, class: u8, status: StatusCode, body_bytes: u64) {
        let _ = (class, status, body_bytes);
    }

    /// A response ended, whole or not.
    fn responded(&self, record: &ResponseRecord<'_>) {
        let _ = record;
    }
}

/// One response, after its last byte went to the kernel or the connection broke.
#[derive(Debug)]
pub struct ResponseRecord<'a> {
    /// The connection.
    pub connection: u64,
    /// The listener's class.
    pub class: u8,
    /// The client.
    pub peer: SocketAddr,
    /// `GET /path?query HTTP/1.1` as sent (bounded by the header limit), or empty when it could not be parsed.
    pub request_line: &'a str,
    /// Decoded path, empty when it could not be parsed.
    pub path: &'a [u8],
    /// `Referer`, if sent.
    pub referer: Option<&'a str>,
    /// `User-Agent`, if sent.
    pub user_agent: Option<&'a str>,
    /// Status sent.
    pub status: StatusCode,
    /// Body bytes handed to the kernel.
    pub body_bytes: u64,
    /// Those of them that [`Observer::progressed`] told of already; none when there was no [`Observer::lasts`].
    pub body_bytes_told: Option<u64>,
    /// Body bytes that the head promised.
    pub body_bytes_promised: u64,
    /// From the complete head to the end.
    pub elapsed: Duration,
}

impl ResponseRecord<'_> {
    /// Body bytes that nothing was told of yet.
    #[must_use]
    pub fn body_bytes_untold(&self) -> u64 {
        self.body_bytes - self.body_bytes_told.unwrap_or(0)
    }
}

/// An observer that looks away.
#[derive(Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// Several observers, told in order.
pub struct Observers(pub Vec<Arc<dyn Observer>>);

impl Observer for Observers {
    fn opened(&self, id: u64, class: u8, socket: BorrowedFd<'_>, local: SocketAddr, peer: SocketAddr) {
        for observer in &self.0 {
            observer.opened(id, class, socket, local, peer);
        }
    }

    fn closed(&self, id: u64, class: u8, socket: BorrowedFd<'_>) {
        for observer in &self.0 {
            observer.closed(id, class, socket);
        }
    }

    fn lasts(&self, class: u8, status: StatusCode, body_bytes: u64) {
        for observer in &self.0 {
            observer.lasts(class, status, body_bytes);
        }
    }

    fn progressed(&self, class: u8, status: StatusCode, body_bytes: u64) {
        for observer in &self.0 {
            observer.progressed(class, status, body_bytes);
        }
    }

    fn responded(&self, record: &ResponseRecord<'_>) {
        for observer in &self.0 {
            observer.responded(record);
        }
    }
}
