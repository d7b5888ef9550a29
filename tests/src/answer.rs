//! One HTTP request with exactly the bytes that a test wants, and the answer to it: for what no well-behaved client
//! would send.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};
use freshet_testbed::Host;

use crate::PATIENCE;

/// An answer, as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code; 0 when the connection was closed without an answer.
    pub status: u16,
    head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Gets `target`, which is sent as it is, and follows no redirect.
    ///
    /// # Errors
    ///
    /// When no connection comes about.
    pub fn get(host: &Host, addr: SocketAddr, target: &str) -> Result<Answer> {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
        raw_request(host, addr, request.into_bytes())
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).into_iter().next()
    }

    /// Every value of a header that comes several times.
    #[must_use]
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let pairs = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// Where a redirect leads: the address and the target to ask it for.
    ///
    /// # Errors
    ///
    /// When this is no redirect to an address.
    pub fn location(&self) -> Result<(SocketAddr, String)> {
        let location =
            self.header("location").with_context(|| format!("expected a redirect, got {}", self.head))?;
        let rest =
            location.strip_prefix("http://").with_context(|| format!("expected http, got {location}"))?;
        let (addr, target) =
            rest.split_once('/').with_context(|| format!("expected a path in {location}"))?;
        let addr = addr.parse().with_context(|| format!("expected an address in {location}"))?;
        Ok((addr, format!("/{target}")))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends `request` from `host` and reads until the other side closes.
///
/// # Errors
///
/// When no connection comes about or nothing more comes for long.
pub fn raw_request(host: &Host, addr: SocketAddr, request: Vec<u8>) -> Result<Answer> {
    let stream = host.on_seat(move || TcpStream::connect_timeout(&addr, PATIENCE))?;
    let mut stream = stream.with_context(|| format!("connecting to {addr}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // A server that refuses early may close before it has read everything.
    let _ = stream.write_all(&request);
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes)
        && bytes.is_empty()
        && error.kind() != std::io::ErrorKind::ConnectionReset
    {
        return Err(error).context("reading an answer");
    }
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok(Answer { status, head, body: bytes[end..].to_vec() })
}
