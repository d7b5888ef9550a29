//! slowhttptest (package of that name) as a running attack: slow heads, slow bodies, slow reads; it judges nothing.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What the attacking connections do slowly.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attack {
    /// A field of a head every two seconds, and no end of it.
    Heads,
    /// A few bytes of a request body every two seconds.
    Bodies,
    /// A response read by five bytes a second.
    Reads,
}

impl Attack {
    pub(crate) const ALL: [Self; 3] = [Self::Heads, Self::Bodies, Self::Reads];

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Heads => &["-H", "-i", "2"],
            Self::Bodies => &["-B", "-i", "2", "-s", "65536", "-t", "GET"],
            Self::Reads => &["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "5", "-k", "3"],
        }
    }
}

/// An attack that goes on until it is dropped.
pub(crate) struct Attacker(Child);

impl Attacker {
    /// Starts [`CONNECTIONS`] connections within two seconds; `None` when slowhttptest is not installed.
    ///
    /// # Errors
    /// When it can't be run.
    pub(crate) fn start(attack: Attack, address: SocketAddr, path: &str) -> Result<Option<Self>> {
        let url = format!("http://{address}{path}");
        let child = Command::new("slowhttptest")
            .args(attack.arguments())
            .args([
                "-c",
                &CONNECTIONS.to_string(),
                "-r",
                &(CONNECTIONS / 2).to_string(),
                "-l",
                "60",
                "-u",
                &url,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Ok(Some(Self(child))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("cannot run slowhttptest"),
        }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until all its connections are there.
pub(crate) const RAMP: Duration = Duration::from_secs(3);

/// Attacking connections; slowhttptest itself carries about 1,020 (`FD_SETSIZE`).
pub(crate) const CONNECTIONS: u32 = 1_000;
