//! Whom peers are not sent to although it was caught at nothing.
//!
//! A liar that answers the origin truly and its peers with rubbish leaves no proof, so it is not banned. Each peer that
//! it cheats stops asking it, but the next one is sent to it all the same, and what only it has stays with it. So
//! several who say so independently are believed as far as that: nobody is sent there, and what it holds does not
//! count. It loses nothing else, and for a while only.
//!
//! One word is worth nothing, however often it is said; nor is that of somebody who accuses a large part of the swarm,
//! whose own memory or network is the likelier cause.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use freshet_api::NodeId;

use crate::moment::Moment;

/// Who says of whom that wrong pieces came from it.
#[derive(Clone, Debug, Default)]
pub struct Suspicions {
    /// By who says so: of whom, and when last.
    by: BTreeMap<NodeId, BTreeMap<NodeId, Moment>>,
}

impl Suspicions {
    /// `by` says that a wrong piece came from `accused`.
    pub fn accuse(&mut self, by: NodeId, accused: NodeId, now: Moment) {
        if by == accused {
            return;
        }
        let accusations = self.by.entry(by).or_default();
        accusations.retain(|_, at| now.since(*at) < REMEMBERED_FOR);
        if accusations.len() < ACCUSED_MAX || accusations.contains_key(&accused) {
            accusations.insert(accused, now);
        }
    }

    /// `node` was banned, removed or pardoned: what it said and what was said of it counts no more.
    pub fn forget(&mut self, node: NodeId) {
        self.by.remove(&node);
        self.by.values_mut().for_each(|accusations| {
            accusations.remove(&node);
        });
        self.by.retain(|_, accusations| !accusations.is_empty());
    }

    /// Whom nobody should be sent to, in a swarm of `members`.
    ///
    /// Those whom at least three members, and at least a quarter of all, accuse who accuse at most a third of all
    /// (or two).
    pub fn suspects(&self, members: usize, now: Moment) -> BTreeSet<NodeId> {
        let needed = accusers_needed(members);
        let accused = self.accused(members, now).into_iter();
        accused.filter(|(_, (_, believed))| *believed >= needed).map(|(accused, _)| accused).collect()
    }

    /// Everybody who is accused, by whom, and by how many of those who are believed in a swarm of `members`.
    pub fn accused(&self, members: usize, now: Moment) -> BTreeMap<NodeId, (Vec<NodeId>, usize)> {
        let allowed = accusations_allowed(members);
        let mut found: BTreeMap<NodeId, (Vec<NodeId>, usize)> = BTreeMap::new();
        for (&by, accusations) in &self.by {
            let recent = accusations.iter().filter(|(_, at)| now.since(**at) < REMEMBERED_FOR);
            let accused: Vec<NodeId> = recent.map(|(&accused, _)| accused).collect();
            let believed = usize::from(accused.len() <= allowed);
            for accused in accused {
                let (accusers, count) = found.entry(accused).or_default();
                accusers.push(by);
                *count += believed;
            }
        }
        found
    }

    /// Whether nobody accuses anybody.
    pub fn is_empty(&self) -> bool {
        self.by.is_empty()
    }
}

/// How many must say the same in a swarm of `members` to be believed: as few cannot harm anybody who work together.
pub fn accusers_needed(members: usize) -> usize {
    ACCUSERS_MIN.max(members.div_ceil(ACCUSERS_PART))
}

/// How many anybody may accuse in a swarm of `members` and is believed.
fn accusations_allowed(members: usize) -> usize {
    ACCUSED_FEW.max(members / ACCUSED_PART)
}

const ACCUSERS_MIN: usize = 3;
const ACCUSERS_PART: usize = 4;
/// So many anybody may accuse and is believed.
const ACCUSED_FEW: usize = 2;
const ACCUSED_PART: usize = 3;
/// Whom one volunteer accuses is remembered up to so many.
const ACCUSED_MAX: usize = 64;
/// How long an accusation counts.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(minutes: u64) -> Moment {
        Moment::ZERO + Duration::from_secs(minutes * 60)
    }

    #[test]
    fn three_are_believed_and_two_are_not_however_loud() {
        let mut suspicions = Suspicions::default();
        for minute in 0..30 {
            suspicions.accuse(NodeId(1), NodeId(9), at(minute));
            suspicions.accuse(NodeId(2), NodeId(9), at(minute));
        }
        assert!(suspicions.suspects(10, at(30)).is_empty());
        suspicions.accuse(NodeId(9), NodeId(9), at(30));
        assert!(suspicions.suspects(10, at(30)).is_empty());
        suspicions.accuse(NodeId(3), NodeId(9), at(30));
        assert_eq!(suspicions.suspects(10, at(30)), BTreeSet::from([NodeId(9)]));
        assert!(suspicions.suspects(20, at(30)).is_empty(), "of twenty it takes five");
        assert!(suspicions.suspects(10, at(89)).is_empty(), "what two of them said is forgotten");
        suspicions.forget(NodeId(9));
        assert!(suspicions.is_empty());
    }

    #[test]
    fn who_accuses_many_is_not_believed() {
        let mut suspicions = Suspicions::default();
        for by in 1..=3 {
            suspicions.accuse(NodeId(by), NodeId(9), at(0));
        }
        for accused in 4..=6 {
            suspicions.accuse(NodeId(1), NodeId(accused), at(1));
        }
        assert!(suspicions.suspects(9, at(1)).is_empty());
        suspicions.accuse(NodeId(4), NodeId(9), at(1));
        assert_eq!(suspicions.suspects(9, at(1)), BTreeSet::from([NodeId(9)]));
    }

    proptest! {
        /// Whatever fewer than the needed say, in whatever order and however often, nobody is left out.
        #[test]
        fn a_few_slanderers_harm_nobody(
            members in 3usize..80,
            words in proptest::collection::vec((0u32..100, 0u32..80, 0u64..90), 0..400),
        ) {
            let slanderers = accusers_needed(members) as u32 - 1;
            let mut suspicions = Suspicions::default();
            let mut now = Moment::ZERO;
            for (by, accused, minutes) in words {
                now += Duration::from_secs(minutes);
                suspicions.accuse(NodeId(by % slanderers), NodeId(accused), now);
                prop_assert!(suspicions.suspects(members, now).is_empty());
            }
        }

        /// Honest members accuse liars only: once enough of them met one it is left out, whatever the liars and a few
        /// slanderers say, and no honest one ever is.
        #[test]
        fn liars_are_left_out_and_no_honest_member_is(
            members in 8u32..60,
            met in proptest::collection::vec((0u32..60, 0u32..6), 0..400),
            noise in proptest::collection::vec((0u32..60, 0u32..60), 0..400),
        ) {
            // Those who speak untruly are a tenth, and the first; the others are honest.
            let liars = (members / 10).max(1);
            let mut suspicions = Suspicions::default();
            let mut cheated: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
            for (by, liar) in met {
                let (by, liar) = (NodeId(liars + by % (members - liars)), NodeId(liar % liars));
                suspicions.accuse(by, liar, Moment::ZERO);
                cheated.entry(liar).or_default().insert(by);
            }
            for (by, accused) in noise {
                suspicions.accuse(NodeId(by % liars), NodeId(accused % members), Moment::ZERO);
            }
            let suspects = suspicions.suspects(members as usize, Moment::ZERO);
            prop_assert!(suspects.iter().all(|suspect| suspect.0 < liars), "{:?}", suspects);
            for (liar, by) in cheated {
                if by.len() >= accusers_needed(members as usize) {
                    prop_assert!(suspects.contains(&liar));
                }
            }
        }
    }
}
