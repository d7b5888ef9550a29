//! The testbed on the kernel itself: namespaces, links with rates, processes, and what is left when all is over.
//!
//! Needs root and iproute2 for namespaces; without them the same is tried on loopback and the rest is skipped.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use freshet_testbed::{
    Backend, Delays, Error, Host, Link, Options, Program, Rate, Signal, Testbed, skip, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn namespaces(test: &str) -> Option<Testbed> {
    let testbed = Testbed::start(Options::default()).unwrap();
    if let Backend::Loopback { why } = testbed.backend() {
        skip(test, why);
        return None;
    }
    Some(testbed)
}

/// Sends `bytes` from one host to another and gives the time until the last one has arrived.
fn transfer(from: &Host, to: &Host, bytes: usize) -> Duration {
    let addr = to.addr().unwrap();
    let listener = to.on_seat(move || TcpListener::bind((addr, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    let stream = from.on_seat(move || TcpStream::connect(target).unwrap()).unwrap();
    let started = Instant::now();
    let sender = std::thread::spawn(move || {
        let mut stream = stream;
        let block = vec![7; 65536];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(block.len());
            stream.write_all(&block[..part]).unwrap();
            left -= part;
        }
    });
    let (mut receiver, _) = listener.accept().unwrap();
    let mut received = Vec::new();
    receiver.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert_eq!(received.len(), bytes);
    started.elapsed()
}

fn interface(host: &Host, name: &str) -> freshet_testbed::InterfaceCounters {
    host.interfaces().unwrap().into_iter().find(|interface| interface.name == name).unwrap()
}

#[test]
fn a_rate_limits_its_direction_and_the_kernel_counts_the_bytes() {
    let Some(testbed) = namespaces("a_rate_limits_its_direction_and_the_kernel_counts_the_bytes") else {
        return;
    };
    let slow = testbed.host("slow", &Link::new().up(Rate::mbit(40)).down(Rate::mbit(20))).unwrap();
    let fast = testbed.host("fast", &Link::new()).unwrap();
    let before = interface(&slow, "eth0");

    const BYTES: usize = 5_000_000;
    let up = transfer(&slow, &fast, BYTES);
    let down = transfer(&fast, &slow, BYTES);

    // 5 MB take 1 s at 40 Mbit/s and 2 s at 20; the burst and the queue take a little off, a busy machine adds.
    assert!(up > Duration::from_millis(800), "{up:?}");
    assert!(down > Duration::from_millis(1600), "{down:?}");
    assert!(up < Duration::from_secs(10) && down < Duration::from_secs(15), "{up:?} {down:?}");
    let after = interface(&slow, "eth0");
    let (tx, rx) = (after.tx_bytes - before.tx_bytes, after.rx_bytes - before.rx_bytes);
    // The payload, its headers (4.6 % at a 1500 byte MTU) and the other direction's acknowledgements.
    for counted in [tx, rx] {
        let ratio = counted as f64 / BYTES as f64;
        assert!((1.0..1.3).contains(&ratio), "{ratio}");
    }
}

#[test]
fn hosts_are_apart_from_the_machine_and_from_each_other() {
    let Some(testbed) = namespaces("hosts_are_apart_from_the_machine_and_from_each_other") else { return };
    let a = testbed.host("a", &Link::new()).unwrap();
    let b = testbed.host("b", &Link::new()).unwrap();
    b.add_link(&Link::new().network("second").interface("eth1")).unwrap();
    let names: Vec<String> = b.interfaces().unwrap().into_iter().map(|interface| interface.name).collect();
    assert_eq!(names, ["lo", "eth0", "eth1"]);

    let addr = b.addr().unwrap();
    let listener = b.on_seat(move || TcpListener::bind((addr, 0)).unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    assert!(a.reaches(target).unwrap());
    assert!(
        TcpStream::connect_timeout(&target, Duration::from_millis(250)).is_err(),
        "reached from the root"
    );
    let v6 = SocketAddr::from((b.addr_v6().unwrap(), 0));
    let listener = b.on_seat(move || TcpListener::bind(v6).unwrap()).unwrap();
    assert!(a.reaches(listener.local_addr().unwrap()).unwrap());

    b.set_link("eth0", false).unwrap();
    assert!(!a.reaches(target).unwrap());
    b.set_link("eth0", true).unwrap();
    a.wait_for_port(target, PATIENCE).unwrap();
}

#[test]
fn a_process_lives_in_its_host_and_writes_its_log() {
    let testbed = Testbed::start(Options::default()).unwrap();
    let host = testbed.host("h", &Link::new()).unwrap();
    let shell =
        Program::new("sh").args(["-c", "echo up and running; readlink /proc/self/ns/net; exec sleep 600"]);
    let process = host.start("sleeper", &shell).unwrap();
    process.wait_for_line("up and running", PATIENCE).unwrap();
    let namespace = process.wait_for_line("net:[", PATIENCE).unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned();
    let apart = matches!(testbed.backend(), Backend::Namespaces);
    assert_eq!(namespace != own, apart);
    assert!(process.is_running().unwrap());

    process.signal(Signal::TERM).unwrap();
    assert!(!process.wait(PATIENCE).unwrap().success());
    assert!(process.signal(Signal::TERM).is_err());
}

#[test]
fn a_process_that_ends_too_early_is_told_with_its_last_words() {
    let testbed = Testbed::start(Options::default()).unwrap();
    let host = testbed.host("h", &Link::new()).unwrap();
    let process = host.start("liar", &Program::new("sh").args(["-c", "echo I cannot; exit 4"])).unwrap();
    let error = process.wait_for_line("ready", PATIENCE).unwrap_err();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    assert!(error.to_string().contains("I cannot"), "{error}");
}

#[test]
fn run_gives_what_was_written_and_ends_what_takes_too_long() {
    let testbed = Testbed::start(Options::default()).unwrap();
    let host = testbed.host("h", &Link::new()).unwrap();
    let finished =
        host.run(&Program::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), PATIENCE).unwrap();
    assert_eq!((finished.text().as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(finished.status.code(), Some(3));
    let error = host.run(&Program::new("sleep").arg("600"), Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn dropping_the_testbed_ends_processes_and_their_children_and_removes_namespaces() {
    let state = tempfile::tempdir().unwrap();
    let options = Options { state: Some(state.path().to_owned()), ..Options::default() };
    let testbed = Testbed::start(options).unwrap();
    let host = testbed.host("h", &Link::new()).unwrap();
    let shell = Program::new("sh").args(["-c", "sleep 600 & echo child $!; wait"]);
    let process = host.start("parent", &shell).unwrap();
    let line = process.wait_for_line("child", PATIENCE).unwrap();
    let child = line.split_whitespace().last().unwrap().to_owned();
    let namespace = host.namespace();
    drop(testbed);

    let gone = |path: &Path| {
        wait_until("the end", PATIENCE, &Default::default(), || Ok((!path.exists()).then_some(())))
    };
    gone(Path::new(&format!("/proc/{child}"))).unwrap();
    if let Some(namespace) = namespace {
        assert!(!namespace.exists());
    }
    assert!(std::fs::read_dir(state.path()).unwrap().next().is_none());
    assert!(matches!(host.interfaces(), Err(Error::Gone { .. })));
}

#[test]
fn hosts_that_join_change_nothing_for_those_that_are_there() {
    let Some(testbed) = namespaces("hosts_that_join_change_nothing_for_those_that_are_there") else { return };
    let first = testbed.host("first", &Link::new()).unwrap();
    let ip = |arguments: &[&str]| {
        let program = Program::new("ip").args(arguments.iter().copied());
        let done = first.run(&program, PATIENCE).unwrap();
        assert!(done.status.success(), "{}", done.stderr);
        done.text()
    };
    // By whom it reaches the others: asked for anew each time.
    let gateway = |other: &Host| {
        ip(&["neigh", "flush", "all"]);
        transfer(&first, other, 1);
        let neighbours = ip(&["-4", "neigh", "show", "dev", "eth0"]);
        let address = neighbours.split_whitespace().skip_while(|word| *word != "lladdr").nth(1);
        address.map(str::to_owned).expect(&neighbours)
    };
    let second = testbed.host("second", &Link::new()).unwrap();
    let before = gateway(&second);
    for number in 0..12 {
        testbed.host(&format!("later-{number}"), &Link::new()).unwrap();
    }
    assert_eq!(gateway(&second), before);
}

/// Of so many datagrams from one host to another those that came back, and the shortest time that one took.
fn echoed(from: &Host, to: &Host, count: u32) -> (u32, Duration) {
    let bound = |host: &Host| {
        let addr = host.addr().unwrap();
        let socket = host.on_seat(move || UdpSocket::bind((addr, 0)).unwrap()).unwrap();
        socket.set_read_timeout(Some(ECHO)).unwrap();
        socket
    };
    let (asking, answering) = (bound(from), bound(to));
    // A link that is cut refuses to send, which is an answer too.
    let _ = asking.connect(answering.local_addr().unwrap());
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = [0; 4];
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok((4, from)) = answering.recv_from(&mut number) {
                    let _ = answering.send_to(&number, from);
                }
            }
        });
        let (mut received, mut shortest) = (0, Duration::MAX);
        for number in 0..count {
            let (sent, mut answer) = (Instant::now(), [0; 4]);
            let _ = asking.send(&number.to_le_bytes());
            while sent.elapsed() < ECHO {
                if asking.recv(&mut answer).is_ok_and(|_| u32::from_le_bytes(answer) == number) {
                    received += 1;
                    shortest = shortest.min(sent.elapsed());
                    break;
                }
            }
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        (received, shortest)
    })
}

/// For an echo on a busy machine.
const ECHO: Duration = Duration::from_millis(250);

#[test]
fn a_link_delays_and_loses_as_it_is_asked_to_whoever_does_it() {
    let Some(testbed) = namespaces("a_link_delays_and_loses_as_it_is_asked_to_whoever_does_it") else {
        return;
    };
    if let Delays::None { why } = testbed.delays() {
        skip("a_link_delays_and_loses_as_it_is_asked_to_whoever_does_it", why);
        return;
    }
    let late = |ms| Link::new().delay(Duration::from_millis(ms)).seed(3);
    let far = testbed.host("far", &late(15).rate(Rate::mbit(80))).unwrap();
    let lossy = testbed.host("lossy", &late(2).loss(10.0)).unwrap();
    let near = testbed.host("near", &Link::new()).unwrap();

    let (received, shortest) = echoed(&near, &far, 10);
    assert!(received > 0);
    assert!(shortest >= Duration::from_millis(30), "{shortest:?} for a way of 15 ms and back");
    // Each passes the lossy link twice: 81 % of them come back, with a spread of 4 %.
    let (received, _) = echoed(&near, &lossy, 100);
    assert!((50..100).contains(&received), "{received} of 100 came back");

    // TCP notices the loss and brings everything all the same; the kernel counts what the hosts send.
    let before = interface(&lossy, "eth0");
    transfer(&lossy, &far, 300_000);
    let sent = interface(&lossy, "eth0").tx_bytes - before.tx_bytes;
    assert!((300_000..900_000).contains(&sent), "{sent}");
    if let Delays::Harness { .. } = testbed.delays() {
        wait_until("the cost to be told", PATIENCE, &testbed.cancel(), || {
            let cost = testbed.delay_cost();
            Ok((cost.links == 2 && cost.frames > 200 && cost.lost > 5 && !cost.cpu.is_zero()).then_some(()))
        })
        .unwrap();
    }
    // A link that is cut and joined again goes on.
    far.set_link("eth0", false).unwrap();
    assert_eq!(echoed(&near, &far, 2).0, 0);
    far.set_link("eth0", true).unwrap();
    wait_until("the link to carry again", PATIENCE, &testbed.cancel(), || {
        Ok((echoed(&near, &far, 2).0 > 0).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_link_that_loses_everything_reaches_nobody() {
    let Some(testbed) = namespaces("a_link_that_loses_everything_reaches_nobody") else { return };
    if let Delays::None { why } = testbed.delays() {
        skip("a_link_that_loses_everything_reaches_nobody", why);
        return;
    }
    let cut_off = testbed.host("cut-off", &Link::new().loss(100.0)).unwrap();
    let near = testbed.host("near", &Link::new()).unwrap();
    assert_eq!(echoed(&near, &cut_off, 3).0, 0);
}
