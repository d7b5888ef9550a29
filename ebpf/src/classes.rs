//! Handles by which a program says what its sockets are for. They only register; no socket is read or written.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use freshet_ebpf_abi::{CLASSES, Class};
use socket2::{SockAddr, SockRef};

use crate::kernel::{KernelError, Shared};
use crate::sockets::{MeteredSocket, SocketMeter};

/// The register of what is whose, the same for both sources. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Classes {
    kernel: Option<Arc<Shared>>,
    marks: Option<MarkRule>,
    meter: SocketMeter,
}

/// Which socket marks name a class: those whose bits under `mask` are `base + class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRule {
    /// Bits that are compared; the two lowest of them must be able to hold a class.
    pub mask: u32,
    /// Value of the mark of class 0.
    pub base: u32,
}

impl Default for MarkRule {
    /// The whole mark is compared, so that no mark of the owner's own rules is taken for ours.
    fn default() -> Self {
        Self { mask: u32::MAX, base: 0x4652_0000 }
    }
}

impl MarkRule {
    /// The mark of a class.
    #[must_use]
    pub const fn mark(self, class: Class) -> u32 {
        self.base.wrapping_add(class as u32)
    }
}

/// Why a socket could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum ClassError {
    /// The classifiers' maps refused it.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The socket refused it.
    #[error("can't register a socket for {class}: {error}")]
    Socket {
        /// The class.
        class: Class,
        /// What the kernel said.
        error: io::Error,
    },
    /// Nothing of this class may leave.
    #[error("nothing of {class} leaves until the kill-switch is off again")]
    Off {
        /// The class.
        class: Class,
    },
    /// A listener could not be silenced.
    #[error("can't silence a listener, or let it hear again: {0}")]
    Silence(io::Error),
}

impl Classes {
    pub(crate) fn new(kernel: Option<Arc<Shared>>, marks: Option<MarkRule>, meter: SocketMeter) -> Self {
        Self { kernel, marks, meter }
    }

    /// The register of sockets, for the servers' observers.
    #[must_use]
    pub fn meter(&self) -> &SocketMeter {
        &self.meter
    }

    /// Registers a local TCP port until the claim is dropped. Several claims of one port are one.
    ///
    /// # Errors
    /// When the port has another class already.
    pub fn port(&self, port: u16, class: Class) -> Result<PortClaim, ClassError> {
        let Some(kernel) = &self.kernel else { return Ok(PortClaim { held: None }) };
        kernel.claim(port, class)?;
        Ok(PortClaim { held: Some((Arc::clone(kernel), port)) })
    }

    /// Registers a bound listener: marks it, so that its connections inherit the mark, and claims its port.
    ///
    /// # Errors
    /// When it is not bound, or the port has another class already.
    pub fn listener(&self, listener: impl AsFd, class: Class) -> Result<PortClaim, ClassError> {
        let socket = SockRef::from(&listener);
        self.mark(&socket, class);
        self.port(local_port(&socket).map_err(|error| ClassError::Socket { class, error })?, class)
    }

    /// Registers bound listeners with the kill-switch, for as long as their owner keeps them.
    ///
    /// # Errors
    /// When the kernel would not let them be silenced; they are registered all the same.
    pub fn listening(&self, class: Class, sockets: Weak<[OwnedFd]>) -> Result<(), ClassError> {
        match &self.kernel {
            // Their packets are dropped, whatever they are told.
            Some(_) => Ok(()),
            None => self.meter.switch().add(class, sockets).map_err(ClassError::Silence),
        }
    }

    /// Registers an outgoing TCP socket before it connects to `peer`, so that even its SYN is counted for the class.
    /// The socket is bound to a free local port if it is not bound yet.
    ///
    /// # Errors
    /// When it can't be bound, or nothing of the class may leave.
    pub fn outgoing(
        &self,
        socket: impl AsFd,
        class: Class,
        peer: SocketAddr,
    ) -> Result<Outgoing, ClassError> {
        let failed = |error| ClassError::Socket { class, error };
        let claim = if self.kernel.is_some() {
            let socket = SockRef::from(&socket);
            self.mark(&socket, class);
            let port = match local_port(&socket).map_err(failed)? {
                0 => {
                    socket.bind(&any_address(peer)).map_err(failed)?;
                    local_port(&socket).map_err(failed)?
                }
                bound => bound,
            };
            self.port(port, class)?
        } else if self.meter.switch().is_off(class) {
            return Err(ClassError::Off { class });
        } else {
            PortClaim { held: None }
        };
        Ok(Outgoing { class, meter: self.meter.clone(), metered: None, _claim: claim })
    }

