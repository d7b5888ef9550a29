//! Patches against one older version: a zstd frame whose window begins with it.

use std::io::{self, Write as _};

use super::super::plan::Source;
use crate::catalog::{ItemKind, Snapshot};

/// The frame that makes `new` where `old` is known.
pub(super) fn delta(old: &[u8], new: &[u8]) -> io::Result<Vec<u8>> {
    let both = old.len() + new.len();
    let window_log = (usize::BITS - both.leading_zeros()).clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX);
    let level = if both <= THOROUGH_MAX { LEVEL_THOROUGH } else { LEVEL_FAST };
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(Vec::new(), level, old)?;
    encoder.window_log(window_log)?;
    encoder.long_distance_matching(true)?;
    encoder.set_pledged_src_size(Some(new.len() as u64))?;
    encoder.write_all(new)?;
    encoder.finish()
}

/// Whether the members of this kind of archive are found again in another version.
pub(super) fn is_archive(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    ARCHIVES.iter().any(|suffix| lower.ends_with(suffix))
}

/// An older version of an archive, by its name: in the same directory, with the same letters before the version and
/// the most alike behind it; the newest of those.
pub(super) fn older_version(source: &Source, state: &Snapshot) -> Option<Source> {
    let (directory, name) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let own = state.find(source.path.as_bytes())?.file;
    let stem = stem(name)?;
    let candidates = state.list(directory.as_bytes())?.into_iter().filter_map(|item| match item.kind {
        ItemKind::File { file, size, .. }
            if file < own && size <= freshet_api::recipe::PATCH_BYTES_MAX && item.name.starts_with(stem) =>
        {
            (self::stem(&item.name) == Some(stem)).then(|| (common_end(&item.name, name), file))
        }
        _ => None,
    });
    let (_, file) = candidates.max()?;
    let entry = state.by_id(file).filter(|entry| entry.checksums.blake3 != source.content)?;
    Some(Source {
        path: entry.path.as_str().to_owned(),
        content: entry.checksums.blake3,
        size: entry.size,
        made: None,
    })
}

/// What stands before the version: up to the first `-` or `_` that a digit follows.
fn stem(name: &str) -> Option<&str> {
    let bytes = name.as_bytes();
    let end = (1..bytes.len().saturating_sub(1))
        .find(|&at| matches!(bytes[at], b'-' | b'_') && bytes[at + 1].is_ascii_digit())?;
    name.get(..end)
}

fn common_end(one: &str, other: &str) -> usize {
    one.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count()
}

const ARCHIVES: &[&str] = &[".whl", ".zip", ".jar", ".tar", ".egg"];
const WINDOW_LOG_MIN: u32 = 17;
/// Volunteers refuse a larger one; it holds base and target of any patch.
const WINDOW_LOG_MAX: u32 = 28;
/// Base and target together up to this size are worth a second's thought.
const THOROUGH_MAX: usize = 24 << 20;
const LEVEL_THOROUGH: i32 = 12;
const LEVEL_FAST: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_what_is_a_version_of_what() {
        assert_eq!(stem("numpy-1.26.0-cp311-cp311-linux.whl"), Some("numpy"));
        assert_eq!(stem("my-tool_2.zip"), Some("my-tool"));
        for name in ["plain.zip", "-1.zip", "a-", "", "a-b.tar"] {
            assert_eq!(stem(name), None, "{name}");
        }
        assert_eq!(common_end("a-1-x.whl", "a-2-x.whl"), 6);
        assert!(is_archive("a/B.WHL") && !is_archive("a.deb"));
    }
}
