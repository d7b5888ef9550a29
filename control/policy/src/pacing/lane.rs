//! The line of one class: an endless stream of bytes, of which those between `served` and `tail` are waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{BURST_TIME, NANO, Place, Weight};
use crate::moment::Moment;

/// What one class waits for, what it is guaranteed, and what it may never exceed.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Position after the last byte that somebody waits for.
    tail: u64,
    /// Position up to which time has served, in nanobytes; never within a hole.
    served: u128,
    /// Places that were given up before they were served, by position; their lengths.
    holes: BTreeMap<u64, u64>,
    /// The holes' bytes.
    dead: u64,
    /// Of the total, in millionths.
    pub(super) share: u64,
    /// Guaranteed nanobytes that the class has not had yet, because it came late; it goes first with them.
    pub(super) owed: u128,
    pub(super) ceiling: Option<Ceiling>,
    /// When a sender of each weight came into the line for the last time.
    came: [Option<Moment>; 2],
}

/// A rate that one class may never exceed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceiling {
    pub(super) rate: u64,
    /// Nanobytes that may go at once.
    pub(super) credit: u128,
}

impl Lane {
    /// Nanobytes that somebody waits for.
    pub(super) fn waiting(&self) -> u128 {
        (u128::from(self.tail) - u128::from(self.dead)) * NANO - self.served
    }

    /// Nanobytes that could be served at once as far as this class is concerned.
    pub(super) fn open(&self) -> u128 {
        self.ceiling.map_or(u128::MAX, |ceiling| ceiling.credit).min(self.waiting())
    }

    /// Nanobytes until the bytes at `place` are served, at most: those who left before it are in nobody's way.
    pub(super) fn ahead(&self, place: Place) -> u128 {
        let distance = (u128::from(place.end) * NANO).saturating_sub(self.served);
        distance.saturating_sub(u128::from(self.dead) * NANO)
    }

    pub(super) fn is_served(&self, place: Place) -> bool {
        self.served >= u128::from(place.end) * NANO
    }

    /// Notes that a sender of this weight comes; whether there are some of both.
    pub(super) fn comes(&mut self, weight: Weight, now: Moment) -> bool {
        self.came[weight as usize] = Some(now);
        self.came.iter().all(|came| came.is_some_and(|came| now.since(came) < WEIGHED_TIME))
    }

    /// A place at the end of the line.
    pub(super) fn join(&mut self, bytes: u32) -> Place {
        self.tail += u64::from(bytes);
        Place { end: self.tail, bytes }
    }

    /// Serves `amount` of nanobytes, no more than are [`Lane::open`].
    pub(super) fn serve(&mut self, mut amount: u128) {
        if let Some(ceiling) = &mut self.ceiling {
            ceiling.credit = ceiling.credit.saturating_sub(amount);
        }
        self.owed = self.owed.saturating_sub(amount);
        while let Some((&start, &length)) = self.holes.first_key_value() {
            let gap = u128::from(start) * NANO - self.served;
            if amount < gap {
                break;
            }
            amount -= gap;
            self.served = u128::from(start + length) * NANO;
            self.dead -= length;
            self.holes.pop_first();
        }
        self.served += amount;
    }

    /// Takes a place out of the line; how many nanobytes of it had been served.
    pub(super) fn leave(&mut self, place: Place) -> u128 {
        let (start, length) = (place.end - u64::from(place.bytes), u64::from(place.bytes));
        let had = self.served.saturating_sub(u128::from(start) * NANO).min(u128::from(length) * NANO);
        if self.is_served(place) {
            return had;
        }
        if had > 0 {
            self.served = u128::from(place.end) * NANO;
        } else {
            self.holes.insert(start, length);
            self.dead += length;
        }
        while let Some((&start, &length)) = self.holes.last_key_value()
            && start + length == self.tail
        {
            self.tail = start;
            self.dead -= length;
            self.holes.pop_last();
        }
        self.step_over();
        had
    }

