//! The one place where the kernel is met: rings, their operations and the few calls made inline.
//!
//! The rest of the crate sees [`Ring`], [`spawn`] and a handful of futures, and knows neither tokio-uring nor
//! io-uring, so that the runtime can be exchanged here alone. An operation in flight owns the descriptor and the
//! buffer it uses until its completion has come; dropping its future gives them to the ring, never back.

mod inline;
mod operation;
mod probe;
mod socket;

use std::future::Future;
use std::io;

pub(crate) use inline::{
    DrainPipe, ignore_sigpipe, leave_reading_ahead_to_us, open_beneath_cached, raise_descriptor_limit,
    receive, resident, send, sendfile, unsent_bytes,
};
pub(crate) use operation::{
    Delivery, Readiness, ReceiveBuffer, Receiving, accept, cancel, cancel_accepts, connectable, deliver,
    open_beneath, prefetch, read_ahead, read_exact_at, readable, receive_later, writable,
};
pub(crate) use probe::{Abilities, ProbeError, probe};
pub(crate) use socket::Socket;

/// Submission entries of a ring. Every connection holds at most one entry; a full queue is flushed early.
const SUBMISSION_ENTRIES: u32 = 2_048;

/// Completion entries of a ring; more completions wait in the kernel (`IORING_FEAT_NODROP`, Linux 5.5).
const COMPLETION_ENTRIES: u32 = 8_192;

/// A ring with its executor; it lives and dies on the thread that made it.
pub(crate) struct Ring(tokio_uring::Runtime);

impl Ring {
    /// Makes a ring on the calling thread.
    ///
    /// # Errors
    /// The kernel's, when io_uring is absent, forbidden or out of memory.
    pub(crate) fn new(abilities: Abilities) -> io::Result<Self> {
        let mut setup = tokio_uring::uring_builder();
        setup.setup_cqsize(COMPLETION_ENTRIES);
        if abilities.cooperative {
            setup.setup_coop_taskrun();
        }
        if abilities.single_issuer {
            setup.setup_single_issuer();
        }
        let mut builder = tokio_uring::builder();
        builder.entries(SUBMISSION_ENTRIES).uring_builder(&setup);
        Ok(Self(tokio_uring::Runtime::new(&builder)?))
    }

    /// Runs a future, and what it spawns, to the future's end.
    pub(crate) fn run<F: Future>(&self, future: F) -> F::Output {
        self.0.block_on(future)
    }
}

/// Starts a task on the ring of the calling thread.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) {
    drop(tokio_uring::spawn(task));
}
