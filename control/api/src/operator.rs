//! Who operates control, what they did, and what happened: the messages of `ctl key`, `audit`, `events`, `verify` and
//! `file`, and the rates that `ctl top` and the status page show.

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::manifest::RepoPath;
use crate::units::BytesPerSec;

/// What an operator's key lets them do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sees everything and changes nothing.
    ReadOnly,
    /// Changes what can be changed, other operators' keys included.
    Admin,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::ReadOnly => "read-only",
            Self::Admin => "admin",
        })
    }
}

/// `POST /v1/admin/keys`: makes an operator's key. The answer is
/// [`OperatorCredentials`](crate::admin::OperatorCredentials), which control does not keep.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddKey {
    /// Who it is for: 1 to 64 letters, digits, `.`, `_`, `-`, `@`; unique.
    pub name: String,
    /// What it lets them do.
    pub role: Role,
}

/// An operator's key, without the secret (`GET /v1/admin/keys`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    /// Whose it is.
    pub name: String,
    /// What it lets them do.
    pub role: Role,
    /// Seconds since the epoch; none for the key that control made at its first start.
    pub added: Option<u64>,
    /// When it was last used since control's start, seconds since the epoch.
    pub used: Option<u64>,
}

/// One line of the audit log (`GET /v1/admin/audit`): who changed what, or tried to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Seconds since the epoch.
    pub at: u64,
    /// Whose key it was.
    pub who: String,
    /// What that key lets them do.
    pub role: Role,
    /// From which address.
    pub from: Option<std::net::IpAddr>,
    /// The request: method and path.
    pub request: String,
    /// Its body, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
    /// Status of the answer: below 300 it was done.
    pub status: u16,
}

/// Something that happened (`GET /v1/admin/events`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows with every event, also over restarts of control.
    pub id: u64,
    /// Seconds since the epoch.
    pub at: u64,
    /// Of what kind.
    pub kind: EventKind,
    /// The volunteer it is about, by name.
    pub node: Option<String>,
    /// In words.
    pub text: String,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// Control started or stops.
    Control,
    /// A volunteer came, went, or takes customers no more.
    Volunteer,
    /// A volunteer's mirror is in trouble, or out of it.
    Mirror,
    /// The repository changed, or volunteers were told of it.
    Release,
    /// An operator changed something.
    Operator,
}

impl EventKind {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Volunteer => "volunteer",
            Self::Mirror => "mirror",
            Self::Release => "release",
            Self::Operator => "operator",
        }
    }
}

/// Bytes per second of one class on one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRates {
    /// Received.
    #[serde(rename = "in")]
    pub received: BytesPerSec,
    /// Sent.
    #[serde(rename = "out")]
    pub sent: BytesPerSec,
}

impl FlowRates {
    /// Both added.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            received: BytesPerSec(self.received.0.saturating_add(other.received.0)),
            sent: BytesPerSec(self.sent.0.saturating_add(other.sent.0)),
        }
    }
}

/// Rates of the classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassRates {
    /// To and from customers.
    pub delivery: FlowRates,
    /// To and from mirrors and the origin.
    pub sync: FlowRates,
    /// Heartbeats and commands.
    pub control: FlowRates,
    /// The owner's own.
    pub other: FlowRates,
}

impl ClassRates {
    /// Both added.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            delivery: self.delivery.plus(other.delivery),
            sync: self.sync.plus(other.sync),
            control: self.control.plus(other.control),
            other: self.other.plus(other.other),
        }
    }
}

/// Rates on one interface of a volunteer, from the counters of its last heartbeats.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceRates {
    /// The interface's name.
    pub name: String,
    /// By class.
    pub classes: ClassRates,
}

