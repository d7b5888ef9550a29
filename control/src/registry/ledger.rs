//! How absolute counters become lasting sums: each byte once, whatever is lost, late or sent twice. No I/O.

use freshet_api::admin::LedgerView;
use serde::{Deserialize, Serialize};

/// What one interface of a volunteer counted since its daemon's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceReading {
    /// The interface's name.
    pub name: String,
    /// Bytes to customers.
    pub delivered: u64,
    /// Bytes from peers and the origin.
    pub synced_in: u64,
    /// Bytes to peers.
    pub synced_out: u64,
}

/// One volunteer's sums, and the last counters of its recent boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    sums: LedgerView,
    /// Oldest first.
    boots: Vec<Boot>,
}

impl Ledger {
    pub(super) fn view(&self) -> LedgerView {
        self.sums
    }

    /// Enters what `boot` counted so far; says whether anything changed.
    ///
    /// A few boots are remembered, so that a message of an earlier one that arrives late is not taken for a
    /// new one's.
    pub(super) fn enter(&mut self, boot: u64, readings: &[InterfaceReading]) -> bool {
        let moved = |r: &InterfaceReading| r.delivered != 0 || r.synced_in != 0 || r.synced_out != 0;
        let known = self.boots.iter().position(|known| known.boot == boot);
        if known.is_none() && !readings.iter().any(moved) {
            return false;
        }
        let at = known.unwrap_or_else(|| {
            if self.boots.len() == BOOTS_MAX {
                self.boots.remove(0);
            }
            self.boots.push(Boot { boot, interfaces: Vec::new() });
            self.boots.len() - 1
        });
        let interfaces = &mut self.boots[at].interfaces;
        let before = self.sums;
        for reading in readings {
            let last = match interfaces.iter().position(|known| known.name == reading.name) {
                Some(index) => &mut interfaces[index],
                None if interfaces.len() == super::INTERFACES_MAX => continue,
                None => {
                    interfaces.push(InterfaceReading { name: reading.name.clone(), ..Default::default() });
                    interfaces.last_mut().expect("one was pushed just now")
                }
            };
            advance(&mut last.delivered, reading.delivered, &mut self.sums.delivered_bytes);
            advance(&mut last.synced_in, reading.synced_in, &mut self.sums.synced_in_bytes);
            advance(&mut last.synced_out, reading.synced_out, &mut self.sums.synced_out_bytes);
        }
        before != self.sums
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Boot {
    boot: u64,
    interfaces: Vec<InterfaceReading>,
}

fn advance(last: &mut u64, now: u64, sum: &mut u64) {
    *sum = sum.saturating_add(now.saturating_sub(*last));
    *last = now.max(*last);
}

/// Boots remembered: more than a message can be late.
const BOOTS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reading(name: &str, delivered: u64) -> InterfaceReading {
        InterfaceReading { name: name.into(), delivered, synced_in: 2 * delivered, synced_out: 0 }
    }

    #[test]
    fn repeated_and_late_reports_count_nothing_twice() {
        let mut ledger = Ledger::default();
        assert!(ledger.enter(1, &[reading("eth0", 100)]));
        assert!(!ledger.enter(1, &[reading("eth0", 100)]));
        assert!(!ledger.enter(1, &[reading("eth0", 40)]));
        assert!(ledger.enter(2, &[reading("eth0", 10)]));
        assert!(!ledger.enter(1, &[reading("eth0", 90)]), "late, of the boot before");
        assert!(ledger.enter(1, &[reading("eth0", 130)]), "late, but new");
        assert_eq!(ledger.view().delivered_bytes, 140);
        assert_eq!(ledger.view().synced_in_bytes, 280);
    }

    #[test]
    fn an_interface_that_vanishes_takes_nothing_back() {
        let mut ledger = Ledger::default();
        ledger.enter(1, &[reading("eth0", 100), reading("wlan0", 50)]);
        ledger.enter(1, &[reading("eth0", 101)]);
        ledger.enter(1, &[reading("eth0", 102), reading("wlan0", 50)]);
        assert_eq!(ledger.view().delivered_bytes, 152);
    }

    #[test]
    fn an_idle_boot_is_not_worth_a_write() {
        let mut ledger = Ledger::default();
        assert!(!ledger.enter(1, &[reading("eth0", 0)]));
        assert!(ledger.boots.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ledger = Ledger::default();
        let many: Vec<_> = (0..1000).map(|i| reading(&format!("if{i}"), 1)).collect();
        for boot in 0..100 {
            ledger.enter(boot, &many);
        }
        assert_eq!(ledger.boots.len(), BOOTS_MAX);
        assert!(ledger.boots.iter().all(|boot| boot.interfaces.len() == super::super::INTERFACES_MAX));
    }

    proptest! {
        #[test]
        fn any_order_and_repetition_gives_the_final_counters(
            mut reports in proptest::collection::vec((0u64..3, 0u64..1000), 1..40)
        ) {
            let mut ledger = Ledger::default();
            for (boot, value) in &reports {
                ledger.enter(*boot, &[reading("eth0", *value)]);
            }
            reports.sort_unstable();
            let expected: u64 = (0..3)
                .map(|boot| reports.iter().filter(|r| r.0 == boot).map(|r| r.1).max().unwrap_or(0))
                .sum();
            prop_assert_eq!(ledger.view().delivered_bytes, expected);
        }
    }
}
