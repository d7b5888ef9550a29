//! Who owns what a run makes, so that a later run can tell a leftover from a neighbour.
//!
//! A run's directory is named after its owner's pid and start time, `<pid>.<start>.<n>`, and so are its
//! namespaces, `fr-<pid>.<start>.<n>-<host>`. Making that directory is one system call, so there is no moment at
//! which a run exists without saying whose it is. Only a run whose owner is dead is ever removed.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::{Error, namespace};

/// A process as nobody else can be: pids are used again, a pid with its start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// Clock ticks after boot, the 22nd field of `/proc/<pid>/stat`.
    pub(crate) start: u64,
}

impl Identity {
    pub(crate) fn of(pid: i32) -> Option<Identity> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, the command's name, may itself hold spaces and parentheses.
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut fields = after_name.split_whitespace();
        let state = fields.next()?;
        let start = fields.nth(18)?.parse().ok()?;
        // A zombie does nothing and owns nothing any more.
        (state != "Z").then_some(Identity { pid, start })
    }

    pub(crate) fn is_alive(self) -> bool {
        Identity::of(self.pid) == Some(self)
    }

    fn kill(self) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may have ended since; that is what was wanted.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A run of a testbed: its name and its directory in the state directory.
#[derive(Debug)]
pub(crate) struct Run {
    id: String,
    dir: PathBuf,
    processes: File,
}

