//! The origin's side of the swarm: makes bundles of what is new, releases states to volunteers, and keeps the books
//! of who has and fetches what. It never sends a piece itself; the sync port does.

mod books;
mod bundler;
mod content;
mod manifests;
mod plan;
mod recheck;
mod recipes;
mod release;
mod shelf;
mod uplink;
mod view;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use freshet_api::bundle::BundleId;
use freshet_api::manifest::{ManifestAsk, ManifestError};
use freshet_api::swarm::{BundleList, BundleRef, SwarmPoll, SwarmReply};
use freshet_api::{Bytes, BytesPerSec, NodeId};
use tokio::sync::{Semaphore, watch};

use self::books::Books;
use self::bundler::Bundler;
use self::manifests::{ManifestRooms, Manifests};
use self::recheck::{Claim, Recheck};
use self::recipes::RecipeMaker;
use crate::catalog::{Catalog, Patterns, Snapshot};
use crate::clock::{Clock, epoch_secs};
use crate::registry::Registry;
use crate::sync_site::SyncCounters;
use crate::tracker::Tracker;

pub use self::manifests::{Manifests as ManifestDesk, Offered, Wire};
pub(crate) use self::plan::collection;
pub use self::release::{Release, Released};
pub use self::shelf::{Kept, Shelf, Shown};
pub use self::uplink::{SentElsewhere, SyncPacer};

/// The swarm as the other rooms of control see it.
pub struct Swarm {
    shelf: Arc<Shelf>,
    release: Arc<Release>,
    books: Books,
    registry: Arc<dyn Registry>,
    recheck: Arc<Recheck>,
    manifests: Arc<Manifests>,
    bundler: Arc<Bundler>,
    catalog: Arc<Catalog>,
    sync_counters: Arc<SyncCounters>,
    clock: Clock,
    reading: Semaphore,
    stop: watch::Sender<bool>,
}

/// How the swarm is set up.
#[derive(Clone, Debug)]
pub struct SwarmOptions {
    /// Root of the repository.
    pub repo: PathBuf,
    /// Control's state directory.
    pub state: PathBuf,
    /// Bytes of packs and recipes on disk at most, beside those of the last two releases.
    pub spool_max: Bytes,
    /// What counts as an index.
    pub patterns: Patterns,
    /// What the origin's uplink gives to sync; measured where it is not set.
    pub sync_rate: Option<BytesPerSec>,
    /// Copies of a bundle that the origin sends at most.
    pub origin_copies: f64,
}

/// The rooms that the swarm works with.
pub struct SwarmRooms {
    /// What is to be copied.
    pub catalog: Arc<Catalog>,
    /// Who may take part.
    pub registry: Arc<dyn Registry>,
    /// Where everybody stands.
    pub tracker: Arc<dyn Tracker>,
    /// What the sync port sent.
    pub sync_counters: Arc<SyncCounters>,
    /// This process's clock.
    pub clock: Clock,
}

impl Swarm {
    /// Loads the bundles that are there.
    ///
    /// # Errors
    /// When the state directory cannot be used.
    pub fn open(options: SwarmOptions, rooms: SwarmRooms) -> anyhow::Result<Arc<Self>> {
        let (shelf, damage) = Shelf::open(&options.state, options.spool_max.0)
            .with_context(|| format!("cannot open the bundles in {}", options.state.display()))?;
        let shelf = Arc::new(shelf);
        let recipes = RecipeMaker::open(&options.state, options.spool_max.0 / 4, options.patterns)
            .with_context(|| format!("cannot open the kept indexes in {}", options.state.display()))?;
        let release = Arc::new(Release::new(shelf.released().map_or(0, |released| released.sequence)));
        let bundler = Arc::new(Bundler {
            repo: options.repo,
            catalog: Arc::clone(&rooms.catalog),
            registry: Arc::clone(&rooms.registry),
            shelf: Arc::clone(&shelf),
            release: Arc::clone(&release),
            recipes: Mutex::new(recipes),
            damage: Mutex::new(damage),
            stopping: AtomicBool::new(false),
            preparing: Mutex::new(None),
        });
        bundler.resume();
        let manifests = Manifests::open(
            &options.state,
            ManifestRooms {
                catalog: Arc::clone(&rooms.catalog),
                registry: Arc::clone(&rooms.registry),
                tracker: Arc::clone(&rooms.tracker),
                clock: rooms.clock,
            },
        )
        .with_context(|| format!("cannot keep manifests in {}", options.state.display()))?;
        let recheck = Recheck::new(Arc::clone(&rooms.registry), Arc::clone(&rooms.tracker), rooms.clock)?;
        Ok(Arc::new(Self {
            registry: Arc::clone(&rooms.registry),
            recheck: Arc::new(recheck),
            manifests: Arc::new(manifests),
            books: Books::new(
                rooms.registry,
                rooms.tracker,
                options.sync_rate,
                options.origin_copies,
                rooms.clock.now(),
                rand::random(),
            ),
            shelf,
            release,
            bundler,
            catalog: rooms.catalog,
            sync_counters: rooms.sync_counters,
            clock: rooms.clock,
            reading: Semaphore::new(READERS_MAX),
            stop: watch::Sender::new(false),
        }))
    }

    /// What the origin gives to sync, set or as reckoned.
    pub fn origin_rate(&self) -> BytesPerSec {
        self.books.origin_rate().0
    }

