//! Programs as they are to be started, and processes as they run: their logs, their readiness, their end.
//!
//! A process leads a process group of its own, so that its end is the end of its children too, and the terminal's
//! ^C reaches only the harness. A parent-death signal ends it when the harness is killed; should that happen in the
//! moment before the signal is set, the next run ends it by the record that the run keeps.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::process::{Pid, kill_process, kill_process_group};

use crate::testbed::{Inner, lock};
use crate::{Cancel, Error, Host, wait_until};

pub use rustix::process::Signal;

/// A program with its arguments and environment. The harness's environment is inherited, without its proxies:
/// nothing in a testbed is to be fetched through one.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    directory: Option<PathBuf>,
    holds_input: bool,
}

impl Program {
    /// A program by its path, or by its name in `PATH`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Program {
        Program {
            path: path.into(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            directory: None,
            holds_input: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Program {
        self.arguments.push(argument.into());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Program {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Program {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Program {
        self.directory = Some(directory.into());
        self
    }

    pub(crate) fn command(&self, outputs: &Outputs) -> Result<Command, Error> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.path).args(&self.arguments);
        for proxy in PROXIES {
            command.env_remove(proxy);
            command.env_remove(proxy.to_ascii_uppercase());
        }
        command.envs(&self.environment);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let input = if self.holds_input { Stdio::piped() } else { Stdio::null() };
        command.stdin(input).stdout(outputs.stdout()?).stderr(outputs.stderr()?).process_group(0);
        Ok(command)
    }

    /// The program with its arguments alone, to be run by whoever asks.
    pub(crate) fn plain_command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments);
        command
    }

    /// Its standard input stays open and empty for as long as the harness lives.
    pub(crate) fn with_input_held_open(mut self) -> Program {
        self.holds_input = true;
        self
    }

    /// As words for a shell elsewhere: environment, directory, program and arguments.
    pub(crate) fn shell_words(&self) -> impl Iterator<Item = String> + '_ {
        let text = |word: &OsString| word.to_string_lossy().into_owned();
        let directory = self
            .directory
            .iter()
            .flat_map(|path| ["--chdir".to_owned(), path.to_string_lossy().into_owned()]);
        let proxies = PROXIES.iter().flat_map(|name| [name.to_string(), name.to_ascii_uppercase()]);
        let proxies = proxies.flat_map(|name| ["-u".to_owned(), name]);
        let settings =
            self.environment.iter().map(move |(name, value)| format!("{}={}", text(name), text(value)));
        ["env".to_owned()]
            .into_iter()
            .chain(proxies)
            .chain(directory)
            .chain(settings)
            .chain([self.path.to_string_lossy().into_owned()])
            .chain(self.arguments.iter().map(text))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        for argument in &self.arguments {
            write!(f, " {}", argument.to_string_lossy())?;
        }
        Ok(())
    }
}

/// A program that has run to its end.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A running process; dropping it ends it and its children.
#[derive(Debug)]
pub struct Process {
    state: Arc<ProcessState>,
    inner: Weak<Inner>,
    cancel: Cancel,
}

impl Process {
    pub(crate) fn new(state: Arc<ProcessState>, inner: Weak<Inner>, cancel: Cancel) -> Process {
        Process { state, inner, cancel }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.state.pid
    }

    /// The file that it writes its standard output and error to.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.state.log
    }

    /// What it has written since it was started.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String, Error> {
        self.state.log()
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    ///
    /// When the kernel will not say.
    pub fn is_running(&self) -> Result<bool, Error> {
        Ok(self.state.ended()?.is_none())
    }

    /// Waits for a line that contains `text` and gives it back.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`] when the process ends first, [`Error::Timeout`], [`Error::Cancelled`].
    pub fn wait_for_line(&self, text: &str, timeout: Duration) -> Result<String, Error> {
        let what = format!("a line with `{text}` from {}", self.state.name);
        let found = wait_until(&what, timeout, &self.cancel, || {
            // Asked before the log is read, so that a last line is not overlooked.
            let ended = self.state.ended()?;
            let log = self.state.log()?;
            match log.lines().find(|line| line.contains(text)) {
                Some(line) => Ok(Some(line.to_owned())),
                None => match ended {
                    Some(status) => Err(self.state.ended_early(status, &what)),
                    None => Ok(None),
                },
            }
        });
        found.map_err(|error| self.state.with_tail(error))
    }

    /// Waits until the process's port accepts connections from `client`.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`] when the process ends first, [`Error::Timeout`], [`Error::Cancelled`].
    pub fn wait_for_port(&self, client: &Host, addr: SocketAddr, timeout: Duration) -> Result<(), Error> {
        let what = format!("{} to accept connections at {addr}", self.state.name);
        let open = wait_until(&what, timeout, &self.cancel, || {
            if let Some(status) = self.state.ended()? {
                return Err(self.state.ended_early(status, &what));
            }
            Ok(client.reaches(addr)?.then_some(()))
        });
        open.map_err(|error| self.state.with_tail(error))
    }

    /// Waits for its end; when that does not come in time the process is ended and the wait is an error.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] or [`Error::Cancelled`].
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus, Error> {
        let what = format!("the end of {}", self.state.name);
        wait_until(&what, timeout, &self.cancel, || self.state.ended()).map_err(|error| {
            self.state.kill_and_reap();
            self.state.with_tail(error)
        })
    }

    /// Sends it, and only it, a signal.
    ///
    /// # Errors
    ///
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        if let Some(status) = self.state.ended()? {
            return Err(self.state.ended_early(status, "to take a signal"));
        }
        if self.state.is_remote() {
            return self.state.signal_by_input(signal);
        }
        let pid = self.state.group().ok_or_else(|| Error::Gone { what: self.state.name.clone() })?;
        kill_process(pid, signal).map_err(|errno| Error::Io {
            doing: format!("signalling {}", self.state.name),
            source: errno.into(),
        })
    }

    /// Kills it and its children as a crash would (SIGKILL) and waits until it is gone.
    pub fn kill(&self) {
        self.state.kill_and_reap();
    }

    /// Asks it to stop (SIGTERM) and waits for its end.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when it does not; it is killed then.
    pub fn stop(&self, timeout: Duration) -> Result<ExitStatus, Error> {
        if let Some(status) = self.state.ended()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        self.wait(timeout)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.state.kill_and_reap();
        if let Some(inner) = self.inner.upgrade() {
            lock(&inner.processes).retain(|other| !Arc::ptr_eq(other, &self.state));
        }
    }
}

