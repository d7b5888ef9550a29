//! The owner's hard limit: a queue in the kernel (HTB) that keeps the donated rate whatever this process does.
//!
//! Classifiers name each packet's class by its priority; what is not ours has no class there and passes first and
//! unlimited. A queue that somebody set up is never touched unless the owner says so, and ours goes when this ends. An
//! interface that appears or comes back later gets its queue then.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};

use freshet_api::BytesPerSec;
use freshet_ebpf::changes::{Changes, Event, PAUSE, RETRY, Waker};
use freshet_ebpf::{ChosenInterfaces, InterfaceChoice, ReadError};
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// What the queues of this host's interfaces keep; dropping it takes them away.
///
/// Its thread alone keeps the right to change them (CAP_NET_ADMIN).
#[derive(Debug)]
pub struct HardLimit {
    orders: Option<Sender<BytesPerSec>>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

/// An interface by its number, for the kernel, and its name, for people.
pub type Interface = (u32, String);

impl HardLimit {
    /// Sets up queues that let `rate` of ours through on the interfaces of this choice, also on those that come later;
    /// `replace` also in place of one that somebody set up.
    ///
    /// # Errors
    /// [`QueueError`]; then no interface was changed, or it was put back.
    pub fn start(choice: InterfaceChoice, rate: BytesPerSec, replace: bool) -> Result<Self, QueueError> {
        let waker = Waker::new().map_err(QueueError::Watch)?;
        let (ready, first) = mpsc::sync_channel(1);
        let (orders, ordered) = mpsc::channel();
        let of_thread = waker.clone();
        let spawned = thread::Builder::new().name("queue".into()).spawn(move || {
            let mut queues = Queues::new(choice, rate, replace);
            let begun = Changes::watch(&of_thread).map_err(QueueError::Watch);
            let begun = begun.and_then(|changes| queues.follow().map(|()| changes));
            match begun {
                Ok(changes) => {
                    // Who asked waits for this, so it is there.
                    let _ = ready.send(Ok(()));
                    queues.keep(&changes, &ordered);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
        let limit = Self { orders: Some(orders), waker, thread: Some(spawned.map_err(QueueError::Watch)?) };
        match first.recv() {
            Ok(begun) => begun.map(|()| limit),
            Err(_) => Err(QueueError::Watch(io::Error::other("the queue's thread ended at once"))),
        }
    }

    /// Puts another rate in force.
    pub fn set(&self, rate: BytesPerSec) {
        if self.orders.as_ref().is_some_and(|orders| orders.send(rate).is_err()) {
            tracing::error!("the queue's thread is gone; the hard limit stays as it is");
        }
        self.waker.wake();
    }
}

impl Drop for HardLimit {
    fn drop(&mut self) {
        self.orders = None;
        self.waker.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the queue's thread panicked; `dataplane cleanup` removes what it left");
        }
    }
}

/// Removes our queues from these interfaces; the names of those that had one.
///
/// # Errors
/// What the kernel refuses.
pub fn cleanup(interfaces: &[Interface]) -> Result<Vec<String>, QueueError> {
    let mut removed = Vec::new();
    for (index, name) in interfaces {
        let failed = |error| QueueError::Kernel { interface: name.clone(), error };
        let mut netlink = Netlink::open().map_err(failed)?;
        if netlink.root(*index).map_err(failed)?.is_some_and(|root| root.is_ours()) {
            netlink.remove(*index).map_err(failed)?;
            removed.push(name.clone());
        }
    }
    Ok(removed)
}

/// Why the hard limit is not in force.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Somebody set up a queue there.
    #[error(
        "expected the kernel's default queue on {interface}, found {kind} with handle {major:x}:; set \
         `budget.hard_limit = \"replace\"` to have it replaced while this runs, or \"off\""
    )]
    Taken {
        /// The interface.
        interface: String,
        /// Which discipline it is.
        kind: String,
        /// Its handle.
        major: u16,
    },
    /// The kernel refused.
    #[error("can't set up a queue on {interface}: {error}")]
    Kernel {
        /// The interface.
        interface: String,
        /// What it said.
        error: io::Error,
    },
    /// The interfaces could not be listed.
    #[error(transparent)]
    Interfaces(#[from] ReadError),
    /// Interfaces can't be watched, or the thread for it can't be started.
    #[error("can't watch the interfaces for their queues: {0}")]
    Watch(io::Error),
}

struct Queues {
    interfaces: ChosenInterfaces,
    rate: BytesPerSec,
    replace: bool,
    /// Those that have our queue.
    set_up: Vec<Interface>,
    /// Those that keep somebody's; each is told of once.
    left_alone: Vec<Interface>,
}

impl Queues {
    fn new(choice: InterfaceChoice, rate: BytesPerSec, replace: bool) -> Self {
        let interfaces = ChosenInterfaces::new(choice);
        Self { interfaces, rate, replace, set_up: Vec::new(), left_alone: Vec::new() }
    }

