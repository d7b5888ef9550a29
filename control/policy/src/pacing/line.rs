//! The lines of all classes, and the one rate that serves them.

use std::time::Duration;

use freshet_api::BytesPerSec;

use super::lane::{Ceiling, Lane, MILLION};
use super::{
    CHUNK_BYTES_MAX, CLASSES, NANO, Pace, Place, SEGMENT_BYTES, SMALL_COUNTS, Shares, WAIT_MAX, Weight,
    backlog, burst,
};
use crate::moment::Moment;

/// All that is shared by those who send. What counts as bytes is in nanobytes where time is in nanoseconds, so
/// that nothing is ever rounded away.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Up to when time has been served.
    at: Moment,
    /// Bytes per second for all together; none for no limit.
    total: Option<u64>,
    /// Nanobytes that nobody waited for.
    credit: u128,
    /// Nanobytes that were served and have not been taken yet. With `credit` never more than a backlog.
    untaken: u128,
    lanes: [Lane; CLASSES],
}

impl Line {
    pub(super) fn total(&self) -> Option<u64> {
        self.total
    }

    /// One bit per class that is limited.
    pub(super) fn limited(&self) -> u8 {
        let limited = |class: &usize| self.total.is_some() || self.lanes[*class].ceiling.is_some();
        (0..CLASSES).filter(limited).fold(0, |bits, class| bits | 1 << class)
    }

    pub(super) fn set(&mut self, total: Option<u64>, shares: Shares, now: Moment) {
        self.advance(now);
        if self.total.is_none() {
            // A limit begins with a full burst.
            self.credit = u128::MAX;
        }
        self.total = total;
        self.credit = self.credit.min(self.burst().saturating_sub(self.untaken));
        for (class, lane) in (0u8..).zip(&mut self.lanes) {
            lane.share = (f64::from(shares.of(class)) * MILLION as f64) as u64;
        }
        self.share_out();
    }

    pub(super) fn set_ceiling(&mut self, class: usize, ceiling: Option<u64>, now: Moment) {
        self.advance(now);
        let lane = &mut self.lanes[class];
        lane.ceiling = ceiling.map(|rate| Ceiling {
            rate,
            credit: match lane.ceiling {
                Some(before) => before.credit,
                None => u128::from(burst(BytesPerSec(rate)).0) * NANO,
            },
        });
        lane.pass(0, 0, 0);
        self.share_out();
    }

    pub(super) fn take(
        &mut self,
        class: usize,
        want: u64,
        weight: Weight,
        place: &mut Place,
        now: Moment,
    ) -> Pace {
        self.advance(now);
        let Some(rate) = self.rate_of(class) else {
            self.give_up(class, std::mem::take(place));
            return Pace::Bytes(want);
        };
        if place.bytes == 0 {
            let even = chunk(rate, self.lanes[class].waiting());
            let chunk = if self.lanes[class].comes(weight, now) {
                weighed(even, weight)
            } else {
                even.max(self.behind(class))
            };
            let chunk = chunk.min(want);
            // A chunk is far below 4 GiB.
            *place = self.lanes[class].join(u32::try_from(chunk).unwrap_or(u32::MAX));
            self.share_out();
        } else {
            // What was little at an earlier rate may be more than a burst of the present one.
            let owed = u128::from(burst(BytesPerSec(rate)).0) * u128::from(self.lanes[class].share) / MILLION;
            let most = (SMALL_CHUNKS * chunk(rate, 0)).max(owed as u64);
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            if place.bytes > most {
                let had = self.lanes[class].shorten(place, most);
                self.give_back(had);
            }
        }
        if !self.lanes[class].is_served(*place) {
            return Pace::Wait(self.wait(class, *place));
        }
        let had = u64::from(std::mem::take(place).bytes);
        let granted = had.min(want);
        self.untaken = self.untaken.saturating_sub(u128::from(granted) * NANO);
        self.give_back(u128::from(had - granted) * NANO);
        Pace::Bytes(granted)
    }

    pub(super) fn leave(&mut self, class: usize, place: Place, unused: u64, now: Moment) {
        self.advance(now);
        self.give_up(class, place);
        // It was taken once; now it is not.
        let room = self.room();
        self.credit += (u128::from(unused) * NANO).min(room);
        self.share_out();
    }

    fn give_up(&mut self, class: usize, place: Place) {
        if place.bytes > 0 {
            let had = self.lanes[class].leave(place);
            self.give_back(had);
        }
    }

    /// What was served to one who does not take it is there for the others.
    fn give_back(&mut self, served: u128) {
        if served > 0 {
            self.untaken = self.untaken.saturating_sub(served);
            self.credit += served.min(self.room());
            self.share_out();
        }
    }

    /// Serves the time since the last call.
    fn advance(&mut self, now: Moment) {
        let nanos = now.0.saturating_sub(self.at.0);
        self.at = self.at.max(now);
        let earned = u128::from(self.total.unwrap_or(0)) * u128::from(nanos);
        let fresh = earned.min(self.room());
        self.credit += fresh;
        let burst = self.burst();
        for lane in &mut self.lanes {
            lane.pass(nanos, fresh, burst);
        }
        self.share_out();
    }

