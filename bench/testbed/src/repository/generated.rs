//! A tree with sizes like a distribution's, of bytes that do not compress, the same in every run.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use super::{Selection, make_parent};
use crate::Error;

/// Fills `root` with the tree of a selection.
pub(super) fn fill(root: &Path, selection: Selection) -> Result<(), Error> {
    let (files, large) = match selection {
        Selection::Full => (64, 6),
        Selection::Small => (12, 2),
        Selection::Many => (320, 0),
    };
    for number in 0..files {
        // Every size from 4 KiB to 4 MiB turns up equally often on a logarithmic scale; of many small ones to 256 KiB.
        let sizes = if selection == Selection::Many { 7 } else { 11 };
        let size = (4096_u64 << (number % sizes)) + 37 * number;
        write(root, &format!("pool/g{:02}/generated-{number}_1.0_all.bin", number % 7), number, size)?;
    }
    for number in 0..large {
        let size = (5 + number) * 1024 * 1024 + 1;
        write(root, &format!("pool/large/large-{number}_1.0_all.bin"), 1000 + number, size)?;
    }
    // One content under two names, as mirrors have it.
    write(root, "latest/large.bin", 1000, 5 * 1024 * 1024 + 1)?;
    let readme = root.join("README.txt");
    fs::write(&readme, README).map_err(Error::io(format!("writing {}", readme.display())))
}

fn write(root: &Path, name: &str, seed: u64, size: u64) -> Result<(), Error> {
    let path = root.join(name);
    make_parent(&path)?;
    let writing = || format!("writing {}", path.display());
    let mut file = BufWriter::new(File::create(&path).map_err(Error::io(writing()))?);
    let mut state = seed;
    let mut left = usize::try_from(size).unwrap_or(usize::MAX);
    while left > 0 {
        let word = splitmix(&mut state).to_le_bytes();
        let part = left.min(word.len());
        file.write_all(&word[..part]).map_err(Error::io(writing()))?;
        left -= part;
    }
    file.flush().map_err(Error::io(writing()))
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

const README: &str = "A generated tree: sizes as in a distribution, contents without meaning.\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_twice_and_one_content_under_two_names() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fill(&a, Selection::Small).unwrap();
        fill(&b, Selection::Small).unwrap();
        let first = "pool/g00/generated-0_1.0_all.bin";
        assert_eq!(fs::read(a.join(first)).unwrap(), fs::read(b.join(first)).unwrap());
        let large = fs::read(a.join("pool/large/large-0_1.0_all.bin")).unwrap();
        assert_eq!(large, fs::read(a.join("latest/large.bin")).unwrap());
        assert_ne!(&large[..64], &large[64..128]);
    }
}
