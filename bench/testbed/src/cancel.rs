//! A flag that stops every wait of a testbed; a binary sets it from its signal handler.
//!
//! It installs no handler itself: which signals end a run is the binary's choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A shared "please stop": once set, every wait of the testbed ends with [`crate::Error::Cancelled`].
///
/// The guards then clean up as the stack unwinds, which is why a binary should set this on SIGINT and SIGTERM
/// (`signal_hook::flag::register(SIGINT, cancel.flag())`) rather than exit on the spot.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The flag itself, for a signal handler to set.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Asks every wait to end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody has asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
