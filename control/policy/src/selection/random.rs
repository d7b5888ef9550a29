//! Every usable holder with equal probability.

use super::{Choice, Field, RequestFacts, ScoreUnit, Selector, Verdict, Witness, sample, score};
use crate::draw::Draw;
use crate::moment::Moment;

/// The simplest baseline.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Selector for Random {
    fn name(&self) -> &'static str {
        "random"
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
        let drawn = draw.unit();
        let mut choice = None;
        sample(field, request, 1, &mut draw, witness, &mut |index, candidate| {
            let score = score(candidate, request, drawn, ScoreUnit::Drawn, 1.0);
            choice = Some(Choice { index, node: candidate.node, score });
        });
        if let Some(choice) = choice {
            witness.saw(choice.index, Verdict::Weighed(choice.score));
        }
        choice
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, tally};
    use super::*;

    #[test]
    fn all_are_chosen_equally_often() {
        let field: Vec<_> = (0..10).map(candidate).collect();
        let counts = tally(&Random, &field, 10_000);
        assert!(counts.iter().all(|&n| (850..1150).contains(&n)), "{counts:?}");
    }
}
