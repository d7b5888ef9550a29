//! Volunteers that misbehave, for measuring what it costs the others. Each is a real daemon: nothing in it knows how to
//! lie.
//!
//! Before a liar's sync port stands a relay on the liar's host, which changes a byte of each piece and manifest that
//! passes; control and peers are told the relay's address. A sly one gives control itself, which looks when somebody complains, the
//! truth. A slanderer is an honest mirror with somebody beside it who has its credential and complains of everybody
//! with it, again and again.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use freshet_api::NodeId;
use freshet_api::swarm::{COMPLAINTS_MAX, Complaint, SwarmPoll};
use freshet_testbed::cluster::Cluster;
use freshet_testbed::{Host, Process, Program};
use serde_json::Value;

/// A port of a volunteer that a relay may stand before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Where other mirrors fetch pieces.
    Sync,
    /// Where customers fetch files.
    Delivery,
}

/// A relay that changes pieces on their way; dropping it ends it.
pub(crate) struct Liar {
    stop: Arc<AtomicBool>,
    spoiled: Arc<AtomicU64>,
    accepting: Option<JoinHandle<()>>,
}

impl Liar {
    /// Puts a relay before a volunteer's port, which is restarted for it. Whoever is at `truth_to` gets what is right.
    pub(crate) fn make(
        cluster: &mut Cluster,
        index: usize,
        port: Port,
        truth_to: Option<IpAddr>,
    ) -> Result<Liar> {
        let volunteer = cluster.volunteer_mut(index).context("there is no such volunteer")?;
        let host = volunteer.host().clone();
        let address = host.addr()?;
        let behind = SocketAddr::new(address, host.free_port()?);
        let listener = host.on_seat(move || TcpListener::bind((address, 0)))??;
        let before = listener.local_addr()?;
        let path = volunteer.state().join("dataplane.toml");
        let joined = fs::read_to_string(&path)?;
        let (behind, changed) = match port {
            Port::Sync => (
                behind,
                format!("sync_listen = \"{behind}\"\nsync_public_url = \"http://{before}\"\n{joined}"),
            ),
            // The daemon stays where it is; only who is sent there is sent to the relay.
            Port::Delivery => {
                (volunteer.delivery(), replaced(&joined, "public_url", &format!("http://{before}"))?)
            }
        };
        fs::write(&path, changed)?;
        volunteer.kill()?;
        cluster.start_volunteer(index)?;
        let (stop, spoiled) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let relay = Relay { host, behind, port, truth_to, spoiled: Arc::clone(&spoiled) };
        listener.set_nonblocking(true)?;
        let until = Arc::clone(&stop);
        let accepting = thread::spawn(move || relay.accept(&listener, &until));
        Ok(Liar { stop, spoiled, accepting: Some(accepting) })
    }

    /// Pieces that it has changed.
    pub(crate) fn spoiled(&self) -> u64 {
        self.spoiled.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// What a relay's threads share. Those of a connection end with it, and it ends with the processes at its ends.
#[derive(Clone)]
struct Relay {
    host: Host,
    behind: SocketAddr,
    port: Port,
    truth_to: Option<IpAddr>,
    spoiled: Arc<AtomicU64>,
}

impl Relay {
    fn accept(&self, listener: &TcpListener, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((client, from)) => {
                    let relay = self.clone();
                    thread::spawn(move || relay.connection(client, from));
                }
                Err(_) => thread::sleep(ACCEPT_PAUSE),
            }
        }
    }

    fn connection(&self, client: TcpStream, from: SocketAddr) {
        let behind = self.behind;
        let Ok(Ok(server)) = self.host.on_seat(move || TcpStream::connect(behind)) else { return };
        let whole = || -> std::io::Result<()> {
            client.set_nonblocking(false)?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let (mut asking, mut asked) = (client.try_clone()?, server.try_clone()?);
            let requests = thread::spawn(move || {
                let _ = std::io::copy(&mut asking, &mut asked);
                let _ = asked.shutdown(Shutdown::Write);
            });
            let lies = self.truth_to != Some(from.ip());
            let answered = self.answers(&server, &client, lies);
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
            let _ = requests.join();
            answered
        };
        // A connection that breaks is its ends' affair.
        let _ = whole();
    }

