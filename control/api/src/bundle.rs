//! What the swarm copies: the new contents of a release as objects under one grid of pieces.
//!
//! An object is a file's content, or a pack: small contents laid end to end, cut apart again by whoever has it
//! whole. Every object's grid begins at its own beginning, so that a piece is always one range of one object:
//! `GET /blob/<hash>` with `Range`, from the origin's sync port and from a peer's alike. Contents that are cheaper
//! to make from what a mirror has are no objects; their [`recipes`](crate::recipe) are.
//!
//! On the wire it is a magic, the length, and zstd-compressed postcard; it is built and read whole, within
//! [`BYTES_MAX`]. Its identity is the BLAKE3 hash of the plain form, so that a bundle never changes.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{ContentHash, ContentHashError};

/// The objects of (a part of) one release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Bytes of a piece: a power of two, [`PIECE_BYTES_MIN`] ..= [`PIECE_BYTES_MAX`]; an object's last is shorter.
    pub piece_bytes: u32,
    /// In the order of their pieces.
    pub objects: Vec<Object>,
    /// Contents of the release that can be made instead of fetched.
    pub recipes: Vec<RecipeRef>,
    /// The BLAKE3 hash of every piece, in order.
    pub pieces: Vec<ContentHash>,
}

/// Something that is copied as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its identity, and its name in `/blob/<hash>`.
    pub content: ContentHash,
    /// Bytes, never 0.
    pub size: u64,
    /// For a pack the contents in it, end to end in this order; empty for a file's content.
    pub members: Vec<Member>,
}

/// A content in a pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its identity.
    pub content: ContentHash,
    /// Bytes; may be 0.
    pub size: u64,
}

/// Where the recipe of a content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeRef {
    /// The content that it makes.
    pub target: ContentHash,
    /// Bytes of that.
    pub target_size: u64,
    /// The content that is the [`Recipe`](crate::recipe::Recipe) in its wire form: a member or an object of the same bundle.
    pub recipe: ContentHash,
    /// Bytes of that.
    pub recipe_size: u64,
    /// The contents that it copies from; without all of them it is worth nothing.
    pub bases: Vec<ContentHash>,
}

/// One piece's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the object.
    pub object: usize,
    /// Bytes of the object.
    pub range: Range<u64>,
}

impl Bundle {
    /// Pieces of all objects.
    pub fn len(&self) -> u32 {
        u32::try_from(self.pieces.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is nothing to copy.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.size).sum()
    }

    /// For every object the numbers of its pieces.
    pub fn spans(&self) -> Vec<Range<u32>> {
        let mut first = 0;
        let span = |object: &Object| {
            let pieces = u32::try_from(object.size.div_ceil(u64::from(self.piece_bytes))).unwrap_or(u32::MAX);
            let span = first..first + pieces;
            first = span.end;
            span
        };
        self.objects.iter().map(span).collect()
    }

    /// Where piece `number` is; `spans` are this bundle's.
    pub fn place(&self, spans: &[Range<u32>], number: u32) -> Option<Place> {
        let object = spans.partition_point(|span| span.end <= number);
        let (span, whole) = (spans.get(object)?, self.objects.get(object)?);
        let start = u64::from(number - span.start) * u64::from(self.piece_bytes);
        Some(Place { object, range: start..whole.size.min(start + u64::from(self.piece_bytes)) })
    }

    /// The wire form and the identity.
    ///
    /// # Errors
    /// [`BundleError`] when it breaks a bound or contradicts itself.
    pub fn encode(&self) -> Result<(BundleId, Vec<u8>), BundleError> {
        self.check()?;
        let plain = postcard::to_stdvec(self).map_err(|_| BundleError::Damaged)?;
        if plain.len() > BYTES_MAX {
            return Err(BundleError::TooLarge);
        }
        let mut wire = MAGIC.to_vec();
        wire.extend_from_slice(&(plain.len() as u64).to_le_bytes());
        wire.extend(zstd::bulk::compress(&plain, ZSTD_LEVEL).map_err(|_| BundleError::Damaged)?);
        Ok((BundleId(ContentHash::from(blake3::hash(&plain))), wire))
    }

    /// Reads the wire form of the bundle `id`.
    ///
    /// # Errors
    /// [`BundleError`] when it is another one, breaks a bound or contradicts itself.
    pub fn decode(id: BundleId, wire: &[u8]) -> Result<Self, BundleError> {
        let rest = wire.strip_prefix(MAGIC).ok_or(BundleError::Unknown)?;
        let (length, compressed) = rest.split_first_chunk::<8>().ok_or(BundleError::Damaged)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| BundleError::TooLarge)?;
        if length > BYTES_MAX {
            return Err(BundleError::TooLarge);
        }
        let plain = zstd::bulk::decompress(compressed, length).map_err(|_| BundleError::Damaged)?;
        if ContentHash::from(blake3::hash(&plain)) != id.0 {
            return Err(BundleError::Damaged);
        }
        let bundle: Self = postcard::from_bytes(&plain).map_err(|_| BundleError::Damaged)?;
        bundle.check()?;
        Ok(bundle)
    }

    fn check(&self) -> Result<(), BundleError> {
        let contradiction = |what| Err(BundleError::Contradiction { what });
        if !self.piece_bytes.is_power_of_two()
            || !(PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&self.piece_bytes)
        {
            return contradiction("the size of a piece");
        }
        let mut pieces = 0u64;
        let mut seen = HashSet::with_capacity(self.objects.len());
        for object in &self.objects {
            if object.size == 0 || object.size > OBJECT_BYTES_MAX || !seen.insert(object.content) {
                return contradiction("an object");
            }
            pieces += object.size.div_ceil(u64::from(self.piece_bytes));
            let members = object.members.iter().try_fold(0u64, |sum, member| sum.checked_add(member.size));
            if !object.members.is_empty() && (members != Some(object.size) || object.size > PACK_BYTES_MAX) {
                return contradiction("the sizes in a pack");
            }
        }
        if pieces != self.pieces.len() as u64 || self.pieces.len() > PIECES_MAX {
            return contradiction("the number of pieces");
        }
        Ok(())
    }
}

