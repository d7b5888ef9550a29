//! Writing the head of a response; it decides no status and sends nothing.

use std::io::Write as _;
use std::ops::Range;
use std::time::SystemTime;

use ::http::{HeaderName, HeaderValue, StatusCode};

/// The 29 bytes of an IMF-fixdate.
pub(crate) type Date = [u8; 29];

/// A head being written.
#[derive(Debug)]
pub(crate) struct HeadWriter {
    bytes: Vec<u8>,
}

/// Where the date stands in every head this module writes.
pub(crate) fn date_span(head: &[u8]) -> Option<Range<usize>> {
    let line = memchr::memchr(b'\n', head)? + 1;
    let start = line + b"Date: ".len();
    Some(start..start + size_of::<Date>())
}

impl HeadWriter {
    /// Begins with the status line, the date and the server's name.
    pub(crate) fn new(status: StatusCode, date: &Date) -> Self {
        let mut bytes = Vec::with_capacity(HEAD_BYTES_TYPICAL);
        first_lines(&status, date).into_iter().for_each(|part| bytes.extend_from_slice(part));
        Self { bytes }
    }

    /// Adds a field.
    pub(crate) fn field(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b": ");
        self.bytes.extend_from_slice(value);
        self.bytes.extend_from_slice(b"\r\n");
        self
    }

    /// Adds `Content-Length`.
    pub(crate) fn length(&mut self, length: u64) -> &mut Self {
        self.number(format_args!("Content-Length: {length}\r\n"))
    }

    /// Adds `Content-Range` of a part.
    pub(crate) fn content_range(&mut self, range: &Range<u64>, size: u64) -> &mut Self {
        let last = range.end.saturating_sub(1);
        self.number(format_args!("Content-Range: bytes {}-{last}/{size}\r\n", range.start))
    }

    /// Adds the `Content-Range` of a 416.
    pub(crate) fn unsatisfied_range(&mut self, size: u64) -> &mut Self {
        self.number(format_args!("Content-Range: bytes */{size}\r\n"))
    }

    /// Adds `Last-Modified`.
    pub(crate) fn last_modified(&mut self, time: SystemTime) -> &mut Self {
        self.number(format_args!("Last-Modified: {}\r\n", httpdate::HttpDate::from(time)))
    }

    /// Adds a site's fields, save those that are the engine's own or that `skip` names.
    pub(crate) fn site_fields(
        &mut self,
        fields: &[(HeaderName, HeaderValue)],
        skip: impl Fn(&HeaderName) -> bool,
    ) -> &mut Self {
        for (name, value) in fields {
            if !is_engines_own(name) && !skip(name) {
                self.field(name.as_str(), value.as_bytes());
            }
        }
        self
    }

    /// Ends the head; `connection` is `Connection`'s value where the version's default does not say it.
    pub(crate) fn end(mut self, connection: Option<&str>) -> Vec<u8> {
        if let Some(value) = connection {
            self.field("Connection", value.as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n");
        self.bytes
    }

    fn number(&mut self, text: std::fmt::Arguments<'_>) -> &mut Self {
        self.bytes.write_fmt(text).expect("writing to memory does not fail");
        self
    }
}

/// The status line, the date and the server's name, in parts.
pub(crate) fn first_lines<'a>(status: &'a StatusCode, date: &'a Date) -> [&'a [u8]; 7] {
    let reason = status.canonical_reason().unwrap_or("");
    let code = status.as_str().as_bytes();
    [b"HTTP/1.1 ", code, b" ", reason.as_bytes(), b"\r\nDate: ", date, b"\r\nServer: freshet\r\n"]
}

/// Fields that frame the message or belong to the connection.
pub(crate) fn is_engines_own(name: &HeaderName) -> bool {
    use ::http::header;
    [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::DATE,
        header::SERVER,
        header::TRANSFER_ENCODING,
    ]
    .contains(name)
}

const HEAD_BYTES_TYPICAL: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_where_it_is_looked_for() {
        let date = *b"Thu, 01 Jan 2026 00:00:00 GMT";
        let mut writer = HeadWriter::new(StatusCode::PARTIAL_CONTENT, &date);
        writer.length(3).content_range(&(1..4), 9).field("X", b"y");
        let head = writer.end(Some("close"));
        assert_eq!(&head[date_span(&head).unwrap()], &date);
        assert_eq!(
            String::from_utf8(head).unwrap(),
            "HTTP/1.1 206 Partial Content\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nServer: freshet\r\n\
             Content-Length: 3\r\nContent-Range: bytes 1-3/9\r\nX: y\r\nConnection: close\r\n\r\n"
        );
    }
}
