//! HTTP/1.1 as text: requests in, heads out, ranges and preconditions judged; no socket, no file, no clock.

pub(crate) mod body;
pub(crate) mod conditional;
pub(crate) mod content_type;
pub(crate) mod digest;
pub(crate) mod fields;
pub(crate) mod head;
pub(crate) mod multipart;
pub(crate) mod plan;
pub(crate) mod range;
pub(crate) mod response;
pub(crate) mod scan;
pub(crate) mod target;

use std::borrow::Cow;

use ::http::StatusCode;

/// A request that is refused before any site is asked; the connection is closed after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// What goes into the status line.
    pub(crate) status: StatusCode,
    /// What was expected, what came, what to do.
    pub(crate) text: Cow<'static, str>,
}

impl Rejection {
    pub(crate) fn bad(text: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, text: text.into() }
    }

    /// The answer to all methods that a static server has no use for.
    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this server knows GET, HEAD and OPTIONS\n")
    }

    pub(crate) fn new(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into() }
    }
}

/// The value of `Allow`.
pub(crate) const ALLOWED_METHODS: &str = "GET, HEAD, OPTIONS";
