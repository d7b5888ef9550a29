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

use std::sync::atomic::{AtomicU64, Ordering};
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
    /// A second request of the same client for the same file within this time is a retry, not a
    /// second download.
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
    /// A retry moves the client's earlier promise instead of adding to it. Returns the bytes that were
    /// added to the node's outstanding ones.
    pub fn reserve(&self, node: NodeId, promise: Promise, now: Moment) -> Bytes {
        if promise.bytes.0 == 0 || !in_range(node) {
            return Bytes(0);
        }
        let earlier = self.take_claim(&promise, now);
        let add = match earlier {
            Some((at, bytes)) if at == node => promise.bytes.0.saturating_sub(bytes),
            Some((at, bytes)) => {
                // What the first node has delivered is confirmed by its counters; only the rest moves.
                let moved = if promise.partial { bytes.min(promise.bytes.0) } else { bytes };
                self.release(at, Bytes(moved), now);
                promise.bytes.0
            }
            None => promise.bytes.0,
        };
        // A piece of a download that is still open must not shrink what is known of the whole of it.
        let claimed = match earlier {
            Some((at, bytes)) if at == node => bytes.max(promise.bytes.0),
            _ => promise.bytes.0,
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
            Some((at, bytes)) if at == node => self.release(node, Bytes(bytes), now),
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
        if let Some(in_flight) = report.in_flight {
            let reserved = account.reserved.load(Ordering::Relaxed);
            let recent = reserved - past.reserved_at(now.before(self.terms.arrival_grace));
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(70_000);
    const MB: u64 = 1_000_000;

    fn ledger() -> ReservationLedger {
        ReservationLedger::new(ReservationTerms::default(), 1024)
    }

    fn whole(client: u64, bytes: u64) -> Promise {
        Promise { client, file: FileId(9), bytes: Bytes(bytes), partial: false }
    }

    fn part(client: u64, bytes: u64) -> Promise {
        Promise { partial: true, ..whole(client, bytes) }
    }

    fn at(seconds: f64) -> Moment {
        Moment::from_secs_f64(1000.0 + seconds)
    }

    fn pace(rate: u64, contending: u64, saturated: bool) -> NodePace {
        aged(rate, contending, saturated, 0.0)
    }

    fn aged(rate: u64, contending: u64, saturated: bool, age: f64) -> NodePace {
        NodePace {
            rate: BytesPerSec(rate),
            sending: BytesPerSec(0),
            contending,
            saturated,
            age: Duration::from_secs_f64(age),
        }
    }

    fn report(epoch: u64, delivered: u64, in_flight: Option<u64>) -> DeliveryReport {
        DeliveryReport { epoch, delivered: Bytes(delivered), in_flight: in_flight.map(Bytes) }
    }

    #[test]
    fn a_redirect_is_outstanding_until_its_bytes_are_confirmed() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 500, None), at(0.0));
        assert_eq!(ledger.reserve(A, whole(1, 10 * MB), at(0.0)), Bytes(10 * MB));
        assert_eq!(ledger.outstanding(A), Bytes(10 * MB));
        assert_eq!(ledger.outstanding(B), Bytes(0));
        ledger.confirm(A, report(1, 500 + 4 * MB, None), at(1.0));
        assert_eq!(ledger.outstanding(A), Bytes(6 * MB));
        ledger.confirm(A, report(1, 500 + 40 * MB, None), at(2.0));
        assert_eq!(ledger.outstanding(A), Bytes(0), "more delivered than promised is not a credit");
    }

    #[test]
    fn head_reserves_nothing_and_range_its_length() {
        let ledger = ledger();
        assert_eq!(ledger.reserve(A, whole(1, 0), at(0.0)), Bytes(0));
        assert_eq!(ledger.reserve(A, part(1, MB), at(0.0)), Bytes(MB));
        assert_eq!(ledger.outstanding(A), Bytes(MB));
    }

    #[test]
    fn a_retry_at_the_same_node_does_not_double() {
        let ledger = ledger();
        ledger.reserve(A, whole(1, 8 * MB), at(0.0));
        assert_eq!(ledger.reserve(A, whole(1, 8 * MB), at(3.0)), Bytes(0));
        assert_eq!(ledger.outstanding(A).0, 8 * MB);
    }

    #[test]
    fn a_retry_at_another_node_moves_the_promise() {
        let ledger = ledger();
        ledger.reserve(A, whole(1, 8 * MB), at(0.0));
        ledger.reserve(B, whole(1, 8 * MB), at(3.0));
        assert_eq!(ledger.outstanding(A), Bytes(0));
        assert!(ledger.outstanding(B).0 >= 8 * MB);
    }

    #[test]
    fn a_resumed_download_moves_what_is_left() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 0, None), at(0.0));
        ledger.reserve(A, whole(1, 8 << 20), at(0.0));
        ledger.confirm(A, report(1, 3 << 20, None), at(60.0));
        ledger.reserve(B, part(1, 5 << 20), at(61.0));
        assert_eq!(ledger.outstanding(A), Bytes(0));
        assert_eq!(ledger.outstanding(B), Bytes(5 << 20));
    }

    #[test]
    fn another_client_or_a_later_download_is_not_a_retry() {
        let ledger = ledger();
        ledger.reserve(A, whole(1, MB), at(0.0));
        ledger.reserve(A, whole(2, MB), at(0.0));
        ledger.reserve(A, whole(1, MB), at(100.0));
        assert_eq!(ledger.outstanding(A).0, 3 * MB);
    }

    #[test]
    fn a_bounce_releases_once_and_only_on_the_node_that_bounced() {
        let ledger = ledger();
        ledger.reserve(A, whole(1, 1 << 20), at(0.0));
        assert_eq!(ledger.bounce(B, whole(1, 1 << 20), at(1.0)), Bytes(0));
        assert_eq!(ledger.bounce(A, whole(1, 1 << 20), at(1.0)), Bytes(1 << 20));
        assert_eq!(ledger.bounce(A, whole(1, 1 << 20), at(1.0)), Bytes(0));
        assert_eq!(ledger.outstanding(A), Bytes(0));
    }

    #[test]
    fn an_abandoned_download_is_noticed_by_what_is_in_flight() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 0, Some(0)), at(0.0));
        ledger.reserve(A, whole(1, 100 * MB), at(0.0));
        ledger.confirm(A, report(1, 0, Some(0)), at(1.0));
        assert_eq!(ledger.outstanding(A).0, 100 * MB, "the client may still be on its way");
        ledger.confirm(A, report(1, MB, Some(99 * MB)), at(2.0));
        assert_eq!(ledger.outstanding(A).0, 99 * MB);
        ledger.confirm(A, report(1, 2 * MB, Some(0)), at(7.0));
        assert_eq!(ledger.outstanding(A), Bytes(0), "it went away");
    }

    #[test]
    fn what_nobody_confirms_ages_out() {
        let ledger = ledger();
        for second in 0..2000u32 {
            if second % 100 == 0 {
                ledger.reserve(A, whole(second.into(), MB), at(second.into()));
            }
            ledger.age(A, at(second.into()));
        }
        // 900 s of hold: the promises of the last 9 or 10 hundreds remain, within a 32nd of the hold.
        let left = ledger.outstanding(A).0 / MB;
        assert!((9..=10).contains(&left), "{left}");
        for second in 2000..3000 {
            ledger.age(A, at(second.into()));
        }
        assert_eq!(ledger.outstanding(A), Bytes(0));
    }

    #[test]
    fn a_restarted_node_starts_from_nothing() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 70 * MB, None), at(0.0));
        ledger.reserve(A, whole(1, 8 * MB), at(0.0));
        ledger.confirm(A, report(2, 0, None), at(1.0));
        assert_eq!(ledger.outstanding(A), Bytes(0));
        ledger.reserve(A, whole(2, 8 * MB), at(2.0));
        ledger.confirm(A, report(2, MB, None), at(3.0));
        assert_eq!(ledger.outstanding(A).0, 7 * MB);
    }

    #[test]
    fn a_restarted_front_door_learns_what_is_in_flight() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 900 * MB, Some(30 * MB)), at(0.0));
        assert_eq!(ledger.outstanding(A).0, 30 * MB);
    }

    #[test]
    fn a_counter_that_goes_backwards_confirms_nothing() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 100 * MB, None), at(0.0));
        ledger.reserve(A, whole(1, 8 * MB), at(0.0));
        ledger.confirm(A, report(1, 50 * MB, None), at(1.0));
        ledger.confirm(A, report(1, 100 * MB, None), at(2.0));
        assert_eq!(ledger.outstanding(A).0, 8 * MB);
    }

    /// Megabytes, to two digits.
    fn ahead(ledger: &ReservationLedger, node: NodeId, size: u64, now: f64) -> f64 {
        (ledger.backlog(node, Bytes(size), at(now)).0 as f64 / MB as f64 * 100.0).round() / 100.0
    }

    #[test]
    fn between_heartbeats_promises_are_expected_to_leave_at_the_rate() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 0, None), at(0.0));
        ledger.reserve(A, whole(1, 30 * MB), at(0.0));
        ledger.reserve(A, whole(2, 30 * MB), at(0.0));
        assert_eq!(ahead(&ledger, A, MB, 0.5), 60.0, "no rate is known yet");
        ledger.observe(A, pace(10 * MB, 2, true), at(1.0));
        assert_eq!(ahead(&ledger, A, MB, 1.0), 2.0, "as much of each of the two as of the new one");
        ledger.reserve(A, whole(3, 2 * MB), at(1.0));
        assert_eq!(ahead(&ledger, A, MB, 1.0), 3.0);
        let later: Vec<f64> = [1.2, 2.0, 5.0, 30.0].map(|now| ahead(&ledger, A, MB, now)).to_vec();
        assert!(later.is_sorted_by(|a, b| a > b), "{later:?}");
        assert!(later[1] < 2.2, "the small one has left, the large ones are still there: {later:?}");
        assert_eq!(ledger.outstanding(A).0, 62 * MB, "nothing is confirmed");
        assert!(ahead(&ledger, A, 1000 * MB, 1.0) <= 62.0, "never more than there is");
        assert_eq!(ahead(&ledger, B, MB, 3.0), 0.0);
        ledger.observe(NodeId(u32::MAX), pace(1, 1, true), at(3.0));
    }

    #[test]
    fn slow_clients_leave_room_for_the_next() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 0, None), at(0.0));
        for client in 0..4 {
            ledger.reserve(A, whole(client, 500 * MB), at(0.0));
        }
        let slow = NodePace { sending: BytesPerSec(2 * MB), ..pace(10 * MB, 4, false) };
        ledger.observe(A, slow, at(1.0));
        // Four at half a megabyte each leave eight of ten: a quarter as long again as alone.
        assert_eq!(ahead(&ledger, A, MB, 1.0), 0.25);
        ledger.observe(A, NodePace { saturated: true, ..slow }, at(2.0));
        assert!(ahead(&ledger, A, MB, 2.0) <= 0.25, "what its clients take is remembered");
    }

    #[test]
    fn a_report_speaks_of_the_time_when_it_was_written() {
        // Two nodes that are told the same; one's reports arrive ten seconds late.
        let (prompt, late) = (ledger(), ledger());
        for ledger in [&prompt, &late] {
            ledger.confirm(A, report(1, 0, None), at(0.0));
            ledger.observe(A, pace(10 * MB, 0, false), at(0.0));
        }
        for second in 0..10u32 {
            late.observe(A, aged(10 * MB, 0, false, 10.0), at(f64::from(second)));
        }
        for ledger in [&prompt, &late] {
            ledger.reserve(A, whole(1, 900 * MB), at(10.0));
            ledger.reserve(A, whole(2, 900 * MB), at(10.0));
        }
        prompt.observe(A, pace(10 * MB, 2, true), at(15.0));
        late.observe(A, aged(10 * MB, 0, false, 10.0), at(15.0));
        let (known, reckoned) = (ahead(&prompt, A, MB, 15.0), ahead(&late, A, MB, 15.0));
        assert!((known - 2.0).abs() < 0.1, "{known}");
        assert!((reckoned - 2.0).abs() < 0.2, "an old report that it was empty empties nothing: {reckoned}");
    }

    #[test]
    fn what_a_late_report_corrects_is_corrected_once() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 0, None), at(0.0));
        ledger.observe(A, pace(10 * MB, 0, false), at(0.0));
        for client in 0..8 {
            ledger.reserve(A, whole(client, 4000 * MB), at(0.0));
        }
        // Four of the eight never came; every report of the next half minute is ten seconds old and says so.
        for second in 1..40u32 {
            let seen = if second <= 10 { 0 } else { 4 };
            ledger.observe(A, aged(10 * MB, seen, seen > 0, 10.0), at(f64::from(second)));
            let ahead = ahead(&ledger, A, MB, f64::from(second));
            assert!((3.0..=8.1).contains(&ahead), "{second}: {ahead}");
        }
        assert!((ahead(&ledger, A, MB, 40.0) - 4.0).abs() < 0.7);
    }

    #[test]
    fn what_is_released_is_open_no_more() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 0, None), at(0.0));
        ledger.observe(A, pace(10 * MB, 0, false), at(0.0));
        ledger.reserve(A, whole(1, 800 * MB), at(0.0));
        ledger.reserve(A, whole(2, 800 * MB), at(0.0));
        ledger.bounce(A, whole(1, 800 * MB), at(0.0));
        assert_eq!(ahead(&ledger, A, MB, 0.0), 1.0);
        ledger.clear(A);
        assert_eq!(ahead(&ledger, A, MB, 0.0), 0.0);
        ledger.reserve(A, whole(3, 800 * MB), at(1.0));
        assert_eq!(ahead(&ledger, A, MB, 1.0), 1.0);
    }

    #[test]
    fn nodes_beyond_the_ledger_are_left_out_without_harm() {
        let ledger = ledger();
        assert_eq!(ledger.reserve(NodeId(u32::MAX), whole(1, MB), at(0.0)), Bytes(0));
        ledger.confirm(NodeId(u32::MAX), report(1, 5, None), at(0.0));
        assert_eq!(ledger.outstanding(NodeId(u32::MAX)), Bytes(0));
    }

    #[test]
    fn rings_that_reserve_and_heartbeats_that_confirm_lose_nothing() {
        let ledger = ledger();
        ledger.confirm(A, report(1, 0, None), at(0.0));
        std::thread::scope(|scope| {
            for ring in 0..4u64 {
                let ledger = &ledger;
                scope.spawn(move || {
                    for n in 0..10_000 {
                        ledger.reserve(A, whole(ring * 1_000_000 + n, 1000), at(0.0));
                    }
                });
            }
        });
        ledger.confirm(A, report(1, 30_000_000, None), at(1.0));
        assert_eq!(ledger.outstanding(A), Bytes(10_000_000));
    }

    proptest! {
        /// Whatever happens, in whatever order, outstanding stays within what was promised, and all
        /// of it is gone a hold after the last promise.
        #[test]
        fn never_leaks_and_never_exceeds_what_was_promised(
            steps in proptest::collection::vec((0u8..5, 0u64..20, 1u64..50_000_000, 0.0f64..40.0), 1..200)
        ) {
            let ledger = ledger();
            let (mut now, mut promised, mut delivered) = (0.0, 0u64, 0u64);
            for (what, client, bytes, pause) in steps {
                now += pause;
                let node = if client % 2 == 0 { A } else { B };
                match what {
                    0 => promised += ledger.reserve(node, whole(client, bytes), at(now)).0,
                    1 => promised += ledger.reserve(node, part(client, bytes), at(now)).0,
                    2 => { ledger.bounce(node, whole(client, bytes), at(now)); }
                    3 => {
                        delivered += bytes;
                        ledger.confirm(node, report(1, delivered, None), at(now));
                    }
                    _ => ledger.age(node, at(now)),
                }
                prop_assert!(ledger.outstanding(A).0 + ledger.outstanding(B).0 <= promised);
            }
            for extra in 0..200 {
                for node in [A, B] { ledger.age(node, at(now + f64::from(extra) * 10.0)); }
            }
            prop_assert_eq!(ledger.outstanding(A), Bytes(0));
            prop_assert_eq!(ledger.outstanding(B), Bytes(0));
        }
    }
}
