//! An upgrade: one process ends on the operator's word, another goes on with the same listening sockets, and customers
//! notice nothing. The test plays the service manager.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use freshet_api::admin::StatusView;
use freshet_api::operator::ReloadView;
use reqwest::Method;

use crate::stage::{operator, put};

#[tokio::test(flavor = "multi_thread")]
async fn customers_notice_nothing_of_an_upgrade() {
    let directory = tempfile::tempdir().unwrap();
    let (repo, state) = (directory.path().join("repo"), directory.path().join("state"));
    put(&repo, "pool/a.txt", b"the whole of it");
    let sockets: [TcpListener; 3] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let front_door = sockets[0].local_addr().unwrap();
    let mut running = start(&repo, &state, &sockets);
    until("the operator's key", || state.join("admin.json").exists());
    until("the first answer", || ask(front_door).is_ok_and(|answer| answer.ends_with("the whole of it")));

    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let customer = std::thread::spawn({
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
        move || {
            let mut wrong = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match ask(front_door) {
                    Ok(answer) if answer.ends_with("the whole of it") => {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    other => wrong.push(format!("{other:?}")),
                }
            }
            wrong
        }
    });
    for round in 1..=3 {
        let _: ReloadView = operator(&state).ok(Method::POST, "admin/upgrade", &()).await;
        until("its end", || running.child.try_wait().unwrap().is_some_and(|status| status.success()));
        running = start(&repo, &state, &sockets);
        let before = answered.load(Ordering::Relaxed);
        until("answers of the next one", || answered.load(Ordering::Relaxed) > before + 10);
        let status: StatusView = operator(&state).ok(Method::GET, "admin/status", &()).await;
        assert!(status.catalog.files == 1, "round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    let wrong = customer.join().unwrap();
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), answered.load(Ordering::Relaxed));
}

struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hands the sockets over as descriptors 3 to 5, by way of the standard streams, which any process may be given.
fn start(repo: &Path, state: &Path, sockets: &[TcpListener; 3]) -> Running {
    let socket = |index: usize| OwnedFd::from(sockets[index].try_clone().unwrap());
    let script = "exec 3<&0 4<&1 5<&2 0</dev/null 1>/dev/null 2>/dev/null\n\
                  export LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=front-door:sync:api\n\
                  exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_control"), "serve", "--repo"]).arg(repo);
    command.arg("--state").arg(state);
    command.args(["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--rings", "2", "--grace-secs", "5"]);
    command.args(["--quiet-ms", "0", "--hold-secs", "0"]);
    let child = command.stdin(socket(0)).stdout(socket(1)).stderr(socket(2)).spawn().unwrap();
    Running { child }
}

/// One download over a connection of its own.
fn ask(front_door: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(front_door)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /pool/a.txt HTTP/1.1\r\nHost: o\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
