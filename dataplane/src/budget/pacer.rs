//! The rate in force, kept in the serving path: the engine asks before each chunk, sync before each read.
//!
//! The owner's figure counts bits on the wire, the engine counts payload; what lies between is measured
//! ([`WireShare`](super::headers::WireShare)). The decision is `freshet_policy::pacing`'s; here is only the clock.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use freshet_api::{Bytes, BytesPerSec, Class};
use freshet_engine::{Grant, Pacer, Place, Want};
use freshet_policy::Moment;
use freshet_policy::pacing::{self, Pace, SharedPacer, Shares, TokenBucket, Weight};

use super::headers::WireShare;
use crate::sync::ReadPacer;

/// The pacers of one volunteer. Shared by all rings and by sync; never blocks where bytes are taken.
#[derive(Debug)]
pub struct DonationPacer {
    origin: Instant,
    sending: SharedPacer,
    receiving: TokenBucket,
    /// Since when nothing at all may be sent, in nanoseconds after `origin`; [`SENDING`] while something may.
    stopped_since: AtomicU64,
    /// The same of sync alone.
    sync_stopped_since: AtomicU64,
    /// What is in force; changing it disturbs those who wait for their turn, so it is changed only when it must be.
    rates: Mutex<InForce>,
    /// Delivery's share that control asks for, thousandths; [`UNTOLD`] for none.
    told: AtomicU32,
    /// Whether small downloads go before large ones.
    small_first: AtomicBool,
    /// Payload that was granted to what is sent, ever.
    granted: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct InForce {
    rates: Rates,
    /// What the owner guarantees each class, whatever control asks for.
    minimum: Shares,
    /// Bytes on the wire for a byte of payload, of what is sent; what is received comes in full segments.
    wire_share: f64,
    wire_share_applied: f64,
}

/// Rates on the wire and what is guaranteed of them; none for no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of what is sent.
    pub sending: Option<BytesPerSec>,
    /// Of what sync reads.
    pub receiving: Option<BytesPerSec>,
    /// What each class keeps of what is sent.
    pub shares: Shares,
}

impl Rates {
    /// No limit.
    pub const NONE: Rates = Rates { sending: None, receiving: None, shares: Shares::NONE };
}

impl DonationPacer {
    /// At these rates, in full segments of IPv4.
    pub fn new(rates: Rates) -> Self {
        Self::with_wire_share(WireShare::FULL_SEGMENTS, rates)
    }

    /// At these rates, when payload comes to that much on the wire.
    pub fn with_wire_share(wire_share: WireShare, rates: Rates) -> Self {
        let pacer = Self {
            origin: Instant::now(),
            sending: SharedPacer::unlimited(),
            receiving: TokenBucket::unlimited(),
            stopped_since: AtomicU64::new(SENDING),
            sync_stopped_since: AtomicU64::new(SENDING),
            told: AtomicU32::new(UNTOLD),
            small_first: AtomicBool::new(false),
            rates: Mutex::new(InForce {
                rates: Rates::NONE,
                minimum: Shares::NONE,
                wire_share: wire_share.ratio(),
                wire_share_applied: wire_share.ratio(),
            }),
            granted: AtomicU64::new(0),
        };
        pacer.set(rates);
        pacer
    }

