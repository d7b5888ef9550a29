//! How fast bytes may leave: a token bucket, and a total shared among classes with a minimum each.
//!
//! The bucket is the generic cell rate algorithm (ITU-T I.371): instead of counting tokens it keeps
//! the theoretical time at which the bytes taken so far would have left at exactly the rate. That is
//! one number, so rings share it in one atomic. No clock: `now` is passed in; no waiting: the answer
//! says how long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};

use crate::draw::mix;
use crate::moment::Moment;

/// What a pacer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Send this many bytes (1 ..= wanted).
    Bytes(u64),
    /// Ask again after this long (never more than [`WAIT_MAX`], so that a new rate is seen soon).
    Wait(Duration),
}

/// One rate, kept over any stretch of time to within one burst and one chunk. Shared by threads.
///
/// The burst is 64 KiB, or 4 ms of the rate where that is more: what a late timer loses is made up
/// from it. Whoever must wait is given a slot behind those who wait already, so that equal senders
/// get equal parts; a slot whose owner never returns is used up by whoever asks next.
#[derive(Debug)]
pub struct TokenBucket {
    /// Bytes per second; [`UNLIMITED`] for none.
    rate: AtomicU64,
    /// Theoretical arrival time, in [`TICKS_PER_NANO`]ths of a nanosecond.
    due: AtomicU64,
    queue: Queue,
}

impl TokenBucket {
    /// A bucket that lets `rate` through, beginning with a full burst; 0 lets nothing through.
    pub fn new(rate: BytesPerSec) -> TokenBucket {
        let rate = AtomicU64::new(rate.0.min(UNLIMITED - 1));
        TokenBucket { rate, due: AtomicU64::new(0), queue: Queue::default() }
    }

    /// A bucket that lets everything through.
    pub fn unlimited() -> TokenBucket {
        TokenBucket { rate: AtomicU64::new(UNLIMITED), due: AtomicU64::new(0), queue: Queue::default() }
    }

    /// The rate in force, or none when unlimited.
    pub fn rate(&self) -> Option<BytesPerSec> {
        match self.rate.load(Ordering::Relaxed) {
            UNLIMITED => None,
            rate => Some(BytesPerSec(rate)),
        }
    }

    /// Puts another rate in force, from the next take on; what was taken before is owed at the new rate.
    pub fn set_rate(&self, rate: Option<BytesPerSec>, now: Moment) {
        let new = rate.map_or(UNLIMITED, |rate| rate.0.min(UNLIMITED - 1));
        let old = self.rate.swap(new, Ordering::AcqRel);
        if old == new {
            return;
        }
        let now = ticks(now);
        // Debt is bytes: the time it stands for changes with the rate.
        let rescaled = self.due.fetch_update(Ordering::AcqRel, Ordering::Acquire, |due| {
            let debt = due.checked_sub(now).filter(|&debt| debt > 0)?;
            let bytes = if old == UNLIMITED || old == 0 { 0 } else { u128::from(debt) * u128::from(old) };
            let debt = if new == UNLIMITED || new == 0 { 0 } else { bytes / u128::from(new) };
            Some(now.saturating_add(u64::try_from(debt).unwrap_or(u64::MAX)))
        });
        // Nothing owed is nothing to rescale.
        let _ = rescaled;
        self.queue.clear();
    }

    /// Takes up to `want` bytes at `now`.
    pub fn take(&self, want: u64, now: Moment) -> Pace {
        match self.try_take(want, now, self.queue.length(now)) {
            Ok(bytes) => Pace::Bytes(bytes),
            Err(due) => Pace::Wait(self.queue.join(now, due, self.rate.load(Ordering::Relaxed))),
        }
    }

