//! An io_uring HTTP/1.1 file server as a library; it knows nothing of volunteers, tickets or catalogues.
//!
//! What is served is the business of a [`Site`]; how it reaches the socket is the business of this crate.
//! Every kernel operation stands in the module `uring`; the rest of the crate is free of `unsafe`.

pub mod access_log;
pub mod activation;
mod admission;
mod clock;
mod connection;
mod deadline;
pub mod directory;
mod files;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
pub mod limits;
mod listen;
pub mod observe;
pub mod pace;
mod receive;
mod respond;
mod ring;
mod send;
pub mod server;
pub mod site;
mod uring;

pub use access_log::{AccessLog, LogFormat, LogOptions};
pub use activation::Inherited;
pub use directory::DirectorySite;
pub use limits::Limits;
pub use observe::{Observer, Observers, ResponseRecord};
pub use pace::{Grant, Pacer, Place, Want};
pub use server::{Listener, Running, Server, StartError, Stats, StatsReader};
pub use site::{
    Answer, Body, Fields, FileAnswer, InvalidField, Method, Redirect, Refusal, Request, Root, Site,
    Unavailable,
};

/// The `Content-Type` by a path's ending, for sites whose files are stored under other names.
pub fn content_type_of(path: &[u8]) -> ::http::HeaderValue {
    http::content_type::of_path(path)
}
