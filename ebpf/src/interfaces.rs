//! Which network interfaces are counted, and the statistics that the kernel keeps of each.
//! Everything is asked of the network namespace of the thread that looks; it never changes an interface.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::reading::{Flow, ReadError, Traffic};
use crate::sys::{self, Link};

/// Which interfaces the operator wants counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum InterfaceChoice {
    /// Those with a default route; without one all but the loopback; the loopback only when there is nothing else.
    #[default]
    Automatic,
    /// Those whose name matches one of these; `*` stands for any characters, `?` for one.
    Matching(Vec<Pattern>),
}

/// A name of an interface, possibly with `*` and `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// Why a choice of interfaces is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// Something that can't be an interface's name.
    #[error(
        "expected \"auto\" or interface names (at most 15 characters, no slash or space; * and ? match), got {0:?}"
    )]
    Name(String),
}

impl FromStr for InterfaceChoice {
    type Err = InterfaceError;

    /// `auto`, or names and patterns with commas between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Automatic);
        }
        text.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>().map(Self::Matching)
    }
}

impl FromStr for Pattern {
    type Err = InterfaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if text.is_empty() || text.len() > NAME_LEN_MAX || text.chars().any(bad) {
            return Err(InterfaceError::Name(text.into()));
        }
        Ok(Self(text.into()))
    }
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        glob(self.0.as_bytes(), name.as_bytes())
    }
}

/// Bounded by the lengths of both: 15 characters each.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skip| glob(rest, &name[skip..])),
        ([b'?', rest @ ..], [_, tail @ ..]) => glob(rest, tail),
        ([p, rest @ ..], [n, tail @ ..]) => p == n && glob(rest, tail),
        _ => false,
    }
}

/// Interfaces that are counted; one more is left out, and the log says so.
pub const INTERFACES_MAX: usize = 32;

/// `IFNAMSIZ` less the NUL.
const NAME_LEN_MAX: usize = 15;

impl InterfaceChoice {
    /// The chosen ones among `links`. `routed` are the names with a default route.
    fn select<'a>(&self, links: &'a [Link], routed: &[String]) -> Vec<&'a Link> {
        let named = |wanted: &dyn Fn(&Link) -> bool| links.iter().filter(|l| wanted(l)).collect::<Vec<_>>();
        match self {
            Self::Matching(patterns) => named(&|l| patterns.iter().any(|p| p.matches(&l.name))),
            Self::Automatic => {
                let with_route = named(&|l| !l.loopback && routed.contains(&l.name));
                if !with_route.is_empty() {
                    return with_route;
                }
                let outward = named(&|l| !l.loopback && !l.addresses.is_empty());
                if outward.is_empty() { named(&|l| l.loopback) } else { outward }
            }
        }
    }
}

/// A chosen interface and what is known of it now.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    pub(crate) present: bool,
    /// Bytes in front of the IP header.
    pub(crate) link_header: u32,
    pub(crate) addresses: Vec<IpAddr>,
    /// Statistics, carried on when the interface is made anew.
    pub(crate) totals: Flow,
    /// What `totals` was when the interface was first seen.
    pub(crate) totals_at_first: Flow,
    loopback: bool,
    raw: Option<Flow>,
}

/// Where the traffic of a local address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Over the chosen interface at this position.
    Chosen(usize),
    /// Over an interface that is not counted.
    Elsewhere,
    /// No interface has the address at the last look.
    Unknown,
}

/// The chosen interfaces over time: one that was chosen once stays, so that counts never shrink.
#[derive(Debug)]
pub(crate) struct Interfaces {
    choice: InterfaceChoice,
    chosen: Vec<Chosen>,
    links: Vec<Link>,
    /// Open, it belongs to the namespace of whoever opened it, whichever thread reads.
    net_dev: Option<File>,
    /// For a local address that no interface has any more: the first with a default route.
    fallback: Option<usize>,
    looked: Option<Instant>,
}

impl Interfaces {
    pub(crate) fn new(choice: InterfaceChoice) -> Self {
        Self { choice, chosen: Vec::new(), links: Vec::new(), net_dev: None, fallback: None, looked: None }
    }

    /// The chosen interfaces as of the last refresh.
    pub(crate) fn chosen(&self) -> &[Chosen] {
        &self.chosen
    }

