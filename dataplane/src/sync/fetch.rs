//! One content from wanting it to handing it over for commit. It never decides whether to try again.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::source::{BlobSource, FetchError};
use crate::mirror::{Arrived, Incoming, Mirror, MirrorError, ReceiveError, Want, blocking};
use crate::swarm::Meter;

/// A content that waits for its batch, with the memory it was given.
pub(super) struct Delivery {
    pub(super) arrived: Arrived,
    memory: OwnedSemaphorePermit,
}

impl Delivery {
    pub(super) fn split(self) -> (Arrived, OwnedSemaphorePermit) {
        (self.arrived, self.memory)
    }
}

/// Where a content is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// At the source.
    Source,
    /// On this disk, and at the source when it is not there.
    DiskFirst,
    /// On this disk; others fetch it when it is not there.
    DiskOnly,
}

/// What all fetches share.
pub(super) struct Fetcher<B> {
    pub(super) mirror: Arc<Mirror>,
    pub(super) blobs: B,
    /// Bytes of memory for contents on their way to the disk.
    pub(super) memory: Arc<Semaphore>,
    pub(super) deliveries: mpsc::Sender<Delivery>,
    pub(super) meter: Arc<Meter>,
}

impl<B: BlobSource> Fetcher<B> {
    /// Brings a content in; whether it was had.
    pub(super) async fn fetch(&self, want: &Want, way: Way) -> Result<bool, FetchError> {
        let bytes = u32::try_from(want.size).unwrap_or(u32::MAX).clamp(1, FETCH_BYTES_MAX);
        // The semaphore is never closed.
        let Ok(memory) = Arc::clone(&self.memory).acquire_many_owned(bytes).await else {
            return Err(FetchError::NoSource);
        };
        let arrived = match way {
            Way::Source => None,
            Way::DiskFirst | Way::DiskOnly => self.take_local(want).await?,
        };
        let (arrived, counter) = match arrived {
            Some(arrived) => (arrived, &self.meter.disk),
            None if way == Way::DiskOnly => return Ok(false),
            None => (self.receive(want).await?, &self.meter.origin),
        };
        Meter::add(counter, want.size);
        // It fails only when the sync is being stopped: nobody waits for the outcome then.
        let _ = self.deliveries.send(Delivery { arrived, memory }).await;
        Ok(true)
    }

    async fn take_local(&self, want: &Want) -> Result<Option<Arrived>, MirrorError> {
        let (mirror, want) = (Arc::clone(&self.mirror), want.clone());
        blocking(move || mirror.take_local(&want)).await
    }

    async fn receive(&self, want: &Want) -> Result<Arrived, FetchError> {
        loop {
            let mut incoming = self.open(want).await?;
            let continued = incoming.received() > 0;
            if incoming.received() < want.size {
                let fetched = self.blobs.fetch(want, &mut incoming).await;
                if let Err(error) = fetched {
                    incoming.park().await?;
                    return Err(error);
                }
            }
            match incoming.finish().await {
                Ok(arrived) => return Ok(arrived),
                // The part that lay here may have been the wrong one; it is gone now.
                Err(ReceiveError::Wrong { .. }) if continued => {}
                Err(ReceiveError::Wrong { content }) => {
                    let (from, path) = (self.blobs.name(), want.path.to_string());
                    return Err(FetchError::WrongContent { from, path, content });
                }
                Err(ReceiveError::Mirror(error)) => return Err(error.into()),
                Err(error) => {
                    return Err(FetchError::Nonsense {
                        from: self.blobs.name(),
                        path: want.path.to_string(),
                        expected: format!("{} bytes", want.size),
                        found: error.to_string(),
                    });
                }
            }
        }
    }

    async fn open(&self, want: &Want) -> Result<Incoming, MirrorError> {
        let (mirror, want) = (Arc::clone(&self.mirror), want.clone());
        blocking(move || mirror.receive(&want)).await
    }
}

/// Memory that one fetch is given at most: a large content passes through a buffer of this size.
const FETCH_BYTES_MAX: u32 = 2 << 20;
