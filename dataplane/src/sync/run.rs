//! The sync client's loop: manifests in, fetches out, commits, and the end of each target.
//!
//! It ends only when it is told to. Whatever goes wrong is waited out and said in
//! [`SyncProgress::trouble`](freshet_api::heartbeat::SyncProgress::trouble).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use freshet_api::ContentHash;
use freshet_api::manifest::Manifest;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::backoff::Backoff;
use super::commit::{Committed, commit_all};
use super::fetch::{Fetcher, Way};
use super::queue::Queue;
use super::source::{BlobSource, FetchError, ManifestSource, Retry};
use crate::link::Fault;
use crate::mirror::{Finished, Mirror, MirrorError, Rechecked, Want, blocking};
use crate::swarm::{Client, Event, Swarm, Tracker};

/// Bounds of the sync client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncOptions {
    /// Fetches of small contents (256 KiB and less) under way at once; a large one counts as four of them.
    pub fetches_max: usize,
    /// How long a content is kept that nothing wants any more.
    pub grace: Duration,
    /// The first wait after a failure; it doubles from there.
    pub retry_first: Duration,
    /// The longest wait after failures.
    pub retry_most: Duration,
    /// How long to wait before this host's own trouble (a full disk) is looked at again.
    pub local_retry: Duration,
    /// How often old contents are swept when nothing else happens.
    pub sweep_every: Duration,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self {
            fetches_max: 32,
            grace: Duration::from_secs(24 * 3_600),
            retry_first: Duration::from_millis(500),
            retry_most: Duration::from_secs(60),
            local_retry: Duration::from_secs(10),
            sweep_every: Duration::from_secs(3_600),
        }
    }
}

/// Keeps `mirror` at the state that `wanted` names (0: not known yet), until `stop` is true or its sender gone.
///
/// Dropped instead of stopped it loses nothing but what was on its way.
pub async fn run<M: ManifestSource, B: BlobSource, T: Tracker>(
    mirror: Arc<Mirror>,
    manifests: M,
    blobs: B,
    swarm: Swarm<T>,
    wanted: watch::Receiver<u64>,
    options: SyncOptions,
    mut stop: watch::Receiver<bool>,
) {
    let (deliveries, delivered) = mpsc::channel(DELIVERIES_MAX);
    let (outcomes, committed) = mpsc::channel(OUTCOMES_MAX);
    let mut committer = JoinSet::new();
    committer.spawn(commit_all(Arc::clone(&mirror), delivered, outcomes));
    let memory = Arc::new(Semaphore::new(MEMORY_BYTES));
    let meter = Arc::clone(&swarm.meter);
    let fetcher = Arc::new(Fetcher { mirror: Arc::clone(&mirror), blobs, memory, deliveries, meter });
    let swarm = Client::new(Arc::clone(&mirror), swarm);
    let whole = mirror.needs_whole_manifest();
    let going = Going(Arc::new(AtomicBool::new(true)));
    let mut sync = Sync {
        mirror,
        swarm,
        not_local: HashSet::new(),
        manifests: Arc::new(manifests),
        fetcher,
        backoff: Backoff { first: options.retry_first, most: options.retry_most },
        queue: Queue::new(
            Backoff { first: options.retry_first, most: options.retry_most },
            options.fetches_max,
        ),
        options,
        wanted,
        fetches: JoinSet::new(),
        aborts: HashMap::new(),
        tasks: HashMap::new(),
        wanted_ended: false,
        committed,
        local: HashSet::new(),
        asking: JoinSet::new(),
        manifest: ManifestState { whole, ..ManifestState::default() },
        rechecks: JoinSet::new(),
        finish_at: None,
        sweep_at: Instant::now() + options.sweep_every,
        trouble: Trouble::default(),
        going,
    };
    sync.recheck();
    if sync.mirror.target().is_some() {
        // What was being copied in pieces goes on so.
        tokio::select! {
            () = sync.swarm.refresh() => {}
            stopped = stop.wait_for(|&stop| stop) => drop(stopped),
        }
    }
    sync.replan().await;
    loop {
        sync.begin();
        tokio::select! {
            biased;
            changed = stop.wait_for(|&stop| stop) => {
                // A sender that is gone can't ask for more either.
                drop(changed);
                break;
            }
            () = sync.step() => {}
        }
    }
    sync.going.stop();
    sync.fetches.shutdown().await;
    // The committer ends when nobody can deliver any more.
    drop(sync);
    while committer.join_next().await.is_some() {}
}

