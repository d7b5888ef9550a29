//! The knobs in force, who turned them, and what follows from them while control runs.
//!
//! The front door reads [`Rules`], an immutable snapshot. What was changed is in `balance.json` in the state directory
//! before it is in force, so that a restart goes on with it.

mod demand;
mod network;
mod placement;
mod steward;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use freshet_api::balance::{Balance, BalanceError, CHANGES_MAX, Change, KnobView, SelectionRule};
use freshet_policy::selection::{
    ExpectedFinishTime, FINALISTS_MAX, LeastReportedLoad, Random, RoundRobin, SAMPLE_MAX, Selector,
    StaticWeights, TwoChoices,
};
use serde::{Deserialize, Serialize};

pub use self::demand::Demand;
pub use self::network::{NetworkError, NetworkMap, PrefixRule};
pub use self::placement::{PlacementError, Planner};
pub use self::steward::{Steward, StewardRooms};
use crate::private_file;
use crate::registry::Nodes;

/// What requests are decided by.
#[derive(Debug)]
pub struct Rules {
    /// The knobs.
    pub balance: Balance,
    /// Who is near to whom.
    pub network: Arc<NetworkMap>,
    selector: Arc<dyn Selector>,
    many: Arc<dyn Selector>,
}

impl Rules {
    fn new(balance: Balance, network: Arc<NetworkMap>) -> Self {
        let choose = |finalists: Option<usize>| -> Arc<dyn Selector> {
            let default = ExpectedFinishTime::default();
            let own = finalists.map_or(default, |finalists| ExpectedFinishTime::new(SAMPLE_MAX, finalists));
            match balance.selection {
                SelectionRule::ExpectedFinishTime if balance.nearness => Arc::new(own),
                SelectionRule::ExpectedFinishTime => Arc::new(own.ignoring_nearness()),
                SelectionRule::TwoChoices => Arc::new(TwoChoices),
                SelectionRule::LeastReportedLoad => Arc::new(LeastReportedLoad),
                SelectionRule::StaticWeights => Arc::new(StaticWeights),
                SelectionRule::RoundRobin => Arc::new(RoundRobin::default()),
                SelectionRule::Random => Arc::new(Random),
            }
        };
        Self { selector: choose(None), many: choose(Some(FINALISTS_MAX)), balance, network }
    }

    /// Chooses a volunteer for a request.
    pub fn selector(&self) -> &dyn Selector {
        &*self.selector
    }

    /// Chooses as many as a metalink names.
    pub fn selector_of_many(&self) -> &dyn Selector {
        &*self.many
    }
}

/// Where knobs are turned.
#[derive(Debug)]
pub struct Desk {
    file: PathBuf,
    rules: ArcSwap<Rules>,
    kept: Mutex<Kept>,
}

/// As it is on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Kept {
    balance: Balance,
    /// Oldest first.
    changes: Vec<Change>,
}

/// Why a knob was not turned.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The operator's mistake.
    #[error(transparent)]
    Balance(#[from] BalanceError),
    /// Nothing to undo.
    #[error("expected a number from 1 to {kept}, the changes that are kept, found {found}")]
    Changes {
        /// What came.
        found: usize,
        /// What there are.
        kept: usize,
    },
    /// The disk's word.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// In words.
        reason: String,
    },
}