    /// The quota's kill-switch: from now on nothing of these classes leaves, of all others again. Classifiers drop it, its
    /// retransmissions too; without them our own sockets are ended, listeners answer nobody ([`Classes::listening`]) and
    /// connections are not made.
    ///
    /// # Errors
    /// When the kernel refuses the change; what could be done is done.
    pub fn drop_outgoing(&self, classes: &[Class]) -> Result<(), ClassError> {
        let bits = classes.iter().fold(0, |bits, &class| bits | 1 << class as u32);
        match self.configure(|config| config.drop_out = bits)? {
            true => Ok(()),
            false => self.meter.cut(classes).map_err(ClassError::Silence),
        }
    }

    /// Gives outgoing packets the priority of HTB class `major:(16 + class)`; `None` leaves priorities alone. False
    /// when the source in force can't do that.
    ///
    /// # Errors
    /// When the kernel refuses the change.
    pub fn prioritise(&self, htb_major: Option<u16>) -> Result<bool, ClassError> {
        self.configure(|config| config.htb_major = u32::from(htb_major.unwrap_or(0)))
    }

    fn configure(&self, change: impl FnOnce(&mut freshet_ebpf_abi::Config)) -> Result<bool, ClassError> {
        match &self.kernel {
            Some(kernel) => kernel.change_config(change).map(|()| true).map_err(ClassError::from),
            None => Ok(false),
        }
    }

    /// The mark for a listener of this class, where marks tell classes apart and this process may set them: its packets
    /// are then counted without a look at their headers.
    #[must_use]
    pub fn mark_of(&self, class: Class) -> Option<u32> {
        let mark = self.marks.filter(|_| self.kernel.is_some())?.mark(class);
        let probe = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
        probe.set_mark(mark).is_ok().then_some(mark)
    }

    /// From now on the end of the counting leaves nothing: pinned counters and attachments go too. Without this, what
    /// is pinned stays for the next run.
    pub fn leave_nothing(&self) {
        if let Some(kernel) = &self.kernel {
            kernel.leave_nothing();
        }
    }

    /// Without the right to set a mark the port decides, which costs a few nanoseconds more a packet.
    fn mark(&self, socket: &SockRef<'_>, class: Class) {
        if let (Some(marks), true) = (self.marks, self.kernel.is_some())
            && let Err(error) = socket.set_mark(marks.mark(class))
        {
            tracing::debug!(%error, %class, "a socket is not marked; its port decides");
        }
    }
}

/// A port's class, until dropped; then it stays for two more seconds, for the end of the connections.
#[derive(Debug)]
#[must_use = "the port has its class until this is dropped"]
pub struct PortClaim {
    held: Option<(Arc<Shared>, u16)>,
}

impl Drop for PortClaim {
    fn drop(&mut self) {
        if let Some((kernel, port)) = &self.held {
            kernel.release(*port);
        }
    }
}

/// An outgoing connection's class, until dropped. Drop it when the socket is closed.
#[derive(Debug)]
#[must_use = "the connection has its class until this is dropped"]
pub struct Outgoing {
    class: Class,
    meter: SocketMeter,
    metered: Option<MeteredSocket>,
    _claim: PortClaim,
}

impl Outgoing {
    /// Says that the socket is connected. Without it the source of sockets does not see the connection.
    ///
    /// # Errors
    /// When no descriptor is left for watching the socket.
    pub fn connected(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.metered = Some(self.meter.connected(self.class, socket)?);
        Ok(())
    }
}

fn local_port(socket: &SockRef<'_>) -> io::Result<u16> {
    let address = socket.local_addr()?.as_socket();
    address
        .map(|a| a.port())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not an internet socket"))
}

fn any_address(peer: SocketAddr) -> SockAddr {
    match peer {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into(),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into(),
    }
}

const _: () = assert!(CLASSES <= 4, "two bits of the mark hold a class");

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn without_classifiers_nothing_is_registered_and_nothing_fails() {
        let classes = Classes::new(None, Some(MarkRule::default()), SocketMeter::new());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _one = classes.listener(&listener, Class::Delivery).unwrap();
        let _other = classes.listener(&listener, Class::Sync).unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let peer = listener.local_addr().unwrap();
        classes.drop_outgoing(&[Class::Sync]).unwrap();
        let refused = classes.outgoing(&socket, Class::Sync, peer);
        assert!(matches!(refused, Err(ClassError::Off { class: Class::Sync })), "{refused:?}");
        drop(classes.outgoing(&socket, Class::Control, peer).unwrap());
        classes.drop_outgoing(&[]).unwrap();
        drop(classes.outgoing(&socket, Class::Sync, peer).unwrap());
        assert!(!classes.prioritise(Some(1)).unwrap());
    }

    #[test]
    fn marks_are_distinct_and_named_by_the_rule() {
        let rule = MarkRule::default();
        assert_eq!(rule.mark(Class::Sync) & rule.mask, rule.base + 2);
    }
}
