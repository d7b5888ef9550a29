//! The less expected finish time of two holders that are drawn in proportion to their rates.
//!
//! What is compared is (expected backlog + size) / delivery rate, times the factors for nearness,
//! budget and suspicion. Drawing by rate alone would use all nodes evenly, as perfect static weights
//! do; comparing keeps requests off those that are behind. Comparing more than two makes it worse: what
//! is known of a node is a heartbeat old, and the more are compared, the more requests meet at the one
//! that looks best (Mitzenmacher, "How useful is old information?", 2000).
//!
//! While there is room, the request's own time at a node counts in full, and slow nodes are left idle for fast ones.
//! The nearer all nodes together come to their capacity, the less it counts beside what stands in line, since a slow
//! node that idles then costs everybody: near saturation what is compared is the time until the line is gone, which
//! uses all nodes alike (join the shortest queue; Gupta et al., "Analysis of join-the-shortest-queue routing for web
//! server farms", 2007).
//!
//! A field that keeps sums of its rates is drawn from directly, so that a request costs the same among forty holders
//! and among a hundred thousand; any other is sampled evenly first.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    Candidate, Choice, Field, Nearness, RequestFacts, SAMPLE_MAX, Score, ScoreUnit, Selector, Standing,
    Verdict, Witness, sample, score,
};
use crate::draw::Draw;
use crate::moment::Moment;

/// The selection Freshet uses.
#[derive(Debug)]
pub struct ExpectedFinishTime {
    sample: usize,
    finalists: usize,
    nearness_matters: bool,
    fleet: FleetLoad,
}

impl ExpectedFinishTime {
    /// Looks at `sample` holders per request (1 ..= [`SAMPLE_MAX`]), drawn evenly, and weighs
    /// `finalists` of them (1 ..= [`FINALISTS_MAX`]), drawn in proportion to their rates.
    pub fn new(sample: usize, finalists: usize) -> ExpectedFinishTime {
        ExpectedFinishTime {
            sample: sample.clamp(1, SAMPLE_MAX),
            finalists: finalists.clamp(1, FINALISTS_MAX),
            nearness_matters: true,
            fleet: FleetLoad::default(),
        }
    }

    /// The same, deaf to where in the network a client is.
    #[must_use]
    pub fn ignoring_nearness(self) -> ExpectedFinishTime {
        ExpectedFinishTime { nearness_matters: false, ..self }
    }

    fn nearness_factor(&self, nearness: Nearness) -> f64 {
        if self.nearness_matters { nearness.factor() } else { 1.0 }
    }

    fn weigh(&self, candidate: &Candidate, request: &RequestFacts<'_>) -> Score {
        let suspicion = if candidate.standing == Standing::Suspect { SUSPECT_FACTOR } else { 1.0 };
        let factor = self.nearness_factor(candidate.nearness) * f64::from(candidate.budget_price) * suspicion;
        // A client that is slower than the nodes waits for itself wherever it goes.
        let own = if request.client_rate.is_some() { 1.0 } else { self.fleet.own_time_counts() };
        let spared = (1.0 - own) * request.size.0 as f64 / candidate.rate.0.max(1) as f64;
        let seconds = (candidate.finish_secs(request) - spared).max(0.0);
        score(candidate, request, seconds * factor, ScoreUnit::Seconds, factor)
    }

    /// Finalists from a field that keeps sums: the same draw, by rejection of those that are out of the question. None
    /// where it keeps none, or hardly anybody may serve: then they are looked for one by one.
    fn drawn(
        &self,
        field: &dyn Field,
        request: &RequestFacts<'_>,
        draw: &mut Draw,
        witness: &mut dyn Witness,
        finalists: &mut [Option<Choice>; FINALISTS_MAX],
    ) -> bool {
        let (mut found, len) = (0, field.len());
        let wanted = self.finalists.min(len);
        for _ in 0..wanted * DRAWS_PER_FINALIST {
            let Some(index) = field.draw(draw.unit()) else { return found > 0 };
            if finalists[..found].iter().flatten().any(|choice| choice.index == index) {
                continue;
            }
            let candidate = field.candidate(index, request);
            if let Some(exclusion) = candidate.exclusion(request) {
                witness.saw(index, Verdict::Excluded(exclusion));
                continue;
            }
            let score = self.weigh(&candidate, request);
            finalists[found] = Some(Choice { index, node: candidate.node, score });
            found += 1;
            if found == wanted {
                break;
            }
        }
        found > 0
    }

