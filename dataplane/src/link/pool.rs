//! Idle connections kept for the next request, by where they go; bounded in number and age.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;

use super::LinkError;

/// Where a connection goes: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) tls: bool,
    /// Without the brackets of an IPv6 literal.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Place {
    pub(super) fn of(uri: &http::Uri) -> Result<Self, LinkError> {
        let refuse = || LinkError::BadUrl { url: uri.to_string() };
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(refuse()),
        };
        let host = uri.host().ok_or_else(refuse)?.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if host.is_empty() || port == 0 { Err(refuse()) } else { Ok(Self { tls, host: host.into(), port }) }
    }

    pub(super) fn host_header(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.tls { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.host_header())
    }
}

pub(super) struct Pool {
    idle_max: usize,
    idle_timeout: Duration,
    idle: Mutex<HashMap<Place, Vec<Idle>>>,
}

struct Idle {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

impl Pool {
    pub(super) fn new(idle_max: usize, idle_timeout: Duration) -> Self {
        Self { idle_max, idle_timeout, idle: Mutex::new(HashMap::new()) }
    }

    /// The connection to `place` that was used last, if one is still open.
    pub(super) fn take(&self, place: &Place) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget_old(&mut idle);
        idle.get_mut(place)?.pop().map(|kept| kept.sender)
    }

    /// Keeps a connection whose response was read to its end.
    pub(super) fn put(&self, place: Place, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget_old(&mut idle);
        if !sender.is_closed() && idle.values().map(Vec::len).sum::<usize>() < self.idle_max {
            idle.entry(place).or_default().push(Idle { sender, since: Instant::now() });
        }
    }

    /// Connections that are kept and still open.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.values().flatten().filter(|kept| !kept.sender.is_closed()).count()
    }

    fn forget_old(&self, idle: &mut HashMap<Place, Vec<Idle>>) {
        idle.retain(|_, kept| {
            kept.retain(|kept| !kept.sender.is_closed() && kept.since.elapsed() < self.idle_timeout);
            !kept.is_empty()
        });
    }
}
