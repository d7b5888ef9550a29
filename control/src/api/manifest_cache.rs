//! Encoded manifests: forty volunteers that ask for the same difference cost one encoding.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Bytes;
use freshet_api::ContentHash;
use freshet_api::manifest::ManifestError;
use tokio::sync::Mutex;

use crate::catalog::{Catalog, Snapshot};

/// The last few encoded manifests of the released state.
#[derive(Debug, Default)]
pub(super) struct ManifestCache {
    encoded: Mutex<VecDeque<Encoded>>,
}

#[derive(Debug)]
struct Encoded {
    sequence: u64,
    since: Option<u64>,
    wire: Wire,
}

/// A manifest as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    pub(super) bytes: Bytes,
    /// Of those bytes.
    pub(super) hash: ContentHash,
    /// Which state it starts from; none where all of it is sent.
    pub(super) base: Option<u64>,
}

impl ManifestCache {
    /// The wire form of what changed from `since` to `state`. One is encoded at a time; who waits finds it done.
    pub(super) async fn since(
        &self,
        catalog: &Arc<Catalog>,
        state: &Arc<Snapshot>,
        since: Option<u64>,
    ) -> Result<Wire, ManifestError> {
        let mut encoded = self.encoded.lock().await;
        let sequence = state.sequence();
        encoded.retain(|known| known.sequence == sequence);
        if let Some(known) = encoded.iter().find(|known| known.since == since) {
            return Ok(known.wire.clone());
        }
        let (catalog, state) = (Arc::clone(catalog), Arc::clone(state));
        let made = tokio::task::spawn_blocking(move || {
            let manifest = catalog.manifest_of(&state, since);
            let bytes = Bytes::from(manifest.encode()?);
            Ok((manifest.sequence, Wire { hash: ContentHash::of(&bytes), base: manifest.base, bytes }))
        });
        let (sequence, wire) = made.await.unwrap_or(Err(ManifestError::Damaged))?;
        if wire.bytes.len() <= BYTES_EACH_MAX {
            encoded.truncate(KEPT_MAX - 1);
            encoded.push_front(Encoded { sequence, since, wire: wire.clone() });
        }
        Ok(wire)
    }
}

/// Manifests kept at most, of at most so many bytes each: 256 MiB in all.
const KEPT_MAX: usize = 4;
const BYTES_EACH_MAX: usize = 64 << 20;
