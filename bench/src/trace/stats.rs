//! The figures of a trace, beside the published ones.

use std::collections::HashMap;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{FileKind, Reader, What};

/// What a trace is like.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Stats {
    /// Days from the first event to the last.
    pub(crate) days: f64,
    /// Files, those published during the trace included.
    pub(crate) files: u64,
    /// Their size together.
    pub(crate) bytes: u64,
    /// Part of the files below 1 MB.
    pub(crate) small_part: f64,
    /// Part of the files of 1 MB and more that are identical to another.
    pub(crate) identical_part: f64,
    /// Distributions.
    pub(crate) distributions: u64,
    /// Requests.
    pub(crate) requests: u64,
    /// Bytes sent for them.
    pub(crate) sent: u64,
    /// Part of those that are images.
    pub(crate) image_part: f64,
    /// Clients.
    pub(crate) clients: u64,
    /// Releases.
    pub(crate) releases: u64,
    /// Bytes sent in the busiest hour over the mean hour.
    pub(crate) peak_hour: f64,
    /// Exponent of the power law of popularity, fitted over the ranks 10 to 10,000.
    pub(crate) skew: f64,
    /// Part of the requests that go to the most asked tenth of the files asked for.
    pub(crate) top_tenth: f64,
    /// Requests for the files of a release in its first six hours, over what their hours before would
    /// have had if asked for as evenly: the largest of all releases.
    pub(crate) crowd: f64,
}

/// Measures a trace.
///
/// # Errors
/// When it cannot be read to its end.
pub(crate) fn measure(reader: &mut Reader) -> Result<Stats> {
    let mut asked: HashMap<u32, u64> = HashMap::new();
    let mut clients = std::collections::HashSet::new();
    let mut hours: Vec<u64> = Vec::new();
    let mut releases: Vec<(f64, u32, u32, u64)> = Vec::new();
    let (mut requests, mut sent, mut images) = (0u64, 0u64, 0u64);
    let (mut first, mut last) = (None, 0.0);
    while let Some(event) = reader.next()? {
        first.get_or_insert(event.at);
        last = event.at;
        match event.what {
            What::Release { first, count } => releases.push((event.at, first, count, 0)),
            What::Request { file, client } => {
                let entry = reader.repository().files[file as usize];
                requests += 1;
                sent += entry.size;
                if entry.kind == FileKind::Image {
                    images += entry.size;
                }
                *asked.entry(file).or_default() += 1;
                clients.insert(client);
                let hour = (event.at / 3600.0) as usize;
                if hours.len() <= hour {
                    hours.resize(hour + 1, 0);
                }
                hours[hour] += entry.size;
                // Newest first: a request mostly belongs to one of the last few releases.
                for release in
                    releases.iter_mut().rev().take_while(|release| event.at - release.0 < CROWD_SECONDS)
                {
                    if (release.1..release.1 + release.2).contains(&file) {
                        release.3 += 1;
                    }
                }
            }
        }
    }
    let files = &reader.repository().files;
    let large: Vec<u32> =
        files.iter().filter(|file| file.size >= 1_000_000).map(|file| file.content).collect();
    let mut contents: HashMap<u32, u32> = HashMap::new();
    for content in &large {
        *contents.entry(*content).or_default() += 1;
    }
    let identical = large.iter().filter(|content| contents[content] > 1).count();
    let mut counts: Vec<u64> = asked.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let days = (last - first.unwrap_or(0.0)) / 86_400.0;
    let mean_hour = sent as f64 / (days * 24.0).max(1.0);
    let even = |count: u32| {
        requests as f64 / (days * 86_400.0).max(1.0) * CROWD_SECONDS * f64::from(count)
            / files.len().max(1) as f64
    };
    Ok(Stats {
        days,
        files: files.len() as u64,
        bytes: files.iter().map(|file| file.size).sum(),
        small_part: part(files.iter().filter(|file| file.size < 1_000_000).count(), files.len()),
        identical_part: part(identical, large.len()),
        distributions: files
            .iter()
            .map(|file| file.distribution)
            .collect::<std::collections::HashSet<_>>()
            .len() as u64,
        requests,
        sent,
        image_part: images as f64 / sent.max(1) as f64,
        clients: clients.len() as u64,
        releases: releases.len() as u64,
        peak_hour: hours.iter().max().copied().unwrap_or(0) as f64 / mean_hour.max(1.0),
        skew: skew(&counts),
        top_tenth: {
            let top: u64 = counts[..counts.len().div_ceil(10)].iter().sum();
            top as f64 / requests.max(1) as f64
        },
        crowd: releases
            .iter()
            .map(|&(_, _, count, seen)| seen as f64 / even(count).max(1e-9))
            .fold(0.0, f64::max),
    })
}

