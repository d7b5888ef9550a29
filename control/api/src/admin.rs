//! What an operator asks control: the messages between `ctl` and the admin API.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::enrol::{Fingerprint, Secret};
use crate::heartbeat::{BudgetReport, DeliveryCounters, SyncProgress};
use crate::id::{FileId, NodeId};
use crate::manifest::RepoPath;
use crate::operator::{InterfaceRates, Profile};
use crate::traffic::{CounterSource, InterfaceCounters};
use crate::units::BytesPerSec;

/// The file that control writes at its first start and `ctl --credentials` reads; as secret as a password.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorCredentials {
    /// `host:port` of the API.
    pub api: String,
    /// Of control's certificate.
    pub fingerprint: Fingerprint,
    /// `Authorization: Bearer`.
    pub token: Secret,
}

/// `POST /v1/admin/nodes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddNode {
    /// What the operator calls it: 1 ..= 64 letters, digits, `.`, `_`, `-`; unique.
    pub name: String,
}

/// What control says to [`AddNode`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeAdded {
    /// The volunteer's number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// To be pasted behind `dataplane join`.
    pub join: String,
    /// Seconds until the join string is worth nothing.
    pub expires_in_secs: u64,
}

/// A volunteer as control knows it (`GET /v1/admin/nodes`, `GET /v1/admin/nodes/NAME`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: NodeState,
    /// Why it gets no customers, if it gets none.
    pub reason: Option<String>,
    /// Where its owner's budget stands.
    #[serde(default)]
    pub budget: Option<BudgetReport>,
    /// The daemon's version.
    pub version: Option<String>,
    /// What customers are sent to.
    pub delivery_url: Option<String>,
    /// Milliseconds since its last heartbeat.
    pub heartbeat_age_ms: Option<u64>,
    /// Most that the owner gives.
    pub donated_rate: Option<BytesPerSec>,
    /// Delivery rate that selection reckons with.
    pub estimated_rate: Option<BytesPerSec>,
    /// Bytes promised by redirects and not yet confirmed by its counters.
    pub outstanding_bytes: u64,
    /// Files it holds.
    pub files_held: u64,
    /// How far its mirror is.
    pub sync: Option<SyncProgress>,
    /// Its delivery counters since its start.
    pub delivery: Option<DeliveryCounters>,
    /// Its interfaces, by class.
    pub interfaces: Vec<InterfaceCounters>,
    /// What passes them just now.
    #[serde(default)]
    pub rates: Vec<InterfaceRates>,
    /// What operators keep about it.
    #[serde(default)]
    pub profile: Profile,
    /// Where these counters come from.
    pub source: Option<CounterSource>,
    /// Bytes delivered and synced since it was enrolled.
    pub ledger: LedgerView,
}

/// Where a volunteer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Added, but nobody has joined with its string yet.
    Invited,
    /// Sends heartbeats and takes customers.
    Active,
    /// Sends heartbeats and takes no customers by its owner's limits or its own trouble.
    Closed,
    /// Drained by an operator.
    Draining,
    /// No heartbeat for too long.
    Lost,
    /// Caught with wrong bytes: no customers, no peers, until an operator pardons it.
    Banned,
}

impl NodeState {
    /// All of them, those that take customers first.
    pub const ALL: [Self; 6] =
        [Self::Active, Self::Closed, Self::Draining, Self::Lost, Self::Invited, Self::Banned];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invited => "invited",
            Self::Active => "active",
            Self::Closed => "closed",
            Self::Draining => "draining",
            Self::Lost => "lost",
            Self::Banned => "banned",
        }
    }
}

/// Bytes of one volunteer since it was enrolled, over all its restarts; on disk before they are acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerView {
    /// Sent to customers, as counted on its interfaces.
    pub delivered_bytes: u64,
    /// Received from peers and the origin.
    pub synced_in_bytes: u64,
    /// Sent to peers.
    pub synced_out_bytes: u64,
}

/// `GET /v1/admin/where?path=…`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhereView {
    /// The path asked for, resolved.
    pub path: RepoPath,
    /// The present version's number.
    pub file: FileId,
    /// Bytes.
    pub size: u64,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// BLAKE3 in hexadecimal.
    pub blake3: String,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// MD4 in hexadecimal.
    pub md4: String,
    /// Who holds this version.
    pub holders: Vec<Holder>,
}

