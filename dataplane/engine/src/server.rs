//! Starting, running and stopping the rings.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::admission::Admission;
use crate::limits::Limits;
use crate::listen;
use crate::observe::Observer;
use crate::pace::Pacer;
use crate::ring::{self, ListeningSocket, Order, Served, Setup};
use crate::site::Site;
use crate::uring::{self, ProbeError};

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
        if self.listeners.is_empty() {
            return Err(StartError::NoListeners);
        }
        let abilities = uring::probe()?;
        uring::ignore_sigpipe();
        let limits = fit_descriptors(self.limits);
        let rings = match self.rings {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            rings => rings,
        };
        let mut sockets: Vec<Vec<ListeningSocket>> = (0..rings).map(|_| Vec::new()).collect();
        let mut addresses = Vec::with_capacity(self.listeners.len());
        let mut served = Vec::with_capacity(self.listeners.len());
        for listener in self.listeners {
            let address = listen::on_every_ring(&listener, &mut sockets)?;
            addresses.push(address);
            served.push(Served { class: listener.class, site: listener.site });
        }
        let copies = sockets.iter().flatten().map(|socket| {
            let failed = |source| StartError::Bind { address: socket.address, source };
            socket.descriptor.try_clone().map_err(failed)
        });
        let listening = copies.collect::<Result<_, _>>()?;
        let listeners: Arc<[Served]> = served.into();
        let admission = Arc::new(Admission::new(&limits));
        let (orders, receiver) = watch::channel(Order::Run);
        let mut running = Running { addresses, listening, orders, threads: Vec::new(), stats: Vec::new() };
        for (index, sockets) in sockets.into_iter().enumerate() {
            let stats = Arc::new(RingStats::default());
            let setup = Setup {
                index,
                rings,
                abilities,
                limits: limits.clone(),
                sockets,
                listeners: Arc::clone(&listeners),
                admission: Arc::clone(&admission),
                pacer: self.pacer.clone(),
                observer: self.observer.clone(),
                stats: Arc::clone(&stats),
                orders: receiver.clone(),
            };
            running.stats.push(stats);
            running.threads.push(start_ring(setup)?);
        }
        Ok(running)
    }
}

/// Starts a ring's thread and waits until it accepts.
fn start_ring(setup: Setup) -> Result<JoinHandle<()>, StartError> {
    let (ready, started) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(format!("ring-{}", setup.index))
        .spawn(move || ring::run(setup, &ready))
        .map_err(|source| StartError::Uring { source })?;
    match started.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(source)) => Err(StartError::Uring { source }),
        Err(_) => Err(StartError::Uring { source: std::io::Error::other("the ring's thread ended at once") }),
    }
}

/// Lowers the bounds to what the process may open; the rest is left to the program around.
fn fit_descriptors(mut limits: Limits) -> Limits {
    let allowed = usize::try_from(uring::raise_descriptor_limit()).unwrap_or(usize::MAX);
    let room = allowed.saturating_sub(DESCRIPTORS_RESERVED);
    let wanted = limits.connections_max.saturating_add(limits.descriptors_max);
    if wanted > room {
        limits.descriptors_max = limits.descriptors_max.min(room / 4).max(1);
        limits.connections_max = limits.connections_max.min(room - limits.descriptors_max.min(room)).max(1);
        tracing::warn!(
            allowed,
            wanted,
            connections_max = limits.connections_max,
            descriptors_max = limits.descriptors_max,
            "the limit of open descriptors is too low for the engine's limits; raise it (ulimit -n, LimitNOFILE=)"
        );
    }
    limits
}

/// A running server; dropping it stops it without grace.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddr>,
    listening: Arc<[OwnedFd]>,
    orders: watch::Sender<Order>,
    threads: Vec<JoinHandle<()>>,
    stats: Vec<Arc<RingStats>>,
}

impl Running {
    /// The bound addresses, in the order of the listeners.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The listening sockets of all rings, while this runs: for socket options, never to accept from or to close.
    pub fn listening(&self) -> Weak<[OwnedFd]> {
        Arc::downgrade(&self.listening)
    }

    /// Counters so far, over all rings.
    pub fn stats(&self) -> Stats {
        self.reader().stats()
    }

    /// Reads the counters wherever it is taken, also after the stop.
    pub fn reader(&self) -> StatsReader {
        StatsReader { rings: self.stats.as_slice().into() }
    }

    /// Stops accepting, lets responses in flight end for at most `grace`, closes the rest, joins the threads.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        let _ = self.orders.send(Order::Finish(Instant::now() + grace));
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a ring's thread panicked");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// The counters of a [`Running`] server.
#[derive(Clone, Debug)]
pub struct StatsReader {
    rings: Arc<[Arc<RingStats>]>,
}

impl StatsReader {
    /// Counters so far, over all rings.
    pub fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for ring in self.rings.iter() {
            let (accepted, closed) = (ring.accepted.value(), ring.closed.value());
            sum.accepted += accepted;
            sum.open += accepted.saturating_sub(closed);
            sum.refused += ring.refused.value();
            sum.responses += ring.responses.value();
            sum.body_bytes += ring.body_bytes.value();
            sum.timed_out += ring.timed_out.value();
        }
        sum
    }
}

/// A counter that one thread writes and others read.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds without a locked instruction, which one writer makes possible.
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one ring.
#[derive(Debug, Default)]
pub(crate) struct RingStats {
    pub(crate) accepted: Counter,
    pub(crate) closed: Counter,
    pub(crate) refused: Counter,
    pub(crate) responses: Counter,
    pub(crate) body_bytes: Counter,
    pub(crate) timed_out: Counter,
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
    #[error(
        "io_uring is not usable here ({source}); it needs Linux 5.19 or later and must not be blocked by seccomp or kernel.io_uring_disabled"
    )]
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

impl From<ProbeError> for StartError {
    fn from(error: ProbeError) -> Self {
        match error {
            ProbeError::Unusable(source) => Self::Uring { source },
            ProbeError::Missing { operation, since } => Self::Missing { operation, since },
        }
    }
}

/// Descriptors left to logs, stores and the rest of the program.
const DESCRIPTORS_RESERVED: usize = 256;
