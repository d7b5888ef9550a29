//! `cargo xtask tidy`: the tree is what ARCHITECTURE.md says, and the crates know only whom the design lets them.
//!
//! It reports everything it finds before it fails, and mends nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::Package;

use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let files = workspace.files()?;
    let packages = workspace.packages();
    let mut findings = Vec::new();

    let path = workspace.root().join(ARCHITECTURE);
    let architecture = fs::read_to_string(&path).with_context(|| format!("reading {ARCHITECTURE}"))?;
    let names: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let exists = |path: &str| workspace.root().join(path).exists();
    findings.extend(check_architecture(&architecture, &names, &exists));

    let wanted = design_arrows(&architecture)?;
    let arrows = packages.iter().map(|package| (package.name.to_string(), ours(package, &names))).collect();
    findings.extend(check_arrows(&arrows, &wanted));
    findings.extend(check_folders(&files));
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let text = read(workspace, file)?;
        if !text.starts_with("//!") {
            findings.push(format!("{}: does not open with `//!`", file.display()));
        }
    }
    for package in packages.iter().filter(|package| !MEETS_THE_KERNEL.contains(&package.name.as_str())) {
        for target in package.targets.iter().filter(|target| target.is_lib() || target.is_bin()) {
            let text = fs::read_to_string(&target.src_path)
                .with_context(|| format!("reading {}", target.src_path))?;
            if !text.contains("#![forbid(unsafe_code)]") {
                findings.push(format!("{}: lacks `#![forbid(unsafe_code)]`", target.src_path));
            }
        }
    }

    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("{} findings", findings.len())
}

/// The workspace's crates that a package depends on, in whatever way.
fn ours(package: &Package, names: &BTreeSet<&str>) -> BTreeSet<String> {
    let dependencies = package.dependencies.iter().map(|dependency| dependency.name.clone());
    dependencies.filter(|name| names.contains(name.as_str())).collect()
}

/// Every path and crate that the text names exists, and every crate is named.
fn check_architecture(text: &str, crates: &BTreeSet<&str>, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    let mut named = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        for word in line.split(|c: char| c.is_whitespace() || "`()[]{}<>\"',;|*│├└─".contains(c)) {
            let word = word.trim_end_matches(['.', ':', '/']);
            if word.starts_with("freshet-") && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
                if crates.contains(word) {
                    named.insert(word);
                } else {
                    findings.push(format!("{ARCHITECTURE}:{}: there is no crate `{word}`", number + 1));
                }
            } else if crates.contains(word) {
                named.insert(word);
            }
            let first = word.split('/').next().unwrap_or_default();
            let is_path = word.contains('/') && FOLDERS.contains(&first);
            if is_path && !word.contains("..") && !exists(word) {
                findings.push(format!("{ARCHITECTURE}:{}: there is no `{word}`", number + 1));
            }
        }
    }
    findings.extend(
        crates
            .iter()
            .filter(|name| !named.contains(*name))
            .map(|name| format!("{ARCHITECTURE} does not name {name}")),
    );
    findings
}

/// The arrows as the block behind `<!-- arrows -->` draws them: a crate, `->`, and whom it may know.
fn design_arrows(text: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let (_, after) = text.split_once(ARROWS).with_context(|| format!("{ARCHITECTURE} has no `{ARROWS}`"))?;
    let block = after.trim_start().strip_prefix("```").and_then(|block| block.split_once("```"));
    let (block, _) =
        block.with_context(|| format!("no block of ``` follows `{ARROWS}` in {ARCHITECTURE}"))?;
    let mut arrows = BTreeMap::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        let (from, to) = line
            .split_once("->")
            .with_context(|| format!("expected `CRATE -> CRATE ...`, found `{line}`"))?;
        arrows.insert(from.trim().to_owned(), to.split_whitespace().map(str::to_owned).collect());
    }
    Ok(arrows)
}

/// Whom a crate knows, by crate.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Nobody knows a crate that the design does not let it know.
fn check_arrows(arrows: &Arrows, wanted: &Arrows) -> Vec<String> {
    let mut findings = Vec::new();
    for (from, to) in arrows {
        match wanted.get(from) {
            None => findings.push(format!("crate {from} has no line among the arrows of {ARCHITECTURE}")),
            Some(allowed) => findings.extend(
                to.difference(allowed)
                    .map(|other| format!("crate {from} depends on {other}, which the design forbids")),
            ),
        }
    }
    let gone = wanted.keys().filter(|name| !arrows.contains_key(*name));
    findings.extend(gone.map(|name| format!("crate {name} among the arrows is not in the workspace")));
    findings
}

fn check_folders(files: &BTreeSet<PathBuf>) -> Vec<String> {
    let found: BTreeSet<&str> = files
        .iter()
        .filter(|file| file.components().count() > 1)
        .filter_map(|file| file.iter().next()?.to_str())
        .collect();
    let wanted: BTreeSet<&str> = FOLDERS.iter().copied().collect();
    let strange = found.difference(&wanted).map(|name| format!("folder {name} is not in the design"));
    let lacking = wanted.difference(&found).map(|name| format!("folder {name} of the design is missing"));
    strange.chain(lacking).collect()
}

fn read(workspace: &Workspace, file: &Path) -> Result<String> {
    fs::read_to_string(workspace.root().join(file)).with_context(|| format!("reading {}", file.display()))
}

const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// The top-level folders.
const FOLDERS: &[&str] = &[".cargo", ".ci", "bench", "control", "dataplane", "ebpf", "tests", "xtask"];

/// What stands before the block of arrows.
const ARROWS: &str = "<!-- arrows -->";

/// The crates with a module that may use `unsafe`; all others forbid it.
const MEETS_THE_KERNEL: &[&str] = &["freshet-engine", "freshet-ebpf", "freshet-ebpf-abi", "freshet-testbed"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_or_crate_that_is_not_there_is_found() {
        let crates = BTreeSet::from(["freshet-api", "freshet-engine"]);
        let text =
            "`control/api` (freshet-api), see [x](control/gone.rs).\nfreshet-gone, `dists/` and `/etc/x`.";
        let findings = check_architecture(text, &crates, &|path| path == "control/api");
        assert_eq!(
            findings,
            [
                "ARCHITECTURE.md:1: there is no `control/gone.rs`",
                "ARCHITECTURE.md:2: there is no crate `freshet-gone`",
                "ARCHITECTURE.md does not name freshet-engine",
            ]
        );
    }

    #[test]
    fn an_arrow_against_the_design_is_found() {
        let wanted = design_arrows("<!-- arrows -->\n```\na ->\nb -> a\n```\nc -> b").unwrap();
        assert_eq!(wanted.len(), 2);
        let arrow =
            |from: &str, to: &[&str]| (from.to_owned(), to.iter().map(|&name| name.to_owned()).collect());
        assert!(check_arrows(&Arrows::from([arrow("a", &[]), arrow("b", &["a"])]), &wanted).is_empty());
        let wrong = Arrows::from([arrow("a", &["b"]), arrow("new", &[])]);
        assert_eq!(check_arrows(&wrong, &wanted).len(), 3);
        assert!(design_arrows("no block").is_err());
    }

    #[test]
    fn a_folder_too_many_and_one_too_few_are_found() {
        let mut files: BTreeSet<PathBuf> =
            FOLDERS.iter().map(|folder| Path::new(folder).join("file")).collect();
        files.insert("README.md".into());
        assert!(check_folders(&files).is_empty());
        files.insert("misc/file".into());
        files.remove(Path::new("ebpf/file"));
        assert_eq!(check_folders(&files).len(), 2);
    }
}
