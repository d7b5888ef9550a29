//! The state of the repository that volunteers are told of: the catalogue's, as soon as its bundles exist.
//!
//! Customers see every state at once; volunteers see it a little later, so that they never rush to the origin for
//! whole files before there is a swarm. It never goes back.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::catalog::Snapshot;

/// The released state, exchanged whole.
#[derive(Debug)]
pub struct Release {
    state: ArcSwap<Released>,
    sequence: watch::Sender<u64>,
}

/// What volunteers are told of.
#[derive(Clone, Debug)]
pub struct Released {
    /// Its sequence; 0 for none yet.
    pub sequence: u64,
    /// The state; `None` after a restart while its successor is prepared.
    pub state: Option<Arc<Snapshot>>,
}

impl Release {
    /// As it was when control last ran.
    pub(super) fn new(sequence: u64) -> Self {
        Self {
            state: ArcSwap::from_pointee(Released { sequence, state: None }),
            sequence: watch::Sender::new(sequence),
        }
    }

    /// The present one; lock-free.
    pub fn load(&self) -> Guard<Arc<Released>> {
        self.state.load()
    }

    /// Tells the sequence of every newly released state.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.sequence.subscribe()
    }

    pub(super) fn set(&self, state: Arc<Snapshot>) {
        let sequence = state.sequence();
        self.state.store(Arc::new(Released { sequence, state: Some(state) }));
        self.sequence.send_replace(sequence);
    }
}