    /// Looks at the namespace's interfaces again if the last look is older than `LOOK_EVERY`, or at once if `now`
    /// is not given.
    pub(crate) fn refresh(&mut self, now: Option<Instant>) -> Result<(), ReadError> {
        if let (Some(now), Some(looked)) = (now, self.looked)
            && now.saturating_duration_since(looked) < LOOK_EVERY
        {
            return Ok(());
        }
        if self.net_dev.is_none() {
            let opened = File::open(NET_DEV).map_err(|error| ReadError::Kernel { what: NET_DEV, error })?;
            self.net_dev = Some(opened);
        }
        let links = sys::links().map_err(|error| ReadError::Kernel { what: "the interfaces", error })?;
        let routed = default_routes();
        let selected = self.choice.select(&links, &routed);
        for known in &mut self.chosen {
            known.present = false;
        }
        let limit = INTERFACES_MAX;
        for link in selected {
            let at = match self.chosen.iter().position(|c| c.name == link.name) {
                Some(at) => at,
                None if self.chosen.len() == limit => {
                    tracing::warn!(
                        interface = link.name,
                        limit,
                        "not counted: too many interfaces are chosen"
                    );
                    continue;
                }
                None => {
                    self.chosen.push(Chosen::new(link));
                    self.chosen.len() - 1
                }
            };
            self.chosen[at].update(link);
        }
        // An interface that lost its default route is still ours to count.
        for known in self.chosen.iter_mut().filter(|c| !c.present) {
            if let Some(link) = links.iter().find(|l| l.name == known.name) {
                known.update(link);
            }
        }
        self.fallback = routed.iter().find_map(|r| self.chosen.iter().position(|c| c.name == *r));
        self.links = links;
        self.looked = Some(now.unwrap_or_else(Instant::now));
        Ok(())
    }

    /// Reads the statistics of every chosen interface.
    pub(crate) fn read_totals(&mut self) -> Result<(), ReadError> {
        let text = self.net_dev().map_err(|error| ReadError::Kernel { what: NET_DEV, error })?;
        let mut seen = [false; INTERFACES_MAX];
        for line in text.lines().skip(2) {
            let (name, flow) = net_dev_line(line)
                .ok_or_else(|| ReadError::Format { file: NET_DEV, line: line.chars().take(120).collect() })?;
            if let Some(at) = self.chosen.iter().position(|c| c.name == name) {
                self.chosen[at].count(flow);
                seen[at] = true;
            }
        }
        for (chosen, seen) in self.chosen.iter_mut().zip(seen) {
            chosen.present &= seen;
        }
        Ok(())
    }

    fn net_dev(&mut self) -> io::Result<String> {
        let Some(file) = &mut self.net_dev else { return Ok(String::new()) };
        file.rewind()?;
        let mut text = String::with_capacity(1024);
        file.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Where packets between these two addresses pass, as of the last look.
    pub(crate) fn place(&self, local: IpAddr, peer: IpAddr) -> Place {
        // Between two addresses of one host packets take the loopback, whatever interface has the addresses.
        let inward = local.is_loopback() || self.links.iter().any(|l| l.addresses.contains(&peer));
        let chosen = |wanted: &dyn Fn(&Chosen) -> bool| match self.chosen.iter().position(wanted) {
            Some(at) => Place::Chosen(at),
            None => Place::Elsewhere,
        };
        if inward {
            return chosen(&|c| c.loopback);
        }
        if self.links.iter().any(|l| l.addresses.contains(&local)) {
            return chosen(&|c| c.addresses.contains(&local));
        }
        Place::Unknown
    }

    /// The interface that counts for an address which is [`Place::Unknown`], for one because it was removed since.
    pub(crate) fn fallback(&self) -> Option<usize> {
        self.fallback.or_else(|| (!self.chosen.is_empty()).then_some(0))
    }
}

impl Chosen {
    fn new(link: &Link) -> Self {
        Self {
            name: link.name.clone(),
            ifindex: 0,
            present: true,
            link_header: 0,
            addresses: Vec::new(),
            totals: Flow::default(),
            totals_at_first: Flow::default(),
            loopback: link.loopback,
            raw: None,
        }
    }

    fn update(&mut self, link: &Link) {
        self.present = true;
        if self.ifindex != link.ifindex {
            // Another device of the same name starts at zero.
            self.raw = self.raw.map(|_| Flow::default());
            self.ifindex = link.ifindex;
        }
        self.link_header = link_header(link.hardware);
        self.addresses.clone_from(&link.addresses);
    }

    fn count(&mut self, raw: Flow) {
        let gained = match self.raw {
            Some(last) if shrunk(last, raw) => raw,
            Some(last) => raw.minus(last),
            None => {
                self.totals_at_first = raw;
                raw
            }
        };
        self.totals = self.totals.plus(gained);
        self.raw = Some(raw);
    }
}

/// Whether an interface's statistics began anew.
fn shrunk(last: Flow, now: Flow) -> bool {
    now.incoming.bytes < last.incoming.bytes || now.outgoing.bytes < last.outgoing.bytes
}

/// The interfaces that a choice means, for those who follow them without counting.
#[derive(Debug)]
pub struct ChosenInterfaces {
    interfaces: Interfaces,
}

impl ChosenInterfaces {
    /// None yet; [`ChosenInterfaces::present`] looks.
    #[must_use]
    pub fn new(choice: InterfaceChoice) -> Self {
        Self { interfaces: Interfaces::new(choice) }
    }

