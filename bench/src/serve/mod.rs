//! `bench serve`: the engine against other servers, in short interleaved turns so that noise hits all alike.
//!
//! Servers share one core and the files; the client has another core. Every round gives each server a turn,
//! in alternating order, and ratios are taken within a round.

mod attack;
pub(crate) mod client;
pub(crate) mod cpu;
mod files;
mod peer;
mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;

use self::attack::{Attack, Attacker};
use self::client::{Client, histogram};
use self::cpu::CpuMeter;
use self::peer::{Peer, Setting};
use self::report::{CellResult, Latency, Report, ServerResult};
use crate::spread::Spread;

/// Options of `bench serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Servers, the first is measured against the others: freshet, freshet-2 (two rings on both cores),
    /// freshet-other (see --other), nginx, lighttpd, static-web-server. Those that are not installed are
    /// left out, and named.
    #[arg(long, value_delimiter = ',', default_value = "freshet,nginx,lighttpd,static-web-server")]
    servers: Vec<String>,
    /// What to measure; all unless named: 1k 4k 10k 100k 1m 100m mix many 1k-c1000 1k-c10000 fresh
    /// cold idle slow attacked.
    #[arg(long, value_delimiter = ',', value_name = "CELL")]
    cells: Vec<String>,
    /// Turns of each server in each cell.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Length of a turn, milliseconds.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    turn_ms: u64,
    /// The servers' core.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The client's core.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Requests per second of the fixed-rate latency, as a share of the slower server's closed-loop rate.
    #[arg(long, default_value_t = 0.5)]
    rate_share: f64,
    /// The client of the closed loop looks for answers all the time instead of sleeping: then no server's
    /// core pays for waking it, as none does for a client on another machine.
    #[arg(long)]
    spin: bool,
    /// Another build of `dataplane`, measured as freshet-other.
    #[arg(long, value_name = "FILE")]
    other: Option<PathBuf>,
    /// The `dataplane` binary; otherwise the one beside this program.
    #[arg(long, value_name = "FILE")]
    dataplane: Option<PathBuf>,
    /// Where the served files are made and kept for the next run (about 1.6 GB).
    #[arg(long, value_name = "DIR", default_value = "target/bench/serve")]
    files: PathBuf,
    /// Where report.json and the plots go.
    #[arg(long, value_name = "DIR", default_value = "target/bench/serve-report")]
    out: PathBuf,
}

/// Runs the measurement and writes its reports.
///
/// # Errors
/// When a server or the client fails; nothing is reported then.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let cells = chosen_cells(&arguments.cells)?;
    let dataplane = dataplane_binary(arguments.dataplane.as_deref())?;
    std::fs::create_dir_all(&arguments.files)?;
    let root = arguments.files.canonicalize()?;
    raise_descriptor_limit()?;
    pin_to(arguments.client_core)?;
    let other = arguments.other.as_deref().map(|path| dataplane_binary(Some(path))).transpose()?;
    let setting =
        Setting { dataplane: &dataplane, other: other.as_deref(), root: &root, core: arguments.server_core };
    let mut report = Report::new(arguments.rounds, arguments.turn_ms, arguments.spin);
    for cell in cells {
        eprintln!("{}: {}", cell.name, cell.what);
        let work = Work::prepare(cell, &root)?;
        let mut peers = Vec::new();
        for name in &arguments.servers {
            match Peer::start(name, &setting)? {
                Some(peer) => peers.push(peer),
                None => report.leave_out(name),
            }
        }
        ensure!(!peers.is_empty(), "none of the servers {:?} is installed", arguments.servers);
        for peer in &peers {
            report.version(&peer.name, &peer.version);
        }
        let result = match cell.kind {
            Kind::Closed { .. } => closed(cell, &work, &peers, arguments)?,
            Kind::Cold => cold(cell, &work, &peers, arguments, &root)?,
            Kind::Idle => idle(cell, &work, &peers)?,
            Kind::Slow => slow(cell, &work, &peers, arguments)?,
            Kind::Attacked => attacked(cell, &work, &peers)?,
        };
        report.add(result);
        report.write(&arguments.out)?;
    }
    print!("{}", report.table());
    println!("report: {}", arguments.out.display());
    Ok(())
}

