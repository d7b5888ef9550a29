//! A volunteer's record, and all of them with the indexes by which they are found. Plain data, no I/O.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use freshet_api::enrol::Secret;
use freshet_api::operator::Profile;
use freshet_api::{NodeId, TicketKey};
use freshet_policy::trust::{Evidence, Subject};
use rpds::{HashTrieMapSync, RedBlackTreeMapSync};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::catalog::Snapshot;

/// One volunteer as it stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Seconds since the epoch.
    pub added: u64,
    /// The last join string made for it.
    pub invitation: Invitation,
    /// Its secrets since it joined.
    pub membership: Option<Membership>,
    /// Whether an operator has taken it out of service.
    pub draining: bool,
    /// Why it may take no part, if it was caught; kept in a table of its own.
    #[serde(skip)]
    pub ban: Option<Arc<Ban>>,
    /// What operators keep about it; in a table of its own.
    #[serde(skip)]
    pub profile: Arc<Profile>,
}

/// A volunteer was caught with wrong bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// Seconds since the epoch.
    pub since: u64,
    /// What control itself was sent.
    pub evidence: Evidence,
}

impl Ban {
    /// In words, with the path that the bytes were of, as long as `catalog` has that version of it.
    pub fn words(&self, catalog: &Snapshot) -> String {
        let entry = match &self.evidence.of {
            Subject::File(file) => catalog.by_id(*file),
            Subject::Object(content) => catalog.by_content(content),
        };
        self.about(entry.map(|entry| entry.path.as_str().chars().take(PATH_CHARS_SHOWN).collect()))
    }

    /// `path` is what people know the bytes by.
    fn about(&self, path: Option<String>) -> String {
        let since = i64::try_from(self.since).ok().and_then(|since| jiff::Timestamp::from_second(since).ok());
        let Evidence { of, offset, length, expected, received } = &self.evidence;
        let of = match (of, path) {
            (Subject::File(_), Some(path)) => path,
            (Subject::File(file), None) => format!("file {file}"),
            (Subject::Object(content), Some(path)) => format!("blob {content} ({path})"),
            (Subject::Object(content), None) => format!("blob {content}"),
        };
        let since = since.map_or_else(String::new, |since| format!(" since {since}"));
        format!(
            "banned{since}: {length} bytes from {offset} of {of} were sent as {received}, expected {expected} (BLAKE3)"
        )
    }
}

/// Without a path.
impl fmt::Display for Ban {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.about(None))
    }
}

/// A join string, as far as control remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Digest of its secret.
    pub secret_digest: [u8; 32],
    /// Seconds since the epoch.
    pub made: u64,
    /// Seconds since the epoch after which it is worth nothing.
    pub expires: u64,
}

/// What a volunteer proves itself with, and what its tickets are sealed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Digest of its credential.
    pub credential_digest: [u8; 32],
    /// Seals its tickets.
    pub ticket_key: TicketKey,
    /// Seconds since the epoch.
    pub joined: u64,
}

/// What an operator calls a volunteer: 1 ..= 64 letters, digits, `.`, `_`, `-`, with a letter among them, so
/// that it is never mistaken for a number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, NodeNameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let fits = (1..=64).contains(&text.len()) && text.chars().all(allowed);
        if fits && text.contains(|c: char| c.is_ascii_alphabetic()) {
            Ok(Self(text.into()))
        } else {
            Err(NodeNameError { found: text.chars().take(80).collect() })
        }
    }
}

impl TryFrom<String> for NodeName {
    type Error = NodeNameError;

    fn try_from(text: String) -> Result<Self, NodeNameError> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Text that is no name for a volunteer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a name of 1 to 64 letters, digits, `.`, `_` or `-` with a letter among them, found {found:?}"
)]
pub struct NodeNameError {
    /// The first 80 characters of what was found.
    pub found: String,
}

/// All volunteers at one moment.
///
/// A copy shares with its original what neither changes: it is made for every change, however many there are.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    by_id: RedBlackTreeMapSync<NodeId, Arc<Node>>,
    by_name: HashTrieMapSync<NodeName, NodeId>,
    by_credential: HashTrieMapSync<[u8; 32], NodeId>,
    by_invitation: HashTrieMapSync<[u8; 32], NodeId>,
}

impl Nodes {
    /// How many.
    pub fn len(&self) -> usize {
        self.by_id.size()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// In the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.by_id.values()
    }

    /// The largest number of any.
    pub fn last_id(&self) -> Option<NodeId> {
        self.by_id.last().map(|(&id, _)| id)
    }

