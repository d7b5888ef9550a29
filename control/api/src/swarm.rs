//! What a volunteer and the tracker say about one bundle: what it has, what it may fetch from the origin, whom
//! else to ask.
//!
//! `GET /v1/bundles` lists the bundles that are being copied ([`BundleList`]), `GET /v1/bundle/<id>` is one in its
//! wire form, `POST /v1/swarm` is a [`SwarmPoll`] answered by a [`SwarmReply`]. A peer's sync port answers
//! `GET /have/<bundle id>` with the pieces that it has, verified and durable: one bit per piece, the first in the
//! lowest bit of the first byte; and `GET /blob/<hash>` with a `Range` of whole pieces (any range once it has all).

use serde::{Deserialize, Serialize};

use crate::bundle::BundleId;
use crate::id::NodeId;
use crate::units::BytesPerSec;

/// The bundles that are being copied, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleList {
    /// At most [`BUNDLES_MAX`].
    pub bundles: Vec<BundleRef>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRef {
    /// Its identity.
    pub id: BundleId,
    /// The manifest's sequence that first names its contents.
    pub sequence: u64,
}

/// `POST /v1/swarm`, about once a second while a bundle is being copied and when leases run out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmPoll {
    /// Which bundle.
    pub bundle: BundleId,
    /// Whether `have` is everything, and not only what is new since the last poll that was answered.
    pub whole: bool,
    /// Pieces that are verified and durable here.
    pub have: Runs,
    /// Pieces that it will never want: of files that it does not mirror or has already. Only with `whole`.
    pub unwanted: Runs,
    /// How many leases it can use now, those that it has not used yet not counted; at most [`LEASES_MAX`] are given.
    pub leases: u32,
    /// What it can send to peers just now, if it knows.
    pub spare: Option<BytesPerSec>,
    /// Pieces that came wrong, whole, from one peer each; at most [`COMPLAINTS_MAX`].
    pub complaints: Vec<Complaint>,
    /// Whether it takes no part any more (complete and nobody needs it, or not wanted): it is no peer then.
    pub leaving: bool,
    /// Which list of peers it has ([`SwarmReply::peers_are`]); zero for none.
    pub peers_known: u64,
}

impl SwarmPoll {
    /// The poll of one who takes part in a bundle and has nothing to say or to ask for.
    pub fn of(bundle: BundleId) -> Self {
        Self {
            bundle,
            whole: false,
            have: Runs::default(),
            unwanted: Runs::default(),
            leases: 0,
            spare: None,
            complaints: Vec::new(),
            leaving: false,
            peers_known: 0,
        }
    }
}

/// A wrong piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// Who sent it.
    pub peer: NodeId,
    /// Which.
    pub piece: u32,
}

/// The tracker's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmReply {
    /// Whether the tracker does not know all that this volunteer has: the next poll should be `whole`.
    pub want_whole: bool,
    /// Pieces that it, and nobody else, should fetch from the origin.
    pub leases: Vec<LeaseGrant>,
    /// Whom else to ask, at most [`PEERS_MAX`]: replaces the earlier list when `peers_are` is another than the poll's
    /// `peers_known`, else it is left out.
    pub peers: Vec<PeerHint>,
    /// Names the list that holds; zero for an empty one. A list is most of a reply's bytes.
    pub peers_are: u64,
    /// Whether everybody who wants this bundle has it: nobody needs this volunteer's copy any more.
    pub complete: bool,
    /// Whether the tracker does not copy this bundle (any more): what lacks comes as whole contents from the origin.
    pub closed: bool,
    /// Whether it is another mirror's turn to be served by peers, so that nothing coming is nothing wrong.
    #[serde(default)]
    pub waits: bool,
    /// When the next poll is due, milliseconds (50 ..= 10,000).
    pub interval_ms: u64,
}

/// Leave to fetch one piece from the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// Which.
    pub piece: u32,
    /// For how long from now, milliseconds.
    pub for_ms: u64,
}

/// A peer to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHint {
    /// Who.
    pub node: NodeId,
    /// Its sync port, without a trailing `/`.
    pub url: String,
    /// `Authorization: Bearer` there: a [`SyncToken`](crate::SyncToken) sealed under
    /// [`SyncKey::of_volunteer`](crate::SyncKey::of_volunteer).
    pub token: String,
}

/// Numbers as runs `[from, to)`, ascending, neither empty nor touching.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u32, u32)>", into = "Vec<(u32, u32)>")]
pub struct Runs(Vec<(u32, u32)>);

impl Runs {
    /// The numbers one by one.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|&(from, to)| from..to)
    }

    /// How many numbers.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|&(from, to)| u64::from(to - from)).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more than the largest; 0 for none.
    pub fn end(&self) -> u32 {
        self.0.last().map_or(0, |&(_, to)| to)
    }
}

impl FromIterator<u32> for Runs {
    /// From numbers in ascending order; one that is not above its predecessor is left out.
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some((_, to)) if number < *to => {}
                Some((_, to)) if number == *to => *to = number.saturating_add(1),
                _ => runs.push((number, number.saturating_add(1))),
            }
        }
        Self(runs)
    }
}

impl TryFrom<Vec<(u32, u32)>> for Runs {
    type Error = RunsError;

    fn try_from(runs: Vec<(u32, u32)>) -> Result<Self, RunsError> {
        let ascending = runs.windows(2).all(|pair| pair[0].1 < pair[1].0);
        if runs.len() <= RUNS_MAX && ascending && runs.iter().all(|(from, to)| from < to) {
            Ok(Self(runs))
        } else {
            Err(RunsError)
        }
    }
}

impl From<Runs> for Vec<(u32, u32)> {
    fn from(runs: Runs) -> Self {
        runs.0
    }
}

/// Runs that are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected at most {RUNS_MAX} runs [from, to), ascending, not empty and not touching")]
pub struct RunsError;

/// Bundles listed at most.
pub const BUNDLES_MAX: usize = 256;
/// Leases in one reply at most.
pub const LEASES_MAX: usize = 256;
/// Peers in one reply at most.
pub const PEERS_MAX: usize = 32;
/// Complaints in one poll at most.
pub const COMPLAINTS_MAX: usize = 64;
/// Runs in one list at most: every second piece of the largest bundle.
pub const RUNS_MAX: usize = crate::bundle::PIECES_MAX / 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_that_overlap_touch_or_are_empty_are_refused() {
        for runs in [vec![(3, 3)], vec![(3, 2)], vec![(0, 2), (2, 4)], vec![(4, 5), (0, 1)]] {
            assert_eq!(Runs::try_from(runs), Err(RunsError));
        }
        assert!(serde_json::from_str::<Runs>("[[5,4]]").is_err());
    }

    proptest! {
        #[test]
        fn runs_hold_the_numbers_they_are_made_of(numbers in proptest::collection::btree_set(0u32..500, 0..200)) {
            let runs: Runs = numbers.iter().copied().collect();
            prop_assert!(runs.iter().eq(numbers.iter().copied()));
            prop_assert_eq!(runs.count(), numbers.len() as u64);
            prop_assert_eq!(runs.end(), numbers.last().map_or(0, |last| last + 1));
            let json = serde_json::to_string(&runs).unwrap();
            prop_assert_eq!(serde_json::from_str::<Runs>(&json).unwrap(), runs);
        }
    }
}
