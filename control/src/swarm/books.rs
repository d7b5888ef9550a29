//! The tracker's books: for every bundle that is being copied, who has what, who may fetch what from the origin,
//! and whom else to ask. All in memory; after a restart the volunteers' next polls bring it back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use freshet_api::bundle::BundleId;
use freshet_api::swarm::{
    COMPLAINTS_MAX, Complaint, LEASES_MAX, LeaseGrant, PEERS_MAX, PeerHint, SwarmPoll, SwarmReply,
};
use freshet_api::{Bytes, BytesPerSec, NodeId, SyncKey, SyncToken};
use freshet_policy::Moment;
use freshet_policy::draw;
use freshet_policy::swarm::{
    Joining, LeaseBook, LeaseTerms, OriginRate, PieceSet, Suspicions, accusers_needed,
};

use super::shelf::Kept;
use crate::registry::Registry;
use crate::routing::DeliveryTarget;
use crate::tracker::{Session, Tracker};

/// The books of all bundles.
pub(super) struct Books {
    registry: Arc<dyn Registry>,
    tracker: Arc<dyn Tracker>,
    books: Mutex<HashMap<BundleId, Arc<Mutex<Book>>>>,
    rate: Mutex<OriginRate>,
    /// What volunteers say of each other, over all bundles.
    suspicions: Mutex<Suspicions>,
    origin_copies: f64,
    /// Before it, who was not heard of yet may still come and lack something.
    settled: Moment,
    /// Drawn at the start, so that nobody can foresee who is named to whom.
    seed: u64,
    /// Who waits for its turn to be served by peers.
    waits: ArcSwapOption<BTreeSet<NodeId>>,
}

/// One bundle's.
struct Book {
    kept: Arc<Kept>,
    leases: LeaseBook,
    /// When each member was last heard of here.
    heard: BTreeMap<NodeId, Moment>,
    /// Those who left with all that they want.
    done: BTreeSet<NodeId>,
    /// Members whom nobody is sent to, for what the others say of them.
    suspected: BTreeSet<NodeId>,
    /// Some of those who left with all that they want, as long as they are there: they give what they hold whole to
    /// those who come late.
    seeds: BTreeSet<NodeId>,
    /// Pieces of objects that mirrors hold as files; those of packs go when a volunteer leaves.
    lasting: PieceSet,
    /// Whether nobody needs it any more, and when that was found out.
    complete: Option<(bool, Moment)>,
    interval: Duration,
}

/// One bundle in figures.
#[derive(Clone, Debug)]
pub(super) struct BookFigures {
    /// Everybody who takes part.
    pub(super) members: Vec<freshet_policy::swarm::Progress>,
    pub(super) granted: freshet_policy::swarm::Granted,
    pub(super) spread: u32,
    pub(super) complete: bool,
}

/// Somebody of whom others say that wrong pieces came from it.
#[derive(Clone, Debug)]
pub(super) struct Accused {
    pub(super) node: NodeId,
    pub(super) accusers: Vec<NodeId>,
    pub(super) believed: usize,
    pub(super) needed: usize,
    pub(super) avoided: bool,
}

/// What came of a poll, beside the answer.
#[derive(Debug)]
pub(super) struct Polled {
    /// The answer.
    pub(super) reply: SwarmReply,
    /// Complaints that make sense: of members, about others.
    pub(super) complaints: Vec<Complaint>,
}

impl Books {
    pub(super) fn new(
        registry: Arc<dyn Registry>,
        tracker: Arc<dyn Tracker>,
        sync_rate: Option<BytesPerSec>,
        origin_copies: f64,
        now: Moment,
        seed: u64,
    ) -> Self {
        Self {
            settled: now + SETTLING,
            registry,
            tracker,
            books: Mutex::default(),
            rate: Mutex::new(OriginRate::new(sync_rate)),
            suspicions: Mutex::default(),
            origin_copies,
            seed,
            waits: ArcSwapOption::empty(),
        }
    }

