//! The seam between the engine and what it serves; no I/O happens behind it.
//!
//! A [`Site`] is asked once per request, on the ring's own thread, and answers from memory: it never
//! blocks, never opens a file and never waits for a lock that I/O is done under. The engine opens, caches,
//! validates and sends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub use crate::http::fields::{Fields, InvalidField};

/// What decides the answer to a request.
pub trait Site: Send + Sync + 'static {
    /// Answers a parsed and checked request of method GET or HEAD.
    fn answer(&self, request: &Request<'_>) -> Answer;

    /// Says what to do instead when the file of an earlier [`Answer::File`] can't be served.
    ///
    /// Nothing of a response has been sent yet. The default is 404 for a file that is not there and 500
    /// (with the reason in the log, not in the text) for everything else.
    fn unavailable(&self, request: &Request<'_>, file: &FileAnswer, why: &Unavailable) -> Answer {
        let _ = (request, file);
        match why {
            Unavailable::NotFound | Unavailable::Directory | Unavailable::Escapes => {
                Answer::Refusal(Refusal::new(StatusCode::NOT_FOUND, "no such file here\n"))
            }
            Unavailable::Changed { .. } | Unavailable::Io(_) => Answer::Refusal(Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the file could not be read; try again later\n",
            )),
        }
    }
}

/// A method that reaches a [`Site`]; the engine answers OPTIONS and refuses the others itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Head and body.
    Get,
    /// The head that GET would have.
    Head,
}

/// A request after the engine's checks.
#[derive(Debug)]
pub struct Request<'a> {
    /// GET or HEAD.
    pub method: Method,
    /// Absolute path, percent-decoded once, without dot segments, empty segments or NUL; starts with `/`.
    pub path: &'a [u8],
    /// The path as the client sent it (still encoded), without the query; safe to echo in a `Location`.
    pub raw_path: &'a str,
    /// What followed `?`, still encoded.
    pub query: Option<&'a str>,
    /// All header fields.
    pub headers: &'a HeaderMap,
    /// The `Host` (or the authority of an absolute-form target), if any.
    pub host: Option<&'a str>,
    /// The client's address.
    pub peer: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// [`Listener::class`](crate::Listener::class) of the listener it came in by.
    pub class: u8,
    /// When the head was complete.
    pub now: SystemTime,
}

/// How a request is answered.
#[derive(Debug)]
pub enum Answer {
    /// A file below a [`Root`]; ranges and preconditions are the engine's.
    File(FileAnswer),
    /// Bytes from memory; ranges and preconditions are the engine's.
    Body(Body),
    /// 302 (or another 3xx) with a `Location`.
    Redirect(Redirect),
    /// An error status with a plain text that says what to do.
    Refusal(Refusal),
}

/// A directory that files are served from: descriptors are opened beneath it and never outside it.
///
/// Made by [`Root::open`]; cheap to clone by its `Arc`.
#[derive(Debug)]
pub struct Root {
    pub(crate) directory: std::os::fd::OwnedFd,
    pub(crate) display: std::path::PathBuf,
    /// See [`Root::open_filling`].
    pub(crate) filling: bool,
}

