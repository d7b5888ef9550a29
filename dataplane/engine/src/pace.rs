//! The hook by which a budget slows the serving path; it holds no clock of its own.

use std::time::{Duration, Instant};

/// Asked before each chunk of a body is sent. Shared by all rings; must not block.
pub trait Pacer: Send + Sync + 'static {
    /// Whether nothing is limited just now; the path then skips [`Pacer::take`].
    fn unlimited(&self, class: u8) -> bool {
        let _ = class;
        false
    }

    /// Takes up to `want` bytes for `class` at `now`.
    fn take(&self, class: u8, want: u64, now: Instant) -> Grant;
}

/// A pacer's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Send this many bytes (1 ..= want).
    Bytes(u64),
    /// Ask again after this long.
    Wait(Duration),
}