    /// Shortens a place to its first `bytes`; how many nanobytes of the rest had been served.
    pub(super) fn shorten(&mut self, place: &mut Place, bytes: u32) -> u128 {
        let rest = Place { end: place.end, bytes: place.bytes - bytes };
        *place = Place { end: place.end - u64::from(rest.bytes), bytes };
        self.leave(rest)
    }

    /// Lets time pass: a share of `fresh` nanobytes of the total is owed, and the ceiling lets more through.
    pub(super) fn pass(&mut self, nanos: u64, fresh: u128, burst: u128) {
        let share = u128::from(self.share);
        // Without a limit the burst is as large as can be, and must not overflow.
        let part = |whole: u128| whole / MILLION * share + whole % MILLION * share / MILLION;
        self.owed = self.owed.saturating_add(part(fresh)).min(part(burst));
        if let Some(Ceiling { rate, credit }) = &mut self.ceiling {
            let most = u128::from(*rate) * BURST_TIME.as_nanos();
            let most = most.max(u128::from(super::BURST_BYTES_MIN) * NANO);
            *credit = (*credit + u128::from(*rate) * u128::from(nanos)).min(most);
        }
    }

    fn step_over(&mut self) {
        while let Some((&start, &length)) = self.holes.first_key_value()
            && u128::from(start) * NANO == self.served
        {
            self.served = u128::from(start + length) * NANO;
            self.dead -= length;
            self.holes.pop_first();
        }
    }
}

/// Who was in the line within this time is taken for one that will be again: senders are out of it while they send.
const WEIGHED_TIME: Duration = Duration::from_millis(100);
/// Shares are kept in these parts.
pub(super) const MILLION: u128 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(places: u64) -> (Lane, Vec<Place>) {
        let mut lane = Lane::default();
        let places = (0..places).map(|_| lane.join(100)).collect();
        (lane, places)
    }

    #[test]
    fn whoever_leaves_lets_the_others_up() {
        let (mut lane, places) = line_of(4);
        assert_eq!(lane.leave(places[1]), 0);
        assert_eq!(lane.waiting(), 300 * NANO);
        lane.serve(100 * NANO);
        assert!(lane.is_served(places[0]) && !lane.is_served(places[2]));
        lane.serve(100 * NANO);
        assert!(lane.is_served(places[2]) && !lane.is_served(places[3]));
        lane.serve(100 * NANO);
        assert_eq!(lane.waiting(), 0);
    }

    #[test]
    fn what_was_served_to_one_that_leaves_is_told() {
        let (mut lane, places) = line_of(3);
        lane.serve(130 * NANO);
        assert_eq!(lane.leave(places[0]), 100 * NANO);
        assert_eq!(lane.leave(places[1]), 30 * NANO);
        assert_eq!(lane.waiting(), 100 * NANO);
        assert_eq!(lane.leave(places[2]), 0);
        assert_eq!(lane.waiting(), 0);
        let next = lane.join(100);
        lane.serve(100 * NANO);
        assert!(lane.is_served(next));
    }

    #[test]
    fn a_shortened_place_keeps_its_beginning() {
        let (mut lane, mut places) = line_of(3);
        assert_eq!(lane.shorten(&mut places[1], 30), 0);
        assert_eq!(lane.waiting(), 230 * NANO);
        lane.serve(150 * NANO);
        assert!(lane.is_served(places[1]) && !lane.is_served(places[2]));
        assert_eq!(lane.shorten(&mut places[2], 10), 10 * NANO);
        assert!(lane.is_served(places[2]));
        assert_eq!(lane.waiting(), 0);
    }

    #[test]
    fn a_line_that_all_leave_is_empty() {
        for backwards in [false, true] {
            let (mut lane, mut places) = line_of(50);
            if backwards {
                places.reverse();
            }
            assert!(places.into_iter().all(|place| lane.leave(place) == 0));
            assert_eq!((lane.waiting(), lane.dead, lane.holes.len()), (0, 0, 0));
        }
    }
}
