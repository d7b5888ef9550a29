//! A host of a testbed: its addresses, the processes started on it, and its interfaces as the kernel counts them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::link::Link;
use crate::process::{Outputs, ProcessState};
use crate::seat::Seat;
use crate::testbed::{Inner, lock};
use crate::{Cancel, Error, Finished, InterfaceCounters, Process, Program, interface, namespace, wait_until};

/// A host; clones are the same host. It is of no use once its [`crate::Testbed`] is gone.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Weak<Inner>,
    state: Arc<HostState>,
}

impl Host {
    pub(crate) fn new(inner: Weak<Inner>, state: Arc<HostState>) -> Host {
        Host { inner, state }
    }

    /// The name it was made with.
    #[must_use]
    pub fn name(&self) -> &str {
        self.state.name()
    }

    /// The IPv4 address of its first link.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] when the host has no link because making it failed.
    pub fn addr(&self) -> Result<IpAddr, Error> {
        lock(&self.state.links).first().map(|link| link.v4).ok_or_else(|| self.gone())
    }

    /// The IPv4 address of the link that is called `interface` inside the host.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] when there is no such link.
    pub fn addr_of(&self, interface: &str) -> Result<IpAddr, Error> {
        let links = lock(&self.state.links);
        links.iter().find(|link| link.interface == interface).map(|link| link.v4).ok_or_else(|| self.gone())
    }

    /// The IPv6 address of its first link; on loopback the one that all hosts share.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] when the host has no link because making it failed.
    pub fn addr_v6(&self) -> Result<Ipv6Addr, Error> {
        lock(&self.state.links).first().map(|link| link.v6).ok_or_else(|| self.gone())
    }

    /// The namespace's path, where the host is one.
    #[must_use]
    pub fn namespace(&self) -> Option<PathBuf> {
        self.state.netns.as_deref().map(namespace::path)
    }

    /// Adds a link.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] and [`Error::Full`] as named there, and what `ip` and `tc` fail with.
    pub fn add_link(&self, link: &Link) -> Result<(), Error> {
        let addresses = self.inner()?.add_link(self.state.netns.as_deref(), link)?;
        lock(&self.state.links).push(LinkState {
            interface: link.interface.clone(),
            v4: IpAddr::V4(addresses.v4),
            v6: addresses.v6,
            network: addresses.network,
        });
        Ok(())
    }

    /// Cuts the link called `interface`, or joins it again; on loopback, which cannot be cut, an error.
    ///
    /// # Errors
    ///
    /// What `ip` fails with, or [`Error::Gone`] on loopback.
    pub fn set_link(&self, interface: &str, up: bool) -> Result<(), Error> {
        let netns = self.state.netns.as_deref().ok_or_else(|| self.gone())?;
        let wanted = if up { "up" } else { "down" };
        namespace::output("ip", &["-n", netns, "link", "set", interface, wanted])?;
        let links = lock(&self.state.links);
        match links.iter().find(|link| link.interface == interface).and_then(|link| link.network.as_ref()) {
            Some(network) if up => namespace::add_routes(netns, interface, network),
            _ => Ok(()),
        }
    }

