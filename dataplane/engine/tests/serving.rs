//! Bytes, limits, time and change: what reaches the client when the file, the client or the owner won't keep still.
#![allow(clippy::unwrap_used, reason = "a panic here is a failed test")]

mod support;

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use freshet_engine::{
    Answer, Body, FileAnswer, Grant, Limits, Listener, Observer, Pacer, Place, Redirect, Refusal, Request,
    ResponseRecord, Root, Server, Site, StartError, Unavailable, Want,
};
use http::{HeaderName, HeaderValue, StatusCode};
use support::{Client, Served, Setting, eventually, pattern, request};

/// Every way of sending, at the sizes where one takes over from the other.
#[test]
fn every_size_arrives_whole() {
    let served = Served::new();
    let mut client = served.connect();
    for size in [
        0, 1, 1_023, 16_383, 16_384, 16_385, 100_000, 262_143, 262_144, 262_145, 524_288, 524_289, 1_048_577,
        9_000_001,
    ] {
        let content = pattern(size);
        served.file("file", &content);
        std::fs::rename(served.path().join("file"), served.path().join(format!("f{size}"))).unwrap();
        for round in 0..3 {
            client.send(request("GET", &format!("/f{size}"), &[]));
            assert!(client.response().body == content, "{size} bytes, round {round}");
        }
    }
}

/// Two rings share a port; both answer.
#[test]
fn rings_share_a_port() {
    let served = Served::with(Setting { rings: 2, ..Setting::default() });
    served.file("a", "x");
    let mut clients: Vec<Client> = (0..64).map(|_| served.connect()).collect();
    for client in &mut clients {
        client.send(request("GET", "/a", &[]));
        assert_eq!(client.response().body, b"x");
    }
    assert_eq!(served.running().stats().open, 64);
    drop(clients);
    eventually("all connections are closed", || served.running().stats().open == 0);
}

/// What was opened is what is sent: a replaced or deleted file goes on to its old end.
#[test]
fn a_replaced_file_is_sent_to_its_old_end() {
    for delete in [false, true] {
        let served = Served::new();
        let old = pattern(20_000_000);
        served.file("f", &old);
        let mut client = served.connect();
        client.send(request("GET", "/f", &[]));
        eventually("the response has begun", || served.running().stats().body_bytes > 0);
        if delete {
            std::fs::remove_file(served.path().join("f")).unwrap();
        } else {
            served.file("new", vec![0; 20_000_000]);
            std::fs::rename(served.path().join("new"), served.path().join("f")).unwrap();
        }
        assert!(client.response().body == old, "one version, whole");
        let expected = if delete { 404 } else { 200 };
        eventually("the change is noticed", || {
            let response = served.get("/f", &["Range: bytes=0-9"]);
            if delete { response.status == expected } else { response.body == [0; 10] }
        });
    }
}

/// A file that is truncated while it is sent: the connection is cut, and the length tells the client.
#[test]
fn a_truncated_file_cuts_the_connection() {
    for left in [0, 5_000_000] {
        let served = Served::new();
        let content = pattern(20_000_000);
        served.file("f", &content);
        let mut client = served.connect();
        client.send(request("GET", "/f", &[]));
        eventually("the response has begun", || served.running().stats().body_bytes > 0);
        let file = std::fs::File::options().write(true).open(served.path().join("f")).unwrap();
        file.set_len(left).unwrap();
        let received = client.rest();
        let body = received.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert!(received.len() - body < content.len(), "the length was not kept, and that shows");
        eventually("the connection is gone", || served.running().stats().open == 0);
        served.file("other", "still here");
        assert_eq!(served.get("/other", &[]).body, b"still here");
    }
}

/// A file that is written over in place while it is sent to a slow client: cut, not mixed to the end.
#[test]
fn a_file_written_in_place_cuts_the_connection() {
    let served = Served::new();
    let content = pattern(40_000_000);
    served.file("f", &content);
    let mut client = served.connect();
    client.send(request("GET", "/f", &[]));
    eventually("the response has begun", || served.running().stats().body_bytes > 0);
    let mut file = std::fs::File::options().write(true).open(served.path().join("f")).unwrap();
    file.seek(std::io::SeekFrom::Start(39_000_000)).unwrap();
    file.write_all(&[0; 1_000_000]).unwrap();
    let received = client.rest();
    assert!(received.len() < content.len(), "the response must not look whole");
}

