//! The servers that are compared, each with one worker on one core and the same files.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::client;

/// A server that runs, until it is dropped.
pub(crate) struct Peer {
    /// Its name in reports.
    pub(crate) name: String,
    /// Name and version, as it says itself.
    pub(crate) version: String,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    child: Child,
    _scratch: tempfile::TempDir,
}

/// How to run the servers.
pub(crate) struct Setting<'a> {
    /// The `dataplane` binary.
    pub(crate) dataplane: &'a Path,
    /// Another build of it, to be compared with.
    pub(crate) other: Option<&'a Path>,
    /// What is served.
    pub(crate) root: &'a Path,
    /// The core they run on.
    pub(crate) core: usize,
}

impl Peer {
    /// Starts a server by its name: `freshet`, `freshet-2` (two rings on all cores), `freshet-other` (another
    /// build), `nginx`, `lighttpd` or `static-web-server`; `None` when its program is not installed.
    ///
    /// # Errors
    /// When it is installed and doesn't come up.
    pub(crate) fn start(name: &str, setting: &Setting<'_>) -> Result<Option<Self>> {
        let scratch = tempfile::Builder::new().prefix("freshet-bench-").tempdir()?;
        let address = free_address()?;
        let (program, arguments, version_flag): (PathBuf, Vec<String>, &str) = match name {
            "freshet" | "freshet-2" | "freshet-other" => (
                if name == "freshet-other" {
                    setting.other.context("freshet-other needs --other FILE")?.to_owned()
                } else {
                    setting.dataplane.to_owned()
                },
                [
                    "serve",
                    "--root",
                    &setting.root.to_string_lossy(),
                    "--listen",
                    &address.to_string(),
                    "--rings",
                    if name == "freshet-2" { "2" } else { "1" },
                    // All clients are at one address here.
                    "--connections-per-address-max",
                    "20000",
                    "--access-log",
                    "off",
                ]
                .map(str::to_owned)
                .to_vec(),
                "--version",
            ),
            "nginx" => {
                let file = scratch.path().join("nginx.conf");
                std::fs::write(&file, nginx(setting.root, scratch.path(), address))?;
                let prefix = scratch.path().to_string_lossy().into_owned();
                let file = file.to_string_lossy().into_owned();
                let arguments = ["-p".into(), prefix, "-c".into(), file, "-e".into(), "stderr".into()];
                ("nginx".into(), arguments.to_vec(), "-v")
            }
            "lighttpd" => {
                let file = scratch.path().join("lighttpd.conf");
                std::fs::write(&file, lighttpd(setting.root, address))?;
                ("lighttpd".into(), vec!["-D".into(), "-f".into(), file.to_string_lossy().into_owned()], "-v")
            }
            "static-web-server" => (
                "static-web-server".into(),
                [
                    "--host",
                    &address.ip().to_string(),
                    "--port",
                    &address.port().to_string(),
                    "--root",
                    &setting.root.to_string_lossy(),
                    "--threads-multiplier",
                    "1",
                    "--cache-control-headers",
                    "false",
                    "--compression",
                    "false",
                ]
                .map(str::to_owned)
                .to_vec(),
                "--version",
            ),
            other => {
                bail!(
                    "expected freshet, freshet-2, freshet-other, nginx, lighttpd or static-web-server, found {other:?}"
                )
            }
        };
        let Some(version) = version(&program, version_flag) else { return Ok(None) };
        let cores = if name == "freshet-2" { "0-1".to_owned() } else { setting.core.to_string() };
        let log = std::fs::File::create(scratch.path().join("log"))?;
        let child = Command::new("taskset")
            .args(["-c", &cores])
            .arg(&program)
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run taskset (package util-linux)")?;
        let mut peer = Self { name: name.to_owned(), version, address, child, _scratch: scratch };
        peer.wait_until_up()?;
        Ok(Some(peer))
    }

    /// The first process of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A note of what this server did not do; ours must do everything.
    ///
    /// # Errors
    /// The error itself, when the server is ours.
    pub(crate) fn cannot(&self, error: anyhow::Error) -> Result<String> {
        if self.name.starts_with("freshet") {
            return Err(error.context(self.name.clone()));
        }
        Ok(format!("{}: not measured: {error:#}", self.name))
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !client::answers(self.address) {
            let log = || std::fs::read_to_string(self._scratch.path().join("log")).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once ({status}): {}", self.name, log().trim());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} does not listen on {} after {START_TIMEOUT:?}: {}",
                    self.name,
                    self.address,
                    log().trim()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // SIGTERM first: a master process ends its workers only when it is asked.
        let asked = rustix::process::Pid::from_raw(self.child.id().cast_signed())
            .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        if matches!(asked, Some(Ok(()))) {
            let deadline = Instant::now() + STOP_TIMEOUT;
            while Instant::now() < deadline {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn version(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned())
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// As an administrator who wants speed sets it up: sendfile, tcp_nopush, open_file_cache, no log. Its file cache
/// takes what the limit of descriptors leaves to it: beyond that nginx answers 500.
fn nginx(root: &Path, scratch: &Path, address: SocketAddr) -> String {
    let (root, scratch) = (root.display(), scratch.display());
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let cached_files = (limit / 4 * 3).min(150_000);
    format!(
        "daemon off; {user} worker_processes 1; pid {scratch}/pid; worker_rlimit_nofile 200000;
error_log stderr crit;
events {{ worker_connections 30000; multi_accept on; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; default_type application/octet-stream;
  keepalive_timeout 3600s; keepalive_requests 1000000000; server_tokens on;
  open_file_cache max={cached_files} inactive=600s; open_file_cache_valid 60s; open_file_cache_min_uses 1;
  client_body_temp_path {scratch}/b; proxy_temp_path {scratch}/p; fastcgi_temp_path {scratch}/f;
  uwsgi_temp_path {scratch}/u; scgi_temp_path {scratch}/s;
  server {{ listen {address} backlog=4096; root {root}; }}
}}\n"
    )
}

fn lighttpd(root: &Path, address: SocketAddr) -> String {
    format!(
        "server.document-root = \"{}\"\nserver.bind = \"{}\"\nserver.port = {}\n\
         server.network-backend = \"sendfile\"\nserver.max-fds = 60000\nserver.max-connections = 30000\n\
         server.max-keep-alive-requests = 1000000000\nserver.max-keep-alive-idle = 3600\n\
         server.stat-cache-engine = \"simple\"\nserver.listen-backlog = 4096\n\
         mimetype.assign = ( \"\" => \"application/octet-stream\" )\n",
        root.display(),
        address.ip(),
        address.port()
    )
}

const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
