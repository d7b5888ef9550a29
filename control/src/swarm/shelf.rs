//! The bundles that are kept, on disk and in memory: descriptions in `bundles/`, packs and recipes in `spool/`,
//! and `bundles/index.json`, which names those that count.
//!
//! Files are written whole, with fsync, before the index names them; whatever it does not name is removed at the
//! next start. Nothing here reads the repository.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use freshet_api::ContentHash;
use freshet_api::bundle::{Bundle, BundleId};
use freshet_api::swarm::BUNDLES_MAX;
use freshet_engine::Root;
use serde::{Deserialize, Serialize};

use crate::private_file;

/// The bundles of this control.
#[derive(Debug)]
pub struct Shelf {
    bundles: PathBuf,
    spool: PathBuf,
    root: Arc<Root>,
    spool_max: u64,
    shown: ArcSwap<Shown>,
    /// Held while the disk is written.
    index: Mutex<Index>,
}

/// What everybody sees; immutable.
#[derive(Debug, Default)]
pub struct Shown {
    /// Oldest first.
    pub bundles: Vec<Arc<Kept>>,
    /// Contents in the spool.
    pub spooled: HashMap<ContentHash, u64>,
}

/// One bundle.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its identity.
    pub id: BundleId,
    /// The state that first named its contents.
    pub sequence: u64,
    /// Its objects and pieces.
    pub bundle: Arc<Bundle>,
    /// The numbers of each object's pieces.
    pub spans: Vec<Range<u32>>,
}

impl Kept {
    pub(super) fn new(id: BundleId, sequence: u64, bundle: Bundle) -> Self {
        Self { id, sequence, spans: bundle.spans(), bundle: Arc::new(bundle) }
    }
}

/// What lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    released: Option<Released>,
    bundles: Vec<Row>,
}

/// The state that volunteers were last told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Released {
    /// Its sequence.
    pub(super) sequence: u64,
    /// The highest file number in it or before.
    pub(super) file_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: BundleId,
    sequence: u64,
    /// Contents of its own in the spool, with their sizes.
    spooled: Vec<(ContentHash, u64)>,
}

/// What was lost on disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Damage {
    /// Contents whose bundle cannot be used.
    pub(super) contents: HashSet<ContentHash>,
    /// It is not even known what was in the bundles.
    pub(super) everything: bool,
}

/// A bundle that was made, its spooled contents on disk.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) id: BundleId,
    pub(super) wire: Vec<u8>,
    pub(super) bundle: Bundle,
    pub(super) spooled: Vec<(ContentHash, u64)>,
}

impl Shelf {
    /// Loads what is there, within `state`, and tells what must be made again because it was damaged.
    pub(super) fn open(state: &Path, spool_max: u64) -> io::Result<(Self, Damage)> {
        let (bundles, spool) = (state.join(BUNDLES_DIRECTORY), state.join(SPOOL_DIRECTORY));
        private_file::make_directory(&bundles)?;
        private_file::make_directory(&spool)?;
        let mut index = read_index(&bundles);
        let mut damage = Damage { everything: index.released.is_none(), contents: HashSet::new() };
        let mut shown = Shown::default();
        index.bundles.retain(|row| match load(&bundles, &spool, row) {
            Ok(kept) => {
                shown.spooled.extend(row.spooled.iter().copied());
                shown.bundles.push(Arc::new(kept));
                true
            }
            Err((error, bundle)) => {
                tracing::warn!(bundle = %row.id, error, "a bundle cannot be used any more; what it has is bundled anew");
                damage.everything |= bundle.is_none();
                damage.contents.extend(bundle.iter().flat_map(contents));
                false
            }
        });
        let shelf = Self {
            root: Root::open(&spool)?,
            bundles,
            spool,
            spool_max,
            shown: ArcSwap::from_pointee(shown),
            index: Mutex::new(index),
        };
        shelf.sweep();
        Ok((shelf, damage))
    }

    /// What is kept now; lock-free.
    pub fn load(&self) -> Guard<Arc<Shown>> {
        self.shown.load()
    }

