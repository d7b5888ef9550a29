//! The classifiers against the interface's own statistics and against what was sent, to the byte.
//! Nothing here looks into the crate: only its public interface is used.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod lab;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use freshet_ebpf::frames::{self, Frames, QINQ, VLAN};
use freshet_ebpf::{
    Accounting, Attachment, Class, Classes, Flow, InterfaceReading, Opened, Options, Source, Traffic,
};
use lab::{End, Lab, download, listen};
use socket2::{Domain, Protocol, Socket, Type};

/// Counts at one end of the cable.
fn open(lab: &Lab, end: End, options: Options) -> (Box<dyn Accounting>, Classes) {
    let options = Options { interfaces: lab::DEVICE.parse().unwrap(), ..options };
    let Opened { accounting, classes } = lab.inside(end, || freshet_ebpf::open(options).unwrap());
    assert!(matches!(accounting.source(), Source::Kernel { .. }), "{}", accounting.source());
    (accounting, classes)
}

fn by_port() -> Options {
    Options { marks: None, ..Options::default() }
}

fn read(accounting: &mut dyn Accounting) -> InterfaceReading {
    let mut reading = accounting.read().unwrap();
    assert_eq!(reading.interfaces.len(), 1);
    reading.interfaces.remove(0)
}

/// Header bytes of a segment on this network: link, tags, IP, TCP with timestamps.
fn headers(address: &str) -> u64 {
    let ip = if address.contains(':') { 40 } else { 20 };
    let tags = if address.contains(".107.") || address.contains(":107:") {
        8
    } else if address.contains(".7.") || address.contains(":7:") || address.contains(".100.") {
        4
    } else {
        0
    };
    14 + tags + ip + 32
}

/// Downloads, and returns what the class counted of it. A run in which TCP sent something twice is repeated, for then
/// nobody can say from outside how many bytes that was.
fn download_counted(
    lab: &Lab,
    accounting: &mut dyn Accounting,
    listener: &TcpListener,
    bytes: usize,
) -> Flow {
    for _ in 0..5 {
        lab.beyond(End::Host, accounting);
        let before = (read(accounting).class(Class::Delivery), lab.retransmitted(End::Host));
        download(lab, listener, bytes);
        lab.beyond(End::Host, accounting);
        let after = (read(accounting).class(Class::Delivery), lab.retransmitted(End::Host));
        if before.1 == after.1 {
            return after.0.minus(before.0);
        }
    }
    panic!("TCP retransmitted in each of five runs on an idle cable");
}

fn assert_download(flow: Flow, bytes: u64, headers: u64, kind: &str) {
    // SYN and SYN-ACK carry 8 more bytes of options.
    assert_eq!(flow.outgoing.bytes, bytes + headers * flow.outgoing.packets + 8, "{kind}, sent: {flow:?}");
    assert_eq!(flow.incoming.bytes, headers * flow.incoming.packets + 8, "{kind}, received: {flow:?}");
    assert!(
        flow.outgoing.packets >= bytes.div_ceil(1500) + 2 && flow.incoming.packets >= 3,
        "{kind}: {flow:?}"
    );
}

fn every_kind(name: &str, options: Options) {
    let Some(lab) = Lab::new(name, false) else { return };
    lab.without_sack();
    let (mut host, classes) = open(&lab, End::Host, options.clone());
    let (mut peer, _peer_classes) = open(&lab, End::Peer, options);
    let beyond =
        [(End::Host, lab.beyond(End::Host, &mut *host)), (End::Peer, lab.beyond(End::Peer, &mut *peer))];

    for address in lab.addresses() {
        let listener = listen(&lab, address);
        let claim = classes.listener(&listener, Class::Delivery).unwrap();
        let flow = download_counted(&lab, &mut *host, &listener, 1_000_000);
        assert_download(flow, 1_000_000, headers(address), address);
        drop(claim);
    }
    datagrams_are_the_owners(&lab, &mut *host);

    for ((end, at_start), accounting) in beyond.into_iter().zip([&mut host, &mut peer]) {
        assert_eq!(lab.beyond(end, &mut **accounting), at_start, "{end:?}: bytes and packets in, then out");
    }
    let (host, peer) = (lab::counted(&mut *host), lab::counted(&mut *peer));
    assert!(host.outgoing.bytes > 2_000_000 && peer.incoming.bytes > 2_000_000);
}

