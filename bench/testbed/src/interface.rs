//! The kernel's counters of a host's interfaces: the independent measurement that stands beside the programs' own.
//!
//! It reads `/proc/thread-self/net/dev`, which follows the thread's network namespace; sysfs does not.

use std::fs;

use crate::Error;

/// One interface's totals since it exists, link-layer bytes as the kernel counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// The interface's name inside the host.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
}

impl InterfaceCounters {
    /// All interfaces of the kernel's table (`/proc/net/dev`); lines that are none are left out.
    #[must_use]
    pub fn parse(table: &str) -> Vec<InterfaceCounters> {
        parse(table)
    }
}

/// Reads the counters of the calling thread's network namespace.
pub(crate) fn read() -> Result<Vec<InterfaceCounters>, Error> {
    let text = fs::read_to_string(PATH).map_err(Error::io(format!("reading {PATH}")))?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<InterfaceCounters> {
    text.lines()
        .skip(2)
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> =
                counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
            // Eight columns of receive, then eight of transmit; bytes and packets come first in each.
            match counters[..] {
                [rx_bytes, rx_packets, _, _, _, _, _, _, tx_bytes, tx_packets, ..] => {
                    Some(InterfaceCounters {
                        name: name.trim().to_owned(),
                        rx_bytes,
                        rx_packets,
                        tx_bytes,
                        tx_packets,
                    })
                }
                _ => None,
            }
        })
        .collect()
}

const PATH: &str = "/proc/thread-self/net/dev";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets ...\n\
            \x20   lo:  100       2    0    0    0     0          0         0      300       4    0    0    0     0       0          0\n\
            eth0:12345678901 7 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n broken: 1 2\n";
        let all = parse(text);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].name.as_str(), all[0].rx_bytes, all[0].tx_bytes), ("lo", 100, 300));
        assert_eq!((all[1].name.as_str(), all[1].rx_bytes, all[1].tx_packets), ("eth0", 12_345_678_901, 1));
    }

    #[test]
    fn this_machine_has_a_loopback() {
        assert!(read().unwrap().iter().any(|interface| interface.name == "lo"));
    }
}
