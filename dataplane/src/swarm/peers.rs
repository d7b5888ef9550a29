//! Who is asked, how long it may take, and who is left alone for a while. It reads no clock and asks nobody.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use freshet_api::NodeId;
use freshet_api::swarm::PeerHint;

use super::fetch::Address;

/// The peers of one bundle, in the order in which the tracker named them.
#[derive(Default)]
pub(super) struct Peers {
    order: Vec<NodeId>,
    known: BTreeMap<NodeId, Peer>,
    /// How long the last pieces from peers took.
    took: VecDeque<Duration>,
}

struct Peer {
    address: Address,
    failures: u32,
    /// It is left alone until then.
    away_until: Option<Instant>,
    /// It sent wrong bytes: it is asked for nothing more of this bundle.
    banned: bool,
    have_at: Instant,
    asking_have: bool,
}

impl Peers {
    /// Takes the tracker's list in place of the earlier one; returns who is gone.
    pub(super) fn replace(&mut self, hints: Vec<PeerHint>, now: Instant) -> Vec<NodeId> {
        self.order.clear();
        for hint in hints {
            let address = Address { url: hint.url, token: hint.token };
            if self.order.contains(&hint.node) {
                continue;
            }
            self.order.push(hint.node);
            match self.known.get_mut(&hint.node) {
                Some(peer) if peer.address.url == address.url => peer.address = address,
                Some(peer) => {
                    // It came back under another address.
                    (peer.address, peer.failures, peer.away_until, peer.have_at) = (address, 0, None, now);
                }
                None => {
                    let peer = Peer {
                        address,
                        failures: 0,
                        away_until: None,
                        banned: false,
                        have_at: now,
                        asking_have: false,
                    };
                    self.known.insert(hint.node, peer);
                }
            }
        }
        let order = &self.order;
        let gone: Vec<NodeId> = self.known.keys().filter(|node| !order.contains(node)).copied().collect();
        // Who was banned stays so, however often the tracker names it.
        self.known.retain(|node, peer| peer.banned || order.contains(node));
        gone
    }

    /// How to reach a peer that is asked.
    pub(super) fn address(&self, node: NodeId) -> Option<&Address> {
        self.known.get(&node).map(|peer| &peer.address)
    }

    /// Who is to be asked what it has now; each until [`Peers::have_told`] only once.
    pub(super) fn have_due(&mut self, now: Instant) -> Vec<(NodeId, Address)> {
        let mut due = Vec::new();
        for node in self.active(now) {
            if let Some(peer) = self.known.get_mut(&node)
                && !peer.asking_have
                && peer.have_at <= now
            {
                peer.asking_have = true;
                due.push((node, peer.address.clone()));
            }
        }
        due
    }

    /// Its answer came, or not; it is asked again at `next`.
    pub(super) fn have_told(&mut self, node: NodeId, next: Instant) {
        if let Some(peer) = self.known.get_mut(&node) {
            peer.asking_have = false;
            peer.have_at = next;
        }
    }

    /// It is asked what it has before `at`, unless it is being asked.
    pub(super) fn have_before(&mut self, node: NodeId, at: Instant) {
        if let Some(peer) = self.known.get_mut(&node) {
            peer.have_at = peer.have_at.min(at);
        }
    }

    /// A piece came from it.
    pub(super) fn came(&mut self, node: NodeId, took: Duration) {
        if let Some(peer) = self.known.get_mut(&node) {
            peer.failures = 0;
        }
        self.took.push_back(took);
        if self.took.len() > TIMES_KEPT {
            self.took.pop_front();
        }
    }

    /// It could not be reached or did not answer as it should: left alone, longer each time.
    pub(super) fn failed(&mut self, node: NodeId, at_least: Option<Duration>, now: Instant) {
        if let Some(peer) = self.known.get_mut(&node) {
            peer.failures = peer.failures.saturating_add(1);
            let wait = AWAY_FIRST.saturating_mul(1 << (peer.failures - 1).min(10)).min(AWAY_MOST);
            let wait = wait.max(at_least.unwrap_or_default().min(AWAY_MOST));
            peer.away_until = Some(now + wait);
            peer.have_at = now + wait;
        }
    }

    /// It sent wrong bytes.
    pub(super) fn ban(&mut self, node: NodeId) {
        if let Some(peer) = self.known.get_mut(&node) {
            peer.banned = true;
        }
    }

    /// Who may be asked.
    pub(super) fn active(&self, now: Instant) -> Vec<NodeId> {
        let able = |node: &&NodeId| {
            let peer = self.known.get(node);
            peer.is_some_and(|peer| !peer.banned && peer.away_until.is_none_or(|until| until <= now))
        };
        self.order.iter().filter(able).take(ACTIVE_MAX).copied().collect()
    }

