//! `cargo xtask lint`: format, clippy with warnings as errors, and `tidy`. It changes no file.

use anyhow::{Result, bail};

use crate::tidy;
use crate::workspace::{self, Workspace};

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut failed = Vec::new();
    let mut check = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    };
    // All of them, so that one round of mending does.
    check("format", workspace::run(&mut workspace.cargo(&["fmt", "--all", "--check"])));
    check("tidy", tidy::run(workspace));
    let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    check("clippy", workspace::run(&mut workspace.cargo(&clippy)));
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {}", failed.join(", "))
}
