//! `[mirror]`: which part of the repository a volunteer keeps, when it does not keep all of it.

use freshet_api::Bytes;
use freshet_api::heartbeat::HoldOffer;
use serde::{Deserialize, Serialize};

use crate::mirror::{Selection, SelectionError};

/// `[mirror]`. Patterns are `*` and `?` within a segment and `**` across segments; one without `/` is about the file's
/// name, wherever it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MirrorConfig {
    /// What is kept; without any, everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// What is not kept, also when it is included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Most that is kept, each content once: indexes first, then the newest files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Bytes>,
    /// Leaves it to control what is kept beside `include`: collections if this host is nearly always there, otherwise
    /// files that are much asked for. Needs a `quota`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ordered: bool,
}

impl MirrorConfig {
    /// Whether everything is kept.
    pub fn is_whole(&self) -> bool {
        *self == Self::default()
    }

    /// As the mirror wants it.
    ///
    /// # Errors
    /// Names what is no pattern.
    pub fn selection(&self) -> Result<Selection, SelectionError> {
        Selection::new(&self.include, &self.exclude, self.quota)
    }

    /// What is left to control, if it is.
    pub fn offer(&self) -> Option<HoldOffer> {
        let space = self.quota.filter(|_| self.ordered)?;
        Some(HoldOffer { space, include: self.include.clone(), exclude: self.exclude.clone() })
    }
}
