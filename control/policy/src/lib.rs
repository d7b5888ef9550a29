//! The decisions Freshet makes, as plain functions of what was measured: which volunteer, how fast,
//! how much, when not.
//!
//! Nothing here does I/O, reads a clock, draws its own randomness or holds a global: `now` comes in as
//! a [`Moment`], chance as a seed. So the server, the volunteers and the simulator run the same code.
#![forbid(unsafe_code)]

pub mod admission;
pub mod arbiter;
pub mod budget;
pub mod draw;
pub mod liveness;
pub mod moment;
pub mod network;
pub mod pacing;
pub mod placement;
pub mod rates;
pub mod report_age;
pub mod reservation;
pub mod selection;
pub mod steering;
pub mod swarm;
pub mod trust;

pub use moment::Moment;
