//! The road of a download as seen from control: enrolment, heartbeats, redirects, returns, restarts. Real
//! sockets and a real repository; the volunteers are played by the test.
#![forbid(unsafe_code)]

mod downloads;
mod enrolment;
mod lasting;
mod operators;
mod stage;
mod sync_port;
