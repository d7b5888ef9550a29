//! The sync port: pieces, contents and manifests for peers that control sent here with a token.
//!
//! Answered from memory. Of an object that is not whole only what is verified and durable is sent, and whoever asks
//! for more is told so; nothing is ever taken in.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use freshet_api::bundle::BundleId;
use freshet_api::sync_token::SyncTokenError;
use freshet_api::{ContentHash, SyncKey, SyncToken};
use freshet_engine::{Answer, Body, FileAnswer, Method, Observer, Refusal, Request, Root, Site, Unavailable};
use http::StatusCode;
use http::header::{AUTHORIZATION, CACHE_CONTROL, HeaderMap, HeaderValue, IF_RANGE, RANGE, WWW_AUTHENTICATE};

use super::shelf::Shelves;
use crate::mirror::{Held, Mirror};

/// `GET /have/<bundle>`, `GET /blob/<hash>` and `GET /manifest/<hash>` with `Authorization: Bearer <sync token>`.
pub struct PeerSite {
    key: SyncKey,
    mirror: Arc<Mirror>,
    shelves: Shelves,
    blobs: Arc<Root>,
    pieces: Arc<Root>,
    manifests: Arc<Root>,
}

impl PeerSite {
    /// Serves what `mirror` holds and what stands on `shelves` to those with a token under `key`.
    ///
    /// # Errors
    /// When the store's directories can't be opened.
    pub fn open(key: SyncKey, mirror: Arc<Mirror>, shelves: Shelves) -> std::io::Result<Self> {
        let blobs = Root::open(mirror.blobs_directory())?;
        let pieces = Root::open_filling(mirror.swarm_directory())?;
        let directory = mirror.swarm_directory().with_file_name(MANIFESTS);
        shelves.manifests().open(&directory)?;
        let manifests = Root::open(&directory)?;
        Ok(Self { key, mirror, shelves, blobs, pieces, manifests })
    }

    fn authorised(&self, request: &Request<'_>) -> Result<(), Refusal> {
        let now = request.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let text = request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = text.and_then(|text| text.strip_prefix("Bearer ")).ok_or(SyncTokenError::Malformed);
        match token.and_then(|token| SyncToken::open(token.trim(), &self.key, now)) {
            Ok(_) => Ok(()),
            Err(error) => {
                let mut refusal = Refusal::new(StatusCode::UNAUTHORIZED, format!("{error}\n"));
                refusal.headers.push((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
                Err(refusal)
            }
        }
    }

    fn have(&self, bundle: &str) -> Answer {
        let Some(bits) = bundle.parse::<BundleId>().ok().and_then(|bundle| self.shelves.bits(&bundle)) else {
            return not_here("this bundle is not being copied here; the tracker knows who does\n");
        };
        Answer::Body(Body {
            status: StatusCode::OK,
            bytes: bits,
            content_type: HeaderValue::from_static(OCTETS),
            etag: None,
            last_modified: None,
            headers: vec![(CACHE_CONTROL, HeaderValue::from_static("no-store"))],
        })
    }

    fn blob(&self, request: &Request<'_>, hash: &str) -> Answer {
        let Ok(content) = hash.parse::<ContentHash>() else {
            return not_here("expected /blob/ and the 64 hexadecimal digits of a BLAKE3 hash\n");
        };
        if let Some(held) = self.mirror.find_content(&content) {
            return self.whole(&held);
        }
        let Some(found) = self.shelves.find(&content) else {
            return not_here("neither held nor being copied here; ask another peer or the origin\n");
        };
        if !found.is_whole() {
            let range = sole_range(request.headers, found.size);
            if request.method != Method::Get || !range.is_some_and(|range| self.shelves.has(&found, range)) {
                return not_here(
                    "only a part of it is here: ask for one `Range: bytes=a-b` of pieces that GET /have/<bundle> names\n",
                );
            }
        }
        let path = Bytes::from(format!("{}/{content}", found.bundle));
        lasting(&self.pieces, path, &content, found.size)
    }

    fn manifest(&self, hash: &str) -> Answer {
        let manifest = hash.parse::<ContentHash>().ok();
        let found = manifest.and_then(|manifest| Some((manifest, self.shelves.manifests().size(&manifest)?)));
        match found {
            Some((manifest, size)) => {
                lasting(&self.manifests, Bytes::copy_from_slice(hash.as_bytes()), &manifest, size)
            }
            None => not_here("this manifest is not here (any more); control knows who has it\n"),
        }
    }

    fn whole(&self, held: &Held) -> Answer {
        Answer::File(FileAnswer {
            root: Arc::clone(&self.blobs),
            path: held.blob.clone(),
            expected_size: Some(held.size),
            expected_mtime: Some(held.blob_mtime),
            expected_mtime_nanos: None,
            etag: etag(&held.content),
            last_modified: u64::try_from(held.mtime)
                .ok()
                .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))),
            content_type: Some(HeaderValue::from_static(OCTETS)),
            headers: Vec::new(),
        })
    }
}

