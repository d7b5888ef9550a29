//! Signals as events: stop, and read the configuration again.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// SIGTERM or SIGINT: finish what is under way and end.
    Stop,
    /// SIGHUP: read the configuration again, open logs anew.
    Reload,
}

/// The signals this process listens to.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Takes the signals over from their defaults, which would end the process at once.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Dropping the future loses none.
    pub async fn next(&mut self) -> Ask {
        tokio::select! {
            _ = self.terminate.recv() => Ask::Stop,
            _ = self.interrupt.recv() => Ask::Stop,
            _ = self.hang_up.recv() => Ask::Reload,
        }
    }

    /// Waits for `stopping` to end, or for a second signal to stop.
    pub async fn unless_hurried(&mut self, stopping: impl Future<Output = ()>) {
        let hurried = async {
            while self.next().await != Ask::Stop {}
            tracing::warn!("stopping at once");
        };
        tokio::select! {
            () = stopping => {}
            () = hurried => {}
        }
    }
}
