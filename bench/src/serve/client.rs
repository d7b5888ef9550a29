//! A client light enough not to be the limit: one thread, epoll, bodies discarded in the kernel.
//!
//! `recv(MSG_TRUNC)` on TCP drops the bytes without a copy (tcp(7)). The length of each response is learnt
//! by a first, fully parsed request, so that the loop counts bytes and nothing else. It checks no content:
//! tests do that.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// Keeps requests going to one server.
pub(crate) struct Client {
    address: SocketAddr,
    requests: Vec<Prepared>,
    connections: Vec<Connection>,
    epoll: rustix::fd::OwnedFd,
    fresh: bool,
    spins: bool,
    /// Where in every request the customer's name stands, if each is to come from another one.
    customer: Option<usize>,
    /// Whether answers are redirects without a body, of lengths that differ.
    redirects: bool,
    random: SmallRng,
    scratch: Vec<u8>,
}

/// What one turn did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Complete responses.
    pub(crate) requests: u64,
    /// Their bytes, heads included.
    pub(crate) bytes: u64,
    /// From the first request to the last byte.
    pub(crate) wall: Duration,
}

impl Client {
    /// Learns the responses for `paths` and opens `connections`; with `fresh`, each request gets a new one.
    ///
    /// # Errors
    /// When the server can't be reached or doesn't answer 200 with a `Content-Length`.
    pub(crate) fn new(
        address: SocketAddr,
        paths: &[String],
        connections: usize,
        fresh: bool,
    ) -> Result<Self> {
        Self::connected(address, learn(address, paths, fresh)?, connections, fresh, None, false)
    }

    /// As [`Client::new`], for a server that redirects: each request comes from another customer, and each answer must
    /// be a 302. The bodies must all be as long as that of the first, and where there are none, heads may differ.
    ///
    /// # Errors
    /// When the server can't be reached or doesn't answer 302 with a `Content-Length`.
    pub(crate) fn for_redirects(address: SocketAddr, paths: &[String], connections: usize) -> Result<Self> {
        let mut socket = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
        let prefix = |path: &str| format!("GET {path} HTTP/1.1\r\nUser-Agent: freshet-bench/");
        let longest =
            paths.iter().map(|path| prefix(path).len()).max().context("expected paths to ask for")?;
        let (mut requests, mut response) = (Vec::with_capacity(paths.len()), None);
        for path in paths {
            // The name stands at the same place in all of them.
            let begin = prefix(path);
            let padding = "-".repeat(longest - begin.len());
            let wire = format!("{begin}{padding}{:016x}\r\nHost: {address}\r\n\r\n", 0);
            let (head, body) = match response {
                Some(known) => known,
                None => {
                    socket.write_all(wire.as_bytes())?;
                    let mut buffer = vec![0; SCRATCH_BYTES];
                    *response.insert(
                        read_response(&mut socket, &mut buffer, REDIRECT)
                            .with_context(|| format!("GET {path}"))?,
                    )
                }
            };
            requests.push(Prepared { wire: wire.into_bytes(), response_bytes: head + body });
        }
        let redirects = response.is_some_and(|(_, body)| body == 0);
        Self::connected(address, requests, connections, false, Some(longest), redirects)
    }

