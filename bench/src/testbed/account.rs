//! The report of an experiment: what was run, the key figures, what every link carried by both counts, and plots.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use crate::meter::{CLASSES, Compared};
use crate::plot::{Lines, PALETTE, cumulative};
use crate::report::{Counters, Document, Table, cells};

use super::course::{PhaseSeen, Request, Seen, Verdict};
use super::experiment::Experiment;
use super::figures::{self, Figure};

/// One run of an experiment.
pub(crate) struct Run {
    pub(crate) seen: Seen,
    /// The hosts, the origin first, then volunteers and customers.
    pub(crate) hosts: Vec<String>,
    /// The interface of each.
    pub(crate) interfaces: Vec<String>,
    /// Of the programs, as control tells it.
    pub(crate) version: String,
    /// What was served, in words.
    pub(crate) content: String,
    /// What the links are made of, in words.
    pub(crate) ground: String,
    /// What was not as asked for.
    pub(crate) caveats: Vec<String>,
}

impl Run {
    fn interface_of(&self, host: &str) -> &str {
        let place = self.hosts.iter().position(|name| name == host);
        place.and_then(|place| self.interfaces.get(place)).map_or("", String::as_str)
    }
}

/// Begins the report, before anything runs.
pub(crate) fn begin(experiment: &Experiment, seed: u64) -> Document {
    let mut document = Document::begin(&experiment.name, &experiment.title);
    document.seed(seed);
    document.parameter("hosts", experiment.all_members().len());
    for group in &experiment.hosts {
        let rate = |rate: Option<freshet_api::BytesPerSec>| {
            rate.map_or_else(|| "no limit".to_owned(), |rate| rate.to_string())
        };
        let mut text = format!(
            "{} × {}; up {}, down {}, queue {}, delay {}, loss {}",
            group.count,
            group.role,
            rate(group.up),
            rate(group.down),
            group.queue,
            group.delay,
            group.loss
        );
        if let Some(donated) = group.donated {
            text += &format!("; donated {donated}");
        }
        document.parameter(&group.name, text);
    }
    document
}

/// Fills it, and says in plain text what the terminal is to show.
///
/// # Errors
/// When a plot cannot be drawn.
pub(crate) fn fill(document: &mut Document, experiment: &Experiment, runs: &[Run]) -> Result<String> {
    let Some(first) = runs.first() else { return Ok(String::new()) };
    document.version("control and volunteers", &first.version);
    document.parameter("links", &first.ground);
    document.parameter("served", &first.content);
    document.parameter("heartbeat", experiment.control.heartbeat);
    for (knob, value) in &experiment.control.balance {
        document.parameter(&format!("balance: {knob}"), value);
    }
    let mut text = String::new();
    for caveat in &first.caveats {
        document.section("Not as asked for").prose(caveat);
        text += &format!("note: {caveat}\n");
    }
    let of_runs: Vec<Vec<Figure>> = runs.iter().map(|run| figures::of(&run.seen)).collect();
    let key = key_figures(&of_runs);
    text += &key.plain();
    let section = document.section("Key figures");
    if runs.len() > 1 {
        section.prose(
            "The same seed in every run: the same contents, the same requests at the same moments. How far apart two \
             runs are is the greatest distance between their values, in hundredths of the mean.",
        );
    }
    section.table(key);
    for (number, run) in runs.iter().enumerate() {
        let title =
            |what: &str| if runs.len() > 1 { format!("{what}, run {}", number + 1) } else { what.to_owned() };
        let counters = counters(run);
        text += &format!(
            "{}: our counters and the kernel's differ by {:.4} % at most on {} interfaces{}\n",
            title("counters"),
            counters.worst() * 100.0,
            compared(run).len(),
            if counters.agree() { "" } else { " — more than 0.1 %" }
        );
        let phases = phases(&run.seen);
        text += &phases.plain();
        document.section(&title("Phases")).table(phases);
        plots(document, &title, run)?;
        document.section(&title("Who was asked, and what it sent")).table(senders(run)).table(classes(run));
        let section = document.section(&title("Counters of both sides"));
        section.prose(
            "The harness reads the kernel's statistics of each interface in the host's own namespace (or by ssh); \
             volunteers count with their classifiers. Both are read at moments at which next to nothing passes, at \
             each phase's beginning and end, and compared over all the time in which the volunteer's daemon ran.",
        );
        if run.seen.phases.iter().any(|phase| !phase.silent) {
            section.prose(
                "Not every link had fallen silent at the end of every phase; see the table of phases.",
            );
        }
        section.table(counters.table("In all")).table(by_phase(run));
        records(document, experiment, number + 1, run)?;
    }
    document.section("The experiment").text("As it was read", &experiment.text()?);
    Ok(text)
}

