//! The workspace as cargo describes it, and commands run in it.
//!
//! It reads the tree and never changes it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand, Package};

/// The workspace that this program was built in.
pub(crate) struct Workspace {
    metadata: Metadata,
}

impl Workspace {
    pub(crate) fn load() -> Result<Workspace> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let metadata = MetadataCommand::new()
            .manifest_path(manifest)
            .no_deps()
            .other_options(["--locked".to_owned()])
            .exec()
            .context("asking cargo about the workspace")?;
        Ok(Workspace { metadata })
    }

    pub(crate) fn root(&self) -> &Path {
        self.metadata.workspace_root.as_std_path()
    }

    pub(crate) fn packages(&self) -> Vec<&Package> {
        self.metadata.workspace_packages()
    }

    /// Where built programs are, in the development profile.
    pub(crate) fn programs(&self) -> PathBuf {
        self.metadata.target_directory.as_std_path().join("debug")
    }

    /// Where built programs are, in the release profile.
    pub(crate) fn release_programs(&self) -> PathBuf {
        self.metadata.target_directory.as_std_path().join("release")
    }

    /// Where made repositories are kept between runs.
    pub(crate) fn repositories(&self) -> PathBuf {
        self.metadata.target_directory.as_std_path().join("freshet/repositories")
    }

    /// Every file that belongs to the tree: what git tracks or would track; without git, what is not `target`.
    pub(crate) fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
            .current_dir(self.root())
            .output();
        if let Ok(listed) = listed
            && listed.status.success()
        {
            let names =
                String::from_utf8(listed.stdout).context("git listed a file name that is not UTF-8")?;
            let names = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
            // A file that was removed but not yet committed is still listed.
            return Ok(names.filter(|name| self.root().join(name).exists()).collect());
        }
        let belongs = |entry: &walkdir::DirEntry| {
            let name = entry.file_name();
            entry.depth() == 0 || (name != "target" && name != ".git")
        };
        let mut files = BTreeSet::new();
        for entry in walkdir::WalkDir::new(self.root()).into_iter().filter_entry(belongs) {
            let entry = entry.context("walking the workspace")?;
            if !entry.file_type().is_dir() {
                files.insert(entry.path().strip_prefix(self.root())?.to_owned());
            }
        }
        Ok(files)
    }

    /// Builds the programs that the demo and the end-to-end tests run.
    pub(crate) fn build_programs(&self) -> Result<()> {
        run(&mut self.cargo(&[
            "build",
            "--locked",
            "--bins",
            "-p",
            "freshet-control",
            "-p",
            "freshet-dataplane",
        ]))
    }

    /// A cargo command in the workspace, by the cargo that runs this program.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments).current_dir(self.root());
        command
    }
}

/// Shows a command and runs it to its end; a failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    // The path of cargo itself tells nobody anything.
    let line = match line.split_first() {
        Some((program, rest)) => {
            let program =
                Path::new(program).file_name().map_or(program.clone(), |n| n.to_string_lossy().into());
            format!("{program} {}", rest.join(" "))
        }
        None => String::new(),
    };
    eprintln!("$ {line}");
    let status = command.status().with_context(|| format!("starting `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed with {status}");
    }
    Ok(())
}
