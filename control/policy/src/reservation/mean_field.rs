//! What is open on a node, as far as can be expected: processor sharing in the mean, by classes of size.
//!
//! Downloads of a node share its rate, so how many are open, and how much of each is left, is what a new one competes
//! with. Between a node's report and the next request stand the report's age and all that was promised since. So the
//! front door keeps the node's state by dead reckoning: every promise opens one download in its class of size, and the
//! downloads of a class end at the rate at which one of them gets through its class's size (Mitzenmacher's mean-field
//! view of queues: the count follows its expectation). A report of how many were open *when it was written* corrects
//! what was expected for that moment; what has happened since is kept (Smith, "Closer control of loops with dead time",
//! 1957). However old reports are, then, nobody is sent to where it looked empty a while ago.
//!
//! Lock-free on the side of requests: one cell per class. No clock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::moment::Moment;

/// Open downloads of one node by class of size.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct OpenDownloads {
    /// What the node can send per second; 0 while unknown.
    rate: AtomicU64,
    /// What a client takes per second when nothing else is in its way; 0 while unknown.
    client: AtomicU64,
    /// What one download was expected to get per second when the node was last heard of.
    each: AtomicU64,
    /// Expected number (`f32` bits, upper half) as of a moment (milliseconds, lower half).
    classes: [AtomicU64; CLASSES],
}

/// What was expected at a few moments, so that reports that come later can be compared with it.
#[derive(Debug, Default)]
pub(super) struct Expected {
    then: VecDeque<(Moment, [f32; CLASSES])>,
    client: Option<f64>,
}

/// How a node did at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    pub(super) rate: f64,
    pub(super) sending: f64,
    pub(super) open: f64,
    pub(super) saturated: bool,
    pub(super) age: Duration,
}

impl OpenDownloads {
    /// Whether the node's rate is known.
    pub(super) fn is_known(&self) -> bool {
        self.rate.load(Ordering::Relaxed) > 0
    }

    /// A download of `bytes` begins.
    pub(super) fn begin(&self, bytes: u64, now: Moment) {
        let each = self.each.load(Ordering::Relaxed) as f64;
        self.change(class_of(bytes), each, now, |open| open + 1.0);
    }

    /// A download of `bytes` goes elsewhere.
    pub(super) fn end(&self, bytes: u64, now: Moment) {
        let each = self.each.load(Ordering::Relaxed) as f64;
        self.change(class_of(bytes), each, now, |open| (open - 1.0).max(0.0));
    }

    /// Bytes that others take from the node while `size` bytes of one more are sent.
    pub(super) fn ahead(&self, size: u64, now: Moment) -> u64 {
        let (rate, size) = (self.rate.load(Ordering::Relaxed) as f64, size as f64);
        let each = self.each.load(Ordering::Relaxed) as f64;
        let (mut open, mut ahead) = (0.0, 0.0);
        for class in 0..CLASSES {
            let count = self.expected(class, each, now);
            open += count;
            ahead += count * size.min(size_of(class));
        }
        let client = self.client.load(Ordering::Relaxed) as f64;
        if client <= 0.0 {
            return ahead as u64;
        }
        // Slow clients leave room: what they do not take is there for the next.
        let room = (rate - open * client).max(rate / (open + 1.0));
        ahead.min(size * (rate / room.max(1.0) - 1.0)).max(0.0) as u64
    }

    /// Takes in what a node said of itself.
    pub(super) fn observe(&self, seen: &Observation, past: &mut Expected, now: Moment) {
        if !seen.saturated && seen.open > 0.0 && seen.sending > 0.0 {
            let client = (seen.sending / seen.open).min(seen.rate);
            let kept = past.client.get_or_insert(client);
            *kept += (client - *kept) * CLIENT_GAIN;
            self.client.store(*kept as u64, Ordering::Relaxed);
        }
        let each_before = self.each.load(Ordering::Relaxed) as f64;
        let mut state: [f32; CLASSES] =
            std::array::from_fn(|class| self.expected(class, each_before, now) as f32);
        let before = state;
        let written = now.before(seen.age);
        past.forget_before(written);
        let then = past.nearest(written, (now, state));
        let expected: f64 = then.iter().map(|&open| f64::from(open)).sum();
        // What was expected too much or too little then, and would still be there now.
        let wrong: [f64; CLASSES] = if expected > LITTLE {
            let factor = (seen.open / expected).min(FACTOR_MAX) - 1.0;
            std::array::from_fn(|class| f64::from(then[class]) * factor)
        } else {
            let mut wrong = [0.0; CLASSES];
            wrong[CLASS_UNKNOWN] = seen.open - expected;
            wrong
        };
        for (class, wrong) in wrong.iter().enumerate() {
            let left = survival(each_before, seen.age.as_secs_f64(), class);
            state[class] = (f64::from(state[class]) + wrong * left).max(0.0) as f32;
            for (at, then) in &mut past.then {
                let left = survival(each_before, at.since(written).as_secs_f64(), class);
                then[class] = (f64::from(then[class]) + wrong * left).max(0.0) as f32;
            }
        }
        let open: f64 = state.iter().map(|&open| f64::from(open)).sum();
        let client = past.client.unwrap_or(seen.rate).max(1.0);
        self.rate.store((seen.rate as u64).max(1), Ordering::Relaxed);
        self.each.store(client.min(seen.rate / open.max(1.0)) as u64, Ordering::Relaxed);
        for (class, (&open, &was)) in state.iter().zip(&before).enumerate() {
            // By difference: what was promised in the meantime stays.
            self.change(class, each_before, now, |count| (count + f64::from(open - was)).max(0.0));
        }
        past.then.push_back((now, state));
        if past.then.len() > EXPECTED_MAX {
            past.then.pop_front();
        }
    }

