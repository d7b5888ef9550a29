//! Preconditions in the order of RFC 9110 section 13.2.2; it knows validators, not files.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::http::header::{self, HeaderMap, HeaderValue};
use headers::{ETag, HeaderMapExt, IfMatch, IfModifiedSince, IfNoneMatch, IfUnmodifiedSince};

/// What a representation is told apart by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validators<'a> {
    /// With its quotes.
    pub(crate) etag: Option<&'a HeaderValue>,
    /// Whole seconds count.
    pub(crate) last_modified: Option<SystemTime>,
}

/// What the preconditions lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer as if there were none.
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

impl Validators<'_> {
    /// Judges `If-Match`, `If-Unmodified-Since`, `If-None-Match` and `If-Modified-Since` of a GET or HEAD.
    ///
    /// A date that can't be read is ignored; a tag that can't be read matches nothing.
    pub(crate) fn judge(&self, headers: &HeaderMap) -> Verdict {
        let etag = self.etag.and_then(|value| value.to_str().ok()?.parse::<ETag>().ok());
        let modified = self.last_modified.map(whole_seconds);
        if headers.contains_key(header::IF_MATCH) {
            let passes = headers.typed_get::<IfMatch>().is_some_and(|wanted| {
                wanted.is_any() || etag.as_ref().is_some_and(|etag| wanted.precondition_passes(etag))
            });
            if !passes {
                return Verdict::Failed;
            }
        } else if let (Some(since), Some(modified)) = (headers.typed_get::<IfUnmodifiedSince>(), modified)
            && !since.precondition_passes(modified)
        {
            return Verdict::Failed;
        }
        if headers.contains_key(header::IF_NONE_MATCH) {
            let any = headers.get(header::IF_NONE_MATCH).is_some_and(|value| value == "*");
            let passes = !any
                && etag.is_none_or(|etag| {
                    headers.typed_get::<IfNoneMatch>().is_none_or(|known| known.precondition_passes(&etag))
                });
            if !passes {
                return Verdict::NotModified;
            }
        } else if let (Some(since), Some(modified)) = (headers.typed_get::<IfModifiedSince>(), modified)
            && !since.is_modified(modified)
        {
            return Verdict::NotModified;
        }
        Verdict::Proceed
    }

    /// Whether `If-Range` lets a `Range` count (RFC 9110 section 13.1.5): only an exact, strong match does.
    pub(crate) fn allow_range(&self, headers: &HeaderMap, now: SystemTime) -> bool {
        let Some(value) = headers.get(header::IF_RANGE) else { return true };
        if value.as_bytes().ends_with(b"\"") {
            return value.as_bytes().starts_with(b"\"") && Some(value) == self.etag;
        }
        let date = value.to_str().ok().and_then(|text| httpdate::parse_http_date(text).ok());
        match (date, self.last_modified.map(whole_seconds)) {
            // Section 8.8.2.2: a date of the running second may stand for two versions.
            (Some(date), Some(modified)) => date == modified && modified + STRONG_DATE_AGE <= now,
            _ => false,
        }
    }
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// How long a file must have been left alone before its date is a strong validator.
const STRONG_DATE_AGE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: &str = "Thu, 01 Jan 2026 00:00:00 GMT";
    const NEXT: &str = "Fri, 02 Jan 2026 00:00:00 GMT";
    const BEFORE: &str = "Wed, 31 Dec 2025 00:00:00 GMT";

    fn judge(fields: &[(&'static str, &'static str)]) -> Verdict {
        let etag = HeaderValue::from_static("\"v1\"");
        let validators =
            Validators { etag: Some(&etag), last_modified: Some(httpdate::parse_http_date(DAY).unwrap()) };
        validators.judge(&map(fields))
    }

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for &(name, value) in fields {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn precedence() {
        use Verdict::{Failed, NotModified, Proceed};
        for (fields, expected) in [
            (&[("if-match", "\"v1\"")][..], Proceed),
            (&[("if-match", "*")], Proceed),
            (&[("if-match", "\"v0\", \"v1\"")], Proceed),
            (&[("if-match", "\"v0\"")], Failed),
            (&[("if-match", "W/\"v1\"")], Failed),
            (&[("if-match", "\"v1\""), ("if-unmodified-since", BEFORE)], Proceed),
            (&[("if-unmodified-since", BEFORE)], Failed),
            (&[("if-unmodified-since", DAY)], Proceed),
            (&[("if-unmodified-since", "yesterday")], Proceed),
            (&[("if-none-match", "\"v1\"")], NotModified),
            (&[("if-none-match", "W/\"v1\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"v0\""), ("if-none-match", "\"v1\"")], NotModified),
            (&[("if-none-match", "\"v0\""), ("if-modified-since", NEXT)], Proceed),
            (&[("if-modified-since", DAY)], NotModified),
            (&[("if-modified-since", BEFORE)], Proceed),
            (&[("if-modified-since", "never")], Proceed),
            (&[("if-match", "\"v0\""), ("if-none-match", "\"v1\"")], Failed),
        ] {
            assert_eq!(judge(fields), expected, "{fields:?}");
        }
    }

    #[test]
    fn if_range_is_exact() {
        let etag = HeaderValue::from_static("\"v1\"");
        let modified = httpdate::parse_http_date(DAY).unwrap();
        let validators = Validators { etag: Some(&etag), last_modified: Some(modified) };
        let later = modified + Duration::from_secs(60);
        for (value, allowed) in [
            ("\"v1\"", true),
            ("W/\"v1\"", false),
            ("\"v2\"", false),
            (DAY, true),
            (NEXT, false),
            ("x", false),
        ] {
            assert_eq!(validators.allow_range(&map(&[("if-range", value)]), later), allowed, "{value}");
        }
        assert!(validators.allow_range(&map(&[]), later));
        assert!(
            !validators.allow_range(&map(&[("if-range", DAY)]), modified),
            "a fresh date is no strong validator"
        );
    }
}
