//! The origin's sync port: contents of the catalogue, packs and recipes, by hash, for volunteers that bring a token.
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
use crate::swarm::Shelf;

/// `GET /blob/<64 hexadecimal digits>` with `Authorization: Bearer <sync token>`.
#[derive(Debug)]
pub struct SyncSite {
    catalog: Arc<Catalog>,
    routing: Arc<Routing>,
    shelf: Arc<Shelf>,
    root: Arc<Root>,
    key: SyncKey,
    counters: Arc<SyncCounters>,
}

impl SyncSite {
    /// Serves what `catalog` knows from below `root` (the same tree), and what is spooled on `shelf`.
    pub fn new(
        catalog: Arc<Catalog>,
        routing: Arc<Routing>,
        shelf: Arc<Shelf>,
        root: Arc<Root>,
        key: SyncKey,
        counters: Arc<SyncCounters>,
    ) -> Self {
        Self { catalog, routing, shelf, root, key, counters }
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
        let Some(content) = blob(request.path) else {
            return Answer::Refusal(Refusal::new(
                StatusCode::NOT_FOUND,
                "expected /blob/ and the 64 hexadecimal digits of a BLAKE3 hash\n",
            ));
        };
        let content_type = Some(HeaderValue::from_static("application/octet-stream"));
        if let Some(entry) = self.catalog.load().by_content(&content) {
            return Answer::File(FileAnswer { content_type, ..file_answer(&self.root, &entry, Vec::new()) });
        }
        match self.shelf.load().spooled.get(&content) {
            Some(&size) => Answer::File(FileAnswer {
                root: Arc::clone(self.shelf.root()),
                path: bytes::Bytes::from(content.to_string()),
                expected_size: Some(size),
                expected_mtime: None,
                expected_mtime_nanos: None,
                etag: HeaderValue::try_from(format!("\"{content}\"")).ok(),
                last_modified: None,
                content_type,
                headers: Vec::new(),
            }),
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
    /// Counts a response with a blob.
    pub fn sent(&self, body_bytes: u64) {
        self.blobs.fetch_add(1, Ordering::Relaxed);
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

fn blob(path: &[u8]) -> Option<ContentHash> {
    std::str::from_utf8(path.strip_prefix(b"/blob/")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_hashes_name_a_blob() {
        let hash = ContentHash([0xab; 32]);
        assert_eq!(blob(format!("/blob/{hash}").as_bytes()), Some(hash));
        for path in ["/blob/", "/blob/ab", "/ab", "/blob/../x", "/blob/\u{e4}"] {
            assert_eq!(blob(path.as_bytes()), None, "{path}");
        }
    }
}
