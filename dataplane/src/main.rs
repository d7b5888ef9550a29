//! `dataplane`: reads the command line and hands over.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    freshet_dataplane::cli::main()
}
