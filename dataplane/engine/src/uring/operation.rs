//! The operations that go through a ring, each as a future of its own; it never decides what to do with a result.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use io_uring::{cqueue, opcode, squeue, types};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::inline::OpenHint;
use super::socket::Socket;

/// Hands back the kernel's result together with what the operation owned.
struct Plain<D>(std::marker::PhantomData<D>);

impl<D> Unpin for Plain<D> {}

impl<D> OneshotOutputTransform for Plain<D> {
    type Output = (io::Result<i32>, D);
    type StoredData = D;

    fn transform_oneshot_output(self, data: D, completion: cqueue::Entry) -> Self::Output {
        let result = completion.result();
        let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) };
        (result, data)
    }
}

/// Submits an entry whose pointers and descriptors all belong to `owned`.
fn submit<D: 'static>(owned: D, entry: squeue::Entry) -> InFlightOneshot<D, Plain<D>> {
    UnsubmittedOneshot::new(owned, Plain(std::marker::PhantomData), entry).submit()
}

/// Waits until the socket has something to read, was shut down, or broke.
pub(crate) fn readable(socket: Rc<Socket>) -> Readiness {
    poll(socket, (libc::POLLIN | libc::POLLRDHUP) as u32)
}

/// Waits until the socket takes bytes again, was shut down, or broke.
pub(crate) fn writable(socket: Rc<Socket>) -> Readiness {
    poll(socket, libc::POLLOUT as u32)
}

/// The outcome is left to the call that follows: it meets the same error, with its own meaning.
fn poll(socket: Rc<Socket>, events: u32) -> Readiness {
    let entry = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), events).build();
    Readiness(submit(socket, entry))
}

/// A poll in flight; it owns the socket.
pub(crate) struct Readiness(InFlightOneshot<Rc<Socket>, Plain<Rc<Socket>>>);

impl Future for Readiness {
    type Output = ();

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context).map(|_| ())
    }
}

/// Where a request is received while its connection is busy.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer(Box<[u8; RECEIVE_BYTES]>);

impl ReceiveBuffer {
    /// A buffer of zeros.
    pub(crate) fn new() -> Self {
        Self(Box::new([0; RECEIVE_BYTES]))
    }

    /// The first `count` bytes.
    pub(crate) fn filled(&self, count: usize) -> &[u8] {
        &self.0[..count.min(RECEIVE_BYTES)]
    }

    /// Whether more may wait in the socket than `count` bytes that came.
    pub(crate) fn is_full(count: usize) -> bool {
        count >= RECEIVE_BYTES
    }
}

/// A receive in flight; it owns socket and buffer.
pub(crate) struct Receiving(InFlightOneshot<Received, Plain<Received>>);

type Received = (Rc<Socket>, ReceiveBuffer);

/// Receives once, without a call of its own: it goes to the kernel with the others of its turn.
pub(crate) fn receive_later(socket: Rc<Socket>, mut buffer: ReceiveBuffer) -> Receiving {
    let mut entry =
        opcode::Recv::new(types::Fd(socket.as_raw_fd()), buffer.0.as_mut_ptr(), RECEIVE_BYTES as u32).build();
    // SAFETY: an entry is exactly the kernel's `io_uring_sqe` (`repr(C)`), whose field `ioprio` is the u16 at
    // offset 2; the crate offers no other way to say IORING_RECVSEND_POLL_FIRST (Linux 5.19).
    unsafe {
        (&raw mut entry).cast::<u16>().add(1).write(RECEIVE_POLL_FIRST);
    }
    Receiving(submit((socket, buffer), entry))
}

impl Future for Receiving {
    type Output = (io::Result<usize>, ReceiveBuffer);

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0)
            .poll(context)
            .map(|(result, (_, buffer))| (result.map(|count| usize::try_from(count).unwrap_or(0)), buffer))
    }
}

/// Cancels what waits on a socket; a send that is under way would be cut, so there must be none (Linux 5.19).
pub(crate) fn cancel(socket: Rc<Socket>) {
    let target = types::CancelBuilder::fd(types::Fd(socket.as_raw_fd()));
    drop(submit(socket, opcode::AsyncCancel2::new(target).build()));
}

/// A whole response on its way; it owns socket and bytes.
pub(crate) struct Delivery(InFlightOneshot<Delivered, Plain<Delivered>>);

/// Boxed, since every connection has room for one.
type Delivered = (Rc<Socket>, Box<Bytes>);

/// Sends all bytes without a call of its own, waiting for a slow client in the kernel.
pub(crate) fn deliver(socket: Rc<Socket>, bytes: Bytes) -> Delivery {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let entry = opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes.as_ptr(), length)
        .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
        .build();
    Delivery(submit((socket, Box::new(bytes)), entry))
}

impl Future for Delivery {
    /// Whether all bytes were taken; if not, the connection is of no further use.
    type Output = bool;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<bool> {
        std::pin::Pin::new(&mut self.0).poll(context).map(|(result, (_, bytes))| {
            result.is_ok_and(|count| usize::try_from(count).is_ok_and(|count| count == bytes.len()))
        })
    }
}

