//! Starting, running and stopping the rings.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::Limits;
use crate::observe::Observer;
use crate::pace::Pacer;
use crate::site::Site;

/// A port to serve on.
pub struct Listener {
    /// Where to listen; port 0 picks one (the same on every ring).
    pub address: SocketAddr,
    /// An inherited listening socket (socket activation) to be used in place of `address`.
    pub inherited: Option<std::net::TcpListener>,
    /// Told to the site, the pacer and the observer; the engine gives it no meaning.
    pub class: u8,
    /// `SO_MARK` of the listener, inherited by its connections; needs CAP_NET_ADMIN or CAP_NET_RAW.
    pub mark: Option<u32>,
    /// What is served.
    pub site: Arc<dyn Site>,
}

/// What to start.
pub struct Server {
    /// The ports.
    pub listeners: Vec<Listener>,
    /// Threads, each with a ring of its own; 0 means one per available core.
    pub rings: usize,
    /// The bounds.
    pub limits: Limits,
    /// Consulted before each chunk.
    pub pacer: Option<Arc<dyn Pacer>>,
    /// Told of connections and responses.
    pub observer: Option<Arc<dyn Observer>>,
}

impl Server {
    /// Probes the kernel, binds every listener, starts the rings and returns when they accept.
    ///
    /// # Errors
    /// [`StartError`] names what the kernel lacks or which address can't be bound.
    pub fn start(self) -> Result<Running, StartError> {
        Err(StartError::NoListeners)
    }
}

/// A running server; dropping it stops it without grace.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddr>,
}

impl Running {
    /// The bound addresses, in the order of the listeners.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Counters so far, over all rings.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Stops accepting, lets responses in flight end for at most `grace`, closes the rest, joins the threads.
    pub fn stop(self, grace: Duration) {
        let _ = grace;
    }
}

/// Counters of a server since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections closed at once because of a limit.
    pub refused: u64,
    /// Responses begun.
    pub responses: u64,
    /// Body bytes handed to the kernel.
    pub body_bytes: u64,
    /// Connections closed by a timeout.
    pub timed_out: u64,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing to do.
    #[error("no listener was given; name at least one address")]
    NoListeners,
    /// An address can't be had.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// io_uring can't be used.
    #[error("io_uring is not usable here ({source}); it needs Linux 5.19 or later and must not be blocked by seccomp or kernel.io_uring_disabled")]
    Uring {
        /// Why.
        source: std::io::Error,
    },
    /// The kernel lacks an operation.
    #[error("the kernel lacks {operation}, which Linux {since} has; run a newer kernel")]
    Missing {
        /// Which operation.
        operation: &'static str,
        /// Since when it is there.
        since: &'static str,
    },
}
