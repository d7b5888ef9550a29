//! `bench testbed` as a user runs it: a small experiment from its file to its report, one that is left standing, and
//! one on hosts that are reached by ssh. Only namespaces are touched, and only those that were made here.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use freshet_testbed::{
    Backend, Cancel, Delays, Host, Keeper, Link, Options, Program, Testbed, skip, wait_until,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

/// Each of these tests keeps the machine busy, and one kills a keeper whose remains the next testbed would remove.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The programs' directory; `None`, and said so, where this test cannot run.
fn ground(test: &str) -> Option<PathBuf> {
    let programs = Path::new(env!("CARGO_BIN_EXE_bench")).parent().unwrap().to_owned();
    if ["control", "ctl", "dataplane"].iter().any(|name| !programs.join(name).is_file()) {
        skip(test, "control, ctl and dataplane are not built (`cargo build --workspace --bins`)");
        return None;
    }
    let testbed = Testbed::start(Options::default()).unwrap();
    if let Backend::Loopback { why } = testbed.backend() {
        skip(test, why);
        return None;
    }
    Some(programs)
}

/// An experiment of a few seconds.
fn experiment(directory: &Path, name: &str) -> PathBuf {
    let text = format!(
        r#"
name = "{name}"
title = "A test"
seed = 5

[repository]
generated = {{ files = 6, bytes = "1.5 MB" }}

[[hosts]]
name = "origin"
role = "origin"
up = "40 Mbit/s"
down = "40 Mbit/s"

[[hosts]]
name = "volunteer"
role = "volunteer"
up = "40 Mbit/s"
down = "40 Mbit/s"
donated = "30 Mbit/s"
delay = "5 ms"

[[hosts]]
name = "customer"
role = "customer"

[control]
heartbeat = "200 ms"

[[phases]]
name = "sync"
until = "synced"

[[phases]]
name = "steady"
lasts = "1500 ms"
requests = {{ per_second = 8.0 }}

[[phases]]
name = "release"
publish = {{ directory = "new", files = 2, bytes = "500 kB" }}
until = "synced"
lasts = "1 s"
requests = {{ at_once = 1, paths = "new/**" }}
"#
    );
    let path = directory.join(format!("{name}.toml"));
    fs::write(&path, text).unwrap();
    path
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench")).arg("testbed").args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a run's JSON lines say, after what every report must say has been found in them.
fn check_report(out: &Path) -> Vec<Value> {
    let html = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(html.contains("</html>") && html.contains("<svg"), "{html}");
    let lines = fs::read_to_string(out.join("report.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    assert_eq!(of("phase").len(), 3);
    assert!(!of("interface").is_empty() && !of("counters").is_empty());
    let requests = of("request");
    assert!(requests.len() > 3, "{}", requests.len());
    for request in requests {
        assert_eq!(request["value"]["request"]["verdict"], "right", "{request}");
    }
    for phase in of("phase") {
        for host in phase["value"]["phase"]["compared"].as_array().unwrap() {
            for side in [0, 1] {
                let count = |who: &str| host[1][who][side].as_u64().unwrap();
                let (ours, kernel) = (count("ours"), count("kernel"));
                assert!(ours.abs_diff(kernel) as f64 <= kernel as f64 * 0.001, "{phase}");
            }
        }
    }
    lines
}

/// The namespaces and scratch directories of a process's runs.
fn left_of(pid: u32) -> Vec<String> {
    let of = |directory: &str, prefix: String| {
        let names = fs::read_dir(directory).into_iter().flatten().flatten();
        names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(move |name| name.starts_with(&prefix))
            .collect::<Vec<_>>()
    };
    let mut left = of("/run/netns", format!("fr-{pid}."));
    left.extend(of(std::env::temp_dir().to_str().unwrap(), format!("freshet-scratch-{pid}.")));
    left.extend(of("/run/freshet-testbed", format!("{pid}.")));
    left
}

#[test]
fn an_experiment_runs_from_its_file_to_its_report_and_leaves_nothing() {
    let _alone = alone();
    let Some(_) = ground("an_experiment_runs_from_its_file_to_its_report_and_leaves_nothing") else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = experiment(dir.path(), &format!("test-run-{}", std::process::id()));
    let out = dir.path().join("out");
    let child = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["testbed", "run", file.to_str().unwrap(), "--seed", "9", "--out", out.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let lines = check_report(&out);
    assert_eq!(lines[0]["seed"], 9, "{}", lines[0]);
    // Whoever reads it knows what delays packets, or that nothing does.
    let testbed = Testbed::start(Options::default()).unwrap();
    let (by, delayed) = match testbed.delays() {
        Delays::Kernel => ("", None),
        Delays::Harness { .. } => ("are made by the harness", Some("1 of them delayed by the harness")),
        Delays::None { .. } => ("have no delay", None),
    };
    assert!(said(&output).contains(by), "{}", said(&output));
    let links = lines[0]["parameters"]["links"].to_string();
    assert!(delayed.is_none_or(|delayed| links.contains(delayed)), "{links}");
    assert_eq!(left_of(pid), Vec::<String>::new());
}

#[test]
fn what_stands_can_be_entered_and_is_removed_also_when_its_keeper_was_killed() {
    let test = "what_stands_can_be_entered_and_is_removed_also_when_its_keeper_was_killed";
    let Some(_) = ground(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let name = format!("test-up-{}", std::process::id());
    let file = experiment(dir.path(), &name);
    let note = Path::new("/run/freshet-testbed/standing").join(format!("{name}.json"));
    let up = || {
        let output = bench(&["up", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", said(&output));
        let note: Value = serde_json::from_str(&fs::read_to_string(&note).unwrap()).unwrap();
        (said(&output), note)
    };
    let keeper = |note: &Value| u32::try_from(note["keeper"]["pid"].as_u64().unwrap()).unwrap();

    // As somebody would: in by the command that was printed, and a question to control.
    let (text, first) = up();
    let ctl = first["ctl"].as_str().unwrap();
    assert!(text.contains(ctl), "{text}");
    let nodes = Command::new("sh").args(["-c", &format!("{ctl} --json node list")]).output().unwrap();
    assert!(said(&nodes).contains("\"active\""), "{}", said(&nodes));
    let again = bench(&["up", file.to_str().unwrap()]);
    assert!(!again.status.success() && said(&again).contains("stands already"), "{}", said(&again));
    assert!(said(&bench(&["list"])).contains(&format!("{name} stands since")));
    let down = bench(&["down", &name]);
    assert!(down.status.success(), "{}", said(&down));
    assert_eq!(left_of(keeper(&first)), Vec::<String>::new());
    assert!(!note.exists());
    assert!(said(&bench(&["down", &name])).contains("nothing stands"));

    // Its note is lost, as after somebody emptied /run; its keeper is still known by its command line.
    let (_, second) = up();
    let pid = keeper(&second);
    fs::remove_file(&note).unwrap();
    assert!(
        said(&bench(&["list"]))
            .contains(&format!("{name} stands (process {pid}); how to get in is not known"))
    );

    // Now the keeper is killed, and the run's record is lost too: only names tell whose the rest was.
    let process = Keeper::of(pid).unwrap();
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    wait_until("the keeper to be gone", PATIENCE, &Cancel::default(), || {
        Ok((!process.is_alive()).then_some(()))
    })
    .unwrap();
    // Another testbed of this machine may have begun to clean up already.
    for record in left_of(pid).into_iter().filter(|name| name.starts_with(&format!("{pid}."))) {
        let _ = fs::remove_dir_all(Path::new("/run/freshet-testbed").join(record));
    }
    let down = bench(&["down", &name]);
    assert!(down.status.success(), "{}", said(&down));
    assert_eq!(left_of(pid), Vec::<String>::new(), "{}", said(&down));
}

#[test]
fn an_experiment_runs_on_hosts_that_are_reached_by_ssh_and_leaves_nothing_there() {
    let _alone = alone();
    let test = "an_experiment_runs_on_hosts_that_are_reached_by_ssh_and_leaves_nothing_there";
    let Some(programs) = ground(test) else { return };
    if !Path::new(SSHD).is_file() || !Path::new("/usr/bin/ssh").is_file() {
        skip(test, "sshd or ssh is not installed (openssh-server, openssh-client)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = experiment(dir.path(), "test-ssh");
    let testbed = Testbed::start(Options::default()).unwrap();
    let keygen = |path: &Path| {
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).output();
        assert!(made.as_ref().unwrap().status.success(), "{}", said(&made.unwrap()));
        fs::read_to_string(path.with_extension("pub")).unwrap()
    };
    let authorized = keygen(&dir.path().join("id"));
    fs::write(dir.path().join("authorized"), authorized).unwrap();
    let host_key = keygen(&dir.path().join("host"));
    // Where sshd separates its privileges; distributions make it when the service starts.
    fs::create_dir_all("/run/sshd").unwrap();

    let (mut inventory, mut known) = (String::from("key = \"id\"\nknown_hosts = \"known\"\n"), String::new());
    let mut daemons = Vec::new();
    for name in ["origin", "volunteer", "customer"] {
        let host = testbed.host(name, &Link::new().single_packets()).unwrap();
        let (address, port) = (host.addr().unwrap(), host.free_port().unwrap());
        let place = dir.path().join(name);
        fs::create_dir(&place).unwrap();
        daemons.push(sshd(&host, dir.path(), port));
        inventory += &format!(
            "[hosts.{name}]\nssh = \"root@{address}\"\nport = {port}\naddress = \"{address}\"\ndirectory = \"{}\"\n",
            place.display()
        );
        known += &format!("[{address}]:{port} {host_key}");
    }
    fs::write(dir.path().join("inventory.toml"), inventory).unwrap();
    fs::write(dir.path().join("known"), known).unwrap();

    // The operator's own host: from there the others are reached.
    let operator = testbed.host("operator", &Link::new()).unwrap();
    let out = dir.path().join("out");
    let program = Program::new(programs.join("bench"))
        .args(["testbed", "run"])
        .arg(&file)
        .arg("--inventory")
        .arg(dir.path().join("inventory.toml"))
        .arg("--out")
        .arg(&out);
    let run = operator.run(&program, PATIENCE).unwrap();
    assert!(run.status.success(), "{}\n{}", run.text(), run.stderr);
    assert!(run.text().contains("reached by ssh"), "{}", run.text());
    check_report(&out);
    for name in ["origin", "volunteer", "customer"] {
        let left = fs::read_dir(dir.path().join(name)).unwrap().count();
        assert_eq!(left, 0, "something was left on {name}");
    }
}

/// Starts a daemon of our own, which knows one key and nothing of the machine's configuration.
fn sshd(host: &Host, dir: &Path, port: u16) -> freshet_testbed::Process {
    let setting = |name: &str, value: &str| ["-o".to_owned(), format!("{name}={value}")];
    let authorized = dir.join("authorized");
    let program = Program::new(SSHD)
        .args(["-D", "-e", "-f", "/dev/null", "-h"])
        .arg(dir.join("host"))
        .args(setting("ListenAddress", &format!("{}:{port}", host.addr().unwrap())))
        .args(setting("AuthorizedKeysFile", authorized.to_str().unwrap()))
        .args(setting("PermitRootLogin", "prohibit-password"))
        .args(setting("PasswordAuthentication", "no"))
        .args(setting("StrictModes", "no"))
        .args(setting("UsePAM", "no"))
        .args(setting("PidFile", "none"));
    let process = host.start("sshd", &program).unwrap();
    let address = std::net::SocketAddr::new(host.addr().unwrap(), port);
    process.wait_for_port(host, address, PATIENCE).unwrap();
    process
}

const SSHD: &str = "/usr/sbin/sshd";
