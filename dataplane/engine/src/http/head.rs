//! A request's head, checked once: what comes out of here needs no second look.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

use ::http::StatusCode;
use ::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::Rejection;
use super::target::{self, Target};

/// A checked head; it owns the bytes it was read from.
#[derive(Debug)]
pub(crate) struct Head {
    bytes: Bytes,
    /// What is asked.
    pub(crate) verb: Verb,
    /// The client's version.
    pub(crate) version: Version,
    /// What is asked for.
    pub(crate) resource: Resource,
    /// All fields.
    pub(crate) headers: HeaderMap,
    /// How a body is framed.
    pub(crate) framing: Framing,
    /// Whether the client waits for 100 before it sends the body.
    pub(crate) expects_continue: bool,
    /// Whether the client wants the connection kept.
    pub(crate) keep_alive: bool,
    /// Whether a field is there that may change a plain 200 (a range, a precondition, a wanted digest).
    pub(crate) selective: bool,
    line: Range<usize>,
    authority: Option<Range<usize>>,
}

/// Methods as far as they are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// OPTIONS.
    Options,
    /// Everything else is refused with 405.
    Other,
}

/// Versions that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// What a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// A path.
    Path {
        /// As sent, without the query; empty for an absolute-form without a path, which means `/`.
        raw: Range<usize>,
        /// Decoded, when that differs from `raw`.
        decoded: Option<Vec<u8>>,
        /// What follows `?`.
        query: Option<Range<usize>>,
    },
    /// The server itself: `OPTIONS *`.
    Server,
}

/// How a request body is framed (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// `Content-Length`, above zero.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

impl Head {
    /// Parses a complete head (with its empty line) of at most `fields_max` fields.
    ///
    /// `spare` lends its allocation to the field map.
    ///
    /// # Errors
    /// The [`Rejection`] that the RFC wants; the framing of what follows is then unknown.
    pub(crate) fn parse(bytes: Bytes, fields_max: usize, spare: HeaderMap) -> Result<Self, Rejection> {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let room = &mut fields[..fields_max.min(FIELDS_MAX)];
        match request.parse_with_uninit_headers(&bytes, room) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(Rejection::bad("expected a whole request head\n")),
            Err(error) => return Err(reject(error, &bytes)),
        }
        let (Some(method), Some(text), Some(minor)) = (request.method, request.path, request.version) else {
            return Err(Rejection::bad("expected METHOD TARGET HTTP/1.1 in the first line\n"));
        };
        let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
        let verb = match method {
            "GET" => Verb::Get,
            "HEAD" => Verb::Head,
            "OPTIONS" => Verb::Options,
            _ => Verb::Other,
        };
        let collected = Collected::read(request.headers, &bytes, spare)?;
        let at = |part: &str| span(&bytes, part);
        let (resource, authority) = match Target::parse(text, method)? {
            Target::Resource { authority, path, query } => {
                let decoded = match target::decode_path(path)? {
                    Cow::Borrowed(_) => None,
                    Cow::Owned(decoded) => Some(decoded),
                };
                (
                    Resource::Path {
                        raw: if path.is_empty() { 0..0 } else { at(path) },
                        decoded,
                        query: query.map(at),
                    },
                    authority.map(at),
                )
            }
            Target::Server | Target::Authority => (Resource::Server, None),
        };
        if version == Version::Http11 && collected.hosts == 0 {
            return Err(Rejection::bad("expected a Host field, which HTTP/1.1 requires\n"));
        }
        let framing = collected.framing(version)?;
        let keep_alive = match version {
            Version::Http11 => !collected.close,
            Version::Http10 => collected.keep_alive && !collected.close,
        };
        let expects_continue =
            collected.expects_continue && version == Version::Http11 && framing != Framing::None;
        let line = 0..memchr::memchr(b'\r', &bytes).unwrap_or(0);
        Ok(Self {
            verb,
            version,
            resource,
            authority,
            framing,
            expects_continue,
            keep_alive,
            selective: collected.selective,
            headers: collected.headers,
            line,
            bytes,
        })
    }

    /// The request line as sent.
    pub(crate) fn line(&self) -> &str {
        self.text(&self.line)
    }

    /// The decoded path; `*` for the server itself.
    pub(crate) fn path(&self) -> &[u8] {
        match &self.resource {
            Resource::Path { decoded: Some(decoded), .. } => decoded,
            Resource::Path { raw, .. } if raw.is_empty() => b"/",
            Resource::Path { raw, .. } => &self.bytes[raw.clone()],
            Resource::Server => b"*",
        }
    }

    /// The path as sent.
    pub(crate) fn raw_path(&self) -> &str {
        match &self.resource {
            Resource::Path { raw, .. } if raw.is_empty() => "/",
            Resource::Path { raw, .. } => self.text(raw),
            Resource::Server => "*",
        }
    }

    /// What follows `?`.
    pub(crate) fn query(&self) -> Option<&str> {
        match &self.resource {
            Resource::Path { query: Some(query), .. } => Some(self.text(query)),
            _ => None,
        }
    }

    /// The authority of an absolute-form target, else the `Host` (RFC 9112 section 3.2.2).
    pub(crate) fn host(&self) -> Option<&str> {
        match &self.authority {
            Some(authority) => Some(self.text(authority)),
            None => self.headers.get(header::HOST).and_then(|value| value.to_str().ok()),
        }
    }

    /// A field's text, if it is there once or more and readable.
    pub(crate) fn field(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Gives the field map's allocation back.
    pub(crate) fn into_spare(self) -> HeaderMap {
        let mut spare = self.headers;
        spare.clear();
        spare
    }

    fn text(&self, range: &Range<usize>) -> &str {
        std::str::from_utf8(&self.bytes[range.clone()]).unwrap_or("")
    }
}

