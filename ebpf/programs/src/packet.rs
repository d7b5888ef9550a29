//! Finds the ports of a packet behind VLAN tags, IPv4 options and IPv6 extension headers; it never follows a tunnel.

use aya_ebpf::programs::TcContext;

/// What stands behind the IP header.
pub struct Transport {
    /// TCP, or else UDP.
    pub tcp: bool,
    /// Port of the sender.
    pub source: u16,
    /// Port of the receiver.
    pub destination: u16,
    offset: usize,
}

impl Transport {
    /// Bytes from the link header to the payload, which every segment of a merged packet had.
    #[inline(always)]
    pub fn headers(&self, ctx: &TcContext) -> u64 {
        let own = if self.tcp {
            // A header that can't be read is as long as one without options.
            let words = ctx.load::<u8>(self.offset + TCP_DATA_OFFSET).unwrap_or(0x50) >> 4;
            words as u64 * 4
        } else {
            UDP_HEADER
        };
        self.offset as u64 + own
    }

    #[inline(always)]
    fn new(next: u8, offset: usize, ports: [u8; 4]) -> Self {
        Self {
            tcp: next == TCP,
            source: u16::from_be_bytes([ports[0], ports[1]]),
            destination: u16::from_be_bytes([ports[2], ports[3]]),
            offset,
        }
    }
}

/// The transport header of a packet, `None` when it has none: other protocols, later fragments, what is cut short.
#[inline(always)]
pub fn transport(ctx: &TcContext, link_header: usize) -> Option<Transport> {
    // SAFETY: the kernel hands a valid context to every run of the program.
    let mut ether_type = unsafe { (*ctx.skb.skb).protocol } as u16;
    let mut network = link_header;
    if link_header == ETHERNET && is_tag(ether_type) {
        ether_type = ctx.load(network + 2).ok()?;
        network += TAG;
        if is_tag(ether_type) {
            ether_type = ctx.load(network + 2).ok()?;
            network += TAG;
        }
    }
    match ether_type {
        IPV4 => behind_ipv4(ctx, network),
        IPV6 => behind_ipv6(ctx, network),
        _ => None,
    }
}

#[inline(always)]
fn behind_ipv4(ctx: &TcContext, network: usize) -> Option<Transport> {
    // One load also fetches the ports of a header without options, which is nearly every one.
    let head: [u8; 24] = ctx.load(network).ok()?;
    let (next, length) = (head[9], (head[0] & 15) as usize * 4);
    let later_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x1fff != 0;
    if !has_ports(next) || later_fragment {
        return None;
    }
    let ports = if length == 20 {
        [head[20], head[21], head[22], head[23]]
    } else {
        ctx.load(network + length).ok()?
    };
    Some(Transport::new(next, network + length, ports))
}

#[inline(always)]
fn behind_ipv6(ctx: &TcContext, network: usize) -> Option<Transport> {
    let head: [u8; 44] = ctx.load(network).ok()?;
    let mut next = head[6];
    let mut offset = network + 40;
    if has_ports(next) {
        return Some(Transport::new(next, offset, [head[40], head[41], head[42], head[43]]));
    }
    let mut extensions = 0;
    while extensions < EXTENSIONS_MAX {
        let extension: [u8; 4] = ctx.load(offset).ok()?;
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => offset += (extension[1] as usize + 1) * 8,
            AUTHENTICATION => offset += (extension[1] as usize + 2) * 4,
            FRAGMENT if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 == 0 => offset += 8,
            _ => return None,
        }
        next = extension[0];
        if has_ports(next) {
            return Some(Transport::new(next, offset, ctx.load(offset).ok()?));
        }
        extensions += 1;
    }
    None
}

#[inline(always)]
fn has_ports(next: u8) -> bool {
    next == TCP || next == UDP
}

#[inline(always)]
fn is_tag(ether_type: u16) -> bool {
    ether_type == VLAN || ether_type == QINQ
}

/// More extension headers than this before the ports, and the packet counts as the owner's.
const EXTENSIONS_MAX: u32 = 4;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const TCP_DATA_OFFSET: usize = 12;
const UDP_HEADER: u64 = 8;

// EtherTypes in the byte order of the wire.
const IPV4: u16 = 0x0800u16.to_be();
const IPV6: u16 = 0x86ddu16.to_be();
const VLAN: u16 = 0x8100u16.to_be();
const QINQ: u16 = 0x88a8u16.to_be();

// Protocol numbers (IANA).
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
