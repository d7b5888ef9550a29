//! What the running kernel can do, asked once at start; it names what is missing and since when Linux has it.

use std::io;

use io_uring::{IoUring, Probe, opcode};

/// Optional abilities that a ring is set up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// `IORING_SETUP_COOP_TASKRUN`, Linux 5.19.
    pub(crate) cooperative: bool,
    /// `IORING_SETUP_SINGLE_ISSUER`, Linux 6.0.
    pub(crate) single_issuer: bool,
}

/// Why this kernel won't do.
#[derive(Debug)]
pub(crate) enum ProbeError {
    /// No ring at all.
    Unusable(io::Error),
    /// A ring, but without an operation.
    Missing {
        /// Which.
        operation: &'static str,
        /// First version that has it.
        since: &'static str,
    },
}

/// Asks the kernel.
///
/// # Errors
/// [`ProbeError`], when rings are forbidden or a needed operation is not there.
pub(crate) fn probe() -> Result<Abilities, ProbeError> {
    let ring = IoUring::new(PROBE_ENTRIES).map_err(ProbeError::Unusable)?;
    let mut known = Probe::new();
    ring.submitter()
        .register_probe(&mut known)
        .map_err(|_| ProbeError::Missing { operation: "IORING_REGISTER_PROBE", since: "5.6" })?;
    for (code, operation, since) in NEEDED {
        if !known.is_supported(code) {
            return Err(ProbeError::Missing { operation, since });
        }
    }
    if !ring.params().is_feature_nodrop() {
        return Err(ProbeError::Missing { operation: "IORING_FEAT_NODROP", since: "5.5" });
    }
    drop(ring);
    let cooperative = starts(IoUring::builder().setup_coop_taskrun());
    if !cooperative {
        // Cancelling by descriptor came with the same version; without it a stop could hang.
        return Err(ProbeError::Missing { operation: "IORING_ASYNC_CANCEL_FD", since: "5.19" });
    }
    let single_issuer = starts(IoUring::builder().setup_coop_taskrun().setup_single_issuer());
    Ok(Abilities { cooperative, single_issuer })
}

fn starts(setup: &io_uring::Builder) -> bool {
    setup.build(PROBE_ENTRIES).is_ok()
}

const PROBE_ENTRIES: u32 = 4;

const NEEDED: [(u8, &str, &str); 8] = [
    (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD", "5.1"),
    (opcode::Accept::CODE, "IORING_OP_ACCEPT", "5.5"),
    (opcode::AsyncCancel2::CODE, "IORING_OP_ASYNC_CANCEL", "5.5"),
    (opcode::Fadvise::CODE, "IORING_OP_FADVISE", "5.6"),
    (opcode::Read::CODE, "IORING_OP_READ", "5.6"),
    (opcode::Send::CODE, "IORING_OP_SEND", "5.6"),
    (opcode::Recv::CODE, "IORING_OP_RECV", "5.6"),
    (opcode::OpenAt2::CODE, "IORING_OP_OPENAT2", "5.6"),
];