/// One thing to measure.
#[derive(Clone, Copy, Debug)]
struct Cell {
    name: &'static str,
    what: &'static str,
    corpus: Corpus,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Corpus {
    Size(u64),
    Mix,
    Many,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Requests as fast as the connections carry them, then at a fixed rate.
    Closed { connections: usize, fresh: bool, turn_factor: u32 },
    /// Small requests while four large files come from the disk.
    Cold,
    /// Memory per idle keep-alive connection.
    Idle,
    /// Fast clients beside 2,000 that read 1 KiB/s.
    Slow,
    /// Fast clients while slowhttptest holds connections.
    Attacked,
}

const fn closed_cell(name: &'static str, what: &'static str, corpus: Corpus, connections: usize) -> Cell {
    Cell { name, what, corpus, kind: Kind::Closed { connections, fresh: false, turn_factor: 1 } }
}

const CELLS: &[Cell] = &[
    closed_cell("1k", "1 KiB, 32 connections, warm", Corpus::Size(1 << 10), 32),
    closed_cell("4k", "4 KiB, 32 connections, warm", Corpus::Size(4 << 10), 32),
    closed_cell("10k", "10 KiB, 32 connections, warm", Corpus::Size(10 << 10), 32),
    closed_cell("100k", "100 KiB, 32 connections, warm", Corpus::Size(100 << 10), 32),
    closed_cell("1m", "1 MiB, 32 connections, warm", Corpus::Size(1 << 20), 32),
    Cell {
        name: "100m",
        what: "100 MiB, 4 connections, warm",
        corpus: Corpus::Size(100 << 20),
        kind: Kind::Closed { connections: 4, fresh: false, turn_factor: 2 },
    },
    closed_cell(
        "mix",
        "300 files, 91 % below 1 MB, images 71 % of the bytes, 32 connections",
        Corpus::Mix,
        32,
    ),
    closed_cell("many", "100,000 files of 13 KB in the mean, 32 connections", Corpus::Many, 32),
    closed_cell("1k-c1000", "1 KiB, 1,000 connections", Corpus::Size(1 << 10), 1_000),
    closed_cell("1k-c10000", "1 KiB, 10,000 connections", Corpus::Size(1 << 10), 10_000),
    Cell {
        name: "fresh",
        what: "1 KiB, a new connection for each request",
        corpus: Corpus::Size(1 << 10),
        kind: Kind::Closed { connections: 32, fresh: true, turn_factor: 1 },
    },
    Cell {
        name: "cold",
        what: "10 KiB while four cold images stream",
        corpus: Corpus::Size(10 << 10),
        kind: Kind::Cold,
    },
    Cell {
        name: "idle",
        what: "10,000 idle keep-alive connections",
        corpus: Corpus::Size(1 << 10),
        kind: Kind::Idle,
    },
    Cell {
        name: "slow",
        what: "10 KiB beside 2,000 clients that read 1 KiB/s",
        corpus: Corpus::Size(10 << 10),
        kind: Kind::Slow,
    },
    Cell {
        name: "attacked",
        what: "10 KiB beside 1,000 connections of slowhttptest: slow heads, bodies, reads in turn",
        corpus: Corpus::Size(10 << 10),
        kind: Kind::Attacked,
    },
];

/// The files of a cell.
struct Work {
    paths: Vec<String>,
    large: Vec<String>,
}

impl Work {
    fn prepare(cell: Cell, root: &Path) -> Result<Self> {
        let paths = match cell.corpus {
            Corpus::Size(size) => files::of_sizes(root, &[size])?,
            Corpus::Mix => files::mix(root)?,
            Corpus::Many => files::many(root, MANY_FILES, MANY_MEAN_BYTES)?,
        };
        let large = match cell.kind {
            Kind::Cold => files::of_sizes(root, &COLD_IMAGES)?,
            Kind::Slow | Kind::Attacked => files::of_sizes(root, &[1 << 20])?,
            _ => Vec::new(),
        };
        Ok(Self { paths, large })
    }
}

fn closed(cell: Cell, work: &Work, peers: &[Peer], arguments: &Arguments) -> Result<CellResult> {
    let Kind::Closed { connections, fresh, turn_factor } = cell.kind else { bail!("not a closed-loop cell") };
    let turn_time = Duration::from_millis(arguments.turn_ms) * turn_factor;
    let mut result = CellResult::new(cell.name, cell.what);
    let mut runs = Vec::new();
    // Where all servers' connections together are too many for one client, each turn makes its own.
    let kept = ((connections + LEARNING) * peers.len()) as u64 <= descriptor_limit();
    for peer in peers {
        let connect = || -> Result<Client> {
            let client = Client::new(peer.address, &work.paths, connections, fresh)?;
            Ok(client.spinning(arguments.spin))
        };
        let warm_up = || -> Result<Client> {
            let mut client = connect()?;
            client.closed_loop(turn_time, &mut histogram())?;
            Ok(client)
        };
        match warm_up() {
            Ok(client) => runs.push(Run::new(kept.then_some(client), Box::new(connect), peer)?),
            Err(error) => result.notes.push(peer.cannot(error)?),
        }
    }
    if runs.iter().any(|run| run.peer.name == "freshet-2") {
        result.notes.push(SHARED_CORE.to_owned());
    }
    for round in 0..arguments.rounds as usize {
        in_turn(&mut runs, round, |run| run.turn(|client, latency| client.closed_loop(turn_time, latency)))?;
    }
    let slowest = runs.iter().filter_map(|run| Spread::of(run.samples.iter().map(Sample::requests_per_sec)));
    let rate = slowest.map(|spread| spread.median).fold(f64::INFINITY, f64::min) * arguments.rate_share;
    if rate >= FIXED_RATE_MIN {
        let time = FIXED_RATE_TIME.max(Duration::from_secs_f64(FIXED_RATE_REQUESTS_MIN / rate));
        for round in 0..arguments.rounds as usize {
            in_turn(&mut runs, round, |run| run.turn_at_rate(rate, time))?;
        }
        result.fixed_rate = Some(rate);
    }
    for run in &runs {
        result.servers.push(run.result());
    }
    Ok(result)
}

/// One server's client and what was measured with it.
struct Run<'a> {
    peer: &'a Peer,
    /// Kept between turns, where there are descriptors enough.
    client: Option<Client>,
    connect: Box<dyn Fn() -> Result<Client> + 'a>,
    meter: CpuMeter,
    samples: Vec<Sample>,
    latency: Histogram<u64>,
    at_rate: Rounds,
}

