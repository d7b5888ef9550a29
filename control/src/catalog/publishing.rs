//! From found changes to the next state: which numbers end, which begin, and what must be written for it.
//!
//! A function of its arguments: no clock, no disk, no thread.

use std::collections::BTreeMap;

use freshet_api::manifest::RepoPath;
use freshet_api::{Checksums, FileId};

use super::entry::{FileEntry, Stamp};
use super::history::Step;
use super::metadata::Patterns;
use super::snapshot::Snapshot;
use super::store::{Row, Write};

/// A change that waits to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Staged {
    /// A file with this content is at the path.
    File(Stamp, Checksums),
    /// A symbolic link with this target is at the path.
    Link(String),
    /// Nothing is at the path.
    Gone,
}

/// The next state.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) snapshot: Snapshot,
    /// What anybody can see of it; `None` when only stamps changed, and then the sequence stays.
    pub(super) step: Option<Step>,
    pub(super) write: Write,
    /// New contents that found no number left.
    pub(super) unnumbered: u64,
}

/// Applies changes to a state, all in one step.
pub(super) fn next(
    now: &Snapshot,
    staged: &BTreeMap<RepoPath, Staged>,
    next_file: u32,
    patterns: &Patterns,
    now_secs: u32,
) -> Next {
    let mut draft = Draft {
        snapshot: now.clone(),
        step: Step { base: now.sequence(), ..Step::default() },
        write: Write { next_file, ..Write::default() },
        unnumbered: 0,
    };
    // What goes, goes first: a path may turn from a file into a directory.
    for (path, change) in staged {
        if matches!(change, Staged::Gone) {
            draft.drop_file(path);
            draft.drop_link(path);
        }
    }
    for (path, change) in staged {
        match change {
            Staged::Gone => {}
            Staged::Link(target) => {
                draft.drop_file(path);
                draft.put_link(path, target);
            }
            Staged::File(stamp, sums) => {
                draft.drop_link(path);
                draft.put_file(path, stamp, *sums, patterns, now_secs);
            }
        }
    }
    draft.finish()
}

struct Draft {
    snapshot: Snapshot,
    step: Step,
    write: Write,
    unnumbered: u64,
}

impl Draft {
    fn drop_file(&mut self, path: &RepoPath) {
        if let Some(file) = self.snapshot.at(path.as_str()).map(|row| row.file) {
            self.snapshot.remove(file);
            self.step.removed.push(file);
            self.write.gone.push(file);
        }
    }

    fn drop_link(&mut self, path: &RepoPath) {
        if self.snapshot.remove_link(path.as_str()) {
            self.step.links.push((path.clone(), true));
            self.write.links_gone.push(path.clone());
        }
    }

    fn put_link(&mut self, path: &RepoPath, target: &str) {
        let before = self.snapshot.link_at(path.as_str());
        if before == Some(target) {
            return;
        }
        self.step.links.push((path.clone(), before.is_some()));
        self.write.links_put.push((path.clone(), target.to_owned()));
        self.snapshot.set_link(path.clone(), target);
    }

    fn put_file(
        &mut self,
        path: &RepoPath,
        stamp: &Stamp,
        sums: Checksums,
        patterns: &Patterns,
        now_secs: u32,
    ) {
        let last = patterns.is_last(path.as_str());
        let before = self.snapshot.at(path.as_str());
        if let Some(before) = before.as_ref().filter(|before| before.checksums == sums) {
            let changed_at = before.changed_at_raw();
            let entry = FileEntry::new(before.file, path.clone(), stamp, sums, last, changed_at);
            if entry.mtime != before.mtime {
                self.step.refreshed.push(before.file);
            }
            self.put_row(before.file, path, stamp, sums, changed_at);
            self.snapshot.refresh(&entry);
            return;
        }
        // The last number is never given out, so that the next one always has a value.
        let Some(following) = self.write.next_file.checked_add(1) else {
            self.unnumbered += 1;
            return;
        };
        let file = FileId(std::mem::replace(&mut self.write.next_file, following));
        let changed_at = if before.is_some() { now_secs } else { 0 };
        self.drop_file(path);
        self.put_row(file, path, stamp, sums, changed_at);
        self.snapshot.insert(&FileEntry::new(file, path.clone(), stamp, sums, last, changed_at));
        self.step.added.push(file);
    }

    fn put_row(&mut self, file: FileId, path: &RepoPath, stamp: &Stamp, sums: Checksums, changed_at: u32) {
        self.write.put.push((file, Row { path: path.clone(), stamp: *stamp, sums: sums.into(), changed_at }));
    }