    /// How long until what was taken and charged so far has passed at the rate; zero when nothing is owed.
    ///
    /// For those who learn the size of a thing only after it passed: charge it, then wait this long.
    pub fn owed(&self, now: Moment) -> Duration {
        match self.rate.load(Ordering::Relaxed) {
            UNLIMITED => Duration::ZERO,
            0 => WAIT_MAX,
            _ => {
                let due = self.due.load(Ordering::Acquire);
                Duration::from_nanos(due.saturating_sub(ticks(now)).div_ceil(TICKS_PER_NANO))
            }
        }
    }

    /// Charges `bytes` that go out whatever the bucket holds; later takes wait for them.
    pub fn charge(&self, bytes: u64, now: Moment) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == UNLIMITED || rate == 0 {
            return;
        }
        let cost = cost(bytes, rate);
        let floor = ticks(now).saturating_sub(burst_ticks(rate));
        let charged = self.due.fetch_update(Ordering::AcqRel, Ordering::Acquire, |due| {
            Some(due.max(floor).saturating_add(cost))
        });
        // The closure always answers, so the update always succeeds.
        let _ = charged;
    }

    /// Gives back bytes that were taken and not sent.
    fn refund(&self, bytes: u64) {
        let rate = self.rate.load(Ordering::Relaxed);
        if bytes > 0 && rate != UNLIMITED && rate != 0 {
            self.due.fetch_sub(cost(bytes, rate), Ordering::AcqRel);
        }
    }

    /// Takes up to `want` bytes, or tells from when on there are some, in ticks. `queued` is how long
    /// the queue is of those who wait.
    fn try_take(&self, want: u64, now: Moment, queued: u64) -> Result<u64, u64> {
        let rate = self.rate.load(Ordering::Relaxed);
        if want == 0 || rate == UNLIMITED {
            return Ok(want);
        }
        if rate == 0 {
            return Err(u64::MAX);
        }
        let now = ticks(now);
        let bytes = want.min(chunk(rate, queued));
        let cost = cost(bytes, rate);
        let floor = now.saturating_sub(burst_ticks(rate));
        let mut due = self.due.load(Ordering::Acquire);
        loop {
            let from = due.max(floor);
            if from > now {
                return Err(from);
            }
            match self.due.compare_exchange_weak(due, from + cost, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(bytes),
                Err(current) => due = current,
            }
        }
    }
}

/// Slots for those who wait: one after the other, each as long as its bytes take.
#[derive(Debug, Default)]
struct Queue {
    /// End of the last slot given out, in ticks.
    tail: AtomicU64,
}

impl Queue {
    /// Books a slot of one chunk at `rate`, no earlier than `due`; how long until it begins.
    fn join(&self, now: Moment, due: u64, rate: u64) -> Duration {
        let now = ticks(now);
        if rate == UNLIMITED || rate == 0 || due == u64::MAX {
            return WAIT_MAX;
        }
        let mut tail = self.tail.load(Ordering::Acquire);
        loop {
            let slot = tail.max(due).max(now);
            if slot - now >= WAIT_TICKS_MAX {
                return WAIT_MAX;
            }
            let end = slot + cost(chunk(rate, slot - now), rate);
            match self.tail.compare_exchange_weak(tail, end, Ordering::AcqRel, Ordering::Acquire) {
                // Some disorder among several that wait: two classes whose slots march in step would
                // otherwise serve the same senders in every round.
                Ok(_) if tail > due.max(now) => return wait(slot - now + mix(tail) % (end - slot + 1)),
                Ok(_) => return wait((slot - now).max(1)),
                Err(current) => tail = current,
            }
        }
    }

    /// From now to the end of the last slot, in ticks.
    fn length(&self, now: Moment) -> u64 {
        self.tail.load(Ordering::Acquire).saturating_sub(ticks(now))
    }

    fn clear(&self) {
        self.tail.store(0, Ordering::Release);
    }
}