/// What an accept writes the client's address to.
struct AcceptAddress {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

/// Waits for a connection; it is non-blocking and closed on exec.
///
/// # Errors
/// The kernel's: `EMFILE`, `ECONNABORTED`, or `ECANCELED` after [`cancel_accepts`].
pub(crate) async fn accept<L: AsFd + 'static>(listener: Rc<L>) -> io::Result<(OwnedFd, SocketAddr)> {
    let mut address = Box::new(AcceptAddress {
        // SAFETY: all-zero bytes are a valid `sockaddr_storage` (family AF_UNSPEC).
        storage: unsafe { std::mem::zeroed() },
        length: size_of::<libc::sockaddr_storage>() as libc::socklen_t,
    });
    let entry = opcode::Accept::new(
        types::Fd(listener.as_fd().as_raw_fd()),
        (&raw mut address.storage).cast(),
        &raw mut address.length,
    )
    .flags(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
    .build();
    let (result, (address, _listener)) = submit((address, listener), entry).await;
    // SAFETY: a result that is no error is a new descriptor which nobody else owns.
    let descriptor = unsafe { OwnedFd::from_raw_fd(result?) };
    let peer = socket_address(&address.storage).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    Ok((descriptor, peer))
}

/// Waits until a client has connected, or for [`cancel_accepts`]; an accept then tells which.
pub(crate) async fn connectable<L: AsFd + 'static>(listener: Rc<L>) {
    let entry = opcode::PollAdd::new(types::Fd(listener.as_fd().as_raw_fd()), libc::POLLIN as u32).build();
    let _ = submit(listener, entry).await;
}

/// Makes everything that waits on `listener` end (Linux 5.19).
pub(crate) async fn cancel_accepts<L: AsFd + 'static>(listener: Rc<L>) {
    let target = types::CancelBuilder::fd(types::Fd(listener.as_fd().as_raw_fd())).all();
    let entry = opcode::AsyncCancel2::new(target).build();
    let _ = submit(listener, entry).await;
}

/// Opens a regular path beneath `root`, in a kernel worker when the path is not cached (Linux 5.6).
///
/// # Errors
/// The kernel's: `ENOENT`, `EXDEV` for a path that leaves the root, `EAGAIN` for a race with a rename.
pub(crate) async fn open_beneath<R: AsFd + 'static>(root: Arc<R>, path: CString) -> io::Result<OwnedFd> {
    let how = Box::new(
        types::OpenHow::new().flags(OpenHint::FLAGS.bits().into()).resolve(OpenHint::RESOLVE.bits()),
    );
    let entry =
        opcode::OpenAt2::new(types::Fd(root.as_fd().as_raw_fd()), path.as_ptr(), &raw const *how).build();
    let (result, _owned) = submit((root, path, how), entry).await;
    // SAFETY: a result that is no error is a new descriptor which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result?) })
}

/// Reads exactly `length` bytes at `offset`, waiting for the disk without holding up the ring; `room` zeros stand
/// before them.
///
/// # Errors
/// The kernel's, or `UnexpectedEof` when the file has become shorter.
pub(crate) async fn read_exact_at<F: AsFd + 'static>(
    file: Rc<F>,
    offset: u64,
    room: usize,
    length: usize,
) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; room + length];
    let mut filled = room;
    let mut file = file;
    while filled < buffer.len() {
        let free = &mut buffer[filled..];
        let free_length = u32::try_from(free.len()).unwrap_or(u32::MAX);
        let entry = opcode::Read::new(types::Fd(file.as_fd().as_raw_fd()), free.as_mut_ptr(), free_length)
            .offset(offset + (filled - room) as u64)
            .build();
        let (result, (file_back, buffer_back)) = submit((file, buffer), entry).await;
        file = file_back;
        buffer = buffer_back;
        match result {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count as usize,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer)
}

/// Asks the kernel to read ahead, then waits for the last byte of the span to be there.
///
/// # Errors
/// The kernel's, or `UnexpectedEof` when the file has become shorter.
pub(crate) async fn prefetch<F: AsFd + 'static>(file: Rc<F>, offset: u64, length: u64) -> io::Result<()> {
    // Advice that the file system refuses only makes the read below do the work.
    let _ = advise(Rc::clone(&file), offset, length).await;
    read_exact_at(file, offset + length.saturating_sub(1), 0, 1).await.map(drop)
}

/// Asks the kernel to read ahead, and waits for nothing.
pub(crate) fn read_ahead<F: AsFd + 'static>(file: Rc<F>, offset: u64, length: u64) {
    drop(advise(file, offset, length));
}

/// The kernel gives advice that reads to a worker: setting up the reads takes the calling thread milliseconds.
fn advise<F: AsFd + 'static>(file: Rc<F>, offset: u64, length: u64) -> InFlightOneshot<Rc<F>, Plain<Rc<F>>> {
    let span = libc::off_t::from(i32::try_from(length).unwrap_or(i32::MAX));
    let advice = opcode::Fadvise::new(types::Fd(file.as_fd().as_raw_fd()), span, libc::POSIX_FADV_WILLNEED)
        .offset(offset)
        .build();
    submit(file, advice)
}

/// The local address of a connection.
///
/// # Errors
/// The kernel's.
pub(crate) fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let address = rustix::net::getsockname(socket)?;
    SocketAddr::try_from(address).map_err(|_| io::ErrorKind::Unsupported.into())
}

fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage holds a `sockaddr_in`, which is smaller and less aligned.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(address.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the storage holds a `sockaddr_in6`, which is smaller and less aligned.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(
                ip,
                u16::from_be(address.sin6_port),
                address.sin6_flowinfo,
                address.sin6_scope_id,
            )))
        }
        _ => None,
    }
}

/// Bytes of a receive buffer: a usual request, or several.
const RECEIVE_BYTES: usize = 2_048;

/// `IORING_RECVSEND_POLL_FIRST`: nothing is there yet, so don't look before waiting.
const RECEIVE_POLL_FIRST: u16 = 1;
