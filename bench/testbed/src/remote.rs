//! Real hosts, reached by ssh: programs there, files there, and the end of both.
//!
//! Nothing has to be installed there beside what a Debian system has (sh, bash, setsid, flock, tar). A run has one
//! directory of its own on each host, held by a guard: a shell that waits for the end of its input. When the harness
//! ends, is killed, or is no longer reached, that end comes, and the guard ends what was started and removes the
//! directory. What a host that crashed has left is removed by the next guard there, by the lock that nobody holds.
//! Links are as they are: neither rates nor delays are set.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::process::ProcessState;
use crate::{Cancel, Error, Program, wait_until};

/// How a host is reached, and what may be used on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `user@host`, or a name of ssh's own configuration. What is to run eBPF programs needs root.
    pub destination: String,
    /// Where sshd listens, unless ssh knows better.
    pub port: Option<u16>,
    /// The private key, unless ssh knows better.
    pub key: Option<PathBuf>,
    /// The hosts' public keys, unless ssh knows better; a host whose key is not known is not talked to.
    pub known_hosts: Option<PathBuf>,
    /// The directory below which a run makes one of its own.
    pub directory: PathBuf,
    /// The address at which the other hosts reach it.
    pub address: IpAddr,
    /// The interface that has this address.
    pub interface: String,
    /// The first of the ports that programs there are given, two for each program.
    pub first_port: u16,
}

/// Real hosts by name.
pub type Inventory = BTreeMap<String, Reach>;

/// A host's side of the connection to it.
#[derive(Debug)]
pub(crate) struct Remote {
    reach: Reach,
    /// The run's own directory there.
    directory: String,
    /// The socket over which all sessions share one connection.
    socket: PathBuf,
    next_port: AtomicU16,
    master: Arc<ProcessState>,
    guard: Arc<ProcessState>,
}

impl Remote {
    /// The program that opens the shared connection, and the one that guards the run's directory.
    pub(crate) fn programs(reach: &Reach, socket: &Path, run: &str) -> (Program, Program) {
        let master = ssh(reach, socket).args(["-M", "-N"]).arg(&reach.destination);
        let parent = quoted(&reach.directory.to_string_lossy());
        let own = quoted(&own_directory(run));
        let script = format!(
            "set -e; umask 022; mkdir -p {parent}; cd {parent}; \
             for d in {OWN_PREFIX}*/; do [ -d \"$d\" ] || continue; flock -n \"$d/lock\" rm -rf \"$d\" || true; done; \
             mkdir -p {own}/pids {own}/root; exec 9>{own}/lock; flock 9; echo {READY}; \
             cat >/dev/null || true; \
             for p in {own}/pids/*; do \
             [ -e \"$p\" ] || continue; kill -KILL -- \"-${{p##*/}}\" 2>/dev/null || true; done; \
             rm -rf {own}"
        );
        (master, session(reach, socket, &script))
    }

    /// Takes over what was started of [`Remote::programs`].
    pub(crate) fn new(
        reach: Reach,
        socket: PathBuf,
        run: &str,
        master: Arc<ProcessState>,
        guard: Arc<ProcessState>,
    ) -> Remote {
        let directory = format!("{}/{}", reach.directory.display(), own_directory(run));
        let next_port = AtomicU16::new(reach.first_port);
        Remote { reach, directory, socket, next_port, master, guard }
    }

    /// Where what is at `local` here is there.
    pub(crate) fn place(&self, local: &Path) -> PathBuf {
        let mut place = PathBuf::from(format!("{}/root", self.directory));
        place.extend(local.components().filter(|part| matches!(part, std::path::Component::Normal(_))));
        place
    }

    /// The program as it is started from here: it ends with its session, and takes signals by name as lines of input.
    pub(crate) fn wrap(&self, program: &Program) -> Program {
        let command = program.shell_words().map(|word| quoted(&word)).collect::<Vec<_>>().join(" ");
        let directory = quoted(&self.directory);
        let script = format!(
            "cd {directory} || exit 125; exec 3<&0; \
             setsid {command} </dev/null 3<&- & p=$!; : >\"pids/$p\"; \
             (while read -r s <&3; do kill -s \"$s\" \"$p\"; done; \
              kill -KILL -- \"-$p\" || kill -KILL \"$p\") >/dev/null 2>&1 & w=$!; \
             wait \"$p\"; s=$?; rm -f \"pids/$p\"; kill \"$w\" 2>/dev/null; exit \"$s\""
        );
        session(&self.reach, &self.socket, &script)
    }

