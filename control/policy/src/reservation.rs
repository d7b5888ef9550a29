//! The ledger of bytes that were promised to clients and not yet delivered, per node.
//!
//! A redirect reserves the bytes of the response on its node; the node's heartbeat confirms what was
//! delivered; what is never delivered ages out. So a front door never herds onto a stale report: its
//! own promises are part of every node's load the moment they are made.
//!
//! The hot path touches two atomics of the node and one cell of the claim table, and waits for
//! nobody. Everything that needs a history (confirming, ageing) happens on the heartbeat's side,
//! under a lock of that node alone. No I/O, no clock.

mod mean_field;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec, FileId, NodeId};

use self::mean_field::{Expected, Observation, OpenDownloads};
use crate::draw::mix;
use crate::moment::Moment;

/// How long promises live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservationTerms {
    /// A promise of which nothing was heard for this long is dropped.
    pub hold: Duration,
    /// How long a client may take to follow a redirect before a report of bytes in flight that lacks
    /// it counts as proof that it never came.
    pub arrival_grace: Duration,
    /// A second request of the same client for the same whole file within this time is a retry where
    /// the node of the first doesn't tell what is in flight. Where it does, both count: many customers
    /// may stand behind one address, and a promise that nobody follows is dropped after
    /// `arrival_grace` anyhow.
    pub retry_window: Duration,
}

impl Default for ReservationTerms {
    fn default() -> ReservationTerms {
        ReservationTerms {
            hold: Duration::from_secs(15 * 60),
            arrival_grace: Duration::from_secs(5),
            retry_window: Duration::from_secs(30),
        }
    }
}

/// What a request is going to take from a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Who asks: a hash of what identifies the client (address, user agent), never the port.
    pub client: u64,
    /// What for.
    pub file: FileId,
    /// Body bytes that the response will carry: 0 for `HEAD`, the length of the range for a Range.
    pub bytes: Bytes,
    /// Whether it asks for less than the whole file: several such requests of one client for one file
    /// may be open at once, or one continues where an earlier one broke off.
    pub partial: bool,
}

/// What a node reported at a heartbeat, as far as reservations are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryReport {
    /// Changes whenever the node's counters start again from zero.
    pub epoch: u64,
    /// Payload bytes delivered to redirected clients since the epoch began, and those that clients
    /// abandoned if the node counts them: either way they are no longer owed.
    pub delivered: Bytes,
    /// Payload bytes of responses that have begun and not ended, if the node tells.
    pub in_flight: Option<Bytes>,
}

/// How a node does, as far as it matters to the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePace {
    /// What it can deliver per second.
    pub rate: BytesPerSec,
    /// What it delivered per second lately.
    pub sending: BytesPerSec,
    /// Responses that were open.
    pub contending: u64,
    /// Whether it had more to send than it could; if not, its clients are what is slow.
    pub saturated: bool,
    /// How long before it arrived that was written; zero where nobody can tell.
    pub age: Duration,
}

/// Promised and undelivered bytes of every node. Shared by all rings; grows by itself.
#[derive(Debug)]
pub struct ReservationLedger {
    terms: ReservationTerms,
    segments: Box<[OnceLock<Box<[Account]>>]>,
    claims: Box<[Claim]>,
}

impl ReservationLedger {
    /// An empty ledger that remembers about `claims` recent clients for recognising retries (rounded
    /// up to a power of two, at least 64; 16 bytes each).
    pub fn new(terms: ReservationTerms, claims: usize) -> ReservationLedger {
        let claims = claims.clamp(64, CLAIMS_MAX).next_power_of_two();
        ReservationLedger {
            terms,
            segments: (0..SEGMENTS).map(|_| OnceLock::new()).collect(),
            claims: (0..claims).map(|_| Claim::default()).collect(),
        }
    }

    /// The terms in force.
    pub fn terms(&self) -> ReservationTerms {
        self.terms
    }

    /// Bytes promised on `node` and not yet delivered, dropped or released.
    pub fn outstanding(&self, node: NodeId) -> Bytes {
        self.existing(node).map_or(Bytes(0), |account| Bytes(account.outstanding()))
    }

