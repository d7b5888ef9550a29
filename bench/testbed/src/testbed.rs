//! The guard that owns a testbed: its networks, hosts and processes, and their end.
//!
//! It decides once, at the start, between namespaces and loopback and says so; nothing later falls back in silence.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::geteuid;

use crate::delay::{self, DelayCost, DelayedLink, Delays};
use crate::host::HostState;
use crate::link::Link;
use crate::namespace::{self, Wire};
use crate::owner::{self, Run};
use crate::process::ProcessState;
use crate::remote::Inventory;
use crate::{Cancel, Error, Host};

/// How a testbed is to be set up; `Options::default()` takes namespaces where it may and loopback elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Never make namespaces, not even as root.
    pub loopback: bool,
    /// Where the processes' logs go; unless set, a directory of the run that is removed with it, or kept until the
    /// next run when the harness panics.
    pub logs: Option<PathBuf>,
    /// Where runs are recorded; unless set, `/run/freshet-testbed` for root and one in the temporary directory for
    /// others.
    pub state: Option<PathBuf>,
    /// Real hosts by name, in place of namespaces: then every host must be one of these.
    pub inventory: Option<Inventory>,
    /// Ends every wait when set.
    pub cancel: Cancel,
}

/// What the hosts are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Every host is a network namespace; links have the rates that were asked for.
    Namespaces,
    /// Every host is an address on loopback; links have no rate, and all share the machine's `lo`.
    Loopback {
        /// Why it is not namespaces.
        why: String,
    },
    /// Every host is a real one that is reached by ssh; links are as they are.
    Remote,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Namespaces => f.write_str("network namespaces, links with rates"),
            Backend::Loopback { why } => write!(f, "loopback, links without rates ({why})"),
            Backend::Remote => f.write_str("hosts reached by ssh, links as they are"),
        }
    }
}

/// Hosts, the links between them and the processes in them; dropping it ends and removes all of it.
#[derive(Debug)]
pub struct Testbed {
    inner: Arc<Inner>,
}

impl Testbed {
    /// Removes what dead runs left, then opens a testbed of its own.
    ///
    /// # Errors
    ///
    /// When the state directory cannot be used, or a leftover cannot be removed.
    pub fn start(options: Options) -> Result<Testbed, Error> {
        let state = options.state.unwrap_or_else(owner::default_state_dir);
        let run = Run::open(&state)?;
        let backend = match options.inventory {
            Some(_) => Backend::Remote,
            None => choose(&run, options.loopback),
        };
        let delays = match &backend {
            Backend::Namespaces => {
                match namespace::has_netem(&run.namespace(HUB)).map_err(|error| error.to_string()) {
                    Ok(()) => Delays::Kernel,
                    Err(why) if delay::is_possible() => Delays::Harness { why },
                    Err(why) => Delays::None { why },
                }
            }
            Backend::Loopback { .. } => {
                Delays::None { why: "there are no links of its own on loopback".to_owned() }
            }
            Backend::Remote => {
                Delays::None { why: "the links of real hosts are not the testbed's to shape".to_owned() }
            }
        };
        let own_logs = options.logs.is_none();
        let logs = options.logs.unwrap_or_else(|| run.dir().join("logs"));
        // From here on `Drop` cleans up, also when one of the next steps fails.
        let testbed = Testbed {
            inner: Arc::new(Inner {
                run,
                backend,
                delays,
                delayed: Mutex::default(),
                inventory: options.inventory,
                logs,
                own_logs,
                cancel: options.cancel,
                networks: Mutex::default(),
                hosts: Mutex::default(),
                processes: Mutex::default(),
            }),
        };
        let logs = &testbed.inner.logs;
        fs::create_dir_all(logs).map_err(Error::io(format!("making {}", logs.display())))?;
        Ok(testbed)
    }

