//! A repository that changes as a distribution's does: packages of its own are added under new names, and the indexes
//! that name them are put in place after them.
//!
//! Indexes are offered by their hash too (`Acquire-By-Hash`), as distributions do, because between `Release` and
//! `Packages` any server may be given a new state.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The publisher of an apt repository that lies in `root` already.
#[derive(Debug)]
pub struct Archive {
    root: PathBuf,
    /// Beside the repository on the same file system: files are made there and get their names by rename.
    workshop: PathBuf,
    architecture: String,
    /// What the repository had before.
    base: String,
    states: u32,
    /// Files that only older states name, the oldest state's first.
    outdated: VecDeque<Vec<PathBuf>>,
    current: Vec<PathBuf>,
}

impl Archive {
    /// Takes over the repository in `root`, with suite `stable` and component `main`.
    ///
    /// # Errors
    ///
    /// When there is no index, or dpkg is missing.
    pub fn open(root: &Path, workshop: &Path) -> Result<Archive> {
        fs::create_dir_all(workshop)?;
        let architecture = run(workshop, "dpkg", &["--print-architecture"])?.trim().to_owned();
        let index = root.join(format!("dists/stable/main/binary-{architecture}/Packages"));
        let base = fs::read_to_string(&index).with_context(|| format!("reading {}", index.display()))?;
        Ok(Archive {
            root: root.to_owned(),
            workshop: workshop.to_owned(),
            architecture,
            base,
            states: 0,
            outdated: VecDeque::new(),
            current: Vec::new(),
        })
    }

    /// The names of the packages that every state has in another version.
    #[must_use]
    pub fn changing() -> [&'static str; 2] {
        ["freshet-changing-one", "freshet-changing-two"]
    }

    /// Publishes another state, and takes away what the states before the last few had.
    ///
    /// # Errors
    ///
    /// When a tool fails or a file cannot be put in its place.
    pub fn publish(&mut self) -> Result<()> {
        self.states += 1;
        let mut packages = self.base.clone();
        let mut mine = Vec::new();
        for (number, name) in Archive::changing().into_iter().enumerate() {
            let deb = self.build(name, u64::from(self.states) * 10 + number as u64)?;
            let file = format!("{name}_1.{}_all.deb", self.states);
            let path = format!("pool/main/f/freshet-changing/{file}");
            packages.push_str(&self.stanza(name, &path, &deb)?);
            self.place(&deb, &path)?;
            mine.push(self.root.join(path));
        }
        let binary = format!("main/binary-{}", self.architecture);
        let index = self.workshop.join("Packages");
        fs::write(&index, &packages)?;
        run(&self.workshop, "gzip", &["--keep", "--force", "--no-name", "Packages"])?;
        let mut release = format!(
            "Origin: Freshet\nLabel: Freshet\nSuite: stable\nCodename: stable\nDate: {}\nArchitectures: {}\n\
             Components: main\nAcquire-By-Hash: yes\nSHA256:\n",
            run(&self.workshop, "date", &["--utc", "+%a, %d %b %Y %H:%M:%S UTC"])?.trim(),
            self.architecture,
        );
        for name in ["Packages", "Packages.gz"] {
            let made = self.workshop.join(name);
            let digest = self.sha256(&made)?;
            release.push_str(&format!(" {digest} {} {binary}/{name}\n", fs::metadata(&made)?.len()));
            let by_hash = format!("dists/stable/{binary}/by-hash/SHA256/{digest}");
            let copy = self.workshop.join("by-hash");
            fs::copy(&made, &copy)?;
            self.place(&copy, &by_hash)?;
            mine.push(self.root.join(by_hash));
            self.place(&made, &format!("dists/stable/{binary}/{name}"))?;
        }
        let made = self.workshop.join("Release");
        fs::write(&made, release)?;
        self.place(&made, "dists/stable/Release")?;
        let before = std::mem::replace(&mut self.current, mine);
        self.outdated.push_back(before);
        while self.outdated.len() > STATES_KEPT {
            for path in self.outdated.pop_front().unwrap_or_default() {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// A package with contents that nothing else has.
    fn build(&self, name: &str, seed: u64) -> Result<PathBuf> {
        let tree = self.workshop.join("tree");
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        fs::create_dir_all(tree.join("DEBIAN"))?;
        fs::create_dir_all(tree.join("usr/share/freshet"))?;
        let control = format!(
            "Package: {name}\nVersion: 1.{}\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n\
             Description: changes with every state\n",
            self.states
        );
        fs::write(tree.join("DEBIAN/control"), control)?;
        fs::write(tree.join("usr/share/freshet").join(name), noise(seed, PACKAGE_BYTES))?;
        let deb = self.workshop.join(format!("{name}.deb"));
        run(&self.workshop, "dpkg-deb", &["--build", "-Znone", "tree", &deb.to_string_lossy()])?;
        Ok(deb)
    }

    fn stanza(&self, name: &str, path: &str, deb: &Path) -> Result<String> {
        Ok(format!(
            "Package: {name}\nVersion: 1.{}\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n\
             Description: changes with every state\nFilename: {path}\nSize: {}\nSHA256: {}\n\n",
            self.states,
            fs::metadata(deb)?.len(),
            self.sha256(deb)?,
        ))
    }

    fn place(&self, from: &Path, path: &str) -> Result<()> {
        let to = self.root.join(path);
        fs::create_dir_all(to.parent().context("a file has a directory")?)?;
        fs::rename(from, &to).with_context(|| format!("putting {} in its place", to.display()))
    }

    fn sha256(&self, path: &Path) -> Result<String> {
        let line = run(&self.workshop, "sha256sum", &[&path.to_string_lossy()])?;
        Ok(line.split_whitespace().next().context("expected a checksum")?.to_owned())
    }
}

/// Bytes that nothing compresses and no other seed gives (xorshift64, Marsaglia 2003).
#[must_use]
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn run(directory: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let command = Command::new(program).args(arguments).current_dir(directory).env("LC_ALL", "C").output();
    let done = command.with_context(|| format!("starting {program}"))?;
    if !done.status.success() {
        bail!("{program} {arguments:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Above what an origin serves itself for being small.
const PACKAGE_BYTES: usize = 150_000;
/// Older states whose files stay: who has an older index still gets what it names.
const STATES_KEPT: usize = 3;
