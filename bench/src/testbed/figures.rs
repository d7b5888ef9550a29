//! The key figures of an experiment, few enough to compare two runs by.

use serde::Serialize;

use super::course::{Request, Seen, Verdict};
use super::experiment::ORIGIN;

/// One figure of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

/// All of a run, in the same order for every run of an experiment.
pub(crate) fn of(seen: &Seen) -> Vec<Figure> {
    let figure = |name: &str, unit, value| Figure { name: name.to_owned(), unit, value };
    let mut figures = Vec::new();
    for phase in &seen.phases {
        if let Some(synced) = phase.synced {
            figures.push(figure(&format!("{}: every mirror complete", phase.name), "s", synced));
        }
    }
    let requests: Vec<&Request> = seen.phases.iter().flat_map(|phase| &phase.requests).collect();
    let count = |verdict| requests.iter().filter(|request| request.verdict == verdict).count() as f64;
    let unfinished: usize = seen.phases.iter().map(|phase| phase.unfinished).sum();
    if !requests.is_empty() || unfinished > 0 {
        let right = || requests.iter().filter(|request| request.verdict == Verdict::Right);
        let bytes: u64 = right().map(|request| request.outcome.bytes).sum();
        let of_volunteers: u64 =
            right().filter(|request| request.from != ORIGIN).map(|request| request.outcome.bytes).sum();
        let mut secs: Vec<f64> = right().map(|request| request.outcome.secs).collect();
        secs.sort_by(f64::total_cmp);
        figures.push(figure("downloads that are right", "", count(Verdict::Right)));
        figures.push(figure("downloads that are wrong", "", count(Verdict::Wrong)));
        figures.push(figure("downloads that failed", "", count(Verdict::Failed) + unfinished as f64));
        figures.push(figure("downloaded", "MB", bytes as f64 / 1e6));
        figures.push(figure(
            "of it from volunteers",
            "%",
            100.0 * of_volunteers as f64 / bytes.max(1) as f64,
        ));
        figures.push(figure("a download's time, mean", "s", mean(&secs)));
        figures.push(figure("a download's time, median", "s", quantile(&secs, 0.5)));
        figures.push(figure("a download's time, 90 % within", "s", quantile(&secs, 0.9)));
    }
    let sent = |of_origin: bool| -> f64 {
        let all = seen.phases.iter().flat_map(|phase| {
            let origin = phase.passed.first().map(|(_, passed)| passed[1]).unwrap_or_default();
            let volunteers = phase.compared.iter().map(|(_, compared)| compared.kernel[1]).sum();
            [if of_origin { origin } else { volunteers }]
        });
        all.sum::<u64>() as f64 / 1e6
    };
    figures.push(figure("sent by the origin, on the wire", "MB", sent(true)));
    figures.push(figure("sent by volunteers, on the wire", "MB", sent(false)));
    figures
}

/// How far apart a figure's values in several runs are: their greatest distance, in hundredths of their mean.
pub(crate) fn apart(values: &[f64]) -> f64 {
    let (low, high) = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)));
    let mean = mean(values);
    if high - low <= 0.0 || mean == 0.0 { 0.0 } else { 100.0 * (high - low) / mean }
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Of values in order; 0 when there are none.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let position = part * last as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_as_far_apart_as_their_extremes() {
        assert_eq!(apart(&[10.0, 10.0]), 0.0);
        assert_eq!(apart(&[0.0, 0.0]), 0.0);
        assert!((apart(&[9.0, 10.0, 11.0]) - 20.0).abs() < 1e-9);
        assert_eq!(apart(&[]), 0.0);
    }

    #[test]
    fn quantiles_are_interpolated_and_nothing_has_none() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(quantile(&[], 0.9), 0.0);
        assert_eq!(of(&Seen::default()).len(), 2);
    }
}
