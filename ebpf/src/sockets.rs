//! Counting without rights: what the kernel says of our own sockets, and the interface's total for the rest.
//!
//! Payload and segments come from `TCP_INFO`; headers are computed, because every segment of a connection has the
//! same ones. It never reads or writes a socket, and never delays the closing of one; it ends connections only when the
//! month's volume is used up.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use freshet_ebpf_abi::{CLASSES, Class};

use crate::Accounting;
use crate::interfaces::{InterfaceChoice, Interfaces, Place};
use crate::kill_switch::{self, KillSwitch};
use crate::reading::{Epoch, Flow, InterfaceReading, ReadError, Reading, Source, Traffic};
use crate::sys::{self, TcpFigures};

/// Where servers and clients report their sockets. Cheap to clone; every clone is the same register.
///
/// While classifiers in the kernel count, all calls return at once.
#[derive(Clone, Debug)]
pub struct SocketMeter {
    register: Arc<Register>,
}

impl Default for SocketMeter {
    fn default() -> Self {
        Self::new()
    }
}

impl SocketMeter {
    /// An empty register that counts.
    #[must_use]
    pub fn new() -> Self {
        let register = Register {
            counting: AtomicBool::new(true),
            next_outgoing: AtomicU64::new(0),
            unmeasured: AtomicU64::new(0),
            switch: KillSwitch::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
        };
        Self { register: Arc::new(register) }
    }

    /// A connection was accepted. `key` and `class` are those that [`SocketMeter::closed`] will be given.
    ///
    /// At most [`OPEN_MAX`] open sockets are sampled; one beyond that is counted when it closes.
    pub fn opened(&self, key: u64, class: u8, socket: BorrowedFd<'_>, local: IpAddr) {
        if !self.counting() {
            return;
        }
        let key = Key::Accepted { class, key, socket: socket.as_raw_fd() };
        let ends = Ends { local: local.to_canonical(), peer: peer_of(socket) };
        let mut shard = self.shard(key);
        if shard.open.len() < OPEN_MAX / SHARDS
            && let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(socket, 0)
        {
            shard.open.insert(
                key,
                Open { socket: Arc::new(socket), class: known(class), ends, last: Last::default() },
            );
        }
        // It had connected when the switch was thrown.
        if self.register.switch.is_off(known(class)) {
            self.cut_within(&mut shard, |open| open == known(class));
        }
    }

    /// The connection is about to be closed; `socket` must still answer `TCP_INFO`.
    pub fn closed(&self, key: u64, class: u8, socket: BorrowedFd<'_>) {
        if !self.counting() {
            return;
        }
        let key = Key::Accepted { class, key, socket: socket.as_raw_fd() };
        let mut shard = self.shard(key);
        let open = shard.open.remove(&key);
        let (ends, last) = match &open {
            Some(open) => (open.ends, open.last),
            None => (Ends { local: local_of(socket), peer: peer_of(socket) }, Last::default()),
        };
        // Our duplicate must be gone before the owner closes his, or the closing would wait for us.
        drop(open);
        match sys::tcp_figures(socket) {
            // Counted when it was cut.
            Ok(figures) if figures.began_anew() => {}
            Ok(figures) => shard.finish(known(class), ends, last, figures, Role::Accepted),
            Err(error) => self.not_measured(&error),
        }
    }

    /// Counts an outgoing connection until the returned guard is dropped, which may be after the socket was closed.
    ///
    /// # Errors
    /// When no descriptor is left for watching the socket.
    pub fn connected(&self, class: Class, socket: BorrowedFd<'_>) -> io::Result<MeteredSocket> {
        if !self.counting() {
            return Ok(MeteredSocket { watched: None });
        }
        let key = Key::Outgoing(self.register.next_outgoing.fetch_add(1, Ordering::Relaxed));
        let ends = Ends { local: local_of(socket), peer: peer_of(socket) };
        let socket = Arc::new(rustix::io::fcntl_dupfd_cloexec(socket, 0)?);
        let open = Open { socket: Arc::clone(&socket), class, ends, last: Last::default() };
        let mut shard = self.shard(key);
        shard.open.insert(key, open);
        if self.register.switch.is_off(class) {
            self.cut_within(&mut shard, |open| open == class);
        }
        drop(shard);
        Ok(MeteredSocket { watched: Some((self.clone(), key)) })
    }

