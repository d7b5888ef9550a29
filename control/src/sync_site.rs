//! The origin's sync port: contents of the catalogue, packs, recipes and manifests, by hash, for volunteers that bring a
//! token.
//! It takes nothing in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use freshet_api::admin::{NodeState, SyncPortView};
use freshet_api::sync_token::SyncTokenError;
use freshet_api::{ContentHash, NodeId, SyncKey, SyncToken};
use freshet_engine::{Answer, FileAnswer, Refusal, Request, Root, Site, Unavailable};
use http::{HeaderValue, StatusCode, header};

use crate::catalog::Catalog;
use crate::clock::epoch_secs;
use crate::front_door::{file_answer, stale};
use crate::routing::Routing;
use crate::swarm::{ManifestDesk, Shelf};

/// `GET /blob/<64 hexadecimal digits>` and `GET /manifest/<the same>` with `Authorization: Bearer <sync token>`.
#[derive(Debug)]
pub struct SyncSite {
    catalog: Arc<Catalog>,
    routing: Arc<Routing>,
    shelf: Arc<Shelf>,
    manifests: Arc<ManifestDesk>,
    root: Arc<Root>,
    key: SyncKey,
    counters: Arc<SyncCounters>,
}

impl SyncSite {
    /// Serves what `catalog` knows from below `root` (the same tree), what is spooled on `shelf`, and `manifests`.
    pub fn new(
        catalog: Arc<Catalog>,
        routing: Arc<Routing>,
        (shelf, manifests): (Arc<Shelf>, Arc<ManifestDesk>),
        root: Arc<Root>,
        key: SyncKey,
        counters: Arc<SyncCounters>,
    ) -> Self {
        Self { catalog, routing, shelf, manifests, root, key, counters }
    }

    /// What it did so far.
    pub fn counters(&self) -> &Arc<SyncCounters> {
        &self.counters
    }

    fn state(&self, node: NodeId) -> Option<NodeState> {
        self.routing.load().route(node).map(|route| route.state)
    }

    fn authorised(&self, request: &Request<'_>) -> Result<(), Refusal> {
        let text = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = text.and_then(crate::bearer::token).ok_or(SyncTokenError::Malformed);
        let outcome = token.and_then(|token| SyncToken::open(token, &self.key, epoch_secs(request.now)));
        let words = match outcome {
            Ok(token) if matches!(self.state(token.node), Some(state) if state != NodeState::Banned) => {
                return Ok(());
            }
            Ok(token) if self.state(token.node).is_some() => {
                format!("volunteer {} is banned; ask the operator why (`ctl node show`)\n", token.node)
            }
            Ok(token) => format!("volunteer {} is not enrolled here any more\n", token.node),
            Err(error) => format!("{error}\n"),
        };
        self.counters.tokens_refused.fetch_add(1, Ordering::Relaxed);
        let mut refusal = Refusal::new(StatusCode::UNAUTHORIZED, words);
        refusal.headers.push((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        Err(refusal)
    }
}

impl Site for SyncSite {
    fn answer(&self, request: &Request<'_>) -> Answer {
        if let Err(refusal) = self.authorised(request) {
            return Answer::Refusal(refusal);
        }
        if let Some(manifest) = named(request.path, b"/manifest/") {
            return match self.manifests.size(&manifest) {
                Some(size) => spooled(self.manifests.root(), &manifest, size),
                None => Answer::Refusal(Refusal::new(
                    StatusCode::NOT_FOUND,
                    "this manifest is not kept any more; ask control for the present one\n",
                )),
            };
        }
        let Some(content) = named(request.path, b"/blob/") else {
            return Answer::Refusal(Refusal::new(
                StatusCode::NOT_FOUND,
                "expected /blob/ or /manifest/ and the 64 hexadecimal digits of a BLAKE3 hash\n",
            ));
        };
        if let Some(entry) = self.catalog.load().by_content(&content) {
            let content_type = Some(HeaderValue::from_static(OCTETS));
            return Answer::File(FileAnswer { content_type, ..file_answer(&self.root, &entry, Vec::new()) });
        }
        match self.shelf.load().spooled.get(&content) {
            Some(&size) => spooled(self.shelf.root(), &content, size),
            None => Answer::Refusal(Refusal::new(
                StatusCode::NOT_FOUND,
                "the catalogue has no file of this content any more; fetch the manifest's difference\n",
            )),
        }
    }

    fn unavailable(&self, _request: &Request<'_>, file: &FileAnswer, why: &Unavailable) -> Answer {
        self.catalog.rescan();
        stale(file, why)
    }
}

/// What the sync port did since control's start; shared by all rings.
#[derive(Debug, Default)]
pub struct SyncCounters {
    blobs: AtomicU64,
    body_bytes: AtomicU64,
    tokens_refused: AtomicU64,
}

impl SyncCounters {
    /// Counts a response with a blob or a part of one, which has ended.
    pub fn blob_ended(&self) {
        self.blobs.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts body bytes that went to a volunteer.
    pub fn sent(&self, body_bytes: u64) {
        self.body_bytes.fetch_add(body_bytes, Ordering::Relaxed);
    }

    /// As they stand now.
    pub fn view(&self) -> SyncPortView {
        SyncPortView {
            blobs: self.blobs.load(Ordering::Relaxed),
            body_bytes: self.body_bytes.load(Ordering::Relaxed),
            tokens_refused: self.tokens_refused.load(Ordering::Relaxed),
        }
    }
}

/// The content that a path names behind `prefix`.
fn named(path: &[u8], prefix: &[u8]) -> Option<ContentHash> {
    std::str::from_utf8(path.strip_prefix(prefix)?).ok()?.parse().ok()
}

/// A file of control's own, under its hash.
fn spooled(root: &Arc<Root>, content: &ContentHash, size: u64) -> Answer {
    Answer::File(FileAnswer {
        root: Arc::clone(root),
        path: bytes::Bytes::from(content.to_string()),
        expected_size: Some(size),
        expected_mtime: None,
        expected_mtime_nanos: None,
        etag: HeaderValue::try_from(format!("\"{content}\"")).ok(),
        last_modified: None,
        content_type: Some(HeaderValue::from_static(OCTETS)),
        headers: Vec::new(),
    })
}

const OCTETS: &str = "application/octet-stream";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_hashes_name_a_blob() {
        let hash = ContentHash([0xab; 32]);
        assert_eq!(named(format!("/blob/{hash}").as_bytes(), b"/blob/"), Some(hash));
        assert_eq!(named(format!("/blob/{hash}").as_bytes(), b"/manifest/"), None);
        for path in ["/blob/", "/blob/ab", "/ab", "/blob/../x", "/blob/\u{e4}"] {
            assert_eq!(named(path.as_bytes(), b"/blob/"), None, "{path}");
        }
    }
}
