//! Which volunteer a request is sent to: the seam, and what every algorithm sees and answers.
//!
//! An algorithm reads what it needs of a few candidates and names one of them; it changes nothing.
//! The reservation that follows from its choice is the caller's to make.

mod expected_finish_time;
mod least_reported_load;
mod random;
mod round_robin;
mod static_weights;
mod two_choices;

use std::fmt;
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec, NodeId};
use serde::{Deserialize, Serialize};

pub use self::expected_finish_time::{ExpectedFinishTime, FINALISTS_MAX};
pub use self::least_reported_load::LeastReportedLoad;
pub use self::random::Random;
pub use self::round_robin::RoundRobin;
pub use self::static_weights::StaticWeights;
pub use self::two_choices::TwoChoices;
use crate::draw::Draw;
use crate::moment::Moment;

/// An algorithm that picks a volunteer.
pub trait Selector: Send + Sync + fmt::Debug {
    /// Its name, as `ctl balance` and reports print it.
    fn name(&self) -> &'static str;

    /// Picks one of `field` for `request`, or none when nobody may serve it, and tells `witness` of
    /// every candidate that was looked at.
    fn pick(
        &self,
        field: &dyn Field,
        request: &RequestFacts<'_>,
        now: Moment,
        seed: u64,
        witness: &mut dyn Witness,
    ) -> Option<Choice>;

    /// Picks one of `field` for `request`, or none when nobody may serve it.
    fn select(
        &self,
        field: &dyn Field,
        request: &RequestFacts<'_>,
        now: Moment,
        seed: u64,
    ) -> Option<Choice> {
        self.pick(field, request, now, seed, &mut Unwitnessed)
    }

    /// Picks as [`Selector::select`] does and tells why: every candidate with its numbers or with the
    /// reason why it was out of the question.
    fn explain(&self, field: &dyn Field, request: &RequestFacts<'_>, now: Moment, seed: u64) -> Explanation {
        let mut verdicts: Vec<(NodeId, Verdict)> = (0..field.len())
            .map(|index| {
                let candidate = field.candidate(index, request);
                let verdict = match candidate.exclusion(request) {
                    Some(exclusion) => Verdict::Excluded(exclusion),
                    None => Verdict::NotSampled,
                };
                (candidate.node, verdict)
            })
            .collect();
        let mut record = Record { verdicts: &mut verdicts };
        let choice = self.pick(field, request, now, seed, &mut record);
        Explanation { algorithm: self.name(), verdicts, choice }
    }
}

/// The holders of a file, looked at one by one as an algorithm asks for them, so that sampling a few
/// of a hundred thousand costs a few.
pub trait Field {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there is nobody.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The candidate at `index` (below [`Field::len`]) as it stands towards this request.
    fn candidate(&self, index: usize, request: &RequestFacts<'_>) -> Candidate;

    /// An index drawn by `unit` (0 .. 1) in proportion to what each can deliver, as far as was known a moment ago; it
    /// may be one that is out of the question. `None` where no such sums are kept, or nobody can deliver.
    fn draw(&self, unit: f64) -> Option<usize> {
        let _ = unit;
        None
    }
}

impl Field for &[Candidate] {
    fn len(&self) -> usize {
        <[Candidate]>::len(self)
    }

    fn candidate(&self, index: usize, _request: &RequestFacts<'_>) -> Candidate {
        self[index]
    }
}

impl Field for Vec<Candidate> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn candidate(&self, index: usize, _request: &RequestFacts<'_>) -> Candidate {
        self[index]
    }
}

/// What is known of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// Body bytes that the answer will carry (the range's length for a Range, 0 for `HEAD`).
    pub size: Bytes,
    /// How the client reached us, which is how it can reach a volunteer.
    pub reach: Reach,
    /// How fast this client took bytes before, if known.
    pub client_rate: Option<BytesPerSec>,
    /// Nodes that have already sent this client back.
    pub tried: &'a [NodeId],
}