/// Tells work on blocking threads that it need not go on.
struct Going(Arc<AtomicBool>);

impl Going {
    fn stop(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Sync<M, B, T> {
    mirror: Arc<Mirror>,
    swarm: Client<T>,
    /// Contents that were looked for on this disk in vain, for this target.
    not_local: HashSet<ContentHash>,
    manifests: Arc<M>,
    fetcher: Arc<Fetcher<B>>,
    options: SyncOptions,
    backoff: Backoff,
    wanted: watch::Receiver<u64>,
    queue: Queue,
    fetches: JoinSet<Fetched>,
    aborts: HashMap<ContentHash, AbortHandle>,
    tasks: HashMap<Id, ContentHash>,
    /// Nobody will want anything else: what is wanted now is still made.
    wanted_ended: bool,
    committed: mpsc::Receiver<Committed>,
    /// Contents that may be on this disk already.
    local: HashSet<ContentHash>,
    asking: JoinSet<(u64, Result<Manifest, FetchError>)>,
    manifest: ManifestState,
    rechecks: JoinSet<Result<Rechecked, MirrorError>>,
    /// When the end of a target is tried again.
    finish_at: Option<Instant>,
    sweep_at: Instant,
    trouble: Trouble,
    going: Going,
}

/// A content and how its fetch ended.
type Fetched = (Want, Result<bool, FetchError>);

#[derive(Default)]
struct ManifestState {
    /// What was wanted when the last manifest was asked for.
    asked_for: u64,
    failures: u32,
    not_before: Option<Instant>,
    /// The last difference could not be used, or the owner selects another part.
    whole: bool,
}

/// What stops the sync, by where it was met; each is cleared where it is overcome.
#[derive(Default)]
struct Trouble {
    local: Lasting,
    swarm: Lasting,
    manifest: Option<String>,
    source: Option<String>,
    /// Of the file that failed last; told only while nothing else can be done.
    file: Option<String>,
}

/// A trouble that is met again and again while something small gets past it now and then, such as a full disk: it is
/// over when it was not met for a while after that.
#[derive(Default)]
struct Lasting {
    met: Option<String>,
    over_at: Option<Instant>,
}

impl Lasting {
    fn meet(&mut self, trouble: String) {
        *self = Lasting { met: Some(trouble), over_at: None };
    }

    /// Something got past it.
    fn pass(&mut self, over_at: Instant) {
        if self.met.is_some() {
            self.over_at.get_or_insert(over_at);
        }
    }

    /// Whether it has just come to be over.
    fn is_over(&mut self, now: Instant) -> bool {
        let over = self.over_at.is_some_and(|at| at <= now);
        if over {
            *self = Lasting::default();
        }
        over
    }
}

impl<M: ManifestSource, B: BlobSource, T: Tracker> Sync<M, B, T> {
    /// Starts what can be started now.
    fn begin(&mut self) {
        let now = Instant::now();
        if self.asking.is_empty() && self.manifest_is_due(now) {
            let manifests = Arc::clone(&self.manifests);
            let since = self.mirror.target().filter(|_| !self.needs_whole());
            self.manifest.asked_for = *self.wanted.borrow_and_update();
            let asked_for = self.manifest.asked_for;
            self.asking.spawn(async move { (asked_for, manifests.manifest(since).await) });
        }
        while let Some(want) = self.queue.next(now) {
            let fetcher = Arc::clone(&self.fetcher);
            let way = match self.local.remove(&want.content) {
                false => Way::Source,
                true if self.swarm.covers(&want) => Way::DiskOnly,
                true => Way::DiskFirst,
            };
            let content = want.content;
            let abort = self.fetches.spawn(async move {
                let result = fetcher.fetch(&want, way).await;
                (want, result)
            });
            self.tasks.insert(abort.id(), content);
            self.aborts.insert(content, abort);
        }
    }

    /// Waits for the next event and deals with it.
    ///
    /// Dropped while it waits, nothing is lost; the dealing is not interrupted by other events, only by a stop.
    async fn step(&mut self) {
        let now = Instant::now();
        if self.is_idle() && self.finish_at.is_some_and(|at| at <= now) {
            return self.finish().await;
        }
        if self.sweep_at <= now {
            return self.sweep().await;
        }
        let (local, swarm) = (&mut self.trouble.local, &mut self.trouble.swarm);
        if local.is_over(now) | swarm.is_over(now) {
            self.tell();
        }
        let wake_at = self.next_wake(now);
        tokio::select! {
            Some(asked) = self.asking.join_next() => {
                if let Ok((_, manifest)) = asked {
                    self.take_manifest(manifest).await;
                }
            }
            Some(fetched) = self.fetches.join_next_with_id() => self.fetched(fetched),
            Some(committed) = self.committed.recv() => self.settled(committed).await,
            event = self.swarm.event() => self.swarm_event(event).await,
            Some(rechecked) = self.rechecks.join_next() => self.rechecked(rechecked).await,
            changed = self.wanted.changed(), if !self.wanted_ended => self.wanted_ended = changed.is_err(),
            () = tokio::time::sleep_until(wake_at.into()) => {}
        }
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let finish_at = self.finish_at.filter(|_| self.is_idle());
        let manifest_at = self.manifest.not_before.filter(|&at| at > now && self.asking.is_empty());
        let Trouble { local, swarm, .. } = &self.trouble;
        [self.queue.next_change(now), finish_at, manifest_at, local.over_at, swarm.over_at]
            .into_iter()
            .flatten()
            .fold(self.sweep_at, Instant::min)
    }

    /// Whether all that is wanted is on disk, as far as is known here.
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.swarm.is_idle()
    }

    async fn swarm_event(&mut self, event: Event) {
        match event {
            Event::Committed => {
                self.finish_at.get_or_insert_with(Instant::now);
            }
            Event::Replan => self.replan().await,
            Event::Trouble(Some(trouble)) => {
                self.trouble.swarm.meet(trouble);
                self.tell();
            }
            Event::Trouble(None) => self.trouble.swarm.pass(Instant::now() + self.options.local_retry),
            Event::Tick => {}
        }
    }

    fn manifest_is_due(&self, now: Instant) -> bool {
        let wanted = *self.wanted.borrow();
        let have = self.mirror.target().unwrap_or(0);
        // One that is older than ours may be a heartbeat that crossed a manifest: it is asked for once.
        let differs = wanted > have || (wanted < have && wanted != self.manifest.asked_for);
        wanted > 0 && (differs || self.needs_whole()) && self.manifest.not_before.is_none_or(|at| at <= now)
    }

    /// Whether a difference is not enough: another part of the repository was chosen, or what is here fits to none.
    fn needs_whole(&self) -> bool {
        self.manifest.whole || self.mirror.needs_whole_manifest()
    }

    async fn take_manifest(&mut self, manifest: Result<Manifest, FetchError>) {
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(error) => return self.manifest_failed(error.to_string()),
        };
        let (sequence, base, files) = (manifest.sequence, manifest.base, manifest.files.len());
        let mirror = Arc::clone(&self.mirror);
        match blocking(move || mirror.accept(&manifest)).await {
            Ok(()) => {
                tracing::info!(sequence, ?base, files, "took over a manifest");
                self.manifest.whole = false;
                self.trouble.manifest = None;
                if sequence < self.manifest.asked_for {
                    // From a control that is behind the one that said so; it catches up.
                    self.manifest_failed(format!(
                        "expected manifest {} or later, control sent {sequence}",
                        self.manifest.asked_for
                    ));
                } else {
                    self.manifest.failures = 0;
                    self.manifest.not_before = None;
                }
                self.not_local.clear();
                self.swarm.refresh().await;
                self.replan().await;
            }
            Err(error) => {
                self.manifest.whole =
                    matches!(error, MirrorError::OtherBase { .. } | MirrorError::Contradiction { .. });
                self.manifest_failed(error.to_string());
            }
        }
    }

