//! Who hands one content on to whom, so that it leaves the origin about once: for contents that are fetched whole, such
//! as manifests, which are small beside what they describe.
//!
//! The first who asks is sent to the origin, and everybody else waits until somebody has it; then each who has it is
//! sent a few of those who lack it, and they hand it on in turn. Whom a peer failed is sent to another, and after a
//! few to the origin. No word of a peer is worth more than what those it was sent found: who fails two is asked no
//! more. It knows neither hashes nor addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use freshet_api::{Bytes, NodeId};

use crate::draw;
use crate::moment::Moment;

/// The books of one content.
#[derive(Clone, Debug)]
pub struct Relay {
    terms: RelayTerms,
    holders: BTreeMap<NodeId, Holder>,
    sent: BTreeMap<NodeId, Sent>,
    /// Whom each was failed by. Kept until it has the content.
    failed: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Who failed somebody, and whom.
    failures: BTreeMap<NodeId, BTreeSet<NodeId>>,
    figures: RelayFigures,
}

/// What a relay goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayTerms {
    /// Who are sent to one holder at once at most.
    pub each_max: usize,
    /// Who are sent to the origin at once at most.
    pub origin_max: usize,
    /// After it, who was sent somewhere and said nothing is taken for gone.
    pub patience: Duration,
    /// Draws among equals.
    pub seed: u64,
}

/// Where to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelaySource {
    /// From this peer.
    Peer(NodeId),
    /// From the origin.
    Origin,
    /// Nowhere yet: ask again when something has changed.
    Later,
}

/// Sums since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayFigures {
    /// Who were sent to the origin.
    pub from_origin: u64,
    /// Who were sent to a peer.
    pub from_peers: u64,
    /// Times that a peer did not give it.
    pub failed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Holder {
    /// Who are sent there now.
    busy: usize,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    to: RelaySource,
    until: Moment,
}

impl RelayTerms {
    /// What suits a content of `size` bytes: a small one takes less time than the words about it, so that each holder
    /// gives it to several at once; a large one is handed on the sooner, the fewer share a holder's uplink.
    pub fn of(size: Bytes, seed: u64) -> Self {
        let each_max = if size.0 <= SMALL_BYTES { EACH_SMALL } else { EACH_LARGE };
        let patience = PATIENCE_LEAST + Duration::from_secs(size.0 / SLOWEST);
        Self { each_max, origin_max: ORIGIN_MAX, patience, seed }
    }
}

impl Relay {
    /// Nobody has it but the origin.
    pub fn new(terms: RelayTerms) -> Self {
        Self {
            terms,
            holders: BTreeMap::new(),
            sent: BTreeMap::new(),
            failed: BTreeMap::new(),
            failures: BTreeMap::new(),
            figures: RelayFigures::default(),
        }
    }

    /// `node` lacks it and asks where to fetch it. Who asks again is not on its way any more.
    pub fn ask(&mut self, node: NodeId, now: Moment) -> RelaySource {
        self.expire(now);
        self.release(node);
        self.holders.remove(&node);
        let failed = self.failed.get(&node);
        let failures = failed.map_or(0, BTreeSet::len);
        let able =
            self.holders.iter().filter(|(holder, _)| failed.is_none_or(|failed| !failed.contains(holder)));
        let mut any = false;
        let free = able.inspect(|_| any = true).filter(|(_, state)| state.busy < self.terms.each_max);
        let spread =
            |holder: NodeId| draw::mix(self.terms.seed ^ u64::from(holder.0) << 32 ^ u64::from(node.0));
        let best =
            free.min_by_key(|(holder, state)| (state.busy, spread(**holder))).map(|(&holder, _)| holder);
        let at_origin = self.sent.values().filter(|sent| sent.to == RelaySource::Origin).count();
        let to = match best {
            Some(holder) if failures < FAILURES_MAX => RelaySource::Peer(holder),
            // Those who have it are busy, and will not be for long.
            _ if any && failures < FAILURES_MAX => RelaySource::Later,
            _ if at_origin < self.terms.origin_max => RelaySource::Origin,
            _ => RelaySource::Later,
        };
        match to {
            RelaySource::Peer(holder) => {
                self.holders.entry(holder).or_default().busy += 1;
                self.figures.from_peers += 1;
            }
            RelaySource::Origin => self.figures.from_origin += 1,
            RelaySource::Later => return to,
        }
        self.sent.insert(node, Sent { to, until: now + self.terms.patience });
        to
    }

    /// `node` has it, and others may be sent there if it is `reachable`.
    pub fn has(&mut self, node: NodeId, reachable: bool) {
        self.release(node);
        self.failed.remove(&node);
        let trusted = self.failures.get(&node).is_none_or(|failures| failures.len() < FAILED_MAX);
        if reachable && trusted {
            self.holders.entry(node).or_default();
        }
    }

    /// What `node` was sent to did not give it: a peer, or nobody for the origin. Returns whether it was sent there: who
    /// was not is not heard.
    pub fn failed(&mut self, node: NodeId, by: Option<NodeId>) -> bool {
        let to = by.map_or(RelaySource::Origin, RelaySource::Peer);
        if self.sent.get(&node).is_none_or(|sent| sent.to != to) {
            return false;
        }
        self.release(node);
        let Some(peer) = by else { return true };
        self.figures.failed += 1;
        self.failed.entry(node).or_default().insert(peer);
        let failures = self.failures.entry(peer).or_default();
        failures.insert(node);
        if failures.len() >= FAILED_MAX {
            self.holders.remove(&peer);
        }
        true
    }

    /// `node` is gone: lost, banned or removed.
    pub fn forget(&mut self, node: NodeId) {
        self.release(node);
        self.holders.remove(&node);
        self.failed.remove(&node);
    }