impl Run {
    /// Removes what dead runs left and opens a new one.
    pub(crate) fn open(state: &Path) -> Result<Run, Error> {
        make_state_dir(state)?;
        remove_recorded(state)?;
        let pid = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        let owner = Identity::of(pid).ok_or_else(|| Error::Gone { what: "the harness".to_owned() })?;
        loop {
            let id = format!("{}.{}.{}", owner.pid, owner.start, SEQUENCE.fetch_add(1, Ordering::Relaxed));
            let dir = state.join(&id);
            match fs::DirBuilder::new().mode(0o755).create(&dir) {
                Ok(()) => {
                    let processes = OpenOptions::new()
                        .create(true)
                        .append(true)
                        .open(dir.join(PROCESSES))
                        .map_err(Error::io(format!("making {}", dir.display())))?;
                    return Ok(Run { id, dir, processes });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(source) => return Err(Error::Io { doing: format!("making {}", dir.display()), source }),
            }
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A number for this run that other runs of the same moment are unlikely to have.
    pub(crate) fn number(&self) -> u32 {
        self.id.bytes().fold(2_166_136_261, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
    }

    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{PREFIX}{}-{host}", self.id)
    }

    /// Notes a process, so that it can be ended even when this harness is gone.
    pub(crate) fn note(&self, pid: u32) -> Result<(), Error> {
        let Some(process) = i32::try_from(pid).ok().and_then(Identity::of) else { return Ok(()) };
        (&self.processes)
            .write_all(format!("{} {}\n", process.pid, process.start).as_bytes())
            .map_err(Error::io("noting a process"))
    }

    /// A directory on disk for large things (the run's own may be in memory), which ends with the run.
    pub(crate) fn scratch(&self) -> Result<PathBuf, Error> {
        let path = std::env::temp_dir().join(format!("{SCRATCH_PREFIX}{}", self.id));
        let making = || format!("making {}", path.display());
        // Written down first: a harness that is killed in between leaves a note of nothing, not a nameless directory.
        fs::write(self.dir.join(SCRATCH), path.as_os_str().as_bytes()).map_err(Error::io(making()))?;
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(Error::io(making()))?;
        Ok(path)
    }

    /// Deletes the run's namespaces, whatever still lives in them, and its directory unless it is to be kept.
    pub(crate) fn close(&self, keep_dir: bool) -> Result<(), Error> {
        delete_namespaces(&self.id)?;
        remove_scratch(&self.dir, &self.id)?;
        if keep_dir {
            return Ok(());
        }
        fs::remove_dir_all(&self.dir).map_err(Error::io(format!("removing {}", self.dir.display())))
    }
}

/// Where runs of this user are recorded.
pub(crate) fn default_state_dir() -> PathBuf {
    if geteuid().is_root() {
        PathBuf::from("/run/freshet-testbed")
    } else {
        std::env::temp_dir().join(format!("freshet-testbed-{}", geteuid().as_raw()))
    }
}

/// Removes what dead runs of this user have left, also where their records are lost, and tells what had none.
///
/// Every [`crate::Testbed`] does the former at its start. Namespaces and directories whose records are gone (they are
/// in memory) are known by their names, which tell whose they were; no run is asked to end that is still owned.
///
/// # Errors
///
/// When something cannot be removed.
pub fn remove_leftovers() -> Result<Vec<String>, Error> {
    remove_leftovers_of(&state_directory()?, Path::new(namespace::NETNS_DIR), &std::env::temp_dir())
}

/// Where runs of this user are recorded; it is made if it is not there. What has other names than runs is left alone.
///
/// # Errors
///
/// When it cannot be made, or is somebody else's.
pub fn state_directory() -> Result<PathBuf, Error> {
    let state = default_state_dir();
    make_state_dir(&state)?;
    Ok(state)
}

fn remove_leftovers_of(state: &Path, namespaces: &Path, scratch: &Path) -> Result<Vec<String>, Error> {
    remove_recorded(state)?;
    let mut removed = Vec::new();
    let names = |directory: &Path| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<String>>()
    };
    let is_dead = |id: &str| owner_of(id).is_some_and(|owner| !owner.is_alive());
    for name in names(namespaces) {
        let Some((id, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else { continue };
        // The first of a run takes the others along.
        if is_dead(id) && namespaces.join(&name).exists() {
            delete_namespaces(id)?;
            removed.push(format!("the network namespaces of run {id}"));
        }
    }
    for name in names(scratch) {
        let path = scratch.join(&name);
        let ours = || {
            fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw())
        };
        if name.strip_prefix(SCRATCH_PREFIX).is_some_and(is_dead) && ours() {
            fs::remove_dir_all(&path).map_err(Error::io(format!("removing {}", path.display())))?;
            removed.push(path.display().to_string());
        }
    }
    Ok(removed)
}

fn make_state_dir(state: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(state)
        .map_err(Error::io(format!("making {}", state.display())))?;
    // In a world-writable /tmp somebody else may have been there first.
    let owner = fs::symlink_metadata(state).map_err(Error::io(format!("reading {}", state.display())))?.uid();
    let expected = geteuid().as_raw();
    if owner == expected {
        Ok(())
    } else {
        Err(Error::ForeignState { path: state.to_owned(), owner, expected })
    }
}

/// Removes every run in `state` whose owner is dead: its processes, its namespaces, its directory.
fn remove_recorded(state: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(state).map_err(Error::io(format!("reading {}", state.display())))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str() else { continue };
        let Some(owner) = owner_of(id) else { continue };
        if owner.is_alive() {
            continue;
        }
        let noted = fs::read_to_string(entry.path().join(PROCESSES)).unwrap_or_default();
        for process in noted.lines().filter_map(parse_identity) {
            process.kill();
        }
        delete_namespaces(id)?;
        remove_scratch(&entry.path(), id)?;
        match fs::remove_dir_all(entry.path()) {
            Ok(()) => tracing::info!(run = id, "removed what a dead run had left"),
            // Another run that starts at the same moment does the same work.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => {
                return Err(Error::Io { doing: format!("removing {}", entry.path().display()), source });
            }
        }
    }
    Ok(())
}

fn delete_namespaces(id: &str) -> Result<(), Error> {
    let prefix = format!("{PREFIX}{id}-");
    // No directory: no namespace was ever made on this machine.
    let Ok(entries) = fs::read_dir(namespace::NETNS_DIR) else { return Ok(()) };
    let mut first_error = Ok(());
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str().filter(|name| name.starts_with(&prefix)) else { continue };
        for process in namespace::pids(name).unwrap_or_default().into_iter().filter_map(Identity::of) {
            if u32::try_from(process.pid).is_ok_and(|pid| pid != std::process::id()) {
                process.kill();
            }
        }
        if let Err(error) = namespace::delete(name)
            && namespace::path(name).exists()
        {
            first_error = first_error.and(Err(error));
        }
    }
    first_error
}

/// Removes the directory that a run's note names, if it is one that this run can have made.
fn remove_scratch(dir: &Path, id: &str) -> Result<(), Error> {
    let Ok(noted) = fs::read(dir.join(SCRATCH)) else { return Ok(()) };
    let path = Path::new(OsStr::from_bytes(&noted));
    if path.file_name() != Some(OsStr::new(&format!("{SCRATCH_PREFIX}{id}"))) {
        return Ok(());
    }
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(Error::Io { doing: format!("removing {}", path.display()), source })
        }
        _ => Ok(()),
    }
}

