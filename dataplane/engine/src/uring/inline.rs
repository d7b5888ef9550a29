//! Calls made on the ring's own thread because they never wait: non-blocking sends, page-cache probes, cached opens.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::socket::Socket;

/// Receives what is there; `None` when nothing is, `Some(0)` at the end.
///
/// # Errors
/// The kernel's, when the connection broke.
pub(crate) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    again_is_none(rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT).map(|(_, count)| count))
}

/// Sends what the socket takes at once; `None` when it takes nothing. `more` announces that more follows.
///
/// # Errors
/// The kernel's, when the connection broke.
pub(crate) fn send(socket: &Socket, bytes: &[u8], more: bool) -> io::Result<Option<usize>> {
    let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if more {
        flags |= SendFlags::MORE;
    }
    again_is_none(rustix::net::send(socket, bytes, flags))
}

/// Sends up to `length` bytes of `file` from `offset` without copying them; `None` when the socket is full.
///
/// # Errors
/// The kernel's; `InvalidInput` when the file system can't do it.
pub(crate) fn sendfile(
    socket: &Socket,
    file: impl AsFd,
    offset: u64,
    length: usize,
) -> io::Result<Option<usize>> {
    let mut position = offset;
    again_is_none(rustix::fs::sendfile(socket, file, Some(&mut position), length))
}

/// Whether the byte at `offset` is in the page cache; `None` when the file system can't tell without waiting.
///
/// # Errors
/// The kernel's; `UnexpectedEof` when the file ends before it.
pub(crate) fn resident(file: impl AsFd, offset: u64, into: &mut [u8]) -> io::Result<Option<usize>> {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(into)], offset, ReadWriteFlags::NOWAIT) {
        Ok(0) if !into.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Turns the kernel's own reading ahead off for this open file.
///
/// It is done by whoever comes near the end of what was read, within the call: a thread that splices a file stands still
/// for milliseconds while the kernel sets up the reads of the next megabytes.
pub(crate) fn leave_reading_ahead_to_us(file: impl AsFd) {
    // Where it is refused, nothing but that is lost.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
}

/// How files are opened, inline or through the ring.
pub(crate) struct OpenHint;

impl OpenHint {
    /// `O_NONBLOCK`, so that a FIFO in the tree can't hold up anything.
    pub(crate) const FLAGS: OFlags =
        OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
    /// Never outside the root, and never through the links of /proc.
    pub(crate) const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
}

/// Opens a path beneath `root` if that needs no disk; `None` when it does (Linux 5.12, else always `None`).
///
/// # Errors
/// As [`open_beneath`](super::open_beneath).
pub(crate) fn open_beneath_cached(root: impl AsFd, path: &CStr) -> io::Result<Option<OwnedFd>> {
    let opened = rustix::fs::openat2(
        root,
        path,
        OpenHint::FLAGS,
        Mode::empty(),
        OpenHint::RESOLVE.union(ResolveFlags::CACHED),
    );
    match opened {
        Ok(descriptor) => Ok(Some(descriptor)),
        Err(Errno::AGAIN | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Bytes that the client has not acknowledged yet, or `None` when the kernel won't say.
pub(crate) fn unsent_bytes(socket: &Socket) -> Option<u32> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (= TIOCOUTQ) writes one int to the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
    if result < 0 { None } else { u32::try_from(waiting).ok() }
}

/// A pipe that file pages pass through on their way to a socket, and that is empty between two calls.
///
/// One serves a whole thread: what a socket refuses is thrown away and read again later.
#[derive(Debug)]
pub(crate) struct DrainPipe {
    reader: OwnedFd,
    writer: OwnedFd,
    null: OwnedFd,
    capacity: usize,
}

impl DrainPipe {
    /// Asks for a capacity of 1 MiB and takes what the kernel allows.
    ///
    /// # Errors
    /// The kernel's, when descriptors ran out or /dev/null is not there.
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let null = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        let capacity = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES)
            .or_else(|_| rustix::pipe::fcntl_getpipe_size(&writer))?;
        Ok(Self { reader, writer, null, capacity })
    }

    /// Moves up to `length` bytes from the file's page cache to the socket; `None` when the socket is full.
    ///
    /// `Some(0)` means that the file ended.
    ///
    /// # Errors
    /// The kernel's; `InvalidInput` when the file system can't do it.
    pub(crate) fn transfer(
        &self,
        socket: &Socket,
        file: impl AsFd,
        offset: u64,
        length: usize,
    ) -> io::Result<Option<usize>> {
        let mut position = offset;
        let wanted = length.min(self.capacity);
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let piped = rustix::pipe::splice(file, Some(&mut position), &self.writer, None, wanted, flags)?;
        if piped == 0 {
            return Ok(Some(0));
        }
        let more = if piped < length { flags | SpliceFlags::MORE } else { flags };
        let sent = rustix::pipe::splice(&self.reader, None, socket, None, piped, more);
        let taken = *sent.as_ref().unwrap_or(&0);
        if taken < piped {
            self.drain(piped - taken)?;
        }
        again_is_none(sent)
    }

    fn drain(&self, mut left: usize) -> io::Result<()> {
        while left > 0 {
            let count =
                rustix::pipe::splice(&self.reader, None, &self.null, None, left, SpliceFlags::NONBLOCK)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= count;
        }
        Ok(())
    }
}

/// Makes a write to a closed connection an error instead of a signal; `sendfile` and `splice` can't ask for it.
pub(crate) fn ignore_sigpipe() {
    // SAFETY: setting a disposition to SIG_IGN runs no code of ours at any time.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Raises the soft limit of open descriptors to the hard one and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn again_is_none(result: Result<usize, Errno>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        // An interrupted call moved nothing: asking the ring for readiness and trying again is right for both.
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Capacity asked for the pipe, bytes; the limit for unprivileged users unless raised.
const PIPE_BYTES: usize = 1 << 20;
