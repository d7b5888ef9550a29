//! The daemon's own log lines, on standard error: as text for people or as JSON for collectors.

use std::io::{IsTerminal as _, Write as _};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::progress::BesideBar;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One line of text per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// Starts logging for the whole process; `RUST_LOG` wins over `filter`. A second call changes nothing.
pub fn start(format: LogFormat, filter: Option<&str>) {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => text,
        _ => filter.unwrap_or("info").to_owned(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(BesideBar::default);
    // Only a subscriber that is already there makes this fail, and then it stays.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// Prints a line for whoever started the daemon, at once. A standard output that nobody reads is no reason to end.
pub fn announce(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        tracing::debug!(%error, "the standard output can't be written");
    }
}

/// Whether a filter can be read.
///
/// # Errors
/// Why not.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(drop).map_err(|error| error.to_string())
}