fn key_figures(runs: &[Vec<Figure>]) -> Table {
    let mut table = Table::new("Key figures").text("figure").text("unit");
    for number in 1..=runs.len() {
        table =
            table.number(&if runs.len() > 1 { format!("run {number}") } else { "value".to_owned() }, "", 3);
    }
    if runs.len() > 1 {
        table = table.number("apart", "%", 2);
    }
    for (row, figure) in runs[0].iter().enumerate() {
        let values: Vec<f64> =
            runs.iter().filter_map(|run| run.get(row)).map(|figure| figure.value).collect();
        let mut row = cells![figure.name.as_str(), figure.unit];
        row.extend((0..runs.len()).map(|run| {
            values.get(run).copied().map_or(crate::report::Cell::None, crate::report::Cell::Number)
        }));
        if runs.len() > 1 {
            row.extend(cells![figures::apart(&values)]);
        }
        table.row(row);
    }
    table
}

fn phases(seen: &Seen) -> Table {
    let mut table = Table::new("Phases in order")
        .text("phase")
        .number("lasted", "s", 1)
        .number("complete after", "s", 1)
        .number("downloads", "", 0)
        .number("wrong", "", 0)
        .number("failed", "", 0)
        .number("median", "s", 2)
        .number("90 %", "s", 2)
        .number("origin sent", "MB", 2)
        .number("volunteers sent", "MB", 2)
        .text("silent at its end");
    for phase in &seen.phases {
        let count = |verdict| phase.requests.iter().filter(|one| one.verdict == verdict).count();
        let mut secs: Vec<f64> = phase
            .requests
            .iter()
            .filter(|one| one.verdict == Verdict::Right)
            .map(|one| one.outcome.secs)
            .collect();
        secs.sort_by(f64::total_cmp);
        let within = |part| {
            if secs.is_empty() {
                crate::report::Cell::None
            } else {
                crate::report::Cell::Number(figures::quantile(&secs, part))
            }
        };
        let volunteers: u64 = phase.compared.iter().map(|(_, compared)| compared.kernel[1]).sum();
        let mut row = cells![phase.name.as_str(), phase.secs];
        row.push(phase.synced.map_or(crate::report::Cell::None, crate::report::Cell::Number));
        row.extend(cells![
            phase.requests.len() as u64,
            count(Verdict::Wrong) as u64,
            (count(Verdict::Failed) + phase.unfinished) as u64
        ]);
        row.extend([within(0.5), within(0.9)]);
        let origin = phase.passed.first().map(|(_, passed)| passed[1]).unwrap_or_default();
        row.extend(cells![
            origin as f64 / 1e6,
            volunteers as f64 / 1e6,
            if phase.silent { "yes" } else { "no" }
        ]);
        table.row(row);
    }
    table
}

/// What both counted on each volunteer's link in the whole run.
fn compared(run: &Run) -> BTreeMap<&str, Compared> {
    let mut all: BTreeMap<&str, Compared> = BTreeMap::new();
    for (name, compared) in run.seen.phases.iter().flat_map(|phase| &phase.compared) {
        let sum = all.entry(name).or_default();
        *sum = sum.plus(compared);
    }
    all
}

fn counters(run: &Run) -> Counters {
    let mut counters = Counters::default();
    for (name, compared) in compared(run) {
        counters.add(name, run.interface_of(name), compared.ours, compared.kernel);
    }
    counters
}

fn by_phase(run: &Run) -> Table {
    let mut table = Table::new("By phase: the interface that differs most")
        .text("phase")
        .text("host")
        .number("our counters", "bytes", 0)
        .number("the harness's", "bytes", 0)
        .number("difference", "%", 4);
    for phase in &run.seen.phases {
        let difference = |compared: &Compared, side: usize| {
            compared.ours[side].abs_diff(compared.kernel[side]) as f64 / compared.kernel[side].max(1) as f64
        };
        let all =
            phase.compared.iter().flat_map(|(name, compared)| [0, 1].map(|side| (name, compared, side)));
        let worst = all.max_by(|a, b| difference(a.1, a.2).total_cmp(&difference(b.1, b.2)));
        if let Some((name, compared, side)) = worst {
            let direction = ["received", "sent"][side];
            table.row(cells![
                phase.name.as_str(),
                format!("{name}, {direction}"),
                compared.ours[side],
                compared.kernel[side],
                100.0 * difference(compared, side)
            ]);
        }
    }
    table
}

fn senders(run: &Run) -> Table {
    let mut sent: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for request in requests(&run.seen).filter(|request| request.verdict == Verdict::Right) {
        let sum = sent.entry(&request.from).or_default();
        *sum = (sum.0 + 1, sum.1 + request.outcome.bytes);
    }
    let mut table = Table::new("Downloads by who sent them, as customers saw it")
        .text("who")
        .number("downloads", "", 0)
        .number("bytes", "MB", 2);
    for (who, (count, bytes)) in sent {
        table.row(cells![who, count, bytes as f64 / 1e6]);
    }
    table
}

