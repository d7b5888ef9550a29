//! Makes the bundles of every new state, and then releases it to volunteers.
//!
//! Whatever goes wrong with a content or a bundle is logged and left out, and the state is released all the same:
//! what no bundle has, volunteers fetch whole from the origin.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use freshet_api::bundle::{Bundle, Member, OBJECT_BYTES_MAX, Object, RecipeRef};
use freshet_api::swarm::BUNDLES_MAX;
use freshet_api::{Bytes, ContentHash};

use super::content::{self, ContentError, Repository};
use super::plan::{self, Part, Source};
use super::recipes::{Cooked, RecipeMaker};
use super::release::Release;
use super::shelf::{Damage, Made, Released, Shelf};
use crate::catalog::{Catalog, Snapshot};
use crate::registry::Registry;

/// Everything that making bundles needs.
pub(super) struct Bundler {
    pub(super) repo: PathBuf,
    pub(super) catalog: Arc<Catalog>,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) release: Arc<Release>,
    pub(super) recipes: Mutex<RecipeMaker>,
    /// What must be made again: after the start what was lost, then what could not be read the last time.
    pub(super) damage: Mutex<Damage>,
    pub(super) stopping: AtomicBool,
    /// Since when a state is being made ready.
    pub(super) preparing: Mutex<Option<Instant>>,
}

impl Bundler {
    /// Shows volunteers the state that they were told of before the start, if nothing is to be made for it.
    pub(super) fn resume(&self) {
        let damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.catalog.load();
        let same = self.shelf.released().is_some_and(|released| released.sequence == state.sequence());
        if same && damage.contents.is_empty() && !damage.everything {
            self.release.set(Arc::clone(&state));
        }
    }

    /// Makes and releases what the catalogue has now. Takes as long as it takes to read what is new.
    pub(super) fn catch_up(&self) {
        self.prepare();
        *self.preparing.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn prepare(&self) {
        let state = Arc::clone(&self.catalog.load());
        let shown = self.release.load();
        if shown.state.is_some() && shown.sequence == state.sequence() {
            return;
        }
        let begun = Instant::now();
        *self.preparing.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
        let damage = std::mem::take(&mut *self.damage.lock().unwrap_or_else(PoisonError::into_inner));
        let before = self.shelf.released();
        let known = before.filter(|_| !damage.everything).map_or(0, |released| released.file_max);
        let there = if damage.everything { self.shelf.all_contents() } else { self.shelf.made_ahead() };
        let sources = plan::new_contents(&state, known, &damage.contents, &there);
        if !sources.is_empty() {
            match Repository::open(&self.repo) {
                Ok(repository) => self.bundle(sources, &state, &repository),
                Err(error) => {
                    tracing::error!(%error, "the repository cannot be read: volunteers fetch whole files from the origin");
                }
            }
        }
        if self.stopping.load(Ordering::Relaxed) {
            return;
        }
        let file_max = state.iter().map(|entry| entry.file.0).max().unwrap_or(0).max(known);
        let released = Released { sequence: state.sequence(), file_max };
        if let Err(error) = self.shelf.release(released, |content| state.number_of_content(content).is_some())
        {
            tracing::error!(%error, "cannot note which state volunteers know; after a restart its bundles are made again");
        }
        tracing::debug!(sequence = state.sequence(), took = ?begun.elapsed(), "released to volunteers");
        self.release.set(state);
    }

    fn bundle(&self, sources: Vec<Source>, state: &Snapshot, repository: &Repository) {
        let mut recipes = self.recipes.lock().unwrap_or_else(PoisonError::into_inner);
        let stopping = || self.stopping.load(Ordering::Relaxed);
        let keepable = recipes.keepable(&sources);
        let cooked = recipes.make(sources, state, repository, stopping);
        self.bundle_cooked(cooked, state.sequence(), repository);
        if !stopping() {
            recipes.keep(&keepable, state, repository);
        }
    }

    fn bundle_cooked(&self, cooked: Cooked, sequence: u64, repository: &Repository) {
        let sources = cooked.sources;
        let bytes: u64 = sources.iter().map(|source| source.size).sum();
        let bytes_max = BUNDLE_BYTES_MAX.max(bytes / (BUNDLES_MAX as u64 / 4)).min(OBJECT_BYTES_MAX);
        let parts = plan::parts(sources, self.shelf.spool_room());
        let peers = self.registry.nodes().iter().filter(|node| node.membership.is_some()).count();
        for parts in plan::bundles(parts, bytes_max) {
            let made = Making::new(self, repository, &parts, peers).make(parts, &cooked.recipes);
            match made {
                Ok(Some(made)) => {
                    let (id, size) = (made.id, Bytes(made.bundle.bytes()));
                    let (pieces, piece) = (made.bundle.len(), Bytes(u64::from(made.bundle.piece_bytes)));
                    match self.shelf.add(made, sequence) {
                        Ok(()) => tracing::info!(bundle = %id, %size, pieces, %piece, "bundled"),
                        Err(error) => {
                            tracing::error!(%error, "a bundle cannot be written: volunteers fetch its files from the origin");
                            self.shelf.give_up();
                        }
                    }
                }
                Ok(None) => {}
                Err(ContentError::Stopped) => return,
                Err(error) => {
                    tracing::error!(%error, "a bundle cannot be made: volunteers fetch its files from the origin");
                    self.shelf.give_up();
                }
            }
        }
    }
}

/// One bundle being made.
struct Making<'a> {
    bundler: &'a Bundler,
    repository: &'a Repository,
    bundle: Bundle,
    spooled: Vec<(ContentHash, u64)>,
    names: HashSet<ContentHash>,
    left_out: Vec<ContentHash>,
}