/// A datagram that must be cut into fragments, and small ones.
fn datagrams_are_the_owners(lab: &Lab, host: &mut dyn Accounting) {
    let peer = lab.inside(End::Peer, || UdpSocket::bind("10.77.0.2:0").unwrap());
    let socket = lab.inside(End::Host, || UdpSocket::bind("10.77.0.1:0").unwrap());
    socket.connect(peer.local_addr().unwrap()).unwrap();
    lab.beyond(End::Host, host);
    let before = read(host);
    socket.send(&[7; 8000]).unwrap();
    assert_eq!(peer.recv(&mut [0; 9000]).unwrap(), 8000);
    lab.beyond(End::Host, host);
    let after = read(host);
    assert_eq!(after.ours(), before.ours());
    let sent = after.other().minus(before.other()).outgoing;
    // 8008 bytes in pieces of 1480, each with its own headers.
    assert_eq!(sent, Traffic { bytes: 8008 + 6 * 34, packets: 6 });
}

#[test]
fn every_kind_by_mark_over_tcx() {
    every_kind("mark-tcx", Options::default());
}

#[test]
fn every_kind_by_port_over_tcx() {
    every_kind("port-tcx", by_port());
}

#[test]
fn every_kind_by_port_over_clsact() {
    every_kind("port-clsact", Options { attachment: Some(Attachment::Clsact), ..by_port() });
}

/// With offloads the interface's statistics count merged packets; the wire would carry one header each segment.
#[test]
fn merged_segments_count_with_their_headers() {
    let Some(lab) = Lab::new("offloads", true) else { return };
    lab.without_sack();
    for options in [by_port(), Options::default()] {
        let (mut host, classes) = open(&lab, End::Host, options.clone());
        let (mut peer, peer_classes) = open(&lab, End::Peer, options);
        for address in lab.addresses() {
            let listener = listen(&lab, address);
            let _claim = classes.listener(&listener, Class::Delivery).unwrap();
            lab.beyond(End::Peer, &mut *peer);
            let before = lab::counted(&mut *peer);
            let segments_before = lab.statistics(End::Host).outgoing.packets;
            let flow = download_counted(&lab, &mut *host, &listener, 3_000_000);
            let merged = lab.statistics(End::Host).outgoing.packets - segments_before;
            assert_download(flow, 3_000_000, headers(address), address);
            assert!(flow.outgoing.packets > 2 * merged, "nothing was merged: {merged} of {flow:?}");
            // What one end says it sent is what the other says it received, though each works it out on its own.
            lab.beyond(End::Peer, &mut *peer);
            let received = lab::counted(&mut *peer).minus(before).incoming;
            assert_eq!(received, flow.outgoing, "{address}");
        }
        drop(peer_classes);
    }
}

