//! The head of a file's plain 200, kept before its body, or alone when the body is behind a descriptor.

use std::time::SystemTime;

use ::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;

use crate::clock::Clock;
use crate::files::{Buffer, OpenFile};
use crate::http::response::{HeadWriter, date_span};
use crate::site::FileAnswer;

/// What the head in a file's buffer was made from.
#[derive(Debug)]
pub(crate) struct Assembled {
    date_start: usize,
    second: i64,
    etag: Option<HeaderValue>,
    last_modified: Option<SystemTime>,
    content_type: Option<HeaderValue>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Assembled {
    /// Makes the head of `answer` and puts it into the file's buffer.
    pub(crate) fn new(file: &OpenFile, buffer: &mut Buffer, answer: &FileAnswer, clock: &Clock) -> Self {
        let head = plain_head(file, answer, clock, None);
        buffer.set_head(&head);
        Self {
            date_start: date_span(&head).map_or(0, |span| span.start),
            second: clock.second(),
            etag: answer.etag.clone(),
            last_modified: answer.last_modified,
            content_type: answer.content_type.clone(),
            headers: answer.headers.clone(),
        }
    }

    /// Whether the head was made from the same answer.
    pub(crate) fn fits(&self, answer: &FileAnswer) -> bool {
        self.etag == answer.etag
            && self.last_modified == answer.last_modified
            && self.content_type == answer.content_type
            && self.headers == answer.headers
    }

    /// Puts the date of now into the head.
    pub(crate) fn refresh(&mut self, buffer: &mut Buffer, clock: &Clock) {
        let second = clock.second();
        if second != self.second {
            buffer.write(self.date_start, &clock.date());
            self.second = second;
        }
    }
}

/// The head of a file's plain 200; `connection` as for [`HeadWriter::end`].
pub(crate) fn plain_head(
    file: &OpenFile,
    answer: &FileAnswer,
    clock: &Clock,
    connection: Option<&str>,
) -> Vec<u8> {
    let mut writer = HeadWriter::new(StatusCode::OK, &clock.date());
    let representation = super::Representation::of_file(file, answer);
    representation.write(&mut writer, |_| false);
    writer.length(file.version.size).field("Accept-Ranges", b"bytes");
    writer.end(connection)
}

/// A copy of head and body whose head says that the connection ends with it.
pub(crate) fn closing(buffer: &Buffer) -> Bytes {
    let whole = buffer.as_slice();
    let fields_end = buffer.head_length().saturating_sub(b"\r\n".len());
    let mut closing = Vec::with_capacity(whole.len() + CONNECTION_CLOSE.len());
    closing.extend_from_slice(&whole[..fields_end]);
    closing.extend_from_slice(CONNECTION_CLOSE);
    closing.extend_from_slice(&whole[fields_end..]);
    closing.into()
}

/// The last field of a head after which the connection ends.
const CONNECTION_CLOSE: &[u8] = b"Connection: close\r\n";
