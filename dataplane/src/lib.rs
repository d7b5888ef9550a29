//! The volunteer's daemon: serves files to customers who bring a ticket, keeps a mirror current, and tells control.
//!
//! It decides nothing about other volunteers, trusts no byte that it has not checked itself, and never talks to
//! another volunteer without control's word.
#![forbid(unsafe_code)]

pub mod access_log;
pub mod budget;
pub mod cli;
pub mod config;
pub mod durable;
pub mod exit;
pub mod limits;
pub mod logging;
pub mod network;
pub mod serve;
pub mod signals;
