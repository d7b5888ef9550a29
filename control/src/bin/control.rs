//! `control`: the server side of Freshet as a program. Reads its settings, starts, waits for a signal, ends.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use freshet_control::precedence::behind_the_rings;
use freshet_control::reload::Reloader;
use freshet_control::serve::{Addresses, Control};
use freshet_control::settings::{LogFormat, Options, Settings};
use freshet_engine::Inherited;
use sd_notify::NotifyState;
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
    Serve(Box<Serve>),
    /// Manual pages, one for each verb, written into a directory
    #[command(hide = true)]
    Man {
        /// Where
        directory: PathBuf,
    },
    /// Catalogue a manifest's files in memory, and print what that costs in time and memory as JSON
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

#[derive(Debug, clap::Args)]
struct Serve {
    /// TOML file with the settings below, `_` for `-`; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the settings and whether the repository and databases can be read, say what is wrong, and end; run it as the
    /// user that control runs as
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let serve = match Arguments::parse().command {
        Command::Serve(serve) => serve,
        Command::Man { directory } => return manual(&directory),
        Command::Weigh { manifest } => return weigh(&manifest),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "control", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
    };
    // Before there are other threads.
    let inherited = Inherited::from_environment();
    let checked = options(&serve).and_then(|options| Ok((Settings::check(options.clone())?, options)));
    let (settings, options) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            eprintln!("control: {error:#}");
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    if serve.check_config {
        if let Err(error) = Control::look(&settings) {
            eprintln!("control: {error:#}");
            return ExitCode::from(EXIT_CONFIGURATION);
        }
        println!("the settings are good");
        return ExitCode::SUCCESS;
    }
    start_log(settings.log_format);
    let reloader = Reloader::new(&options, move || self::options(&serve));
    match run(settings, inherited, reloader) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn manual(directory: &std::path::Path) -> ExitCode {
    let command = Arguments::command().name("control");
    let written =
        std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command, directory));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("control: cannot write into {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn weigh(manifest: &std::path::Path) -> ExitCode {
    let weighed = freshet_control::catalog::weigh(|| std::fs::read(manifest))
        .and_then(|weight| Ok(serde_json::to_string(&weight)?));
    match weighed {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("control: cannot weigh {}: {error}", manifest.display());
            ExitCode::FAILURE
        }
    }
}

/// The flags over what the file says now.
fn options(serve: &Serve) -> anyhow::Result<Options> {
    let file = match &serve.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration {}", path.display()))?;
            freshet_api::config::parse(&text).with_context(|| path.display().to_string())?
        }
        None => Options::default(),
    };
    Ok(serve.options.clone().over(file))
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => log.json().init(),
    }
}

fn run(settings: Settings, inherited: Inherited, reloader: Reloader) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(API_THREADS)
        .thread_name("api")
        .on_thread_start(behind_the_rings)
        .enable_all()
        .build()
        .context("cannot start the API's threads")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let control = Control::start_with(settings, inherited, reloader).await?;
        let addresses = control.addresses();
        tracing::info!(
            public_url = addresses.public_url,
            sync_url = addresses.sync_url,
            api_name = addresses.api_name,
            "serving"
        );
        announce(addresses)?;
        tell(&[NotifyState::Ready, NotifyState::Status(&format!("serving {}", addresses.public_url))]);
        let mut restart = control.restart_asked();
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = restart.wait_for(|asked| *asked) => {
                    tracing::info!("asked to be started anew");
                    break;
                }
                _ = hang_up.recv() => {
                    if let Err(why) = control.reload() {
                        tracing::error!("{why}");
                    }
                }
            }
        }
        tracing::info!("stopping");
        tell(&[NotifyState::Stopping]);
        control.stop().await;
        Ok(())
    })
}

/// Tells the service manager, where there is one.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager can't be told");
    }
}

/// Tells on standard output where control listens, one port a line; whoever waits for it waits for `ready`.
fn announce(addresses: &Addresses) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "front door: http://{}", addresses.listen)?;
    writeln!(out, "api: https://{}", addresses.api)?;
    writeln!(out, "sync: http://{}", addresses.sync_listen)?;
    if let Some(status) = addresses.status {
        writeln!(out, "status: http://{status}")?;
    }
    writeln!(out, "ready")?;
    out.flush().context("cannot write to standard output")
}

/// As many as heartbeats of a thousand volunteers need.
const API_THREADS: usize = 2;
const EXIT_CONFIGURATION: u8 = 2;
const EXIT_HELP: &str = "Exit status: 0 after an orderly stop, 1 when something failed, 2 when flags or the configuration are wrong.";
