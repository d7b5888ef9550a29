//! Where customers were sent lately: one who asks again so soon probably got nothing there.
//!
//! A direct-mapped table of fixed size; a collision forgets, and a slot in use is not waited for.

use std::sync::Mutex;
use std::time::Duration;

use freshet_api::NodeId;
use freshet_policy::Moment;

/// Recent redirects by customer and file.
#[derive(Debug)]
pub(super) struct Recent {
    slots: Box<[Line]>,
}

/// A slot takes one line of the cache: most are cold when they are looked at.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(Mutex<Slot>);

/// Where one customer was sent for one file, and when; newest last.
pub(super) type Sent = Vec<(NodeId, Moment)>;

impl Recent {
    pub(super) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Line::default()).collect() }
    }

    /// Remembers that the customer and file of `key` were sent to `node`.
    pub(super) fn note(&self, key: u64, node: NodeId, now: Moment) {
        // Another ring is in this slot: forgetting costs less than waiting.
        let Ok(mut slot) = self.slot(key).try_lock() else { return };
        if slot.key != key {
            *slot = Slot { key, ..Slot::default() };
        }
        let place = slot.nodes.iter().position(|sent| *sent == node.0).unwrap_or(usize::from(slot.next));
        (slot.nodes[place], slot.times[place]) = (node.0, millis(now));
        slot.next = ((place + 1) % SENT_MAX) as u8;
    }

    /// Where the customer was sent for the file within `window`.
    pub(super) fn sent(&self, key: u64, now: Moment, window: Duration) -> Sent {
        let Ok(slot) = self.slot(key).try_lock() else { return Sent::new() };
        if slot.key != key {
            return Sent::new();
        }
        let sent = slot.nodes.iter().zip(&slot.times);
        let aged = sent.map(|(&node, &at)| (node, age(at, now)));
        let recent = aged.filter(|(node, age)| *node != NOBODY && *age < window);
        recent.map(|(node, age)| (NodeId(node), now.before(age))).collect()
    }

    fn slot(&self, key: u64) -> &Mutex<Slot> {
        &self.slots[(key >> 32) as usize % SLOTS].0
    }
}

#[derive(Debug, Default)]
struct Slot {
    key: u64,
    /// Milliseconds; they begin again after seven weeks.
    times: [u32; SENT_MAX],
    nodes: [u32; SENT_MAX],
    next: u8,
}

fn millis(at: Moment) -> u32 {
    (at.0 / 1_000_000) as u32
}

/// How long before `now` that was. A moment a little after it is another thread's now.
fn age(at: u32, now: Moment) -> Duration {
    let passed = millis(now).wrapping_sub(at);
    if passed > u32::MAX / 2 { Duration::ZERO } else { Duration::from_millis(passed.into()) }
}

/// Nodes are numbered from 1.
const NOBODY: u32 = 0;
/// Volunteers remembered for one customer and file.
const SENT_MAX: usize = 4;
/// Customers and files remembered (4 MB).
const SLOTS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);

    fn at(seconds: f64) -> Moment {
        Moment::from_secs_f64(seconds)
    }

    fn nodes(sent: Sent) -> Vec<u32> {
        let mut nodes: Vec<u32> = sent.into_iter().map(|(node, _)| node.0).collect();
        nodes.sort_unstable();
        nodes
    }

    #[test]
    fn a_slot_is_one_line() {
        assert_eq!(size_of::<Line>(), 64);
    }

    #[test]
    fn the_last_few_are_remembered_for_a_while() {
        let recent = Recent::new();
        for node in 1..=6 {
            recent.note(7, NodeId(node), at(f64::from(node)));
        }
        assert_eq!(nodes(recent.sent(7, at(6.0), WINDOW)), [3, 4, 5, 6]);
        assert_eq!(nodes(recent.sent(7, at(34.5), WINDOW)), [5, 6]);
        assert!(recent.sent(7, at(99.0), WINDOW).is_empty());
        assert!(recent.sent(8, at(6.0), WINDOW).is_empty());
    }

    #[test]
    fn the_same_node_again_takes_one_place() {
        let recent = Recent::new();
        for second in 1..=9 {
            recent.note(7, NodeId(2), at(f64::from(second)));
        }
        recent.note(7, NodeId(3), at(10.0));
        let sent = recent.sent(7, at(10.0), WINDOW);
        assert_eq!(nodes(sent.clone()), [2, 3]);
        assert!(sent.contains(&(NodeId(2), at(9.0))));
    }
}