    /// Until nobody gives orders any more.
    fn keep(&mut self, changes: &Changes, ordered: &Receiver<BytesPerSec>) {
        let mut retry = None;
        loop {
            match changes.wait(retry) {
                Ok(Event::Woken) => loop {
                    match ordered.try_recv() {
                        Ok(rate) => self.change(rate),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return,
                    }
                },
                Ok(Event::Changed) => {
                    retry = match self.follow() {
                        Ok(()) => None,
                        Err(error) => {
                            tracing::error!(%error, "the donated rate is not kept by a queue there");
                            (!matches!(error, QueueError::Taken { .. })).then_some(RETRY)
                        }
                    };
                    thread::sleep(PAUSE);
                }
                Err(error) => {
                    tracing::error!(%error, "interfaces are not watched any more; one that comes back has no queue");
                    return;
                }
            }
        }
    }

    /// Gives every interface of the choice its queue. Returns the first thing that failed; the rest is done.
    fn follow(&mut self) -> Result<(), QueueError> {
        let present = self.interfaces.present()?;
        self.set_up.retain(|had| {
            let stays = present.contains(had);
            if !stays {
                take_away(had);
            }
            stays
        });
        self.left_alone.retain(|had| present.contains(had));
        let mut failed = None;
        for at in present {
            if !self.set_up.contains(&at)
                && !self.left_alone.contains(&at)
                && let Err(error) = self.set_up(at)
            {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn set_up(&mut self, at: Interface) -> Result<(), QueueError> {
        let (index, name) = at;
        let failed = |error| QueueError::Kernel { interface: name.clone(), error };
        let mut netlink = Netlink::open().map_err(failed)?;
        match netlink.root(index).map_err(failed)? {
            // What an earlier run left.
            Some(root) if root.is_ours() => netlink.remove(index).map_err(failed)?,
            Some(root) if root.is_somebodys() => {
                if !self.replace {
                    self.left_alone.push((index, name.clone()));
                    return Err(QueueError::Taken { interface: name, kind: root.kind, major: root.major });
                }
                tracing::warn!(
                    interface = name,
                    kind = root.kind,
                    "a queue that somebody set up is replaced"
                );
            }
            _ => {}
        }
        if let Err(error) = netlink.make(index, self.rate) {
            // What was made of it is no limit.
            let _ = netlink.remove(index);
            return Err(failed(error));
        }
        tracing::info!(interface = name, rate = %self.rate, "the kernel's queue keeps the donated rate");
        self.set_up.push((index, name));
        Ok(())
    }

    fn change(&mut self, rate: BytesPerSec) {
        self.rate = rate;
        for (index, interface) in &self.set_up {
            let changed =
                Netlink::open().and_then(|mut netlink| netlink.classes(*index, rate, NLM_F_REPLACE));
            match changed {
                Ok(()) => tracing::info!(interface, %rate, "the kernel's queue keeps another rate"),
                Err(error) => tracing::error!(interface, %error, "the kernel's queue keeps the rate it had"),
            }
        }
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        self.set_up.iter().for_each(take_away);
    }
}

/// Puts the kernel's default queue back.
fn take_away((index, interface): &Interface) {
    match Netlink::open().and_then(|mut netlink| netlink.remove(*index)) {
        Ok(()) => tracing::info!(interface, "the kernel's default queue is back"),
        // With its interface, the queue is gone too.
        Err(error) => tracing::debug!(interface, %error, "no queue is left to be removed"),
    }
}

/// The queue at an interface's root.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Root {
    kind: String,
    major: u16,
}

impl Root {
    fn is_ours(&self) -> bool {
        self.kind == KIND && self.major == MAJOR
    }

    /// The kernel's own default has no handle.
    fn is_somebodys(&self) -> bool {
        self.major != 0
    }
}

/// One exchange after the other with the kernel's traffic control.
struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// What is at the root of an interface.
    fn root(&mut self, index: u32) -> io::Result<Option<Root>> {
        let message = message(index, TcHandle::UNSPEC, TcHandle::UNSPEC, Vec::new());
        let found = self.exchange(RouteNetlinkMessage::GetQueueDiscipline(message), NLM_F_DUMP)?;
        Ok(found.into_iter().find_map(|found| {
            let here = found.header.index == index as i32 && found.header.parent == TcHandle::ROOT;
            let kind = found.attributes.into_iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind),
                _ => None,
            });
            here.then(|| Root { kind: kind.unwrap_or_default(), major: found.header.handle.major })
        }))
    }

