//! A `control` process on the server's core, and the nginx that it is measured against.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use freshet_api::admin::{OperatorCredentials, PublishView, StatusView};

use super::api::Api;
use crate::serve::client;

/// A server that ends with this.
pub(super) struct Server {
    /// Its name in the report.
    pub(super) name: String,
    /// Where customers ask.
    pub(super) address: SocketAddr,
    child: Child,
    _scratch: Option<tempfile::TempDir>,
}

impl Server {
    /// Its first process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its first process, to be stopped while others are measured.
    pub(super) fn process(&self) -> Result<Process> {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed());
        Ok(Process(pid.context("expected a process")?))
    }
}

/// A process that stands still while others are measured: what it does by itself would be their stalls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process(rustix::process::Pid);

impl Process {
    /// Stops it.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn pause(self) -> Result<()> {
        Ok(rustix::process::kill_process(self.0, rustix::process::Signal::STOP)?)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn resume(self) -> Result<()> {
        Ok(rustix::process::kill_process(self.0, rustix::process::Signal::CONT)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let asked = rustix::process::Pid::from_raw(self.child.id().cast_signed())
            .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        // It may be paused, and must hear of it.
        let _ = self.process().and_then(Process::resume);
        if matches!(asked, Some(Ok(()))) {
            let deadline = Instant::now() + STOP_TIMEOUT;
            while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A control with a catalogue.
pub(super) struct Origin {
    pub(super) server: Server,
    pub(super) credentials: OperatorCredentials,
}

impl Origin {
    /// Starts control over `tree` and waits until its catalogue has `files` and volunteers are told of them.
    ///
    /// # Errors
    /// When it doesn't start, or the catalogue is not complete in time.
    pub(super) fn start(
        name: &str,
        program: &Path,
        tree: &Path,
        state: &Path,
        core: usize,
        files: u32,
    ) -> Result<Self> {
        let log = fs::File::create(state.with_extension("log"))?;
        let mut child = Command::new("taskset")
            .args(["-c", &core.to_string()])
            .arg(program)
            .arg("serve")
            .arg("--repo")
            .arg(tree)
            .arg("--state")
            .arg(state)
            .args(["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--rings", "1"])
            // The files are small; customers are to be sent elsewhere for them all the same.
            .args(["--direct-below", "0"])
            // Heartbeats come when the measurement sends them; nobody is lost meanwhile.
            .args(["--heartbeat-ms", "60000", "--changed-window-secs", "0", "--rescan-secs", "604800"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot run taskset (package util-linux)")?;
        let lines = child.stdout.take().context("control's standard output is a pipe")?;
        let mut listen = None;
        for line in BufReader::new(lines).lines() {
            let line = line?;
            if let Some(url) = line.strip_prefix("front door: http://") {
                listen = Some(url.parse()?);
            }
            if line == "ready" {
                break;
            }
        }
        let Some(address) = listen else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("control did not start; see {}", state.with_extension("log").display())
        };
        let server = Server { name: name.to_owned(), address, child, _scratch: None };
        let credentials: OperatorCredentials = serde_json::from_slice(&fs::read(state.join("admin.json"))?)?;
        let origin = Self { server, credentials };
        origin.wait_for_catalogue(files)?;
        Ok(origin)
    }

    /// A connection to its API.
    ///
    /// # Errors
    /// When it can't be reached.
    pub(super) fn api(&self) -> Result<Api> {
        Api::connect(&self.credentials.api, self.credentials.fingerprint)
    }

    fn wait_for_catalogue(&self, files: u32) -> Result<()> {
        let deadline = Instant::now() + CATALOGUE_TIMEOUT;
        let mut api = self.api()?;
        loop {
            let status: StatusView = api.get("/v1/admin/status", Some(&self.credentials.token))?;
            let catalog = &status.catalog;
            if catalog.files == u64::from(files)
                && catalog.pending == 0
                && status.swarm.released == catalog.sequence
            {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "the catalogue has {} of {files} files after {CATALOGUE_TIMEOUT:?}, {} pending, state {} of which {} is \
                 released",
                catalog.files,
                catalog.pending,
                catalog.sequence,
                status.swarm.released
            );
            std::thread::sleep(Duration::from_millis(500));
        }
        // What is known from the last run is walked all the same: the measurement must not share a core with that.
        let token = Some(&self.credentials.token);
        let mut walk: PublishView = api.post("/v1/admin/publish", token, &())?;
        while !walk.done {
            ensure!(Instant::now() < deadline, "the walk over the repository did not end");
            std::thread::sleep(Duration::from_millis(500));
            walk = api.get(&format!("/v1/admin/publish/{}", walk.walk), token)?;
        }
        Ok(())
    }
}

/// nginx with one worker that answers every request with the same redirect.
///
/// # Errors
/// When it is installed and doesn't start; `None` where it is not installed.
pub(super) fn nginx(core: usize) -> Result<Option<Server>> {
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    let scratch = tempfile::Builder::new().prefix("freshet-bench-").tempdir()?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let file = scratch.path().join("nginx.conf");
    let place = scratch.path().display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let text = format!(
        "daemon off; {user} worker_processes 1; pid {place}/pid;
error_log stderr crit;
events {{ worker_connections 4096; multi_accept on; }}
http {{
  access_log off; tcp_nodelay on; keepalive_timeout 3600s; keepalive_requests 1000000000;
  client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;
  uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;
  server {{ listen {address} backlog=4096; return 302 http://mirror.example.org/debian/pool/main/a/package_1.0.deb; }}
}}\n"
    );
    fs::write(&file, text)?;
    let child = Command::new("taskset")
        .args(["-c", &core.to_string(), "nginx", "-p"])
        .arg(scratch.path())
        .arg("-c")
        .arg(&file)
        .args(["-e", "stderr"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run taskset (package util-linux)")?;
    let server = Server { name: "nginx".to_owned(), address, child, _scratch: Some(scratch) };
    let deadline = Instant::now() + START_TIMEOUT;
    while !client::answers(address) {
        ensure!(Instant::now() < deadline, "nginx does not listen on {address} after {START_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Some(server))
}

/// The `control` program: the given one, or the one beside this program.
///
/// # Errors
/// When it is not there.
pub(super) fn program(named: Option<&Path>) -> Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()?.with_file_name("control"),
    };
    path.canonicalize().with_context(|| {
        format!("no control at {}; build it with `cargo build --release -p freshet-control`", path.display())
    })
}

const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const CATALOGUE_TIMEOUT: Duration = Duration::from_secs(3_600);
