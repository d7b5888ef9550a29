//! What the mirror serves, found by path or content from memory: readers never wait for the writer.
//!
//! Readers have a copy of the writer's table, which shares what did not change and is replaced as a whole. What a
//! reader finds wrong is not served from that moment on, until the table says what came of it.

use std::collections::{BTreeMap, HashSet};

use arc_swap::ArcSwap;
use freshet_api::ContentHash;
use freshet_api::manifest::RepoPath;
use freshet_api::table::{Entry, Table};

use super::Held;
use super::blobs::blob_bytes;
use super::row::Row;

pub(super) struct Lookup {
    table: ArcSwap<Table<Row>>,
    links: ArcSwap<BTreeMap<RepoPath, String>>,
    /// Almost always empty: contents that a reader doubts, until the writer knows.
    doubted: ArcSwap<HashSet<ContentHash>>,
}

impl Lookup {
    pub(super) fn new() -> Self {
        Self { table: ArcSwap::default(), links: ArcSwap::default(), doubted: ArcSwap::default() }
    }

    /// What stands at `path` (no leading `/`), symbolic links of the manifest followed.
    pub(super) fn path(&self, path: &str) -> Option<Held> {
        let table = self.table.load();
        let at = |path: &str| table.at(path).find(|entry| entry.row().is_served()).map(|entry| held(&entry));
        let found = at(path).or_else(|| {
            let links = self.links.load();
            if links.is_empty() { None } else { at(&resolve(&links, path)?) }
        });
        found.filter(|held| !self.is_doubted(&held.content))
    }

    /// A file with this content.
    pub(super) fn content(&self, content: &ContentHash) -> Option<Held> {
        let table = self.table.load();
        let first = table.with_content(content).next().filter(|entry| entry.row().is_trusted())?;
        (!self.is_doubted(content)).then(|| held(&first))
    }

    /// Whether a content is held and may be served.
    pub(super) fn holds(&self, content: &ContentHash) -> bool {
        let table = self.table.load();
        let first = table.with_content(content).next();
        first.is_some_and(|entry| entry.row().is_trusted()) && !self.is_doubted(content)
    }

    /// Shows readers a new state.
    pub(super) fn set_table(&self, table: Table<Row>) {
        self.table.store(table.into());
    }

    pub(super) fn set_links(&self, links: BTreeMap<RepoPath, String>) {
        self.links.store(links.into());
    }

    /// Nothing of this content is served until [`Lookup::settle_doubt`].
    pub(super) fn doubt(&self, content: ContentHash) {
        self.doubted.rcu(|doubted| {
            let mut doubted = HashSet::clone(doubted);
            doubted.insert(content);
            doubted
        });
    }

    /// The table says now whether this content may be served.
    pub(super) fn settle_doubt(&self, content: &ContentHash) {
        if self.is_doubted(content) {
            self.doubted.rcu(|doubted| {
                let mut doubted = HashSet::clone(doubted);
                doubted.remove(content);
                doubted
            });
        }
    }

    fn is_doubted(&self, content: &ContentHash) -> bool {
        let doubted = self.doubted.load();
        !doubted.is_empty() && doubted.contains(content)
    }
}

fn held(entry: &Entry<'_, Row>) -> Held {
    let row = entry.row();
    Held {
        file: row.file(),
        path: entry.path(),
        content: *entry.content(),
        size: row.size(),
        mtime: row.mtime(),
        blob: blob_bytes(entry.content()),
        blob_mtime: row.blob_mtime(),
    }
}

/// Where a symbolic link at `path` points, relative to the tree; `None` when it leaves the tree.
pub(super) fn link_target(path: &str, target: &str) -> Option<String> {
    if target.starts_with('/') || target.is_empty() {
        return None;
    }
    let mut segments: Vec<&str> = path.split('/').collect();
    segments.pop();
    for segment in target.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop()?;
            }
            name => segments.push(name),
        }
    }
    Some(segments.join("/"))
}

fn resolve(links: &BTreeMap<RepoPath, String>, path: &str) -> Option<String> {
    let mut path = path.to_owned();
    for _ in 0..LINK_HOPS_MAX {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        let Some((end, target)) = ends.into_iter().find_map(|end| Some((end, links.get(&path[..end])?)))
        else {
            return Some(path);
        };
        let mut resolved = link_target(&path[..end], target)?;
        let rest = path[end..].trim_start_matches('/');
        if !rest.is_empty() {
            if !resolved.is_empty() {
                resolved.push('/');
            }
            resolved.push_str(rest);
        }
        path = resolved;
    }
    None
}

/// Symbolic links followed for one path at most.
const LINK_HOPS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn links(pairs: &[(&str, &str)]) -> BTreeMap<RepoPath, String> {
        pairs.iter().map(|(path, target)| (path.parse().unwrap(), (*target).to_owned())).collect()
    }

    #[test]
    fn links_are_followed_within_the_tree() {
        let links = links(&[
            ("dists/stable", "bookworm"),
            ("debian", "."),
            ("a/b", "../c"),
            ("x", "../out"),
            ("loop1", "loop2"),
            ("loop2", "loop1"),
            ("top", "a/b/deep"),
        ]);
        let resolved = |path: &str| resolve(&links, path);
        assert_eq!(resolved("dists/stable/Release").as_deref(), Some("dists/bookworm/Release"));
        assert_eq!(resolved("debian/pool/x.deb").as_deref(), Some("pool/x.deb"));
        assert_eq!(resolved("a/b/f").as_deref(), Some("c/f"));
        assert_eq!(resolved("top/f").as_deref(), Some("c/deep/f"));
        assert_eq!(resolved("plain/f").as_deref(), Some("plain/f"));
        assert_eq!(resolved("x/f"), None, "leaves the tree");
        assert_eq!(resolved("loop1"), None, "never ends");
    }

    #[test]
    fn targets_out_of_the_tree_are_none() {
        for target in ["/etc", "../../x", "..//../x", ""] {
            assert_eq!(link_target("a/link", target), None, "{target:?}");
        }
        assert_eq!(link_target("a/link", "../b").as_deref(), Some("b"));
        assert_eq!(link_target("a/link", "..").as_deref(), Some(""));
    }
}
