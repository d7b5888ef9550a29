//! Where each content of a bundle is among its pieces. Pure; made once per bundle.

use std::collections::HashMap;
use std::ops::Range;

use freshet_api::ContentHash;
use freshet_api::bundle::{Bundle, BundleId, Place};

use crate::mirror::Want;

/// A bundle with its indexes.
pub(crate) struct Layout {
    pub(crate) id: BundleId,
    pub(crate) bundle: Bundle,
    pub(crate) spans: Vec<Range<u32>>,
    objects: HashMap<ContentHash, usize>,
    sources: HashMap<ContentHash, Source>,
}

/// How a content comes out of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// It is this object.
    Object(usize),
    /// It is a part of this pack.
    Member {
        /// The pack.
        object: usize,
        /// Where it begins there.
        offset: u64,
        /// Bytes.
        size: u64,
    },
    /// This recipe makes it.
    Recipe(usize),
}

impl Layout {
    /// Indexes a bundle, which was checked when it was read.
    pub(crate) fn new(id: BundleId, bundle: Bundle) -> Self {
        let spans = bundle.spans();
        let mut objects = HashMap::with_capacity(bundle.objects.len());
        let mut sources = HashMap::with_capacity(bundle.objects.len());
        for (number, recipe) in bundle.recipes.iter().enumerate() {
            sources.insert(recipe.target, Source::Recipe(number));
        }
        for (number, object) in bundle.objects.iter().enumerate() {
            objects.insert(object.content, number);
            let mut offset = 0;
            for member in &object.members {
                sources.insert(member.content, Source::Member { object: number, offset, size: member.size });
                offset += member.size;
            }
        }
        // A content that is an object of its own needs no pack.
        for (number, object) in bundle.objects.iter().enumerate() {
            if object.members.is_empty() {
                sources.insert(object.content, Source::Object(number));
            }
        }
        Self { id, bundle, spans, objects, sources }
    }

    /// How many pieces there are.
    pub(crate) fn pieces(&self) -> u32 {
        self.bundle.len()
    }

    /// How a wanted content comes out of it; `None` when it is not in it, or is something else there.
    pub(crate) fn source(&self, want: &Want) -> Option<Source> {
        let source = *self.sources.get(&want.content)?;
        let size = match source {
            Source::Object(object) => self.bundle.objects[object].size,
            Source::Member { size, .. } => size,
            Source::Recipe(recipe) => self.bundle.recipes[recipe].target_size,
        };
        (size == want.size).then_some(source)
    }

    /// Where the recipe of a content lies, which is itself an object or a part of one.
    pub(crate) fn recipe_source(&self, recipe: usize) -> Option<Source> {
        let recipe = &self.bundle.recipes[recipe];
        let source = *self.sources.get(&recipe.recipe)?;
        let size = match source {
            Source::Object(object) => self.bundle.objects[object].size,
            Source::Member { size, .. } => size,
            Source::Recipe(_) => return None,
        };
        (size == recipe.recipe_size).then_some(source)
    }

    /// The object with this name.
    pub(crate) fn object(&self, content: &ContentHash) -> Option<usize> {
        self.objects.get(content).copied()
    }

    /// The pieces that a content lies in; none for a recipe's target.
    pub(crate) fn pieces_of(&self, source: Source) -> Range<u32> {
        match source {
            Source::Object(object) => self.spans[object].clone(),
            Source::Member { object, offset, size } => self.covering(object, offset..offset + size),
            Source::Recipe(_) => 0..0,
        }
    }

    /// The pieces of an object that overlap a range of it.
    pub(crate) fn covering(&self, object: usize, range: Range<u64>) -> Range<u32> {
        let span = &self.spans[object];
        if range.is_empty() {
            return span.start..span.start;
        }
        let piece = u64::from(self.bundle.piece_bytes);
        let number = |count: u64| span.start + u32::try_from(count).unwrap_or(u32::MAX - span.start);
        number(range.start / piece)..number(range.end.div_ceil(piece)).min(span.end)
    }

    /// Where piece `number` is.
    pub(crate) fn place(&self, number: u32) -> Option<Place> {
        self.bundle.place(&self.spans, number)
    }

    /// Bytes of piece `number`; 0 when there is none.
    pub(crate) fn piece_bytes(&self, number: u32) -> u64 {
        self.place(number).map_or(0, |place| place.range.end - place.range.start)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use freshet_api::bundle::{Member, Object, RecipeRef};

    use super::*;

    pub(in crate::swarm) fn hash(bytes: &[u8]) -> ContentHash {
        ContentHash::from(blake3::hash(bytes))
    }

    pub(in crate::swarm) fn want(content: ContentHash, size: u64) -> Want {
        Want { content, size, etag: String::new(), path: "f".parse().unwrap(), mtime: 0, last: false }
    }

    fn layout() -> Layout {
        let member = |name: &[u8], size| Member { content: hash(name), size };
        let members =
            vec![member(b"a", 10_000), member(b"e", 0), member(b"b", 10_000), member(b"large", 40_000)];
        let recipe = |target: &[u8], recipe: &[u8], recipe_size| RecipeRef {
            target: hash(target),
            target_size: 99,
            recipe: hash(recipe),
            recipe_size,
            bases: Vec::new(),
        };
        let bundle = Bundle {
            piece_bytes: 16 << 10,
            objects: vec![
                Object { content: hash(b"large"), size: 40_000, members: Vec::new() },
                Object { content: hash(b"pack"), size: 60_000, members },
            ],
            recipes: vec![recipe(b"iso", b"b", 10_000), recipe(b"x", b"y", 1), recipe(b"z", b"b", 9)],
            pieces: vec![ContentHash([0; 32]); 7],
        };
        Layout::new(BundleId(hash(b"id")), bundle)
    }

    #[test]
    fn contents_are_found_where_they_are() {
        let layout = layout();
        assert_eq!(layout.source(&want(hash(b"large"), 40_000)), Some(Source::Object(0)));
        assert_eq!(layout.source(&want(hash(b"large"), 40_001)), None, "another size is another content");
        let b = layout.source(&want(hash(b"b"), 10_000)).unwrap();
        assert_eq!(b, Source::Member { object: 1, offset: 10_000, size: 10_000 });
        assert_eq!(layout.pieces_of(b), 3..5, "it overlaps two pieces");
        assert_eq!(layout.pieces_of(layout.source(&want(hash(b"e"), 0)).unwrap()), 3..3);
        assert_eq!(layout.pieces_of(Source::Object(0)), 0..3);
        assert_eq!(layout.source(&want(hash(b"pack"), 60_000)), None, "a pack is nobody's file");
        assert_eq!(layout.source(&want(hash(b"iso"), 99)), Some(Source::Recipe(0)));
        assert_eq!(layout.recipe_source(0), Some(b));
        assert_eq!((layout.recipe_source(1), layout.recipe_source(2)), (None, None));
        assert_eq!((layout.piece_bytes(2), layout.piece_bytes(6), layout.piece_bytes(7)), (7_232, 10_848, 0));
    }
}
