//! One record of the access log, and the three ways to write it; what clients sent can't forge a line.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::LogFormat;
use crate::observe::ResponseRecord;

/// A record that owns its text.
#[derive(Debug)]
pub(super) struct Entry {
    at: SystemTime,
    peer: IpAddr,
    connection: u64,
    class: u8,
    status: u16,
    body_bytes: u64,
    promised: u64,
    elapsed: Duration,
    /// Request line, referer and user agent, one after the other.
    text: Box<str>,
    line_end: usize,
    referer_end: Option<usize>,
    has_agent: bool,
}

/// A line of JSON.
#[derive(Serialize)]
struct Json<'a> {
    time: String,
    client: IpAddr,
    connection: u64,
    class: u8,
    request: &'a str,
    status: u16,
    bytes: u64,
    bytes_promised: u64,
    micros: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
}

impl Entry {
    /// Copies a record.
    pub(super) fn new(record: &ResponseRecord<'_>, at: SystemTime) -> Self {
        let (referer, agent) = (record.referer, record.user_agent);
        let text = [record.request_line, referer.unwrap_or(""), agent.unwrap_or("")].concat();
        let line_end = record.request_line.len();
        Self {
            at,
            peer: record.peer.ip().to_canonical(),
            connection: record.connection,
            class: record.class,
            status: record.status.as_u16(),
            body_bytes: record.body_bytes,
            promised: record.body_bytes_promised,
            elapsed: record.elapsed,
            text: text.into(),
            line_end,
            referer_end: referer.map(|referer| line_end + referer.len()),
            has_agent: agent.is_some(),
        }
    }

    /// Appends the record and a newline.
    pub(super) fn write(&self, format: LogFormat, into: &mut Vec<u8>) {
        match format {
            LogFormat::Common => self.write_common(into),
            LogFormat::Combined => {
                self.write_common(into);
                into.extend_from_slice(b" \"");
                escape(self.referer().unwrap_or("-"), into);
                into.extend_from_slice(b"\" \"");
                escape(self.agent().unwrap_or("-"), into);
                into.push(b'"');
            }
            LogFormat::Json => {
                let line = Json {
                    time: format!("{}", httpdate::HttpDate::from(self.at)),
                    client: self.peer,
                    connection: self.connection,
                    class: self.class,
                    request: &self.text[..self.line_end],
                    status: self.status,
                    bytes: self.body_bytes,
                    bytes_promised: self.promised,
                    micros: u64::try_from(self.elapsed.as_micros()).unwrap_or(u64::MAX),
                    referer: self.referer(),
                    user_agent: self.agent(),
                };
                serde_json::to_writer(&mut *into, &line).expect("numbers and strings always serialize");
            }
        }
        into.push(b'\n');
    }

    fn write_common(&self, into: &mut Vec<u8>) {
        // "Sun, 06 Nov 1994 08:49:37 GMT" has fixed places for all that is needed.
        let date = httpdate::fmt_http_date(self.at);
        let (day, month, year, time) = (&date[5..7], &date[8..11], &date[12..16], &date[17..25]);
        let peer = self.peer;
        write!(into, "{peer} - - [{day}/{month}/{year}:{time} +0000] \"").expect("memory takes everything");
        escape(&self.text[..self.line_end], into);
        write!(into, "\" {} {}", self.status, self.body_bytes).expect("memory takes everything");
    }

    fn referer(&self) -> Option<&str> {
        self.referer_end.map(|end| &self.text[self.line_end..end])
    }

    fn agent(&self) -> Option<&str> {
        self.has_agent.then(|| &self.text[self.referer_end.unwrap_or(self.line_end)..])
    }
}

/// Quotes, backslashes and everything outside visible ASCII become `\xHH`.
fn escape(text: &str, into: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                write!(into, "\\x{byte:02X}").expect("memory takes everything");
            }
            byte => into.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn line(format: LogFormat) -> String {
        let record = ResponseRecord {
            connection: 3,
            class: 2,
            peer: "[::ffff:192.0.2.9]:5".parse().unwrap(),
            request_line: "GET /\\\" HTTP/1.1",
            path: b"/",
            referer: Some("http://r/\n"),
            user_agent: None,
            status: StatusCode::PARTIAL_CONTENT,
            body_bytes: 5,
            body_bytes_told: None,
            body_bytes_promised: 9,
            elapsed: Duration::from_millis(2),
        };
        let mut text = Vec::new();
        Entry::new(&record, SystemTime::UNIX_EPOCH).write(format, &mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn formats() {
        let common = "192.0.2.9 - - [01/Jan/1970:00:00:00 +0000] \"GET /\\x5C\\x22 HTTP/1.1\" 206 5";
        assert_eq!(line(LogFormat::Common), format!("{common}\n"));
        assert_eq!(line(LogFormat::Combined), format!("{common} \"http://r/\\x0A\" \"-\"\n"));
        let json: serde_json::Value = serde_json::from_str(&line(LogFormat::Json)).unwrap();
        assert_eq!(json["request"], "GET /\\\" HTTP/1.1");
        assert_eq!(json["bytes"], 5);
        assert_eq!(json["bytes_promised"], 9);
        assert_eq!(json["micros"], 2_000);
        assert_eq!(json["referer"], "http://r/\n");
        assert_eq!(json.get("user_agent"), None);
    }
}
