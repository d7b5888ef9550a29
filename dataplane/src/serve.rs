//! `dataplane serve`: a directory as a stand-alone static server. It knows nothing of tickets or control.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use freshet_engine::{
    Answer, FileAnswer, Listener, Observer, Pacer, Redirect, Refusal, Request, ResponseRecord, Root, Server,
    Site, Unavailable,
};
use http::{HeaderValue, StatusCode};

use crate::access_log::AccessLog;
use crate::budget::Budget;
use crate::cli::ServeOptions;
use crate::exit::Failure;
use crate::signals::{Ask, Signals};

/// Serves until a signal says stop.
///
/// # Errors
/// See [`crate::exit::EXIT_STATUS_HELP`].
pub fn serve(options: &ServeOptions) -> Result<(), Failure> {
    crate::logging::start(options.log_format, None);
    let limits = options.limits.to_limits().map_err(Failure::configuration)?;
    let root = Root::open(&options.root)
        .with_context(|| {
            format!("cannot serve {}; --root must be a readable directory", options.root.display())
        })
        .map_err(Failure::configuration)?;
    let log = AccessLog::start(&options.access_log)
        .context("cannot start the access log")
        .map_err(Failure::configuration)?
        .map(Arc::new);
    // Signals are taken over before the address is told, so that whoever waits for it may send one.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let mut signals = runtime.block_on(async { Signals::listen() }).context("cannot listen to signals")?;

    let site: Arc<dyn Site> = Arc::new(DirectorySite { root });
    let listeners = options.listen.iter().map(|&address| Listener {
        address,
        inherited: None,
        class: 0,
        mark: None,
        site: Arc::clone(&site),
    });
    let running = Server {
        listeners: listeners.collect(),
        rings: usize::from(options.rings),
        limits,
        pacer: options.rate.map(|rate| Arc::new(Budget::new(Some(rate))) as Arc<dyn Pacer>),
        observer: log.clone().map(|log| Arc::new(Recorder { log }) as Arc<dyn Observer>),
    }
    .start()?;
    for address in running.addresses() {
        println!("serving: http://{address}");
    }

    while runtime.block_on(signals.next()) == Ask::Reload {
        if let Some(log) = &log {
            log.reopen();
        }
    }
    tracing::info!(grace_secs = options.grace_secs, "stopping");
    let stats = running.stats();
    running.stop(Duration::from_secs(options.grace_secs));
    tracing::info!(responses = stats.responses, body_bytes = stats.body_bytes, "stopped");
    Ok(())
}

/// A directory as it is: `index.html` for a directory, no listings.
#[derive(Debug)]
pub struct DirectorySite {
    root: Arc<Root>,
}

impl DirectorySite {
    /// The files below `root`.
    pub fn new(root: Arc<Root>) -> Self {
        Self { root }
    }
}

impl Site for DirectorySite {
    fn answer(&self, request: &Request<'_>) -> Answer {
        let relative = request.path.strip_prefix(b"/").unwrap_or(request.path);
        let path = if relative.is_empty() || relative.ends_with(b"/") {
            Bytes::from([relative, INDEX].concat())
        } else {
            Bytes::copy_from_slice(relative)
        };
        Answer::File(FileAnswer {
            root: Arc::clone(&self.root),
            path,
            expected_size: None,
            expected_mtime: None,
            etag: None,
            last_modified: None,
            content_type: None,
            headers: Vec::new(),
        })
    }

    fn unavailable(&self, request: &Request<'_>, file: &FileAnswer, why: &Unavailable) -> Answer {
        let status = match why {
            Unavailable::Directory if !request.path.ends_with(b"/") => return with_slash(request),
            Unavailable::NotFound | Unavailable::Directory | Unavailable::Escapes => StatusCode::NOT_FOUND,
            Unavailable::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                StatusCode::FORBIDDEN
            }
            other => {
                tracing::warn!(path = %String::from_utf8_lossy(&file.path), error = %other, "cannot be served");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let text: Cow<'static, str> = match status {
            StatusCode::NOT_FOUND => "no such file here; check the path\n".into(),
            StatusCode::FORBIDDEN => "the server may not read this file\n".into(),
            _ => "the file could not be read; try again later\n".into(),
        };
        Answer::Refusal(Refusal::new(status, text))
    }
}

