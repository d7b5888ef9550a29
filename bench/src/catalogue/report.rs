//! What `bench catalogue` found, as a table and as JSON; it measures nothing.

use std::collections::HashMap;

use freshet_api::ContentHash;
use freshet_api::manifest::Files;
use serde::Serialize;

use super::{Control, Volunteer};
use crate::columns::table;
use crate::spread::Spread;

/// All that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    catalogue: Described,
    #[serde(flatten)]
    on_wire: OnWire,
    volunteer: Vec<Volunteer>,
    control: Vec<Control>,
}

/// What the catalogue is like, to compare with a real one.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Described {
    files: u64,
    terabytes: f64,
    path_bytes_mean: f64,
    below_one_megabyte: f64,
    /// Of the files from 1 MB on, those that another is identical to.
    large_identical: f64,
}

/// The wire form.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct OnWire {
    pub(super) encode_secs: f64,
    pub(super) wire_bytes: u64,
    pub(super) changes: u32,
    pub(super) difference_bytes: u64,
}

/// The figures by which the catalogue is recognised.
pub(super) fn describe(files: &Files) -> Described {
    let (mut bytes, mut path_bytes, mut small, mut large) = (0u64, 0u64, 0u64, 0u64);
    let mut copies: HashMap<ContentHash, u64> = HashMap::new();
    for file in files {
        bytes += file.size;
        path_bytes += file.path.as_str().len() as u64;
        if file.size < 1_000_000 {
            small += 1;
        } else {
            large += 1;
            *copies.entry(file.content).or_default() += 1;
        }
    }
    let identical: u64 = copies.values().filter(|&&copies| copies > 1).sum();
    let count = files.len().max(1) as f64;
    Described {
        files: files.len() as u64,
        terabytes: bytes as f64 / 1e12,
        path_bytes_mean: path_bytes as f64 / count,
        below_one_megabyte: small as f64 / count,
        large_identical: identical as f64 / large.max(1) as f64,
    }
}

impl Report {
    pub(super) fn new(catalogue: Described, on_wire: OnWire) -> Self {
        Self { catalogue, on_wire, volunteer: Vec::new(), control: Vec::new() }
    }

    pub(super) fn volunteer(&mut self, weight: Volunteer) {
        self.volunteer.push(weight);
    }

    pub(super) fn control(&mut self, weight: Control) {
        self.control.push(weight);
    }

    pub(super) fn table(&self) -> String {
        let files = self.catalogue.files.max(1) as f64;
        let volunteer = |figure: &dyn Fn(&Volunteer) -> f64| spread(self.volunteer.iter().map(figure));
        let control = |figure: &dyn Fn(&Control) -> f64| spread(self.control.iter().map(figure));
        let wire = &self.on_wire;
        let mut rows = table(&["", "median (quartiles)", "goal"], 1);
        let mut row = |what: &str, figure: String, goal: &str| {
            rows.add_row([what.to_owned(), figure, goal.to_owned()]);
        };
        row("wire: bytes per file", format!("{:.1}", wire.wire_bytes as f64 / files), "50");
        let difference = format!("wire: kB for {} changes", wire.changes);
        row(&difference, format!("{:.1}", wire.difference_bytes as f64 / 1e3), "200");
        row("wire: encoded, s", format!("{:.2}", wire.encode_secs), "");
        row("volunteer: loaded, s", volunteer(&|w| w.decode_secs + w.accept_secs), "3");
        row("  decoded and checked, s", volunteer(&|w| w.decode_secs), "");
        row("  into its table, s", volunteer(&|w| w.accept_secs), "");
        row("volunteer: resident bytes per file", volunteer(&|w| w.resident as f64 / files), "120");
        row("  at most meanwhile", volunteer(&|w| w.resident_max as f64 / files), "");
        row("volunteer: find a path, ns", volunteer(&|w| w.find_nanos), "");
        row("volunteer: find a content, ns", volunteer(&|w| w.find_content_nanos), "");
        row("volunteer: 256 contents arrive, us", volunteer(&|w| w.batch_micros), "");
        row("control: filled, s", control(&|w| w.fill_secs), "");
        row("control: resident bytes per file", control(&|w| w.resident as f64 / files), "250");
        row("control: find a path, ns", control(&|w| w.find_nanos), "");
        row("control: one change, us", control(&|w| w.change_micros), "");
        row("control: manifest of all, s", control(&|w| w.manifest_secs), "");
        let Described { files, terabytes, path_bytes_mean, below_one_megabyte, large_identical } =
            self.catalogue;
        let directories = self.control.first().map_or(0, |weight| weight.directories);
        format!(
            "{files} files of {terabytes:.2} TB in {directories} directories, paths of {path_bytes_mean:.0} bytes, \
             {:.1} % below 1 MB, {:.1} % of the larger ones identical to another\n{rows}\n",
            below_one_megabyte * 100.0,
            large_identical * 100.0,
        )
    }
}

fn spread(values: impl Iterator<Item = f64>) -> String {
    Spread::of(values).map_or_else(|| "-".to_owned(), |spread| spread.text())
}
