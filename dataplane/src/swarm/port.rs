//! Opens the sync port: a server of its own beside the delivery port, with narrower bounds and the owner's pace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use freshet_api::{Class, SyncKey, TicketKey};
use freshet_engine::{Limits, Listener, Observer, Pacer, Running, Server, Site, StartError};

use super::shelf::Shelves;
use super::site::{PeerSite, PeerWatch};
use crate::mirror::Mirror;

/// The open port.
pub struct PeerPort {
    running: Running,
    address: SocketAddr,
    /// The port has its class for as long as this lives.
    _claim: freshet_ebpf::PortClaim,
}

/// Why it is not open.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The address can't be bound, or the kernel lacks something.
    #[error("cannot open the sync port {address}: {source}; peers fetch nothing here")]
    Start {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: StartError,
    },
    /// The store can't be served.
    #[error("cannot open the store for peers: {source}")]
    Store {
        /// Why.
        source: std::io::Error,
    },
    /// It can't be counted, and what is not counted is not sent.
    #[error("cannot count the sync port: {why}")]
    Uncounted {
        /// Why.
        why: String,
    },
}

impl PeerPort {
    /// Serves peers on `address`, or on a socket that was handed over, until it is stopped.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn open(
        address: SocketAddr,
        inherited: Option<std::net::TcpListener>,
        ticket_key: &TicketKey,
        mirror: Arc<Mirror>,
        shelves: Shelves,
        pacer: Arc<dyn Pacer>,
        classes: &freshet_ebpf::Classes,
    ) -> Result<Self, PortError> {
        let site = PeerSite::open(SyncKey::of_volunteer(ticket_key), mirror, shelves)
            .map_err(|source| PortError::Store { source })?;
        let listener = Listener {
            address,
            inherited,
            class: Class::Sync.number(),
            // Without the right to mark, the port tells the class.
            mark: classes.mark_of(freshet_ebpf::Class::Sync),
            site: Arc::new(site) as Arc<dyn Site>,
        };
        let running = Server {
            listeners: vec![listener],
            rings: RINGS,
            limits: limits(),
            pacer: Some(pacer),
            observer: Some(Arc::new(PeerWatch::new(classes.meter().clone())) as Arc<dyn Observer>),
        }
        .start()
        .map_err(|source| PortError::Start { address, source })?;
        if let Err(error) = classes.listening(freshet_ebpf::Class::Sync, running.listening()) {
            tracing::warn!(%error, "peers are answered also when the month is used up");
        }
        let address = running.addresses().first().copied().unwrap_or(address);
        let claim = classes
            .port(address.port(), freshet_ebpf::Class::Sync)
            .map_err(|error| PortError::Uncounted { why: error.to_string() })?;
        Ok(Self { running, address, _claim: claim })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes it; pieces on their way end within `grace`. Blocks.
    pub fn stop(self, grace: Duration) {
        self.running.stop(grace);
    }
}

/// A peer has one piece under way and asks what is here beside it: a few connections are plenty.
fn limits() -> Limits {
    Limits {
        connections_max: CONNECTIONS_MAX,
        connections_per_address_max: Some(CONNECTIONS_PER_ADDRESS_MAX),
        head_bytes_max: 4 << 10,
        ranges_max: 1,
        memory_file_bytes_max: 0,
        // No contents, but what is known of open files.
        memory_cache_bytes_max: 2 << 20,
        descriptors_max: 1_024,
        ..Limits::default()
    }
}

/// One thread fills any link that a mirror has.
const RINGS: usize = 1;
/// Connections of all peers at most.
const CONNECTIONS_MAX: usize = 1_024;
/// Connections from one address at most: several volunteers may stand behind one.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 256;
