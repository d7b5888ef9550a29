//! The only place of this crate that meets the kernel without a safe wrapper: `TCP_INFO`, `SO_MAX_PACING_RATE`, `getifaddrs`,
//! `adjtimex` and addresses of the packet family.
//! It never keeps a pointer or a descriptor beyond one call.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use socket2::SockAddr;

/// The figures of one TCP socket that tell what it put on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpFigures {
    /// Payload bytes sent, retransmissions included. Linux 4.19 or later.
    pub(crate) bytes_sent: u64,
    /// Payload bytes received in order.
    pub(crate) bytes_received: u64,
    /// Segments sent, pure acknowledgements and retransmissions included; wraps.
    pub(crate) segs_out: u32,
    /// Segments received; wraps.
    pub(crate) segs_in: u32,
    /// Payload bytes queued that were never sent yet.
    pub(crate) notsent_bytes: u32,
    /// Payload of a full segment.
    pub(crate) snd_mss: u32,
    /// Whether every segment carries the timestamp option.
    pub(crate) timestamps: bool,
    /// `TCP_ESTABLISHED` and so on.
    pub(crate) state: u8,
}

impl TcpFigures {
    /// Whether the socket was disconnected, and its figures began at zero again: no connection stands without a segment
    /// received.
    pub(crate) fn began_anew(&self) -> bool {
        self.state == TCP_CLOSE && self.segs_in == 0
    }
}

/// From `net/tcp_states.h`.
const TCP_CLOSE: u8 = 7;

/// Reads [`TcpFigures`]; fails with `ENOPROTOOPT` or the like on anything but TCP, and on Linux before 4.19.
pub(crate) fn tcp_figures(socket: BorrowedFd<'_>) -> io::Result<TcpFigures> {
    // SAFETY: `tcp_info` is plain numbers, for which all zeroes is a value.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call, and the kernel writes at most `len` bytes to `info`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            ptr::from_mut(&mut info).cast(),
            &mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    if (len as usize) < mem::offset_of!(libc::tcp_info, tcpi_bytes_retrans) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel's TCP_INFO has no bytes_sent; Linux 4.19 or later has it",
        ));
    }
    Ok(TcpFigures {
        bytes_sent: info.tcpi_bytes_sent,
        bytes_received: info.tcpi_bytes_received,
        segs_out: info.tcpi_segs_out,
        segs_in: info.tcpi_segs_in,
        notsent_bytes: info.tcpi_notsent_bytes,
        snd_mss: info.tcpi_snd_mss,
        timestamps: info.tcpi_options & TCPI_OPT_TIMESTAMPS != 0,
        state: info.tcpi_state,
    })
}

/// From `linux/tcp.h`.
const TCPI_OPT_TIMESTAMPS: u8 = 1;

/// Sets `SO_MAX_PACING_RATE`, bytes per second; all ones for no ceiling. 64 bits wide since Linux 4.20.
pub(crate) fn set_max_pacing_rate(socket: BorrowedFd<'_>, rate: u64) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call, and the kernel reads `size_of::<u64>()` bytes from `rate`.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            ptr::from_ref(&rate).cast(),
            size_of::<u64>() as libc::socklen_t,
        )
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address of an interface for whole frames.
pub(crate) fn packet_address(ifindex: u32) -> io::Result<SockAddr> {
    // SAFETY: the storage is larger than a `sockaddr_ll` and aligned for any address; the length says how much of it was
    // written.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = &mut *storage.cast::<libc::sockaddr_ll>();
            link.sll_family = libc::AF_PACKET as u16;
            link.sll_ifindex = ifindex as i32;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    Ok(address)
}

