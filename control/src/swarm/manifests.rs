//! Manifests on their way to volunteers: each is encoded once, lies on disk for the sync port to serve, and is handed on
//! from volunteer to volunteer, so that it leaves the origin about once.
//!
//! Nothing here is signed and nothing sent: the API does the one, the sync port and the volunteers the other.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::body::Bytes;
use freshet_api::admin::ManifestView;
use freshet_api::manifest::{ManifestError, ManifestFailed, ManifestFrom};
use freshet_api::swarm::PeerHint;
use freshet_api::{Bytes as Amount, ContentHash, NodeId, SyncKey, SyncToken};
use freshet_engine::Root;
use freshet_policy::swarm::{Relay, RelaySource, RelayTerms};
use tokio::sync::watch;

use super::books::sync_url;
use super::recheck::Claim;
use crate::catalog::{Catalog, Snapshot};
use crate::clock::{Clock, epoch_secs};
use crate::private_file;
use crate::registry::Registry;
use crate::tracker::Tracker;

/// The last few manifests.
pub struct Manifests {
    rooms: ManifestRooms,
    directory: PathBuf,
    root: Arc<Root>,
    /// Newest first. Held while one is encoded, so that who wants the same waits and finds it done.
    kept: tokio::sync::Mutex<VecDeque<Wire>>,
    /// By hash: what the sync port serves, and who has it.
    shown: ArcSwap<HashMap<ContentHash, Arc<Shown>>>,
    /// Grows with everything that may let somebody go on.
    news: watch::Sender<u64>,
}

/// What manifests and their ways are made of.
pub(super) struct ManifestRooms {
    pub(super) catalog: Arc<Catalog>,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) tracker: Arc<dyn Tracker>,
    pub(super) clock: Clock,
}

/// A manifest in its wire form, on disk.
#[derive(Clone, Debug)]
pub struct Wire {
    /// The state that it leads to.
    pub sequence: u64,
    /// What was asked for: the state to start from, or none.
    since: Option<u64>,
    /// The state that it starts from; none where all of it is sent.
    pub base: Option<u64>,
    /// Of its bytes.
    pub hash: ContentHash,
    /// How many.
    pub size: u64,
    bytes: Arc<Mutex<Held>>,
}

/// Its bytes, as long as somebody needs them.
#[derive(Debug)]
enum Held {
    /// Small ones stay.
    Here(Bytes),
    /// Of a large one everybody who is sent it at the time has the same copy.
    OnDisk(Weak<Vec<u8>>),
}

struct Shown {
    size: u64,
    sequence: u64,
    since: Option<u64>,
    relay: Mutex<Relay>,
}

/// What a volunteer is told.
#[derive(Debug)]
pub enum Offered {
    /// It is small: here it is.
    Whole(Wire),
    /// Where it is.
    At(Wire, ManifestFrom),
}

