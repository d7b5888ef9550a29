//! What becomes of a session when something that it started has ended.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use freshet_api::NodeId;
use freshet_api::swarm::{COMPLAINTS_MAX, Complaint, SwarmReply};
use freshet_policy::swarm::PieceSet;
use tokio::task::{Id, JoinError};

use super::{Alone, End, Fetched, From, Report, Session};
use crate::mirror::MirrorError;
use crate::swarm::fetch::PieceError;
use crate::swarm::harvest::Harvest;
use crate::swarm::meter::Meter;
use crate::swarm::tracker::Tracker;
use crate::sync::FetchError;

/// Work beside the fetching of pieces, and what came of it.
pub(super) enum Chore {
    Have(NodeId, Result<PieceSet, PieceError>),
    Polled {
        /// How many complaints were in it.
        complaints: usize,
        whole: bool,
        /// What was here when it was sent.
        told: PieceSet,
        /// `None` when no answer came in time.
        answer: Option<Result<SwarmReply, FetchError>>,
    },
    Synced {
        pieces: Vec<u32>,
        synced: Result<(), MirrorError>,
        since: Instant,
    },
    Harvested {
        object: Option<usize>,
        harvest: Result<Harvest, MirrorError>,
    },
}

impl<T: Tracker> Session<T> {
    /// A request for a piece ended.
    pub(super) async fn fetched(&mut self, fetched: Result<(Id, Fetched), JoinError>) -> Option<End> {
        let now = Instant::now();
        let (id, result) = match fetched {
            Ok(fetched) => fetched,
            Err(ended) => (ended.id(), Err(PieceError::Lacking)),
        };
        // Without an entry it was ended because another request brought the piece.
        let asked = self.asked.remove(&id)?;
        match asked.from {
            From::Origin(_) => self.origin.open -= 1,
            From::Peer(_) => drop(self.parts.meter.asked.fetch_sub(1, Ordering::Relaxed)),
        }
        let piece = asked.piece;
        let bytes = self.layout.piece_bytes(piece);
        let error = match result {
            Ok(()) => {
                tracing::trace!(bundle = %self.layout.id, piece, from = ?asked.from, "a piece came");
                match asked.from {
                    From::Origin(_) => {
                        Meter::add(&self.parts.meter.origin, bytes);
                        self.origin.failures = 0;
                        self.origin.useless = 0;
                        self.origin.came.push_back(now);
                    }
                    From::Peer(node) => {
                        Meter::add(&self.parts.meter.peers, bytes);
                        self.peers.came(node, now.duration_since(asked.since));
                    }
                }
                self.arrived(piece, now);
                return None;
            }
            Err(error) => error,
        };
        if matches!(error, PieceError::Wrong) {
            Meter::add(&self.parts.meter.wasted, bytes);
        }
        if let PieceError::Local(error) = error {
            if let From::Origin(until) = asked.from {
                self.leases.push_front((piece, until));
            }
            self.pause(&error, now).await;
            return None;
        }
        match asked.from {
            From::Origin(until) => self.origin_failed(piece, until, &error, now),
            From::Peer(node) => {
                self.peer_failed(node, piece, error, now);
                None
            }
        }
    }

    fn arrived(&mut self, piece: u32, now: Instant) {
        self.progress_at = now;
        self.came.push_back((now, self.layout.piece_bytes(piece)));
        self.picker.arrived(piece);
        self.stop_asking_for(piece);
        if !self.have.contains(piece) && self.written.insert(piece) {
            self.unsynced.push(piece);
        }
    }

    /// Ends what is still under way for a piece that is here, or not wanted.
    pub(super) fn stop_asking_for(&mut self, piece: u32) {
        let ids: Vec<Id> =
            self.asked.iter().filter(|(_, asked)| asked.piece == piece).map(|(&id, _)| id).collect();
        for id in ids {
            let Some(asked) = self.asked.remove(&id) else { continue };
            asked.task.abort();
            match asked.from {
                From::Origin(_) => self.origin.open -= 1,
                From::Peer(_) => drop(self.parts.meter.asked.fetch_sub(1, Ordering::Relaxed)),
            }
        }
    }

