//! What the end-to-end tests share: a scene with an origin, volunteers and a customer, and clients as real as theirs.
//!
//! The tests stand in `tests/`. They run the built programs as processes and talk to them only as customers,
//! volunteers' owners and operators do: no crate of ours but the testbed is used here.
#![forbid(unsafe_code)]

mod answer;
mod apt;
mod archive;
mod client;
mod scene;

pub use answer::{Answer, raw_request};
pub use apt::Apt;
pub use archive::{Archive, noise};
pub use client::{Fetched, curl, sha256_of};
pub use scene::{LARGE, PATIENCE, SECRET, Scene, SceneOptions, find_programs, find_repositories};