struct Sample {
    requests: u64,
    bytes: u64,
    wall: Duration,
    cpu: Duration,
}

impl Sample {
    fn requests_per_sec(&self) -> f64 {
        self.requests as f64 / self.wall.as_secs_f64()
    }
}

impl<'a> Run<'a> {
    fn new(
        client: Option<Client>,
        connect: Box<dyn Fn() -> Result<Client> + 'a>,
        peer: &'a Peer,
    ) -> Result<Self> {
        let mut meter = CpuMeter::new(peer.pid());
        meter.used()?;
        Ok(Self {
            peer,
            client,
            connect,
            meter,
            samples: Vec::new(),
            latency: histogram(),
            at_rate: Rounds::new(),
        })
    }

    fn turn(
        &mut self,
        work: impl FnOnce(&mut Client, &mut Histogram<u64>) -> Result<client::Turn>,
    ) -> Result<()> {
        let (mut client, kept) = self.connected()?;
        let before = self.meter.used()?;
        let turn = work(&mut client, &mut self.latency).with_context(|| self.peer.name.clone())?;
        // The last response's clean-up belongs to this turn.
        std::thread::sleep(Duration::from_micros(300));
        let cpu = self.meter.used()? - before;
        self.client = kept.then_some(client);
        self.samples.push(Sample { requests: turn.requests, bytes: turn.bytes, wall: turn.wall, cpu });
        Ok(())
    }

