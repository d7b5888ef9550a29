//! What a request makes of a representation: all of it, parts of it, or a reason to send none.

use std::ops::Range;
use std::time::SystemTime;

use ::http::header;

use super::conditional::{Validators, Verdict};
use super::head::{Head, Verb};
use super::range::Ranges;

/// Which bytes are sent under which status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// 200 with everything.
    Whole,
    /// 206 with one range.
    Part(Range<u64>),
    /// 206 with several, as `multipart/byteranges`.
    Parts(Vec<Range<u64>>),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

impl Plan {
    /// Judges preconditions first, then the range (RFC 9110 section 13.2.2).
    pub(crate) fn make(
        head: &Head,
        validators: &Validators<'_>,
        size: u64,
        ranges_max: usize,
        now: SystemTime,
    ) -> Self {
        if !head.selective {
            return Self::Whole;
        }
        match validators.judge(&head.headers) {
            Verdict::NotModified => return Self::NotModified,
            Verdict::Failed => return Self::PreconditionFailed,
            Verdict::Proceed => {}
        }
        // Section 14.2: Range means something for GET only; two Range fields mean nothing.
        let mut values = head.headers.get_all(header::RANGE).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Self::Whole };
        if head.verb != Verb::Get || !validators.allow_range(&head.headers, now) {
            return Self::Whole;
        }
        match Ranges::read(value.as_bytes(), size, ranges_max) {
            Ranges::Ignored => Self::Whole,
            Ranges::Unsatisfiable => Self::Unsatisfiable,
            Ranges::Satisfiable(ranges) => match <[Range<u64>; 1]>::try_from(ranges) {
                Ok([range]) => Self::Part(range),
                Err(ranges) => Self::Parts(ranges),
            },
        }
    }
}
