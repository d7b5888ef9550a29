//! What a link is asked to be: its network, its name in the host, and its rate in each direction.

use std::fmt;
use std::time::Duration;

/// A link rate; bytes per second inside, bits per second where a person reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// A rate of so many Mbit/s (10^6 bits per second).
    #[must_use]
    pub const fn mbit(mbit: u64) -> Rate {
        Rate(mbit * 125_000)
    }

    /// A rate of so many bytes per second.
    #[must_use]
    pub const fn bytes_per_sec(bytes: u64) -> Rate {
        Rate(bytes)
    }

    /// The rate in bytes per second.
    #[must_use]
    pub const fn as_bytes_per_sec(self) -> u64 {
        self.0
    }

    /// As `tc` reads it, in bits per second.
    pub(crate) fn tc(self) -> String {
        format!("{}bit", self.0.saturating_mul(8))
    }

    /// How many bytes the rate passes in `time`.
    pub(crate) fn bytes_in(self, time: Duration) -> u64 {
        let bytes = u128::from(self.0) * time.as_micros() / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.saturating_mul(8);
        if bits >= 1_000_000 && bits.is_multiple_of(1_000_000) {
            write!(f, "{} Mbit/s", bits / 1_000_000)
        } else {
            write!(f, "{bits} bit/s")
        }
    }
}

/// A host's link to a network. Rates are limited at both ends, so that neither direction can overrun the other end.
#[derive(Clone, Debug)]
pub struct Link {
    pub(crate) network: String,
    pub(crate) interface: String,
    pub(crate) up: Option<Rate>,
    pub(crate) down: Option<Rate>,
    pub(crate) queue: Queue,
    pub(crate) segments: bool,
    pub(crate) delay: Duration,
    pub(crate) loss_percent: f64,
    pub(crate) seed: u64,
}

/// How much may wait before a limited direction of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Queue {
    Time(Duration),
    Bytes(u64),
}

impl Link {
    /// A link without a limit to the network that every testbed has, as interface `eth0`.
    #[must_use]
    pub fn new() -> Link {
        Link {
            network: DEFAULT_NETWORK.to_owned(),
            interface: "eth0".to_owned(),
            up: None,
            down: None,
            queue: Queue::Time(QUEUE),
            segments: false,
            delay: Duration::ZERO,
            loss_percent: 0.0,
            seed: 0,
        }
    }

    /// Limits what the host sends.
    #[must_use]
    pub fn up(mut self, rate: Rate) -> Link {
        self.up = Some(rate);
        self
    }

    /// Limits what the host receives.
    #[must_use]
    pub fn down(mut self, rate: Rate) -> Link {
        self.down = Some(rate);
        self
    }

    /// Limits both directions alike.
    #[must_use]
    pub fn rate(self, rate: Rate) -> Link {
        self.up(rate).down(rate)
    }

    /// How long a packet may wait in a limited direction's queue before the queue drops (50 ms unless set).
    #[must_use]
    pub fn queue(mut self, time: Duration) -> Link {
        self.queue = Queue::Time(time);
        self
    }

    /// How many bytes may wait in a limited direction's queue before it drops, in place of a time.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: u64) -> Link {
        self.queue = Queue::Bytes(bytes);
        self
    }

    /// How long each direction takes, beside its queue, where something delays packets ([`crate::Testbed::delays`]).
    #[must_use]
    pub fn delay(mut self, time: Duration) -> Link {
        self.delay = time;
        self
    }

    /// The part of packets, 0 to 100, that each direction loses, where something loses them
    /// ([`crate::Testbed::delays`]).
    #[must_use]
    pub fn loss(mut self, percent: f64) -> Link {
        self.loss_percent = percent;
        self
    }

    /// What lost packets are drawn from where the harness loses them; each link draws others.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Link {
        self.seed = seed;
        self
    }

    /// Whether it is to delay or lose anything.
    pub(crate) fn is_delayed(&self) -> bool {
        !self.delay.is_zero() || self.loss_percent > 0.0
    }

    /// Sends single packets as a wire does, where the kernel would otherwise pass up to 64 KiB in one piece with one
    /// header: then the kernel's counters are those of a wire too. It costs processor time. The host's own queue then
    /// holds a thousand packets at least, so that what was counted before it is not dropped there.
    #[must_use]
    pub fn single_packets(mut self) -> Link {
        self.segments = true;
        self
    }

    /// The network to join; it is made when the first link names it.
    #[must_use]
    pub fn network(mut self, name: &str) -> Link {
        name.clone_into(&mut self.network);
        self
    }

    /// The interface's name inside the host, at most 15 characters.
    #[must_use]
    pub fn interface(mut self, name: &str) -> Link {
        name.clone_into(&mut self.interface);
        self
    }
}

impl Default for Link {
    fn default() -> Link {
        Link::new()
    }
}

pub(crate) const DEFAULT_NETWORK: &str = "net";
const QUEUE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bytes_inside_and_bits_outside() {
        assert_eq!(Rate::mbit(100).as_bytes_per_sec(), 12_500_000);
        assert_eq!(Rate::mbit(100).tc(), "100000000bit");
        assert_eq!(Rate::mbit(100).to_string(), "100 Mbit/s");
        assert_eq!(Rate::bytes_per_sec(100).to_string(), "800 bit/s");
        assert_eq!(Rate::mbit(8).bytes_in(Duration::from_millis(50)), 50_000);
    }
}