    /// The same, to be held for longer.
    pub fn load_full(&self) -> Arc<Shown> {
        self.shown.load_full()
    }

    /// Where spooled contents are served from: each under its hash.
    pub fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// A bundle in its wire form.
    ///
    /// # Errors
    /// The kernel's; `NotFound` for a bundle that is not kept.
    pub fn wire(&self, id: BundleId) -> io::Result<Vec<u8>> {
        std::fs::read(self.bundles.join(id.to_string()))
    }

    /// The state that volunteers were last told of.
    pub(super) fn released(&self) -> Option<Released> {
        self.lock().released
    }

    /// Bytes that may still be spooled if everything retires that may.
    pub(super) fn spool_room(&self) -> u64 {
        let index = self.lock();
        let protected = protected(&index.bundles);
        let kept: u64 = index.bundles[protected..].iter().map(Row::spooled_bytes).sum();
        self.spool_max.saturating_sub(kept)
    }

    /// Puts a content into the spool, durable.
    pub(super) fn spool(&self, content: ContentHash, bytes: &[u8]) -> io::Result<()> {
        private_file::write(&self.spool.join(content.to_string()), bytes)
    }

    /// Contents of bundles that were made for a state that was not released: a restart came between.
    pub(super) fn made_ahead(&self) -> HashSet<ContentHash> {
        let released = self.released().map_or(0, |released| released.sequence);
        let shown = self.load();
        let ahead = shown.bundles.iter().filter(|kept| kept.sequence > released);
        ahead.flat_map(|kept| contents(&kept.bundle)).collect()
    }

    /// Everything that is in a bundle.
    pub(super) fn all_contents(&self) -> HashSet<ContentHash> {
        self.load().bundles.iter().flat_map(|kept| contents(&kept.bundle)).collect()
    }

    /// Takes up a bundle that was made for the state `sequence`, durable.
    pub(super) fn add(&self, made: Made, sequence: u64) -> io::Result<()> {
        let mut index = self.lock();
        if index.bundles.iter().any(|row| row.id == made.id) {
            return Ok(());
        }
        private_file::write(&self.bundles.join(made.id.to_string()), &made.wire)?;
        let mut next = index.clone();
        next.bundles.push(Row { id: made.id, sequence, spooled: made.spooled.clone() });
        write_index(&self.bundles, &next)?;
        *index = next;
        let before = self.shown.load_full();
        let mut bundles = before.bundles.clone();
        bundles.push(Arc::new(Kept::new(made.id, sequence, made.bundle)));
        let mut spooled = before.spooled.clone();
        spooled.extend(made.spooled);
        self.shown.store(Arc::new(Shown { bundles, spooled }));
        Ok(())
    }

    /// Volunteers are told of `released` from now on; lets what is beyond the bounds go. `current` says whether a
    /// content is still in the catalogue.
    pub(super) fn release(
        &self,
        released: Released,
        current: impl Fn(&ContentHash) -> bool,
    ) -> io::Result<()> {
        let mut index = self.lock();
        let mut next = Index { released: Some(released), bundles: index.bundles.clone() };
        let mut bundles = self.shown.load().bundles.clone();
        let retired = self.retiring(&next.bundles, &bundles, current);
        next.bundles.retain(|row| !retired.contains(&row.id));
        bundles.retain(|kept| !retired.contains(&kept.id));
        if *index != next {
            write_index(&self.bundles, &next)?;
        }
        let spooled = next.bundles.iter().flat_map(|row| row.spooled.iter().copied()).collect();
        *index = next;
        self.shown.store(Arc::new(Shown { bundles, spooled }));
        drop(index);
        if !retired.is_empty() {
            tracing::info!(bundles = retired.len(), "old bundles retired");
            self.sweep();
        }
        Ok(())
    }

