//! Downloads real packages with `apt-get download` into a cache, so that a second run downloads nothing.
//!
//! It uses the system's package lists where they are, and otherwise fetches lists of its own into the cache; it
//! never writes to the system's.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::{Selection, tool};
use crate::Error;

/// The packages of a selection, downloaded.
pub(super) fn download(
    cache: &Path,
    selection: Selection,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<PathBuf>, Error> {
    let (names, enough) = match selection {
        Selection::Full => (FULL, FULL_ENOUGH),
        Selection::Small => (SMALL, SMALL_ENOUGH),
        Selection::Many => return many(cache, progress),
    };
    let debs = cache.join("debs");
    fs::create_dir_all(&debs).map_err(Error::io(format!("making {}", debs.display())))?;
    let held = held(&debs, names)?;
    if held.len() == names.len() {
        return Ok(held);
    }
    let mut options = options();
    let mut known = known(&debs, &options, names);
    if known.len() < enough {
        progress("fetching package lists");
        options.extend(own_lists(cache)?);
        let update: Vec<&str> = options.iter().map(String::as_str).chain(["update"]).collect();
        tool(&debs, "apt-get", &update)?;
        known = self::known(&debs, &options, names);
    }
    let missing: Vec<&str> =
        names.iter().copied().filter(|name| known.contains(*name) && find(&debs, name).is_none()).collect();
    if !missing.is_empty() {
        progress(&format!("downloading {} packages with apt-get", missing.len()));
        let fetch = |names: &[&str]| {
            let head = options.iter().map(String::as_str).chain(["download"]);
            let arguments: Vec<&str> = head.chain(names.iter().copied()).collect();
            tool(&debs, "apt-get", &arguments)
        };
        if fetch(&missing).is_err() {
            // One that cannot be had (a version that is installed but no longer offered) fails them all.
            for name in missing.iter().filter(|name| find(&debs, name).is_none()) {
                if let Err(error) = fetch(&[name]) {
                    tracing::debug!(name, %error, "left out a package");
                }
            }
        }
    }
    let held = self::held(&debs, names)?;
    if held.len() < enough {
        let why = format!("expected at least {enough} packages from apt, got {}", held.len());
        return Err(Error::Repository { why });
    }
    Ok(held)
}

/// Some hundred small ones, whichever the lists offer, the same each time for the same lists.
fn many(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Vec<PathBuf>, Error> {
    let debs = cache.join("debs-many");
    fs::create_dir_all(&debs).map_err(Error::io(format!("making {}", debs.display())))?;
    let mut options = options();
    let mut names = small_ones(&debs, &options)?;
    if names.len() < MANY_ENOUGH {
        progress("fetching package lists");
        options.extend(own_lists(cache)?);
        let update: Vec<&str> = options.iter().map(String::as_str).chain(["update"]).collect();
        tool(&debs, "apt-get", &update)?;
        names = small_ones(&debs, &options)?;
    }
    let missing: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| find(&debs, name).is_none()).collect();
    if !missing.is_empty() {
        progress(&format!("downloading {} small packages with apt-get", missing.len()));
    }
    for some in missing.chunks(MANY_AT_ONCE) {
        let head = options.iter().map(String::as_str).chain(["download"]);
        let arguments: Vec<&str> = head.chain(some.iter().copied()).collect();
        if let Err(error) = tool(&debs, "apt-get", &arguments) {
            tracing::debug!(%error, "left out some packages");
        }
    }
    let held: Vec<PathBuf> = names.iter().filter_map(|name| find(&debs, name)).collect();
    if held.len() < MANY_ENOUGH {
        let why = format!("expected at least {MANY_ENOUGH} small packages from apt, got {}", held.len());
        return Err(Error::Repository { why });
    }
    Ok(held)
}

/// The names of packages of a middling size that the lists offer, evenly spread over the alphabet.
fn small_ones(directory: &Path, options: &[String]) -> Result<Vec<String>, Error> {
    let arguments: Vec<&str> = options.iter().map(String::as_str).chain(["dumpavail"]).collect();
    let shown = tool(directory, "apt-cache", &arguments)?;
    let mut fitting = BTreeSet::new();
    for stanza in String::from_utf8_lossy(&shown).split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let size = field("Size: ").and_then(|size| size.parse::<u64>().ok()).unwrap_or_default();
        if let (Some(name), Some(_)) = (field("Package: "), field("Filename: "))
            && MANY_SIZES.contains(&size)
        {
            fitting.insert(name.to_owned());
        }
    }
    let apart = (fitting.len() / MANY).max(1);
    Ok(fitting.into_iter().step_by(apart).take(MANY).collect())
}

fn held(debs: &Path, names: &[&str]) -> Result<Vec<PathBuf>, Error> {
    Ok(names.iter().filter_map(|name| find(debs, name)).collect())
}

