//! Listening sockets: one per ring on the same port, bound once and never shared with a stranger by mistake.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use crate::ring::ListeningSocket;
use crate::server::{Listener, StartError};

/// Gives every ring a socket of this listener and returns the address that they share.
///
/// # Errors
/// [`StartError::Bind`].
pub(crate) fn on_every_ring(
    listener: &Listener,
    rings: &mut [Vec<ListeningSocket>],
) -> Result<SocketAddr, StartError> {
    let failed = |source| StartError::Bind { address: listener.address, source };
    if let Some(inherited) = &listener.inherited {
        let address = inherited.local_addr().map_err(failed)?;
        for ring in rings {
            let copy: OwnedFd = inherited.try_clone().map_err(failed)?.into();
            // With O_NONBLOCK an accept could end at once instead of waiting in the ring.
            rustix::io::ioctl_fionbio(&copy, false).map_err(|errno| failed(errno.into()))?;
            SockRef::from(&copy).set_tcp_notsent_lowat(UNSENT_BYTES_MAX).map_err(failed)?;
            ring.push(ListeningSocket { descriptor: copy, address, inherited: true });
        }
        return Ok(address);
    }
    let shared = rings.len() > 1;
    let mut address = listener.address;
    if shared && address.port() != 0 {
        // SO_REUSEPORT would let two servers of one user split a port; without it the second is told.
        drop(bind(address, false, listener.mark).map_err(failed)?);
    }
    for ring in rings {
        let socket = bind(address, shared, listener.mark).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        address = socket
            .local_addr()
            .and_then(|bound| bound.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported)))
            .map_err(failed)?;
        ring.push(ListeningSocket { descriptor: socket.into(), address, inherited: false });
    }
    Ok(address)
}

/// Options that accepted connections inherit are set here, once.
fn bind(address: SocketAddr, shared: bool, mark: Option<u32>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    // Clients are accepted in bursts, until there is none.
    socket.set_nonblocking(true)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

/// What the kernel keeps of a response beyond what is on its way to the client. Without, a client that hardly reads makes
/// it take megabytes in segments as small as its window, and a thousand of them hold up the ring while it does.
const UNSENT_BYTES_MAX: u32 = 512 << 10;
/// Connections that wait to be accepted; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4_096;
