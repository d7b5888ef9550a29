//! The thread that keeps the classifiers on their interfaces: it alone attaches and detaches, and sleeps until the
//! kernel reports a change. It never reads a counter.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use super::{KernelError, Shared, capabilities};
use crate::changes::{Changes, Event, PAUSE, RETRY, Waker};

/// Runs until dropped; then takes off what is not pinned.
#[derive(Debug)]
pub(super) struct Keeper {
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread and waits until the first attachments are made.
    pub(super) fn start(shared: Arc<Shared>) -> Result<Self, KernelError> {
        let stop = Waker::new().map_err(KernelError::Watch)?;
        let (ready, first) = mpsc::sync_channel(1);
        let of_thread = stop.clone();
        let thread = thread::Builder::new()
            .name("fr-classifiers".into())
            .spawn(move || {
                let begun = Changes::watch(&of_thread).map_err(KernelError::Watch).and_then(|watch| {
                    // Every later attachment is made with these rights, so the first one proves that they suffice.
                    capabilities::keep_what_attaching_needs().map_err(KernelError::Watch)?;
                    let mut state = shared.lock();
                    state.detach_strangers()?;
                    state.sync()?;
                    Ok(watch)
                });
                match begun {
                    Ok(watch) => {
                        // The opener waits for this, so it is there.
                        let _ = ready.send(Ok(()));
                        keep(&shared, &watch);
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
                shared.lock().close();
            })
            .map_err(KernelError::Watch)?;
        let keeper = Self { stop, thread: Some(thread) };
        match first.recv() {
            Ok(Ok(())) => Ok(keeper),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(KernelError::Watch(io::Error::other("the thread ended before it began"))),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps the classifiers attached panicked");
        }
    }
}

fn keep(shared: &Shared, watch: &Changes) {
    let mut retry = None;
    loop {
        match watch.wait(retry) {
            Ok(Event::Woken) => return,
            Ok(Event::Changed) => {}
            Err(error) => {
                tracing::error!(%error, "interfaces are not watched any more; one that comes back is not counted");
                return;
            }
        }
        retry = None;
        if let Err(error) = shared.lock().sync() {
            tracing::warn!(%error, "an interface is not counted for now");
            retry = Some(RETRY);
        }
        thread::sleep(PAUSE);
    }
}