/// The downloaded file of a package; apt gives it its name only when it is whole and verified.
fn find(debs: &Path, name: &str) -> Option<PathBuf> {
    let prefix = format!("{name}_");
    let entries = fs::read_dir(debs).ok()?;
    let mut versions: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|file| file.starts_with(&prefix) && file.ends_with(".deb"))
        })
        .map(|entry| entry.path())
        .collect();
    versions.sort();
    versions.pop()
}

/// Which of `names` the package lists offer; none when there are no lists, or no apt.
fn known(directory: &Path, options: &[String], names: &[&str]) -> BTreeSet<String> {
    let head = options.iter().map(String::as_str).chain(["show", "--no-all-versions"]);
    let arguments: Vec<&str> = head.chain(names.iter().copied()).collect();
    // It fails when any name is unknown, yet shows the others; so it goes through a shell that forgives.
    let mut shell = vec!["-c", "apt-cache \"$@\" 2>/dev/null || true", "apt-cache"];
    shell.extend(arguments);
    let shown = tool(directory, "sh", &shell).unwrap_or_default();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    let mut known = BTreeSet::new();
    let mut package = None;
    for line in shown.lines() {
        if let Some(name) = line.strip_prefix("Package: ") {
            package = Some(name.to_owned());
        } else if line.starts_with("Filename: ") {
            // Only what the archive has can be downloaded; an installed package alone has no such field.
            known.extend(package.take());
        }
    }
    known
}

fn options() -> Vec<String> {
    let mut options = vec!["-q".to_owned()];
    if geteuid().is_root() {
        // The download's own user may not write below the cache; what it fetches is verified either way.
        options.extend(["-o".to_owned(), "APT::Sandbox::User=root".to_owned()]);
    }
    options
}

fn own_lists(cache: &Path) -> Result<Vec<String>, Error> {
    let (lists, archives) = (cache.join("apt/lists"), cache.join("apt/cache"));
    for directory in [lists.join("partial"), archives.join("archives/partial")] {
        fs::create_dir_all(&directory).map_err(Error::io(format!("making {}", directory.display())))?;
    }
    Ok(vec![
        "-o".to_owned(),
        format!("Dir::State::lists={}", lists.display()),
        "-o".to_owned(),
        format!("Dir::Cache={}", archives.display()),
    ])
}

/// Packages of the selection that is about their number.
const MANY: usize = 360;
const MANY_ENOUGH: usize = 300;
const MANY_SIZES: std::ops::Range<u64> = 20_000..300_000;
const MANY_AT_ONCE: usize = 60;
const FULL_ENOUGH: usize = 60;
const SMALL_ENOUGH: usize = 10;

/// Names that have stood in Debian and its descendants for long, from 10 kB to 14 MB.
const FULL: &[&str] = &[
    "adduser",
    "apt-utils",
    "aria2",
    "base-files",
    "bash",
    "bc",
    "binutils-common",
    "bison",
    "bsdutils",
    "bzip2",
    "ca-certificates",
    "cmake",
    "cmake-data",
    "coreutils",
    "cpio",
    "cron",
    "curl",
    "dash",
    "debianutils",
    "diffutils",
    "e2fsprogs",
    "ed",
    "emacs-common",
    "findutils",
    "flex",
    "fonts-dejavu-core",
    "fonts-dejavu-extra",
    "gawk",
    "gdb",
    "gettext-base",
    "git",
    "git-man",
    "gnupg",
    "grep",
    "groff-base",
    "gzip",
    "hostname",
    "hunspell-en-us",
    "iproute2",
    "iputils-ping",
    "iso-codes",
    "jq",
    "less",
    "libc-bin",
    "libc6",
    "libexpat1",
    "libstdc++6",
    "locales",
    "lsof",
    "lz4",
    "m4",
    "make",
    "man-db",
    "mawk",
    "mc",
    "nano",
    "ncurses-base",
    "ncurses-bin",
    "netbase",
    "openssh-client",
    "openssl",
    "parted",
    "patch",
    "pciutils",
    "perl-base",
    "procps",
    "psmisc",
    "readline-common",
    "rsync",
    "screen",
    "sed",
    "socat",
    "sqlite3",
    "strace",
    "sudo",
    "tar",
    "tcpdump",
    "tmux",
    "traceroute",
    "tree",
    "tzdata",
    "unzip",
    "util-linux",
    "vim-common",
    "vim-runtime",
    "vim-tiny",
    "wget",
    "whois",
    "xxd",
    "xz-utils",
    "zip",
    "zsh",
    "zsh-common",
    "zstd",
];

/// A dozen, two of them above 2 MB and one below the size that an origin serves itself.
const SMALL: &[&str] = &[
    "bash",
    "coreutils",
    "diffutils",
    "grep",
    "hostname",
    "less",
    "libc6",
    "nano",
    "sed",
    "tar",
    "tree",
    "vim-tiny",
    "zstd",
    "curl",
];