    fn manifest_failed(&mut self, error: String) {
        tracing::warn!(error, "no usable manifest");
        self.manifest.failures = self.manifest.failures.saturating_add(1);
        let delay = self.backoff.delay(self.manifest.failures, None, rand::random());
        self.manifest.not_before = Some(Instant::now() + delay);
        self.trouble.manifest = Some(error);
        self.tell();
    }

    /// Publishes what is here already and plans the fetching of the rest.
    async fn replan(&mut self) {
        let mirror = Arc::clone(&self.mirror);
        let planned = blocking(move || {
            mirror.publish_ready()?;
            let wants = mirror.missing();
            let local = mirror.survey(&wants)?;
            Ok((wants, local))
        })
        .await;
        match planned {
            Ok((wants, mut local)) => {
                local.retain(|content| !self.not_local.contains(content));
                let (mut here, wants): (Vec<Want>, Vec<Want>) = wants
                    .into_iter()
                    .partition(|want| local.contains(&want.content) || self.queue.is_busy(&want.content));
                // What this disk has is not copied from elsewhere, and what is on its way stays where it is.
                here.extend(self.swarm.plan(wants));
                here.sort_unstable_by(|a, b| (a.last, &a.path).cmp(&(b.last, &b.path)));
                self.local = local;
                for in_vain in self.queue.plan(here) {
                    if let Some(abort) = self.aborts.get(&in_vain) {
                        abort.abort();
                    }
                }
                let target = self.mirror.target();
                if target.is_some() {
                    self.finish_at = Some(Instant::now());
                }
            }
            Err(error) => self.local_trouble(&error, None),
        }
        self.tell();
    }