    /// Copies a file or tree to its place there.
    pub(crate) fn put(&self, local: &Path) -> Result<(), Error> {
        let copying = || format!("copying {} to {}", local.display(), self.reach.destination);
        let relative = local.strip_prefix("/").unwrap_or(local);
        let mut pack = Command::new("tar")
            .args(["-C", "/", "-cf", "-", "--"])
            .arg(relative)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io(copying()))?;
        let archive = pack.stdout.take().expect("it was asked for");
        let script = format!("tar -C {} -xf -", quoted(&format!("{}/root", self.directory)));
        let unpacked = self.once(&script, Stdio::from(archive)).map(drop);
        let packed = pack.wait().map_err(Error::io(copying()))?;
        if packed.success() { unpacked } else { Err(self.failed("tar", &packed.to_string(), "")) }
    }

    /// Writes a file at its place there, whole.
    pub(crate) fn write(&self, local: &Path, text: &str) -> Result<(), Error> {
        let mut input = tempfile::tempfile().map_err(Error::io("making a file to send"))?;
        std::io::Write::write_all(&mut input, text.as_bytes())
            .and_then(|()| std::io::Seek::rewind(&mut input))
            .map_err(Error::io("filling a file to send"))?;
        let place = quoted(&self.place(local).to_string_lossy());
        self.once(&format!("cat >{place}.new && mv {place}.new {place}"), Stdio::from(input)).map(drop)
    }

    /// Runs a line of shell there and gives what it writes.
    pub(crate) fn shell(&self, script: &str) -> Result<String, Error> {
        self.once(script, Stdio::null())
    }

    fn once(&self, script: &str, input: Stdio) -> Result<String, Error> {
        let mut command = ssh(&self.reach, &self.socket).plain_command();
        let result = command
            .arg(&self.reach.destination)
            .arg(format!("exec sh -c {}", quoted(script)))
            .stdin(input)
            .output()
            .map_err(|source| Error::Start { program: "ssh".to_owned(), source })?;
        if result.status.success() {
            return Ok(String::from_utf8_lossy(&result.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&result.stderr);
        Err(self.failed(script, &result.status.to_string(), said.trim()))
    }

    fn failed(&self, script: &str, status: &str, said: &str) -> Error {
        let mut command = format!("ssh {} {script}", self.reach.destination);
        command.truncate(command.floor_char_boundary(COMMAND_SHOWN_MAX));
        Error::Command { command, status: status.to_owned(), stderr: said.to_owned() }
    }

    /// A port that no program of this run was given. Its neighbour is free too: some programs listen on that as well.
    pub(crate) fn free_port(&self) -> u16 {
        self.next_port.fetch_add(2, Ordering::Relaxed)
    }

    /// Waits until the guard holds the directory.
    pub(crate) fn wait_until_ready(&self, cancel: &Cancel) -> Result<(), Error> {
        let what = format!("{} to take us in", self.reach.destination);
        wait_until(&what, CONNECTED, cancel, || {
            if self.guard.log()?.lines().any(|line| line == READY) {
                return Ok(Some(()));
            }
            match self.guard.ended()? {
                Some(status) => Err(self.guard.ended_early(status, &what)),
                None => Ok(None),
            }
        })
        .map_err(|error| self.guard.with_tail(error))
    }

    /// Has the guard remove everything there, and hangs up.
    pub(crate) fn leave(&self) {
        self.guard.close_input();
        let ended = || Ok(self.guard.ended()?.map(drop));
        if let Err(error) = wait_until("a remote directory to be removed", LEFT, &Cancel::default(), ended) {
            // The guard goes on there when we hang up; more cannot be done from here.
            eprintln!("{} may not be clean yet: {error}", self.reach.destination);
        }
        self.guard.kill_and_reap();
        self.master.kill_and_reap();
    }
}

/// Waits until sessions can share the connection that `master` opens.
pub(crate) fn wait_for_connection(
    reach: &Reach,
    socket: &Path,
    master: &ProcessState,
    cancel: &Cancel,
) -> Result<(), Error> {
    let what = format!("a connection to {}", reach.destination);
    wait_until(&what, CONNECTED, cancel, || {
        if let Some(status) = master.ended()? {
            return Err(master.ended_early(status, &what));
        }
        Ok(socket.exists().then_some(()))
    })
    .map_err(|error| master.with_tail(error))
}

/// A session over the shared connection whose input is held open.
fn session(reach: &Reach, socket: &Path, script: &str) -> Program {
    ssh(reach, socket)
        .arg(&reach.destination)
        .arg(format!("exec sh -c {}", quoted(script)))
        .with_input_held_open()
}

fn ssh(reach: &Reach, socket: &Path) -> Program {
    let mut program = Program::new("ssh").arg("-S").arg(socket).arg("-T");
    for option in [
        "BatchMode=yes",
        "ConnectTimeout=10",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
        "LogLevel=ERROR",
        "EscapeChar=none",
        "ForwardAgent=no",
    ] {
        program = program.args(["-o", option]);
    }
    if let Some(port) = reach.port {
        program = program.args(["-p".to_owned(), port.to_string()]);
    }
    if let Some(key) = &reach.key {
        program = program.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(key);
    }
    if let Some(known) = &reach.known_hosts {
        program = program.args(["-o".to_owned(), format!("UserKnownHostsFile={}", known.display())]);
    }
    program
}

fn own_directory(run: &str) -> String {
    format!("{OWN_PREFIX}{run}")
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

const OWN_PREFIX: &str = "fr-";
const READY: &str = "freshet-guard-ready";
const CONNECTED: Duration = Duration::from_secs(30);
const LEFT: Duration = Duration::from_secs(15);
const COMMAND_SHOWN_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_they_were() {
        for word in ["plain", "two words", "it's", "$HOME `x` \"y\" \\", "", "'"] {
            let output = Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output();
            assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout), word);
        }
    }
}