    /// Bytes that stand before a new request on `node` at `now`, as far as can be expected.
    ///
    /// Between two heartbeats nothing confirms what is delivered, and comparing raw promises would send
    /// everybody to whoever reported last. So what is open is reckoned on from what [`ReservationLedger::observe`]
    /// was told, with all that was promised since that report was written; the next one corrects it. Without a
    /// rate, this is what is outstanding.
    ///
    /// Responses share a node's rate, so while `size` bytes of one are sent, every other that is open
    /// takes as many at most, however large it is, and what slow clients leave is there for the next.
    pub fn backlog(&self, node: NodeId, size: Bytes, now: Moment) -> Bytes {
        let Some(account) = self.existing(node) else { return Bytes(0) };
        let outstanding = account.outstanding();
        if !account.open.is_known() {
            return Bytes(outstanding);
        }
        Bytes(account.open.ahead(size.0, now).min(outstanding))
    }

    /// Takes in, after [`ReservationLedger::confirm`], how `node` does.
    pub fn observe(&self, node: NodeId, pace: NodePace, now: Moment) {
        if !in_range(node) || pace.rate.0 == 0 {
            return;
        }
        let account = self.account(node);
        let seen = Observation {
            rate: pace.rate.0 as f64,
            sending: pace.sending.0 as f64,
            open: pace.contending as f64,
            saturated: pace.saturated,
            age: pace.age,
        };
        let mut past = account.past.lock().unwrap_or_else(PoisonError::into_inner);
        account.open.observe(&seen, &mut past.expected, now);
    }

    /// Enters a redirect of `promise` to `node`.
    ///
    /// A retry, and a part of a file that was promised before, moves the client's earlier promise
    /// instead of adding to it (see [`ReservationTerms::retry_window`] for what a retry is). Returns the
    /// bytes that were added to the node's outstanding ones.
    pub fn reserve(&self, node: NodeId, promise: Promise, now: Moment) -> Bytes {
        if promise.bytes.0 == 0 || !in_range(node) {
            return Bytes(0);
        }
        let counts_anew = |at: NodeId| {
            let tells = |account: &Account| account.tells_in_flight.load(Ordering::Relaxed);
            !promise.partial && self.existing(at).is_some_and(tells)
        };
        let asked = promise.bytes.0;
        let (add, claimed) = match self.take_claim(&promise, now) {
            // What several were promised is taken back one by one.
            Some((at, bytes)) if counts_anew(at) && at == node => (asked, bytes.saturating_add(asked)),
            Some((at, _)) if counts_anew(at) => (asked, asked),
            // A piece of a download that is still open must not shrink what is known of the whole of it.
            Some((at, bytes)) if at == node => (asked.saturating_sub(bytes), bytes.max(asked)),
            Some((at, bytes)) => {
                // What the first node has delivered is confirmed by its counters; only the rest moves.
                let moved = if promise.partial { bytes.min(asked) } else { bytes };
                self.release(at, Bytes(moved), now);
                (asked, asked)
            }
            None => (asked, asked),
        };
        let account = self.account(node);
        account.reserved.fetch_add(add, Ordering::Relaxed);
        if add > 0 {
            account.open.begin(add, now);
        }
        self.put_claim(&promise, node, claimed, now);
        Bytes(add)
    }

    /// Takes back a client's promise because `node` sent it back unserved (a bounce).
    ///
    /// Returns what was released; nothing when no such promise is remembered, which makes a repeated
    /// or forged bounce harmless.
    pub fn bounce(&self, node: NodeId, promise: Promise, now: Moment) -> Bytes {
        match self.take_claim(&promise, now) {
            Some((at, bytes)) if at == node => {
                // Others behind the same address may have been promised the rest.
                let back = if promise.partial { bytes } else { bytes.min(promise.bytes.0) };
                if bytes - back >= 1 << CLAIM_UNIT_BITS {
                    self.put_claim(&promise, at, bytes - back, now);
                }
                self.release(node, Bytes(back), now)
            }
            Some((at, bytes)) => {
                // Another node has it by now: the bounce is late, so put the claim back.
                self.put_claim(&promise, at, bytes, now);
                Bytes(0)
            }
            None => Bytes(0),
        }
    }