/// One volunteer as it stands when a request arrives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Who.
    pub node: NodeId,
    /// Whether it may be used at all.
    pub standing: Standing,
    /// By which families and schemes it can be reached; all of the request's must be among them.
    pub reach: Reach,
    /// Bytes promised and not yet delivered, from the reservation ledger.
    pub outstanding: Bytes,
    /// What it can deliver per second just now: its capacity, within its budget and the arbiter's share.
    pub rate: BytesPerSec,
    /// Load it reported at its last heartbeat, as a fraction of its capacity (may be old).
    pub reported_load: f32,
    /// Weight an operator gave it; 0 keeps it out of static weighing.
    pub weight: u32,
    /// How near it is to the client.
    pub nearness: Nearness,
    /// The most bytes that may be outstanding on it before another is preferred; from admission.
    pub admission: Bytes,
    /// What its budget leaves it, in bytes; a request that is larger does not fit.
    pub budget: Bytes,
    /// How much its finish time is multiplied to spare its budget (1.0 = not at all); from budget steering.
    pub budget_price: f32,
}

impl Candidate {
    /// Why this candidate may not serve `request`, if it may not.
    pub fn exclusion(&self, request: &RequestFacts<'_>) -> Option<Exclusion> {
        match self.standing {
            Standing::Ready | Standing::Suspect => {}
            Standing::LacksFile => return Some(Exclusion::LacksFile),
            Standing::Draining => return Some(Exclusion::Draining),
            Standing::Dead => return Some(Exclusion::Dead),
            Standing::Flapping => return Some(Exclusion::Flapping),
            Standing::Untrusted => return Some(Exclusion::Untrusted),
            Standing::OutsideHours => return Some(Exclusion::OutsideHours),
        }
        if request.tried.contains(&self.node) {
            return Some(Exclusion::TriedAlready);
        }
        if !self.reach.families_cover(request.reach) {
            return Some(Exclusion::UnreachableFamily);
        }
        if !self.reach.schemes_cover(request.reach) {
            return Some(Exclusion::UnreachableScheme);
        }
        if self.rate.0 == 0 || self.budget < request.size {
            return Some(Exclusion::OverQuota);
        }
        // An idle node may take one request of any size: otherwise a file larger than every limit could
        // be had from nobody.
        if self.outstanding.0 > 0 && self.outstanding.0.saturating_add(request.size.0) > self.admission.0 {
            return Some(Exclusion::OverAdmission);
        }
        None
    }

    /// Seconds until `size` more bytes would have left this node: what was promised before, and they,
    /// at the rate available, or at the client's own if that is slower.
    pub fn finish_secs(&self, request: &RequestFacts<'_>) -> f64 {
        let queued = (self.outstanding.0 as f64 + request.size.0 as f64) / self.rate.0.max(1) as f64;
        match request.client_rate {
            Some(client) => queued.max(request.size.0 as f64 / client.0.max(1) as f64),
            None => queued,
        }
    }
}

/// Whether a volunteer may be used at all, as the routing snapshot has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Yes.
    Ready,
    /// A heartbeat is late: only if there is nobody better (its finish time is multiplied).
    Suspect,
    /// It does not hold this version of the file.
    LacksFile,
    /// The operator or the owner is taking it out.
    Draining,
    /// No heartbeats.
    Dead,
    /// It comes and goes too often just now.
    Flapping,
    /// Its trust score is below the limit, or it is banned.
    Untrusted,
    /// The owner gives nothing at this hour.
    OutsideHours,
}

/// A set of address families and schemes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reach(pub u8);

impl Reach {
    /// IPv4.
    pub const V4: Reach = Reach(1);
    /// IPv6.
    pub const V6: Reach = Reach(2);
    /// Plain HTTP.
    pub const HTTP: Reach = Reach(4);
    /// HTTP over TLS.
    pub const HTTPS: Reach = Reach(8);
    /// Everything.
    pub const ALL: Reach = Reach(15);

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Reach) -> Reach {
        Reach(self.0 | other.0)
    }

    /// Whether there is a family in common, or `wanted` names none.
    pub fn families_cover(self, wanted: Reach) -> bool {
        let families = wanted.0 & 3;
        families == 0 || self.0 & families != 0
    }

    /// Whether there is a scheme in common, or `wanted` names none.
    pub fn schemes_cover(self, wanted: Reach) -> bool {
        let schemes = wanted.0 & 12;
        schemes == 0 || self.0 & schemes != 0
    }
}

/// How near a volunteer is to a client in the network, from the rules in [`crate::network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nearness {
    /// A prefix rule sends this client here.
    Prefix,
    /// The same autonomous system.
    AutonomousSystem,
    /// The same country.
    Country,
    /// The same continent.
    Continent,
    /// Elsewhere, or unknown.
    Elsewhere,
}