    /// Hands the credit to those who wait: first what a class is owed of its share, then by how many wait.
    fn share_out(&mut self) {
        if self.total.is_none() {
            for lane in &mut self.lanes {
                let open = lane.open();
                lane.serve(open);
                self.untaken += open;
            }
            return;
        }
        if self.credit == 0 {
            return;
        }
        // Whoever is farthest behind its share goes first: a class of a single sender is often not in the line at
        // the moment, and must be able to catch up.
        let mut order: [usize; CLASSES] = std::array::from_fn(|class| class);
        order.sort_by(|&a, &b| {
            let (a, b) = (&self.lanes[a], &self.lanes[b]);
            (b.owed * u128::from(a.share)).cmp(&(a.owed * u128::from(b.share)))
        });
        for class in order {
            let lane = &self.lanes[class];
            self.serve(class, lane.open().min(lane.owed).min(self.credit));
        }
        let open = self.lanes.each_ref().map(Lane::open);
        let (sum, credit): (u128, _) = (open.iter().sum(), self.credit);
        for (class, open) in open.into_iter().enumerate().filter(|(_, open)| *open > 0) {
            self.serve(class, if sum <= credit { open } else { credit * open / sum });
        }
    }

    fn serve(&mut self, class: usize, amount: u128) {
        self.lanes[class].serve(amount);
        self.credit -= amount;
        self.untaken += amount;
    }

    /// How long until the bytes at `place` are served, if nothing changes; a guess at most too short.
    fn wait(&self, class: usize, place: Place) -> Duration {
        let lane = &self.lanes[class];
        let ahead = lane.ahead(place);
        let nanos = match self.total {
            Some(0) => u128::MAX,
            Some(total) => {
                let total = u128::from(total);
                // What the class is owed goes at the full rate, the rest at its part of it.
                let first = ahead.min(lane.owed);
                first / total + (ahead - first) / self.part(class).max(1)
            }
            None => 0,
        };
        let capped = lane.ceiling.map_or(0, |ceiling| {
            let short = ahead.saturating_sub(ceiling.credit);
            short.checked_div(u128::from(ceiling.rate)).unwrap_or(u128::MAX)
        });
        let nanos = u64::try_from(nanos.max(capped).saturating_add(1)).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos).min(WAIT_MAX)
    }

    /// What a class is behind its share and nobody in its line waits for, in full segments and at most what may be
    /// taken at once. Between two places of a single sender the others are served; a chunk at a time it could never
    /// make up for that.
    fn behind(&self, class: usize) -> u64 {
        let lane = &self.lanes[class];
        let bytes = u64::try_from(lane.owed.saturating_sub(lane.waiting()) / NANO).unwrap_or(u64::MAX);
        bytes.min(CHUNK_BYTES_MAX.0) / SEGMENT_BYTES * SEGMENT_BYTES
    }

    /// The rate at which `class` is served just now, bytes per second.
    fn part(&self, class: usize) -> u128 {
        let total = u128::from(self.total.unwrap_or(0));
        let busy = || self.lanes.iter().filter(|lane| lane.open() > 0);
        let guaranteed = |lane: &Lane| total * u128::from(lane.share) / MILLION;
        let free = total.saturating_sub(busy().map(guaranteed).sum());
        let waiting: u128 = busy().map(Lane::waiting).sum();
        let lane = &self.lanes[class];
        // Nanobytes by nanobytes would overflow; to the byte is exact enough for a guess.
        guaranteed(lane) + free * (lane.waiting() / NANO + 1) / (waiting / NANO + 1)
    }

    fn rate_of(&self, class: usize) -> Option<u64> {
        let ceiling = self.lanes[class].ceiling.map(|ceiling| ceiling.rate);
        [self.total, ceiling].into_iter().flatten().min()
    }

    /// In nanobytes.
    fn burst(&self) -> u128 {
        self.total.map_or(u128::MAX, |total| u128::from(burst(BytesPerSec(total)).0) * NANO)
    }

    /// How many nanobytes may still be earned. While somebody is late for his, what he will want next is kept too.
    fn room(&self) -> u128 {
        let Some(total) = self.total else { return 0 };
        let most = if self.untaken > 0 { u128::from(backlog(total)) * NANO } else { self.burst() };
        most.saturating_sub(self.credit).saturating_sub(self.untaken)
    }
}

/// Bytes per take at `rate`, in full segments: little enough that a bottleneck's queue stays short, and less when
/// many wait (`waiting` nanobytes), so that all still come round in time.
fn chunk(rate: u64, waiting: u128) -> u64 {
    let crowd = if waiting > u128::from(rate) * CROWD_TIME.as_nanos() { CROWD_PARTS } else { 1 };
    let bytes = u128::from(rate) * CHUNK_TIME.as_nanos() / NANO / crowd;
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX).min(CHUNK_BYTES_MAX.0);
    (bytes / SEGMENT_BYTES * SEGMENT_BYTES).max(SEGMENT_BYTES)
}

/// A chunk where some are small and some are large: larger than `even` for small ones, because of what is even at low rates
/// large ones could not have a twelfth in whole segments.
fn weighed(even: u64, weight: Weight) -> u64 {
    let small = (SMALL_CHUNKS * even).min(CHUNK_BYTES_MAX.0);
    match weight {
        Weight::Small => small,
        Weight::Large => (small / SMALL_COUNTS / SEGMENT_BYTES * SEGMENT_BYTES).max(SEGMENT_BYTES),
    }
}

/// So many even chunks are at most in one of a small sender: half a burst.
const SMALL_CHUNKS: u64 = 4;
/// What a chunk takes at the rate.
const CHUNK_TIME: Duration = Duration::from_micros(2500);
/// Chunks become smaller when a line is longer than this.
const CROWD_TIME: Duration = Duration::from_millis(250);
const CROWD_PARTS: u128 = 4;
