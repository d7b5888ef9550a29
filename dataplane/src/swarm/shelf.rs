//! What peers may have of the bundles that are being copied: read by the rings without waiting.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use freshet_api::ContentHash;
use freshet_api::bundle::BundleId;
use freshet_policy::swarm::PieceSet;

use super::layout::Layout;
use super::manifest_shelf::ManifestShelf;
use super::store::to_bits;

/// All bundles of this volunteer. Cheap to clone; the copies are the same shelves.
#[derive(Clone, Default)]
pub struct Shelves {
    bundles: Arc<ArcSwap<HashMap<BundleId, Arc<Shelf>>>>,
    manifests: ManifestShelf,
}

/// One bundle: which of its pieces are verified and durable.
pub(crate) struct Shelf {
    layout: Arc<Layout>,
    bits: ArcSwap<Bytes>,
    /// Whether nobody copies it here any more, and only whole contents are left of it.
    over: bool,
}

/// An object of which (a part) lies in a bundle's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shelved {
    pub(crate) bundle: BundleId,
    pub(crate) size: u64,
    object: usize,
    whole: bool,
}

impl Shelves {
    /// Manifests for peers.
    pub(crate) fn manifests(&self) -> &ManifestShelf {
        &self.manifests
    }

    /// Opens one for a bundle.
    pub(crate) fn open(&self, layout: Arc<Layout>) -> Arc<Shelf> {
        let shelf = Arc::new(Shelf::new(&PieceSet::new(layout.pieces()), layout, false));
        self.bundles.rcu(|shelves| {
            let mut shelves = HashMap::clone(shelves);
            shelves.insert(shelf.layout.id, Arc::clone(&shelf));
            shelves
        });
        shelf
    }

    /// Closes it: nothing of it is served from its directory any more.
    pub(crate) fn close(&self, bundle: BundleId) {
        self.bundles.rcu(|shelves| {
            let mut shelves = HashMap::clone(shelves);
            shelves.remove(&bundle);
            shelves
        });
    }

    /// Offers what is left of bundles that are not copied here any more: pieces of contents that are held whole, for
    /// those who come late. Replaces what was offered so before.
    pub(crate) fn offer(&self, over: &[(Arc<Layout>, PieceSet)]) {
        self.bundles.rcu(|shelves| {
            let mut shelves = HashMap::clone(shelves);
            shelves.retain(|_, shelf| !shelf.over);
            for (layout, pieces) in over.iter().filter(|(_, pieces)| !pieces.is_empty()) {
                let shelf = || Arc::new(Shelf::new(pieces, Arc::clone(layout), true));
                shelves.entry(layout.id).or_insert_with(shelf);
            }
            shelves
        });
    }

    /// The pieces of a bundle that are here, one bit each; `None` when it is not being copied.
    pub(crate) fn bits(&self, bundle: &BundleId) -> Option<Bytes> {
        self.bundles.load().get(bundle).map(|shelf| Bytes::clone(&shelf.bits.load()))
    }

    /// An object by its name.
    pub(crate) fn find(&self, content: &ContentHash) -> Option<Shelved> {
        self.bundles.load().iter().find_map(|(&bundle, shelf)| {
            let object = shelf.layout.object(content)?;
            let bits = shelf.bits.load();
            let has = |piece: u32| has(&bits, piece);
            let span = shelf.layout.spans[object].clone();
            if !span.clone().any(has) {
                return None;
            }
            let size = shelf.layout.bundle.objects[object].size;
            Some(Shelved { bundle, size, object, whole: span.into_iter().all(has) })
        })
    }

    /// Whether all pieces that overlap `range` of an object are here.
    pub(crate) fn has(&self, found: &Shelved, range: Range<u64>) -> bool {
        if found.whole {
            return true;
        }
        let shelves = self.bundles.load();
        let Some(shelf) = shelves.get(&found.bundle) else { return false };
        let bits = shelf.bits.load();
        !range.is_empty() && shelf.layout.covering(found.object, range).all(|piece| has(&bits, piece))
    }
}

impl Shelf {
    fn new(pieces: &PieceSet, layout: Arc<Layout>, over: bool) -> Self {
        Self { layout, bits: ArcSwap::from_pointee(to_bits(pieces).into()), over }
    }

    /// These pieces are verified and durable, and no others.
    pub(crate) fn set(&self, pieces: &PieceSet) {
        self.bits.store(Arc::new(to_bits(pieces).into()));
    }
}

impl Shelved {
    /// Whether any range may be sent.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }
}

fn has(bits: &[u8], piece: u32) -> bool {
    bits.get(piece as usize / 8).is_some_and(|byte| byte >> (piece % 8) & 1 == 1)
}