impl Nearness {
    /// In a word or two, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Nearness::Prefix => "prefix rule",
            Nearness::AutonomousSystem => "same network",
            Nearness::Country => "same country",
            Nearness::Continent => "same continent",
            Nearness::Elsewhere => "elsewhere",
        }
    }

    /// What the finish time is multiplied with: how much longer a nearer copy may take before a
    /// farther one is preferred.
    pub const fn factor(self) -> f64 {
        match self {
            Nearness::Prefix => 1.0,
            Nearness::AutonomousSystem => 1.5,
            Nearness::Country => 2.0,
            Nearness::Continent => 3.0,
            Nearness::Elsewhere => 4.0,
        }
    }
}

/// Whom an algorithm picked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// Where in the field.
    pub index: usize,
    /// Who.
    pub node: NodeId,
    /// The numbers that decided.
    pub score: Score,
}

/// The numbers of one candidate that was weighed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// What the algorithm compared: the smallest won (for random kinds, what was drawn).
    pub value: f64,
    /// What `value` counts.
    pub unit: ScoreUnit,
    /// Bytes promised and not yet delivered.
    pub outstanding: Bytes,
    /// Bytes of this request.
    pub size: Bytes,
    /// Delivery rate available.
    pub rate: BytesPerSec,
    /// Time until the request would be finished, before any factor.
    pub finish: Duration,
    /// Product of the factors (nearness, budget, suspicion).
    pub factor: f64,
    /// Load at the last heartbeat.
    pub reported_load: f32,
    /// The operator's weight.
    pub weight: u32,
}

/// What a score's value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreUnit {
    /// Expected seconds to the end, times the factors.
    Seconds,
    /// Fraction of capacity in use as last reported.
    ReportedLoad,
    /// A number drawn; no measurement decided.
    Drawn,
    /// Place in the order.
    Turn,
}

/// What came of one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", content = "detail", rename_all = "kebab-case")]
pub enum Verdict {
    /// It was weighed, with these numbers.
    Weighed(Score),
    /// It may not serve this request.
    Excluded(Exclusion),
    /// It might have been picked, but was not among the sample.
    NotSampled,
}

/// Why a candidate may not serve a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exclusion {
    /// It does not hold this version of the file.
    LacksFile,
    /// It is being taken out.
    Draining,
    /// No heartbeats.
    Dead,
    /// It comes and goes too often.
    Flapping,
    /// Its trust score is too low, or it is banned.
    Untrusted,
    /// The owner gives nothing at this hour.
    OutsideHours,
    /// Its rate is down to nothing, or the file is larger than what its budget leaves.
    OverQuota,
    /// No address family in common with the client.
    UnreachableFamily,
    /// No scheme in common with the client.
    UnreachableScheme,
    /// It has already sent this client back.
    TriedAlready,
    /// It has promised as much as it can keep within the target.
    OverAdmission,
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Exclusion::LacksFile => "lacks this version of the file",
            Exclusion::Draining => "draining",
            Exclusion::Dead => "dead: no heartbeats",
            Exclusion::Flapping => "flapping: comes and goes too often",
            Exclusion::Untrusted => "untrusted",
            Exclusion::OutsideHours => "outside the owner's hours",
            Exclusion::OverQuota => "over quota",
            Exclusion::UnreachableFamily => "not reachable by the client's address family",
            Exclusion::UnreachableScheme => "not reachable by the client's scheme",
            Exclusion::TriedAlready => "tried already by this client",
            Exclusion::OverAdmission => "past its admission limit",
        })
    }
}

/// Why a volunteer was picked.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The algorithm's name.
    pub algorithm: &'static str,
    /// What came of each candidate, in the order of the field.
    pub verdicts: Vec<(NodeId, Verdict)>,
    /// Whom it picked.
    pub choice: Option<Choice>,
}

/// Told of what an algorithm looked at.
pub trait Witness {
    /// The candidate at `index` came to this.
    fn saw(&mut self, index: usize, verdict: Verdict);
}

/// A witness that looks away, for the hot path.
#[derive(Debug)]
pub struct Unwitnessed;

impl Witness for Unwitnessed {
    fn saw(&mut self, _index: usize, _verdict: Verdict) {}
}

