//! Where every volunteer stands just now: its last heartbeat, what it holds, what it can send.
//!
//! The [`Tracker`] is a seam: [`MemoryTracker`] keeps everything in this process and forgets it with it; the
//! volunteers' next heartbeats bring it back. Nothing of it is asked on the redirect path.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use freshet_api::heartbeat::{Heartbeat, HoldingsDelta, holdings_digest};
use freshet_api::{BytesPerSec, FileId, NodeId};
use freshet_policy::Moment;
use freshet_policy::liveness::{Life, Liveness, LivenessTerms};
use freshet_policy::rates::{CapacityEstimate, CounterRate};
use freshet_policy::report_age::ReportAge;
use freshet_policy::reservation::NodePace;
use roaring::RoaringBitmap;

/// The passing memory of volunteers.
pub trait Tracker: Send + Sync + 'static {
    /// Takes in a heartbeat.
    fn heartbeat(&self, node: NodeId, heartbeat: Heartbeat, now: Moment) -> Heard;

    /// Replaces what is known of a volunteer's holdings.
    fn replace_holdings(&self, node: NodeId, holdings: RoaringBitmap);

    /// Forgets a volunteer.
    fn forget(&self, node: NodeId);

    /// How a volunteer stands at `now`; `None` when it was not heard of since control's start.
    fn session(&self, node: NodeId, now: Moment) -> Option<Session>;
}

/// What came of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// It is older than the last one of this boot: nothing was taken from it.
    pub stale: bool,
    /// What is known of the holdings is not what the volunteer says that it holds.
    pub want_holdings: bool,
}

/// How a volunteer stands at one moment; cheap to clone.
#[derive(Clone, Debug)]
pub struct Session {
    /// By its heartbeats.
    pub life: Life,
    /// When the last one came.
    pub heard: Moment,
    /// When silence alone changes how it stands.
    pub changes_at: Option<Moment>,
    /// The last one, without its difference of holdings.
    pub heartbeat: Arc<Heartbeat>,
    /// The files it holds, by number.
    pub holdings: Arc<RoaringBitmap>,
    /// What it can send.
    pub capacity: BytesPerSec,
    /// What it sent to customers and mirrors lately.
    pub sending_rate: BytesPerSec,
    /// How old the last heartbeat was when it came.
    pub age: Duration,
}

impl Session {
    /// What it can send, what it sends, and to how many: what its backlog is reckoned from.
    pub fn pace(&self) -> NodePace {
        NodePace {
            rate: self.capacity,
            sending: self.sending_rate,
            contending: self.heartbeat.delivery.active,
            saturated: self.sending_rate.0 as f64 >= SATURATED * self.capacity.0 as f64,
            age: self.age,
        }
    }
}

/// A tracker in this process.
#[derive(Debug)]
pub struct MemoryTracker {
    terms: LivenessTerms,
    tracks: RwLock<HashMap<NodeId, Arc<Mutex<Track>>>>,
}

impl MemoryTracker {
    /// Judges lateness by `terms`.
    pub fn new(terms: LivenessTerms) -> Self {
        Self { terms, tracks: RwLock::default() }
    }

    fn track(&self, node: NodeId) -> Option<Arc<Mutex<Track>>> {
        self.tracks.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    fn track_or_new(&self, node: NodeId) -> Arc<Mutex<Track>> {
        self.track(node).unwrap_or_else(|| {
            let mut tracks = self.tracks.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(tracks.entry(node).or_default())
        })
    }
}

impl Tracker for MemoryTracker {
    fn heartbeat(&self, node: NodeId, heartbeat: Heartbeat, now: Moment) -> Heard {
        let track = self.track_or_new(node);
        let mut track = track.lock().unwrap_or_else(PoisonError::into_inner);
        track.take(heartbeat, now, &self.terms)
    }