    fn remove(&mut self, index: u32) -> io::Result<()> {
        let message = message(index, TcHandle::ROOT, class(0), Vec::new());
        self.exchange(RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK).map(drop)
    }

    /// HTB at the root, a class for all that is ours, and in it one for deliveries and one for sync.
    fn make(&mut self, index: u32, rate: BytesPerSec) -> io::Result<()> {
        // `tc_htb_glob`: version 3, quantum, no default class (so the rest passes first), debug, direct packets.
        let global = words(&[3, RATE_TO_QUANTUM, 0, 0, 0]);
        let options = vec![
            TcAttribute::Kind(KIND.into()),
            TcAttribute::Options(vec![TcOption::Other(DefaultNla::new(TCA_HTB_INIT, global))]),
        ];
        let root = message(index, TcHandle::ROOT, class(0), options);
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        self.exchange(RouteNetlinkMessage::NewQueueDiscipline(root), flags)?;
        self.classes(index, rate, NLM_F_CREATE | NLM_F_EXCL)?;
        for leaf in LEAVES {
            let limit = (rate.0 / LEAF_PER_SEC).clamp(LEAF_BYTES_MIN, LEAF_BYTES_MAX) as u32;
            let fifo = vec![
                TcAttribute::Kind("bfifo".into()),
                TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, words(&[limit]))),
            ];
            let fifo = message(index, class(leaf), TcHandle::UNSPEC, fifo);
            self.exchange(RouteNetlinkMessage::NewQueueDiscipline(fifo), flags)?;
        }
        Ok(())
    }

    fn classes(&mut self, index: u32, rate: BytesPerSec, flags: u16) -> io::Result<()> {
        let half = BytesPerSec((rate.0 / 2).max(1));
        let all = [(class(0), class(OURS), rate)].into_iter();
        // Each has half of it for certain, and borrows what the other leaves.
        let leaves = LEAVES.into_iter().map(|leaf| (class(OURS), class(leaf), half));
        for (parent, handle, assured) in all.chain(leaves) {
            let options = vec![
                TcAttribute::Kind(KIND.into()),
                TcAttribute::Options(vec![
                    TcOption::Other(DefaultNla::new(TCA_HTB_PARMS, parameters(assured, rate))),
                    TcOption::Other(DefaultNla::new(TCA_HTB_RATE64, assured.0.to_ne_bytes().to_vec())),
                    TcOption::Other(DefaultNla::new(TCA_HTB_CEIL64, rate.0.to_ne_bytes().to_vec())),
                ]),
            ];
            let message = message(index, parent, handle, options);
            self.exchange(RouteNetlinkMessage::NewTrafficClass(message), NLM_F_ACK | flags)?;
        }
        Ok(())
    }

    /// Sends one request and reads what comes until its end.
    fn exchange(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<TcMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(request));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                let length = (answer.header.length as usize).next_multiple_of(NETLINK_ALIGN).min(rest.len());
                rest = &rest[length.max(1)..];
                match answer.payload {
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(found),
                        Some(_) => return Err(error.to_io()),
                    },
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(message)) => {
                        found.push(message);
                    }
                    _ => {}
                }
            }
        }
    }
}