    /// Answers `node`; `kept` is the bundle that it asks about, `now_secs` the time of day for tokens.
    pub(super) fn poll(
        &self,
        node: NodeId,
        kept: &Arc<Kept>,
        poll: SwarmPoll,
        now: Moment,
        now_secs: u64,
    ) -> Polled {
        let session = self.tracker.session(node, now);
        let origin = self.origin_share(kept.id);
        let book = self.book(kept, origin);
        let mut book = lock(&book);
        book.leases.set_origin(origin);
        let member = book.leases.is_member(node);
        let mut reply = SwarmReply { want_whole: !member && !poll.whole, ..SwarmReply::default() };
        if poll.leaving {
            let done = book.leases.is_done(node) || (poll.whole && is_done(&poll, kept.bundle.len()));
            let stays = done && member && book.seeds.len() < SEEDS_MAX;
            if stays {
                book.stay(node);
            } else {
                book.forget(node);
            }
            if done {
                book.done.insert(node);
            }
        } else if poll.whole {
            let held = pieces(&poll.have, kept.bundle.len());
            let unwanted = pieces(&poll.unwanted, kept.bundle.len());
            let spare = spare(&poll, session.as_ref());
            let reachable = session.as_ref().is_some_and(|session| sync_url(session).is_some());
            book.suspected.remove(&node);
            book.seeds.remove(&node);
            book.leases.join_as(node, Joining { spare, held, unwanted, reachable });
            book.done.remove(&node);
            book.heard.insert(node, now);
        } else if member {
            book.leases.have(node, poll.have.iter());
            book.leases.measured(node, spare(&poll, session.as_ref()));
            book.heard.insert(node, now);
        }
        let complaints = poll.complaints.into_iter().take(COMPLAINTS_MAX);
        let complaints: Vec<Complaint> = complaints
            .filter(|complaint| complaint.peer != node && complaint.piece < kept.bundle.len())
            .filter(|complaint| book.leases.is_member(node) && book.knows(complaint.peer))
            .collect();
        self.suspect(&mut book, node, &complaints, now);
        if book.leases.is_member(node) {
            let waits = self.waits.load().as_ref().is_some_and(|waits| waits.contains(&node));
            let wanted = poll.leases.min(LEASES_MAX as u32);
            // What nobody has yet makes its uplink useful to those whose turn it is.
            let leases = match waits && book.leases.spread() >= kept.bundle.len() {
                true => Vec::new(),
                false => book.leases.grant(node, wanted, now),
            };
            for lease in leases {
                let for_ms = u64::try_from(lease.until.since(now).as_millis()).unwrap_or(u64::MAX);
                reply.leases.push(LeaseGrant { piece: lease.piece, for_ms });
            }
            reply.waits = waits;
            let peers = if waits { Vec::new() } else { self.peers(&book, node, now, now_secs) };
            reply.peers_are = name_of(&peers);
            if reply.peers_are != poll.peers_known {
                reply.peers = peers;
            }
        }
        reply.complete = self.is_complete(&mut book, now);
        let interval = match (book.leases.is_complete(), book.leases.is_done(node)) {
            (true, _) => INTERVAL_WAITING,
            (false, true) => book.interval.max(INTERVAL_DONE),
            (false, false) => book.interval,
        };
        reply.interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        Polled { reply, complaints }
    }

    /// What a volunteer is told about a bundle that is not copied (any more).
    pub(super) fn closed() -> SwarmReply {
        let interval_ms = u64::try_from(INTERVAL_CLOSED.as_millis()).unwrap_or(u64::MAX);
        SwarmReply { closed: true, complete: true, interval_ms, ..SwarmReply::default() }
    }