/// What the fields say about the connection and the body.
#[derive(Debug, Default)]
struct Collected {
    headers: HeaderMap,
    hosts: usize,
    length: Option<u64>,
    transfer_codings: bool,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    selective: bool,
}

impl Collected {
    fn read(fields: &[httparse::Header<'_>], bytes: &Bytes, spare: HeaderMap) -> Result<Self, Rejection> {
        let mut collected = Self { headers: spare, ..Self::default() };
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes())
                .map_err(|_| Rejection::bad("expected a field name of token characters\n"))?;
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value))
                .map_err(|_| Rejection::bad("expected a field value without control characters\n"))?;
            collected.note(&name, field.value)?;
            collected.headers.try_append(name, value).map_err(|_| {
                Rejection::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many fields\n")
            })?;
        }
        Ok(collected)
    }

    fn note(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Rejection> {
        match *name {
            header::HOST => {
                self.hosts += 1;
                let fine = std::str::from_utf8(value).is_ok_and(target::is_authority);
                if self.hosts > 1 || !fine {
                    return Err(Rejection::bad("expected one Host field with a host and an optional port\n"));
                }
            }
            header::CONTENT_LENGTH => {
                let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let length =
                    std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
                if length.is_none() || self.length.is_some() {
                    return Err(Rejection::bad("expected one Content-Length of decimal digits\n"));
                }
                self.length = length;
            }
            header::TRANSFER_ENCODING => {
                if self.transfer_codings || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Rejection::new(
                        StatusCode::NOT_IMPLEMENTED,
                        "expected no transfer coding but one chunked\n",
                    ));
                }
                self.transfer_codings = true;
                self.chunked = true;
            }
            header::CONNECTION => {
                for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            header::EXPECT => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Rejection::new(
                        StatusCode::EXPECTATION_FAILED,
                        "expected no expectation but 100-continue\n",
                    ));
                }
                self.expects_continue = true;
            }
            header::RANGE
            | header::IF_RANGE
            | header::IF_MATCH
            | header::IF_NONE_MATCH
            | header::IF_MODIFIED_SINCE
            | header::IF_UNMODIFIED_SINCE => self.selective = true,
            _ => self.selective |= name.as_str() == super::digest::WANT_REPR_DIGEST,
        }
        Ok(())
    }

    /// RFC 9112 section 6.1: a request with both framings, or with chunks in HTTP/1.0, is an attack or a mistake.
    fn framing(&self, version: Version) -> Result<Framing, Rejection> {
        match (self.chunked, self.length) {
            (true, Some(_)) => {
                Err(Rejection::bad("expected Transfer-Encoding or Content-Length, found both\n"))
            }
            (true, None) if version == Version::Http10 => {
                Err(Rejection::bad("expected no Transfer-Encoding in HTTP/1.0\n"))
            }
            (true, None) => Ok(Framing::Chunked),
            (false, None | Some(0)) => Ok(Framing::None),
            (false, Some(length)) => Ok(Framing::Length(length)),
        }
    }
}

fn reject(error: httparse::Error, bytes: &[u8]) -> Rejection {
    match error {
        httparse::Error::TooManyHeaders => Rejection::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too many header fields; send fewer\n",
        ),
        httparse::Error::Version if is_other_version(bytes) => Rejection::new(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "expected HTTP/1.1 or HTTP/1.0, found another version\n",
        ),
        httparse::Error::HeaderName => Rejection::bad(
            "expected NAME: VALUE in each header line, without space before the colon and without folding\n",
        ),
        httparse::Error::HeaderValue => {
            Rejection::bad("expected header values without control characters and bare CR\n")
        }
        httparse::Error::NewLine => Rejection::bad("expected lines to end in CR LF, found a bare CR\n"),
        httparse::Error::Token | httparse::Error::Status | httparse::Error::Version => {
            Rejection::bad("expected METHOD TARGET HTTP/1.1 in the first line, with single spaces\n")
        }
    }
}

/// Whether the request line is well-formed but for a version that is not ours.
fn is_other_version(bytes: &[u8]) -> bool {
    let line = &bytes[..memchr::memchr(b'\r', bytes).unwrap_or(bytes.len())];
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(_method), Some(_target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// Where a part of `bytes`, cut from it, lies in it.
fn span(bytes: &Bytes, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - bytes.as_ptr().addr();
    start..start + part.len()
}

/// Fields that [`Limits::head_fields_max`](crate::Limits) can't be raised above.
pub(crate) const FIELDS_MAX: usize = 128;
