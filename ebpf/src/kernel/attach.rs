//! Hangs the classifiers on one interface, taking over what an earlier run left there without a gap or a double count.
//! It never removes or reorders what others attached.

use std::fs;
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier};
use aya::sys::SyscallError;
use aya::util::KernelVersion;
use freshet_ebpf_abi as abi;
use freshet_ebpf_abi::{ALL_CLASSES, CLASSES, Direction, Meta};

use super::object::{self, Maps};
use super::pins::{self, FILTER_HANDLE, FILTER_PRIORITY, PinDirectory, attach_type, program_name};
use super::{AttachError, KernelError, flow};
use crate::reading::{Attachment, Epoch, Flow, ReadError};
use crate::sockets::fresh_epoch;

/// Where the classifiers are to hang.
pub(super) struct Place<'a> {
    pub(super) name: &'a str,
    pub(super) ifindex: u32,
    pub(super) link_header: u32,
    pub(super) namespace: u64,
    pub(super) attachment: Attachment,
}

/// The classifiers of one interface. Its maps stay readable when the interface is gone.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) name: String,
    pub(super) epoch: Epoch,
    pub(super) maps: Maps,
    ifindex: u32,
    /// Counted before these maps were made.
    before: [Flow; CLASSES],
    /// The programs and, unless they are pinned, their links: dropping them detaches.
    programs: Option<Ebpf>,
}

/// Loads the object for the interface, lets `prepare` fill its maps (and tells it whether an earlier run used them),
/// then attaches both directions.
///
/// `epoch` is that of the counts in `before`, if there are any.
pub(super) fn attach(
    place: &Place<'_>,
    pins: Option<&PinDirectory>,
    epoch: Option<Epoch>,
    before: [Flow; CLASSES],
    prepare: impl FnOnce(&mut Maps, bool) -> Result<(), KernelError>,
) -> Result<Attached, KernelError> {
    let directory = pins.map(|pins| pins.interface(place.name)).transpose()?;
    if let Some(directory) = &directory {
        discard_unfit(directory, place)?;
    }
    let (mut ebpf, mut maps) = object::load(place.link_header, directory.as_deref())?;
    let found = maps.meta()?;
    let epoch = match (found.version, epoch) {
        (0, Some(epoch)) if pins.is_none() => epoch,
        (0, _) => fresh_epoch(),
        _ => Epoch(found.epoch),
    };
    let ifindex = u64::from(place.ifindex);
    maps.set_meta(Meta { version: abi::ABI_VERSION, epoch: epoch.0, ifindex, namespace: place.namespace })?;
    prepare(&mut maps, found.version != 0)?;
    for direction in [Direction::In, Direction::Out] {
        let program = object::program(&mut ebpf, program_name(direction))?;
        let failed = |error: ProgramError| KernelError::attach(place.name, error);
        program.load().map_err(failed)?;
        match place.attachment {
            Attachment::Tcx => attach_tcx(program, place, direction, directory.as_deref())?,
            Attachment::Clsact => {
                attach_clsact(program, place.name, direction, pins.is_some()).map_err(failed)?;
            }
        }
    }
    let name = place.name.to_owned();
    Ok(Attached { name, epoch, maps, ifindex: place.ifindex, before, programs: Some(ebpf) })
}

impl Attached {
    /// Whether the classifiers hang on the device of this number.
    pub(super) fn live_on(&self, ifindex: u32) -> bool {
        self.programs.is_some() && self.ifindex == ifindex
    }

    /// Takes the classifiers off, or forgets them when their device is gone. The counts stay readable.
    pub(super) fn detach(&mut self, pins: Option<&PinDirectory>) {
        if self.programs.take().is_none() {
            return;
        }
        let unlinked = match pins {
            Some(pins) => pins.interface(&self.name).and_then(|directory| pins::unlink_links(&directory)),
            None => Ok(()),
        };
        // A filter of the clsact qdisc goes with its device; if the device has but another name now, it must not count
        // any more under this one, and then it is found by the name of the program alone.
        if let Err(error) = unlinked {
            tracing::warn!(interface = self.name, %error, "a stale attachment could not be removed");
        }
    }

    /// Takes off a filter that is to outlive its program; a link goes with its pin.
    pub(super) fn withdraw(&self, attachment: Attachment) {
        if attachment != Attachment::Clsact || self.programs.is_none() {
            return;
        }
        for direction in [Direction::In, Direction::Out] {
            if let Err(error) = pins::detach_filter(&self.name, direction) {
                tracing::warn!(interface = self.name, %error, "a filter stays; `dataplane cleanup` removes it");
            }
        }
    }

    /// All counts since the epoch.
    pub(super) fn flows(&self) -> Result<[Flow; CLASSES], KernelError> {
        let mut flows = self.before;
        for class in ALL_CLASSES {
            let counted = flow(|direction| self.maps.count(class, direction))?;
            flows[class.index()] = flows[class.index()].plus(counted);
        }
        Ok(flows)
    }
}