    /// Once a second: members that nobody has heard of for long leave, bundles that are not kept any more are
    /// forgotten, and the origin's rate is read off what it sent.
    pub(super) fn tick(&self, kept: &[Arc<Kept>], sent: u64, now: Moment) {
        let mut books = lock(&self.books);
        books.retain(|id, _| kept.iter().any(|kept| kept.id == *id));
        let all: Vec<Arc<Mutex<Book>>> = books.values().cloned().collect();
        drop(books);
        let mut saturated = false;
        for book in all {
            let mut book = lock(&book);
            let silent: Vec<NodeId> = book
                .heard
                .iter()
                .filter(|(_, heard)| now.since(**heard) > SILENT_MAX)
                .map(|(&node, _)| node)
                .collect();
            let there = |node: &NodeId| {
                let session = self.tracker.session(*node, now);
                session.is_some_and(|session| now.since(session.heard) <= SILENT_MAX)
            };
            let gone: Vec<NodeId> = book.seeds.iter().filter(|node| !there(node)).copied().collect();
            gone.into_iter().for_each(|node| book.forget(node));
            for node in silent {
                tracing::debug!(%node, bundle = %book.kept.id, "not heard of for long: it leaves the swarm");
                book.forget(node);
            }
            saturated |= book.leases.is_saturated();
        }
        lock(&self.rate).read(sent, saturated, now);
    }

    /// Notes complaints, and sends nobody any more to those whom enough others accuse.
    fn suspect(&self, book: &mut Book, by: NodeId, complaints: &[Complaint], now: Moment) {
        let mut suspicions = lock(&self.suspicions);
        complaints.iter().for_each(|complaint| suspicions.accuse(by, complaint.peer, now));
        if suspicions.is_empty() && book.suspected.is_empty() {
            return;
        }
        let suspects = suspicions.suspects(book.heard.len(), now);
        drop(suspicions);
        for &node in suspects.difference(&book.suspected) {
            if book.leases.is_member(node) {
                tracing::warn!(%node, bundle = %book.kept.id, "several volunteers say that it sends wrong pieces, which it did not to control: nobody is sent there for now");
                book.leases.set_reachable(node, false);
            }
        }
        for &node in book.suspected.difference(&suspects) {
            let session = self.tracker.session(node, now);
            book.leases.set_reachable(node, session.is_some_and(|session| sync_url(&session).is_some()));
        }
        book.suspected = suspects.into_iter().filter(|node| book.leases.is_member(*node)).collect();
    }

    /// `by` says that something else than a piece came wrong from `accused`.
    pub(super) fn accuse(&self, by: NodeId, accused: NodeId, now: Moment) {
        lock(&self.suspicions).accuse(by, accused, now);
    }

    /// Who is accused, by whom, and what follows from it.
    pub(super) fn accused(&self, now: Moment) -> Vec<Accused> {
        let (mut members, mut avoided) = (0, BTreeSet::new());
        let books: Vec<Arc<Mutex<Book>>> = lock(&self.books).values().cloned().collect();
        for book in books {
            let book = lock(&book);
            members = members.max(book.heard.len());
            avoided.extend(book.suspected.iter().copied());
        }
        let accused = lock(&self.suspicions).accused(members, now).into_iter();
        let accused = accused.map(|(node, (accusers, believed))| Accused {
            node,
            accusers,
            believed,
            needed: accusers_needed(members),
            avoided: avoided.contains(&node),
        });
        accused.collect()
    }

    /// `node` is out: banned, removed or lost.
    pub(super) fn expel(&self, node: NodeId) {
        lock(&self.suspicions).forget(node);
        let books: Vec<Arc<Mutex<Book>>> = lock(&self.books).values().cloned().collect();
        for book in books {
            let mut book = lock(&book);
            book.forget(node);
            book.done.remove(&node);
        }
    }

    /// Who waits for its turn.
    pub(super) fn set_turns(&self, waits: Option<BTreeSet<NodeId>>) {
        self.waits.store(waits.map(Arc::new));
    }

    /// Rate to reckon with, and what was sent lately.
    pub(super) fn origin_rate(&self) -> (BytesPerSec, BytesPerSec) {
        let rate = lock(&self.rate);
        (rate.rate(), rate.measured())
    }

    /// Copies of a bundle that the origin sends at most.
    pub(super) fn origin_copies(&self) -> f64 {
        self.origin_copies
    }

