//! `bench redirect`: how many redirects a second the front door gives, what one costs, and how long it takes while
//! volunteers send heartbeats; beside nginx, which answers every request with the same one.
//!
//! Real `control` processes with a catalogue of millions of files, each with another number of volunteers that joined
//! and said what they hold over the API. All servers run on one core, the client on another; every round gives each a
//! turn while the others stand still, and ratios are taken within a round. Every request comes from another customer for
//! a random file, and every answer is looked at.

mod api;
mod crowd;
mod origin;
mod report;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use freshet_api::admin::StatusView;
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use self::crowd::Crowd;
use self::origin::{Origin, Process, Server};
use self::report::{Memory, Report, ServerReport};
use crate::serve::client::{Client, histogram};
use crate::serve::cpu::{CpuMeter, anonymous_bytes};
use crate::serve::{pin_to, raise_descriptor_limit};
use crate::spread::Spread;

/// Options of `bench redirect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Files in the catalogue.
    #[arg(long, default_value_t = 2_200_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    files: u32,
    /// Numbers of volunteers, a control for each.
    #[arg(long, value_delimiter = ',', default_value = "40,1000,100000")]
    volunteers: Vec<u32>,
    /// How many volunteers hold a file in the mean, at most half of them: every one holds whole directories by its own
    /// random choice.
    #[arg(long, default_value_t = 250.0)]
    copies: f64,
    /// Turns of each server.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of a turn, milliseconds.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    turn_ms: u64,
    /// Keep-alive connections.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Different files that are asked for.
    #[arg(long, default_value_t = 100_000)]
    asked: u32,
    /// Heartbeats a second while latency is measured.
    #[arg(long, default_value_t = 200.0)]
    heartbeats: f64,
    /// Requests per second of the latency, as a share of what the server does at most.
    #[arg(long, default_value_t = 0.5)]
    rate_share: f64,
    /// The servers' core.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The client's core.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Another build of `control`, measured too with the first number of volunteers.
    #[arg(long, value_name = "FILE")]
    other: Option<PathBuf>,
    /// The `control` binary; otherwise the one beside this program.
    #[arg(long, value_name = "FILE")]
    control: Option<PathBuf>,
    /// Where the repository is made and kept for the next run (2.2 million inodes, no blocks), with a control's catalogue
    /// of it.
    #[arg(long, value_name = "DIR", default_value = "target/bench/redirect")]
    work: PathBuf,
    /// Where report.json goes.
    #[arg(long, value_name = "DIR", default_value = "target/bench/redirect-report")]
    out: PathBuf,
}

/// Runs the measurement and writes its report.
///
/// # Errors
/// When a server or the client fails; nothing is reported then.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let program = origin::program(arguments.control.as_deref())?;
    fs::create_dir_all(&arguments.work)?;
    let work = arguments.work.canonicalize()?;
    raise_descriptor_limit()?;
    pin_to(arguments.client_core)?;
    eprintln!("a repository of {} files", arguments.files);
    let tree = tree::prepare(&work, arguments.files)?;
    let states = tempfile::Builder::new().prefix("states-").tempdir_in(&work)?;

    let mut report = Report::new(arguments.files, arguments.rounds, arguments.turn_ms, arguments.connections);
    let mut fields = Vec::new();
    let mut wanted: Vec<(String, &Path, u32)> = Vec::new();
    for &volunteers in &arguments.volunteers {
        wanted.push((format!("freshet-{volunteers}"), &program, volunteers));
    }
    if let (Some(other), Some(&volunteers)) = (&arguments.other, arguments.volunteers.first()) {
        wanted.push((format!("other-{volunteers}"), other, volunteers));
    }
    for (name, program, volunteers) in wanted {
        let place = Place { program, tree: &tree, work: &work, states: states.path() };
        fields.push(prepare(&name, &place, volunteers, arguments, &mut report)?);
    }
    let nginx = origin::nginx(arguments.server_core)?;
    if nginx.is_none() {
        report.note("nginx is not installed: nothing to compare with");
    }

    let mut random = SmallRng::seed_from_u64(7);
    let paths: Vec<String> =
        (0..arguments.asked).map(|_| tree::path(random.random_range(0..arguments.files))).collect();
    let mut runs = Vec::new();
    for server in fields.iter().map(|field| &field.origin.server).chain(nginx.as_ref()) {
        runs.push(Run::new(server, &paths, arguments)?);
    }
    // Whoever measures on a shared machine may stop all of this here, and let it go on when the machine is quiet.
    eprintln!("measuring");
    std::thread::sleep(READY);
    for run in &runs {
        run.process.pause()?;
    }
    for round in 0..arguments.rounds as usize {
        for field in &mut fields {
            field.keep_alive()?;
        }
        let count = runs.len();
        for step in 0..count {
            let run = &mut runs[(round + step) % count];
            run.awake(|run| run.saturate(Duration::from_millis(arguments.turn_ms)))?;
        }
    }
    for run in &mut runs {
        for field in &mut fields {
            field.keep_alive()?;
        }
        let field = fields.iter_mut().find(|field| field.origin.server.name == run.report.name);
        run.awake(|run| run.at_share(arguments, field))?;
    }
    for run in &runs {
        run.process.resume()?;
    }
    for field in &fields {
        field.check()?;
    }
    for run in runs {
        report.add(run.report);
    }
    fs::create_dir_all(&arguments.out)?;
    report.write(&arguments.out)?;
    print!("{}", report.table());
    println!("report: {}", arguments.out.display());
    Ok(())
}

