//! A caller of control's API that is light enough for 100,000 volunteers: one kept connection, one request at a time.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use freshet_api::enrol::{Fingerprint, Secret};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One TLS connection to control.
pub(super) struct Api {
    host: String,
    stream: rustls::StreamOwned<rustls::ClientConnection, TcpStream>,
    answer: Vec<u8>,
}

impl Api {
    /// Connects to `host:port`, which must show this certificate.
    ///
    /// # Errors
    /// When it can't be reached.
    pub(super) fn connect(host: &str, fingerprint: Fingerprint) -> Result<Self> {
        let socket =
            TcpStream::connect(host).with_context(|| format!("cannot reach control's API at {host}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let config = Arc::new(freshet_api::pin::client_config(fingerprint)?);
        let name = rustls::pki_types::ServerName::try_from("control")?;
        let stream = rustls::StreamOwned::new(rustls::ClientConnection::new(config, name)?, socket);
        Ok(Self { host: host.to_owned(), stream, answer: Vec::new() })
    }

    /// Sends JSON, and reads JSON.
    ///
    /// # Errors
    /// When control refuses, with its words.
    pub(super) fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        token: Option<&Secret>,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = serde_json::to_vec(body)?;
        let answer = self.call("POST", path, token, &body)?;
        serde_json::from_slice(answer).with_context(|| format!("the answer to POST {path} is not understood"))
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// When control refuses, with its words.
    pub(super) fn get<T: DeserializeOwned>(&mut self, path: &str, token: Option<&Secret>) -> Result<T> {
        let answer = self.call("GET", path, token, &[])?;
        serde_json::from_slice(answer).with_context(|| format!("the answer to GET {path} is not understood"))
    }

    /// Sends and reads bytes.
    ///
    /// # Errors
    /// When control refuses, with its words.
    pub(super) fn call(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&Secret>,
        body: &[u8],
    ) -> Result<&[u8]> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host).into_bytes();
        if let Some(token) = token {
            write!(request, "Authorization: Bearer {}\r\n", token.to_text())?;
        }
        write!(request, "Content-Length: {}\r\n\r\n", body.len())?;
        request.extend_from_slice(body);
        self.stream.write_all(&request).context("control's API broke off")?;
        let (status, head, length) = self.read_head()?;
        while self.answer.len() < head + length {
            self.read_more()?;
        }
        let answer = &self.answer[head..head + length];
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status} {}",
            String::from_utf8_lossy(answer)
        );
        Ok(answer)
    }

    /// Status, bytes of the head, bytes of the body.
    fn read_head(&mut self) -> Result<(u16, usize, usize)> {
        self.answer.clear();
        loop {
            self.read_more()?;
            let mut fields = [httparse::EMPTY_HEADER; 32];
            let mut response = httparse::Response::new(&mut fields);
            let httparse::Status::Complete(head) = response.parse(&self.answer)? else { continue };
            let length =
                response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
            let length = match length {
                Some(field) => std::str::from_utf8(field.value)?.parse()?,
                None if response.code == Some(204) => 0,
                None => bail!("the API's answer has no Content-Length"),
            };
            return Ok((response.code.unwrap_or_default(), head, length));
        }
    }

    fn read_more(&mut self) -> Result<()> {
        let filled = self.answer.len();
        self.answer.resize(filled + READ_BYTES, 0);
        let count = self.stream.read(&mut self.answer[filled..]).context("control's API broke off")?;
        self.answer.truncate(filled + count);
        ensure!(count > 0, "control's API closed the connection");
        Ok(())
    }
}

const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const READ_BYTES: usize = 16 << 10;
