//! Divides what the mirror wants among the bundles that are being copied, and starts and ends their sessions.
//!
//! It fetches nothing itself. What no bundle has, or what a bundle failed to bring, it leaves to its caller.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet_api::ContentHash;
use freshet_api::bundle::{Bundle, BundleError, BundleId};
use freshet_policy::swarm::PieceSet;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::fetch::Fetcher;
use super::harvest::Barn;
use super::layout::{Layout, Source};
use super::meter::Speed;
use super::session::{End, Parts, Report, Session};
use super::store::{self, Kept, PieceStore};
use super::tracker::Tracker;
use super::{Swarm, SwarmOptions};
use crate::link::LinkError;
use crate::mirror::{Mirror, Want, blocking};
use crate::sync::{FetchError, Retry};

/// What happened, for the loop of the sync client.
#[derive(Debug)]
pub(crate) enum Event {
    /// Contents are on disk under their names.
    Committed,
    /// What is wanted should be divided anew.
    Replan,
    /// What stops the copying in pieces, or that nothing does any more.
    Trouble(Option<String>),
    /// Time to tell people how it goes.
    Tick,
}

/// The swarm side of the sync client.
pub(crate) struct Client<T> {
    mirror: Arc<Mirror>,
    tracker: Arc<T>,
    swarm: Swarm<T>,
    /// Bundles that are being copied, oldest first, as far as they could be read.
    layouts: Vec<Arc<Layout>>,
    running: HashMap<BundleId, Running>,
    /// Bundles that are left alone, and until when.
    dead: HashMap<BundleId, Instant>,
    /// Contents that a bundle has and can't give.
    excluded: HashSet<ContentHash>,
    outstanding: HashMap<ContentHash, BundleId>,
    /// What was added since plans were last sent.
    added: Vec<Want>,
    send_at: Option<Instant>,
    tasks: JoinSet<()>,
    reports: mpsc::Receiver<(BundleId, Report)>,
    reporter: mpsc::Sender<(BundleId, Report)>,
    listing: JoinSet<Result<Listing, FetchError>>,
    list_at: Instant,
    list_failures: u32,
    /// Until when contents that no known bundle has wait for control to say which bundles there are now; `None` once
    /// it has said so.
    unsaid_until: Option<Instant>,
    /// Whether there are such contents.
    held: bool,
    /// Whether a sweep waits for the list that is on its way.
    sweep_due: bool,
    speed: Speed,
    tick_at: Instant,
    kept: Kept,
}

struct Running {
    plan: watch::Sender<Arc<Vec<Want>>>,
    wants: BTreeMap<ContentHash, Want>,
}

struct Listing {
    layouts: Vec<Arc<Layout>>,
    /// Why they are those that are kept here, if control did not say which there are.
    unsaid: Option<FetchError>,
}

impl<T: Tracker> Client<T> {
    pub(crate) fn new(mirror: Arc<Mirror>, swarm: Swarm<T>) -> Self {
        let (reporter, reports) = mpsc::channel(REPORTS_MAX);
        let now = Instant::now();
        Self {
            mirror,
            tracker: Arc::clone(&swarm.tracker),
            swarm,
            layouts: Vec::new(),
            running: HashMap::new(),
            dead: HashMap::new(),
            excluded: HashSet::new(),
            outstanding: HashMap::new(),
            added: Vec::new(),
            send_at: None,
            tasks: JoinSet::new(),
            reports,
            reporter,
            listing: JoinSet::new(),
            list_at: now,
            list_failures: 0,
            unsaid_until: None,
            held: false,
            sweep_due: false,
            speed: Speed::default(),
            tick_at: now,
            kept: Kept::default(),
        }
    }

    /// Asks which bundles there are now, within a bounded time. For a new state of the catalogue.
    pub(crate) async fn refresh(&mut self) {
        self.excluded.clear();
        self.unsaid_until = Some(Instant::now() + self.swarm.options.list_patience);
        self.listing = JoinSet::new();
        self.list();
        if let Ok(Some(listed)) =
            tokio::time::timeout(self.swarm.options.list_within, self.listing.join_next()).await
        {
            self.listed(listed.unwrap_or(Err(FetchError::NoSource)));
        }
    }

