//! Repositories to mirror: real packages laid out so that apt can use them, or a generated tree where apt is absent.
//!
//! A repository is made once under a cache directory and used again by later runs; it appears whole or not at all.
//! Packages come from the distribution's archive by `apt-get download` with its signatures checked as ever; the
//! system's own apt state is read, never changed. Users of a repository work on [`Repository::copy_to`]'s tree when
//! they mean to change it.

mod generated;
mod index;
mod packages;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};

use crate::Error;

/// Which repository is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// About a hundred MB: at least sixty packages, several above 5 MB. For the demo and the bench.
    Full,
    /// About ten MB: a dozen packages. For tests.
    Small,
    /// Some tens of MB: at least three hundred small packages, as an installer's image has them.
    Many,
}

/// What a repository consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Real packages with the indexes that apt needs, as suite `stable`, component `main`.
    Packages {
        /// How many.
        count: usize,
    },
    /// A generated tree, which apt cannot use.
    Generated {
        /// Why there are no packages.
        why: String,
    },
}

/// A directory tree to serve.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Its root directory.
    pub root: PathBuf,
    /// What it consists of.
    pub kind: Kind,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepositoryFile {
    /// Path below the root, with `/` between its parts and none in front.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
}

impl Repository {
    /// Makes the repository in `cache`, or takes it from there when a run before has made it; `progress` is told of
    /// each step that takes time.
    ///
    /// # Errors
    ///
    /// When the cache cannot be written. That packages cannot be had is no error: the tree is generated then, and
    /// [`Kind::Generated`] says why.
    pub fn make(
        cache: &Path,
        selection: Selection,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Repository, Error> {
        fs::create_dir_all(cache).map_err(Error::io(format!("making {}", cache.display())))?;
        // Two test binaries may want the same repository at once; the second one finds it made.
        let lock_path = cache.join("lock");
        let lock = File::create(&lock_path).map_err(Error::io(format!("making {}", lock_path.display())))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| Error::Io { doing: "locking the cache".to_owned(), source: errno.into() })?;
        let name = selection.directory();
        let packages = cache.join(format!("{name}-packages"));
        if packages.is_dir() {
            let count = files(&packages)?.iter().filter(|file| file.path.starts_with("pool/")).count();
            return Ok(Repository { root: packages, kind: Kind::Packages { count } });
        }
        let why = match packages::download(cache, selection, progress) {
            Ok(debs) => {
                progress("indexing the packages for apt");
                let fresh = scratch(cache)?;
                index::lay_out(&debs, fresh.path())?;
                publish(fresh, &packages)?;
                return Ok(Repository { root: packages, kind: Kind::Packages { count: debs.len() } });
            }
            Err(error) => error.to_string(),
        };
        let root = cache.join(format!("{name}-generated"));
        if !root.is_dir() {
            progress("generating a tree, since packages cannot be had");
            let fresh = scratch(cache)?;
            generated::fill(fresh.path(), selection)?;
            publish(fresh, &root)?;
        }
        Ok(Repository { root, kind: Kind::Generated { why } })
    }

    /// Whether apt can be pointed at it.
    #[must_use]
    pub fn serves_apt(&self) -> bool {
        matches!(self.kind, Kind::Packages { .. })
    }

    /// Every file, ordered by path.
    ///
    /// # Errors
    ///
    /// When the tree cannot be read.
    pub fn files(&self) -> Result<Vec<RepositoryFile>, Error> {
        files(&self.root)
    }

    /// Links the tree into `root`, which must not exist; files there are to be replaced by rename, never written in
    /// place.
    ///
    /// # Errors
    ///
    /// When a link or directory cannot be made.
    pub fn copy_to(&self, root: &Path) -> Result<Repository, Error> {
        for file in self.files()? {
            let (from, to) = (self.root.join(&file.path), root.join(&file.path));
            make_parent(&to)?;
            // Across file systems there are no links.
            if fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to).map_err(Error::io(format!("copying to {}", to.display())))?;
            }
        }
        Ok(Repository { root: root.to_owned(), kind: self.kind.clone() })
    }
}

impl Selection {
    fn directory(self) -> &'static str {
        match self {
            Selection::Full => "full",
            Selection::Small => "small",
            Selection::Many => "many",
        }
    }
}

/// Every regular file below `root`, ordered by path; symbolic links are not followed.
///
/// # Errors
///
/// When a directory cannot be read.
pub fn files(root: &Path) -> Result<Vec<RepositoryFile>, Error> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let reading = || format!("reading {}", directory.display());
        for entry in fs::read_dir(&directory).map_err(Error::io(reading()))? {
            let path = entry.map_err(Error::io(reading()))?.path();
            let metadata = fs::symlink_metadata(&path).map_err(Error::io(reading()))?;
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_file()
                && let Some(relative) = path.strip_prefix(root).ok().and_then(Path::to_str)
            {
                found.push(RepositoryFile { path: relative.to_owned(), size: metadata.size() });
            }
        }
    }
    found.sort();
    Ok(found)
}

fn scratch(cache: &Path) -> Result<tempfile::TempDir, Error> {
    tempfile::Builder::new()
        .prefix("making-")
        .tempdir_in(cache)
        .map_err(Error::io("making a scratch directory"))
}

/// Gives a finished tree its name; before that nobody sees it.
fn publish(fresh: tempfile::TempDir, root: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let path = fresh.keep();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .and_then(|()| fs::rename(&path, root))
        .map_err(Error::io(format!("publishing {}", root.display())))
}

fn make_parent(path: &Path) -> Result<(), Error> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(Error::io(format!("making {}", parent.display()))),
        None => Ok(()),
    }
}

/// Runs a tool in `directory` and gives its standard output; a failure is an error with the tool's own words.
fn tool(directory: &Path, program: &str, arguments: &[&str]) -> Result<Vec<u8>, Error> {
    let result = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start { program: program.to_owned(), source })?;
    if result.status.success() {
        return Ok(result.stdout);
    }
    let mut command = format!("{program} {}", arguments.join(" "));
    command.truncate(command.floor_char_boundary(COMMAND_SHOWN_MAX));
    let stderr = String::from_utf8_lossy(&result.stderr);
    let last: Vec<&str> = stderr.lines().rev().take(3).collect();
    Err(Error::Command {
        command,
        status: result.status.to_string(),
        stderr: last.into_iter().rev().collect::<Vec<_>>().join("; "),
    })
}

const COMMAND_SHOWN_MAX: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_files_in_order_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/one"), "1").unwrap();
        fs::write(dir.path().join("a/zwei"), "22").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("a/etc")).unwrap();
        let all = files(dir.path()).unwrap();
        let paths: Vec<&str> = all.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["a/b/one", "a/zwei"]);
        assert_eq!(all[1].size, 2);
    }

    #[test]
    fn a_copy_has_the_same_files() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        generated::fill(&from, Selection::Small).unwrap();
        let original = Repository { root: from, kind: Kind::Generated { why: String::new() } };
        let copy = original.copy_to(&to).unwrap();
        assert_eq!(copy.files().unwrap(), original.files().unwrap());
    }

    #[test]
    fn a_failing_tool_is_reported_in_its_own_words() {
        let error = tool(Path::new("/"), "sh", &["-c", "echo no luck >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("no luck") && error.contains('3'), "{error}");
    }
}
