//! One ring's thread: what its connections share, accepting, the sweep of deadlines, and stopping.

use std::cell::Cell;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::HeaderMap;
use rustix::io::Errno;
use tokio::sync::{Notify, watch};

use crate::admission::Admission;
use crate::clock::Clock;
use crate::connection::{Connection, Serve};
use crate::deadline::{Awaits, Deadlines, Due, Slot};
use crate::files::FileCache;
use crate::files::cache::CacheLimits;
use crate::limits::Limits;
use crate::observe::{Observer, ResponseRecord};
use crate::pace::Pacer;
use crate::receive::ReceiveBuffers;
use crate::respond::{Client, Exchange, Outline};
use crate::server::RingStats;
use crate::site::Site;
use crate::uring::{self, Abilities, DrainPipe, Ring, Socket};

/// What a ring is started with.
pub(crate) struct Setup {
    pub(crate) index: usize,
    pub(crate) rings: usize,
    pub(crate) abilities: Abilities,
    pub(crate) limits: Limits,
    pub(crate) sockets: Vec<ListeningSocket>,
    pub(crate) listeners: Arc<[Served]>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) pacer: Option<Arc<dyn Pacer>>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    pub(crate) stats: Arc<RingStats>,
    pub(crate) orders: watch::Receiver<Order>,
}

/// A ring's own socket of a listener.
#[derive(Debug)]
pub(crate) struct ListeningSocket {
    pub(crate) descriptor: OwnedFd,
    pub(crate) address: SocketAddr,
    /// Whether others may hold it too: then its flags are not ours to change.
    pub(crate) inherited: bool,
}

impl std::os::fd::AsFd for ListeningSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What a listener serves.
pub(crate) struct Served {
    pub(crate) class: u8,
    pub(crate) site: Arc<dyn Site>,
}

/// What the server wants of its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Serve.
    Run,
    /// Accept nothing more; responses in flight may end until then.
    Finish(Instant),
}

/// What the connections of one ring share; nothing of it leaves the thread.
pub(crate) struct Core {
    pub(crate) limits: Limits,
    pub(crate) listeners: Arc<[Served]>,
    pub(crate) files: FileCache,
    pub(crate) clock: Clock,
    pub(crate) stats: Arc<RingStats>,
    pub(crate) pacer: Option<Arc<dyn Pacer>>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    pub(crate) deadlines: Deadlines,
    pub(crate) pipe: DrainPipe,
    pub(crate) buffers: ReceiveBuffers,
    /// Where bytes are received; borrowed within one turn only.
    pub(crate) scratch: Cell<Vec<u8>>,
    /// Where a small response is put together that is not kept; borrowed within one response only.
    pub(crate) outgoing: Cell<Vec<u8>>,
    /// The allocation of the last request's field map.
    pub(crate) spare_headers: Cell<HeaderMap>,
    admission: Arc<Admission>,
    open: Cell<usize>,
    emptied: Notify,
    stopping: Cell<bool>,
    next_id: Cell<u64>,
    random: RandomState,
}

/// Of a response that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyBytes {
    /// Handed to the kernel.
    pub(crate) sent: u64,
    /// Those of them that the observer was told of meanwhile; none when it was told of none.
    pub(crate) told: Option<u64>,
}

impl Core {
    fn new(setup: &Setup) -> io::Result<Self> {
        let share = |whole: u64| (whole / setup.rings as u64).max(1);
        let limits = &setup.limits;
        let files = FileCache::new(CacheLimits {
            memory_file_bytes_max: limits.memory_file_bytes_max,
            memory_bytes_max: share(limits.memory_cache_bytes_max),
            descriptors_max: usize::try_from(share(limits.descriptors_max as u64)).unwrap_or(usize::MAX),
            revalidate_after_millis: u64::try_from(limits.revalidate_after.as_millis()).unwrap_or(u64::MAX),
        });
        Ok(Self {
            limits: limits.clone(),
            listeners: Arc::clone(&setup.listeners),
            files,
            clock: Clock::new(),
            stats: Arc::clone(&setup.stats),
            pacer: setup.pacer.clone(),
            observer: setup.observer.clone(),
            deadlines: Deadlines::default(),
            pipe: DrainPipe::new()?,
            buffers: ReceiveBuffers::default(),
            scratch: Cell::new(vec![0; limits.head_bytes_max + SCRATCH_SLACK_BYTES]),
            outgoing: Cell::default(),
            spare_headers: Cell::default(),
            admission: Arc::clone(&setup.admission),
            open: Cell::new(0),
            emptied: Notify::new(),
            stopping: Cell::new(false),
            next_id: Cell::new((setup.index as u64) << RING_ID_SHIFT),
            random: RandomState::new(),
        })
    }

    /// Whether no new request is wanted on any connection.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Whether bytes of a class may go without asking.
    pub(crate) fn is_unpaced(&self, class: u8) -> bool {
        self.pacer.as_ref().is_none_or(|pacer| pacer.unlimited(class))
    }

    /// A number that clients can't foretell.
    pub(crate) fn unpredictable(&self) -> u64 {
        let id = self.take_id();
        self.random.hash_one(id)
    }

