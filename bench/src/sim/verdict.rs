//! How the arbiter does against the baselines over several scenarios. It reckons with outcomes alone and runs nothing.
//!
//! "The best fixed split" can be read in two ways: the best of each scenario, which nobody could know beforehand, or one
//! split for all of them. Both are told; the first is the stricter one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Total lateness of each law in each scenario.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    scenarios: Vec<(String, BTreeMap<String, f64>)>,
}

impl Verdict {
    /// Takes in a scenario's laws with the total lateness of each run.
    pub(super) fn add<'a>(&mut self, scenario: &str, laws: impl Iterator<Item = (&'a str, Vec<f64>)>) {
        let means = laws
            .filter(|(_, runs)| !runs.is_empty())
            .map(|(law, runs)| (law.to_owned(), runs.iter().sum::<f64>() / runs.len() as f64))
            .collect();
        self.scenarios.push((scenario.to_owned(), means));
    }

    /// In words; empty unless every scenario has ours and a baseline.
    pub(super) fn text(&self) -> String {
        let Some(single) = self.best_of_all() else { return String::new() };
        let mut text = format!("{OURS}, total lateness (mean over the seeds) over that of the baselines:\n");
        let (mut each, mut one) = (Vec::new(), Vec::new());
        for (scenario, laws) in &self.scenarios {
            let Some((&ours, (best, theirs))) = laws.get(OURS).zip(best(laws)) else { return String::new() };
            let fixed = laws.get(&single).copied().unwrap_or(f64::NAN);
            let _ = writeln!(
                text,
                "  {scenario}: {:.2} of {best}, the best there; {:.2} of {single}",
                ours / theirs,
                ours / fixed
            );
            each.push(ours / theirs);
            one.push(ours / fixed);
        }
        let worst = each.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "  geometric mean: {:.2} of the best of each scenario ({worst:.2} at worst); {:.2} of {single}, the best law \
             for all",
            geometric(&each),
            geometric(&one)
        );
        text
    }

    /// The baseline that is best for all scenarios together.
    fn best_of_all(&self) -> Option<String> {
        let (_, first) = self.scenarios.first()?;
        let of_all = |law: &String| {
            let values: Option<Vec<f64>> =
                self.scenarios.iter().map(|(_, laws)| laws.get(law).copied()).collect();
            Some((law.clone(), geometric(&values?)))
        };
        let all = first.keys().filter(|law| is_baseline(law)).filter_map(of_all);
        all.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(law, _)| law)
    }
}

fn best(laws: &BTreeMap<String, f64>) -> Option<(&str, f64)> {
    let baselines = laws.iter().filter(|(law, _)| is_baseline(law));
    baselines.min_by(|a, b| a.1.total_cmp(b.1)).map(|(law, value)| (law.as_str(), *value))
}

fn is_baseline(law: &str) -> bool {
    matches!(law, "delivery-first" | "sync-first") || law.starts_with("fixed-split:")
}

fn geometric(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len().max(1) as f64).exp()
}

/// The law that is judged.
const OURS: &str = "shortest-remaining";

#[cfg(test)]
mod tests {
    use super::*;

    fn told(scenarios: &[&[(&str, f64)]]) -> String {
        let mut verdict = Verdict::default();
        for (number, laws) in scenarios.iter().enumerate() {
            verdict.add(&format!("day {number}"), laws.iter().map(|&(law, value)| (law, vec![value, value])));
        }
        verdict.text()
    }

    #[test]
    fn the_best_of_each_scenario_is_stricter_than_the_best_of_all() {
        let first = [(OURS, 8.0), ("fixed-split:0.1", 10.0), ("sync-first", 20.0)];
        let second = [(OURS, 8.0), ("fixed-split:0.1", 40.0), ("sync-first", 10.0)];
        let text = told(&[&first, &second]);
        assert!(text.contains("0.80 of the best of each scenario (0.80 at worst)"), "{text}");
        assert!(text.contains("0.57 of sync-first, the best law for all"), "{text}");
    }

    #[test]
    fn nothing_is_said_without_ours_or_a_baseline() {
        assert_eq!(told(&[]), "");
        assert_eq!(told(&[&[(OURS, 1.0), ("equal-lateness", 2.0)]]), "");
        assert_eq!(told(&[&[("sync-first", 1.0)]]), "");
    }
}