    /// Takes in a heartbeat: confirms what was delivered, and corrects the ledger by what is in
    /// flight when the node tells that.
    pub fn confirm(&self, node: NodeId, report: DeliveryReport, now: Moment) {
        if !in_range(node) {
            return;
        }
        let account = self.account(node);
        let mut past = account.past.lock().unwrap_or_else(PoisonError::into_inner);
        match past.heard {
            Some((epoch, delivered)) if epoch == report.epoch => {
                // A counter that went backwards within an epoch is a lie or a bug: it confirms nothing.
                account.settle(report.delivered.0.saturating_sub(delivered));
                past.heard = Some((epoch, delivered.max(report.delivered.0)));
            }
            Some(_) => {
                // The node restarted: its connections are gone, and their clients will come again.
                account.settle(account.outstanding());
                account.open.clear();
                past.expected.clear();
                past.heard = Some((report.epoch, report.delivered.0));
            }
            None => past.heard = Some((report.epoch, report.delivered.0)),
        }
        account.tells_in_flight.store(report.in_flight.is_some(), Ordering::Relaxed);
        if let Some(in_flight) = report.in_flight {
            let reserved = account.reserved.load(Ordering::Relaxed);
            let recent = reserved.saturating_sub(past.reserved_at(now.before(self.terms.arrival_grace)));
            let outstanding = account.outstanding();
            let ceiling = in_flight.0.saturating_add(recent);
            if outstanding > ceiling {
                account.settle(outstanding - ceiling);
            } else if outstanding < in_flight.0 {
                // This front door was restarted, or another one made those promises.
                account.reserved.fetch_add(in_flight.0 - outstanding, Ordering::Relaxed);
            }
        }
        self.age_account(account, &mut past, now);
    }

    /// Drops what `node` promised longer ago than the terms allow. Call for every node about once a
    /// second, heartbeats or none.
    pub fn age(&self, node: NodeId, now: Moment) {
        if let Some(account) = self.existing(node) {
            let mut past = account.past.lock().unwrap_or_else(PoisonError::into_inner);
            self.age_account(account, &mut past, now);
        }
    }

    /// Forgets every promise on `node` (it died or was removed).
    pub fn clear(&self, node: NodeId) {
        if let Some(account) = self.existing(node) {
            let mut past = account.past.lock().unwrap_or_else(PoisonError::into_inner);
            account.settle(account.outstanding());
            account.open.clear();
            past.expected.clear();
            past.heard = None;
        }
    }

    fn age_account(&self, account: &Account, past: &mut Past, now: Moment) {
        let reserved = account.reserved.load(Ordering::Relaxed);
        past.note(now, reserved, self.terms);
        let expired = past.reserved_at(now.before(self.terms.hold));
        let settled = account.settled.load(Ordering::Relaxed);
        if expired > settled && now.0 >= self.terms.hold.as_nanos() as u64 {
            account.settle(expired - settled);
        }
    }

    fn release(&self, node: NodeId, bytes: Bytes, now: Moment) -> Bytes {
        let Some(account) = self.existing(node) else { return Bytes(0) };
        account.open.end(bytes.0, now);
        Bytes(account.settle(bytes.0))
    }

    fn existing(&self, node: NodeId) -> Option<&Account> {
        let (segment, index) = position(node);
        self.segments.get(segment)?.get().map(|accounts| &accounts[index])
    }

    fn account(&self, node: NodeId) -> &Account {
        let (segment, index) = position(node);
        &self.segments[segment].get_or_init(|| (0..SEGMENT_ACCOUNTS).map(|_| Account::default()).collect())
            [index]
    }

    /// Removes and returns the client's earlier promise for this file, if it is recent enough.
    fn take_claim(&self, promise: &Promise, now: Moment) -> Option<(NodeId, u64)> {
        let hash = claim_hash(promise);
        let claim = &self.claims[hash as usize & (self.claims.len() - 1)];
        let owner = claim.owner.load(Ordering::Acquire);
        if owner == 0 || (owner >> 32) as u32 != tag(hash) {
            return None;
        }
        let body = claim.body.load(Ordering::Acquire);
        // The body carries 16 bits of the hash, so that two writers that met in one cell are noticed.
        if body & 0xffff != hash >> 16 & 0xffff {
            return None;
        }
        let made = body >> 16 & 0xffff;
        let age_secs = (now.0 / 1_000_000_000).wrapping_sub(made) & 0xffff;
        let window = if promise.partial { self.terms.hold } else { self.terms.retry_window };
        if age_secs > window.as_secs() {
            return None;
        }
        claim.owner.compare_exchange(owner, 0, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        Some((NodeId((owner & 0xffff_ffff) as u32), (body >> 32) << CLAIM_UNIT_BITS))
    }

    fn put_claim(&self, promise: &Promise, node: NodeId, bytes: u64, now: Moment) {
        let hash = claim_hash(promise);
        let claim = &self.claims[hash as usize & (self.claims.len() - 1)];
        let units = bytes.div_ceil(1 << CLAIM_UNIT_BITS).min(u64::from(u32::MAX));
        let seconds = (now.0 / 1_000_000_000) & 0xffff;
        claim.owner.store(0, Ordering::Release);
        claim.body.store(units << 32 | seconds << 16 | (hash >> 16 & 0xffff), Ordering::Release);
        claim.owner.store(u64::from(tag(hash)) << 32 | u64::from(node.0), Ordering::Release);
    }
}

/// Payload bytes in `wire` bytes counted on an interface, for full segments of a 1500-byte MTU.
pub fn payload_of_wire(wire: Bytes) -> Bytes {
    Bytes((u128::from(wire.0) * 1448 / 1514) as u64)
}

/// One node's balance. `reserved` and `settled` only grow; their difference is outstanding. That both
/// only grow makes "what was promised before t" a look-up in a short list of totals.
///
/// What a request reads stands first, in two lines of the cache that are fetched together.
#[derive(Debug, Default)]
#[repr(C, align(128))]
struct Account {
    reserved: AtomicU64,
    settled: AtomicU64,
    /// What is open, as far as can be expected.
    open: OpenDownloads,
    /// Whether its last report told what is in flight.
    tells_in_flight: AtomicBool,
    past: Mutex<Past>,
}

impl Account {
    fn outstanding(&self) -> u64 {
        // Settled is read first: read the other way round, a settle in between would show too little.
        let settled = self.settled.load(Ordering::Acquire);
        self.reserved.load(Ordering::Acquire).saturating_sub(settled)
    }