    /// Tells of a response that does not go out at once.
    pub(crate) fn lasts(&self, class: u8, status: ::http::StatusCode, promised: u64) {
        if let Some(observer) = &self.observer {
            observer.lasts(class, status, promised);
        }
    }

    /// Tells of a part of a response that goes on.
    pub(crate) fn progressed(&self, class: u8, status: ::http::StatusCode, body_bytes: u64) {
        if let Some(observer) = &self.observer {
            observer.progressed(class, status, body_bytes);
        }
    }

    /// Counts and tells of a response that has ended.
    pub(crate) fn responded(
        &self,
        client: &Client<'_>,
        exchange: &Exchange,
        outline: Outline,
        bytes: BodyBytes,
    ) {
        self.stats.responses.add(1);
        let Some(observer) = &self.observer else { return };
        let head = exchange.head.as_ref();
        observer.responded(&ResponseRecord {
            connection: client.socket.id,
            class: self.listeners[usize::from(client.socket.listener)].class,
            peer: client.socket.peer,
            request_line: head.map_or("", |head| head.line()),
            path: head.map_or(b"", |head| head.path()),
            referer: head.and_then(|head| head.field(&::http::header::REFERER)),
            user_agent: head.and_then(|head| head.field(&::http::header::USER_AGENT)),
            status: outline.status,
            body_bytes: bytes.sent,
            body_bytes_told: bytes.told,
            body_bytes_promised: outline.promised,
            elapsed: exchange.started.map(|started| started.elapsed()).unwrap_or_default(),
        });
    }

    /// Gives back what a connection held.
    pub(crate) fn closed(&self, client: &Client<'_>, slot: Slot) {
        if let Some(observer) = &self.observer {
            let class = self.listeners[usize::from(client.socket.listener)].class;
            observer.closed(client.socket.id, class, client.socket.as_fd());
        }
        self.deadlines.leave(slot);
        self.admission.leave(client.socket.peer.ip());
        self.stats.closed.add(1);
        self.open.set(self.open.get() - 1);
        if self.open.get() == 0 {
            self.emptied.notify_one();
        }
    }

    fn take_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    fn admit(self: &Rc<Self>, descriptor: OwnedFd, peer: SocketAddr, listener: u16, address: SocketAddr) {
        if !self.admission.enter(peer.ip()) {
            self.stats.refused.add(1);
            return;
        }
        let Ok(socket) = Socket::new(descriptor, peer, address, self.take_id(), listener) else {
            self.admission.leave(peer.ip());
            return;
        };
        self.stats.accepted.add(1);
        self.open.set(self.open.get() + 1);
        let connection = Connection::new(self, Rc::new(socket));
        uring::spawn(Serve::new(Rc::clone(self), connection));
    }

    /// Deals with deadlines that have passed.
    fn sweep(&self) {
        let now = self.clock.millis();
        for due in self.deadlines.due(now) {
            if matches!(due.awaits, Awaits::FirstHot | Awaits::RequestHot) {
                self.cool(&due, now);
                continue;
            }
            if due.awaits == Awaits::Room && self.reads_slowly(&due) {
                let timeout = u64::try_from(self.limits.send_timeout.as_millis()).unwrap_or(u64::MAX);
                self.deadlines.extend(due.slot, now.saturating_add(timeout));
                continue;
            }
            self.stats.timed_out.add(1);
            match due.awaits {
                Awaits::Head => {
                    let _ = uring::send(&due.socket, REQUEST_TIMEOUT, false);
                }
                // What the client won't take is no reason to keep the kernel's memory.
                Awaits::Room => due.socket.reset_on_close(),
                _ => {}
            }
            self.end(&due);
        }
    }

    /// Makes a connection that fell silent give its buffer back; it goes on waiting without one.
    fn cool(&self, due: &Due, now: u64) {
        // With nothing unacknowledged no send can be under way, so that only the receive is cancelled.
        if uring::unsent_bytes(&due.socket) == Some(0) {
            uring::cancel(Rc::clone(&due.socket));
        } else {
            self.deadlines.extend(due.slot, now + HOT_MILLIS);
        }
    }

    /// A socket asks for more only when a third of its buffer is free, which can take a slow reader minutes.
    fn reads_slowly(&self, due: &Due) -> bool {
        uring::unsent_bytes(&due.socket).is_some_and(|unsent| self.deadlines.made_progress(due.slot, unsent))
    }

    fn end(&self, due: &Due) {
        self.deadlines.set(due.slot, Awaits::Nothing, u64::MAX);
        due.socket.shut_down();
    }
}