    /// Takes what bundles have; returns the rest, which is to be fetched otherwise.
    ///
    /// Nothing is returned while control can't be asked which bundles there are: it would be fetched whole by every
    /// mirror as soon as the origin is back, and once more in pieces where that is cut short.
    pub(crate) fn plan(&mut self, wants: Vec<Want>) -> Vec<Want> {
        let now = Instant::now();
        self.dead.retain(|_, until| *until > now);
        self.added.clear();
        self.send_at = None;
        self.outstanding.clear();
        let coming: HashSet<ContentHash> = wants.iter().map(|want| want.content).collect();
        let mut rest = Vec::new();
        let mut plans: HashMap<BundleId, BTreeMap<ContentHash, Want>> = HashMap::new();
        for want in wants {
            match self.bundle_of(&want, |base| coming.contains(base)) {
                Some(bundle) => {
                    self.outstanding.insert(want.content, bundle);
                    plans.entry(bundle).or_default().insert(want.content, want);
                }
                None => rest.push(want),
            }
        }
        self.held = self.is_holding(now) && !rest.is_empty();
        if self.held {
            tracing::debug!(contents = rest.len(), "held back until control says which bundles there are");
            rest.clear();
        }
        for (bundle, running) in &mut self.running {
            let wants = plans.remove(bundle).unwrap_or_default();
            running.set(wants);
        }
        for layout in self.layouts.clone() {
            let wants = plans.remove(&layout.id).unwrap_or_default();
            self.start(layout, wants);
        }
        if self.is_idle() {
            self.offer();
        }
        rest
    }

    /// Offers what is held of bundles that are not copied here any more to peers who come late.
    fn offer(&mut self) {
        let over = self.layouts.iter().filter(|layout| !self.running.contains_key(&layout.id));
        let over: Vec<Arc<Layout>> = over.cloned().collect();
        let (mirror, shelves) = (Arc::clone(&self.mirror), self.swarm.shelves.clone());
        // Only contents that are blobs: packs go with the bundle's directory.
        let whole = move |layout: &Layout| {
            let mut pieces = PieceSet::new(layout.pieces());
            for (object, span) in layout.bundle.objects.iter().zip(&layout.spans) {
                if object.members.is_empty() && mirror.holds(&object.content) {
                    span.clone().for_each(|piece| {
                        pieces.insert(piece);
                    });
                }
            }
            pieces
        };
        self.tasks.spawn(async move {
            let offered = blocking(move || {
                let over: Vec<_> =
                    over.into_iter().map(|layout| (Arc::clone(&layout), whole(&layout))).collect();
                shelves.offer(&over);
                Ok(())
            });
            // It fails only when this process ends.
            let _ = offered.await;
        });
    }

    /// Whether contents that no known bundle has are not to be fetched otherwise yet.
    fn is_holding(&self, now: Instant) -> bool {
        self.unsaid_until.is_some_and(|until| until > now)
    }

    /// Whether a bundle has this content, or may turn out to.
    pub(crate) fn covers(&self, want: &Want) -> bool {
        self.is_holding(Instant::now())
            || self.bundle_of(want, |base| self.outstanding.contains_key(base)).is_some()
    }

    /// Takes one more content, if a bundle has it.
    pub(crate) fn add(&mut self, want: Want) -> Option<Want> {
        let Some(bundle) = self.bundle_of(&want, |base| self.outstanding.contains_key(base)) else {
            if self.is_holding(Instant::now()) {
                // The next plan names it again.
                self.held = true;
                return None;
            }
            return Some(want);
        };
        self.outstanding.insert(want.content, bundle);
        self.added.push(want);
        self.send_at.get_or_insert(Instant::now() + GATHER);
        None
    }