    fn finish(mut self) -> Next {
        let visible = self.step.changes() > 0;
        if visible {
            self.step.sequence = self.step.base + 1;
            self.snapshot.set_sequence(self.step.sequence);
        }
        self.write.sequence = self.snapshot.sequence();
        Next {
            step: visible.then_some(self.step),
            snapshot: self.snapshot,
            write: self.write,
            unnumbered: self.unnumbered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::{self, History};
    use super::*;

    fn stamp(inode: u64, mtime: i64) -> Stamp {
        Stamp { inode, size: 1, mtime, mtime_nanos: 0, ctime: mtime, ctime_nanos: 0 }
    }

    fn file(content: &[u8]) -> Staged {
        Staged::File(stamp(1, 10), Checksums::of(content))
    }

    fn staged(changes: &[(&str, Staged)]) -> BTreeMap<RepoPath, Staged> {
        changes.iter().map(|(path, change)| (path.parse().unwrap(), change.clone())).collect()
    }

    struct Book {
        now: Snapshot,
        next_file: u32,
        history: History,
    }

    impl Book {
        fn new() -> Self {
            Self { now: Snapshot::empty(100), next_file: 1, history: History::default() }
        }

        fn publish(&mut self, changes: &[(&str, Staged)]) -> Next {
            let next = next(&self.now, &staged(changes), self.next_file, &Patterns::default(), 77);
            self.now = next.snapshot.clone();
            self.next_file = next.write.next_file;
            if let Some(step) = &next.step {
                self.history.push(step.clone());
            }
            next
        }

        fn id(&self, path: &str) -> u32 {
            self.now.at(path).unwrap().file.0
        }
    }

    #[test]
    fn a_number_lives_as_long_as_its_content_and_never_again() {
        let mut book = Book::new();
        book.publish(&[("a", file(b"1")), ("b", file(b"1"))]);
        assert_eq!((book.now.sequence(), book.id("a"), book.id("b"), book.now.contents()), (101, 1, 2, 1));
        assert_eq!(book.now.at("a").unwrap().changed_at(), None);

        let touched = Staged::File(stamp(2, 11), Checksums::of(b"1"));
        let next = book.publish(&[("a", touched)]);
        assert_eq!((book.now.sequence(), book.id("a")), (102, 1));
        assert_eq!(next.step.unwrap().refreshed, [FileId(1)]);

        let restamped = Staged::File(stamp(3, 11), Checksums::of(b"1"));
        let next = book.publish(&[("a", restamped)]);
        assert!(next.step.is_none(), "only the inode changed");
        assert_eq!((book.now.sequence(), next.write.put.len()), (102, 1));
        assert!(book.now.at("a").unwrap().matches(&stamp(3, 11)));

        book.publish(&[("a", file(b"2"))]);
        assert_eq!((book.id("a"), book.now.at("a").unwrap().changed_at()), (3, Some(77)));
        assert!(book.now.by_id(FileId(1)).is_none());
        book.publish(&[("a", file(b"1"))]);
        assert_eq!(book.id("a"), 4);
    }

    #[test]
    fn a_path_changes_between_file_link_and_directory() {
        let mut book = Book::new();
        book.publish(&[("x", file(b"1")), ("d/y", file(b"2"))]);
        book.publish(&[("x", Staged::Link("d".into()))]);
        assert_eq!(book.now.find(b"/x/y").unwrap().path.as_str(), "d/y");
        book.publish(&[("x", Staged::Gone), ("x/z", file(b"3"))]);
        assert!(book.now.is_directory(b"x") && book.now.links().len() == 0);
        book.publish(&[("x/z", Staged::Gone), ("x", file(b"4"))]);
        assert!(!book.now.is_directory(b"x") && book.now.find(b"x").is_some());
        book.publish(&[("x", Staged::Gone), ("d/y", Staged::Gone)]);
        assert!(book.now.is_empty() && book.now.contents() == 0 && book.now.bytes() == 0);
        assert_eq!(book.now.list(b"/"), Some(Vec::new()));
    }

    #[test]
    fn the_difference_leads_from_any_remembered_state_to_now() {
        let mut book = Book::new();
        book.publish(&[("a", file(b"1")), ("l", Staged::Link("a".into()))]);
        let early = book.now.sequence();
        book.publish(&[("b", file(b"2")), ("m", Staged::Link("b".into()))]);
        book.publish(&[("b", Staged::Gone), ("m", Staged::Gone), ("c", file(b"3"))]);
        book.publish(&[("a", file(b"4")), ("l", Staged::Gone)]);
        let diff = book.history.since(early, &book.now).unwrap();
        assert_eq!((diff.base, diff.sequence), (Some(early), book.now.sequence()));
        assert_eq!(diff.files.iter().map(|f| f.path.to_string()).collect::<Vec<_>>(), ["c", "a"]);
        assert_eq!(diff.removed_files, [FileId(1)], "b came and went unseen");
        assert_eq!(diff.removed_links.iter().map(RepoPath::as_str).collect::<Vec<_>>(), ["l"]);
        assert!(diff.links.is_empty());
        assert!(book.history.since(book.now.sequence(), &book.now).unwrap().files.is_empty());
        assert!(book.history.since(early - 7, &book.now).is_none());
        assert!(book.history.since(book.now.sequence() + 1, &book.now).is_none());
        assert_eq!(history::whole(&book.now).files.len(), 2);
    }

    #[test]
    fn the_last_number_is_not_wrapped_around() {
        let now = Snapshot::empty(1);
        let next = next(&now, &staged(&[("a", file(b"1"))]), u32::MAX, &Patterns::default(), 1);
        assert_eq!((next.unnumbered, next.snapshot.len(), next.step), (1, 0, None));
    }
}