impl Manifests {
    /// Keeps them below `state`; what an earlier run left there is removed.
    pub(super) fn open(state: &Path, rooms: ManifestRooms) -> io::Result<Self> {
        let directory = state.join(DIRECTORY);
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => private_file::make_directory(&directory)?,
        }
        Ok(Self {
            rooms,
            root: Root::open(&directory)?,
            directory,
            kept: tokio::sync::Mutex::default(),
            shown: ArcSwap::default(),
            news: watch::Sender::new(0),
        })
    }

    /// Where the sync port serves them from: each under its hash.
    pub fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// The bytes of one that is kept; lock-free.
    pub fn size(&self, manifest: &ContentHash) -> Option<u64> {
        self.shown.load().get(manifest).map(|shown| shown.size)
    }

    /// What changed from `since` to `state`. One is encoded at a time; who waits finds it done.
    ///
    /// # Errors
    /// When it cannot be encoded or written.
    pub async fn wire(
        self: &Arc<Self>,
        state: &Arc<Snapshot>,
        since: Option<u64>,
    ) -> Result<Wire, ManifestError> {
        let mut kept = self.kept.lock().await;
        let sequence = state.sequence();
        if let Some(known) = kept.iter().find(|known| (known.sequence, known.since) == (sequence, since)) {
            return Ok(known.clone());
        }
        let (this, state) = (Arc::clone(self), Arc::clone(state));
        let made = tokio::task::spawn_blocking(move || this.make(&state, since));
        let wire = made.await.unwrap_or(Err(ManifestError::Damaged))?;
        kept.push_front(wire.clone());
        self.bound(&mut kept);
        Ok(wire)
    }

    /// Where `node` gets it from. While there is nothing to say the answer is held back for some seconds.
    pub(super) async fn offer(
        self: &Arc<Self>,
        node: NodeId,
        since: Option<u64>,
        state: &Arc<Snapshot>,
    ) -> Result<Offered, ManifestError> {
        let wire = self.wire(state, since).await?;
        let shown = self.shown.load().get(&wire.hash).cloned();
        let Some(shown) = shown.filter(|_| wire.size > WHOLE_BYTES_MAX) else {
            return Ok(Offered::Whole(wire));
        };
        let mut news = self.news.subscribe();
        let until = Instant::now() + HELD_BACK;
        loop {
            news.borrow_and_update();
            let now = self.rooms.clock.now();
            let asked = {
                let mut relay = lock(&shown.relay);
                (relay.ask(node, now), relay.next_expiry())
            };
            let hint = |peer| {
                let hint = self.hint(node, peer);
                if hint.is_none() {
                    // It left meanwhile.
                    lock(&shown.relay).forget(peer);
                }
                hint
            };
            let from = match asked.0 {
                RelaySource::Origin => Some(ManifestFrom::Origin),
                RelaySource::Peer(peer) => match hint(peer) {
                    Some(hint) => Some(ManifestFrom::Peer(hint)),
                    None => continue,
                },
                RelaySource::Later => None,
            };
            if let Some(from) = from {
                return Ok(Offered::At(wire, from));
            }
            let expiry = asked.1.map_or(HELD_BACK, |at| at.since(now)) + EXPIRED;
            let wait = until.saturating_duration_since(Instant::now()).min(expiry);
            if wait.is_zero() {
                return Ok(Offered::At(wire, ManifestFrom::Later));
            }
            // Either something changed, or it is time to look again.
            let _ = tokio::time::timeout(wait, news.changed()).await;
        }
    }

    /// `node` has it, and gives it to peers if it `serves`.
    pub fn held(&self, node: NodeId, manifest: &ContentHash, serves: bool) {
        if let Some(shown) = self.shown.load().get(manifest) {
            let reachable = serves && self.address(node).is_some();
            lock(&shown.relay).has(node, reachable);
            self.tell();
        }
    }

    /// What `node` was sent to did not give it; returns what to look into, if wrong bytes came from a peer.
    pub(super) fn failed(&self, node: NodeId, failed: &ManifestFailed) -> Option<Claim> {
        let shown = self.shown.load();
        let of = shown.get(&failed.manifest)?;
        let known = lock(&of.relay).failed(node, failed.peer);
        self.tell();
        (known && failed.wrong).then(|| Claim::of_manifest(failed.manifest, of.size))
    }

    /// `node` was removed or banned.
    pub(super) fn expel(&self, node: NodeId) {
        for shown in self.shown.load().values() {
            lock(&shown.relay).forget(node);
        }
        self.tell();
    }

    /// As operators see them, newest first.
    pub(super) fn view(&self) -> Vec<ManifestView> {
        let shown = self.shown.load();
        let mut views: Vec<ManifestView> = shown
            .values()
            .map(|shown| {
                let relay = lock(&shown.relay);
                let figures = relay.figures();
                ManifestView {
                    sequence: shown.sequence,
                    since: shown.since,
                    bytes: shown.size,
                    from_origin: figures.from_origin,
                    from_peers: figures.from_peers,
                    failed: figures.failed,
                    holders: relay.holders() as u64,
                }
            })
            .collect();
        views.sort_by_key(|view| (std::cmp::Reverse(view.sequence), view.since));
        views
    }

    fn make(&self, state: &Snapshot, since: Option<u64>) -> Result<Wire, ManifestError> {
        let manifest = self.rooms.catalog.manifest_of(state, since);
        let (sequence, base) = (manifest.sequence, manifest.base);
        let bytes = manifest.encode()?;
        drop(manifest);
        let (hash, size) = (ContentHash::of(&bytes), bytes.len() as u64);
        let held = if size <= MEMORY_BYTES_MAX {
            Held::Here(bytes.clone().into())
        } else {
            Held::OnDisk(Weak::new())
        };
        let wire = Wire { sequence, since, base, hash, size, bytes: Arc::new(Mutex::new(held)) };
        if size > WHOLE_BYTES_MAX {
            let path = self.directory.join(hash.to_string());
            if let Err(error) = private_file::write(&path, &bytes) {
                tracing::warn!(%error, "a manifest cannot be written down: every volunteer is sent it from memory");
                let held = Held::Here(bytes.into());
                return Ok(Wire { bytes: Arc::new(Mutex::new(held)), ..wire });
            }
            let terms = RelayTerms::of(Amount(size), u64::from_le_bytes(beginning(&hash)));
            let shown = Arc::new(Shown { size, sequence, since, relay: Mutex::new(Relay::new(terms)) });
            self.shown.rcu(|before| {
                let mut after = HashMap::clone(before);
                after.entry(hash).or_insert_with(|| Arc::clone(&shown));
                after
            });
        }
        Ok(wire)
    }

    /// Lets the oldest go beyond the bounds.
    fn bound(&self, kept: &mut VecDeque<Wire>) {
        let bytes = |kept: &VecDeque<Wire>| kept.iter().map(|wire| wire.size).sum::<u64>();
        while kept.len() > KEPT_MAX || (kept.len() > 1 && bytes(kept) > KEPT_BYTES_MAX) {
            let Some(oldest) = kept.pop_back() else { return };
            if kept.iter().any(|wire| wire.hash == oldest.hash) {
                continue;
            }
            self.shown.rcu(|before| {
                let mut after = HashMap::clone(before);
                after.remove(&oldest.hash);
                after
            });
            // Who is being sent it has it open.
            if let Err(error) = std::fs::remove_file(self.directory.join(oldest.hash.to_string()))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "an old manifest cannot be removed");
            }
        }
    }

    /// The sync port of a volunteer that is there.
    fn address(&self, node: NodeId) -> Option<String> {
        sync_url(&self.rooms.tracker.session(node, self.rooms.clock.now())?)
    }

    /// How `node` gets in at `peer`.
    fn hint(&self, node: NodeId, peer: NodeId) -> Option<PeerHint> {
        let nodes = self.rooms.registry.nodes();
        let known = nodes.by_id(peer).filter(|node| node.ban.is_none())?;
        let key = SyncKey::of_volunteer(&known.membership.as_ref()?.ticket_key);
        let expires = epoch_secs(std::time::SystemTime::now()) + TOKEN_SECS;
        let token = SyncToken { node, expires: u32::try_from(expires).unwrap_or(u32::MAX) }.seal(&key);
        Some(PeerHint { node: peer, url: self.address(peer)?, token })
    }

    fn tell(&self) {
        self.news.send_modify(|news| *news += 1);
    }
}

