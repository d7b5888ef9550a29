//! Which content to fetch next, and when: what failed waits, a source in trouble is left alone for a while.
//!
//! It reads no clock, draws no number and fetches nothing.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use freshet_api::ContentHash;

use super::backoff::Backoff;
use crate::mirror::Want;

/// Contents to be fetched, in order, under way, and waiting for another attempt.
pub(super) struct Queue {
    backoff: Backoff,
    /// At most this many units under way; a large content takes [`LARGE_UNITS`].
    units_max: usize,
    units: usize,
    waiting: VecDeque<Want>,
    delayed: BTreeMap<(Instant, ContentHash), Want>,
    under_way: HashMap<ContentHash, usize>,
    /// Under way, and not wanted any more: however that ends, there is no other attempt.
    in_vain: HashSet<ContentHash>,
    /// Fetched, and not yet known to be on disk.
    uncommitted: HashSet<ContentHash>,
    failures: HashMap<ContentHash, u32>,
    source_failures: u32,
    refusals_in_a_row: u32,
    closed_until: Option<Instant>,
    paused_until: Option<Instant>,
}

impl Queue {
    pub(super) fn new(backoff: Backoff, units_max: usize) -> Self {
        Self {
            backoff,
            units_max: units_max.max(LARGE_UNITS),
            units: 0,
            waiting: VecDeque::new(),
            delayed: BTreeMap::new(),
            under_way: HashMap::new(),
            in_vain: HashSet::new(),
            uncommitted: HashSet::new(),
            failures: HashMap::new(),
            source_failures: 0,
            refusals_in_a_row: 0,
            closed_until: None,
            paused_until: None,
        }
    }

    /// Makes `wants` what is to be fetched; returns what is under way and not wanted any more.
    pub(super) fn plan(&mut self, wants: Vec<Want>) -> Vec<ContentHash> {
        let wanted: HashSet<ContentHash> = wants.iter().map(|want| want.content).collect();
        self.delayed.retain(|(_, content), _| wanted.contains(content));
        self.failures.retain(|content, _| wanted.contains(content));
        let delayed: HashSet<ContentHash> = self.delayed.keys().map(|&(_, content)| content).collect();
        let busy = |content: &ContentHash| {
            delayed.contains(content)
                || self.under_way.contains_key(content)
                || self.uncommitted.contains(content)
        };
        self.waiting = wants.into_iter().filter(|want| !busy(&want.content)).collect();
        self.in_vain = self.under_way.keys().filter(|content| !wanted.contains(content)).copied().collect();
        self.in_vain.iter().copied().collect()
    }

