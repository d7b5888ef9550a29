//! The less expected finish time of two holders that are drawn in proportion to their rates.
//!
//! What is compared is (expected backlog + size) / delivery rate, times the factors for nearness,
//! budget and suspicion. Drawing by rate alone would use all nodes evenly, as perfect static weights
//! do; comparing keeps requests off those that are behind. Comparing more than two makes it worse: what
//! is known of a node is a heartbeat old, and the more are compared, the more requests meet at the one
//! that looks best (Mitzenmacher, "How useful is old information?", 2000).

use super::{
    Choice, Field, Nearness, RequestFacts, SAMPLE_MAX, ScoreUnit, Selector, Standing, Verdict, Witness,
    sample, score,
};
use crate::draw::Draw;
use crate::moment::Moment;

/// The selection Freshet uses.
#[derive(Clone, Debug)]
pub struct ExpectedFinishTime {
    sample: usize,
    finalists: usize,
    nearness_matters: bool,
}

impl ExpectedFinishTime {
    /// Looks at `sample` holders per request (1 ..= [`SAMPLE_MAX`]), drawn evenly, and weighs
    /// `finalists` of them (1 ..= [`FINALISTS_MAX`]), drawn in proportion to their rates.
    pub fn new(sample: usize, finalists: usize) -> ExpectedFinishTime {
        ExpectedFinishTime {
            sample: sample.clamp(1, SAMPLE_MAX),
            finalists: finalists.clamp(1, FINALISTS_MAX),
            nearness_matters: true,
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
        // The candidates of the pool with the least keys: a draw without replacement in proportion to
        // the rates (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
        let mut finalists: [(f64, Option<Choice>); FINALISTS_MAX] = [(f64::INFINITY, None); FINALISTS_MAX];
        let count = self.finalists;
        let mut keys = Draw::new(draw.bits());
        sample(field, request, self.sample, &mut draw, witness, &mut |index, candidate| {
            let key = -(1.0 - keys.unit()).ln() / candidate.rate.0 as f64;
            if key >= finalists[count - 1].0 {
                return;
            }
            let suspicion = if candidate.standing == Standing::Suspect { SUSPECT_FACTOR } else { 1.0 };
            let factor =
                self.nearness_factor(candidate.nearness) * f64::from(candidate.budget_price) * suspicion;
            let value = candidate.finish_secs(request) * factor;
            let score = score(candidate, request, value, ScoreUnit::Seconds, factor);
            let place = finalists[..count].partition_point(|(other, _)| *other < key);
            finalists[place..count].rotate_right(1);
            finalists[place] = (key, Some(Choice { index, node: candidate.node, score }));
        });
        let mut best: Option<Choice> = None;
        for choice in finalists.iter().filter_map(|(_, choice)| *choice) {
            witness.saw(choice.index, Verdict::Weighed(choice.score));
            // Equal ones: the first drawn wins.
            if best.is_none_or(|best| choice.score.value < best.score.value) {
                best = Some(choice);
            }
        }
        best
    }
}

/// All holders in a network of departments, and a fair sample of them beyond.
const SAMPLE_DEFAULT: usize = 40;
const FINALISTS_DEFAULT: usize = 2;
/// The most candidates that are weighed against each other.
pub(super) const FINALISTS_MAX: usize = 16;
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

    #[test]
    fn equals_are_chosen_evenly() {
        let field: Vec<_> = (0..10).map(candidate).collect();
        let counts = tally(&ExpectedFinishTime::default(), &field, 10_000);
        assert!(counts.iter().all(|&n| (800..1200).contains(&n)), "{counts:?}");
    }
}
