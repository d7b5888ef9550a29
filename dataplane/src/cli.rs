//! The command line: what the flags are, and which part of the program each verb is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use freshet_api::BytesPerSec;

use crate::access_log::AccessLogTarget;
use crate::exit::{EXIT_STATUS_HELP, Failure};
use crate::limits::LimitOptions;
use crate::logging::LogFormat;

/// Serves files at the speed of the network, by itself or as a volunteer of a Freshet origin
#[derive(Debug, Parser)]
#[command(name = "dataplane", version, after_help = EXIT_STATUS_HELP)]
pub struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve a directory as a stand-alone static server
    #[command(after_help = EXIT_STATUS_HELP)]
    Serve(ServeOptions),
}

/// `dataplane serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeOptions {
    /// Directory whose files are served; nothing outside it is, also not by a symbolic link
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,

    /// Where to listen; may be given more than once, port 0 picks one
    #[arg(long, value_name = "ADDR", required = true)]
    pub listen: Vec<SocketAddr>,

    /// Threads that serve, each with a ring of its own; 0 means one per core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub rings: u16,

    /// Most that is sent, counted on the wire, such as `200 Mbit/s`; without it all
    #[arg(long, value_name = "RATE")]
    pub rate: Option<BytesPerSec>,

    /// Record requests in this file (`-` for the standard output); SIGHUP opens it anew
    #[arg(long, value_name = "FILE|-|off", default_value = "off")]
    pub access_log: AccessLogTarget,

    /// How the daemon's own log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Seconds that a stop waits for responses to end, at most a day
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub grace_secs: u64,

    /// The engine's bounds.
    #[command(flatten)]
    pub limits: LimitOptions,
}

/// Reads the process's command line and does what it says.
pub fn main() -> ExitCode {
    let outcome = match CommandLine::parse().verb {
        Verb::Serve(options) => crate::serve::serve(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    eprintln!("dataplane: {failure}");
    failure.exit_code()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn mistakes_are_refused() {
        for line in [
            "dataplane serve --root /srv",
            "dataplane serve --root /srv --listen nowhere",
            "dataplane serve --root /srv --listen 127.0.0.1:0 --rate fast",
        ] {
            assert!(CommandLine::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn every_bound_stands_in_the_help() {
        let mut command = CommandLine::command();
        for verb in ["serve"] {
            let help = command.find_subcommand_mut(verb).unwrap().render_long_help().to_string();
            for bound in
                ["--connections-max", "--head-timeout-secs", "--memory-cache-bytes-max", "Exit status"]
            {
                assert!(help.contains(bound), "{verb}: {bound}");
            }
        }
    }
}
