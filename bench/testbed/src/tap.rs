//! A network interface whose other end is a file of this process (TAP): what the host sends there is read, what is
//! written there the host receives. It is gone as soon as the file is closed, however this process ends.
#![allow(unsafe_code, reason = "the kernel is told what interface a file is by an ioctl")]

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::io::{self, Errno};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

/// Makes the interface `name` in the network namespace of the calling thread. The file never waits: reading and writing
/// say when there is nothing, or no room.
///
/// # Errors
///
/// Where there is no `/dev/net/tun`, without the right to make interfaces (CAP_NET_ADMIN), or when there is one of that
/// name already.
pub(crate) fn open(name: &str) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
    let attach = Attach::new(name).ok_or(Errno::NAMETOOLONG)?;
    // SAFETY: TUNSETIFF takes a pointer to an `ifreq`, which is what `Attach` gives; it is read and written during the call
    // only, and `attach` lives as long.
    unsafe { ioctl(&file, attach)? };
    Ok(file)
}

/// TUNSETIFF: frames with their Ethernet header and nothing before it.
struct Attach {
    request: libc::ifreq,
}

impl Attach {
    fn new(name: &str) -> Option<Attach> {
        // SAFETY: an `ifreq` is integers and arrays of them, of which zeros are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last character stays zero.
        let room = request.ifr_name.len() - 1;
        if name.is_empty() || name.len() > room {
            return None;
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        Some(Attach { request })
    }
}

// SAFETY: the opcode is TUNSETIFF and the pointer that of an `ifreq`, the type which that opcode wants; there is no output
// but in it, which nobody reads.
unsafe impl Ioctl for Attach {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        libc::TUNSETIFF as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.request).cast()
    }

    // SAFETY: it looks at neither argument.
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> io::Result<()> {
        Ok(())
    }
}

/// Where interfaces of this kind come from.
pub(crate) const DEVICE: &str = "/dev/net/tun";
