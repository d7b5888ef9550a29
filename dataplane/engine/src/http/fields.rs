//! The fields of an answer that has no body, written once, into the buffer that is sent; it decides no status.

use ::http::{HeaderName, HeaderValue, StatusCode, header};

use super::response::{Date, first_lines, is_engines_own};

/// The header fields of an answer without a body.
///
/// A site writes each value straight into the buffer that goes to the client; the engine puts its own lines before and
/// behind them. So a head of many fields costs one allocation and no copy.
#[derive(Clone, Debug)]
pub struct Fields {
    /// Room for the engine's own lines, then fields.
    bytes: Vec<u8>,
}

/// A value had a character that may not stand in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a field value without control characters")]
pub struct InvalidField;

impl Fields {
    /// None yet.
    pub fn new() -> Self {
        let mut bytes = Vec::with_capacity(CAPACITY);
        bytes.resize(ROOM, 0);
        Self { bytes }
    }

    /// Adds a field whose value `write` appends to the buffer. Fields that frame the message or belong to the
    /// connection are the engine's own and are left out.
    ///
    /// # Errors
    /// When the value has a control character; nothing is added then.
    ///
    /// # Panics
    /// When `write` does anything but append.
    pub fn write(&mut self, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), InvalidField> {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(shown(name).as_bytes());
        self.bytes.extend_from_slice(b": ");
        let value = self.bytes.len();
        write(&mut self.bytes);
        assert!(self.bytes.len() >= value, "a value is appended to what is there");
        let fine = is_value(&self.bytes[value..]);
        if !fine || is_engines_own(name) {
            self.bytes.truncate(begin);
            return if fine { Ok(()) } else { Err(InvalidField) };
        }
        self.bytes.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Adds a field with a value that is known to be one.
    pub fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        // A HeaderValue has no control characters.
        let _ = self.write(name, |bytes| bytes.extend_from_slice(value.as_bytes()));
    }

    /// The whole head: status line, date and server before the fields; the length of no body behind them, and
    /// `connection` as the version wants it. The head begins at the number that comes with it.
    pub(crate) fn finish(
        mut self,
        status: StatusCode,
        date: &Date,
        connection: Option<&str>,
    ) -> (Vec<u8>, usize) {
        let lines = first_lines(&status, date);
        let length: usize = lines.iter().map(|line| line.len()).sum();
        let begin = ROOM.checked_sub(length).expect("the longest reason of a status is 31 bytes");
        let mut at = begin;
        for line in lines {
            self.bytes[at..at + line.len()].copy_from_slice(line);
            at += line.len();
        }
        self.bytes.extend_from_slice(b"Content-Length: 0\r\n");
        if let Some(value) = connection {
            self.bytes.extend_from_slice(b"Connection: ");
            self.bytes.extend_from_slice(value.as_bytes());
            self.bytes.extend_from_slice(b"\r\n");
        }
        self.bytes.extend_from_slice(b"\r\n");
        (self.bytes, begin)
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self::new()
    }
}

/// As a [`HeaderValue`] must be; without a branch in the loop, so that many bytes are looked at together.
fn is_value(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |fine, &byte| fine & ((byte >= b' ') & (byte != 127) | (byte == b'\t')))
}

/// Scripts look for this one as it is written everywhere, though case means nothing.
fn shown(name: &HeaderName) -> &str {
    if *name == header::LOCATION { "Location" } else { name.as_str() }
}

/// For the engine's lines: 71 bytes and a reason.
const ROOM: usize = 128;
/// A redirect with checksums, tickets and a duplicate has a thousand bytes.
const CAPACITY: usize = 1_536;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DATE: Date = *b"Thu, 01 Jan 2026 00:00:00 GMT";

    fn text(fields: Fields, status: StatusCode, connection: Option<&str>) -> String {
        let (bytes, begin) = fields.finish(status, &DATE, connection);
        String::from_utf8(bytes[begin..].to_vec()).unwrap()
    }

    #[test]
    fn a_head_is_the_engines_lines_around_the_sites() {
        let mut fields = Fields::new();
        fields.write(&header::LOCATION, |value| value.extend_from_slice(b"http://a/b")).unwrap();
        fields.add(&HeaderName::from_static("digest"), &HeaderValue::from_static("md5=x"));
        assert_eq!(
            text(fields, StatusCode::FOUND, Some("close")),
            "HTTP/1.1 302 Found\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nServer: freshet\r\n\
             Location: http://a/b\r\ndigest: md5=x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn the_longest_reason_has_room() {
        for code in 100..1000 {
            let status = StatusCode::from_u16(code).unwrap();
            assert!(text(Fields::new(), status, None).starts_with(&format!("HTTP/1.1 {code} ")));
        }
    }

    #[test]
    fn what_frames_the_message_is_not_the_sites_to_say() {
        let mut fields = Fields::new();
        for name in [header::CONTENT_LENGTH, header::CONNECTION, header::DATE, header::TRANSFER_ENCODING] {
            fields.add(&name, &HeaderValue::from_static("99"));
        }
        assert!(!text(fields, StatusCode::FOUND, None).contains("99"));
    }

    proptest! {
        /// A value is taken exactly where it would be a field's, and leaves no trace where it is not.
        #[test]
        fn no_value_breaks_out_of_its_line(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut fields = Fields::new();
            let taken = fields.write(&header::LOCATION, |bytes| bytes.extend_from_slice(&value));
            prop_assert_eq!(taken.is_ok(), HeaderValue::from_bytes(&value).is_ok());
            let (bytes, begin) = fields.finish(StatusCode::FOUND, &DATE, None);
            let ends = bytes[begin..].windows(2).filter(|pair| pair == b"\r\n").count();
            prop_assert_eq!(ends, if taken.is_ok() { 6 } else { 5 });
        }
    }
}
