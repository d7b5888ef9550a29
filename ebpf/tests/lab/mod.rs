//! Two network namespaces with a cable between them, and a bpffs: what the tests of the classifiers run on.
//! It removes what it made, also what a crashed run before left.
#![allow(dead_code)] // each test uses a part of it

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use freshet_ebpf::{Accounting, Flow, Traffic};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

/// The device at both ends of the cable.
pub(crate) const DEVICE: &str = "fr0";

/// Both ends of the cable.
pub(crate) struct Lab {
    names: [String; 2],
    bpffs: TempDir,
    vlans: bool,
}

/// One end of the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The host under test.
    Host = 0,
    /// Whoever is at the other end.
    Peer = 1,
}

impl Lab {
    /// `None` when this machine does not let us, which is then noted as skipped.
    pub(crate) fn new(test: &str, offloads: bool) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(test, "network namespaces and classifiers need root");
            return None;
        }
        remove_orphans();
        let names = ["h", "p"].map(|end| format!("fr-{test}-{}-{end}", std::process::id()));
        for name in &names {
            ip(&["netns", "add", name]);
        }
        let bpffs = tempfile::tempdir().unwrap();
        run("mount", &["-t", "bpf", "bpf", bpffs.path().to_str().unwrap()]);
        // Not every kernel has VLAN devices; tagged frames made by hand are tested on all.
        let probe =
            ["-n", &names[0], "link", "add", "link", "lo", "name", "fr-probe", "type", "vlan", "id", "7"];
        let vlans = Command::new("ip").args(probe).output().is_ok_and(|output| output.status.success());
        if vlans {
            ip(&["-n", &names[0], "link", "del", "fr-probe"]);
        }
        let lab = Self { names, bpffs, vlans };
        for end in [End::Host, End::Peer] {
            for version in ["mldv1", "mldv2"] {
                let interval =
                    format!("/proc/sys/net/ipv6/conf/default/{version}_unsolicited_report_interval");
                lab.inside(end, || fs::write(interval, "1").unwrap());
            }
        }
        lab.plug(offloads);
        Some(lab)
    }

    /// Addresses of the host on every network: plain, and if the kernel can, VLAN 7 and QinQ 100.7.
    pub(crate) fn addresses(&self) -> &'static [&'static str] {
        let all = &["10.77.0.1", "fd77:0::1", "10.77.7.1", "fd77:7::1", "10.77.107.1", "fd77:107::1"];
        if self.vlans { all } else { &all[..2] }
    }

    /// Lays the cable (anew), with its networks.
    pub(crate) fn plug(&self, offloads: bool) {
        let [host, peer] = &self.names;
        let mac = |n: i32| format!("02:00:00:00:00:0{n}");
        ip(&["link", "add", DEVICE, "netns", host, "type", "veth", "peer", "name", DEVICE, "netns", peer]);
        for (name, n) in self.names.iter().zip(1..) {
            let ip = |args: &[&str]| ip(&[&["-n", name], args].concat());
            ip(&["link", "set", "lo", "up"]);
            let state = if offloads { "on" } else { "off" };
            self.inside(if n == 1 { End::Host } else { End::Peer }, || {
                let all: Vec<&str> =
                    ["gso", "tso", "gro", "tx", "rx", "sg"].iter().flat_map(|&o| [o, state]).collect();
                run("ethtool", &[&["-K", DEVICE], &all[..]].concat());
            });
            // What a host says by itself would be noise in exact counts: it has no neighbour to ask for, and reports its
            // groups at once rather than some time within a second.
            ip(&["link", "set", DEVICE, "address", &mac(n), "addrgenmode", "none"]);
            ip(&["link", "set", DEVICE, "up"]);
            let mut devices = vec![(DEVICE, 0)];
            if self.vlans {
                ip(&["link", "add", "link", DEVICE, "name", "fr0.7", "type", "vlan", "id", "7"]);
                ip(&[
                    "link", "add", "link", DEVICE, "name", "fr0.100", "type", "vlan", "proto", "802.1ad",
                    "id", "100",
                ]);
                ip(&["link", "add", "link", "fr0.100", "name", "fr0.100.7", "type", "vlan", "id", "7"]);
                devices.extend([("fr0.7", 7), ("fr0.100", 100), ("fr0.100.7", 107)]);
            }
            for (device, network) in devices {
                ip(&["link", "set", device, "addrgenmode", "none", "up"]);
                ip(&["addr", "add", &format!("10.77.{network}.{n}/24"), "dev", device]);
                ip(&["addr", "add", &format!("fd77:{network}::{n}/64"), "dev", device, "nodad"]);
                let other = 3 - n;
                for address in [format!("10.77.{network}.{other}"), format!("fd77:{network}::{other}")] {
                    ip(&[
                        "neigh",
                        "replace",
                        &address,
                        "lladdr",
                        &mac(other),
                        "dev",
                        device,
                        "nud",
                        "permanent",
                    ]);
                }
            }
        }
    }

    /// Has every acknowledgement carry the same headers, also one of a segment that came out of order.
    pub(crate) fn without_sack(&self) {
        for end in [End::Host, End::Peer] {
            self.inside(end, || fs::write("/proc/sys/net/ipv4/tcp_sack", "0").unwrap());
        }
    }

    /// Pulls the cable out: both devices are gone.
    pub(crate) fn unplug(&self) {
        ip(&["-n", &self.names[0], "link", "del", DEVICE]);
    }

    /// Runs in the namespace of this end. Sockets that it returns stay in that namespace.
    pub(crate) fn inside<T: Send>(&self, end: End, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.names[end as usize])).unwrap();
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&namespace),
                    Some(LinkNameSpaceType::Network),
                )
                .unwrap();
                work()
            });
            match there.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Name of the namespace.
    pub(crate) fn namespace(&self, end: End) -> &str {
        &self.names[end as usize]
    }

    /// A directory for pins.
    pub(crate) fn pins(&self) -> std::path::PathBuf {
        self.bpffs.path().join("freshet").join("test")
    }

    /// The interface's own statistics.
    pub(crate) fn statistics(&self, end: End) -> Flow {
        let text = self.inside(end, || fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        let line = text.lines().find_map(|l| l.trim().strip_prefix("fr0:")).expect("the device is there");
        let n: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        let traffic = |at: usize| Traffic { bytes: n[at], packets: n[at + 1] };
        Flow { incoming: traffic(0), outgoing: traffic(8) }
    }

    /// Segments that TCP had to send twice at this end.
    pub(crate) fn retransmitted(&self, end: End) -> u64 {
        let text = self.inside(end, || fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let mut lines = text.lines().filter_map(|l| l.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split(' ').position(|n| n == "RetransSegs").unwrap();
        values.split(' ').nth(at).unwrap().parse().unwrap()
    }

    /// What the interface counted beyond us: the same number at any quiet moment if we count exactly.
    pub(crate) fn beyond(&self, end: End, accounting: &mut dyn Accounting) -> [i128; 4] {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let before = self.statistics(end);
            let first = counted(accounting);
            thread::sleep(Duration::from_millis(30));
            let (after, second) = (self.statistics(end), counted(accounting));
            if before == after && first == second {
                let less = |a: u64, b: u64| i128::from(a) - i128::from(b);
                return [
                    less(after.incoming.bytes, second.incoming.bytes),
                    less(after.incoming.packets, second.incoming.packets),
                    less(after.outgoing.bytes, second.outgoing.bytes),
                    less(after.outgoing.packets, second.outgoing.packets),
                ];
            }
            assert!(Instant::now() < deadline, "the cable never gets quiet");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
        let _ = Command::new("umount").arg(self.bpffs.path()).output();
    }
}

/// Namespaces of runs that were killed; their names end in the process and the end of the cable.
fn remove_orphans() {
    let Ok(all) = fs::read_dir("/run/netns") else { return };
    for name in all.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let mut parts = name.rsplit('-');
        let ours = name.starts_with("fr-") && matches!(parts.next(), Some("h" | "p"));
        if let Some(process) = parts.next().filter(|_| ours)
            && process.parse::<u32>().is_ok()
            && !std::path::Path::new("/proc").join(process).exists()
        {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// The sum of all classes of the one interface.
pub(crate) fn counted(accounting: &mut dyn Accounting) -> Flow {
    let reading = accounting.read().unwrap();
    reading.interfaces.iter().flat_map(|i| i.classes).fold(Flow::default(), Flow::plus)
}

/// Sends `bytes` from the listener to a client at the other end, to the last FIN.
pub(crate) fn download(lab: &Lab, listener: &TcpListener, bytes: usize) {
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(&vec![0x5a; bytes]).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0);
        });
        let mut client = lab.inside(End::Peer, || TcpStream::connect(address).unwrap());
        let mut got = vec![0; 1 << 16];
        let mut sum = 0;
        loop {
            match client.read(&mut got).unwrap() {
                0 => break,
                n => sum += n,
            }
        }
        assert_eq!(sum, bytes);
        drop(client);
        server.join().unwrap();
    });
}

/// A listener at the host's end.
pub(crate) fn listen(lab: &Lab, address: &str) -> TcpListener {
    let address: IpAddr = address.parse().unwrap();
    lab.inside(End::Host, || TcpListener::bind(SocketAddr::new(address, 0)).unwrap())
}

/// Notes a skipped test where `cargo xtask test` looks for it. In CI that is a failure.
pub(crate) fn skip(test: &str, why: &str) {
    eprintln!("skipped {test}: {why}");
    if let Some(path) = env::var_os("FRESHET_SKIPS")
        && let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path)
    {
        // One write, so that the lines of tests that run at once stay whole.
        let _ = file.write_all(format!("{test}: {why}\n").as_bytes());
    }
    let ci = env::var_os("CI").is_some_and(|value| value != "false");
    assert!(!ci, "{test} was skipped ({why}), and a skip in CI is a failure");
}

pub(crate) fn ip(args: &[&str]) {
    run("ip", args);
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}", error.trim());
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `done`, or fails with `what`.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "still not: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
