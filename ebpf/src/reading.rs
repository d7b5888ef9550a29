//! The numbers that a source of counters hands out; it never reads a counter itself.

use std::fmt;
use std::io;
use std::path::PathBuf;

use freshet_ebpf_abi::{CLASSES, Class};
use serde::Serialize;

/// All counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// The chosen interfaces in the order they were found; one that disappeared stays, with `present` false.
    pub interfaces: Vec<InterfaceReading>,
}

impl Reading {
    /// One class over all interfaces.
    #[must_use]
    pub fn class(&self, class: Class) -> Flow {
        self.interfaces.iter().fold(Flow::default(), |sum, i| sum.plus(i.class(class)))
    }
}

/// When a count began at zero, in nanoseconds of the Unix time.
///
/// Of the same epoch, the later count less the earlier is what passed in between, also over a restart of the process.
/// Of another epoch, the count is what passed since that epoch, and the earlier count says nothing about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One interface. Class counts only grow for as long as its epoch stays the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceReading {
    /// Name, e.g. `eth0`.
    pub name: String,
    /// The kernel's number of the interface; another one after it was made anew.
    pub ifindex: u32,
    /// Whether it exists at the moment.
    pub present: bool,
    /// Since when `classes` count.
    pub epoch: Epoch,
    /// The interface's own statistics since the kernel made it, or since we first saw it if it was made anew since.
    pub totals: Flow,
    /// By class, counted since the epoch; indexed by [`Class::index`].
    pub classes: [Flow; CLASSES],
}

impl InterfaceReading {
    /// One class.
    #[must_use]
    pub fn class(&self, class: Class) -> Flow {
        self.classes[class.index()]
    }

    /// All that is ours: every class but [`Class::Other`].
    #[must_use]
    pub fn ours(&self) -> Flow {
        self.classes[1..].iter().fold(Flow::default(), |sum, &class| sum.plus(class))
    }

    /// The owner's own traffic.
    #[must_use]
    pub fn other(&self) -> Flow {
        self.class(Class::Other)
    }
}

/// Both directions of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// Received.
    pub incoming: Traffic,
    /// Sent.
    pub outgoing: Traffic,
}

impl Flow {
    /// The sum of two flows.
    #[must_use]
    pub const fn plus(self, more: Self) -> Self {
        Self { incoming: self.incoming.plus(more.incoming), outgoing: self.outgoing.plus(more.outgoing) }
    }

    /// What is left when `part` is taken away, never below zero.
    #[must_use]
    pub const fn minus(self, part: Self) -> Self {
        Self { incoming: self.incoming.minus(part.incoming), outgoing: self.outgoing.minus(part.outgoing) }
    }

    /// The larger of each count.
    #[must_use]
    pub fn max(self, than: Self) -> Self {
        Self { incoming: self.incoming.max(than.incoming), outgoing: self.outgoing.max(than.outgoing) }
    }
}

/// Bytes and packets as they passed the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Bytes from the link header to the end of the payload.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

impl Traffic {
    /// The sum of two.
    #[must_use]
    pub const fn plus(self, more: Self) -> Self {
        Self { bytes: self.bytes.wrapping_add(more.bytes), packets: self.packets.wrapping_add(more.packets) }
    }

    /// What is left when `part` is taken away, never below zero.
    #[must_use]
    pub const fn minus(self, part: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(part.bytes),
            packets: self.packets.saturating_sub(part.packets),
        }
    }

    /// The larger of each count.
    #[must_use]
    pub fn max(self, than: Self) -> Self {
        Self { bytes: self.bytes.max(than.bytes), packets: self.packets.max(than.packets) }
    }
}

/// Where the class counters come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Source {
    /// Classifiers in the kernel at the interface's ingress and egress: exact for every class.
    Kernel {
        /// How they are attached.
        attachment: Attachment,
        /// Where maps and links are pinned, so that they outlive the process; `None` when they end with it.
        pinned: Option<PathBuf>,
    },
    /// The kernel's figures for our own sockets; `other` is the interface's total less ours.
    Sockets {
        /// Why the classifiers are not in use.
        why: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { attachment, pinned: Some(at) } => {
                write!(f, "ebpf ({attachment}, pinned at {})", at.display())
            }
            Self::Kernel { attachment, pinned: None } => write!(f, "ebpf ({attachment}, not pinned)"),
            Self::Sockets { why } => write!(f, "own sockets (no ebpf: {why})"),
        }
    }
}

/// How a classifier hangs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// TCX links, Linux 6.6 or later: they detach by themselves when nothing holds them.
    Tcx,
    /// Filters of the clsact qdisc, Linux 4.5 or later: they stay until removed. One daemon can count an interface this
    /// way; a second one there would take its place.
    Clsact,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Why counters could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// One of the kernel's tables could not be read.
    #[error("can't read {what}: {error}")]
    Kernel {
        /// The table.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The kernel answered with something else than documented.
    #[error("expected a line of interface counters in {file}, found {line:?}")]
    Format {
        /// The file.
        file: &'static str,
        /// The line, cut to a bounded length.
        line: String,
    },
    /// A map of the classifiers could not be read.
    #[error("can't read the counters map: {error}")]
    Map {
        /// What the kernel or the loader said.
        error: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(n: u64) -> Flow {
        let one = |k| Traffic { bytes: n * k, packets: n };
        Flow { incoming: one(100), outgoing: one(10) }
    }

    #[test]
    fn ours_is_everything_but_other() {
        let reading = InterfaceReading {
            name: "eth0".into(),
            ifindex: 2,
            present: true,
            epoch: Epoch(1),
            totals: flow(100),
            classes: [flow(1), flow(2), flow(4), flow(8)],
        };
        assert_eq!(reading.ours(), flow(14));
        assert_eq!(reading.other(), flow(1));
        let all = Reading { interfaces: vec![reading.clone(), reading] };
        assert_eq!(all.class(Class::Sync), flow(8));
    }

    #[test]
    fn a_difference_stops_at_zero() {
        assert_eq!(flow(1).minus(flow(2)), Flow::default());
        assert_eq!(flow(3).minus(flow(2)), flow(1));
    }

    #[test]
    fn the_source_says_why() {
        let source = Source::Sockets { why: "no CAP_BPF".into() };
        assert_eq!(source.to_string(), "own sockets (no ebpf: no CAP_BPF)");
    }
}