    /// From now on nothing of these classes leaves, of all others again: their listeners answer nobody, their
    /// connections are reset and what was queued in the kernel is thrown away, and new ones are not made.
    ///
    /// # Errors
    /// When the kernel does not let a listener be silenced; the rest is done.
    pub(crate) fn cut(&self, classes: &[Class]) -> io::Result<()> {
        let thrown = self.register.switch.throw(classes);
        for shard in &self.register.shards {
            self.cut_within(&mut lock(shard), |class| classes.contains(&class));
        }
        thrown
    }

    /// The switch for listeners and for connections that are not made yet.
    pub(crate) fn switch(&self) -> &KillSwitch {
        &self.register.switch
    }

    fn cut_within(&self, shard: &mut Shard, ends: impl Fn(Class) -> bool) {
        shard.cut(ends, |error| self.not_measured(error));
    }

    /// Connections whose figures the kernel did not give; they are missing in the counts.
    #[must_use]
    pub fn unmeasured(&self) -> u64 {
        self.register.unmeasured.load(Ordering::Relaxed)
    }

    /// Stops all work here, because classifiers count.
    pub(crate) fn retire(&self) {
        self.register.counting.store(false, Ordering::Release);
        for shard in &self.register.shards {
            *lock(shard) = Shard::default();
        }
    }

    fn counting(&self) -> bool {
        self.register.counting.load(Ordering::Acquire)
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        let number = match key {
            Key::Accepted { key, .. } | Key::Outgoing(key) => key,
        };
        lock(&self.register.shards[number as usize % SHARDS])
    }

    fn not_measured(&self, error: &io::Error) {
        if self.register.unmeasured.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(%error, "a connection can't be counted: the kernel gives no figures for it");
        }
    }

    /// Samples what is open and takes what was gained since the last call, with IP and TCP headers, without the link's.
    fn take(&self) -> Vec<(Ends, Flows)> {
        let mut taken = Vec::new();
        for shard in &self.register.shards {
            let mut shard = lock(shard);
            shard.sample(|error| self.not_measured(error));
            taken.extend(shard.gained.drain());
        }
        taken
    }
}

/// An outgoing connection under count; dropping it takes the final figures.
#[derive(Debug)]
#[must_use = "the connection is counted until this is dropped"]
pub struct MeteredSocket {
    watched: Option<(SocketMeter, Key)>,
}

impl Drop for MeteredSocket {
    fn drop(&mut self) {
        let Some((meter, key)) = self.watched.take() else { return };
        let mut shard = meter.shard(key);
        let Some(open) = shard.open.remove(&key) else { return };
        match sys::tcp_figures(open.socket.as_fd()) {
            Ok(figures) => shard.finish(open.class, open.ends, open.last, figures, Role::Outgoing),
            Err(error) => meter.not_measured(&error),
        }
    }
}

#[derive(Debug)]
struct Register {
    counting: AtomicBool,
    next_outgoing: AtomicU64,
    unmeasured: AtomicU64,
    switch: KillSwitch,
    /// Servers' threads meet the reader on one of these for the sampling of at most `OPEN_MAX / SHARDS` sockets.
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    open: HashMap<Key, Open>,
    gained: HashMap<Ends, Flows>,
}

/// Several servers may use the same numbers, so the descriptor is part of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Accepted { class: u8, key: u64, socket: RawFd },
    Outgoing(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Accepted,
    Outgoing,
}

#[derive(Debug)]
struct Open {
    socket: Arc<OwnedFd>,
    class: Class,
    ends: Ends,
    last: Last,
}