    /// What the hosts are made of, and why.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.inner.backend
    }

    /// What makes links delay and lose packets as they are asked to, if anything does.
    #[must_use]
    pub fn delays(&self) -> &Delays {
        &self.inner.delays
    }

    /// What the harness itself did for links that delay or lose; nothing where the kernel does.
    #[must_use]
    pub fn delay_cost(&self) -> DelayCost {
        let mut cost = DelayCost::default();
        lock(&self.inner.delayed).iter().for_each(|link| link.add_to(&mut cost));
        cost
    }

    /// What ends every wait on this testbed.
    #[must_use]
    pub fn cancel(&self) -> Cancel {
        self.inner.cancel.clone()
    }

    /// Where the processes' logs are.
    #[must_use]
    pub fn logs(&self) -> &Path {
        &self.inner.logs
    }

    /// A directory on disk for states and downloads; it is removed with the testbed, or by the next run after a crash.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn scratch(&self) -> Result<PathBuf, Error> {
        self.inner.run.scratch()
    }

    /// Makes a host with one link, or connects to the real one of that name. `name` is at most 20 of a-z, 0-9 and `-`.
    ///
    /// # Errors
    ///
    /// [`Error::Name`], [`Error::Full`] and [`Error::NotListed`] as named there, and what `ip`, `tc` and `ssh` fail
    /// with.
    pub fn host(&self, name: &str, link: &Link) -> Result<Host, Error> {
        check_name(name, "host", HOST_NAME_MAX)?;
        let state = {
            let mut hosts = lock(&self.inner.hosts);
            if hosts.len() >= HOSTS_MAX {
                return Err(Error::Full { what: "hosts", max: HOSTS_MAX });
            }
            if name == HUB || hosts.iter().any(|host| host.name() == name) {
                return Err(Error::Name { name: name.to_owned(), what: "host", max: HOST_NAME_MAX });
            }
            let netns = match self.inner.backend {
                Backend::Namespaces => {
                    let netns = self.inner.run.namespace(name);
                    namespace::add(&netns)?;
                    Some(netns)
                }
                Backend::Loopback { .. } | Backend::Remote => None,
            };
            let host = Arc::new(HostState::new(name, netns)?);
            hosts.push(Arc::clone(&host));
            host
        };
        let host = Host::new(Arc::downgrade(&self.inner), state);
        match &self.inner.inventory {
            Some(inventory) => {
                let known = || inventory.keys().cloned().collect::<Vec<_>>().join(", ");
                let reach = inventory
                    .get(name)
                    .ok_or_else(|| Error::NotListed { host: name.to_owned(), known: known() })?;
                host.connect(reach)?;
            }
            None => host.add_link(link)?,
        }
        Ok(host)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        let inner = &self.inner;
        let processes = std::mem::take(&mut *lock(&inner.processes));
        let keep = inner.own_logs && std::thread::panicking();
        if keep {
            eprintln!("the testbed's logs stay in {} until the next run", inner.logs.display());
            for process in &processes {
                eprintln!("--- {}{}", process.name(), process.tail());
            }
        }
        for process in &processes {
            process.kill_and_reap();
        }
        for host in std::mem::take(&mut *lock(&inner.hosts)) {
            host.leave();
        }
        let delayed = std::mem::take(&mut *lock(&inner.delayed));
        // All at once: each ends within a moment.
        delayed.iter().for_each(DelayedLink::ask_to_end);
        drop(delayed);
        if let Err(error) = inner.run.close(keep) {
            // The next run tries again; a panic in a drop would only hide what came before.
            eprintln!("the testbed could not remove everything: {error}");
        }
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) run: Run,
    backend: Backend,
    delays: Delays,
    delayed: Mutex<Vec<DelayedLink>>,
    inventory: Option<Inventory>,
    pub(crate) logs: PathBuf,
    own_logs: bool,
    pub(crate) cancel: Cancel,
    networks: Mutex<Vec<Network>>,
    hosts: Mutex<Vec<Arc<HostState>>>,
    pub(crate) processes: Mutex<Vec<Arc<ProcessState>>>,
}

#[derive(Debug)]
struct Network {
    name: String,
    links: u16,
    wires: namespace::Network,
}

/// The addresses that a new link's end has in its host.
#[derive(Debug)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    /// Where it is a namespace's.
    pub(crate) network: Option<namespace::Network>,
}

impl Inner {
    /// Lays a link from `netns` to the link's network, which is made when it is new.
    pub(crate) fn add_link(&self, netns: Option<&str>, link: &Link) -> Result<Addresses, Error> {
        check_name(&link.network, "network", NETWORK_NAME_MAX)?;
        check_name(&link.interface, "interface", INTERFACE_NAME_MAX)?;
        let full = || Error::Full { what: "networks", max: NETWORKS_MAX };
        let mut networks = lock(&self.networks);
        let index = match networks.iter().position(|network| network.name == link.network) {
            Some(index) => index,
            None if networks.len() >= NETWORKS_MAX => {
                return Err(full());
            }
            None => {
                let number = networks.len();
                let wires = wires(u8::try_from(number).map_err(|_| full())?);
                if netns.is_some() {
                    namespace::add_network(&self.run.namespace(HUB), &wires)?;
                }
                networks.push(Network { name: link.network.clone(), links: 0, wires });
                number
            }
        };
        networks[index].links += 1;
        let Network { links: place, wires, .. } = &networks[index];
        let number = u8::try_from(index).map_err(|_| full())?;
        let Some(netns) = netns else {
            let v4 = loopback_address(self.run.number(), number, *place);
            return Ok(Addresses { v4, v6: Ipv6Addr::LOCALHOST, network: None });
        };
        let (v4, v6) = addresses(number, *place);
        let (hub, port) = (self.run.namespace(HUB), format!("n{index}p{place}"));
        let laid = link.is_delayed() && matches!(self.delays, Delays::Harness { .. });
        if laid {
            // Another sequence for each link and direction.
            let seed = link.seed.wrapping_add((u64::from(number) << 32 | u64::from(*place)) << 1);
            let (host_at, hub_at) = (namespace::path(netns), namespace::path(&hub));
            let ends = ((host_at.as_path(), link.interface.as_str()), (hub_at.as_path(), port.as_str()));
            lock(&self.delayed).push(DelayedLink::lay(ends.0, ends.1, link, seed)?);
        }
        let wire = Wire {
            hub: &hub,
            network: wires,
            port: &port,
            host: netns,
            v4: &format!("{v4}/32"),
            v6: &format!("{v6}/128"),
            netem: self.delays == Delays::Kernel,
            laid,
        };
        namespace::add_link(&wire, link)?;
        Ok(Addresses { v4, v6, network: Some(wires.clone()) })
    }
}

