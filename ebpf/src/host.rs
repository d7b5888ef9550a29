//! What only the kernel knows of this host beside its counters, and the one bound that it keeps for a socket.

use std::io;
use std::os::fd::AsFd;

use crate::sys;

/// Whether the kernel says that this host's clock is synchronised (by NTP or the like).
#[must_use]
pub fn clock_is_synchronised() -> bool {
    sys::clock_is_synchronised()
}

/// Has the kernel send a TCP connection no faster than `rate` bytes of payload per second (`SO_MAX_PACING_RATE`); `None`
/// lifts the ceiling. TCP paces by itself where the interface's queue is not `fq`. Linux 4.20 or later.
///
/// # Errors
/// What the kernel says.
pub fn limit_pace(socket: impl AsFd, rate: Option<u64>) -> io::Result<()> {
    sys::set_max_pacing_rate(socket.as_fd(), rate.unwrap_or(u64::MAX))
}
