//! What the origin still owes to customers that no volunteer took: promised when a response begins, settled when it
//! ends or its connection does. Only those responses are looked up; a redirect costs one atomic read.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use freshet_api::Bytes;

/// Bytes of responses under way; a connection carries one at a time.
#[derive(Debug, Default)]
pub struct OriginLoad {
    outstanding: AtomicU64,
    by_peer: Mutex<HashMap<SocketAddr, u64>>,
}

impl OriginLoad {
    /// Promises `bytes` to `peer`.
    pub(super) fn owe(&self, peer: SocketAddr, bytes: u64) {
        let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        // Connections are bounded far below it.
        if by_peer.len() < PEERS_MAX {
            let before = by_peer.insert(peer, bytes).unwrap_or(0);
            self.outstanding.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// The response to `peer` ended, whole or not.
    pub fn ended(&self, peer: SocketAddr) {
        if self.outstanding.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = by_peer.remove(&peer) {
            self.outstanding.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// What is still owed.
    pub fn outstanding(&self) -> Bytes {
        Bytes(self.outstanding.load(Ordering::Relaxed))
    }
}

const PEERS_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_ends_with_the_response() {
        let load = OriginLoad::default();
        let peer = |port| SocketAddr::from(([192, 0, 2, 1], port));
        load.owe(peer(1), 100);
        load.owe(peer(2), 50);
        load.owe(peer(2), 30);
        assert_eq!(load.outstanding(), Bytes(130));
        load.ended(peer(3));
        load.ended(peer(2));
        load.ended(peer(2));
        assert_eq!(load.outstanding(), Bytes(100));
        load.ended(peer(1));
        assert_eq!(load.outstanding(), Bytes(0));
    }
}
