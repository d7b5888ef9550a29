//! Network namespaces, bridges and rate-limited veth pairs, by way of `ip` and `tc`.
//!
//! Every device is made inside namespaces of the run (`ip -n`); the root namespace is never touched.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Error;
use crate::delay::INTERFACE_FRAMES;
use crate::link::{Link, Queue, Rate};

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

/// A network of hosts: the hub's bridge, and the addresses by which the hub passes packets on between them.
///
/// Hosts know the hub and not each other: the kernel's neighbour table is one for all namespaces and holds about a
/// thousand, fewer than forty hosts that all talk to each other need.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) bridge: String,
    pub(crate) gateway_v4: Ipv4Addr,
    pub(crate) gateway_v6: Ipv6Addr,
    /// Bits of the addresses that all its hosts share.
    pub(crate) prefix_v4: u8,
    pub(crate) prefix_v6: u8,
}

/// Makes the hub's part of a network.
pub(crate) fn add_network(hub: &str, network: &Network) -> Result<(), Error> {
    let Network { bridge, gateway_v4, gateway_v6, prefix_v4, prefix_v6 } = network;
    // A bridge without an address of its own takes the lowest of its ports', another one as soon as a port with a lower
    // one joins. Hosts that were there before then send to the old one, in vain for most of a minute.
    let [a, b, c, d] = gateway_v4.octets();
    let address = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    run(
        "ip",
        &["-n", hub, "link", "add", bridge, "address", &address, "type", "bridge", "mcast_snooping", "0"],
    )?;
    set(hub, "net/ipv4/ip_forward", "1")?;
    // It would tell the hosts to talk to each other directly.
    set(hub, "net/ipv4/conf/all/send_redirects", "0")?;
    set(hub, &format!("net/ipv4/conf/{bridge}/send_redirects"), "0")?;
    run("ip", &["-n", hub, "addr", "add", &format!("{gateway_v4}/{prefix_v4}"), "dev", bridge])?;
    if has_ipv6() {
        set(hub, "net/ipv6/conf/all/forwarding", "1")?;
        // It asks for its neighbours by its link-local address, which else may not be used for a second.
        set(hub, &format!("net/ipv6/conf/{bridge}/accept_dad"), "0")?;
        run("ip", &["-n", hub, "addr", "add", &format!("{gateway_v6}/{prefix_v6}"), "dev", bridge, "nodad"])?;
    }
    run("ip", &["-n", hub, "link", "set", bridge, "up"])
}

/// Tells a host by which interface the hosts of a network are reached; the kernel forgets it when the link is cut.
pub(crate) fn add_routes(host: &str, interface: &str, network: &Network) -> Result<(), Error> {
    let Network { gateway_v4, gateway_v6, prefix_v4, prefix_v6, .. } = network;
    let shared = u32::MAX.checked_shl(u32::from(32 - prefix_v4)).unwrap_or(0);
    let first = Ipv4Addr::from_bits(gateway_v4.to_bits() & shared);
    let (via, all) = (gateway_v4.to_string(), format!("{first}/{prefix_v4}"));
    run("ip", &["-n", host, "route", "replace", &via, "dev", interface])?;
    run("ip", &["-n", host, "route", "replace", &all, "via", &via, "dev", interface])?;
    if has_ipv6() {
        let shared = u128::MAX.checked_shl(u32::from(128 - prefix_v6)).unwrap_or(0);
        let first = Ipv6Addr::from_bits(gateway_v6.to_bits() & shared);
        let (via, all) = (gateway_v6.to_string(), format!("{first}/{prefix_v6}"));
        run("ip", &["-n", host, "-6", "route", "replace", &via, "dev", interface])?;
        run("ip", &["-n", host, "-6", "route", "replace", &all, "via", &via, "dev", interface])?;
    }
    Ok(())
}

/// Where the kernel has no IPv6 the hosts simply have none.
fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Sets a parameter of the kernel that a namespace has to itself.
fn set(netns: &str, parameter: &str, value: &str) -> Result<(), Error> {
    let script = format!("echo {value} > /proc/sys/{parameter}");
    run("ip", &["netns", "exec", netns, "sh", "-c", &script])
}

/// The two ends of a link and the addresses of the host's end.
pub(crate) struct Wire<'a> {
    pub(crate) hub: &'a str,
    pub(crate) network: &'a Network,
    pub(crate) port: &'a str,
    pub(crate) host: &'a str,
    pub(crate) v4: &'a str,
    pub(crate) v6: &'a str,
    /// Whether the kernel has what delays and loses.
    pub(crate) netem: bool,
    /// Whether both ends are there already, laid by the harness.
    pub(crate) laid: bool,
}