/// A volunteer that holds a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: NodeState,
}

/// `GET /v1/admin/explain?path=…&client=…`: what the front door would answer, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainView {
    /// The path asked for.
    pub path: String,
    /// The client it was asked for.
    pub client: IpAddr,
    /// What the front door would do, in words.
    pub decision: String,
    /// The volunteer it would send the client to.
    pub chosen: Option<NodeId>,
    /// Every volunteer, with the numbers that decided.
    pub considered: Vec<Considered>,
    /// What else decided, by its name.
    #[serde(default)]
    pub numbers: Vec<(String, String)>,
}

/// One volunteer in an [`ExplainView`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Considered {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Why it was left out, or `None` when it was eligible.
    pub excluded: Option<String>,
    /// Expected finish time in milliseconds, by which the least was chosen.
    pub expected_finish_ms: Option<f64>,
    /// Bytes promised and not yet confirmed.
    pub outstanding_bytes: u64,
    /// Delivery rate reckoned with.
    pub rate: Option<BytesPerSec>,
    /// Bytes expected to stand before this request.
    #[serde(default)]
    pub backlog_bytes: u64,
    /// The most that may stand before it and be in it, if there is a limit.
    #[serde(default)]
    pub limit_bytes: Option<u64>,
    /// What its owner's budget has room for, if there is an end.
    #[serde(default)]
    pub budget_bytes: Option<u64>,
    /// How much dearer its month makes it.
    #[serde(default)]
    pub budget_price: f32,
    /// How near it is to the client.
    #[serde(default)]
    pub nearness: String,
    /// What its finish time was multiplied with, if it was weighed.
    #[serde(default)]
    pub factor: Option<f64>,
    /// What it sent when it was last heard of, as a part of what it can.
    #[serde(default)]
    pub reported_load: f32,
    /// The weight that other redirectors would give it.
    #[serde(default)]
    pub weight: u32,
}

/// `GET /v1/admin/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusView {
    /// Control's version.
    pub version: String,
    /// Seconds since its start.
    pub uptime_secs: u64,
    /// State of the catalogue.
    pub catalog: CatalogView,
    /// Volunteers by state.
    pub nodes: Vec<(NodeState, u64)>,
    /// What the front door did since its start.
    pub front_door: FrontDoorView,
    /// What the origin's sync port did since its start.
    #[serde(default)]
    pub sync_port: SyncPortView,
    /// The swarm in a line.
    #[serde(default)]
    pub swarm: SwarmSummary,
}

/// The swarm in a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmSummary {
    /// The state that volunteers are told of; behind the catalogue's while bundles are made.
    pub released: u64,
    /// Bundles kept.
    pub bundles: u64,
    /// Of which somebody still lacks something.
    pub copying: u64,
    /// Bytes of packs and recipes on disk.
    pub spooled_bytes: u64,
    /// What the origin sent to volunteers lately.
    pub origin_rate: BytesPerSec,
}

/// `GET /v1/admin/swarm`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SwarmView {
    /// The whole in a line.
    pub summary: SwarmSummary,
    /// Rate of the origin that leases are reckoned with: the operator's, or as measured.
    pub origin_rate_reckoned: BytesPerSec,
    /// Copies of a bundle that the origin sends at most.
    pub origin_copies_max: f64,
    /// Every bundle, oldest first.
    pub bundles: Vec<BundleView>,
    /// Volunteers that were caught with wrong bytes, and with what.
    pub banned: Vec<BannedView>,
    /// Volunteers that others accuse and that were caught at nothing.
    #[serde(default)]
    pub suspects: Vec<SuspectView>,
    /// Manifests that volunteers hand on to each other, newest first.
    #[serde(default)]
    pub manifests: Vec<ManifestView>,
}

/// A volunteer of which others say that it sent wrong pieces.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SuspectView {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// The names of those who say so within the last hour.
    pub accusers: Vec<String>,
    /// Those among them who count: who accuses a good part of the swarm does not.
    pub believed: u64,
    /// How many must be believed before nobody is sent there.
    pub needed: u64,
    /// Whether nobody is sent there now.
    pub avoided: bool,
}