    fn replace_holdings(&self, node: NodeId, mut holdings: RoaringBitmap) {
        // Whole directories have numbers that follow each other.
        holdings.optimize();
        let digest = holdings.iter().fold(0, |digest, file| digest ^ holdings_digest(FileId(file)));
        let track = self.track_or_new(node);
        let mut track = track.lock().unwrap_or_else(PoisonError::into_inner);
        track.holdings = Arc::new(holdings);
        track.digest = digest;
    }

    fn forget(&self, node: NodeId) {
        self.tracks.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }

    fn session(&self, node: NodeId, now: Moment) -> Option<Session> {
        let track = self.track(node)?;
        let track = track.lock().unwrap_or_else(PoisonError::into_inner);
        track.session(now, &self.terms)
    }
}

#[derive(Debug)]
struct Track {
    liveness: Liveness,
    last: Option<(Moment, Arc<Heartbeat>)>,
    holdings: Arc<RoaringBitmap>,
    digest: u64,
    capacity: CapacityEstimate,
    capacity_from: (Option<BytesPerSec>, Option<BytesPerSec>),
    sending_rate: CounterRate,
    clock: ReportAge,
    age: Duration,
}

impl Default for Track {
    fn default() -> Self {
        Self {
            liveness: Liveness::default(),
            last: None,
            holdings: Arc::default(),
            digest: 0,
            capacity: CapacityEstimate::new(None, None),
            capacity_from: (None, None),
            sending_rate: CounterRate::new(RATE_TIME),
            clock: ReportAge::default(),
            age: Duration::ZERO,
        }
    }
}

impl Track {
    fn take(&mut self, mut heartbeat: Heartbeat, now: Moment, terms: &LivenessTerms) -> Heard {
        if let Some((_, last)) = &self.last
            && last.boot == heartbeat.boot
            && heartbeat.sequence < last.sequence
        {
            return Heard { stale: true, want_holdings: false };
        }
        self.liveness.heartbeat(heartbeat.boot, now, terms);
        let delta = std::mem::take(&mut heartbeat.holdings);
        let want_holdings = !self.apply(&delta);
        self.measure(&heartbeat, now);
        self.age = self.clock.heard(heartbeat.boot, heartbeat.written_ms, now);
        self.last = Some((now, Arc::new(heartbeat)));
        Heard { stale: false, want_holdings }
    }

    /// Applies a difference; says whether what is known agrees with what the volunteer says it holds.
    fn apply(&mut self, delta: &HoldingsDelta) -> bool {
        if !delta.added.is_empty() || !delta.removed.is_empty() {
            // Copies only while a routing table still reads the old one.
            let holdings = Arc::make_mut(&mut self.holdings);
            for file in &delta.removed {
                if holdings.remove(file.0) {
                    self.digest ^= holdings_digest(*file);
                }
            }
            for file in &delta.added {
                if holdings.insert(file.0) {
                    self.digest ^= holdings_digest(*file);
                }
            }
        }
        self.holdings.len() == delta.count && self.digest == delta.digest
    }

    fn measure(&mut self, heartbeat: &Heartbeat, now: Moment) {
        let links = heartbeat.interfaces.iter().filter(|interface| interface.name != "lo");
        let link = links.filter_map(|interface| interface.link_bytes_per_sec).max().map(BytesPerSec);
        let from = (heartbeat.donated_rate, link);
        if from != self.capacity_from {
            self.capacity = CapacityEstimate::new(from.0, from.1);
            self.capacity_from = from;
        }
        // Both leave by the same uplink, and what its owner gives is for both.
        let wires = heartbeat.interfaces.iter().filter(|interface| interface.name != "lo");
        let synced = wires.map(|interface| interface.sync.sent.bytes).sum::<u64>();
        self.sending_rate.read(heartbeat.delivery.body_bytes.saturating_add(synced), now);
        // Whether it had more to send than went out is not known from these counters, so its claim is
        // never held against it here.
        self.capacity.observe(self.sending_rate.latest(), false, now);
    }