/// Packets that no socket here would send by itself: made by hand, to a link address that nobody has.
#[test]
fn ports_are_found_behind_tags_options_extension_headers_and_fragments() {
    let Some(lab) = Lab::new("crafted", false) else { return };
    let (mut host, classes) = open(&lab, End::Host, Options::default());
    let (mut peer, peer_classes) = open(&lab, End::Peer, Options::default());
    let beyond = [lab.beyond(End::Host, &mut *host), lab.beyond(End::Peer, &mut *peer)];
    let _claims =
        [classes.port(OURS, Class::Delivery).unwrap(), peer_classes.port(THEIRS, Class::Sync).unwrap()];
    let frames = lab.inside(End::Host, || Frames::open(lab::DEVICE).unwrap());
    let mut expect = |what: &str, tags: &[u16], ether_type: u16, packet: &[u8], ours: bool| {
        let frame = [&frames::link_header(tags, ether_type)[..], packet].concat();
        let (sent, received) = (read(&mut *host), read(&mut *peer));
        frames.send(&frame).unwrap();
        lab::eventually(what, || {
            lab::counted(&mut *peer).incoming.packets > total(&received).incoming.packets
        });
        let (sent_now, received_now) = (read(&mut *host), read(&mut *peer));
        let one = Traffic { bytes: frame.len() as u64, packets: 1 };
        let (out, incoming) =
            if ours { (Class::Delivery, Class::Sync) } else { (Class::Other, Class::Other) };
        let sent = sent_now.class(out).minus(sent.class(out)).outgoing;
        assert_eq!(sent, one, "{what} behind {tags:x?}: as {out} at the sender");
        let received = received_now.class(incoming).minus(received.class(incoming)).incoming;
        assert_eq!(received, one, "{what} behind {tags:x?}: as {incoming} at the receiver");
    };
    let segment = tcp(200);
    let options =
        |next: u8, blocks: usize| [&[next, blocks as u8 - 1][..], &vec![0; blocks * 8 - 2]].concat();
    let fragment = |next: u8, offset: u16| [next, 0, (offset >> 8) as u8, offset as u8, 0, 0, 0, 9].to_vec();
    let behind = |chain: &[Vec<u8>]| [&chain.concat()[..], &segment].concat();
    let four = [options(60, 1), options(60, 1), options(60, 1), options(6, 1)];
    let five = [&four[..1], &four[..]].concat();

    for tags in [&[][..], &[VLAN], &[QINQ, VLAN], &[VLAN, VLAN]] {
        let mut v4 = |what, packet: Vec<u8>, ours| expect(what, tags, 0x0800, &packet, ours);
        v4("v4", ipv4(&[], 0, 6, &segment), true);
        v4("v4 with options", ipv4(&[1; 8], 0, 6, &segment), true);
        v4("v4 first fragment", ipv4(&[], 0x2000, 6, &segment), true);
        v4("v4 later fragment", ipv4(&[], 0x0010, 6, &segment), false);
        v4("v4 icmp", ipv4(&[], 0, 1, &[9; 64]), false);
        v4("v4 udp of the same ports", ipv4(&[], 0, 17, &udp(100)), false);

        let mut v6 = |what, packet: Vec<u8>, ours| expect(what, tags, 0x86dd, &packet, ours);
        v6("v6", ipv6(6, &segment), true);
        v6("v6 destination options", ipv6(60, &behind(&[options(6, 1)])), true);
        v6("v6 two blocks of them", ipv6(60, &behind(&[options(6, 2)])), true);
        v6("v6 hop by hop, then those", ipv6(0, &behind(&[options(60, 1), options(6, 3)])), true);
        v6("v6 first fragment", ipv6(44, &behind(&[fragment(6, 1)])), true);
        v6("v6 later fragment", ipv6(44, &behind(&[fragment(6, 0x100)])), false);
        v6("v6 authentication header", ipv6(51, &behind(&[[&[6, 4][..], &[0; 22]].concat()])), true);
        v6("v6 four headers", ipv6(60, &behind(&four)), true);
        v6("v6 five headers", ipv6(60, &behind(&five)), false);
        v6("v6 unknown header", ipv6(200, &segment), false);
        v6("v6 cut short", ipv6(60, &[6, 40]), false);
    }
    expect("no known protocol", &[], 0x88b5, &[1; 60], false);

    let quiet = [lab.beyond(End::Host, &mut *host), lab.beyond(End::Peer, &mut *peer)];
    assert_eq!(quiet, beyond, "the interface's statistics");
}

/// A mark says it all, whatever is behind the IP header.
#[test]
fn a_mark_decides_alone_and_another_ones_mark_does_not() {
    let Some(lab) = Lab::new("marks", false) else { return };
    let (mut host, _classes) = open(&lab, End::Host, Options::default());
    let rule = freshet_ebpf::MarkRule::default();
    let socket = lab.inside(End::Host, || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        socket.connect(&"10.77.0.2:9".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket
    });
    let cases = [
        (rule.mark(Class::Control), Class::Control),
        (rule.mark(Class::Sync), Class::Sync),
        (rule.mark(Class::Control) & 0xffff, Class::Other),
        (rule.base + 4, Class::Other),
        (u32::MAX, Class::Other),
    ];
    for (mark, class) in cases {
        lab.beyond(End::Host, &mut *host);
        let before = read(&mut *host);
        socket.set_mark(mark).unwrap();
        // Nobody listens there; the refusal comes back as an error of the next call.
        while socket.send(&[1; 4000]).is_err() {}
        lab.beyond(End::Host, &mut *host);
        let sent = read(&mut *host).class(class).minus(before.class(class)).outgoing;
        assert_eq!(sent, Traffic { bytes: 4008 + 3 * 34, packets: 3 }, "{mark:#x}");
    }
}

