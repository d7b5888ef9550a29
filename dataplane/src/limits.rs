//! The engine's bounds as an operator sets them, by flag or in the configuration; the defaults are the engine's.

use std::time::Duration;

use freshet_api::Bytes;
use freshet_engine::Limits;
use serde::{Deserialize, Serialize};

/// What differs from the engine's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Limits")]
pub struct LimitOptions {
    /// Open connections in all; further ones are closed at once [default: 20000]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<usize>,

    /// Open connections of one client address; an IPv6 /64 counts as one [default: a quarter of all]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_address_max: Option<usize>,

    /// Size of a request's head; above it, 431 [default: 16 KiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_bytes_max: Option<Bytes>,

    /// Header fields of a request; above it, 431 [default: 64]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_fields_max: Option<usize>,

    /// Ranges in one request; above it, the whole file is sent [default: 16]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranges_max: Option<usize>,

    /// Seconds for a request's head to arrive whole [default: 10]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_timeout_secs: Option<u64>,

    /// Seconds that a client may take nothing while a response is sent [default: 60]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_timeout_secs: Option<u64>,

    /// Seconds that a connection may stay open between requests [default: 75]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_secs: Option<u64>,

    /// Files up to this size are sent from memory [default: 16 KiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_file_bytes_max: Option<Bytes>,

    /// Size of the cache for such files [default: 64 MiB]
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_cache_bytes_max: Option<Bytes>,

    /// Files kept open between requests [default: 8192]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptors_max: Option<usize>,
}

impl LimitOptions {
    /// The engine's bounds with these in place of the defaults.
    ///
    /// # Errors
    /// Names the option that makes no sense.
    pub fn to_limits(&self) -> Result<Limits, LimitError> {
        let default = Limits::default();
        let seconds = |name, value: Option<u64>, default| match value {
            None => Ok(default),
            Some(value) => within(name, value, 1, TIMEOUT_SECS_MAX).map(Duration::from_secs),
        };
        let count = |name, value: Option<usize>, default, most: u64| match value {
            None => Ok(default),
            Some(value) => within(name, value as u64, 1, most).map(|value| value as usize),
        };
        let bytes = |name, value: Option<Bytes>, default: u64, least, most| match value {
            None => Ok(default),
            Some(value) => within(name, value.0, least, most),
        };
        Ok(Limits {
            connections_max: count("connections_max", self.connections_max, default.connections_max, MANY)?,
            connections_per_address_max: match self.connections_per_address_max {
                None => default.connections_per_address_max,
                Some(value) => Some(within("connections_per_address_max", value as u64, 1, MANY)? as usize),
            },
            head_bytes_max: bytes(
                "head_bytes_max",
                self.head_bytes_max,
                default.head_bytes_max as u64,
                1 << 10,
                1 << 20,
            )? as usize,
            head_fields_max: count(
                "head_fields_max",
                self.head_fields_max,
                default.head_fields_max,
                1 << 10,
            )?,
            ranges_max: count("ranges_max", self.ranges_max, default.ranges_max, 1 << 10)?,
            head_timeout: seconds("head_timeout_secs", self.head_timeout_secs, default.head_timeout)?,
            send_timeout: seconds("send_timeout_secs", self.send_timeout_secs, default.send_timeout)?,
            idle_timeout: seconds("idle_timeout_secs", self.idle_timeout_secs, default.idle_timeout)?,
            memory_file_bytes_max: bytes(
                "memory_file_bytes_max",
                self.memory_file_bytes_max,
                default.memory_file_bytes_max,
                0,
                1 << 20,
            )?,
            memory_cache_bytes_max: bytes(
                "memory_cache_bytes_max",
                self.memory_cache_bytes_max,
                default.memory_cache_bytes_max,
                0,
                1 << 40,
            )?,
            descriptors_max: count("descriptors_max", self.descriptors_max, default.descriptors_max, MANY)?,
            ..default
        })
    }

    /// These, and where they say nothing those of `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            connections_max: self.connections_max.or(other.connections_max),
            connections_per_address_max: self
                .connections_per_address_max
                .or(other.connections_per_address_max),
            head_bytes_max: self.head_bytes_max.or(other.head_bytes_max),
            head_fields_max: self.head_fields_max.or(other.head_fields_max),
            ranges_max: self.ranges_max.or(other.ranges_max),
            head_timeout_secs: self.head_timeout_secs.or(other.head_timeout_secs),
            send_timeout_secs: self.send_timeout_secs.or(other.send_timeout_secs),
            idle_timeout_secs: self.idle_timeout_secs.or(other.idle_timeout_secs),
            memory_file_bytes_max: self.memory_file_bytes_max.or(other.memory_file_bytes_max),
            memory_cache_bytes_max: self.memory_cache_bytes_max.or(other.memory_cache_bytes_max),
            descriptors_max: self.descriptors_max.or(other.descriptors_max),
        }
    }
}

/// A bound that is out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `{name}` to be {least} ..= {most}, found {found}")]
pub struct LimitError {
    /// The option.
    pub name: &'static str,
    /// The least it may be.
    pub least: u64,
    /// The most it may be.
    pub most: u64,
    /// What came.
    pub found: u64,
}

fn within(name: &'static str, found: u64, least: u64, most: u64) -> Result<u64, LimitError> {
    if (least..=most).contains(&found) { Ok(found) } else { Err(LimitError { name, least, most, found }) }
}

const TIMEOUT_SECS_MAX: u64 = 24 * 3600;
const MANY: u64 = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_is_the_engines_default() {
        let limits = LimitOptions::default().to_limits().unwrap();
        assert_eq!(format!("{limits:?}"), format!("{:?}", Limits::default()));
    }

    #[test]
    fn flags_win_over_the_configuration() {
        let file: LimitOptions = freshet_api::config::parse(
            "connections_max = 5\nhead_bytes_max = '8 KiB'\nsend_timeout_secs = 3",
        )
        .unwrap();
        let flags = LimitOptions { connections_max: Some(7), ..LimitOptions::default() };
        let limits = flags.or(file).to_limits().unwrap();
        assert_eq!((limits.connections_max, limits.head_bytes_max), (7, 8 << 10));
        assert_eq!(limits.send_timeout, Duration::from_secs(3));
    }

    #[test]
    fn nonsense_is_named() {
        let none = LimitOptions { connections_max: Some(0), ..LimitOptions::default() };
        assert_eq!(none.to_limits().unwrap_err().name, "connections_max");
        let vast = LimitOptions { head_bytes_max: Some(Bytes(1 << 40)), ..LimitOptions::default() };
        assert!(vast.to_limits().unwrap_err().to_string().contains("head_bytes_max"));
        assert!(freshet_api::config::parse::<LimitOptions>("conections_max = 1").is_err());
    }
}