    fn session(&self, now: Moment, terms: &LivenessTerms) -> Option<Session> {
        let (heard, heartbeat) = self.last.clone()?;
        let capacity = self.capacity.capacity(now).rate;
        let claimed = self.capacity_from.0.is_some() || self.capacity_from.1.is_some();
        Some(Session {
            life: self.liveness.state(now, terms),
            changes_at: self.liveness.changes_at(now, terms),
            heard,
            heartbeat,
            holdings: Arc::clone(&self.holdings),
            capacity: if claimed { capacity } else { capacity.max(ASSUMED_RATE) },
            sending_rate: self.sending_rate.smoothed(),
            age: self.age,
        })
    }
}

/// What a volunteer that tells neither a donation nor a link speed is taken to send, at least: 100 Mbit/s.
const ASSUMED_RATE: BytesPerSec = BytesPerSec(12_500_000);
/// From this part of its capacity on a volunteer has more to send than it can; below, its clients are slow.
/// Its counters are payload, its capacity is counted on the wire, where full segments are 4.6 % larger.
const SATURATED: f64 = 0.9;
/// Over which rates are smoothed.
const RATE_TIME: Duration = Duration::from_secs(3);

#[cfg(test)]
pub(crate) mod testing {
    //! Heartbeats for tests.

    use freshet_api::heartbeat::{DeliveryCounters, Readiness, SyncProgress};
    use freshet_api::traffic::CounterSource;

    use super::*;

