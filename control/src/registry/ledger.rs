//! How absolute counters become lasting sums: each byte once, whatever is lost, late or sent twice. No I/O.

use std::collections::BTreeSet;

use freshet_api::admin::LedgerView;
use serde::{Deserialize, Serialize};

/// What one interface of a volunteer counted since its epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceReading {
    /// The interface's name.
    pub name: String,
    /// Tells counts that go on, also over a restart of the daemon, from those that began anew.
    pub epoch: u64,
    /// Bytes to customers.
    pub delivered: u64,
    /// Bytes from peers and the origin.
    pub synced_in: u64,
    /// Bytes to peers.
    pub synced_out: u64,
}

/// One volunteer's sums, and the last counts of its interfaces' recent epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    sums: LedgerView,
    /// Oldest first.
    counts: Vec<InterfaceReading>,
}

impl Ledger {
    /// Goes on from sums of which nobody knows what they were counted from.
    pub(super) fn of_sums(sums: LedgerView) -> Self {
        Self { sums, counts: Vec::new() }
    }

    pub(super) fn view(&self) -> LedgerView {
        self.sums
    }

    /// Enters what was counted so far; says whether anything changed.
    ///
    /// A few epochs are remembered, so that a message of an earlier one that arrives late is not taken for a
    /// new one's.
    pub(super) fn enter(&mut self, readings: &[InterfaceReading]) -> bool {
        let before = self.sums;
        for reading in readings {
            let Some(last) = self.last(reading) else { continue };
            let InterfaceReading { delivered, synced_in, synced_out, .. } = last;
            let moved = [
                advance(delivered, reading.delivered),
                advance(synced_in, reading.synced_in),
                advance(synced_out, reading.synced_out),
            ];
            let LedgerView { delivered_bytes, synced_in_bytes, synced_out_bytes } = &mut self.sums;
            for (sum, moved) in [delivered_bytes, synced_in_bytes, synced_out_bytes].into_iter().zip(moved) {
                *sum = sum.saturating_add(moved);
            }
        }
        before != self.sums
    }

    /// The last count of the same epoch; of a new one zeros, where anything was counted in it and there is room.
    fn last(&mut self, reading: &InterfaceReading) -> Option<&mut InterfaceReading> {
        let of_epoch = |known: &InterfaceReading| known.name == reading.name && known.epoch == reading.epoch;
        if let Some(at) = self.counts.iter().position(of_epoch) {
            return Some(&mut self.counts[at]);
        }
        if reading.delivered == 0 && reading.synced_in == 0 && reading.synced_out == 0 {
            return None;
        }
        let known = self.counts.iter().filter(|known| known.name == reading.name).count();
        if known >= EPOCHS_MAX {
            let oldest = self.counts.iter().position(|known| known.name == reading.name)?;
            self.counts.remove(oldest);
        } else if known == 0 {
            let names: BTreeSet<&str> = self.counts.iter().map(|known| known.name.as_str()).collect();
            if names.len() >= super::INTERFACES_MAX {
                return None;
            }
        }
        let InterfaceReading { name, epoch, .. } = reading.clone();
        self.counts.push(InterfaceReading { name, epoch, ..InterfaceReading::default() });
        self.counts.last_mut()
    }
}

/// Moves a count forward, never back; by how much.
fn advance(last: &mut u64, now: u64) -> u64 {
    let moved = now.saturating_sub(*last);
    *last += moved;
    moved
}

/// Epochs remembered of an interface: more than a message can be late.
const EPOCHS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reading(epoch: u64, name: &str, delivered: u64) -> InterfaceReading {
        InterfaceReading { name: name.into(), epoch, delivered, synced_in: 2 * delivered, synced_out: 0 }
    }

    #[test]
    fn repeated_and_late_reports_count_nothing_twice() {
        let mut ledger = Ledger::default();
        assert!(ledger.enter(&[reading(1, "eth0", 100)]));
        assert!(!ledger.enter(&[reading(1, "eth0", 100)]));
        assert!(!ledger.enter(&[reading(1, "eth0", 40)]));
        assert!(ledger.enter(&[reading(2, "eth0", 10)]));
        assert!(!ledger.enter(&[reading(1, "eth0", 90)]), "late, of the epoch before");
        assert!(ledger.enter(&[reading(1, "eth0", 130)]), "late, but new");
        assert_eq!(ledger.view().delivered_bytes, 140);
        assert_eq!(ledger.view().synced_in_bytes, 280);
    }

    #[test]
    fn an_interface_that_vanishes_takes_nothing_back() {
        let mut ledger = Ledger::default();
        ledger.enter(&[reading(1, "eth0", 100), reading(1, "wlan0", 50)]);
        ledger.enter(&[reading(1, "eth0", 101)]);
        ledger.enter(&[reading(1, "eth0", 102), reading(1, "wlan0", 50)]);
        assert_eq!(ledger.view().delivered_bytes, 152);
    }

    #[test]
    fn an_idle_epoch_is_not_worth_a_write() {
        let mut ledger = Ledger::default();
        assert!(!ledger.enter(&[reading(1, "eth0", 0)]));
        assert!(ledger.counts.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ledger = Ledger::default();
        for epoch in 0..100 {
            let many: Vec<_> = (0..1000).map(|i| reading(epoch, &format!("if{i}"), 1)).collect();
            ledger.enter(&many);
        }
        assert_eq!(ledger.counts.len(), super::super::INTERFACES_MAX * EPOCHS_MAX);
        for _ in 0..10 {
            for epoch in 200..220 {
                ledger.enter(&[reading(epoch, "if0", 1)]);
            }
        }
        assert_eq!(ledger.counts.iter().filter(|count| count.name == "if0").count(), EPOCHS_MAX);
    }

    proptest! {
        #[test]
        fn any_order_and_repetition_gives_the_final_counters(
            mut reports in proptest::collection::vec((0u64..3, 0u64..1000), 1..40)
        ) {
            let mut ledger = Ledger::default();
            for (epoch, value) in &reports {
                ledger.enter(&[reading(*epoch, "eth0", *value)]);
            }
            reports.sort_unstable();
            let expected: u64 = (0..3)
                .map(|epoch| reports.iter().filter(|r| r.0 == epoch).map(|r| r.1).max().unwrap_or(0))
                .sum();
            prop_assert_eq!(ledger.view().delivered_bytes, expected);
        }
    }
}
