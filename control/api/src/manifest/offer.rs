//! How volunteers hand manifests on to each other, so that a release costs the origin about one of each.
//!
//! `POST /v1/manifest` is a [`ManifestAsk`]. A small manifest comes at once, as for `GET /v1/manifest`; for another the
//! answer is a [`ManifestOffer`], with the same seal in its head: who has it, or that it comes from the origin's sync
//! port (`GET /manifest/<hash>` with the token of the last heartbeat, as from a peer with that peer's). Who has it says
//! so with `POST /v1/manifest/held`, a [`ManifestHeld`], and serves it to those who are sent. Control holds an answer
//! back for some seconds while there is nothing to say.

use serde::{Deserialize, Serialize};

use crate::id::{ContentHash, NodeId};
use crate::swarm::PeerHint;

/// What a volunteer lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestAsk {
    /// The state that it has; none for nothing.
    pub since: Option<u64>,
    /// What became of the last offer, if it came to nothing.
    pub failed: Option<ManifestFailed>,
}

/// An offer that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFailed {
    /// Which manifest.
    pub manifest: ContentHash,
    /// Who did not give it; none for the origin's sync port.
    pub peer: Option<NodeId>,
    /// Whether all of it came, and it was another content.
    pub wrong: bool,
}

/// Where a manifest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestOffer {
    /// BLAKE3 of its wire form.
    pub manifest: ContentHash,
    /// Bytes of that.
    pub bytes: u64,
    /// Where to fetch it.
    pub from: ManifestFrom,
}

/// Where to fetch it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ManifestFrom {
    /// Another volunteer's sync port.
    Peer(PeerHint),
    /// The origin's sync port.
    Origin,
    /// Nobody has it yet who could give it: ask again.
    Later,
}

/// Who has a manifest now, and serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestHeld {
    /// Which.
    pub manifest: ContentHash,
    /// Whether its sync port gives it to peers.
    pub serves: bool,
}
