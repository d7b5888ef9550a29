//! End to end: the built programs as processes, and real clients that know nothing of Freshet.
//!
//! As root every host is a network namespace; otherwise all are on loopback. `cargo xtask test` builds the programs
//! first.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apt_customers;
mod budget;
mod change;
mod crashes;
mod customers;
mod full_disk;
mod hostile;
mod losses;
mod publishing;
mod standalone;
mod swarm;
mod tickets;
mod upgrade;
