//! What a volunteer tells control every interval, and what it is told in return.
//!
//! All counters are absolute and grow while `boot` stays, so that a heartbeat that is lost, late or sent
//! twice changes nothing.

use serde::{Deserialize, Serialize};

use crate::id::FileId;
use crate::traffic::{CounterSource, InterfaceCounters};
use crate::units::{Bytes, BytesPerSec};

/// `POST /v1/heartbeat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Random at each start of the daemon: counters begin anew with it.
    pub boot: u64,
    /// 1, 2, 3, … within this boot; an older one than the last is ignored.
    pub sequence: u64,
    /// Milliseconds of the daemon's monotonic clock when this was written, from any origin that stays for `boot`: what it
    /// says is of then, however late it arrives. None from a daemon that does not tell.
    #[serde(default)]
    pub written_ms: Option<u64>,
    /// The daemon's version.
    pub version: String,
    /// What customers are sent to, without a trailing `/`: `http://host:port`.
    pub delivery_url: String,
    /// What peers of the swarm ask, without a trailing `/`.
    pub sync_url: Option<String>,
    /// Whether customers may be sent here now.
    pub readiness: Readiness,
    /// Most that the owner gives to delivery and sync together just now.
    pub donated_rate: Option<BytesPerSec>,
    /// What is left of what the owner gives; none from a daemon that does not tell.
    #[serde(default)]
    pub budget: Option<BudgetReport>,
    /// Where the counters come from.
    pub source: CounterSource,
    /// Counters per interface, by class.
    pub interfaces: Vec<InterfaceCounters>,
    /// What was delivered.
    pub delivery: DeliveryCounters,
    /// How far the mirror is.
    pub sync: SyncProgress,
    /// What changed in the holdings since the last acknowledged heartbeat.
    pub holdings: HoldingsDelta,
}

/// Whether a volunteer takes customers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Readiness {
    /// It does.
    Ready,
    /// It doesn't just now: the owner's limits, a full disk, a stop under way.
    Closed {
        /// For the operator, in words.
        why: String,
    },
}

/// Where the owner's budget stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetReport {
    /// What may go out now; none for no limit.
    pub rate: Option<BytesPerSec>,
    /// What determines that: `none`, `cap`, `hours`, `owner`, `percentile` or `quota`.
    pub limit: String,
    /// Bytes donated in this month.
    pub used: Bytes,
    /// Bytes that new transfers may still be promised: by the volume, and before hours in which nothing goes out. None
    /// for no such end.
    pub promisable: Option<Bytes>,
    /// The month's volume, if there is one.
    pub month: Option<MonthReport>,
}

/// Where the month stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthReport {
    /// What is given in all.
    pub volume: Bytes,
    /// What is left of it.
    pub left: Bytes,
    /// Seconds until the next one begins.
    pub ends_in_secs: u64,
    /// Seconds that this one lasts in all.
    pub lasts_secs: u64,
}

/// Counters of the delivery port since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryCounters {
    /// Responses with a file.
    pub responses: u64,
    /// Body bytes handed to the kernel, those of responses that go on among them.
    pub body_bytes: u64,
    /// Body bytes that were promised but not sent: customers who went away.
    pub abandoned_bytes: u64,
    /// Customers sent back to the front door.
    pub sent_back: u64,
    /// Tickets refused because they are none.
    pub tickets_malformed: u64,
    /// Tickets refused because they were altered or are for another file or volunteer.
    pub tickets_forged: u64,
    /// Tickets refused because they are too old.
    pub tickets_expired: u64,
    /// Requests refused because they brought no ticket.
    pub tickets_missing: u64,
    /// Transfers under way now.
    pub active: u64,
    /// Body bytes that those among them have still to send which did not go out at once; none from volunteers that don't
    /// tell.
    #[serde(default)]
    pub owed_bytes: Option<u64>,
}

/// How far a mirror is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncProgress {
    /// [`Manifest::sequence`](crate::manifest::Manifest::sequence) that is complete on disk; 0 for none.
    pub complete: u64,
    /// The one being fetched; equal to `complete` when idle.
    pub target: u64,
    /// Files still to fetch.
    pub files_missing: u64,
    /// Bytes still to fetch.
    pub bytes_missing: u64,
    /// Files that the mirror holds.
    pub files_held: u64,
    /// Bytes that the mirror holds, each content once.
    pub bytes_held: u64,
    /// What stops it, in words, if something does.
    pub trouble: Option<String>,
    /// What is being copied, and from where it came.
    #[serde(default)]
    pub transfer: Transfer,
    /// What the owner leaves to control to choose; none where the owner chooses.
    #[serde(default)]
    pub offer: Option<HoldOffer>,
}