/// Removes what an earlier run pinned and this one can't go on with: maps of another layout or namespace, links to a
/// device that is gone.
fn discard_unfit(directory: &Path, place: &Place<'_>) -> Result<(), KernelError> {
    match object::pinned_meta(&directory.join(abi::map::META)) {
        Some(found) if found.version == abi::ABI_VERSION && found.namespace == place.namespace => {
            if found.ifindex != u64::from(place.ifindex) || place.attachment != Attachment::Tcx {
                pins::unlink_links(directory)?;
            }
            Ok(())
        }
        // Never finished, or not understood.
        _ => pins::unlink_all(directory),
    }
}

fn attach_tcx(
    program: &mut SchedClassifier,
    place: &Place<'_>,
    direction: Direction,
    directory: Option<&Path>,
) -> Result<(), KernelError> {
    let failed = |error: ProgramError| KernelError::attach(place.name, error);
    let pin = directory.map(|directory| directory.join(pins::link_name(direction)));
    if let Some(pin) = &pin
        && take_over(program, pin).map_err(|error| KernelError::attach(place.name, error))?
    {
        return Ok(());
    }
    // A filter that a run without TCX left behind would count everything a second time.
    pins::detach_filter(place.name, direction)?;
    // Ingress first, so that what others drop was counted; egress last, so that what others drop is not.
    let order = match direction {
        Direction::In => LinkOrder::first(),
        Direction::Out => LinkOrder::last(),
    };
    let link = program
        .attach_with_options(place.name, attach_type(direction), TcAttachOptions::TcxOrder(order))
        .map_err(failed)?;
    if let Some(pin) = pin {
        let link = program.take_link(link).map_err(failed)?;
        let link: FdLink =
            link.try_into().map_err(|error: LinkError| KernelError::attach(place.name, error))?;
        let refused = |error: io::Error| KernelError::Pin { path: pin.clone(), error };
        link.pin(&pin).map_err(|error| refused(io::Error::other(error)))?;
    }
    Ok(())
}

/// Puts the program into the link that is pinned there, in one step: every packet meets the old or the new one. False
/// when there is no link that is still attached.
fn take_over(program: &mut SchedClassifier, pin: &Path) -> Result<bool, AttachError> {
    let link = match PinnedLink::from_pin(pin) {
        Ok(link) => SchedClassifierLink::try_from(FdLink::from(link))?,
        Err(LinkError::SyscallError(SyscallError { io_error, .. }))
            if io_error.kind() == io::ErrorKind::NotFound =>
        {
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    match program.attach_to_link(link) {
        Ok(_) => Ok(true),
        // The device is gone (ENOLINK), so the link will never count again.
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOLINK) => {
            fs::remove_file(pin)
                .map_err(|io_error| LinkError::from(SyscallError { call: "unlink", io_error }))?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// One filter at a fixed place, so that a later run replaces it in one step instead of adding a second.
fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    direction: Direction,
    stays: bool,
) -> Result<(), ProgramError> {
    let at = attach_type(direction);
    // It may well be there, ours or somebody else's.
    let added = qdisc_add_clsact(interface);
    let options = || NlOptions { priority: FILTER_PRIORITY, handle: FILTER_HANDLE, classid: None };
    let old = pins::our_filter(interface, direction)
        .map_err(|io_error| SyscallError { call: "if_nametoindex", io_error })?;
    let link = match program.attach_to_link(old) {
        Ok(link) => link,
        Err(_) => {
            let attached = program.attach_with_options(interface, at, TcAttachOptions::Netlink(options()));
            attached.map_err(|error| match added {
                // Without the qdisc there is nothing to hang a filter on, and that is what the operator should read.
                Err(first) if !already(&first) => first.into(),
                _ => error,
            })?
        }
    };
    if stays {
        // Dropping the link would remove the filter.
        mem::forget(program.take_link(link)?);
    }
    Ok(())
}

fn already(error: &aya::programs::tc::TcError) -> bool {
    use aya::programs::tc::TcError;
    match error {
        TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

/// TCX where the kernel has it, which is Linux 6.6.
pub(super) fn best() -> Attachment {
    match KernelVersion::current() {
        Ok(version) if version >= KernelVersion::new(6, 6, 0) => Attachment::Tcx,
        _ => Attachment::Clsact,
    }
}

/// The inode of the calling thread's network namespace.
pub(super) fn network_namespace() -> Result<u64, KernelError> {
    let path = PathBuf::from("/proc/thread-self/ns/net");
    let meta = fs::metadata(path);
    Ok(meta.map_err(|error| ReadError::Kernel { what: "the network namespace's number", error })?.ino())
}
