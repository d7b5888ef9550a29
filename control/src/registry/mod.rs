//! What control must never forget about volunteers: who they are, their secrets' digests, their ledger.
//!
//! The [`Registry`] is a seam: [`RedbRegistry`] keeps it in one embedded file. Reading is from memory;
//! writing is acknowledged only after it is on disk. Nothing here knows where a volunteer stands just now:
//! that is the tracker's.

mod ledger;
mod node;
mod redb_registry;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use freshet_api::admin::LedgerView;
use freshet_api::operator::Profile;
use freshet_api::traffic::InterfaceCounters;
use freshet_api::{NodeId, SyncKey, TicketKey};

pub use ledger::InterfaceReading;
pub use node::{Ban, Invitation, Membership, Node, NodeName, NodeNameError, Nodes};
pub use redb_registry::{OpenError, RedbRegistry};

/// The lasting memory of volunteers.
///
/// Every method that changes something takes effect in the order of the calls, and its future resolves after
/// the change is on disk and visible in [`Registry::nodes`].
pub trait Registry: Send + Sync + 'static {
    /// All volunteers as of the last change.
    fn nodes(&self) -> Arc<Nodes>;

    /// Bytes of a volunteer since it was enrolled; zeroes when it is unknown.
    fn ledger(&self, node: NodeId) -> LedgerView;

    /// The key that seals the origin's sync tokens.
    fn sync_key(&self) -> SyncKey;

    /// Invites a volunteer, or invites anew one that has never joined.
    fn invite(&self, name: NodeName, invitation: Invitation) -> Pending<Arc<Node>>;

    /// Makes the host that knows a join secret the volunteer it was made for.
    fn join(&self, joining: Joining) -> Pending<Arc<Node>>;

    /// Takes a volunteer out of service, or back in.
    fn set_draining(&self, node: NodeId, draining: bool) -> Pending<Arc<Node>>;

    /// Bans a volunteer; one that is banned already stays so for the first reason.
    fn ban(&self, node: NodeId, ban: Ban) -> Pending<Arc<Node>>;

    /// Lifts a ban.
    fn pardon(&self, node: NodeId) -> Pending<Arc<Node>>;

    /// Gives a volunteer another name, or keeps something else about it.
    fn edit(&self, node: NodeId, name: Option<NodeName>, profile: Profile) -> Pending<Arc<Node>>;

    /// Forgets a volunteer; its number is never given again.
    fn remove(&self, node: NodeId) -> Pending<Arc<Node>>;

    /// Enters absolute counters of a volunteer's interfaces into its ledger. Counters that are not above what was
    /// entered before for their epoch change nothing.
    fn record(&self, node: NodeId, readings: Vec<InterfaceReading>) -> Pending<()>;
}

/// A change under way.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, RegistryError>> + Send>>;

/// A host that pastes a join string.
#[derive(Clone, Debug)]
pub struct Joining {
    /// [`Secret::digest`](freshet_api::enrol::Secret::digest) of the join string's secret.
    pub secret_digest: [u8; 32],
    /// Digest of the credential it made.
    pub credential_digest: [u8; 32],
    /// The key it made for its tickets.
    pub ticket_key: TicketKey,
    /// Seconds since the epoch.
    pub now: u64,
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Nobody of that number.
    #[error("there is no volunteer {node}; `ctl node list` shows who there is")]
    UnknownNode {
        /// Asked for.
        node: NodeId,
    },
    /// The name belongs to a volunteer that has joined.
    #[error(
        "the name {name} belongs to volunteer {node}, which has joined; take another name, or remove it first"
    )]
    NameTaken {
        /// Asked for.
        name: NodeName,
        /// Whose it is.
        node: NodeId,
    },
    /// The join secret was never given, or its volunteer was removed.
    #[error("the join string is unknown here; ask the operator for a new one (`ctl node add NAME`)")]
    UnknownSecret,
    /// The join secret's time is over.
    #[error("the join string expired {seconds} s ago; ask the operator for a new one (`ctl node add NAME`)")]
    SecretExpired {
        /// By how much.
        seconds: u64,
    },
    /// The join secret made a volunteer of another host.
    #[error("the join string was used already; it works once (ask the operator for another)")]
    SecretUsed,
    /// No more room.
    #[error("there are {max} volunteers already, the most this control takes")]
    Full {
        /// The bound.
        max: usize,
    },
    /// The disk's word.
    #[error("the registry could not be written: {reason}")]
    Storage {
        /// In words.
        reason: String,
    },
    /// Control is stopping.
    #[error("control is stopping; try again when it is back")]
    Stopped,
}

/// What of a heartbeat's counters is entered into the ledger; at most [`INTERFACES_MAX`] interfaces.
pub fn readings(interfaces: &[InterfaceCounters]) -> Vec<InterfaceReading> {
    interfaces
        .iter()
        .take(INTERFACES_MAX)
        .map(|interface| InterfaceReading {
            name: interface.name.chars().take(INTERFACE_NAME_CHARS_MAX).collect(),
            epoch: interface.epoch,
            delivered: interface.delivery.sent.bytes,
            synced_in: interface.sync.received.bytes,
            synced_out: interface.sync.sent.bytes,
        })
        .collect()
}

/// Volunteers at most.
pub const NODES_MAX: usize = 100_000;
/// Interfaces of one volunteer that are counted at most.
pub const INTERFACES_MAX: usize = 32;
const INTERFACE_NAME_CHARS_MAX: usize = 32;
