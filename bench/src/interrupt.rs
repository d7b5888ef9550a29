//! SIGINT, SIGTERM and SIGHUP end a measurement in good order: waits end, and the testbed cleans up.

use anyhow::{Context as _, Result};
use freshet_testbed::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that these signals set; the second one ends the program on the spot.
pub(crate) fn cancel_on_signals() -> Result<Cancel> {
    let cancel = Cancel::default();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_shutdown(signal, 128 + signal, cancel.flag())
            .and_then(|_| flag::register(signal, cancel.flag()))
            .with_context(|| format!("cannot watch for signal {signal}"))?;
    }
    Ok(cancel)
}