/// A total rate shared among classes: each has a minimum share that nobody can take from it, and what
/// a class leaves unused the others borrow. Shared by threads.
#[derive(Debug)]
pub struct SharedPacer {
    total: TokenBucket,
    /// The guaranteed part of each class.
    guaranteed: [TokenBucket; CLASSES],
    /// What each class may never exceed.
    ceilings: [TokenBucket; CLASSES],
    /// Who waits, by class. Paced at the total: a class that gets less finds some slots empty-handed
    /// and queues again, one that may borrow all of it loses nothing.
    queues: [Queue; CLASSES],
}

impl SharedPacer {
    /// A pacer with no limit at all.
    pub fn unlimited() -> SharedPacer {
        SharedPacer {
            total: TokenBucket::unlimited(),
            guaranteed: std::array::from_fn(|_| TokenBucket::new(BytesPerSec(0))),
            ceilings: std::array::from_fn(|_| TokenBucket::unlimited()),
            queues: std::array::from_fn(|_| Queue::default()),
        }
    }

    /// A pacer that lets `total` through and guarantees each class its share.
    pub fn new(total: BytesPerSec, shares: Shares) -> SharedPacer {
        let pacer = SharedPacer::unlimited();
        pacer.set(Some(total), shares, Moment::ZERO);
        pacer
    }

    /// Puts another total and other shares in force, from the next take on.
    pub fn set(&self, total: Option<BytesPerSec>, shares: Shares, now: Moment) {
        self.total.set_rate(total, now);
        for (bucket, share) in self.guaranteed.iter().zip(shares.0) {
            let rate = total.map_or(0, |total| (total.0 as f64 * f64::from(share)) as u64);
            bucket.set_rate(Some(BytesPerSec(rate)), now);
        }
        self.queues.iter().for_each(Queue::clear);
    }

    /// Puts a ceiling on one class (none lifts it). Classes from [`CLASSES`] on count as class 0.
    pub fn set_ceiling(&self, class: u8, ceiling: Option<BytesPerSec>, now: Moment) {
        self.ceilings[index(class)].set_rate(ceiling, now);
    }

    /// Whether `class` is not limited just now.
    pub fn is_unlimited(&self, class: u8) -> bool {
        self.total.rate().is_none() && self.ceilings[index(class)].rate().is_none()
    }

    /// The total in force, or none when unlimited.
    pub fn total(&self) -> Option<BytesPerSec> {
        self.total.rate()
    }

    /// Takes up to `want` bytes for `class` at `now`.
    pub fn take(&self, class: u8, want: u64, now: Moment) -> Pace {
        let class = index(class);
        let ceiling = &self.ceilings[class];
        let want = match ceiling.take(want, now) {
            Pace::Bytes(bytes) => bytes,
            wait @ Pace::Wait(_) => return wait,
        };
        let queued = self.queues[class].length(now);
        let own = match self.guaranteed[class].try_take(want, now, queued) {
            Ok(bytes) => {
                // Guaranteed bytes go out at once; the total is charged, so that borrowers make room.
                self.total.charge(bytes, now);
                ceiling.refund(want - bytes);
                return Pace::Bytes(bytes);
            }
            Err(due) => due,
        };
        let shared = match self.total.try_take(want, now, queued) {
            Ok(bytes) => {
                ceiling.refund(want - bytes);
                return Pace::Bytes(bytes);
            }
            Err(due) => due,
        };
        ceiling.refund(want);
        Pace::Wait(self.queues[class].join(now, own.min(shared), self.total.rate.load(Ordering::Relaxed)))
    }
}

/// The guaranteed share of each class, as fractions of the total that sum to at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares([f32; CLASSES]);

impl Shares {
    /// No guarantees: first come, first served.
    pub const NONE: Shares = Shares([0.0; CLASSES]);

    /// Shares by class number (other, delivery, sync, control); negative and non-finite ones count as
    /// 0, and all are scaled down when they sum to more than 1.
    pub fn new(shares: [f32; CLASSES]) -> Shares {
        let mut clean = shares.map(|share| if share.is_finite() { share.max(0.0) } else { 0.0 });
        let sum: f32 = clean.iter().sum();
        if sum > 1.0 {
            clean = clean.map(|share| share / sum);
        }
        Shares(clean)
    }

