//! `dataplane`: reads the command line and hands over.

use std::process::ExitCode;

fn main() -> ExitCode {
    freshet_dataplane::cli::main()
}