/// A directory that was asked for without its trailing `/` would break the relative links of its index.
fn with_slash(request: &Request<'_>) -> Answer {
    // A path that begins with two slashes would name another host.
    let path = request.raw_path.trim_start_matches('/');
    let query = request.query.map(|query| format!("?{query}")).unwrap_or_default();
    match HeaderValue::try_from(format!("/{path}/{query}")) {
        Ok(location) => Answer::Redirect(Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            location,
            headers: Vec::new(),
        }),
        Err(_) => Answer::Refusal(Refusal::new(StatusCode::NOT_FOUND, "no such file here; check the path\n")),
    }
}

struct Recorder {
    log: Arc<AccessLog>,
}

impl Observer for Recorder {
    fn responded(&self, record: &ResponseRecord<'_>) {
        self.log.record(record, SystemTime::now());
    }
}

const INDEX: &[u8] = b"index.html";

#[cfg(test)]
mod tests {
    use freshet_engine::Method;
    use http::HeaderMap;

    use super::*;

    fn request<'a>(path: &'a str, query: Option<&'a str>, headers: &'a HeaderMap) -> Request<'a> {
        Request {
            method: Method::Get,
            path: path.as_bytes(),
            raw_path: path,
            query,
            headers,
            host: None,
            peer: "127.0.0.1:9".parse().unwrap(),
            local: "127.0.0.1:80".parse().unwrap(),
            class: 0,
            now: SystemTime::UNIX_EPOCH,
        }
    }

    fn site() -> (tempfile::TempDir, DirectorySite) {
        let directory = tempfile::tempdir().unwrap();
        let site = DirectorySite::new(Root::open(directory.path()).unwrap());
        (directory, site)
    }

    #[test]
    fn a_directory_answers_with_its_index() {
        let (_directory, site) = site();
        let headers = HeaderMap::new();
        for (path, expected) in [("/", "index.html"), ("/a/", "a/index.html"), ("/a/b.txt", "a/b.txt")] {
            let Answer::File(file) = site.answer(&request(path, None, &headers)) else { panic!("{path}") };
            assert_eq!(file.path, expected);
        }
    }

    #[test]
    fn a_directory_without_slash_is_sent_to_itself_and_nowhere_else() {
        let (_directory, site) = site();
        let headers = HeaderMap::new();
        for (path, query, expected) in
            [("/a", Some("x=1"), "/a/?x=1"), ("//evil.example", None, "/evil.example/")]
        {
            let request = request(path, query, &headers);
            let Answer::File(file) = site.answer(&request) else { panic!("{path}") };
            let Answer::Redirect(redirect) = site.unavailable(&request, &file, &Unavailable::Directory)
            else {
                panic!("{path}")
            };
            assert_eq!(redirect.location, expected);
        }
    }

    #[test]
    fn what_is_not_there_is_404_and_what_leaves_the_tree_too() {
        let (_directory, site) = site();
        let headers = HeaderMap::new();
        let request = request("/a/", None, &headers);
        let Answer::File(file) = site.answer(&request) else { panic!() };
        for (why, status) in [
            (Unavailable::NotFound, 404),
            (Unavailable::Escapes, 404),
            (Unavailable::Directory, 404),
            (Unavailable::Io(std::io::Error::from(std::io::ErrorKind::PermissionDenied)), 403),
            (Unavailable::Io(std::io::Error::other("disk")), 500),
        ] {
            let Answer::Refusal(refusal) = site.unavailable(&request, &file, &why) else { panic!("{why}") };
            assert_eq!(refusal.status.as_u16(), status, "{why}");
        }
    }
}
