//! What `bench redirect` found, as a table and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::columns::table;
use crate::spread::Spread;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    processor: String,
    kernel: String,
    files: u32,
    rounds: u32,
    turn_ms: u64,
    connections: u32,
    mirrorbits_published_per_sec: f64,
    servers: Vec<ServerReport>,
    memory: Vec<Memory>,
    notes: Vec<String>,
}

/// One server.
#[derive(Debug, Serialize)]
pub(super) struct ServerReport {
    pub(super) name: String,
    /// At saturation, by round.
    pub(super) rounds_per_sec: Vec<f64>,
    /// CPU time of the server per request, by round.
    pub(super) rounds_cpu_us: Vec<f64>,
    /// Bytes of an answer in the mean.
    pub(super) answer_bytes: f64,
    /// At what rate latency was measured.
    pub(super) rate: f64,
    pub(super) heartbeats_per_sec: f64,
    pub(super) rounds_p50_us: Vec<f64>,
    pub(super) rounds_p99_us: Vec<f64>,
    pub(super) rounds_p999_us: Vec<f64>,
}

impl ServerReport {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rounds_per_sec: Vec::new(),
            rounds_cpu_us: Vec::new(),
            answer_bytes: 0.0,
            rate: 0.0,
            heartbeats_per_sec: 0.0,
            rounds_p50_us: Vec::new(),
            rounds_p99_us: Vec::new(),
            rounds_p999_us: Vec::new(),
        }
    }
}

/// Anonymous memory of a control.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) server: String,
    pub(super) volunteers: u32,
    /// With its catalogue and nobody else.
    pub(super) alone_bytes: u64,
    /// After everybody joined.
    pub(super) joined_bytes: u64,
}

impl Report {
    pub(super) fn new(files: u32, rounds: u32, turn_ms: u64, connections: u32) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processors = read("/proc/cpuinfo");
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        Self {
            processor: model.unwrap_or("unknown").to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            files,
            rounds,
            turn_ms,
            connections,
            mirrorbits_published_per_sec: MIRRORBITS_PUBLISHED,
            servers: Vec::new(),
            memory: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, server: ServerReport) {
        self.servers.push(server);
    }

    pub(super) fn memory(&mut self, memory: Memory) {
        self.memory.push(memory);
    }

    pub(super) fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    /// Rates with their ratios to nginx and to the first control, latency, memory.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{}, Linux {}; {} files, {} connections, {} rounds of {} ms; median (quartiles), ratios round by round\n",
            self.processor, self.kernel, self.files, self.connections, self.rounds, self.turn_ms
        );
        let mut rates =
            table(&["server", "redirects/s", "CPU µs each", "bytes each", "rate × nginx", "rate × first"], 1);
        let nginx = self.servers.iter().find(|server| server.name == "nginx");
        let first = self.servers.first();
        let against = |server: &ServerReport, other: Option<&ServerReport>| {
            let other = other.filter(|other| other.name != server.name)?;
            let pairs = server.rounds_per_sec.iter().zip(&other.rounds_per_sec);
            Spread::of(pairs.map(|(mine, theirs)| mine / theirs))
        };
        let shown = |spread: Option<Spread>| spread.map_or_else(String::new, |spread| spread.text());
        let whole = |values: &[f64]| {
            Spread::of(values.iter().copied())
                .map_or_else(String::new, |s| format!("{:.0} ({:.0}-{:.0})", s.median, s.q25, s.q75))
        };
        for server in &self.servers {
            rates.add_row([
                server.name.clone(),
                whole(&server.rounds_per_sec),
                shown(Spread::of(server.rounds_cpu_us.iter().copied())),
                format!("{:.0}", server.answer_bytes),
                shown(against(server, nginx)),
                shown(against(server, first).filter(|_| server.name != "nginx")),
            ]);
        }
        rates.add_row(["mirrorbits, as published".to_owned(), format!("{MIRRORBITS_PUBLISHED:.0}")]);
        let mut latencies =
            table(&["server", "at rate/s", "heartbeats/s", "p50 µs", "p99 µs", "p99.9 µs"], 1);
        for server in &self.servers {
            latencies.add_row([
                server.name.clone(),
                format!("{:.0}", server.rate),
                format!("{:.0}", server.heartbeats_per_sec),
                whole(&server.rounds_p50_us),
                whole(&server.rounds_p99_us),
                whole(&server.rounds_p999_us),
            ]);
        }
        let mut memory =
            table(&["server", "volunteers", "MB alone", "B per file", "MB with them", "B per volunteer"], 1);
        for row in &self.memory {
            memory.add_row([
                row.server.clone(),
                row.volunteers.to_string(),
                format!("{:.0}", row.alone_bytes as f64 / 1e6),
                format!("{:.0}", row.alone_bytes as f64 / f64::from(self.files)),
                format!("{:.0}", row.joined_bytes as f64 / 1e6),
                format!(
                    "{:.0}",
                    row.joined_bytes.saturating_sub(row.alone_bytes) as f64
                        / f64::from(row.volunteers.max(1))
                ),
            ]);
        }
        let _ = writeln!(text, "\n{rates}\n\n{latencies}\n\n{memory}");
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }

    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        std::fs::write(directory.join("report.json"), json)?;
        Ok(())
    }
}

/// README of etix/mirrorbits, "Is it fast?"; on their machine.
const MIRRORBITS_PUBLISHED: f64 = 8_000.0;