    /// Delivery's share `delivery` (0 ..= 1), sync the rest.
    pub fn between(delivery: f32) -> Shares {
        let delivery = if delivery.is_finite() { delivery.clamp(0.0, 1.0) } else { 0.5 };
        Shares::new([0.0, delivery, 1.0 - delivery, 0.0])
    }

    /// The share of `class`.
    pub fn of(&self, class: u8) -> f32 {
        self.0[index(class)]
    }
}

/// Classes that are told apart (see `freshet_api::Class::number`).
pub const CLASSES: usize = 4;
/// The most bytes one take grants.
pub const CHUNK_BYTES_MAX: Bytes = Bytes(64 * 1024);
/// The longest that a pacer lets anyone wait before asking again.
pub const WAIT_MAX: Duration = Duration::from_millis(100);

fn index(class: u8) -> usize {
    if (class as usize) < CLASSES { class as usize } else { 0 }
}

/// Bytes per take at `rate`: 64 KiB, less where that would be more than 20 ms, and less the longer
/// the queue of those who wait (`queued` ticks), so that many senders still come round in time.
fn chunk(rate: u64, queued: u64) -> u64 {
    let whole = (rate / CHUNKS_PER_SEC_MIN).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX.0);
    let part = match queued {
        _ if queued <= WAIT_TICKS_MAX / 8 => 1,
        _ if queued <= WAIT_TICKS_MAX / 3 => 4,
        _ => 16,
    };
    (whole / part).max(CHUNK_BYTES_MIN)
}

/// Ticks that `bytes` take at `rate`, rounded up: rounding never makes the rate exceeded.
fn cost(bytes: u64, rate: u64) -> u64 {
    let ticks = (u128::from(bytes) * u128::from(TICKS_PER_SEC)).div_ceil(u128::from(rate));
    u64::try_from(ticks).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
}

fn burst_ticks(rate: u64) -> u64 {
    cost(BURST_BYTES, rate).max(BURST_TICKS_MIN)
}

/// A moment in ticks; exact for the first 9.1 years after the origin.
fn ticks(now: Moment) -> u64 {
    now.0.saturating_mul(TICKS_PER_NANO)
}

fn wait(ticks: u64) -> Duration {
    Duration::from_nanos(ticks.div_ceil(TICKS_PER_NANO)).min(WAIT_MAX)
}

