//! What measurements with real processes stand on: where Freshet's programs are, and hosts that have wires.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::{Backend, Cancel, Options, Testbed};

/// The directory of the programs: the given one, or that of this program.
///
/// # Errors
/// When the system does not say where this program is.
pub(crate) fn programs(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(directory) = given {
        return Ok(directory.to_owned());
    }
    Ok(std::env::current_exe()?.parent().context("this program is in a directory")?.to_owned())
}

/// A testbed whose hosts have wires; `what` of the measurement needs them, for the error.
///
/// # Errors
/// Where there are no network namespaces, as without root.
pub(crate) fn namespaces(cancel: &Cancel, what: &str) -> Result<Testbed> {
    let testbed = Testbed::start(Options { cancel: cancel.clone(), ..Options::default() })?;
    if let Backend::Loopback { why } = testbed.backend() {
        bail!("{what} network namespaces, which can't be had here: {why}");
    }
    Ok(testbed)
}
