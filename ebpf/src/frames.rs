//! Sends whole Ethernet frames, for kinds of packets that no socket of a host can be made to send: what measures the
//! counters needs them. It never receives one, and the daemon sends none.

use std::io;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::sys;

/// A socket that puts frames on one interface. Needs CAP_NET_RAW.
#[derive(Debug)]
pub struct Frames {
    socket: Socket,
    address: SockAddr,
}

impl Frames {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// Without the right, or without such an interface.
    pub fn open(interface: &str) -> io::Result<Self> {
        // With no protocol it is handed no packets.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        let probe = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        let ifindex = rustix::net::netdevice::name_to_index(&probe, interface)?;
        Ok(Self { socket, address: sys::packet_address(ifindex)? })
    }

    /// Sends one frame, from its link header on.
    ///
    /// # Errors
    /// What the kernel says, such as that the interface is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = self.socket.send_to(frame, &self.address)?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// A link header with these tags, each with identifier 7, from and to addresses that nobody has.
#[must_use]
pub fn link_header(tags: &[u16], ether_type: u16) -> Vec<u8> {
    let mut header = vec![2, 0, 0, 0, 0, 99, 2, 0, 0, 0, 0, 1];
    for tag in tags {
        header.extend(tag.to_be_bytes());
        header.extend([0, 7]);
    }
    header.extend(ether_type.to_be_bytes());
    header
}

/// A customer's tag (802.1Q).
pub const VLAN: u16 = 0x8100;
/// A provider's tag in front of it (802.1ad).
pub const QINQ: u16 = 0x88a8;
