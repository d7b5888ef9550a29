//! What `bench pacing` found, as a table, as JSON and as plots; it measures nothing.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::{accuracy, owner, switching};
use crate::columns::table;
use crate::plot::Groups;
use crate::spread::Spread;

/// All that was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Length of each measurement.
    pub(super) seconds: u64,
    pub(super) accuracy: Vec<accuracy::Result>,
    pub(super) switching: Vec<switching::Result>,
    pub(super) owner: Option<owner::Sharing>,
}

impl Report {
    /// Whether nothing was measured.
    pub(super) fn is_empty(&self) -> bool {
        self.accuracy.is_empty() && self.switching.is_empty() && self.owner.is_none()
    }

    /// Writes report.json, and a plot of each part that was measured.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("report.json"), serde_json::to_string_pretty(self)?)?;
        if !self.accuracy.is_empty() {
            std::fs::write(directory.join("accuracy.svg"), self.accuracy_plot()?)?;
        }
        if let Some(owner) = &self.owner {
            std::fs::write(directory.join("owner-ping.svg"), ping_plot(owner)?)?;
        }
        Ok(())
    }

    pub(super) fn table(&self) -> String {
        let mut tables = Vec::new();
        if !self.accuracy.is_empty() {
            let header = ["donated", "downloads", "on the wire", "error", "worst second", "Jain"];
            let mut exact = table(&header, 0);
            for row in &self.accuracy {
                exact.add_row([
                    format!("{} Mbit/s", row.rate_mbit),
                    row.flows.to_string(),
                    format!("{:.3} Mbit/s", row.wire_mbit),
                    format!("{:+.2} %", row.error_percent),
                    format!("{:+.2} %", row.worst_second_percent),
                    format!("{:.4}", row.jain),
                ]);
            }
            tables.push(exact);
        }
        if !self.switching.is_empty() {
            let mut switched = table(&["from", "to", "in force after", "then off by"], 0);
            for row in &self.switching {
                switched.add_row([
                    format!("{} Mbit/s", row.from_mbit),
                    format!("{} Mbit/s", row.to_mbit),
                    format!("{:.0} ms", row.after_ms),
                    format!("{:+.2} %", row.then_error_percent),
                ]);
            }
            tables.push(switched);
        }
        if let Some(sharing) = &self.owner {
            let title = format!("on a link of {} Mbit/s", sharing.link_mbit);
            let header = [title.as_str(), "owner gets", "donated", "ping (quartiles)", "95 %", "lost"];
            let mut shared = table(&header, 1);
            for row in &sharing.results {
                shared.add_row([
                    row.case.to_owned(),
                    row.owner_mbit.map_or("-".to_owned(), |mbit| format!("{mbit:.2} Mbit/s")),
                    format!("{:.2} Mbit/s", row.donated_mbit),
                    format!("{} ms", row.ping_ms.text()),
                    format!("{:.2} ms", row.ping_p95_ms),
                    row.pings_lost.to_string(),
                ]);
            }
            tables.push(shared);
        }
        tables.iter().map(|table| format!("{}\n\n", table.trim_fmt())).collect()
    }

    /// The error of each rate by number of downloads: least, median and most of the rounds.
    fn accuracy_plot(&self) -> Result<String> {
        let distinct = |values: Vec<u64>| {
            let mut values = values;
            values.sort_unstable();
            values.dedup();
            values
        };
        let rates = distinct(self.accuracy.iter().map(|row| row.rate_mbit).collect());
        let flows = distinct(self.accuracy.iter().map(|row| row.flows as u64).collect());
        let labels: Vec<String> = rates.iter().map(|rate| format!("{rate} Mbit/s")).collect();
        let of = |rate: u64, flows: u64| {
            let rows = self.accuracy.iter().filter(move |row| row.rate_mbit == rate);
            let rows = rows.filter(move |row| row.flows as u64 == flows);
            let parts: Vec<f64> = rows.map(|row| row.wire_mbit / row.rate_mbit as f64 * 100.0).collect();
            let middle = Spread::of(parts.iter().copied())?.median;
            let (least, most) = parts.iter().fold((middle, middle), |(a, b), &x| (a.min(x), b.max(x)));
            Some([least, middle, most])
        };
        let series: Vec<_> = flows
            .iter()
            .map(|&flows| {
                let points = rates.iter().map(|&rate| of(rate, flows)).collect();
                (format!("{flows} downloads"), points)
            })
            .collect();
        Groups {
            title: "On the wire, of what is donated",
            unit: "%",
            labels: &labels,
            series: &series,
            reference: Some(100.0),
        }
        .svg()
    }
}

fn ping_plot(sharing: &owner::Sharing) -> Result<String> {
    let labels = ["round trip".to_owned()];
    let series: Vec<_> = sharing
        .results
        .iter()
        .map(|row| (row.case.to_owned(), vec![Some([row.ping_ms.q25, row.ping_ms.median, row.ping_p95_ms])]))
        .collect();
    let title = format!("Round trips over {} Mbit/s: lower quartile, median, 95 %", sharing.link_mbit);
    Groups { title: &title, unit: "ms", labels: &labels, series: &series, reference: None }.svg()
}