impl Site for PeerSite {
    fn answer(&self, request: &Request<'_>) -> Answer {
        if let Err(refusal) = self.authorised(request) {
            return Answer::Refusal(refusal);
        }
        let path = std::str::from_utf8(request.path).unwrap_or_default();
        let named = |prefix| path.strip_prefix(prefix);
        match (named("/have/"), named("/blob/"), named("/manifest/")) {
            (Some(bundle), _, _) => self.have(bundle),
            (_, Some(hash), _) => self.blob(request, hash),
            (_, _, Some(hash)) => self.manifest(hash),
            _ => not_here("expected /have/<bundle>, /blob/<hash> or /manifest/<hash>\n"),
        }
    }

    fn unavailable(&self, request: &Request<'_>, file: &FileAnswer, why: &Unavailable) -> Answer {
        let hash = std::str::from_utf8(request.path).ok().and_then(|path| path.strip_prefix("/blob/"));
        let held = hash.and_then(|hash| self.mirror.find_content(&hash.parse().ok()?));
        match held {
            // It was moved from the pieces to the blobs between the answer and the opening.
            Some(held) if !Arc::ptr_eq(&file.root, &self.blobs) => self.whole(&held),
            Some(held) => {
                tracing::warn!(path = %held.path, %why, "a blob is not what it was; it is checked again before it is served");
                self.mirror.distrust(&held.content);
                not_here("it is being checked here; ask another peer\n")
            }
            None => not_here("it is not here any more; ask another peer or the origin\n"),
        }
    }
}

/// Passes on what happens to peers' sockets, so that their bytes are counted.
pub struct PeerWatch {
    meter: freshet_ebpf::SocketMeter,
}

impl PeerWatch {
    /// Tells `meter`.
    pub fn new(meter: freshet_ebpf::SocketMeter) -> Self {
        Self { meter }
    }
}

impl Observer for PeerWatch {
    fn opened(
        &self,
        id: u64,
        class: u8,
        socket: std::os::fd::BorrowedFd<'_>,
        local: std::net::SocketAddr,
        _peer: std::net::SocketAddr,
    ) {
        self.meter.opened(id, class, socket, local.ip());
    }

    fn closed(&self, id: u64, class: u8, socket: std::os::fd::BorrowedFd<'_>) {
        self.meter.closed(id, class, socket);
    }
}

/// The only range of a request in its plain form `bytes=a-b`, when the engine will answer with just that.
fn sole_range(headers: &HeaderMap, size: u64) -> Option<Range<u64>> {
    if headers.contains_key(IF_RANGE) {
        return None;
    }
    let mut fields = headers.get_all(RANGE).iter();
    let (field, None) = (fields.next()?, fields.next()) else { return None };
    let (first, last) = field.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last && last < size).then(|| first..last + 1)
}

/// A file that never changes under its name.
fn lasting(root: &Arc<Root>, path: Bytes, content: &ContentHash, size: u64) -> Answer {
    Answer::File(FileAnswer {
        root: Arc::clone(root),
        path,
        expected_size: Some(size),
        expected_mtime: None,
        expected_mtime_nanos: None,
        etag: etag(content),
        last_modified: Some(SystemTime::UNIX_EPOCH),
        content_type: Some(HeaderValue::from_static(OCTETS)),
        headers: Vec::new(),
    })
}

fn etag(content: &ContentHash) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("\"{content}\"")).ok()
}

fn not_here(text: &'static str) -> Answer {
    Answer::Refusal(Refusal::new(StatusCode::NOT_FOUND, text))
}

/// The directory of manifests, beside that of pieces.
const MANIFESTS: &str = "manifests";
const OCTETS: &str = "application/octet-stream";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_plain_range_is_taken() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(RANGE, value.parse().unwrap());
            }
            sole_range(&headers, 100)
        };
        assert_eq!(with(&["bytes=0-99"]), Some(0..100));
        assert_eq!(with(&["bytes=7-7"]), Some(7..8));
        for refused in [
            "bytes=0-100",
            "bytes=5-4",
            "bytes=5-",
            "bytes=-5",
            "bytes=0-1,3-4",
            "bytes= 0-1",
            "bytes=+0-1",
            "items=0-1",
            "Bytes=0-1",
            "bytes=0-1 ",
            "bytes=0-99999999999999999999999",
        ] {
            assert_eq!(with(&[refused]), None, "{refused}");
        }
        assert_eq!(with(&["bytes=0-1", "bytes=0-1"]), None);
        assert_eq!(with(&[]), None);
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, "bytes=0-1".parse().unwrap());
        headers.insert(IF_RANGE, "\"x\"".parse().unwrap());
        assert_eq!(sole_range(&headers, 100), None, "another version would be sent whole");
    }
}
