//! `cargo xtask test`: builds the programs, makes the tests' repository, runs every test, and names what was skipped.
//!
//! It works as root, where hosts are network namespaces, and as an ordinary user, where they are on loopback. With
//! `CI` set a skipped test fails (the tests themselves see to it).

use std::fs;

use anyhow::{Context, Result};
use freshet_testbed::SKIPS;
use freshet_testbed::repository::{Kind, Repository, Selection};

use crate::setup;
use crate::workspace::{self, Workspace};

/// What to test.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Given to `cargo test` as they are: `-p CRATE`, a test's name, `-- --nocapture`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    setup::prepare();
    // The end-to-end tests run the programs, which cargo does not know.
    workspace.build_programs()?;
    let repository =
        Repository::make(&workspace.repositories(), Selection::Small, &mut |step| eprintln!("{step}"))?;
    if let Kind::Generated { why } = &repository.kind {
        eprintln!("warning: no real packages, so the tests with apt are skipped: {why}");
    }

    let skips = tempfile::NamedTempFile::new().context("making a file for the names of skipped tests")?;
    let mut cargo = workspace.cargo(&["test", "--locked", "--no-fail-fast"]);
    if !arguments.cargo.iter().any(|argument| argument == "-p" || argument == "--package") {
        cargo.arg("--workspace");
    }
    cargo.args(&arguments.cargo).env(SKIPS, skips.path());
    let result = workspace::run(&mut cargo);

    let skipped = fs::read_to_string(skips.path()).context("reading the names of skipped tests")?;
    if skipped.is_empty() {
        println!("no test was skipped");
    } else {
        println!("{} skipped:", skipped.lines().count());
        for line in skipped.lines() {
            println!("  {line}");
        }
    }
    result
}
