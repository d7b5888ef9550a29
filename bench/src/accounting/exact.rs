//! Traffic of every kind, and what three counts say of it: ours, the interface's, and what the tools sent.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use freshet_ebpf::frames::{Frames, QINQ, VLAN};
use freshet_ebpf::{Class, Traffic};
use freshet_testbed::{Host, Link, Process, Program, Testbed};
use serde::Serialize;

use super::counter::{Counter, INTERFACE, Segments};

/// One kind of traffic in one direction, as three sources count it.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) kind: String,
    /// Whether the kernel passed single packets, or pieces of many with one header.
    pub(super) offloads: bool,
    pub(super) class: &'static str,
    /// Whether it is what the counted host sent; else what it received.
    pub(super) sent: bool,
    /// The class's counter.
    pub(super) counted: Traffic,
    /// All classes together.
    pub(super) counted_all: Traffic,
    /// The interface's own statistics.
    pub(super) interface: Traffic,
    /// Payload and headers of every segment; none where a tool does not tell all that it sent.
    pub(super) known: Option<Traffic>,
    /// Segments that were sent again.
    pub(super) again: u64,
}

/// Two hosts, servers on one of them, and our counters there.
struct Stage<'a> {
    testbed: &'a Testbed,
    server: Host,
    customer: Host,
    counter: Counter,
    offloads: bool,
    rows: Vec<Row>,
    _servers: Vec<Process>,
}

/// Headers of a TCP segment from the link's on; timestamps are on as by default.
struct Headers {
    tcp: u64,
    /// Of a full frame, its payload included.
    full: u64,
}

/// Sends all kinds, with single packets or as the kernel does it; also what had to be left out, and why.
pub(super) fn measure(
    testbed: &Testbed,
    programs: &Path,
    offloads: bool,
    root: &Path,
) -> Result<(Vec<Row>, Vec<String>)> {
    let link = if offloads { Link::new() } else { Link::new().single_packets() };
    let server = testbed.host("server", &link)?;
    let customer = testbed.host("customer", &link)?;
    // Acknowledgements of what came out of order have options whose number nobody tells.
    for host in [&server, &customer] {
        let program = Program::new("sh").args(["-c", "echo 0 > /proc/sys/net/ipv4/tcp_sack"]);
        if !host.run(&program, READY)?.status.success() {
            bail!("cannot turn selective acknowledgements off on {}", host.name());
        }
    }
    // Older and smaller kernels have no VLAN devices; the report says so.
    let vlan = add_vlan(&server, VLAN_SERVER)? && add_vlan(&customer, VLAN_CUSTOMER)?;
    let mut counter = Counter::open(&server)?;
    let mut servers = Vec::new();
    let mut ports = Vec::new();
    let addresses =
        [server.addr()?, IpAddr::V6(server.addr_v6()?), IpAddr::V4(VLAN_SERVER)].into_iter().zip(CURL_CASES);
    for (address, (name, class, headers)) in addresses.take(if vlan { 3 } else { 2 }) {
        let listen = SocketAddr::new(address, server.free_port()?);
        let program = Program::new(programs.join("dataplane")).args(["serve", "--root"]).arg(root).args([
            "--listen",
            &listen.to_string(),
            "--rate",
            RATE,
        ]);
        let process = server.start(&format!("dataplane-{class}"), &program)?;
        process.wait_for_port(&customer, listen, READY)?;
        counter.claim(listen.port(), class)?;
        servers.push(process);
        ports.push((listen, name, class, headers));
    }
    let iperf = server
        .start("iperf3", &Program::new("iperf3").args(["--server", "--forceflush", "--port", IPERF_PORT]))?;
    iperf.wait_for_line("Server listening", READY)?;
    servers.push(iperf);
    counter.claim(IPERF_PORT.parse()?, Class::Delivery)?;
    let mut stage =
        Stage { testbed, server, customer, counter, offloads, rows: Vec::new(), _servers: servers };
    for (listen, name, class, headers) in ports {
        stage.curl(name, class, listen, headers)?;
    }
    stage.iperf("iperf3, TCP, sent", Class::Delivery, &["--reverse"])?;
    stage.iperf("iperf3, TCP, received", Class::Delivery, &[])?;
    // Ports are TCP's: datagrams are always the owner's.
    stage.iperf("iperf3, UDP, sent", Class::Other, &["--reverse", "--udp", "--length", "1400"])?;
    stage.datagrams("datagrams, v4", stage.server.addr()?, stage.customer.addr()?, 42)?;
    let (from, to) = (IpAddr::V6(stage.server.addr_v6()?), IpAddr::V6(stage.customer.addr_v6()?));
    stage.datagrams("datagrams, v6", from, to, 62)?;
    let mut left_out = Vec::new();
    if vlan {
        stage.datagrams("datagrams, VLAN", IpAddr::V4(VLAN_SERVER), IpAddr::V4(VLAN_CUSTOMER), 46)?;
    } else {
        left_out.push(
            "tools over a VLAN device: this kernel has none (module 8021q); frames tagged by hand stand for them".to_owned(),
        );
    }
    stage.frames("frames, VLAN", &[VLAN])?;
    stage.frames("frames, QinQ", &[QINQ, VLAN])?;
    Ok((stage.rows, left_out))
}

