//! Makes a content from what the mirror holds, as a recipe says, in bounded memory.
//!
//! A recipe is not trusted: it can waste the time of one attempt and nothing else. What it makes is kept only when
//! it hashes to its target.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;

use freshet_api::ContentHash;
use freshet_api::recipe::{LITERAL_BYTES_MAX, Method, PATCH_BYTES_MAX, Recipe, Step};

use crate::mirror::{Arrived, Mirror, MirrorError, Want};

/// Makes `want` by the recipe in `wire`; `None` when that can't be done by it. Blocks.
///
/// # Errors
/// The disk's.
pub(super) fn make(mirror: &Mirror, want: &Want, wire: &[u8]) -> Result<Option<Arrived>, MirrorError> {
    let recipe = match Recipe::decode(wire) {
        Ok(recipe) if recipe.target == want.content && recipe.size == want.size => recipe,
        Ok(_) => return Ok(None),
        Err(error) => {
            tracing::warn!(path = %want.path, %error, "a recipe can't be used; the whole content is fetched");
            return Ok(None);
        }
    };
    if let Some(base) = recipe.bases.iter().find(|base| !mirror.holds(base)) {
        tracing::debug!(path = %want.path, %base, "a recipe's base is gone; the whole content is fetched");
        return Ok(None);
    }
    mirror.make(want, |out| match &recipe.method {
        Method::Extents { steps, literals } => {
            let bases = Bases { mirror, recipe: &recipe, open: VecDeque::new() };
            extents(bases, steps, literals, out)
        }
        Method::Patch { delta } => patch(mirror, recipe.bases.first(), delta, out),
    })
}

fn extents(mut bases: Bases<'_>, steps: &[Step], literals: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(literals)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    let mut literals = decoder.take(LITERAL_BYTES_MAX);
    let mut buffer = vec![0; COPY_BYTES];
    for step in steps {
        match *step {
            Step::Literal { length } => {
                let copied = io::copy(&mut (&mut literals).take(length), out)?;
                if copied != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Step::Copy { base, offset, length } => {
                let file = bases.open(base)?;
                let (mut at, end) = (offset, offset.saturating_add(length));
                while at < end {
                    let most = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                    file.read_exact_at(&mut buffer[..most], at)?;
                    out.write_all(&buffer[..most])?;
                    at += most as u64;
                }
            }
        }
    }
    Ok(())
}

fn patch(mirror: &Mirror, base: Option<&ContentHash>, delta: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let file = match base.map(|base| mirror.open_held(base)) {
        Some(Ok(Some(file))) => file,
        Some(Err(error)) => return Err(io::Error::other(error)),
        _ => return Err(io::ErrorKind::NotFound.into()),
    };
    let mut old = Vec::new();
    (&file).take(PATCH_BYTES_MAX + 1).read_to_end(&mut old)?;
    if old.len() as u64 > PATCH_BYTES_MAX {
        return Err(io::Error::other("the base is larger than a patch's may be"));
    }
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(delta, &old)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    io::copy(&mut decoder.take(PATCH_BYTES_MAX), out).map(drop)
}

/// The bases of one recipe, the last few kept open.
struct Bases<'a> {
    mirror: &'a Mirror,
    recipe: &'a Recipe,
    open: VecDeque<(u32, File)>,
}

impl Bases<'_> {
    fn open(&mut self, number: u32) -> io::Result<&File> {
        if let Some(at) = self.open.iter().position(|(open, _)| *open == number) {
            return Ok(&self.open[at].1);
        }
        let base = self.recipe.bases.get(number as usize).ok_or(io::ErrorKind::NotFound)?;
        let file = self.mirror.open_held(base).map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?;
        if self.open.len() >= OPEN_MAX {
            self.open.pop_front();
        }
        self.open.push_back((number, file));
        Ok(&self.open[self.open.len() - 1].1)
    }
}

/// A frame that wants a larger window is refused: 2^28 bytes hold base and target of a patch.
const WINDOW_LOG_MAX: u32 = 28;
const COPY_BYTES: usize = 256 << 10;
/// Bases that are kept open at once.
const OPEN_MAX: usize = 16;