fn choose(run: &Run, loopback: bool) -> Backend {
    if loopback {
        return Backend::Loopback { why: "asked for".to_owned() };
    }
    if !geteuid().is_root() {
        return Backend::Loopback { why: "namespaces need root".to_owned() };
    }
    match namespace::add(&run.namespace(HUB)) {
        Ok(()) => Backend::Namespaces,
        Err(error) => Backend::Loopback { why: error.to_string() },
    }
}

/// The hub's part of a network; its addresses are the last of all.
fn wires(network: u8) -> namespace::Network {
    let (gateway_v4, gateway_v6) = addresses(network, GATEWAY_PLACE);
    let bridge = format!("br{network}");
    namespace::Network { bridge, gateway_v4, gateway_v6, prefix_v4: 16, prefix_v6: 64 }
}

fn addresses(network: u8, place: u16) -> (Ipv4Addr, Ipv6Addr) {
    let [high, low] = place.to_be_bytes();
    let v4 = Ipv4Addr::new(10, FIRST_NETWORK + network, high, low);
    (v4, Ipv6Addr::new(0xfd66, 0, 0, u16::from(network), 0, 0, 0, place))
}

/// An address in 127/8 that other runs are unlikely to use, so that the ports of two runs do not meet.
fn loopback_address(run: u32, network: u8, place: u16) -> Ipv4Addr {
    let [_, _, a, b] = run.to_be_bytes();
    let [_, low] = (place + u16::from(network) * 32).to_be_bytes();
    Ipv4Addr::new(127, 64 | (a & 63), b, low)
}

fn check_name(name: &str, what: &'static str, max: usize) -> Result<(), Error> {
    let fits = (1..=max).contains(&name.len())
        && !name.starts_with('-')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits { Ok(()) } else { Err(Error::Name { name: name.to_owned(), what, max }) }
}

/// Locks even when a thread that held the lock has panicked: tearing down must go on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most hosts that one testbed has.
pub const HOSTS_MAX: usize = 200;
/// The most networks that one testbed has.
pub const NETWORKS_MAX: usize = 6;
const HOST_NAME_MAX: usize = 20;
const NETWORK_NAME_MAX: usize = 20;
const INTERFACE_NAME_MAX: usize = 15;
/// Networks are 10.64.0.0/16, 10.65.0.0/16, ...; in namespaces of their own they meet no real ones.
const FIRST_NETWORK: u8 = 64;
const GATEWAY_PLACE: u16 = 0xfffe;
const HUB: &str = "hub";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_ip_would_choke_on_are_refused() {
        for bad in ["", "-a", "a b", "a/b", "A", "a.b", "abcdefghijklmnopqrstu"] {
            assert!(check_name(bad, "host", HOST_NAME_MAX).is_err(), "{bad}");
        }
        assert!(check_name("volunteer-1", "host", HOST_NAME_MAX).is_ok());
    }

    #[test]
    fn two_hosts_of_one_name_are_refused() {
        let state = tempfile::tempdir().unwrap();
        let options = Options { loopback: true, state: Some(state.path().to_owned()), ..Options::default() };
        let testbed = Testbed::start(options).unwrap();
        testbed.host("a", &Link::new()).unwrap();
        assert!(matches!(testbed.host("a", &Link::new()), Err(Error::Name { .. })));
        assert!(matches!(testbed.host("hub", &Link::new()), Err(Error::Name { .. })));
    }

    #[test]
    fn loopback_addresses_are_distinct_within_a_run() {
        let mut seen = std::collections::BTreeSet::new();
        for place in 1..=20 {
            assert!(seen.insert(loopback_address(7, 0, place)));
        }
        assert!(seen.iter().all(Ipv4Addr::is_loopback));
    }
}