    /// The next content to fetch now, if there is one and it may be.
    pub(super) fn next(&mut self, now: Instant) -> Option<Want> {
        if self.shut_until(now).is_some() {
            return None;
        }
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            self.waiting.push_front(entry.remove());
        }
        // After trouble one content goes ahead to see whether it is over.
        let units_max = if self.source_failures > 0 { 1 } else { self.units_max };
        let units = units_of(self.waiting.front()?);
        if self.units > 0 && self.units + units > units_max {
            return None;
        }
        let want = self.waiting.pop_front()?;
        self.units += units;
        self.under_way.insert(want.content, units);
        Some(want)
    }

    /// When [`Queue::next`] may say something else without anything else happening.
    pub(super) fn next_change(&self, now: Instant) -> Option<Instant> {
        let delayed = self.delayed.first_key_value().map(|((at, _), _)| *at);
        match self.shut_until(now) {
            Some(until) if !self.waiting.is_empty() || !self.delayed.is_empty() => Some(until),
            _ => delayed,
        }
    }

    /// A content came in whole; it waits for its batch.
    pub(super) fn fetched(&mut self, content: ContentHash) {
        self.left(&content);
        self.failures.remove(&content);
        self.source_failures = 0;
        self.refusals_in_a_row = 0;
        self.closed_until = None;
        self.uncommitted.insert(content);
    }

    /// A fetch ended without a verdict; whether its content is still wanted.
    pub(super) fn left(&mut self, content: &ContentHash) -> bool {
        if let Some(units) = self.under_way.remove(content) {
            self.units -= units;
        }
        !self.in_vain.remove(content)
    }

    /// A batch is on disk, or was not kept.
    pub(super) fn settled(&mut self, contents: &[ContentHash]) {
        for content in contents {
            self.uncommitted.remove(content);
        }
    }

    /// A content could not be had from a source that is otherwise well.
    ///
    /// Several in a row are taken for a trouble of the source.
    pub(super) fn file_failed(&mut self, want: Want, at_least: Option<Duration>, now: Instant, draw: f64) {
        if !self.left(&want.content) {
            return;
        }
        let failures = self.failures.entry(want.content).or_default();
        *failures = failures.saturating_add(1);
        let delay = self.backoff.delay(*failures, at_least, draw);
        self.delayed.insert((now + delay, want.content), want);
        if at_least.is_some() {
            self.refusals_in_a_row += 1;
            if self.refusals_in_a_row >= REFUSALS_MAX {
                self.close(at_least, now, draw);
            }
        }
    }

    /// The source is in trouble: nothing is asked of it for a while.
    pub(super) fn source_failed(&mut self, want: Want, now: Instant, draw: f64) {
        if self.left(&want.content) {
            self.waiting.push_front(want);
        }
        self.close(None, now, draw);
    }

    /// This host is in trouble: nothing is begun before `until`.
    pub(super) fn pause(&mut self, want: Option<Want>, until: Instant) {
        if let Some(want) = want
            && self.left(&want.content)
        {
            self.waiting.push_front(want);
        }
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Whether everything that is wanted is on disk.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
            && self.delayed.is_empty()
            && self.under_way.is_empty()
            && self.uncommitted.is_empty()
    }

    /// Whether a content is being fetched, or waits for its batch.
    pub(super) fn is_busy(&self, content: &ContentHash) -> bool {
        self.under_way.contains_key(content) || self.uncommitted.contains(content)
    }

    /// One more content to be fetched, unless it is known already.
    pub(super) fn add(&mut self, want: Want) {
        let delayed = self.delayed.keys().any(|(_, content)| *content == want.content);
        if !delayed
            && !self.is_busy(&want.content)
            && self.waiting.iter().all(|known| known.content != want.content)
        {
            self.waiting.push_back(want);
        }
    }

    /// How many contents failed and wait for another attempt.
    pub(super) fn failing(&self) -> usize {
        self.failures.len()
    }

    fn shut_until(&self, now: Instant) -> Option<Instant> {
        self.closed_until.max(self.paused_until).filter(|&until| until > now)
    }

    fn close(&mut self, at_least: Option<Duration>, now: Instant, draw: f64) {
        // Fetches that were under way together fail together: that is one failure.
        if self.closed_until.is_some_and(|until| now < until) {
            return;
        }
        self.source_failures = self.source_failures.saturating_add(1);
        self.closed_until = Some(now + self.backoff.delay(self.source_failures, at_least, draw));
    }
}

fn units_of(want: &Want) -> usize {
    if want.size > SMALL_BYTES_MAX { LARGE_UNITS } else { 1 }
}

/// Contents above this size count as large.
const SMALL_BYTES_MAX: u64 = 256 << 10;

/// Units that a large content takes: 8 large ones fill a link, small ones need more to hide the way's delay.
const LARGE_UNITS: usize = 4;

