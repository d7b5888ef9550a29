//! One usable holder after the other, whatever its size or load.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Choice, Field, RequestFacts, ScoreUnit, Selector, Verdict, Witness, score};
use crate::moment::Moment;

/// The oldest baseline. Its turn is shared by all rings.
#[derive(Debug, Default)]
pub struct RoundRobin {
    turn: AtomicUsize,
}

impl Selector for RoundRobin {
    fn name(&self) -> &'static str {
        "round-robin"
    }

    fn pick(
        &self,
        field: &dyn Field,
        request: &RequestFacts<'_>,
        _now: Moment,
        _seed: u64,
        witness: &mut dyn Witness,
    ) -> Option<Choice> {
        let len = field.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for step in 0..len {
            let index = turn.wrapping_add(step) % len;
            let candidate = field.candidate(index, request);
            match candidate.exclusion(request) {
                Some(exclusion) => witness.saw(index, Verdict::Excluded(exclusion)),
                None => {
                    // Those passed over lose no turn: the next request starts behind this one.
                    self.turn.fetch_add(step, Ordering::Relaxed);
                    let score = score(&candidate, request, step as f64, ScoreUnit::Turn, 1.0);
                    witness.saw(index, Verdict::Weighed(score));
                    return Some(Choice { index, node: candidate.node, score });
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{candidate, tally};
    use super::super::{Candidate, Standing};
    use super::*;

    #[test]
    fn turns_go_round() {
        let field: Vec<_> = (0..4).map(candidate).collect();
        assert_eq!(tally(&RoundRobin::default(), &field, 400), [100; 4]);
    }

    #[test]
    fn the_neighbour_of_a_dead_node_gets_no_double_turn() {
        let mut field: Vec<_> = (0..4).map(candidate).collect();
        field[1] = Candidate { standing: Standing::Dead, ..field[1] };
        assert_eq!(tally(&RoundRobin::default(), &field, 300), [100, 0, 100, 100]);
    }
}