    /// Those with these numbers, in their order.
    pub fn range(&self, ids: std::ops::RangeInclusive<NodeId>) -> impl Iterator<Item = &Arc<Node>> {
        self.by_id.range(ids).map(|(_, node)| node)
    }

    /// By number.
    pub fn by_id(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.by_id.get(&id)
    }

    /// By name, or by number where the text is one.
    pub fn by_name_or_id(&self, text: &str) -> Option<&Arc<Node>> {
        if let Ok(id) = text.parse() {
            return self.by_id(id);
        }
        self.by_id(*self.by_name.get(&text.parse::<NodeName>().ok()?)?)
    }

    /// Whose credential this is.
    ///
    /// Found by its digest, and the digests are compared in constant time: what a look-up's time could tell
    /// is about a hash of 256 random bits.
    pub fn by_credential(&self, credential: &Secret) -> Option<&Arc<Node>> {
        let digest = credential.digest();
        let node = self.by_id(*self.by_credential.get(&digest)?)?;
        let known = node.membership.as_ref()?.credential_digest;
        bool::from(known.ct_eq(&digest)).then_some(node)
    }

    /// For whom a join secret with this digest was made.
    pub(super) fn by_invitation(&self, secret_digest: &[u8; 32]) -> Option<&Arc<Node>> {
        self.by_id(*self.by_invitation.get(secret_digest)?)
    }

    pub(super) fn by_exact_name(&self, name: &NodeName) -> Option<&Arc<Node>> {
        self.by_id(*self.by_name.get(name)?)
    }

    /// Adds a record that no registry made.
    #[cfg(test)]
    pub(crate) fn put_for_tests(&mut self, node: Node) {
        self.put(Arc::new(node));
    }

    pub(super) fn put(&mut self, node: Arc<Node>) {
        self.take(node.id);
        self.by_name.insert_mut(node.name.clone(), node.id);
        self.by_invitation.insert_mut(node.invitation.secret_digest, node.id);
        if let Some(membership) = &node.membership {
            self.by_credential.insert_mut(membership.credential_digest, node.id);
        }
        self.by_id.insert_mut(node.id, node);
    }

    pub(super) fn take(&mut self, id: NodeId) -> Option<Arc<Node>> {
        let node = Arc::clone(self.by_id.get(&id)?);
        self.by_id.remove_mut(&id);
        self.by_name.remove_mut(&node.name);
        self.by_invitation.remove_mut(&node.invitation.secret_digest);
        if let Some(membership) = &node.membership {
            self.by_credential.remove_mut(&membership.credential_digest);
        }
        Some(node)
    }
}

/// Characters of a path in a ban at most.
const PATH_CHARS_SHOWN: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for text in ["a", "mirror-1.example.org", "1a", &"x".repeat(64)] {
            assert_eq!(text.parse::<NodeName>().unwrap().as_str(), text);
        }
        for text in ["", "17", "a b", "a/b", "ä", "1.2", &"x".repeat(65), "a\n"] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?}");
        }
        assert!(serde_json::from_str::<NodeName>("\"a b\"").is_err());
    }

    #[test]
    fn nodes_are_found_by_number_name_and_credential() {
        let credential = Secret([3; 32]);
        let node = Node {
            id: NodeId(7),
            name: "south".parse().unwrap(),
            added: 1,
            invitation: Invitation { secret_digest: [1; 32], made: 1, expires: 2 },
            membership: Some(Membership {
                credential_digest: credential.digest(),
                ticket_key: TicketKey([2; 32]),
                joined: 1,
            }),
            draining: false,
            ban: None,
            profile: Arc::default(),
        };
        let mut nodes = Nodes::default();
        nodes.put(Arc::new(node.clone()));
        for found in
            [nodes.by_name_or_id("7"), nodes.by_name_or_id("south"), nodes.by_credential(&credential)]
        {
            assert_eq!(found.unwrap().id, NodeId(7));
        }
        assert!(nodes.by_name_or_id("8").is_none() && nodes.by_name_or_id("so uth").is_none());
        assert!(nodes.by_credential(&Secret([4; 32])).is_none());
        // A new credential replaces the old one in the index too.
        let mut renewed = node;
        renewed.membership.as_mut().unwrap().credential_digest = Secret([4; 32]).digest();
        nodes.put(Arc::new(renewed));
        assert!(nodes.by_credential(&credential).is_none());
        assert!(nodes.by_credential(&Secret([4; 32])).is_some());
        nodes.take(NodeId(7)).unwrap();
        assert!(nodes.is_empty() && nodes.by_credential(&Secret([4; 32])).is_none());
    }
}
