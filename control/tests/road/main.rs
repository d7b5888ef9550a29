//! The road of a download as seen from control: enrolment, heartbeats, redirects, returns, restarts. Real
//! sockets and a real repository; the volunteers are played by the test.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that can't go on should end where it stands")]

mod balance;
mod downloads;
mod enrolment;
mod lasting;
mod liars;
mod manifests;
mod operators;
mod program;
mod seat;
mod stage;
mod swarm;
mod sync_port;
mod upgrade;
