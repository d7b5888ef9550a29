//! A node's uplink as a fluid: flows share it max-min fairly, each at most as fast as its receiver.
//!
//! Receivers come in a few classes of rate. All flows of a class run at the same rate, so a class is
//! one virtual clock that counts bytes per flow, and a flow ends when that clock has passed its size.
//! An arrival or a completion costs one heap operation and a pass over the classes; nothing is
//! approximated. Two groups, delivery and sync, share the uplink by a guaranteed part each and borrow
//! what the other leaves.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Which group of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Group {
    /// To customers.
    Delivery = 0,
    /// To mirrors.
    Sync = 1,
}

/// Identifies a flow to its owner; the uplink only keeps it.
pub(super) type FlowId = u32;

/// What all flows of a class have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Receiver {
    /// What its link takes, bytes per second.
    pub(super) limit: f64,
    /// A flow's part of what is shared, relative to the others'.
    pub(super) weight: f64,
}

/// A flow that waits for the virtual clock to pass `end`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Waiting {
    end: f64,
    flow: FlowId,
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> std::cmp::Ordering {
        self.end.total_cmp(&other.end).then(self.flow.cmp(&other.flow))
    }
}

#[derive(Clone, Debug, Default)]
struct RateClass {
    /// Bytes that each flow of the class has had since the class was last empty.
    clock: f64,
    rate: f64,
    waiting: BinaryHeap<Reverse<Waiting>>,
}

/// One uplink.
#[derive(Clone, Debug)]
pub(super) struct Uplink {
    capacity: f64,
    delivery_share: f64,
    at: f64,
    groups: [Vec<RateClass>; 2],
    sent: [f64; 2],
    backlog: [f64; 2],
}

impl Uplink {
    /// An idle uplink of `capacity` bytes per second for receivers of `classes` classes.
    pub(super) fn new(capacity: f64, classes: usize) -> Uplink {
        let group = || vec![RateClass::default(); classes];
        Uplink {
            capacity,
            delivery_share: 0.5,
            at: 0.0,
            groups: [group(), group()],
            sent: [0.0; 2],
            backlog: [0.0; 2],
        }
    }

    /// What it carries, in bytes per second.
    pub(super) fn capacity(&self) -> f64 {
        self.capacity
    }

    /// Bytes sent since the beginning, by group.
    pub(super) fn sent(&self, group: Group) -> f64 {
        self.sent[group as usize]
    }

    /// Bytes that open flows still want, by group.
    pub(super) fn backlog(&self, group: Group) -> f64 {
        self.backlog[group as usize].max(0.0)
    }

    /// Open flows, by group.
    pub(super) fn flows(&self, group: Group) -> usize {
        self.groups[group as usize].iter().map(|class| class.waiting.len()).sum()
    }

    /// Whether the open flows could take more than it carries.
    pub(super) fn is_saturated(&self, receivers: &[Receiver]) -> bool {
        self.groups.iter().map(|classes| wanted(classes, receivers)).sum::<f64>() >= self.capacity
    }

    /// Present rate, by group.
    #[cfg(test)]
    pub(super) fn rate(&self, group: Group) -> f64 {
        self.groups[group as usize].iter().map(|class| class.rate * class.waiting.len() as f64).sum()
    }

    /// Lets time pass until `now`; rates stay as they are.
    pub(super) fn advance(&mut self, now: f64) {
        let passed = now - self.at;
        if passed <= 0.0 {
            return;
        }
        self.at = now;
        for (group, classes) in self.groups.iter_mut().enumerate() {
            for class in classes.iter_mut().filter(|class| !class.waiting.is_empty()) {
                let bytes = class.rate * passed;
                class.clock += bytes;
                let all = bytes * class.waiting.len() as f64;
                self.sent[group] += all;
                self.backlog[group] -= all;
            }
        }
    }

    /// Opens a flow of `size` bytes. Call [`Uplink::share_out`] after the last change at this moment.
    pub(super) fn open(&mut self, group: Group, class: usize, flow: FlowId, size: f64) {
        self.backlog[group as usize] += size;
        let class = &mut self.groups[group as usize][class];
        if class.waiting.is_empty() {
            class.clock = 0.0;
        }
        class.waiting.push(Reverse(Waiting { end: class.clock + size, flow }));
    }