/// `POST /v1/admin/nodes/NAME/edit`: what operators keep about a volunteer. What is not given stays; empty text takes
/// it away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditNode {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whom to ask, such as an address of electronic mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<String>,
    /// Who gives it: a department, a company.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sponsor: Option<String>,
    /// Anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What operators keep about a volunteer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Whom to ask.
    pub contact: String,
    /// Who gives it.
    pub sponsor: String,
    /// Anything else.
    pub note: String,
}

/// `POST /v1/admin/nodes/NAME/verify`: asks a volunteer for ranges of files, as a customer would, and compares them with
/// the repository's own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Which file; without it files that it holds, drawn at random.
    #[serde(default)]
    pub path: Option<String>,
    /// How many ranges: 1 to [`VERIFY_RANGES_MAX`].
    pub ranges: u32,
}

/// What came of a [`Verify`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyView {
    /// Which volunteer.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// One for each range that was asked for.
    pub checks: Vec<Check>,
    /// Whether it was caught with wrong bytes and banned for it.
    pub banned: bool,
}

/// One range that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Of which file.
    pub path: RepoPath,
    /// From which byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// What came.
    pub outcome: CheckOutcome,
    /// In words, where there is something to say.
    #[serde(default)]
    pub why: String,
}

/// What came of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// The right bytes.
    Right,
    /// Other bytes than the repository's.
    Wrong,
    /// It sent the customer back to the front door: it lacks the file, or may not serve now.
    SentBack,
    /// Nothing that could be compared.
    NoAnswer,
}

/// `GET /v1/admin/files?match=PATTERN`: files whose path matches, with how many hold them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesView {
    /// In the order of their paths, up to the limit.
    pub files: Vec<FileLine>,
    /// How many match in all.
    pub matching: u64,
}

/// A file in a [`FilesView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLine {
    /// Where it is.
    pub path: RepoPath,
    /// Bytes.
    pub size: u64,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// Volunteers that hold this version.
    pub holders: u64,
}

/// `GET /v1/admin/downloads?match=PATTERN&by=month&limit=`: how often customers asked for each file from its beginning,
/// days being those of UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadsView {
    /// When counting began, seconds since the epoch.
    pub since: u64,
    /// The most asked for first, up to the limit.
    pub files: Vec<DownloadLine>,
    /// How many files match in all.
    pub matching: u64,
    /// Of all that match.
    pub sum: DownloadSums,
    /// Requests that are counted for no file any more: those that were gone when they were counted, or are for long.
    pub unknown: u64,
}

/// A file in a [`DownloadsView`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadLine {
    /// Where it is, or was.
    pub path: String,
    /// Today.
    pub today: u64,
    /// In the last seven days.
    pub week: u64,
    /// In the last thirty days.
    pub month: u64,
    /// Since counting began.
    pub total: u64,
}

impl DownloadLine {
    /// The number that lines are put in order by.
    pub const fn by(&self, by: DownloadsBy) -> u64 {
        match by {
            DownloadsBy::Today => self.today,
            DownloadsBy::Week => self.week,
            DownloadsBy::Month => self.month,
            DownloadsBy::Total => self.total,
        }
    }
}

/// Sums over files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadSums {
    /// Today.
    pub today: u64,
    /// In the last seven days.
    pub week: u64,
    /// In the last thirty days.
    pub month: u64,
    /// Since counting began.
    pub total: u64,
}

/// By which time a [`DownloadsView`] is put in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DownloadsBy {
    /// Today.
    Today,
    /// In the last seven days.
    Week,
    /// In the last thirty days.
    #[default]
    Month,
    /// Since counting began.
    Total,
}

/// `POST /v1/admin/reload` and `/upgrade`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadView {
    /// Settings that changed and are in force.
    pub applied: Vec<String>,
    /// Settings that changed and wait for a restart (`ctl upgrade`).
    pub waiting: Vec<String>,
}

/// Ranges of one [`Verify`] at most.
pub const VERIFY_RANGES_MAX: u32 = 100;
/// Characters of a text in a [`Profile`] at most.
pub const PROFILE_CHARS_MAX: usize = 500;
