//! What the mirror serves, found by path or content from memory: readers never wait for the writer.
//!
//! The table is cut into shards, each an immutable set that the writer replaces as a whole; a batch of 256
//! new files among two million copies about an eighth of them, in the background. There is one writer
//! at a time.

use std::borrow::Borrow;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, Hasher};
use std::sync::Arc;

use arc_swap::ArcSwap;
use freshet_api::ContentHash;
use freshet_api::manifest::RepoPath;

use super::state::Row;

pub(super) struct Lookup {
    paths: Shards<ByPath>,
    contents: Shards<ByContent>,
    links: ArcSwap<BTreeMap<RepoPath, String>>,
}

/// One change of what can be found.
pub(super) enum Change {
    Path(RepoPath, Option<Arc<Row>>),
    Content(ContentHash, Option<Arc<Row>>),
}

impl Lookup {
    pub(super) fn new() -> Self {
        Self { paths: Shards::new(), contents: Shards::new(), links: ArcSwap::default() }
    }

    /// What stands at `path` (no leading `/`), symbolic links of the manifest followed.
    pub(super) fn path(&self, path: &str) -> Option<Arc<Row>> {
        if let Some(row) = self.paths.find(path, |found| Arc::clone(&found.0)) {
            return Some(row);
        }
        let links = self.links.load();
        if links.is_empty() {
            return None;
        }
        let resolved = resolve(&links, path)?;
        self.paths.find(resolved.as_str(), |found| Arc::clone(&found.0))
    }

    /// A file with this content.
    pub(super) fn content(&self, content: &ContentHash) -> Option<Arc<Row>> {
        self.contents.find(content, |found| Arc::clone(&found.0))
    }

    pub(super) fn apply(&self, changes: Vec<Change>) {
        let mut paths = Vec::new();
        let mut contents = Vec::new();
        for change in changes {
            match change {
                Change::Path(path, row) => paths.push((path, row.map(ByPath))),
                Change::Content(content, row) => contents.push((content, row.map(ByContent))),
            }
        }
        self.paths.apply::<RepoPath, str>(paths);
        self.contents.apply::<ContentHash, ContentHash>(contents);
    }

    pub(super) fn set_links(&self, links: BTreeMap<RepoPath, String>) {
        self.links.store(Arc::new(links));
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

struct ByPath(Arc<Row>);
struct ByContent(Arc<Row>);

macro_rules! keyed {
    ($name:ident, $key:ty, $of:expr) => {
        impl Borrow<$key> for $name {
            fn borrow(&self) -> &$key {
                let of: fn(&Row) -> &$key = $of;
                of(&self.0)
            }
        }
        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                let key: &$key = self.borrow();
                key.hash(state);
            }
        }
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                let (one, two): (&$key, &$key) = (self.borrow(), other.borrow());
                one == two
            }
        }
        impl Eq for $name {}
        impl Clone for $name {
            fn clone(&self) -> Self {
                Self(Arc::clone(&self.0))
            }
        }
    };
}
keyed!(ByPath, str, |row| row.file.path.as_str());
keyed!(ByContent, ContentHash, |row| &row.file.content);

struct Shards<T> {
    shards: Box<[ArcSwap<HashSet<T>>]>,
    hasher: RandomState,
}

impl<T: Hash + Eq + Clone> Shards<T> {
    fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| ArcSwap::default()).collect(), hasher: RandomState::new() }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The modulus is below 2^12, so the cast loses nothing.
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }

    fn find<Q: Hash + Eq + ?Sized, R>(&self, key: &Q, then: impl FnOnce(&T) -> R) -> Option<R>
    where
        T: Borrow<Q>,
    {
        self.shards[self.shard(key)].load().get(key).map(then)
    }

    fn apply<K: Borrow<Q>, Q: Hash + Eq + ?Sized>(&self, changes: Vec<(K, Option<T>)>)
    where
        T: Borrow<Q>,
    {
        let mut by_shard: HashMap<usize, Vec<(K, Option<T>)>> = HashMap::new();
        for change in changes {
            by_shard.entry(self.shard(change.0.borrow())).or_default().push(change);
        }
        for (shard, changes) in by_shard {
            let mut set = HashSet::clone(&self.shards[shard].load());
            for (key, value) in changes {
                set.remove(key.borrow());
                set.extend(value);
            }
            self.shards[shard].store(Arc::new(set));
        }
    }
}

/// Shards of each table.
const SHARDS: usize = 4096;

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
