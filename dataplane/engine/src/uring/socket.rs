//! An accepted connection as operations own it: the descriptor, who is at its ends, and nothing of HTTP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A connected, non-blocking socket; closed when the last operation on it has ended.
///
/// What never changes of a connection stands here rather than with its task: this makes an allocation that fills
/// the gap which glibc leaves in front of a task, aligned to 128 bytes as tokio wants it.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: OwnedFd,
    /// The client.
    pub(crate) peer: SocketAddr,
    /// The address that the client connected to.
    pub(crate) local: SocketAddr,
    /// Unique among the open connections of the server.
    pub(crate) id: u64,
    /// By which listener it came.
    pub(crate) listener: u16,
}

impl Socket {
    /// Its local address is asked of the kernel when that of the listener, `bound`, is a wildcard.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(
        descriptor: OwnedFd,
        peer: SocketAddr,
        bound: SocketAddr,
        id: u64,
        listener: u16,
    ) -> io::Result<Self> {
        let local = if bound.ip().is_unspecified() {
            super::operation::local_address(descriptor.as_fd())?
        } else {
            bound
        };
        Ok(Self { descriptor, peer, local, id, listener })
    }

    /// Ends the connection in both directions; every operation that waits on it completes.
    pub(crate) fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.descriptor, rustix::net::Shutdown::Both);
    }

    /// Ends the sending direction: the client sees the end after what was sent.
    pub(crate) fn shut_down_sending(&self) {
        let _ = rustix::net::shutdown(&self.descriptor, rustix::net::Shutdown::Write);
    }

    /// Makes the coming close throw away what is unsent and tell the client by a reset.
    pub(crate) fn reset_on_close(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(&self.descriptor, Some(std::time::Duration::ZERO));
    }

    /// Holds back partial segments while set.
    pub(crate) fn cork(&self, on: bool) {
        let _ = rustix::net::sockopt::set_tcp_cork(&self.descriptor, on);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