    /// Takes out the flows that are done by now.
    pub(super) fn done(&mut self, into: &mut Vec<FlowId>) {
        for (group, classes) in self.groups.iter_mut().enumerate() {
            for class in classes.iter_mut() {
                while let Some(Reverse(next)) = class.waiting.peek()
                    && next.end <= class.clock + DONE_BYTES
                {
                    // What was rounded off belongs to this flow.
                    self.backlog[group] -= next.end - class.clock;
                    self.sent[group] += next.end - class.clock;
                    into.push(next.flow);
                    class.waiting.pop();
                }
                if class.waiting.is_empty() {
                    class.clock = 0.0;
                }
            }
            if classes_are_empty(classes) {
                self.backlog[group] = 0.0;
            }
        }
    }

    /// Breaks all flows off; what each still wanted.
    pub(super) fn break_off(&mut self) -> Vec<(FlowId, f64)> {
        let mut broken = Vec::new();
        for class in self.groups.iter_mut().flatten() {
            broken.extend(class.waiting.drain().map(|Reverse(w)| (w.flow, (w.end - class.clock).max(0.0))));
            class.clock = 0.0;
        }
        self.backlog = [0.0; 2];
        broken
    }

    /// Puts another capacity or share in force. Advance first, share out after.
    pub(super) fn set(&mut self, capacity: f64, delivery_share: f64) {
        self.capacity = capacity;
        self.delivery_share = delivery_share;
    }

    /// Delivery's share in force.
    pub(super) fn delivery_share(&self) -> f64 {
        self.delivery_share
    }

    /// Computes all rates anew; `receivers` are those of the classes, ascending by limit over weight. Returns when the
    /// next flow will be done, if nothing changes before.
    pub(super) fn share_out(&mut self, receivers: &[Receiver]) -> Option<f64> {
        let (delivery, sync) = (wanted(&self.groups[0], receivers), wanted(&self.groups[1], receivers));
        let guaranteed = self.capacity * self.delivery_share;
        let for_delivery = delivery.min(guaranteed.max(self.capacity - sync));
        let for_sync = sync.min(self.capacity - for_delivery);
        let mut next: Option<f64> = None;
        for (classes, mut left) in self.groups.iter_mut().zip([for_delivery, for_sync]) {
            let weight =
                |class: &RateClass, receiver: &Receiver| class.waiting.len() as f64 * receiver.weight;
            let mut weights: f64 = classes.iter().zip(receivers).map(|(c, r)| weight(c, r)).sum();
            for (class, receiver) in classes.iter_mut().zip(receivers) {
                if class.waiting.is_empty() {
                    continue;
                }
                class.rate = receiver.limit.min(left.max(0.0) * receiver.weight / weights);
                left -= class.rate * class.waiting.len() as f64;
                weights -= weight(class, receiver);
                if let Some(Reverse(first)) = class.waiting.peek()
                    && class.rate > 0.0
                {
                    let at = self.at + ((first.end - class.clock) / class.rate).max(0.0);
                    next = Some(next.map_or(at, |next| next.min(at)));
                }
            }
        }
        next
    }
}

/// What the open flows of a group could take, bytes per second.
fn wanted(classes: &[RateClass], receivers: &[Receiver]) -> f64 {
    classes.iter().zip(receivers).map(|(class, receiver)| class.waiting.len() as f64 * receiver.limit).sum()
}

fn classes_are_empty(classes: &[RateClass]) -> bool {
    classes.iter().all(|class| class.waiting.is_empty())
}

