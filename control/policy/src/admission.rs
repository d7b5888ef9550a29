//! How much may be promised on a node, and what to do when every node has promised that much.
//!
//! The guard against cascades: a node's limit holds whatever happens to the others, so that losing one
//! never pushes the next one over. What fits nowhere goes to the origin while it has headroom, and
//! otherwise is told when to come back, each client at its own time, so that the returns are a stream
//! at the rate that is there and not another crowd. No clock, no socket.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};

use crate::draw::Draw;
use crate::moment::Moment;
use crate::selection::Choice;

/// The most bytes that may be outstanding on a node that delivers `rate`, when a customer shall be
/// kept waiting no longer than `wait`.
pub fn node_limit(rate: BytesPerSec, wait: Duration) -> Bytes {
    Bytes((rate.0 as f64 * wait.as_secs_f64()) as u64)
}

/// The most bytes that may stand before a request and be in it, on a node that delivers `rate`, when its customer shall
/// wait no longer than `wait` beyond what the file takes at `slowest`, the least rate that a customer is offered.
///
/// Downloads of one node share its rate, so it takes in so many at once that each still has `slowest`, and small files
/// pass beside large ones.
pub fn request_limit(rate: BytesPerSec, wait: Duration, slowest: BytesPerSec, size: Bytes) -> Bytes {
    let seconds = wait.as_secs_f64() + size.0 as f64 / slowest.0.max(1) as f64;
    Bytes((rate.0 as f64 * seconds) as u64)
}

/// A node's limit as it is compared with its expected `backlog`, so that what is `outstanding` in all,
/// slow clients' bytes included, stays within `limit`.
pub fn limit_of_backlog(limit: Bytes, outstanding: Bytes, backlog: Bytes) -> Bytes {
    Bytes(limit.0.saturating_sub(outstanding.0.saturating_sub(backlog.0)))
}

/// What the origin could serve itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginHeadroom {
    /// Bytes that its own responses still owe.
    pub outstanding: Bytes,
    /// What it may deliver per second.
    pub rate: BytesPerSec,
    /// The most that may be outstanding on it.
    pub limit: Bytes,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Admission {
    /// It is redirected.
    Redirect(Choice),
    /// The origin serves it.
    Origin,
    /// It is answered 503 with this Retry-After (1 s ..= [`RETRY_MAX`], whole seconds).
    RetryAfter(Duration),
}

impl OriginHeadroom {
    /// Whether the origin sends `size` bytes itself; an idle one sends a file of any size, as an idle node does.
    pub fn takes(&self, size: Bytes) -> bool {
        let fits = self.outstanding.0.saturating_add(size.0) <= self.limit.0;
        self.rate.0 > 0 && (fits || self.outstanding.0 == 0)
    }
}

/// Decides what becomes of requests that no volunteer takes. Shared by all rings.
///
/// Who asks again before his time keeps his place: asking often brings nobody forward and pushes nobody back, as far as
/// the last [`PLACES`] who were put off are remembered.
#[derive(Debug)]
pub struct CascadeGuard {
    /// Until when the rate that is there has been given away to those told to come back, in
    /// nanoseconds.
    promised_until: AtomicU64,
    /// Who was told which second, as [`place`] packs it; 0 is nobody.
    places: Box<[AtomicU64]>,
}

impl Default for CascadeGuard {
    fn default() -> CascadeGuard {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        CascadeGuard { promised_until: AtomicU64::new(0), places }
    }
}

