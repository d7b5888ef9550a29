//! A served temporary directory and a raw client: bytes in, bytes out, nothing normalised in between.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "a panic here is a failed test")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet_engine::{DirectorySite, Limits, Listener, Observer, Pacer, Running, Server, Site};

/// A server on a free port, and the directory it serves.
pub struct Served {
    pub running: Option<Running>,
    pub directory: tempfile::TempDir,
}

/// What is set differently from a plain server.
#[derive(Default)]
pub struct Setting {
    pub limits: Limits,
    pub rings: usize,
    pub site: Option<Arc<dyn Site>>,
    pub pacer: Option<Arc<dyn Pacer>>,
    pub observer: Option<Arc<dyn Observer>>,
}

impl Served {
    pub fn new() -> Self {
        Self::with(Setting::default())
    }

    pub fn with(setting: Setting) -> Self {
        Self::over(tempfile::tempdir().unwrap(), setting)
    }

    pub fn over(directory: tempfile::TempDir, setting: Setting) -> Self {
        let site = setting.site.unwrap_or_else(|| Arc::new(DirectorySite::open(directory.path()).unwrap()));
        let running = Server {
            listeners: vec![Listener {
                address: "127.0.0.1:0".parse().unwrap(),
                inherited: None,
                class: 1,
                mark: None,
                site,
            }],
            rings: setting.rings.max(1),
            limits: setting.limits,
            pacer: setting.pacer,
            observer: setting.observer,
        }
        .start()
        .unwrap();
        Self { running: Some(running), directory }
    }

    pub fn address(&self) -> SocketAddr {
        self.running.as_ref().unwrap().addresses()[0]
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file into the served directory.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// Sends one request on a new connection and reads one response.
    pub fn ask(&self, request: &str) -> Response {
        let mut client = self.connect();
        client.send(request);
        client.response_to(request.starts_with("HEAD"))
    }

    /// A GET with more header lines.
    pub fn get(&self, target: &str, fields: &[&str]) -> Response {
        self.ask(&request("GET", target, fields))
    }
}

/// A request with a Host and these header lines.
pub fn request(method: &str, target: &str, fields: &[&str]) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n");
    for field in fields {
        text.push_str(field);
        text.push_str("\r\n");
    }
    text + "\r\n"
}

/// A connection, and what was read from it and not yet used.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// A response in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    pub fn response(&mut self) -> Response {
        self.response_to(false)
    }

    /// Reads one response; one to HEAD has no body whatever its length says.
    pub fn response_to(&mut self, to_head: bool) -> Response {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.fill() > 0, "closed within a head: {:?}", String::from_utf8_lossy(&self.buffer));
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status_line = lines.next().unwrap();
        assert!(status_line.starts_with("HTTP/1.1 "), "{status_line}");
        let status: u16 = status_line[9..12].parse().unwrap();
        let fields: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no field: {line:?}"));
                (name.to_ascii_lowercase(), value.to_owned())
            })
            .collect();
        let mut response = Response { status, fields, body: Vec::new() };
        if !to_head && status != 304 && status != 204 && status >= 200 {
            let length: usize = response.field("content-length").unwrap().parse().unwrap();
            while self.buffer.len() < length {
                assert!(self.fill() > 0, "closed within a body");
            }
            response.body = self.buffer.drain(..length).collect();
        }
        response
    }

    /// Reads to the end and returns what came; an error of the connection counts as an end.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.try_fill().is_some_and(|count| count > 0) {}
        std::mem::take(&mut self.buffer)
    }

    /// Whether the server ends the connection without a further byte.
    pub fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }

    fn fill(&mut self) -> usize {
        self.try_fill().expect("the connection broke or went silent")
    }

    fn try_fill(&mut self) -> Option<usize> {
        let mut chunk = [0; 65_536];
        // A ring that this thread made and dropped may still interrupt a read that has a timeout.
        let read = loop {
            match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Some(count)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("nothing came within {DEADLINE:?}")
            }
            Err(_) => None,
        }
    }
}

impl Response {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether it announces the connection's end.
    pub fn closes(&self) -> bool {
        self.field("connection") == Some("close")
    }
}

/// Waits for a condition.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that are their own position, so that a mix of two places shows.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

/// For anything that should happen at once on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);