impl Stats {
    /// A table for people.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["figure", "this trace", "published"]);
        let percent = |part: f64| format!("{:.1} %", part * 100.0);
        let rows: [(&str, String, &str); 14] = [
            ("days", format!("{:.2}", self.days), "10"),
            ("distributions", self.distributions.to_string(), "about 10"),
            ("files", self.files.to_string(), "2.2 million"),
            ("size of the repository", format!("{:.3} TB", self.bytes as f64 / 1e12), "2.86 TB"),
            ("files below 1 MB", percent(self.small_part), "91 %"),
            ("large files identical to another", percent(self.identical_part), "17 %"),
            ("requests", self.requests.to_string(), "not told"),
            ("bytes sent", format!("{:.3} TB", self.sent as f64 / 1e12), "not told"),
            ("of these, images", percent(self.image_part), "71 %"),
            ("clients", self.clients.to_string(), "not told"),
            ("releases", self.releases.to_string(), "not told"),
            ("busiest hour over the mean hour", format!("{:.2}", self.peak_hour), "not told"),
            ("skew of popularity", format!("{:.2}", self.skew), "not told"),
            ("largest crowd over even demand", format!("{:.0}", self.crowd), "flash crowds"),
        ];
        for (figure, here, published) in rows {
            table.add_row([figure, &here, published]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

fn part(of: usize, all: usize) -> f64 {
    of as f64 / all.max(1) as f64
}

/// Least squares of log count over log rank, at ranks evenly spaced on the logarithmic scale.
fn skew(counts: &[u64]) -> f64 {
    let mut points = Vec::new();
    let mut rank = 10.0f64;
    while (rank as usize) < counts.len().min(10_000) {
        points.push(((rank + 1.0).ln(), (counts[rank as usize] as f64).ln()));
        rank *= 1.2;
    }
    let n = points.len() as f64;
    if n < 3.0 {
        return 0.0;
    }
    let (sx, sy) = points.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
    let (sxx, sxy) = points.iter().fold((0.0, 0.0), |(xx, xy), p| (xx + p.0 * p.0, xy + p.0 * p.1));
    -(n * sxy - sx * sy) / (n * sxx - sx * sx)
}

const CROWD_SECONDS: f64 = 6.0 * 3600.0;

#[cfg(test)]
mod tests {
    use super::super::{Recipe, Synthesis, Writer};
    use super::*;

    #[test]
    fn a_synthetic_trace_measures_as_it_was_meant() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.trace");
        let recipe = Recipe { days: 5.0, requests_per_day: 60_000.0, files: 100_000, seed: 4 };
        let mut synthesis = Synthesis::new(recipe);
        let mut events = Vec::new();
        while let Some(event) = synthesis.next() {
            events.push(event);
        }
        let mut writer = Writer::create(&path, synthesis.repository()).unwrap();
        events.iter().for_each(|event| writer.write(event).unwrap());
        writer.finish().unwrap();
        let stats = measure(&mut Reader::open(&path).unwrap()).unwrap();
        assert!((stats.identical_part - 0.17).abs() < 0.03, "{}", stats.identical_part);
        assert!((stats.image_part - 0.71).abs() < 0.1, "{}", stats.image_part);
        assert!((stats.days - 5.0).abs() < 0.05);
        assert_eq!(stats.distributions, 10);
        assert!(stats.crowd > 50.0, "{}", stats.crowd);
        assert!(stats.table().to_string().contains("2.86 TB"));
    }

    #[test]
    fn skew_is_found_again() {
        let counts: Vec<u64> =
            (1..=20_000).map(|rank| (1e9 / f64::powf(f64::from(rank), 0.8)) as u64).collect();
        assert!((skew(&counts) - 0.8).abs() < 0.02, "{}", skew(&counts));
        assert_eq!(skew(&[3, 2]), 0.0);
    }
}
