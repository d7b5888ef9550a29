//! The server side of Freshet: catalogue, registry, tracker, front door and API; it never talks to a volunteer first.
#![forbid(unsafe_code)]

pub mod catalog;