/// Runs a ring on the calling thread until it is told to finish; `ready` hears whether it started.
pub(crate) fn run(setup: Setup, ready: &std::sync::mpsc::SyncSender<io::Result<()>>) {
    let prepared = Ring::new(setup.abilities).and_then(|ring| Ok((ring, Rc::new(Core::new(&setup)?))));
    let (ring, core) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    ring.run(async move {
        let sockets: Vec<Rc<ListeningSocket>> = setup.sockets.into_iter().map(Rc::new).collect();
        for (index, socket) in sockets.iter().enumerate() {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            if socket.inherited {
                for _ in 0..ACCEPTS_IN_FLIGHT {
                    uring::spawn(accept_in_ring(Rc::clone(&core), Rc::clone(socket), index));
                }
            } else {
                uring::spawn(accept(Rc::clone(&core), Rc::clone(socket), index));
            }
        }
        uring::spawn(sweep(Rc::clone(&core)));
        let _ = ready.send(Ok(()));
        let mut orders = setup.orders;
        let until = loop {
            if let Order::Finish(until) = *orders.borrow_and_update() {
                break until;
            }
            if orders.changed().await.is_err() {
                break Instant::now();
            }
        };
        finish(&core, &sockets, until).await;
    });
}

async fn finish(core: &Rc<Core>, sockets: &[Rc<ListeningSocket>], until: Instant) {
    core.stopping.set(true);
    for socket in sockets {
        uring::cancel_accepts(Rc::clone(socket)).await;
    }
    // The accept loops take what had connected before; then only requests in flight are left.
    tokio::task::yield_now().await;
    for due in core.deadlines.open(true) {
        core.end(&due);
    }
    let _ = tokio::time::timeout_at(until.into(), emptied(core)).await;
    for due in core.deadlines.open(false) {
        due.socket.reset_on_close();
        core.end(&due);
    }
    let _ = tokio::time::timeout(STOP_TIME_MAX, emptied(core)).await;
}

async fn emptied(core: &Core) {
    while core.open.get() > 0 {
        core.emptied.notified().await;
    }
}

/// Takes clients in bursts: a call for each costs less than an operation of the ring for each.
async fn accept(core: Rc<Core>, socket: Rc<ListeningSocket>, listener: u16) {
    while !core.is_stopping() {
        uring::connectable(Rc::clone(&socket)).await;
        if let Err(error) = take_clients(&core, &socket, listener, BURST_CLIENTS_MAX)
            && !recovers(&core, &socket, &error).await
        {
            return;
        }
    }
    // Clients in the backlog have connected as far as they know; a close would reset them.
    let _ = take_clients(&core, &socket, listener, usize::MAX);
}

/// Admits at most `count` clients of those that have connected.
fn take_clients(
    core: &Rc<Core>,
    socket: &ListeningSocket,
    listener: u16,
    count: usize,
) -> Result<(), io::Error> {
    use rustix::net::{SocketFlags, acceptfrom_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    for _ in 0..count {
        match acceptfrom_with(&socket.descriptor, flags) {
            Ok((descriptor, address)) => {
                if let Some(peer) = address.and_then(|address| SocketAddr::try_from(address).ok()) {
                    core.admit(descriptor, peer, listener, socket.address);
                }
            }
            Err(Errno::AGAIN) => break,
            // This client went away first.
            Err(Errno::CONNABORTED | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The same for a socket that others hold too: it may block, so the ring waits with it.
async fn accept_in_ring(core: Rc<Core>, socket: Rc<ListeningSocket>, listener: u16) {
    while !core.is_stopping() {
        match uring::accept(Rc::clone(&socket)).await {
            Ok((descriptor, peer)) => core.admit(descriptor, peer, listener, socket.address),
            Err(error) => {
                if !recovers(&core, &socket, &error).await {
                    return;
                }
            }
        }
    }
}

/// Does what an error of an accept asks for; `false` when there is nothing more to be accepted.
async fn recovers(core: &Core, socket: &ListeningSocket, error: &io::Error) -> bool {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
            tracing::warn!(%error, "cannot accept; giving up cached descriptors");
            core.files.clear();
            tokio::time::sleep(ACCEPT_PAUSE).await;
            true
        }
        Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK) => {
            tracing::error!(%error, address = %socket.address, "the listening socket is gone");
            false
        }
        // The client went away first, or the wait was cancelled by a stop.
        _ => true,
    }
}

async fn sweep(core: Rc<Core>) {
    let limits = &core.limits;
    let shortest = limits.head_timeout.min(limits.send_timeout).min(limits.idle_timeout);
    let mut ticks = tokio::time::interval((shortest / 4).clamp(SWEEP_MIN, SWEEP_MAX));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        core.sweep();
    }
}

/// Sent to a client whose head took too long; its connection ends with it.
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// How long a silent connection keeps its buffer.
pub(crate) const HOT_MILLIS: u64 = 1_000;

/// Bytes received beyond a longest head, for pipelined requests.
const SCRATCH_SLACK_BYTES: usize = 16 << 10;

/// Connections of a ring are numbered below this bit.
const RING_ID_SHIFT: u32 = 48;

/// Clients of a listener that are taken before those that are connected get their turn.
const BURST_CLIENTS_MAX: usize = 64;

/// Accepts that wait on an inherited listener, so that a burst of clients takes one turn of the ring, not one each.
const ACCEPTS_IN_FLIGHT: usize = 16;

/// How long to wait for descriptors when there are none.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How long connections have to notice that they were shut down.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

const SWEEP_MIN: Duration = Duration::from_millis(10);

const SWEEP_MAX: Duration = Duration::from_millis(500);