    /// Every bundle that somebody has asked about.
    pub(super) fn figures(&self, now: Moment) -> HashMap<BundleId, BookFigures> {
        let books: Vec<(BundleId, Arc<Mutex<Book>>)> =
            lock(&self.books).iter().map(|(&id, book)| (id, Arc::clone(book))).collect();
        let figures = books.into_iter().map(|(id, book)| {
            let mut book = lock(&book);
            let complete = self.is_complete(&mut book, now);
            let figures = BookFigures {
                members: book.leases.members().collect(),
                granted: book.leases.granted(),
                spread: book.leases.spread(),
                complete,
            };
            (id, figures)
        });
        figures.collect()
    }

    /// What of the origin's uplink this bundle may reckon with: bundles under way share it.
    fn origin_share(&self, id: BundleId) -> BytesPerSec {
        let rate = lock(&self.rate).rate();
        let books: Vec<(BundleId, Arc<Mutex<Book>>)> =
            lock(&self.books).iter().map(|(&id, book)| (id, Arc::clone(book))).collect();
        let others =
            books.iter().filter(|(other, book)| *other != id && lock(book).leases.is_active()).count();
        BytesPerSec(rate.0 / (others as u64 + 1))
    }

    fn book(&self, kept: &Arc<Kept>, origin: BytesPerSec) -> Arc<Mutex<Book>> {
        let mut books = lock(&self.books);
        let book = books.entry(kept.id).or_insert_with(|| {
            let bundle = &kept.bundle;
            let terms = LeaseTerms {
                expiry_min: LEASE_MIN,
                origin_copies: self.origin_copies,
                ..LeaseTerms::new(Bytes(u64::from(bundle.piece_bytes)), origin)
            };
            let copy = bundle.bytes() as f64 / origin.0.max(1) as f64;
            Arc::new(Mutex::new(Book {
                leases: LeaseBook::new(bundle.len(), terms),
                heard: BTreeMap::new(),
                done: BTreeSet::new(),
                suspected: BTreeSet::new(),
                seeds: BTreeSet::new(),
                lasting: lasting(kept),
                complete: None,
                interval: Duration::try_from_secs_f64(copy / POLLS_PER_COPY)
                    .unwrap_or(INTERVAL_MAX)
                    .clamp(INTERVAL_MIN, INTERVAL_MAX),
                kept: Arc::clone(kept),
            }))
        });
        Arc::clone(book)
    }

    fn peers(&self, book: &Book, node: NodeId, now: Moment, now_secs: u64) -> Vec<PeerHint> {
        // Others after a while, so that nobody stays among those who have nothing.
        let seed = self.seed ^ draw::mix(u64::from(node.0)) ^ draw::mix(now.0 / PEERS_FOR_NANOS);
        let nodes = self.registry.nodes();
        // In steps, so that the list stays the same for a while.
        let renewed = now_secs - now_secs % PEER_TOKEN_RENEWED_SECS;
        let expires = u32::try_from(renewed + PEER_TOKEN_SECS).unwrap_or(u32::MAX);
        let mut hints = Vec::new();
        for peer in book.leases.peers(node, PEERS_ASKED * 2, seed) {
            let Some(membership) = nodes.by_id(peer).and_then(|peer| peer.membership.as_ref()) else {
                continue;
            };
            let Some(session) = self.tracker.session(peer, now) else { continue };
            let Some(url) = sync_url(&session) else { continue };
            let key = SyncKey::of_volunteer(&membership.ticket_key);
            hints.push(PeerHint { node: peer, url, token: SyncToken { node, expires }.seal(&key) });
            if hints.len() >= PEERS_ASKED.min(PEERS_MAX) {
                break;
            }
        }
        hints
    }

    /// Whether everybody who wants the bundle has it: all who take part, and all others have a state that includes it
    /// or were not heard of for long. Who is only away for a while finds the others still here.
    fn is_complete(&self, book: &mut Book, now: Moment) -> bool {
        if let Some((complete, at)) = book.complete
            && now.since(at) < COMPLETE_FOR
        {
            return complete;
        }
        let sequence = book.kept.sequence;
        let has = |node: &NodeId| {
            let elsewhere = || match self.tracker.session(*node, now) {
                Some(session) => {
                    session.heartbeat.sync.complete >= sequence || now.since(session.heard) > ABSENT_MAX
                }
                None => now >= self.settled,
            };
            book.done.contains(node) || book.leases.is_done(*node) || elsewhere()
        };
        let nodes = self.registry.nodes();
        let mut members = nodes.iter().filter(|node| node.membership.is_some());
        let complete = book.leases.is_complete() && members.all(|node| has(&node.id));
        book.complete = Some((complete, now));
        complete
    }
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Books").field("origin_copies", &self.origin_copies).finish_non_exhaustive()
    }
}

