//! An upgrade of control and of the volunteers while a thousand downloads are under way: none breaks, nobody is refused,
//! and what was counted before is counted after.
//!
//! The test plays the service manager: it opens the sockets, hands them to each process, and keeps them while one ends
//! and the next begins.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use freshet_testbed::cluster::Programs;
use freshet_testbed::{Host, Link, Options, Program, Testbed};
use freshet_tests::{find_programs, noise};
use serde_json::Value;

const DOWNLOADS: usize = 1_000;
/// Of these each begins as soon as the one before it has ended.
const NEWCOMERS: usize = 8;
const FILE: &str = "pool/image.iso";
const BYTES: usize = 1_000_000;
/// Of each of the two volunteers: a thousand downloads take ten seconds.
const DONATED: &str = "400 Mbit/s";
/// For a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Who sent a download, and how many bytes.
type Received = (SocketAddr, usize);

#[test]
fn a_thousand_downloads_outlast_an_upgrade_and_are_counted_once() {
    let mut scene = Upgraded::start().unwrap();
    let content = Arc::new(noise(7, BYTES));
    let gate = Arc::new(Gate::default());
    let front_door = scene.front_door;
    let customers: Vec<JoinHandle<Result<Received>>> = (0..DOWNLOADS)
        .map(|_| {
            let (host, content, gate) = (scene.customer.clone(), Arc::clone(&content), Arc::clone(&gate));
            let download = move || download(&host, front_door, &content, Some(&gate));
            // Most of them wait most of the time.
            thread::Builder::new().stack_size(256 << 10).spawn(download).unwrap()
        })
        .collect();
    gate.wait_for(DOWNLOADS).unwrap();
    let newcomers: Vec<JoinHandle<Result<Vec<Received>>>> = (0..NEWCOMERS)
        .map(|_| {
            let (host, content, gate) = (scene.customer.clone(), Arc::clone(&content), Arc::clone(&gate));
            thread::spawn(move || {
                let mut all = Vec::new();
                while !gate.is_over() {
                    all.push(download(&host, front_door, &content, None)?);
                }
                Ok(all)
            })
        })
        .collect();

    // All of them have begun and none can have ended.
    gate.open();
    scene.upgrade_control().unwrap();
    scene.upgrade_volunteer(0).unwrap();
    scene.upgrade_volunteer(1).unwrap();
    gate.end();
    let mut received = Vec::new();
    let mut broken = Vec::new();
    for customer in customers {
        match customer.join().unwrap() {
            Ok(one) => received.push(one),
            Err(error) => broken.push(format!("{error:#}")),
        }
    }
    for newcomer in newcomers {
        match newcomer.join().unwrap() {
            Ok(all) => received.extend(all),
            Err(error) => broken.push(format!("a newcomer: {error:#}")),
        }
    }
    assert!(broken.is_empty(), "{} of {}: {:?}", broken.len(), received.len(), &broken[..1]);
    assert!(received.len() >= DOWNLOADS + NEWCOMERS, "{} were served", received.len());
    scene.check_counts(&received);
}

/// What the customers wait for.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    begun: usize,
    failed: bool,
    open: bool,
    over: bool,
}

impl Gate {
    /// Says that a download has begun, and waits until all of them may go on.
    fn pass(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        state.begun += 1;
        self.changed.notify_all();
        let (state, _) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| !state.open && !state.failed).unwrap();
        ensure!(state.open, "the others did not begin");
        Ok(())
    }

    fn wait_for(&self, count: usize) -> Result<()> {
        let state = self.state.lock().unwrap();
        let waits = |state: &mut GateState| state.begun < count && !state.failed;
        let (mut state, _) = self.changed.wait_timeout_while(state, PATIENCE, waits).unwrap();
        let begun = state.begun;
        // Whoever waits is let go, so that the first error can be told.
        state.failed |= begun < count;
        self.changed.notify_all();
        if state.failed {
            eprintln!("{begun} of {count} downloads have begun");
        }
        Ok(())
    }

    fn fail(&self) {
        self.state.lock().unwrap().failed = true;
        self.changed.notify_all();
    }

    fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.changed.notify_all();
    }

    fn end(&self) {
        self.state.lock().unwrap().over = true;
    }

    fn is_over(&self) -> bool {
        self.state.lock().unwrap().over
    }
}

