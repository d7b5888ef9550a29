//! The command line: what the flags are, and which part of the program each verb is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use freshet_api::{BytesPerSec, JoinString};

use crate::access_log::{AccessLogFormat, AccessLogTarget};
use crate::config::{Interfaces, PublicUrl};
use crate::exit::{EXIT_STATUS_HELP, Failure};
use crate::limits::LimitOptions;
use crate::logging::LogFormat;
use crate::network::Network;

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
    Serve(Box<ServeOptions>),
    /// Make this host a volunteer, with the string that `ctl node add NAME` printed at the origin
    #[command(after_help = EXIT_STATUS_HELP)]
    Join(Box<JoinOptions>),
    /// Run as a volunteer: keep the mirror current and serve the customers whom the front door sends
    #[command(after_help = EXIT_STATUS_HELP)]
    Run(Box<RunOptions>),
    /// Remove what a volunteer that was killed left in the kernel: counters, their attachments, its queues
    #[command(after_help = EXIT_STATUS_HELP)]
    Cleanup(CleanupOptions),
    /// Manual pages, one for each verb, written into a directory
    #[command(hide = true)]
    Man {
        /// Where
        directory: PathBuf,
    },
    /// Take a manifest in as a volunteer does, and print what it costs in time and memory as JSON
    #[command(hide = true)]
    Weigh {
        /// The manifest in its wire form
        manifest: PathBuf,
    },
    /// Completions for a shell, to be sourced
    #[command(hide = true)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
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

    /// Record requests in this file (`-` for the standard output); one that is moved away is made anew
    #[arg(long, value_name = "FILE|-|off", default_value = "off")]
    pub access_log: AccessLogTarget,

    /// How the access log's lines look
    #[arg(long, value_name = "FORMAT", default_value = "combined")]
    pub access_log_format: AccessLogFormat,

    /// Record one response in so many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub access_log_sample: u32,

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

/// `dataplane join`.
#[derive(Clone, Debug, Args)]
pub struct JoinOptions {
    /// What `ctl node add NAME` printed; works once
    #[arg(value_name = "STRING")]
    pub join: JoinString,

    /// Directory for the credential, the configuration and the store; is made if it is not there
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,

    /// Where the configuration is, or is made [default: dataplane.toml in the state directory]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Written into a new configuration: where to serve customers; may be given more than once
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<SocketAddr>,

    /// Written into a new configuration: what customers are sent to
    #[arg(long, value_name = "URL")]
    pub public_url: Option<PublicUrl>,

    /// Written into a new configuration: where the mirror's tree is shown
    #[arg(long, value_name = "DIR")]
    pub tree: Option<PathBuf>,

    /// Written into a new configuration: most that is sent, such as `200 Mbit/s`
    #[arg(long, value_name = "RATE", value_parser = rate_text)]
    pub donated_rate: Option<String>,
}