    /// Finalists of an even sample.
    fn sampled(
        &self,
        field: &dyn Field,
        request: &RequestFacts<'_>,
        draw: &mut Draw,
        witness: &mut dyn Witness,
        finalists: &mut [Option<Choice>; FINALISTS_MAX],
    ) {
        // The candidates of the pool with the least keys: a draw without replacement in proportion to
        // the rates (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
        let mut least = [f64::INFINITY; FINALISTS_MAX];
        let count = self.finalists;
        let mut keys = Draw::new(draw.bits());
        sample(field, request, self.sample, draw, witness, &mut |index, candidate| {
            let key = -(1.0 - keys.unit()).ln() / candidate.rate.0 as f64;
            if key >= least[count - 1] {
                return;
            }
            let score = self.weigh(candidate, request);
            let place = least[..count].partition_point(|other| *other < key);
            least[place..count].rotate_right(1);
            finalists[place..count].rotate_right(1);
            least[place] = key;
            finalists[place] = Some(Choice { index, node: candidate.node, score });
        });
    }
}

impl Default for ExpectedFinishTime {
    fn default() -> ExpectedFinishTime {
        ExpectedFinishTime::new(SAMPLE_DEFAULT, FINALISTS_DEFAULT)
    }
}

impl Selector for ExpectedFinishTime {
    fn name(&self) -> &'static str {
        "expected-finish-time"
    }

    fn pick(
        &self,
        field: &dyn Field,
        request: &RequestFacts<'_>,
        _now: Moment,
        seed: u64,
        witness: &mut dyn Witness,
    ) -> Option<Choice> {
        let mut draw = Draw::new(seed);
        let mut finalists: [Option<Choice>; FINALISTS_MAX] = [None; FINALISTS_MAX];
        if !self.drawn(field, request, &mut draw, witness, &mut finalists) {
            self.sampled(field, request, &mut draw, witness, &mut finalists);
        }
        let mut best: Option<Choice> = None;
        for choice in finalists.into_iter().flatten() {
            witness.saw(choice.index, Verdict::Weighed(choice.score));
            self.fleet.saw(choice.score.reported_load);
            // Equal ones: the first drawn wins.
            if best.is_none_or(|best| choice.score.value < best.score.value) {
                best = Some(choice);
            }
        }
        best
    }
}

/// How much of what all nodes together can send is in use, as their reports have it.
///
/// Finalists are drawn in proportion to their rates, so the mean of the loads that they report is the load of all.
/// A lost update of one request among hundreds does no harm, so nothing is retried.
#[derive(Debug, Default)]
struct FleetLoad(AtomicU64);

impl FleetLoad {
    fn saw(&self, load: f32) {
        let load = if load.is_finite() { f64::from(load.clamp(0.0, 1.0)) } else { return };
        let before = f64::from_bits(self.0.load(Ordering::Relaxed));
        self.0.store((before + (load - before) / FLEET_MEMORY).to_bits(), Ordering::Relaxed);
    }

    /// From 1 while there is room to 0 near saturation.
    fn own_time_counts(&self) -> f64 {
        let load = f64::from_bits(self.0.load(Ordering::Relaxed));
        ((SATURATED - load) / (SATURATED - ROOMY)).clamp(0.0, 1.0)
    }
}

/// The load of all nodes is a mean over about so many finalists.
const FLEET_MEMORY: f64 = 256.0;
/// Up to this load of all nodes a request's own time counts in full.
const ROOMY: f64 = 0.7;
/// From this load on only what stands in line counts.
const SATURATED: f64 = 0.8;
/// All holders in a network of departments, and a fair sample of them beyond.
const SAMPLE_DEFAULT: usize = 40;
const FINALISTS_DEFAULT: usize = 2;
/// The most candidates that are weighed against each other.
pub const FINALISTS_MAX: usize = 16;
/// Draws for each finalist before holders are looked for one by one.
const DRAWS_PER_FINALIST: usize = 8;
/// A late heartbeat makes a node this much worse than its numbers.
const SUSPECT_FACTOR: f64 = 4.0;

#[cfg(test)]
mod tests {
    use freshet_api::{Bytes, BytesPerSec, NodeId};

    use super::super::Candidate;
    use super::super::testing::{candidate, request, tally};
    use super::*;

    fn picked(field: &[Candidate], facts: &RequestFacts<'_>) -> NodeId {
        ExpectedFinishTime::default().select(&field, facts, Moment::ZERO, 11).unwrap().node
    }

    #[test]
    fn a_fast_node_with_a_queue_may_beat_a_slow_idle_one() {
        let slow = candidate(1);
        let fast =
            Candidate { rate: BytesPerSec(100_000_000), outstanding: Bytes(50_000_000), ..candidate(2) };
        assert_eq!(picked(&[slow, fast], &request(10_000_000)), NodeId(2));
        assert_eq!(picked(&[slow, fast], &request(10_000)), NodeId(1));
    }