    /// Those that are there now, by number and name, in the calling thread's network namespace. What was chosen once
    /// stays chosen, as it does for the counters.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn present(&mut self) -> Result<Vec<(u32, String)>, ReadError> {
        self.interfaces.refresh(None)?;
        let present = self.interfaces.chosen().iter().filter(|chosen| chosen.present);
        Ok(present.map(|chosen| (chosen.ifindex, chosen.name.clone())).collect())
    }
}

/// All interfaces of the calling thread's network namespace, by number and name.
///
/// # Errors
/// When the kernel does not list them.
pub fn all() -> Result<Vec<(u32, String)>, ReadError> {
    let links = sys::links().map_err(|error| ReadError::Kernel { what: "the interfaces", error })?;
    Ok(links.into_iter().map(|link| (link.ifindex, link.name)).collect())
}

/// Names of all interfaces.
pub(crate) fn names() -> Result<Vec<String>, ReadError> {
    let links = sys::links().map_err(|error| ReadError::Kernel { what: "the interfaces", error })?;
    Ok(links.into_iter().map(|link| link.name).collect())
}

/// Bytes in front of the IP header by ARPHRD type; tunnels and other layer-3 devices have none.
fn link_header(hardware: u16) -> u32 {
    match hardware {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => 14,
        _ => 0,
    }
}

