//! Counting by classifiers in the kernel: which interfaces have them, what they counted, what they are told.
//!
//! A thread of its own, which alone keeps the rights for it, attaches and detaches as interfaces come and go. Nobody
//! else here needs a capability, and nothing here touches what others attached.

mod attach;
mod capabilities;
mod cost;
mod keeper;
mod object;
mod pins;
mod ports;
mod runs;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use freshet_ebpf_abi::{CLASSES, Class, Config, Direction};

use crate::Accounting;
use crate::interfaces::Interfaces;
use crate::reading::{Attachment, Flow, InterfaceReading, ReadError, Reading, Source, Traffic};
use attach::Attached;
use keeper::Keeper;
use pins::PinDirectory;
use ports::Ports;

pub use capabilities::drop_capabilities;
pub use cost::{EmptyPrograms, ROUNDS, RunCost, test_run_cost};
pub use pins::{Cleaned, cleanup};
pub use runs::{ProgramRuns, RunTimes};

/// Why classifiers can't be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process may not.
    #[error("expected the capabilities CAP_BPF and CAP_NET_ADMIN, {missing} is missing")]
    Capabilities {
        /// Names of what is missing.
        missing: &'static str,
    },
    /// The pin directory can't be used.
    #[error("can't pin at {}: {error}; it must be below a mounted bpffs (mount -t bpf bpf /sys/fs/bpf), without dots", path.display())]
    Pin {
        /// The directory or pin.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// Another process counts with these pins.
    #[error("{} is in use by another running process; give each its own", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel refused the maps or the programs.
    #[error("the kernel refused the classifiers: {0}")]
    Load(#[from] EbpfError),
    /// A map could not be reached.
    #[error("can't reach a map of the classifiers: {0}")]
    Map(#[from] MapError),
    /// A program could not be loaded or attached.
    #[error("can't attach to {interface}: {error}")]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        error: AttachError,
    },
    /// The object has not what the loader expects.
    #[error("the embedded object has no {what}; it was built from other sources")]
    Object {
        /// The missing part.
        what: &'static str,
    },
    /// The interfaces could not be listed.
    #[error(transparent)]
    Interfaces(#[from] ReadError),
    /// Link changes can't be watched, or the thread for it can't be started.
    #[error("can't watch the interfaces: {0}")]
    Watch(io::Error),
    /// A port has one class.
    #[error("port {port} is registered for {held}, so it can't be for {wanted}")]
    PortTaken {
        /// The port.
        port: u16,
        /// Its class.
        held: Class,
        /// The class asked for.
        wanted: Class,
    },
}

impl KernelError {
    fn attach(interface: &str, error: impl Into<AttachError>) -> Self {
        Self::Attach { interface: interface.to_owned(), error: error.into() }
    }
}

/// At which step attaching failed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The verifier or the attachment.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A link that is or was pinned.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Everything that the reader, the keeper and the handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    interfaces: Interfaces,
    attached: Vec<Attached>,
    ports: Ports,
    config: Config,
    attachment: Attachment,
    pins: Option<PinDirectory>,
    /// Whether the pins go when this ends.
    leave_nothing: bool,
    namespace: u64,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves a list of attachments that the next look at the interfaces completes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes the attachments fit the interfaces that exist. Returns the first thing that failed; the rest is done.
    fn sync(&mut self) -> Result<(), KernelError> {
        self.interfaces.refresh(None)?;
        let mut failed = None;
        for at in 0..self.interfaces.chosen().len() {
            let chosen = &self.interfaces.chosen()[at];
            let known = self.attached.iter().position(|a| a.name == chosen.name);
            let live = known.is_some_and(|k| self.attached[k].live_on(chosen.ifindex));
            match (chosen.present, known) {
                (true, _) if live => {}
                (true, _) => {
                    if let Err(error) = self.attach(at, known) {
                        failed.get_or_insert(error);
                    }
                }
                (false, Some(known)) => self.attached[known].detach(self.pins.as_ref()),
                (false, None) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn attach(&mut self, at: usize, known: Option<usize>) -> Result<(), KernelError> {
        let chosen = &self.interfaces.chosen()[at];
        let before = match known {
            // What is not pinned does not outlive its programs, so its counts are carried in a sum.
            Some(known) if self.pins.is_none() => self.attached[known].flows()?,
            _ => [Flow::default(); CLASSES],
        };
        let epoch = known.map(|known| self.attached[known].epoch);
        let place = attach::Place {
            name: &chosen.name,
            ifindex: chosen.ifindex,
            link_header: chosen.link_header,
            namespace: self.namespace,
            attachment: self.attachment,
        };
        let (ports, config) = (&mut self.ports, self.config);
        let attached = attach::attach(&place, self.pins.as_ref(), epoch, before, |maps, used| {
            maps.set_config(config)?;
            ports.replay(maps, used)
        })?;
        tracing::info!(interface = attached.name, ifindex = chosen.ifindex, by = %self.attachment, "classifiers count");
        match known {
            Some(known) => self.attached[known] = attached,
            None => self.attached.push(attached),
        }
        Ok(())
    }

    fn set_config(&mut self, config: Config) -> Result<(), KernelError> {
        for attached in &mut self.attached {
            attached.maps.set_config(config)?;
        }
        self.config = config;
        Ok(())
    }

    fn config(&self) -> Config {
        self.config
    }

    /// Registers a local port with every interface, now and later.
    fn claim(&mut self, port: u16, class: Class) -> Result<(), KernelError> {
        self.settle_ports()?;
        if self.ports.claim(port, class)? {
            for attached in &mut self.attached {
                attached.maps.set_port(port, class)?;
            }
        }
        Ok(())
    }

    fn release(&mut self, port: u16) {
        self.ports.release(port, Instant::now());
    }

    /// Takes the class from the ports whose time is over.
    fn settle_ports(&mut self) -> Result<(), KernelError> {
        for port in self.ports.due(Instant::now()) {
            for attached in &mut self.attached {
                attached.maps.set_port(port, Class::Other)?;
            }
        }
        Ok(())
    }

    /// Takes off what an earlier run pinned to interfaces that this one does not count.
    fn detach_strangers(&mut self) -> Result<(), KernelError> {
        self.interfaces.refresh(None)?;
        let Some(pins) = &self.pins else { return Ok(()) };
        let chosen: Vec<&str> = self.interfaces.chosen().iter().map(|c| c.name.as_str()).collect();
        pins.detach_others(&chosen)
    }

    /// Takes off what is not pinned, or everything, and lets go of the pins. Handles that outlive this change nothing any
    /// more.
    fn close(&mut self) {
        let pins = self.pins.take();
        if let (Some(pins), true) = (pins, self.leave_nothing) {
            for attached in &mut self.attached {
                attached.withdraw(self.attachment);
            }
            if let Err(error) = pins.remove() {
                tracing::warn!(%error, "pinned counters stay; `dataplane cleanup` removes them");
            }
        }
        self.attached.clear();
    }
}

/// Counters of the classifiers.
#[derive(Debug)]
pub struct KernelAccounting {
    shared: Arc<Shared>,
    source: Source,
    _keeper: Keeper,
}

/// What the kernel source needs to know.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) interfaces: Interfaces,
    pub(crate) pin: Option<PathBuf>,
    pub(crate) attachment: Option<Attachment>,
    pub(crate) config: Config,
}

impl KernelAccounting {
    /// Attaches to the chosen interfaces. Needs CAP_BPF and CAP_NET_ADMIN in the calling thread for this call only.
    pub(crate) fn open(setup: Setup) -> Result<(Self, Arc<Shared>), KernelError> {
        capabilities::check()?;
        // What aya finds out here with all our rights, it would partly miss with the keeper's: whether the kernel takes
        // names of programs.
        let _ = aya::features();
        let attachment = setup.attachment.unwrap_or_else(attach::best);
        let pins = setup.pin.map(PinDirectory::open).transpose()?;
        let source = Source::Kernel { attachment, pinned: pins.as_ref().map(|p| p.path().to_owned()) };
        let state = State {
            interfaces: setup.interfaces,
            attached: Vec::new(),
            ports: Ports::default(),
            config: setup.config,
            attachment,
            pins,
            leave_nothing: false,
            namespace: attach::network_namespace()?,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        let keeper = Keeper::start(Arc::clone(&shared))?;
        Ok((Self { shared: Arc::clone(&shared), source, _keeper: keeper }, shared))
    }
}

impl Accounting for KernelAccounting {
    fn read(&mut self) -> Result<Reading, ReadError> {
        let mut state = self.shared.lock();
        let state = &mut *state;
        let map = |error: KernelError| ReadError::Map { error: error.to_string() };
        state.settle_ports().map_err(map)?;
        state.interfaces.read_totals()?;
        let mut interfaces = Vec::with_capacity(state.attached.len());
        for attached in &state.attached {
            let Some(chosen) = state.interfaces.chosen().iter().find(|c| c.name == attached.name) else {
                continue;
            };
            interfaces.push(InterfaceReading {
                name: attached.name.clone(),
                ifindex: chosen.ifindex,
                present: chosen.present && attached.live_on(chosen.ifindex),
                epoch: attached.epoch,
                totals: chosen.totals,
                classes: attached.flows().map_err(map)?,
            });
        }
        Ok(Reading { interfaces })
    }

    fn source(&self) -> &Source {
        &self.source
    }
}

/// What a handle on the classes asks of the kernel source.
impl Shared {
    pub(crate) fn claim(&self, port: u16, class: Class) -> Result<(), KernelError> {
        self.lock().claim(port, class)
    }

    pub(crate) fn release(&self, port: u16) {
        self.lock().release(port);
    }

    pub(crate) fn leave_nothing(&self) {
        self.lock().leave_nothing = true;
    }

    pub(crate) fn change_config(&self, change: impl FnOnce(&mut Config)) -> Result<(), KernelError> {
        let mut state = self.lock();
        let mut config = state.config();
        change(&mut config);
        state.set_config(config)
    }
}

/// The flow of one class from the counters of both directions.
fn flow(cells: impl Fn(Direction) -> Result<Traffic, KernelError>) -> Result<Flow, KernelError> {
    Ok(Flow { incoming: cells(Direction::In)?, outgoing: cells(Direction::Out)? })
}