impl CascadeGuard {
    /// Decides for a request of `size` bytes by `asker`, the hash of who asks for what. `drain` is what all usable
    /// volunteers and the origin deliver together: the rate at which room appears.
    #[expect(clippy::too_many_arguments, reason = "each is one fact of the decision")]
    pub fn decide(
        &self,
        choice: Option<Choice>,
        size: Bytes,
        origin: OriginHeadroom,
        drain: BytesPerSec,
        now: Moment,
        asker: u64,
        seed: u64,
    ) -> Admission {
        if let Some(choice) = choice {
            return Admission::Redirect(choice);
        }
        if origin.takes(size) {
            return Admission::Origin;
        }
        let kept = &self.places[(asker % PLACES as u64) as usize];
        let told = kept.load(Ordering::Relaxed);
        let second = told & SECOND_MASK;
        let this_second = now.0.div_ceil(1_000_000_000) & SECOND_MASK;
        if told != 0 && told == place(asker, second) && second > this_second {
            let left = Duration::from_secs(second - this_second);
            return Admission::RetryAfter(left.clamp(RETRY_MIN, RETRY_MAX));
        }
        let wait = self.retry_after(size, drain, now, seed);
        kept.store(place(asker, this_second + wait.as_secs()), Ordering::Relaxed);
        Admission::RetryAfter(wait)
    }

    /// When to come back: after those who were told before, as many bytes later as this one takes.
    fn retry_after(&self, size: Bytes, drain: BytesPerSec, now: Moment, seed: u64) -> Duration {
        let mut draw = Draw::new(seed);
        let cost = (size.0 as f64 / drain.0.max(1) as f64 * 1e9) as u64;
        let mut until = self.promised_until.load(Ordering::Relaxed);
        loop {
            let slot = until.max(now.0);
            if slot - now.0 > RETRY_MAX.as_nanos() as u64 {
                // The queue is full: spread over its last half, without making it longer.
                return whole_seconds(RETRY_MAX.mul_f64(0.5 + 0.5 * draw.unit()));
            }
            match self.promised_until.compare_exchange_weak(
                until,
                slot.saturating_add(cost),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                // Within its own slot, at random: clients round to seconds and would meet again.
                Ok(_) => {
                    let wait = (slot - now.0) as f64 + cost as f64 * draw.unit();
                    return whole_seconds(Duration::from_nanos(wait as u64) + RETRY_MIN);
                }
                Err(current) => until = current,
            }
        }
    }
}

/// Who was told to come back in which second since the clock's start: a tag of the asker above the second.
fn place(asker: u64, second: u64) -> u64 {
    (asker & !SECOND_MASK) | (second & SECOND_MASK)
}

/// Rounded up, since Retry-After knows no fractions, and within its bounds.
fn whole_seconds(wait: Duration) -> Duration {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    Duration::from_secs(seconds).clamp(RETRY_MIN, RETRY_MAX)
}