    fn fetched(&mut self, fetched: Result<(Id, Fetched), JoinError>) {
        let (want, result) = match fetched {
            Ok((id, fetched)) => {
                self.tasks.remove(&id);
                fetched
            }
            Err(aborted) => {
                // Nothing wants it any more.
                if let Some(content) = self.tasks.remove(&aborted.id()) {
                    self.aborts.remove(&content);
                    self.queue.left(&content);
                }
                return;
            }
        };
        self.aborts.remove(&want.content);
        let now = Instant::now();
        let error = match result {
            Ok(true) => {
                self.queue.fetched(want.content);
                if self.trouble.source.take().is_some() {
                    self.tell();
                }
                return;
            }
            Ok(false) => {
                self.not_local.insert(want.content);
                if self.queue.left(&want.content)
                    && let Some(want) = self.swarm.add(want)
                {
                    self.queue.add(want);
                }
                return;
            }
            Err(error) => error,
        };
        let blame = error.blame();
        tracing::debug!(path = %want.path, %error, ?blame, "a fetch failed");
        if blame.wrong_bytes {
            tracing::warn!(path = %want.path, %error, "wrong bytes came");
        }
        match error.retry() {
            Retry::SourceLater => {
                self.queue.source_failed(want, now, rand::random());
                self.trouble.source = Some(error.to_string());
            }
            Retry::FileLater { at_least } => {
                self.queue.file_failed(want, at_least, now, rand::random());
                if !matches!(error, FetchError::Local(_)) && blame.fault != Fault::Local {
                    self.trouble.file = Some(error.to_string());
                }
            }
            Retry::LocalLater => match error {
                FetchError::Local(error) => self.local_trouble(&error, Some(want)),
                other => {
                    self.queue.pause(Some(want), now + self.options.local_retry);
                    self.trouble.local.meet(other.to_string());
                }
            },
        }
        self.tell();
    }

