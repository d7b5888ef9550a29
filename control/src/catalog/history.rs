//! What changed from one published state to the next, as far back as a bound allows.
//!
//! From it a volunteer that knows an earlier state gets the difference instead of everything. No I/O here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use freshet_api::FileId;
use freshet_api::manifest::{Manifest, ManifestLink, RepoPath};
use serde::{Deserialize, Serialize};

use super::snapshot::Snapshot;

/// The steps up to the present state, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    steps: VecDeque<Arc<Step>>,
    changes: usize,
}

/// What one publication changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Step {
    /// The state it led from.
    pub(super) base: u64,
    /// The state it led to.
    pub(super) sequence: u64,
    /// Numbers that were new.
    pub(super) added: Vec<FileId>,
    /// Numbers whose row changed while the content stayed (another mtime).
    pub(super) refreshed: Vec<FileId>,
    /// Numbers that ended.
    pub(super) removed: Vec<FileId>,
    /// Links that were made, changed or removed, and whether they were there before.
    pub(super) links: Vec<(RepoPath, bool)>,
}

impl Step {
    pub(super) fn changes(&self) -> usize {
        self.added.len() + self.refreshed.len() + self.removed.len() + self.links.len()
    }
}

impl History {
    /// Adds the newest step; returns the sequences of those that fell out at the old end.
    pub(super) fn push(&mut self, step: Step) -> Vec<u64> {
        // A gap would make every difference across it wrong.
        let mut dropped = Vec::new();
        if self.steps.back().is_some_and(|newest| newest.sequence != step.base) {
            dropped.extend(self.steps.drain(..).map(|step| step.sequence));
            self.changes = 0;
        }
        self.changes += step.changes();
        self.steps.push_back(Arc::new(step));
        while self.steps.len() > STEPS_MAX || self.changes > CHANGES_MAX {
            let Some(oldest) = self.steps.pop_front() else { break };
            self.changes -= oldest.changes();
            dropped.push(oldest.sequence);
        }
        dropped
    }

    /// How `now` differs from the state `base`; `None` when the history does not reach back to it.
    pub(super) fn since(&self, base: u64, now: &Snapshot) -> Option<Manifest> {
        let mut manifest = Manifest { sequence: now.sequence(), base: Some(base), ..Manifest::default() };
        if base == now.sequence() {
            return Some(manifest);
        }
        let start = self.steps.iter().position(|step| step.base == base)?;
        let mut shown: BTreeSet<FileId> = BTreeSet::new();
        let mut added: BTreeSet<FileId> = BTreeSet::new();
        let mut removed: BTreeSet<FileId> = BTreeSet::new();
        let mut links: BTreeMap<&RepoPath, bool> = BTreeMap::new();
        for step in self.steps.iter().skip(start).take_while(|step| step.sequence <= now.sequence()) {
            added.extend(&step.added);
            shown.extend(step.added.iter().chain(&step.refreshed));
            removed.extend(step.removed.iter().filter(|file| !added.contains(file)));
            for (path, was_there) in &step.links {
                links.entry(path).or_insert(*was_there);
            }
        }
        manifest.files =
            shown.into_iter().filter_map(|file| now.by_id(file)).map(|row| row.manifest_row()).collect();
        manifest.removed_files = removed.into_iter().collect();
        for (path, was_there) in links {
            match now.link_at(path.as_str()) {
                Some(target) => {
                    manifest.links.push(ManifestLink { path: path.clone(), target: target.to_owned() });
                }
                None if was_there => manifest.removed_links.push(path.clone()),
                None => {}
            }
        }
        Some(manifest)
    }
}

/// Everything there is.
pub(super) fn whole(now: &Snapshot) -> Manifest {
    Manifest {
        sequence: now.sequence(),
        base: None,
        files: now.iter().map(|row| row.manifest_row()).collect(),
        links: now
            .links()
            .map(|(path, target)| ManifestLink { path: path.clone(), target: target.to_owned() })
            .collect(),
        removed_files: Vec::new(),
        removed_links: Vec::new(),
    }
}

/// Steps remembered at most.
pub(super) const STEPS_MAX: usize = 10_000;

/// Changed rows remembered at most, over all steps (about 2 MB).
pub(super) const CHANGES_MAX: usize = 500_000;
