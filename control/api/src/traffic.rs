//! What bytes on a network interface are for, and their counts as they travel in heartbeats.

use serde::{Deserialize, Serialize};

/// What a byte on the wire was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Everything that is not Freshet's: the owner's own traffic.
    Other,
    /// To customers.
    Delivery,
    /// Between mirrors, and with the origin, to keep the mirror current.
    Sync,
    /// Heartbeats and commands.
    Control,
}

impl Class {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Other, Self::Delivery, Self::Sync, Self::Control];

    /// The number that the engine's listeners and the kernel programs use (0 ..= 3).
    pub const fn number(self) -> u8 {
        match self {
            Self::Other => 0,
            Self::Delivery => 1,
            Self::Sync => 2,
            Self::Control => 3,
        }
    }
}

/// Which way a byte went, seen from the host that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Received.
    In,
    /// Sent.
    Out,
}

/// Bytes and packets, counted as on the wire (link-layer header included, preamble and FCS not).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Bytes.
    pub bytes: u64,
    /// Packets (segments where the NIC segments).
    pub packets: u64,
}

/// Both directions of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InOut {
    /// Received.
    #[serde(rename = "in")]
    pub received: Count,
    /// Sent.
    #[serde(rename = "out")]
    pub sent: Count,
}

/// The counters of one interface; all of them only ever grow while `epoch` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceCounters {
    /// The interface's name.
    pub name: String,
    /// When the classes' counts began, nanoseconds of the Unix time: of the same epoch they go on where they were, also
    /// over a restart of the daemon; of another they begin at zero.
    pub epoch: u64,
    /// What the kernel counted in all.
    pub total: InOut,
    /// To and from customers.
    pub delivery: InOut,
    /// To and from mirrors and the origin.
    pub sync: InOut,
    /// Heartbeats and commands.
    pub control: InOut,
    /// The rest: the owner's own.
    pub other: InOut,
    /// Link speed in bytes per second, if the driver tells.
    pub link_bytes_per_sec: Option<u64>,
}

/// Where the class counters come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum CounterSource {
    /// eBPF programs on the interface count every packet.
    Ebpf,
    /// The kernel's own figures of our sockets (TCP_INFO) and of the interface.
    Sockets {
        /// Why not eBPF.
        why: String,
    },
}
