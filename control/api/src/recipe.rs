//! How to make a content from contents that a mirror has: copies and literals, or a patch against one older version.
//!
//! A recipe is data from control and still checked in every number, and what it makes must hash to its target;
//! whoever applies it falls back to the full content when anything fails. Memory, steps and output are bounded.

use serde::{Deserialize, Serialize};

use crate::id::ContentHash;

/// How to make one content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// What it makes.
    pub target: ContentHash,
    /// Bytes of that.
    pub size: u64,
    /// What it is made from; [`Step::Copy`] counts in this list.
    pub bases: Vec<ContentHash>,
    /// How.
    pub method: Method,
}

/// The kinds of recipes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// The steps one after the other.
    Extents {
        /// At most [`STEPS_MAX`].
        steps: Vec<Step>,
        /// The literals of all steps, end to end, as one zstd frame; [`LITERAL_BYTES_MAX`] decompressed at most.
        literals: Vec<u8>,
    },
    /// One zstd frame whose window begins with the only base (`zstd --patch-from`). Base and target have
    /// [`PATCH_BYTES_MAX`] bytes at most each, so the frame's window has 2^28 at most.
    Patch {
        /// The frame.
        delta: Vec<u8>,
    },
}

/// One step of [`Method::Extents`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Bytes of a base.
    Copy {
        /// Index in [`Recipe::bases`].
        base: u32,
        /// Where they begin.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The next bytes of the literals.
    Literal {
        /// How many.
        length: u64,
    },
}

impl Recipe {
    /// The wire form.
    ///
    /// # Errors
    /// [`RecipeError`] when it breaks a bound or contradicts itself.
    pub fn encode(&self) -> Result<Vec<u8>, RecipeError> {
        self.check()?;
        let mut wire = MAGIC.to_vec();
        wire.extend(postcard::to_stdvec(self).map_err(|_| RecipeError::Damaged)?);
        if wire.len() > BYTES_MAX { Err(RecipeError::TooLarge) } else { Ok(wire) }
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// [`RecipeError`] when it breaks a bound or contradicts itself.
    pub fn decode(wire: &[u8]) -> Result<Self, RecipeError> {
        if wire.len() > BYTES_MAX {
            return Err(RecipeError::TooLarge);
        }
        let rest = wire.strip_prefix(MAGIC).ok_or(RecipeError::Unknown)?;
        let recipe: Self = postcard::from_bytes(rest).map_err(|_| RecipeError::Damaged)?;
        recipe.check()?;
        Ok(recipe)
    }

    fn check(&self) -> Result<(), RecipeError> {
        let Method::Extents { steps, .. } = &self.method else {
            let fits = self.bases.len() == 1 && self.size <= PATCH_BYTES_MAX;
            return if fits { Ok(()) } else { Err(RecipeError::Contradiction { what: "what is patched" }) };
        };
        if steps.len() > STEPS_MAX {
            return Err(RecipeError::TooLarge);
        }
        let (mut made, mut literals) = (0u64, 0u64);
        for step in steps {
            let length = match *step {
                Step::Copy { base, offset, length } => {
                    if base as usize >= self.bases.len() || offset.checked_add(length).is_none() {
                        return Err(RecipeError::Contradiction { what: "a copy" });
                    }
                    length
                }
                Step::Literal { length } => {
                    literals = literals.saturating_add(length);
                    length
                }
            };
            made = made.saturating_add(length);
        }
        if literals > LITERAL_BYTES_MAX {
            return Err(RecipeError::TooLarge);
        }
        if made != self.size { Err(RecipeError::Contradiction { what: "the size it makes" }) } else { Ok(()) }
    }
}

/// Why a recipe could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// Not a recipe, or of another version.
    #[error("this is no recipe of version 1")]
    Unknown,
    /// Cut off or altered.
    #[error("the recipe is damaged")]
    Damaged,
    /// Beyond a bound.
    #[error(
        "the recipe is beyond its bounds of {BYTES_MAX} bytes, {STEPS_MAX} steps and {LITERAL_BYTES_MAX} bytes of literals"
    )]
    TooLarge,
    /// Its parts do not fit together.
    #[error("the recipe contradicts itself in {what}")]
    Contradiction {
        /// Which part.
        what: &'static str,
    },
}

/// Bytes of a recipe's wire form at most.
pub const BYTES_MAX: usize = 64 << 20;
/// Steps at most.
pub const STEPS_MAX: usize = 1 << 20;
/// Bytes of literals at most, decompressed.
pub const LITERAL_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a patch's base and of its target at most: both are in memory while it is applied.
pub const PATCH_BYTES_MAX: u64 = 128 << 20;

const MAGIC: &[u8] = b"FRRECIP1";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(text: &str) -> ContentHash {
        ContentHash::from(blake3::hash(text.as_bytes()))
    }

    fn sample() -> Recipe {
        let steps = vec![Step::Literal { length: 10 }, Step::Copy { base: 0, offset: 5, length: 90 }];
        let method = Method::Extents { steps, literals: vec![1, 2, 3] };
        Recipe { target: hash("iso"), size: 100, bases: vec![hash("deb")], method }
    }

    #[test]
    fn the_wire_form_is_read_back() {
        assert_eq!(Recipe::decode(&sample().encode().unwrap()), Ok(sample()));
        let patch = Recipe { method: Method::Patch { delta: vec![9; 40] }, ..sample() };
        assert_eq!(Recipe::decode(&patch.encode().unwrap()), Ok(patch));
    }

    #[test]
    fn contradictions_are_refused() {
        let with = |step| {
            let Method::Extents { mut steps, literals } = sample().method else { return sample() };
            steps[1] = step;
            Recipe { method: Method::Extents { steps, literals }, ..sample() }
        };
        for step in [
            Step::Copy { base: 1, offset: 0, length: 90 },
            Step::Copy { base: 0, offset: u64::MAX, length: 90 },
            Step::Copy { base: 0, offset: 0, length: 91 },
            Step::Literal { length: u64::MAX },
        ] {
            assert!(with(step).encode().is_err(), "{step:?}");
        }
        let patch = Recipe { bases: Vec::new(), method: Method::Patch { delta: Vec::new() }, ..sample() };
        assert!(patch.encode().is_err());
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in any::<bool>()) {
            let mut wire = if keep { MAGIC.to_vec() } else { Vec::new() };
            wire.extend(bytes);
            if let Ok(recipe) = Recipe::decode(&wire) {
                prop_assert!(recipe.check().is_ok());
            }
        }
    }
}
