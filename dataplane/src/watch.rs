//! What is told about sockets and responses goes from here to the counters.
//!
//! Called on the rings' own threads, and by the client connections of sync and agent; never waits.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use freshet_ebpf::{Class, ClassError, Classes, Outgoing, SocketMeter};
use freshet_engine::{Observer, ResponseRecord};
use http::StatusCode;
use socket2::SockRef;

use crate::budget::Admission;
use crate::budget::pacer::full_segments;
use crate::config::Config;
use crate::counters::Counters;
use crate::link::SocketObserver;

/// Watches the delivery port.
pub struct DeliveryWatch {
    meter: SocketMeter,
    counters: Arc<Counters>,
    admission: Arc<Admission>,
    bounds: Arc<ConnectionBounds>,
}

impl DeliveryWatch {
    /// Tells these, and bounds every new connection.
    pub fn new(
        meter: SocketMeter,
        counters: Arc<Counters>,
        admission: Arc<Admission>,
        bounds: Arc<ConnectionBounds>,
    ) -> Self {
        Self { meter, counters, admission, bounds }
    }
}

/// What the kernel keeps for each connection; in force for those accepted from now on.
#[derive(Debug)]
pub struct ConnectionBounds {
    /// Payload bytes per second; all ones for no ceiling.
    ceiling: AtomicU64,
    /// Whether no more than a chunk may wait in the kernel unsent.
    unsent_bounded: AtomicBool,
    told: AtomicBool,
}

impl ConnectionBounds {
    /// As the configuration says.
    pub fn new(config: &Config) -> Self {
        let bounds = Self {
            ceiling: AtomicU64::new(u64::MAX),
            unsent_bounded: AtomicBool::new(false),
            told: AtomicBool::new(false),
        };
        bounds.set(config);
        bounds
    }

    /// As the changed configuration says.
    pub fn set(&self, config: &Config) {
        let ceiling = config.budget.connection_rate.map_or(u64::MAX, |rate| full_segments(rate).0);
        self.ceiling.store(ceiling, Ordering::Relaxed);
        // What was granted and waits in the kernel is not counted on the wire yet.
        self.unsent_bounded.store(config.budget.month.is_some(), Ordering::Relaxed);
    }

    fn apply(&self, socket: BorrowedFd<'_>) {
        let ceiling = self.ceiling.load(Ordering::Relaxed);
        let mut done = Ok(());
        if ceiling != u64::MAX {
            done = freshet_ebpf::host::limit_pace(socket, Some(ceiling));
        }
        if self.unsent_bounded.load(Ordering::Relaxed) {
            done = done.and(SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX));
        }
        if let Err(error) = done
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "the kernel does not bound connections one by one; only the sum is kept");
        }
    }
}

impl Observer for DeliveryWatch {
    fn opened(&self, id: u64, class: u8, socket: BorrowedFd<'_>, local: SocketAddr, peer: SocketAddr) {
        self.counters.opened();
        self.admission.opened(id, peer);
        self.bounds.apply(socket);
        self.meter.opened(id, class, socket, local.ip());
    }

    fn closed(&self, id: u64, class: u8, socket: BorrowedFd<'_>) {
        self.counters.closed();
        self.admission.closed(id);
        self.meter.closed(id, class, socket);
    }

    fn lasts(&self, _class: u8, status: StatusCode, body_bytes: u64) {
        self.counters.lasts(status, body_bytes);
    }

    fn progressed(&self, _class: u8, status: StatusCode, body_bytes: u64) {
        self.counters.progressed(status, body_bytes);
    }

    fn responded(&self, record: &ResponseRecord<'_>) {
        self.counters.responded(record);
        self.admission.ended(record.peer);
    }
}

/// Watches the connections that this host opens.
#[derive(Debug)]
pub struct ClientWatch {
    classes: Classes,
    /// As many as there are connections: the dialers bound them.
    open: Mutex<HashMap<u64, Outgoing>>,
}

impl ClientWatch {
    /// Registers them here.
    pub fn new(classes: Classes) -> Self {
        Self { classes, open: Mutex::default() }
    }
}

impl SocketObserver for ClientWatch {
    fn connecting(&self, key: u64, class: u8, fd: BorrowedFd<'_>, peer: SocketAddr) -> io::Result<()> {
        let class = Class::from_index(class).unwrap_or(Class::Other);
        match self.classes.outgoing(fd, class, peer) {
            Ok(outgoing) => {
                self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(key, outgoing);
            }
            Err(off @ ClassError::Off { .. }) => return Err(io::Error::other(off)),
            Err(error) => tracing::warn!(%error, %class, "a connection is counted as the owner's own"),
        }
        Ok(())
    }

    fn opened(&self, key: u64, class: u8, fd: BorrowedFd<'_>, _local: SocketAddr, _peer: SocketAddr) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outgoing) = open.get_mut(&key)
            && let Err(error) = outgoing.connected(fd)
        {
            tracing::warn!(%error, class, "a connection is counted as the owner's own");
        }
    }

    fn closed(&self, key: u64, _class: u8, _fd: BorrowedFd<'_>) {
        let outgoing = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        // Not under the lock: it takes the final figures, and asks the kernel for them.
        drop(outgoing);
    }
}

/// One chunk of the serving path.
const UNSENT_BYTES_MAX: u32 = 64 << 10;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    use super::*;

    fn watch() -> ClientWatch {
        let options = freshet_ebpf::Options { classifiers: false, ..Default::default() };
        ClientWatch::new(freshet_ebpf::open(options).unwrap().classes)
    }

    #[test]
    fn a_client_connection_is_held_from_opening_to_closing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        let watch = watch();
        watch.connecting(1, 2, stream.as_fd(), address).unwrap();
        watch.opened(1, 2, stream.as_fd(), stream.local_addr().unwrap(), address);
        assert_eq!(watch.open.lock().unwrap().len(), 1);
        watch.closed(1, 2, stream.as_fd());
        watch.closed(1, 2, stream.as_fd());
        assert!(watch.open.lock().unwrap().is_empty());
    }

    #[test]
    fn a_connection_that_does_not_come_about_is_forgotten() {
        let watch = watch();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        watch.connecting(1, 2, socket.as_fd(), "127.0.0.1:9".parse().unwrap()).unwrap();
        assert_eq!(watch.open.lock().unwrap().len(), 1);
        watch.closed(1, 2, socket.as_fd());
        assert!(watch.open.lock().unwrap().is_empty());
    }

    #[test]
    fn no_connection_is_made_of_what_must_not_leave() {
        let watch = watch();
        watch.classes.drop_outgoing(&[Class::Sync]).unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let peer = "127.0.0.1:9".parse().unwrap();
        let refused = watch.connecting(1, 2, socket.as_fd(), peer).unwrap_err();
        assert!(refused.to_string().contains("kill-switch"), "{refused}");
        assert!(watch.open.lock().unwrap().is_empty());
        watch.connecting(2, 3, socket.as_fd(), peer).unwrap();
    }

    #[test]
    fn every_new_connection_is_bounded_as_the_owner_says() {
        let text = "[budget]\nconnection_rate = '8 Mbit/s'\n[budget.month]\nvolume = '1 TB'";
        let bounds = ConnectionBounds::new(&toml::from_str(text).unwrap());
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        bounds.apply(socket.as_fd());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_BYTES_MAX);
        assert!(!bounds.told.load(Ordering::Relaxed), "the kernel took both");
    }
}