/// `dataplane run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// The configuration
    #[arg(long, value_name = "FILE", required_unless_present = "state")]
    pub config: Option<PathBuf>,

    /// Directory that `dataplane join` made; its `dataplane.toml` is the configuration unless --config names another
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// Say what is wrong with the configuration, or print what is in force, and end
    #[arg(long)]
    pub check_config: bool,

    /// Where to serve customers, in place of `listen`; may be given more than once
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<SocketAddr>,

    /// What customers are sent to, in place of `public_url`
    #[arg(long, value_name = "URL")]
    pub public_url: Option<PublicUrl>,

    /// Where the mirror's tree is shown, in place of `tree`
    #[arg(long, value_name = "DIR")]
    pub tree: Option<PathBuf>,

    /// Where /metrics, /healthz and /readyz are served, in place of `metrics_listen`
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<SocketAddr>,

    /// Interfaces that are counted, in place of `interfaces`
    #[arg(long, value_name = "auto|NAMES")]
    pub interfaces: Option<Interfaces>,

    /// Most that is sent, in place of `donated_rate`
    #[arg(long, value_name = "RATE")]
    pub donated_rate: Option<BytesPerSec>,

    /// Most that is received, in place of `sync_rate`
    #[arg(long, value_name = "RATE")]
    pub sync_rate: Option<BytesPerSec>,

    /// Network whose clients need no ticket, in place of `local_networks`; may be given more than once
    #[arg(long, value_name = "NETWORK")]
    pub local_network: Vec<Network>,

    /// Threads that serve, in place of `rings`
    #[arg(long, value_name = "N")]
    pub rings: Option<usize>,

    /// Where requests are recorded, in place of `log.access`
    #[arg(long, value_name = "FILE|-|off")]
    pub access_log: Option<AccessLogTarget>,

    /// How the access log's lines look, in place of `log.access_format`
    #[arg(long, value_name = "FORMAT")]
    pub access_log_format: Option<AccessLogFormat>,

    /// Record one response in so many, in place of `log.access_sample`
    #[arg(long, value_name = "N")]
    pub access_log_sample: Option<u32>,

    /// How the daemon's own log lines look, in place of `log.format`
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Seconds that a stop waits for transfers to end, in place of `grace_secs`
    #[arg(long, value_name = "SECONDS")]
    pub grace_secs: Option<u64>,

    /// The engine's bounds.
    #[command(flatten)]
    pub limits: LimitOptions,
}

/// `dataplane cleanup`.
#[derive(Clone, Debug, Args)]
pub struct CleanupOptions {
    /// Only what belongs to the volunteer with this state directory; without it all that is found on this host
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// Reads the process's command line and does what it says.
pub fn main() -> ExitCode {
    let outcome = match CommandLine::parse().verb {
        Verb::Serve(options) => crate::serve::serve(&options),
        Verb::Join(options) => crate::join::join(&options),
        Verb::Run(options) => crate::run::run(&options),
        Verb::Cleanup(options) => crate::cleanup::cleanup(&options),
        Verb::Man { directory } => manual(&directory),
        Verb::Weigh { manifest } => weigh(&manifest),
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut CommandLine::command(), "dataplane", &mut std::io::stdout());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn manual(directory: &std::path::Path) -> Result<(), Failure> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(CommandLine::command(), directory))
        .with_context(|| format!("cannot write into {}", directory.display()))?;
    Ok(())
}

fn weigh(manifest: &std::path::Path) -> Result<(), Failure> {
    let weight = crate::mirror::weigh(|| std::fs::read(manifest))
        .with_context(|| format!("cannot weigh {}", manifest.display()))?;
    println!("{}", serde_json::to_string(&weight).context("cannot print")?);
    Ok(())
}

fn report(failure: &Failure) -> ExitCode {
    eprintln!("dataplane: {failure}");
    failure.exit_code()
}

/// Checks a rate but keeps it as it was typed: it goes into a file that people read.
fn rate_text(text: &str) -> Result<String, String> {
    match text.parse::<BytesPerSec>() {
        Ok(rate) if rate >= crate::config::RATE_MIN => Ok(text.to_owned()),
        Ok(_) => Err(format!("expected at least {}", crate::config::RATE_MIN)),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
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
            "dataplane run",
            "dataplane run --state s --rings many",
            "dataplane join nonsense --state s",
            "dataplane serve --root /srv --listen 127.0.0.1:0 --rate fast",
        ] {
            assert!(CommandLine::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn every_bound_stands_in_the_help() {
        let mut command = CommandLine::command();
        for verb in ["serve", "run"] {
            let help = command.find_subcommand_mut(verb).unwrap().render_long_help().to_string();
            for bound in
                ["--connections-max", "--head-timeout-secs", "--memory-cache-bytes-max", "Exit status"]
            {
                assert!(help.contains(bound), "{verb}: {bound}");
            }
        }
    }
}