/// One download by who asks once and follows redirects: who sent it, and how many bytes. Anything else than the whole
/// file, at the first attempt, is an error.
fn download(host: &Host, front_door: SocketAddr, content: &[u8], gate: Option<&Gate>) -> Result<Received> {
    let done = follow(host, front_door, content, gate);
    if done.is_err()
        && let Some(gate) = gate
    {
        gate.fail();
    }
    done
}

fn follow(host: &Host, front_door: SocketAddr, content: &[u8], gate: Option<&Gate>) -> Result<Received> {
    let (mut at, mut target) = (front_door, format!("/{FILE}"));
    for _ in 0..8 {
        let stream = host.on_seat(move || TcpStream::connect(at))?;
        let mut stream = stream.with_context(|| format!("connecting to {at}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let request = format!("GET {target} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).with_context(|| format!("asking {at}"))?;
        let mut bytes = Vec::with_capacity(4 << 10);
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            let mut part = [0; 2 << 10];
            let read = stream.read(&mut part).with_context(|| format!("the answer of {at}"))?;
            ensure!(read > 0, "{at} closed without an answer to {target}");
            bytes.extend_from_slice(&part[..read]);
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        match head.split(' ').nth(1) {
            Some("302") => {
                let location = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
                });
                let location = location.with_context(|| format!("no location in {head}"))?;
                let place = location.strip_prefix("http://").context("expected http")?;
                let (address, path) = place.split_once('/').context("expected a path")?;
                (at, target) = (address.parse()?, format!("/{path}"));
            }
            Some("200") => {
                let mut received = bytes.split_off(end);
                if let Some(gate) = gate {
                    gate.pass()?;
                }
                stream.read_to_end(&mut received).with_context(|| format!("the file from {at}"))?;
                ensure!(received == content, "{} bytes from {at}, or other ones", received.len());
                return Ok((at, received.len()));
            }
            _ => bail!("{at} answered {head}"),
        }
    }
    bail!("eight redirects did not lead to the file")
}

/// Control and two volunteers on sockets that outlive them.
struct Upgraded {
    front_door: SocketAddr,
    control: Service,
    volunteers: Vec<(String, Service)>,
    customer: Host,
    origin: Host,
    credentials: PathBuf,
    programs: Programs,
    _testbed: Testbed,
}

impl Upgraded {
    fn start() -> Result<Upgraded> {
        let programs = find_programs()?;
        let testbed = Testbed::start(Options::default())?;
        let directory = testbed.scratch()?;
        let (repository, states) = (directory.join("repository"), directory.join("states"));
        fs::create_dir_all(repository.join("pool"))?;
        fs::create_dir(&states)?;
        fs::write(repository.join(FILE), noise(7, BYTES))?;
        let origin = testbed.host("origin", &Link::new())?;
        let customer = testbed.host("customer", &Link::new())?;
        let sockets = Service::listen(&origin, &["front-door", "sync", "api"])?;
        let front_door = sockets[0].1.local_addr()?;
        let text = |index: usize| -> Result<String> { Ok(sockets[index].1.local_addr()?.to_string()) };
        let mut arguments = vec!["serve".to_owned(), "--repo".to_owned(), repository.display().to_string()];
        let state = states.join("control");
        arguments.extend(["--state".to_owned(), state.display().to_string()]);
        for (flag, value) in [("--listen", text(0)?), ("--sync-listen", text(1)?), ("--api", text(2)?)] {
            arguments.extend([flag.to_owned(), value]);
        }
        arguments.extend(["--public-url".to_owned(), format!("http://{front_door}")]);
        // Every customer has the same address here, and none is to be sent elsewhere for that.
        for (flag, value) in [("--heartbeat-ms", "200"), ("--quiet-ms", "200"), ("--avoid-secs", "0")] {
            arguments.extend([flag.to_owned(), value.to_owned()]);
        }
        let log = directory.join("control.log");
        let control = Service::start(&origin, &programs.path("control"), arguments, sockets, &log)?;
        let credentials = state.join("admin.json");
        let mut scene = Upgraded {
            front_door,
            control,
            volunteers: Vec::new(),
            customer,
            origin,
            credentials,
            programs,
            _testbed: testbed,
        };
        let ready = |scene: &Upgraded| Ok(scene.ctl(&["status"]).is_ok_and(|status| is_whole(&status)));
        scene.wait("control to have read the repository", ready)?;
        for (knob, value) in [("customer_wait_secs", "600"), ("customer_rate", "1 kB/s")] {
            scene.ctl(&["balance", "set", knob, value])?;
        }
        for name in ["v0", "v1"] {
            let host = scene._testbed.host(name, &Link::new())?;
            scene.add_volunteer(name, &host, &states.join(name), &directory.join(format!("{name}.log")))?;
        }
        scene.wait("the volunteers to be current", |scene| {
            let nodes = scene.ctl(&["node", "list"])?;
            let nodes = nodes.as_array().context("expected a list")?.iter();
            Ok(nodes.filter(|node| node["state"] == "active" && node["files_held"] == 1).count() == 2)
        })?;
        Ok(scene)
    }

