//! SIGINT, SIGTERM and SIGHUP end a verb in good order: its waits end, and its guards clean up.
//!
//! The second such signal ends the program on the spot; the next run then removes what is left.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use freshet_testbed::Cancel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that these signals set.
pub(crate) fn cancel_on_signals() -> Result<Cancel> {
    let cancel = Cancel::default();
    let second: Arc<AtomicBool> = cancel.flag();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal finds the flag unset and goes on to set it.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&second))
            .and_then(|_| flag::register(signal, cancel.flag()))
            .with_context(|| format!("watching for signal {signal}"))?;
    }
    Ok(cancel)
}
