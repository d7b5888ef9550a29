//! Header fields that tell a customer what to expect and where else to find it; and paths as URLs hold them.

use std::borrow::Cow;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use freshet_api::NodeId;
use freshet_api::ticket::TicketError;
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue, LINK, LOCATION};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::catalog::FileEntry;
use crate::routing::Route;

/// Checksums of a whole file, and where its Metalink is: `Repr-Digest` (RFC 9530), `Digest` (RFC 3230),
/// `X-Checksum-MD4` (no registered field carries MD4), `Link` (RFC 6249).
pub(super) fn of_content(entry: &FileEntry<'_>, encoded_path: &str) -> Vec<(HeaderName, HeaderValue)> {
    let sums = &entry.checksums;
    let described =
        format!("<{encoded_path}.meta4>; rel=describedby; type=\"{}\"", super::metalink::CONTENT_TYPE);
    let fields = [
        (REPR_DIGEST, sums.repr_digest()),
        (DIGEST, sums.digest()),
        (CHECKSUM_MD4, sums.md4_hex()),
        (LINK, described),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value).ok()?))).collect()
}

/// The fields of a redirect, written into one buffer that they all share.
pub(super) struct RedirectHead<'a> {
    entry: &'a FileEntry<'a>,
    path: &'a str,
    encoded: Cow<'a, str>,
    bytes: Vec<u8>,
    ends: [(HeaderName, usize); FIELDS_MAX],
    count: usize,
}

impl<'a> RedirectHead<'a> {
    /// Of a redirect for this file under this (decoded) path.
    pub(super) fn new(entry: &'a FileEntry<'a>, path: &'a str) -> Self {
        Self {
            entry,
            path,
            encoded: encode(path),
            bytes: Vec::with_capacity(BYTES_USUAL),
            ends: [const { (LINK, 0) }; FIELDS_MAX],
            count: 0,
        }
    }

    /// `Location` is the first of `routes`; then the checksums of [`of_content`], and all of `routes` as `Link`s
    /// (RFC 6249). `None` without any route.
    pub(super) fn with<'r>(
        mut self,
        routes: impl Iterator<Item = &'r Route>,
        expires: u32,
        tried: &[NodeId],
    ) -> Option<(HeaderValue, Vec<(HeaderName, HeaderValue)>)> {
        for (route, place) in routes.zip(0usize..) {
            if place == 0 {
                self.url(route, expires, tried)?;
                let location = 0..self.bytes.len();
                self.end(LOCATION);
                self.content();
                self.bytes.extend_from_slice(b"no-store");
                self.end(CACHE_CONTROL);
                self.bytes.push(b'<');
                self.bytes.extend_from_within(location);
                self.bytes.extend_from_slice(b">; rel=duplicate; pri=1");
                self.end(LINK);
                continue;
            }
            if self.count >= FIELDS_MAX {
                break;
            }
            self.bytes.push(b'<');
            self.url(route, expires, tried)?;
            // Writing to memory does not fail.
            let _ = write!(self.bytes, ">; rel=duplicate; pri={}", place + 1);
            self.end(LINK);
        }
        self.finish()
    }

    fn url(&mut self, route: &Route, expires: u32, tried: &[NodeId]) -> Option<()> {
        ticketed_url(&mut self.bytes, route, self.path, &self.encoded, self.entry, expires, tried).ok()
    }

    fn content(&mut self) {
        let sums = &self.entry.checksums;
        let mut digits = [0; 44];
        let sha256 = match STANDARD.encode_slice(sums.sha256, &mut digits) {
            Ok(length) => &digits[..length],
            Err(_) => unreachable!("32 bytes are 44 digits"),
        };
        self.bytes.extend_from_slice(b"sha-256=:");
        self.bytes.extend_from_slice(sha256);
        self.bytes.push(b':');
        self.end(REPR_DIGEST);
        self.bytes.extend_from_slice(b"SHA-256=");
        self.bytes.extend_from_slice(sha256);
        self.end(DIGEST);
        let mut hexadecimal = [0; 32];
        if hex::encode_to_slice(sums.md4, &mut hexadecimal).is_ok() {
            self.bytes.extend_from_slice(&hexadecimal);
            self.end(CHECKSUM_MD4);
        }
        self.bytes.push(b'<');
        self.bytes.extend_from_slice(self.encoded.as_bytes());
        self.bytes.extend_from_slice(DESCRIBED_BY);
        self.end(LINK);
    }

    /// The field that was written since the last one.
    fn end(&mut self, name: HeaderName) {
        self.ends[self.count] = (name, self.bytes.len());
        self.count += 1;
    }

    fn finish(self) -> Option<(HeaderValue, Vec<(HeaderName, HeaderValue)>)> {
        let bytes = Bytes::from(self.bytes);
        let mut begin = 0;
        let mut location = None;
        let mut fields = Vec::with_capacity(self.count);
        for (name, end) in self.ends.into_iter().take(self.count) {
            let value = HeaderValue::from_maybe_shared(bytes.slice(begin..end)).ok()?;
            begin = end;
            if name == LOCATION {
                location = Some(value);
            } else {
                fields.push((name, value));
            }
        }
        Some((location?, fields))
    }
}

