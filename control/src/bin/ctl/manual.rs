//! Completions and manual pages, from the same definition as the command line.

use std::path::Path;

use anyhow::Context as _;
use clap::Command;

/// Writes a shell's completions to standard output.
pub(crate) fn completions(shell: clap_complete::Shell, mut command: Command) {
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
}

/// Writes a page for the program and each of its verbs into `directory`, which is made if it is not there.
pub(crate) fn pages(directory: &Path, command: Command) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    clap_mangen::generate_to(command, directory)
        .with_context(|| format!("cannot write into {}", directory.display()))
}
