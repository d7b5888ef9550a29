//! The server side of Freshet: catalogue, registry, tracker, front door and API; it never talks to a volunteer first.
#![forbid(unsafe_code)]

pub mod api;
pub mod audit;
pub mod balance;
mod bearer;
pub mod catalog;
pub mod clock;
pub mod downloads;
pub mod events;
pub mod flow;
pub mod front_door;
pub mod identity;
mod metrics;
pub mod observe;
mod onlooker;
pub mod operators;
pub mod precedence;
pub mod private_file;
pub mod registry;
pub mod reload;
pub mod routing;
pub mod serve;
pub mod settings;
mod status;
pub mod swarm;
pub mod sync_site;
pub mod tracker;
pub mod verify;
