//! The volunteer's daemon: serves files to customers who bring a ticket, keeps a mirror current, and tells control.
//!
//! It decides nothing about other volunteers, trusts no byte that it has not checked itself, and never talks to
//! another volunteer without control's word.
#![forbid(unsafe_code)]

pub mod access_log;
pub mod accounting;
pub mod agent;
pub mod budget;
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod control;
pub mod counters;
pub mod credential;
pub mod delivery;
pub mod durable;
pub mod exit;
pub mod join;
pub mod limits;
pub mod link;
pub mod logging;
pub mod metrics;
pub mod mirror;
pub mod network;
pub mod orders;
pub mod progress;
pub mod queue;
pub mod run;
pub mod serve;
pub mod signals;
pub mod swarm;
pub mod sync;
pub mod watch;