/// A bundle's identity: the BLAKE3 hash of its plain form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BundleId(pub ContentHash);

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleId({})", self.0)
    }
}

impl FromStr for BundleId {
    type Err = ContentHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Why a bundle could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not a bundle, or of another version.
    #[error("this is no bundle of version 1; bring volunteer and control to the same version")]
    Unknown,
    /// Cut off or altered on the way, or another bundle than was asked for.
    #[error("the bundle is damaged; it will be fetched again")]
    Damaged,
    /// Beyond the bound.
    #[error("the bundle's description is larger than {BYTES_MAX} bytes")]
    TooLarge,
    /// Its parts do not fit together.
    #[error("the bundle contradicts itself in {what}")]
    Contradiction {
        /// Which part.
        what: &'static str,
    },
}

/// Bytes of a decompressed description at most.
pub const BYTES_MAX: usize = 256 << 20;
/// Pieces of a bundle at most.
pub const PIECES_MAX: usize = 65_536;
/// Bytes of a piece at least.
pub const PIECE_BYTES_MIN: u32 = 16 << 10;
/// Bytes of a piece at most.
pub const PIECE_BYTES_MAX: u32 = 1 << 20;
/// Bytes of a pack at most: a mirror reads it whole to cut it apart.
pub const PACK_BYTES_MAX: u64 = 32 << 20;
/// Contents below this size go into packs.
pub const PACKED_BELOW: u64 = 256 << 10;
/// Bytes of an object at most: [`PIECES_MAX`] pieces of the largest size.
pub const OBJECT_BYTES_MAX: u64 = PIECES_MAX as u64 * PIECE_BYTES_MAX as u64;

const MAGIC: &[u8] = b"FRBUNDL1";
const ZSTD_LEVEL: i32 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(text: &str) -> ContentHash {
        ContentHash::from(blake3::hash(text.as_bytes()))
    }

    fn sample() -> Bundle {
        let member = |name, size| Member { content: hash(name), size };
        Bundle {
            piece_bytes: 16 << 10,
            objects: vec![
                Object { content: hash("large"), size: 40_000, members: Vec::new() },
                Object {
                    content: hash("pack"),
                    size: 300,
                    members: vec![member("a", 100), member("b", 200)],
                },
            ],
            recipes: Vec::new(),
            pieces: (0..4).map(|n| hash(&n.to_string())).collect(),
        }
    }

    #[test]
    fn the_wire_form_is_read_back_under_its_identity_only() {
        let (id, wire) = sample().encode().unwrap();
        assert_eq!(Bundle::decode(id, &wire), Ok(sample()));
        assert_eq!(Bundle::decode(BundleId(hash("other")), &wire), Err(BundleError::Damaged));
    }

    #[test]
    fn every_piece_is_one_range_of_one_object() {
        let bundle = sample();
        let spans = bundle.spans();
        assert_eq!(spans, [0..3, 3..4]);
        let places: Vec<_> = (0..4).map(|n| bundle.place(&spans, n).unwrap()).collect();
        assert_eq!(places[0], Place { object: 0, range: 0..16_384 });
        assert_eq!(places[2], Place { object: 0, range: 32_768..40_000 });
        assert_eq!(places[3], Place { object: 1, range: 0..300 });
        assert_eq!(bundle.place(&spans, 4), None);
    }

    #[test]
    fn contradictions_are_refused() {
        let broken: [fn(&mut Bundle); 6] = [
            |bundle| bundle.piece_bytes = 20_000,
            |bundle| bundle.piece_bytes = 2 << 20,
            |bundle| bundle.objects[0].size = 0,
            |bundle| bundle.objects[1].members[0].size = 1,
            |bundle| bundle.objects[1].content = bundle.objects[0].content,
            |bundle| bundle.pieces.truncate(3),
        ];
        for (number, breaking) in broken.into_iter().enumerate() {
            let mut bundle = sample();
            breaking(&mut bundle);
            assert!(matches!(bundle.encode(), Err(BundleError::Contradiction { .. })), "{number}");
        }
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in any::<bool>()) {
            let mut wire = if keep { MAGIC.to_vec() } else { Vec::new() };
            wire.extend(bytes);
            prop_assert!(Bundle::decode(BundleId(hash("x")), &wire).is_err());
        }
    }
}
