//! Header fields that tell a customer what to expect and where else to find it; and paths as URLs hold them.

use std::borrow::Cow;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use freshet_api::NodeId;
use freshet_api::ticket::TicketError;
use freshet_engine::{Fields, InvalidField};
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

/// What a redirect for one file says, written into the buffer that is sent.
pub(super) struct RedirectHead<'a> {
    entry: &'a FileEntry<'a>,
    path: &'a str,
    encoded: Cow<'a, str>,
    expires: u32,
    tried: &'a [NodeId],
}

impl<'a> RedirectHead<'a> {
    /// Of a redirect for this file under this (decoded) path.
    pub(super) fn new(entry: &'a FileEntry<'a>, path: &'a str, expires: u32, tried: &'a [NodeId]) -> Self {
        Self { entry, path, encoded: encode(path), expires, tried }
    }

    /// `Location` is the first of `routes`; then the checksums of [`of_content`], and all of `routes` as `Link`s
    /// (RFC 6249). `None` without any route.
    pub(super) fn with<'r>(&self, mut routes: impl Iterator<Item = &'r Route>) -> Option<Fields> {
        let mut fields = Fields::new();
        let (first, mut location, mut sealed) = (routes.next()?, 0..0, Some(()));
        let written = fields.write(&LOCATION, |value| {
            location.start = value.len();
            sealed = self.url(value, first);
            location.end = value.len();
        });
        written.ok().and(sealed)?;
        self.content(&mut fields).ok()?;
        fields.write(&CACHE_CONTROL, |value| value.extend_from_slice(b"no-store")).ok()?;
        let duplicate = fields.write(&LINK, |value| {
            value.push(b'<');
            value.extend_from_within(location);
            value.extend_from_slice(b">; rel=duplicate; pri=1");
        });
        duplicate.ok()?;
        for (route, priority) in routes.zip(2u8..=DUPLICATES_MAX + 1) {
            let written = fields.write(&LINK, |value| {
                value.push(b'<');
                sealed = self.url(value, route);
                // Writing to memory does not fail.
                let _ = write!(value, ">; rel=duplicate; pri={priority}");
            });
            written.ok().and(sealed)?;
        }
        Some(fields)
    }

    fn url(&self, into: &mut Vec<u8>, route: &Route) -> Option<()> {
        ticketed_url(into, route, self.path, &self.encoded, self.entry, self.expires, self.tried).ok()
    }

    fn content(&self, fields: &mut Fields) -> Result<(), InvalidField> {
        let sums = &self.entry.checksums;
        let mut digits = [0; 44];
        let sha256 = match STANDARD.encode_slice(sums.sha256, &mut digits) {
            Ok(length) => &digits[..length],
            Err(_) => unreachable!("32 bytes are 44 digits"),
        };
        fields.write(&REPR_DIGEST, |value| {
            value.extend_from_slice(b"sha-256=:");
            value.extend_from_slice(sha256);
            value.push(b':');
        })?;
        fields.write(&DIGEST, |value| {
            value.extend_from_slice(b"SHA-256=");
            value.extend_from_slice(sha256);
        })?;
        let mut hexadecimal = [0; 32];
        if hex::encode_to_slice(sums.md4, &mut hexadecimal).is_ok() {
            fields.write(&CHECKSUM_MD4, |value| value.extend_from_slice(&hexadecimal))?;
        }
        fields.write(&LINK, |value| {
            value.push(b'<');
            value.extend_from_slice(self.encoded.as_bytes());
            value.extend_from_slice(DESCRIBED_BY);
        })
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

/// As many others as may be asked for.
const DUPLICATES_MAX: u8 = 8;
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