/// What an owner leaves to control: which part of the repository is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldOffer {
    /// Room in all, each content once.
    pub space: Bytes,
    /// What the owner keeps whatever control says, as patterns.
    pub include: Vec<String>,
    /// What the owner never keeps.
    pub exclude: Vec<String>,
}

/// What control orders a volunteer to hold whose owner leaves that to control.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldOrder {
    /// Patterns over paths, as in `[mirror] include`; at most [`HOLD_PATTERNS_MAX`]. With none, nothing is held beside
    /// what the owner keeps.
    pub include: Vec<String>,
}

/// Patterns in a [`HoldOrder`] at most.
pub const HOLD_PATTERNS_MAX: usize = 1_000;

/// What sync copies. The bytes grow from the daemon's start on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Peers of the swarm that are asked now.
    pub peers: u32,
    /// Received over the last seconds, from the origin and from peers together.
    pub rate: BytesPerSec,
    /// Payload from the origin.
    pub origin_bytes: u64,
    /// Payload from peers, verified.
    pub peer_bytes: u64,
    /// Found on this host's own disk.
    pub disk_bytes: u64,
    /// Made by recipes.
    pub recipe_bytes: u64,
    /// Payload that came and was dropped: wrong, too late, or asked for twice.
    pub wasted_bytes: u64,
}

/// A change of what a volunteer holds and serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingsDelta {
    /// Files it can serve since the last acknowledged heartbeat; at most [`DELTA_MAX`], the rest comes next time.
    pub added: Vec<FileId>,
    /// Files it can't serve any more.
    pub removed: Vec<FileId>,
    /// How many files it holds after this delta.
    pub count: u64,
    /// [`holdings_digest`] of what it holds after this delta: tells control whether it knows all.
    pub digest: u64,
}

/// What control says to a heartbeat, after everything in it that must last is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// When the next one is due, milliseconds (50 ..= 60,000).
    pub interval_ms: u64,
    /// The present [`Manifest::sequence`](crate::manifest::Manifest::sequence).
    pub manifest_sequence: u64,
    /// URL of the front door, without a trailing `/`.
    pub front_door: String,
    /// URL of the origin's sync port, without a trailing `/`.
    pub origin_sync_url: String,
    /// `Authorization: Bearer` for the origin's sync port; renewed well before it expires.
    pub sync_token: String,
    /// Whether control knows something else than the volunteer holds: it should `PUT /v1/holdings`.
    pub want_holdings: bool,
    /// Whether the operator has it drained: it finishes transfers and gets no new customers.
    pub draining: bool,
    /// Why it may take no part, in at most [`BAN_CHARS_MAX`] characters; none when it is not banned.
    #[serde(default)]
    pub banned: Option<String>,
    /// Delivery's share of what is sent while sync wants to send too, thousandths; sync has the rest. None when nobody has
    /// a say.
    #[serde(default)]
    pub delivery_permille: Option<u16>,
    /// Whether small downloads go before large ones within delivery's share.
    #[serde(default)]
    pub small_first: bool,
    /// What to hold; none where the owner chooses, or nothing was ordered yet.
    #[serde(default)]
    pub hold: Option<HoldOrder>,
}

/// A sum over a set of files that is kept up to date by adding and removing single ones.
///
/// XOR of a mixed number per file (SplitMix64's finaliser): order does not matter, and adding one twice is
/// seen.
pub fn holdings_digest(file: FileId) -> u64 {
    let mut mixed = u64::from(file.0).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Characters of the reason for a ban at most.
pub const BAN_CHARS_MAX: usize = 600;

/// Files that one heartbeat adds, and removes, at most; above, the whole set is sent (`PUT /v1/holdings`).
pub const DELTA_MAX: usize = 10_000;

/// Bytes of the body of `PUT /v1/holdings` (a Roaring bitmap in its portable form) at most.
pub const HOLDINGS_BYTES_MAX: usize = 64 << 20;
