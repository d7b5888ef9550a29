//! What the catalogue does not have although it is on disk, and what stands in its way, in words for people.
//!
//! Bounded: a tree full of sockets costs no more memory than a clean one.

use std::collections::BTreeMap;

/// Reasons by path, and notes about the whole.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    reasons: BTreeMap<String, String>,
    beyond: u64,
    notes: BTreeMap<Note, String>,
    changed: bool,
}

/// What a note is about; a newer one about the same replaces it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Note {
    /// The root cannot be walked.
    Root,
    /// The database cannot be written.
    Database,
    /// The tree cannot be watched.
    Watch,
    /// What was mounted here is gone.
    Mount(String),
    /// No numbers are left.
    Numbers,
}

impl LeftOut {
    /// A path is left out.
    pub(super) fn add(&mut self, path: &str, reason: impl Into<String>) {
        let reason = reason.into();
        if let Some(known) = self.reasons.get_mut(path) {
            self.changed |= *known != reason;
            *known = reason;
        } else if self.reasons.len() < REASONS_MAX {
            tracing::warn!(path, reason, "left out of the catalogue");
            self.reasons.insert(path.to_owned(), reason);
            self.changed = true;
        } else {
            self.beyond += 1;
            self.changed = true;
        }
    }

    /// Whether there is a reason for this very path.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.reasons.contains_key(path)
    }

    /// A path is no longer left out.
    pub(super) fn remove(&mut self, path: &str) {
        self.changed |= self.reasons.remove(path).is_some();
    }

    /// Forgets what was said of everything beneath a directory; the root is the empty path.
    pub(super) fn remove_beneath(&mut self, directory: &str) {
        if directory.is_empty() {
            self.changed |= !self.reasons.is_empty() || self.beyond > 0;
            self.reasons.clear();
            self.beyond = 0;
            return;
        }
        let start = format!("{directory}/");
        let beneath: Vec<String> = self
            .reasons
            .range(start.clone()..)
            .take_while(|(path, _)| path.starts_with(&start))
            .map(|(path, _)| path.clone())
            .collect();
        for path in beneath {
            self.remove(&path);
        }
    }

    /// Says something about the whole.
    pub(super) fn note(&mut self, about: Note, text: impl Into<String>) {
        let text = text.into();
        if self.notes.get(&about) != Some(&text) {
            tracing::warn!("{text}");
            self.notes.insert(about, text);
            self.changed = true;
        }
    }

    /// Whether there is a note about this.
    pub(super) fn has(&self, about: &Note) -> bool {
        self.notes.contains_key(about)
    }

    /// What lets nothing new be catalogued, if something does.
    pub(super) fn standstill(&self) -> Option<&str> {
        let whole = [Note::Root, Note::Mount(String::new()), Note::Database, Note::Numbers];
        whole.iter().find_map(|about| self.notes.get(about)).map(String::as_str)
    }

    /// The directories whose mounts are missing.
    pub(super) fn missing_mounts(&self) -> Vec<String> {
        self.notes
            .keys()
            .filter_map(|about| if let Note::Mount(path) = about { Some(path.clone()) } else { None })
            .collect()
    }

    /// Takes a note back.
    pub(super) fn settle(&mut self, about: &Note) {
        self.changed |= self.notes.remove(about).is_some();
    }

    /// Takes back the notes about mounts that are not meant here.
    pub(super) fn settle_mounts(&mut self, keep: impl Fn(&str) -> bool) {
        let before = self.notes.len();
        self.notes.retain(|about, _| !matches!(about, Note::Mount(path) if !keep(path)));
        self.changed |= self.notes.len() != before;
    }

    /// The text for people, if it is another one than at the last call.
    pub(super) fn news(&mut self) -> Option<Vec<String>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut lines: Vec<String> = self.notes.values().cloned().collect();
        lines.extend(self.reasons.iter().take(SHOWN_MAX).map(|(path, reason)| format!("{path}: {reason}")));
        let more = self.reasons.len().saturating_sub(SHOWN_MAX) as u64 + self.beyond;
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        Some(lines)
    }
}

/// Reasons remembered at most.
const REASONS_MAX: usize = 1_000;

/// Reasons shown at most.
const SHOWN_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_bounded_and_tells_how_many_more() {
        let mut left_out = LeftOut::default();
        for i in 0..REASONS_MAX + 5 {
            left_out.add(&format!("d/{i:05}"), "a socket");
        }
        left_out.note(Note::Watch, "no watch");
        let lines = left_out.news().unwrap();
        assert_eq!(lines[0], "no watch");
        assert_eq!(lines[1], "d/00000: a socket");
        assert_eq!(lines.last().unwrap(), "and 985 more");
        assert!(left_out.news().is_none());
        left_out.remove_beneath("d");
        left_out.settle(&Note::Watch);
        left_out.remove_beneath("");
        assert_eq!(left_out.news().unwrap(), Vec::<String>::new());
    }
}
