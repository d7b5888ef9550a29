//! What needs a processor and no link: done at the lowest priority beside the measurements that wait for links, which
//! therefore lose nothing by it.
//!
//! It measures nothing that depends on how fast this machine is.

use std::sync::Mutex;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};

/// Work under way on a thread of its own; its result is taken once.
#[derive(Debug)]
pub(super) struct Aside<T> {
    thread: Mutex<Option<JoinHandle<Result<T>>>>,
}

impl<T: Send + 'static> Aside<T> {
    /// Begins with it, if it is `wanted`.
    pub(super) fn begin(wanted: bool, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<Self> {
        let patient = move || {
            // On Linux this is the calling thread's own; children inherit it. Where it is refused nothing is lost but time.
            if let Err(error) = rustix::process::setpriority_process(None, LOWEST) {
                eprintln!("what is done beside the measurements keeps its priority: {error}");
            }
            work()
        };
        let start = || std::thread::Builder::new().name("aside".to_owned()).spawn(patient);
        let thread = if wanted { Some(start().context("cannot start a thread")?) } else { None };
        Ok(Self { thread: Mutex::new(thread) })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Those of the work, and when it was not begun or was taken before.
    pub(super) fn take(&self) -> Result<T> {
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        let thread = thread.context("expected work that was begun and not yet taken")?;
        thread.join().map_err(|_| anyhow!("it panicked"))?
    }
}

/// The nice value of those who wait for everybody.
const LOWEST: i32 = 19;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_once_and_at_its_own_priority() {
        let priority = || Ok(rustix::process::getpriority_process(None)?);
        let before = priority().unwrap();
        let aside = Aside::begin(true, priority).unwrap();
        assert_eq!(aside.take().unwrap(), LOWEST);
        assert!(aside.take().is_err());
        assert_eq!(priority().unwrap(), before);
        let never = Aside::begin(false, || -> Result<()> { panic!("nobody wants it") }).unwrap();
        assert!(never.take().is_err());
        let failed = Aside::begin(true, || -> Result<()> { Err(anyhow!("no")) }).unwrap();
        assert_eq!(failed.take().unwrap_err().to_string(), "no");
    }
}