/// A small file in memory is as fresh as its path, within the time set.
#[test]
fn a_small_file_is_revalidated() {
    let limits = Limits { revalidate_after: Duration::ZERO, ..Limits::default() };
    let served = Served::with(Setting { limits, ..Setting::default() });
    let mut client = served.connect();
    for round in 0..50 {
        let content = format!("round {round}");
        served.file("new", &content);
        std::fs::rename(served.path().join("new"), served.path().join("f")).unwrap();
        client.send(request("GET", "/f", &[]));
        assert_eq!(client.response().text(), content);
    }
    std::fs::remove_file(served.path().join("f")).unwrap();
    client.send(request("GET", "/f", &[]));
    assert_eq!(client.response().status, 404);
}

/// More files than the caches hold, over and over.
#[test]
fn caches_are_bounded() {
    let limits = Limits { descriptors_max: 8, memory_cache_bytes_max: 64 << 10, ..Limits::default() };
    let served = Served::with(Setting { limits, ..Setting::default() });
    for index in 0..100 {
        served.file(&format!("small{index}"), format!("{index}"));
        served.file(&format!("large{index}"), vec![u8::try_from(index).unwrap(); 20_000]);
    }
    let mut client = served.connect();
    for _ in 0..3 {
        for index in 0..100 {
            client.send(request("GET", &format!("/small{index}"), &[]));
            assert_eq!(client.response().text(), format!("{index}"));
            client.send(request("GET", &format!("/large{index}"), &[]));
            assert_eq!(client.response().body, vec![u8::try_from(index).unwrap(); 20_000]);
        }
    }
    let open = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter(|entry| {
            let link = std::fs::read_link(entry.as_ref().unwrap().path()).unwrap_or_default();
            link.starts_with(served.path()) && link != served.path()
        })
        .count();
    assert!(open <= 9, "{open} files are held open");
}

/// Too many connections: the next is closed at once, and a place that becomes free is used.
#[test]
fn connections_are_bounded() {
    let limits = Limits { connections_max: 4, connections_per_address_max: Some(4), ..Limits::default() };
    let served = Served::with(Setting { limits, ..Setting::default() });
    served.file("a", "x");
    let mut clients: Vec<Client> = (0..4).map(|_| served.connect()).collect();
    eventually("four are open", || served.running().stats().open == 4);
    assert!(served.connect().is_closed());
    assert_eq!(served.running().stats().refused, 1);
    clients.pop();
    eventually("a place is free", || served.running().stats().open == 3);
    let mut next = served.connect();
    next.send(request("GET", "/a", &[]));
    assert_eq!(next.response().body, b"x");
}

/// One address can't take all places.
#[test]
fn connections_per_address_are_bounded() {
    // Of eight in all, two are a quarter.
    let limits = Limits { connections_max: 8, ..Limits::default() };
    let served = Served::with(Setting { limits, ..Setting::default() });
    served.file("a", "x");
    let _clients: Vec<Client> = (0..2).map(|_| served.connect()).collect();
    eventually("two are open", || served.running().stats().open == 2);
    assert!(served.connect().is_closed());
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    other.bind(&"127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    other.connect(&served.address().into()).unwrap();
    let mut other = std::net::TcpStream::from(other);
    other.write_all(request("GET", "/a", &["Connection: close"]).as_bytes()).unwrap();
    let mut text = String::new();
    other.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

fn short(times: impl Fn(&mut Limits)) -> Served {
    let mut limits = Limits::default();
    times(&mut limits);
    Served::with(Setting { limits, ..Setting::default() })
}

/// RFC 9110 section 15.5.9: a head that drips is answered 408 when its time is over, and closed.
#[test]
fn slow_heads_time_out() {
    let served = short(|limits| limits.head_timeout = Duration::from_secs(2));
    let begun = Instant::now();
    let mut client = served.connect();
    client.send("GET / HTTP/1.1\r\n");
    // Each byte comes in time, the whole does not.
    let mut text = Vec::new();
    client.stream.set_nonblocking(true).unwrap();
    while begun.elapsed() < support::DEADLINE {
        let _ = client.stream.write(b"X");
        let mut chunk = [0; 1_024];
        match client.stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(_) => break,
        }
    }
    assert!(text.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&text));
    assert!(begun.elapsed() >= Duration::from_millis(1_990));
    eventually("it is counted", || {
        served.running().stats().timed_out == 1 && served.running().stats().open == 0
    });
}

