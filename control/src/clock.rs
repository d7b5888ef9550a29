//! The clocks of this process: one origin for all [`Moment`]s, and the time of day. Decides nothing.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use freshet_policy::Moment;

/// A monotonic axis that starts where it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts now. The origin lies a minute back, so that a moment before the start can be named.
    pub fn start() -> Self {
        let now = Instant::now();
        Self { origin: now.checked_sub(HEAD_START).unwrap_or(now) }
    }

    /// Since the start.
    pub fn uptime(&self) -> std::time::Duration {
        self.origin.elapsed().saturating_sub(HEAD_START)
    }

    /// Now, on this axis.
    pub fn now(&self) -> Moment {
        Moment(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Seconds since the epoch of a time of day; 0 for one before it.
pub fn epoch_secs(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const HEAD_START: std::time::Duration = std::time::Duration::from_secs(60);
