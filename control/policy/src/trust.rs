//! How far a volunteer is trusted, from audits and what customers met. No I/O: audits are made
//! elsewhere, here is only what they mean and which to make next.
//!
//! A beta reputation (Jøsang and Ismail, 2002): good and bad evidence, both fading, over a prior that
//! a newcomer starts from. Wrong bytes are no matter of degree: one proven case is a ban.

use std::collections::BTreeMap;
use std::time::Duration;

use freshet_api::{ContentHash, FileId, NodeId};
use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::moment::Moment;

/// Something that was seen of a volunteer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Sighting {
    /// An audit of a random range through an ordinary request: the bytes were right.
    RightBytes,
    /// The bytes were wrong, and the origin compared them itself.
    WrongBytes(Evidence),
    /// A customer or a peer says they were wrong; the origin has not checked yet.
    Complaint,
    /// It did not answer an audit, or not in time.
    NoAnswer,
    /// It sent a client back although it had reported the file.
    SentBack,
    /// It counted more bytes as delivered than went through its interface, or than were redirected to it.
    Overstated,
}

/// What proves that bytes were wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Of what.
    pub of: Subject,
    /// Where the range began.
    pub offset: u64,
    /// How long it was.
    pub length: u64,
    /// What the range hashes to at the origin.
    pub expected: ContentHash,
    /// What came.
    pub received: ContentHash,
}

/// What bytes were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A version of a path, as customers ask for it.
    File(FileId),
    /// An object of the swarm, as peers ask for it.
    Object(ContentHash),
}

/// One volunteer's reputation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reputation {
    good: f64,
    bad: f64,
    ban: Option<Evidence>,
    audits: u64,
    #[serde(skip)]
    at: Moment,
}

impl Reputation {
    /// Takes in a sighting.
    pub fn saw(&mut self, sighting: Sighting, now: Moment) {
        let faded = fade(now.since(self.at));
        self.good *= faded;
        self.bad *= faded;
        self.at = self.at.max(now);
        match sighting {
            Sighting::RightBytes => {
                self.good += 1.0;
                self.audits += 1;
            }
            Sighting::WrongBytes(evidence) => {
                self.audits += 1;
                self.bad += 1.0;
                self.ban.get_or_insert(evidence);
            }
            Sighting::Complaint => self.bad += COMPLAINT,
            Sighting::NoAnswer => self.bad += NO_ANSWER,
            Sighting::SentBack => self.bad += SENT_BACK,
            Sighting::Overstated => self.bad += OVERSTATED,
        }
    }

    /// The score: 0 (banned) to 1; a newcomer has [`NEWCOMER`].
    pub fn score(&self, now: Moment) -> f64 {
        if self.ban.is_some() {
            return 0.0;
        }
        let faded = fade(now.since(self.at));
        (self.good * faded + PRIOR * NEWCOMER) / ((self.good + self.bad) * faded + PRIOR)
    }

    /// Whether it may serve.
    pub fn is_trusted(&self, now: Moment) -> bool {
        self.score(now) >= TRUSTED_MIN
    }

    /// Why it is banned, if it is.
    pub fn ban(&self) -> Option<&Evidence> {
        self.ban.as_ref()
    }

    /// Lifts a ban by the operator's decision; the bad evidence stays and fades.
    pub fn pardon(&mut self) -> Option<Evidence> {
        self.ban.take()
    }

    /// How much an audit of this volunteer would tell: more for one that serves much and one of which
    /// little is known. `served` is its part of all bytes delivered (0 ..= 1).
    pub fn audit_urge(&self, served: f64, now: Moment) -> f64 {
        if self.ban.is_some() {
            return 0.0;
        }
        let evidence = (self.good + self.bad) * fade(now.since(self.at)) + PRIOR;
        (served.clamp(0.0, 1.0) + AUDIT_FLOOR) * (1.0 - self.score(now) + 1.0 / evidence)
    }
}

/// What complaints about wrong bytes turned out to be worth, by who complained about whom.
///
/// Nobody is harmed by a complaint: it only makes the origin look for itself. Who complains about honest
/// volunteers costs those looks, and after a few is not heard any more.
#[derive(Clone, Debug, Default)]
pub struct Complaints {
    of: BTreeMap<NodeId, Complainant>,
}

#[derive(Clone, Debug, Default)]
struct Complainant {
    refuted: BTreeMap<NodeId, (u32, Moment)>,
}

