//! Layouts shared by the classifiers in the kernel and the loader in user space: map values and names.
//! It holds no logic beyond the arithmetic of an index, needs no `std`, and never touches a map itself.
#![no_std]
#![forbid(unsafe_code)]

/// What a byte on the wire was for; the value is the index in every table of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// The owner's own traffic, and everything that nobody registered.
    Other = 0,
    /// Files sent to customers.
    Delivery = 1,
    /// The swarm: to and from other volunteers, and from the origin.
    Sync = 2,
    /// Heartbeats and commands between this host and control.
    Control = 3,
}

/// How many classes there are.
pub const CLASSES: usize = 4;

/// Every class, in the order of its index.
pub const ALL_CLASSES: [Class; CLASSES] = [Class::Other, Class::Delivery, Class::Sync, Class::Control];

impl Class {
    /// The class of this number, `None` when no class has it.
    #[must_use]
    pub const fn from_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::Other),
            1 => Some(Self::Delivery),
            2 => Some(Self::Sync),
            3 => Some(Self::Control),
            _ => None,
        }
    }

    /// The index in every table of counters, below [`CLASSES`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name as reports and the configuration write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Delivery => "delivery",
            Self::Sync => "sync",
            Self::Control => "control",
        }
    }
}

impl core::fmt::Display for Class {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.name())
    }
}

/// Which way a packet passed the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Received by the interface.
    In = 0,
    /// Sent by the interface.
    Out = 1,
}

/// How many directions there are.
pub const DIRECTIONS: usize = 2;

/// One cell of the table of counters; the kernel keeps one copy for each CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Bytes as the interface's own statistics count them: link header to payload, each segment with its headers.
    pub bytes: u64,
    /// Packets as they passed the wire, so a merged or yet unsplit one counts as its segments.
    pub packets: u64,
}

impl From<[u64; 2]> for Counter {
    fn from([bytes, packets]: [u64; 2]) -> Self {
        Self { bytes, packets }
    }
}

/// What the loader tells every classifier; one value for all interfaces, changed while they run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// Bits of the socket mark that are compared; 0 means that marks are not looked at.
    pub mark_mask: u32,
    /// A packet whose masked mark is `mark_base + class` belongs to that class.
    pub mark_base: u32,
    /// If not 0, an outgoing packet's priority becomes the HTB class `major:(HTB_MINOR_FIRST + class)`.
    pub htb_major: u32,
    /// Bit `1 << class` set: outgoing packets of that class are dropped. The quota's last resort, not a rate limiter.
    pub drop_out: u32,
}

impl Config {
    /// As the words that a map value holds, in the order of the fields.
    #[must_use]
    pub const fn words(self) -> [u32; 4] {
        [self.mark_mask, self.mark_base, self.htb_major, self.drop_out]
    }
}

/// Minor number of the HTB class of [`Class::Other`]; the other classes follow in order.
pub const HTB_MINOR_FIRST: u32 = 16;

/// What the loader remembers beside the counters of one interface, so that a later run knows what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Meta {
    /// [`ABI_VERSION`] of whoever made the maps; 0 in maps that were never used.
    pub version: u64,
    /// When the counters began at zero, in nanoseconds of the Unix time.
    pub epoch: u64,
    /// The interface's number when the classifiers were attached.
    pub ifindex: u64,
    /// The network namespace's inode.
    pub namespace: u64,
}

impl Meta {
    /// As the words that the map value holds, in the order of the fields.
    #[must_use]
    pub const fn words(self) -> [u64; 4] {
        [self.version, self.epoch, self.ifindex, self.namespace]
    }
}

impl From<[u64; 4]> for Meta {
    fn from([version, epoch, ifindex, namespace]: [u64; 4]) -> Self {
        Self { version, epoch, ifindex, namespace }
    }
}

/// Entries in [`map::COUNTERS`].
pub const COUNTERS: usize = CLASSES * DIRECTIONS;

/// Entries in [`map::PORTS`]: one for each local TCP port.
pub const PORTS: usize = 65_536;

/// Position of a counter in [`map::COUNTERS`].
#[must_use]
pub const fn counter_index(class: usize, direction: Direction) -> usize {
    class * DIRECTIONS + direction as usize
}

/// Version of these layouts. Maps that an earlier run pinned with another version are not taken over.
pub const ABI_VERSION: u64 = 1;

/// Names of the maps, of which every interface has its own set; at most 15 characters, which is what the kernel keeps.
pub mod map {
    /// `Array<u8>[PORTS]`: class of a local TCP port.
    pub const PORTS: &str = "FR_PORTS";
    /// `Array<Config>[1]`.
    pub const CONFIG: &str = "FR_CONFIG";
    /// `PerCpuArray<Counter>[COUNTERS]`.
    pub const COUNTERS: &str = "FR_COUNTERS";
    /// `Array<Meta>[1]`, which the classifiers never read.
    pub const META: &str = "FR_META";
    /// All of them.
    pub const ALL: [&str; 4] = [PORTS, CONFIG, COUNTERS, META];
}

/// Names of the programs; stale attachments of an earlier run are recognised by them.
pub mod program {
    /// At the interface's ingress.
    pub const INGRESS: &str = "freshet_in";
    /// At the interface's egress.
    pub const EGRESS: &str = "freshet_out";
    /// Does nothing; the cost of the others is measured net of it.
    pub const EMPTY: &str = "freshet_empty";
}

/// Names of the constants that are set for each interface before its programs are loaded.
pub mod constant {
    /// `u32`, bytes of link header in front of IP: 14 for Ethernet, 0 for tunnels.
    pub const LINK_HEADER: &str = "FR_LINK_HEADER";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_place() {
        let mut seen = [false; COUNTERS];
        for class in ALL_CLASSES {
            for direction in [Direction::In, Direction::Out] {
                let index = counter_index(class.index(), direction);
                assert!(!core::mem::replace(&mut seen[index], true), "{index} twice");
            }
        }
        assert!(seen.iter().all(|&s| s));
    }

    #[test]
    fn values_have_the_size_the_kernel_side_expects() {
        assert_eq!(size_of::<Counter>(), 16);
        assert_eq!(size_of::<Config>(), 16);
        let config = Config { mark_mask: 1, mark_base: 2, htb_major: 3, drop_out: 4 };
        assert_eq!(config.words(), [1, 2, 3, 4]);
        let meta = Meta { version: 1, epoch: 2, ifindex: 3, namespace: 4 };
        assert_eq!((size_of::<Meta>(), meta.words(), Meta::from([1, 2, 3, 4])), (32, [1, 2, 3, 4], meta));
        assert!(map::ALL.iter().all(|name| name.len() <= 15));
    }

    #[test]
    fn class_numbers_are_those_of_the_listeners() {
        for (index, class) in ALL_CLASSES.into_iter().enumerate() {
            assert_eq!(class.index(), index);
            assert_eq!(Class::from_index(index as u8), Some(class));
        }
        assert_eq!(Class::from_index(4), None);
    }
}