    /// A TCP port on the host's first address that was free a moment ago.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub fn free_port(&self) -> Result<u16, Error> {
        let addr = self.addr()?;
        self.on_seat(move || TcpListener::bind((addr, 0)).and_then(|listener| listener.local_addr()))?
            .map(|bound| bound.port())
            .map_err(Error::io(format!("looking for a free port on {}", self.name())))
    }

    /// Does `work` on a thread that is in the host's network namespace; other work on the host waits meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] when the testbed is torn down, or when `work` panics.
    pub fn on_seat<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let seat = lock(&self.state.seat).clone().ok_or_else(|| self.gone())?;
        seat.call(work).ok_or_else(|| self.gone())
    }

    /// Every interface's counters, as the kernel has them; on loopback those of the whole machine.
    ///
    /// # Errors
    ///
    /// When the kernel's table cannot be read.
    pub fn interfaces(&self) -> Result<Vec<InterfaceCounters>, Error> {
        self.on_seat(interface::read)?
    }

    /// Whether something on the host accepts TCP connections to `addr` from here.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] when the testbed is torn down.
    pub fn reaches(&self, addr: SocketAddr) -> Result<bool, Error> {
        self.on_seat(move || TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT).is_ok())
    }

    /// Waits until `addr` accepts connections from this host.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] or [`Error::Cancelled`].
    pub fn wait_for_port(&self, addr: SocketAddr, timeout: Duration) -> Result<(), Error> {
        let what = format!("{addr} to accept a connection from {}", self.name());
        wait_until(&what, timeout, &self.cancel()?, || Ok(self.reaches(addr)?.then_some(())))
    }

    /// Starts a program that is to go on running; what it writes goes to the log named after `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] when it cannot be started.
    pub fn start(&self, name: &str, program: &Program) -> Result<Process, Error> {
        let inner = self.inner()?;
        let log = inner.logs.join(format!("{}-{name}.log", self.name()));
        let title = format!("{name} on {}", self.name());
        let state = self.launch(&inner, title, program, &Outputs::one_log(&log)?)?;
        Ok(Process::new(state, Weak::clone(&self.inner), inner.cancel.clone()))
    }

    /// Runs a program to its end and gives back what it wrote; its exit status is the caller's to judge.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] when it cannot be started; [`Error::Timeout`] and [`Error::Cancelled`] end it first.
    pub fn run(&self, program: &Program, timeout: Duration) -> Result<Finished, Error> {
        let inner = self.inner()?;
        let outputs = Outputs::separate(inner.run.dir())?;
        let state = self.launch(&inner, program.to_string(), program, &outputs)?;
        let process = Process::new(state, Weak::clone(&self.inner), inner.cancel.clone());
        let status = process.wait(timeout)?;
        outputs.finish(status)
    }

    fn launch(
        &self,
        inner: &Arc<Inner>,
        name: String,
        program: &Program,
        outputs: &Outputs,
    ) -> Result<Arc<ProcessState>, Error> {
        let mut command = program.command(outputs)?;
        // The whole start happens on the seat: the child is born in its namespace and tied to that thread.
        let child = self.on_seat(move || command.spawn())?;
        let child = child.map_err(|source| Error::Start { program: program.to_string(), source })?;
        let pid = child.id();
        let state = Arc::new(ProcessState::new(name, outputs, child));
        lock(&inner.processes).push(Arc::clone(&state));
        inner.run.note(pid)?;
        Ok(state)
    }

    fn inner(&self) -> Result<Arc<Inner>, Error> {
        self.inner.upgrade().ok_or_else(|| self.gone())
    }

    fn cancel(&self) -> Result<Cancel, Error> {
        Ok(self.inner()?.cancel.clone())
    }

    fn gone(&self) -> Error {
        Error::Gone { what: format!("host {}", self.name()) }
    }
}

#[derive(Debug)]
pub(crate) struct HostState {
    name: String,
    netns: Option<String>,
    seat: Mutex<Option<Seat>>,
    links: Mutex<Vec<LinkState>>,
}

#[derive(Debug)]
struct LinkState {
    interface: String,
    v4: IpAddr,
    v6: Ipv6Addr,
    network: Option<namespace::Network>,
}

impl HostState {
    pub(crate) fn new(name: &str, netns: Option<String>) -> Result<HostState, Error> {
        let path = netns.as_deref().map(namespace::path);
        let seat = Seat::open(name, path.as_deref())?;
        Ok(HostState { name: name.to_owned(), netns, seat: Mutex::new(Some(seat)), links: Mutex::default() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Gives up the seat: its thread ends, and so does what was started there.
    pub(crate) fn leave(&self) {
        lock(&self.seat).take();
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
