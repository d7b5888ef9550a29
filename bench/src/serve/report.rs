//! The result of `bench serve`: a table for people, JSON for programs, plots; nothing is measured here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::columns::table;
use crate::plot::Groups;
use crate::spread::Spread;

/// All that was measured, and with what.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rounds: u32,
    turn_ms: u64,
    /// Whether the client of the closed loop never slept.
    client_spins: bool,
    kernel: String,
    processor: String,
    versions: BTreeMap<String, String>,
    left_out: Vec<String>,
    cells: Vec<CellResult>,
}

/// One cell.
#[derive(Debug, Serialize)]
pub(crate) struct CellResult {
    name: String,
    what: String,
    /// Requests per second at which `latency_fixed_rate` was taken.
    pub(crate) fixed_rate: Option<f64>,
    pub(crate) servers: Vec<ServerResult>,
    /// What went wrong with a peer, and what a figure can't mean.
    pub(crate) notes: Vec<String>,
}

/// One server in one cell; the rounds of all servers correspond by index.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ServerResult {
    pub(crate) name: String,
    pub(crate) rounds_requests_per_sec: Vec<f64>,
    pub(crate) rounds_bytes_per_sec: Vec<f64>,
    pub(crate) rounds_cpu_us_per_request: Vec<f64>,
    pub(crate) rounds_cpu_s_per_gb: Vec<f64>,
    pub(crate) latency: Option<Latency>,
    pub(crate) latency_fixed_rate: Option<Latency>,
    pub(crate) rounds_p99_us_fixed_rate: Vec<f64>,
    pub(crate) bytes_per_idle_connection: Option<f64>,
    pub(crate) threads: Option<[usize; 2]>,
    pub(crate) streamed_bytes: Option<f64>,
}

/// Latency in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) count: u64,
}

impl Latency {
    /// `None` for an empty histogram (of nanoseconds).
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        (!histogram.is_empty()).then(|| Self {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            count: histogram.len(),
        })
    }
}

