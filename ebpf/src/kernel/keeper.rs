//! The thread that keeps the classifiers on their interfaces: it alone attaches and detaches, and sleeps until the
//! kernel reports a change. It never reads a counter.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::{KernelError, Shared, capabilities};

/// Runs until dropped; then takes off what is not pinned.
#[derive(Debug)]
pub(super) struct Keeper {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread and waits until the first attachments are made.
    pub(super) fn start(shared: Arc<Shared>) -> Result<Self, KernelError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| KernelError::Watch(error.into()))?;
        let stop = Arc::new(stop);
        let (ready, first) = mpsc::sync_channel(1);
        let of_thread = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("fr-classifiers".into())
            .spawn(move || {
                let begun = Watch::new().and_then(|watch| {
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
                        keep(&shared, &watch, &of_thread);
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
        // An eventfd takes 8 bytes until its counter overflows, which one write can't do.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps the classifiers attached panicked");
        }
    }
}

fn keep(shared: &Shared, watch: &Watch, stop: &OwnedFd) {
    let mut retry = None;
    loop {
        match watch.wait(stop, retry) {
            Ok(Event::Stop) => return,
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
        // A routing daemon reports thousands of changes a second; one look serves for all of a moment.
        if matches!(wait_for(stop, None, Some(PAUSE)), Ok((true, _))) {
            return;
        }
    }
}

enum Event {
    Stop,
    Changed,
}

/// The kernel's reports on links and routes of this network namespace. What they say is not parsed: any of them is a
/// reason to look.
struct Watch {
    socket: OwnedFd,
}

impl Watch {
    fn new() -> Result<Self, KernelError> {
        let made = || -> rustix::io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // No protocol is protocol 0, which is NETLINK_ROUTE.
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
            Ok(socket)
        };
        Ok(Self { socket: made().map_err(|error| KernelError::Watch(error.into()))? })
    }

    fn wait(&self, stop: &OwnedFd, timeout: Option<Duration>) -> io::Result<Event> {
        let (stopped, changed) = wait_for(stop, Some(&self.socket), timeout)?;
        if stopped {
            return Ok(Event::Stop);
        }
        if changed {
            self.drain()?;
        }
        Ok(Event::Changed)
    }

    fn drain(&self) -> io::Result<()> {
        let mut buffer = [0u8; 8192];
        loop {
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                // Lost reports are as good as read ones.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Waits for either; tells whether to stop and whether there are reports.
fn wait_for(
    stop: &OwnedFd,
    reports: Option<&OwnedFd>,
    timeout: Option<Duration>,
) -> io::Result<(bool, bool)> {
    let timeout =
        timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
    let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
    fds.extend(reports.map(|reports| PollFd::from_borrowed_fd(reports.as_fd(), PollFlags::IN)));
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok((!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty())))
}

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// After a failure, when to look again even without a report.
const RETRY: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(20);
