//! Files and the versions before them: the caller's, or consecutive versions of real packages, which the package
//! managers of this machine fetch.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// A file and the version before it.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// What kind of file it is, for the table.
    pub(super) kind: String,
    /// Its name.
    pub(super) name: String,
    pub(super) old: PathBuf,
    pub(super) new: PathBuf,
}

/// How much of what is known to have consecutive versions is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    /// All of it.
    All,
    /// Some small packages of each kind.
    Small,
}

/// The pairs of two files, or of two directories: by the same relative path, else by the name without its version.
///
/// # Errors
/// When they cannot be read, or nothing in them fits together.
pub(super) fn given(old: &Path, new: &Path) -> Result<Vec<Pair>> {
    let is_directory = |path: &Path| -> Result<bool> {
        Ok(fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.is_dir())
    };
    match (is_directory(old)?, is_directory(new)?) {
        (false, false) => Ok(vec![pair(old.to_owned(), new.to_owned())]),
        (true, true) => {
            let before = files_below(old)?;
            let mut pairs = Vec::new();
            for (relative, path) in files_below(new)? {
                let same = before.get(&relative).cloned().or_else(|| alike(&before, &relative));
                pairs.extend(same.map(|old| pair(old, path)));
            }
            ensure!(
                !pairs.is_empty(),
                "nothing in {} is a version of what is in {}",
                new.display(),
                old.display()
            );
            Ok(pairs)
        }
        _ => bail!("expected two files or two directories, found {} and {}", old.display(), new.display()),
    }
}

/// Consecutive versions of packages: `.deb` files that the package lists of this machine name in two versions, and
/// wheels. What was fetched before is used again.
///
/// # Errors
/// When none can be had; the error says what was tried and what to do.
pub(super) fn fetched(cache: &Path, fetch: Fetch, say: &mut dyn FnMut(&str)) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    let mut troubles = Vec::new();
    let mut take = |what: &str, outcome: Result<Option<Pair>>| match outcome {
        Ok(found) => pairs.extend(found),
        Err(error) => {
            say(&format!("{what}: {error:#}"));
            troubles.push(format!("{what}: {error:#}"));
        }
    };
    for (name, old, new) in WHEELS {
        if fetch == Fetch::All || SMALL.contains(name) {
            take(name, wheels(cache, name, old, new).map(Some));
        }
    }
    match madison() {
        Ok(versions) => {
            for (name, versions) in versions {
                if fetch == Fetch::Small && !SMALL.contains(&name.as_str()) {
                    continue;
                }
                if let [new, old, ..] = versions.as_slice() {
                    take(&name, packages(cache, &name, old, new).map(Some));
                }
            }
        }
        Err(error) => take("apt-cache", Err(error)),
    }
    ensure!(
        !pairs.is_empty(),
        "no consecutive versions of packages can be had here ({}); give files or directories of two versions, as often \
         as you like: --pair OLD NEW",
        troubles.first().map_or("neither pip nor apt-get offered any", String::as_str)
    );
    Ok(pairs)
}

fn pair(old: PathBuf, new: PathBuf) -> Pair {
    let name = new.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let kind = match name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()) {
        Some(ending) if KINDS.contains(&ending.as_str()) => ending,
        _ => "other".to_owned(),
    };
    Pair { kind, name, old, new }
}

fn wheels(cache: &Path, name: &str, old: &str, new: &str) -> Result<Pair> {
    let fetch = |version: &str| {
        let directory = cache.join(format!("{name}-{version}"));
        only_file(&directory, || {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]);
            pip.args(["--only-binary=:all:", "--platform", PLATFORM, "--python-version", PYTHON, "--dest"]);
            pip.arg(&directory).arg(format!("{name}=={version}"));
            run(pip)
        })
    };
    Ok(pair(fetch(old)?, fetch(new)?))
}

fn packages(cache: &Path, name: &str, old: &str, new: &str) -> Result<Pair> {
    let fetch = |version: &str| {
        let directory = cache.join(format!("{name}={}", version.replace([':', '~'], "_")));
        only_file(&directory, || {
            let mut apt = Command::new("apt-get");
            apt.args(["download", "--quiet=2"]).arg(format!("{name}={version}")).current_dir(&directory);
            run(apt)
        })
    };
    Ok(pair(fetch(old)?, fetch(new)?))
}

/// Versions by package, newest first, as far as this machine's package lists go.
fn madison() -> Result<BTreeMap<String, Vec<String>>> {
    let output = Command::new("apt-cache").arg("madison").args(PACKAGES).output();
    let output = output.context("cannot start apt-cache")?;
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut fields = line.split('|').map(str::trim);
        if let (Some(name), Some(version)) = (fields.next(), fields.next()) {
            let known = versions.entry(name.to_owned()).or_default();
            if !known.iter().any(|known| known == version) {
                known.push(version.to_owned());
            }
        }
    }
    ensure!(!versions.is_empty(), "apt-cache knows none of {}", PACKAGES.join(", "));
    Ok(versions)
}

/// The only file in a directory, which `fill` puts there if there is none.
fn only_file(directory: &Path, fill: impl FnOnce() -> Result<()>) -> Result<PathBuf> {
    let present = || -> Result<Option<PathBuf>> {
        let mut files =
            fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.retain(|path| path.is_file());
        Ok(if files.len() == 1 { files.pop() } else { None })
    };
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    if let Some(path) = present()? {
        return Ok(path);
    }
    fill()?;
    present()?.with_context(|| format!("expected one file in {}", directory.display()))
}

