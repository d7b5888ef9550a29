//! How fast bytes may leave: one rate shared among classes with a minimum each, in the order of asking.
//!
//! Whoever must wait gets a [`Place`] in the line of its class: the bytes between two positions of an endless
//! stream. Time serves the stream at the rate, to the nanobyte, and whoever's bytes have been served may send
//! them, however late it wakes. So equal senders get equal parts, nobody's lateness costs another anything, and
//! a new rate moves all places at once. Between classes the stream is shared as by generalised processor sharing
//! (Parekh and Gallager 1993). No clock: `now` is passed in; no waiting: the answer says how long.

mod bucket;
mod lane;
mod line;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};

pub use self::bucket::TokenBucket;
use self::line::Line;
use crate::moment::Moment;

/// What a pacer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Send this many bytes (1 ..= wanted).
    Bytes(u64),
    /// Ask again after this long (never more than [`WAIT_MAX`], so that a new rate is seen soon).
    Wait(Duration),
}

/// How much a sender gets beside others of its class. Among equals all get alike.
///
/// Most downloads are small and most bytes are those of large ones: so large ones hardly notice when small ones go first,
/// and most customers wait much less (Harchol-Balter, Schroeder, Bansal and Agrawal, "Size-based scheduling to improve web
/// performance", 2003). Not strictly first: large ones always go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// [`SMALL_COUNTS`] times as much as a large one, as far as whole segments allow it.
    Small,
    /// What is left.
    Large,
}

impl Weight {
    /// Of a response from a file of that size. The whole file counts, so that nobody gets more by asking for parts.
    pub fn of(file: Bytes) -> Weight {
        if file.0 <= SMALL_BYTES_MAX { Weight::Small } else { Weight::Large }
    }
}

/// Where somebody who waits stands in the line of its class; at first nowhere.
///
/// It is good for one class of one pacer, and for one grant. Whoever stops waiting must give it back with
/// [`SharedPacer::leave`], or its bytes count as sent and hold up the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Position after the last byte.
    pub end: u64,
    /// Bytes that end there; 0 is nowhere.
    pub bytes: u32,
}

impl Place {
    /// Not in the line.
    pub const NOWHERE: Place = Place { end: 0, bytes: 0 };
}

/// A total rate shared among classes: each has a minimum share that nobody can take from it, and what a class
/// leaves unused the others borrow. Shared by threads; what is locked is locked for a few dozen instructions.
///
/// Senders that do not want all of it get ahead by one [`burst`] at most. What others were granted and come late for
/// is kept for them up to [`LATE_TIME`], so that in no stretch of time `t` more goes out than
/// `rate * (t + LATE_TIME)` (at the lowest rates, `rate * t` and two bursts).
#[derive(Debug)]
pub struct SharedPacer {
    /// One bit per class that is limited just now: all that an unlimited sender ever looks at.
    limited: AtomicU8,
    line: Mutex<Line>,
}

impl SharedPacer {
    /// A pacer with no limit at all.
    pub fn unlimited() -> SharedPacer {
        SharedPacer { limited: AtomicU8::new(0), line: Mutex::default() }
    }

    /// A pacer that lets `total` through and guarantees each class its share.
    pub fn new(total: BytesPerSec, shares: Shares) -> SharedPacer {
        let pacer = SharedPacer::unlimited();
        pacer.set(Some(total), shares, Moment::ZERO);
        pacer
    }

    /// Puts another total and other shares in force at once, for those who wait too; 0 lets nothing through.
    pub fn set(&self, total: Option<BytesPerSec>, shares: Shares, now: Moment) {
        let mut line = self.line();
        line.set(total.map(|total| total.0), shares, now);
        self.limited.store(line.limited(), Ordering::Relaxed);
    }

    /// Puts a ceiling on one class (none lifts it). Classes from [`CLASSES`] on count as class 0.
    pub fn set_ceiling(&self, class: u8, ceiling: Option<BytesPerSec>, now: Moment) {
        let mut line = self.line();
        line.set_ceiling(index(class), ceiling.map(|ceiling| ceiling.0), now);
        self.limited.store(line.limited(), Ordering::Relaxed);
    }

