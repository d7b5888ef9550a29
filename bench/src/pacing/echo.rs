//! Echo requests (ICMP, RFC 792) from one host to another: the round trip as `ping` shows it.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::Host;
use socket2::{Domain, Protocol, Socket, Type};

/// Round trips that are being measured until it is asked for them.
pub(super) struct Echo {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Vec<Option<f64>>>>,
}

impl Echo {
    /// Begins to send one request from `host` to `target` every [`PERIOD`].
    pub(super) fn start(host: &Host, target: IpAddr) -> Result<Self> {
        // A socket stays in the namespace in which it was made.
        let socket = host
            .on_seat(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)))?
            .context("cannot open a raw socket for echo requests")?;
        socket.set_read_timeout(Some(PERIOD))?;
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || measure(&socket, target, &asked));
        Ok(Self { stop, thread })
    }

    /// Ends it: milliseconds of each answered round trip, and how many were not answered within a second.
    pub(super) fn finish(self) -> Result<(Vec<f64>, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok(trips) = self.thread.join() else { bail!("the thread that sends echo requests panicked") };
        let trips = trips.context("echo requests cannot be sent")?;
        let lost = trips.iter().filter(|trip| trip.is_none()).count();
        Ok((trips.into_iter().flatten().collect(), lost))
    }
}

fn measure(socket: &Socket, target: IpAddr, stop: &AtomicBool) -> std::io::Result<Vec<Option<f64>>> {
    let id = (std::process::id() & 0xffff) as u16;
    let target = SocketAddr::new(target, 0).into();
    let (mut sent, mut trips): (Vec<Instant>, Vec<Option<f64>>) = (Vec::new(), Vec::new());
    let mut next = Instant::now();
    let mut buffer = [0; 2048];
    loop {
        let now = Instant::now();
        let stopping = stop.load(Ordering::Relaxed);
        if stopping && sent.last().is_none_or(|last| now - *last > ANSWER_MAX) {
            return Ok(trips);
        }
        if now >= next && !stopping {
            // Sequence numbers begin anew after an hour of these; no measurement lasts that long.
            socket.send_to(&request(id, sent.len() as u16), &target)?;
            sent.push(now);
            trips.push(None);
            next += PERIOD;
        }
        socket.set_read_timeout(Some(next.saturating_duration_since(Instant::now()).max(READ_MIN)))?;
        let mut reader = socket;
        let length = match reader.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let arrived = Instant::now();
        if let Some(sequence) = answer(&buffer[..length], id).map(usize::from)
            && let Some(at) = sent.get(sequence)
            && trips[sequence].is_none()
        {
            trips[sequence] = Some((arrived - *at).as_secs_f64() * 1e3);
        }
    }
}

/// An echo request with as many bytes as `ping` sends.
fn request(id: u16, sequence: u16) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.resize(64, 0x5a);
    let sum = checksum(&packet).to_be_bytes();
    packet[2..4].copy_from_slice(&sum);
    packet
}

/// The sequence number of an echo reply to us; `packet` begins with the IPv4 header, as raw sockets give it.
fn answer(packet: &[u8], id: u16) -> Option<u16> {
    let header = usize::from(packet.first()? & 15) * 4;
    let [kind, code, _, _, a, b, c, d] = *packet.get(header..)?.first_chunk()?;
    (kind == 0 && code == 0 && u16::from_be_bytes([a, b]) == id).then_some(u16::from_be_bytes([c, d]))
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

const PERIOD: Duration = Duration::from_millis(20);
const ANSWER_MAX: Duration = Duration::from_secs(1);
const READ_MIN: Duration = Duration::from_micros(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sums_to_nothing_and_its_reply_is_known() {
        let packet = request(0x1234, 0xfffe);
        assert_eq!(checksum(&packet), 0);
        let mut reply = vec![0x45; 20];
        reply.extend(&packet);
        reply[20] = 0;
        assert_eq!(answer(&reply, 0x1234), Some(0xfffe));
        assert_eq!(answer(&reply, 0x1235), None);
        reply[20] = 8;
        assert_eq!(answer(&reply, 0x1234), None, "a request is no reply");
        assert_eq!(answer(&reply[..22], 0x1234), None);
        assert_eq!(answer(&[], 0x1234), None);
    }
}
