//! Counting without any right, against the interface's own statistics on a cable that carries nothing else.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod lab;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use freshet_ebpf::{Accounting, Class, Classes, Opened, Options, Source, drop_capabilities, test_run_cost};
use lab::{End, Lab, listen};

/// Opens as a daemon would that has no capability at all.
fn open(lab: &Lab) -> (Box<dyn Accounting>, Classes) {
    let Opened { accounting, classes } = lab.inside(End::Host, || {
        drop_capabilities().unwrap();
        let options = Options { interfaces: lab::DEVICE.parse().unwrap(), ..Options::default() };
        freshet_ebpf::open(options).unwrap()
    });
    let Source::Sockets { why } = accounting.source() else {
        panic!("without any right: {}", accounting.source())
    };
    assert!(why.contains("CAP_BPF"), "{why}");
    (accounting, classes)
}

/// Serves one connection as the engine does: reports it, sends, waits for the client's end, reports, closes.
fn serve(classes: &Classes, listener: &TcpListener, id: u64, bytes: usize) {
    let (mut socket, _) = listener.accept().unwrap();
    let local = socket.local_addr().unwrap().ip();
    classes.meter().opened(id, Class::Delivery as u8, socket.as_fd(), local);
    socket.write_all(&vec![0x5a; bytes]).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
    classes.meter().closed(id, Class::Delivery as u8, socket.as_fd());
}

#[test]
fn outgoing_class_bytes_are_within_a_thousandth() {
    let Some(lab) = Lab::new("fallback", false) else { return };
    lab.without_sack();
    let (mut accounting, classes) = open(&lab);
    // (connections, bytes each): bulk, and many small ones, where the handshakes weigh most.
    for (connections, bytes) in [(4u64, 20_000_000), (300, 10_000)] {
        for address in ["10.77.0.1", "fd77::1"] {
            let listener = listen(&lab, address);
            let peer = listener.local_addr().unwrap();
            let mut read = || lab.inside(End::Host, || accounting.read().unwrap()).interfaces.remove(0);
            let (before, wire) = (read(), lab.statistics(End::Host));
            for id in 0..connections {
                thread::scope(|scope| {
                    let server = scope.spawn(|| serve(&classes, &listener, id, bytes));
                    let mut client = lab.inside(End::Peer, || TcpStream::connect(peer).unwrap());
                    assert_eq!(std::io::copy(&mut client, &mut std::io::sink()).unwrap(), bytes as u64);
                    drop(client);
                    server.join().unwrap();
                });
                let now = read();
                assert!(now.other().outgoing.bytes >= before.other().outgoing.bytes, "no count goes back");
            }
            let mut last = lab.statistics(End::Host);
            lab::eventually("quiet", || std::mem::replace(&mut last, lab.statistics(End::Host)) == last);
            let ours = read().class(Class::Delivery).minus(before.class(Class::Delivery));
            let wire = last.minus(wire);
            let error = |ours: u64, wire: u64| (ours as f64 - wire as f64) / wire as f64;
            let out = error(ours.outgoing.bytes, wire.outgoing.bytes);
            let back = error(ours.incoming.bytes, wire.incoming.bytes);
            println!(
                "{address}, {connections} × {bytes} B: out {:+.4} %, in {:+.4} %",
                out * 100.0,
                back * 100.0
            );
            assert!(out.abs() <= 0.001, "{address}: {ours:?} of {wire:?}");
            // A FIN counts as a byte received. How long acknowledgements of lost segments are is told to nobody, hence no SACK.
            assert!(back.abs() <= 0.005, "{address}: {ours:?} of {wire:?}");
        }
    }
    assert_eq!(classes.meter().unmeasured(), 0);
}

#[test]
fn outgoing_connections_and_the_owners_rest() {
    let Some(lab) = Lab::new("fallback-sync", false) else { return };
    let (mut accounting, classes) = open(&lab);
    let listener = lab.inside(End::Peer, || TcpListener::bind("10.77.0.2:0").unwrap());
    let peer = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        for _ in 0..2 {
            listener.accept().unwrap().0.write_all(&vec![1; 1_000_000]).unwrap();
        }
    });
    let mut fetch = |ours: bool| {
        let mut client = lab.inside(End::Host, || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            let mut outgoing = ours.then(|| classes.outgoing(&socket, Class::Sync, peer).unwrap());
            socket.connect(&peer.into()).unwrap();
            if let Some(outgoing) = &mut outgoing {
                outgoing.connected(socket.as_fd()).unwrap();
            }
            (TcpStream::from(socket), outgoing)
        });
        std::io::copy(&mut client.0, &mut std::io::sink()).unwrap();
        drop(client);
        lab.inside(End::Host, || accounting.read().unwrap()).interfaces.remove(0)
    };
    let first = fetch(true);
    assert!((1_000_000..1_060_000).contains(&first.class(Class::Sync).incoming.bytes), "{first:?}");
    // A segment that comes twice is counted by the interface and not by the connection.
    assert!(first.other().incoming.bytes < 3 * 1514, "{first:?}");
    let second = fetch(false);
    assert_eq!(second.class(Class::Sync), first.class(Class::Sync));
    assert!((1_000_000..1_060_000).contains(&second.other().incoming.bytes), "{second:?}");
    server.join().unwrap();
}

