//! `cargo xtask bench`: builds the release programs and hands its arguments to `bench`.
//!
//! It measures nothing itself.

use std::ffi::OsString;

use anyhow::Result;

use crate::workspace::{self, Workspace};

/// What to measure: the arguments of `bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For example `serve --cells 1k,100k`; `--help` behind `--` lists them all.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    // What `bench` starts, and nothing else.
    let packages = ["-p", "freshet-bench", "-p", "freshet-control", "-p", "freshet-dataplane"];
    let build = [&["build", "--locked", "--release", "--bins"], packages.as_slice()].concat();
    workspace::run(&mut workspace.cargo(&build))?;
    let bench = workspace.release_programs().join("bench");
    workspace::run(std::process::Command::new(bench).args(&arguments.arguments).current_dir(workspace.root()))
}