/// Names of the interfaces with a default route of either family, the best metric first, each once.
fn default_routes() -> Vec<String> {
    let mut routes: Vec<(u32, String)> = Vec::new();
    // A kernel without one of the families has no such file, and then there is no such route.
    if let Ok(text) = fs::read_to_string("/proc/thread-self/net/route") {
        routes.extend(text.lines().skip(1).filter_map(route4_line));
    }
    if let Ok(text) = fs::read_to_string("/proc/thread-self/net/ipv6_route") {
        routes.extend(text.lines().filter_map(route6_line));
    }
    routes.sort_by_key(|(metric, _)| *metric);
    let mut names = Vec::new();
    for (_, name) in routes {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`, addresses in hex.
fn route4_line(line: &str) -> Option<(u32, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (&name, &destination, &flags) = (fields.first()?, fields.get(1)?, fields.get(3)?);
    let (&metric, &mask) = (fields.get(6)?, fields.get(7)?);
    let usable = u32::from_str_radix(flags, 16).ok()? & u32::from(libc::RTF_REJECT) == 0;
    (destination == "00000000" && mask == "00000000" && usable)
        .then(|| Some((metric.parse().ok()?, name.to_owned())))?
}

/// `destination prefix source prefix gateway metric refcnt use flags iface`, all hex.
fn route6_line(line: &str) -> Option<(u32, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (&destination, &prefix) = (fields.first()?, fields.get(1)?);
    let (&metric, &flags, &name) = (fields.get(5)?, fields.get(8)?, fields.get(9)?);
    let usable = u32::from_str_radix(flags, 16).ok()? & u32::from(libc::RTF_REJECT) == 0;
    let default = prefix == "00" && destination.bytes().all(|b| b == b'0');
    (default && usable && name != "lo")
        .then(|| Some((u32::from_str_radix(metric, 16).ok()?, name.to_owned())))?
}

/// `name: rx_bytes rx_packets 6 more tx_bytes tx_packets 6 more`.
fn net_dev_line(line: &str) -> Option<(&str, Flow)> {
    let (name, counts) = line.rsplit_once(':')?;
    let mut counts = counts.split_whitespace().map(str::parse::<u64>);
    let mut at = |skip| counts.nth(skip)?.ok();
    let incoming = Traffic { bytes: at(0)?, packets: at(0)? };
    let outgoing = Traffic { bytes: at(6)?, packets: at(0)? };
    Some((name.trim(), Flow { incoming, outgoing }))
}

/// `/proc/net` is the main thread's namespace; `/sys/class/net` that of whoever mounted it.
const NET_DEV: &str = "/proc/thread-self/net/dev";

/// How often the list of interfaces is looked at again without a reason.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link(name: &str, ifindex: u32, addresses: &[&str]) -> Link {
        Link {
            name: name.into(),
            ifindex,
            hardware: libc::ARPHRD_ETHER,
            loopback: name == "lo",
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn names(choice: &str, links: &[Link], routed: &[&str]) -> Vec<String> {
        let routed: Vec<String> = routed.iter().map(|&r| r.into()).collect();
        let choice: InterfaceChoice = choice.parse().unwrap();
        choice.select(links, &routed).iter().map(|l| l.name.clone()).collect()
    }

    #[test]
    fn automatic_prefers_the_default_route_and_takes_the_loopback_last() {
        let lo = link("lo", 1, &["127.0.0.1"]);
        let all = [lo.clone(), link("eth0", 2, &["10.0.0.1"]), link("eth1", 3, &["10.1.0.1"])];
        assert_eq!(names("auto", &all, &["eth1"]), ["eth1"]);
        assert_eq!(names("auto", &all, &[]), ["eth0", "eth1"]);
        assert_eq!(names("auto", &[lo], &[]), ["lo"]);
    }

    #[test]
    fn names_and_patterns_choose_also_the_loopback() {
        let all = [link("lo", 1, &[]), link("eth0", 2, &[]), link("eth10", 3, &[]), link("wg0", 4, &[])];
        assert_eq!(names("lo", &all, &["eth0"]), ["lo"]);
        assert_eq!(names("eth?", &all, &[]), ["eth0"]);
        assert_eq!(names("eth*, wg0", &all, &[]), ["eth0", "eth10", "wg0"]);
        assert_eq!(names("nothing", &all, &[]), [""; 0]);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "eth0,", "a/b", "a b", "a\0", "sixteen-letters-", "eth0:1"] {
            assert_eq!(
                text.parse::<InterfaceChoice>(),
                Err(InterfaceError::Name(match text {
                    "eth0," => String::new(),
                    other => other.into(),
                }))
            );
        }
    }

    #[test]
    fn default_routes_are_recognised() {
        let v4 = "eth0\t00000000\t0102000A\t0003\t0\t0\t100\t00000000\t0\t0\t0";
        assert_eq!(route4_line(v4), Some((100, "eth0".into())));
        assert_eq!(route4_line("eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"), None);
        let zero = "0".repeat(32);
        let v6 = format!("{zero} 00 {zero} 00 {zero} 00000400 00000001 00000000 00000003 eth0");
        assert_eq!(route6_line(&v6), Some((1024, "eth0".into())));
        let reject = format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo");
        assert_eq!(route6_line(&reject), None);
    }

    #[test]
    fn a_line_of_statistics_is_read() {
        let line = "  eth0: 5000000000 7 0 0 0 0 0 0 6000000000 9 0 0 0 0 0 0";
        let (name, flow) = net_dev_line(line).unwrap();
        assert_eq!((name, flow.incoming.bytes, flow.incoming.packets), ("eth0", 5_000_000_000, 7));
        assert_eq!((flow.outgoing.bytes, flow.outgoing.packets), (6_000_000_000, 9));
        assert!(net_dev_line("eth0: 1 2 3").is_none());
    }

    #[test]
    fn totals_go_on_when_a_device_is_made_anew() {
        let mut chosen = Chosen::new(&link("eth0", 2, &[]));
        let flow = |bytes| Flow { incoming: Traffic { bytes, packets: 1 }, outgoing: Traffic::default() };
        chosen.update(&link("eth0", 2, &[]));
        chosen.count(flow(100));
        chosen.count(flow(150));
        assert_eq!(chosen.totals_at_first.incoming.bytes, 100);
        chosen.update(&link("eth0", 9, &[]));
        chosen.count(flow(700));
        assert_eq!(chosen.totals.incoming.bytes, 850);
        chosen.count(flow(30));
        assert_eq!(chosen.totals.incoming.bytes, 880);
    }

    #[test]
    fn the_loopback_counts_itself() {
        let mut interfaces = Interfaces::new("lo".parse().unwrap());
        interfaces.refresh(None).unwrap();
        interfaces.read_totals().unwrap();
        let lo = &interfaces.chosen()[0];
        assert!(lo.present && lo.ifindex > 0 && lo.link_header == 14);
        let local = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(interfaces.place(local("127.0.0.1"), local("127.0.0.1")), Place::Chosen(0));
        assert_eq!(interfaces.place(local("127.9.9.9"), local("127.0.0.1")), Place::Chosen(0));
        assert_eq!(interfaces.place(local("192.0.2.77"), local("192.0.2.78")), Place::Unknown);
        assert_eq!(interfaces.fallback(), Some(0));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(line in "\\PC{0,200}") {
            let _ = (route4_line(&line), route6_line(&line), net_dev_line(&line), line.parse::<InterfaceChoice>());
        }

        #[test]
        fn a_name_matches_itself_and_stars(name in "[a-z0-9.@-]{1,15}") {
            prop_assert!(name.parse::<Pattern>().unwrap().matches(&name));
            prop_assert!("*".parse::<Pattern>().unwrap().matches(&name));
        }
    }
}