impl Desk {
    /// With the knobs as they were left in `state`.
    ///
    /// # Errors
    /// When `balance.json` there can't be read.
    pub fn open(state: &Path, network: NetworkMap) -> Result<Self, DeskError> {
        let file = state.join(FILE);
        let fail = |reason: String| DeskError::File { file: file.clone(), reason };
        let kept: Kept = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(fail(error.to_string())),
        };
        kept.balance.check().map_err(|(knob, expected)| fail(format!("`{knob}`: expected {expected}")))?;
        let rules = Rules::new(kept.balance.clone(), Arc::new(network));
        Ok(Self { file, rules: ArcSwap::from_pointee(rules), kept: Mutex::new(kept) })
    }

    /// What is in force; lock-free.
    pub fn rules(&self) -> Guard<Arc<Rules>> {
        self.rules.load()
    }

    /// Turns one knob; it is on disk when this returns. Blocks.
    ///
    /// # Errors
    /// [`DeskError`]; nothing is changed then.
    pub fn set(&self, knob: &str, value: &str, who: &str, at: u64) -> Result<(), DeskError> {
        let mut kept = self.lock();
        let balance = kept.balance.with(knob, value)?;
        if balance == kept.balance {
            return Ok(());
        }
        let (before, after) = (shown(&kept.balance, knob), shown(&balance, knob));
        let mut changed = Kept { balance, changes: kept.changes.clone() };
        changed.changes.push(Change { at, who: who.to_owned(), knob: knob.to_owned(), before, after });
        let excess = changed.changes.len().saturating_sub(CHANGES_MAX);
        changed.changes.drain(..excess);
        self.store(&mut kept, changed)
    }

    /// Undoes the last `changes`, newest first, and forgets them. Blocks.
    ///
    /// # Errors
    /// [`DeskError`]; nothing is changed then.
    pub fn revert(&self, changes: usize) -> Result<Vec<Change>, DeskError> {
        let mut kept = self.lock();
        let len = kept.changes.len();
        if changes == 0 || changes > len {
            return Err(DeskError::Changes { found: changes, kept: len });
        }
        let mut changed = kept.clone();
        let mut undone = changed.changes.split_off(len - changes);
        undone.reverse();
        for change in &undone {
            changed.balance = changed.balance.with(&change.knob, &change.before)?;
        }
        self.store(&mut kept, changed)?;
        Ok(undone)
    }

    /// Every knob with its default, and what was changed, newest first.
    pub fn view(&self) -> (Vec<KnobView>, Vec<Change>) {
        let kept = self.lock();
        let defaults = Balance::default().shown();
        let knobs = kept.balance.shown().into_iter().zip(defaults);
        let knobs = knobs.map(|((knob, value), (_, default))| KnobView { knob, value, default });
        (knobs.collect(), kept.changes.iter().rev().cloned().collect())
    }

    /// Finds the volunteers that prefix rules name, and where all of them are.
    pub fn know(&self, nodes: &Nodes) {
        let before = self.rules.load_full();
        if let Some(network) = before.network.knowing(nodes) {
            // A knob may be turned meanwhile: what is put in force has the latest.
            let kept = self.lock();
            self.rules.store(Arc::new(Rules::new(kept.balance.clone(), Arc::new(network))));
        }
    }

    fn store(&self, kept: &mut Kept, changed: Kept) -> Result<(), DeskError> {
        let fail = |reason: String| DeskError::File { file: self.file.clone(), reason };
        let mut text = serde_json::to_vec_pretty(&changed).map_err(|error| fail(error.to_string()))?;
        text.push(b'\n');
        private_file::write(&self.file, &text).map_err(|error| fail(error.to_string()))?;
        let network = Arc::clone(&self.rules.load().network);
        self.rules.store(Arc::new(Rules::new(changed.balance.clone(), network)));
        *kept = changed;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown(balance: &Balance, knob: &str) -> String {
    balance.shown().into_iter().find(|(name, _)| name == knob).map(|(_, value)| value).unwrap_or_default()
}

const FILE: &str = "balance.json";

#[cfg(test)]
mod tests {
    use freshet_api::BytesPerSec;

    use super::*;

    #[test]
    fn what_was_turned_is_there_after_a_restart_and_can_be_undone() {
        let state = tempfile::tempdir().unwrap();
        let open = || Desk::open(state.path(), NetworkMap::default()).unwrap();
        let desk = open();
        desk.set("customer_wait_secs", "5", "ada", 100).unwrap();
        desk.set("origin_rate", "80 Mbit/s", "bob", 200).unwrap();
        desk.set("origin_rate", "80 Mbit/s", "bob", 300).unwrap();
        assert!(desk.set("origin_rate", "fast", "bob", 400).is_err());
        drop(desk);
        let desk = open();
        assert_eq!(desk.rules().balance.origin_rate, Some(BytesPerSec(10_000_000)));
        let (knobs, changes) = desk.view();
        let wait = knobs.iter().find(|knob| knob.knob == "customer_wait_secs").unwrap();
        assert_eq!((wait.value.as_str(), wait.default.as_str()), ("5", "30"));
        assert_eq!(changes.len(), 2, "what changes nothing is no change");
        assert_eq!((changes[0].who.as_str(), changes[0].before.as_str()), ("bob", "none"));
        assert!(matches!(desk.revert(3), Err(DeskError::Changes { found: 3, kept: 2 })));
        desk.revert(1).unwrap();
        assert_eq!((desk.rules().balance.origin_rate, desk.rules().balance.customer_wait_secs), (None, 5));
        desk.revert(1).unwrap();
        assert_eq!(open().rules().balance, Balance::default());
    }

    #[test]
    fn the_selection_can_be_exchanged() {
        let state = tempfile::tempdir().unwrap();
        let desk = Desk::open(state.path(), NetworkMap::default()).unwrap();
        for (value, name) in [("static-weights", "static-weights"), ("default", "expected-finish-time")] {
            desk.set("selection", value, "ada", 1).unwrap();
            assert_eq!(desk.rules().selector().name(), name);
        }
    }

    #[test]
    fn a_damaged_file_is_refused_by_name() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join(FILE), "{\"balance\": {\"customer_wait_secs\": 0}}").unwrap();
        let error = Desk::open(state.path(), NetworkMap::default()).unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains("customer_wait_secs"), "{error}");
    }
}