impl CellResult {
    pub(crate) fn new(name: &str, what: &str) -> Self {
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            fixed_rate: None,
            servers: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl Report {
    pub(crate) fn new(rounds: u32, turn_ms: u64, client_spins: bool) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processors = read("/proc/cpuinfo");
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        Self {
            rounds,
            turn_ms,
            client_spins,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.unwrap_or("unknown").to_owned(),
            versions: BTreeMap::new(),
            left_out: Vec::new(),
            cells: Vec::new(),
        }
    }

    pub(crate) fn version(&mut self, server: &str, version: &str) {
        self.versions.insert(server.to_owned(), version.to_owned());
    }

    pub(crate) fn leave_out(&mut self, server: &str) {
        if !self.left_out.iter().any(|known| known == server) {
            self.left_out.push(server.to_owned());
        }
    }

    pub(crate) fn add(&mut self, cell: CellResult) {
        self.cells.push(cell);
    }

    /// Rate and CPU tables with ratios of the first server to each other one, then latency and memory.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{}, Linux {}, {} rounds of {} ms, {} client; ratios are first server / other, round by round: \
             median (quartiles)\n",
            self.processor,
            self.kernel,
            self.rounds,
            self.turn_ms,
            if self.client_spins { "spinning" } else { "sleeping" }
        );
        for (server, version) in &self.versions {
            let _ = writeln!(text, "{server}: {version}");
        }
        if !self.left_out.is_empty() {
            let _ = writeln!(text, "not installed, left out: {}", self.left_out.join(", "));
        }
        let mut rates = table(
            &[
                "cell",
                "server",
                "requests/s",
                "GB/s",
                "CPU µs/request",
                "CPU s/GB",
                "busy",
                "rate ×",
                "CPU ×",
            ],
            2,
        );
        let mut latencies = table(
            &[
                "cell",
                "server",
                "closed p50",
                "p99",
                "p99.9 µs",
                "at rate/s",
                "p50",
                "p99",
                "p99.9 µs",
                "p99 ×",
            ],
            2,
        );
        let mut others =
            table(&["cell", "server", "B/idle connection", "threads before, after", "streamed GB"], 2);
        for cell in &self.cells {
            let Some(first) = cell.servers.first() else { continue };
            for server in &cell.servers {
                let other = server.name != first.name;
                if let Some(rate) = Spread::of(server.rounds_requests_per_sec.iter().copied()) {
                    let middle =
                        |rounds: &[f64]| Spread::of(rounds.iter().copied()).map_or(f64::NAN, |s| s.median);
                    let ratio = |mine: &[f64], theirs: &[f64]| {
                        ratios(mine, theirs)
                            .filter(|_| other)
                            .map_or_else(String::new, |spread| spread.text())
                    };
                    rates.add_row([
                        cell.name.clone(),
                        server.name.clone(),
                        format!("{:.0}", rate.median),
                        format!("{:.3}", middle(&server.rounds_bytes_per_sec) / 1e9),
                        format!("{:.2}", middle(&server.rounds_cpu_us_per_request)),
                        format!("{:.3}", middle(&server.rounds_cpu_s_per_gb)),
                        format!("{:.0} %", rate.median * middle(&server.rounds_cpu_us_per_request) / 1e4),
                        ratio(&first.rounds_requests_per_sec, &server.rounds_requests_per_sec),
                        ratio(&first.rounds_cpu_us_per_request, &server.rounds_cpu_us_per_request),
                    ]);
                }
                if server.latency.is_some() || server.latency_fixed_rate.is_some() {
                    let factor = p99_ratio(first, server).filter(|_| other);
                    let mut row = vec![cell.name.clone(), server.name.clone()];
                    row.extend(quantiles(server.latency));
                    row.push(cell.fixed_rate.map_or_else(String::new, |rate| format!("{rate:.0}")));
                    row.extend(quantiles(server.latency_fixed_rate));
                    row.push(factor.map_or_else(String::new, |factor| factor.text()));
                    latencies.add_row(row);
                }
                if server.bytes_per_idle_connection.is_some()
                    || server.threads.is_some()
                    || server.streamed_bytes.is_some()
                {
                    others.add_row([
                        cell.name.clone(),
                        server.name.clone(),
                        server
                            .bytes_per_idle_connection
                            .map_or_else(String::new, |bytes| format!("{bytes:.0}")),
                        server
                            .threads
                            .map_or_else(String::new, |[before, after]| format!("{before}, {after}")),
                        server.streamed_bytes.map_or_else(String::new, |bytes| format!("{:.2}", bytes / 1e9)),
                    ]);
                }
            }
        }
        if self.cells.iter().flat_map(|cell| &cell.servers).any(|server| !server.rate().is_empty()) {
            text.push_str(
                "busy: the server's CPU time in a core's; well below 100 % the client was the limit, and only CPU \
                 tells the servers apart\n",
            );
        }
        let notes: BTreeSet<&str> =
            self.cells.iter().flat_map(|cell| &cell.notes).map(String::as_str).collect();
        for note in notes {
            let _ = writeln!(text, "note: {note}");
        }
        for table in [rates, latencies, others] {
            if !table.is_empty() {
                let _ = writeln!(text, "\n{}", table.trim_fmt());
            }
        }
        text
    }

    /// report.json and the plots of rate and CPU ratios.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("report.json", serde_json::to_string_pretty(self)?)?;
        for (file, title, rounds) in [
            ("rate.svg", "Requests per second, relative", ServerResult::rate as fn(&ServerResult) -> &[f64]),
            ("cpu.svg", "CPU time per request, relative", ServerResult::cpu),
        ] {
            if let Some(svg) = self.plot(title, rounds)? {
                write(file, svg)?;
            }
        }
        Ok(())
    }

    fn plot(&self, title: &str, rounds: fn(&ServerResult) -> &[f64]) -> Result<Option<String>> {
        let cells: Vec<&CellResult> =
            self.cells.iter().filter(|cell| cell.servers.iter().any(|s| !rounds(s).is_empty())).collect();
        let Some(first) = cells.first().and_then(|cell| cell.servers.first()) else { return Ok(None) };
        let labels: Vec<String> = cells.iter().map(|cell| cell.name.clone()).collect();
        let mut names: Vec<&str> =
            cells.iter().flat_map(|cell| &cell.servers).map(|server| server.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let series: Vec<_> = names
            .into_iter()
            .filter(|name| *name != first.name)
            .map(|name| {
                let points = cells.iter().map(|cell| {
                    let mine = cell.servers.first()?;
                    let theirs = cell.servers.iter().find(|server| server.name == name)?;
                    ratios(rounds(mine), rounds(theirs)).map(|spread| [spread.q25, spread.median, spread.q75])
                });
                (format!("{} / {name}", first.name), points.collect())
            })
            .collect();
        Groups { title, unit: "ratio", labels: &labels, series: &series, reference: Some(1.0) }
            .svg()
            .map(Some)
    }
}

impl ServerResult {
    fn rate(&self) -> &[f64] {
        &self.rounds_requests_per_sec
    }

    fn cpu(&self) -> &[f64] {
        &self.rounds_cpu_us_per_request
    }
}

fn ratios(mine: &[f64], theirs: &[f64]) -> Option<Spread> {
    Spread::of(mine.iter().zip(theirs).map(|(mine, theirs)| mine / theirs))
}

/// Of the rounds where there are any, else of all requests together.
fn p99_ratio(mine: &ServerResult, theirs: &ServerResult) -> Option<Spread> {
    let of_all = |server: &ServerResult| server.latency_fixed_rate.map(|latency| latency.p99_us);
    ratios(&mine.rounds_p99_us_fixed_rate, &theirs.rounds_p99_us_fixed_rate)
        .or_else(|| ratios(&[of_all(mine)?], &[of_all(theirs)?]))
}

fn quantiles(latency: Option<Latency>) -> [String; 3] {
    latency.map_or_else(Default::default, |latency| {
        [latency.p50_us, latency.p99_us, latency.p999_us].map(|us| format!("{us:.0}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut report = Report::new(2, 10, false);
        let mut cell = CellResult::new("1k", "one");
        for (name, rate) in [("freshet", [200.0, 300.0]), ("nginx", [100.0, 150.0])] {
            cell.servers.push(ServerResult {
                name: name.into(),
                rounds_requests_per_sec: rate.to_vec(),
                rounds_cpu_us_per_request: vec![5.0, 5.0],
                ..ServerResult::default()
            });
        }
        report.add(cell);
        assert!(report.table().contains("2.00 (2.00-2.00)"), "{}", report.table());
        let directory = tempfile::tempdir().unwrap();
        report.write(directory.path()).unwrap();
        assert!(
            std::fs::read_to_string(directory.path().join("rate.svg")).unwrap().contains("freshet / nginx")
        );
    }
}