fn message(index: u32, parent: TcHandle, handle: TcHandle, attributes: Vec<TcAttribute>) -> TcMessage {
    let mut message = TcMessage::with_index(index as i32);
    (message.header.parent, message.header.handle) = (parent, handle);
    message.attributes = attributes;
    message
}

fn class(minor: u16) -> TcHandle {
    TcHandle { major: MAJOR, minor }
}

/// `tc_htb_opt` of `linux/pkt_sched.h`: the assured rate, the ceiling, how much may burst at each, the quantum.
fn parameters(assured: BytesPerSec, ceiling: BytesPerSec) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(44);
    for rate in [assured, ceiling] {
        // Cell size, Ethernet (so that no table of times is needed), overhead, alignment, least packet.
        bytes.extend([0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
        bytes.extend(u32::try_from(rate.0).unwrap_or(u32::MAX).to_ne_bytes());
    }
    // The time that a burst takes, in the scheduler's ticks of 64 ns.
    let ticks = |rate: BytesPerSec| {
        let burst = (rate.0 / BURST_PER_SEC).max(BURST_BYTES_MIN);
        u32::try_from(burst.saturating_mul(1_000_000_000 / 64) / rate.0.max(1)).unwrap_or(u32::MAX)
    };
    bytes.extend(words(&[ticks(assured), ticks(ceiling), QUANTUM_BYTES, 0, 0]));
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The handle's major number, by which the classifiers and a later run know our queue.
pub const MAJOR: u16 = 0x4652;
const KIND: &str = "htb";
/// The class of all that is ours.
const OURS: u16 = 1;
/// The classes that the classifiers name: 16 and the number of the class of traffic.
const LEAVES: [u16; 2] = [16 + 1, 16 + 2];
const RATE_TO_QUANTUM: u32 = 10;
/// A leaf holds 50 ms.
const LEAF_PER_SEC: u64 = 20;
const LEAF_BYTES_MIN: u64 = 128 << 10;
const LEAF_BYTES_MAX: u64 = 8 << 20;
/// 4 ms of the rate, and no less than what the kernel hands down at once.
const BURST_PER_SEC: u64 = 250;
const BURST_BYTES_MIN: u64 = 64 << 10;
const QUANTUM_BYTES: u32 = 60_000;
const NETLINK_ALIGN: usize = 4;
/// From `linux/pkt_sched.h` and `linux/rtnetlink.h`.
const TCA_OPTIONS: u16 = 2;
const TCA_HTB_PARMS: u16 = 1;
const TCA_HTB_INIT: u16 = 2;
const TCA_HTB_RATE64: u16 = 6;
const TCA_HTB_CEIL64: u16 = 7;
const LINKLAYER_ETHERNET: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_the_kernels_layout() {
        let bytes = parameters(BytesPerSec(1_000_000), BytesPerSec(2_000_000));
        assert_eq!(bytes.len(), 44);
        assert_eq!(bytes[1], LINKLAYER_ETHERNET);
        assert_eq!(u32::from_ne_bytes(bytes[8..12].try_into().unwrap()), 1_000_000);
        assert_eq!(u32::from_ne_bytes(bytes[20..24].try_into().unwrap()), 2_000_000);
        // 64 KiB at 1 MB/s take 65.5 ms.
        assert_eq!(u32::from_ne_bytes(bytes[24..28].try_into().unwrap()), 1_024_000);
    }

    #[test]
    fn only_a_queue_with_a_handle_is_somebodys() {
        let root = |kind: &str, major| Root { kind: kind.into(), major };
        assert!(root("htb", MAJOR).is_ours());
        assert!(!root("fq", MAJOR).is_ours() && root("fq", MAJOR).is_somebodys());
        assert!(root("htb", 1).is_somebodys() && !root("htb", 1).is_ours());
        assert!(!root("fq_codel", 0).is_somebodys());
    }

    #[test]
    fn the_loopbacks_queue_is_the_kernels_own() {
        let mut netlink = Netlink::open().unwrap();
        assert!(netlink.root(1).unwrap().is_none_or(|root| !root.is_ours()));
    }
}
