//! What a 200 or 206 says about a file or a body: type, validators, a site's own fields; not how long it is.

use std::borrow::Cow;
use std::time::SystemTime;

use ::http::{HeaderName, HeaderValue};

use crate::files::OpenFile;
use crate::http::conditional::Validators;
use crate::http::content_type;
use crate::http::response::HeadWriter;
use crate::site::{Body, FileAnswer};

/// A selected representation (RFC 9110 section 8).
#[derive(Debug)]
pub(crate) struct Representation<'a> {
    pub(crate) size: u64,
    pub(crate) content_type: Cow<'a, HeaderValue>,
    pub(crate) etag: Option<Cow<'a, HeaderValue>>,
    pub(crate) last_modified: Option<SystemTime>,
    pub(crate) headers: &'a [(HeaderName, HeaderValue)],
}

impl<'a> Representation<'a> {
    /// The site's word where it gave one, else the file's own.
    pub(crate) fn of_file(file: &OpenFile, answer: &'a FileAnswer) -> Self {
        Self {
            size: file.version.size,
            content_type: match &answer.content_type {
                Some(kind) => Cow::Borrowed(kind),
                None => Cow::Owned(content_type::of_path(&answer.path)),
            },
            etag: Some(match &answer.etag {
                Some(etag) => Cow::Borrowed(etag),
                None => Cow::Owned(file.version.etag()),
            }),
            last_modified: Some(answer.last_modified.unwrap_or_else(|| file.version.modified())),
            headers: &answer.headers,
        }
    }

    pub(crate) fn of_body(body: &'a Body) -> Self {
        Self {
            size: body.bytes.len() as u64,
            content_type: Cow::Borrowed(&body.content_type),
            etag: body.etag.as_ref().map(Cow::Borrowed),
            last_modified: body.last_modified,
            headers: &body.headers,
        }
    }

    pub(crate) fn validators(&self) -> Validators<'_> {
        Validators { etag: self.etag.as_deref(), last_modified: self.last_modified }
    }

    /// Writes all fields but the length; `skip` names a site's fields that are left out.
    pub(crate) fn write(&self, writer: &mut HeadWriter, skip: impl Fn(&HeaderName) -> bool) {
        writer.field("Content-Type", self.content_type.as_bytes());
        self.write_validators(writer);
        writer.site_fields(self.headers, skip);
    }

    /// Writes `ETag` and `Last-Modified`.
    pub(crate) fn write_validators(&self, writer: &mut HeadWriter) {
        if let Some(modified) = self.last_modified {
            writer.last_modified(modified);
        }
        if let Some(etag) = &self.etag {
            writer.field("ETag", etag.as_bytes());
        }
    }
}
