//! Where and how requests are recorded, as an operator says it; the log itself is the engine's.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use freshet_engine::{AccessLog, LogFormat, LogOptions};
use serde::{Deserialize, Serialize};

/// Opens the log; `None` when nothing is to be recorded. One response in `sample` is (at least 1).
///
/// # Errors
/// When the file can't be opened or no thread started.
pub fn start(
    target: &AccessLogTarget,
    format: AccessLogFormat,
    sample: u32,
) -> io::Result<Option<Arc<AccessLog>>> {
    let options = LogOptions { format: format.into(), sample, ..LogOptions::default() };
    let log = match target {
        AccessLogTarget::Off => return Ok(None),
        AccessLogTarget::Stdout => AccessLog::to_writer(io::stdout(), options)?,
        AccessLogTarget::File(path) => AccessLog::to_file(path, options)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?,
    };
    Ok(Some(Arc::new(log)))
}

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    #[default]
    Off,
    /// To the standard output.
    Stdout,
    /// To the end of this file, which is made anew when a log rotation moves it away.
    File(PathBuf),
}

impl FromStr for AccessLogTarget {
    type Err = std::convert::Infallible;

    /// `off`, `-`, or a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" | "" => Self::Off,
            "-" => Self::Stdout,
            path => Self::File(path.into()),
        })
    }
}

impl std::fmt::Display for AccessLogTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("-"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for AccessLogTarget {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| match text.parse() {
            Ok(target) => target,
            Err(never) => match never {},
        })
    }
}

impl Serialize for AccessLogTarget {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AccessLogFormat {
    /// NCSA common log format.
    Common,
    /// Common, then `Referer` and `User-Agent`.
    #[default]
    Combined,
    /// One JSON object per line.
    Json,
}

impl From<AccessLogFormat> for LogFormat {
    fn from(format: AccessLogFormat) -> Self {
        match format {
            AccessLogFormat::Common => Self::Common,
            AccessLogFormat::Combined => Self::Combined,
            AccessLogFormat::Json => Self::Json,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_it_is_written() {
        for (text, target) in [
            ("off", AccessLogTarget::Off),
            ("-", AccessLogTarget::Stdout),
            ("/var/log/x", AccessLogTarget::File("/var/log/x".into())),
        ] {
            assert_eq!(text.parse::<AccessLogTarget>().unwrap(), target);
            assert_eq!(target.to_string(), text);
        }
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_told_at_once() {
        let target = AccessLogTarget::File("/nonexistent/directory/log".into());
        let error = start(&target, AccessLogFormat::Combined, 1).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/directory/log"), "{error}");
        assert!(start(&AccessLogTarget::Off, AccessLogFormat::Json, 1).unwrap().is_none());
    }
}
