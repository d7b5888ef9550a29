//! The figures of simulated runs as a table, JSON and SVG plots.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use comfy_table::{CellAlignment, Table, presets};
use plotters::prelude::*;
use serde::Serialize;

use super::metrics::Outcome;
use crate::spread::Spread;

/// The runs of one scenario.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    scenario: String,
    title: String,
    pub(super) variants: Vec<Variant>,
}

/// The runs of one variant, one per seed.
#[derive(Debug, Serialize)]
pub(super) struct Variant {
    pub(super) label: String,
    pub(super) outcomes: Vec<Outcome>,
}

impl Report {
    pub(super) fn new(scenario: &str, title: &str) -> Report {
        Report { scenario: scenario.to_owned(), title: title.to_owned(), variants: Vec::new() }
    }

    /// The scenario's name without its path.
    pub(super) fn file_stem(&self) -> String {
        let stem = Path::new(&self.scenario).file_stem();
        stem.map_or_else(|| "scenario".to_owned(), |stem| stem.to_string_lossy().into_owned())
    }

    /// A table for people: medians over the seeds, with quartiles where there are several.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        let mut header = vec!["figure".to_owned()];
        header.extend(self.variants.iter().map(|variant| variant.label.clone()));
        table.set_header(header);
        for (name, of) in FIGURES {
            let cells: Vec<String> = self.variants.iter().map(|variant| variant.cell(*of)).collect();
            if cells.iter().all(|cell| cell == "0") {
                continue;
            }
            let mut row = vec![(*name).to_owned()];
            row.extend(cells);
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{}\n{table}", self.title)
    }

    /// Writes report.json and the plots into `directory`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let mut plots = Vec::new();
        plots.push(("waits.svg", self.waits()?));
        plots.push(("lateness.svg", self.lateness()?));
        plots.push(("origin.svg", self.origin()?));
        if let Some(outcome) = self.variants.first().and_then(|variant| variant.outcomes.first()) {
            plots.push(("loads.svg", loads(&self.title, outcome)?));
            plots.push(("rates.svg", rates(&self.title, outcome)?));
        }
        for (name, text) in plots {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let path = directory.join("report.json");
        let json = serde_json::to_string(self)?;
        std::fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))
    }

    fn first(&self) -> impl Iterator<Item = (&str, &Outcome)> {
        self.variants.iter().filter_map(|variant| Some((variant.label.as_str(), variant.outcomes.first()?)))
    }

    /// Distribution of completion times.
    fn waits(&self) -> Result<String> {
        let series: Vec<Line> = self
            .first()
            .map(|(label, outcome)| Line {
                label: label.to_owned(),
                points: outcome
                    .wait_cdf
                    .iter()
                    .map(|&(wait, part)| (wait.max(0.001).log10(), part))
                    .collect(),
            })
            .collect();
        draw(&self.title, "seconds to completion, powers of ten", "part of the requests", &series)
    }

    /// Sync's lateness against delivery's: one point per variant and seed.
    fn lateness(&self) -> Result<String> {
        let series: Vec<Line> = self
            .variants
            .iter()
            .map(|variant| {
                let points = variant.outcomes.iter().map(|run| (run.delivery_lateness, run.sync_lateness));
                // A small cross, drawn as a line through the point and back.
                let points = points
                    .flat_map(|(x, y)| {
                        [(x, y), (x * 1.01, y), (x * 0.99, y), (x, y), (x, y * 1.01), (x, y * 0.99), (x, y)]
                    })
                    .collect();
                Line { label: variant.label.clone(), points }
            })
            .collect();
        draw(&self.title, "delivery: waiting time over target", "sync: time over target", &series)
    }

    /// What the origin sends.
    fn origin(&self) -> Result<String> {
        let series: Vec<Line> = self
            .first()
            .map(|(label, outcome)| Line {
                label: label.to_owned(),
                points: outcome.series.iter().map(|sample| (sample.at, sample.origin_rate * 8e-6)).collect(),
            })
            .collect();
        draw(&self.title, "seconds", "origin, Mbit/s", &series)
    }
}

impl Variant {
    fn cell(&self, of: fn(&Outcome) -> f64) -> String {
        match Spread::of(self.outcomes.iter().map(of)) {
            Some(spread) if self.outcomes.len() > 1 && spread.q75 > spread.q25 => {
                format!("{} ({}-{})", short(spread.median), short(spread.q25), short(spread.q75))
            }
            Some(spread) => short(spread.median),
            None => "-".to_owned(),
        }
    }
}

