//! What passed the network interfaces, by class: delivery, sync, control, and the owner's own traffic.
//!
//! Two sources stand behind one trait: classifiers in the kernel where that is allowed, else the figures that the
//! kernel keeps for our own sockets. Either way every number is a measurement, and [`Accounting::source`] says which.
//! This crate never limits a rate, never decides a policy, and never sends a packet.

pub mod interfaces;
pub mod reading;
pub mod sockets;
mod sys;

pub use freshet_ebpf_abi::{ALL_CLASSES, CLASSES, Class, Direction};
pub use interfaces::{InterfaceChoice, InterfaceError};
pub use reading::{Epoch, Flow, InterfaceReading, ReadError, Reading, Source, Traffic};
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
