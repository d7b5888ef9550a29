//! One request to a peer or to the origin: a piece, or what a peer has. It decides nothing and keeps nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use freshet_api::ContentHash;
use freshet_api::bundle::{BundleId, Place};
use freshet_policy::swarm::PieceSet;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, RANGE};
use http::{Request, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::layout::Layout;
use super::store::{PieceStore, from_bits};
use crate::link::{Dialer, LinkError};
use crate::mirror::{MirrorError, blocking};
use crate::sync::{ReadPacer, retry_after};

/// Whom to ask, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// Without a trailing `/`.
    pub(super) url: String,
    pub(super) token: String,
}

/// What all fetches of one bundle share.
pub(super) struct Fetcher {
    pub(super) dialer: Dialer,
    pub(super) pacer: Arc<dyn ReadPacer>,
    pub(super) layout: Arc<Layout>,
    pub(super) store: Arc<PieceStore>,
}

/// Why a piece did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum PieceError {
    /// Before or below HTTP.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The other side does not have it.
    #[error("it is not there")]
    Lacking,
    /// The other side does not let us in; a fresh token may help.
    #[error("answered {status}; the next answer of the tracker brings another token")]
    Denied { status: StatusCode },
    /// The other side has no time now.
    #[error("answered {status}")]
    Busy { status: StatusCode, retry_after: Option<Duration> },
    /// It answered otherwise than was asked.
    #[error("expected {expected}, found {found}")]
    Nonsense { expected: String, found: String },
    /// All of it came, and it is something else.
    #[error("the bytes are not the piece's")]
    Wrong,
    /// It took much longer than others do.
    #[error("not within {} s", waited.as_secs())]
    Slow { waited: Duration },
    /// This host can't keep it.
    #[error(transparent)]
    Local(#[from] MirrorError),
}

impl Fetcher {
    /// Fetches a piece, verifies it, and writes it. It is not durable yet.
    pub(super) async fn piece(&self, from: &Address, piece: u32, within: Duration) -> Result<(), PieceError> {
        let Some(place) = self.layout.place(piece) else {
            return Err(PieceError::Lacking);
        };
        let bytes = self.receive(from, &place, within).await?;
        if ContentHash::from(blake3::hash(&bytes)) != self.layout.bundle.pieces[piece as usize] {
            return Err(PieceError::Wrong);
        }
        let store = Arc::clone(&self.store);
        blocking(move || store.write(piece, &place, &bytes)).await.map_err(PieceError::Local)
    }

    /// What a peer has of the bundle.
    pub(super) async fn have(&self, from: &Address, bundle: BundleId) -> Result<PieceSet, PieceError> {
        let request = request(from, &format!("/have/{bundle}"), None)?;
        let pieces = self.layout.pieces();
        let most = (pieces as usize).div_ceil(8).max(REFUSAL_BYTES_MAX);
        let answer = tokio::time::timeout(HAVE_WITHIN, self.dialer.request(request, most)).await;
        let (head, body) = answer.map_err(|_| PieceError::Slow { waited: HAVE_WITHIN })??.into_parts();
        if head.status != StatusCode::OK {
            return Err(refusal(head.status, &head.headers));
        }
        from_bits(&body, pieces).ok_or_else(|| PieceError::Nonsense {
            expected: format!("{pieces} bits"),
            found: format!("{} bytes", body.len()),
        })
    }

    /// The bytes of a piece, unverified. The pauses that the owner's own limit makes are not the other side's.
    async fn receive(&self, from: &Address, place: &Place, within: Duration) -> Result<Bytes, PieceError> {
        let mut deadline = Instant::now() + within;
        let slow = |_| PieceError::Slow { waited: within };
        let object = &self.layout.bundle.objects[place.object];
        let (first, last) = (place.range.start, place.range.end - 1);
        let length = last - first + 1;
        let path = format!("/blob/{}", object.content);
        let asking = self.dialer.send(request(from, &path, Some((first, last)))?);
        let response = timeout_at(deadline, asking).await.map_err(slow)??;
        let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let nonsense = |expected: String, found: String| PieceError::Nonsense { expected, found };
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let expected = format!("bytes {first}-{last}/{}", object.size);
                let found = field(CONTENT_RANGE).unwrap_or("no Content-Range");
                if found != expected {
                    return Err(nonsense(expected, found.to_owned()));
                }
            }
            StatusCode::OK if length == object.size => {
                if let Some(found) = field(CONTENT_LENGTH).filter(|found| found.parse() != Ok(length)) {
                    return Err(nonsense(format!("{length} bytes"), found.to_owned()));
                }
            }
            StatusCode::OK => return Err(nonsense("206 Partial Content".into(), "200 OK".into())),
            status => return Err(refusal(status, response.headers())),
        }
        let mut body = response.into_body();
        let mut bytes = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
        while let Some(part) = timeout_at(deadline, body.next()).await.map_err(slow)?? {
            if (bytes.len() + part.len()) as u64 > length {
                return Err(nonsense(format!("{length} bytes"), "more".into()));
            }
            bytes.extend_from_slice(&part);
            let mut pause = self.pacer.after_read(part.len() as u64);
            while !pause.is_zero() {
                tokio::time::sleep(pause).await;
                deadline += pause;
                pause = self.pacer.stopped();
            }
        }
        if bytes.len() as u64 != length {
            return Err(nonsense(format!("{length} bytes"), bytes.len().to_string()));
        }
        Ok(bytes.freeze())
    }
}

pub(super) fn request(
    from: &Address,
    path: &str,
    range: Option<(u64, u64)>,
) -> Result<Request<Bytes>, PieceError> {
    let url = format!("{}{path}", from.url.trim_end_matches('/'));
    let mut request = Request::get(&url).header(AUTHORIZATION, format!("Bearer {}", from.token));
    if let Some((first, last)) = range {
        request = request.header(RANGE, format!("bytes={first}-{last}"));
    }
    request.body(Bytes::new()).map_err(|error| PieceError::Nonsense {
        expected: "an address and a token that make a request".into(),
        found: error.to_string(),
    })
}

pub(super) fn refusal(status: StatusCode, headers: &HeaderMap) -> PieceError {
    match status.as_u16() {
        401 | 403 => PieceError::Denied { status },
        404 | 410 | 416 => PieceError::Lacking,
        408 | 425 | 429 | 500..=599 => {
            PieceError::Busy { status, retry_after: retry_after(headers, SystemTime::now()) }
        }
        _ => PieceError::Nonsense { expected: "206 Partial Content".into(), found: status.to_string() },
    }
}

/// What a peer has is told at once, or not at all.
const HAVE_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a refusal that are read, so that the connection can be kept.
const REFUSAL_BYTES_MAX: usize = 4 << 10;
