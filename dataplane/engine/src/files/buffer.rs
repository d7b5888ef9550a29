//! The bytes of a small file with room before them for a head, so that both leave in one piece and are kept once.

use bytes::{Bytes, BytesMut};

/// A head and what follows it, in one allocation; either may be empty.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Bytes,
    head_start: usize,
    body_start: usize,
}

impl Buffer {
    /// Where a body begins; before it is room for a usual head with the checksums that a site adds. A longer one
    /// costs a copy of the body, once.
    pub(crate) const BODY_AT: usize = 512;

    /// Takes a body that stands behind [`Buffer::BODY_AT`] bytes that mean nothing.
    pub(crate) fn of_body(bytes: Vec<u8>) -> Self {
        let body_start = Self::BODY_AT.min(bytes.len());
        Self { bytes: bytes.into(), head_start: body_start, body_start }
    }

    /// Bytes of the head.
    pub(crate) fn head_length(&self) -> usize {
        self.body_start - self.head_start
    }

    /// The body; it stays as it is whatever becomes of the buffer.
    pub(crate) fn body(&self) -> Bytes {
        self.bytes.slice(self.body_start..)
    }

    /// Head and body.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.head_start..]
    }

    /// Head and body; they stay as they are whatever becomes of the buffer.
    pub(crate) fn whole(&self) -> Bytes {
        self.bytes.slice(self.head_start..)
    }

    /// Puts another head before the body.
    pub(crate) fn set_head(&mut self, head: &[u8]) {
        if head.len() > self.body_start {
            let mut longer = BytesMut::with_capacity(head.len() + self.bytes.len() - self.body_start);
            longer.extend_from_slice(head);
            longer.extend_from_slice(&self.bytes[self.body_start..]);
            *self = Self { bytes: longer.freeze(), head_start: 0, body_start: head.len() };
            return;
        }
        self.head_start = self.body_start - head.len();
        self.write(0, head);
    }

    /// Writes over a part of the head, `at` bytes from its start.
    ///
    /// In place when nobody is sending it, else in a copy: what is under way stays as it was.
    pub(crate) fn write(&mut self, at: usize, part: &[u8]) {
        let mut bytes = match std::mem::take(&mut self.bytes).try_into_mut() {
            Ok(bytes) => bytes,
            Err(shared) => BytesMut::from(&shared[..]),
        };
        let start = self.head_start + at;
        bytes[start..start + part.len()].copy_from_slice(part);
        self.bytes = bytes.freeze();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(body: &[u8]) -> Buffer {
        Buffer::of_body([&[0; Buffer::BODY_AT], body].concat())
    }

    #[test]
    fn heads_of_any_length_stand_before_the_body() {
        let mut kept = buffer(b"body");
        for length in [0, 1, Buffer::BODY_AT, 3 * Buffer::BODY_AT, 7] {
            kept.set_head(&vec![b'h'; length]);
            assert_eq!(kept.head_length(), length);
            assert_eq!(kept.whole(), [vec![b'h'; length], b"body".to_vec()].concat());
            assert_eq!(kept.body(), b"body"[..]);
        }
    }

    #[test]
    fn what_is_under_way_stays_as_it_was() {
        let mut kept = buffer(b"body");
        kept.set_head(b"date 1\n");
        let under_way = kept.whole();
        kept.write(5, b"2");
        assert_eq!(under_way, b"date 1\nbody"[..]);
        assert_eq!(kept.whole(), b"date 2\nbody"[..]);
    }

    #[test]
    fn a_head_alone_is_kept_too() {
        let mut kept = Buffer::default();
        kept.set_head(b"head");
        assert_eq!((kept.whole(), kept.body()), (Bytes::from_static(b"head"), Bytes::new()));
    }
}
