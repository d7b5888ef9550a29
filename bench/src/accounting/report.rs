//! What `bench accounting` found, as tables, as JSON and as plots; it measures nothing.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::cost::{TestRun, Throughput, Timed};
use super::exact::Row;
use crate::columns::table;
use crate::plot::Groups;

/// All that was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) exact: Vec<Row>,
    /// Kinds of traffic that could not be had here, and why.
    pub(super) left_out: Vec<String>,
    pub(super) test_runs: Vec<TestRun>,
    pub(super) timed: Vec<Timed>,
    pub(super) throughput: Vec<Throughput>,
}

impl Report {
    /// Writes report.json, and plots of what was measured.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("report.json"), serde_json::to_string_pretty(self)?)?;
        if !self.test_runs.is_empty() {
            std::fs::write(directory.join("cost.svg"), self.cost_plot()?)?;
        }
        if !self.throughput.is_empty() {
            std::fs::write(directory.join("throughput.svg"), self.throughput_plot()?)?;
        }
        Ok(())
    }

    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        if !self.exact.is_empty() {
            let header = [
                "traffic",
                "offloads",
                "way",
                "class",
                "bytes",
                "packets",
                "- known",
                "packets",
                "all - interface",
                "packets",
            ];
            let mut exact = table(&header, 4);
            for row in &self.exact {
                let less = |a: u64, b: u64| format!("{:+}", i128::from(a) - i128::from(b));
                let known = |part: fn(freshet_ebpf::Traffic) -> u64| {
                    row.known.map_or("-".to_owned(), |known| less(part(row.counted), part(known)))
                };
                exact.add_row([
                    row.kind.clone(),
                    if row.offloads { "on" } else { "off" }.to_owned(),
                    if row.sent { "out" } else { "in" }.to_owned(),
                    row.class.to_owned(),
                    row.counted.bytes.to_string(),
                    row.counted.packets.to_string(),
                    known(|traffic| traffic.bytes),
                    known(|traffic| traffic.packets),
                    less(row.counted_all.bytes, row.interface.bytes),
                    less(row.counted_all.packets, row.interface.packets),
                ]);
            }
            text.push_str(&format!("{}\n\n", exact.trim_fmt()));
        }
        for left_out in &self.left_out {
            text.push_str(&format!("left out: {left_out}\n\n"));
        }
        if !self.test_runs.is_empty() {
            let mut costs = table(&["test run", "net of empty", "rounds", "empty"], 1);
            for row in &self.test_runs {
                costs.add_row([
                    row.case.to_owned(),
                    format!("{} ns", row.net_ns),
                    format!("{}-{} ns", row.spread_ns.0, row.spread_ns.1),
                    format!("{} ns", row.empty_ns),
                ]);
            }
            text.push_str(&format!("{}\n\n", costs.trim_fmt()));
        }
        if !self.timed.is_empty() {
            let mut timed = table(&["under load", "runs", "a run"], 1);
            for row in &self.timed {
                timed.add_row([
                    if row.outgoing { "out" } else { "in" }.to_owned(),
                    row.runs.to_string(),
                    format!("{:.0} ns", row.ns_per_run),
                ]);
            }
            text.push_str(&format!("{}\n\n", timed.trim_fmt()));
        }
        if !self.throughput.is_empty() {
            let header = ["load", "compared", "ratio", "sign test", "difference (95 % of the median)"];
            let mut loads = table(&header, 2);
            for row in &self.throughput {
                text.push_str(&format!(
                    "{}, {}: without {}, with {}, {} turns\n",
                    row.load,
                    row.unit,
                    row.without.text(),
                    row.with.text(),
                    row.with.count
                ));
                for (compared, paired) in [
                    ("with / without", row.ratio),
                    ("with / empty programs", row.over_empty),
                    ("empty programs / without", row.empty),
                    ("without / without", row.noise),
                ] {
                    loads.add_row([
                        row.load.to_owned(),
                        compared.to_owned(),
                        ratio(paired.spread),
                        format!("p = {:.3}", paired.p),
                        paired.verdict(),
                    ]);
                }
            }
            text.push_str(&format!("{}\n\n", loads.trim_fmt()));
        }
        text
    }

    fn cost_plot(&self) -> Result<String> {
        let labels: Vec<String> = self.test_runs.iter().map(|row| row.case.to_owned()).collect();
        let points = self.test_runs.iter().map(|row| {
            let over = |time: u32| f64::from(time.saturating_sub(row.empty_ns));
            Some([over(row.spread_ns.0), f64::from(row.net_ns), over(row.spread_ns.1)])
        });
        let series = [("median, least and most".to_owned(), points.collect())];
        let title = "What counting adds to a packet";
        Groups { title, unit: "ns", labels: &labels, series: &series, reference: Some(40.0) }.svg()
    }

    fn throughput_plot(&self) -> Result<String> {
        let labels: Vec<String> = self.throughput.iter().map(|row| row.load.to_owned()).collect();
        let points = |of: fn(&Throughput) -> crate::spread::Spread| {
            let point = |row| {
                let spread = of(row);
                Some([spread.q25, spread.median, spread.q75])
            };
            self.throughput.iter().map(point).collect()
        };
        let series = [
            ("with / without".to_owned(), points(|row| row.ratio.spread)),
            ("with / empty programs".to_owned(), points(|row| row.over_empty.spread)),
            ("without / without".to_owned(), points(|row| row.noise.spread)),
        ];
        let title = "Throughput with counters, and the noise";
        Groups { title, unit: "ratio", labels: &labels, series: &series, reference: Some(1.0) }.svg()
    }
}

fn ratio(spread: crate::spread::Spread) -> String {
    format!("{:.3} ({:.3}-{:.3})", spread.median, spread.q25, spread.q75)
}