impl Complaints {
    /// Whether a complaint of `by` about `accused` is looked into.
    pub fn are_heard(&mut self, by: NodeId, accused: NodeId, now: Moment) -> bool {
        let Some(complainant) = self.of.get_mut(&by) else { return true };
        complainant.refuted.retain(|_, (_, at)| now.since(*at) < REFUTED_FOR);
        let about_it = complainant.refuted.get(&accused).map_or(0, |(count, _)| *count);
        // One liar may be lucky when it is asked again, four at a time are not.
        let slandered = complainant.refuted.len();
        if slandered == 0 {
            self.of.remove(&by);
        }
        about_it < REFUTED_EACH_MAX && slandered < SLANDERED_MAX
    }

    /// The origin asked `accused` itself and got the right bytes.
    pub fn refuted(&mut self, by: NodeId, accused: NodeId, now: Moment) {
        let refuted = self.of.entry(by).or_default().refuted.entry(accused).or_default();
        *refuted = (refuted.0.saturating_add(1), now);
    }

    /// The complaint was right: what was held against anybody who complained about `accused` is forgotten.
    pub fn proven(&mut self, accused: NodeId) {
        self.of.values_mut().for_each(|complainant| {
            complainant.refuted.remove(&accused);
        });
        self.of.retain(|_, complainant| !complainant.refuted.is_empty());
    }
}

/// Draws which volunteer to audit next, in proportion to its urge; none when all are zero.
pub fn next_audit(urges: &[(NodeId, f64)], seed: u64) -> Option<NodeId> {
    let sum: f64 = urges.iter().map(|(_, urge)| urge.max(0.0)).sum();
    if sum <= 0.0 {
        return None;
    }
    let mut place = Draw::new(seed).unit() * sum;
    for (node, urge) in urges {
        place -= urge.max(0.0);
        if place < 0.0 {
            return Some(*node);
        }
    }
    urges.iter().rev().find(|(_, urge)| *urge > 0.0).map(|(node, _)| *node)
}

/// Draws the range of a file of `size` bytes that an audit asks for: at most [`AUDIT_BYTES`], its
/// start anywhere.
pub fn audit_range(size: u64, seed: u64) -> (u64, u64) {
    let length = size.min(AUDIT_BYTES);
    let starts = usize::try_from(size - length + 1).unwrap_or(usize::MAX);
    (Draw::new(seed).below(starts) as u64, length)
}

fn fade(passed: Duration) -> f64 {
    (-passed.as_secs_f64() / FADE.as_secs_f64()).exp()
}