    /// When somebody is to be asked what it has, without anything else happening.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let active = self.active(now).into_iter().filter_map(|node| {
            let peer = self.known.get(&node)?;
            (!peer.asking_have).then_some(peer.have_at)
        });
        let back = self.known.values().filter(|peer| !peer.banned).filter_map(|peer| peer.away_until);
        active.chain(back.filter(|&until| until > now)).min()
    }

    /// How long one piece may take: much longer than others take, and never so little that a slow link can't.
    pub(super) fn patience(&self) -> Duration {
        match self.median() {
            Some(median) => (median * SLOW_TIMES).clamp(PATIENCE_LEAST, PATIENCE_MOST),
            None => PATIENCE_MOST,
        }
    }

    /// After how long a piece that is still on its way may be asked for elsewhere too, at the end.
    pub(super) fn overdue(&self) -> Duration {
        self.median().map_or(OVERDUE_LEAST * 4, |median| (median * 2).max(OVERDUE_LEAST))
    }

    fn median(&self) -> Option<Duration> {
        if self.took.len() < TIMES_NEEDED {
            return None;
        }
        let mut took: Vec<Duration> = self.took.iter().copied().collect();
        took.sort_unstable();
        Some(took[took.len() / 2])
    }
}

/// Peers that are asked at once at most.
pub(super) const ACTIVE_MAX: usize = 16;
const TIMES_KEPT: usize = 32;
const TIMES_NEEDED: usize = 4;
/// A request that takes so many times as long as is usual is given up.
const SLOW_TIMES: u32 = 8;
const PATIENCE_LEAST: Duration = Duration::from_secs(10);
const PATIENCE_MOST: Duration = Duration::from_secs(180);
const OVERDUE_LEAST: Duration = Duration::from_millis(500);
const AWAY_FIRST: Duration = Duration::from_secs(1);
const AWAY_MOST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(node: u32, url: &str) -> PeerHint {
        PeerHint { node: NodeId(node), url: url.into(), token: "t".into() }
    }

    #[test]
    fn so_many_are_asked_and_others_step_in() {
        let now = Instant::now();
        let mut peers = Peers::default();
        assert!(peers.replace((0..20).map(|n| hint(n, "u")).collect(), now).is_empty());
        assert_eq!(peers.have_due(now).len(), ACTIVE_MAX);
        assert!(peers.have_due(now).is_empty(), "each only once");
        peers.ban(NodeId(0));
        peers.failed(NodeId(1), None, now);
        assert_eq!(peers.active(now).len(), ACTIVE_MAX);
        assert!(!peers.active(now).contains(&NodeId(0)) && !peers.active(now).contains(&NodeId(1)));
        let due: Vec<NodeId> = peers.have_due(now).into_iter().map(|(node, _)| node).collect();
        assert_eq!(due, [NodeId(16), NodeId(17)]);
        assert!(peers.active(now + AWAY_FIRST).contains(&NodeId(1)), "it comes back");
        let gone = peers.replace(vec![hint(0, "other"), hint(2, "u")], now);
        assert_eq!(gone.len(), 18);
        assert_eq!(peers.active(now), [NodeId(2)], "who lied stays banned");
    }

    #[test]
    fn patience_goes_by_what_others_take() {
        let mut peers = Peers::default();
        peers.replace(vec![hint(1, "u")], Instant::now());
        assert_eq!(peers.patience(), PATIENCE_MOST);
        (0..40).for_each(|_| peers.came(NodeId(1), Duration::from_secs(4)));
        assert_eq!((peers.patience(), peers.overdue()), (Duration::from_secs(32), Duration::from_secs(8)));
        (0..40).for_each(|_| peers.came(NodeId(1), Duration::from_millis(3)));
        assert_eq!((peers.patience(), peers.overdue()), (PATIENCE_LEAST, OVERDUE_LEAST));
    }

    #[test]
    fn failures_wait_longer_each_time_within_bounds() {
        let now = Instant::now();
        let mut peers = Peers::default();
        peers.replace(vec![hint(1, "u")], now);
        for _ in 0..100 {
            peers.failed(NodeId(1), None, now);
        }
        assert!(peers.active(now + AWAY_MOST - Duration::from_millis(1)).is_empty());
        assert_eq!(peers.active(now + AWAY_MOST).len(), 1);
        peers.came(NodeId(1), Duration::ZERO);
        peers.failed(NodeId(1), Some(Duration::from_secs(9_999)), now);
        assert_eq!(peers.next_due(now), Some(now + AWAY_MOST));
    }
}
