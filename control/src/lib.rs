//! The server side of Freshet: catalogue, registry, tracker, front door and API; it never talks to a volunteer first.
#![forbid(unsafe_code)]

pub mod api;
mod bearer;
pub mod catalog;
pub mod clock;
pub mod front_door;
pub mod identity;
pub mod observe;
pub mod private_file;
pub mod registry;
pub mod routing;
pub mod serve;
pub mod settings;
pub mod swarm;
pub mod sync_site;
pub mod tracker;
