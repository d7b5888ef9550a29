//! `control` as a program: its exit codes, the lines it prints, and what SIGKILL leaves behind.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use freshet_api::JoinString;
use freshet_api::admin::{AddNode, NodeAdded, NodeView};
use reqwest::Method;

use crate::stage::{Volunteer, operator, put};

#[test]
fn wrong_settings_end_with_2_and_say_what_is_meant() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("control.toml");
    let check = |text: &str, flags: &[&str]| {
        std::fs::write(&file, text).unwrap();
        run(Command::new(PROGRAM).args(["serve", "--check-config", "--config"]).arg(&file).args(flags))
    };
    let good = "repo = '/srv/repo'\nstate = '/var/lib/freshet'\nlisten = '127.0.0.1:0'\n";
    assert_eq!(check(good, &[]).status.code(), Some(0));
    for (text, flags, expected) in [
        ("repo = '/srv/repo'\nstat = '/s'\n", &[][..], "line 2, column 1"),
        ("hearbeat_ms = 3\n", &[], "did you mean `heartbeat_ms`?"),
        (good, &["--heartbeat-ms", "1"], "50 to 60000"),
        (good, &["--direct-below", "much"], "an amount such as"),
        (good, &["--listen", "0.0.0.0:8080"], "--public-url"),
    ] {
        let output = check(text, flags);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(words.contains(expected), "{expected:?} is not in {words:?}");
    }
}

#[test]
fn a_failure_that_is_no_setting_ends_with_1() {
    let directory = tempfile::tempdir().unwrap();
    let (repo, state) = (directory.path().join("missing"), directory.path().join("state"));
    let output = run(&mut serve(&repo, &state));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("missing"));
}

#[test]
fn a_signal_ends_it_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let repo = directory.path().join("repo");
    put(&repo, "pool/a.txt", b"a");
    let mut running = Program::start(&repo, &directory.path().join("state"));
    let pid = rustix::process::Pid::from_raw(i32::try_from(running.child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_no_acknowledged_byte_and_no_volunteer() {
    let directory = tempfile::tempdir().unwrap();
    let (repo, state) = (directory.path().join("repo"), directory.path().join("state"));
    put(&repo, "pool/a.txt", b"a");
    let mut running = Program::start(&repo, &state);
    let name = AddNode { name: "south".into() };
    let added: NodeAdded = operator(&state).ok(Method::POST, "admin/nodes", &name).await;
    let join: JoinString = added.join.parse().unwrap();
    let mut south = Volunteer::join(&join, "http://192.0.2.1:80").await.unwrap();
    let (mut acknowledged, mut sent) = (0, 0);
    for kill in 1..=4u32 {
        // Another thread kills it in the middle of a stream of heartbeats; when is not meant to be exact.
        let killer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(u64::from(kill) * 30));
            drop(running);
        });
        loop {
            sent += 1_000;
            south.next.interfaces[0].delivery.sent.bytes = sent;
            if !south.try_beat().await {
                break;
            }
            acknowledged = sent;
        }
        killer.join().unwrap();
        running = Program::start(&repo, &state);
        south.find(&state);
        let view: NodeView = operator(&state).ok(Method::GET, "admin/nodes/south", &()).await;
        let kept = view.ledger.delivered_bytes;
        assert!((acknowledged..=sent).contains(&kept), "{acknowledged} <= {kept} <= {sent}");
    }
    assert!(acknowledged > 0);
    south.beat().await;
    let view: NodeView = operator(&state).ok(Method::GET, "admin/nodes/south", &()).await;
    assert_eq!(view.ledger.delivered_bytes, sent, "counted once, whatever was repeated");
}

/// A running `control`; it ends with this.
struct Program {
    child: Child,
}

impl Program {
    fn start(repo: &Path, state: &Path) -> Self {
        let mut child = serve(repo, state).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let before: Vec<String> = lines.by_ref().take_while(|line| line != "ready").collect();
        let starts = ["front door: http://127.0.0.1:", "api: https://127.0.0.1:", "sync: http://127.0.0.1:"];
        assert_eq!(before.len(), starts.len(), "{before:?}");
        for (line, start) in before.iter().zip(starts) {
            assert!(line.starts_with(start), "{line:?}");
        }
        Self { child }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(repo: &Path, state: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("serve").arg("--repo").arg(repo).arg("--state").arg(state);
    command.args(["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--rings", "1", "--grace-secs", "1"]);
    command
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_control");
