//! Looks for itself when a volunteer says that another one sent a wrong piece or manifest: asks the accused for it, as
//! the volunteer that complained would, and compares.
//!
//! Only what control itself was sent is proof. No answer, a refusal or too few bytes prove nothing, and nothing
//! happens to anybody for it.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use freshet_api::{ContentHash, NodeId, SyncKey, SyncToken, pin};
use freshet_policy::trust::{Complaints, Evidence, Subject};
use http::{StatusCode, header};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::books::sync_url;
use super::shelf::Kept;
use crate::clock::{Clock, epoch_secs};
use crate::registry::{Ban, Registry};
use crate::tracker::Tracker;

/// Complaints on their way to be looked into.
pub(super) struct Recheck {
    registry: Arc<dyn Registry>,
    tracker: Arc<dyn Tracker>,
    clock: Clock,
    http: reqwest::Client,
    complaints: Mutex<Complaints>,
    /// What is being looked into, so that forty who complain about the same cost one look.
    open: Mutex<HashSet<(NodeId, Claim)>>,
    queue: mpsc::Sender<Case>,
    waiting: Mutex<Option<mpsc::Receiver<Case>>>,
}

/// Somebody says that something came wrong.
#[derive(Clone, Debug)]
struct Case {
    by: NodeId,
    accused: NodeId,
    claim: Claim,
}

/// What is said to have come wrong: so many bytes of a content, as a sync port gives them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    /// `blob` or `manifest`.
    kind: &'static str,
    content: ContentHash,
    size: u64,
    range: Range<u64>,
    /// Of those bytes.
    expected: ContentHash,
}

impl Claim {
    /// A piece of a bundle; `None` when it has no such piece.
    pub(super) fn of_piece(kept: &Kept, piece: u32) -> Option<Self> {
        let place = kept.bundle.place(&kept.spans, piece)?;
        let object = &kept.bundle.objects[place.object];
        let expected = *kept.bundle.pieces.get(piece as usize)?;
        let (content, size) = (object.content, object.size);
        Some(Self { kind: "blob", content, size, range: place.range, expected })
    }

    /// A whole manifest.
    pub(super) fn of_manifest(content: ContentHash, size: u64) -> Self {
        Self { kind: "manifest", content, size, range: 0..size, expected: content }
    }
}

/// What a look gave.
#[derive(Debug)]
enum Finding {
    /// The piece is right.
    Right,
    /// The piece is wrong.
    Wrong(Evidence),
    /// It could not be had.
    Nothing(String),
}

impl Recheck {
    pub(super) fn new(
        registry: Arc<dyn Registry>,
        tracker: Arc<dyn Tracker>,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        // No TLS is spoken here; the client wants to be told which it would be.
        let tls = pin::client_config(freshet_api::enrol::Fingerprint([0; 32]))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .pool_max_idle_per_host(0)
            .build()?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        Ok(Self {
            registry,
            tracker,
            clock,
            http,
            complaints: Mutex::default(),
            open: Mutex::default(),
            queue,
            waiting: Mutex::new(Some(waiting)),
        })
    }

    /// Takes a complaint, if it is worth a look and there is room.
    pub(super) fn complain(&self, by: NodeId, accused: NodeId, claim: Claim) {
        let heard = lock(&self.complaints).are_heard(by, accused, self.clock.now());
        let banned = self.registry.nodes().by_id(accused).is_none_or(|node| node.ban.is_some());
        if !heard || banned || !lock(&self.open).insert((accused, claim.clone())) {
            return;
        }
        if let Err(unsent) = self.queue.try_send(Case { by, accused, claim }) {
            lock(&self.open).remove(&(accused, unsent.into_inner().claim));
        }
    }

