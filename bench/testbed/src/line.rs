//! One direction of a delayed link: which frames are lost, and when the others come out. It knows no clock, no socket and
//! no randomness but its seed's; the same frames at the same moments with the same seed are treated alike.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Frames on their way, in order.
#[derive(Debug)]
pub(crate) struct Line {
    delay: Duration,
    /// A frame is lost when what is drawn for it is below this part of the whole range.
    loss: u64,
    draw: u64,
    waiting: VecDeque<(Instant, Box<[u8]>)>,
    waiting_bytes: usize,
    /// Frames lost as was asked for.
    pub(crate) lost: u64,
    /// Frames for which there was no room.
    pub(crate) dropped: u64,
}

impl Line {
    /// A line that takes `delay` and loses `percent` of the frames, drawn from `seed`.
    pub(crate) fn new(delay: Duration, percent: f64, seed: u64) -> Line {
        let part = (percent / 100.0).clamp(0.0, 1.0);
        // The cast ends at the largest number, which only a draw of exactly that survives.
        let loss = (part * u64::MAX as f64) as u64;
        Line { delay, loss, draw: seed, waiting: VecDeque::new(), waiting_bytes: 0, lost: 0, dropped: 0 }
    }

    /// A frame goes in.
    pub(crate) fn offer(&mut self, now: Instant, frame: &[u8]) {
        if self.next_draw() < self.loss {
            self.lost += 1;
        } else if self.waiting_bytes + frame.len() > WAITING_BYTES_MAX {
            self.dropped += 1;
        } else {
            self.waiting_bytes += frame.len();
            self.waiting.push_back((now + self.delay, frame.into()));
        }
    }

    /// The next frame that has arrived.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Box<[u8]>> {
        if self.next().is_none_or(|at| at > now) {
            return None;
        }
        let (_, frame) = self.waiting.pop_front()?;
        self.waiting_bytes -= frame.len();
        Some(frame)
    }

    /// When the next frame arrives.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.waiting.front().map(|(at, _)| *at)
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    fn next_draw(&mut self) -> u64 {
        self.draw = self.draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.draw;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Bytes on their way in one direction at most: a second of 256 Mbit/s.
pub(crate) const WAITING_BYTES_MAX: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_in_order_and_not_before_their_time() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut line = Line::new(Duration::from_millis(20), 0.0, 1);
        assert_eq!((line.next(), line.due(begun)), (None, None));
        line.offer(at(0), b"one");
        line.offer(at(5), b"two");
        assert_eq!((line.due(at(19)), line.next()), (None, Some(at(20))));
        assert_eq!(line.due(at(22)).as_deref(), Some(&b"one"[..]));
        assert_eq!(line.due(at(22)), None);
        assert_eq!(line.due(at(25)).as_deref(), Some(&b"two"[..]));
        assert_eq!((line.waiting_bytes, line.lost, line.dropped), (0, 0, 0));
    }

    #[test]
    fn as_many_are_lost_as_was_asked_for_and_the_same_with_one_seed() {
        let begun = Instant::now();
        let lost = |percent, seed| {
            let mut line = Line::new(Duration::ZERO, percent, seed);
            let mut came = Vec::new();
            for number in 0..10_000u32 {
                line.offer(begun, &number.to_le_bytes());
                came.extend(line.due(begun));
            }
            assert_eq!(came.len() as u64 + line.lost, 10_000);
            came
        };
        assert_eq!(lost(0.0, 1).len(), 10_000);
        assert_eq!(lost(100.0, 1).len(), 0);
        let some = lost(2.0, 7);
        assert!((9_700..9_900).contains(&some.len()), "{}", some.len());
        assert_eq!(some, lost(2.0, 7));
        assert_ne!(some, lost(2.0, 8));
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let begun = Instant::now();
        let mut line = Line::new(Duration::from_secs(3_600), 0.0, 1);
        let frame = vec![0; 1 << 20];
        (0..40).for_each(|_| line.offer(begun, &frame));
        assert_eq!((line.waiting.len(), line.dropped), (32, 8));
    }
}
