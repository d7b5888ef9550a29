//! The `dataplane` program as a volunteer, against a control that the test plays.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake_control;
mod held;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use fake_control::FakeControl;
use freshet_api::heartbeat::{Heartbeat, HoldOrder, Readiness};
use freshet_api::{BytesPerSec, Checksums, FileId, NodeId, Ticket, TicketKey};
use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};

const DEB: (&str, &[u8]) = ("pool/a/apt.deb", b"the apt package");
const NEW: (&str, &[u8]) = ("pool/b/bash.deb", b"the bash package, a little longer");

fn dataplane() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dataplane"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn join(control: &FakeControl, secret: u8, state: &Path) -> Output {
    dataplane()
        .args(["join", &control.join_string(secret).to_string(), "--listen", "127.0.0.1:0", "--state"])
        .arg(state)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits for a condition, with a deadline.
fn until<T>(what: &str, mut met: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = met() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A volunteer that runs; dropping it kills it.
struct Daemon {
    child: Child,
    delivery: SocketAddr,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, or `None` where the kernel has no io_uring.
    fn start(state: &Path) -> Option<Self> {
        // Daemons are killed here, and must leave nothing on this machine.
        let configuration = state.join("dataplane.toml");
        let text = std::fs::read_to_string(&configuration).unwrap();
        if !text.starts_with("pins = ") {
            std::fs::write(&configuration, format!("pins = 'off'\n{text}")).unwrap();
        }
        let log = state.join("test.log");
        let mut child = dataplane()
            .args(["run", "--rings", "1", "--state"])
            .arg(state)
            .stdout(Stdio::piped())
            .stderr(File::options().append(true).create(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some(delivery) = line.trim().strip_prefix("delivery: http://") else {
            let status = child.wait().unwrap();
            let log = std::fs::read_to_string(&log).unwrap();
            assert_eq!(status.code(), Some(3), "it must start, or say what the kernel lacks: {log}");
            eprintln!("skipped: {log}");
            assert!(std::env::var_os("CI").is_none(), "a skip in CI is a failure");
            return None;
        };
        Some(Self { delivery: delivery.parse().unwrap(), child, log })
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn get(&self, target: &str) -> String {
        get(self.delivery, target)
    }
}

fn get(address: SocketAddr, target: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already, as the test wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ticket(key: &TicketKey, file: (&str, &[u8])) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let expires = u32::try_from(now + 60).unwrap();
    let ticket = Ticket::new(expires, &Checksums::of(file.1).blake3, &[], NodeId(7)).unwrap();
    format!("/{}?t={}", file.0, ticket.seal(key, format!("/{}", file.0).as_bytes()))
}

/// Waits for a heartbeat that came after the first `seen`.
fn heartbeat_after(
    control: &FakeControl,
    seen: usize,
    what: &str,
    is: impl Fn(&Heartbeat) -> bool,
) -> Heartbeat {
    until(what, || control.state().heartbeats.iter().skip(seen).find(|heartbeat| is(heartbeat)).cloned())
}

fn seen(control: &FakeControl) -> usize {
    control.state().heartbeats.len()
}

#[test]
fn joining_may_be_repeated_until_the_answer_arrives() {
    let (control, directory) = (FakeControl::start(), tempfile::tempdir().unwrap());
    let state = directory.path().join("deep/state");
    control.state().lose_joins = 1;
    let lost = join(&control, 1, &state);
    assert_eq!(lost.status.code(), Some(1), "{}", stderr(&lost));
    assert!(stderr(&lost).contains("repeat the same command"), "{}", stderr(&lost));
    assert!(!state.join("credential.json").exists());
    for _ in 0..2 {
        let joined = join(&control, 1, &state);
        assert_eq!(joined.status.code(), Some(0), "{}", stderr(&joined));
        assert!(String::from_utf8_lossy(&joined.stdout).contains("joined: node 7 (seven)"));
    }
    {
        let joins = &control.state().joins;
        assert_eq!(joins.len(), 2, "the third attempt finds the credential");
        assert!(joins[0].credential == joins[1].credential && joins[0].ticket_key == joins[1].ticket_key);
    }
    let credential = state.join("credential.json");
    assert_eq!(std::fs::metadata(&credential).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    let secret = control.join_string(1).secret.to_text();
    for file in std::fs::read_dir(&state).unwrap() {
        assert!(!std::fs::read_to_string(file.unwrap().path()).unwrap().contains(&secret));
    }
    let other = join(&control, 2, &state);
    assert_eq!(other.status.code(), Some(4));
    assert!(stderr(&other).contains("node 7 (seven)") && stderr(&other).contains("credential.json"));
}

#[test]
fn an_existing_configuration_is_kept() {
    let (control, directory) = (FakeControl::start(), tempfile::tempdir().unwrap());
    let path = directory.path().join("dataplane.toml");
    std::fs::write(&path, "donated_rate = '1 Gbit/s'\n").unwrap();
    let joined = join(&control, 1, directory.path());
    assert_eq!(joined.status.code(), Some(0), "{}", stderr(&joined));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "donated_rate = '1 Gbit/s'\n");
}

#[test]
fn a_join_that_fails_says_why_and_leaves_no_credential() {
    let (control, directory) = (FakeControl::start(), tempfile::tempdir().unwrap());
    let state = directory.path().join("state");
    let mut string = control.join_string(1);
    string.fingerprint = freshet_api::enrol::Fingerprint([9; 32]);
    let attempt = |string: &str| {
        let output = dataplane().args(["join", string, "--state"]).arg(&state).output().unwrap();
        assert!(!state.join("credential.json").exists());
        (output.status.code(), stderr(&output))
    };
    let (code, text) = attempt(&string.to_string());
    assert_eq!(code, Some(4), "{text}");
    assert!(
        text.contains("not the control that made this join string") && text.contains("fingerprint"),
        "{text}"
    );
    assert!(control.state().joins.is_empty(), "the secret is told to nobody else");

    control.state().refuse = Some(StatusCode::FORBIDDEN);
    let (code, text) = attempt(&control.join_string(1).to_string());
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("ctl node add") && text.contains("so the test wants it"), "{text}");

    control.state().refuse = Some(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(attempt(&control.join_string(1).to_string()).0, Some(1), "control may be starting");

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut unreachable = control.join_string(1);
    unreachable.api = nobody.to_string();
    let (code, text) = attempt(&unreachable.to_string());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("cannot reach control") && text.contains(&nobody.to_string()), "{text}");

    let (code, text) = attempt("freshet1:nonsense");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("ctl node add"), "{text}");
}

#[test]
fn running_needs_a_configuration_and_a_credential() {
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output =
            dataplane().arg("run").args(arguments).arg("--state").arg(directory.path()).output().unwrap();
        (output.status.code(), stderr(&output), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text, _) = run(&[]);
    assert!(code == Some(2) && text.contains("dataplane join"), "{text}");
    let path = directory.path().join("dataplane.toml");
    std::fs::write(&path, "lisen = ['127.0.0.1:0']\n").unwrap();
    let (code, text, _) = run(&["--check-config"]);
    assert!(code == Some(2) && text.contains("did you mean `listen`?") && text.contains("line 1"), "{text}");
    std::fs::write(&path, "listen = ['127.0.0.1:0']\ndonated_rate = '8 Mbit/s'\n").unwrap();
    let (code, text, shown) = run(&["--check-config", "--donated-rate", "16 Mbit/s"]);
    assert!(code == Some(0) && shown.contains("donated_rate = 2000000"), "{text}{shown}");
    let (code, text, _) = run(&["--connections-max", "0", "--check-config"]);
    assert!(code == Some(2) && text.contains("connections_max"), "{text}");
    let (code, text, _) = run(&[]);
    assert!(code == Some(4) && text.contains("belongs to no volunteer"), "{text}");
}

#[test]
fn a_volunteer_mirrors_serves_and_tells() {
    let (control, directory) = (FakeControl::start(), tempfile::tempdir().unwrap());
    control.publish(held::manifest(5, &[DEB], &[]), &[DEB.1]);
    assert!(join(&control, 1, directory.path()).status.success());
    let key = control.state().joins[0].ticket_key.clone();
    let Some(mut daemon) = Daemon::start(directory.path()) else { return };
    let addresses = std::fs::read_to_string(directory.path().join("addresses.json")).unwrap();
    assert!(addresses.contains(&daemon.delivery.to_string()), "{addresses}");

    let first = heartbeat_after(&control, 0, "a heartbeat", |_| true);
    assert_eq!(first.delivery_url, format!("http://{}", daemon.delivery));
    assert_eq!((first.sequence, &first.readiness), (1, &Readiness::Ready));
    let whole = heartbeat_after(&control, 0, "the mirror to be whole", |h| h.sync.complete == 5);
    assert_eq!(whole.boot, first.boot);
    let told = |file| move |h: &Heartbeat| h.holdings.added.contains(&FileId(file));
    assert_eq!(heartbeat_after(&control, 0, "the file to be told", told(1)).holdings.count, 1);
    heartbeat_after(&control, 0, "what was acknowledged to be told no more", |h| {
        h.sync.complete == 5 && h.holdings.added.is_empty() && h.holdings.count == 1
    });
    assert_eq!(std::fs::read(directory.path().join("tree/pool/a/apt.deb")).unwrap(), DEB.1);

    // A customer.
    let answer = daemon.get(&ticket(&key, DEB));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("the apt package"), "{answer}");
    assert!(daemon.get(&ticket(&TicketKey([0; 32]), DEB)).starts_with("HTTP/1.1 403"));
    let counted = heartbeat_after(&control, 0, "the delivery to be counted", |h| {
        h.delivery.responses == 1 && h.delivery.tickets_forged == 1
    });
    assert_eq!((counted.delivery.body_bytes, counted.delivery.active), (DEB.1.len() as u64, 0));
    heartbeat_after(&control, 0, "the delivery to be counted on the interface", |h| {
        h.interfaces.iter().any(|i| i.delivery.sent.bytes > DEB.1.len() as u64 && i.control.sent.bytes > 0)
    });

    // A new release, and a control that has lost what it knew.
    control.publish(held::manifest(6, &[DEB, NEW], &[]), &[NEW.1]);
    heartbeat_after(&control, 0, "the new release", |h| h.sync.complete == 6);
    assert!(daemon.get(&ticket(&key, NEW)).ends_with("a little longer"));
    control.state().reply.want_holdings = true;
    let holdings = until("all holdings", || control.state().holdings.last().cloned());
    assert!(holdings.contains(1) && holdings.contains(2) && holdings.len() == 2);

    // Drained, and resumed.
    control.state().reply.draining = true;
    let back = until("customers to be sent back", || {
        Some(daemon.get(&ticket(&key, DEB))).filter(|answer| answer.starts_with("HTTP/1.1 302"))
    });
    assert!(back.to_lowercase().contains("location: http://front.example/pool/a/apt.deb?b="), "{back}");
    control.state().reply.draining = false;
    until("customers to be served again", || {
        Some(daemon.get(&ticket(&key, DEB))).filter(|answer| answer.starts_with("HTTP/1.1 200"))
    });

    // A stop.
    let before = seen(&control);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0), "{}", daemon.log());
    heartbeat_after(&control, before, "the farewell", |h| {
        h.readiness == Readiness::Closed { why: "stopping".into() }
    });
    assert!(!directory.path().join("addresses.json").exists());
}