    fn add_volunteer(&mut self, name: &str, host: &Host, state: &Path, log: &Path) -> Result<()> {
        let added = self.ctl(&["node", "add", name])?;
        let join = added["join"].as_str().context("expected a join string")?;
        let sockets = Service::listen(host, &["delivery", "sync"])?;
        let (delivery, sync) = (sockets[0].1.local_addr()?, sockets[1].1.local_addr()?);
        let dataplane = self.programs.path("dataplane");
        let joining = Program::new(&dataplane).args(["join", join, "--state"]).arg(state).args([
            "--listen".to_owned(),
            delivery.to_string(),
            "--public-url".to_owned(),
            format!("http://{delivery}"),
        ]);
        let joined = host.run(&joining, PATIENCE)?;
        ensure!(joined.status.success(), "dataplane join: {}", joined.stderr);
        let path = state.join("dataplane.toml");
        let made = fs::read_to_string(&path)?;
        let settings = format!(
            "pins = \"off\"\ndonated_rate = \"{DONATED}\"\ngrace_secs = 100\nsync_listen = \"{sync}\"\n\
             sync_public_url = \"http://{sync}\"\n{made}\n[budget.month]\nvolume = \"10 TB\"\n"
        );
        fs::write(&path, settings)?;
        let arguments = vec!["run".to_owned(), "--state".to_owned(), state.display().to_string()];
        let service = Service::start(host, &dataplane, arguments, sockets, log)?;
        self.volunteers.push((name.to_owned(), service));
        Ok(())
    }

    fn ctl(&self, arguments: &[&str]) -> Result<Value> {
        let done = self.origin.run(&self.ctl_program(arguments), PATIENCE)?;
        ensure!(done.status.success(), "ctl {arguments:?}: {}", done.stderr.trim());
        Ok(serde_json::from_slice(&done.stdout)?)
    }

    fn ctl_program(&self, arguments: &[&str]) -> Program {
        let ctl = Program::new(self.programs.path("ctl")).arg("--credentials").arg(&self.credentials);
        ctl.arg("--json").args(arguments.iter().copied())
    }