fn classes(run: &Run) -> Table {
    let mut table = Table::new("Bytes on the wire by class, as volunteers count them").text("volunteer");
    for class in CLASSES {
        table = table.number(&format!("{class} in"), "MB", 3).number(&format!("{class} out"), "MB", 3);
    }
    for (name, compared) in compared(run) {
        let mut row = cells![name];
        for class in compared.classes {
            row.extend(cells![class[0] as f64 / 1e6, class[1] as f64 / 1e6]);
        }
        table.row(row);
    }
    table
}

fn plots(document: &mut Document, title: &dyn Fn(&str) -> String, run: &Run) -> Result<()> {
    let section = document.section(&title("Rates"));
    section.prose(
        "By the kernel's counters of each host's link; the bands between phases are where links fall silent.",
    );
    for (what, side) in [("Sent", 1), ("Received", 0)] {
        // No more in one plot than can be told apart by their colours.
        for series in rates(run, side).chunks(PALETTE.len()) {
            let svg = Lines { title: what, x: "s", y: "Mbit/s", series, reference: None }.svg()?;
            let names: Vec<&str> = series.iter().map(|(name, _)| name.as_str()).collect();
            section.figure(&format!("{what} over time by the interfaces of {}", names.join(", ")), &svg);
        }
    }
    let by_phase: Vec<(String, Vec<[f64; 2]>)> = run
        .seen
        .phases
        .iter()
        .map(|phase| {
            let right = phase.requests.iter().filter(|request| request.verdict == Verdict::Right);
            (phase.name.clone(), right.map(|request| request.outcome.secs).collect::<Vec<f64>>())
        })
        .filter(|(_, secs)| !secs.is_empty())
        .map(|(name, secs)| (name, cumulative(secs)))
        .collect();
    if !by_phase.is_empty() {
        let svg = Lines { title: "Downloads", x: "s", y: "share done", series: &by_phase, reference: None };
        document
            .section(&title("How long downloads took"))
            .figure("From the request at the front door to the last byte, by phase", &svg.svg()?);
    }
    let names = run.seen.phases.iter().map(|phase| phase.name.clone()).collect::<Vec<_>>();
    let series: Vec<(String, Vec<Option<[f64; 3]>>)> = CLASSES
        .iter()
        .enumerate()
        .map(|(class, name)| {
            let of_phase = |phase: &PhaseSeen| {
                let sent: u64 = phase.compared.iter().map(|(_, compared)| compared.classes[class][1]).sum();
                Some([0.0, sent as f64 / 1e6, sent as f64 / 1e6])
            };
            ((*name).to_owned(), run.seen.phases.iter().map(of_phase).collect())
        })
        .collect();
    let groups = crate::plot::Groups {
        title: "Sent by volunteers",
        unit: "MB",
        labels: &names,
        series: &series,
        reference: None,
    };
    document
        .section(&title("Bytes by class"))
        .figure("What volunteers sent in each phase, by class", &groups.svg()?);
    Ok(())
}

/// Mbit/s of each host's link between samples: the origin, each volunteer where there are few, and sums.
fn rates(run: &Run, side: usize) -> Vec<(String, Vec<[f64; 2]>)> {
    let rate = |hosts: &[usize]| -> Vec<[f64; 2]> {
        let pairs = run.seen.samples.windows(2);
        pairs
            .map(|pair| {
                let sum = |at: usize| -> u64 { hosts.iter().map(|&host| pair[at].bytes[host][side]).sum() };
                let secs = (pair[1].at - pair[0].at).max(1e-3);
                [pair[1].at, (sum(1) - sum(0)) as f64 * 8e-6 / secs]
            })
            .collect()
    };
    (0..run.hosts.len()).map(|host| (run.hosts[host].clone(), rate(&[host]))).collect()
}

/// Samples, counters, phases and requests, for programs that read the JSON lines.
fn records(document: &mut Document, experiment: &Experiment, number: usize, run: &Run) -> Result<()> {
    for figure in figures::of(&run.seen) {
        document.record("key-figure", &json!({ "run": number, "figure": figure }))?;
    }
    for phase in &run.seen.phases {
        document.record("phase", &json!({ "run": number, "phase": phase }))?;
    }
    if experiment.record.interfaces {
        for sample in &run.seen.samples {
            for (host, (bytes, packets)) in run.hosts.iter().zip(sample.bytes.iter().zip(&sample.packets)) {
                document.record(
                    "interface",
                    &json!({
                        "run": number, "at": sample.at, "phase": sample.phase, "host": host,
                        "interface": run.interface_of(host), "rx_bytes": bytes[0], "tx_bytes": bytes[1],
                        "rx_packets": packets[0], "tx_packets": packets[1],
                    }),
                )?;
            }
        }
    }
    for heartbeats in &run.seen.heartbeats {
        document.record("counters", &json!({ "run": number, "heartbeats": heartbeats }))?;
    }
    if experiment.record.requests {
        for request in requests(&run.seen) {
            document.record("request", &json!({ "run": number, "request": request }))?;
        }
    }
    Ok(())
}

fn requests(seen: &Seen) -> impl Iterator<Item = &Request> {
    seen.phases.iter().flat_map(|phase| &phase.requests)
}