impl Wire {
    /// Its bytes. Blocks.
    ///
    /// # Errors
    /// The kernel's, where it lies on disk; it may have been dropped meanwhile.
    pub fn read(&self, desk: &Manifests) -> io::Result<Bytes> {
        let mut held = lock(&self.bytes);
        let copy = match &*held {
            Held::Here(bytes) => return Ok(bytes.clone()),
            Held::OnDisk(copy) => copy.upgrade(),
        };
        let copy = match copy {
            Some(copy) => copy,
            None => {
                let copy = Arc::new(std::fs::read(desk.directory.join(self.hash.to_string()))?);
                *held = Held::OnDisk(Arc::downgrade(&copy));
                copy
            }
        };
        Ok(Bytes::from_owner(Shared(copy)))
    }
}

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Manifests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifests").field("directory", &self.directory).finish_non_exhaustive()
    }
}

fn beginning(hash: &ContentHash) -> [u8; 8] {
    let mut beginning = [0; 8];
    beginning.copy_from_slice(&hash.0[..8]);
    beginning
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const DIRECTORY: &str = "manifests";
/// Up to so many bytes a manifest is sent at once: words about it would cost a good part of that.
const WHOLE_BYTES_MAX: u64 = 8 << 10;
/// Up to so many it stays in memory: 8 MiB in all.
const MEMORY_BYTES_MAX: u64 = 1 << 20;
/// Manifests kept at most, of so many bytes together or one.
const KEPT_MAX: usize = 8;
const KEPT_BYTES_MAX: u64 = 512 << 20;
/// How long an answer is held back.
const HELD_BACK: Duration = Duration::from_secs(4);
/// How much later it is looked whether somebody was taken for gone.
const EXPIRED: Duration = Duration::from_millis(10);
const TOKEN_SECS: u64 = 1_800;