    pub(crate) fn heartbeat(boot: u64, sequence: u64, holds: &[u32], added: &[u32]) -> Heartbeat {
        Heartbeat {
            boot,
            sequence,
            written_ms: None,
            version: "0.1.0".into(),
            delivery_url: "http://192.0.2.1:8080".into(),
            sync_url: None,
            readiness: Readiness::Ready,
            donated_rate: None,
            budget: None,
            source: CounterSource::Ebpf,
            interfaces: Vec::new(),
            delivery: DeliveryCounters::default(),
            sync: SyncProgress::default(),
            holdings: HoldingsDelta {
                added: added.iter().copied().map(FileId).collect(),
                removed: Vec::new(),
                count: holds.len() as u64,
                digest: holds.iter().fold(0, |digest, file| digest ^ holdings_digest(FileId(*file))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use freshet_api::traffic::InterfaceCounters;

    use super::testing::heartbeat;
    use super::*;

    const NODE: NodeId = NodeId(1);

    fn at(seconds: f64) -> Moment {
        Moment::from_secs_f64(seconds)
    }

    fn tracker() -> MemoryTracker {
        MemoryTracker::new(LivenessTerms::default())
    }

    #[test]
    fn differences_add_up_and_a_repeated_one_changes_nothing() {
        let tracker = tracker();
        let first = heartbeat(1, 1, &[1, 2], &[1, 2]);
        for _ in 0..2 {
            let heard = tracker.heartbeat(NODE, first.clone(), at(1.0));
            assert_eq!(heard, Heard { stale: false, want_holdings: false });
        }
        let mut second = heartbeat(1, 2, &[2, 5], &[5]);
        second.holdings.removed = vec![FileId(1)];
        assert!(!tracker.heartbeat(NODE, second, at(2.0)).want_holdings);
        let held = tracker.session(NODE, at(2.0)).unwrap().holdings;
        assert_eq!(held.iter().collect::<Vec<_>>(), [2, 5]);
    }

    #[test]
    fn a_restarted_control_asks_for_everything_once() {
        let tracker = tracker();
        assert!(tracker.heartbeat(NODE, heartbeat(1, 7, &[1, 2, 3], &[]), at(1.0)).want_holdings);
        tracker.replace_holdings(NODE, [1, 2, 3].into_iter().collect());
        assert!(!tracker.heartbeat(NODE, heartbeat(1, 8, &[1, 2, 3], &[]), at(2.0)).want_holdings);
        // The same number of other files is noticed too.
        assert!(tracker.heartbeat(NODE, heartbeat(1, 9, &[1, 2, 4], &[]), at(3.0)).want_holdings);
    }

    #[test]
    fn a_report_that_was_held_up_is_taken_for_what_was_then() {
        let tracker = tracker();
        let age = |sequence, written_ms, now: f64| {
            let told = Heartbeat { written_ms: Some(written_ms), ..heartbeat(1, sequence, &[], &[]) };
            tracker.heartbeat(NODE, told, at(now));
            tracker.session(NODE, at(now)).unwrap().pace().age
        };
        assert_eq!(age(1, 70_000, 1.0), Duration::ZERO);
        assert_eq!(age(2, 71_000, 6.5), Duration::from_millis(4_500));
        assert_eq!(age(3, 77_000, 8.0), Duration::ZERO);
        tracker.heartbeat(NODE, heartbeat(1, 4, &[], &[]), at(12.0));
        assert_eq!(tracker.session(NODE, at(12.0)).unwrap().pace().age, Duration::ZERO, "it does not tell");
    }

    #[test]
    fn an_older_heartbeat_of_the_same_boot_is_ignored() {
        let tracker = tracker();
        tracker.heartbeat(NODE, heartbeat(1, 5, &[1], &[1]), at(1.0));
        assert!(tracker.heartbeat(NODE, heartbeat(1, 4, &[], &[9]), at(2.0)).stale);
        let session = tracker.session(NODE, at(2.0)).unwrap();
        assert_eq!((session.heard, session.holdings.len()), (at(1.0), 1));
        assert!(
            !tracker.heartbeat(NODE, heartbeat(2, 1, &[1], &[]), at(3.0)).stale,
            "a new boot begins at 1"
        );
    }

    #[test]
    fn capacity_is_the_donation_within_the_link_or_an_assumption() {
        let tracker = tracker();
        tracker.heartbeat(NODE, heartbeat(1, 1, &[], &[]), at(1.0));
        assert_eq!(tracker.session(NODE, at(1.0)).unwrap().capacity, ASSUMED_RATE);
        let mut claims = heartbeat(1, 2, &[], &[]);
        claims.donated_rate = Some(BytesPerSec(1_000));
        tracker.heartbeat(NODE, claims, at(2.0));
        assert_eq!(tracker.session(NODE, at(2.0)).unwrap().capacity, BytesPerSec(1_000));
    }

    #[test]
    fn what_goes_to_mirrors_counts_as_sent_too() {
        let tracker = tracker();
        for second in 1..=30u64 {
            let mut beat = heartbeat(1, second, &[], &[]);
            beat.donated_rate = Some(BytesPerSec(1_000));
            beat.delivery.body_bytes = 400 * second;
            let mut wire = InterfaceCounters { name: "eth0".into(), ..InterfaceCounters::default() };
            wire.sync.sent.bytes = 550 * second;
            beat.interfaces = vec![wire.clone(), InterfaceCounters { name: "lo".into(), ..wire }];
            tracker.heartbeat(NODE, beat, at(second as f64));
        }
        let session = tracker.session(NODE, at(30.0)).unwrap();
        assert_eq!(session.sending_rate, BytesPerSec(950));
        assert!(session.pace().saturated);
    }

    #[test]
    fn silence_ends_in_death_and_forgetting_is_complete() {
        let tracker = tracker();
        tracker.heartbeat(NODE, heartbeat(1, 1, &[], &[]), at(1.0));
        assert_eq!(tracker.session(NODE, at(2.0)).unwrap().life, Life::Alive);
        assert_eq!(tracker.session(NODE, at(60.0)).unwrap().life, Life::Dead);
        tracker.forget(NODE);
        assert!(tracker.session(NODE, at(60.0)).is_none());
    }
}
