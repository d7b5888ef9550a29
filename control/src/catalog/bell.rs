//! Wakes a thread that waits for any of several things.
//!
//! It carries no message: whoever is woken looks for itself.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Rings are remembered, any number of them as one.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    waiting: Condvar,
}

impl Bell {
    /// Wakes the waiter, now or when it next waits.
    pub(super) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.waiting.notify_one();
    }

    /// Waits for a ring, for so long at most.
    pub(super) fn wait(&self, timeout: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .waiting
            .wait_timeout_while(rung, timeout, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}
