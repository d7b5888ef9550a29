//! Header fields that tell a customer what to expect and where else to find it; and paths as URLs hold them.

use http::header::{HeaderName, HeaderValue, LINK};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::catalog::FileEntry;

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

/// `Link: <url>; rel=duplicate; pri=N` (RFC 6249), the first URL being the best.
pub(super) fn duplicates(
    urls: impl Iterator<Item = String>,
) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    urls.zip(1u32..).filter_map(|(url, priority)| {
        let value = HeaderValue::try_from(format!("<{url}>; rel=duplicate; pri={priority}"));
        Some((LINK, value.ok()?))
    })
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
    fn duplicates_are_ranked() {
        let urls = ["http://a/x?t=1", "http://b/x?t=2"].map(str::to_owned);
        let fields: Vec<_> = duplicates(urls.into_iter()).collect();
        assert_eq!(fields[0].1, "<http://a/x?t=1>; rel=duplicate; pri=1");
        assert_eq!(fields[1].1, "<http://b/x?t=2>; rel=duplicate; pri=2");
    }
}