    /// Puts other rates in force, from the next chunk on. A rate that grows by less than a hundredth stays.
    pub fn set(&self, rates: Rates) {
        let now = self.moment(Instant::now());
        let mut guard = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let InForce { rates: in_force, minimum, wire_share, wire_share_applied } = &mut *guard;
        *minimum = rates.shares;
        let rates = Rates { shares: within(*minimum, self.told.load(Ordering::Relaxed)), ..rates };
        let reshaped = (*wire_share / *wire_share_applied - 1.0).abs() > WIRE_SHARE_MATTERS;
        if rates.shares != in_force.shares || reshaped || matters(in_force.sending, rates.sending) {
            let sending = rates.sending.map(|wire| payload(wire, *wire_share));
            self.sending.set(sending, rates.shares, now);
            (in_force.sending, in_force.shares) = (rates.sending, rates.shares);
            *wire_share_applied = *wire_share;
        }
        if rates.sending != Some(BytesPerSec(0)) {
            self.stopped_since.store(SENDING, Ordering::Relaxed);
        } else if self.stopped_since.load(Ordering::Relaxed) == SENDING {
            self.stopped_since.store(now.0, Ordering::Relaxed);
        }
        if matters(in_force.receiving, rates.receiving) {
            self.receiving.set_rate(rates.receiving.map(full_segments), now);
            in_force.receiving = rates.receiving;
        }
    }

    /// Payload that was granted to what is sent, since the start, less what was given back.
    pub fn granted(&self) -> u64 {
        self.granted.load(Ordering::Relaxed)
    }

    /// Says what a byte of payload comes to on the wire; it counts from the next [`DonationPacer::set`] on.
    pub fn set_wire_share(&self, wire_share: f64) {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).wire_share = wire_share;
    }

    /// Shares what is sent as control asks for, within the owner's minimum: `permille` for delivery and the rest for sync
    /// while both want to send. A change of less than two hundredths is not worth disturbing those who wait.
    pub fn share(&self, permille: Option<u16>) {
        let told = permille.map_or(UNTOLD, |permille| u32::from(permille.min(1_000)));
        let was = self.told.load(Ordering::Relaxed);
        if told == was || (told != UNTOLD && was != UNTOLD && told.abs_diff(was) < SHARE_MATTERS) {
            return;
        }
        self.told.store(told, Ordering::Relaxed);
        let rates = {
            let in_force = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            Rates { shares: in_force.minimum, ..in_force.rates }
        };
        self.set(rates);
    }

    /// Says whether small downloads go before large ones within delivery's share; it counts from the next chunk on.
    pub fn put_small_first(&self, small_first: bool) {
        self.small_first.store(small_first, Ordering::Relaxed);
    }

    fn weight(&self, class: u8, want: Want) -> Weight {
        let weighs = class == DELIVERY && self.small_first.load(Ordering::Relaxed);
        if weighs { Weight::of(Bytes(want.file_bytes)) } else { Weight::Small }
    }

    /// Keeps sync from sending, so that what is left is for the customers to whom it is promised, or lets it go on.
    pub fn stop_sync(&self, stop: bool) {
        let now = self.moment(Instant::now());
        let since = if stop { now.0 } else { SENDING };
        let change = |was| (stop != (was != SENDING)).then_some(since);
        let changed = self.sync_stopped_since.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        if changed.is_ok() {
            self.sending.set_ceiling(SYNC, stop.then_some(BytesPerSec(0)), now);
        }
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment::ZERO + now.saturating_duration_since(self.origin)
    }
}

impl Pacer for DonationPacer {
    fn unlimited(&self, class: u8) -> bool {
        self.sending.is_unlimited(class)
    }

    fn take(&self, class: u8, want: Want, place: &mut Place, now: Instant) -> Grant {
        let mut own = pacing::Place { end: place.end, bytes: place.bytes };
        let weight = self.weight(class, want);
        let pace = self.sending.take_weighed(class, want.bytes, weight, &mut own, self.moment(now));
        *place = Place { end: own.end, bytes: own.bytes };
        match pace {
            Pace::Bytes(bytes) => {
                self.granted.fetch_add(bytes, Ordering::Relaxed);
                Grant::Bytes(bytes)
            }
            Pace::Wait(wait) => Grant::Wait(wait.max(WAIT_MIN)),
        }
    }

    fn ended(&self, class: u8) -> bool {
        let ended = |since: &AtomicU64| {
            let since = since.load(Ordering::Relaxed);
            since != SENDING && self.moment(Instant::now()).since(Moment(since)) >= STOPPED_ENDS
        };
        ended(&self.stopped_since) || class == SYNC && ended(&self.sync_stopped_since)
    }