/// Lays a veth pair between a host and the hub, unless there is another link already, and limits both directions.
pub(crate) fn add_link(wire: &Wire<'_>, link: &Link) -> Result<(), Error> {
    let Wire { hub, network, port, host, v4, v6, netem, laid } = wire;
    let name = link.interface.as_str();
    if *laid {
        for (netns, end) in [(host, name), (hub, *port)] {
            run("ip", &["-n", netns, "link", "set", end, "txqueuelen", INTERFACE_FRAMES])?;
        }
    } else {
        run("ip", &["-n", host, "link", "add", name, "type", "veth", "peer", "name", port, "netns", hub])?;
    }
    run("ip", &["-n", hub, "link", "set", port, "master", &network.bridge, "up"])?;
    run("ip", &["-n", host, "addr", "add", v4, "dev", name])?;
    if has_ipv6() {
        run("ip", &["-n", host, "addr", "add", v6, "dev", name, "nodad"])?;
    }
    run("ip", &["-n", host, "link", "set", name, "up"])?;
    add_routes(host, name, network)?;
    if link.segments {
        // The stack then cuts what it sends into single packets itself, and interface counters count each of them.
        run("ip", &["-n", host, "link", "set", name, "gso_max_segs", "1"])?;
        run("ip", &["-n", hub, "link", "set", port, "gso_max_segs", "1"])?;
    }
    // A host's own queue holds its sockets back rather than drop, as an interface's of the usual length does: what is
    // counted on its way there leaves.
    let own_queue = if link.segments { OWN_QUEUE_BYTES } else { QUEUE_BYTES_MIN };
    shape(host, name, link.up, own_queue, link, *netem)?;
    shape(hub, port, link.down, QUEUE_BYTES_MIN, link, *netem)
}

/// Delays and loses what leaves `device`, where that is wanted and can be had, and limits it.
fn shape(
    netns: &str,
    device: &str,
    rate: Option<Rate>,
    queue_min: u64,
    link: &Link,
    netem: bool,
) -> Result<(), Error> {
    if !netem || !link.is_delayed() {
        return limit(netns, device, &["root"], rate, queue_min, link);
    }
    // As tc-netem(8) has it: the limit hangs below.
    let (delay, loss) = (format!("{}us", link.delay.as_micros()), format!("{}%", link.loss_percent));
    let netem = ["root", "handle", "1:0", "netem", "delay", &delay, "loss", &loss, "limit", NETEM_PACKETS];
    run("tc", &[&["-n", netns, "qdisc", "add", "dev", device], &netem[..]].concat())?;
    limit(netns, device, &["parent", "1:1", "handle", "10:"], rate, queue_min, link)
}

/// Whether the kernel can delay and lose packets; `netns` is a namespace of ours, whose loopback is tried.
pub(crate) fn has_netem(netns: &str) -> Result<(), Error> {
    run("tc", &["-n", netns, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])?;
    run("tc", &["-n", netns, "qdisc", "del", "dev", "lo", "root"])
}

/// Limits what leaves `device`; its queue drops what would wait longer than the link allows, and no sooner than it has
/// `queue_min` bytes.
fn limit(
    netns: &str,
    device: &str,
    place: &[&str],
    rate: Option<Rate>,
    queue_min: u64,
    link: &Link,
) -> Result<(), Error> {
    let Some(rate) = rate else { return Ok(()) };
    // A tick's worth of bytes at the slowest clock (100 Hz), and never less than one GSO packet.
    let burst = (rate.as_bytes_per_sec() / 100).max(BURST_BYTES_MIN);
    let wanted = match link.queue {
        Queue::Time(time) => rate.bytes_in(time),
        Queue::Bytes(bytes) => bytes,
    };
    let queue = wanted.max(queue_min) + burst;
    let (rate, burst, queue) = (rate.tc(), burst.to_string(), queue.to_string());
    let tbf = ["tbf", "rate", &rate, "burst", &burst, "limit", &queue];
    run("tc", &[&["-n", netns, "qdisc", "add", "dev", device], place, &tbf[..]].concat())
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

/// Waiting in a delayed direction: enough for a second at 1 Gbit/s.
const NETEM_PACKETS: &str = "100000";
const BURST_BYTES_MIN: u64 = 64 * 1024;
/// A thousand full frames.
const OWN_QUEUE_BYTES: u64 = 1_000 * 1_514;
const QUEUE_BYTES_MIN: u64 = 32 * 1024;
