//! Who is told to hold what (`ctl placement`), for volunteers whose owners leave that to control.

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::units::{Bytes, BytesPerSec};

/// `GET /v1/admin/placement`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PlacementView {
    /// Whether orders change; see the knob `placement`.
    pub on: bool,
    /// Volunteers whose owners leave it to control.
    pub hosts: Vec<HostView>,
    /// Crowds that operators expect.
    pub expected: Vec<Expectation>,
}

/// A volunteer that is told what to hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostView {
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Whether it is there so much that it is given collections.
    pub stable: bool,
    /// The part of the time that it is there, hundredths.
    pub available_percent: f64,
    /// How long it stays on average, seconds.
    pub session_secs: u64,
    /// Room that it gives.
    pub space: Bytes,
    /// Collections that it is told to hold.
    pub collections: Vec<String>,
    /// Hot files that it is told to hold beside them.
    pub hot: Vec<String>,
}

/// A crowd that is going to ask for files, before anybody has asked (`POST /v1/admin/placement/expect`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// Which files.
    pub pattern: String,
    /// What will be asked of all of them together.
    pub rate: BytesPerSec,
    /// Until when, seconds since the epoch.
    pub until: u64,
}

/// `POST /v1/admin/placement/forget`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forget {
    /// The pattern of an expectation.
    pub pattern: String,
}

/// Expectations at the same time at most.
pub const EXPECTATIONS_MAX: usize = 100;