    fn leave(&self, class: u8, place: Place, unused: u64) {
        let place = pacing::Place { end: place.end, bytes: place.bytes };
        self.granted.fetch_sub(unused, Ordering::Relaxed);
        self.sending.leave(class, place, unused, self.moment(Instant::now()));
    }
}

impl ReadPacer for DonationPacer {
    fn after_read(&self, bytes: u64) -> Duration {
        let now = self.moment(Instant::now());
        self.receiving.charge(bytes, now);
        self.receiving.owed(now)
    }

    fn stopped(&self) -> Duration {
        match self.receiving.rate() {
            Some(BytesPerSec(0)) => STOPPED_ASKS_AGAIN,
            _ => Duration::ZERO,
        }
    }
}

/// The shares that control asks for, `told`, as far as the owner's `minimum` lets them be.
fn within(minimum: Shares, told: u32) -> Shares {
    if told == UNTOLD {
        return minimum;
    }
    let (least, most) = (minimum.of(Class::Delivery.number()), 1.0 - minimum.of(SYNC));
    Shares::between((told as f32 / 1e3).clamp(least, most.max(least)))
}

/// Whether going from one rate to the other is worth disturbing those who wait: always when it falls.
fn matters(from: Option<BytesPerSec>, to: Option<BytesPerSec>) -> bool {
    match (from, to) {
        (Some(from), Some(to)) => to < from || to.0 - from.0 > from.0 / 100,
        (from, to) => from != to,
    }
}

/// Payload that fits into a rate on the wire, in full segments.
pub(crate) fn full_segments(wire: BytesPerSec) -> BytesPerSec {
    payload(wire, WireShare::FULL_SEGMENTS.ratio())
}

fn payload(wire: BytesPerSec, wire_share: f64) -> BytesPerSec {
    BytesPerSec((wire.0 as f64 / wire_share) as u64)
}

