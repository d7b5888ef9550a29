//! Least expected finish time among d sampled holders, over reserved and not only reported bytes.
//!
//! What is compared is (outstanding + size) / delivery rate, times the factors for nearness, budget
//! and suspicion. Sampling instead of taking the global least keeps the cost flat and, where several
//! front doors choose independently, keeps them from all choosing the same node (Mitzenmacher, "The
//! power of two choices in randomized load balancing", 2001).

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
    nearness_matters: bool,
}

impl ExpectedFinishTime {
    /// Weighs `sample` holders per request (1 ..= [`SAMPLE_MAX`]).
    pub fn new(sample: usize) -> ExpectedFinishTime {
        ExpectedFinishTime { sample: sample.clamp(1, SAMPLE_MAX), nearness_matters: true }
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
        ExpectedFinishTime::new(SAMPLE_DEFAULT)
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
        let mut best: Option<Choice> = None;
        let mut weighed = [(0, None); SAMPLE_MAX];
        let mut count = 0;
        sample(field, request, self.sample, &mut draw, witness, &mut |index, candidate| {
            let suspicion = if candidate.standing == Standing::Suspect { SUSPECT_FACTOR } else { 1.0 };
            let factor =
                self.nearness_factor(candidate.nearness) * f64::from(candidate.budget_price) * suspicion;
            let value = candidate.finish_secs(request) * factor;
            let score = score(candidate, request, value, ScoreUnit::Seconds, factor);
            weighed[count] = (index, Some(score));
            count += 1;
            // Equal ones: the first drawn wins, which is a random one.
            if best.is_none_or(|best| value < best.score.value) {
                best = Some(Choice { index, node: candidate.node, score });
            }
        });
        for (index, score) in &weighed[..count] {
            if let Some(score) = score {
                witness.saw(*index, Verdict::Weighed(*score));
            }
        }
        best
    }
}

/// Forty holders are all weighed: exact least finish time at the size of a department network, and a
/// fair sample beyond it.
const SAMPLE_DEFAULT: usize = 40;
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
    fn a_slow_client_leaves_the_fast_node_to_others() {
        // Both would keep the client waiting for itself: then the first drawn wins, not the fastest.
        let field = vec![candidate(1), Candidate { rate: BytesPerSec(100_000_000), ..candidate(2) }];
        let facts = RequestFacts { client_rate: Some(BytesPerSec(1000)), ..request(10_000) };
        let selector = ExpectedFinishTime::default();
        let to_slow = (0..200)
            .filter(|&seed| selector.select(&field, &facts, Moment::ZERO, seed).unwrap().index == 0)
            .count();
        assert!((50..150).contains(&to_slow), "{to_slow}");
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