/// What decides over which interface a connection runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    local: IpAddr,
    peer: IpAddr,
}

/// The figures up to which a connection is counted; `None` before its handshake is.
type Last = Option<TcpFigures>;

type Flows = [Flow; CLASSES];

impl Shard {
    fn sample(&mut self, mut failed: impl FnMut(&io::Error)) {
        let Self { open, gained } = self;
        open.retain(|key, open| match sys::tcp_figures(open.socket.as_fd()) {
            Ok(figures) => {
                let flow = since(open.last, figures, open.ends.local, role(*key));
                add(gained, open.ends, open.class, flow);
                open.last = Some(figures);
                true
            }
            Err(error) => {
                failed(&error);
                false
            }
        });
    }

    /// Resets the connections of classes that `ends` names, and counts them to their end.
    fn cut(&mut self, ends: impl Fn(Class) -> bool, mut failed: impl FnMut(&io::Error)) {
        let Self { open, gained } = self;
        open.retain(|key, open| {
            if !ends(open.class) {
                return true;
            }
            // The kernel forgets them with the connection.
            let figures = sys::tcp_figures(open.socket.as_fd());
            if let Err(error) = kill_switch::reset(open.socket.as_fd()) {
                tracing::warn!(%error, class = %open.class, "a connection can't be reset; it is shut down");
                let _ = rustix::net::shutdown(&open.socket, rustix::net::Shutdown::Both);
                return true;
            }
            match figures {
                Ok(figures) => {
                    let flow = since(open.last, figures, open.ends.local, role(*key));
                    add(gained, open.ends, open.class, flow.plus(farewell(figures, open.ends.local)));
                }
                Err(error) => failed(&error),
            }
            false
        });
    }

    fn finish(&mut self, class: Class, ends: Ends, last: Last, figures: TcpFigures, role: Role) {
        let flow = since(last, figures, ends.local, role).plus(after_close(figures, ends.local));
        add(&mut self.gained, ends, class, flow);
    }
}

fn role(key: Key) -> Role {
    match key {
        Key::Accepted { .. } => Role::Accepted,
        Key::Outgoing(_) => Role::Outgoing,
    }
}

/// Beyond `GAINED_MAX` different peers between two reads the peer is forgotten: it only tells the loopback apart.
fn add(gained: &mut HashMap<Ends, Flows>, ends: Ends, class: Class, flow: Flow) {
    let ends = match gained.len() < GAINED_MAX || gained.contains_key(&ends) {
        true => ends,
        false => Ends { peer: NOWHERE, ..ends },
    };
    let cell = &mut gained.entry(ends).or_default()[class.index()];
    *cell = cell.plus(flow);
}

/// What the wire saw between two samples of a connection, from the IP header on.
fn since(last: Last, now: TcpFigures, local: IpAddr, role: Role) -> Flow {
    let begun = last.unwrap_or_default();
    let headers = headers(local, now.timestamps);
    let packets_out = u64::from(now.segs_out.wrapping_sub(begun.segs_out));
    let packets_in = u64::from(now.segs_in.wrapping_sub(begun.segs_in));
    let traffic = |bytes: u64, packets: u64| Traffic { bytes: bytes + headers * packets, packets };
    let flow = Flow {
        incoming: traffic(now.bytes_received.saturating_sub(begun.bytes_received), packets_in),
        outgoing: traffic(now.bytes_sent.saturating_sub(begun.bytes_sent), packets_out),
    };
    if last.is_some() { flow } else { flow.plus(handshake(headers, now.timestamps, role)) }
}

/// What the figures lack of the handshake: SYN and SYN-ACK carry more options than a usual segment, and the side that
/// accepts does not count the SYN-ACK among what it sent.
fn handshake(headers: u64, timestamps: bool, role: Role) -> Flow {
    let more_options = if timestamps { 8 } else { 12 };
    let counted = Traffic { bytes: more_options, packets: 0 };
    match role {
        Role::Outgoing => Flow { incoming: counted, outgoing: counted },
        Role::Accepted => {
            Flow { incoming: counted, outgoing: Traffic { bytes: headers + more_options, packets: 1 } }
        }
    }
}

