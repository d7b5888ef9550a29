//! The files that are served: fixed sizes, many small ones, and a mix with the workload's statistics.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

/// Makes (or finds, from an earlier run) one file of each size; their paths in the order of `sizes`.
///
/// # Errors
/// When the disk is full or the directory can't be written.
pub(crate) fn of_sizes(root: &Path, sizes: &[u64]) -> Result<Vec<String>> {
    sizes
        .iter()
        .map(|&size| {
            let path = format!("/size/{size}.bin");
            make(root, &path, size)?;
            Ok(path)
        })
        .collect()
}

/// `count` files with a mean of about `mean` bytes, exponentially distributed, in directories of 1,000.
///
/// # Errors
/// As [`of_sizes`].
pub(crate) fn many(root: &Path, count: usize, mean: u64) -> Result<Vec<String>> {
    let mut random = SmallRng::seed_from_u64(SEED);
    (0..count)
        .map(|number| {
            let size = (-random.random::<f64>().max(1e-9).ln() * mean as f64).ceil() as u64;
            let path = format!("/many/{:03}/{number}.bin", number / 1_000);
            make(root, &path, size)?;
            Ok(path)
        })
        .collect()
}

/// A mix as the workload's: 91 % of the files below 1 MB, ISO images 71 % of the bytes when every file is
/// asked for equally often. 300 files: 273 of 1 KiB to 1 MB log-uniform, 24 of 1 to 10 MB, 3 images.
///
/// # Errors
/// As [`of_sizes`].
pub(crate) fn mix(root: &Path) -> Result<Vec<String>> {
    let mut random = SmallRng::seed_from_u64(SEED + 1);
    let mut sizes = Vec::with_capacity(MIX_FILES);
    for number in 0..MIX_FILES - MIX_IMAGES {
        let (low, high): (f64, f64) = if number < MIX_SMALL { (1_024.0, 1e6) } else { (1e6, 1e7) };
        sizes.push((low.ln() + random.random::<f64>() * (high / low).ln()).exp() as u64);
    }
    let rest: u64 = sizes.iter().sum();
    let image = (rest as f64 * 0.71 / 0.29 / MIX_IMAGES as f64) as u64;
    sizes.extend([image; MIX_IMAGES]);
    sizes
        .into_iter()
        .enumerate()
        .map(|(number, size)| {
            let path = format!("/mix/{number}.bin");
            make(root, &path, size)?;
            Ok(path)
        })
        .collect()
}

/// Drops a file's clean pages (`POSIX_FADV_DONTNEED`), so that the next read comes from the disk.
///
/// # Errors
/// When it can't be opened.
pub(crate) fn make_cold(root: &Path, path: &str) -> Result<()> {
    let file = File::open(root.join(&path[1..]))?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

fn make(root: &Path, path: &str, size: u64) -> Result<()> {
    let full = root.join(&path[1..]);
    if full.metadata().is_ok_and(|found| found.len() == size) {
        return Ok(());
    }
    let directory = full.parent().context("every path has a directory")?;
    std::fs::create_dir_all(directory)?;
    let mut file = File::create(&full).with_context(|| format!("cannot make {}", full.display()))?;
    let mut random = SmallRng::seed_from_u64(size);
    let mut block = vec![0; 1 << 20];
    random.fill_bytes(&mut block);
    let mut left = size;
    while left > 0 {
        let count = left.min(block.len() as u64);
        file.write_all(&block[..count as usize])?;
        left -= count;
    }
    Ok(())
}

const SEED: u64 = 20_261_123;
const MIX_FILES: usize = 300;
const MIX_SMALL: usize = 273;
const MIX_IMAGES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_has_the_workloads_shares() {
        let root = tempfile::tempdir().unwrap();
        let paths = mix(root.path()).unwrap();
        let sizes: Vec<u64> =
            paths.iter().map(|path| root.path().join(&path[1..]).metadata().unwrap().len()).collect();
        let small = sizes.iter().filter(|&&size| size < 1_000_000).count() as f64 / sizes.len() as f64;
        let images: u64 = sizes[sizes.len() - MIX_IMAGES..].iter().sum();
        let share = images as f64 / sizes.iter().sum::<u64>() as f64;
        assert!((0.90..0.92).contains(&small), "{small}");
        assert!((0.70..0.72).contains(&share), "{share}");
    }
}