/// Less of a change of what payload comes to on the wire disturbs nobody.
const WIRE_SHARE_MATTERS: f64 = 0.001;
/// No timer is finer than this.
const WAIT_MIN: Duration = Duration::from_micros(50);
const DELIVERY: u8 = Class::Delivery.number();
const SYNC: u8 = Class::Sync.number();
const SENDING: u64 = u64::MAX;
const UNTOLD: u32 = u32::MAX;
/// Thousandths.
const SHARE_MATTERS: u32 = 20;
/// When nothing may be sent for so long, those who wait are cut: longer than an owner's burst, shorter than most clients
/// wait.
const STOPPED_ENDS: Duration = Duration::from_secs(20);
const STOPPED_ASKS_AGAIN: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    fn want(bytes: u64) -> Want {
        Want { bytes, file_bytes: bytes }
    }

    fn sending(rate: Option<u64>) -> Rates {
        Rates { sending: rate.map(BytesPerSec), ..Rates::NONE }
    }

    fn receiving(rate: u64) -> Rates {
        Rates { receiving: Some(BytesPerSec(rate)), ..Rates::NONE }
    }

    /// Payload that greedy senders get in `seconds` of simulated time.
    fn sent(pacer: &DonationPacer, seconds: u64) -> u64 {
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let (mut now, mut sent, mut place) = (start, 0, Place::default());
        while now < end {
            match pacer.take(Class::Delivery.number(), want(1 << 20), &mut place, now) {
                Grant::Bytes(bytes) => sent += bytes,
                Grant::Wait(wait) => now += wait,
            }
        }
        sent
    }

    #[test]
    fn the_wire_keeps_to_what_is_donated() {
        let pacer = DonationPacer::new(sending(Some(10_000_000)));
        let wire = sent(&pacer, 10) as f64 * 1_514.0 / 1_448.0;
        assert!((wire / 100e6 - 1.0).abs() < 0.01, "{wire} bytes on the wire in 10 s at 10 MB/s");
    }

    #[test]
    fn longer_headers_leave_less_for_payload() {
        let pacer = DonationPacer::new(sending(Some(10_000_000)));
        pacer.set_wire_share(2.0);
        pacer.set(sending(Some(10_000_000)));
        let payload = sent(&pacer, 10) as f64;
        assert!((payload / 50e6 - 1.0).abs() < 0.01, "{payload} bytes in 10 s at 10 MB/s");
        assert!((pacer.granted() as f64 / payload - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_lifted_limit_is_none() {
        let pacer = DonationPacer::new(sending(Some(1_000_000)));
        assert!(!pacer.unlimited(Class::Delivery.number()));
        pacer.set(receiving(50_000));
        assert!(pacer.unlimited(Class::Delivery.number()));
        let free = pacer.take(1, want(1 << 30), &mut Place::default(), Instant::now());
        assert_eq!(free, Grant::Bytes(1 << 30));
    }

    #[test]
    fn a_rate_that_falls_is_in_force_and_one_that_hardly_grows_is_not() {
        let pacer = DonationPacer::new(sending(Some(1_000_000)));
        let of = |pacer: &DonationPacer| pacer.rates.lock().unwrap().rates.sending.unwrap().0;
        for (asked, in_force) in
            [(1_005_000, 1_000_000), (999_999, 999_999), (1_050_000, 1_050_000), (0, 0), (1, 1)]
        {
            pacer.set(sending(Some(asked)));
            assert_eq!(of(&pacer), in_force, "{asked}");
        }
    }

    #[test]
    fn small_files_go_first_while_control_wants_it_and_only_to_customers() {
        let pacer = DonationPacer::new(sending(Some(10_000_000)));
        let mut from = Instant::now();
        let mut ratio = |pacer: &DonationPacer, class: Class| {
            let (begun, mut places, mut sent) = (from, [Place::default(); 2], [0u64; 2]);
            from += Duration::from_secs(3);
            for step in 0..10_000 {
                let now = begun + Duration::from_micros(step * 200);
                for (which, file_bytes) in [1_000_000, 4_000_000_000].into_iter().enumerate() {
                    let want = Want { bytes: 1 << 20, file_bytes };
                    while let Grant::Bytes(bytes) = pacer.take(class.number(), want, &mut places[which], now)
                    {
                        sent[which] += bytes;
                    }
                }
            }
            for place in places {
                pacer.leave(class.number(), place, 0);
            }
            sent[0] as f64 / sent[1] as f64
        };
        assert!((0.9..1.1).contains(&ratio(&pacer, Class::Delivery)));
        pacer.put_small_first(true);
        let first = ratio(&pacer, Class::Delivery);
        assert!((6.0..25.0).contains(&first), "{first}");
        assert!((0.9..1.1).contains(&ratio(&pacer, Class::Sync)));
        pacer.put_small_first(false);
        assert!((0.9..1.1).contains(&ratio(&pacer, Class::Delivery)));
    }

    #[test]
    fn both_that_want_to_send_get_what_control_asks_within_the_owners_minimum() {
        let pacer = DonationPacer::new(sending(Some(10_000_000)));
        let mut from = Instant::now();
        let mut delivery_part = |pacer: &DonationPacer| {
            let (begun, mut places) = (from, [Place::default(); 2]);
            from += Duration::from_secs(3);
            let mut sent = [0u64; 2];
            for tenth in 0..10_000 {
                let now = begun + Duration::from_micros(tenth * 200);
                for (place, class) in [Class::Delivery, Class::Sync].into_iter().enumerate() {
                    while let Grant::Bytes(bytes) =
                        pacer.take(class.number(), want(1 << 20), &mut places[place], now)
                    {
                        sent[place] += bytes;
                    }
                }
            }
            for (place, class) in [Class::Delivery, Class::Sync].into_iter().enumerate() {
                pacer.leave(class.number(), places[place], 0);
            }
            sent[0] as f64 / (sent[0] + sent[1]) as f64
        };
        for (told, expected) in [(Some(800), 0.8), (Some(200), 0.2), (Some(210), 0.2)] {
            pacer.share(told);
            let part = delivery_part(&pacer);
            assert!((part - expected).abs() < 0.03, "{told:?}: {part}");
        }
        pacer.set(Rates { shares: Shares::new([0.0, 0.5, 0.2, 0.0]), ..sending(Some(10_000_000)) });
        for (told, expected) in [(Some(200), 0.5), (Some(950), 0.8)] {
            pacer.share(told);
            let part = delivery_part(&pacer);
            assert!((part - expected).abs() < 0.03, "{told:?}: {part}");
        }
    }

    #[test]
    fn sync_makes_way_for_what_is_promised() {
        let pacer = DonationPacer::new(sending(Some(1_000_000)));
        let start = Instant::now();
        let second = |class: Class, after: u64| {
            let (from, mut bytes, mut place) = (start + Duration::from_secs(after), 0, Place::default());
            for millis in (0..1_000).step_by(5) {
                let now = from + Duration::from_millis(millis);
                while let Grant::Bytes(granted) = pacer.take(class.number(), want(1 << 20), &mut place, now) {
                    bytes += granted;
                }
            }
            bytes
        };
        pacer.stop_sync(true);
        pacer.stop_sync(true);
        // What a ceiling begins with.
        assert!(second(Class::Sync, 0) < 300_000);
        assert_eq!(second(Class::Sync, 1), 0);
        assert!(second(Class::Delivery, 2) > 800_000);
        assert!(!pacer.ended(SYNC));
        pacer.stop_sync(false);
        assert!(second(Class::Sync, 3) > 800_000);
    }

    #[test]
    fn who_waits_for_nothing_is_cut_after_a_while_and_not_before() {
        let pacer = DonationPacer::new(sending(Some(1_000_000)));
        let long_ago = |pacer: &DonationPacer| {
            let since = pacer.stopped_since.load(Ordering::Relaxed);
            pacer.stopped_since.store(since.wrapping_sub(STOPPED_ENDS.as_nanos() as u64), Ordering::Relaxed);
        };
        assert!(!pacer.ended(1));
        let mut aged = DonationPacer::new(sending(Some(0)));
        assert!(!aged.ended(1), "a moment without a rate cuts nobody");
        // As if it had been started long ago.
        aged.origin = aged.origin.checked_sub(STOPPED_ENDS * 2).unwrap();
        aged.set(sending(Some(5)));
        aged.set(sending(Some(0)));
        assert!(!aged.ended(1));
        long_ago(&aged);
        assert!(aged.ended(1));
        aged.set(sending(Some(0)));
        assert!(aged.ended(1), "it stays so");
        aged.set(sending(Some(5)));
        assert!(!aged.ended(1));
    }

    #[test]
    fn sync_reads_are_paced_by_themselves() {
        let pacer = DonationPacer::new(Rates::NONE);
        assert_eq!(pacer.after_read(1 << 40), Duration::ZERO);
        pacer.set(receiving(1_514_000));
        assert!(pacer.unlimited(Class::Delivery.number()));
        let waits: Vec<Duration> = (0..10).map(|_| pacer.after_read(1_448_000)).collect();
        let last = waits[9].as_secs_f64();
        assert!((8.0..=10.1).contains(&last), "10 s worth of reads at once wait {last} s");
        assert_eq!(pacer.stopped(), Duration::ZERO);
        pacer.set(receiving(0));
        assert!(pacer.after_read(1) > Duration::ZERO && pacer.stopped() > Duration::ZERO);
        pacer.set(Rates::NONE);
        assert_eq!(pacer.stopped(), Duration::ZERO, "it goes on");
    }
}