fn owner_of(id: &str) -> Option<Identity> {
    let mut parts = id.split('.');
    let owner = Identity { pid: parts.next()?.parse().ok()?, start: parts.next()?.parse().ok()? };
    parts.next()?.parse::<u32>().ok()?;
    parts.next().is_none().then_some(owner)
}

fn parse_identity(line: &str) -> Option<Identity> {
    let (pid, start) = line.split_once(' ')?;
    Some(Identity { pid: pid.parse().ok()?, start: start.parse().ok()? })
}

/// The prefix of every namespace that a testbed makes.
const PREFIX: &str = "fr-";
const PROCESSES: &str = "processes";
/// The file that names the run's directory on disk, and what that directory's name begins with.
const SCRATCH: &str = "scratch";
const SCRATCH_PREFIX: &str = "freshet-scratch-";
static SEQUENCE: AtomicU32 = AtomicU32::new(0);

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_identity_is_more_than_a_pid() {
        let me = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        assert!(!Identity { start: me.start + 1, ..me }.is_alive());
    }

    #[test]
    fn only_runs_of_dead_owners_are_removed() {
        let state = tempfile::tempdir().unwrap();
        let mine = Run::open(state.path()).unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        let dead = format!("{}.1.0", child.id());
        child.wait().unwrap();
        fs::create_dir(state.path().join(&dead)).unwrap();
        fs::create_dir(state.path().join("not-a-run")).unwrap();

        let other = Run::open(state.path()).unwrap();
        assert!(mine.dir().is_dir());
        assert!(other.dir().is_dir());
        assert!(!state.path().join(&dead).exists());
        assert!(state.path().join("not-a-run").is_dir());
    }

    #[test]
    fn a_noted_process_of_a_dead_run_is_ended_and_no_other() {
        let state = tempfile::tempdir().unwrap();
        let mut left = Command::new("sleep").arg("600").spawn().unwrap();
        let mut innocent = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(left.id()).unwrap();
        let start = Identity::of(pid).unwrap().start;
        // The second line is a pid that has been used again since: its start time differs.
        let noted = format!("{pid} {start}\n{} 1\n", innocent.id());
        let dir = state.path().join("2147483647.1.0");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(PROCESSES), noted).unwrap();

        Run::open(state.path()).unwrap();
        assert!(!left.wait().unwrap().success());
        assert!(innocent.try_wait().unwrap().is_none());
        innocent.kill().unwrap();
        innocent.wait().unwrap();
    }

    #[test]
    fn a_dead_runs_scratch_is_removed_and_nothing_else_that_its_note_might_name() {
        let state = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let note = |id: &str, path: &Path| {
            fs::create_dir(state.path().join(id)).unwrap();
            fs::create_dir_all(path).unwrap();
            fs::write(state.path().join(id).join(SCRATCH), path.as_os_str().as_bytes()).unwrap();
        };
        let (its_own, foreign) =
            (elsewhere.path().join("freshet-scratch-2147483647.1.0"), elsewhere.path().join("other"));
        note("2147483647.1.0", &its_own);
        note("2147483647.1.1", &foreign);
        let run = Run::open(state.path()).unwrap();
        assert!(!its_own.exists() && foreign.exists());

        let scratch = run.scratch().unwrap();
        assert!(scratch.is_dir());
        run.close(false).unwrap();
        assert!(!scratch.exists());
    }

    #[test]
    fn what_has_lost_its_record_is_known_by_its_name_and_its_owner() {
        let (state, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let me = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        let living = format!("{}.{}.9", me.pid, me.start);
        for name in [
            "freshet-scratch-2147483647.1.0",
            &format!("freshet-scratch-{living}"),
            "freshet-scratch-x",
            "other",
        ] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        let removed = remove_leftovers_of(state.path(), Path::new("/nonexistent"), scratch.path()).unwrap();
        assert_eq!(removed.len(), 1, "{removed:?}");
        assert!(!scratch.path().join("freshet-scratch-2147483647.1.0").exists());
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 3);
    }

    #[test]
    fn names_that_are_not_a_runs_are_not_parsed() {
        assert!(owner_of("12.34.0").is_some());
        for id in ["", "12", "12.34", "12.34.x", "12.34.0-hub", "12-34-0", "a.b.c"] {
            assert!(owner_of(id).is_none(), "{id}");
        }
    }
}