/// A connection that never speaks, and one that has fallen silent, are closed without a word.
#[test]
fn idle_connections_time_out() {
    let served = short(|limits| {
        limits.head_timeout = Duration::from_secs(2);
        limits.idle_timeout = Duration::from_secs(2);
    });
    served.file("a", "x");
    let mut silent = served.connect();
    let mut idle = served.connect();
    idle.send(request("GET", "/a", &[]));
    assert_eq!(idle.response().body, b"x");
    assert!(silent.is_closed());
    assert!(idle.is_closed());
    eventually("both are counted", || served.running().stats().timed_out == 2);
}

/// A busy connection that falls silent gives its buffer back, and is answered as before when it speaks again.
#[test]
fn silent_connections_answer_again() {
    let served = short(|limits| limits.idle_timeout = Duration::from_secs(6));
    served.file("small", "x");
    served.file("large", vec![1; 100_000]);
    let mut client = served.connect();
    for _ in 0..2 {
        for _ in 0..4 {
            client.send(request("GET", "/small", &[]));
            assert_eq!(client.response().body, b"x");
            client.send(request("GET", "/large", &[]).repeat(2));
            assert_eq!(client.response().body.len(), 100_000);
            assert_eq!(client.response().body.len(), 100_000);
        }
        // Beyond the second after which the buffer goes, and far from the idle time.
        std::thread::sleep(Duration::from_millis(1_300));
    }
    assert_eq!(served.running().stats().timed_out, 0);
    assert!(client.is_closed());
    eventually("it is counted", || served.running().stats().timed_out == 1);
}

/// A body that drips is given up.
#[test]
fn slow_bodies_time_out() {
    let served = short(|limits| limits.head_timeout = Duration::from_secs(2));
    let mut client = served.connect();
    client.send(request("POST", "/", &["Content-Length: 100"]) + "some");
    assert!(client.is_closed());
    eventually("it is counted", || served.running().stats().timed_out == 1);
}

