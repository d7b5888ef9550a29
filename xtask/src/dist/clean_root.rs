//! `cargo xtask dist --check`: installs the packages on a clean Debian root, looks at what they put there, purges them, and
//! compares what is left with what was there before. Needs root and debootstrap; the root is a directory that is removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};
use rustix::process::geteuid;

use crate::workspace;

/// Installs, looks, purges, compares.
pub(super) fn check(packages: &[PathBuf]) -> Result<()> {
    if !geteuid().is_root() {
        bail!("--check makes a Debian root with debootstrap, which needs root");
    }
    let directory = tempfile::tempdir().context("cannot make a directory for the root")?;
    let root = directory.path().join("root");
    let include = format!("--include={NEEDED}");
    let mut make = Command::new("debootstrap");
    make.args(["--variant=minbase", &include, SUITE]).arg(&root);
    workspace::run(&mut make)
        .context("expected debootstrap (apt-get install debootstrap) and a Debian mirror")?;

    let before = files(&root)?;
    let users = users(&root)?;
    let mut names = Vec::new();
    for package in packages {
        let name = package.file_name().context("a package without a name")?;
        std::fs::copy(package, root.join("root").join(name))
            .with_context(|| format!("cannot copy {}", package.display()))?;
        names.push(format!("/root/{}", name.to_string_lossy()));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    chroot(&root, &[&["dpkg", "--install"], names.as_slice()].concat())?;
    look(&root)?;
    // Once more over itself, as an upgrade does.
    chroot(&root, &[&["dpkg", "--install"], names.as_slice()].concat())?;
    // What the services make while they run is theirs to take away as well.
    for file in ["control/admin.json", "volunteer/credential.json", "volunteer/tree/pool/a.deb"] {
        let file = root.join("var/lib/freshet").join(file);
        std::fs::create_dir_all(file.parent().context("a path without a parent")?)?;
        std::fs::write(&file, "x")?;
    }
    chroot(&root, &[&["dpkg", "--purge"], OURS].concat())?;

    for name in &names {
        std::fs::remove_file(root.join(name.trim_start_matches('/')))?;
    }
    let after = files(&root)?;
    let left: Vec<String> = after.difference(&before).map(|path| path.display().to_string()).collect();
    if !left.is_empty() {
        bail!("a purge left: {}", left.join(", "));
    }
    if self::users(&root)? != users {
        bail!("a purge left a user or a group");
    }
    println!("installed, upgraded and purged on a clean {SUITE}: nothing is left");
    Ok(())
}

/// Programs run, configurations are good, units can be loaded and are confined.
fn look(root: &Path) -> Result<()> {
    for program in ["control", "ctl", "dataplane"] {
        chroot(root, &[program, "--version"])?;
    }
    // The packaged configuration names a repository, which is the operator's to make.
    let repo = root.join("srv/repo");
    std::fs::create_dir_all(&repo)?;
    chroot(root, &["control", "serve", "--check-config", "--config", "/etc/freshet/control.toml"])?;
    std::fs::remove_dir(&repo)?;
    let volunteer = ["--config", "/etc/freshet/dataplane.toml", "--state", "/var/lib/freshet/volunteer"];
    chroot(root, &[&["dataplane", "run", "--check-config"], volunteer.as_slice()].concat())?;
    for unit in ["freshet-control.service", "freshet-volunteer.service"] {
        let path = format!("/usr/lib/systemd/system/{unit}");
        chroot(root, &["systemd-analyze", "verify", "--man=no", &path])?;
        let output = chroot(root, &["systemd-analyze", "security", "--offline=yes", "--no-pager", &path])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let exposure = text
            .lines()
            .rev()
            .find_map(|line| {
                line.split_once(&format!("exposure level for {unit}:"))?.1.split_whitespace().next()
            })
            .and_then(|number| number.parse::<f64>().ok())
            .with_context(|| format!("systemd-analyze did not rate {unit}: {text}"))?;
        println!("{unit}: exposure {exposure}");
        if exposure > EXPOSURE_MAX {
            bail!("expected an exposure of {unit} of at most {EXPOSURE_MAX}, found {exposure}");
        }
    }
    Ok(())
}

fn chroot(root: &Path, command: &[&str]) -> Result<Output> {
    let output = Command::new("chroot")
        .arg(root)
        .args(command)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .context("cannot run chroot")?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}{}",
            command.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Everything but what dpkg and the tools themselves keep.
fn files(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    let kept = |path: &Path| KEPT.iter().any(|kept| path.starts_with(kept));
    for entry in walkdir::WalkDir::new(root)
        .into_iter()
        .filter_entry(|entry| entry.path().strip_prefix(root).is_ok_and(|path| !kept(path)))
    {
        let entry = entry.context("walking the root")?;
        files.insert(entry.path().strip_prefix(root)?.to_owned());
    }
    Ok(files)
}

fn users(root: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for file in ["etc/passwd", "etc/group"] {
        let text = std::fs::read_to_string(root.join(file)).with_context(|| format!("reading {file}"))?;
        lines.extend(text.lines().map(str::to_owned));
    }
    Ok(lines)
}

/// The Debian that the packages are for.
const SUITE: &str = "bookworm";
/// Packages that ours depend on, and systemd, whose tools look at the units.
const NEEDED: &str = "systemd,adduser,procps,mount";
const OURS: &[&str] = &["freshet-origin", "freshet-volunteer", "freshet-operator"];
const EXPOSURE_MAX: f64 = 2.5;
const KEPT: &[&str] =
    &["proc", "sys", "dev", "run", "tmp", "var/log", "var/lib/dpkg", "var/cache", "var/backups"];
