//! The holder with the least load in its last report, over all of them.
//!
//! Known to herd: between two reports everybody is sent to the same node.

use super::{Choice, Field, RequestFacts, ScoreUnit, Selector, Verdict, Witness, score};
use crate::draw::Draw;
use crate::moment::Moment;

/// The baseline of schedulers that poll and believe.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastReportedLoad;

impl Selector for LeastReportedLoad {
    fn name(&self) -> &'static str {
        "least-reported-load"
    }

    fn pick(
        &self,
        field: &dyn Field,
        request: &RequestFacts<'_>,
        _now: Moment,
        seed: u64,
        witness: &mut dyn Witness,
    ) -> Option<Choice> {
        let len = field.len();
        let start = Draw::new(seed).below(len);
        let mut best: Option<Choice> = None;
        for step in 0..len {
            let index = (start + step) % len;
            let candidate = field.candidate(index, request);
            if let Some(exclusion) = candidate.exclusion(request) {
                witness.saw(index, Verdict::Excluded(exclusion));
                continue;
            }
            let load = f64::from(candidate.reported_load);
            let score = score(&candidate, request, load, ScoreUnit::ReportedLoad, 1.0);
            witness.saw(index, Verdict::Weighed(score));
            if best.is_none_or(|best| load < best.score.value) {
                best = Some(Choice { index, node: candidate.node, score });
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::super::Candidate;
    use super::super::testing::{candidate, tally};
    use super::*;

    #[test]
    fn the_least_loaded_gets_everything() {
        let field: Vec<_> =
            (0..4u32).map(|n| Candidate { reported_load: 1.0 / (1.0 + n as f32), ..candidate(n) }).collect();
        assert_eq!(tally(&LeastReportedLoad, &field, 100), [0, 0, 0, 100]);
    }
}
