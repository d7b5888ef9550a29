//! The seam to control's tracker: which bundles are being copied, and who has what.

use bytes::Bytes;
use freshet_api::bundle::BundleId;
use freshet_api::swarm::{BundleList, SwarmPoll, SwarmReply};

use crate::sync::FetchError;

/// Who knows the swarm.
pub trait Tracker: Send + Sync + 'static {
    /// The bundles that are being copied, oldest first.
    ///
    /// # Errors
    /// [`FetchError`] says whose fault it is and when a retry helps.
    fn bundles(&self) -> impl Future<Output = Result<BundleList, FetchError>> + Send;

    /// One of them in its wire form.
    ///
    /// # Errors
    /// [`FetchError`] says whose fault it is and when a retry helps.
    fn bundle(&self, id: BundleId) -> impl Future<Output = Result<Bytes, FetchError>> + Send;

    /// Says what this volunteer has and hears what it may fetch, and from whom.
    ///
    /// # Errors
    /// [`FetchError`] says whose fault it is and when a retry helps.
    fn poll(&self, poll: &SwarmPoll) -> impl Future<Output = Result<SwarmReply, FetchError>> + Send;
}

/// For a volunteer without a swarm: nothing is being copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTracker;

impl Tracker for NoTracker {
    async fn bundles(&self) -> Result<BundleList, FetchError> {
        Ok(BundleList::default())
    }

    async fn bundle(&self, _id: BundleId) -> Result<Bytes, FetchError> {
        Err(FetchError::NoSource)
    }

    async fn poll(&self, _poll: &SwarmPoll) -> Result<SwarmReply, FetchError> {
        Ok(SwarmReply { closed: true, ..SwarmReply::default() })
    }
}
