//! Network namespaces, bridges and rate-limited veth pairs, by way of `ip` and `tc`.
//!
//! Every device is made inside namespaces of the run (`ip -n`); the root namespace is never touched.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;
use crate::link::{Link, Rate};

/// Where iproute2 keeps named namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// The path by which a namespace is entered.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Makes a namespace with its loopback up.
pub(crate) fn add(name: &str) -> Result<(), Error> {
    run("ip", &["netns", "add", name])?;
    run("ip", &["-n", name, "link", "set", "lo", "up"])
}

/// Deletes a namespace and with it every device in it; one that is not there is no error.
pub(crate) fn delete(name: &str) -> Result<(), Error> {
    if !path(name).exists() {
        return Ok(());
    }
    run("ip", &["netns", "del", name])
}

/// The processes that live in a namespace.
pub(crate) fn pids(name: &str) -> Result<Vec<i32>, Error> {
    let text = output("ip", &["netns", "pids", name])?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// Makes a bridge in the hub for a network.
pub(crate) fn add_bridge(hub: &str, bridge: &str) -> Result<(), Error> {
    run("ip", &["-n", hub, "link", "add", bridge, "type", "bridge", "mcast_snooping", "0"])?;
    run("ip", &["-n", hub, "link", "set", bridge, "up"])
}

/// The two ends of a link and the addresses of the host's end.
pub(crate) struct Wire<'a> {
    pub(crate) hub: &'a str,
    pub(crate) bridge: &'a str,
    pub(crate) port: &'a str,
    pub(crate) host: &'a str,
    pub(crate) v4: &'a str,
    pub(crate) v6: &'a str,
}

/// Lays a veth pair between a host and the hub and limits both directions.
pub(crate) fn add_link(wire: &Wire<'_>, link: &Link) -> Result<(), Error> {
    let Wire { hub, bridge, port, host, v4, v6 } = wire;
    let name = link.interface.as_str();
    run("ip", &["-n", host, "link", "add", name, "type", "veth", "peer", "name", port, "netns", hub])?;
    run("ip", &["-n", hub, "link", "set", port, "master", bridge, "up"])?;
    run("ip", &["-n", host, "addr", "add", v4, "dev", name])?;
    // Where the kernel has no IPv6 the host simply has none.
    if Path::new("/proc/sys/net/ipv6").exists() {
        run("ip", &["-n", host, "addr", "add", v6, "dev", name, "nodad"])?;
    }
    run("ip", &["-n", host, "link", "set", name, "up"])?;
    if link.segments {
        // The stack then cuts what it sends into single packets itself, and interface counters count each of them.
        run("ip", &["-n", host, "link", "set", name, "gso_max_segs", "1"])?;
        run("ip", &["-n", hub, "link", "set", port, "gso_max_segs", "1"])?;
    }
    limit(host, name, link.up, link)?;
    limit(hub, port, link.down, link)
}

/// Limits what leaves `device`; its queue drops what would wait longer than the link allows.
fn limit(netns: &str, device: &str, rate: Option<Rate>, link: &Link) -> Result<(), Error> {
    let Some(rate) = rate else { return Ok(()) };
    // A tick's worth of bytes at the slowest clock (100 Hz), and never less than one GSO packet.
    let burst = (rate.as_bytes_per_sec() / 100).max(BURST_BYTES_MIN);
    let queue = rate.bytes_in(link.queue).max(QUEUE_BYTES_MIN) + burst;
    let (rate, burst, queue) = (rate.tc(), burst.to_string(), queue.to_string());
    run(
        "tc",
        &[
            "-n", netns, "qdisc", "add", "dev", device, "root", "tbf", "rate", &rate, "burst", &burst,
            "limit", &queue,
        ],
    )
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Error> {
    output(program, arguments).map(drop)
}

/// Runs a system command to its end and gives its standard output.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Result<String, Error> {
    let result = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Start { program: program.to_owned(), source })?;
    if result.status.success() {
        return Ok(String::from_utf8_lossy(&result.stdout).into_owned());
    }
    Err(Error::Command {
        command: format!("{program} {}", arguments.join(" ")),
        status: result.status.to_string(),
        stderr: String::from_utf8_lossy(&result.stderr).trim().to_owned(),
    })
}

const BURST_BYTES_MIN: u64 = 64 * 1024;
const QUEUE_BYTES_MIN: u64 = 32 * 1024;