/// Refuted complaints of one volunteer about another after which that other is left in peace by it.
const REFUTED_EACH_MAX: u32 = 5;
/// Volunteers about whom one may complain in vain before it is not heard any more.
const SLANDERED_MAX: usize = 4;
/// How long that is remembered.
const REFUTED_FOR: Duration = Duration::from_secs(3600);
/// The score of a volunteer of whom nothing is known.
pub const NEWCOMER: f64 = 0.7;
/// Below this score a volunteer gets no customers.
pub const TRUSTED_MIN: f64 = 0.5;
/// Bytes of one audit at most.
pub const AUDIT_BYTES: u64 = 256 * 1024;
/// What the prior weighs, in sightings.
const PRIOR: f64 = 4.0;
const COMPLAINT: f64 = 0.5;
const NO_ANSWER: f64 = 1.0;
const SENT_BACK: f64 = 0.25;
const OVERSTATED: f64 = 3.0;
/// Evidence weighs 1/e after two weeks.
const FADE: Duration = Duration::from_secs(14 * 24 * 3600);
/// Also who serves nothing is audited now and then.
const AUDIT_FLOOR: f64 = 0.01;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(days: f64) -> Moment {
        Moment::from_secs_f64(days * 86_400.0)
    }

    fn proof() -> Evidence {
        let hash = |byte| ContentHash([byte; 32]);
        Evidence { of: Subject::File(FileId(3)), offset: 0, length: 10, expected: hash(1), received: hash(2) }
    }

    #[test]
    fn a_newcomer_may_serve_and_rises_with_good_audits() {
        let mut node = Reputation::default();
        assert_eq!(node.score(at(0.0)), NEWCOMER);
        assert!(node.is_trusted(at(0.0)));
        for _ in 0..20 {
            node.saw(Sighting::RightBytes, at(0.0));
        }
        assert!(node.score(at(0.0)) > 0.94);
    }

    #[test]
    fn wrong_bytes_ban_whatever_came_before_until_a_pardon() {
        let mut node = Reputation::default();
        for _ in 0..1000 {
            node.saw(Sighting::RightBytes, at(0.0));
        }
        node.saw(Sighting::WrongBytes(proof()), at(0.0));
        assert!(!node.is_trusted(at(0.0)));
        assert_eq!(node.score(at(300.0)), 0.0, "a ban does not fade");
        assert_eq!(node.audit_urge(1.0, at(0.0)), 0.0);
        assert_eq!(node.pardon(), Some(proof()));
        assert!(node.is_trusted(at(0.0)));
    }

    #[test]
    fn complaints_alone_never_ban_and_fade() {
        let mut node = Reputation::default();
        for _ in 0..100 {
            node.saw(Sighting::Complaint, at(0.0));
        }
        assert!(!node.is_trusted(at(0.0)));
        assert_eq!(node.ban(), None);
        assert!(node.is_trusted(at(90.0)));
    }

    #[test]
    fn a_slanderer_is_not_heard_for_an_hour_and_who_was_right_is_cleared() {
        let mut complaints = Complaints::default();
        let [by, other] = [NodeId(1), NodeId(2)];
        for n in 0..SLANDERED_MAX as u32 {
            assert!(complaints.are_heard(by, NodeId(10 + n), Moment::ZERO));
            complaints.refuted(by, NodeId(10 + n), Moment::ZERO);
        }
        assert!(!complaints.are_heard(by, NodeId(99), at(0.01)));
        assert!(complaints.are_heard(other, NodeId(99), at(0.01)));
        complaints.proven(NodeId(10));
        assert!(complaints.are_heard(by, NodeId(99), at(0.01)));
        for _ in 0..REFUTED_EACH_MAX {
            complaints.refuted(other, NodeId(10), at(0.01));
        }
        assert!(!complaints.are_heard(other, NodeId(10), at(0.01)));
        assert!(complaints.are_heard(other, NodeId(11), at(0.01)));
        assert!(complaints.are_heard(other, NodeId(10), at(1.0)));
    }

    #[test]
    fn overstating_weighs_more_than_being_away() {
        let after = |sighting: Sighting| {
            let mut node = Reputation::default();
            node.saw(sighting, at(0.0));
            node.score(at(0.0))
        };
        assert!(after(Sighting::Overstated) < TRUSTED_MIN);
        assert!(after(Sighting::NoAnswer) > TRUSTED_MIN);
        assert!(after(Sighting::SentBack) > after(Sighting::NoAnswer));
    }

    #[test]
    fn audits_go_where_they_tell_most() {
        let mut known = Reputation::default();
        for _ in 0..50 {
            known.saw(Sighting::RightBytes, at(0.0));
        }
        let fresh = Reputation::default();
        let urges =
            [(NodeId(1), known.audit_urge(0.5, at(0.0))), (NodeId(2), fresh.audit_urge(0.5, at(0.0)))];
        let fresh_ones = (0..1000).filter(|&seed| next_audit(&urges, seed) == Some(NodeId(2))).count();
        assert!(fresh_ones > 850, "{fresh_ones}");
        assert_eq!(next_audit(&[(NodeId(1), 0.0)], 5), None);
        assert_eq!(next_audit(&[], 5), None);
    }

    proptest! {
        #[test]
        fn scores_stay_within_bounds(kinds in proptest::collection::vec((0u8..5, 0u64..1_000_000), 0..100)) {
            let mut node = Reputation::default();
            let mut now = Moment::ZERO;
            for (kind, pause) in kinds {
                now += Duration::from_secs(pause);
                node.saw(match kind {
                    0 => Sighting::RightBytes,
                    1 => Sighting::Complaint,
                    2 => Sighting::NoAnswer,
                    3 => Sighting::SentBack,
                    _ => Sighting::Overstated,
                }, now);
                prop_assert!((0.0..=1.0).contains(&node.score(now)));
            }
        }

        #[test]
        fn audited_ranges_lie_within_the_file(size in 0u64..1 << 45, seed: u64) {
            let (start, length) = audit_range(size, seed);
            prop_assert!(start + length <= size && length <= AUDIT_BYTES);
            prop_assert!(size == 0 || length > 0);
        }
    }
}
