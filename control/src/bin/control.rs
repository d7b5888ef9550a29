//! `control`: the server side of Freshet as a program. Reads its settings, starts, waits for a signal, ends.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use freshet_control::serve::{Addresses, Control};
use freshet_control::settings::{LogFormat, Options, Settings};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The server side of Freshet: catalogue, front door, sync port and API
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a repository: customers are redirected to volunteers, or served
    Serve(Serve),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// TOML file with the settings below, `_` for `-`; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the settings, say what is wrong with them, and end
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let Command::Serve(serve) = Arguments::parse().command;
    let settings = match settings(&serve) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("control: {error:#}");
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    if serve.check_config {
        println!("the settings are good");
        return ExitCode::SUCCESS;
    }
    start_log(settings.log_format);
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn settings(serve: &Serve) -> anyhow::Result<Settings> {
    let file = match &serve.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration {}", path.display()))?;
            freshet_api::config::parse(&text).with_context(|| path.display().to_string())?
        }
        None => Options::default(),
    };
    Ok(Settings::check(serve.options.clone().over(file))?)
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().init(),
    }
}

fn run(settings: Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(API_THREADS)
        .thread_name("api")
        .enable_all()
        .build()
        .context("cannot start the API's threads")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let control = Control::start(settings).await?;
        let addresses = control.addresses();
        tracing::info!(
            public_url = addresses.public_url,
            sync_url = addresses.sync_url,
            api_name = addresses.api_name,
            "serving"
        );
        announce(addresses)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        control.stop().await;
        Ok(())
    })
}

/// Tells on standard output where control listens, one port a line; whoever waits for it waits for `ready`.
fn announce(addresses: &Addresses) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "front door: http://{}", addresses.listen)?;
    writeln!(out, "api: https://{}", addresses.api)?;
    writeln!(out, "sync: http://{}", addresses.sync_listen)?;
    writeln!(out, "ready")?;
    out.flush().context("cannot write to standard output")
}

/// As many as heartbeats of a thousand volunteers need.
const API_THREADS: usize = 2;
const EXIT_CONFIGURATION: u8 = 2;
const EXIT_HELP: &str = "Exit status: 0 after an orderly stop, 1 when something failed, 2 when flags or the configuration are wrong.";
