//! What is copied: real packages, and whether a mirror has exactly them in the end.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::repository::{Kind, Repository, RepositoryFile, Selection};

/// A tree of packages.
pub(super) struct Content {
    pub(super) root: PathBuf,
    pub(super) files: Vec<RepositoryFile>,
    pub(super) bytes: u64,
    kind: Kind,
}

impl Content {
    /// Lays out at most `bytes` of packages in `root`.
    pub(super) fn gather(root: &Path, selection: Selection, bytes: u64) -> Result<Self> {
        let programs = std::env::current_exe()?;
        let target = programs.ancestors().nth(2).context("expected this program in a target directory")?;
        let cache = target.join("freshet/repositories");
        let made = Repository::make(&cache, selection, &mut |step| eprintln!("{step}"))?;
        let mut left = bytes;
        let mut files = made.files()?;
        files.retain(|file| {
            let fits = file.size <= left;
            left -= if fits { file.size } else { 0 };
            fits
        });
        for file in &files {
            let to = root.join(&file.path);
            fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
            fs::copy(made.root.join(&file.path), to).with_context(|| format!("cannot copy {}", file.path))?;
        }
        let bytes = files.iter().map(|file| file.size).sum();
        Ok(Self { root: root.to_owned(), files, bytes, kind: made.kind })
    }

    pub(super) fn describe(&self) -> String {
        let what = match &self.kind {
            Kind::Packages { .. } => "real packages and their indexes".to_owned(),
            Kind::Generated { why } => format!("generated files ({why})"),
        };
        format!("release: {} files, {:.1} MB of {what}", self.files.len(), self.bytes as f64 / 1e6)
    }

    /// Whether they are packages, and not only files as large.
    pub(super) fn is_real(&self) -> bool {
        matches!(self.kind, Kind::Packages { .. })
    }

    /// Another tree of the same files, hard-linked.
    pub(super) fn link_to(&self, root: &Path) -> Result<()> {
        for file in &self.files {
            let to = root.join(&file.path);
            fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
            fs::hard_link(self.root.join(&file.path), &to)
                .with_context(|| format!("cannot link {}", to.display()))?;
        }
        Ok(())
    }

    /// Fails unless `root` has every file with exactly its bytes.
    pub(super) fn check(&self, root: &Path) -> Result<()> {
        for file in &self.files {
            let path = root.join(&file.path);
            if !same(&self.root.join(&file.path), &path)? {
                bail!("{} is not what was released", path.display());
            }
        }
        Ok(())
    }
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    let mut files =
        [one, other].map(|path| fs::File::open(path).with_context(|| format!("no {}", path.display())));
    let [Ok(one), Ok(other)] = &mut files else {
        let [one, other] = files;
        return one.and(other).map(|_| false);
    };
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let mut parts = [vec![0; PART_BYTES], vec![0; PART_BYTES]];
    loop {
        let read = one.read(&mut parts[0])?;
        if read == 0 {
            return Ok(true);
        }
        let (first, second) = parts.split_at_mut(1);
        other.read_exact(&mut second[0][..read])?;
        if first[0][..read] != second[0][..read] {
            return Ok(false);
        }
    }
}

const PART_BYTES: usize = 1 << 20;