impl<'a> Making<'a> {
    fn new(bundler: &'a Bundler, repository: &'a Repository, parts: &[Part], peers: usize) -> Self {
        let sizes: Vec<u64> = parts.iter().map(Part::size).collect();
        let bundle = Bundle { piece_bytes: plan::piece_bytes(&sizes, peers), ..Bundle::default() };
        Self { bundler, repository, bundle, spooled: Vec::new(), names: HashSet::new(), left_out: Vec::new() }
    }

    fn make(mut self, parts: Vec<Part>, recipes: &[RecipeRef]) -> Result<Option<Made>, ContentError> {
        for part in parts {
            match part {
                Part::Whole(source) => self.whole(source)?,
                Part::Pack(members) => self.pack(members)?,
            }
        }
        if !self.left_out.is_empty() {
            tracing::warn!(
                files = self.left_out.len(),
                "left out of a bundle: they moved, changed or could not be read; they come with the next"
            );
            let mut damage = self.bundler.damage.lock().unwrap_or_else(PoisonError::into_inner);
            damage.contents.extend(self.left_out.drain(..).take(LEFT_OUT_MAX));
        }
        if self.bundle.is_empty() {
            return Ok(None);
        }
        let members = self.bundle.objects.iter().flat_map(|object| &object.members);
        self.names.extend(members.map(|member| member.content));
        self.bundle.recipes =
            recipes.iter().filter(|made| self.names.contains(&made.recipe)).cloned().collect();
        let (id, wire) = self.bundle.encode().map_err(std::io::Error::other)?;
        Ok(Some(Made { id, wire, bundle: self.bundle, spooled: self.spooled }))
    }

    fn whole(&mut self, source: Source) -> Result<(), ContentError> {
        let stop = || self.bundler.stopping.load(Ordering::Relaxed);
        let pieces = match &source.made {
            Some(bytes) => {
                self.bundler.shelf.spool(source.content, bytes)?;
                self.spooled.push((source.content, source.size));
                Ok(content::piece_hashes_of(bytes, self.bundle.piece_bytes))
            }
            None => self.repository.file(&source.path, source.size).and_then(|mut file| {
                content::piece_hashes(&mut file, source.size, &source.content, self.bundle.piece_bytes, stop)
            }),
        };
        match pieces {
            Ok(pieces) => self.object(source.content, source.size, Vec::new(), pieces),
            Err(ContentError::Stopped) => return Err(ContentError::Stopped),
            Err(error) => self.leave_out(&source, &error),
        }
        Ok(())
    }

    fn pack(&mut self, members: Vec<Source>) -> Result<(), ContentError> {
        if self.bundler.stopping.load(Ordering::Relaxed) {
            return Err(ContentError::Stopped);
        }
        let mut bytes = Vec::new();
        let mut packed = Vec::new();
        for source in &members {
            let read = match &source.made {
                Some(made) => Ok(made.to_vec()),
                None => self.repository.read(&source.path, source.size, &source.content),
            };
            match read {
                Ok(read) => {
                    bytes.extend_from_slice(&read);
                    packed.push(Member { content: source.content, size: source.size });
                }
                Err(error) => self.leave_out(source, &error),
            }
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let content = ContentHash::from(blake3::hash(&bytes));
        if let Err(error) = self.bundler.shelf.spool(content, &bytes) {
            tracing::warn!(%error, "no pack can be written: its files are copied one by one");
            return members.into_iter().try_for_each(|source| self.whole(source));
        }
        self.spooled.push((content, bytes.len() as u64));
        let pieces = content::piece_hashes_of(&bytes, self.bundle.piece_bytes);
        self.object(content, bytes.len() as u64, packed, pieces);
        Ok(())
    }

    fn object(&mut self, content: ContentHash, size: u64, members: Vec<Member>, pieces: Vec<ContentHash>) {
        if self.names.insert(content) {
            self.bundle.objects.push(Object { content, size, members });
            self.bundle.pieces.extend(pieces);
        }
    }

    fn leave_out(&mut self, source: &Source, error: &ContentError) {
        tracing::debug!(path = source.path, %error, "left out of a bundle");
        self.left_out.push(source.content);
    }
}

/// Contents that are remembered for the next bundle because they could not be read, at most; of one bundle.
const LEFT_OUT_MAX: usize = 100_000;
/// Bytes of one bundle at most; more where a state would otherwise have too many bundles.
const BUNDLE_BYTES_MAX: u64 = 16 << 30;
