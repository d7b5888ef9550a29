//! A site that serves a directory tree as it is; it lists no directories and follows nothing out of the tree.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, StatusCode};

use crate::site::{Answer, FileAnswer, Redirect, Refusal, Request, Root, Site, Unavailable};

/// Serves the regular files below a directory; of a directory, its `index.html` if there is one.
#[derive(Debug)]
pub struct DirectorySite {
    root: Arc<Root>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl DirectorySite {
    /// Opens the directory.
    ///
    /// # Errors
    /// The kernel's, when it is not there, not a directory, or not permitted.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        Ok(Self::new(Root::open(path)?))
    }

    /// Serves an open root.
    pub fn new(root: Arc<Root>) -> Self {
        Self { root, headers: Vec::new() }
    }

    /// Adds a field to every file, such as `Cache-Control`.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn file(&self, path: Bytes) -> Answer {
        Answer::File(FileAnswer {
            root: Arc::clone(&self.root),
            path,
            expected_size: None,
            expected_mtime: None,
            expected_mtime_nanos: None,
            etag: None,
            last_modified: None,
            content_type: None,
            headers: self.headers.clone(),
        })
    }
}

impl Site for DirectorySite {
    fn answer(&self, request: &Request<'_>) -> Answer {
        let path = request.path.strip_prefix(b"/").unwrap_or(request.path);
        if path.is_empty() || path.ends_with(b"/") {
            let mut index = BytesMut::with_capacity(path.len() + INDEX.len());
            index.put_slice(path);
            index.put_slice(INDEX);
            return self.file(index.freeze());
        }
        self.file(Bytes::copy_from_slice(path))
    }

    fn unavailable(&self, request: &Request<'_>, _file: &FileAnswer, why: &Unavailable) -> Answer {
        let of_directory = request.path.ends_with(b"/");
        match why {
            Unavailable::Directory if !of_directory => match with_slash(request) {
                Some(location) => {
                    Answer::Redirect(Redirect::new(StatusCode::MOVED_PERMANENTLY, &location, &[]))
                }
                None => refuse(StatusCode::NOT_FOUND, "no such file here\n"),
            },
            Unavailable::NotFound if of_directory => {
                refuse(StatusCode::NOT_FOUND, "no index.html here, and this server lists no directories\n")
            }
            Unavailable::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                refuse(StatusCode::FORBIDDEN, "the server may not read this file\n")
            }
            Unavailable::NotFound | Unavailable::Directory | Unavailable::Escapes => {
                refuse(StatusCode::NOT_FOUND, "no such file here\n")
            }
            Unavailable::Changed { .. } | Unavailable::Io(_) => {
                refuse(StatusCode::INTERNAL_SERVER_ERROR, "the file could not be read; try again later\n")
            }
        }
    }
}

/// The same target with a slash after the path. One leading slash only: two would name another host.
fn with_slash(request: &Request<'_>) -> Option<HeaderValue> {
    let path = request.raw_path.trim_start_matches('/');
    let query = request.query.map(|query| format!("?{query}")).unwrap_or_default();
    HeaderValue::from_str(&format!("/{path}/{query}")).ok()
}

fn refuse(status: StatusCode, text: &'static str) -> Answer {
    Answer::Refusal(Refusal::new(status, text))
}

const INDEX: &[u8] = b"index.html";
