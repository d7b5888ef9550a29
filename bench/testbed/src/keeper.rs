//! A process that holds a testbed for longer than who asked for it lives, and how it is told to end.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::owner::Identity;
use crate::{Cancel, Error, wait_until};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Keeper {
    pid: i32,
    /// Clock ticks after the machine's start.
    start: u64,
}

impl Keeper {
    /// The process that has this number now, if there is one.
    #[must_use]
    pub fn of(pid: u32) -> Option<Keeper> {
        let Identity { pid, start } = Identity::of(i32::try_from(pid).ok()?)?;
        Some(Keeper { pid, start })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Identity { pid: self.pid, start: self.start }.is_alive()
    }

    /// Asks it to end (SIGTERM) and waits until it has; one that does not end is killed, which is an error.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when it had to be killed, and [`Error::Io`] when it is not ours to ask.
    pub fn stop(&self, timeout: Duration) -> Result<(), Error> {
        self.signal(Signal::TERM)?;
        let what = format!("the end of process {}", self.pid);
        let ended = || Ok((!self.is_alive()).then_some(()));
        let waited = wait_until(&what, timeout, &Cancel::default(), ended);
        if waited.is_err() {
            self.signal(Signal::KILL)?;
        }
        waited
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        match Pid::from_raw(self.pid).filter(|_| self.is_alive()) {
            Some(pid) => kill_process(pid, signal).or_else(|errno| {
                let doing = format!("signalling process {}", self.pid);
                // It may have ended a moment ago, which is what is wanted.
                if self.is_alive() { Err(Error::Io { doing, source: errno.into() }) } else { Ok(()) }
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_the_very_process_is_ended() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let keeper = Keeper::of(child.id()).unwrap();
        let namesake = Keeper { start: keeper.start + 1, ..keeper };
        assert!(keeper.is_alive() && !namesake.is_alive());
        namesake.stop(Duration::from_secs(1)).unwrap();
        assert!(keeper.is_alive());
        keeper.stop(Duration::from_secs(30)).unwrap();
        assert!(!keeper.is_alive());
        child.wait().unwrap();
    }
}