    /// A client, and whether it is kept after the turn.
    fn connected(&mut self) -> Result<(Client, bool)> {
        if let Some(client) = self.client.take() {
            return Ok((client, true));
        }
        wait_until_quiet(self.peer)?;
        Ok(((self.connect)().with_context(|| self.peer.name.clone())?, false))
    }

    fn turn_at_rate(&mut self, rate: f64, time: Duration) -> Result<()> {
        let (mut client, kept) = self.connected()?;
        self.at_rate
            .add(|latency| client.open_loop(rate, time, latency))
            .with_context(|| self.peer.name.clone())?;
        self.client = kept.then_some(client);
        Ok(())
    }

    fn result(&self) -> ServerResult {
        let per_sec = self.samples.iter().map(Sample::requests_per_sec);
        let bytes_per_sec = self.samples.iter().map(|s| s.bytes as f64 / s.wall.as_secs_f64());
        let cpu_per_request = self.samples.iter().map(|s| s.cpu.as_secs_f64() * 1e6 / s.requests as f64);
        let cpu_per_gb = self.samples.iter().map(|s| s.cpu.as_secs_f64() * 1e9 / s.bytes as f64);
        ServerResult {
            name: self.peer.name.clone(),
            rounds_requests_per_sec: per_sec.collect(),
            rounds_bytes_per_sec: bytes_per_sec.collect(),
            rounds_cpu_us_per_request: cpu_per_request.collect(),
            rounds_cpu_s_per_gb: cpu_per_gb.collect(),
            latency: Latency::of(&self.latency),
            latency_fixed_rate: Latency::of(&self.at_rate.all),
            rounds_p99_us_fixed_rate: self.at_rate.p99_us.clone(),
            ..ServerResult::default()
        }
    }
}

/// Gives each server a turn, in alternating order.
fn in_turn<T>(runs: &mut [T], round: usize, mut turn: impl FnMut(&mut T) -> Result<()>) -> Result<()> {
    let count = runs.len();
    (0..count)
        .try_for_each(|step| turn(&mut runs[if round.is_multiple_of(2) { step } else { count - 1 - step }]))
}

/// Latency of small requests at a fixed rate while four images that are not in memory are sent, for a second or until
/// the first is whole.
fn cold(cell: Cell, work: &Work, peers: &[Peer], arguments: &Arguments, root: &Path) -> Result<CellResult> {
    let mut result = CellResult::new(cell.name, cell.what);
    result.fixed_rate = Some(COLD_RATE);
    let mut runs: Vec<(&Peer, Rounds, u64)> = peers.iter().map(|peer| (peer, Rounds::new(), 0)).collect();
    for round in 0..(arguments.rounds as usize).min(COLD_ROUNDS) {
        in_turn(&mut runs, round, |(peer, rounds, streamed)| {
            let mut small = Client::new(peer.address, &work.paths, 8, false)?;
            // Learning a response's length reads the file; it is made cold only afterwards.
            let mut streams = Vec::new();
            for path in &work.large {
                streams.push(Client::new(peer.address, std::slice::from_ref(path), 1, false)?);
            }
            for path in &work.large {
                files::make_cold(root, path)?;
            }
            let mut streaming = Streaming::begin(streams)?;
            rounds.add(|latency| {
                small.open_loop_beside(COLD_RATE, COLD_TIME, latency, |_| streaming.go_on())
            })?;
            *streamed += streaming.bytes();
            Ok(())
        })?;
    }
    for (peer, rounds, streamed) in runs {
        result.servers.push(ServerResult {
            name: peer.name.clone(),
            latency_fixed_rate: Latency::of(&rounds.all),
            rounds_p99_us_fixed_rate: rounds.p99_us,
            streamed_bytes: Some(streamed as f64),
            ..ServerResult::default()
        });
    }
    Ok(result)
}

/// Images under way, read by turns.
struct Streaming {
    /// Each with the bytes that were taken of it.
    streams: Vec<(Client, u64)>,
    turn: usize,
}

impl Streaming {
    fn begin(mut streams: Vec<Client>) -> Result<Self> {
        streams.iter_mut().try_for_each(Client::start_all)?;
        Ok(Self { streams: streams.into_iter().map(|stream| (stream, 0)).collect(), turn: 0 })
    }

