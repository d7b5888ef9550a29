//! The frame of `multipart/byteranges` (RFC 9110 section 14.6): delimiters and their lengths, no bodies.

use std::ops::Range;

/// The parts of a response with several ranges.
#[derive(Debug)]
pub(crate) struct Multipart {
    boundary: String,
    /// What stands before each range's bytes.
    pub(crate) parts: Vec<(Vec<u8>, Range<u64>)>,
    /// What stands after the last.
    pub(crate) tail: Vec<u8>,
}

impl Multipart {
    /// Frames ranges of a representation. `seed` makes the boundary; it should differ from response to response,
    /// so that no file can be prepared to contain it.
    pub(crate) fn new(ranges: Vec<Range<u64>>, size: u64, content_type: &[u8], seed: u64) -> Self {
        let boundary = format!("freshet-{seed:016x}");
        let parts = ranges
            .into_iter()
            .enumerate()
            .map(|(index, range)| {
                let lead = if index == 0 { "" } else { "\r\n" };
                let mut text = format!("{lead}--{boundary}\r\nContent-Type: ").into_bytes();
                text.extend_from_slice(content_type);
                let last = range.end - 1;
                let place = format!("\r\nContent-Range: bytes {}-{last}/{size}\r\n\r\n", range.start);
                text.extend_from_slice(place.as_bytes());
                (text, range)
            })
            .collect();
        let tail = format!("\r\n--{boundary}--\r\n").into_bytes();
        Self { boundary, parts, tail }
    }

    /// The `Content-Type` of the whole.
    pub(crate) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// The `Content-Length` of the whole.
    pub(crate) fn length(&self) -> u64 {
        let parts: u64 =
            self.parts.iter().map(|(text, range)| text.len() as u64 + range.end - range.start).sum();
        parts + self.tail.len() as u64
    }
}
