//! One testbed for the demo, the end-to-end tests and the bench: hosts, links with rates, and the processes
//! in them, all owned by one guard.
//!
//! As root every host is a network namespace of its own, wired by veth pairs to a bridge that lives in a hub
//! namespace; the root namespace gets no interface, address or route. Without root every host is an address of
//! its own on loopback and links have no rate; [`Testbed::backend`] says which of the two it is and why.
//!
//! With an inventory the hosts are real ones, reached by ssh, whose links stay as they are.
//!
//! What is started here ends here: [`Testbed`]'s `Drop` ends every process and deletes every namespace, children
//! die with the harness (parent-death signal), and what a killed harness left is removed by the next run, which
//! touches only what belonged to an owner that is dead.
//!
//! It never measures with the programs under test: [`Host::interfaces`] reads the kernel's own counters. Of Freshet's
//! programs only [`cluster`] knows, and only their command lines. It never talks to a network outside the machine,
//! except where [`repository`] has apt download real packages.
// One ioctl in `tap` is all that needs it.
#![deny(unsafe_code)]

mod apt;
mod cancel;
pub mod cluster;
mod delay;
mod error;
mod host;
mod interface;
mod keeper;
mod line;
mod link;
mod namespace;
mod owner;
mod process;
mod remote;
pub mod repository;
mod seat;
mod skip;
mod tap;
mod testbed;
mod wait;

pub use apt::make_apt_root;
pub use cancel::Cancel;
pub use delay::{DelayCost, Delays};
pub use error::Error;
pub use host::Host;
pub use interface::InterfaceCounters;
pub use keeper::Keeper;
pub use link::{Link, Rate};
pub use owner::{remove_leftovers, state_directory};
pub use process::{Finished, Process, Program, Signal};
pub use remote::{Inventory, Reach};
pub use skip::{SKIPS, skip};
pub use testbed::{Backend, HOSTS_MAX, NETWORKS_MAX, Options, Testbed};
pub use wait::wait_until;