    /// Takes what has come of the next, up to a bound; to be ended when the first is whole.
    fn go_on(&mut self) -> Result<ControlFlow<()>> {
        let count = self.streams.len();
        let (stream, taken) = &mut self.streams[self.turn % count];
        self.turn += 1;
        *taken += stream.sip(0..1, COLD_SIP)?;
        Ok(if *taken >= COLD_IMAGES[0] { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn bytes(&self) -> u64 {
        self.streams.iter().map(|(_, taken)| taken).sum()
    }
}

/// Anonymous memory of the server per keep-alive connection that has had one response and waits.
fn idle(cell: Cell, work: &Work, peers: &[Peer]) -> Result<CellResult> {
    let mut result = CellResult::new(cell.name, cell.what);
    for peer in peers {
        match idle_bytes(peer, work) {
            Ok(bytes) => result.servers.push(ServerResult {
                name: peer.name.clone(),
                bytes_per_idle_connection: Some(bytes),
                ..ServerResult::default()
            }),
            Err(error) => result.notes.push(peer.cannot(error)?),
        }
    }
    Ok(result)
}

fn idle_bytes(peer: &Peer, work: &Work) -> Result<f64> {
    let mut warm = Client::new(peer.address, &work.paths, 1, false)?;
    warm.closed_loop(Duration::from_millis(200), &mut histogram())?;
    let before = cpu::anonymous_bytes(peer.pid())?;
    let _idle = Client::new(peer.address, &work.paths, IDLE_CONNECTIONS, false)?;
    // Buffers that a server frees with a delay are not held against it.
    std::thread::sleep(Duration::from_millis(500));
    let after = cpu::anonymous_bytes(peer.pid())?;
    Ok(after.saturating_sub(before) as f64 / IDLE_CONNECTIONS as f64)
}

/// Fast clients' latency at a fixed rate without and with 2,000 slow readers, and the server's threads.
fn slow(cell: Cell, work: &Work, peers: &[Peer], arguments: &Arguments) -> Result<CellResult> {
    let mut result = CellResult::new(cell.name, cell.what);
    result.fixed_rate = Some(COLD_RATE);
    let mut runs: Vec<SlowRun<'_>> = peers.iter().map(SlowRun::new).collect();
    for round in 0..(arguments.rounds as usize).min(SLOW_ROUNDS) {
        in_turn(&mut runs, round, |run| run.round(work).with_context(|| run.peer.name.clone()))?;
    }
    for run in runs {
        let growth = run.beside.p99_us.iter().zip(&run.alone.p99_us).map(|(beside, alone)| beside / alone);
        if let Some(growth) = Spread::of(growth) {
            result.notes.push(format!(
                "{}: p99 beside slow readers over p99 without them, round by round: {}",
                run.peer.name,
                growth.text()
            ));
        }
        result.servers.push(ServerResult {
            name: run.peer.name.clone(),
            latency: Latency::of(&run.alone.all),
            latency_fixed_rate: Latency::of(&run.beside.all),
            rounds_p99_us_fixed_rate: run.beside.p99_us,
            threads: Some(run.threads),
            ..ServerResult::default()
        });
    }
    Ok(result)
}

/// One server's fast clients, without and with slow readers.
struct SlowRun<'a> {
    peer: &'a Peer,
    alone: Rounds,
    beside: Rounds,
    /// The most that it had without and with them.
    threads: [usize; 2],
}

impl<'a> SlowRun<'a> {
    fn new(peer: &'a Peer) -> Self {
        Self { peer, alone: Rounds::new(), beside: Rounds::new(), threads: [0, 0] }
    }

    fn round(&mut self, work: &Work) -> Result<()> {
        let mut fast = Client::new(self.peer.address, &work.paths, 8, false)?;
        wait_until_quiet(self.peer)?;
        for _ in 0..SLOW_TURNS {
            self.alone.add(|latency| fast.open_loop(COLD_RATE, SLOW_TIME, latency))?;
        }
        self.threads[0] = self.threads[0].max(cpu::threads(self.peer.pid())?);
        let mut readers = SlowReaders::begin(self.peer, &work.large)?;
        for _ in 0..SLOW_TURNS {
            let before = readers.taken;
            self.beside.add(|latency| {
                fast.open_loop_beside(COLD_RATE, SLOW_TIME, latency, |passed| {
                    let due = before + (passed.as_secs_f64() * SLOW_READERS as f64) as usize;
                    while readers.taken < due {
                        readers.sip()?;
                    }
                    Ok(ControlFlow::Continue(()))
                })
            })?;
        }
        self.threads[1] = self.threads[1].max(cpu::threads(self.peer.pid())?);
        Ok(())
    }
}

/// Clients of which each reads a kibibyte a second, one after the other.
struct SlowReaders {
    clients: Client,
    /// How often one has read.
    taken: usize,
}

impl SlowReaders {
    /// Begins one after the other too, and lets them read until they are all steady: those that ask in the same moment
    /// overflow their buffers, and what the kernel then sends anew and asks for comes in bursts for seconds.
    fn begin(peer: &Peer, paths: &[String]) -> Result<Self> {
        let mut readers = Self { clients: Client::new(peer.address, paths, SLOW_READERS, false)?, taken: 0 };
        for started in (0..SLOW_READERS).step_by(SLOW_STEP) {
            readers.clients.start(started..started + SLOW_STEP)?;
            std::thread::sleep(SLOW_PAUSE);
        }
        let steady = Instant::now() + SLOW_STEADY_AFTER;
        while Instant::now() < steady {
            for _ in 0..SLOW_STEP {
                readers.sip()?;
            }
            std::thread::sleep(SLOW_PAUSE);
        }
        wait_until_quiet(peer)?;
        Ok(readers)
    }

    fn sip(&mut self) -> Result<()> {
        let reader = self.taken % SLOW_READERS;
        self.clients.sip(reader..reader + 1, 1 << 10)?;
        self.taken += 1;
        Ok(())
    }
}

/// Latencies of several rounds.
struct Rounds {
    all: Histogram<u64>,
    /// Of each round: one turn that other work on the machine fell into decides nothing.
    p99_us: Vec<f64>,
}

impl Rounds {
    fn new() -> Self {
        Self { all: histogram(), p99_us: Vec::new() }
    }

    fn add<T>(&mut self, round: impl FnOnce(&mut Histogram<u64>) -> Result<T>) -> Result<T> {
        let mut latency = histogram();
        let done = round(&mut latency)?;
        self.p99_us.extend(Latency::of(&latency).map(|latency| latency.p99_us));
        self.all.add(&latency)?;
        Ok(done)
    }
}

/// Fast clients' latency at a fixed rate without and with an attack by slow connections, and how many connections and
/// threads the server had during it.
fn attacked(cell: Cell, work: &Work, peers: &[Peer]) -> Result<CellResult> {
    let mut result = CellResult::new(cell.name, cell.what);
    result.fixed_rate = Some(COLD_RATE);
    for peer in peers {
        let mut fast = Client::new(peer.address, &work.paths, 8, false)?;
        let (mut alone, mut beside) = (histogram(), histogram());
        fast.open_loop(COLD_RATE, COLD_TIME, &mut alone)?;
        let threads_before = cpu::threads(peer.pid())?;
        let mut threads = threads_before;
        for attack in Attack::ALL {
            let Some(attacker) = Attacker::start(attack, peer.address, &work.large[0])? else {
                result.notes.push("attacked: not measured: slowhttptest is not installed".into());
                return Ok(result);
            };
            std::thread::sleep(attack::RAMP);
            let held = cpu::descriptors(peer.pid())?;
            fast.open_loop(COLD_RATE, COLD_TIME * 2, &mut beside).with_context(|| peer.name.clone())?;
            threads = threads.max(cpu::threads(peer.pid())?);
            result.notes.push(format!(
                "{} held {held} descriptors under slow {attack:?} of {} connections, and went on answering",
                peer.name,
                attack::CONNECTIONS
            ));
            drop(attacker);
            wait_until_quiet(peer)?;
        }
        result.servers.push(ServerResult {
            name: peer.name.clone(),
            latency: Latency::of(&alone),
            latency_fixed_rate: Latency::of(&beside),
            threads: Some([threads_before, threads]),
            ..ServerResult::default()
        });
    }
    Ok(result)
}

/// Waits until the sockets of the slow readers are full and the server has nothing to do.
fn wait_until_quiet(peer: &Peer) -> Result<()> {
    let mut meter = CpuMeter::new(peer.pid());
    let mut before = meter.used()?;
    for _ in 0..QUIET_STEPS_MAX {
        std::thread::sleep(QUIET_STEP);
        let now = meter.used()?;
        if now - before < QUIET_STEP / 50 {
            return Ok(());
        }
        before = now;
    }
    bail!("{} is still busy {:?} after its slow readers began", peer.name, QUIET_STEP * QUIET_STEPS_MAX)
}

fn chosen_cells(names: &[String]) -> Result<Vec<Cell>> {
    if names.is_empty() {
        return Ok(CELLS.to_vec());
    }
    names
        .iter()
        .map(|name| {
            let known = || CELLS.iter().map(|cell| cell.name).collect::<Vec<_>>().join(" ");
            let found = CELLS.iter().find(|cell| cell.name == name).copied();
            found.with_context(|| format!("expected one of {}, found {name:?}", known()))
        })
        .collect()
}

fn dataplane_binary(named: Option<&Path>) -> Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()?.with_file_name("dataplane"),
    };
    path.canonicalize().with_context(|| {
        format!(
            "no dataplane at {}; build it with `cargo build --release -p freshet-dataplane`",
            path.display()
        )
    })
}