struct Record<'a> {
    verdicts: &'a mut [(NodeId, Verdict)],
}

impl Witness for Record<'_> {
    fn saw(&mut self, index: usize, verdict: Verdict) {
        self.verdicts[index].1 = verdict;
    }
}

/// The numbers of `candidate`, with what the algorithm compared.
fn score(
    candidate: &Candidate,
    request: &RequestFacts<'_>,
    value: f64,
    unit: ScoreUnit,
    factor: f64,
) -> Score {
    Score {
        value,
        unit,
        outstanding: candidate.outstanding,
        size: request.size,
        rate: candidate.rate,
        finish: Duration::try_from_secs_f64(candidate.finish_secs(request)).unwrap_or(Duration::MAX),
        factor,
        reported_load: candidate.reported_load,
        weight: candidate.weight,
    }
}

/// Calls `visit` for up to `wanted` different usable candidates, drawn evenly without replacement.
///
/// Random probes come first; where many candidates are excluded and the probes run out, a scan from
/// a random place finds the rest, so that a usable candidate is found whenever there is one.
fn sample(
    field: &dyn Field,
    request: &RequestFacts<'_>,
    wanted: usize,
    draw: &mut Draw,
    witness: &mut dyn Witness,
    visit: &mut dyn FnMut(usize, &Candidate),
) {
    let len = field.len();
    let wanted = wanted.clamp(1, SAMPLE_MAX);
    let mut seen = [usize::MAX; SAMPLE_MAX];
    let mut found = 0;
    let mut look = |index: usize, found: &mut usize, seen: &mut [usize; SAMPLE_MAX]| {
        if seen[..*found].contains(&index) {
            return;
        }
        let candidate = field.candidate(index, request);
        match candidate.exclusion(request) {
            Some(exclusion) => witness.saw(index, Verdict::Excluded(exclusion)),
            None => {
                seen[*found] = index;
                *found += 1;
                visit(index, &candidate);
            }
        }
    };
    // Who weighs everybody anyway need not probe.
    if len > wanted {
        for _ in 0..wanted * PROBES_PER_WANTED {
            if found == wanted {
                return;
            }
            look(draw.below(len), &mut found, &mut seen);
        }
    }
    let start = draw.below(len);
    for step in 0..len {
        if found == wanted {
            return;
        }
        look((start + step) % len, &mut found, &mut seen);
    }
}

/// The most candidates one request weighs.
pub const SAMPLE_MAX: usize = 64;
const PROBES_PER_WANTED: usize = 3;

#[cfg(test)]
pub(crate) mod testing {
    //! Candidates and requests for the tests of the algorithms.

    use super::*;

    pub(crate) fn candidate(node: u32) -> Candidate {
        Candidate {
            node: NodeId(node),
            standing: Standing::Ready,
            reach: Reach::ALL,
            outstanding: Bytes(0),
            rate: BytesPerSec(1_000_000),
            reported_load: 0.0,
            weight: 100,
            nearness: Nearness::Elsewhere,
            admission: Bytes(u64::MAX),
            budget: Bytes(u64::MAX),
            budget_price: 1.0,
        }
    }

