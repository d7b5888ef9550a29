//! An origin with a sync port on loopback that misbehaves as a test wants it to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use freshet_api::ContentHash;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, RANGE, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::*;

/// One way in which a request is answered wrongly.
#[derive(Clone, Copy, Debug)]
pub(super) enum Twist {
    /// The connection breaks after this many bytes of the body.
    CutAfter(usize),
    /// Other bytes of the right length.
    WrongBytes,
    /// More bytes than the content has, without a length.
    TooLong,
    /// A `Content-Length` that is not the content's.
    WrongLength,
    /// This status, with `Retry-After: 0` for 503.
    Status(u16),
    /// Ranges are ignored.
    Whole,
    /// A `Content-Range` that was not asked for.
    WrongRange,
    /// After this many bytes of the body nothing comes any more, and the connection stays open.
    StallAfter(usize),
    /// As it should be.
    None,
}

#[derive(Default)]
struct Shared {
    sequence: u64,
    next_file: u32,
    rows: BTreeMap<String, ManifestFile>,
    history: BTreeMap<u64, BTreeMap<String, ManifestFile>>,
    contents: HashMap<String, Vec<u8>>,
    twists: HashMap<String, VecDeque<Twist>>,
    requests: usize,
    ranges: Vec<String>,
    body_bytes: usize,
    last: Option<fn(&str) -> bool>,
}

pub(super) struct FakeOrigin {
    address: SocketAddr,
    shared: Mutex<Shared>,
}

