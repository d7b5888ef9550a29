//! Looks for itself when a volunteer says that another one sent a wrong piece: asks the accused for that piece, as the
//! volunteer that complained would, and compares.
//!
//! Only what control itself was sent is proof. No answer, a refusal or too few bytes prove nothing, and nothing
//! happens to anybody for it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use freshet_api::bundle::BundleId;
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
    open: Mutex<HashSet<(NodeId, BundleId, u32)>>,
    queue: mpsc::Sender<Case>,
    waiting: Mutex<Option<mpsc::Receiver<Case>>>,
}

/// Somebody says that a piece came wrong.
#[derive(Clone, Debug)]
struct Case {
    by: NodeId,
    accused: NodeId,
    kept: Arc<Kept>,
    piece: u32,
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
    pub(super) fn complain(&self, by: NodeId, accused: NodeId, kept: &Arc<Kept>, piece: u32) {
        let heard = lock(&self.complaints).are_heard(by, accused, self.clock.now());
        let banned = self.registry.nodes().by_id(accused).is_none_or(|node| node.ban.is_some());
        if !heard || banned || !lock(&self.open).insert((accused, kept.id, piece)) {
            return;
        }
        if self.queue.try_send(Case { by, accused, kept: Arc::clone(kept), piece }).is_err() {
            lock(&self.open).remove(&(accused, kept.id, piece));
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
                lock(&this.open).remove(&(case.accused, case.kept.id, case.piece));
                drop(permit);
            });
        }
    }

    async fn judge(&self, case: &Case, banned: impl Fn(NodeId)) {
        let Case { by, accused, piece, .. } = case;
        match self.look(case).await {
            Finding::Right => {
                tracing::info!(%by, %accused, piece, "a complaint about a piece was refuted: it is right");
                lock(&self.complaints).refuted(*by, *accused, self.clock.now());
            }
            Finding::Nothing(why) => {
                tracing::debug!(%by, %accused, piece, why, "a complaint about a piece could not be looked into");
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
        match self.fetch(case).await {
            Ok((content, offset, bytes)) => {
                let (received, expected) =
                    (ContentHash::from(blake3::hash(&bytes)), case.kept.bundle.pieces[case.piece as usize]);
                if received == expected {
                    return Finding::Right;
                }
                let length = bytes.len() as u64;
                Finding::Wrong(Evidence { of: Subject::Object(content), offset, length, expected, received })
            }
            Err(why) => Finding::Nothing(why),
        }
    }

    /// The accused's answer: of which content, from where, and the bytes, as many as were asked for.
    async fn fetch(&self, case: &Case) -> Result<(ContentHash, u64, Vec<u8>), String> {
        let bundle = &case.kept.bundle;
        let place = bundle.place(&case.kept.spans, case.piece).ok_or("there is no such piece")?;
        let content = bundle.objects[place.object].content;
        let session = self.tracker.session(case.accused, self.clock.now()).ok_or("it is not there")?;
        let url = sync_url(&session).ok_or("it has no sync port")?;
        let nodes = self.registry.nodes();
        let membership = nodes.by_id(case.accused).and_then(|node| node.membership.as_ref());
        let key = SyncKey::of_volunteer(&membership.ok_or("it is no volunteer any more")?.ticket_key);
        let expires = epoch_secs(std::time::SystemTime::now()) + TOKEN_SECS;
        let token = SyncToken { node: case.by, expires: u32::try_from(expires).unwrap_or(u32::MAX) };
        let request = self
            .http
            .get(format!("{url}/blob/{content}"))
            .bearer_auth(token.seal(&key))
            .header(header::RANGE, format!("bytes={}-{}", place.range.start, place.range.end - 1));
        let mut answer = request.send().await.map_err(|error| error.to_string())?;
        let whole = place.range == (0..bundle.objects[place.object].size);
        if answer.status() != StatusCode::PARTIAL_CONTENT && !(whole && answer.status() == StatusCode::OK) {
            return Err(format!("it answered {}", answer.status()));
        }
        let length =
            usize::try_from(place.range.end - place.range.start).map_err(|error| error.to_string())?;
        let mut bytes = Vec::with_capacity(length);
        while let Some(chunk) = answer.chunk().await.map_err(|error| error.to_string())? {
            if bytes.len() + chunk.len() > length {
                return Err(format!("it sent more than {length} bytes"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.len() < length {
            return Err(format!("it sent {} of {length} bytes", bytes.len()));
        }
        Ok((content, place.range.start, bytes))
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