    /// Who have it and can be asked.
    pub fn holders(&self) -> usize {
        self.holders.len()
    }

    /// What came of it so far.
    pub fn figures(&self) -> RelayFigures {
        self.figures
    }

    /// When the next of those who were sent somewhere is taken for gone.
    pub fn next_expiry(&self) -> Option<Moment> {
        self.sent.values().map(|sent| sent.until).min()
    }

    fn expire(&mut self, now: Moment) {
        let late: Vec<NodeId> =
            self.sent.iter().filter(|(_, sent)| sent.until <= now).map(|(&node, _)| node).collect();
        late.into_iter().for_each(|node| self.release(node));
    }

    fn release(&mut self, node: NodeId) {
        if let Some(Sent { to: RelaySource::Peer(holder), .. }) = self.sent.remove(&node)
            && let Some(holder) = self.holders.get_mut(&holder)
        {
            holder.busy = holder.busy.saturating_sub(1);
        }
    }
}

/// Peers that fail one who asks before it is sent to the origin.
const FAILURES_MAX: usize = 3;
/// Different ones that a holder fails before nobody is sent there any more.
const FAILED_MAX: usize = 2;
const ORIGIN_MAX: usize = 1;
const SMALL_BYTES: u64 = 1 << 20;
const EACH_SMALL: usize = 4;
const EACH_LARGE: usize = 1;
const PATIENCE_LEAST: Duration = Duration::from_secs(10);
/// Bytes per second of the slowest link that is waited for.
const SLOWEST: u64 = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Moment {
        Moment::from_secs_f64(seconds)
    }

    fn relay(size: u64) -> Relay {
        Relay::new(RelayTerms::of(Bytes(size), 7))
    }

    /// Plays `nodes` who all ask at once and take a second for each copy; `lies` says who gives rubbish. Returns the
    /// seconds until the last has it, and the copies that the origin sent.
    fn play(relay: &mut Relay, nodes: u32, lies: impl Fn(NodeId) -> bool) -> (u32, u64) {
        let mut lacking: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
        let mut asking = lacking.clone();
        let mut under_way: Vec<(NodeId, RelaySource)> = Vec::new();
        for second in 0..1_000 {
            let now = at(f64::from(second));
            for (node, from) in std::mem::take(&mut under_way) {
                match from {
                    RelaySource::Peer(peer) if lies(peer) => {
                        relay.failed(node, Some(peer));
                        asking.insert(node);
                    }
                    _ => {
                        lacking.remove(&node);
                        relay.has(node, true);
                    }
                }
            }
            if lacking.is_empty() {
                return (second, relay.figures().from_origin);
            }
            for node in asking.clone() {
                match relay.ask(node, now) {
                    RelaySource::Later => {}
                    from => {
                        asking.remove(&node);
                        under_way.push((node, from));
                    }
                }
            }
        }
        panic!("{} never got it", lacking.len());
    }

    #[test]
    fn it_leaves_the_origin_once_and_spreads_like_a_rumour() {
        let (seconds, copies) = play(&mut relay(80 << 20), 40, |_| false);
        assert_eq!(copies, 1);
        assert_eq!(seconds, 7, "one, and then twice as many every second: 1 + log2(40)");
        let (seconds, copies) = play(&mut relay(40 << 10), 40, |_| false);
        assert_eq!((seconds, copies), (4, 1), "five times as many");
    }

    #[test]
    fn liars_cost_little_and_nobody_is_left_behind() {
        for liars in [1u32, 4] {
            let mut relay = relay(40 << 10);
            let (seconds, copies) = play(&mut relay, 40, |node| node.0 <= liars);
            assert!(
                copies <= 2 + u64::from(liars) && seconds <= 16,
                "{liars} liars: {copies} copies, {seconds} s"
            );
            assert!(relay.figures().failed > 0);
        }
        // Everybody lies to everybody: each comes to the origin in the end.
        let (_, copies) = play(&mut relay(40 << 10), 10, |_| true);
        assert_eq!(copies, 10);
    }

    #[test]
    fn who_is_gone_is_not_waited_for_longer_than_is_usual() {
        let mut relay = relay(1_000);
        assert_eq!(relay.ask(NodeId(1), at(0.0)), RelaySource::Origin);
        assert_eq!(relay.ask(NodeId(2), at(1.0)), RelaySource::Later);
        assert_eq!(relay.next_expiry(), Some(at(10.0)));
        assert_eq!(relay.ask(NodeId(2), at(10.0)), RelaySource::Origin);
        relay.has(NodeId(2), false);
        assert_eq!(relay.ask(NodeId(3), at(11.0)), RelaySource::Origin, "nobody can reach the second");
        relay.has(NodeId(3), true);
        assert_eq!(relay.ask(NodeId(1), at(12.0)), RelaySource::Peer(NodeId(3)));
        relay.forget(NodeId(3));
        assert_eq!(relay.ask(NodeId(1), at(13.0)), RelaySource::Origin);
    }

    #[test]
    fn nobody_is_accused_by_whom_it_was_not_sent() {
        let mut relay = relay(1_000);
        relay.has(NodeId(1), true);
        for slanderer in 2..10 {
            assert!(!relay.failed(NodeId(slanderer), Some(NodeId(1))));
        }
        assert_eq!((relay.holders(), relay.figures().failed), (1, 0));
        for (node, left) in [(2, 1), (3, 0)] {
            assert_eq!(relay.ask(NodeId(node), at(1.0)), RelaySource::Peer(NodeId(1)));
            assert!(relay.failed(NodeId(node), Some(NodeId(1))));
            assert_eq!(relay.holders(), left);
        }
        relay.has(NodeId(1), true);
        assert_eq!(relay.holders(), 0, "whom it failed it has failed");
    }
}
