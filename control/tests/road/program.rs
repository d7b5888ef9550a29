//! `control` as a program: its exit codes, the lines it prints, and what SIGKILL leaves behind.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use freshet_api::admin::{AddNode, NodeAdded, NodeView};
use freshet_api::{ContentHash, JoinString};
use reqwest::Method;

use crate::stage::{Volunteer, content, operator, put};
use crate::swarm::{bundles, publish};

#[test]
fn wrong_settings_end_with_2_and_say_what_is_meant() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("control.toml");
    let check = |text: &str, flags: &[&str]| {
        std::fs::write(&file, text).unwrap();
        run(Command::new(PROGRAM).args(["serve", "--check-config", "--config"]).arg(&file).args(flags))
    };
    let repo = directory.path().display();
    let good = format!("repo = '{repo}'\nstate = '/var/lib/freshet'\nlisten = '127.0.0.1:0'\n");
    let good = good.as_str();
    assert_eq!(check(good, &[]).status.code(), Some(0));
    let (missing, is_file) = (directory.path().join("missing"), file.clone());
    for (text, flags, expected) in [
        ("repo = '/srv/repo'\nstat = '/s'\n", &[][..], "line 2, column 1"),
        ("hearbeat_ms = 3\n", &[], "did you mean `heartbeat_ms`?"),
        (good, &["--heartbeat-ms", "1"], "50 to 60000"),
        (good, &["--direct-below", "much"], "an amount such as"),
        (good, &["--listen", "0.0.0.0:8080"], "--public-url"),
        (
            good,
            &["--repo", missing.to_str().unwrap()],
            "missing cannot be read by this user; make the directory",
        ),
        (good, &["--repo", is_file.to_str().unwrap()], "control.toml cannot be read"),
        (good, &["--geo-database", missing.to_str().unwrap()], "`geo_databases`: put the file there"),
    ] {
        let output = check(text, flags);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(words.contains(expected), "{expected:?} is not in {words:?}");
    }
}

#[test]
fn the_packaged_configuration_is_good_with_all_that_it_proposes() {
    let packaged = include_str!("../../packaging/control.toml");
    let key = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let proposed: String = packaged
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(proposal) if key(proposal) => format!("{proposal}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(proposed.lines().filter(|line| key(line)).count() > 15, "{proposed}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("control.toml");
    for text in [packaged, &proposed] {
        // What it names is the operator's: the repository, and a database that comes from elsewhere.
        let ours = text.replace("\"/srv/repo\"", &format!("{:?}", directory.path()));
        let ours: Vec<&str> = ours.lines().filter(|line| !line.starts_with("geo_databases")).collect();
        std::fs::write(&file, ours.join("\n")).unwrap();
        let output = run(Command::new(PROGRAM).args(["serve", "--check-config", "--config"]).arg(&file));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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

#[tokio::test(flavor = "multi_thread")]
async fn kills_in_the_middle_of_bundling_leave_every_content_in_one_bundle() {
    let directory = tempfile::tempdir().unwrap();
    let (repo, state) = (directory.path().join("repo"), directory.path().join("state"));
    put(&repo, "pool/first.bin", &content("first", 300_000));
    for round in 0..6u64 {
        for file in 0..30 {
            let path = format!("pool/{round}/{file}.bin");
            put(&repo, &path, &content(&path, 20_000 + 37_000 * file));
        }
        let running = Program::start(&repo, &state);
        // When exactly is not meant: somewhere in hashing, packing, or writing.
        std::thread::sleep(std::time::Duration::from_millis(20 + round * 70));
        drop(running);
    }
    let _running = Program::start(&repo, &state);
    let operator = operator(&state);
    let published = publish(&operator).await;
    let name = AddNode { name: "south".into() };
    let added: NodeAdded = operator.ok(Method::POST, "admin/nodes", &name).await;
    let mut south = Volunteer::join(&added.join.parse().unwrap(), "http://192.0.2.1:80").await.unwrap();
    let beat = south.beat().await;
    let manifest = south.manifest().await;
    assert_eq!((manifest.files.len(), manifest.sequence), (181, published.released));
    let mut bundled: Vec<ContentHash> = Vec::new();
    for (_, bundle) in bundles(&south).await {
        for object in &bundle.objects {
            bundled.extend(object.members.iter().map(|member| member.content));
            bundled.extend(object.members.is_empty().then_some(object.content));
            let url = format!("{}/blob/{}", beat.origin_sync_url, object.content);
            let answer = south.get(&url, &beat.sync_token).await;
            assert_eq!(ContentHash::of(&answer), object.content);
        }
    }
    bundled.sort_unstable();
    let mut wanted: Vec<ContentHash> = manifest.files.iter().map(|file| file.content).collect();
    wanted.sort_unstable();
    assert!(bundled == wanted, "{} contents in bundles, {} in the manifest", bundled.len(), wanted.len());
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
    command.args(["--quiet-ms", "0", "--hold-secs", "0"]);
    command
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_control");
