//! Gathers contents into batches, so that many small files cost one sync of the disk. It fetches nothing.

use std::sync::Arc;
use std::time::Duration;

use freshet_api::ContentHash;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::fetch::Delivery;
use crate::mirror::{Mirror, MirrorError, blocking};

/// What became of a batch.
pub(super) struct Committed {
    pub(super) contents: Vec<ContentHash>,
    pub(super) result: Result<(), MirrorError>,
}

/// Commits what comes until no more can come.
pub(super) async fn commit_all(
    mirror: Arc<Mirror>,
    mut deliveries: mpsc::Receiver<Delivery>,
    outcomes: mpsc::Sender<Committed>,
) {
    while let Some(first) = deliveries.recv().await {
        let deadline = Instant::now() + LINGER;
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX {
            match timeout_at(deadline, deliveries.recv()).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => break,
            }
        }
        let contents = batch.iter().map(|delivery| delivery.arrived.content()).collect();
        let mirror = Arc::clone(&mirror);
        let result = blocking(move || {
            let (arrived, memory): (Vec<_>, Vec<_>) = batch.into_iter().map(Delivery::split).unzip();
            let result = mirror.commit(arrived);
            drop(memory);
            result
        })
        .await;
        // While the sync is being stopped nobody listens, and what was fetched is kept nevertheless.
        let _ = outcomes.send(Committed { contents, result }).await;
    }
}

/// Files of one batch at most (256 measured best against one sync each).
const BATCH_MAX: usize = 256;

/// How long a batch waits for more.
const LINGER: Duration = Duration::from_millis(10);