/// A client that reads nothing is cut off; one that reads slowly is not.
#[test]
fn stalled_clients_time_out() {
    let served = short(|limits| limits.send_timeout = Duration::from_secs(2));
    let content = pattern(30_000_000);
    served.file("f", &content);
    let mut stalled = served.connect();
    stalled.send(request("GET", "/f", &[]));
    eventually("the stalled one is cut", || served.running().stats().timed_out == 1);
    eventually("it is closed", || served.running().stats().open == 0);

    let slow = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    slow.set_recv_buffer_size(16 << 10).unwrap();
    slow.connect(&served.address().into()).unwrap();
    let mut slow = std::net::TcpStream::from(slow);
    slow.write_all(request("GET", "/f", &["Connection: close"]).as_bytes()).unwrap();
    let begun = Instant::now();
    let mut chunk = vec![0; 64 << 10];
    let mut received = 0;
    while begun.elapsed() < Duration::from_secs(6) {
        received += slow.read(&mut chunk).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    received += std::io::copy(&mut slow, &mut std::io::sink()).unwrap() as usize;
    assert!(received > content.len(), "head and all of the body");
    assert_eq!(served.running().stats().timed_out, 1);
}

/// Stalled clients hold up nobody: no threads, no buffers that others wait for.
#[test]
fn stalled_clients_hold_up_nobody() {
    let served = Served::new();
    served.file("large", vec![1; 8_000_000]);
    served.file("small", "x");
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let stalled: Vec<Client> = (0..300)
        .map(|_| {
            let mut client = served.connect();
            client.send(request("GET", "/large", &[]));
            client
        })
        .collect();
    eventually("all are being served", || served.running().stats().accepted >= 300);
    let before = threads();
    let mut client = served.connect();
    for _ in 0..200 {
        client.send(request("GET", "/small", &[]));
        assert_eq!(client.response().body, b"x");
    }
    assert!(threads() <= before + 8, "{} threads after {before}", threads());
    drop(stalled);
    drop(client);
    eventually("all are gone", || served.running().stats().open == 0);
}

/// A stop lets responses in flight end, closes idle connections, and refuses new ones.
#[test]
fn a_stop_lets_responses_end() {
    let mut served = Served::new();
    let content = pattern(30_000_000);
    served.file("f", &content);
    served.file("a", "x");
    let address = served.address();
    let mut idle = served.connect();
    idle.send(request("GET", "/a", &[]));
    idle.response();
    let mut busy = served.connect();
    busy.send(request("GET", "/f", &[]).repeat(2));
    eventually("the large one has begun", || served.running().stats().body_bytes > 100_000);
    let running = served.running.take().unwrap();
    let stopping = std::thread::spawn(move || running.stop(support::DEADLINE));
    assert!(idle.is_closed(), "idle connections end at once");
    let first = busy.response();
    assert!(first.body == content, "the response in flight is whole");
    let second = busy.response();
    assert!(second.closes() && second.body == content, "one already sent is answered, and is the last");
    assert!(busy.is_closed());
    stopping.join().unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
}

/// A stop without grace cuts what is left, at once.
#[test]
fn a_drop_cuts_everything() {
    let mut served = Served::new();
    served.file("f", vec![0; 30_000_000]);
    let mut client = served.connect();
    client.send(request("GET", "/f", &[]));
    eventually("it has begun", || served.running().stats().body_bytes > 0);
    let begun = Instant::now();
    drop(served.running.take());
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert!(client.rest().len() < 30_000_000);
}

/// A port that is taken is refused by name, also when the other is of our kind.
#[test]
fn a_taken_port_is_named() {
    let served = Served::with(Setting { rings: 2, ..Setting::default() });
    let site = served.directory.path().to_owned();
    let second = Server {
        listeners: vec![Listener {
            address: served.address(),
            inherited: None,
            class: 0,
            mark: None,
            site: Arc::new(freshet_engine::DirectorySite::open(site).unwrap()),
        }],
        rings: 2,
        limits: Limits::default(),
        pacer: None,
        observer: None,
    }
    .start();
    let error = second.map(drop).unwrap_err();
    assert!(matches!(error, StartError::Bind { address, .. } if address == served.address()), "{error}");
}

/// An inherited socket (socket activation) is served as it is.
#[test]
fn inherited_sockets_are_served() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("a"), "x").unwrap();
    let inherited = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = inherited.local_addr().unwrap();
    let kept = inherited.try_clone().unwrap();
    let running = Server {
        listeners: vec![Listener {
            address: "127.0.0.1:1".parse().unwrap(),
            inherited: Some(inherited),
            class: 0,
            mark: None,
            site: Arc::new(freshet_engine::DirectorySite::open(directory.path()).unwrap()),
        }],
        rings: 2,
        limits: Limits::default(),
        pacer: None,
        observer: None,
    }
    .start()
    .unwrap();
    assert_eq!(running.addresses(), [address]);
    let mut client = Client::connect(address);
    client.send(request("GET", "/a", &[]));
    assert_eq!(client.response().body, b"x");
    drop(client);
    running.stop(Duration::from_secs(1));
    // The socket itself is not ours to shut down: it still takes connections for the next process.
    drop(Client::connect(address));
    drop(kept);
}

/// A token bucket that is also a switch.
struct Bucket {
    rate: u64,
    free: AtomicBool,
    taken: AtomicU64,
    begun: Instant,
}

impl Pacer for Bucket {
    fn unlimited(&self, _class: u8) -> bool {
        self.free.load(Ordering::Relaxed)
    }

    fn take(&self, class: u8, want: Want, _place: &mut Place, now: Instant) -> Grant {
        assert_eq!(class, 1);
        let allowed = (now.duration_since(self.begun).as_secs_f64() * self.rate as f64) as u64;
        let free = allowed.saturating_sub(self.taken.load(Ordering::Relaxed)).min(want.bytes);
        if free == 0 {
            return Grant::Wait(Duration::from_millis(5));
        }
        self.taken.fetch_add(free, Ordering::Relaxed);
        Grant::Bytes(free)
    }
}