    /// Passes one answer after the other on; of a part of a file the first byte is changed, for customers of a whole one
    /// too.
    fn answers(&self, mut from: &TcpStream, mut to: &TcpStream, lies: bool) -> std::io::Result<()> {
        let mut buffer = Vec::new();
        let mut part = vec![0; 64 << 10];
        loop {
            let (head, length, code) = loop {
                if let Some(found) = head_of(&buffer) {
                    break found;
                }
                match from.read(&mut part)? {
                    0 => return to.write_all(&buffer),
                    read => buffer.extend_from_slice(&part[..read]),
                }
            };
            to.write_all(&buffer[..head])?;
            buffer.drain(..head);
            let mut left = length;
            // Whole answers of a sync port are small ones, what it has, and manifests.
            let whole = self.port == Port::Delivery || length > HAVE_BYTES_MAX;
            let content = code == 206 || (code == 200 && whole);
            let mut spoil = lies && content;
            while left > 0 {
                if buffer.is_empty() {
                    let read = from.read(&mut part)?;
                    if read == 0 {
                        return Ok(());
                    }
                    buffer.extend_from_slice(&part[..read]);
                }
                let now = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if std::mem::take(&mut spoil) {
                    buffer[0] ^= 0x55;
                    self.spoiled.fetch_add(1, Ordering::Relaxed);
                }
                to.write_all(&buffer[..now])?;
                buffer.drain(..now);
                left -= now as u64;
            }
        }
    }
}

/// Bytes that say which of a bundle's pieces a mirror has, at most.
const HAVE_BYTES_MAX: u64 = 8 << 10;

/// A configuration with another value of a key that it has.
fn replaced(text: &str, key: &str, value: &str) -> Result<String> {
    let own = |line: &str| line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
    let lines: Vec<String> = text
        .lines()
        .map(|line| if own(line) { format!("{key} = \"{value}\"") } else { line.to_owned() })
        .collect();
    if !text.lines().any(own) {
        bail!("expected `{key}` in a volunteer's configuration");
    }
    Ok(lines.join("\n") + "\n")
}

/// Where the head of an answer ends, how long its body is, and its status.
fn head_of(buffer: &[u8]) -> Option<(usize, u64, u16)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = answer.parse(buffer).ok()? else { return None };
    let code = answer.code?;
    let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok());
    Some((head, length.unwrap_or(0), code))
}

/// The number that a volunteer has.
pub(super) fn number_of(state: &Path) -> Result<NodeId> {
    let number = credential(state)?["node"].as_u64().and_then(|number| u32::try_from(number).ok());
    Ok(NodeId(number.context("expected a number in a credential")?))
}

fn credential(state: &Path) -> Result<Value> {
    let path = state.join("credential.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Has somebody on a volunteer's host complain of `accused` with that volunteer's credential, until it is dropped.
pub(super) fn slander(cluster: &Cluster, index: usize, accused: &[NodeId]) -> Result<Process> {
    let volunteer = cluster.volunteers().get(index).context("there is no such volunteer")?;
    let credential = credential(volunteer.state())?;
    let [Some(api), Some(secret)] = ["api", "credential"].map(|name| credential[name].as_str()) else {
        bail!("expected an address and a secret in {credential}");
    };
    let swarm = cluster.ctl(&["swarm"])?;
    let bundles = swarm["bundles"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut commands = String::new();
    for (number, bundle) in bundles.iter().enumerate() {
        let complaints = accused.iter().cycle().take(COMPLAINTS_MAX).enumerate();
        let complaints = complaints.map(|(piece, &peer)| Complaint { peer, piece: piece as u32 }).collect();
        let bundle = bundle["id"].as_str().context("expected a bundle's id")?.parse()?;
        let poll = SwarmPoll { complaints, ..SwarmPoll::of(bundle) };
        let path = volunteer.state().join(format!("slander-{number}.json"));
        fs::write(&path, serde_json::to_vec(&poll)?)?;
        commands.push_str(&format!(
            "curl --silent --insecure --max-time 5 --output /dev/null -H 'Authorization: Bearer {secret}' \
             -H 'Content-Type: application/json' --data @{} https://{api}/v1/swarm; ",
            path.display()
        ));
    }
    let program =
        Program::new("sh").args(["-c".to_owned(), format!("while :; do {commands} sleep 0.5; done")]);
    Ok(volunteer.host().start("slander", &program)?)
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let text = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 17\r\n\r\nbody";
        assert_eq!(head_of(&text[..20]), None);
        assert_eq!(head_of(text), Some((text.len() - 4, 17, 206)));
        assert_eq!(head_of(b"HTTP/1.1 404 Not Found\r\n\r\n"), Some((26, 0, 404)));
    }

    #[test]
    fn a_key_is_replaced_and_no_other() {
        let text = "pins = \"off\"\npublic_url = \"a\"\n#public_url = \"c\"\nsync_public_url = \"d\"\n";
        let changed = replaced(text, "public_url", "b").unwrap();
        assert_eq!(changed, text.replace("public_url = \"a\"", "public_url = \"b\""));
        assert!(replaced("x = 1\n", "public_url", "b").is_err());
    }
}