/// What is still to come after the last look: the queue that the kernel goes on sending, and the farewell.
fn after_close(figures: TcpFigures, local: IpAddr) -> Flow {
    let headers = headers(local, figures.timestamps);
    let (unsent, mss) = (u64::from(figures.notsent_bytes), u64::from(figures.snd_mss.max(1)));
    let (more_out, more_in) = match figures.state {
        // FIN here (with the last data if there is any), FIN there, and its acknowledgement.
        TCP_ESTABLISHED => (if unsent == 0 { 2 } else { 1 }, 1),
        TCP_FIN_WAIT1 | TCP_FIN_WAIT2 => (1, 1),
        TCP_CLOSE_WAIT => (if unsent == 0 { 1 } else { 0 }, 1),
        TCP_LAST_ACK | TCP_CLOSING => (0, 1),
        // Over, or reset: nothing follows, and what was queued is gone.
        _ => return Flow::default(),
    };
    let segments = unsent.div_ceil(mss);
    let (out, acknowledged) = (segments + more_out, segments / 2 + more_in);
    Flow {
        incoming: Traffic { bytes: headers * acknowledged, packets: acknowledged },
        outgoing: Traffic { bytes: unsent + headers * out, packets: out },
    }
}

/// What follows when a connection is reset from here.
fn farewell(figures: TcpFigures, local: IpAddr) -> Flow {
    let told = matches!(
        figures.state,
        TCP_ESTABLISHED | TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING
    );
    let packets = u64::from(told);
    let outgoing = Traffic { bytes: headers(local, figures.timestamps) * packets, packets };
    Flow { outgoing, ..Flow::default() }
}

/// IP and TCP headers of a usual segment.
fn headers(local: IpAddr, timestamps: bool) -> u64 {
    let ip = if local.is_ipv4() { 20 } else { 40 };
    ip + 20 + if timestamps { 12 } else { 0 }
}

fn known(class: u8) -> Class {
    Class::from_index(class).unwrap_or(Class::Other)
}

fn local_of(socket: BorrowedFd<'_>) -> IpAddr {
    address(rustix::net::getsockname(socket).ok())
}

fn peer_of(socket: BorrowedFd<'_>) -> IpAddr {
    address(rustix::net::getpeername(socket).ok().flatten())
}

