//! What passed the network interfaces, by class: delivery, sync, control, and the owner's own traffic.
//!
//! Two sources stand behind one trait: classifiers in the kernel where that is allowed, else the figures that the
//! kernel keeps for our own sockets. Either way every number is a measurement, and [`Accounting::source`] says which.
//! This crate never limits a rate, never decides a policy, and never sends a packet.

pub mod changes;
pub mod classes;
pub mod frames;
pub mod host;
pub mod interfaces;
pub mod kernel;
mod kill_switch;
pub mod reading;
pub mod sockets;
mod sys;

use std::path::PathBuf;

pub use classes::{ClassError, Classes, MarkRule, Outgoing, PortClaim};
pub use freshet_ebpf_abi::{ALL_CLASSES, CLASSES, Class, Config, Direction};
pub use interfaces::{ChosenInterfaces, InterfaceChoice, InterfaceError};
pub use kernel::{
    Cleaned, EmptyPrograms, KernelAccounting, KernelError, ProgramRuns, RunCost, RunTimes, cleanup,
    drop_capabilities, test_run_cost,
};
pub use reading::{Attachment, Epoch, Flow, InterfaceReading, ReadError, Reading, Source, Traffic};
pub use sockets::{MeteredSocket, SocketAccounting, SocketMeter};

/// A source of counters by interface and class.
pub trait Accounting: Send {
    /// Reads all counters. Bounded work, no waiting for the network; meant to be called up to ten times a second.
    ///
    /// # Errors
    /// When the kernel's tables can't be read; the counters are not lost, a later call may work.
    fn read(&mut self) -> Result<Reading, ReadError>;

    /// Which source this is, and why it is not the better one.
    fn source(&self) -> &Source;
}

/// How to count.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which interfaces.
    pub interfaces: InterfaceChoice,
    /// A directory of a bpffs for this daemon alone (e.g. `/sys/fs/bpf/freshet`), so that counts survive a restart and
    /// traffic is counted also while the daemon is down. `None`: the count ends with the process.
    pub pin: Option<PathBuf>,
    /// Which socket marks name a class; `None` to leave marks alone.
    pub marks: Option<MarkRule>,
    /// How to attach; `None` for the best that the kernel has.
    pub attachment: Option<Attachment>,
    /// Whether classifiers may be used at all.
    pub classifiers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interfaces: InterfaceChoice::default(),
            pin: None,
            marks: Some(MarkRule::default()),
            attachment: None,
            classifiers: true,
        }
    }
}

/// Counters, and the register for what they tell apart.
pub struct Opened {
    /// The counters.
    pub accounting: Box<dyn Accounting>,
    /// The register.
    pub classes: Classes,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("source", self.accounting.source()).finish_non_exhaustive()
    }
}

/// Begins to count in the calling thread's network namespace: with classifiers if that is allowed and works, else from
/// our own sockets; [`Accounting::source`] then says why. Pins that can't be made are left out rather than the
/// classifiers, and the log says so.
///
/// # Errors
/// When not even the interfaces can be listed.
pub fn open(options: Options) -> Result<Opened, ReadError> {
    let meter = SocketMeter::new();
    let why = if options.classifiers {
        match open_kernel(&options) {
            Ok((accounting, shared)) => {
                meter.retire();
                let classes = Classes::new(Some(shared), options.marks, meter);
                return Ok(Opened { accounting: Box::new(accounting), classes });
            }
            Err(error) => error.to_string(),
        }
    } else {
        "the configuration says so".to_owned()
    };
    let accounting = SocketAccounting::new(options.interfaces, meter.clone(), why)?;
    let classes = Classes::new(None, options.marks, meter);
    Ok(Opened { accounting: Box::new(accounting), classes })
}

fn open_kernel(options: &Options) -> Result<(KernelAccounting, std::sync::Arc<kernel::Shared>), KernelError> {
    let setup = |pin| kernel::Setup {
        interfaces: interfaces::Interfaces::new(options.interfaces.clone()),
        pin,
        attachment: options.attachment,
        config: options.marks.map_or_else(Config::default, |marks| Config {
            mark_mask: marks.mask,
            mark_base: marks.base,
            ..Config::default()
        }),
    };
    match KernelAccounting::open(setup(options.pin.clone())) {
        Err(error @ KernelError::Pin { .. }) => {
            tracing::warn!(%error, "counting without pins: a restart begins at zero");
            KernelAccounting::open(setup(None))
        }
        opened => opened,
    }
}
