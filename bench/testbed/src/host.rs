//! A host of a testbed: its addresses, the processes started on it, and its interfaces as the kernel counts them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::link::Link;
use crate::process::{Outputs, ProcessState};
use crate::remote::{self, Reach, Remote};
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
        lock(&self.state.links).first().and_then(|link| link.v6).ok_or_else(|| self.gone())
    }

    /// The name of its first link's interface inside the host; `lo` where all hosts share that.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] when the host has no link because making it failed.
    pub fn interface(&self) -> Result<String, Error> {
        if self.state.netns.is_none() && self.state.remote().is_none() {
            return Ok("lo".to_owned());
        }
        lock(&self.state.links).first().map(|link| link.interface.clone()).ok_or_else(|| self.gone())
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
        self.here("laying a link")?;
        let addresses = self.inner()?.add_link(self.state.netns.as_deref(), link)?;
        lock(&self.state.links).push(LinkState {
            interface: link.interface.clone(),
            v4: IpAddr::V4(addresses.v4),
            v6: Some(addresses.v6),
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
        if let Some(remote) = self.state.remote() {
            return Ok(remote.free_port());
        }
        let addr = self.addr()?;
        self.on_seat(move || TcpListener::bind((addr, 0)).and_then(|listener| listener.local_addr()))?
            .map(|bound| bound.port())
            .map_err(Error::io(format!("looking for a free port on {}", self.name())))
    }

    /// Does `work` on a thread that is in the host's network namespace; other work on the host waits meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] when the testbed is torn down, or when `work` panics; [`Error::Elsewhere`] for a host that is
    /// reached by ssh.
    pub fn on_seat<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        self.here("working in its network")?;
        self.seated(work)
    }

    fn seated<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let seat = lock(&self.state.seat).clone().ok_or_else(|| self.gone())?;
        seat.call(work).ok_or_else(|| self.gone())
    }

    /// Every interface's counters, as the kernel has them; on loopback those of the whole machine.
    ///
    /// # Errors
    ///
    /// When the kernel's table cannot be read.
    pub fn interfaces(&self) -> Result<Vec<InterfaceCounters>, Error> {
        if let Some(remote) = self.state.remote() {
            return Ok(InterfaceCounters::parse(&remote.shell("cat /proc/net/dev")?));
        }
        self.on_seat(interface::read)?
    }

    /// Whether something on the host accepts TCP connections to `addr` from here.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] when the testbed is torn down.
    pub fn reaches(&self, addr: SocketAddr) -> Result<bool, Error> {
        if let Some(remote) = self.state.remote() {
            let attempt = format!("exec 3<>/dev/tcp/{}/{}", addr.ip(), addr.port());
            let script = format!("timeout 1 bash -c '{attempt}' 2>/dev/null && echo yes || echo no");
            return Ok(remote.shell(&script)?.trim() == "yes");
        }
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
        let wrapped = self.state.remote().map(|remote| remote.wrap(program));
        self.launch_here(inner, name, wrapped.as_ref().unwrap_or(program), outputs, true)
    }

    fn launch_here(
        &self,
        inner: &Arc<Inner>,
        name: String,
        program: &Program,
        outputs: &Outputs,
        listed: bool,
    ) -> Result<Arc<ProcessState>, Error> {
        let mut command = program.command(outputs)?;
        // The whole start happens on the seat: the child is born in its namespace and tied to that thread.
        let child = self.seated(move || command.spawn())?;
        let child = child.map_err(|source| Error::Start { program: program.to_string(), source })?;
        let pid = child.id();
        let state = Arc::new(ProcessState::new(name, outputs, child));
        if listed {
            lock(&inner.processes).push(Arc::clone(&state));
        }
        inner.run.note(pid)?;
        Ok(state)
    }

    /// Connects to the real host that this is.
    pub(crate) fn connect(&self, reach: &Reach) -> Result<(), Error> {
        let inner = self.inner()?;
        let socket = inner.run.dir().join(format!("ssh-{}", self.name()));
        let (master, guard) = Remote::programs(reach, &socket, inner.run.id());
        let start = |what: &str, program: &Program| {
            let log = inner.logs.join(format!("{}-{what}.log", self.name()));
            let title = format!("the {what} of {}", self.name());
            self.launch_here(&inner, title, program, &Outputs::one_log(&log)?, false)
        };
        let master = start("connection", &master)?;
        if let Err(error) = remote::wait_for_connection(reach, &socket, &master, &inner.cancel) {
            master.kill_and_reap();
            return Err(error);
        }
        let guard = match start("guard", &guard) {
            Ok(guard) => guard,
            Err(error) => {
                master.kill_and_reap();
                return Err(error);
            }
        };
        let remote = Remote::new(reach.clone(), socket, inner.run.id(), master, guard);
        let remote = Arc::new(remote);
        *lock(&self.state.remote) = Some(Arc::clone(&remote));
        let link =
            LinkState { interface: reach.interface.clone(), v4: reach.address, v6: None, network: None };
        lock(&self.state.links).push(link);
        remote.wait_until_ready(&inner.cancel)
    }

    /// Whether it is reached by ssh.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.state.remote().is_some()
    }

    /// Where on the host what is at `local` on this machine stands once [`Host::put`] has copied it; the same path
    /// unless the host is reached by ssh.
    #[must_use]
    pub fn place(&self, local: &Path) -> PathBuf {
        self.state.remote().map_or_else(|| local.to_owned(), |remote| remote.place(local))
    }

    /// Copies a file or tree to its place on a host that is reached by ssh; other hosts see it already.
    ///
    /// # Errors
    ///
    /// [`Error::Command`] when it cannot be copied.
    pub fn put(&self, local: &Path) -> Result<(), Error> {
        self.state.remote().map_or(Ok(()), |remote| remote.put(local))
    }

    /// Makes the directory in whose place `local` stands, with those above it.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn make_directory(&self, local: &Path) -> Result<(), Error> {
        match self.state.remote() {
            Some(remote) => remote.shell(&format!("mkdir -p '{}'", remote.place(local).display())).map(drop),
            None => std::fs::create_dir_all(local).map_err(Error::io(format!("making {}", local.display()))),
        }
    }

    /// Moves a file or tree of this machine to another place on the host, in one step there.
    ///
    /// # Errors
    ///
    /// When there is something already, or it cannot be moved.
    pub fn move_into(&self, local: &Path, to: &Path) -> Result<(), Error> {
        let moving = || format!("moving {} to {}", local.display(), to.display());
        match self.state.remote() {
            Some(remote) => {
                remote.put(local)?;
                let (from, to) = (remote.place(local), remote.place(to));
                remote.shell(&format!("mv -T -n '{}' '{}'", from.display(), to.display())).map(drop)
            }
            None => std::fs::rename(local, to).map_err(Error::io(moving())),
        }
    }

    /// Reads the text of the file in whose place `local` stands.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read_text(&self, local: &Path) -> Result<String, Error> {
        match self.state.remote() {
            Some(remote) => remote.shell(&format!("cat '{}'", remote.place(local).display())),
            None => std::fs::read_to_string(local).map_err(Error::io(format!("reading {}", local.display()))),
        }
    }

    /// Writes the file in whose place `local` stands.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write_text(&self, local: &Path, text: &str) -> Result<(), Error> {
        match self.state.remote() {
            Some(remote) => remote.write(local, text),
            None => std::fs::write(local, text).map_err(Error::io(format!("writing {}", local.display()))),
        }
    }

    /// Fails for a host whose network is not ours.
    fn here(&self, doing: &'static str) -> Result<(), Error> {
        if self.is_remote() { Err(Error::Elsewhere { host: self.name().to_owned(), doing }) } else { Ok(()) }
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
    remote: Mutex<Option<Arc<Remote>>>,
}

#[derive(Debug)]
struct LinkState {
    interface: String,
    v4: IpAddr,
    v6: Option<Ipv6Addr>,
    network: Option<namespace::Network>,
}

impl HostState {
    pub(crate) fn new(name: &str, netns: Option<String>) -> Result<HostState, Error> {
        let path = netns.as_deref().map(namespace::path);
        let seat = Seat::open(name, path.as_deref())?;
        Ok(HostState {
            name: name.to_owned(),
            netns,
            seat: Mutex::new(Some(seat)),
            links: Mutex::default(),
            remote: Mutex::default(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn remote(&self) -> Option<Arc<Remote>> {
        lock(&self.remote).clone()
    }

    /// Gives up the seat: its thread ends, and so does what was started there.
    pub(crate) fn leave(&self) {
        if let Some(remote) = lock(&self.remote).take() {
            remote.leave();
        }
        lock(&self.seat).take();
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