    pub(crate) fn request(size: u64) -> RequestFacts<'static> {
        RequestFacts { size: Bytes(size), reach: Reach::V4.and(Reach::HTTP), client_rate: None, tried: &[] }
    }

    /// How often each node is picked in `rounds` rounds with different seeds.
    pub(crate) fn tally(selector: &dyn Selector, field: &[Candidate], rounds: u64) -> Vec<u32> {
        let mut counts = vec![0; field.len()];
        for seed in 0..rounds {
            let choice = selector.select(&field, &request(1000), Moment::ZERO, seed).unwrap();
            counts[choice.index] += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{candidate, request};
    use super::*;

    fn all() -> Vec<Box<dyn Selector>> {
        vec![
            Box::new(ExpectedFinishTime::default()),
            Box::new(Random),
            Box::new(RoundRobin::default()),
            Box::new(StaticWeights),
            Box::new(LeastReportedLoad),
            Box::new(TwoChoices),
        ]
    }

    /// A candidate that is excluded for exactly one reason, by number.
    fn excluded(node: u32, reason: usize) -> (Candidate, Exclusion) {
        let base = candidate(node);
        let standing = |standing| Candidate { standing, ..base };
        match reason % 11 {
            0 => (standing(Standing::LacksFile), Exclusion::LacksFile),
            1 => (standing(Standing::Draining), Exclusion::Draining),
            2 => (standing(Standing::Dead), Exclusion::Dead),
            3 => (standing(Standing::Flapping), Exclusion::Flapping),
            4 => (standing(Standing::Untrusted), Exclusion::Untrusted),
            5 => (standing(Standing::OutsideHours), Exclusion::OutsideHours),
            6 => (Candidate { rate: BytesPerSec(0), ..base }, Exclusion::OverQuota),
            7 => (Candidate { budget: Bytes(999), ..base }, Exclusion::OverQuota),
            8 => (Candidate { reach: Reach::V6.and(Reach::HTTP), ..base }, Exclusion::UnreachableFamily),
            9 => (Candidate { reach: Reach::V4.and(Reach::HTTPS), ..base }, Exclusion::UnreachableScheme),
            _ => (
                Candidate { outstanding: Bytes(1), admission: Bytes(1000), ..base },
                Exclusion::OverAdmission,
            ),
        }
    }

    #[test]
    fn each_reason_excludes_and_is_told() {
        for reason in 0..11 {
            let (out, exclusion) = excluded(1, reason);
            assert_eq!(out.exclusion(&request(1000)), Some(exclusion));
            for selector in all() {
                let field = vec![out];
                assert_eq!(selector.select(&field, &request(1000), Moment::ZERO, 1), None, "{selector:?}");
                let told = selector.explain(&field, &request(1000), Moment::ZERO, 1);
                assert_eq!(told.verdicts, [(NodeId(1), Verdict::Excluded(exclusion))]);
            }
        }
    }

    #[test]
    fn who_was_tried_is_not_tried_again() {
        let facts = RequestFacts { tried: &[NodeId(2)], ..request(10) };
        for selector in all() {
            let field = vec![candidate(1), candidate(2)];
            for seed in 0..50 {
                let choice = selector.select(&field, &facts, Moment::ZERO, seed).unwrap();
                assert_eq!(choice.node, NodeId(1), "{selector:?}");
            }
        }
    }

    #[test]
    fn nobody_is_picked_from_an_empty_field() {
        for selector in all() {
            assert_eq!(selector.select(&Vec::new(), &request(10), Moment::ZERO, 3), None);
        }
    }

    #[test]
    fn an_idle_node_takes_a_file_larger_than_its_admission_limit() {
        let idle = Candidate { admission: Bytes(10), ..candidate(1) };
        assert_eq!(idle.exclusion(&request(1000)), None);
    }

    #[test]
    fn the_explanation_names_the_choice_with_its_numbers() {
        for selector in all() {
            let field: Vec<_> = (1..=5).map(candidate).collect();
            let told = selector.explain(&field, &request(1000), Moment::ZERO, 9);
            let choice = told.choice.unwrap();
            assert_eq!(
                told.verdicts[choice.index],
                (choice.node, Verdict::Weighed(choice.score)),
                "{selector:?}"
            );
            assert_eq!(told.verdicts.len(), 5);
        }
    }

    proptest! {
        /// With one usable candidate among many that are not, every algorithm finds exactly that one.
        #[test]
        fn the_one_usable_candidate_is_found(len in 1usize..400, place in 0usize..400, seed: u64) {
            let place = place % len;
            let mut field: Vec<_> = (0..len).map(|n| excluded(n as u32, n).0).collect();
            field[place] = candidate(place as u32);
            for selector in all() {
                let choice = selector.select(&field, &request(1000), Moment::ZERO, seed);
                prop_assert_eq!(choice.map(|c| c.index), Some(place), "{:?}", selector);
            }
        }

        /// Same field, same seed, same choice; and the explanation is of that choice.
        #[test]
        fn choices_are_reproducible(len in 1usize..200, seed: u64) {
            let field: Vec<_> = (0..len).map(|n| Candidate {
                outstanding: Bytes((n as u64 * 7919) % 1000), ..candidate(n as u32)
            }).collect();
            for (a, b) in all().into_iter().zip(all()) {
                let first = a.select(&field, &request(5), Moment::ZERO, seed);
                let again = b.explain(&field, &request(5), Moment::ZERO, seed).choice;
                prop_assert_eq!(first, again);
            }
        }
    }
}
