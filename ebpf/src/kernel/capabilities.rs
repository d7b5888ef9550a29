//! Which capabilities loading needs, and getting rid of them. It never gains one.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::KernelError;

/// Refuses when the calling thread lacks what loading and attaching need.
pub(super) fn check() -> Result<(), KernelError> {
    let have = effective().map_err(|_| KernelError::Capabilities { missing: "reading them" })?;
    // Before Linux 5.8 there was but one.
    let bpf = have.contains(CapabilitySet::BPF) || have.contains(CapabilitySet::SYS_ADMIN);
    let missing = match (bpf, have.contains(CapabilitySet::NET_ADMIN)) {
        (true, true) => return Ok(()),
        (false, true) => "CAP_BPF",
        (true, false) => "CAP_NET_ADMIN",
        (false, false) => "each of them",
    };
    Err(KernelError::Capabilities { missing })
}

/// Leaves the calling thread only what the keeper of the attachments needs.
pub(super) fn keep_what_attaching_needs() -> io::Result<()> {
    let have = effective()?;
    let mut keep = CapabilitySet::NET_ADMIN | CapabilitySet::BPF;
    if !have.contains(CapabilitySet::BPF) {
        keep |= CapabilitySet::SYS_ADMIN;
    }
    restrict(keep)
}

/// Takes from the calling thread, and from the threads that it starts later, what only the loading needed: CAP_BPF,
/// CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN. Counters can still be read, ports still be registered. The thread
/// that attaches to interfaces when they come back was started before, and keeps CAP_BPF and CAP_NET_ADMIN alone.
///
/// # Errors
/// What the kernel says; none is known for giving rights up.
pub fn drop_capabilities() -> io::Result<()> {
    let gone =
        CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON | CapabilitySet::SYS_ADMIN;
    restrict(!gone)
}

fn restrict(keep: CapabilitySet) -> io::Result<()> {
    let have = capabilities(None)?;
    let sets = CapabilitySets {
        effective: have.effective & keep,
        permitted: have.permitted & keep,
        inheritable: have.inheritable & keep,
    };
    Ok(set_capabilities(None, sets)?)
}

fn effective() -> io::Result<CapabilitySet> {
    Ok(capabilities(None)?.effective)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_capabilities_are_gone_from_this_thread() {
        // Of its own thread: the test runner's others keep theirs.
        let after = std::thread::spawn(|| {
            drop_capabilities().unwrap();
            let after = effective().unwrap();
            assert!(matches!(check(), Err(KernelError::Capabilities { missing: "each of them" })));
            after
        });
        let after = after.join().unwrap();
        assert!(!after.intersects(CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN));
    }
}
