//! Takes contents out of objects whose pieces are here: a file's content becomes a blob, a pack is cut apart, a
//! recipe is followed. All of it blocks on the disk, and all of it is verified by the content's own hash once more.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use freshet_api::ContentHash;

use super::layout::{Layout, Source};
use super::recipe;
use super::store::PieceStore;
use crate::mirror::{Mirror, MirrorError, Want};

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Harvest {
    /// On disk under their names.
    pub(super) committed: Vec<ContentHash>,
    /// Not to be had from this bundle: it contradicts itself, or the recipe can't be followed.
    pub(super) refused: Vec<ContentHash>,
    /// Pieces that are not on disk as they were when they were verified; they are no longer held.
    pub(super) wrong: Vec<u32>,
}

/// Takes `wants` out of one object.
///
/// # Errors
/// The disk's. What was committed before stays committed.
pub(super) fn object(
    mirror: &Mirror,
    layout: &Layout,
    store: &PieceStore,
    object: usize,
    wants: &[Want],
) -> Result<Harvest, MirrorError> {
    let mut harvest = Harvest::default();
    let (held, wants): (Vec<&Want>, Vec<&Want>) = wants.iter().partition(|want| mirror.holds(&want.content));
    harvest.committed = held.into_iter().map(|want| want.content).collect();
    if wants.is_empty() {
        return Ok(harvest);
    }
    let Some(file) = store.object(object)? else {
        harvest.wrong = layout.spans[object].clone().collect();
        store.forget(harvest.wrong.iter().copied())?;
        return Ok(harvest);
    };
    let mut refused = Vec::new();
    let mut batch = Batch { mirror, arrived: Vec::new(), bytes: 0 };
    for want in wants {
        let taken = match layout.source(want) {
            Some(Source::Object(_)) => {
                let name = layout.bundle.objects[object].content.to_hex();
                let error =
                    |source| MirrorError::Disk { doing: "open", path: want.path.as_str().into(), source };
                mirror.take_file(want, store.directory(), name, file.try_clone().map_err(error)?)?
            }
            Some(Source::Member { offset, size, .. }) => {
                mirror.take_bytes(want, read(&file, want, offset, size)?)
            }
            Some(Source::Recipe(_)) | None => None,
        };
        match taken {
            Some(arrived) => batch.push(arrived, &mut harvest.committed)?,
            None => refused.push(want.content),
        }
    }
    batch.flush(&mut harvest.committed)?;
    if !refused.is_empty() {
        harvest.wrong = store.wrong_pieces(object)?;
        if harvest.wrong.is_empty() {
            // All pieces are what the bundle says, and the content is not: asking again brings the same.
            harvest.refused = refused;
        } else {
            store.forget(harvest.wrong.iter().copied())?;
        }
    }
    Ok(harvest)
}

/// Makes a content by its recipe, which lies in `store`.
///
/// # Errors
/// The disk's.
pub(super) fn make(
    mirror: &Mirror,
    layout: &Layout,
    store: &PieceStore,
    number: usize,
    want: &Want,
) -> Result<Harvest, MirrorError> {
    let mut harvest = Harvest::default();
    let reference = &layout.bundle.recipes[number];
    let found = match layout.recipe_source(number) {
        Some(Source::Object(object)) => Some((object, 0)),
        Some(Source::Member { object, offset, .. }) => Some((object, offset)),
        Some(Source::Recipe(_)) | None => None,
    };
    let wire = match found {
        Some((object, offset)) if reference.recipe_size <= freshet_api::recipe::BYTES_MAX as u64 => {
            match store.object(object)? {
                Some(file) => Some(read(&file, want, offset, reference.recipe_size)?),
                None => None,
            }
        }
        _ => None,
    };
    let wire = wire.filter(|wire| ContentHash::from(blake3::hash(wire)) == reference.recipe);
    let made = match wire {
        Some(wire) => recipe::make(mirror, want, &wire)?,
        None => None,
    };
    match made {
        Some(arrived) => {
            mirror.commit(vec![arrived])?;
            harvest.committed.push(want.content);
        }
        None => harvest.refused.push(want.content),
    }
    Ok(harvest)
}

/// Contents that are committed together.
struct Batch<'a> {
    mirror: &'a Mirror,
    arrived: Vec<crate::mirror::Arrived>,
    bytes: usize,
}

impl Batch<'_> {
    fn push(
        &mut self,
        arrived: crate::mirror::Arrived,
        committed: &mut Vec<ContentHash>,
    ) -> Result<(), MirrorError> {
        self.bytes += arrived.memory_bytes();
        self.arrived.push(arrived);
        if self.arrived.len() >= BATCH_MAX || self.bytes >= BATCH_BYTES_MAX {
            self.flush(committed)?;
        }
        Ok(())
    }

    fn flush(&mut self, committed: &mut Vec<ContentHash>) -> Result<(), MirrorError> {
        if self.arrived.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        let contents: Vec<ContentHash> = self.arrived.iter().map(crate::mirror::Arrived::content).collect();
        self.mirror.commit(std::mem::take(&mut self.arrived))?;
        committed.extend(contents);
        Ok(())
    }
}

fn read(file: &std::fs::File, want: &Want, offset: u64, size: u64) -> Result<Vec<u8>, MirrorError> {
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(bytes),
        Err(source) => {
            Err(MirrorError::Disk { doing: "read a part of", path: want.path.as_str().into(), source })
        }
    }
}

/// What one harvest works with.
#[derive(Clone)]
pub(super) struct Barn {
    pub(super) mirror: Arc<Mirror>,
    pub(super) layout: Arc<Layout>,
    pub(super) store: Arc<PieceStore>,
}

/// Contents of one batch at most (256 measured best against one sync each).
const BATCH_MAX: usize = 256;
/// Bytes of one batch at most.
const BATCH_BYTES_MAX: usize = 8 << 20;
