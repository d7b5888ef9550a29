//! What control and volunteers say to each other: ids, checksums, tickets, manifests, messages, configuration.
//!
//! Nothing here does I/O, reads a clock or draws a random number; all of it is plain data and its checks.
#![forbid(unsafe_code)]

pub mod admin;
pub mod balance;
pub mod bundle;
pub mod checksum;
pub mod config;
pub mod enrol;
pub mod glob;
pub mod heartbeat;
pub mod id;
pub mod manifest;
pub mod metrics;
pub mod operator;
pub mod pin;
pub mod placement;
pub mod recipe;
pub mod release;
pub mod swarm;
pub mod sync_token;
pub mod table;
pub mod ticket;
pub mod traffic;
pub mod units;

pub use checksum::{ChecksumHasher, Checksums};
pub use enrol::JoinString;
pub use id::{ContentHash, FileId, NodeId};
pub use sync_token::{SyncKey, SyncToken};
pub use ticket::{Ticket, TicketKey};
pub use traffic::{Class, Direction};
pub use units::{Bytes, BytesPerSec};
