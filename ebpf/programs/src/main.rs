//! The classifiers: they add each packet's bytes on the wire to the counter of its class, at both ends of an interface.
//!
//! They read packets through the kernel's helpers only, so that CAP_BPF and CAP_NET_ADMIN suffice to load them. They
//! never change a packet, and drop one only when the quota's kill switch names its class.
#![no_std]
#![no_main]

mod packet;

use aya_ebpf::Global;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::TcContext;
use freshet_ebpf_abi as abi;
use freshet_ebpf_abi::{Class, Config, Counter, Direction, Meta};

use packet::Transport;

#[map]
static FR_PORTS: Array<u8> = Array::with_max_entries(abi::PORTS as u32, 0);

#[map]
static FR_CONFIG: Array<Config> = Array::with_max_entries(1, 0);

#[map]
static FR_COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(abi::COUNTERS as u32, 0);

#[map]
static FR_META: Array<Meta> = Array::with_max_entries(1, 0);

/// Bytes in front of the IP header; set for each interface before loading.
#[unsafe(no_mangle)]
static FR_LINK_HEADER: Global<u32> = Global::new(14);

/// At the interface's ingress.
#[classifier]
pub fn freshet_in(ctx: TcContext) -> i32 {
    incoming(&ctx);
    TC_ACT_UNSPEC
}

/// At the interface's egress, in front of its queue.
#[classifier]
pub fn freshet_out(ctx: TcContext) -> i32 {
    outgoing(&ctx).unwrap_or(TC_ACT_UNSPEC)
}

/// Does nothing, so that the cost of calling a program can be told from the cost of this one.
#[classifier]
pub fn freshet_empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[inline(always)]
fn incoming(ctx: &TcContext) -> Option<()> {
    // SAFETY: the kernel hands a valid context to every run of the program.
    let skb = unsafe { &*ctx.skb.skb };
    let transport = packet::transport(ctx, FR_LINK_HEADER.load() as usize);
    let class = match &transport {
        Some(t) => by_port(t, t.destination)?,
        None => Class::Other as u32,
    };
    // Merged segments lost their headers but for the first one's; the kernel knows how many there were.
    let merged = skb.gso_size as u64;
    let (mut bytes, mut packets) = (skb.len as u64, 1);
    if merged != 0 {
        let headers = match &transport {
            Some(t) => t.headers(ctx),
            None => 0,
        };
        packets = segments(skb.gso_segs as u64, bytes, headers, merged);
        bytes += (packets - 1) * headers;
    }
    count(class, Direction::In, bytes, packets, skb.vlan_present)
}

#[inline(always)]
fn outgoing(ctx: &TcContext) -> Option<i32> {
    // SAFETY: the kernel hands a valid context to every run of the program, and nothing else holds it meanwhile.
    let skb = unsafe { &mut *ctx.skb.skb };
    let config = FR_CONFIG.get(0)?;
    let merged = skb.gso_size as u64;
    let mut class = by_mark(config, skb.mark);
    let mut headers = 0;
    if class == Class::Other as u32
        && let Some(t) = packet::transport(ctx, FR_LINK_HEADER.load() as usize)
    {
        class = by_port(&t, t.source)?;
        if merged != 0 {
            headers = t.headers(ctx);
        }
    }
    if config.drop_out >> (class & 31) & 1 != 0 {
        return Some(TC_ACT_SHOT);
    }
    if config.htb_major != 0 {
        skb.priority = config.htb_major << 16 | (abi::HTB_MINOR_FIRST + class);
    }
    // Here the kernel has worked out the length on the wire, with the headers of segments yet to be split.
    let bytes = skb.wire_len as u64;
    let packets = match merged {
        0 => 1,
        size => segments(skb.gso_segs as u64, skb.len as u64, headers, size),
    };
    count(class, Direction::Out, bytes, packets, skb.vlan_present)?;
    None
}

/// The class that the socket's mark names, or [`Class::Other`].
#[inline(always)]
fn by_mark(config: &Config, mark: u32) -> u32 {
    let class = (mark & config.mark_mask).wrapping_sub(config.mark_base);
    if config.mark_mask != 0 && class < abi::CLASSES as u32 { class } else { Class::Other as u32 }
}

/// The class of the local port. Only TCP is ours: the owner may use the same number for a UDP service.
#[inline(always)]
fn by_port(transport: &Transport, local: u16) -> Option<u32> {
    if !transport.tcp {
        return Some(Class::Other as u32);
    }
    FR_PORTS.get(local as u32).map(|&class| class as u32)
}

/// How many segments a merged packet stands for; the kernel leaves the number open for some virtual devices.
#[inline(always)]
fn segments(known: u64, bytes: u64, headers: u64, size: u64) -> u64 {
    if known != 0 {
        known
    } else if headers != 0 && bytes > headers {
        (bytes - headers).div_ceil(size)
    } else {
        1
    }
}

/// A VLAN tag that the kernel keeps beside the packet is on the wire with every segment.
#[inline(always)]
fn count(class: u32, direction: Direction, bytes: u64, packets: u64, tagged: u32) -> Option<()> {
    let tags = if tagged != 0 { 4 * packets } else { 0 };
    let class = (class as usize) & (abi::CLASSES - 1);
    let index = abi::counter_index(class, direction);
    let counter = FR_COUNTERS.get_ptr_mut(index as u32)?;
    // SAFETY: the pointer is this CPU's own cell, and programs on one CPU do not interrupt each other here.
    unsafe {
        (*counter).bytes += bytes + tags;
        (*counter).packets += packets;
    }
    Some(())
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
