//! Sends whole Ethernet frames, for kinds of packets that no socket here can be made to send.
//! The only unsafe of the tests: an address of the packet family has no safe constructor.
#![allow(unsafe_code)]

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{DEVICE, End, Lab};

/// A socket on the device of one end.
pub(crate) struct Frames {
    socket: Socket,
    address: SockAddr,
}

impl Frames {
    /// Opens it.
    pub(crate) fn open(lab: &Lab, end: End) -> Self {
        lab.inside(end, || {
            let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all)).unwrap();
            let probe = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            let ifindex = rustix::net::netdevice::name_to_index(&probe, DEVICE).unwrap();
            // SAFETY: the storage is larger than a `sockaddr_ll` and aligned for any address; the length says how much
            // of it was written.
            let (_, address) = unsafe {
                SockAddr::try_init(|storage, length| {
                    let link = &mut *storage.cast::<libc::sockaddr_ll>();
                    link.sll_family = libc::AF_PACKET as u16;
                    link.sll_ifindex = ifindex as i32;
                    *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                    Ok(())
                })
                .unwrap()
            };
            Self { socket, address }
        })
    }

    /// Sends one frame.
    pub(crate) fn send(&self, frame: &[u8]) {
        assert_eq!(self.socket.send_to(frame, &self.address).unwrap(), frame.len());
    }
}

/// A link header with these tags; each has identifier 7.
pub(crate) fn link(tags: &[u16], ether_type: u16) -> Vec<u8> {
    let mut header = vec![2, 0, 0, 0, 0, 99, 2, 0, 0, 0, 0, 1];
    for tag in tags {
        header.extend(tag.to_be_bytes());
        header.extend([0, 7]);
    }
    header.extend(ether_type.to_be_bytes());
    header
}