/// A figure of a run, by name.
type Figure = (&'static str, fn(&Outcome) -> f64);

const FIGURES: &[Figure] = &[
    ("requests", |run| run.requests as f64),
    ("completed", |run| run.completed as f64),
    ("slowdown, mean", |run| run.slowdown_mean),
    ("slowdown, median", |run| run.slowdown_p50),
    ("slowdown, p99", |run| run.slowdown_p99),
    ("wait, mean (s)", |run| run.wait_mean),
    ("wait, median (s)", |run| run.wait_p50),
    ("wait, p99 (s)", |run| run.wait_p99),
    ("syncs", |run| run.syncs as f64),
    ("sync, mean (h)", |run| run.sync_mean / 3600.0),
    ("sync, shortest (h)", |run| run.sync_min / 3600.0),
    ("sync, longest (h)", |run| run.sync_max / 3600.0),
    ("delivery lateness", |run| run.delivery_lateness),
    ("sync lateness", |run| run.sync_lateness),
    ("total lateness", |run| run.total_lateness),
    ("utilisation, mean", |run| run.utilisation_mean),
    ("utilisation, variation", |run| run.utilisation_cv),
    ("most over admission limit", |run| run.limit_excess),
    ("most over quota", |run| run.quota_excess),
    ("turned away (503)", |run| run.turned_away as f64),
    ("sent back", |run| run.sent_back as f64),
    ("broken off", |run| run.broken as f64),
    ("recovery after a fault (s)", |run| run.recovery_seconds),
    ("given up", |run| run.given_up as f64),
    ("served by the origin", |run| run.served_by_origin as f64),
    ("origin sent (GB)", |run| run.origin_bytes / 1e9),
    ("volunteers delivered (GB)", |run| run.delivered_bytes / 1e9),
    ("volunteers synced (GB)", |run| run.synced_bytes / 1e9),
    ("events", |run| run.events as f64),
];

/// Three digits that matter; whole numbers as they are.
fn short(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e12 {
        return format!("{value:.0}");
    }
    let digits = (2.0 - value.abs().log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.digits$}")
}

struct Line {
    label: String,
    points: Vec<(f64, f64)>,
}

/// Load of each node over time.
fn loads(title: &str, outcome: &Outcome) -> Result<String> {
    let nodes = outcome.series.first().map_or(0, |sample| sample.loads.len());
    let series: Vec<Line> = (0..nodes)
        .map(|node| Line {
            label: String::new(),
            points: outcome
                .series
                .iter()
                .filter_map(|sample| Some((sample.at, f64::from(*sample.loads.get(node)?))))
                .collect(),
        })
        .collect();
    draw(title, "seconds", "load of each node", &series)
}

/// What origin and volunteers send over time.
fn rates(title: &str, outcome: &Outcome) -> Result<String> {
    let line = |label: &str, of: &dyn Fn(&super::metrics::Sample) -> f64| Line {
        label: label.to_owned(),
        points: outcome.series.iter().map(|sample| (sample.at, of(sample) * 8e-6)).collect(),
    };
    let series = [
        line("delivery", &|sample| sample.delivery_rate),
        line("sync", &|sample| sample.sync_rate),
        line("origin", &|sample| sample.origin_rate),
    ];
    draw(title, "seconds", "Mbit/s", &series)
}

fn draw(title: &str, x: &str, y: &str, series: &[Line]) -> Result<String> {
    let mut text = String::new();
    render(&mut text, title, x, y, series).map_err(|error| anyhow!("cannot draw {title}: {error}"))?;
    Ok(text)
}

fn render<'a>(
    text: &'a mut String,
    title: &str,
    x: &str,
    y: &str,
    series: &[Line],
) -> Result<(), Box<dyn std::error::Error + 'a>> {
    let points = || series.iter().flat_map(|line| &line.points);
    let range = |of: fn(&(f64, f64)) -> f64, from_zero: bool| {
        let low = points().map(of).fold(if from_zero { 0.0 } else { f64::INFINITY }, f64::min);
        let high = points().map(of).fold(f64::NEG_INFINITY, f64::max);
        if low.is_finite() && high.is_finite() && high > low {
            low..high + (high - low) * 0.03
        } else {
            0.0..1.0
        }
    };
    let root = SVGBackend::with_string(text, (960, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(range(|p| p.0, false), range(|p| p.1, true))?;
    chart.configure_mesh().x_desc(x).y_desc(y).light_line_style(BLACK.mix(0.05)).draw()?;
    let mut labelled = false;
    for (number, line) in series.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let drawn = chart.draw_series(LineSeries::new(line.points.iter().copied(), color))?;
        if !line.label.is_empty() {
            labelled = true;
            drawn
                .label(line.label.clone())
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], color));
        }
    }
    if labelled {
        chart
            .configure_series_labels()
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE.mix(0.8))
            .position(SeriesLabelPosition::LowerRight)
            .draw()?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_plots_drawn() {
        assert_eq!(short(0.012_345), "0.0123");
        assert_eq!(short(12_345.6), "12346");
        assert_eq!(short(3.0), "3");
        let line = Line { label: "a".to_owned(), points: vec![(0.0, 1.0), (1.0, 3.0)] };
        assert!(draw("t", "x", "y", &[line]).unwrap().contains("<svg"));
        assert!(draw("empty", "x", "y", &[]).unwrap().contains("<svg"));
    }
}
