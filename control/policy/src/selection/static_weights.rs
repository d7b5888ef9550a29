//! A weighted draw among the nearest holders, blind to load: what open redirectors do today.
//!
//! mirrorbits ranks the mirrors of a file by distance, adds each one's configured score, and draws
//! among the nearest with probability in proportion to that weight. Here the ranking is the nearness
//! and the score is the operator's weight; where distance is unknown, all are equally near.

use super::{Choice, Field, RequestFacts, ScoreUnit, Selector, Verdict, Witness, score};
use crate::draw::Draw;
use crate::moment::Moment;

/// The baseline that mirrorbits, MirrorBrain, MirrorManager and MirrorCache share in essence.
#[derive(Clone, Copy, Debug, Default)]
pub struct StaticWeights;

impl Selector for StaticWeights {
    fn name(&self) -> &'static str {
        "static-weights"
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
        let mut nearest = None;
        for index in 0..field.len() {
            let candidate = field.candidate(index, request);
            if let Some(exclusion) = candidate.exclusion(request) {
                witness.saw(index, Verdict::Excluded(exclusion));
                continue;
            }
            // The least of exponential variables with rates w_i is i with probability w_i / sum(w):
            // a weighted draw in one pass (Efraimidis and Spirakis, 2006).
            let weight = f64::from(candidate.weight).max(f64::MIN_POSITIVE);
            let drawn = -(1.0 - draw.unit()).ln() / weight;
            let score = score(&candidate, request, drawn, ScoreUnit::Drawn, candidate.nearness.factor());
            witness.saw(index, Verdict::Weighed(score));
            let choice = Choice { index, node: candidate.node, score };
            if nearest.is_none_or(|nearest| candidate.nearness < nearest) {
                nearest = Some(candidate.nearness);
                best = Some(choice);
            } else if nearest == Some(candidate.nearness) && best.is_none_or(|best| drawn < best.score.value)
            {
                best = Some(choice);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, tally};
    use super::super::{Candidate, Nearness};
    use super::*;

    #[test]
    fn chosen_in_proportion_to_weight() {
        let field: Vec<_> = (1..=4).map(|n| Candidate { weight: n * 10, ..candidate(n) }).collect();
        let counts = tally(&StaticWeights, &field, 10_000);
        for (n, &count) in counts.iter().enumerate() {
            let expected = (n as u32 + 1) * 1000;
            assert!(count.abs_diff(expected) < 200, "{counts:?}");
        }
    }

    #[test]
    fn a_farther_one_is_never_chosen_while_a_near_one_stands() {
        let mut field: Vec<_> = (0..3).map(candidate).collect();
        field[2] = Candidate { nearness: Nearness::Country, weight: 1, ..field[2] };
        assert_eq!(tally(&StaticWeights, &field, 500), [0, 0, 500]);
    }

    #[test]
    fn weight_zero_is_the_last_resort() {
        let field = vec![Candidate { weight: 0, ..candidate(1) }, candidate(2)];
        assert_eq!(tally(&StaticWeights, &field, 500), [0, 500]);
        assert_eq!(tally(&StaticWeights, &field[..1], 5), [5]);
    }
}