const UNLIMITED: u64 = u64::MAX;
/// Fractions of a nanosecond keep small takes at high rates exact.
const TICKS_PER_NANO: u64 = 64;
const TICKS_PER_SEC: u64 = TICKS_PER_NANO * 1_000_000_000;
const WAIT_TICKS_MAX: u64 = TICKS_PER_SEC / 10;
const BURST_BYTES: u64 = 64 * 1024;
/// 4 ms: the lateness of a timer on a busy machine.
const BURST_TICKS_MIN: u64 = TICKS_PER_SEC / 250;
const CHUNKS_PER_SEC_MIN: u64 = 50;
/// One full segment; less would only add packets.
const CHUNK_BYTES_MIN: u64 = 1448;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DELIVERY: u8 = 1;
    const SYNC: u8 = 2;

    /// Runs `flows` greedy senders for `seconds`, each waking `late_us` after it may; bytes by flow.
    fn greedy(
        take: &dyn Fn(usize, u64, Moment) -> Pace,
        flows: usize,
        from: Moment,
        seconds: f64,
        late_us: u64,
    ) -> Vec<u64> {
        let until = from + Duration::from_secs_f64(seconds);
        let mut wakes = vec![from; flows];
        let mut sent = vec![0; flows];
        loop {
            let (flow, &now) = wakes.iter().enumerate().min_by_key(|&(_, at)| *at).unwrap();
            if now >= until {
                return sent;
            }
            wakes[flow] = match take(flow, 1 << 20, now) {
                Pace::Bytes(bytes) => {
                    sent[flow] += bytes;
                    now + Duration::from_micros(20)
                }
                Pace::Wait(wait) => now + wait + Duration::from_micros(late_us),
            };
        }
    }

    #[test]
    fn the_rate_is_kept_within_a_fifth_of_a_percent() {
        for mbit in [20u64, 50, 200, 1000, 10_000] {
            for (flows, late_us) in [(1, 0), (1, 900), (8, 200), (64, 500)] {
                let rate = mbit * 125_000;
                let bucket = TokenBucket::new(BytesPerSec(rate));
                let start = Moment::from_secs_f64(100.0);
                greedy(&|_, want, now| bucket.take(want, now), 1, start, 1.0, 0);
                let take = |_, want, now| bucket.take(want, now);
                let sent: u64 =
                    greedy(&take, flows, start + Duration::from_secs(1), 10.0, late_us).iter().sum();
                let error = sent as f64 / (rate as f64 * 10.0) - 1.0;
                // 20 microseconds between takes is all the machine of this test can do: 26 Gbit/s.
                assert!(error.abs() <= 0.002, "{mbit} Mbit/s, {flows} flows: {error:+.4}");
            }
        }
    }

    #[test]
    fn what_is_charged_is_owed_until_it_has_passed() {
        let bucket = TokenBucket::new(BytesPerSec(1_000_000));
        let start = Moment::from_secs_f64(10.0);
        let (mut now, mut passed) = (start, 0u64);
        while now.since(start) < Duration::from_secs(10) {
            bucket.charge(100_000, now);
            passed += 100_000;
            now += bucket.owed(now);
        }
        let rate = passed as f64 / now.since(start).as_secs_f64();
        assert!((rate / 1e6 - 1.0).abs() < 0.02, "{rate}");
        assert_eq!(bucket.owed(now), Duration::ZERO);
        assert_eq!(TokenBucket::unlimited().owed(now), Duration::ZERO);
    }

    #[test]
    fn nothing_is_granted_at_rate_zero() {
        let bucket = TokenBucket::new(BytesPerSec(0));
        assert_eq!(bucket.take(10, Moment::from_secs_f64(1e6)), Pace::Wait(WAIT_MAX));
    }

    #[test]
    fn a_chunk_is_at_most_64_kib_and_small_at_small_rates() {
        let now = Moment::from_secs_f64(9.0);
        assert_eq!(TokenBucket::new(BytesPerSec(125_000_000)).take(1 << 30, now), Pace::Bytes(65_536));
        assert_eq!(TokenBucket::new(BytesPerSec(125_000)).take(1 << 30, now), Pace::Bytes(2500));
        assert_eq!(TokenBucket::new(BytesPerSec(10)).take(1 << 30, now), Pace::Bytes(1448));
        assert_eq!(TokenBucket::unlimited().take(1 << 30, now), Pace::Bytes(1 << 30));
    }

    #[test]
    fn a_new_rate_is_in_force_at_once() {
        let bucket = TokenBucket::new(BytesPerSec(10_000));
        let take = |_: usize, want, now| bucket.take(want, now);
        let start = Moment::from_secs_f64(50.0);
        greedy(&take, 8, start, 5.0, 0);
        let faster = start + Duration::from_secs(5);
        bucket.set_rate(Some(BytesPerSec(25_000_000)), faster);
        let sent: u64 = greedy(&take, 8, faster, 0.2, 0).iter().sum();
        assert!(sent as f64 > 25e6 * 0.2 * 0.97, "{sent} bytes in the first 200 ms");
        let slower = faster + Duration::from_millis(200);
        bucket.set_rate(Some(BytesPerSec(1_000_000)), slower);
        let sent: u64 = greedy(&take, 8, slower, 0.2, 0).iter().sum();
        assert!((sent as f64) < 1e6 * 0.2 + 2.0 * 65_536.0, "{sent} bytes after slowing down");
    }

    #[test]
    fn an_idle_class_lends_and_a_busy_one_keeps_its_share() {
        let rate = 25_000_000.0;
        let pacer = SharedPacer::new(BytesPerSec(rate as u64), Shares::between(0.7));
        let start = Moment::from_secs_f64(10.0);
        let alone = |_: usize, want, now| pacer.take(SYNC, want, now);
        let sent: u64 = greedy(&alone, 4, start, 10.0, 100).iter().sum();
        assert!((sent as f64 / (rate * 10.0) - 1.0).abs() < 0.005, "alone: {sent}");
        let both = |flow: usize, want, now| pacer.take(if flow == 0 { DELIVERY } else { SYNC }, want, now);
        let sent = greedy(&both, 5, start + Duration::from_secs(10), 10.0, 100);
        let delivery = sent[0] as f64 / (rate * 10.0);
        let total = sent.iter().sum::<u64>() as f64 / (rate * 10.0);
        assert!((0.69..0.715).contains(&delivery), "delivery: {delivery}");
        assert!((total - 1.0).abs() < 0.005, "total: {total}");
    }

    #[test]
    fn a_ceiling_binds_its_class_alone() {
        let pacer = SharedPacer::new(BytesPerSec(10_000_000), Shares::NONE);
        pacer.set_ceiling(SYNC, Some(BytesPerSec(2_000_000)), Moment::ZERO);
        let both = |flow: usize, want, now| pacer.take(if flow == 0 { DELIVERY } else { SYNC }, want, now);
        let sent = greedy(&both, 2, Moment::from_secs_f64(5.0), 10.0, 50);
        assert!((sent[1] as f64) < 2e7 * 1.01, "{sent:?}");
        assert!(sent[0] as f64 > 7.9e7, "{sent:?}");
    }

    fn jain(sent: &[u64]) -> f64 {
        let sum: f64 = sent.iter().map(|&b| b as f64).sum();
        let squares: f64 = sent.iter().map(|&b| (b as f64).powi(2)).sum();
        sum * sum / (sent.len() as f64 * squares)
    }

    #[test]
    fn equal_flows_get_equal_parts() {
        let start = Moment::from_secs_f64(1.0);
        for mbit in [50, 200] {
            let rate = BytesPerSec(mbit * 125_000);
            for late_us in [0, 130, 1100] {
                let bucket = TokenBucket::new(rate);
                let sent = greedy(&|_, want, now| bucket.take(want, now), 64, start, 10.0, late_us);
                assert!(jain(&sent) > 0.99, "{mbit} Mbit/s, bucket: Jain {}", jain(&sent));
                for share in [0.0, 0.5, 1.0] {
                    let pacer = SharedPacer::new(rate, Shares::between(share));
                    let take = |_: usize, want, now| pacer.take(DELIVERY, want, now);
                    let sent = greedy(&take, 64, start, 10.0, late_us);
                    assert!(jain(&sent) > 0.99, "{mbit} Mbit/s, share {share}: Jain {}", jain(&sent));
                    let pacer = SharedPacer::new(rate, Shares::between(share));
                    let take = |flow, want, now| pacer.take([DELIVERY, SYNC][flow % 2], want, now);
                    let sent = greedy(&take, 32, start, 10.0, late_us);
                    let (delivery, sync): (Vec<_>, Vec<_>) =
                        sent.chunks(2).map(|pair| (pair[0], pair[1])).unzip();
                    let total: u64 = sent.iter().sum();
                    assert!((total as f64 / (rate.0 as f64 * 10.0) - 1.0).abs() < 0.01, "{total}");
                    for (class, part, share) in [("delivery", delivery, share), ("sync", sync, 1.0 - share)] {
                        if share > 0.0 {
                            assert!(
                                jain(&part) > 0.9,
                                "{mbit} Mbit/s, {class} {share}: Jain {}",
                                jain(&part)
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn slots_of_senders_that_went_away_are_not_lost() {
        let bucket = TokenBucket::new(BytesPerSec(25_000_000));
        let start = Moment::from_secs_f64(1.0);
        while let Pace::Bytes(_) = bucket.take(1 << 20, start) {}
        for _ in 0..1000 {
            bucket.take(1 << 20, start);
        }
        let sent: u64 = greedy(&|_, want, now| bucket.take(want, now), 4, start, 5.0, 100).iter().sum();
        assert!(sent as f64 > 25e6 * 5.0 * 0.98, "{sent}");
    }

    #[test]
    fn shares_that_make_no_sense_are_tamed() {
        let shares = Shares::new([f32::NAN, 3.0, 1.0, -2.0]);
        assert_eq!([shares.of(0), shares.of(1), shares.of(2), shares.of(3)], [0.0, 0.75, 0.25, 0.0]);
        assert_eq!(Shares::between(f32::INFINITY).of(DELIVERY), 0.5);
        assert_eq!(shares.of(200), 0.0);
    }

    #[test]
    fn threads_together_stay_within_the_rate() {
        let bucket = TokenBucket::new(BytesPerSec(1_000_000));
        let now = Moment::from_secs_f64(3.0);
        let granted: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut sum = 0;
                        while let Pace::Bytes(bytes) = bucket.take(1000, now) {
                            sum += bytes;
                        }
                        sum
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((65_536..=65_536 + 2000).contains(&granted), "{granted}");
    }

    proptest! {
        /// Over any stretch, whatever is asked for and whenever, no more than rate, burst and one chunk.
        #[test]
        fn never_more_than_rate_and_burst(
            rate in 1_000u64..2_000_000_000,
            asks in proptest::collection::vec((1u64..200_000, 0u64..5_000_000), 1..400),
        ) {
            let bucket = TokenBucket::new(BytesPerSec(rate));
            let start = Moment::from_secs_f64(1e6);
            let (mut now, mut sent) = (start, 0u64);
            for (want, pause) in asks {
                match bucket.take(want, now) {
                    Pace::Bytes(bytes) => {
                        prop_assert!((1..=want.min(CHUNK_BYTES_MAX.0)).contains(&bytes));
                        sent += bytes;
                    }
                    Pace::Wait(wait) => prop_assert!(!wait.is_zero() && wait <= WAIT_MAX),
                }
                let burst = (rate as f64 * 0.004).max(65_536.0) + 65_536.0;
                let allowed = rate as f64 * now.since(start).as_secs_f64() + burst + 1.0;
                prop_assert!(sent as f64 <= allowed, "{sent} > {allowed}");
                now += Duration::from_nanos(pause);
            }
        }

        /// The classes together keep to the total, whatever their shares.
        #[test]
        fn classes_together_keep_to_the_total(
            rate in 100_000u64..500_000_000,
            delivery in 0.0f32..1.0,
            asks in proptest::collection::vec((0u8..4, 1u64..200_000, 0u64..5_000_000), 1..400),
        ) {
            let pacer = SharedPacer::new(BytesPerSec(rate), Shares::between(delivery));
            let start = Moment::from_secs_f64(1e6);
            let (mut now, mut sent) = (start, 0u64);
            for (class, want, pause) in asks {
                if let Pace::Bytes(bytes) = pacer.take(class, want, now) {
                    sent += bytes;
                }
                let burst = 3.0 * ((rate as f64 * 0.004).max(65_536.0) + 65_536.0);
                let allowed = rate as f64 * now.since(start).as_secs_f64() + burst + 1.0;
                prop_assert!(sent as f64 <= allowed, "{sent} > {allowed}");
                now += Duration::from_nanos(pause);
            }
        }
    }
}
