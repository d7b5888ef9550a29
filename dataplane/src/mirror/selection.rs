//! Which part of the repository this mirror keeps: by patterns over paths, and by a quota.
//!
//! What is not selected is not wanted: it is neither fetched nor published nor announced. Nothing here does I/O.

use std::collections::HashSet;
use std::fmt::Write as _;

use freshet_api::glob::{Glob, GlobError};
use freshet_api::manifest::{Manifest, ManifestFile};
use freshet_api::{Bytes, ContentHash};

/// A part of the repository; by default all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    include: Vec<Glob>,
    exclude: Vec<Glob>,
    /// What control chose, where the owner leaves it to control.
    ordered: Option<Vec<Glob>>,
    quota: Option<u64>,
    /// What tells one selection from another.
    text: String,
}

/// Why a part can't be selected so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// No pattern.
    #[error("in `mirror.{key}`: {source}")]
    Pattern {
        /// `include` or `exclude`.
        key: &'static str,
        /// Why.
        source: GlobError,
    },
    /// More than can be looked at for each file.
    #[error("expected at most {PATTERNS_MAX} patterns in `mirror.{key}`, found {found}")]
    TooMany {
        /// `include` or `exclude`.
        key: &'static str,
        /// What came.
        found: usize,
    },
}

impl Selection {
    /// What matches any of `include` (of none: everything) and none of `exclude`, within `quota`.
    ///
    /// # Errors
    /// [`SelectionError`].
    pub fn new(include: &[String], exclude: &[String], quota: Option<Bytes>) -> Result<Self, SelectionError> {
        let parse = |key, patterns: &[String]| {
            if patterns.len() > PATTERNS_MAX {
                return Err(SelectionError::TooMany { key, found: patterns.len() });
            }
            let globs = patterns.iter().map(|pattern| pattern.parse::<Glob>()).collect::<Result<_, _>>();
            globs.map_err(|source| SelectionError::Pattern { key, source })
        };
        let mut text = String::new();
        let quota = quota.map(|quota| quota.0);
        if !include.is_empty() || !exclude.is_empty() || quota.is_some() {
            // Writing to a String can't fail.
            let _ = write!(text, "{include:?} {exclude:?} {quota:?}");
        }
        let (include, exclude) = (parse("include", include)?, parse("exclude", exclude)?);
        Ok(Self { include, exclude, ordered: None, quota, text })
    }

    /// The same where the owner leaves the choice to control: what `include` names is kept anyhow, and beside it what
    /// control ordered. What is no pattern in an order is left out of it.
    #[must_use]
    pub fn ordered(mut self, order: &[String]) -> Self {
        let globs = order.iter().take(PATTERNS_MAX).filter_map(|pattern| pattern.parse().ok()).collect();
        // Writing to a String can't fail.
        let _ = write!(self.text, " ordered {order:?}");
        self.ordered = Some(globs);
        self
    }

    /// What tells it from others; empty for all of the repository.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is all of the repository.
    pub fn is_whole(&self) -> bool {
        self.text.is_empty()
    }

    /// Whether a path is in it, as far as patterns say.
    pub fn selects(&self, path: &str) -> bool {
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(path));
        let chosen = match &self.ordered {
            Some(ordered) => any(&self.include) || any(ordered),
            None => self.include.is_empty() || any(&self.include),
        };
        chosen && !any(&self.exclude)
    }

    /// Leaves in `manifest` what is selected, when `held` are the contents that are wanted besides, of `held_bytes`.
    ///
    /// Indexes are kept whatever the quota says; of the rest the newest come first, and what no longer fits is left
    /// out.
    pub(super) fn apply(&self, manifest: &mut Manifest, held: &HashSet<ContentHash>, held_bytes: u64) {
        manifest.files.retain(|file| self.selects(file.path.as_str()));
        manifest.links.retain(|link| self.selects(link.path.as_str()));
        let Some(quota) = self.quota else { return };
        let files: Vec<ManifestFile> = manifest.files.iter().collect();
        let mut order: Vec<usize> = (0..files.len()).collect();
        order.sort_by_key(|&number| {
            let ManifestFile { last, mtime, ref path, .. } = files[number];
            (!last, std::cmp::Reverse(mtime), path.clone())
        });
        let mut taken = HashSet::new();
        let mut left = quota.saturating_sub(held_bytes);
        let mut keep = vec![false; files.len()];
        for number in order {
            let file = &files[number];
            let known = held.contains(&file.content) || taken.contains(&file.content);
            let fits = file.size <= left;
            if !known && !fits && !file.last {
                continue;
            }
            keep[number] = true;
            if !known {
                taken.insert(file.content);
                left = left.saturating_sub(file.size);
            }
        }
        let mut keep = keep.into_iter();
        manifest.files.retain(|_| keep.next().unwrap_or(false));
    }
}

