//! What `bench chunks` found, as tables, as JSON and as a plot; it measures nothing.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::swarm::Field;
use crate::columns::table;
use crate::plot::Groups;

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(super) field: Field,
    pub(crate) files: usize,
    /// The chunk sizes that were tried.
    pub(super) sizes: Vec<String>,
    pub(super) kinds: BTreeMap<String, Found>,
    pub(crate) all: Found,
    /// One per size, and ours last.
    pub(crate) ways: Vec<Way>,
}

/// What was found of some files in their older versions. Lists have an entry per chunk size.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Found {
    /// Of the files that changed.
    pub(crate) bytes: u64,
    /// Files that did not.
    pub(super) identical: u64,
    /// Bytes that chunks of the older versions make up.
    pub(crate) found: Vec<u64>,
    /// Chunks of the new versions.
    pub(super) chunks: Vec<u64>,
    /// Bytes of patches against the older versions.
    pub(super) recipe: u64,
    /// Bytes that move: the patch where it is less than half of the file, else the file.
    pub(super) moved: u64,
}

/// One way to bring the new versions to the mirrors.
#[derive(Debug, Serialize)]
pub(crate) struct Way {
    pub(crate) label: String,
    pub(super) piece: u64,
    /// Bytes that are not found, per mirror.
    pub(crate) left: u64,
    /// Per mirror.
    pub(super) requests: u64,
    /// Hashes and heads, per byte that is not found.
    pub(crate) overhead: f64,
    /// The shortest time possible over the time that it takes.
    pub(crate) efficiency: f64,
    pub(super) copies: f64,
    /// Until the last mirror has all.
    pub(crate) secs: f64,
}

impl Found {
    pub(super) fn new(sizes: usize) -> Self {
        Self { found: vec![0; sizes], chunks: vec![0; sizes], ..Self::default() }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.identical += other.identical;
        self.recipe += other.recipe;
        self.moved += other.moved;
        self.found.iter_mut().zip(&other.found).for_each(|(sum, more)| *sum += more);
        self.chunks.iter_mut().zip(&other.chunks).for_each(|(sum, more)| *sum += more);
    }

    pub(super) fn line(&self) -> String {
        if self.bytes == 0 {
            return "as it was".to_owned();
        }
        let shares: Vec<String> = self.found.iter().map(|&found| percent(found, self.bytes)).collect();
        let (size, patch) = (self.bytes as f64 / 1e6, percent(self.recipe, self.bytes));
        format!("{size:.1} MB, found {}; a patch has {patch}", shares.join(", "))
    }
}

impl Report {
    pub(super) fn table(&self) -> String {
        let mut header = vec!["found in the version before", "MB"];
        header.extend(self.sizes.iter().map(String::as_str));
        header.extend(["patch / size", "moved / size"]);
        let mut shares = table(&header, 1);
        for (kind, found) in
            self.kinds.iter().map(|(kind, found)| (kind.as_str(), found)).chain([("all", &self.all)])
        {
            let mut row = vec![kind.to_owned(), format!("{:.1}", found.bytes as f64 / 1e6)];
            row.extend(found.found.iter().map(|&bytes| percent(bytes, found.bytes)));
            row.extend([percent(found.recipe, found.bytes), percent(found.moved, found.bytes)]);
            shares.add_row(row);
        }
        let header = [
            "chunks and pieces of",
            "to move, MB",
            "requests",
            "hashes and heads",
            "swarm's efficiency",
            "origin, copies",
            "last mirror, s",
            "/ ours",
        ];
        let mut ways = table(&header, 1);
        for way in &self.ways {
            ways.add_row([
                way.label.clone(),
                format!("{:.1}", way.left as f64 / 1e6),
                way.requests.to_string(),
                format!("{:.1} %", way.overhead * 100.0),
                format!("{:.2}", way.efficiency),
                format!("{:.2}", way.copies),
                format!("{:.1}", way.secs),
                format!("{:.2}", way.secs / self.ours()),
            ]);
        }
        let Field { mirrors, rate, round_trip } = self.field;
        let same = match self.all.identical {
            0 => String::new(),
            identical => format!(" ({identical} more are as they were)"),
        };
        let best = self
            .ways
            .split_last()
            .and_then(|(_, sizes)| sizes.iter().min_by(|a, b| a.secs.total_cmp(&b.secs)));
        let best = best.map_or_else(String::new, |best| {
            format!(
                "the best single size, {}, takes {:.2} times as long as ours\n",
                best.label,
                best.secs / self.ours()
            )
        });
        format!(
            "{} files in consecutive versions{same}; blocks of the old on a grid, looked for at every byte of the new, as \
             rsync does\n{shares}\n\n{mirrors} mirrors and an origin at {:.0} Mbit/s, {:.0} ms from request to answer \
             (virtual time, real leases and pickers)\n{ways}\n\n{best}",
            self.files,
            rate / 125_000.0,
            round_trip * 1e3,
        )
    }

    /// Shares by chunk size, with ours as the last group.
    pub(crate) fn plot(&self) -> Result<String> {
        let labels: Vec<String> = self.ways.iter().map(|way| way.label.clone()).collect();
        let bytes = self.all.bytes.max(1) as f64;
        let point = |value: f64| Some([value; 3]);
        let spared = self.ways.iter().map(|way| point(1.0 - way.left as f64 / bytes)).collect();
        let efficiency = self.ways.iter().map(|way| point(way.efficiency)).collect();
        let speed = self.ways.iter().map(|way| point(self.ours() / way.secs)).collect();
        Groups {
            title: "Chunk sizes: what is found, how the swarm does, and both together",
            unit: "share",
            labels: &labels,
            series: &[
                ("bytes that need not move".to_owned(), spared),
                ("swarm's efficiency".to_owned(), efficiency),
                ("speed, ours being 1".to_owned(), speed),
            ],
            reference: Some(1.0),
        }
        .svg()
    }

    fn ours(&self) -> f64 {
        self.ways.last().map_or(1.0, |way| way.secs)
    }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1} %", part as f64 / whole as f64 * 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_and_the_plot_have_every_size_and_ours() {
        let way = |label: &str, secs: f64| Way {
            label: label.to_owned(),
            piece: 1,
            left: 50,
            requests: 3,
            overhead: 0.1,
            efficiency: 0.5,
            copies: 1.0,
            secs,
        };
        let found = Found {
            bytes: 100,
            found: vec![60, 20],
            chunks: vec![10, 2],
            recipe: 30,
            moved: 30,
            identical: 1,
        };
        let report = Report {
            field: Field { mirrors: 2, rate: 5e6, round_trip: 0.02 },
            files: 3,
            sizes: vec!["small".to_owned(), "large".to_owned()],
            kinds: BTreeMap::from([("deb".to_owned(), found.clone())]),
            all: found,
            ways: vec![way("small", 4.0), way("large", 3.0), way("ours", 2.0)],
        };
        let text = report.table();
        for part in
            ["deb", "60.0 %", "the best single size, large, takes 1.50 times", "1 more are as they were"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let svg = report.plot().unwrap();
        assert!(["small", "large", "ours"].iter().all(|label| svg.contains(label)));
    }
}