    /// Whether `class` is not limited just now.
    pub fn is_unlimited(&self, class: u8) -> bool {
        self.limited.load(Ordering::Relaxed) & (1 << index(class)) == 0
    }

    /// The total in force, or none when unlimited.
    pub fn total(&self) -> Option<BytesPerSec> {
        self.line().total().map(BytesPerSec)
    }

    /// Takes up to `want` bytes for `class` at `now`. Whoever is told to wait is given a `place`, and asks again
    /// with it.
    pub fn take(&self, class: u8, want: u64, place: &mut Place, now: Moment) -> Pace {
        self.take_weighed(class, want, Weight::Small, place, now)
    }

    /// As [`SharedPacer::take`], for a sender that gets more or less than others of its class.
    pub fn take_weighed(&self, class: u8, want: u64, weight: Weight, place: &mut Place, now: Moment) -> Pace {
        if want == 0 || (place.bytes == 0 && self.is_unlimited(class)) {
            return Pace::Bytes(want);
        }
        self.line().take(index(class), want, weight, place, now)
    }

    /// Gives back a place that is not waited for any more, and `unused` bytes of a grant.
    pub fn leave(&self, class: u8, place: Place, unused: u64, now: Moment) {
        if place.bytes > 0 || unused > 0 {
            self.line().leave(index(class), place, unused, now);
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing in there panics halfway; and a pacer that panics with another would strand all customers.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
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

/// How far ahead of `rate` senders may get after a moment in which nobody wanted to send.
///
/// It is [`BURST_TIME`]'s worth of the rate, and never less than [`BURST_BYTES_MIN`].
pub fn burst(rate: BytesPerSec) -> Bytes {
    let bytes = u128::from(rate.0) * BURST_TIME.as_nanos() / NANO;
    Bytes(u64::try_from(bytes).unwrap_or(u64::MAX).max(BURST_BYTES_MIN))
}

/// The most that may lie ready for senders that are late.
fn backlog(rate: u64) -> u64 {
    let bytes = u128::from(rate) * LATE_TIME.as_nanos() / NANO;
    u64::try_from(bytes).unwrap_or(u64::MAX).max(2 * BURST_BYTES_MIN)
}

/// Larger files are large: a package is small, an image is not.
pub const SMALL_BYTES_MAX: u64 = 16_000_000;
/// What a small one gets beside a large one, times.
pub const SMALL_COUNTS: u64 = 12;
/// Classes that are told apart (see `freshet_api::Class::number`).
pub const CLASSES: usize = 4;
/// The most bytes one take grants while there is a limit.
pub const CHUNK_BYTES_MAX: Bytes = Bytes(64 * 1024);
/// The longest that a pacer lets anyone wait before asking again.
pub const WAIT_MAX: Duration = Duration::from_millis(50);
/// The burst, in time.
pub const BURST_TIME: Duration = Duration::from_millis(20);
/// How late senders may come for what they were granted without the rate falling short: a thread may wait that long
/// for its processor. Longer stalls of the whole machine are not made up.
pub const LATE_TIME: Duration = Duration::from_millis(100);
/// The burst at the lowest rates: four full segments.
pub const BURST_BYTES_MIN: u64 = 4 * SEGMENT_BYTES;

fn index(class: u8) -> usize {
    if (class as usize) < CLASSES { class as usize } else { 0 }
}

/// One full segment; less would only add packets.
const SEGMENT_BYTES: u64 = 1448;
/// Nanobytes in a byte, and nanoseconds in a second: bytes per second are nanobytes per nanosecond.
const NANO: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DELIVERY: u8 = 1;
    const SYNC: u8 = 2;

    /// Senders of which each wants all it can get, and sends the moment it may, but for a late timer.
    struct Greedy<'a> {
        pacer: &'a SharedPacer,
        /// By sender.
        weight: Vec<Weight>,
        /// By sender.
        class: Vec<u8>,
        /// By sender, microseconds.
        late: Vec<u64>,
        /// By sender; kept from run to run.
        places: Vec<Place>,
        /// When, by whom, how much.
        sent: Vec<(Moment, usize, u64)>,
    }

    impl<'a> Greedy<'a> {
        fn new(pacer: &'a SharedPacer, class: Vec<u8>, late_us: u64) -> Self {
            let late = vec![late_us; class.len()];
            let places = vec![Place::NOWHERE; class.len()];
            let weight = vec![Weight::Small; class.len()];
            Greedy { pacer, weight, class, late, places, sent: Vec::new() }
        }

        /// Sends from `from` for `seconds`; bytes by sender.
        fn run(&mut self, from: Moment, seconds: f64) -> Vec<u64> {
            let until = from + Duration::from_secs_f64(seconds);
            let mut wakes: std::collections::BinaryHeap<_> =
                (0..self.class.len()).map(|sender| std::cmp::Reverse((from, sender))).collect();
            let mut sum = vec![0; self.class.len()];
            while let Some(std::cmp::Reverse((now, sender))) = wakes.pop() {
                if now >= until {
                    continue;
                }
                let (class, weight) = (self.class[sender], self.weight[sender]);
                let place = &mut self.places[sender];
                let next = match self.pacer.take_weighed(class, 1 << 20, weight, place, now) {
                    Pace::Bytes(bytes) => {
                        sum[sender] += bytes;
                        self.sent.push((now, sender, bytes));
                        now + Duration::from_micros(5)
                    }
                    Pace::Wait(wait) => {
                        assert!(!wait.is_zero() && wait <= WAIT_MAX, "{wait:?}");
                        now + wait + Duration::from_micros(self.late[sender])
                    }
                };
                wakes.push(std::cmp::Reverse((next, sender)));
            }
            sum
        }

        /// Everybody who waits goes away.
        fn leave(&mut self, at: Moment) {
            for (place, class) in self.places.iter_mut().zip(&self.class) {
                self.pacer.leave(*class, std::mem::take(place), 0, at);
            }
        }

        /// No stretch of time has more than its rate and what may lie ready.
        fn keeps_to(&self, rate: u64) {
            self.keeps_within(rate, backlog(rate));
        }

        /// No stretch of time has more than its rate and `burst`.
        fn keeps_within(&self, rate: u64, burst: u64) {
            let burst = burst as f64;
            // Least of `sent so far - rate * time` up to here: the worst beginning of a stretch.
            let (mut sum, mut least) = (0.0, f64::INFINITY);
            for &(at, _, bytes) in &self.sent {
                let allowed = rate as f64 * at.as_secs_f64();
                least = least.min(sum - allowed);
                sum += bytes as f64;
                assert!(sum - allowed - least <= burst + 1.0, "{} bytes over", sum - allowed - least - burst);
            }
        }
    }

    fn error(sent: &[u64], rate: u64, seconds: f64) -> f64 {
        sent.iter().sum::<u64>() as f64 / (rate as f64 * seconds) - 1.0
    }

    fn jain(sent: &[u64]) -> f64 {
        let sum: f64 = sent.iter().map(|&b| b as f64).sum();
        let squares: f64 = sent.iter().map(|&b| (b as f64).powi(2)).sum();
        sum * sum / (sent.len() as f64 * squares)
    }

    #[test]
    fn shares_of_no_limit_wait_for_one() {
        let pacer = SharedPacer::unlimited();
        let second = |seconds| Moment::ZERO + Duration::from_secs(seconds);
        let halves = Shares::new([0.0, 0.5, 0.5, 0.0]);
        for (seconds, rate) in [(1, None), (2, None), (3, Some(BytesPerSec(1_000_000))), (4, None), (5, None)]
        {
            pacer.set(rate, halves, second(seconds));
            assert_eq!(pacer.is_unlimited(DELIVERY), rate.is_none());
        }
        let mut place = Place::NOWHERE;
        let free = pacer.take(SYNC, 1 << 40, &mut place, second(6));
        assert_eq!(free, Pace::Bytes(1 << 40));
    }

    #[test]
    fn the_rate_is_kept_and_shared_equally_however_late_timers_are() {
        for mbit in [5u64, 20, 50, 200, 1000] {
            for (flows, late_us) in
                [(1, 0), (1, 2500), (1, 60_000), (8, 1100), (8, 10_000), (8, 40_000), (64, 0), (64, 5000)]
            {
                let rate = mbit * 125_000;
                let pacer = SharedPacer::new(BytesPerSec(rate), Shares::NONE);
                let mut senders = Greedy::new(&pacer, vec![DELIVERY; flows], late_us);
                let start = Moment::from_secs_f64(100.0);
                senders.run(start, 1.0);
                let sent = senders.run(start + Duration::from_secs(1), 10.0);
                senders.keeps_to(rate);
                let error = error(&sent, rate, 10.0);
                let case = format!("{mbit} Mbit/s, {flows} flows, {late_us} us late");
                // At the end somebody may be late.
                let open = 0.003 + late_us as f64 / 10e6;
                assert!(error.abs() <= open, "{case}: {error:+.4}");
                // When all come later than a round takes, the first one finds what nobody waits for.
                let round_us = flows as f64 * (65_536.0 / rate as f64 * 1e6).min(2500.0);
                let even = (late_us as f64) < round_us / 2.0 || flows == 1;
                assert!(!even || jain(&sent) > 0.995, "{case}: Jain {}", jain(&sent));
            }
        }
    }

    #[test]
    fn small_ones_go_first_and_large_ones_go_on() {
        for mbit in [20u64, 50, 100, 200, 1000] {
            for (small, large, late_us) in [(1, 1, 0), (4, 4, 0), (2, 20, 100), (8, 3, 1100)] {
                let rate = mbit * 125_000;
                let pacer = SharedPacer::new(BytesPerSec(rate), Shares::NONE);
                let mut senders = Greedy::new(&pacer, vec![DELIVERY; small + large], late_us);
                senders.weight[small..].fill(Weight::Large);
                let start = Moment::from_secs_f64(100.0);
                senders.run(start, 1.0);
                let sent = senders.run(start + Duration::from_secs(1), 10.0);
                senders.keeps_to(rate);
                let case = format!("{mbit} Mbit/s, {small} small, {large} large, {late_us} us late");
                let error = error(&sent, rate, 10.0);
                assert!(error.abs() <= 0.003 + late_us as f64 / 10e6, "{case}: {error:+.4}");
                let of = |sent: &[u64]| sent.iter().sum::<u64>() as f64 / sent.len() as f64;
                let ratio = of(&sent[..small]) / of(&sent[small..]);
                assert!((8.0..20.0).contains(&ratio), "{case}: {ratio}");
                assert!(jain(&sent[..small]) > 0.99 && jain(&sent[small..]) > 0.99, "{case}: {sent:?}");
                // Once no small ones come, it is as if there had never been any.
                senders.leave(start + Duration::from_secs(11));
                let mut alone = Greedy::new(&pacer, vec![DELIVERY; large], late_us);
                alone.weight.fill(Weight::Large);
                let sent = alone.run(start + Duration::from_secs(12), 5.0);
                assert!((sent.iter().sum::<u64>() as f64 / (rate as f64 * 5.0) - 1.0).abs() < 0.01, "{case}");
            }
        }
    }

    #[test]
    fn a_file_is_small_or_large_as_a_whole() {
        assert_eq!(Weight::of(Bytes(SMALL_BYTES_MAX)), Weight::Small);
        assert_eq!(Weight::of(Bytes(SMALL_BYTES_MAX + 1)), Weight::Large);
    }

    #[test]
    fn a_sender_whose_timers_are_late_loses_only_its_own_time() {
        let rate = 6_250_000;
        let pacer = SharedPacer::new(BytesPerSec(rate), Shares::NONE);
        let mut senders = Greedy::new(&pacer, vec![DELIVERY; 8], 100);
        senders.late[0] = 10_000;
        let sent = senders.run(Moment::from_secs_f64(5.0), 10.0);
        assert!(error(&sent, rate, 10.0).abs() < 0.005, "{sent:?}");
        assert!(jain(&sent[1..]) > 0.999, "{sent:?}");
        assert!(sent[0] as f64 > 0.5 * sent[1] as f64, "{sent:?}");
    }

    #[test]
    fn whoever_is_on_time_never_gets_more_than_a_burst() {
        for flows in [1, 8, 64] {
            let rate = 12_500_000;
            let pacer = SharedPacer::new(BytesPerSec(rate), Shares::NONE);
            let mut senders = Greedy::new(&pacer, vec![DELIVERY; flows], 0);
            senders.run(Moment::from_secs_f64(5.0), 2.0);
            senders.keeps_within(rate, burst(BytesPerSec(rate)).0);
            senders.leave(Moment::from_secs_f64(7.0));
            senders.sent.clear();
            senders.run(Moment::from_secs_f64(60.0), 2.0);
            senders.keeps_within(rate, burst(BytesPerSec(rate)).0);
        }
    }

    #[test]
    fn a_stall_of_everybody_is_made_up_to_a_tenth_of_a_second_and_no_more() {
        let rate = 12_500_000;
        let pacer = SharedPacer::new(BytesPerSec(rate), Shares::NONE);
        let mut senders = Greedy::new(&pacer, vec![DELIVERY; 16], 500);
        let start = Moment::from_secs_f64(5.0);
        senders.run(start, 1.0);
        senders.run(start + Duration::from_secs(3), 1.0);
        senders.keeps_to(rate);
    }

    #[test]
    fn nothing_is_granted_at_rate_zero_until_there_is_a_rate() {
        let pacer = SharedPacer::new(BytesPerSec(0), Shares::NONE);
        let (mut place, mut now) = (Place::NOWHERE, Moment::from_secs_f64(1e3));
        for _ in 0..100 {
            // The burst of rate 0 is the least there is.
            match pacer.take(DELIVERY, 4 * SEGMENT_BYTES, &mut place, now) {
                Pace::Bytes(bytes) => assert!(bytes <= BURST_BYTES_MIN),
                Pace::Wait(wait) => now += wait,
            }
        }
        assert_eq!(pacer.take(DELIVERY, 10, &mut place, now), Pace::Wait(WAIT_MAX));
        pacer.set(Some(BytesPerSec(1_000_000)), Shares::NONE, now);
        assert!(matches!(pacer.take(DELIVERY, 10, &mut place, now + WAIT_MAX), Pace::Bytes(1..=10)));
    }

    #[test]
    fn a_chunk_is_whole_segments_small_at_small_rates_and_at_most_64_kib() {
        let first = |rate| {
            let pacer = SharedPacer::new(BytesPerSec(rate), Shares::NONE);
            pacer.take(DELIVERY, 1 << 30, &mut Place::default(), Moment::from_secs_f64(9.0))
        };
        assert_eq!(first(125_000_000), Pace::Bytes(45 * 1448));
        assert_eq!(first(2_500_000), Pace::Bytes(4 * 1448));
        assert_eq!(first(10), Pace::Bytes(1448));
        let unlimited = SharedPacer::unlimited();
        assert_eq!(unlimited.take(0, 1 << 30, &mut Place::default(), Moment::ZERO), Pace::Bytes(1 << 30));
    }

    #[test]
    fn a_new_rate_holds_at_once_for_those_who_wait_too() {
        let pacer = SharedPacer::new(BytesPerSec(100_000), Shares::NONE);
        let start = Moment::from_secs_f64(50.0);
        let mut places = [Place::NOWHERE; 64];
        for place in &mut places {
            pacer.take(DELIVERY, 1 << 20, place, start);
        }
        let wait = |places: &mut [Place; 64], now| pacer.take(DELIVERY, 1 << 20, &mut places[40], now);
        assert_eq!(wait(&mut places, start), Pace::Wait(WAIT_MAX), "36 places of 14 ms are ahead");
        pacer.set(Some(BytesPerSec(10_000_000)), Shares::NONE, start);
        let Pace::Wait(soon) = wait(&mut places, start) else { panic!("not yet") };
        assert!(soon < Duration::from_millis(6), "{soon:?}");
        assert!(matches!(wait(&mut places, start + soon), Pace::Bytes(_)));
        pacer.set(Some(BytesPerSec(100_000)), Shares::NONE, start + soon);
        assert_eq!(pacer.take(DELIVERY, 1 << 20, &mut places[63], start + soon), Pace::Wait(WAIT_MAX));
        pacer.set(None, Shares::NONE, start + soon);
        assert_eq!(pacer.take(DELIVERY, 1 << 20, &mut places[63], start + soon), Pace::Bytes(1 << 20));
        assert!(pacer.is_unlimited(DELIVERY));
    }

    #[test]
    fn rates_follow_one_another_within_a_tenth_of_a_second() {
        let pacer = SharedPacer::new(BytesPerSec(6_250_000), Shares::NONE);
        let mut senders = Greedy::new(&pacer, vec![DELIVERY; 8], 1000);
        let mut now = Moment::from_secs_f64(50.0);
        for mbit in [50u64, 10, 1000, 5, 100, 10, 200, 1] {
            pacer.set(Some(BytesPerSec(mbit * 125_000)), Shares::NONE, now);
            senders.run(now, 0.1);
            let sent = senders.run(now + Duration::from_millis(100), 0.2);
            let error = error(&sent, mbit * 125_000, 0.2);
            assert!(error.abs() < 0.06, "{mbit} Mbit/s: {error:+.3}");
            now += Duration::from_millis(300);
        }
    }

    #[test]
    fn an_idle_class_lends_and_a_busy_one_keeps_its_share() {
        let rate = 25_000_000;
        let start = Moment::from_secs_f64(10.0);
        for late_us in [100, 1000] {
            let pacer = SharedPacer::new(BytesPerSec(rate), Shares::between(0.7));
            let mut alone = Greedy::new(&pacer, vec![SYNC; 4], late_us);
            let sent = alone.run(start, 10.0);
            alone.leave(start + Duration::from_secs(10));
            assert!(error(&sent, rate, 10.0).abs() < 0.005, "alone: {sent:?}");
            let mut senders = Greedy::new(&pacer, vec![DELIVERY, SYNC, SYNC, SYNC, SYNC], late_us);
            let sent = senders.run(start + Duration::from_secs(10), 10.0);
            let delivery = sent[0] as f64 / (rate as f64 * 10.0);
            assert!((0.69..0.715).contains(&delivery), "delivery, {late_us} us late: {delivery}");
            assert!(error(&sent, rate, 10.0).abs() < 0.005, "{late_us} us late: {sent:?}");
            senders.keeps_to(rate);
        }
    }

    #[test]
    fn a_single_sender_that_is_often_late_gets_its_class_the_share_all_the_same() {
        let start = Moment::from_secs_f64(10.0);
        for mbit in [4u64, 20, 40] {
            for (share, late_us, least) in
                [(0.5, 5_000, 0.47), (0.5, 8_000, 0.45), (0.8, 3_000, 0.76), (1.0, 5_000, 0.7)]
            {
                let rate = mbit * 125_000;
                let pacer = SharedPacer::new(BytesPerSec(rate), Shares::between(share));
                let mut senders = Greedy::new(&pacer, vec![SYNC; 17], 1_000);
                (senders.class[0], senders.late[0]) = (DELIVERY, late_us);
                let sent = senders.run(start, 10.0);
                let delivery = sent[0] as f64 / (rate as f64 * 10.0);
                let case = format!("{mbit} Mbit/s, share {share}, {late_us} us late: {delivery}");
                assert!(delivery >= least && delivery <= f64::from(share) + 0.02, "{case}");
                assert!(error(&sent, rate, 10.0).abs() < 0.01, "{case}: {sent:?}");
                senders.keeps_to(rate);
            }
        }
    }

    #[test]
    fn a_ceiling_binds_its_class_alone() {
        for total in [Some(BytesPerSec(10_000_000)), None] {
            let pacer = SharedPacer::unlimited();
            pacer.set(total, Shares::NONE, Moment::ZERO);
            pacer.set_ceiling(SYNC, Some(BytesPerSec(2_000_000)), Moment::ZERO);
            assert_eq!(pacer.is_unlimited(DELIVERY), total.is_none());
            let classes = if total.is_some() { vec![DELIVERY, SYNC] } else { vec![SYNC] };
            let sent = Greedy::new(&pacer, classes.clone(), 50).run(Moment::from_secs_f64(5.0), 10.0);
            let sync = sent[classes.iter().position(|&class| class == SYNC).unwrap()];
            assert!((1.4e7..2.01e7).contains(&(sync as f64)), "sync under {total:?}: {sync}");
            if let Some(total) = total {
                assert!(error(&sent, total.0, 10.0).abs() < 0.005, "{sent:?}");
            }
        }
    }

    #[test]
    fn equal_flows_of_two_classes_get_equal_parts_of_their_share() {
        let start = Moment::from_secs_f64(1.0);
        for (mbit, share, late_us) in [(50, 0.5, 0), (50, 0.2, 1100), (200, 0.8, 130), (200, 0.5, 1100)] {
            let rate = mbit * 125_000;
            let pacer = SharedPacer::new(BytesPerSec(rate), Shares::between(share));
            let classes = (0..32).map(|flow| [DELIVERY, SYNC][flow % 2]).collect();
            let mut senders = Greedy::new(&pacer, classes, late_us);
            let sent = senders.run(start, 10.0);
            senders.keeps_to(rate);
            assert!(error(&sent, rate, 10.0).abs() < 0.01, "{mbit} Mbit/s, {share}, {late_us} us: {sent:?}");
            for (class, part) in [(0, share), (1, 1.0 - share)] {
                let of: Vec<u64> = sent.iter().skip(class).step_by(2).copied().collect();
                assert!(jain(&of) > 0.99, "{mbit} Mbit/s, {share}, {late_us} us: Jain {}", jain(&of));
                let got = of.iter().sum::<u64>() as f64 / (rate as f64 * 10.0);
                assert!((got - f64::from(part)).abs() < 0.01, "class {class}: {got} of {part}");
            }
        }
    }

    #[test]
    fn places_of_senders_that_went_away_are_not_lost() {
        let rate = 25_000_000;
        let pacer = SharedPacer::new(BytesPerSec(rate), Shares::NONE);
        let start = Moment::from_secs_f64(1.0);
        let mut gone = vec![Place::NOWHERE; 1000];
        for place in &mut gone {
            pacer.take(DELIVERY, 1 << 20, place, start);
        }
        for place in gone {
            pacer.leave(DELIVERY, place, 0, start);
        }
        let mut senders = Greedy::new(&pacer, vec![DELIVERY; 4], 100);
        let sent = senders.run(start, 5.0);
        assert!(error(&sent, rate, 5.0).abs() < 0.01, "{sent:?}");
        senders.keeps_to(rate);
    }

    #[test]
    fn what_was_granted_and_not_sent_can_be_granted_again() {
        let pacer = SharedPacer::new(BytesPerSec(1_000_000), Shares::NONE);
        let now = Moment::from_secs_f64(1.0);
        let mut sum = 0;
        let mut place = Place::NOWHERE;
        while let Pace::Bytes(bytes) = pacer.take(DELIVERY, 1 << 20, &mut place, now) {
            sum += bytes;
        }
        pacer.leave(DELIVERY, place, 5000, now);
        let mut place = Place::NOWHERE;
        let mut again = 0;
        while let Pace::Bytes(bytes) = pacer.take(DELIVERY, 1000, &mut place, now) {
            again += bytes;
        }
        assert!((5000..=5000 + 1448).contains(&again), "{again}");
        assert!(sum + again <= burst(BytesPerSec(1_000_000)).0 + 5000, "{sum} + {again}");
    }

    #[test]
    fn shares_that_make_no_sense_are_tamed() {
        let shares = Shares::new([f32::NAN, 3.0, 1.0, -2.0]);
        assert_eq!([shares.of(0), shares.of(1), shares.of(2), shares.of(3)], [0.0, 0.75, 0.25, 0.0]);
        assert_eq!(Shares::between(f32::INFINITY).of(DELIVERY), 0.5);
        assert_eq!(shares.of(200), 0.0);
    }

    #[test]
    fn threads_together_stay_within_the_burst() {
        let pacer = SharedPacer::new(BytesPerSec(1_000_000), Shares::NONE);
        let now = Moment::from_secs_f64(3.0);
        let granted: u64 = std::thread::scope(|scope| {
            let take = || {
                let (mut sum, mut place) = (0, Place::NOWHERE);
                while let Pace::Bytes(bytes) = pacer.take(DELIVERY, 1000, &mut place, now) {
                    sum += bytes;
                }
                sum
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((17_000..=20_000).contains(&granted), "{granted}");
    }

    /// What a sender does next.
    #[derive(Clone, Debug)]
    enum Act {
        Take { sender: usize, want: u64 },
        Leave { sender: usize },
        Pass { nanos: u64 },
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            6 => (0..SENDERS, 1u64..200_000).prop_map(|(sender, want)| Act::Take { sender, want }),
            1 => (0..SENDERS).prop_map(|sender| Act::Leave { sender }),
            3 => (0u64..5_000_000).prop_map(|nanos| Act::Pass { nanos }),
            1 => (0u64..200_000_000).prop_map(|nanos| Act::Pass { nanos }),
        ];
        proptest::collection::vec(act, 1..500)
    }

    const SENDERS: usize = 12;

    proptest! {
        /// Whoever asks, waits, comes late or goes away, and whatever the shares: in no stretch of time is more
        /// granted than its rate and what may lie ready.
        #[test]
        fn never_more_than_rate_and_backlog(
            rate in 1_000u64..2_000_000_000,
            delivery in 0.0f32..1.0,
            acts in acts(),
        ) {
            let pacer = SharedPacer::new(BytesPerSec(rate), Shares::between(delivery));
            let mut senders = Greedy::new(&pacer, (0..SENDERS as u8).map(|sender| sender % 4).collect(), 0);
            let mut places = [Place::NOWHERE; SENDERS];
            let mut now = Moment::from_secs_f64(1e6);
            for act in acts {
                match act {
                    Act::Take { sender, want } => {
                        let class = senders.class[sender];
                        if let Pace::Bytes(bytes) = pacer.take(class, want, &mut places[sender], now) {
                            prop_assert!((1..=want.min(CHUNK_BYTES_MAX.0)).contains(&bytes));
                            prop_assert_eq!(places[sender], Place::NOWHERE);
                            senders.sent.push((now, sender, bytes));
                        }
                    }
                    Act::Leave { sender } => {
                        pacer.leave(senders.class[sender], std::mem::take(&mut places[sender]), 0, now);
                    }
                    Act::Pass { nanos } => now += Duration::from_nanos(nanos),
                }
            }
            senders.keeps_to(rate);
        }

        /// While somebody wants to send, and is no later than the burst allows, nothing of the rate is lost: also
        /// not to places of senders that go away.
        #[test]
        fn as_long_as_somebody_wants_to_send_the_rate_is_used(
            mbit in 1u64..1000,
            flows in 1usize..20,
            late_us in 0u64..30_000,
            leavers in 0usize..50,
        ) {
            let rate = mbit * 125_000;
            let pacer = SharedPacer::new(BytesPerSec(rate), Shares::between(0.5));
            let classes = (0..flows).map(|flow| [DELIVERY, SYNC][flow % 2]).collect();
            let start = Moment::from_secs_f64(7.0);
            let mut gone = vec![Place::NOWHERE; leavers];
            for place in &mut gone {
                pacer.take(DELIVERY, 1 << 20, place, start);
            }
            for place in gone {
                pacer.leave(DELIVERY, place, 0, start);
            }
            let mut senders = Greedy::new(&pacer, classes, late_us);
            let sent = senders.run(start, 2.0);
            senders.keeps_to(rate);
            // At the end each sender may hold a place that was served in part, or be late.
            let short = rate as f64 * 2.0 - sent.iter().sum::<u64>() as f64;
            let open = backlog(rate) + flows as u64 * CHUNK_BYTES_MAX.0.min(rate / 300 + 1448);
            prop_assert!(short <= open as f64, "{short} bytes short, {open} may be open");
        }

        /// Equal senders are never farther apart than the chunks that each may have open.
        #[test]
        fn equal_senders_stay_together(mbit in 1u64..1000, flows in 2usize..40, millis in 200u64..3000) {
            let rate = mbit * 125_000;
            let pacer = SharedPacer::new(BytesPerSec(rate), Shares::NONE);
            let mut senders = Greedy::new(&pacer, vec![DELIVERY; flows], 300);
            let sent = senders.run(Moment::from_secs_f64(7.0), millis as f64 / 1000.0);
            let chunk = CHUNK_BYTES_MAX.0.min(rate / 400).max(SEGMENT_BYTES);
            let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
            // The burst at the beginning goes to whoever asks first.
            let apart = burst(BytesPerSec(rate)).0 + 3 * chunk;
            prop_assert!(most - least <= apart, "{least} and {most}, {apart} allowed");
        }
    }
}
