//! Who may still be served: a transfer is begun only when all of it fits into what is left, so that none is cut.
//!
//! Asked on the rings' threads; without an end in sight that is one atomic read, otherwise a short lock. It counts
//! promises, never what passed the wire: that is the month's business.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use freshet_api::Bytes;

/// Transfers under way, by what they were promised.
#[derive(Debug)]
pub struct Admission {
    /// What promises of all transfers together may come to; [`OPEN`] for no end.
    left: AtomicU64,
    promises: Mutex<Promises>,
}

#[derive(Debug, Default)]
struct Promises {
    /// A connection carries one transfer at a time.
    by_peer: HashMap<SocketAddr, u64>,
    sum: u64,
    /// Promises of transfers that ended since the last settlement, and of those before: what they sent last is not
    /// counted on the wire yet.
    ended: u64,
    ended_before: u64,
    /// To find the peer when its socket no longer tells.
    connections: HashMap<u64, SocketAddr>,
}

impl Default for Admission {
    /// Without an end.
    fn default() -> Self {
        Self { left: AtomicU64::new(OPEN), promises: Mutex::default() }
    }
}

impl Admission {
    /// Puts in force what is left on the wire, once every reading of the counters; `None` for no end.
    pub fn settle(&self, left: Option<Bytes>) {
        let was = self.left.swap(left.map_or(OPEN, |left| left.0.min(OPEN - 1)), Ordering::AcqRel);
        if left.is_none() && was == OPEN {
            return;
        }
        let mut promises = self.lock();
        if left.is_none() {
            *promises = Promises::default();
        }
        promises.ended_before = std::mem::take(&mut promises.ended);
    }

    /// Whether a body of `bytes` may be sent to `peer`; it is promised from then on.
    pub fn admit(&self, peer: SocketAddr, bytes: u64) -> bool {
        let left = self.left.load(Ordering::Acquire);
        if left == OPEN {
            return true;
        }
        let wire = on_wire(bytes);
        let mut promises = self.lock();
        if promises.outstanding().saturating_add(wire) > left {
            return false;
        }
        promises.end(peer);
        // Beyond the bound nobody is promised anything: connections are bounded far below it.
        if promises.by_peer.len() < PEERS_MAX {
            promises.by_peer.insert(peer, wire);
            promises.sum += wire;
        }
        true
    }

    /// What is left for transfers that nobody asked for yet; `None` for no end.
    pub fn promisable(&self) -> Option<Bytes> {
        let left = self.left.load(Ordering::Acquire);
        (left != OPEN).then(|| Bytes(left.saturating_sub(self.lock().outstanding())))
    }

    /// A connection was accepted.
    pub fn opened(&self, connection: u64, peer: SocketAddr) {
        if self.has_end() {
            self.lock().connections.insert(connection, peer);
        }
    }

    /// The transfer to `peer` ended, whole or not, or was not begun after all.
    pub fn ended(&self, peer: SocketAddr) {
        if self.has_end() {
            self.lock().end(peer);
        }
    }

    /// The connection ends, and with it whatever it carried.
    pub fn closed(&self, connection: u64) {
        if self.has_end() {
            let mut promises = self.lock();
            if let Some(peer) = promises.connections.remove(&connection) {
                promises.end(peer);
            }
        }
    }

    fn has_end(&self) -> bool {
        self.left.load(Ordering::Acquire) != OPEN
    }

    fn lock(&self) -> MutexGuard<'_, Promises> {
        // A panic elsewhere leaves a promise too many, which its connection's end takes back.
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Promises {
    fn outstanding(&self) -> u64 {
        self.sum + self.ended + self.ended_before
    }

    fn end(&mut self, peer: SocketAddr) {
        if let Some(bytes) = self.by_peer.remove(&peer) {
            self.sum -= bytes;
            self.ended += bytes;
        }
    }
}

/// What a body comes to on the wire at most, unless a good part of it is lost on the way: full segments, the head, the
/// handshake and the farewell.
fn on_wire(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 16).saturating_add(RESPONSE_BYTES)
}

const OPEN: u64 = u64::MAX;
const RESPONSE_BYTES: u64 = 4 << 10;
const PEERS_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn without_an_end_everybody_is_admitted_and_nothing_is_kept() {
        let admission = Admission::default();
        admission.opened(1, peer(1));
        assert!(admission.admit(peer(1), u64::MAX));
        assert_eq!(admission.promisable(), None);
        assert!(admission.lock().by_peer.is_empty() && admission.lock().connections.is_empty());
    }

    #[test]
    fn a_transfer_is_begun_only_when_all_of_it_fits() {
        let admission = Admission::default();
        admission.settle(Some(Bytes(1_000_000)));
        assert!(admission.admit(peer(1), 500_000));
        assert!(!admission.admit(peer(2), 500_000), "the two together would not fit");
        assert!(admission.admit(peer(3), 400_000));
        // The first sent half of it: what is left shrank, what it was promised stays promised.
        admission.settle(Some(Bytes(750_000)));
        assert!(!admission.admit(peer(4), 1));
        assert_eq!(admission.promisable(), Some(Bytes(0)));
    }

    #[test]
    fn an_ended_transfer_counts_until_the_wire_was_read_twice() {
        let admission = Admission::default();
        admission.settle(Some(Bytes(1_000_000)));
        assert!(admission.admit(peer(1), 900_000));
        admission.ended(peer(1));
        assert!(!admission.admit(peer(2), 900_000), "its last bytes may not be counted yet");
        admission.settle(Some(Bytes(1_000_000)));
        assert!(!admission.admit(peer(2), 900_000));
        admission.settle(Some(Bytes(1_000_000)));
        assert!(admission.admit(peer(2), 900_000));
    }

    #[test]
    fn a_promise_ends_with_its_connection_and_is_replaced_by_the_next_on_it() {
        let admission = Admission::default();
        admission.settle(Some(Bytes(10_000_000)));
        admission.opened(7, peer(1));
        assert!(admission.admit(peer(1), 1_000_000));
        assert!(admission.admit(peer(1), 2_000_000));
        assert_eq!(admission.lock().sum, on_wire(2_000_000));
        admission.closed(7);
        admission.closed(7);
        admission.ended(peer(1));
        for _ in 0..2 {
            admission.settle(Some(Bytes(10_000_000)));
        }
        assert_eq!(admission.promisable(), Some(Bytes(10_000_000)));
        assert!(admission.lock().connections.is_empty());
    }

    #[test]
    fn nothing_is_admitted_when_nothing_is_left() {
        let admission = Admission::default();
        admission.settle(Some(Bytes(0)));
        assert!(!admission.admit(peer(1), 0));
        admission.settle(None);
        assert!(admission.admit(peer(1), 1 << 40));
    }
}