impl Book {
    fn forget(&mut self, node: NodeId) {
        self.leases.leave(node);
        self.heard.remove(&node);
        self.suspected.remove(&node);
        self.seeds.remove(&node);
        self.complete = None;
    }

    /// `node` has all and polls no more, but may still be asked.
    fn stay(&mut self, node: NodeId) {
        self.leases.retire(node, &self.lasting);
        self.heard.remove(&node);
        self.suspected.remove(&node);
        self.seeds.insert(node);
        self.complete = None;
    }

    /// Whether `node` takes part, or did.
    fn knows(&self, node: NodeId) -> bool {
        self.leases.is_member(node) || self.done.contains(&node)
    }
}

/// Tells one list of peers from another; zero only for an empty one.
fn name_of(peers: &[PeerHint]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for PeerHint { node, url, token } in peers {
        (node.0, url, token).hash(&mut hasher);
    }
    if peers.is_empty() { 0 } else { hasher.finish().max(1) }
}

/// The sync port that a volunteer names, if peers can ask it.
pub(super) fn sync_url(session: &Session) -> Option<String> {
    let target = DeliveryTarget::parse(session.heartbeat.sync_url.as_deref()?)?;
    target.url.starts_with("http://").then(|| target.url.as_ref().to_owned())
}

/// What a volunteer can send to peers: what it says, within what it is known to give.
fn spare(poll: &SwarmPoll, session: Option<&Session>) -> BytesPerSec {
    let known = session.map(|session| session.capacity);
    match (poll.spare, known) {
        (Some(said), Some(known)) => said.min(known),
        (said, known) => said.or(known).unwrap_or(BytesPerSec(1)),
    }
}

fn pieces(runs: &freshet_api::swarm::Runs, len: u32) -> PieceSet {
    let mut set = PieceSet::new(len);
    for piece in runs.iter().take_while(|&piece| piece < len) {
        set.insert(piece);
    }
    set
}

/// Pieces of objects that are files, not packs of them.
fn lasting(kept: &Kept) -> PieceSet {
    let mut pieces = PieceSet::new(kept.bundle.len());
    for (object, span) in kept.bundle.objects.iter().zip(&kept.spans) {
        if object.members.is_empty() {
            span.clone().for_each(|piece| {
                pieces.insert(piece);
            });
        }
    }
    pieces
}

