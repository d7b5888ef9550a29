//! The month's ledger: what was donated, on disk, so that neither a crash nor a restart forgets or doubles a byte.
//!
//! Per interface it keeps up to which count of which epoch everything is booked; the kernel's counters go on by
//! themselves while the process is dead, where they are pinned. The decision what a month is, is the policy's.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use freshet_api::Bytes;
use freshet_ebpf::{Class, InterfaceReading, Reading};
use freshet_policy::budget::{BudgetState, Counted};
use serde::{Deserialize, Serialize};

use crate::config::budget::Directions;

/// The account, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Month {
    page: Page,
    /// Whether counters were running before the ledger was begun: what they say is then not of this month.
    begun_now: bool,
}

/// What is on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    version: u32,
    budget: BudgetState,
    /// Bytes donated since the ledger was begun.
    total: u64,
    interfaces: BTreeMap<String, Booked>,
}

/// Up to where an interface is booked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Booked {
    epoch: u64,
    sent: u64,
    received: u64,
}

impl Month {
    /// Reads the ledger, or begins one where there is none.
    ///
    /// # Errors
    /// [`MonthError`]: a ledger that can't be read is never taken for an empty one.
    pub fn load(state: &Path) -> Result<Self, MonthError> {
        let path = state.join(FILE_NAME);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let page = Page { version: VERSION, ..Page::default() };
                return Ok(Self { page, begun_now: true });
            }
            Err(source) => return Err(MonthError::Read { path, source }),
        };
        let version: Versioned = serde_json::from_slice(&text)
            .map_err(|source| MonthError::Damaged { path: path.clone(), source })?;
        if version.version != VERSION {
            return Err(MonthError::Version { path, found: version.version });
        }
        let page = serde_json::from_slice(&text).map_err(|source| MonthError::Damaged { path, source })?;
        Ok(Self { page, begun_now: false })
    }

    /// What the policy goes on from.
    pub fn budget(&self) -> &BudgetState {
        &self.page.budget
    }

    /// Books a reading; what the policy is to be told of it.
    pub fn book(&mut self, reading: &Reading, counts: Directions) -> Counted {
        let begun_now = std::mem::take(&mut self.begun_now);
        for interface in &reading.interfaces {
            let now = donated(interface);
            let before = self.page.interfaces.get(&interface.name);
            let (sent, received) = match before {
                // Counts of one epoch only grow.
                Some(before) if before.epoch == now.epoch => {
                    (now.sent.saturating_sub(before.sent), now.received.saturating_sub(before.received))
                }
                None if begun_now => (0, 0),
                // A new count began at zero: all of it is new.
                _ => (now.sent, now.received),
            };
            let both = if counts == Directions::Both { received } else { 0 };
            self.page.total = self.page.total.saturating_add(sent).saturating_add(both);
            let booked = match before {
                Some(before) if before.epoch == now.epoch => Booked {
                    sent: now.sent.max(before.sent),
                    received: now.received.max(before.received),
                    ..now
                },
                _ => now,
            };
            self.page.interfaces.insert(interface.name.clone(), booked);
        }
        while self.page.interfaces.len() > INTERFACES_MAX {
            let gone =
                self.page.interfaces.keys().find(|name| reading.interfaces.iter().all(|i| i.name != **name));
            let Some(gone) = gone.cloned() else { break };
            self.page.interfaces.remove(&gone);
        }
        // The epochs are dealt with here.
        Counted { epoch: 0, total: Bytes(self.page.total) }
    }

    /// Takes over what the policy wants kept.
    pub fn keep(&mut self, budget: &BudgetState) {
        self.page.budget.clone_from(budget);
    }

    /// Puts it on disk, whole and durably.
    ///
    /// # Errors
    /// The kernel's; the older page is then still there.
    pub fn store(&self, state: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(&self.page)?;
        text.push(b'\n');
        crate::durable::write(&state.join(FILE_NAME), &text, 0o644)
    }

    /// What was booked since `stored`.
    pub fn booked_since(&self, stored: &Self) -> Bytes {
        Bytes(self.page.total.saturating_sub(stored.page.total))
    }

    /// Whether storing this after `stored` would lose nothing but a moment's time of the clock.
    pub fn is_as_good_as(&self, stored: &Self) -> bool {
        let moments = |page: &Page| Page {
            budget: BudgetState { believed: None, percentile: Default::default(), ..page.budget.clone() },
            ..page.clone()
        };
        moments(&self.page) == moments(&stored.page)
    }
}

