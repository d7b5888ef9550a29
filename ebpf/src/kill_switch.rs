//! The quota's kill-switch where no classifier may drop packets: which classes are off, and listeners that hear nothing.
//!
//! A filter on a listener (`SO_ATTACH_FILTER`, or `IP_MINTTL` where that needs a right) throws away what comes before the
//! kernel answers it, so that not even a handshake leaves. It never closes a socket; open connections are ended by
//! [`SocketMeter::cut`](crate::SocketMeter).

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use freshet_ebpf_abi::Class;
use socket2::{SockFilter, SockRef};

use crate::sys;

/// Which classes are off, and whom that concerns.
#[derive(Debug, Default)]
pub(crate) struct KillSwitch {
    /// Bit `1 << class`.
    off: AtomicU32,
    /// As many as there are ports; those that are closed are forgotten.
    listeners: Mutex<Vec<(Class, Weak<[OwnedFd]>)>>,
}

impl KillSwitch {
    /// Whether nothing of this class may leave.
    pub(crate) fn is_off(&self, class: Class) -> bool {
        self.off.load(Ordering::Acquire) & bit(class) != 0
    }

    /// Takes listeners of a class in, as long as their owner keeps them; they are as the switch is.
    pub(crate) fn add(&self, class: Class, sockets: Weak<[OwnedFd]>) -> io::Result<()> {
        let mut listeners = self.lock();
        listeners.retain(|(_, sockets)| sockets.strong_count() > 0);
        // Also a socket that was handed over by a process which was killed while it heard nothing.
        let done = silence(&sockets, self.is_off(class));
        listeners.push((class, sockets));
        done
    }

    /// Turns these classes off and all others on. What fails is told when everything else is done.
    pub(crate) fn throw(&self, classes: &[Class]) -> io::Result<()> {
        let mut listeners = self.lock();
        self.off.store(classes.iter().fold(0, |bits, &class| bits | bit(class)), Ordering::Release);
        listeners.retain(|(_, sockets)| sockets.strong_count() > 0);
        let mut done = Ok(());
        for (class, sockets) in listeners.iter() {
            done = done.and(silence(sockets, self.is_off(*class)));
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Class, Weak<[OwnedFd]>)>> {
        // A panic elsewhere leaves a list that the next throw goes through again.
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silence(sockets: &Weak<[OwnedFd]>, off: bool) -> io::Result<()> {
    let Some(sockets) = sockets.upgrade() else { return Ok(()) };
    let mut done = Ok(());
    for socket in sockets.iter() {
        done = done.and(if off { deafen(socket) } else { undeafen(socket) });
    }
    done
}

/// By a filter, or where the kernel lets only the privileged have one, by the number of hops that a packet may have come:
/// none at all.
fn deafen(socket: &OwnedFd) -> io::Result<()> {
    match SockRef::from(socket).attach_filter(&[KEEP_NOTHING]) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            sys::set_hops_min(socket.as_fd(), HOPS_MAX)
        }
        other => other,
    }
}

fn undeafen(socket: &OwnedFd) -> io::Result<()> {
    let detached = match SockRef::from(socket).detach_filter() {
        // There is none.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    };
    detached.and(sys::set_hops_min(socket.as_fd(), 0))
}

/// Resets a connection and throws away what the kernel still has to send of it. Whoever waits for the socket is woken.
pub(crate) fn reset(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::connect_unspec(socket)?)
}

fn bit(class: Class) -> u32 {
    1 << class as u32
}

/// Hardly any host begins with so many, and each router takes one.
const HOPS_MAX: u8 = 255;

/// `BPF_RET | BPF_K`: of every packet, keep so many bytes.
const KEEP_NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn listener() -> (Arc<[OwnedFd]>, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (Arc::from([OwnedFd::from(listener)]), address)
    }

    fn connects(address: std::net::SocketAddr) -> bool {
        TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok()
    }

    #[test]
    fn a_listener_is_as_the_switch_is_also_when_it_comes_later() {
        let switch = KillSwitch::default();
        let (early, early_at) = listener();
        switch.add(Class::Delivery, Arc::downgrade(&early)).unwrap();
        assert!(connects(early_at));
        switch.throw(&[Class::Delivery]).unwrap();
        let (late, late_at) = listener();
        switch.add(Class::Delivery, Arc::downgrade(&late)).unwrap();
        let (other, other_at) = listener();
        switch.add(Class::Sync, Arc::downgrade(&other)).unwrap();
        assert!(switch.is_off(Class::Delivery) && !switch.is_off(Class::Sync));
        assert_eq!([early_at, late_at, other_at].map(connects), [false, false, true]);
        switch.throw(&[]).unwrap();
        assert!([early_at, late_at, other_at].map(connects).iter().all(|&connects| connects));
    }

    #[test]
    fn closed_listeners_are_forgotten_and_deaf_ones_that_are_handed_over_hear_again() {
        let before = KillSwitch::default();
        let (socket, address) = listener();
        before.add(Class::Delivery, Arc::downgrade(&socket)).unwrap();
        before.throw(&[Class::Delivery]).unwrap();
        let after = KillSwitch::default();
        after.add(Class::Delivery, Arc::downgrade(&socket)).unwrap();
        assert!(connects(address));
        drop(socket);
        after.throw(&[Class::Delivery]).unwrap();
        assert!(after.lock().is_empty());
    }

    #[test]
    fn what_is_no_listener_is_told() {
        let switch = KillSwitch::default();
        let (reader, _writer) = std::io::pipe().unwrap();
        let sockets: Arc<[OwnedFd]> = Arc::from([OwnedFd::from(reader)]);
        assert!(switch.add(Class::Delivery, Arc::downgrade(&sockets)).is_err());
    }
}