fn run(mut command: Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    ensure!(output.status.success(), "{program} ended with {}: {}", output.status, last.trim());
    Ok(())
}

/// All files below a directory by their relative paths; symbolic links are not followed.
fn files_below(root: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in
            fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?
        {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                files.insert(entry.path().strip_prefix(root)?.to_owned(), entry.path());
            }
        }
    }
    Ok(files)
}

/// A file of the same name but for its version, in the same directory; the one with the longest common ending.
fn alike(files: &BTreeMap<PathBuf, PathBuf>, wanted: &Path) -> Option<PathBuf> {
    let name = wanted.file_name()?.to_str()?;
    let stem = stem(name)?;
    let candidates = files.iter().filter_map(|(relative, path)| {
        let other = relative.file_name()?.to_str()?;
        let fits = relative.parent() == wanted.parent() && self::stem(other) == Some(stem);
        let common = other.bytes().rev().zip(name.bytes().rev()).take_while(|(a, b)| a == b).count();
        fits.then_some((common, path))
    });
    candidates.max().map(|(_, path)| path.clone())
}

/// What stands before the version: up to the first `-` or `_` that a digit follows.
fn stem(name: &str) -> Option<&str> {
    let bytes = name.as_bytes();
    let end = (1..bytes.len().saturating_sub(1))
        .find(|&at| matches!(bytes[at], b'-' | b'_') && bytes[at + 1].is_ascii_digit())?;
    name.get(..end)
}

/// Endings that the table tells apart.
const KINDS: &[&str] = &["whl", "deb", "rpm", "iso", "tar", "gz", "xz", "zst", "zip", "jar"];

/// Wheels that changed little and much, small and large, from one version to the next.
const WHEELS: &[(&str, &str, &str)] = &[
    ("numpy", "2.2.5", "2.2.6"),
    ("scipy", "1.15.2", "1.15.3"),
    ("pandas", "2.2.2", "2.2.3"),
    ("django", "5.1.3", "5.1.4"),
    ("sqlalchemy", "2.0.39", "2.0.40"),
    ("pip", "24.3", "24.3.1"),
    ("setuptools", "75.5.0", "75.6.0"),
    ("cryptography", "44.0.1", "44.0.2"),
];
/// Of wheels and packages, those that are small.
const SMALL: &[&str] = &[
    "django",
    "sqlalchemy",
    "pip",
    "setuptools",
    "cryptography",
    "bind9-libs",
    "bsdutils",
    "curl",
    "libcurl4",
    "libexpat1",
    "libnss3",
    "libpq5",
    "libpython3.11-stdlib",
    "libssl3",
    "libxml2",
    "openssh-client",
    "openssl",
    "perl-base",
    "sudo",
    "wget",
];
const PLATFORM: &str = "manylinux2014_x86_64";
const PYTHON: &str = "3.12";

/// Packages that are often updated within a stable release, so that lists name two versions of some.
const PACKAGES: &[&str] = &[
    "bind9-libs",
    "bsdutils",
    "curl",
    "git",
    "imagemagick-6-common",
    "krb5-locales",
    "libc-bin",
    "libc6",
    "libcurl4",
    "libexpat1",
    "libgnutls30",
    "libkrb5-3",
    "libnss3",
    "libpq5",
    "libpython3.11-stdlib",
    "libssl3",
    "libsystemd0",
    "libtiff6",
    "libxml2",
    "openssh-client",
    "openssl",
    "perl-base",
    "perl-modules-5.36",
    "postgresql-15",
    "python3.11-minimal",
    "sudo",
    "systemd",
    "vim-runtime",
    "vim-tiny",
    "wget",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_paired_by_path_and_by_name_without_version() {
        let place = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| place.path().join(name));
        for (root, names) in [
            (&old, ["p/a_1.0_amd64.deb", "p/a_1.0_arm64.deb", "Index"]),
            (&new, ["p/a_1.1_amd64.deb", "p/b_1.deb", "Index"]),
        ] {
            fs::create_dir_all(root.join("p")).unwrap();
            names.iter().for_each(|name| fs::write(root.join(name), name).unwrap());
        }
        let pairs = given(&old, &new).unwrap();
        let names: Vec<_> =
            pairs.iter().map(|pair| (pair.kind.as_str(), pair.old.clone(), pair.new.clone())).collect();
        let expected = [
            ("other", old.join("Index"), new.join("Index")),
            ("deb", old.join("p/a_1.0_amd64.deb"), new.join("p/a_1.1_amd64.deb")),
        ];
        assert_eq!(names, expected);
        assert!(given(&old, &new.join("Index")).is_err() && given(&place.path().join("none"), &new).is_err());
    }

    #[test]
    fn a_file_that_is_there_is_not_fetched_again() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("x");
        let fetched = only_file(&directory, || Ok(fs::write(directory.join("f"), b"1")?)).unwrap();
        assert_eq!(only_file(&directory, || bail!("again")).unwrap(), fetched);
        assert!(only_file(&place.path().join("y"), || Ok(())).is_err());
    }
}