/// What of an interface's traffic is donated: deliveries and sync. Heartbeats are not, and stay small.
fn donated(interface: &InterfaceReading) -> Booked {
    let (delivery, sync) = (interface.class(Class::Delivery), interface.class(Class::Sync));
    Booked {
        epoch: interface.epoch.0,
        sent: delivery.outgoing.bytes.saturating_add(sync.outgoing.bytes),
        received: delivery.incoming.bytes.saturating_add(sync.incoming.bytes),
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Why the month's ledger is not known.
#[derive(Debug, thiserror::Error)]
pub enum MonthError {
    /// It can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no ledger.
    #[error(
        "expected the month's ledger in {}, found something else ({source}); bring a copy back, or remove the file to \
         begin the month at zero",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// It is another version's.
    #[error(
        "expected a ledger of version {VERSION} in {}, found version {found}; use the daemon that wrote it, or remove \
         the file to begin the month at zero",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What came.
        found: u32,
    },
}

/// The ledger's name within a state directory.
pub const FILE_NAME: &str = "month.json";
const VERSION: u32 = 1;
/// Interfaces that are remembered, also while they are gone.
const INTERFACES_MAX: usize = 256;

#[cfg(test)]
pub(crate) mod testing {
    //! Readings for tests.

    use freshet_ebpf::{CLASSES, Epoch, Flow, Traffic};

    use super::*;

    /// One interface that sent this much to customers, and received a tenth of it for sync.
    pub(crate) fn reading(name: &str, epoch: u64, delivered: u64, owners: u64) -> Reading {
        let traffic = |bytes| Traffic { bytes, packets: bytes / 1000 };
        let flow = |bytes| Flow { outgoing: traffic(bytes), ..Flow::default() };
        let mut classes = [Flow::default(); CLASSES];
        classes[Class::Delivery.index()] = flow(delivered);
        classes[Class::Other.index()] = flow(owners);
        classes[Class::Sync.index()].incoming = traffic(delivered / 10);
        let totals = flow(delivered + owners);
        let interface = InterfaceReading {
            name: name.into(),
            ifindex: 2,
            present: true,
            epoch: Epoch(epoch),
            totals,
            classes,
        };
        Reading { interfaces: vec![interface] }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::reading;
    use super::*;

    fn total(month: &mut Month, reading: &Reading) -> u64 {
        month.book(reading, Directions::Sent).total.0
    }

    #[test]
    fn what_ran_before_the_ledger_is_not_of_this_month() {
        let directory = tempfile::tempdir().unwrap();
        let mut month = Month::load(directory.path()).unwrap();
        assert_eq!(total(&mut month, &reading("eth0", 1, 5_000, 0)), 0);
        assert_eq!(total(&mut month, &reading("eth0", 1, 5_400, 0)), 400);
        assert_eq!(
            total(&mut month, &reading("eth1", 1, 100, 0)),
            500,
            "an interface that came later is new"
        );
    }

    #[test]
    fn a_restart_goes_on_where_the_kernel_went_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut month = Month::load(directory.path()).unwrap();
        total(&mut month, &reading("eth0", 1, 0, 0));
        total(&mut month, &reading("eth0", 1, 1_000, 0));
        month.store(directory.path()).unwrap();
        // Booked, never stored, then killed; the pinned counter is what counts.
        total(&mut month, &reading("eth0", 1, 7_000, 0));
        let mut again = Month::load(directory.path()).unwrap();
        assert_eq!(total(&mut again, &reading("eth0", 1, 9_000, 0)), 9_000);
        // The host was restarted: counters begin anew.
        assert_eq!(total(&mut again, &reading("eth0", 2, 50, 0)), 9_050);
        assert_eq!(total(&mut again, &reading("eth0", 2, 20, 0)), 9_050, "a count that fell is no new one");
        assert_eq!(total(&mut again, &reading("eth0", 2, 60, 0)), 9_060);
    }

    #[test]
    fn a_provider_may_count_both_directions() {
        let directory = tempfile::tempdir().unwrap();
        let mut month = Month::load(directory.path()).unwrap();
        month.book(&reading("eth0", 1, 0, 0), Directions::Both);
        assert_eq!(month.book(&reading("eth0", 1, 1_000, 0), Directions::Both).total, Bytes(1_100));
    }

    #[test]
    fn a_ledger_that_is_not_understood_is_not_taken_for_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        for (text, expected) in
            [("", "remove the file"), ("{\"version\":2}", "found version 2"), ("{\"version\":1}", "remove")]
        {
            std::fs::write(&path, text).unwrap();
            let error = Month::load(directory.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(Month::load(directory.path()), Err(MonthError::Read { .. })));
    }

    #[test]
    fn an_idle_month_needs_no_page() {
        let directory = tempfile::tempdir().unwrap();
        let mut month = Month::load(directory.path()).unwrap();
        total(&mut month, &reading("eth0", 1, 0, 0));
        let stored = month.clone();
        let later = BudgetState {
            believed: Some(jiff::civil::date(2026, 1, 1).at(0, 0, 0, 0)),
            ..BudgetState::default()
        };
        month.keep(&later);
        assert!(month.is_as_good_as(&stored));
        total(&mut month, &reading("eth0", 1, 1, 0));
        assert!(!month.is_as_good_as(&stored));
    }
}
