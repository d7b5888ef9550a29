//! `cargo xtask dist`: the Debian packages of origin, volunteer and operator, into `target/debian`.
//!
//! It builds the release programs, has each write its own manual pages and completions, and lets `cargo deb` put them
//! together with what stands in `control/packaging` and `dataplane/packaging`. On this host it installs nothing.

mod clean_root;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::workspace::{self, Workspace};

/// What is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Uses the release programs that are there, without building them.
    #[arg(long)]
    no_build: bool,
    /// Installs them on a clean Debian root and purges them again (needs root and debootstrap).
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let version = workspace.cargo(&["deb", "--version"]).output();
    if !version.is_ok_and(|output| output.status.success()) {
        bail!("there is no `cargo deb`; install it with: cargo install cargo-deb --locked");
    }
    if !arguments.no_build {
        let build = ["build", "--release", "--locked", "-p", "freshet-control", "-p", "freshet-dataplane"];
        workspace::run(&mut workspace.cargo(&build))?;
    }
    let release = workspace.release_programs();
    // Where the packages' lists of files look for them, whatever the target directory is.
    let made = workspace.root().join("target/dist");
    std::fs::create_dir_all(&made).with_context(|| format!("cannot make {}", made.display()))?;
    for program in ["control", "ctl", "dataplane"] {
        write_manual(&release.join(program), &made, program)?;
    }
    let mut packages = Vec::new();
    for (package, variant) in
        [("freshet-control", None), ("freshet-control", Some("operator")), ("freshet-dataplane", None)]
    {
        packages.push(make(workspace, package, variant)?);
    }
    for package in &packages {
        println!("{}", package.display());
    }
    if arguments.check { clean_root::check(&packages) } else { Ok(()) }
}

/// The program's own manual pages and completions, below `made`.
fn write_manual(program: &Path, made: &Path, name: &str) -> Result<()> {
    let pages = made.join("man").join(name);
    if pages.exists() {
        std::fs::remove_dir_all(&pages).with_context(|| format!("cannot remove {}", pages.display()))?;
    }
    std::fs::create_dir_all(&pages).with_context(|| format!("cannot make {}", pages.display()))?;
    workspace::run(Command::new(program).arg("man").arg(&pages))?;
    for (shell, file) in
        [("bash", name.to_owned()), ("zsh", format!("_{name}")), ("fish", format!("{name}.fish"))]
    {
        let directory = made.join("completions").join(shell);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let output = Command::new(program)
            .args(["completions", shell])
            .output()
            .with_context(|| format!("cannot run {}", program.display()))?;
        if !output.status.success() {
            bail!("{} completions {shell}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
        }
        let file = directory.join(file);
        std::fs::write(&file, output.stdout).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// One package; where it is.
fn make(workspace: &Workspace, package: &str, variant: Option<&str>) -> Result<PathBuf> {
    let mut deb = workspace.cargo(&["deb", "--no-build", "--locked", "-p", package]);
    if let Some(variant) = variant {
        deb.args(["--variant", variant]);
    }
    let output = deb.stderr(std::process::Stdio::inherit()).output().context("cannot run cargo deb")?;
    if !output.status.success() {
        bail!("cargo deb failed for {package}");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().last().map(PathBuf::from).with_context(|| format!("cargo deb told no path for {package}"))
}