struct Place<'a> {
    program: &'a Path,
    tree: &'a Path,
    work: &'a Path,
    states: &'a Path,
}

/// A control with its volunteers.
struct Field {
    origin: Origin,
    crowd: Crowd,
    beaten: Instant,
}

impl Field {
    /// Nobody is lost meanwhile: silence is five minutes long before that.
    fn keep_alive(&mut self) -> Result<()> {
        if self.beaten.elapsed() > BEAT_AGAIN {
            let process = self.origin.server.process()?;
            process.resume()?;
            self.crowd.beat_all(&self.origin)?;
            self.beaten = Instant::now();
            process.pause()?;
        }
        Ok(())
    }

    /// Whether the redirects were redirects to volunteers.
    fn check(&self) -> Result<()> {
        let mut api = self.origin.api()?;
        let status: StatusView = api.get("/v1/admin/status", Some(&self.origin.credentials.token))?;
        let door = &status.front_door;
        ensure!(
            door.redirects > 0 && door.fallback == 0,
            "{}: {} redirects, and {} requests for which there was no volunteer",
            self.origin.server.name,
            door.redirects,
            door.fallback
        );
        Ok(())
    }
}

fn prepare(
    name: &str,
    place: &Place<'_>,
    volunteers: u32,
    arguments: &Arguments,
    report: &mut Report,
) -> Result<Field> {
    let state = place.states.join(name);
    fs::create_dir(&state)?;
    let kept = place.work.join(format!("catalogue-{}", arguments.files));
    let known = kept.join(CATALOGUE).exists();
    if known {
        copy_state(&kept, &state)?;
    }
    eprintln!("{name}: the catalogue{}", if known { ", from the last run" } else { "" });
    let begun = Instant::now();
    let origin =
        Origin::start(name, place.program, place.tree, &state, arguments.server_core, arguments.files)?;
    eprintln!("  complete after {:.0?}", begun.elapsed());
    if !known {
        // A catalogue that is in use can't be copied, so it is closed first.
        drop(origin);
        fs::create_dir_all(&kept)?;
        copy_state(&state, &kept)?;
        fs::remove_dir_all(&state)?;
        return prepare(name, place, volunteers, arguments, report);
    }
    let alone = anonymous_bytes(origin.server.pid())?;
    eprintln!("{name}: {volunteers} volunteers");
    let part = (arguments.copies / f64::from(volunteers)).min(0.5);
    let begun = Instant::now();
    let mut crowd = Crowd::join(&origin, volunteers, part)?;
    eprintln!("  joined after {:.0?}", begun.elapsed());
    crowd.beat_all(&origin)?;
    report.memory(Memory {
        server: name.to_owned(),
        volunteers,
        alone_bytes: alone,
        joined_bytes: anonymous_bytes(origin.server.pid())?,
    });
    Ok(Field { origin, crowd, beaten: Instant::now() })
}

