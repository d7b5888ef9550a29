//! Recipes for contents that are cheaper to make from what mirrors have than to copy, found when a state is bundled.
//!
//! What is tried, and why just that (figures of real packages): a disc image whose packages are on the mirror is
//! copies of them but for a thousandth of it; an index is a few per cent of itself as a patch against its older
//! version; of an archive of uncompressed or singly compressed members (wheels, zip, tar) most is in the version
//! before. In packages that are compressed as a whole (.deb, .rpm, .xz) a twentieth is found again: not tried. A
//! recipe is kept when it has less than half of its target's bytes. Time and memory are bounded, and a content
//! without a recipe is copied as it is.

mod image;
mod keepsakes;
mod patch;

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use freshet_api::bundle::RecipeRef;
use freshet_api::recipe::{Method, PATCH_BYTES_MAX, Recipe};
use freshet_api::{Bytes, ContentHash};

use self::image::SectorIndex;
use self::keepsakes::Keepsakes;
use super::content::{ContentError, Repository};
use super::plan::Source;
use crate::catalog::{Patterns, Snapshot};

/// Makes recipes, and keeps the older versions that they need.
#[derive(Debug)]
pub(super) struct RecipeMaker {
    keepsakes: Keepsakes,
    patterns: Patterns,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Cooked {
    /// What is to be copied: contents without a recipe, and the recipes.
    pub(super) sources: Vec<Source>,
    /// Where the recipes are.
    pub(super) recipes: Vec<RecipeRef>,
}

impl RecipeMaker {
    /// Keeps older versions below `state`, `bytes_max` in all.
    pub(super) fn open(state: &Path, bytes_max: u64, patterns: Patterns) -> std::io::Result<Self> {
        Ok(Self { keepsakes: Keepsakes::open(state, bytes_max)?, patterns })
    }

    /// Looks for recipes for `sources`, which are new in `state`; stops early when `stopping` says so.
    pub(super) fn make(
        &self,
        sources: Vec<Source>,
        state: &Snapshot,
        repository: &Repository,
        stopping: impl Fn() -> bool,
    ) -> Cooked {
        let deadline = Instant::now() + TIME_MAX;
        let stop = || stopping() || Instant::now() >= deadline;
        let mut cooked = Cooked::default();
        let (mut bytes, mut saved) = (0usize, 0u64);
        let mut sectors: Option<SectorIndex> = None;
        for source in sources {
            let mut recipe = None;
            if bytes < RECIPES_BYTES_MAX && !stop() {
                let made = if image::is_image(&source.path, source.size) {
                    let index = sectors
                        .get_or_insert_with(|| SectorIndex::new(state, &source.path, repository, stop));
                    index.recipe(&source, repository, stop)
                } else {
                    self.patched(&source, state, repository)
                };
                match made {
                    Ok(made) => recipe = made.and_then(|recipe| worth(recipe, source.size)),
                    Err(error) => tracing::debug!(path = source.path, %error, "no recipe"),
                }
            }
            let Some((recipe, wire)) = recipe else {
                cooked.sources.push(source);
                continue;
            };
            let content = ContentHash::from(blake3::hash(&wire));
            let size = wire.len() as u64;
            tracing::debug!(path = source.path, target = source.size, recipe = size, "recipe");
            bytes += wire.len();
            saved += source.size - size;
            cooked.recipes.push(RecipeRef {
                target: recipe.target,
                target_size: recipe.size,
                recipe: content,
                recipe_size: size,
                bases: recipe.bases,
            });
            cooked.sources.push(Source { path: source.path, content, size, made: Some(wire.into()) });
        }
        if !cooked.recipes.is_empty() {
            tracing::info!(recipes = cooked.recipes.len(), saved = %Bytes(saved), "contents are made by recipe");
        }
        cooked
    }

    /// Those of `sources` that the next version may be patched against.
    pub(super) fn keepable(&self, sources: &[Source]) -> Vec<Source> {
        sources.iter().filter(|source| self.is_patchable_index(source)).cloned().collect()
    }

    /// Keeps copies of these, and of no path that is gone from `state`.
    pub(super) fn keep(&mut self, sources: &[Source], state: &Snapshot, repository: &Repository) {
        if let Err(error) = self.keepsakes.keep(sources, state, repository) {
            tracing::warn!(%error, "older versions of indexes cannot be kept: the next ones are copied whole");
        }
    }

    fn patched(
        &self,
        source: &Source,
        state: &Snapshot,
        repository: &Repository,
    ) -> Result<Option<Recipe>, ContentError> {
        if !(PATCHED_FROM..=PATCH_BYTES_MAX).contains(&source.size) {
            return Ok(None);
        }
        let (base, old) = if self.is_patchable_index(source) {
            let Some(kept) = self.keepsakes.read(&source.path) else { return Ok(None) };
            kept
        } else if patch::is_archive(&source.path) {
            let Some(older) = patch::older_version(source, state) else { return Ok(None) };
            (older.content, repository.read(&older.path, older.size, &older.content)?)
        } else {
            return Ok(None);
        };
        if base == source.content {
            return Ok(None);
        }
        let new = repository.read(&source.path, source.size, &source.content)?;
        let delta = patch::delta(&old, &new)?;
        let method = Method::Patch { delta };
        Ok(Some(Recipe { target: source.content, size: source.size, bases: vec![base], method }))
    }

    fn is_patchable_index(&self, source: &Source) -> bool {
        let lower = source.path.to_ascii_lowercase();
        let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| lower.ends_with(suffix));
        (PATCHED_FROM..=PATCH_BYTES_MAX).contains(&source.size)
            && source.made.is_none()
            && !ends(COMPRESSED)
            && (ends(TEXTS) || self.patterns.is_metadata(&source.path))
    }
}

/// The wire form, if it has less than half of the target's bytes.
fn worth(recipe: Recipe, size: u64) -> Option<(Recipe, Vec<u8>)> {
    let bases: HashSet<&ContentHash> = recipe.bases.iter().collect();
    let wire = recipe.encode().ok().filter(|wire| (wire.len() as u64) < size / 2)?;
    (!bases.contains(&recipe.target)).then(|| (recipe.clone(), wire))
}

/// Smaller contents go into packs, and no recipe would be much smaller.
const PATCHED_FROM: u64 = 16 << 10;
/// Looking for the recipes of one state takes this long at most.
const TIME_MAX: Duration = Duration::from_secs(600);
/// Bytes of the recipes of one state at most: they are in memory until they are bundled.
const RECIPES_BYTES_MAX: usize = 256 << 20;
/// What is compressed as a whole has hardly anything in common with its older version.
const COMPRESSED: &[&str] =
    &[".gz", ".xz", ".zst", ".bz2", ".lz4", ".lzma", ".br", ".gpg", ".sig", ".asc", ".rds"];
/// Uncompressed files that change under the same name, wherever they are.
const TEXTS: &[&str] = &[".json", ".xml", ".html", ".txt", ".csv", ".yaml", ".yml", ".list", ".sql", ".tar"];

#[cfg(test)]
mod tests;