/// Refusals with a time to wait, in a row, that are taken for the source's own trouble.
const REFUSALS_MAX: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), most: Duration::from_secs(60) };

    fn want(number: u8, size: u64) -> Want {
        Want {
            content: ContentHash([number; 32]),
            size,
            etag: String::new(),
            path: format!("f{number:03}").parse().unwrap(),
            mtime: 0,
            last: false,
        }
    }

    #[test]
    fn many_small_or_few_large_ones_are_under_way() {
        let now = Instant::now();
        let mut queue = Queue::new(BACKOFF, 32);
        queue.plan((0..100).map(|n| want(n, 10)).collect());
        assert_eq!(std::iter::from_fn(|| queue.next(now)).count(), 32);
        let mut queue = Queue::new(BACKOFF, 32);
        queue.plan((0..100).map(|n| want(n, 1 << 30)).collect());
        assert_eq!(std::iter::from_fn(|| queue.next(now)).count(), 8);
        queue.fetched(ContentHash([0; 32]));
        assert_eq!(std::iter::from_fn(|| queue.next(now)).count(), 1);
    }

    #[test]
    fn a_failing_file_waits_and_the_others_go_on() {
        let now = Instant::now();
        let mut queue = Queue::new(BACKOFF, 32);
        queue.plan(vec![want(1, 1), want(2, 1)]);
        let first = queue.next(now).unwrap();
        queue.file_failed(first, None, now, 1.0);
        assert_eq!(queue.next(now).unwrap().content, want(2, 1).content);
        queue.fetched(want(2, 1).content);
        queue.settled(&[want(2, 1).content]);
        assert_eq!(queue.next(now), None);
        assert_eq!(queue.next_change(now), Some(now + Duration::from_secs(1)));
        assert!(!queue.is_empty());
        assert_eq!(queue.next(now + Duration::from_secs(1)).unwrap().content, want(1, 1).content);
    }

    #[test]
    fn a_source_in_trouble_is_probed_with_one_fetch() {
        let now = Instant::now();
        let mut queue = Queue::new(BACKOFF, 32);
        queue.plan((0..10).map(|n| want(n, 1)).collect());
        let under_way: Vec<Want> = std::iter::from_fn(|| queue.next(now)).collect();
        for want in under_way {
            queue.source_failed(want, now, 1.0);
        }
        assert_eq!(queue.next(now), None);
        let later = now + Duration::from_secs(1);
        assert_eq!(queue.next_change(now), Some(later), "ten failures at once are one");
        let probe = queue.next(later).unwrap();
        assert_eq!(queue.next(later), None, "one goes ahead");
        queue.source_failed(probe, later, 1.0);
        let later = later + Duration::from_secs(2);
        let probe = queue.next(later).unwrap();
        queue.fetched(probe.content);
        assert_eq!(std::iter::from_fn(|| queue.next(later)).count(), 9);
    }

    #[test]
    fn refusals_in_a_row_are_the_sources_trouble() {
        let now = Instant::now();
        let mut queue = Queue::new(BACKOFF, 32);
        queue.plan((0..40).map(|n| want(n, 1)).collect());
        for _ in 0..REFUSALS_MAX {
            let want = queue.next(now).unwrap();
            queue.file_failed(want, Some(Duration::from_secs(7)), now, 0.0);
        }
        assert_eq!(queue.next(now + Duration::from_secs(7)), None);
        assert!(queue.next(now + Duration::from_secs(8)).is_some());
    }

    #[test]
    fn a_new_plan_keeps_what_runs_and_names_what_is_in_vain() {
        let now = Instant::now();
        let mut queue = Queue::new(BACKOFF, 32);
        queue.plan(vec![want(1, 1), want(2, 1), want(3, 1)]);
        queue.next(now).unwrap();
        queue.next(now).unwrap();
        assert_eq!(queue.plan(vec![want(1, 1), want(4, 1)]), [want(2, 1).content]);
        queue.file_failed(want(2, 1), None, now, 1.0);
        assert_eq!(queue.failing(), 0, "what is not wanted is not tried again");
        assert_eq!(queue.next(now).unwrap().content, want(4, 1).content);
        assert_eq!(queue.next(now), None);
    }
}
