//! The tracker's books: for every bundle that is being copied, who has what, who may fetch what from the origin,
//! and whom else to ask. All in memory; after a restart the volunteers' next polls bring it back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use freshet_api::bundle::BundleId;
use freshet_api::swarm::{
    COMPLAINTS_MAX, Complaint, LEASES_MAX, LeaseGrant, PEERS_MAX, PeerHint, SwarmPoll, SwarmReply,
};
use freshet_api::{Bytes, BytesPerSec, NodeId, SyncKey, SyncToken};
use freshet_policy::Moment;
use freshet_policy::draw;
use freshet_policy::liveness::Life;
use freshet_policy::swarm::{Joining, LeaseBook, LeaseTerms, OriginRate, PieceSet};

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
    origin_copies: f64,
    /// Drawn at the start, so that nobody can foresee who is named to whom.
    seed: u64,
}

/// One bundle's.
struct Book {
    kept: Arc<Kept>,
    leases: LeaseBook,
    /// When each member was last heard of here.
    heard: BTreeMap<NodeId, Moment>,
    /// Those who left with all that they want.
    done: BTreeSet<NodeId>,
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
        seed: u64,
    ) -> Self {
        Self {
            registry,
            tracker,
            books: Mutex::default(),
            rate: Mutex::new(OriginRate::new(sync_rate)),
            origin_copies,
            seed,
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
            if book.leases.is_done(node) || (poll.whole && is_done(&poll, kept.bundle.len())) {
                book.done.insert(node);
            }
            book.forget(node);
        } else if poll.whole {
            let held = pieces(&poll.have, kept.bundle.len());
            let unwanted = pieces(&poll.unwanted, kept.bundle.len());
            let spare = spare(&poll, session.as_ref());
            let reachable = session.as_ref().is_some_and(|session| sync_url(session).is_some());
            book.leases.join_as(node, Joining { spare, held, unwanted, reachable });
            book.done.remove(&node);
            book.heard.insert(node, now);
        } else if member {
            book.leases.have(node, poll.have.iter());
            book.leases.measured(node, spare(&poll, session.as_ref()));
            book.heard.insert(node, now);
        }
        let complaints = poll.complaints.into_iter().take(COMPLAINTS_MAX);
        let complaints = complaints
            .filter(|complaint| complaint.peer != node && complaint.piece < kept.bundle.len())
            .filter(|complaint| book.leases.is_member(node) && book.knows(complaint.peer))
            .collect();
        if book.leases.is_member(node) {
            let wanted = poll.leases.min(LEASES_MAX as u32);
            for lease in book.leases.grant(node, wanted, now) {
                let for_ms = u64::try_from(lease.until.since(now).as_millis()).unwrap_or(u64::MAX);
                reply.leases.push(LeaseGrant { piece: lease.piece, for_ms });
            }
            reply.peers = self.peers(&book, node, now, now_secs);
        }
        reply.complete = self.is_complete(&mut book, now);
        let interval = if reply.complete || book.leases.is_done(node) {
            book.interval.max(INTERVAL_DONE)
        } else {
            book.interval
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
            for node in silent {
                tracing::debug!(%node, bundle = %book.kept.id, "not heard of for long: it leaves the swarm");
                book.forget(node);
            }
            saturated |= book.leases.is_saturated();
        }
        lock(&self.rate).read(sent, saturated, now);
    }

    /// `node` is out: banned, removed or lost.
    pub(super) fn expel(&self, node: NodeId) {
        let books: Vec<Arc<Mutex<Book>>> = lock(&self.books).values().cloned().collect();
        for book in books {
            let mut book = lock(&book);
            book.forget(node);
            book.done.remove(&node);
        }
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
        let expires = u32::try_from(now_secs + PEER_TOKEN_SECS).unwrap_or(u32::MAX);
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

    /// Whether everybody who wants the bundle has it: all who take part, and all others who are alive have a state
    /// that includes it.
    fn is_complete(&self, book: &mut Book, now: Moment) -> bool {
        if let Some((complete, at)) = book.complete
            && now.since(at) < COMPLETE_FOR
        {
            return complete;
        }
        let sequence = book.kept.sequence;
        let has = |node: &NodeId| {
            book.done.contains(node)
                || book.leases.is_done(*node)
                || self.tracker.session(*node, now).is_none_or(|session| {
                    !is_present(session.life) || session.heartbeat.sync.complete >= sequence
                })
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
        self.complete = None;
    }

    /// Whether `node` takes part, or did.
    fn knows(&self, node: NodeId) -> bool {
        self.leases.is_member(node) || self.done.contains(&node)
    }
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

fn is_present(life: Life) -> bool {
    matches!(life, Life::Alive | Life::Suspect | Life::Flapping)
}

fn pieces(runs: &freshet_api::swarm::Runs, len: u32) -> PieceSet {
    let mut set = PieceSet::new(len);
    for piece in runs.iter().take_while(|&piece| piece < len) {
        set.insert(piece);
    }
    set
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
/// A lease lasts at least this long: a volunteer that is lost is noticed by its silence.
const LEASE_MIN: Duration = Duration::from_secs(10);
/// A member that is not heard of for this long leaves.
const SILENT_MAX: Duration = Duration::from_secs(20);
/// Polls in the time of one copy from the origin, about, within the two bounds.
const POLLS_PER_COPY: f64 = 50.0;
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// For volunteers that have all and wait for others.
const INTERVAL_DONE: Duration = Duration::from_secs(2);
const INTERVAL_CLOSED: Duration = Duration::from_secs(10);
/// How long it is believed that everybody has a bundle, or not.
const COMPLETE_FOR: Duration = Duration::from_millis(200);