/// What the testbed and the handle share of a process.
#[derive(Debug)]
pub(crate) struct ProcessState {
    name: String,
    pid: u32,
    log: PathBuf,
    /// Where in the log this process begins: a restarted one continues the log of the one before.
    log_start: u64,
    child: Mutex<Child>,
}

impl ProcessState {
    pub(crate) fn new(name: String, outputs: &Outputs, child: Child) -> ProcessState {
        ProcessState {
            name,
            pid: child.id(),
            log: outputs.stderr.clone(),
            log_start: outputs.start,
            child: Mutex::new(child),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the process itself is elsewhere, and this is the session that it lives in.
    fn is_remote(&self) -> bool {
        lock(&self.child).stdin.is_some()
    }

    /// Has the other end of the session send a signal.
    fn signal_by_input(&self, signal: Signal) -> Result<(), Error> {
        let known = SIGNALS.iter().find(|(one, _)| *one == signal);
        let (_, name) = known.ok_or_else(|| Error::Io {
            doing: format!("signalling {}", self.name),
            source: std::io::Error::other(
                "expected one of TERM, INT, HUP, KILL, STOP and CONT for a remote process",
            ),
        })?;
        match &mut lock(&self.child).stdin {
            Some(input) => std::io::Write::write_all(input, format!("{name}\n").as_bytes())
                .map_err(Error::io(format!("signalling {}", self.name))),
            None => Err(Error::Gone { what: self.name.clone() }),
        }
    }

    /// Ends the input that was held open.
    pub(crate) fn close_input(&self) {
        lock(&self.child).stdin.take();
    }

    pub(crate) fn ended(&self) -> Result<Option<ExitStatus>, Error> {
        lock(&self.child).try_wait().map_err(Error::io(format!("waiting for {}", self.name)))
    }

    pub(crate) fn log(&self) -> Result<String, Error> {
        let reading = || format!("reading {}", self.log.display());
        let mut file = File::open(&self.log).map_err(Error::io(reading()))?;
        file.seek(SeekFrom::Start(self.log_start)).map_err(Error::io(reading()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(Error::io(reading()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines of the log, each on a line of its own.
    pub(crate) fn tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].iter().flat_map(|line| ["\n    ", line]).collect()
    }

    pub(crate) fn with_tail(&self, error: Error) -> Error {
        match error {
            Error::Timeout { what, after, .. } => Error::Timeout { what, after, tail: self.tail() },
            other => other,
        }
    }

    pub(crate) fn ended_early(&self, status: ExitStatus, what: &str) -> Error {
        Error::Ended {
            process: self.name.clone(),
            status: status.to_string(),
            what: what.to_owned(),
            tail: self.tail(),
        }
    }

    fn group(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.pid).ok()?)
    }

    pub(crate) fn kill_and_reap(&self) {
        let mut child = lock(&self.child);
        // Once it has been reaped its number may be another's.
        if matches!(child.try_wait(), Ok(None)) {
            if let Some(group) = self.group() {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait();
        }
    }
}

/// The files that a process writes to.
#[derive(Debug)]
pub(crate) struct Outputs {
    stdout: PathBuf,
    stderr: PathBuf,
    start: u64,
    /// Kept so that the files of a program that has run to its end vanish with it.
    _dir: Option<tempfile::TempDir>,
}

impl Outputs {
    pub(crate) fn one_log(log: &Path) -> Result<Outputs, Error> {
        let start = match fs::metadata(log) {
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        };
        Ok(Outputs { stdout: log.to_owned(), stderr: log.to_owned(), start, _dir: None })
    }

    pub(crate) fn separate(parent: &Path) -> Result<Outputs, Error> {
        let dir = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(parent)
            .map_err(Error::io("making a directory for a program's output"))?;
        Ok(Outputs {
            stdout: dir.path().join("stdout"),
            stderr: dir.path().join("stderr"),
            start: 0,
            _dir: Some(dir),
        })
    }

    fn stdout(&self) -> Result<File, Error> {
        append(&self.stdout)
    }

    fn stderr(&self) -> Result<File, Error> {
        append(&self.stderr)
    }

    pub(crate) fn finish(&self, status: ExitStatus) -> Result<Finished, Error> {
        let read = |path: &Path| fs::read(path).map_err(Error::io(format!("reading {}", path.display())));
        let stderr = read(&self.stderr)?;
        Ok(Finished {
            status,
            stdout: read(&self.stdout)?,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }
}

fn append(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::io(format!("opening {}", path.display())))
}

const PROXIES: [&str; 4] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy"];
/// Those that a session's other end is told of, by the names that `kill -s` takes.
const SIGNALS: [(Signal, &str); 6] = [
    (Signal::TERM, "TERM"),
    (Signal::INT, "INT"),
    (Signal::HUP, "HUP"),
    (Signal::KILL, "KILL"),
    (Signal::STOP, "STOP"),
    (Signal::CONT, "CONT"),
];
const TAIL_LINES: usize = 20;