    /// Which bundles go: those of which nothing is in the catalogue any more, and the oldest beyond the bounds; never
    /// those of the last two releases that had any.
    fn retiring(
        &self,
        rows: &[Row],
        kept: &[Arc<Kept>],
        current: impl Fn(&ContentHash) -> bool,
    ) -> HashSet<BundleId> {
        let old = protected(rows);
        let mut retired: HashSet<BundleId> = kept[..old]
            .iter()
            .filter(|kept| !contents(&kept.bundle).any(|content| current(&content)))
            .map(|kept| kept.id)
            .collect();
        let mut count = rows.len() - retired.len();
        let staying = |row: &&Row| !retired.contains(&row.id);
        let mut bytes: u64 = rows.iter().filter(staying).map(Row::spooled_bytes).sum();
        for row in &rows[..old] {
            if count <= BUNDLES_MAX && bytes <= self.spool_max {
                break;
            }
            if retired.insert(row.id) {
                count -= 1;
                bytes -= row.spooled_bytes();
            }
        }
        // A first catalogue may be larger than any list of bundles.
        for row in rows.iter().skip(old) {
            if count <= BUNDLES_MAX {
                break;
            }
            retired.insert(row.id);
            count -= 1;
        }
        retired
    }

    /// Removes files that the index does not name.
    fn sweep(&self) {
        let index = self.lock();
        let bundles = index.bundles.iter().map(|row| row.id.to_string()).chain([INDEX_FILE.to_owned()]);
        let spooled =
            index.bundles.iter().flat_map(|row| &row.spooled).map(|(content, _)| content.to_string());
        remove_all_but(&self.bundles, &bundles.collect());
        remove_all_but(&self.spool, &spooled.collect());
    }

    /// Forgets what was spooled for a bundle that came to nothing.
    pub(super) fn give_up(&self) {
        self.sweep();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Row {
    fn spooled_bytes(&self) -> u64 {
        self.spooled.iter().map(|(_, size)| size).sum()
    }
}

/// The contents that a bundle is for.
fn contents(bundle: &Bundle) -> impl Iterator<Item = ContentHash> + '_ {
    let of_object = |object: &freshet_api::bundle::Object| {
        let own = object.members.is_empty().then_some(object.content);
        own.into_iter().chain(object.members.iter().map(|member| member.content).collect::<Vec<_>>())
    };
    let made = bundle.recipes.iter().map(|recipe| recipe.target);
    bundle.objects.iter().flat_map(of_object).chain(made)
}

/// Where the bundles of the last two releases begin.
fn protected(rows: &[Row]) -> usize {
    let mut sequences: Vec<u64> = rows.iter().map(|row| row.sequence).collect();
    sequences.dedup();
    let from = sequences.len().saturating_sub(RELEASES_KEPT_MIN);
    sequences.get(from).map_or(rows.len(), |&first| rows.partition_point(|row| row.sequence < first))
}

fn load(bundles: &Path, spool: &Path, row: &Row) -> Result<Kept, (String, Option<Bundle>)> {
    let wire = std::fs::read(bundles.join(row.id.to_string())).map_err(|error| (error.to_string(), None))?;
    let bundle = Bundle::decode(row.id, &wire).map_err(|error| (error.to_string(), None))?;
    for (content, size) in &row.spooled {
        let found = std::fs::metadata(spool.join(content.to_string())).map(|metadata| metadata.len());
        if found.as_ref().ok() != Some(size) {
            return Err((
                format!("expected {size} bytes of {content} in the spool, found {found:?}"),
                Some(bundle),
            ));
        }
    }
    Ok(Kept::new(row.id, row.sequence, bundle))
}

fn read_index(bundles: &Path) -> Index {
    match std::fs::read(bundles.join(INDEX_FILE)) {
        Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, "the list of bundles cannot be read; everything is bundled anew");
            Index::default()
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
        Err(error) => {
            tracing::warn!(%error, "the list of bundles cannot be read; everything is bundled anew");
            Index::default()
        }
    }
}

fn write_index(bundles: &Path, index: &Index) -> io::Result<()> {
    private_file::write(&bundles.join(INDEX_FILE), &serde_json::to_vec(index)?)
}

fn remove_all_but(directory: &Path, named: &HashSet<String>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_str().is_some_and(|name| named.contains(name))
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "an old file of the swarm cannot be removed");
        }
    }
}