    /// Settles up to `bytes`, never more than is outstanding; returns how much.
    fn settle(&self, bytes: u64) -> u64 {
        let mut settled = self.settled.load(Ordering::Acquire);
        loop {
            let step = bytes.min(self.reserved.load(Ordering::Acquire).saturating_sub(settled));
            if step == 0 {
                return 0;
            }
            match self.settled.compare_exchange_weak(
                settled,
                settled + step,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return step,
                Err(current) => settled = current,
            }
        }
    }
}

/// What the heartbeat's side remembers of a node.
#[derive(Debug, Default)]
struct Past {
    /// Epoch and delivered bytes of the last report.
    heard: Option<(u64, u64)>,
    /// What was expected to be open when.
    expected: Expected,
    /// When the total reserved was how much, oldest first.
    totals: Vec<(Moment, u64)>,
}

impl Past {
    /// Remembers the total at `now`: finely within twice the grace, coarsely as far back as the hold.
    fn note(&mut self, now: Moment, reserved: u64, terms: ReservationTerms) {
        if self.totals.last().is_some_and(|&(at, _)| now.since(at) < terms.arrival_grace / FINE) {
            return;
        }
        self.totals.push((now, reserved));
        let fine_from = now.before(terms.arrival_grace * 2);
        let hold_from = now.before(terms.hold);
        // The newest total before the hold stands for everything older.
        let keep_from = self.totals.partition_point(|&(at, _)| at <= hold_from).saturating_sub(1);
        self.totals.drain(..keep_from);
        let mut last_kept = None;
        self.totals.retain(|&(at, _)| {
            let keep =
                at >= fine_from || last_kept.is_none_or(|kept: Moment| at.since(kept) >= terms.hold / COARSE);
            if keep {
                last_kept = Some(at);
            }
            keep
        });
    }

    /// The total as of `at`: that of the last note at or before it, 0 when there is none.
    fn reserved_at(&self, at: Moment) -> u64 {
        let after = self.totals.partition_point(|&(noted, _)| noted <= at);
        after.checked_sub(1).map_or(0, |index| self.totals[index].1)
    }
}

/// One remembered client and file: who holds the promise, and how much of it.
#[derive(Debug, Default)]
struct Claim {
    /// Tag of the client and file in the upper half (never 0), node in the lower; 0 when empty.
    owner: AtomicU64,
    /// Size in units, second of making, and part of the hash.
    body: AtomicU64,
}

fn claim_hash(promise: &Promise) -> u64 {
    mix(promise.client ^ mix(u64::from(promise.file.0) + 1))
}

fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

fn position(node: NodeId) -> (usize, usize) {
    (node.0 as usize / SEGMENT_ACCOUNTS, node.0 as usize % SEGMENT_ACCOUNTS)
}

fn in_range(node: NodeId) -> bool {
    (node.0 as usize) < SEGMENTS * SEGMENT_ACCOUNTS
}

/// Node ids from here on are not accounted (4,194,304 of them are).
const SEGMENTS: usize = 4096;
const SEGMENT_ACCOUNTS: usize = 1024;
const CLAIMS_MAX: usize = 1 << 24;
/// A claim's size is kept in KiB: 32 bits reach 4 TiB.
const CLAIM_UNIT_BITS: u32 = 10;
/// Notes within one grace, and within one hold: bounds `Past::totals` to 2 * FINE + COARSE + 2.
const FINE: u32 = 8;
const COARSE: u32 = 32;

#[cfg(test)]
mod tests;