/// What a daemon without any right does at the month's last byte.
#[test]
fn the_kill_switch_resets_connections_and_answers_nobody() {
    let Some(lab) = Lab::new("fallback-kill", false) else { return };
    lab.without_sack();
    let (mut accounting, classes) = open(&lab);
    let listener = listen(&lab, "10.77.0.1");
    let peer = listener.local_addr().unwrap();
    let sockets: Arc<[OwnedFd]> = Arc::from([OwnedFd::from(listener.try_clone().unwrap())]);
    classes.listening(Class::Delivery, Arc::downgrade(&sockets)).unwrap();
    let wire = lab.statistics(End::Host);
    let mut clients = Vec::new();
    thread::scope(|scope| {
        let mut servers = Vec::new();
        for id in 0..CONNECTIONS {
            let mut client = lab.inside(End::Peer, || TcpStream::connect(peer).unwrap());
            let (mut socket, _) = listener.accept().unwrap();
            classes.meter().opened(id, Class::Delivery as u8, socket.as_fd(), peer.ip());
            let classes = &classes;
            servers.push(scope.spawn(move || {
                let error = (0..).find_map(|_| socket.write_all(&[0x5a; 1 << 16]).err()).unwrap();
                classes.meter().closed(id, Class::Delivery as u8, socket.as_fd());
                error
            }));
            client.read_exact(&mut vec![0; 3_000_000]).unwrap();
            // From here on it takes nothing any more, so that its server waits with a full queue.
            clients.push(client);
        }
        // Not every kernel lets a process without rights have the same as one with them.
        lab.inside(End::Host, || {
            drop_capabilities().unwrap();
            classes.drop_outgoing(&[Class::Delivery]).unwrap();
        });
        // Whoever waits for a client that takes nothing is woken.
        for server in servers {
            let error = server.join().unwrap();
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        }
    });
    for mut client in clients {
        let error = std::io::copy(&mut client, &mut std::io::sink()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let mut last = lab.statistics(End::Host);
    lab::eventually("quiet", || std::mem::replace(&mut last, lab.statistics(End::Host)) == last);
    let ours = lab.inside(End::Host, || accounting.read().unwrap()).class(Class::Delivery).outgoing;
    let sent = last.minus(wire).outgoing;
    let error = (ours.bytes as f64 - sent.bytes as f64) / sent.bytes as f64;
    println!("{ours:?} counted of {sent:?}: {:+.4} %", error * 100.0);
    assert!(error.abs() <= 0.001, "{ours:?} of {sent:?}");
    for _ in 0..5 {
        let patience = std::time::Duration::from_millis(300);
        let refused = lab.inside(End::Peer, || TcpStream::connect_timeout(&peer, patience).unwrap_err());
        assert_eq!(refused.kind(), ErrorKind::TimedOut);
    }
    assert_eq!(lab.statistics(End::Host).outgoing, last.outgoing, "not one packet is answered");
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    drop(classes.outgoing(&socket, Class::Sync, peer).unwrap());
    assert!(classes.outgoing(&socket, Class::Delivery, peer).is_err());

    classes.drop_outgoing(&[]).unwrap();
    lab::download(&lab, &listener, 10_000);
}

#[test]
fn traffic_to_oneself_is_not_on_the_interface() {
    let Some(lab) = Lab::new("fallback-self", false) else { return };
    let (mut accounting, classes) = open(&lab);
    let listener = listen(&lab, "10.77.0.1");
    let peer = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| serve(&classes, &listener, 1, 1_000_000));
        let mut client = lab.inside(End::Host, || TcpStream::connect(peer).unwrap());
        std::io::copy(&mut client, &mut std::io::sink()).unwrap();
    });
    let reading = lab.inside(End::Host, || accounting.read().unwrap());
    assert_eq!(reading.class(Class::Delivery).outgoing.bytes, 0);
    assert_eq!(peer.ip(), "10.77.0.1".parse::<IpAddr>().unwrap());
}

/// The bounds are for telling a mistake from noise on a shared machine; `bench accounting` reports the figures.
#[test]
fn a_packet_costs_little() {
    if !rustix::process::geteuid().is_root() {
        return lab::skip("a_packet_costs_little", "test runs of classifiers need root");
    }
    let costs = test_run_cost(100_000).unwrap();
    for cost in &costs {
        println!(
            "{}: {} ns net ({} less {})",
            cost.case,
            cost.net_nanoseconds(),
            cost.nanoseconds,
            cost.empty_nanoseconds
        );
        assert!(cost.net_nanoseconds() <= 200, "{cost:?}");
    }
    let of = |case: &str| costs.iter().find(|c| c.case == case).unwrap().net_nanoseconds();
    assert!(of("out, v4 by mark") <= of("out, v4 by port"), "{costs:?}");
}

const CONNECTIONS: u64 = 4;