/// Patterns of one kind at most.
const PATTERNS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use freshet_api::FileId;

    use super::*;

    fn file(path: &str, size: u64, mtime: i64) -> ManifestFile {
        let content = ContentHash(*blake3::hash(path.as_bytes()).as_bytes());
        let last = path.starts_with("dists/");
        ManifestFile { file: FileId(1), path: path.parse().unwrap(), size, mtime, content, last }
    }

    fn left(selection: &Selection, files: &[ManifestFile], held: &[&ManifestFile]) -> Vec<String> {
        let mut manifest = Manifest { files: files.to_vec().into(), ..Manifest::default() };
        let bytes = held.iter().map(|file| file.size).sum();
        selection.apply(&mut manifest, &held.iter().map(|file| file.content).collect(), bytes);
        manifest.files.iter().map(|file| file.path.to_string()).collect()
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn patterns_select_and_exclude() {
        let selection =
            Selection::new(&strings(&["pool/**", "dists/**"]), &strings(&["*-dbg_*"]), None).unwrap();
        let files = [file("pool/a/a_1.deb", 1, 1), file("pool/a/a-dbg_1.deb", 1, 1), file("iso/x", 1, 1)];
        assert_eq!(left(&selection, &files, &[]), ["pool/a/a_1.deb"]);
        assert_eq!(left(&Selection::default(), &files, &[]).len(), 3);
        assert!(
            Selection::new(&strings(&["["]), &[], None).unwrap_err().to_string().contains("mirror.include")
        );
    }

    #[test]
    fn what_control_orders_comes_beside_what_the_owner_keeps() {
        let own = Selection::new(&strings(&["dists/**"]), &strings(&["*-dbg_*"]), None).unwrap();
        let files = [
            file("dists/Release", 1, 1),
            file("pool/a.deb", 1, 1),
            file("pool/a-dbg_1.deb", 1, 1),
            file("a.iso", 1, 1),
            file("iso/a.iso", 1, 1),
        ];
        let kept = |order: &[&str]| left(&own.clone().ordered(&strings(order)), &files, &[]);
        assert_eq!(kept(&[]), ["dists/Release"]);
        assert_eq!(kept(&["pool/**", "/a.iso"]), ["dists/Release", "pool/a.deb", "a.iso"]);
        assert_eq!(kept(&["[", "pool/**"]), ["dists/Release", "pool/a.deb"]);
        assert_ne!(own.clone().ordered(&[]).text(), own.text());
        assert!(left(&Selection::default().ordered(&[]), &files, &[]).is_empty());
    }

    #[test]
    fn the_quota_keeps_indexes_and_what_is_newest() {
        let selection = Selection::new(&[], &[], Some(Bytes(100))).unwrap();
        let files = [
            file("old", 50, 1),
            file("new", 60, 9),
            file("small", 10, 5),
            file("dists/Release", 20, 0),
            file("large", 90, 8),
        ];
        assert_eq!(left(&selection, &files, &[]), ["new", "small", "dists/Release"]);
        let held = file("held", 75, 1);
        assert_eq!(left(&selection, &files, &[&held]), ["dists/Release"], "what is held takes room");
        assert_eq!(left(&selection, std::slice::from_ref(&held), &[&held]), ["held"], "and is counted once");
    }
}