/// Has the kernel throw away what comes to a socket with fewer hops left than that, of both families (`IP_MINTTL`,
/// `IPV6_MINHOPCOUNT`); 0 takes everything.
pub(crate) fn set_hops_min(socket: BorrowedFd<'_>, hops: u8) -> io::Result<()> {
    let hops = libc::c_int::from(hops);
    let set = |level, option| {
        // SAFETY: the descriptor is borrowed for the call, and the kernel reads a `c_int` from `hops`.
        let rc = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                ptr::from_ref(&hops).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // A socket of IPv6 may take clients of IPv4 too; one of IPv4 refuses the other's option.
    let of_v6 = set(libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT);
    set(libc::IPPROTO_IP, libc::IP_MINTTL).and_then(|()| match of_v6 {
        Err(error) if error.raw_os_error() != Some(libc::ENOPROTOOPT) => Err(error),
        _ => Ok(()),
    })
}

/// From `linux/in6.h`.
const IPV6_MINHOPCOUNT: libc::c_int = 73;

/// Whether the kernel says that its clock follows another one (`STA_UNSYNC` is not set).
pub(crate) fn clock_is_synchronised() -> bool {
    // SAFETY: `timex` is plain numbers, for which all zeroes is a value; with no mode set the kernel only writes to it.
    let mut time: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a value that lives for the call.
    let state = unsafe { libc::adjtimex(&mut time) };
    state >= 0 && state != libc::TIME_ERROR && time.status & libc::STA_UNSYNC == 0
}

/// An interface of the calling thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Name.
    pub(crate) name: String,
    /// The kernel's number.
    pub(crate) ifindex: u32,
    /// `ARPHRD_ETHER` and so on.
    pub(crate) hardware: u16,
    /// Whether it is the loopback.
    pub(crate) loopback: bool,
    /// Addresses of both families.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Lists the interfaces of the calling thread's network namespace.
pub(crate) fn links() -> io::Result<Vec<Link>> {
    let mut head = ptr::null_mut();
    // SAFETY: on success `head` is a list that is ours until `freeifaddrs`.
    if unsafe { libc::getifaddrs(&mut head) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let list = IfAddrs { head };
    let mut links: Vec<Link> = Vec::new();
    let mut addresses: Vec<(String, IpAddr)> = Vec::new();
    let mut next = list.head;
    while !next.is_null() {
        // SAFETY: `next` is an entry of the list, which lives until `list` is dropped.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        // SAFETY: the name is a string with its NUL, owned by the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: every address begins with its family; the kernel hands them out aligned for their type.
        match i32::from(unsafe { (*entry.ifa_addr).sa_family }) {
            libc::AF_PACKET => {
                // SAFETY: the family says that it is a `sockaddr_ll`.
                let address = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_ll>() };
                links.push(Link {
                    name,
                    ifindex: address.sll_ifindex as u32,
                    hardware: address.sll_hatype,
                    loopback: entry.ifa_flags & libc::IFF_LOOPBACK as u32 != 0,
                    addresses: Vec::new(),
                });
            }
            libc::AF_INET => {
                // SAFETY: the family says that it is a `sockaddr_in`.
                let address = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_in>() };
                addresses.push((name, Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr)).into()));
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that it is a `sockaddr_in6`.
                let address = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_in6>() };
                addresses.push((name, Ipv6Addr::from(address.sin6_addr.s6_addr).into()));
            }
            _ => {}
        }
    }
    for (name, address) in addresses {
        // An alias (`eth0:1`) is a label of its interface.
        let name = name.split(':').next().unwrap_or_default();
        if let Some(link) = links.iter_mut().find(|l| l.name == name) {
            link.addresses.push(address);
        }
    }
    links.sort_by_key(|l| l.ifindex);
    Ok(links)
}

struct IfAddrs {
    head: *mut libc::ifaddrs,
}

impl Drop for IfAddrs {
    fn drop(&mut self) {
        // SAFETY: `head` came from `getifaddrs` and is freed once; nothing borrows from it any more.
        unsafe { libc::freeifaddrs(self.head) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn figures_follow_the_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[7; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(tcp_figures(client.as_fd()).unwrap().bytes_sent, 1000);
        assert_eq!(tcp_figures(server.as_fd()).unwrap().bytes_received, 1000);
        assert_eq!(tcp_figures(server.as_fd()).unwrap().state, 1);
    }

    #[test]
    fn a_ceiling_can_be_set_and_lifted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_max_pacing_rate(listener.as_fd(), 5_000_000_000).unwrap();
        set_max_pacing_rate(listener.as_fd(), u64::MAX).unwrap();
    }

    #[test]
    fn a_datagram_socket_has_no_figures() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(tcp_figures(socket.as_fd()).is_err());
    }

    #[test]
    fn the_loopback_is_listed_with_its_address() {
        let links = links().unwrap();
        let lo = links.iter().find(|l| l.loopback).expect("every namespace has a loopback");
        assert!(lo.addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{lo:?}");
    }
}
