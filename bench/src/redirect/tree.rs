//! A repository of millions of files that costs no disk but their inodes: small, and sparse.
//!
//! Control walks, watches and hashes it as it does any other; what it sends is not measured here.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Makes the tree of `files` paths in `root`, or takes the one that is there, and returns its directory.
///
/// # Errors
/// The disk's.
pub(super) fn prepare(root: &Path, files: u32) -> Result<PathBuf> {
    let tree = root.join(format!("tree-{files}"));
    let done = root.join(format!("tree-{files}.done"));
    if done.exists() {
        return Ok(tree);
    }
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    let mut directory = PathBuf::new();
    for number in 0..files {
        if number % FILES_PER_DIRECTORY == 0 {
            directory = tree.join(folder(number));
            fs::create_dir_all(&directory)?;
        }
        let file = File::create(directory.join(name(number)))
            .with_context(|| format!("cannot make file {number} of {files}"))?;
        // Zeroes of another length are another content.
        file.set_len(u64::from(1 + number.wrapping_mul(40_503) % BYTES_MAX))?;
    }
    fs::write(&done, "")?;
    Ok(tree)
}

/// The path of file `number` as a customer asks for it.
pub(super) fn path(number: u32) -> String {
    format!("/{}/{}", folder(number), name(number))
}

fn folder(number: u32) -> String {
    let directory = number / FILES_PER_DIRECTORY;
    let letter = char::from(b'a' + (directory % 26) as u8);
    format!("debian/pool/main/{letter}/{letter}source-{directory}")
}

fn name(number: u32) -> String {
    format!("lib{letter}package-{number}_1.{minor}-2_amd64.deb", letter = number % 10, minor = number % 97)
}

/// A directory is a collection: volunteers hold all of it or nothing.
pub(super) const FILES_PER_DIRECTORY: u32 = 1_000;
/// So that hashing all of them is a matter of seconds.
const BYTES_MAX: u32 = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_there_once_and_again_after_a_second_call() {
        let root = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let tree = prepare(root.path(), 2_300).unwrap();
            for number in [0, 999, 1_000, 2_299] {
                let size = fs::metadata(format!("{}{}", tree.display(), path(number))).unwrap().len();
                assert!((1..=u64::from(BYTES_MAX)).contains(&size), "{number}");
            }
        }
    }
}