    /// Who waits for its turn from now on: peers give it nothing, and the origin only what no peer has. `None` when nobody
    /// does.
    pub fn set_turns(&self, waits: Option<BTreeSet<NodeId>>) {
        self.books.set_turns(waits);
    }

    /// Makes bundles of every new state and keeps the books, until [`Swarm::stop`].
    /// `banned` is called for everybody who is caught with wrong bytes.
    pub async fn run(self: Arc<Self>, banned: impl Fn(NodeId) + Clone + Send + Sync + 'static) {
        let (bundling, keeping, looking) = (Arc::clone(&self), Arc::clone(&self), Arc::clone(&self));
        let expelled = move |node| {
            self.expel(node);
            banned(node);
        };
        let looking = async move {
            let mut stop = looking.stop.subscribe();
            tokio::select! {
                () = Arc::clone(&looking.recheck).run(expelled) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        };
        tokio::join!(bundling.bundle_states(), keeping.keep_books(), looking);
    }

    /// Ends [`Swarm::run`] soon; a bundle that is being made is given up.
    pub fn stop(&self) {
        self.bundler.stopping.store(true, Ordering::Relaxed);
        self.stop.send_replace(true);
    }

    /// The bundles on disk.
    pub fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// What volunteers are told of.
    pub fn release(&self) -> &Arc<Release> {
        &self.release
    }

    /// Whether a state is being made ready, and not for long: volunteers will soon be told of it.
    pub fn is_preparing(&self) -> bool {
        let since = *self.bundler.preparing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < SOON)
    }

    /// Manifests on their way to volunteers.
    pub fn manifests(&self) -> &Arc<ManifestDesk> {
        &self.manifests
    }

    /// Says where `node` gets the manifest from, and looks into what it says of the last offer.
    ///
    /// # Errors
    /// When the manifest cannot be made.
    pub async fn offer_manifest(
        &self,
        node: NodeId,
        ask: ManifestAsk,
        state: &Arc<Snapshot>,
    ) -> Result<Offered, ManifestError> {
        if let Some(failed) = &ask.failed
            && let Some(claim) = self.manifests.failed(node, failed)
            && let Some(peer) = failed.peer
        {
            self.books.accuse(node, peer, self.clock.now());
            self.recheck.complain(node, peer, claim);
        }
        self.manifests.offer(node, ask.since, state).await
    }

    /// The bundles of states that were released, oldest first.
    pub fn bundles(&self) -> BundleList {
        let sequence = self.release.load().sequence;
        let shown = self.shelf.load();
        let released = shown.bundles.iter().filter(|kept| kept.sequence <= sequence);
        BundleList {
            bundles: released.map(|kept| BundleRef { id: kept.id, sequence: kept.sequence }).collect(),
        }
    }

    /// A bundle in its wire form; `None` for one that is not kept. So many are read at once, the others wait.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn bundle(&self, id: BundleId) -> std::io::Result<Option<Vec<u8>>> {
        if !self.shelf.load().bundles.iter().any(|kept| kept.id == id) {
            return Ok(None);
        }
        let _permit = self.reading.acquire().await.map_err(std::io::Error::other)?;
        let shelf = Arc::clone(&self.shelf);
        match tokio::task::spawn_blocking(move || shelf.wire(id)).await.map_err(std::io::Error::other)? {
            Ok(wire) => Ok(Some(wire)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Answers a volunteer's poll.
    pub fn poll(&self, node: NodeId, poll: SwarmPoll) -> SwarmReply {
        let kept = self.shelf.load().bundles.iter().find(|kept| kept.id == poll.bundle).cloned();
        let Some(kept) = kept else { return Books::closed() };
        let now_secs = epoch_secs(std::time::SystemTime::now());
        let polled = self.books.poll(node, &kept, poll, self.clock.now(), now_secs);
        for complaint in polled.complaints {
            if let Some(claim) = Claim::of_piece(&kept, complaint.piece) {
                self.recheck.complain(node, complaint.peer, claim);
            }
        }
        polled.reply
    }

    /// `node` was removed or banned: nobody asks it any more, and what it had counts no more.
    pub fn expel(&self, node: NodeId) {
        self.books.expel(node);
        self.manifests.expel(node);
    }

    async fn bundle_states(&self) {
        let (mut sequences, mut stop) = (self.catalog.subscribe(), self.stop.subscribe());
        loop {
            sequences.borrow_and_update();
            let bundler = Arc::clone(&self.bundler);
            if let Err(error) = tokio::task::spawn_blocking(move || bundler.catch_up()).await {
                tracing::error!(%error, "making bundles ended badly; the next state is tried again");
            }
            tokio::select! {
                changed = sequences.changed() => if changed.is_err() { return },
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn keep_books(&self) {
        let mut stop = self.stop.subscribe();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let shown = self.shelf.load_full();
                    self.books.tick(&shown.bundles, self.sync_counters.view().body_bytes, self.clock.now());
                }
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}

impl std::fmt::Debug for Swarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swarm").field("release", &self.release).finish_non_exhaustive()
    }
}

const TICK: Duration = Duration::from_secs(1);
/// A state that takes longer to make ready takes so long to be copied that nobody minds when volunteers hear of it.
const SOON: Duration = Duration::from_secs(30);
/// Bundles read from disk at once at most, each up to some megabytes.
const READERS_MAX: usize = 8;