/// A flow that lacks no more than this is done: floating point is exact to less.
const DONE_BYTES: f64 = 0.01;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: [f64; 3] = [10.0, 40.0, 1000.0];
    const ALIKE: [Receiver; 3] = [alike(10.0), alike(40.0), alike(1000.0)];

    const fn alike(limit: f64) -> Receiver {
        Receiver { limit, weight: 1.0 }
    }

    #[test]
    fn slow_receivers_leave_the_rest_to_the_others() {
        let mut uplink = Uplink::new(100.0, 3);
        uplink.open(Group::Delivery, 0, 1, 1000.0);
        uplink.open(Group::Delivery, 2, 2, 900.0);
        assert_eq!(uplink.share_out(&ALIKE), Some(10.0));
        uplink.advance(10.0);
        let mut done = Vec::new();
        uplink.done(&mut done);
        assert_eq!(done, [2]);
        assert_eq!(uplink.share_out(&ALIKE), Some(100.0));
        assert!((uplink.backlog(Group::Delivery) - 900.0).abs() < 1e-9);
        assert!((uplink.sent(Group::Delivery) - 1000.0).abs() < 1e-9);
    }

    #[test]
    fn groups_have_their_part_and_borrow_what_is_left() {
        let mut uplink = Uplink::new(100.0, 3);
        uplink.set(100.0, 0.7);
        uplink.open(Group::Delivery, 2, 1, 1e6);
        uplink.share_out(&ALIKE);
        assert_eq!(uplink.rate(Group::Delivery), 100.0);
        uplink.open(Group::Sync, 2, 2, 1e6);
        uplink.share_out(&ALIKE);
        assert!((uplink.rate(Group::Delivery) - 70.0).abs() < 1e-9);
        assert!((uplink.rate(Group::Sync) - 30.0).abs() < 1e-9);
        assert_eq!(uplink.break_off().len(), 2);
        uplink.open(Group::Sync, 0, 3, 1e6);
        uplink.open(Group::Delivery, 2, 4, 1e6);
        uplink.share_out(&ALIKE);
        assert!((uplink.rate(Group::Delivery) - 90.0).abs() < 1e-9);
    }

    #[test]
    fn weights_count_while_receivers_are_not_the_limit() {
        let weighed = [Receiver { limit: 100.0, weight: 9.0 }, Receiver { limit: 100.0, weight: 1.0 }];
        let mut uplink = Uplink::new(100.0, 2);
        uplink.open(Group::Delivery, 0, 1, 900.0);
        uplink.open(Group::Delivery, 1, 2, 200.0);
        // 90 and 10 a second; then one alone, with what is left.
        assert_eq!(uplink.share_out(&weighed), Some(10.0));
        uplink.advance(10.0);
        let mut done = Vec::new();
        uplink.done(&mut done);
        assert_eq!(done, [1]);
        assert_eq!(uplink.share_out(&weighed), Some(11.0));
        // A small one whose receiver is slow leaves the rest to the large one.
        let slow = [Receiver { limit: 5.0, weight: 9.0 }, weighed[1]];
        uplink.open(Group::Delivery, 0, 3, 1e6);
        assert_eq!(uplink.share_out(&slow), Some(10.0 + 100.0 / 95.0));
    }

    proptest! {
        /// Whatever arrives when, all bytes are sent, no sooner than capacity and receiver allow, and
        /// the uplink is never idle while there is work that it could do.
        #[test]
        fn bytes_are_conserved(
            flows in proptest::collection::vec((0usize..3, 1.0f64..500.0, 0.0f64..3.0, any::<bool>()), 1..60),
            capacity in 5.0f64..500.0,
        ) {
            let mut uplink = Uplink::new(capacity, 3);
            let (mut now, mut next, mut done) = (0.0, None::<f64>, Vec::new());
            let mut total = 0.0;
            let mut started = Vec::new();
            let run_to = |uplink: &mut Uplink, next: &mut Option<f64>, until: f64, done: &mut Vec<(FlowId, f64)>| {
                while let Some(at) = next.filter(|at| *at <= until) {
                    uplink.advance(at);
                    let mut ended = Vec::new();
                    uplink.done(&mut ended);
                    done.extend(ended.into_iter().map(|flow| (flow, at)));
                    *next = uplink.share_out(&ALIKE);
                }
                uplink.advance(until);
            };
            for (number, (class, size, pause, sync)) in flows.iter().enumerate() {
                now += pause;
                run_to(&mut uplink, &mut next, now, &mut done);
                let group = if *sync { Group::Sync } else { Group::Delivery };
                uplink.open(group, *class, number as u32, *size);
                next = uplink.share_out(&ALIKE);
                total += size;
                started.push(now);
            }
            run_to(&mut uplink, &mut next, 1e9, &mut done);
            prop_assert_eq!(done.len(), flows.len());
            let sent = uplink.sent(Group::Delivery) + uplink.sent(Group::Sync);
            prop_assert!((sent - total).abs() < 1e-3 * total.max(1.0));
            for (flow, at) in &done {
                let (class, size, ..) = flows[*flow as usize];
                let fastest = size / LIMITS[class].min(capacity);
                prop_assert!(at - started[*flow as usize] >= fastest - 1e-2);
            }
            let end = done.iter().map(|d| d.1).fold(0.0, f64::max);
            prop_assert!(total / capacity <= end + 1e-2);
        }
    }
}