/// The pacer is asked before every chunk, whatever way the bytes go, and not at all while nothing is limited.
#[test]
fn the_pacer_is_obeyed() {
    let pacer = Arc::new(Bucket {
        rate: 2_000_000,
        free: AtomicBool::new(false),
        taken: AtomicU64::new(0),
        begun: Instant::now(),
    });
    let served = Served::with(Setting { pacer: Some(pacer.clone()), ..Setting::default() });
    let (large, small) = (pattern(1_000_000), pattern(10_000));
    served.file("large", &large);
    served.file("small", &small);
    let mut clients: Vec<Client> = (0..3).map(|_| served.connect()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(request("GET", if index == 0 { "/small" } else { "/large" }, &[]));
    }
    for (index, client) in clients.iter_mut().enumerate() {
        assert!(client.response().body == if index == 0 { small.as_slice() } else { large.as_slice() });
    }
    let elapsed = pacer.begun.elapsed().as_secs_f64();
    assert!(elapsed > 2_010_000.0 / 2_000_000.0, "2 MB at 2 MB/s took {elapsed} s");
    assert!(pacer.taken.load(Ordering::Relaxed) >= 2_010_000);
    let taken = pacer.taken.load(Ordering::Relaxed);
    pacer.free.store(true, Ordering::Relaxed);
    for target in ["/small", "/large"] {
        clients[0].send(request("GET", target, &[]));
        clients[0].response();
    }
    assert_eq!(pacer.taken.load(Ordering::Relaxed), taken, "while free it is not asked");
}

#[derive(Default)]
struct Notes {
    opened: Mutex<Vec<u64>>,
    closed: Mutex<Vec<u64>>,
    responses: Mutex<Vec<Heard>>,
    /// Body bytes that responses promised which went on.
    lasting: AtomicU64,
    /// Those that went out before the end.
    progressed: AtomicU64,
    /// Those that the ends of responses said were told of.
    told: AtomicU64,
}

/// Request line, path, status, bytes sent, bytes promised.
type Heard = (String, Vec<u8>, u16, u64, u64);

impl Observer for Notes {
    fn opened(
        &self,
        id: u64,
        class: u8,
        socket: BorrowedFd<'_>,
        local: std::net::SocketAddr,
        peer: std::net::SocketAddr,
    ) {
        assert_eq!(class, 1);
        assert_eq!(std::net::SocketAddr::try_from(rustix::net::getsockname(socket).unwrap()).unwrap(), local);
        assert_eq!(
            std::net::SocketAddr::try_from(rustix::net::getpeername(socket).unwrap().unwrap()).unwrap(),
            peer
        );
        self.opened.lock().unwrap().push(id);
    }

    fn closed(&self, id: u64, _class: u8, socket: BorrowedFd<'_>) {
        rustix::net::getsockname(socket).unwrap();
        let unsent = socket2::SockRef::from(&socket).tcp_notsent_lowat().unwrap();
        assert_eq!(unsent, 512 << 10, "no more is kept for a client that does not read");
        self.closed.lock().unwrap().push(id);
    }

    fn lasts(&self, class: u8, status: http::StatusCode, body_bytes: u64) {
        assert_eq!((class, status.as_u16()), (1, 200));
        self.lasting.fetch_add(body_bytes, Ordering::Relaxed);
    }

    fn progressed(&self, class: u8, status: http::StatusCode, body_bytes: u64) {
        assert_eq!((class, status.as_u16()), (1, 200));
        self.progressed.fetch_add(body_bytes, Ordering::Relaxed);
    }

    fn responded(&self, record: &ResponseRecord<'_>) {
        let told = record.body_bytes_told.unwrap_or(0);
        assert!(told <= record.body_bytes);
        self.told.fetch_add(told, Ordering::Relaxed);
        self.responses.lock().unwrap().push((
            record.request_line.to_owned(),
            record.path.to_vec(),
            record.status.as_u16(),
            record.body_bytes,
            record.body_bytes_promised,
        ));
    }
}

/// The observer hears of every connection and every response, whole or not.
#[test]
fn the_observer_hears_everything() {
    let notes = Arc::new(Notes::default());
    let served = Served::with(Setting { observer: Some(notes.clone()), ..Setting::default() });
    served.file("a b", "0123456789");
    served.file("large", vec![0; 30_000_000]);
    let mut client = served.connect();
    client.send(request("GET", "/a%20b", &[]));
    client.response();
    client.send(request("HEAD", "/a%20b", &[]));
    client.response_to(true);
    client.send(request("GET", "/a%20b", &["Range: bytes=0-1"]));
    client.response();
    client.send("nonsense\r\n\r\n");
    assert_eq!(client.response().status, 400);
    drop(client);
    let mut client = served.connect();
    client.send(request("GET", "/large", &[]));
    // Nobody reads: it goes on, and is told of all the same.
    eventually("the large one has begun", || notes.progressed.load(Ordering::Relaxed) > 100_000);
    drop(client);
    eventually("all are closed", || notes.closed.lock().unwrap().len() == 2);
    assert_eq!(notes.progressed.load(Ordering::Relaxed), notes.told.load(Ordering::Relaxed));
    assert_eq!(notes.lasting.load(Ordering::Relaxed), 30_000_000, "the short ones went out at once");
    let mut opened = notes.opened.lock().unwrap().clone();
    opened.dedup();
    assert_eq!(opened, *notes.closed.lock().unwrap());
    let responses = notes.responses.lock().unwrap();
    let path = b"/a b".to_vec();
    assert_eq!(responses[0], ("GET /a%20b HTTP/1.1".into(), path.clone(), 200, 10, 10));
    assert_eq!(responses[1], ("HEAD /a%20b HTTP/1.1".into(), path.clone(), 200, 0, 0));
    assert_eq!(responses[2], ("GET /a%20b HTTP/1.1".into(), path, 206, 2, 2));
    assert_eq!(responses[3].2, 400);
    let (_, _, status, sent, promised) = &responses[4];
    assert_eq!((*status, *promised), (200, 30_000_000));
    assert!(*sent > 0 && sent < promised);
}