#[test]
fn control_may_go_and_come_back() {
    let (control, directory) = (FakeControl::start(), tempfile::tempdir().unwrap());
    control.publish(held::manifest(5, &[DEB], &[]), &[DEB.1]);
    assert!(join(&control, 1, directory.path()).status.success());
    let key = control.state().joins[0].ticket_key.clone();
    let Some(daemon) = Daemon::start(directory.path()) else { return };
    let whole = heartbeat_after(&control, 0, "the mirror to be whole", |h| h.sync.complete == 5);

    control.state().away = true;
    until("the log to tell", || daemon.log().contains("control was not told").then_some(()));
    assert!(daemon.get(&ticket(&key, DEB)).starts_with("HTTP/1.1 200"), "tickets are good without control");
    let before = seen(&control);
    control.state().away = false;
    let back = heartbeat_after(&control, before, "a heartbeat after all", |_| true);
    assert_eq!(back.boot, whole.boot);
    assert!(back.sequence > whole.sequence);
    assert!(whole.written_ms.is_some() && back.written_ms > whole.written_ms);

    control.state().refuse = Some(StatusCode::UNAUTHORIZED);
    until("the log to say what to do", || daemon.log().contains("join again").then_some(()));
    assert!(daemon.get(&ticket(&key, DEB)).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_killed_volunteer_serves_what_it_had_at_once() {
    let (control, directory) = (FakeControl::start(), tempfile::tempdir().unwrap());
    control.publish(held::manifest(5, &[DEB], &[]), &[DEB.1]);
    assert!(join(&control, 1, directory.path()).status.success());
    let key = control.state().joins[0].ticket_key.clone();
    let Some(mut daemon) = Daemon::start(directory.path()) else { return };
    let whole = heartbeat_after(&control, 0, "the mirror to be whole", |h| h.sync.complete == 5);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    control.state().away = true;
    let Some(daemon) = Daemon::start(directory.path()) else { return };
    assert!(daemon.get(&ticket(&key, DEB)).ends_with("the apt package"), "without a word from control");
    control.state().away = false;
    let again = heartbeat_after(&control, 0, "another boot", |h| h.boot != whole.boot);
    assert_eq!(again.holdings.added, [FileId(1)], "control is told all of it again");
}

#[test]
fn the_configuration_is_read_again_on_demand() {
    let (control, directory) = (FakeControl::start(), tempfile::tempdir().unwrap());
    assert!(join(&control, 1, directory.path()).status.success());
    let Some(daemon) = Daemon::start(directory.path()) else { return };
    let first = heartbeat_after(&control, 0, "a heartbeat", |_| true);
    assert_eq!(first.donated_rate, None);
    let path = directory.path().join("dataplane.toml");
    std::fs::write(
        &path,
        "listen = ['127.0.0.1:1']\ndonated_rate = '80 Mbit/s'\npublic_url = 'http://v.example:80'\n\
         local_networks = ['127.0.0.0/8']\n",
    )
    .unwrap();
    assert!(daemon.get("/x").starts_with("HTTP/1.1 403"));
    daemon.signal(Signal::HUP);
    let changed =
        heartbeat_after(&control, 0, "the new rate", |h| h.donated_rate == Some(BytesPerSec(10_000_000)));
    assert_eq!(changed.delivery_url, "http://v.example:80");
    until("local clients to be let in", || daemon.get("/x").starts_with("HTTP/1.1 302").then_some(()));
    until("the log to name the rest", || daemon.log().contains("after a restart only").then_some(()));
    assert!(daemon.log().contains("listen"), "{}", daemon.log());

    std::fs::write(&path, "donated_rat = 1\n").unwrap();
    daemon.signal(Signal::HUP);
    until("the mistake to be told", || daemon.log().contains("did you mean `donated_rate`?").then_some(()));
    let before = seen(&control);
    let kept = heartbeat_after(&control, before, "a heartbeat", |_| true);
    assert_eq!(kept.donated_rate, Some(BytesPerSec(10_000_000)), "a mistake changes nothing");
}

#[test]
fn what_control_orders_is_held_and_what_it_takes_back_is_not_also_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let control = FakeControl::start();
    control.publish(held::manifest(3, &[DEB, NEW], &[]), &[DEB.1, NEW.1]);
    assert_eq!(join(&control, 1, directory.path()).status.code(), Some(0));
    let configuration = directory.path().join("dataplane.toml");
    let text = std::fs::read_to_string(&configuration).unwrap();
    std::fs::write(&configuration, format!("{text}\n[mirror]\nquota = '1 GB'\nordered = true\n")).unwrap();
    let Some(daemon) = Daemon::start(directory.path()) else { return };
    let last = || control.state().heartbeats.last().cloned();
    let holds = |count: u64, complete: u64| {
        until("the holdings", || {
            last().filter(|beat| beat.holdings.count == count && beat.sync.complete == complete)
        })
    };
    // Nothing was ordered, so nothing is held; and control hears what it may use.
    let beat = holds(0, 3);
    assert_eq!(beat.sync.offer.unwrap().space.0, 1_000_000_000);
    let order = |patterns: &[&str]| {
        let include = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        control.state().reply.hold = Some(HoldOrder { include });
    };
    order(&["/pool/b/bash.deb"]);
    holds(1, 3);
    let tree = directory.path().join("tree");
    assert!(tree.join(NEW.0).exists() && !tree.join(DEB.0).exists());
    order(&["pool/**"]);
    holds(2, 3);
    drop(daemon);
    // Before control has said anything, the last order holds.
    control.state().reply.hold = None;
    control.state().heartbeats.clear();
    let Some(_daemon) = Daemon::start(directory.path()) else { return };
    holds(2, 3);
    order(&["pool/a/**"]);
    holds(1, 3);
    until("the tree to follow", || (!tree.join(NEW.0).exists() && tree.join(DEB.0).exists()).then_some(()));
}

#[test]
fn monitoring_sees_what_is_so_and_every_name_that_a_dashboard_asks_for() {
    let control = FakeControl::start();
    let directory = tempfile::tempdir().unwrap();
    assert!(join(&control, 1, directory.path()).status.success());
    let configuration = directory.path().join("dataplane.toml");
    let text = std::fs::read_to_string(&configuration).unwrap();
    std::fs::write(&configuration, format!("metrics_listen = '127.0.0.1:0'\n{text}")).unwrap();
    let Some(daemon) = Daemon::start(directory.path()) else { return };
    let metrics: SocketAddr = until("its addresses", || {
        let text = std::fs::read_to_string(directory.path().join("addresses.json")).ok()?;
        let addresses: serde_json::Value = serde_json::from_str(&text).ok()?;
        addresses["metrics"].as_str()?.parse().ok()
    });
    until("control's first answer", || get(metrics, "/readyz").starts_with("HTTP/1.1 200").then_some(()));
    assert!(get(metrics, "/healthz").ends_with("up\n"));
    assert!(get(metrics, "/elsewhere").starts_with("HTTP/1.1 404"));
    assert!(daemon.get("/metrics").starts_with("HTTP/1.1 40"), "customers see nothing of it");

    // Its owner is told of a ban, once, and of its end.
    control.state().reply.banned = Some("banned: its bytes were wrong".into());
    until("the ban", || get(metrics, "/readyz").contains("its bytes were wrong; check").then_some(()));
    assert!(get(metrics, "/readyz").starts_with("HTTP/1.1 503"));
    let beats = seen(&control);
    until("more heartbeats", || (seen(&control) > beats + 2).then_some(()));
    assert_eq!(daemon.log().matches("its bytes were wrong").count(), 1, "{}", daemon.log());
    control.state().reply.banned = None;
    until("the pardon", || get(metrics, "/readyz").starts_with("HTTP/1.1 200").then_some(()));
    assert!(daemon.log().contains("not banned any more"), "{}", daemon.log());
    let text = get(metrics, "/metrics");
    assert!(text.contains("freshet_dataplane_ready 1\n"), "{text}");
    assert!(text.contains("freshet_dataplane_tickets_refused_total{why=\"missing\"} 1\n"), "{text}");
    for file in [
        include_str!("../../control/monitoring/dashboard.json"),
        include_str!("../../control/monitoring/alerts.yml"),
    ] {
        let words = file.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let names: Vec<&str> = words.filter(|word| word.starts_with("freshet_dataplane_")).collect();
        assert!(!names.is_empty());
        for name in names {
            let kind = match name.strip_suffix("_total") {
                Some(family) => format!("# TYPE {family} counter\n"),
                None => format!("# TYPE {name} gauge\n"),
            };
            assert!(text.contains(&kind), "{name} is measured nowhere");
        }
    }
}

#[test]
fn the_packaged_configuration_is_good_with_all_that_it_proposes() {
    let packaged = include_str!("../packaging/dataplane.toml");
    let proposal = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let proposed: String = packaged
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if proposal(rest) || rest.starts_with('[') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dataplane.toml");
    for text in [packaged, &proposed] {
        std::fs::write(&file, text).unwrap();
        let output = dataplane()
            .args(["run", "--check-config", "--config"])
            .arg(&file)
            .arg("--state")
            .arg(directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}\n{text}", stderr(&output));
    }
    assert!(proposed.contains("\n[budget.month]\n"));
}