/// Lets this process have as many descriptors as it may.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum.or(Some(DESCRIPTORS));
    setrlimit(Resource::Nofile, limit)?;
    Ok(())
}

fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Keeps this thread, and those it starts, on one core.
pub(crate) fn pin_to(core: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("there is no core {core} to run on"))
}

const SHARED_CORE: &str = "freshet-2 runs on the client's core too, so its rate tells nothing about two cores; but \
                           twice the ratio of CPU per request, freshet / freshet-2, is by how much two cores could \
                           serve more than one";
const MANY_FILES: usize = 100_000;
const MANY_MEAN_BYTES: u64 = 13_000;
const COLD_IMAGES: [u64; 4] = [200 << 20, (200 << 20) + 1, (200 << 20) + 2, (200 << 20) + 3];
const COLD_RATE: f64 = 2_000.0;
/// So much at a time of each image: some ten microseconds.
const COLD_SIP: usize = 64 << 10;
const COLD_TIME: Duration = Duration::from_secs(1);
const COLD_ROUNDS: usize = 7;
const IDLE_CONNECTIONS: usize = 10_000;
const SLOW_READERS: usize = 2_000;
const SLOW_ROUNDS: usize = 3;
/// Seconds without and with slow readers in each round.
const SLOW_TURNS: usize = 3;
/// So many of them read at once, and all within a second.
const SLOW_STEP: usize = 20;
const SLOW_PAUSE: Duration = Duration::from_millis(10);
const SLOW_STEADY_AFTER: Duration = Duration::from_secs(6);
const SLOW_TIME: Duration = Duration::from_secs(1);
const FIXED_RATE_MIN: f64 = 4.0;
const FIXED_RATE_TIME: Duration = Duration::from_millis(500);
const FIXED_RATE_REQUESTS_MIN: f64 = 40.0;
const QUIET_STEP: Duration = Duration::from_millis(200);
const QUIET_STEPS_MAX: u32 = 100;
/// Descriptors of a client beside its connections.
const LEARNING: usize = 64;
const DESCRIPTORS: u64 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_chosen_by_name() {
        assert_eq!(chosen_cells(&[]).unwrap().len(), CELLS.len());
        assert_eq!(chosen_cells(&["1m".into(), "idle".into()]).unwrap()[1].name, "idle");
        assert!(chosen_cells(&["2k".into()]).unwrap_err().to_string().contains("100m"));
    }
}
