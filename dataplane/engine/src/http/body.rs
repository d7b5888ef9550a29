//! Reading past a request's body, whichever way it is framed; the bytes mean nothing to a static server.

use super::Rejection;
use super::head::Framing;
use ::http::StatusCode;

/// How much of a body is still to come.
#[derive(Debug)]
pub(crate) struct Drain {
    state: State,
    /// Bytes, framing included, that may still come before the connection is given up.
    allowance: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Bytes of a body or a chunk; the flag tells that a chunk's CR LF follows.
    Data {
        left: u64,
        chunk: bool,
    },
    /// The digits of a chunk's size.
    Size {
        value: u64,
        digits: u8,
    },
    /// A chunk extension, up to the line's end.
    Extension {
        value: u64,
    },
    /// The LF that ends a size line.
    SizeEnd {
        value: u64,
    },
    /// The CR, then the LF, after a chunk.
    ChunkEnd {
        carriage_return: bool,
    },
    /// A trailer line; the flag tells whether it has any byte.
    Trailer {
        begun: bool,
        carriage_return: bool,
    },
    Done,
}

impl Drain {
    /// Begins with a body; `allowance` bounds its bytes (see [`Limits::body_drain_bytes_max`](crate::Limits)).
    ///
    /// # Errors
    /// 413 when the body says at once that it is longer.
    pub(crate) fn new(framing: Framing, allowance: u64) -> Result<Self, Rejection> {
        let state = match framing {
            Framing::None => State::Done,
            Framing::Length(length) if length > allowance => return Err(too_long()),
            Framing::Length(length) => State::Data { left: length, chunk: false },
            Framing::Chunked => State::Size { value: 0, digits: 0 },
        };
        Ok(Self { state, allowance })
    }

    /// Whether the whole body was read past.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads past what belongs to the body and returns how many bytes of `input` that were.
    ///
    /// # Errors
    /// 413 beyond the allowance, 400 for a broken chunk; the framing of what follows is then unknown.
    pub(crate) fn advance(&mut self, input: &[u8]) -> Result<usize, Rejection> {
        let mut used = 0;
        while used < input.len() && self.state != State::Done {
            let step = match self.state {
                State::Data { left, chunk } => {
                    let step = left.min((input.len() - used) as u64);
                    self.state = match (left - step, chunk) {
                        (0, true) => State::ChunkEnd { carriage_return: false },
                        (0, false) => State::Done,
                        (left, chunk) => State::Data { left, chunk },
                    };
                    usize::try_from(step).unwrap_or(usize::MAX)
                }
                state => {
                    self.state = next(state, input[used])?;
                    1
                }
            };
            used += step;
            self.allowance = self.allowance.checked_sub(step as u64).ok_or_else(too_long)?;
        }
        Ok(used)
    }
}

/// One byte of chunk framing (RFC 9112 section 7.1).
fn next(state: State, byte: u8) -> Result<State, Rejection> {
    let broken = || Rejection::bad("expected chunks of a hexadecimal size, CR LF, that many bytes, CR LF\n");
    Ok(match (state, byte) {
        (State::Size { value, digits }, byte)
            if byte.is_ascii_hexdigit() && digits < CHUNK_SIZE_DIGITS_MAX =>
        {
            let digit = char::from(byte).to_digit(16).unwrap_or(0);
            State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
        }
        (State::Size { digits: 0, .. }, _) => return Err(broken()),
        (State::Size { value, .. } | State::Extension { value }, b'\r') => State::SizeEnd { value },
        (State::Size { value, .. }, b';' | b' ' | b'\t') => State::Extension { value },
        (State::Extension { value }, byte) if byte == b'\t' || byte >= b' ' && byte != 0x7f => {
            State::Extension { value }
        }
        (State::SizeEnd { value: 0 }, b'\n') => State::Trailer { begun: false, carriage_return: false },
        (State::SizeEnd { value }, b'\n') => State::Data { left: value, chunk: true },
        (State::ChunkEnd { carriage_return: false }, b'\r') => State::ChunkEnd { carriage_return: true },
        (State::ChunkEnd { carriage_return: true }, b'\n') => State::Size { value: 0, digits: 0 },
        (State::Trailer { begun, carriage_return: false }, b'\r') => {
            State::Trailer { begun, carriage_return: true }
        }
        (State::Trailer { begun: false, carriage_return: true }, b'\n') => State::Done,
        (State::Trailer { begun: true, carriage_return: true }, b'\n') => {
            State::Trailer { begun: false, carriage_return: false }
        }
        (State::Trailer { carriage_return: false, .. }, byte) if byte != b'\n' => {
            State::Trailer { begun: true, carriage_return: false }
        }
        _ => return Err(broken()),
    })
}

fn too_long() -> Rejection {
    Rejection::new(StatusCode::PAYLOAD_TOO_LARGE, "this server reads no request bodies of that length\n")
}

/// Sixteen digits fill the counter; more could only be leading zeros.
const CHUNK_SIZE_DIGITS_MAX: u8 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(framing: Framing, input: &[u8]) -> Result<(usize, bool), Rejection> {
        let mut whole = Drain::new(framing, 100)?;
        let used = whole.advance(input)?;
        // Byte by byte comes to the same.
        let mut single = Drain::new(framing, 100)?;
        let mut by_one = 0;
        for byte in input {
            by_one += single.advance(std::slice::from_ref(byte))?;
        }
        assert_eq!((by_one, single.is_done()), (used, whole.is_done()));
        Ok((used, whole.is_done()))
    }

    #[test]
    fn bodies() {
        assert_eq!(drain(Framing::None, b"GET"), Ok((0, true)));
        assert_eq!(drain(Framing::Length(3), b"abcGET"), Ok((3, true)));
        assert_eq!(drain(Framing::Length(9), b"abc"), Ok((3, false)));
        assert_eq!(drain(Framing::Chunked, b"3\r\nabc\r\n0\r\n\r\nGET"), Ok((13, true)));
        assert_eq!(drain(Framing::Chunked, b"A;x=\"y\"\r\n0123456789\r\n00\r\nT: v\r\n\r\n"), Ok((33, true)));
        assert_eq!(drain(Framing::Chunked, b"3\r\nab"), Ok((5, false)));
    }

    #[test]
    fn refusals() {
        for bad in [
            &b"x\r\n"[..],
            b"\r\n",
            b"3\nabc",
            b"3\r\nabcd\r\n",
            b"1234567890123456\r\n",
            b"0\r\n\n",
            b"-1\r\n",
        ] {
            assert_eq!(drain(Framing::Chunked, bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad:?}");
        }
        assert_eq!(drain(Framing::Length(101), b"").unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        let long = [&b"ff\r\n"[..], &[b'a'; 200]].concat();
        assert_eq!(drain(Framing::Chunked, &long).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}
