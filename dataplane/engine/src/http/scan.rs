//! Finding where a request's head ends, however its bytes arrive; it looks at line ends only, never at meaning.

use super::Rejection;

/// Looks for the end of a head in a buffer that grows; bytes are looked at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeadScan {
    /// Empty lines before the request line (RFC 9112 section 2.2).
    skipped: u32,
    /// Bytes that were looked at.
    looked_at: u32,
    /// Where the line that is being read starts.
    line_start: u32,
}

/// What is known of the head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scanned {
    /// More bytes are needed; whether any of the head is there already.
    Partial {
        /// False while there are only empty lines.
        begun: bool,
    },
    /// The head is `buffer[start..end]`, the empty line included.
    Complete {
        /// First byte of the request line.
        start: usize,
        /// First byte after the head.
        end: usize,
    },
}

impl HeadScan {
    /// Looks at the bytes of `buffer` that are new since the last call.
    ///
    /// # Errors
    /// [`Rejection`] at once, without waiting for the end: a bare LF, a first byte that begins no method, or
    /// too many empty lines.
    pub(crate) fn advance(&mut self, buffer: &[u8]) -> Result<Scanned, Rejection> {
        if self.looked_at == self.skipped {
            self.skip_empty_lines(buffer)?;
            match buffer.get(self.skipped as usize) {
                None | Some(b'\r') => return Ok(Scanned::Partial { begun: false }),
                Some(first) if !first.is_ascii_alphanumeric() && !TOKEN_MARKS.contains(first) => {
                    return Err(Rejection::bad(
                        "expected a method name at the start of the request line; is this TLS sent to a plain port?\n",
                    ));
                }
                Some(_) => {}
            }
        }
        while let Some(found) = memchr::memchr(b'\n', &buffer[self.looked_at as usize..]) {
            let newline = self.looked_at as usize + found;
            if newline == 0 || buffer[newline - 1] != b'\r' {
                return Err(Rejection::bad("expected lines to end in CR LF, found a bare LF\n"));
            }
            let line_start = self.line_start as usize;
            self.looked_at = position(newline + 1);
            self.line_start = self.looked_at;
            if newline == line_start + 1 {
                return Ok(Scanned::Complete { start: self.skipped as usize, end: newline + 1 });
            }
        }
        self.looked_at = position(buffer.len());
        Ok(Scanned::Partial { begun: true })
    }

    fn skip_empty_lines(&mut self, buffer: &[u8]) -> Result<(), Rejection> {
        while buffer[self.skipped as usize..].starts_with(b"\r\n") {
            self.skipped += 2;
            if self.skipped > EMPTY_LINE_BYTES_MAX {
                return Err(Rejection::bad("expected a request line, found too many empty lines\n"));
            }
        }
        self.looked_at = self.skipped;
        self.line_start = self.skipped;
        if buffer.get(self.skipped as usize) == Some(&b'\r')
            && buffer.get(self.skipped as usize + 1).is_some_and(|&next| next != b'\n')
        {
            return Err(Rejection::bad("expected lines to end in CR LF, found a bare CR\n"));
        }
        Ok(())
    }
}

/// A head is bounded far below 4 GiB by [`Limits::head_bytes_max`](crate::Limits).
fn position(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// Bytes of empty lines that are forgiven before a request line.
const EMPTY_LINE_BYTES_MAX: u32 = 8;

/// The marks that RFC 9110 section 5.6.2 allows in a token besides letters and digits.
const TOKEN_MARKS: &[u8] = b"!#$%&'*+-.^_`|~";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_end_at_every_split() {
        let text = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET";
        for split in 0..text.len() {
            let mut scan = HeadScan::default();
            let first = scan.advance(&text[..split]).unwrap();
            let complete = Scanned::Complete { start: 2, end: text.len() - 3 };
            if split >= text.len() - 3 {
                assert_eq!(first, complete, "split {split}");
            } else {
                assert_eq!(first, Scanned::Partial { begun: split > 2 }, "split {split}");
                assert_eq!(scan.advance(text).unwrap(), complete, "split {split}");
            }
        }
    }

    #[test]
    fn refuses_early() {
        for bad in
            [&b"GET / HTTP/1.1\n"[..], b"\x16\x03\x01", b"\nGET", b"\r\r", b" GET", b"\r\n\r\n\r\n\r\n\r\n"]
        {
            assert!(HeadScan::default().advance(bad).is_err(), "{bad:?}");
        }
    }
}