    /// Looks into complaints until the task is dropped; `banned` is called for everybody who is caught.
    pub(super) async fn run(self: Arc<Self>, banned: impl Fn(NodeId) + Clone + Send + Sync + 'static) {
        let Some(mut waiting) = lock(&self.waiting).take() else { return };
        let permits = Arc::new(Semaphore::new(LOOKS_MAX));
        let mut looks = JoinSet::new();
        loop {
            let case = tokio::select! {
                case = waiting.recv() => case,
                Some(_) = looks.join_next() => continue,
            };
            let Some(case) = case else { return };
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let (this, banned) = (Arc::clone(&self), banned.clone());
            looks.spawn(async move {
                this.judge(&case, banned).await;
                lock(&this.open).remove(&(case.accused, case.claim));
                drop(permit);
            });
        }
    }

    async fn judge(&self, case: &Case, banned: impl Fn(NodeId)) {
        let Case { by, accused, claim: Claim { content, .. } } = case;
        match self.look(case).await {
            Finding::Right => {
                tracing::info!(%by, %accused, %content, "a complaint was refuted: what it is about is right");
                lock(&self.complaints).refuted(*by, *accused, self.clock.now());
            }
            Finding::Nothing(why) => {
                tracing::debug!(%by, %accused, %content, why, "a complaint could not be looked into");
            }
            Finding::Wrong(evidence) => {
                let ban = Ban { since: epoch_secs(std::time::SystemTime::now()), evidence };
                tracing::warn!(volunteer = %accused, %by, %ban, "caught with wrong bytes");
                match self.registry.ban(*accused, ban).await {
                    Ok(_) => {
                        lock(&self.complaints).proven(*accused);
                        banned(*accused);
                    }
                    Err(error) => tracing::error!(%accused, %error, "the ban could not be noted"),
                }
            }
        }
    }

    async fn look(&self, case: &Case) -> Finding {
        let Claim { content, range, expected, .. } = &case.claim;
        match self.fetch(case).await {
            Ok(received) if received == *expected => Finding::Right,
            Ok(received) => Finding::Wrong(Evidence {
                of: Subject::Object(*content),
                offset: range.start,
                length: range.end - range.start,
                expected: *expected,
                received,
            }),
            Err(why) => Finding::Nothing(why),
        }
    }

    /// The hash of the accused's answer, which had as many bytes as were asked for.
    async fn fetch(&self, case: &Case) -> Result<ContentHash, String> {
        let Claim { kind, content, size, range, .. } = &case.claim;
        let session = self.tracker.session(case.accused, self.clock.now()).ok_or("it is not there")?;
        let url = sync_url(&session).ok_or("it has no sync port")?;
        let nodes = self.registry.nodes();
        let membership = nodes.by_id(case.accused).and_then(|node| node.membership.as_ref());
        let key = SyncKey::of_volunteer(&membership.ok_or("it is no volunteer any more")?.ticket_key);
        let expires = epoch_secs(std::time::SystemTime::now()) + TOKEN_SECS;
        let token = SyncToken { node: case.by, expires: u32::try_from(expires).unwrap_or(u32::MAX) };
        let mut request = self.http.get(format!("{url}/{kind}/{content}")).bearer_auth(token.seal(&key));
        let whole = *range == (0..*size);
        if !whole || *kind == "blob" {
            request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        let mut answer = request.send().await.map_err(|error| error.to_string())?;
        if answer.status() != StatusCode::PARTIAL_CONTENT && !(whole && answer.status() == StatusCode::OK) {
            return Err(format!("it answered {}", answer.status()));
        }
        let length = range.end - range.start;
        let (mut hasher, mut came) = (blake3::Hasher::new(), 0);
        while let Some(chunk) = answer.chunk().await.map_err(|error| error.to_string())? {
            came += chunk.len() as u64;
            if came > length {
                return Err(format!("it sent more than {length} bytes"));
            }
            hasher.update(&chunk);
        }
        if came < length {
            return Err(format!("it sent {came} of {length} bytes"));
        }
        Ok(ContentHash::from(hasher.finalize()))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Complaints that wait at most; further ones are dropped, and come again if there is something to them.
const QUEUE_MAX: usize = 256;
/// Looks at once at most.
const LOOKS_MAX: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const TOKEN_SECS: u64 = 120;