    /// Whether anything is still to come.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.is_empty() && !self.held
    }

    /// What happens next. Dropped while it waits, nothing is lost.
    pub(crate) async fn event(&mut self) -> Event {
        loop {
            let now = Instant::now();
            if self.tick_at <= now {
                self.tick_at = now + TICK;
                self.mirror.set_transfer(self.swarm.meter.read(&mut self.speed, now));
                return Event::Tick;
            }
            if self.send_at.is_some_and(|at| at <= now) {
                self.send_added();
            }
            if self.list_at <= now && self.listing.is_empty() {
                self.list();
            }
            if self.held && !self.is_holding(now) {
                return Event::Replan;
            }
            let held_until = self.unsaid_until.filter(|_| self.held);
            let list_at = self.listing.is_empty().then_some(self.list_at);
            let wake_at = [Some(self.tick_at), self.send_at, held_until, list_at];
            let wake_at = wake_at.into_iter().flatten().min().unwrap_or(self.tick_at);
            tokio::select! {
                Some((bundle, report)) = self.reports.recv() => {
                    if let Some(event) = self.reported(bundle, report) {
                        return event;
                    }
                }
                Some(listed) = self.listing.join_next() => {
                    if self.listed(listed.unwrap_or(Err(FetchError::NoSource))) {
                        return Event::Replan;
                    }
                }
                Some(_ended) = self.tasks.join_next() => {}
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    fn reported(&mut self, bundle: BundleId, report: Report) -> Option<Event> {
        match report {
            Report::Committed(contents) => {
                for content in &contents {
                    self.delivered(bundle, content);
                }
                let done = self.running.get(&bundle).is_none_or(|running| running.wants.is_empty());
                let others_wait = || self.outstanding.values().any(|from| !self.running.contains_key(from));
                // The next bundle's turn has come.
                Some(if done && others_wait() { Event::Replan } else { Event::Committed })
            }
            Report::Refused(contents) => {
                tracing::info!(%bundle, contents = contents.len(), "a bundle can't give what it names; it is fetched whole");
                for content in contents {
                    self.delivered(bundle, &content);
                    self.excluded.insert(content);
                }
                Some(Event::Replan)
            }
            Report::Trouble(trouble) => Some(Event::Trouble(trouble)),
            Report::Ended(end) => {
                tracing::info!(%bundle, ?end, "a bundle is not copied any more");
                self.running.remove(&bundle);
                self.swarm.shelves.close(bundle);
                let again = match end {
                    End::Stuck(_) => DEAD_FOR,
                    End::Complete | End::Closed => GONE_FOR,
                };
                self.dead.insert(bundle, Instant::now() + again);
                self.outstanding.retain(|_, from| *from != bundle);
                if end == End::Complete {
                    self.sweep();
                }
                Some(Event::Replan)
            }
        }
    }

    fn delivered(&mut self, bundle: BundleId, content: &ContentHash) {
        self.outstanding.remove(content);
        if let Some(running) = self.running.get_mut(&bundle) {
            running.wants.remove(content);
        }
    }

    fn list(&mut self) {
        let known: HashMap<BundleId, Arc<Layout>> =
            self.layouts.iter().map(|layout| (layout.id, Arc::clone(layout))).collect();
        let (tracker, mirror, kept) =
            (Arc::clone(&self.tracker), Arc::clone(&self.mirror), self.kept.clone());
        self.listing.spawn(async move {
            let mut layouts = Vec::new();
            let heard = async {
                let listed = patiently(|| tracker.bundles()).await?;
                let newest = listed.bundles.len().saturating_sub(BUNDLES_MAX);
                for bundle in listed.bundles.into_iter().skip(newest) {
                    let layout = match known.get(&bundle.id) {
                        Some(layout) => Some(Arc::clone(layout)),
                        None => load(&*tracker, &mirror, &kept, bundle.id).await?,
                    };
                    layouts.extend(layout);
                }
                Ok(())
            };
            match heard.await {
                Ok(()) => {}
                // What was being copied before a restart goes on, whether control is there or not.
                Err(error) if known.is_empty() && !matches!(error, FetchError::Gone { .. }) => {
                    let layouts = blocking(move || Ok(begun(&mirror, &kept))).await?;
                    return Ok(Listing { layouts, unsaid: Some(error) });
                }
                Err(error) => return Err(error),
            }
            Ok(Listing { layouts, unsaid: None })
        });
    }

    /// Takes a list in; whether it may change where something comes from.
    fn listed(&mut self, listed: Result<Listing, FetchError>) -> bool {
        let now = Instant::now();
        let (layouts, unsaid) = match listed {
            Ok(listing) => (listing.layouts, listing.unsaid),
            Err(FetchError::Gone { .. }) => (Vec::new(), None),
            Err(error) => (Vec::new(), Some(error)),
        };
        if let Some(error) = unsaid {
            if !matches!(error.retry(), Retry::SourceLater) && !matches!(error, FetchError::Busy { .. }) {
                // It is there, and its answer is of no use.
                self.unsaid_until = None;
            }
            let doublings = self.list_failures.min(4);
            self.list_failures = self.list_failures.saturating_add(1);
            let apart = self.swarm.options.list_apart;
            self.list_at = now
                + match self.is_holding(now) {
                    true => (LIST_AGAIN_FIRST * (1 << doublings)).min(apart),
                    false => apart.saturating_mul(1 << doublings) / 2,
                };
            tracing::debug!(%error, kept = layouts.len(), "control did not say which bundles are being copied");
            let news = !layouts.is_empty();
            self.layouts.extend(layouts);
            return news;
        }
        self.list_failures = 0;
        self.unsaid_until = None;
        self.list_at = now + self.swarm.options.list_apart.mul_f64(0.75 + rand::random::<f64>() / 2.0);
        let ids = |layouts: &[Arc<Layout>]| layouts.iter().map(|layout| layout.id).collect::<HashSet<_>>();
        let (before, after) = (ids(&self.layouts), ids(&layouts));
        self.layouts = layouts;
        if before.difference(&after).next().is_some() {
            self.dead.retain(|bundle, _| after.contains(bundle));
        }
        if before != after || self.sweep_due {
            self.sweep();
        }
        self.held || after.difference(&before).next().is_some()
    }

    /// Deletes what is kept of bundles that nobody copies any more; after a list that is on its way, whose bundles are
    /// being laid down.
    fn sweep(&mut self) {
        self.sweep_due = !self.listing.is_empty();
        if self.sweep_due {
            return;
        }
        let now = Instant::now();
        let listed = self.layouts.iter().map(|layout| layout.id);
        let listed =
            listed.filter(|bundle| self.dead.get(bundle).is_none_or(|until| *until < now + GONE_FOR / 2));
        self.kept.only(listed.chain(self.running.keys().copied()).collect::<Vec<_>>());
        let (kept, mirror) = (self.kept.clone(), Arc::clone(&self.mirror));
        self.tasks.spawn(async move {
            if let Err(error) = blocking(move || kept.sweep(&mirror)).await {
                tracing::warn!(%error, "what was kept for peers could not be deleted");
            }
        });
    }

    /// Which bundle to take a content from: the first that has it and can give it.
    fn bundle_of(&self, want: &Want, coming: impl Fn(&ContentHash) -> bool) -> Option<BundleId> {
        if want.size == 0 || self.excluded.contains(&want.content) {
            return None;
        }
        let alive = self.layouts.iter().filter(|layout| !self.dead.contains_key(&layout.id));
        let mut able = alive.filter(|layout| match layout.source(want) {
            None => false,
            Some(Source::Object(_) | Source::Member { .. }) => true,
            Some(Source::Recipe(number)) => {
                let bases = &layout.bundle.recipes[number].bases;
                layout.recipe_source(number).is_some()
                    && bases
                        .iter()
                        .all(|base| *base != want.content && (coming(base) || self.mirror.holds(base)))
            }
        });
        able.next().map(|layout| layout.id)
    }

    /// Starts a bundle's session if something is wanted from it, or peers may want what is kept of it.
    fn start(&mut self, layout: Arc<Layout>, wants: BTreeMap<ContentHash, Want>) {
        let id = layout.id;
        if self.running.contains_key(&id) || self.dead.contains_key(&id) {
            return;
        }
        let kept = || self.mirror.swarm_directory().join(id.to_string()).join(store::BITMAP).exists();
        let busy = self.running.values().filter(|running| !running.wants.is_empty()).count();
        // What is wanted of further bundles waits for its turn.
        if (wants.is_empty() && !kept()) || (!wants.is_empty() && busy >= SESSIONS_MAX) {
            return;
        }
        let (plan, plans) = watch::channel(Arc::default());
        let mut running = Running { plan, wants: BTreeMap::new() };
        running.set(wants);
        self.running.insert(id, running);
        let (mirror, tracker, meter) =
            (Arc::clone(&self.mirror), Arc::clone(&self.tracker), Arc::clone(&self.swarm.meter));
        let (dialer, pacer, origin, shelves, options) = (
            self.swarm.dialer.clone(),
            Arc::clone(&self.swarm.pacer),
            self.swarm.origin.clone(),
            self.swarm.shelves.clone(),
            self.swarm.options.clone(),
        );
        let (all, kept) = (self.reporter.clone(), self.kept.clone());
        self.tasks.spawn(async move {
            let (reports, mut own) = mpsc::channel(REPORTS_MAX);
            let session = async {
                let (opening, at) = (Arc::clone(&layout), Arc::clone(&mirror));
                let store = open(opening, at, kept, &options, &reports).await;
                let barn = Barn { mirror, layout: Arc::clone(&layout), store: Arc::clone(&store) };
                let fetcher = Arc::new(Fetcher { dialer, pacer, layout: Arc::clone(&layout), store });
                let shelf = shelves.open(layout);
                let parts = Parts { tracker, barn, shelf, fetcher, origin, meter, options };
                Session::run(parts, plans, reports).await;
            };
            let pass_on = async {
                while let Some(report) = own.recv().await {
                    if all.send((id, report)).await.is_err() {
                        break;
                    }
                }
            };
            tokio::join!(session, pass_on);
        });
    }

    fn send_added(&mut self) {
        self.send_at = None;
        let mut changed: HashSet<BundleId> = HashSet::new();
        let mut unstarted: HashMap<BundleId, BTreeMap<ContentHash, Want>> = HashMap::new();
        for want in std::mem::take(&mut self.added) {
            let Some(&bundle) = self.outstanding.get(&want.content) else { continue };
            match self.running.get_mut(&bundle) {
                Some(running) => {
                    running.wants.insert(want.content, want);
                    changed.insert(bundle);
                }
                None => drop(unstarted.entry(bundle).or_default().insert(want.content, want)),
            }
        }
        for bundle in changed {
            if let Some(running) = self.running.get_mut(&bundle) {
                let wants = std::mem::take(&mut running.wants);
                running.set(wants);
            }
        }
        for layout in self.layouts.clone() {
            if let Some(wants) = unstarted.remove(&layout.id) {
                self.start(layout, wants);
            }
        }
    }
}

impl Running {
    fn set(&mut self, wants: BTreeMap<ContentHash, Want>) {
        self.wants = wants;
        self.plan.send_replace(Arc::new(self.wants.values().cloned().collect()));
    }
}

/// Opens a bundle's directory, however long the disk needs to be in order again.
async fn open(
    layout: Arc<Layout>,
    mirror: Arc<Mirror>,
    kept: Kept,
    options: &SwarmOptions,
    reports: &mpsc::Sender<Report>,
) -> Arc<PieceStore> {
    let mut troubled = false;
    loop {
        let (mirror, layout, kept) = (Arc::clone(&mirror), Arc::clone(&layout), kept.clone());
        let opened = blocking(move || {
            kept.keep(layout.id);
            PieceStore::open(mirror, layout)
        });
        match opened.await {
            Ok(store) => {
                if troubled {
                    let _ = reports.send(Report::Trouble(None)).await;
                }
                return Arc::new(store);
            }
            Err(error) => {
                troubled = true;
                let _ = reports.send(Report::Trouble(Some(error.to_string()))).await;
                tokio::time::sleep(options.local_retry).await;
            }
        }
    }
}

/// The bundles of which something lies on this disk, in no particular order.
fn begun(mirror: &Mirror, kept: &Kept) -> Vec<Arc<Layout>> {
    let Ok(entries) = std::fs::read_dir(mirror.swarm_directory()) else { return Vec::new() };
    let found = entries.flatten().filter_map(|entry| {
        let id: BundleId = entry.file_name().to_str()?.parse().ok()?;
        if !entry.path().join(store::BITMAP).exists() {
            return None;
        }
        let layout = decode(id, &std::fs::read(entry.path().join(DESCRIPTION)).ok()?).ok()?;
        kept.keep(id);
        Some(layout)
    });
    found.take(BUNDLES_MAX).collect()
}

/// Asks up to [`ATTEMPTS`] times while the answer stops coming, each time by a connection of its own: the way to an origin
/// that is busy with a release loses packets, and a connection that lost several in a row waits long.
async fn patiently<A, F: Future<Output = Result<A, FetchError>>>(
    ask: impl Fn() -> F,
) -> Result<A, FetchError> {
    for _ in 1..ATTEMPTS {
        match ask().await {
            Err(FetchError::Link(LinkError::TimedOut { .. })) => {}
            answered => return answered,
        }
    }
    ask().await
}

/// A bundle from this disk, or from control; `None` when it can't be used.
async fn load<T: Tracker>(
    tracker: &T,
    mirror: &Arc<Mirror>,
    kept: &Kept,
    id: BundleId,
) -> Result<Option<Arc<Layout>>, FetchError> {
    let path = mirror.swarm_directory().join(id.to_string()).join(DESCRIPTION);
    let from = path.clone();
    let here =
        blocking(move || Ok(std::fs::read(&from).ok().and_then(|wire| decode(id, &wire).ok()))).await?;
    if here.is_some() {
        return Ok(here);
    }
    let wire = match patiently(|| tracker.bundle(id)).await {
        Ok(wire) => wire,
        Err(FetchError::Gone { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let kept = kept.clone();
    let decoded = blocking(move || {
        kept.keep(id);
        let layout = decode(id, &wire);
        if layout.is_ok()
            && let Some(directory) = path.parent()
        {
            // Without it the bundle is fetched again after a restart, which costs little.
            let written =
                std::fs::create_dir_all(directory).and_then(|()| crate::durable::write(&path, &wire, 0o600));
            if let Err(error) = written {
                tracing::debug!(%error, "a bundle's description is not kept");
            }
        }
        Ok(layout)
    })
    .await?;
    match decoded {
        Ok(layout) => Ok(Some(layout)),
        Err(error) => {
            tracing::warn!(bundle = %id, %error, "a bundle can't be used; its contents are fetched whole");
            Ok(None)
        }
    }
}

fn decode(id: BundleId, wire: &[u8]) -> Result<Arc<Layout>, BundleError> {
    Ok(Arc::new(Layout::new(id, Bundle::decode(id, wire)?)))
}

/// Bundles that are copied at once at most; of more the newest.
const BUNDLES_MAX: usize = 64;
/// Bundles from which something is fetched at once at most.
const SESSIONS_MAX: usize = 3;
const REPORTS_MAX: usize = 64;
/// How often control is asked for a list or a description before what is wanted is fetched otherwise.
const ATTEMPTS: u32 = 4;
/// The first wait after a list did not come for which something waits; it doubles from there.
const LIST_AGAIN_FIRST: Duration = Duration::from_millis(500);
/// The wire form of a bundle within its directory.
const DESCRIPTION: &str = "bundle";
/// How long single contents are gathered before a session hears of them.
const GATHER: Duration = Duration::from_millis(50);
/// How long a bundle is left alone that did not get on.
const DEAD_FOR: Duration = Duration::from_secs(600);
/// How long one is that is complete or closed: until it is no longer listed, in effect.
const GONE_FOR: Duration = Duration::from_secs(7 * 24 * 3_600);
const TICK: Duration = Duration::from_secs(1);