impl FakeOrigin {
    pub(super) async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Shared { last: Some(|path| path.starts_with("dists/")), ..Shared::default() };
        let origin = Arc::new(Self { address: listener.local_addr().unwrap(), shared: Mutex::new(shared) });
        let weak = Arc::downgrade(&origin);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(origin) = weak.upgrade() else { break };
                let service = service_fn(move |request| {
                    let response = origin.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        origin
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes these files the state of the origin; returns its sequence.
    pub(super) fn publish(&self, files: &[File]) -> u64 {
        let mut shared = self.shared.lock().unwrap();
        let mut rows = BTreeMap::new();
        shared.contents.clear();
        for (path, content, mtime) in files {
            let identity = ContentHash::of(content);
            shared.contents.insert(identity.to_hex(), content.clone());
            let kept = shared.rows.get(*path).filter(|row| row.content == identity).map(|row| row.file);
            let file = kept.unwrap_or_else(|| {
                shared.next_file += 1;
                FileId(shared.next_file)
            });
            let row = ManifestFile {
                file,
                path: path.parse().unwrap(),
                size: content.len() as u64,
                mtime: *mtime,
                content: identity,
                last: shared.last.is_some_and(|last| last(path)),
            };
            rows.insert((*path).to_owned(), row);
        }
        shared.sequence += 1;
        let sequence = shared.sequence;
        shared.history.insert(sequence, rows.clone());
        shared.rows = rows;
        sequence
    }

    /// How the next requests for a content are answered.
    pub(super) fn twist(&self, content: &[u8], twists: impl IntoIterator<Item = Twist>) {
        let hash = ContentHash::from(blake3::hash(content)).to_hex();
        self.shared.lock().unwrap().twists.entry(hash).or_default().extend(twists);
    }

    pub(super) fn requests(&self) -> usize {
        self.shared.lock().unwrap().requests
    }

    pub(super) fn ranges(&self) -> Vec<String> {
        self.shared.lock().unwrap().ranges.clone()
    }

    pub(super) fn body_bytes(&self) -> usize {
        self.shared.lock().unwrap().body_bytes
    }

    fn answer(&self, request: &Request<hyper::body::Incoming>) -> Response<Twisted> {
        let mut shared = self.shared.lock().unwrap();
        shared.requests += 1;
        let field = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        if field(AUTHORIZATION) != Some("Bearer t") {
            return status(401);
        }
        let Some(hash) = request.uri().path().strip_prefix("/blob/").map(str::to_owned) else {
            return status(404);
        };
        let range = field(RANGE).map(str::to_owned);
        let if_range = field(IF_RANGE).map(str::to_owned);
        shared.ranges.extend(range.clone());
        let twist = shared.twists.get_mut(&hash).and_then(VecDeque::pop_front);
        let Some(mut content) = shared.contents.get(&hash).cloned() else { return status(404) };
        let etag = ContentHash::of(&content).etag();
        let size = content.len();
        let mut from =
            range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        if if_range.is_some_and(|tag| tag != etag) || matches!(twist, Some(Twist::Whole)) {
            from = None;
        }
        let mut response = Response::builder().header(ETAG, etag);
        let (mut cut, mut stall) = (None, false);
        let mut length = size - from.unwrap_or(0);
        match twist {
            Some(Twist::Status(code)) => return status(code),
            Some(Twist::CutAfter(bytes)) => cut = Some(bytes),
            Some(Twist::StallAfter(bytes)) => (cut, stall) = (Some(bytes), true),
            Some(Twist::WrongBytes) => content.iter_mut().for_each(|byte| *byte ^= 0x55),
            Some(Twist::WrongLength) => length -= 1,
            Some(Twist::TooLong) => content.extend_from_slice(b"and more"),
            Some(Twist::Whole | Twist::WrongRange | Twist::None) | None => {}
        }
        if let Some(from) = from {
            let start = if matches!(twist, Some(Twist::WrongRange)) { from - 1 } else { from };
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, format!("bytes {start}-{}/{size}", size - 1));
        }
        if !matches!(twist, Some(Twist::TooLong)) {
            response = response.header(CONTENT_LENGTH, length);
        }
        let mut body = content.split_off(from.unwrap_or(0));
        if matches!(twist, Some(Twist::WrongLength)) {
            body.pop();
        }
        shared.body_bytes += cut.unwrap_or(body.len()).min(body.len());
        response.body(Twisted { rest: body.into(), cut, stall }).unwrap()
    }
}

impl ManifestSource for Arc<FakeOrigin> {
    async fn manifest(&self, since: Option<u64>) -> Result<Manifest, FetchError> {
        let shared = self.shared.lock().unwrap();
        let base = since.and_then(|since| Some((since, shared.history.get(&since)?)));
        let mut manifest =
            Manifest { sequence: shared.sequence, base: base.map(|(since, _)| since), ..Manifest::default() };
        let empty = BTreeMap::new();
        let old = base.map_or(&empty, |(_, rows)| rows);
        manifest.files = shared
            .rows
            .iter()
            .filter(|(path, row)| old.get(*path) != Some(row))
            .map(|(_, row)| row.clone())
            .collect();
        manifest.removed_files = old
            .iter()
            .filter(|(path, row)| shared.rows.get(*path).is_none_or(|new| new.file != row.file))
            .map(|(_, row)| row.file)
            .collect();
        Ok(manifest)
    }
}

fn status(code: u16) -> Response<Twisted> {
    let mut response = Response::builder().status(code);
    if code == 503 {
        response = response.header(RETRY_AFTER, "0");
    }
    response.body(Twisted { rest: Bytes::new(), cut: None, stall: false }).unwrap()
}

/// A body that may break off.
struct Twisted {
    rest: Bytes,
    cut: Option<usize>,
    /// Whether it stops instead of breaking off.
    stall: bool,
}

impl hyper::body::Body for Twisted {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.cut == Some(0) && self.stall {
            return Poll::Pending;
        }
        if self.cut == Some(0) {
            return Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into())));
        }
        let most = self.cut.unwrap_or(usize::MAX).min(64 << 10).min(self.rest.len());
        if most == 0 {
            return Poll::Ready(None);
        }
        self.cut = self.cut.map(|cut| cut - most);
        let part = self.rest.split_to(most);
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.cut.is_none()
    }
}