    fn origin_failed(&mut self, piece: u32, until: Instant, error: &PieceError, now: Instant) -> Option<End> {
        tracing::debug!(bundle = %self.layout.id, piece, %error, "the origin did not give a piece");
        self.picker.failed_elsewhere(piece);
        self.leases.push_front((piece, until));
        self.origin.failures = self.origin.failures.saturating_add(1);
        let wait = ORIGIN_AWAY_FIRST.saturating_mul(1 << (self.origin.failures - 1).min(10));
        let asked_for = match error {
            PieceError::Busy { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        self.origin.not_before = Some(now + wait.max(asked_for).min(ORIGIN_AWAY_MOST));
        if matches!(error, PieceError::Wrong | PieceError::Lacking | PieceError::Nonsense { .. }) {
            self.origin.useless += 1;
            if self.origin.useless >= USELESS_MAX {
                return Some(End::Stuck(format!("the origin does not give this bundle's pieces: {error}")));
            }
        }
        None
    }

    fn peer_failed(&mut self, node: NodeId, piece: u32, error: PieceError, now: Instant) {
        tracing::debug!(bundle = %self.layout.id, %node, piece, %error, "a peer did not give a piece");
        match error {
            PieceError::Wrong => {
                tracing::warn!(bundle = %self.layout.id, %node, piece, "wrong bytes came from a peer; it is not asked again");
                self.picker.forget(node);
                self.peers.ban(node);
                if self.poll.complaints.len() < COMPLAINTS_MAX {
                    self.poll.complaints.push(Complaint { peer: node, piece });
                }
                // Others should not meet the same.
                self.poll.at = now;
            }
            PieceError::Lacking => {
                self.picker.failed(node);
                self.peers.have_before(node, now + HAVE_SOON);
            }
            PieceError::Denied { .. } => {
                self.leave_alone(node, None, now);
                self.poll.at = now;
            }
            PieceError::Busy { retry_after, .. } => self.leave_alone(node, retry_after, now),
            PieceError::Slow { .. }
            | PieceError::Link(_)
            | PieceError::Nonsense { .. }
            | PieceError::Local(_) => {
                self.leave_alone(node, None, now);
            }
        }
    }

    fn leave_alone(&mut self, node: NodeId, at_least: Option<Duration>, now: Instant) {
        self.picker.forget(node);
        self.peers.failed(node, at_least, now);
    }

    /// Something beside the pieces ended.
    pub(super) async fn chore_done(&mut self, chore: Chore) -> Option<End> {
        let now = Instant::now();
        match chore {
            Chore::Have(node, told) => self.heard(node, told, now),
            Chore::Polled { complaints, whole, told, answer } => {
                self.poll.under_way = false;
                match answer {
                    Some(Ok(reply)) => {
                        self.poll.complaints.drain(..complaints.min(self.poll.complaints.len()));
                        self.poll.reported = told;
                        return self.answered(reply, now);
                    }
                    Some(Err(FetchError::Gone { .. })) => return self.closed(now),
                    other => {
                        self.poll.whole |= whole;
                        self.unanswered(other.and_then(Result::err), now);
                    }
                }
            }
            Chore::Synced { pieces, synced, since } => {
                self.syncing = false;
                // A slow disk is asked less often.
                let took = now.duration_since(since);
                let apart = took.clamp(self.parts.options.sync_apart, SYNC_APART_MOST);
                self.sync_at = now + apart;
                match synced {
                    Ok(()) => self.durable(&pieces, now).await,
                    Err(error) => {
                        self.unsynced.extend(pieces);
                        self.pause(&error, now).await;
                    }
                }
            }
            Chore::Harvested { object, harvest } => {
                match object {
                    Some(object) => drop(self.harvesting.remove(&object)),
                    None => self.making = false,
                }
                match harvest {
                    Ok(harvest) => self.harvested(object, harvest, now).await,
                    Err(error) => {
                        self.ripe.extend(object);
                        self.pause(&error, now).await;
                    }
                }
            }
        }
        None
    }

    fn heard(&mut self, node: NodeId, told: Result<PieceSet, PieceError>, now: Instant) {
        match told {
            Ok(held) => {
                let active = self.peers.active(now).contains(&node);
                if active {
                    self.picker.peer(node, held);
                    // Who has plenty need not be asked again soon.
                    let plenty = self.picker.offers(node) > OFFERS_PLENTY;
                    let next = self.have_apart(now) * if plenty { 4 } else { 1 };
                    self.peers.have_told(node, now + jittered(next));
                } else {
                    self.peers.have_told(node, now + HAVE_APART);
                }
            }
            Err(error) => {
                tracing::debug!(bundle = %self.layout.id, %node, %error, "a peer did not say what it has");
                self.peers.have_told(node, now + HAVE_APART);
                match error {
                    // It does not copy the bundle yet.
                    PieceError::Lacking => {}
                    PieceError::Denied { .. } => {
                        self.leave_alone(node, None, now);
                        self.poll.at = self.poll.at.min(now + HAVE_APART);
                    }
                    PieceError::Busy { retry_after, .. } => self.leave_alone(node, retry_after, now),
                    _ => self.leave_alone(node, None, now),
                }
            }
        }
    }

    /// How often a peer is asked what it has: as often as a small part of what comes in allows.
    ///
    /// The sooner a piece is known, the sooner it is passed on; what remains when the origin has sent everything takes
    /// about as long as news of it.
    fn have_apart(&mut self, now: Instant) -> Duration {
        while self.came.front().is_some_and(|(at, _)| *at + RATE_OVER < now) {
            self.came.pop_front();
        }
        let came: u64 = self.came.iter().map(|(_, bytes)| bytes).sum();
        if came == 0 || self.missing() == 0 {
            return if came == 0 { HAVE_SOON } else { HAVE_APART };
        }
        let cost = HAVE_BYTES + u64::from(self.layout.pieces() / 8);
        let round = cost * self.peers.active(now).len() as u64;
        let allowed = came as f64 / RATE_OVER.as_secs_f64() * HAVE_PART;
        Duration::from_secs_f64(round as f64 / allowed).clamp(HAVE_LEAST, HAVE_APART)
    }

    fn answered(&mut self, reply: SwarmReply, now: Instant) -> Option<End> {
        let was_away = std::mem::take(&mut self.poll.failures) > 0;
        if was_away && self.alone == Some(Alone::Stalled) {
            self.alone = None;
            self.progress_at = now;
        }
        if let Some(end) = self.poll.leaving.take() {
            return Some(end);
        }
        if reply.closed {
            return self.closed(now);
        }
        self.poll.whole |= reply.want_whole;
        if reply.waits {
            // Others go first: that nothing comes is no reason to fetch it otherwise, as long as control says so.
            self.progress_at = now;
        }
        self.poll.granting = !reply.leases.is_empty();
        for lease in reply.leases {
            let until = now + Duration::from_millis(lease.for_ms.min(LEASE_MS_MOST));
            let known = self.leases.iter().any(|(piece, _)| *piece == lease.piece);
            if lease.piece < self.layout.pieces() && !known {
                self.leases.push_back((lease.piece, until));
            }
        }
        if reply.peers_are != self.poll.peers_known {
            self.poll.peers_known = reply.peers_are;
            for gone in self.peers.replace(reply.peers, now) {
                self.picker.forget(gone);
            }
        }
        let interval = Duration::from_millis(reply.interval_ms.clamp(INTERVAL_MS_LEAST, INTERVAL_MS_MOST));
        self.poll.at = now + jittered(interval);
        if reply.complete && self.wants.is_empty() && self.missing() == 0 {
            // It says good-bye, so that nobody is sent here any more.
            self.poll.leaving = Some(End::Complete);
            self.poll.at = now;
        }
        None
    }

    fn unanswered(&mut self, error: Option<FetchError>, now: Instant) {
        self.poll.failures = self.poll.failures.saturating_add(1);
        let wait = POLL_AGAIN_FIRST.saturating_mul(1 << (self.poll.failures - 1).min(8)).min(POLL_AGAIN_MOST);
        let error = error.map_or_else(|| "it did not answer in time".to_owned(), |error| error.to_string());
        tracing::debug!(bundle = %self.layout.id, error, "the tracker was not reached");
        self.poll.at = now + jittered(wait);
        self.poll.granting = false;
    }

    async fn durable(&mut self, pieces: &[u32], now: Instant) {
        for &piece in pieces {
            self.written.remove(piece);
            self.have.insert(piece);
        }
        self.parts.shelf.set(&self.have);
        let objects: std::collections::BTreeSet<usize> =
            pieces.iter().filter_map(|&piece| self.layout.place(piece)).map(|place| place.object).collect();
        self.ripen(objects);
        self.make_at = now;
        if self.missing() == 0 {
            // The tracker and the peers should know at once.
            self.poll.at = now;
        }
        self.trouble_over().await;
    }

    async fn harvested(&mut self, object: Option<usize>, harvest: Harvest, now: Instant) {
        let Harvest { committed, refused, wrong } = harvest;
        for content in committed.iter().chain(&refused) {
            self.wants.remove(content);
        }
        if let Some(contents) = object.and_then(|object| self.by_object.get_mut(&object)) {
            contents.retain(|content| self.wants.contains_key(content));
        }
        if !wrong.is_empty() {
            tracing::warn!(bundle = %self.layout.id, pieces = wrong.len(), "pieces changed on this disk; they are fetched again");
            for &piece in &wrong {
                self.have.remove(piece);
                if self.needed.contains(piece) {
                    self.picker.lost(piece);
                }
            }
            self.parts.shelf.set(&self.have);
            self.poll.whole = true;
            self.poll.at = now;
        } else if let Some(object) = object {
            // Something may have come to be wanted meanwhile.
            let more = self.by_object.get(&object).is_some_and(|contents| !contents.is_empty());
            self.ripen(more.then_some(object));
        }
        self.make_at = now;
        self.progress_at = now;
        if !committed.is_empty() {
            let _ = self.reports.send(Report::Committed(committed)).await;
            self.trouble_over().await;
        }
        if !refused.is_empty() {
            let _ = self.reports.send(Report::Refused(refused)).await;
        }
    }

    /// Something is wrong with this host: nothing is asked for until it is looked at again.
    async fn pause(&mut self, error: &MirrorError, now: Instant) {
        if self.paused_until.is_none() {
            tracing::error!(bundle = %self.layout.id, %error, "copying in pieces stops for now");
        }
        self.paused_until = Some(now + self.parts.options.local_retry);
        self.troubled = true;
        self.start_over(now);
        let _ = self.reports.send(Report::Trouble(Some(error.to_string()))).await;
    }

    pub(super) async fn trouble_over(&mut self) {
        if std::mem::take(&mut self.troubled) {
            let _ = self.reports.send(Report::Trouble(None)).await;
        }
    }
}

/// Within a quarter of it, so that volunteers spread out.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.75 + rand::random::<f64>() / 4.0)
}

const HAVE_LEAST: Duration = Duration::from_millis(100);
/// Bytes of a question and its answer, the bits apart.
const HAVE_BYTES: u64 = 500;
/// The part of what comes in that may go into asking who has what.
const HAVE_PART: f64 = 0.015;
const RATE_OVER: Duration = Duration::from_secs(2);
const HAVE_APART: Duration = Duration::from_secs(1);
const HAVE_SOON: Duration = Duration::from_millis(250);
/// A peer that has more to offer than this is asked what it has less often.
const OFFERS_PLENTY: usize = 8;
const SYNC_APART_MOST: Duration = Duration::from_secs(1);
const ORIGIN_AWAY_FIRST: Duration = Duration::from_millis(500);
const ORIGIN_AWAY_MOST: Duration = Duration::from_secs(15);
/// Wrong, missing or misunderstood pieces from the origin, in a row, after which it is asked for whole contents.
const USELESS_MAX: u32 = 4;
const POLL_AGAIN_FIRST: Duration = Duration::from_millis(500);
const POLL_AGAIN_MOST: Duration = Duration::from_secs(10);
const INTERVAL_MS_LEAST: u64 = 50;
const INTERVAL_MS_MOST: u64 = 10_000;
const LEASE_MS_MOST: u64 = 3_600_000;
