//! What an experiment serves: a tree of real packages, or of files that the seed determines, and what is released on
//! the way. It knows the SHA-256 of each, against which every download is checked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use freshet_api::checksum::ChecksumHasher;
use freshet_api::glob::Glob;
use freshet_policy::draw::{Draw, mix};
use freshet_testbed::repository::{self, Kind, Repository};

use super::experiment::{Generated, Release, Source};

/// A tree that is served, with what is known of its files.
pub(crate) struct Content {
    root: PathBuf,
    /// In words.
    pub(crate) what: String,
    /// By path below the root.
    pub(crate) files: BTreeMap<String, Known>,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) size: u64,
    /// In hexadecimal digits.
    pub(crate) sha256: String,
}

impl Content {
    /// Lays the tree out in `root`, which is made. Packages are cached beside the program.
    pub(crate) fn make(source: &Source, root: &Path, seed: u64) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        let mut content = Self { root: root.to_owned(), what: String::new(), files: BTreeMap::new() };
        if let Some(packages) = source.packages {
            let programs = std::env::current_exe()?;
            let target =
                programs.ancestors().nth(2).context("expected this program in a target directory")?;
            let cache = target.join("freshet/repositories");
            let made = Repository::make(&cache, packages.selection(), &mut |step| eprintln!("{step}"))?;
            made.copy_to(root)?;
            content.what = match made.kind {
                Kind::Packages { .. } => "real packages and their indexes".to_owned(),
                Kind::Generated { why } => format!("generated files, since packages can't be had ({why})"),
            };
            content.learn(root, "")?;
        } else if let Some(generated) = source.generated {
            "generated files".clone_into(&mut content.what);
            generate(&root.join("pool"), generated, mix(seed))?;
            content.learn(&root.join("pool"), "pool")?;
        }
        Ok(content)
    }

    /// Makes a release in `staging` and gives its directory there; it is known from now on, and seen once it is moved
    /// into the repository.
    pub(crate) fn release(&mut self, release: &Release, staging: &Path, seed: u64) -> Result<PathBuf> {
        let fresh = staging.join(&release.directory);
        if self.files.keys().any(|path| path.starts_with(&format!("{}/", release.directory))) {
            bail!("there is a directory `{}` already; releases need one of their own", release.directory);
        }
        let generated = Generated { files: release.files, bytes: release.bytes };
        generate(&fresh, generated, mix(seed))?;
        self.learn(&fresh, &release.directory)?;
        Ok(fresh)
    }

    /// Where it was made.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The paths that a pattern matches.
    pub(crate) fn matching(&self, pattern: &str) -> Result<Vec<String>> {
        let glob: Glob = pattern.parse()?;
        Ok(self.files.keys().filter(|path| glob.matches(path)).cloned().collect())
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.values().map(|known| known.size).sum()
    }

    /// A file that volunteers serve and the origin does not, because it is large.
    pub(crate) fn largest(&self) -> Option<&str> {
        let largest = self.files.iter().max_by_key(|(_, known)| known.size);
        largest.map(|(path, _)| path.as_str())
    }

    /// Notes the files of `below`, which are to be seen in `directory`.
    fn learn(&mut self, below: &Path, directory: &str) -> Result<()> {
        for file in repository::files(below)? {
            let sha256 = sha256(&below.join(&file.path))?;
            let path = if directory.is_empty() { file.path } else { format!("{directory}/{}", file.path) };
            self.files.insert(path, Known { size: file.size, sha256 });
        }
        Ok(())
    }
}

/// The SHA-256 of a file's content in hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let reading = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut hasher = ChecksumHasher::new();
    let mut part = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut part).with_context(reading)?;
        if read == 0 {
            return Ok(hasher.finish().sha256_hex());
        }
        hasher.update(&part[..read]);
    }
}

/// Writes files of incompressible bytes into `root`, which is made.
fn generate(root: &Path, what: Generated, seed: u64) -> Result<()> {
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    let mut draw = Draw::new(seed);
    for (number, size) in sizes(what, &mut draw).into_iter().enumerate() {
        let path = root.join(format!("file-{number:05}.bin"));
        let writing = || format!("cannot write {}", path.display());
        let mut file = BufWriter::new(File::create(&path).with_context(writing)?);
        let mut left = size as usize;
        while left > 0 {
            let word = draw.bits().to_le_bytes();
            let part = left.min(word.len());
            file.write_all(&word[..part]).with_context(writing)?;
            left -= part;
        }
        file.flush().with_context(writing)?;
    }
    Ok(())
}

/// Sizes whose sum is what is wanted, evenly spread on a logarithmic scale.
fn sizes(what: Generated, draw: &mut Draw) -> Vec<u64> {
    let parts: Vec<f64> = (0..what.files).map(|_| SPREAD.powf(draw.unit())).collect();
    let all: f64 = parts.iter().sum();
    let mut sizes: Vec<u64> =
        parts.iter().map(|part| (part / all * what.bytes.0 as f64).floor() as u64).collect();
    let rest = what.bytes.0 - sizes.iter().sum::<u64>();
    if let Some(last) = sizes.last_mut() {
        *last += rest;
    }
    sizes
}

/// The largest generated file is at most so many times the smallest.
const SPREAD: f64 = 32.0;

#[cfg(test)]
mod tests {
    use freshet_api::Bytes;

    use super::*;

    #[test]
    fn one_seed_one_tree() {
        let dir = tempfile::tempdir().unwrap();
        let source =
            Source { packages: None, generated: Some(Generated { files: 20, bytes: Bytes(100_003) }) };
        let make = |name: &str, seed| Content::make(&source, &dir.path().join(name), seed).unwrap();
        let (a, b, c) = (make("a", 1), make("b", 1), make("c", 2));
        assert_eq!(a.files, b.files);
        assert_ne!(a.files, c.files);
        assert_eq!((a.files.len(), a.bytes()), (20, 100_003));
        let sizes: Vec<u64> = a.files.values().map(|known| known.size).collect();
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(*most > least * 4 && *most <= least * 33, "{sizes:?}");
        assert_eq!(a.files[a.largest().unwrap()].size, *most);
    }

    #[test]
    fn a_release_has_a_directory_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source { packages: None, generated: Some(Generated { files: 2, bytes: Bytes(2_000) }) };
        let mut content = Content::make(&source, &dir.path().join("tree"), 1).unwrap();
        let release =
            |directory: &str| Release { directory: directory.to_owned(), files: 3, bytes: Bytes(9_000) };
        let staging = dir.path().join("staging");
        let fresh = content.release(&release("new"), &staging, 2).unwrap();
        assert_eq!(fs::read_dir(fresh).unwrap().count(), 3);
        assert_eq!(content.matching("new/**").unwrap().len(), 3);
        assert_eq!(content.matching("**").unwrap().len(), 5);
        for taken in ["new", "pool"] {
            let error = content.release(&release(taken), &staging, 2).unwrap_err().to_string();
            assert!(error.contains(taken) && error.contains("already"), "{error}");
        }
    }
}