/// What makes the next start a walk instead of hashing and bundling; not who control is or whom it knows.
fn copy_state(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if ITS_OWN.iter().any(|own| name == *own) {
            continue;
        }
        let target = to.join(&name);
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy_state(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("cannot copy {}", target.display()))?;
        }
    }
    Ok(())
}

/// One server's client and what was measured with it.
struct Run {
    server: String,
    process: Process,
    client: Client,
    meter: CpuMeter,
    report: ServerReport,
}

impl Run {
    fn new(server: &Server, paths: &[String], arguments: &Arguments) -> Result<Self> {
        let name = || server.name.clone();
        let mut client = Client::for_redirects(server.address, paths, arguments.connections as usize)
            .with_context(name)?;
        client.closed_loop(Duration::from_millis(arguments.turn_ms), &mut histogram()).with_context(name)?;
        let mut meter = CpuMeter::new(server.pid());
        meter.used()?;
        let (process, report) = (server.process()?, ServerReport::new(&server.name));
        Ok(Self { server: server.name.clone(), process, client, meter, report })
    }

    /// Lets the server go on for a turn, and get over having stood still before anything counts.
    fn awake(&mut self, turn: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.process.resume()?;
        self.client.closed_loop(SETTLING, &mut histogram()).with_context(|| self.server.clone())?;
        turn(self)?;
        self.process.pause()
    }

    /// As many requests as the connections carry.
    fn saturate(&mut self, time: Duration) -> Result<()> {
        let before = self.meter.used()?;
        let turn = self.client.closed_loop(time, &mut histogram()).with_context(|| self.server.clone())?;
        let cpu = self.meter.used()? - before;
        self.report.rounds_per_sec.push(turn.requests as f64 / turn.wall.as_secs_f64());
        self.report.rounds_cpu_us.push(cpu.as_secs_f64() * 1e6 / turn.requests as f64);
        self.report.answer_bytes = turn.bytes as f64 / turn.requests as f64;
        Ok(())
    }

    /// A part of that while heartbeats arrive.
    fn at_share(&mut self, arguments: &Arguments, field: Option<&mut Field>) -> Result<()> {
        let most =
            Spread::of(self.report.rounds_per_sec.iter().copied()).context("there were rounds")?.median;
        let rate = most * arguments.rate_share;
        let stop = AtomicBool::new(false);
        let measure = |client: &mut Client, report: &mut ServerReport| -> Result<()> {
            for _ in 0..arguments.rounds {
                let mut latency: Histogram<u64> = histogram();
                client.open_loop(rate, AT_SHARE, &mut latency)?;
                let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
                report.rounds_p50_us.push(at(0.5));
                report.rounds_p99_us.push(at(0.99));
                report.rounds_p999_us.push(at(0.999));
            }
            Ok(())
        };
        self.report.rate = rate;
        let Some(field) = field else { return measure(&mut self.client, &mut self.report) };
        let (client, report) = (&mut self.client, &mut self.report);
        let (outcome, beats) = std::thread::scope(|scope| {
            let (origin, crowd) = (&field.origin, &mut field.crowd);
            let beating = scope.spawn(|| crowd.beat(origin, arguments.heartbeats, &stop));
            let begun = Instant::now();
            let outcome = measure(client, report);
            let took = begun.elapsed();
            stop.store(true, Ordering::Relaxed);
            let beats = beating.join().expect("the heartbeats do not panic");
            (outcome, beats.map(|beats| beats as f64 / took.as_secs_f64()))
        });
        outcome?;
        self.report.heartbeats_per_sec = beats?;
        field.beaten = Instant::now();
        Ok(())
    }
}

/// Files of a state directory that are one control's own.
const ITS_OWN: &[&str] = &["control.redb", "admin.json", "addresses.json", "tls.key", "tls.crt"];
const CATALOGUE: &str = "catalog.redb";
const AT_SHARE: Duration = Duration::from_millis(1_000);
/// Time to stop everything before the first turn.
const READY: Duration = Duration::from_secs(2);
/// Warm caches, and what a control does once when it goes on.
const SETTLING: Duration = Duration::from_millis(100);
const BEAT_AGAIN: Duration = Duration::from_secs(120);