    fn wait(&self, what: &str, met: impl Fn(&Upgraded) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !met(self)? {
            ensure!(Instant::now() < deadline, "waited in vain for {what}: {}", self.ctl(&["node", "list"])?);
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// As an operator does it: control ends by itself, and the service manager starts the next one.
    fn upgrade_control(&mut self) -> Result<()> {
        let asked = self.origin.start("upgrade", &self.ctl_program(&["upgrade"]))?;
        self.control.wait_for_end()?;
        self.control.begin()?;
        let status = asked.wait(PATIENCE)?;
        ensure!(status.success(), "ctl upgrade: {}", asked.log()?);
        Ok(())
    }

    /// As a package's script does it: the service manager ends it and starts the next one.
    fn upgrade_volunteer(&mut self, index: usize) -> Result<()> {
        let (name, service) = &mut self.volunteers[index];
        let name = name.clone();
        service.stop()?;
        service.begin()?;
        self.wait("the volunteer to take customers again", |scene| {
            Ok(scene.ctl(&["node", "show", &name])?["state"] == "active")
        })
    }

    fn check_counts(&self, received: &[Received]) {
        let downloads = self.ctl(&["stats", "--files", "--by", "total"]).unwrap();
        assert_eq!(downloads["files"][0]["path"], FILE, "{downloads}");
        assert_eq!(downloads["sum"]["total"].as_u64(), Some(received.len() as u64), "{downloads}");
        let mut by_volunteers = 0;
        for (name, service) in &self.volunteers {
            let from = service.sockets[0].1.local_addr().unwrap();
            let payload: usize =
                received.iter().filter(|(who, _)| *who == from).map(|(_, bytes)| bytes).sum();
            let payload = payload as u64;
            by_volunteers += payload;
            // The last heartbeats are on their way.
            let delivered = |scene: &Upgraded| -> Result<u64> {
                let node = scene.ctl(&["node", "show", name])?;
                node["ledger"]["delivered_bytes"].as_u64().context("expected what was delivered")
            };
            self.wait("everything to be counted", |scene| Ok(delivered(scene)? >= payload)).unwrap();
            // Headers and what is sent again come to less than this, and what is counted twice to more.
            let (delivered, most) = (delivered(self).unwrap(), payload + payload / 8 + 1_000_000);
            assert!(delivered <= most, "{name}: {delivered} bytes were counted for {payload}");
            let node = self.ctl(&["node", "show", name]).unwrap();
            let used = node["budget"]["used"].as_u64().unwrap();
            assert!((payload..=most + BYTES as u64 * 2).contains(&used), "{name}: {used} for {payload}");
        }
        let part = by_volunteers as f64 / (received.len() * BYTES) as f64;
        assert!(part > 0.9, "{part} came from volunteers");
    }
}

fn is_whole(status: &Value) -> bool {
    status["catalog"]["files"] == 1 && status["catalog"]["pending"] == 0
}

/// What a service manager has of a service: its sockets, and the process that has them now.
struct Service {
    host: Host,
    program: PathBuf,
    arguments: Vec<String>,
    sockets: Vec<(&'static str, TcpListener)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Service {
    /// Opens sockets on a host; they wait for their first process.
    fn listen(host: &Host, names: &[&'static str]) -> Result<Vec<(&'static str, TcpListener)>> {
        let address = host.addr()?;
        names
            .iter()
            .map(|&name| Ok((name, host.on_seat(move || TcpListener::bind((address, 0)))??)))
            .collect()
    }

    fn start(
        host: &Host,
        program: &Path,
        arguments: Vec<String>,
        sockets: Vec<(&'static str, TcpListener)>,
        log: &Path,
    ) -> Result<Service> {
        let (host, program, log) = (host.clone(), program.to_owned(), log.to_owned());
        let mut service = Service { host, program, arguments, sockets, log, child: None };
        service.begin()?;
        Ok(service)
    }

    /// Starts a process on the sockets: it gets them as descriptors 3 and above, by way of the standard streams, which any
    /// process may be given.
    fn begin(&mut self) -> Result<()> {
        let names: Vec<&str> = self.sockets.iter().map(|(name, _)| *name).collect();
        let (count, names) = (names.len(), names.join(":"));
        let third = if count > 2 { "5<&2" } else { "" };
        let script = format!(
            "log=$1; shift; exec 3<&0 4<&1 {third} 0</dev/null; exec 1>>\"$log\" 2>&1\n\
             export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}\nexec \"$@\""
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(&self.log).arg(&self.program).args(&self.arguments);
        let mut streams = Vec::new();
        for (_, socket) in &self.sockets {
            streams.push(OwnedFd::from(socket.try_clone()?));
        }
        let mut streams = streams.into_iter();
        command.stdin(streams.next().context("a service has two sockets")?);
        command.stdout(streams.next().context("a service has two sockets")?);
        if let Some(third) = streams.next() {
            command.stderr(third);
        }
        self.child = Some(self.host.on_seat(move || command.spawn())??);
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    fn stop(&mut self) -> Result<()> {
        let pid = self.child.as_ref().context("it runs")?.id().to_string();
        ensure!(Command::new("kill").args(["-TERM", &pid]).status()?.success(), "kill {pid}");
        self.wait_for_end()
    }

    fn wait_for_end(&mut self) -> Result<()> {
        let child = self.child.as_mut().context("it runs")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                ensure!(status.success(), "{} ended with {status}: {said}", self.program.display());
                self.child = None;
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} does not end", self.program.display());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            eprintln!("--- {}\n{}", self.log.display(), lines[lines.len().saturating_sub(25)..].join("\n"));
        }
    }
}
