//! BitTorrent by aria2: one that seeds at the origin, one on every mirror, and the smallest tracker that serves them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::{Host, Process, Program, wait_until};
use sha1::{Digest as _, Sha1};

use super::content::Content;
use super::report::Outcome;
use super::{Course, Meter, outcome, usage};

/// The seeder is ready and has told the tracker when all mirrors start at once; waits for the last.
pub(super) fn measure(course: &Course<'_>) -> Result<Outcome> {
    let origin = course.testbed.host("origin", &course.links.origin_link())?;
    let address = SocketAddr::new(origin.addr()?, origin.free_port()?);
    let tracker = Tracker::start(&origin, address)?;
    let metainfo = course.directory.join("release.torrent");
    fs::write(&metainfo, describe(course.content, &format!("http://{address}/announce"))?)?;
    let hook = course.directory.join("complete");
    fs::write(&hook, "#!/bin/sh\n: > \"$FRESHET_COMPLETE\"\n")?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;

    let above = course.content.root.parent().context("the release is in a directory")?;
    let seeder = aria2(above, &metainfo).args(["--check-integrity=true"]);
    let seeder = origin.start("aria2-seeder", &seeder).context("`aria2c` is needed (package aria2)")?;
    wait_until("the seeder to tell the tracker", READY, &course.testbed.cancel(), || {
        Ok((!tracker.peers().is_empty()).then_some(()))
    })?;

    let mirrors = course.mirrors()?;
    let meter = Meter::start([origin].into_iter().chain(mirrors.iter().cloned()).collect())?;
    let directory = |number: usize| course.directory.join(format!("mirror-{number}"));
    let complete = |number: usize| course.directory.join(format!("complete-{number}"));
    let cpu_before = usage::cpu_secs([&seeder])?;
    let begun = Instant::now();
    let clients: Vec<Process> = mirrors
        .iter()
        .enumerate()
        .map(|(number, host)| {
            let client = aria2(&directory(number), &metainfo)
                .arg(format!("--on-bt-download-complete={}", hook.display()))
                .env("FRESHET_COMPLETE", complete(number));
            Ok(host.start("aria2", &client)?)
        })
        .collect::<Result<_>>()?;
    let mut finished = vec![None; clients.len()];
    wait_until("every aria2 to be complete", course.timeout, &course.testbed.cancel(), || {
        for (number, finished) in finished.iter_mut().enumerate() {
            if finished.is_none() && complete(number).exists() {
                *finished = Some(begun.elapsed().as_secs_f64());
            }
        }
        Ok(finished.iter().all(Option::is_some).then_some(()))
    })?;
    let passed = meter.read()?;
    let cpu = usage::cpu_secs(clients.iter().chain([&seeder]))? - cpu_before;
    for number in 0..clients.len() {
        course.content.check(&directory(number).join(NAME)).with_context(|| format!("mirror {number}"))?;
    }
    Ok(outcome(finished.into_iter().flatten().collect(), &passed, Some(cpu), 0.0))
}

fn aria2(directory: &Path, metainfo: &Path) -> Program {
    Program::new("aria2c")
        .args(["--no-conf", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false"])
        .args(["--seed-ratio=0.0", "--bt-max-peers=0", "--bt-tracker-interval=2", "--file-allocation=none"])
        .args(["--listen-port=6881", "--summary-interval=0", "--console-log-level=warn"])
        .arg(format!("--dir={}", directory.display()))
        .arg(metainfo)
}

/// The metainfo file (BEP 3).
fn describe(content: &Content, announce: &str) -> Result<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut files = Vec::new();
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for file in &content.files {
        let open = fs::File::open(content.root.join(&file.path))?;
        loop {
            let room = (PIECE_BYTES - piece.len()) as u64;
            if (&open).take(room).read_to_end(&mut piece)? == 0 {
                break;
            }
            if piece.len() == PIECE_BYTES {
                pieces.extend_from_slice(&Sha1::digest(&piece));
                piece.clear();
            }
        }
        let segments: Vec<u8> = file.path.split('/').flat_map(text).collect();
        files.extend(
            [b"d6:lengthi", file.size.to_string().as_bytes(), b"e4:pathl", &segments, b"ee"].concat(),
        );
    }
    if !piece.is_empty() {
        pieces.extend_from_slice(&Sha1::digest(&piece));
    }
    let (announce, name, pieces) = (text(announce), text(NAME), string(&pieces));
    let piece_bytes = PIECE_BYTES.to_string();
    let parts: [&[u8]; 11] = [
        b"d8:announce",
        &announce,
        b"4:infod5:filesl",
        &files,
        b"e4:name",
        &name,
        b"12:piece lengthi",
        piece_bytes.as_bytes(),
        b"e6:pieces",
        &pieces,
        b"ee",
    ];
    Ok(parts.concat())
}

fn text(text: &str) -> Vec<u8> {
    string(text.as_bytes())
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [bytes.len().to_string().as_bytes(), b":", bytes].concat()
}

/// Tells everybody who announces about everybody who did (BEP 3 and 23); one torrent, IPv4.
struct Tracker {
    peers: Arc<Mutex<BTreeSet<SocketAddr>>>,
    address: SocketAddr,
    host: Host,
    stopping: Arc<AtomicBool>,
}

impl Tracker {
    fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let listener = host.on_seat(move || TcpListener::bind(address))??;
        let peers: Arc<Mutex<BTreeSet<SocketAddr>>> = Arc::default();
        let stopping = Arc::new(AtomicBool::new(false));
        let (known, stop) = (Arc::clone(&peers), Arc::clone(&stopping));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // One that asks nonsense gets no answer.
                let _ = stream.map_err(anyhow::Error::from).and_then(|stream| answer(stream, &known));
            }
        });
        Ok(Self { peers, address, host: host.clone(), stopping })
    }

    fn peers(&self) -> BTreeSet<SocketAddr> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let address = self.address;
        // Wakes the thread, which ends then; when the host is gone already, so is its socket.
        let _ = self.host.on_seat(move || TcpStream::connect(address));
    }
}

fn answer(mut stream: TcpStream, peers: &Mutex<BTreeSet<SocketAddr>>) -> Result<()> {
    stream.set_read_timeout(Some(READY))?;
    let from = stream.peer_addr()?.ip();
    let mut line = String::new();
    let mut reader = BufReader::new(&stream).take(REQUEST_BYTES_MAX);
    reader.read_line(&mut line)?;
    // The rest of the head, so that closing does not reset the connection.
    let mut rest = String::new();
    while reader.read_line(&mut rest)? > 2 {
        rest.clear();
    }
    let port = line.split(['?', '&', ' ']).find_map(|field| field.strip_prefix("port="));
    let port: u16 = port.context("an announcement names a port")?.parse()?;
    let mut peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
    peers.insert(SocketAddr::new(from, port));
    let mut compact = Vec::new();
    for peer in peers.iter() {
        let IpAddr::V4(address) = peer.ip() else { bail!("the testbed's addresses are IPv4") };
        compact.extend_from_slice(&address.octets());
        compact.extend_from_slice(&peer.port().to_be_bytes());
    }
    drop(peers);
    let body = [&b"d8:intervali2e5:peers"[..], &string(&compact), b"e"].concat();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat())?;
    Ok(())
}

/// The directory that the torrent names.
const NAME: &str = "release";
const PIECE_BYTES: usize = 256 << 10;
const REQUEST_BYTES_MAX: u64 = 16 << 10;
const READY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_carry_their_length() {
        assert_eq!(text("release"), b"7:release");
        assert_eq!(string(&[]), b"0:");
    }
}