/// A site with every kind of answer.
struct Various {
    root: Arc<Root>,
}

impl Site for Various {
    fn answer(&self, request: &Request<'_>) -> Answer {
        let file = |path: &str| FileAnswer {
            root: Arc::clone(&self.root),
            path: path.to_owned().into(),
            expected_size: None,
            expected_mtime: None,
            expected_mtime_nanos: None,
            etag: None,
            last_modified: None,
            content_type: None,
            headers: Vec::new(),
        };
        match request.path {
            b"/body" => Answer::Body(Body {
                status: StatusCode::OK,
                bytes: "0123456789".into(),
                content_type: HeaderValue::from_static("text/x"),
                etag: Some(HeaderValue::from_static("\"b\"")),
                last_modified: None,
                headers: vec![],
            }),
            b"/away" => Answer::Redirect(Redirect::new(
                StatusCode::FOUND,
                &HeaderValue::from_str(&format!("http://volunteer{}?t=x", request.raw_path)).unwrap(),
                &[(HeaderName::from_static("digest"), HeaderValue::from_static("md5=x"))],
            )),
            b"/busy" => Answer::Refusal(Refusal {
                close: true,
                headers: vec![(http::header::RETRY_AFTER, HeaderValue::from_static("3"))],
                ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "later\n")
            }),
            b"/sized" => Answer::File(FileAnswer { expected_size: Some(11), ..file("f") }),
            b"/timed" => Answer::File(FileAnswer { expected_mtime: Some(1), ..file("f") }),
            // No file of a test was made in this very nanosecond.
            b"/timed-finely" => Answer::File(FileAnswer { expected_mtime_nanos: Some(1), ..file("f") }),
            b"/endless" => Answer::File(file("none")),
            b"/tagged" => Answer::File(FileAnswer {
                expected_size: Some(10),
                etag: Some(HeaderValue::from_static("\"content\"")),
                last_modified: Some(std::time::SystemTime::UNIX_EPOCH),
                content_type: Some(HeaderValue::from_static("x/y")),
                headers: vec![
                    (
                        HeaderName::from_static("repr-digest"),
                        HeaderValue::from_static("sha-256=:AA==:, md5=:BB==:"),
                    ),
                    (http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
                    (http::header::CONTENT_LENGTH, HeaderValue::from_static("99")),
                ],
                ..file("f")
            }),
            _ => Answer::Body(Body {
                status: StatusCode::ACCEPTED,
                bytes: format!(
                    "{:?} {} {:?} {:?} {}",
                    request.method,
                    String::from_utf8_lossy(request.path),
                    request.query,
                    request.host,
                    request.class
                )
                .into(),
                content_type: HeaderValue::from_static("text/plain"),
                etag: None,
                last_modified: None,
                headers: vec![],
            }),
        }
    }

    fn unavailable(&self, request: &Request<'_>, file: &FileAnswer, why: &Unavailable) -> Answer {
        match why {
            Unavailable::Changed { size: 10, .. } => Answer::Redirect(Redirect::new(
                StatusCode::FOUND,
                &HeaderValue::from_static("http://frontdoor/"),
                &[],
            )),
            Unavailable::NotFound if request.path == b"/endless" => Answer::File(file.clone()),
            _ => Answer::Refusal(Refusal::new(StatusCode::IM_A_TEAPOT, why.to_string())),
        }
    }
}