/// A connection that was reset at once has no peer any more.
fn address(answer: Option<rustix::net::SocketAddrAny>) -> IpAddr {
    let parsed = answer.and_then(|any| std::net::SocketAddr::try_from(any).ok());
    parsed.map_or(NOWHERE, |address| address.ip().to_canonical())
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // A panic elsewhere leaves the counts as they were before or after one addition.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Open sockets that are sampled at each reading; each costs one descriptor and about a microsecond a reading.
pub const OPEN_MAX: usize = 65_536;

const SHARDS: usize = 64;

/// Pairs of addresses kept apart in one shard between two readings.
const GAINED_MAX: usize = 1024;

// From the kernel's `net/tcp_states.h`.
const TCP_ESTABLISHED: u8 = 1;
const TCP_FIN_WAIT1: u8 = 4;
const TCP_FIN_WAIT2: u8 = 5;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LAST_ACK: u8 = 9;
const TCP_CLOSING: u8 = 11;

/// Counters from our own sockets; `other` is what the interface counted beyond them.
///
/// Not seen are retransmitted requests and stray packets to our ports; what a peer never let us send after a close is
/// counted as sent. Seen on a bulk transfer, outgoing class bytes are within 0.1 % of the interface's own count.
#[derive(Debug)]
pub struct SocketAccounting {
    meter: SocketMeter,
    interfaces: Interfaces,
    ours: Vec<Flows>,
    other: Vec<Flow>,
    epoch: Epoch,
    source: Source,
}

impl SocketAccounting {
    /// Counts from now on. `why` is the reason why there is nothing better.
    ///
    /// # Errors
    /// When the interfaces of this network namespace can't be listed.
    pub fn new(
        choice: InterfaceChoice,
        meter: SocketMeter,
        why: impl Into<String>,
    ) -> Result<Self, ReadError> {
        let mut interfaces = Interfaces::new(choice);
        interfaces.refresh(None)?;
        interfaces.read_totals()?;
        Ok(Self {
            meter,
            interfaces,
            ours: Vec::new(),
            other: Vec::new(),
            epoch: fresh_epoch(),
            source: Source::Sockets { why: why.into() },
        })
    }

    fn attribute(&mut self, taken: Vec<(Ends, Flows)>) -> Result<(), ReadError> {
        let mut looked = false;
        for (ends, flows) in taken {
            let mut place = self.interfaces.place(ends.local, ends.peer);
            if place == Place::Unknown && !looked {
                self.interfaces.refresh(None)?;
                looked = true;
                place = self.interfaces.place(ends.local, ends.peer);
            }
            let at = match place {
                Place::Chosen(at) => Some(at),
                Place::Elsewhere => None,
                Place::Unknown => self.interfaces.fallback(),
            };
            let Some(at) = at else { continue };
            let link_header = u64::from(self.interfaces.chosen()[at].link_header);
            if self.ours.len() <= at {
                self.ours.resize(at + 1, Flows::default());
            }
            for (sum, flow) in self.ours[at].iter_mut().zip(flows) {
                let Flow { incoming, outgoing } = flow;
                let link = |t: Traffic| Traffic { bytes: t.bytes + link_header * t.packets, ..t };
                *sum = sum.plus(Flow { incoming: link(incoming), outgoing: link(outgoing) });
            }
        }
        Ok(())
    }
}

impl Accounting for SocketAccounting {
    fn read(&mut self) -> Result<Reading, ReadError> {
        self.interfaces.refresh(Some(Instant::now()))?;
        // Ours first: what passes in between then counts for the owner for a moment, and never twice.
        let taken = self.meter.take();
        self.attribute(taken)?;
        self.interfaces.read_totals()?;
        let chosen = self.interfaces.chosen();
        self.ours.resize(chosen.len().max(self.ours.len()), Flows::default());
        self.other.resize(chosen.len().max(self.other.len()), Flow::default());
        let mut interfaces = Vec::with_capacity(chosen.len());
        for (at, chosen) in chosen.iter().enumerate() {
            let mut classes = self.ours[at];
            let ours = classes[1..].iter().fold(Flow::default(), |sum, &class| sum.plus(class));
            let rest = chosen.totals.minus(chosen.totals_at_first).minus(ours);
            // Estimates at the end of a connection can run ahead of the interface; a count never goes back.
            self.other[at] = self.other[at].max(rest);
            classes[Class::Other.index()] = self.other[at];
            interfaces.push(InterfaceReading {
                name: chosen.name.clone(),
                ifindex: chosen.ifindex,
                present: chosen.present,
                epoch: self.epoch,
                totals: chosen.totals,
                classes,
            });
        }
        Ok(Reading { interfaces })
    }

    fn source(&self) -> &Source {
        &self.source
    }
}

/// Two runs of one host never begin in the same nanosecond.
pub(crate) fn fresh_epoch() -> Epoch {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Epoch(since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn loopback() -> (SocketMeter, SocketAccounting) {
        let meter = SocketMeter::new();
        let accounting = SocketAccounting::new("lo".parse().unwrap(), meter.clone(), "test").unwrap();
        (meter, accounting)
    }

    #[test]
    fn a_connection_counts_while_open_and_once_after() {
        let (meter, mut accounting) = loopback();
        let (mut client, mut server) = pair();
        meter.opened(7, 1, server.as_fd(), V4);
        let guard = meter.connected(Class::Sync, client.as_fd()).unwrap();
        server.write_all(&vec![1; 200_000]).unwrap();
        client.read_exact(&mut vec![0; 200_000]).unwrap();

        let open = accounting.read().unwrap().interfaces.remove(0);
        let sent = open.class(Class::Delivery).outgoing;
        assert!(sent.bytes > 200_000 && sent.bytes < 201_500, "{sent:?}");
        assert!(open.class(Class::Sync).incoming.bytes > 200_000);

        meter.closed(7, 1, server.as_fd());
        drop(server);
        drop(guard);
        let closed = accounting.read().unwrap().interfaces.remove(0);
        let last = closed.class(Class::Delivery).outgoing;
        assert!(last.bytes >= sent.bytes && last.bytes < sent.bytes + 300, "{sent:?} then {last:?}");
        let again = accounting.read().unwrap().interfaces.remove(0);
        assert_eq!(again.ours(), closed.ours());
    }

    #[test]
    fn a_socket_that_was_never_reported_open_counts_when_it_closes() {
        let (meter, mut accounting) = loopback();
        let (mut client, mut server) = pair();
        server.write_all(&[1; 5000]).unwrap();
        client.read_exact(&mut [0; 5000]).unwrap();
        meter.closed(1, 2, server.as_fd());
        let reading = accounting.read().unwrap();
        assert!(reading.class(Class::Sync).outgoing.bytes > 5000);
    }

    #[test]
    fn closing_is_not_delayed_by_the_watch() {
        let (meter, _accounting) = loopback();
        let (mut client, server) = pair();
        meter.opened(1, 1, server.as_fd(), V4);
        meter.closed(1, 1, server.as_fd());
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the end of the stream arrives");
    }

    #[test]
    fn a_retired_meter_holds_nothing() {
        let meter = SocketMeter::new();
        let (client, server) = pair();
        meter.opened(1, 1, server.as_fd(), V4);
        meter.retire();
        meter.opened(2, 1, client.as_fd(), V4);
        assert!(meter.register.shards.iter().all(|s| lock(s).open.is_empty()));
        drop(meter.connected(Class::Sync, client.as_fd()).unwrap());
        assert!(meter.take().is_empty());
    }

    #[test]
    fn headers_are_those_of_the_wire_less_the_link() {
        assert_eq!(headers(V4, true) + 14, 66);
        assert_eq!(headers("::1".parse().unwrap(), true) + 14, 86);
        assert_eq!(headers(V4, false), 40);
    }

    #[test]
    fn nothing_follows_a_reset() {
        let reset = TcpFigures { notsent_bytes: 1 << 20, snd_mss: 1448, state: 7, ..TcpFigures::default() };
        assert_eq!(after_close(reset, V4), Flow::default());
        let queued = after_close(TcpFigures { state: TCP_ESTABLISHED, ..reset }, V4);
        assert!(queued.outgoing.bytes > 1 << 20);
    }

    #[test]
    fn an_unknown_class_counts_for_the_owner() {
        assert_eq!(known(9), Class::Other);
    }

    proptest! {
        #[test]
        fn samples_add_up_to_the_last_one(steps in proptest::collection::vec((0u64..100_000, 0u32..80), 1..20)) {
            let mut now = TcpFigures { timestamps: true, segs_out: u32::MAX - 3, ..TcpFigures::default() };
            let mut sum = since(None, TcpFigures { timestamps: true, ..TcpFigures::default() }, V4, Role::Accepted);
            let mut last = now;
            for &(bytes, segs) in &steps {
                now.bytes_sent += bytes;
                now.segs_out = now.segs_out.wrapping_add(segs);
                sum = sum.plus(since(Some(last), now, V4, Role::Accepted));
                last = now;
            }
            let bytes: u64 = steps.iter().map(|s| s.0).sum();
            let segs: u64 = steps.iter().map(|s| u64::from(s.1)).sum();
            prop_assert_eq!(sum.outgoing.bytes, bytes + 52 * segs + 60);
        }
    }
}