/// Nobody is told to come back later than this: what is known of the load is not known further ahead.
pub const RETRY_MAX: Duration = Duration::from_secs(300);
const RETRY_MIN: Duration = Duration::from_secs(1);
/// How many who were put off are remembered, 8 bytes each.
pub const PLACES: usize = 8192;
/// The bits of a second since the clock's start; 34 years.
const SECOND_MASK: u64 = (1 << 30) - 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::selection::{Candidate, ExpectedFinishTime, Selector, testing};

    fn full() -> OriginHeadroom {
        OriginHeadroom { outstanding: Bytes(100), rate: BytesPerSec(1000), limit: Bytes(100) }
    }

    #[test]
    fn a_choice_is_taken_and_the_origin_helps_out_within_its_headroom() {
        let guard = CascadeGuard::default();
        let field = vec![testing::candidate(1)];
        let choice = ExpectedFinishTime::default().select(&field, &testing::request(5), Moment::ZERO, 1);
        let decide =
            |choice, origin| guard.decide(choice, Bytes(50), origin, BytesPerSec(1000), Moment::ZERO, 1, 1);
        assert!(matches!(decide(choice, full()), Admission::Redirect(_)));
        assert_eq!(decide(None, OriginHeadroom { limit: Bytes(150), ..full() }), Admission::Origin);
        assert_eq!(
            decide(None, OriginHeadroom { outstanding: Bytes(0), limit: Bytes(9), ..full() }),
            Admission::Origin
        );
        assert!(matches!(decide(None, full()), Admission::RetryAfter(_)));
        let closed = OriginHeadroom { outstanding: Bytes(0), rate: BytesPerSec(0), limit: Bytes(150) };
        assert!(matches!(decide(None, closed), Admission::RetryAfter(_)));
    }

    #[test]
    fn a_node_takes_as_many_as_it_can_offer_the_slowest_rate() {
        let (rate, slowest) = (BytesPerSec(10_000_000), BytesPerSec(1_000_000));
        let admits = |open: u64, size: u64| {
            let limit = request_limit(rate, Duration::from_secs(10), slowest, Bytes(size));
            // Each that is open takes as much as this one while this one is sent.
            (open + 1) * size <= limit.0
        };
        let large = 4_000_000_000;
        assert!(admits(9, large) && !admits(11, large), "ten at a megabyte a second each");
        assert!(admits(100, 100_000), "small files pass beside them");
    }

    #[test]
    fn no_node_is_pushed_over_its_limit_when_another_is_lost() {
        let limit = node_limit(BytesPerSec(1_000_000), Duration::from_secs(10));
        assert_eq!(limit, Bytes(10_000_000));
        let mut field: Vec<_> =
            (0..10).map(|n| Candidate { admission: limit, ..testing::candidate(n) }).collect();
        let selector = ExpectedFinishTime::default();
        let mut sent_away = 0;
        for seed in 0..2000 {
            if seed == 100 {
                field[3].standing = crate::selection::Standing::Dead;
            }
            match selector.select(&field, &testing::request(100_000), Moment::ZERO, seed) {
                Some(choice) => field[choice.index].outstanding.0 += 100_000,
                None => sent_away += 1,
            }
        }
        assert!(field.iter().all(|node| node.outstanding <= limit));
        assert!(sent_away > 1000);
    }

    #[test]
    fn those_sent_away_come_back_as_a_stream_at_the_rate_that_is_there() {
        let guard = CascadeGuard::default();
        let drain = BytesPerSec(1_000_000);
        let mut per_second = vec![0u64; 400];
        for seed in 0..2000 {
            let Admission::RetryAfter(wait) =
                guard.decide(None, Bytes(100_000), full(), drain, Moment::ZERO, Draw::new(seed).bits(), seed)
            else {
                panic!("there is no room");
            };
            per_second[wait.as_secs() as usize] += 100_000;
        }
        // 200 s of work: within every ten seconds of it about ten seconds' worth comes back.
        for ten in per_second[10..200].chunks(10) {
            let bytes: u64 = ten.iter().sum();
            assert!((8_000_000..=12_000_000).contains(&bytes), "{bytes}");
        }
    }

    #[test]
    fn asking_again_and_again_changes_nobodys_place() {
        let guard = CascadeGuard::default();
        let ask = |asker: u64, now: Moment| match guard.decide(
            None,
            Bytes(1_000),
            full(),
            BytesPerSec(1_000),
            now,
            asker << 32 | asker,
            asker,
        ) {
            Admission::RetryAfter(wait) => wait.as_secs(),
            other => panic!("there is no room: {other:?}"),
        };
        let mut now = Moment::ZERO;
        let told = ask(1, now);
        let later = ask(2, now);
        for _ in 0..1_000 {
            assert_eq!((ask(1, now), ask(2, now)), (told, later));
        }
        now += Duration::from_secs(1);
        assert_eq!(ask(2, now), (later - 1).max(1));
        assert!(ask(3, now) <= later + 2, "a thousand questions took no place");
        // Who comes when he was told to, and is put off again, stands behind the others.
        now += Duration::from_secs(told);
        assert!(ask(1, now) >= 1);
    }

    proptest! {
        #[test]
        fn retry_after_is_within_bounds(
            asks in proptest::collection::vec((0u64..1 << 36, 0u64..1 << 34, 0u64..10_000_000_000), 1..200)
        ) {
            let guard = CascadeGuard::default();
            let mut now = Moment::ZERO;
            for (size, drain, pause) in asks {
                now += Duration::from_nanos(pause);
                match guard.decide(None, Bytes(size.max(1)), full(), BytesPerSec(drain), now, size, pause) {
                    Admission::RetryAfter(wait) => {
                        prop_assert!(wait >= RETRY_MIN && wait <= RETRY_MAX && wait.subsec_nanos() == 0);
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}
