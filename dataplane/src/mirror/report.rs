//! What is told to control: holdings, what changed in them since it last said so, and how far the mirror is.

use freshet_api::FileId;
use freshet_api::heartbeat::{DELTA_MAX, HoldingsDelta, SyncProgress, holdings_digest};
use roaring::RoaringBitmap;

#[derive(Default)]
pub(super) struct Report {
    pub(super) progress: SyncProgress,
    held: RoaringBitmap,
    acknowledged: RoaringBitmap,
    acknowledged_digest: u64,
}

impl Report {
    pub(super) fn set_held(&mut self, file: FileId, held: bool) {
        if held {
            self.held.insert(file.0);
        } else {
            self.held.remove(file.0);
        }
    }

    pub(super) fn held(&self) -> &RoaringBitmap {
        &self.held
    }

    /// The next step from what control knows to what is held.
    pub(super) fn delta(&self) -> HoldingsDelta {
        let step = |from: &RoaringBitmap, to: &RoaringBitmap| -> Vec<FileId> {
            (to - from).into_iter().take(DELTA_MAX).map(FileId).collect()
        };
        let added = step(&self.acknowledged, &self.held);
        let removed = step(&self.held, &self.acknowledged);
        let digest =
            added.iter().chain(&removed).fold(self.acknowledged_digest, |d, &f| d ^ holdings_digest(f));
        let count = self.acknowledged.len() + added.len() as u64 - removed.len() as u64;
        HoldingsDelta { added, removed, count, digest }
    }

    /// Control has taken `delta` in. The same one twice changes nothing.
    pub(super) fn acknowledge(&mut self, delta: &HoldingsDelta) {
        for &file in &delta.added {
            if self.acknowledged.insert(file.0) {
                self.acknowledged_digest ^= holdings_digest(file);
            }
        }
        for &file in &delta.removed {
            if self.acknowledged.remove(file.0) {
                self.acknowledged_digest ^= holdings_digest(file);
            }
        }
    }

    /// Control knows exactly `holdings`.
    pub(super) fn acknowledge_all(&mut self, holdings: RoaringBitmap) {
        self.acknowledged_digest = holdings.iter().fold(0, |d, file| d ^ holdings_digest(FileId(file)));
        self.acknowledged = holdings;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_lead_control_to_what_is_held() {
        let mut report = Report::default();
        for file in 0..25_000 {
            report.set_held(FileId(file), true);
        }
        let mut known = std::collections::BTreeSet::new();
        for round in 0..4 {
            if round == 1 {
                report.set_held(FileId(3), false);
            }
            let delta = report.delta();
            assert!(delta.added.len() <= DELTA_MAX && delta.removed.len() <= DELTA_MAX);
            known.extend(delta.added.iter().copied());
            delta.removed.iter().for_each(|file| assert!(known.remove(file)));
            assert_eq!(delta.count, known.len() as u64);
            assert_eq!(delta.digest, known.iter().fold(0, |d, &f| d ^ holdings_digest(f)));
            report.acknowledge(&delta);
            report.acknowledge(&delta);
        }
        assert_eq!(known.len(), 24_999);
        assert!(report.delta().added.is_empty() && report.delta().removed.is_empty());
    }

    #[test]
    fn forgetting_starts_from_nothing() {
        let mut report = Report::default();
        report.set_held(FileId(7), true);
        report.acknowledge(&report.delta());
        report.acknowledge_all(RoaringBitmap::new());
        assert_eq!(report.delta().added, [FileId(7)]);
        report.acknowledge_all(RoaringBitmap::from_iter([7, 9]));
        let delta = report.delta();
        assert_eq!((delta.removed.as_slice(), delta.count), ([FileId(9)].as_slice(), 1));
        assert_eq!(delta.digest, holdings_digest(FileId(7)));
    }
}
