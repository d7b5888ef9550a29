//! The swarm: contents of a release copied in pieces between mirrors, so that the origin sends about one copy.
//!
//! The tracker says who has what and who may fetch which piece from the origin; pieces come over HTTP ranges from
//! peers' sync ports and are verified before anything else. What a bundle can't bring is left to
//! [`sync`](crate::sync), which fetches it whole.

mod client;
mod fetch;
mod harvest;
mod layout;
mod manifest_shelf;
mod manifests;
mod meter;
mod peers;
mod port;
mod recipe;
mod session;
mod shelf;
mod site;
mod spare;
mod store;
#[cfg(test)]
mod tests;
mod tracker;

use std::sync::Arc;
use std::time::Duration;

use freshet_api::BytesPerSec;
use tokio::sync::watch;

pub(crate) use client::{Client, Event};
pub use manifests::{ManifestAnswer, ManifestDesk, RelayedManifests, SignedManifest};
pub use meter::Meter;
pub use port::{PeerPort, PortError};
pub use shelf::Shelves;
pub use site::{PeerSite, PeerWatch};
pub use spare::Spare;
pub use tracker::{NoTracker, Tracker};

use crate::link::Dialer;
use crate::sync::{OriginEndpoint, ReadPacer};

/// What the swarm side of sync works with.
pub struct Swarm<T> {
    /// Who knows the swarm.
    pub tracker: Arc<T>,
    /// Connections to peers and to the origin.
    pub dialer: Dialer,
    /// How fast bodies are read.
    pub pacer: Arc<dyn ReadPacer>,
    /// The origin's sync port, as the last heartbeat named it.
    pub origin: watch::Receiver<Option<OriginEndpoint>>,
    /// What peers may have; shared with the [`PeerSite`].
    pub shelves: Shelves,
    /// What came from where.
    pub meter: Arc<Meter>,
    /// Bounds.
    pub options: SwarmOptions,
}

/// Bounds of the swarm side of sync.
#[derive(Clone)]
pub struct SwarmOptions {
    /// A bundle of which no piece comes for so long is given up: its contents are fetched whole.
    pub stall: Duration,
    /// How long to wait before this host's own trouble (a full disk) is looked at again.
    pub local_retry: Duration,
    /// Between two times that written pieces are made durable and announced, at least.
    pub sync_apart: Duration,
    /// How often control is asked which bundles there are, beside each new state of the catalogue.
    pub list_apart: Duration,
    /// How long a new state of the catalogue waits for that answer.
    pub list_within: Duration,
    /// For how long what no known bundle has is held back while control can't be asked at all; then it is fetched whole.
    pub list_patience: Duration,
    /// How long the tracker may take to answer.
    pub poll_within: Duration,
    /// What could be sent to peers just now, if that is known.
    pub spare: Arc<dyn Fn() -> Option<BytesPerSec> + Send + Sync>,
}

impl Default for SwarmOptions {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(60),
            local_retry: Duration::from_secs(10),
            sync_apart: Duration::from_millis(100),
            list_apart: Duration::from_secs(10),
            list_within: Duration::from_secs(40),
            list_patience: Duration::from_secs(600),
            poll_within: Duration::from_secs(15),
            spare: Arc::new(|| None),
        }
    }
}

impl Swarm<NoTracker> {
    /// No swarm: everything is fetched whole.
    pub fn none(dialer: Dialer) -> Self {
        Self {
            tracker: Arc::new(NoTracker),
            dialer,
            pacer: Arc::new(crate::sync::NoPacing),
            origin: watch::channel(None).1,
            shelves: Shelves::default(),
            meter: Arc::default(),
            options: SwarmOptions::default(),
        }
    }
}
