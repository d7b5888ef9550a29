//! What customers, or peers, are sent to: a URL of a host, and no more.

use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `http://host[:port]`, or `https://` where something in front of the daemon speaks TLS; no path, no trailing `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// The URL without a trailing `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Of an address that is bound.
    pub fn of(address: SocketAddr) -> Self {
        Self(format!("http://{address}"))
    }
}

impl FromStr for PublicUrl {
    type Err = PublicUrlError;

    fn from_str(text: &str) -> Result<Self, PublicUrlError> {
        let refuse = || PublicUrlError { found: text.chars().take(120).collect() };
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        let uri: http::Uri = trimmed.parse().map_err(|_| refuse())?;
        let schemed = matches!(uri.scheme_str(), Some("http" | "https"));
        let bare =
            uri.path() == "/" && uri.query().is_none() && !trimmed.ends_with('/') && !trimmed.contains('#');
        let authority = uri.authority().ok_or_else(refuse)?;
        let plain = !authority.host().is_empty()
            && !authority.as_str().contains('@')
            && !authority.as_str().ends_with(':')
            && authority.port_u16() != Some(0);
        if schemed && bare && plain && text.len() <= URL_BYTES_MAX {
            Ok(Self(trimmed.to_owned()))
        } else {
            Err(refuse())
        }
    }
}

impl std::fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PublicUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for PublicUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Text that is no URL to send customers to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a URL such as `http://mirror.example.org:8081` without a path, found {found:?}")]
pub struct PublicUrlError {
    /// The first 120 characters of what was found.
    pub found: String,
}

const URL_BYTES_MAX: usize = 300;