const BUNDLES_DIRECTORY: &str = "bundles";
const SPOOL_DIRECTORY: &str = "spool";
const INDEX_FILE: &str = "index.json";
const RELEASES_KEPT_MIN: usize = 2;

#[cfg(test)]
mod tests {
    use freshet_api::bundle::{Object, PIECE_BYTES_MIN};

    use super::*;

    /// A bundle of one spooled content of 10,000 bytes.
    fn made(shelf: &Shelf, name: &str) -> Made {
        let bytes: Vec<u8> = name.bytes().cycle().take(10_000).collect();
        let content = ContentHash::of(&bytes);
        shelf.spool(content, &bytes).unwrap();
        let bundle = Bundle {
            piece_bytes: PIECE_BYTES_MIN,
            objects: vec![Object { content, size: 10_000, members: Vec::new() }],
            recipes: Vec::new(),
            pieces: vec![content],
        };
        let (id, wire) = bundle.encode().unwrap();
        Made { id, wire, bundle, spooled: vec![(content, 10_000)] }
    }

    fn publish(shelf: &Shelf, sequence: u64, name: &str, current: bool) -> BundleId {
        let made = made(shelf, name);
        let id = made.id;
        shelf.add(made, sequence).unwrap();
        shelf.release(Released { sequence, file_max: 1 }, |_| current).unwrap();
        id
    }

    fn ids(shelf: &Shelf) -> Vec<BundleId> {
        shelf.load().bundles.iter().map(|kept| kept.id).collect()
    }

    fn files(directory: &Path) -> usize {
        std::fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn the_oldest_retire_beyond_the_bound_but_not_of_the_last_two_releases() {
        let state = tempfile::tempdir().unwrap();
        let (shelf, damage) = Shelf::open(state.path(), 35_000).unwrap();
        assert!(damage.everything, "nothing is known yet");
        let published: Vec<BundleId> = (1..=6).map(|n| publish(&shelf, n, &format!("{n}"), true)).collect();
        assert_eq!(ids(&shelf), published[3..]);
        assert_eq!((files(&state.path().join("spool")), files(&state.path().join("bundles"))), (3, 4));
        let (tight, damage) = Shelf::open(state.path(), 1).unwrap();
        assert!(!damage.everything && damage.contents.is_empty());
        assert_eq!((ids(&tight), tight.released()), (published[3..].to_vec(), shelf.released()));
        publish(&tight, 7, "7", true);
        assert_eq!(ids(&tight).len(), 2);
        assert_eq!(tight.spool_room(), 0);
    }

    #[test]
    fn what_is_in_no_file_any_more_retires() {
        let state = tempfile::tempdir().unwrap();
        let (shelf, _) = Shelf::open(state.path(), 1 << 30).unwrap();
        let published: Vec<BundleId> = (1..=4).map(|n| publish(&shelf, n, &format!("{n}"), n < 4)).collect();
        assert_eq!(ids(&shelf), published[2..]);
    }

    #[test]
    fn leftovers_of_a_crash_are_swept_and_half_written_files_named_as_damage() {
        let state = tempfile::tempdir().unwrap();
        let (shelf, _) = Shelf::open(state.path(), 1 << 30).unwrap();
        publish(&shelf, 1, "one", true);
        let spool = state.path().join("spool");
        shelf.spool(ContentHash([1; 32]), b"of no bundle").unwrap();
        drop(shelf);
        let (shelf, damage) = Shelf::open(state.path(), 1 << 30).unwrap();
        assert!(files(&spool) == 1 && damage.contents.is_empty());
        let content = shelf.load().bundles[0].bundle.objects[0].content;
        drop(shelf);
        std::fs::write(spool.join(content.to_string()), b"torn").unwrap();
        let (shelf, damage) = Shelf::open(state.path(), 1 << 30).unwrap();
        assert!(ids(&shelf).is_empty() && damage.contents == HashSet::from([content]) && !damage.everything);
        drop(shelf);
        std::fs::write(state.path().join("bundles/index.json"), b"{").unwrap();
        assert!(Shelf::open(state.path(), 1 << 30).unwrap().1.everything);
    }
}
