//! Counters of the interfaces as heartbeats carry them: never shrinking while the daemon runs.
//!
//! It counts nothing itself; where the numbers come from is `freshet-ebpf`'s business.

use std::collections::HashMap;

use freshet_api::traffic::{Count, CounterSource, InOut, InterfaceCounters};
use freshet_ebpf::{
    Accounting, CLASSES, Class, Epoch, Flow, InterfaceReading, ReadError, Reading, Source, Traffic,
};

/// Reads a source of counters and keeps its counts from shrinking.
pub struct Ledger {
    /// None when the counting has ended.
    source: Option<Box<dyn Accounting>>,
    /// Which it is, or was.
    kind: Source,
    kept: HashMap<String, Kept>,
}

/// What one interface had counted.
#[derive(Clone, Copy, Default)]
struct Kept {
    /// The epoch that this process found first: what it tells is counted since then.
    first: Option<Epoch>,
    epoch: Option<Epoch>,
    /// Counts of epochs that are over.
    before: [Flow; CLASSES],
    last: [Flow; CLASSES],
}

impl Ledger {
    /// Over this source.
    pub fn new(source: Box<dyn Accounting>) -> Self {
        let kind = source.source().clone();
        Self { source: Some(source), kind, kept: HashMap::new() }
    }

    /// Ends the counting: what hangs on interfaces and is not pinned is taken off. From then on there is nothing to read.
    pub fn close(&mut self) {
        self.source = None;
    }

    /// The source's own numbers, by epoch.
    ///
    /// # Errors
    /// When the kernel's tables can't be read; a later call may work.
    pub fn reading(&mut self) -> Result<Reading, ReadError> {
        match &mut self.source {
            Some(source) => source.read(),
            None => Ok(Reading { interfaces: Vec::new() }),
        }
    }

    /// All counters now, of at most [`INTERFACES_MAX`] interfaces.
    ///
    /// # Errors
    /// When the kernel's tables can't be read; a later call may work.
    pub fn read(&mut self) -> Result<Vec<InterfaceCounters>, ReadError> {
        let reading = self.reading()?;
        let interfaces = reading.interfaces.iter().take(INTERFACES_MAX);
        Ok(interfaces.map(|interface| self.settle(interface)).collect())
    }

    /// Where they come from, in full.
    pub fn kind(&self) -> &Source {
        &self.kind
    }

    /// Where they come from.
    pub fn source(&self) -> CounterSource {
        match &self.kind {
            Source::Kernel { .. } => CounterSource::Ebpf,
            Source::Sockets { why } => CounterSource::Sockets { why: why.clone() },
        }
    }

    /// The interface's classes with what earlier epochs counted.
    fn settle(&mut self, interface: &InterfaceReading) -> InterfaceCounters {
        let kept = self.kept.entry(interface.name.clone()).or_default();
        if kept.epoch != Some(interface.epoch) {
            for (before, last) in kept.before.iter_mut().zip(kept.last) {
                *before = before.plus(last);
            }
            kept.last = Default::default();
            kept.epoch = Some(interface.epoch);
        }
        for (last, now) in kept.last.iter_mut().zip(interface.classes) {
            *last = last.max(now);
        }
        let first = *kept.first.get_or_insert(interface.epoch);
        let classes = std::array::from_fn(|class| kept.before[class].plus(kept.last[class]));
        counters(interface, first, &classes)
    }
}

fn counters(interface: &InterfaceReading, epoch: Epoch, classes: &[Flow; CLASSES]) -> InterfaceCounters {
    let of = |class: Class| in_out(classes[class.index()]);
    InterfaceCounters {
        name: interface.name.clone(),
        epoch: epoch.0,
        total: in_out(interface.totals),
        delivery: of(Class::Delivery),
        sync: of(Class::Sync),
        control: of(Class::Control),
        other: of(Class::Other),
        link_bytes_per_sec: link_speed(&interface.name),
    }
}

fn in_out(flow: Flow) -> InOut {
    let count = |traffic: Traffic| Count { bytes: traffic.bytes, packets: traffic.packets };
    InOut { received: count(flow.incoming), sent: count(flow.outgoing) }
}

/// What the driver says, in bytes per second; virtual devices say nothing, or -1.
pub(crate) fn link_speed(interface: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{interface}/speed")).ok()?;
    let megabits: u64 = text.trim().parse().ok()?;
    (megabits > 0).then_some(megabits.saturating_mul(125_000))
}

/// Interfaces in one heartbeat at most.
pub const INTERFACES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    struct Script {
        readings: Vec<Reading>,
        source: Source,
    }

    impl Accounting for Script {
        fn read(&mut self) -> Result<Reading, ReadError> {
            Ok(self.readings.remove(0))
        }

        fn source(&self) -> &Source {
            &self.source
        }
    }

    fn reading(epoch: u64, delivered: u64) -> Reading {
        let flow = |bytes| Flow { outgoing: Traffic { bytes, packets: bytes / 100 }, ..Flow::default() };
        let mut classes = [Flow::default(); CLASSES];
        classes[Class::Delivery.index()] = flow(delivered);
        let interface = InterfaceReading {
            name: "no-such-device".into(),
            ifindex: 2,
            present: true,
            epoch: Epoch(epoch),
            totals: flow(5_000),
            classes,
        };
        Reading { interfaces: vec![interface] }
    }

    #[test]
    fn counts_never_shrink_when_an_interface_is_made_anew() {
        let readings = vec![reading(1, 1_000), reading(1, 1_500), reading(2, 100), reading(2, 300)];
        let mut ledger =
            Ledger::new(Box::new(Script { readings, source: Source::Sockets { why: "x".into() } }));
        let told = |counters: &InterfaceCounters| (counters.epoch, counters.delivery.sent.bytes);
        let delivered: Vec<(u64, u64)> = (0..4).map(|_| told(&ledger.read().unwrap()[0])).collect();
        assert_eq!(delivered, [(1, 1_000), (1, 1_500), (1, 1_600), (1, 1_800)]);
        assert_eq!(ledger.source(), CounterSource::Sockets { why: "x".into() });
    }

    #[test]
    fn a_heartbeat_has_room_for_so_many_interfaces() {
        let mut many = reading(1, 1);
        many.interfaces = vec![many.interfaces[0].clone(); INTERFACES_MAX + 5];
        let mut ledger = Ledger::new(Box::new(Script {
            readings: vec![many],
            source: Source::Sockets { why: String::new() },
        }));
        let counters = ledger.read().unwrap();
        assert_eq!(counters.len(), INTERFACES_MAX);
        assert_eq!((counters[0].total.sent.bytes, counters[0].link_bytes_per_sec), (5_000, None));
    }
}
