//! `cargo xtask <verb>`: the one front door for a developer, one file per verb. CI calls the same verbs.
//!
//! It builds, checks and shows the programs; nothing of it is part of them.
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod dist;
mod ebpf;
mod interrupt;
mod lint;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use freshet_testbed::Error;

use crate::workspace::Workspace;

/// What a developer does with Freshet.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the whole way once: an origin, volunteers that mirror it, a customer that downloads and checks.
    Demo(demo::Arguments),
    /// Run every test, with the set-up done first; says which were skipped and why.
    Test(test::Arguments),
    /// Check format, clippy's warnings, and that the tree is what ARCHITECTURE.md says.
    Lint,
    /// Check that the tree is what ARCHITECTURE.md says; a part of `lint`.
    Tidy,
    /// Build the release programs and measure them against named peers.
    Bench(bench::Arguments),
    /// Make Debian packages of origin, volunteer and operator, into `target/debian`.
    Dist(dist::Arguments),
    /// Build the kernel programs' object that is committed.
    Ebpf {
        /// Write nothing; fail when the sources give another object than the one committed.
        #[arg(long)]
        check: bool,
    },
    /// Install the system packages that `demo` and `test` need (as root; otherwise print the command).
    Setup,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = Workspace::load().and_then(|workspace| match arguments.verb {
        Verb::Demo(arguments) => demo::run(&workspace, &arguments),
        Verb::Test(arguments) => test::run(&workspace, &arguments),
        Verb::Lint => lint::run(&workspace),
        Verb::Tidy => tidy::run(&workspace),
        Verb::Bench(arguments) => bench::run(&workspace, &arguments),
        Verb::Dist(arguments) => dist::run(&workspace, &arguments),
        Verb::Ebpf { check } => ebpf::run(workspace.root(), check),
        Verb::Setup => setup::run(),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if matches!(error.downcast_ref(), Some(Error::Cancelled { .. })) => {
            eprintln!("{error:#}; what was started is ended and removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// As a shell tells of a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;