    /// Nothing is open any more.
    pub(super) fn clear(&self) {
        for class in &self.classes {
            class.store(0, Ordering::Relaxed);
        }
    }

    fn expected(&self, class: usize, each: f64, now: Moment) -> f64 {
        let (open, at) = unpack(self.classes[class].load(Ordering::Relaxed));
        if open <= 0.0 {
            return 0.0;
        }
        open * survival(each, seconds_since(at, now), class)
    }

    fn change(&self, class: usize, each: f64, now: Moment, to: impl Fn(f64) -> f64) {
        let update = self.classes[class].fetch_update(Ordering::Relaxed, Ordering::Relaxed, |cell| {
            let (open, at) = unpack(cell);
            let open = open * survival(each, seconds_since(at, now), class);
            Some(pack(to(open), now))
        });
        // The closure always answers, so the update always succeeds.
        let _ = update;
    }
}

impl Expected {
    /// Keeps what was expected at the last moment that is not after `at`, and all after it.
    fn forget_before(&mut self, at: Moment) {
        while self.then.len() > 1 && self.then[1].0 <= at {
            self.then.pop_front();
        }
    }

    /// What was expected nearest to `at`, among what is kept and `present`.
    fn nearest(&self, at: Moment, present: (Moment, [f32; CLASSES])) -> [f32; CLASSES] {
        let apart = |moment: Moment| moment.since(at).max(at.since(moment));
        let kept = self.then.iter().chain([&present]).min_by_key(|(moment, _)| apart(*moment));
        kept.map_or(present.1, |&(_, then)| then)
    }

    /// Nothing is expected any more.
    pub(super) fn clear(&mut self) {
        self.then.clear();
    }
}

/// Which part of a class is still open after `seconds`, at `each` bytes per second.
fn survival(each: f64, seconds: f64, class: usize) -> f64 {
    let sizes = each * seconds / size_of(class);
    // Of the small ones nothing is left soon: that is told without an exponential.
    if sizes > GONE_SIZES { 0.0 } else { (-sizes).exp() }
}

fn class_of(bytes: u64) -> usize {
    let steps = (bytes.max(1) as f64 / SIZE_LEAST).log2() / f64::from(CLASS_BITS);
    (steps.round().max(0.0) as usize).min(CLASSES - 1)
}

fn size_of(class: usize) -> f64 {
    SIZE_LEAST * (1u64 << (CLASS_BITS * class as u32)) as f64
}

fn seconds_since(at: u32, now: Moment) -> f64 {
    let passed = ((now.0 / 1_000_000) as u32).wrapping_sub(at);
    // A moment a little before is another thread's now.
    if passed > u32::MAX / 2 { 0.0 } else { f64::from(passed) / 1000.0 }
}

fn pack(open: f64, now: Moment) -> u64 {
    u64::from((open as f32).to_bits()) << 32 | u64::from((now.0 / 1_000_000) as u32)
}

fn unpack(cell: u64) -> (f64, u32) {
    (f64::from(f32::from_bits((cell >> 32) as u32)), cell as u32)
}

/// 128 KiB to 8 GiB in steps of four.
const CLASSES: usize = 9;
const SIZE_LEAST: f64 = 131_072.0;
const CLASS_BITS: u32 = 2;
/// Downloads that this front door did not send are taken to be of 8 MiB.
const CLASS_UNKNOWN: usize = 3;
/// Fewer than this were as good as none expected.
const LITTLE: f64 = 0.25;
/// Who has had so many times its class's size is done: one in nine million is not.
const GONE_SIZES: f64 = 16.0;
/// One report multiplies what was expected by this at most.
const FACTOR_MAX: f64 = 8.0;
/// Part of what a report says of its clients' speed that is believed at once.
const CLIENT_GAIN: f64 = 0.1;
/// Reports older than so many heartbeats are compared with the oldest moment that is kept.
const EXPECTED_MAX: usize = 32;
