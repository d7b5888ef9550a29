//! A harness that is killed leaves namespaces behind; the next run removes them, and nobody else's.
//!
//! This test has its own `main`, because the harness to be killed is this same program, started with `hold`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use freshet_testbed::{Cancel, Link, Options, Program, Testbed, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    match std::env::args().collect::<Vec<_>>().as_slice() {
        [_, verb, state] if verb == "hold" => hold(Path::new(state)),
        _ => {
            a_killed_harness_takes_its_processes_along_and_the_next_run_removes_the_rest();
            println!(
                "test a_killed_harness_takes_its_processes_along_and_the_next_run_removes_the_rest ... ok"
            );
        }
    }
}

/// A harness that does not outlive this test, even when the test fails before it kills it.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It is dead already when all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Opens a testbed with a process in it, says what there is, and waits to be killed.
fn hold(state: &Path) {
    let options = Options { state: Some(state.to_owned()), ..Options::default() };
    let testbed = Testbed::start(options).unwrap();
    let host = testbed.host("h", &Link::new()).unwrap();
    // Once the program itself speaks, its parent-death signal is set.
    let sleeper = Program::new("sh").args(["-c", "echo up; exec sleep 600"]);
    let process = host.start("sleeper", &sleeper).unwrap();
    process.wait_for_line("up", PATIENCE).unwrap();
    let namespace = host.namespace().unwrap_or_default();
    println!("{} {}", process.pid(), namespace.display());
    loop {
        std::thread::park();
    }
}

fn a_killed_harness_takes_its_processes_along_and_the_next_run_removes_the_rest() {
    let state = tempfile::tempdir().unwrap();
    let options = || Options { state: Some(state.path().to_owned()), ..Options::default() };
    let neighbour = Testbed::start(options()).unwrap();
    let neighbours_host = neighbour.host("n", &Link::new()).unwrap();

    let mut harness = Killed(
        Command::new(std::env::current_exe().unwrap())
            .args(["hold".as_ref(), state.path().as_os_str()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(harness.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (pid, namespace) = line.trim_end_matches('\n').split_once(' ').unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    harness.0.kill().unwrap();
    harness.0.wait().unwrap();

    // Killed, not asked: its `Drop` did not run, yet the kernel ends its children.
    let process = format!("/proc/{pid}");
    wait_until("the process to end with its harness", PATIENCE, &Cancel::default(), || {
        Ok((!Path::new(&process).exists()).then_some(()))
    })
    .unwrap();
    if !namespace.is_empty() {
        assert!(Path::new(namespace).exists(), "nothing was left, so the test shows nothing");
    }

    let next = Testbed::start(options()).unwrap();
    assert!(namespace.is_empty() || !Path::new(namespace).exists());
    // The neighbour is alive and keeps what it has.
    assert!(neighbours_host.namespace().is_none_or(|namespace| namespace.exists()));
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 2);
    drop(next);
    drop(neighbour);
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
}