/// Appends where `route` has the file, with a ticket.
///
/// # Errors
/// When the customer was sent around long enough; what was appended is worth nothing then.
pub(super) fn ticketed_url(
    url: &mut Vec<u8>,
    route: &Route,
    path: &str,
    encoded: &str,
    entry: &FileEntry<'_>,
    expires: u32,
    tried: &[NodeId],
) -> Result<(), TicketError> {
    url.extend_from_slice(route.delivery_url.as_bytes());
    url.extend_from_slice(encoded.as_bytes());
    url.extend_from_slice(TICKET_QUERY);
    route.sealer.seal_into(url, expires, &entry.checksums.blake3, tried, route.node, path.as_bytes())
}

/// As [`encode_path`]; most paths are as a URL holds them.
fn encode(path: &str) -> Cow<'_, str> {
    if path.bytes().all(|byte| PLAIN[usize::from(byte)]) {
        Cow::Borrowed(path)
    } else {
        encode_path(path).into()
    }
}

/// A path (or a segment) as a URL holds it; `/` stays.
pub(crate) fn encode_path(path: &str) -> String {
    utf8_percent_encode(path, PATH).to_string()
}

/// The last segment of a path, encoded for a relative reference that is never taken for a scheme.
pub(super) fn encode_name(name: &str) -> String {
    format!("./{}", encode_path(name))
}

/// Unreserved characters and those that RFC 3986 allows in a segment and that no client is known to mangle.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b'+')
    .remove(b':')
    .remove(b'@')
    .remove(b',')
    .remove(b'=');

/// What of [`PATH`] is ASCII and stays as it is.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let other = b"-._~/+:@,=";
        let mut place = 0;
        plain[byte] = (byte as u8).is_ascii_alphanumeric();
        while place < other.len() {
            plain[byte] |= other[place] as usize == byte;
            place += 1;
        }
        byte += 1;
    }
    plain
};

/// Checksums, where the Metalink is, and `Cache-Control`.
const FIELDS_OF_CONTENT: usize = 5;
/// With a location, the same as a duplicate, and as many others as may be asked for.
const FIELDS_MAX: usize = FIELDS_OF_CONTENT + 2 + 8;
/// With one duplicate and paths of usual lengths.
const BYTES_USUAL: usize = 768;
const TICKET_QUERY: &[u8] = b"?t=";
const DESCRIBED_BY: &[u8] = b".meta4>; rel=describedby; type=\"application/metalink4+xml\"";
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
const DIGEST: HeaderName = HeaderName::from_static("digest");
const CHECKSUM_MD4: HeaderName = HeaderName::from_static("x-checksum-md4");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded_so_that_they_come_back() {
        assert_eq!(encode_path("/pool/g++_1:2~rc@x.deb"), "/pool/g++_1:2~rc@x.deb");
        assert_eq!(encode_path("/a b/ä?#%"), "/a%20b/%C3%A4%3F%23%25");
        assert_eq!(encode_name("javascript:alert(1)"), "./javascript:alert%281%29");
    }

    #[test]
    fn what_is_plain_is_what_encoding_leaves_alone() {
        for byte in 0..128u8 {
            let text = char::from(byte).to_string();
            assert_eq!(PLAIN[usize::from(byte)], encode_path(&text) == text, "{text:?}");
        }
        assert!(!PLAIN[200]);
    }

    #[test]
    fn the_link_to_the_metalink_has_its_type() {
        let text = std::str::from_utf8(DESCRIBED_BY).unwrap();
        assert!(text.ends_with(&format!("type=\"{}\"", crate::front_door::metalink::CONTENT_TYPE)));
    }
}
