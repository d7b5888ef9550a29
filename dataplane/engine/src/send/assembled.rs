//! The head of a file's plain 200, kept ready to be sent in one piece with a body that is in memory.

use std::rc::Rc;
use std::time::SystemTime;

use ::http::{HeaderName, HeaderValue, StatusCode};

use crate::clock::Clock;
use crate::files::OpenFile;
use crate::files::opened::Content;
use crate::http::response::{HeadWriter, date_span};
use crate::site::FileAnswer;

/// Head and in-memory body in one buffer, with what the head was made from.
#[derive(Debug)]
pub(crate) struct Assembled {
    /// Shared with the outbox until it is sent.
    bytes: Rc<Vec<u8>>,
    date_start: usize,
    /// Bytes of the head, its empty line included.
    head_length: usize,
    second: i64,
    etag: Option<HeaderValue>,
    last_modified: Option<SystemTime>,
    content_type: Option<HeaderValue>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Assembled {
    /// Makes the head of `answer`, and puts a body that is in memory behind it.
    pub(crate) fn new(file: &OpenFile, answer: &FileAnswer, clock: &Clock) -> Self {
        let second = clock.second();
        let mut writer = HeadWriter::new(StatusCode::OK, &clock.date());
        let representation = super::Representation::of_file(file, answer);
        representation.write(&mut writer, |_| false);
        writer.length(file.version.size).field("Accept-Ranges", b"bytes");
        let mut bytes = writer.end(None);
        let date_start = date_span(&bytes).map_or(0, |span| span.start);
        let head_length = bytes.len();
        if let Content::Memory(body) = &file.content {
            bytes.reserve_exact(body.len());
            bytes.extend_from_slice(body);
        }
        Self {
            bytes: Rc::new(bytes),
            date_start,
            head_length,
            second,
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

    /// The buffer with the date of now.
    pub(crate) fn current(&mut self, clock: &Clock) -> &Rc<Vec<u8>> {
        let second = clock.second();
        if second != self.second {
            let date = clock.date();
            let span = self.date_start..self.date_start + date.len();
            Rc::make_mut(&mut self.bytes)[span].copy_from_slice(&date);
            self.second = second;
        }
        &self.bytes
    }

    /// A buffer of its own with the date of now, whose head says that the connection ends with it.
    pub(crate) fn closing(&mut self, clock: &Clock) -> Vec<u8> {
        let head_length = self.head_length;
        let bytes = self.current(clock);
        let mut closing = Vec::with_capacity(bytes.len() + CONNECTION_CLOSE.len());
        closing.extend_from_slice(&bytes[..head_length - b"\r\n".len()]);
        closing.extend_from_slice(CONNECTION_CLOSE);
        closing.extend_from_slice(&bytes[head_length - b"\r\n".len()..]);
        closing
    }
}

/// The last field of a head after which the connection ends.
const CONNECTION_CLOSE: &[u8] = b"Connection: close\r\n";