    fn connected(
        address: SocketAddr,
        requests: Vec<Prepared>,
        connections: usize,
        fresh: bool,
        customer: Option<usize>,
        redirects: bool,
    ) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut client = Self {
            address,
            requests,
            connections: Vec::with_capacity(connections),
            epoll,
            fresh,
            spins: false,
            customer,
            redirects,
            random: SmallRng::seed_from_u64(SEED),
            scratch: vec![0; SCRATCH_BYTES],
        };
        while client.connections.len() < connections {
            let batch = client.connections.len()..connections.min(client.connections.len() + ACCEPT_BATCH);
            for slot in batch.clone() {
                let connection = client.connect(slot)?;
                client.connections.push(connection);
            }
            // An answer on each proves that it was accepted: a listen queue that overflows loses connections
            // that the client takes for open.
            client.drive(batch, Duration::ZERO, &mut histogram())?;
        }
        Ok(client)
    }

    /// Looks for answers all the time instead of sleeping until one comes.
    ///
    /// Over loopback the server's core does the work of waking a sleeping client, more often for a slower
    /// server; a client on another machine costs no server that.
    pub(crate) fn spinning(mut self, spins: bool) -> Self {
        self.spins = spins;
        self
    }

    /// As many requests as the connections carry for `time`, then until all are answered.
    ///
    /// # Errors
    /// When a connection breaks or nothing comes for [`STALL`].
    pub(crate) fn closed_loop(&mut self, time: Duration, latency: &mut Histogram<u64>) -> Result<Turn> {
        self.drive(0..self.connections.len(), time, latency)
    }

    fn drive(&mut self, slots: Range<usize>, time: Duration, latency: &mut Histogram<u64>) -> Result<Turn> {
        let start = Instant::now();
        let mut turn = Turn { requests: 0, bytes: 0, wall: Duration::ZERO };
        let mut active = slots.len();
        for slot in slots {
            self.fire(slot, start)?;
        }
        let (mut progress, mut ready) = (start, Vec::with_capacity(EVENTS));
        while active > 0 {
            self.wait(&mut ready, if self.spins { Duration::ZERO } else { STALL })?;
            if ready.is_empty() && progress.elapsed() > STALL {
                bail!("{} answered nothing for {STALL:?} with {active} requests open", self.address);
            }
            for slot in ready.drain(..) {
                let Some(bytes) = self.receive(slot)? else { continue };
                let now = Instant::now();
                progress = now;
                record(latency, now - self.connections[slot].since);
                turn.requests += 1;
                turn.bytes += bytes;
                active -= 1;
                if now - start < time {
                    self.fire(slot, now)?;
                    active += 1;
                }
            }
        }
        turn.wall = start.elapsed();
        Ok(turn)
    }

    /// Requests at a fixed rate for `time`; a latency counts from the moment the request was *due*, so that a
    /// server that stalls can't hide the requests that would have come (coordinated omission).
    ///
    /// # Errors
    /// As [`Client::closed_loop`].
    pub(crate) fn open_loop(
        &mut self,
        per_second: f64,
        time: Duration,
        latency: &mut Histogram<u64>,
    ) -> Result<Turn> {
        self.open_loop_beside(per_second, time, latency, |_| Ok(ControlFlow::Continue(())))
    }

    /// As [`Client::open_loop`], and each time it has looked for answers it does a little of something else on the same
    /// thread, which is told how long this has gone on, until that wants an end. Another thread would have to share the
    /// core, and wait, or let wait, for the scheduler's next tick: milliseconds that are not the server's.
    ///
    /// # Errors
    /// As [`Client::closed_loop`], and those of `beside`.
    pub(crate) fn open_loop_beside(
        &mut self,
        per_second: f64,
        time: Duration,
        latency: &mut Histogram<u64>,
        mut beside: impl FnMut(Duration) -> Result<ControlFlow<()>>,
    ) -> Result<Turn> {
        let start = Instant::now();
        let mut total = (per_second * time.as_secs_f64()) as u64;
        let due = |number: u64| start + Duration::from_secs_f64(number as f64 / per_second);
        let mut idle: Vec<usize> = (0..self.connections.len()).collect();
        let mut turn = Turn { requests: 0, bytes: 0, wall: Duration::ZERO };
        let (mut sent, mut progress) = (0, start);
        let mut ready = Vec::with_capacity(EVENTS);
        while turn.requests < total {
            while sent < total && due(sent) <= Instant::now() {
                let Some(slot) = idle.pop() else { break };
                self.fire(slot, due(sent))?;
                sent += 1;
            }
            self.wait(&mut ready, Duration::ZERO)?;
            let now = Instant::now();
            for slot in ready.drain(..) {
                let Some(bytes) = self.receive(slot)? else { continue };
                record(latency, now.saturating_duration_since(self.connections[slot].since));
                turn.requests += 1;
                turn.bytes += bytes;
                idle.push(slot);
                progress = now;
            }
            if sent < total && beside(start.elapsed())?.is_break() {
                total = sent;
            }
            if sent > turn.requests && now - progress > STALL {
                bail!("{} answered nothing for {STALL:?}", self.address);
            }
        }
        turn.wall = start.elapsed();
        Ok(turn)
    }

    /// Sends one request on each connection, and reads nothing.
    ///
    /// # Errors
    /// When a connection can't send its request.
    pub(crate) fn start_all(&mut self) -> Result<()> {
        self.start(0..self.connections.len())
    }

    /// As [`Client::start_all`], on some of them.
    ///
    /// # Errors
    /// When a connection can't send its request.
    pub(crate) fn start(&mut self, mut slots: Range<usize>) -> Result<()> {
        let now = Instant::now();
        slots.try_for_each(|slot| self.fire(slot, now))
    }

    /// Takes at most `bytes` (up to 256 KiB) from each of these connections, as slow readers do.
    ///
    /// # Errors
    /// When a connection was closed by the server.
    pub(crate) fn sip(&mut self, slots: Range<usize>, bytes: usize) -> Result<u64> {
        let mut taken = 0;
        for connection in &mut self.connections[slots] {
            let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
            match rustix::net::recv(&connection.socket, &mut self.scratch[..bytes.min(SCRATCH_BYTES)], flags)
            {
                Ok((_, 0)) => bail!("the server closed a slow reader"),
                Ok((_, count)) => taken += count as u64,
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error).context("a slow reader's connection broke"),
            }
        }
        Ok(taken)
    }

    fn connect(&self, slot: usize) -> Result<Connection> {
        let socket = TcpStream::connect(self.address)
            .with_context(|| format!("connection {slot} to {} failed", self.address))?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(slot as u64), epoll::EventFlags::IN)?;
        Ok(Connection { socket, expected: 0, left: 0, head: Vec::new(), since: Instant::now(), used: false })
    }

    fn fire(&mut self, slot: usize, since: Instant) -> Result<()> {
        if self.connections[slot].used && (self.fresh || self.was_left(slot, since)?) {
            self.connections[slot] = self.connect(slot)?;
        }
        let which = self.random.random_range(0..self.requests.len());
        let request = &mut self.requests[which];
        if let Some(at) = self.customer {
            let name = self.random.random::<u64>();
            for (digit, place) in request.wire[at..at + 16].iter_mut().zip(0u32..) {
                *digit = b"0123456789abcdef"[(name >> (4 * place)) as usize & 15];
            }
        }
        let connection = &mut self.connections[slot];
        let sent = rustix::net::send(&connection.socket, &request.wire, SendFlags::NOSIGNAL)?;
        ensure!(sent == request.wire.len(), "a request of {} bytes did not fit", request.wire.len());
        (connection.expected, connection.left) = (request.response_bytes, request.response_bytes);
        (connection.since, connection.used) = (since, true);
        Ok(())
    }

    /// Whether the server has closed a connection that was not used for long, as it may.
    fn was_left(&self, slot: usize, now: Instant) -> Result<bool> {
        let connection = &self.connections[slot];
        if now.saturating_duration_since(connection.since) < IDLE_LOOKED_AT {
            return Ok(false);
        }
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&connection.socket, &mut [0; 1][..], flags) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(true),
            Ok(_) => bail!("bytes came that nobody asked for"),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error).context("a connection broke"),
        }
    }

    /// Takes what has come; the response's bytes when it is complete.
    fn receive(&mut self, slot: usize) -> Result<Option<u64>> {
        if self.redirects {
            return self.receive_redirect(slot);
        }
        let connection = &mut self.connections[slot];
        loop {
            let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
            let count = match rustix::net::recv(&connection.socket, self.scratch.as_mut_slice(), flags) {
                Ok((_, 0)) if connection.left == 0 => {
                    // Nothing was asked for on it for long; it is opened again when something is.
                    epoll::delete(&self.epoll, &connection.socket)?;
                    return Ok(None);
                }
                Ok((_, 0)) => bail!("the server closed a connection with {} bytes to come", connection.left),
                Ok((_, count)) => count as u64,
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error).context("a connection broke"),
            };
            connection.left = connection
                .left
                .checked_sub(count)
                .with_context(|| format!("{count} bytes came where {} were left", connection.left))?;
            if connection.left == 0 {
                if self.fresh {
                    // The server closes it now; that is no event to wait for.
                    epoll::delete(&self.epoll, &connection.socket)?;
                }
                return Ok(Some(connection.expected));
            }
            if count < SCRATCH_BYTES as u64 {
                return Ok(None);
            }
        }
    }

    /// Takes what has come of a head without a body; its bytes when it is complete.
    fn receive_redirect(&mut self, slot: usize) -> Result<Option<u64>> {
        let connection = &mut self.connections[slot];
        let filled = connection.head.len();
        let count =
            match rustix::net::recv(&connection.socket, self.scratch.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((_, 0)) => bail!("the server closed a connection within a head"),
                Ok((_, count)) => count,
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error).context("a connection broke"),
            };
        let came = &self.scratch[..count];
        if filled == 0 && came.ends_with(HEAD_END) {
            ensure!(came.starts_with(REDIRECTED), "expected a 302, got {:?}", first_line(came));
            return Ok(Some(count as u64));
        }
        connection.head.extend_from_slice(came);
        if !connection.head.ends_with(HEAD_END) {
            return Ok(None);
        }
        let head = std::mem::take(&mut connection.head);
        ensure!(head.starts_with(REDIRECTED), "expected a 302, got {:?}", first_line(&head));
        Ok(Some(head.len() as u64))
    }

    fn wait(&self, ready: &mut Vec<usize>, timeout: Duration) -> Result<()> {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; EVENTS];
        let timeout = rustix::event::Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match epoll::wait(&self.epoll, events.as_mut_slice(), Some(&timeout)) {
            Ok(count) => ready.extend(events[..count].iter().map(|event| event.data.u64() as usize)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// A histogram of nanoseconds up to a minute, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are constant and valid")
}

/// Whether `address` accepts connections yet.
pub(crate) fn answers(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
}

struct Prepared {
    wire: Vec<u8>,
    response_bytes: u64,
}

struct Connection {
    socket: TcpStream,
    expected: u64,
    left: u64,
    /// What came of the head of a redirect.
    head: Vec<u8>,
    since: Instant,
    used: bool,
}

fn record(latency: &mut Histogram<u64>, elapsed: Duration) {
    latency.saturating_record(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
}

/// Asks for every path once, with the head parsed, to know the length of the response.
fn learn(address: SocketAddr, paths: &[String], fresh: bool) -> Result<Vec<Prepared>> {
    let mut socket = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
    let mut buffer = vec![0; SCRATCH_BYTES];
    let mut prepared = Vec::with_capacity(paths.len());
    for path in paths {
        let connection = if fresh { "Connection: close\r\n" } else { "" };
        let wire = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: freshet-bench\r\n{connection}\r\n"
        );
        socket.write_all(wire.as_bytes())?;
        let (head, body) =
            read_response(&mut socket, &mut buffer, 200).with_context(|| format!("GET {path}"))?;
        prepared.push(Prepared { wire: wire.into_bytes(), response_bytes: head + body });
        if fresh {
            socket = TcpStream::connect(address)?;
        }
    }
    Ok(prepared)
}

/// Reads one response whole; the bytes of its head and its body.
fn read_response(socket: &mut TcpStream, buffer: &mut [u8], status: u16) -> Result<(u64, u64)> {
    let mut filled = 0;
    let (head, body) = loop {
        let count = socket.read(&mut buffer[filled..])?;
        ensure!(count > 0, "the server closed the connection within the head");
        filled += count;
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        if let httparse::Status::Complete(head) = response.parse(&buffer[..filled])? {
            ensure!(response.code == Some(status), "expected {status}, got {:?}", response.code);
            let length =
                response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<u64>().ok());
            break (head as u64, length.context("the response has no Content-Length")?);
        }
    };
    let mut left = (head + body).checked_sub(filled as u64).context("more bytes came than were announced")?;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = socket.read(&mut buffer[..want])?;
        ensure!(count > 0, "the server closed the connection {left} bytes early");
        left -= count as u64;
    }
    Ok((head, body))
}

