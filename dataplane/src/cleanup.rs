//! `dataplane cleanup`: removes everything of ours that outlives a daemon that was killed. It touches nothing of a
//! daemon that runs, nor anything that others attached.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use freshet_ebpf::KernelError;

use crate::cli::CleanupOptions;
use crate::config::{self, Config, Pins};
use crate::exit::Failure;
use crate::logging::announce;

/// Removes what is there and says what it was.
///
/// # Errors
/// When a daemon still counts with it, or the kernel refuses.
pub fn cleanup(options: &CleanupOptions) -> Result<(), Failure> {
    let directories = match &options.state {
        Some(state) => of_state(state)?,
        None => everywhere()?,
    };
    let mut running = Vec::new();
    let mut removed = 0_usize;
    // Filters that hang on interfaces are looked for once, also where nothing is pinned.
    let pins = directories.iter().map(|pins| Some(pins.as_path())).chain([None]);
    for pins in pins {
        let cleaned = match freshet_ebpf::cleanup(pins) {
            Ok(cleaned) => cleaned,
            Err(KernelError::InUse { path }) => {
                running.push(path.display().to_string());
                continue;
            }
            Err(error) => {
                return Err(anyhow!(error).context("cannot remove everything; it needs root").into());
            }
        };
        for pin in &cleaned.pins {
            announce(format_args!("removed: {}", pin.display()));
        }
        for (interface, direction) in &cleaned.filters {
            announce(format_args!("removed: the filter on {interface}, {direction:?}"));
        }
        removed += cleaned.pins.len() + cleaned.filters.len();
    }
    if running.is_empty() {
        let interfaces = freshet_ebpf::interfaces::all().context("cannot list the interfaces")?;
        for interface in crate::queue::cleanup(&interfaces).context("cannot remove a queue; it needs root")? {
            announce(format_args!("removed: the queue on {interface}"));
            removed += 1;
        }
    }
    if !running.is_empty() {
        let running = running.join(", ");
        return Err(
            anyhow!("{running}: in use by a daemon that runs; stop it, which removes them too").into()
        );
    }
    if removed == 0 {
        announce(format_args!("nothing of ours is left here"));
    }
    Ok(())
}

/// The pins of one volunteer.
fn of_state(state: &std::path::Path) -> Result<Vec<PathBuf>, Failure> {
    let path = state.join(config::FILE_NAME);
    let pins = match path.try_exists() {
        Ok(true) => Config::load(&path, Some(state)).map_err(Failure::configuration)?.pins,
        _ => Pins::Auto,
    };
    Ok(pins.directory(state).into_iter().collect())
}

/// The pins of all volunteers that this host ever had, but for those that were told another place.
fn everywhere() -> Result<Vec<PathBuf>, Failure> {
    let entries = match std::fs::read_dir(config::BPFFS) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(anyhow!(error).context(format!("cannot look into {}", config::BPFFS)).into());
        }
    };
    let mut found = Vec::new();
    for entry in entries.into_iter().flatten() {
        let entry = entry.with_context(|| format!("cannot look into {}", config::BPFFS))?;
        if entry.file_name().to_string_lossy().starts_with(config::PINS_PREFIX) {
            found.push(entry.path());
        }
    }
    let packaged = PathBuf::from(config::PACKAGED_PINS);
    if packaged.is_dir() {
        found.push(packaged);
    }
    found.sort();
    Ok(found)
}
