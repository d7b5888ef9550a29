//! What the fuzz targets reach of the grammar, with the properties that must hold; not part of the public interface.

use bytes::Bytes;

use crate::http::body::Drain;
use crate::http::head::{Framing, Head, Resource, Verb};
use crate::http::range::Ranges;
use crate::http::scan::{HeadScan, Scanned};

/// Reads a stream of requests as a connection does, whole and cut in two at `cut`.
///
/// # Panics
/// When the two differ, or a head that was accepted breaks a promise of [`Request`](crate::Request).
pub fn requests(stream: &[u8], cut: usize) {
    let whole = read(stream, stream.len());
    let in_two = read(stream, cut.min(stream.len()));
    assert_eq!(whole, in_two, "a cut must change nothing");
}

/// Reads a range set.
///
/// # Panics
/// When a range leaves the representation, is empty, or overlaps another.
pub fn ranges(value: &[u8], size: u64) {
    if let Ranges::Satisfiable(ranges) = Ranges::read(value, size, 16) {
        assert!((1..=16).contains(&ranges.len()));
        for (index, range) in ranges.iter().enumerate() {
            assert!(range.start < range.end && range.end <= size);
            assert!(ranges[..index].iter().all(|other| other.end < range.start || range.end < other.start));
        }
    }
}

/// Reads past a chunked body, whole and byte by byte.
///
/// # Panics
/// When the two differ.
pub fn chunks(body: &[u8]) {
    let drained = |step: usize| {
        let mut drain = Drain::new(Framing::Chunked, ALLOWANCE).ok()?;
        let mut used = 0;
        for piece in body.chunks(step.max(1)) {
            if drain.is_done() {
                break;
            }
            used += drain.advance(piece).ok()?;
        }
        Some((used, drain.is_done()))
    };
    assert_eq!(drained(body.len()), drained(1));
}

/// What a stream comes to: each request's line and path, and the status of the refusal that ends it, if any.
fn read(stream: &[u8], first: usize) -> (Vec<(String, Vec<u8>)>, Option<u16>) {
    let mut seen = Vec::new();
    let mut scan = HeadScan::default();
    let mut at = 0;
    let mut available = first;
    loop {
        match scan.advance(&stream[at..available]) {
            Ok(Scanned::Partial { .. }) if available < stream.len() => available = stream.len(),
            Ok(Scanned::Partial { .. }) => return (seen, None),
            Err(rejection) => return (seen, Some(rejection.status.as_u16())),
            Ok(Scanned::Complete { start, end }) => {
                assert!(start < end && at + end <= available);
                let bytes = Bytes::copy_from_slice(&stream[at + start..at + end]);
                at += end;
                scan = HeadScan::default();
                match Head::parse(bytes, 64, ::http::HeaderMap::new()) {
                    Ok(head) => {
                        check(&head);
                        seen.push((head.line().to_owned(), head.path().to_vec()));
                        if head.framing != Framing::None {
                            return (seen, None);
                        }
                    }
                    Err(rejection) => return (seen, Some(rejection.status.as_u16())),
                }
            }
        }
    }
}

fn check(head: &Head) {
    assert!(!head.line().is_empty());
    if head.resource == Resource::Server {
        assert!(matches!(head.verb, Verb::Options | Verb::Other));
        return;
    }
    let path = head.path();
    assert!(path.starts_with(b"/") && !path.contains(&0));
    assert!(!path.windows(2).any(|pair| pair == b"//"));
    assert!(path.split(|&byte| byte == b'/').all(|segment| segment != b"." && segment != b".."));
    let visible = |text: &str| text.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    assert!(head.raw_path().starts_with('/') && visible(head.raw_path()));
    assert!(head.query().is_none_or(visible));
    assert!(head.host().is_none_or(|host| host.is_empty() || visible(host)));
}

/// Bytes of a body that are read past.
const ALLOWANCE: u64 = 4_096;