fn first_line(head: &[u8]) -> String {
    String::from_utf8_lossy(head.split(|&byte| byte == b'\r').next().unwrap_or_default()).into_owned()
}

const REDIRECT: u16 = 302;
const REDIRECTED: &[u8] = b"HTTP/1.1 302 ";
const HEAD_END: &[u8] = b"\r\n\r\n";

const STALL: Duration = Duration::from_secs(10);
/// A connection that was not used for longer is looked at before it is used again.
const IDLE_LOOKED_AT: Duration = Duration::from_secs(5);
const EVENTS: usize = 256;
const ACCEPT_BATCH: usize = 256;
const SCRATCH_BYTES: usize = 256 << 10;
const SEED: u64 = 0x5eed;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn server(body_bytes: usize, status: &'static str) -> SocketAddr {
        server_that_waits(body_bytes, status, None)
    }

    /// Answers every request with `body_bytes` bytes, each connection on a thread of its own, which closes it when no
    /// request comes for `idle`.
    fn server_that_waits(body_bytes: usize, status: &'static str, idle: Option<Duration>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                socket.set_read_timeout(idle).unwrap();
                std::thread::spawn(move || {
                    let mut request = Vec::new();
                    let mut byte = [0];
                    while matches!(socket.read(&mut byte), Ok(1)) {
                        request.push(byte[0]);
                        if request.ends_with(b"\r\n\r\n") {
                            request.clear();
                            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {body_bytes}\r\n\r\n");
                            let answer = [head.into_bytes(), vec![b'x'; body_bytes]].concat();
                            if socket.write_all(&answer).is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        address
    }

    #[test]
    fn both_loops_count_every_response() {
        let address = server(100_000, "200 OK");
        let mut latency = histogram();
        let mut client = Client::new(address, &["/a".to_owned(), "/b".to_owned()], 3, false).unwrap();
        let turn = client.closed_loop(Duration::from_millis(30), &mut latency).unwrap();
        assert!(turn.requests >= 3 && turn.bytes > turn.requests * 100_000);
        assert_eq!(latency.len(), turn.requests);
        let turn = client.open_loop(200.0, Duration::from_millis(100), &mut latency).unwrap();
        assert_eq!(turn.requests, 20);
    }

    #[test]
    fn a_connection_that_was_closed_while_it_was_idle_is_opened_again() {
        let address = server_that_waits(10, "200 OK", Some(Duration::from_millis(50)));
        let mut client = Client::new(address, &["/a".to_owned()], 1, false).unwrap();
        let later = Instant::now() + IDLE_LOOKED_AT;
        while !client.was_left(0, later).unwrap() {
            std::thread::sleep(Duration::from_millis(5));
        }
        client.fire(0, later).unwrap();
        let answer = loop {
            if let Some(bytes) = client.receive(0).unwrap() {
                break bytes;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(answer > 10);
        assert!(!client.was_left(0, later).unwrap(), "it was used just now");
    }

    #[test]
    fn redirects_with_and_without_a_body_are_counted() {
        for body in [0, 145] {
            let address = server(body, "302 Found");
            let paths = ["/a".to_owned(), "/longer".to_owned()];
            let mut client = Client::for_redirects(address, &paths, 2).unwrap();
            let turn = client.closed_loop(Duration::from_millis(20), &mut histogram()).unwrap();
            assert!(turn.requests >= 2 && turn.bytes >= turn.requests * body as u64);
        }
        assert!(Client::for_redirects(server(5, "200 OK"), &["/a".to_owned()], 1).is_err());
    }

    #[test]
    fn a_wrong_status_is_an_error() {
        let address = server(5, "404 Not Found");
        assert!(Client::new(address, &["/a".to_owned()], 1, false).is_err());
    }
}