fn various() -> Served {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f"), "0123456789").unwrap();
    let site = Various { root: Root::open(directory.path()).unwrap() };
    Served::over(directory, Setting { site: Some(Arc::new(site)), ..Setting::default() })
}

/// Each kind of answer becomes its response.
#[test]
fn sites_answer_in_every_way() {
    let served = various();
    let body = served.get("/body", &["Range: bytes=-2"]);
    assert_eq!((body.status, body.text().as_str(), body.field("content-type")), (206, "89", Some("text/x")));
    assert_eq!(served.get("/body", &["If-None-Match: \"b\""]).status, 304);
    let away = served.get("/away", &[]);
    assert_eq!((away.status, away.field("location")), (302, Some("http://volunteer/away?t=x")));
    assert_eq!(away.field("digest"), Some("md5=x"));
    let busy = served.get("/busy", &[]);
    assert_eq!((busy.status, busy.field("retry-after"), busy.closes()), (503, Some("3"), true));
    let accepted = served.get("http://h:1/x%20y?q=1", &["Range: bytes=0-1"]);
    assert_eq!((accepted.status, accepted.text().as_str()), (202, "Get /x y Some(\"q=1\") Some(\"h:1\") 1"));
}

/// The site is asked again when the file is not the one it meant, and not for ever.
#[test]
fn sites_are_asked_again() {
    let served = various();
    for target in ["/sized", "/timed", "/timed-finely"] {
        let response = served.get(target, &[]);
        assert_eq!(
            (response.status, response.field("location")),
            (302, Some("http://frontdoor/")),
            "{target}"
        );
    }
    assert_eq!(served.get("/endless", &[]).status, 500);
}

/// The site's validators, type and fields are sent; those that frame the message are not its to set.
#[test]
fn sites_describe_their_files() {
    let served = various();
    for fields in [&[][..], &["Range: bytes=0-1"], &["Connection: close"]] {
        let response = served.get("/tagged", fields);
        assert_eq!(response.field("etag"), Some("\"content\""));
        assert_eq!(response.field("last-modified"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
        assert_eq!(response.field("content-type"), Some("x/y"));
        assert_eq!(response.field("cache-control"), Some("no-cache"));
        assert_eq!(response.field("repr-digest"), Some("sha-256=:AA==:, md5=:BB==:"));
        assert_ne!(response.field("content-length"), Some("99"));
    }
    let narrowed = served.get("/tagged", &["Want-Repr-Digest: md5=0, sha-256=5"]);
    assert_eq!(narrowed.field("repr-digest"), Some("sha-256=:AA==:"), "RFC 9530 section 4");
    let part = served.get("/tagged", &["Range: bytes=0-1", "Want-Repr-Digest: md5=1"]);
    assert_eq!((part.status, part.field("repr-digest")), (206, Some("md5=:BB==:")));
    let known = served.get("/tagged", &["If-None-Match: \"content\""]);
    assert_eq!(
        (known.status, known.field("cache-control"), known.field("repr-digest")),
        (304, Some("no-cache"), None)
    );
}

/// A file that is filled in place is served from the disk as it is at each moment, never broken off for its times.
#[test]
fn files_that_are_filled_in_place_are_served_in_parts() {
    use std::os::unix::fs::FileExt as _;
    struct Filling(Arc<Root>);
    impl Site for Filling {
        fn answer(&self, _request: &Request<'_>) -> Answer {
            Answer::File(FileAnswer {
                root: Arc::clone(&self.0),
                path: "f".into(),
                expected_size: Some(10_000),
                expected_mtime: None,
                expected_mtime_nanos: None,
                etag: Some(HeaderValue::from_static("\"content\"")),
                last_modified: Some(std::time::SystemTime::UNIX_EPOCH),
                content_type: None,
                headers: vec![],
            })
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("f")).unwrap();
    file.set_len(10_000).unwrap();
    let site = Filling(Root::open_filling(directory.path()).unwrap());
    let served = Served::over(directory, Setting { site: Some(Arc::new(site)), ..Setting::default() });
    for round in 0..200u64 {
        let at = round * 50;
        let text = format!("round {round}");
        file.write_all_at(text.as_bytes(), at).unwrap();
        let range = format!("Range: bytes={at}-{}", at + text.len() as u64 - 1);
        let response = served.get("/f", &[&range]);
        assert_eq!(
            (response.status, response.text()),
            (206, text),
            "small enough for the memory, and not kept there"
        );
    }
}