    #[test]
    fn a_slow_client_waits_for_itself_wherever_it_goes() {
        let field = vec![candidate(1), Candidate { rate: BytesPerSec(100_000_000), ..candidate(2) }];
        let facts = RequestFacts { client_rate: Some(BytesPerSec(1000)), ..request(10_000) };
        let told = ExpectedFinishTime::default().explain(&field, &facts, Moment::ZERO, 1);
        for (_, verdict) in told.verdicts {
            let Verdict::Weighed(score) = verdict else { panic!("{verdict:?}") };
            assert_eq!(score.finish.as_secs(), 10);
        }
    }

    #[test]
    fn near_saturation_slow_nodes_take_their_part() {
        let tally_at = |load: f32| {
            let fast = Candidate {
                rate: BytesPerSec(9_000_000),
                outstanding: Bytes(2_000_000),
                reported_load: load,
                ..candidate(1)
            };
            let slow = Candidate { reported_load: load, ..candidate(2) };
            let selector = ExpectedFinishTime::default();
            let pick = |seed| selector.select(&vec![fast, slow], &request(5_000_000), Moment::ZERO, seed);
            (0..3000).filter(|&seed| pick(seed).unwrap().node == NodeId(2)).count()
        };
        assert_eq!(tally_at(0.5), 0, "five seconds there, less than one at the fast one");
        assert!(tally_at(0.97) > 1500, "idle, while the others stand in line");
    }

    #[test]
    fn nearness_budget_and_suspicion_multiply() {
        let near = Candidate { nearness: Nearness::Prefix, outstanding: Bytes(2000), ..candidate(1) };
        assert_eq!(picked(&[near, candidate(2)], &request(1000)), NodeId(1));
        let busier = Candidate { outstanding: Bytes(4000), ..near };
        assert_eq!(picked(&[busier, candidate(2)], &request(1000)), NodeId(2));
        let dear = Candidate { budget_price: 10.0, ..candidate(1) };
        assert_eq!(picked(&[dear, candidate(2)], &request(1000)), NodeId(2));
        let late = Candidate { standing: Standing::Suspect, ..candidate(1) };
        assert_eq!(picked(&[late, candidate(2)], &request(1000)), NodeId(2));
    }

    /// A field with sums of rates, some of whose candidates are out of the question.
    struct Summed(Vec<Candidate>);

    impl Field for Summed {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn candidate(&self, index: usize, _request: &RequestFacts<'_>) -> Candidate {
            self.0[index]
        }

        fn draw(&self, unit: f64) -> Option<usize> {
            let total: u64 = self.0.iter().map(|candidate| candidate.rate.0).sum();
            let mut left = unit * total as f64;
            self.0.iter().position(|candidate| {
                left -= candidate.rate.0 as f64;
                left < 0.0
            })
        }
    }

    #[test]
    fn a_direct_draw_chooses_as_a_sample_does() {
        let rates = [1u64, 2, 4, 8, 16, 32];
        let candidates: Vec<Candidate> = rates
            .iter()
            .zip(0..)
            .map(|(&rate, node)| Candidate {
                rate: BytesPerSec(rate * 1_000_000),
                outstanding: Bytes(u64::from(node) * 2_000_000),
                standing: if node == 4 { Standing::LacksFile } else { Standing::Ready },
                ..candidate(node)
            })
            .collect();
        let selector = ExpectedFinishTime::default();
        let (summed, rounds) = (Summed(candidates.clone()), 20_000u64);
        let mut difference = [0i64; 6];
        for seed in 0..rounds {
            let pick = |field: &dyn Field| {
                selector.select(field, &request(1_000_000), Moment::ZERO, seed).unwrap().index
            };
            difference[pick(&summed)] += 1;
            difference[pick(&candidates)] -= 1;
        }
        assert!(difference.iter().all(|&d| d.unsigned_abs() < rounds / 50), "{difference:?}");
    }

    #[test]
    fn the_only_holder_is_found_however_unlikely_it_is_drawn() {
        let mut candidates: Vec<Candidate> =
            (0..50).map(|node| Candidate { standing: Standing::LacksFile, ..candidate(node) }).collect();
        candidates[7] = Candidate { rate: BytesPerSec(1), ..candidate(7) };
        for seed in 0..100 {
            let choice = ExpectedFinishTime::default().select(
                &Summed(candidates.clone()),
                &request(10),
                Moment::ZERO,
                seed,
            );
            assert_eq!(choice.unwrap().node, NodeId(7));
        }
    }

    #[test]
    fn equals_are_chosen_evenly() {
        let field: Vec<_> = (0..10).map(candidate).collect();
        let counts = tally(&ExpectedFinishTime::default(), &field, 10_000);
        assert!(counts.iter().all(|&n| (800..1200).contains(&n)), "{counts:?}");
    }
}