/// A manifest on its way to volunteers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ManifestView {
    /// The state that it leads to.
    pub sequence: u64,
    /// The state that it starts from; none where all is in it.
    pub since: Option<u64>,
    /// Bytes of its wire form.
    pub bytes: u64,
    /// Volunteers that were sent to the origin for it.
    pub from_origin: u64,
    /// Volunteers that were sent to others.
    pub from_peers: u64,
    /// Those among them who did not get it there.
    pub failed: u64,
    /// Volunteers that have it and serve it.
    pub holders: u64,
}

/// One bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BundleView {
    /// Its identity, in hexadecimal.
    pub id: String,
    /// The state that first named its contents.
    pub sequence: u64,
    /// Bytes of its objects.
    pub bytes: u64,
    /// Objects.
    pub objects: u64,
    /// Contents that are made by recipe instead of fetched, and their bytes.
    pub recipes: u64,
    /// Bytes of those.
    pub recipe_target_bytes: u64,
    /// Pieces.
    pub pieces: u32,
    /// Bytes of a piece.
    pub piece_bytes: u32,
    /// Pieces that some volunteer has that peers can ask.
    pub spread: u32,
    /// Leases given by the origin since control's start: pieces that it was asked for.
    pub leases: u64,
    /// Those among them that were given again at the end, for speed, or to who starved.
    pub leases_again: u64,
    /// `leases` over `pieces`: copies that the origin was asked for.
    pub origin_copies: f64,
    /// Whether everybody who wants it has it.
    pub complete: bool,
    /// How far everybody is who takes part.
    pub members: Vec<BundleMember>,
}

/// A volunteer that takes part in a bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BundleMember {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Pieces that it has.
    pub held: u32,
    /// Pieces that it wants and lacks.
    pub lacks: u32,
    /// Leases that it has not used yet.
    pub leases: u32,
}

/// A volunteer that was caught.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BannedView {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Since when and why.
    pub why: String,
}

/// `POST /v1/admin/publish` asks for a walk over the repository; `GET /v1/admin/publish/WALK` tells how far it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PublishView {
    /// Which walk.
    pub walk: u64,
    /// Whether it has ended and all that it found is in the catalogue.
    pub walked: bool,
    /// Files still to hash.
    pub pending: u64,
    /// The catalogue's state now.
    pub sequence: u64,
    /// The state that volunteers are told of.
    pub released: u64,
    /// Whether all that the walk found is released to volunteers.
    pub done: bool,
}

/// The catalogue in figures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CatalogView {
    /// Grows with every change.
    pub sequence: u64,
    /// Files.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Different contents.
    pub contents: u64,
    /// Symbolic links.
    pub links: u64,
    /// Paths left out, with the reason for the first few.
    pub left_out: Vec<String>,
    /// Files still to hash in the scan under way.
    pub pending: u64,
}

/// The front door in figures, since control's start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FrontDoorView {
    /// Requests answered with a redirect to a volunteer.
    pub redirects: u64,
    /// Bytes of the files redirected to.
    pub redirected_bytes: u64,
    /// Requests served by the origin because they are small or metadata.
    pub direct: u64,
    /// Requests served by the origin because no volunteer could.
    pub fallback: u64,
    /// Requests told to come back later, because neither could.
    #[serde(default)]
    pub put_off: u64,
    /// Body bytes that the origin sent to customers.
    pub body_bytes: u64,
    /// Customers who came back from a volunteer.
    pub came_back: u64,
    /// Tickets in `b=` that were refused.
    pub tickets_refused: u64,
    /// Paths that are not in the catalogue.
    pub not_found: u64,
}

/// The origin's sync port in figures, since control's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncPortView {
    /// Responses with a blob, or a part of one.
    pub blobs: u64,
    /// Body bytes of blobs sent to volunteers.
    pub body_bytes: u64,
    /// Requests refused for want of a good token.
    pub tokens_refused: u64,
}

/// The body of every error answer of the API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApiError {
    /// What was expected, what came, what to do.
    pub error: String,
}