fn is_done(poll: &SwarmPoll, len: u32) -> bool {
    let mut set = pieces(&poll.have, len);
    for piece in poll.unwanted.iter().take_while(|&piece| piece < len) {
        set.insert(piece);
    }
    set.is_full()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Peers named to each volunteer: in simulation forty mirrors take 1.11 times the bound with so many, 1.14 with 16.
const PEERS_ASKED: usize = 24;
/// For how long they are the same, if the members are.
const PEERS_FOR_NANOS: u64 = 30_000_000_000;
/// How long a peer lets in whoever was named to it.
const PEER_TOKEN_SECS: u64 = 900;
const PEER_TOKEN_RENEWED_SECS: u64 = 300;
/// A lease lasts at least this long: a volunteer that is lost is noticed by its silence.
const LEASE_MIN: Duration = Duration::from_secs(10);
/// A member that is not heard of for this long leaves.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// Volunteers that are done with a bundle and are remembered for those who come late, at most.
const SEEDS_MAX: usize = 16;
/// Polls in the time of one copy from the origin, about, within the two bounds.
const POLLS_PER_COPY: f64 = 50.0;
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// For volunteers that have all and wait for others.
const INTERVAL_DONE: Duration = Duration::from_secs(2);
/// For everybody while nobody who is here lacks anything.
const INTERVAL_WAITING: Duration = Duration::from_secs(10);
/// A volunteer that is not heard of for this long is not waited for any more.
const ABSENT_MAX: Duration = Duration::from_secs(3600);
const INTERVAL_CLOSED: Duration = Duration::from_secs(10);
/// After control's start everybody has this long to be heard of before it is taken for gone.
const SETTLING: Duration = Duration::from_secs(30);
/// How long it is believed that everybody has a bundle, or not.
const COMPLETE_FOR: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use freshet_api::ContentHash;
    use freshet_api::bundle::{Bundle, Object};
    use freshet_api::swarm::Runs;
    use freshet_policy::liveness::LivenessTerms;

    use super::*;
    use crate::registry::{Invitation, Joining as Enrolling, RedbRegistry};
    use crate::tracker::{MemoryTracker, testing::heartbeat};

    const PIECES: u32 = 100;

    struct Scene {
        _directory: tempfile::TempDir,
        tracker: Arc<MemoryTracker>,
        books: Books,
        kept: Arc<Kept>,
    }

    fn at(seconds: f64) -> Moment {
        Moment::from_secs_f64(seconds)
    }

    /// Volunteers 1 ..= `count`, enrolled.
    async fn scene(count: u8) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let registry = RedbRegistry::open(&directory.path().join("control.redb")).unwrap();
        for n in 1..=count {
            let invitation = Invitation { secret_digest: [n; 32], made: 1, expires: 9 };
            registry.invite(format!("n{n}").parse().unwrap(), invitation).await.unwrap();
            let ticket_key = freshet_api::TicketKey([n; 32]);
            let joining =
                Enrolling { secret_digest: [n; 32], credential_digest: [n + 100; 32], ticket_key, now: 1 };
            registry.join(joining).await.unwrap();
        }
        let tracker = Arc::new(MemoryTracker::new(LivenessTerms::default()));
        let shown: Arc<dyn Tracker> = Arc::clone(&tracker) as Arc<dyn Tracker>;
        let rate = Some(BytesPerSec(16 << 20));
        let books = Books::new(Arc::new(registry), shown, rate, 1.05, at(0.0), 7);
        let content = ContentHash([9; 32]);
        let bundle = Bundle {
            piece_bytes: 1 << 20,
            objects: vec![Object { content, size: u64::from(PIECES) << 20, members: Vec::new() }],
            recipes: Vec::new(),
            pieces: (0..PIECES).map(|n| ContentHash::of(&n.to_le_bytes())).collect(),
        };
        let (id, _) = bundle.encode().unwrap();
        Scene { _directory: directory, tracker, books, kept: Arc::new(Kept::new(id, 5, bundle)) }
    }

    impl Scene {
        fn beat(&self, node: u32, complete: u64, sequence: u64, now: f64) {
            let mut beat = heartbeat(1, sequence, &[], &[]);
            beat.sync_url = Some(format!("http://192.0.2.{node}:8081"));
            beat.sync.complete = complete;
            self.tracker.heartbeat(NodeId(node), beat, at(now));
        }

        fn poll(&self, node: u32, whole: bool, have: Runs, leases: u32, now: f64) -> SwarmReply {
            let poll = SwarmPoll { whole, have, leases, ..SwarmPoll::of(self.kept.id) };
            self.books.poll(NodeId(node), &self.kept, poll, at(now), 1_000).reply
        }
    }

    #[tokio::test]
    async fn a_list_of_peers_that_is_known_is_not_sent_again() {
        let scene = scene(3).await;
        for node in 1..=3 {
            scene.beat(node, 5, 1, 1.0);
            scene.poll(node, true, Runs::default(), 0, 1.0);
        }
        let first = scene.poll(1, false, Runs::default(), 0, 1.5);
        assert_eq!(first.peers.len(), 2);
        let known = SwarmPoll { peers_known: first.peers_are, ..SwarmPoll::of(scene.kept.id) };
        let again = scene.books.poll(NodeId(1), &scene.kept, known, at(2.0), 1_100).reply;
        assert_eq!((again.peers.len(), again.peers_are), (0, first.peers_are));
        assert_eq!(
            scene.poll(1, false, Runs::default(), 0, 2.5).peers,
            first.peers,
            "who knows none gets it"
        );
    }

    #[tokio::test]
    async fn who_waits_for_its_turn_gets_only_what_nobody_has() {
        let scene = scene(2).await;
        for node in 1..=2 {
            scene.beat(node, 0, 1, 1.0);
            scene.poll(node, true, Runs::default(), 0, 1.0);
        }
        scene.books.set_turns(Some([NodeId(2)].into()));
        let reply = scene.poll(2, false, Runs::default(), 3, 2.0);
        assert_eq!((reply.peers.len(), reply.leases.len(), reply.waits), (0, 3, true));
        assert_eq!(scene.poll(1, false, Runs::default(), 0, 2.0).peers.len(), 1, "it is asked nevertheless");
        scene.poll(1, true, all(), 0, 3.0);
        for second in [4.0, 60.0, 600.0] {
            scene.beat(1, 0, second as u64, second);
            scene.beat(2, 0, second as u64, second);
            let reply = scene.poll(2, false, Runs::default(), 3, second);
            assert_eq!((reply.peers.len(), reply.leases.len()), (0, 0), "not from the origin again");
        }
        scene.books.set_turns(None);
        assert_eq!(scene.poll(2, false, Runs::default(), 0, 601.0).peers.len(), 1);
    }

    #[tokio::test]
    async fn who_is_done_is_named_to_those_who_come_late_while_it_is_there() {
        let scene = scene(3).await;
        for node in 1..=2 {
            scene.beat(node, 5, 1, 1.0);
            scene.poll(node, true, all(), 0, 1.0);
        }
        let leave = |node| {
            let poll = SwarmPoll { leaving: true, ..SwarmPoll::of(scene.kept.id) };
            scene.books.poll(NodeId(node), &scene.kept, poll, at(2.0), 1_000)
        };
        leave(1);
        leave(2);
        scene.beat(1, 5, 2, 400.0);
        scene.beat(3, 0, 1, 400.0);
        scene.books.tick(std::slice::from_ref(&scene.kept), 0, at(400.0));
        let reply = scene.poll(3, true, Runs::default(), 9, 400.0);
        assert_eq!(
            reply.peers.iter().map(|peer| peer.node.0).collect::<Vec<_>>(),
            [1],
            "the other one is gone"
        );
        assert!(reply.leases.is_empty(), "the origin need not send it");
        assert!(!reply.complete);
    }

    #[tokio::test]
    async fn nobody_is_sent_to_whom_several_accuse_and_one_slanderer_changes_nothing() {
        let scene = scene(8).await;
        for node in 1..=8 {
            scene.beat(node, 0, 1, 1.0);
            scene.poll(node, true, Runs::default(), 0, 1.0);
        }
        let accuse = |by: u32, accused: &[u32]| {
            let complaints =
                accused.iter().map(|&peer| Complaint { peer: NodeId(peer), piece: 1 }).collect::<Vec<_>>();
            let poll = SwarmPoll { complaints, ..SwarmPoll::of(scene.kept.id) };
            scene.books.poll(NodeId(by), &scene.kept, poll, at(2.0), 1_000).complaints.len()
        };
        let named = |to: u32| -> Vec<u32> {
            let peers = scene.poll(to, false, Runs::default(), 0, 3.0).peers;
            peers.into_iter().map(|peer| peer.node.0).collect()
        };
        scene.poll(8, false, all(), 0, 2.0);
        assert!(scene.poll(1, false, Runs::default(), 9, 2.0).leases.is_empty(), "a peer has it all");
        for _ in 0..20 {
            assert_eq!(accuse(7, &[1, 2, 3, 4, 5, 6, 8]), 7);
        }
        assert_eq!(named(7).len(), 7);
        accuse(1, &[8]);
        accuse(2, &[8]);
        assert!(named(1).contains(&8));
        accuse(3, &[8]);
        assert!((1..=7).all(|to| !named(to).contains(&8)));
        let accused = scene.books.accused(at(3.0));
        let of = |node| accused.iter().find(|accused| accused.node == NodeId(node)).unwrap();
        assert_eq!(of(8).accusers, [1, 2, 3, 7].map(NodeId));
        assert_eq!((of(8).believed, of(8).needed, of(8).avoided), (3, 3, true));
        assert_eq!((of(1).believed, of(1).avoided), (0, false), "the slanderer accuses too many");
        let leases = scene.poll(1, false, Runs::default(), 9, 3.0).leases;
        assert_eq!(leases.len(), 9, "what only the suspect has leaves the origin again");
        assert_eq!(named(8).len(), 7, "it may still fetch");
        // It comes back with all that it has, and is still known.
        scene.poll(8, true, all(), 0, 4.0);
        assert!(!named(2).contains(&8));
        scene.books.expel(NodeId(8));
        scene.poll(8, true, all(), 0, 5.0);
        assert!(named(2).contains(&8), "after a pardon it is a peer as any other");
    }

    fn all() -> Runs {
        (0..PIECES).collect()
    }

    #[tokio::test]
    async fn it_is_not_complete_while_somebody_who_is_there_may_lack_it() {
        let scene = scene(3).await;
        scene.beat(1, 0, 1, 1.0);
        scene.beat(2, 4, 1, 1.0);
        assert!(!scene.poll(1, true, all(), 0, 1.0).complete, "volunteer 2 has an older state");
        scene.beat(2, 5, 2, 2.0);
        assert!(!scene.poll(1, false, Runs::default(), 0, 3.0).complete, "volunteer 3 may come yet");
        scene.beat(1, 5, 2, 29.0);
        scene.beat(2, 5, 3, 29.0);
        assert!(scene.poll(1, true, all(), 0, 31.0).complete, "it did not come");
        scene.beat(3, 0, 1, 32.0);
        assert!(!scene.poll(3, true, Runs::default(), 0, 32.5).complete);
        scene.books.expel(NodeId(3));
        assert!(
            !scene.poll(1, false, Runs::default(), 0, 3_600.0).complete,
            "it may come back within the hour"
        );
        assert!(scene.poll(1, false, Runs::default(), 0, 3_700.0).complete);
    }

    #[tokio::test]
    async fn who_falls_silent_leaves_and_its_leases_go_to_others() {
        let scene = scene(2).await;
        scene.beat(1, 0, 1, 1.0);
        scene.beat(2, 0, 1, 1.0);
        let first = scene.poll(1, true, Runs::default(), 8, 1.0).leases;
        assert_eq!(first.len(), 8);
        let peers = |now| scene.poll(2, true, Runs::default(), 0, now).peers;
        assert_eq!(peers(2.0).len(), 1);
        scene.poll(2, true, Runs::default(), 0, 20.0);
        scene.books.tick(std::slice::from_ref(&scene.kept), 0, at(32.0));
        assert!(peers(33.0).is_empty());
        let second = scene.poll(2, false, Runs::default(), 8, 34.0).leases;
        assert!(second.iter().map(|lease| lease.piece).eq(first.iter().map(|lease| lease.piece)));
        assert!(scene.poll(1, false, Runs::default(), 1, 35.0).want_whole);
        scene.books.tick(&[], 0, at(36.0));
        assert!(scene.books.figures(at(36.0)).is_empty(), "a bundle that is not kept has no book");
    }

    #[tokio::test]
    async fn bundles_under_way_share_the_origin() {
        let scene = scene(2).await;
        scene.beat(1, 0, 1, 1.0);
        let alone = scene.poll(1, true, Runs::default(), 256, 1.0).leases.len();
        let mut other = Bundle::clone(&scene.kept.bundle);
        other.objects[0].content = ContentHash([8; 32]);
        let other = Arc::new(Kept::new(other.encode().unwrap().0, 6, other));
        let second = Scene { kept: other, ..scene };
        let beside = second.poll(1, true, Runs::default(), 256, 1.0).leases.len();
        assert!(beside <= alone / 2 + 1 && beside > 0, "{alone} alone, {beside} beside another");
    }
}