impl Stage<'_> {
    /// A download, of which curl tells what went each way.
    fn curl(&mut self, name: &str, class: Class, listen: SocketAddr, headers: Headers) -> Result<()> {
        let program = Program::new("curl")
            .args(["--silent", "--output", "/dev/null", "--write-out"])
            .arg("%{size_download} %{size_header} %{size_request}")
            .arg(format!("http://{listen}/{FILE}"));
        let customer = self.customer.clone();
        self.observe(name, class, || {
            let done = customer.run(&program, TOOL_MAX)?;
            let told: Vec<u64> = done.text().split(' ').map_while(|word| word.parse().ok()).collect();
            let [body, head, request] = told[..] else { bail!("curl said {:?}", done.text()) };
            let known = move |payload, segments: Segments| Traffic {
                // The options of a connection's first segment take eight bytes more than those of the others.
                // What is sent again is not among them, and is taken to be full.
                bytes: payload
                    + segments.sent * headers.tcp
                    + segments.opened * 8
                    + segments.again * headers.full,
                packets: segments.sent + segments.again,
            };
            Ok(Box::new(move |sent: Segments, received: Segments| {
                [Some(known(request, received)), Some(known(body + head, sent))]
            }) as Known)
        })
    }

    /// A stream; its control connection passes the same port, so what iperf3 tells is not all.
    fn iperf(&mut self, name: &str, class: Class, arguments: &[&str]) -> Result<()> {
        let program = Program::new("iperf3")
            .args(["--client".to_owned(), self.server.addr()?.to_string()])
            .args(["--port", IPERF_PORT, "--bytes", "64M", "--bitrate", IPERF_RATE])
            .args(arguments.iter().copied());
        let customer = self.customer.clone();
        self.observe(name, class, || {
            let done = customer.run(&program, TOOL_MAX)?;
            if !done.status.success() {
                bail!("iperf3: {} {}", done.text().trim(), done.stderr.trim());
            }
            Ok(Box::new(|_, _| [None, None]) as Known)
        })
    }

    /// Datagrams of a known number and length.
    fn datagrams(&mut self, name: &str, from: IpAddr, to: IpAddr, headers: u64) -> Result<()> {
        // Somebody listens, so that no errors come back.
        let sink = self.customer.on_seat(move || std::net::UdpSocket::bind((to, 0)))??;
        let to = sink.local_addr()?;
        let socket = self.server.on_seat(move || std::net::UdpSocket::bind((from, 0)))??;
        self.observe(name, Class::Other, || {
            let payload = [0x5a; DATAGRAM_BYTES];
            for number in 0..DATAGRAMS {
                socket.send_to(&payload, to).context("a datagram can't be sent")?;
                // Far below what a socket holds back.
                if number % 64 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            let bytes = DATAGRAMS * (DATAGRAM_BYTES as u64 + headers);
            Ok(Box::new(move |_, _| [Some(Traffic::default()), Some(Traffic { bytes, packets: DATAGRAMS })])
                as Known)
        })
    }

    /// Segments that were tagged by hand, both ways.
    fn frames(&mut self, name: &str, tags: &[u16]) -> Result<()> {
        let (ours, theirs) = (self.server.free_port()?, self.customer.free_port()?);
        self.counter.claim(ours, Class::Delivery)?;
        let open = |host: &Host| host.on_seat(|| Frames::open(INTERFACE))?.context("no frames can be sent");
        let (server, customer) = (open(&self.server)?, open(&self.customer)?);
        let (out, incoming) = (segment(tags, ours, theirs), segment(tags, theirs, ours));
        self.observe(name, Class::Delivery, || {
            for number in 0..FRAMES {
                server.send(&out).context("a frame can't be sent")?;
                customer.send(&incoming).context("a frame can't be sent")?;
                if number % 64 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            let known = |frame: &[u8]| Traffic { bytes: FRAMES * frame.len() as u64, packets: FRAMES };
            let known = [Some(known(&incoming)), Some(known(&out))];
            Ok(Box::new(move |_, _| known) as Known)
        })
    }

    fn observe(&mut self, kind: &str, class: Class, send: impl FnOnce() -> Result<Known>) -> Result<()> {
        eprintln!("{kind}, offloads {}", if self.offloads { "on" } else { "off" });
        let before = self.counter.quiet(self.testbed)?;
        let segments = [Segments::of(&self.customer)?, Segments::of(&self.server)?];
        let known = send().with_context(|| kind.to_owned())?;
        let passed = self.counter.quiet(self.testbed)?.since(&before);
        let [received, sent] = [
            Segments::of(&self.customer)?.since(segments[0]),
            Segments::of(&self.server)?.since(segments[1]),
        ];
        let all = passed.all();
        for (direction, known) in known(sent, received).into_iter().enumerate() {
            self.rows.push(Row {
                kind: kind.to_owned(),
                offloads: self.offloads,
                class: class.name(),
                sent: direction == 1,
                counted: passed.classes[class.index()][direction],
                counted_all: all[direction],
                interface: passed.interface[direction],
                known,
                again: [received, sent][direction].again,
            });
        }
        Ok(())
    }
}

/// What is known to have been received and sent, once the segments each way are known: those of the counted host,
/// and those to it.
type Known = Box<dyn FnOnce(Segments, Segments) -> [Option<Traffic>; 2]>;

/// A TCP segment of IPv4 behind these tags.
fn segment(tags: &[u16], from: u16, to: u16) -> Vec<u8> {
    let mut frame = freshet_ebpf::frames::link_header(tags, 0x0800);
    let length = (40 + FRAME_PAYLOAD_BYTES) as u16;
    frame.extend([0x45, 0]);
    frame.extend(length.to_be_bytes());
    // Number, no fragment, hops, TCP, and no checksum: nobody takes it in.
    frame.extend([0, 7, 0, 0, 64, 6, 0, 0]);
    frame.extend(VLAN_SERVER.octets());
    frame.extend(VLAN_CUSTOMER.octets());
    frame.extend(from.to_be_bytes());
    frame.extend(to.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.resize(frame.len() + FRAME_PAYLOAD_BYTES, 0x5a);
    frame
}

/// Adds VLAN 7 to a host's interface; false where the kernel knows no such devices.
fn add_vlan(host: &Host, address: Ipv4Addr) -> Result<bool> {
    for words in [
        "link add link eth0 name eth0.7 type vlan id 7".to_owned(),
        format!("addr add {address}/24 dev eth0.7"),
        "link set eth0.7 up".to_owned(),
    ] {
        let done = host.run(&Program::new("ip").args(words.split(' ')), Duration::from_secs(10))?;
        if !done.status.success() {
            if done.stderr.contains("Unknown device type") {
                return Ok(false);
            }
            bail!("ip {words}: {}", done.stderr.trim());
        }
    }
    Ok(true)
}

/// Makes what is downloaded, below `root`.
pub(super) fn make_file(root: &Path) -> Result<PathBuf> {
    let path = root.join(FILE);
    std::fs::write(&path, vec![0x5a; FILE_BYTES])
        .with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// Over v4, v6 and a VLAN: 14 + 20 + 32, 14 + 40 + 32 and 18 + 20 + 32 bytes.
const CURL_CASES: [(&str, Class, Headers); 3] = [
    ("curl, v4", Class::Delivery, Headers { tcp: 66, full: 1514 }),
    ("curl, v6", Class::Sync, Headers { tcp: 86, full: 1514 }),
    ("curl, VLAN", Class::Control, Headers { tcp: 70, full: 1518 }),
];
const VLAN_SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const VLAN_CUSTOMER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const FILE: &str = "file.bin";
const FILE_BYTES: usize = 64 << 20;
const IPERF_PORT: &str = "5201";
/// Slow enough that nothing is dropped between the hosts: a device counts what it drops as never sent.
const RATE: &str = "200 Mbit/s";
const IPERF_RATE: &str = "200M";
const DATAGRAMS: u64 = 10_000;
const DATAGRAM_BYTES: usize = 1_000;
const FRAMES: u64 = 2_000;
const FRAME_PAYLOAD_BYTES: usize = 400;
const TOOL_MAX: Duration = Duration::from_secs(120);
const READY: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_its_tags_and_the_length_that_it_says() {
        let frame = segment(&[QINQ, VLAN], 8001, 8002);
        assert_eq!(frame.len(), 14 + 2 * 4 + 40 + FRAME_PAYLOAD_BYTES);
        assert_eq!(&frame[12..22], [0x88, 0xa8, 0, 7, 0x81, 0, 0, 7, 8, 0]);
        assert_eq!(u16::from_be_bytes([frame[24], frame[25]]), 440);
        assert_eq!(&frame[42..46], [8001u16.to_be_bytes(), 8002u16.to_be_bytes()].concat());
    }
}