    async fn settled(&mut self, Committed { contents, result }: Committed) {
        self.queue.settled(&contents);
        match result {
            Ok(()) => {
                self.finish_at.get_or_insert_with(Instant::now);
                self.trouble.local.pass(Instant::now() + self.options.local_retry);
            }
            Err(error) => {
                self.local_trouble(&error, None);
                self.replan().await;
            }
        }
    }

    /// Something is wrong with this host: nothing is begun for a while.
    fn local_trouble(&mut self, error: &MirrorError, want: Option<Want>) {
        if self.trouble.local.met.is_none() {
            tracing::error!(%error, "the mirror can't go on for now");
        }
        let until = Instant::now() + self.options.local_retry;
        self.queue.pause(want, until);
        self.finish_at = Some(until);
        self.trouble.local.meet(error.to_string());
        self.tell();
    }

    async fn finish(&mut self) {
        self.finish_at = None;
        let mirror = Arc::clone(&self.mirror);
        let before = mirror.progress();
        match blocking(move || mirror.finish()).await {
            Ok(Finished::Complete) => {
                self.trouble.local = Lasting::default();
                self.trouble.swarm = Lasting::default();
                self.trouble.file = None;
                let progress = self.mirror.progress();
                if before.complete != progress.complete {
                    tracing::info!(
                        sequence = progress.complete,
                        files = progress.files_held,
                        "the mirror is complete"
                    );
                    self.sweep().await;
                }
            }
            Ok(Finished::Missing) => {
                self.replan().await;
                if self.is_idle() {
                    // What is left is being hashed again.
                    self.finish_at = Some(Instant::now() + AGAIN);
                }
            }
            Err(error) => self.local_trouble(&error, None),
        }
        self.tell();
    }

    async fn sweep(&mut self) {
        self.sweep_at = Instant::now() + self.options.sweep_every;
        let (mirror, grace) = (Arc::clone(&self.mirror), self.options.grace);
        if let Err(error) = blocking(move || mirror.sweep(grace)).await {
            self.local_trouble(&error, None);
        }
    }

    /// Hashes suspected contents, now and whenever there are some.
    fn recheck(&mut self) {
        let (mirror, going) = (Arc::clone(&self.mirror), Arc::clone(&self.going.0));
        self.rechecks.spawn(async move {
            mirror.suspected().await;
            blocking(move || mirror.recheck(|| going.load(Ordering::Relaxed))).await
        });
    }

    async fn rechecked(&mut self, rechecked: Result<Result<Rechecked, MirrorError>, JoinError>) {
        match rechecked {
            Ok(Ok(found)) => {
                tracing::info!(right = found.right, lost = found.lost, "hashed suspected blobs again");
                self.recheck();
                self.replan().await;
            }
            Ok(Err(error)) => {
                self.local_trouble(&error, None);
                let (mirror, going) = (Arc::clone(&self.mirror), Arc::clone(&self.going.0));
                let wait = self.options.local_retry;
                self.rechecks.spawn(async move {
                    tokio::time::sleep(wait).await;
                    blocking(move || mirror.recheck(|| going.load(Ordering::Relaxed))).await
                });
            }
            Err(stopped) => tracing::debug!(%stopped, "a recheck was stopped"),
        }
    }

    /// Says what is wrong, the nearest trouble first.
    fn tell(&self) {
        let Trouble { local, swarm, manifest, source, file } = &self.trouble;
        let file = file.as_ref().filter(|_| self.queue.failing() > 0);
        let file =
            file.map(|file| format!("{} files can't be fetched for now: {file}", self.queue.failing()));
        let trouble =
            local.met.clone().or(swarm.met.clone()).or(manifest.clone()).or(source.clone()).or(file);
        self.mirror.set_trouble(trouble);
    }
}

/// Memory for contents on their way to the disk, bytes.
const MEMORY_BYTES: usize = 32 << 20;

/// Contents that wait for their batch at most.
const DELIVERIES_MAX: usize = 512;

/// Batches whose outcome waits to be heard at most.
const OUTCOMES_MAX: usize = 16;

/// How soon the end of a target is tried again while something is hashed.
const AGAIN: Duration = Duration::from_millis(200);
