//! Two holders drawn at random; the one with the less reported load (Mitzenmacher 2001).

use super::{Choice, Field, RequestFacts, ScoreUnit, Selector, Verdict, Witness, sample, score};
use crate::draw::Draw;
use crate::moment::Moment;

/// The strongest baseline that needs no bookkeeping.
#[derive(Clone, Copy, Debug, Default)]
pub struct TwoChoices;

impl Selector for TwoChoices {
    fn name(&self) -> &'static str {
        "two-choices"
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
        let mut drawn: [Option<Choice>; 2] = [None, None];
        let mut count = 0;
        sample(field, request, 2, &mut draw, witness, &mut |index, candidate| {
            let load = f64::from(candidate.reported_load);
            let score = score(candidate, request, load, ScoreUnit::ReportedLoad, 1.0);
            drawn[count] = Some(Choice { index, node: candidate.node, score });
            count += 1;
        });
        for choice in drawn.iter().flatten() {
            witness.saw(choice.index, Verdict::Weighed(choice.score));
        }
        match drawn {
            [Some(first), Some(second)] if second.score.value < first.score.value => Some(second),
            [first, _] => first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Candidate;
    use super::super::testing::{candidate, tally};
    use super::*;

    #[test]
    fn the_most_loaded_is_never_chosen_and_the_least_in_two_draws() {
        let field: Vec<_> =
            (0..4u32).map(|n| Candidate { reported_load: n as f32 / 4.0, ..candidate(n) }).collect();
        let counts = tally(&TwoChoices, &field, 12_000);
        // 3/6, 2/6, 1/6 and 0 of the pairs.
        for (n, &count) in counts.iter().enumerate() {
            assert!(count.abs_diff((3 - n as u32) * 2000) < 300, "{counts:?}");
        }
    }
}
