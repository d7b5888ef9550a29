//! What passes volunteers' interfaces just now, by class, from the counters of their heartbeats; and the last hour of the
//! whole. It decides nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use freshet_api::operator::{ClassRates, FlowRates, InterfaceRates};
use freshet_api::traffic::{InOut, InterfaceCounters};
use freshet_api::{BytesPerSec, NodeId};
use freshet_policy::Moment;
use freshet_policy::rates::CounterRate;

/// Rates of all volunteers.
#[derive(Debug, Default)]
pub struct Flows {
    nodes: Mutex<HashMap<NodeId, NodeFlows>>,
    hour: Mutex<VecDeque<Instant>>,
}

/// The whole at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instant {
    /// Seconds since the epoch.
    pub at: u64,
    /// All volunteers' classes together.
    pub volunteers: ClassRates,
    /// What the origin sent to customers.
    pub origin: BytesPerSec,
    /// What it sent to volunteers.
    pub origin_sync: BytesPerSec,
}

#[derive(Debug)]
struct NodeFlows {
    boot: u64,
    heard: Moment,
    interfaces: Vec<(String, [CounterRate; CLASSES * 2])>,
}

impl Flows {
    /// Takes in a heartbeat's counters.
    pub fn saw(&self, node: NodeId, boot: u64, interfaces: &[InterfaceCounters], now: Moment) {
        let mut nodes = lock(&self.nodes);
        let flows = nodes.entry(node).or_insert(NodeFlows { boot, heard: now, interfaces: Vec::new() });
        if flows.boot != boot {
            *flows = NodeFlows { boot, heard: now, interfaces: Vec::new() };
        }
        flows.heard = now;
        flows.interfaces.retain(|(name, _)| interfaces.iter().any(|counters| counters.name == *name));
        for counters in interfaces {
            let known = flows.interfaces.iter().position(|(name, _)| *name == counters.name);
            let at = known.unwrap_or_else(|| {
                let rates = std::array::from_fn(|_| CounterRate::new(SMOOTH));
                flows.interfaces.push((counters.name.clone(), rates));
                flows.interfaces.len() - 1
            });
            let classes = [&counters.delivery, &counters.sync, &counters.control, &counters.other];
            for (class, InOut { received, sent }) in classes.into_iter().enumerate() {
                flows.interfaces[at].1[2 * class].read(received.bytes, now);
                flows.interfaces[at].1[2 * class + 1].read(sent.bytes, now);
            }
        }
    }

    /// Forgets a volunteer.
    pub fn forget(&self, node: NodeId) {
        lock(&self.nodes).remove(&node);
    }

    /// What passes a volunteer's interfaces; nothing when it is silent.
    pub fn of(&self, node: NodeId, now: Moment) -> Vec<InterfaceRates> {
        let nodes = lock(&self.nodes);
        let Some(flows) = nodes.get(&node).filter(|flows| now.since(flows.heard) < SILENT) else {
            return Vec::new();
        };
        flows
            .interfaces
            .iter()
            .map(|(name, rates)| InterfaceRates { name: name.clone(), classes: classes(rates) })
            .collect()
    }

    /// All volunteers' together.
    pub fn sum(&self, now: Moment) -> ClassRates {
        let nodes = lock(&self.nodes);
        let heard = nodes.values().filter(|flows| now.since(flows.heard) < SILENT);
        heard
            .flat_map(|flows| &flows.interfaces)
            .fold(ClassRates::default(), |sum, (_, rates)| sum.plus(classes(rates)))
    }

    /// Adds a moment to the last hour.
    pub fn mark(&self, instant: Instant) {
        let mut hour = lock(&self.hour);
        if hour.len() == HOUR_MAX {
            hour.pop_front();
        }
        hour.push_back(instant);
    }

    /// The last hour, oldest first.
    pub fn hour(&self) -> Arc<[Instant]> {
        lock(&self.hour).iter().copied().collect()
    }
}

fn classes(rates: &[CounterRate; CLASSES * 2]) -> ClassRates {
    let of = |class: usize| FlowRates {
        received: rates[2 * class].smoothed(),
        sent: rates[2 * class + 1].smoothed(),
    };
    ClassRates { delivery: of(0), sync: of(1), control: of(2), other: of(3) }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const CLASSES: usize = 4;
/// Over which rates are smoothed.
const SMOOTH: Duration = Duration::from_secs(2);
/// Who was silent so long sends nothing that is known of; longer than the longest heartbeat interval.
const SILENT: Duration = Duration::from_secs(90);
/// Between two moments of the last hour.
pub const MARK_EVERY: Duration = Duration::from_secs(5);
const HOUR_MAX: usize = 720;

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(delivered: u64) -> Vec<InterfaceCounters> {
        let mut counters = InterfaceCounters { name: "eth0".into(), ..InterfaceCounters::default() };
        counters.delivery.sent.bytes = delivered;
        vec![counters]
    }

    #[test]
    fn rates_come_from_differences_and_end_with_silence_or_a_new_boot() {
        let flows = Flows::default();
        let at = Moment::from_secs_f64;
        flows.saw(NodeId(1), 7, &counters(1_000), at(1.0));
        flows.saw(NodeId(1), 7, &counters(6_000), at(2.0));
        assert_eq!(flows.of(NodeId(1), at(2.0))[0].classes.delivery.sent, BytesPerSec(5_000));
        flows.saw(NodeId(2), 1, &counters(0), at(1.0));
        flows.saw(NodeId(2), 1, &counters(700), at(2.0));
        assert_eq!(flows.sum(at(2.5)).delivery.sent, BytesPerSec(5_700));
        flows.saw(NodeId(1), 8, &counters(9_000), at(3.0));
        assert_eq!(flows.of(NodeId(1), at(3.0))[0].classes, ClassRates::default());
        assert!(flows.of(NodeId(2), at(200.0)).is_empty());
        flows.forget(NodeId(2));
        assert_eq!(flows.sum(at(3.0)), ClassRates::default());
    }

    #[test]
    fn the_last_hour_is_bounded() {
        let flows = Flows::default();
        for at in 0..2_000 {
            flows.mark(Instant { at, ..Instant::default() });
        }
        let hour = flows.hour();
        assert_eq!((hour.len(), hour[0].at), (HOUR_MAX, 2_000 - HOUR_MAX as u64));
    }
}