#[test]
fn the_kill_switch_drops_one_class_and_nothing_else() {
    let Some(lab) = Lab::new("kill-switch", false) else { return };
    let (mut host, classes) = open(&lab, End::Host, Options::default());
    let delivery = listen(&lab, "10.77.0.1");
    let sync = listen(&lab, "10.77.0.1");
    let _claims = [
        classes.listener(&delivery, Class::Delivery).unwrap(),
        classes.listener(&sync, Class::Sync).unwrap(),
    ];
    classes.drop_outgoing(&[Class::Delivery]).unwrap();
    lab.beyond(End::Host, &mut *host);
    let before = read(&mut *host).class(Class::Delivery);
    let refused = lab.inside(End::Peer, || {
        let address = delivery.local_addr().unwrap();
        std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300)).unwrap_err()
    });
    assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut);
    let after = read(&mut *host).class(Class::Delivery);
    assert_eq!(after.outgoing, before.outgoing, "what was dropped is not counted");
    assert!(after.incoming.packets > before.incoming.packets);
    download(&lab, &sync, 10_000);
    classes.drop_outgoing(&[]).unwrap();
    download(&lab, &delivery, 10_000);
}

#[test]
fn an_outgoing_connection_is_counted_from_its_first_packet() {
    let Some(lab) = Lab::new("outgoing", false) else { return };
    lab.without_sack();
    for options in [Options::default(), by_port()] {
        let (mut host, classes) = open(&lab, End::Host, options);
        for address in ["10.77.0.2:0", "[fd77::2]:0"] {
            let listener = lab.inside(End::Peer, || TcpListener::bind(address).unwrap());
            let peer = listener.local_addr().unwrap();
            lab.beyond(End::Host, &mut *host);
            let before = read(&mut *host).class(Class::Sync);
            let kind = if peer.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let socket = lab.inside(End::Host, || Socket::new(kind, Type::STREAM, None).unwrap());
            let outgoing = classes.outgoing(&socket, Class::Sync, peer).unwrap();
            socket.connect(&peer.into()).unwrap();
            let accepted = listener.accept().unwrap().0;
            drop(socket);
            drop(outgoing);
            drop(accepted);
            let sync = |host: &mut dyn Accounting| read(host).class(Class::Sync);
            lab::eventually("the last ACK", || sync(&mut *host).minus(before).outgoing.packets >= 4);
            lab.beyond(End::Host, &mut *host);
            let flow = read(&mut *host).class(Class::Sync).minus(before);
            let headers = if peer.is_ipv4() { 66 } else { 86 };
            // SYN, ACK, FIN and the last ACK; SYN-ACK, ACK of the FIN and FIN, which may be one.
            assert_eq!(flow.outgoing, Traffic { bytes: 4 * headers + 8, packets: 4 }, "{peer}");
            assert_eq!(flow.incoming.bytes, flow.incoming.packets * headers + 8, "{peer}");
        }
    }
}

fn total(reading: &InterfaceReading) -> Flow {
    reading.classes.iter().fold(Flow::default(), |sum, &class| sum.plus(class))
}

const OURS: u16 = 8001;
const THEIRS: u16 = 8002;

fn tcp(payload: usize) -> Vec<u8> {
    let mut segment = [OURS.to_be_bytes(), THEIRS.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    segment.resize(20 + payload, 0x5a);
    segment
}

fn udp(payload: u16) -> Vec<u8> {
    let fields = [OURS, THEIRS, 8 + payload, 0];
    let mut datagram: Vec<u8> = fields.into_iter().flat_map(u16::to_be_bytes).collect();
    datagram.resize(8 + payload as usize, 0x5a);
    datagram
}

fn ipv4(options: &[u8], fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let length = (words * 4 + payload.len()) as u16;
    let mut packet = vec![0x40 | words as u8, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(Ipv4Addr::new(10, 77, 0, 1).octets());
    packet.extend(Ipv4Addr::new(10, 77, 0, 99).octets());
    [&packet[..], options, payload].concat()
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend("fd77::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend("fd77::99".parse::<Ipv6Addr>().unwrap().octets());
    [&packet[..], payload].concat()
}