/// A file to be served.
#[derive(Clone, Debug)]
pub struct FileAnswer {
    /// Where `path` starts.
    pub root: Arc<Root>,
    /// Path relative to the root, no leading `/`; opened with `openat2(RESOLVE_BENEATH)`.
    pub path: Bytes,
    /// Size in bytes that the file must have, if known; otherwise [`Unavailable::Changed`].
    pub expected_size: Option<u64>,
    /// Modification time (seconds since the epoch) that the file must have, if known.
    pub expected_mtime: Option<i64>,
    /// Nanoseconds of that time, if they are known too: two versions may share a second and a size.
    pub expected_mtime_nanos: Option<u32>,
    /// A strong validator with its quotes, from content identity; without it the engine makes a validator
    /// of inode, size and modification time in nanoseconds.
    pub etag: Option<HeaderValue>,
    /// `Last-Modified`; without it the file's own.
    pub last_modified: Option<SystemTime>,
    /// `Content-Type`; without it by the path's extension.
    pub content_type: Option<HeaderValue>,
    /// Further fields, sent as they are (`Repr-Digest`, `Link`, `Cache-Control`).
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// A body from memory.
#[derive(Clone, Debug)]
pub struct Body {
    /// 200 unless set otherwise; ranges and preconditions apply to 200 only.
    pub status: StatusCode,
    /// The bytes.
    pub bytes: Bytes,
    /// `Content-Type`.
    pub content_type: HeaderValue,
    /// A strong validator with its quotes, if there is one.
    pub etag: Option<HeaderValue>,
    /// `Last-Modified`.
    pub last_modified: Option<SystemTime>,
    /// Further fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// A redirection.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// A 3xx status; 302 unless there is a reason.
    pub status: StatusCode,
    /// `Location`, and further fields (checksums).
    pub fields: Fields,
}

impl Redirect {
    /// A redirection with a few fields beside `location`.
    pub fn new(status: StatusCode, location: &HeaderValue, headers: &[(HeaderName, HeaderValue)]) -> Self {
        let mut fields = Fields::new();
        fields.add(&http::header::LOCATION, location);
        headers.iter().for_each(|(name, value)| fields.add(name, value));
        Self { status, fields }
    }
}

/// An error answer.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// A 4xx or 5xx status.
    pub status: StatusCode,
    /// `text/plain; charset=utf-8`: what was expected, what came, what to do.
    pub text: std::borrow::Cow<'static, str>,
    /// Further fields (`Retry-After`, `Allow`).
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether the connection is closed after it.
    pub close: bool,
}

impl Refusal {
    /// A refusal that keeps the connection.
    pub fn new(status: StatusCode, text: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self { status, text: text.into(), headers: Vec::new(), close: false }
    }
}

/// Why a file could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Nothing is there, or it is neither a regular file nor a directory.
    #[error("no such regular file")]
    NotFound,
    /// A directory is there.
    #[error("expected a regular file, found a directory")]
    Directory,
    /// The path leaves the root (a symbolic link out of the tree).
    #[error("the path leaves the served tree")]
    Escapes,
    /// It is not the version that was asked for.
    #[error(
        "expected {expected_size:?} bytes of mtime {expected_mtime:?}, found {size} bytes of mtime {mtime}"
    )]
    Changed {
        /// Size that was asked for.
        expected_size: Option<u64>,
        /// Time that was asked for.
        expected_mtime: Option<i64>,
        /// Size found, bytes.
        size: u64,
        /// Time found, seconds since the epoch.
        mtime: i64,
    },
    /// The kernel's word.
    #[error("cannot open: {0}")]
    Io(#[source] std::io::Error),
}

impl std::os::fd::AsFd for Root {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Root {
    /// Opens a directory to serve from.
    ///
    /// # Errors
    /// The kernel's, when it is not there, not a directory, or not permitted.
    pub fn open(path: impl Into<std::path::PathBuf>) -> std::io::Result<Arc<Self>> {
        Self::open_as(path.into(), false)
    }

    /// Opens a directory whose files have their size from the beginning and are filled in place.
    ///
    /// A file's times mean nothing there, and nothing of it is kept in memory. The site sees to it that only
    /// parts are asked for that are never written again, and gives an entity tag and a `Last-Modified`.
    ///
    /// # Errors
    /// As [`Root::open`].
    pub fn open_filling(path: impl Into<std::path::PathBuf>) -> std::io::Result<Arc<Self>> {
        Self::open_as(path.into(), true)
    }

    fn open_as(display: std::path::PathBuf, filling: bool) -> std::io::Result<Arc<Self>> {
        let directory = rustix::fs::open(
            &display,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        Ok(Arc::new(Self { directory, display, filling }))
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &std::path::Path {
        &self.display
    }
}
