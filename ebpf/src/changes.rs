//! The kernel's reports that interfaces, addresses or routes changed, for threads that sleep until then.
//!
//! What a report says is not parsed: any of them is a reason to look. It never changes anything itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// Wakes whoever waits for [`Changes`], from another thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    /// One that wakes nobody yet.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event: Arc::new(event) })
    }

    /// Ends the present wait, or the next one.
    pub fn wake(&self) {
        // An eventfd takes 8 bytes until its counter overflows, and then it wakes all the same.
        let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
    }
}

/// The reports on links, addresses and routes of one network namespace.
#[derive(Debug)]
pub struct Changes {
    reports: OwnedFd,
    waker: Waker,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The waker was used; wakes before this wait are one.
    Woken,
    /// Something changed, or the time is up.
    Changed,
}

impl Changes {
    /// Of the calling thread's namespace, from now on.
    ///
    /// # Errors
    /// When the kernel has no such reports to give.
    pub fn watch(waker: &Waker) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol is protocol 0, which is NETLINK_ROUTE.
        let reports = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&reports, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self { reports, waker: waker.clone() })
    }

    /// Sleeps until something changes, the waker is used, or `timeout` is over.
    ///
    /// # Errors
    /// When the reports end; later waits fail too.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Event> {
        let [woken, changed] = wait_for([self.waker.event.as_fd(), self.reports.as_fd()], timeout)?;
        if woken {
            return self.woken();
        }
        if changed {
            self.drain()?;
        }
        Ok(Event::Changed)
    }

    fn woken(&self) -> io::Result<Event> {
        match rustix::io::read(&*self.waker.event, &mut [0u8; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(Event::Woken),
            Err(error) => Err(error.into()),
        }
    }

    fn drain(&self) -> io::Result<()> {
        let mut buffer = [0u8; 8192];
        loop {
            match recv(&self.reports, &mut buffer[..], RecvFlags::empty()) {
                // Lost reports are as good as read ones.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Waits for any of them; tells which are ready.
fn wait_for<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let timeout =
        timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
    let mut fds = descriptors.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(fds.map(|fd| !fd.revents().is_empty())),
        Err(error) => Err(error.into()),
    }
}

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// How long to sleep after a look: a routing daemon reports thousands of changes a second, and one look serves for all of
/// a moment.
pub const PAUSE: Duration = Duration::from_millis(20);

/// After a failure, when to look again even without a report.
pub const RETRY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_ends_one_wait_also_when_it_came_before() {
        let waker = Waker::new().unwrap();
        let changes = Changes::watch(&waker).unwrap();
        waker.wake();
        waker.wake();
        assert_eq!(changes.wait(None).unwrap(), Event::Woken);
        assert_eq!(changes.wait(Some(Duration::from_millis(1))).unwrap(), Event::Changed);
        let from_elsewhere = std::thread::spawn(move || waker.wake());
        while changes.wait(Some(Duration::from_secs(20))).unwrap() != Event::Woken {}
        from_elsewhere.join().unwrap();
    }
}
