//! Our counters on a host of the testbed, beside the kernel's of its interface and of its TCP segments.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use freshet_ebpf::{Class, Opened, Options, PortClaim, Source, Traffic};
use freshet_testbed::{Host, wait_until};

/// Classifiers on one host's interface.
pub(super) struct Counter {
    host: Host,
    opened: Arc<Mutex<Opened>>,
    claims: Vec<PortClaim>,
}

/// What had passed a host at some moment.
#[derive(Clone, Debug)]
pub(super) struct Passed {
    /// By class: received and sent.
    pub(super) classes: [[Traffic; 2]; 4],
    /// The interface's own: received and sent.
    pub(super) interface: [Traffic; 2],
}

impl Counter {
    /// Begins to count on `host`.
    pub(super) fn open(host: &Host) -> Result<Self> {
        let options = Options { interfaces: INTERFACE.parse()?, ..Options::default() };
        let opened = host.on_seat(move || freshet_ebpf::open(options))??;
        if let Source::Sockets { why } = opened.accounting.source() {
            bail!("the classifiers can't be had here: {why}");
        }
        Ok(Self { host: host.clone(), opened: Arc::new(Mutex::new(opened)), claims: Vec::new() })
    }

    /// Counts what goes through a local port for a class.
    pub(super) fn claim(&mut self, port: u16, class: Class) -> Result<()> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        self.claims.push(opened.classes.port(port, class)?);
        Ok(())
    }

    /// Waits until nothing passes any more, and reads both counters of the same moment.
    pub(super) fn quiet(&self, testbed: &freshet_testbed::Testbed) -> Result<Passed> {
        let mut before: Option<[Traffic; 2]> = None;
        let what = format!("{} to fall silent", self.host.name());
        wait_until(&what, QUIET_WITHIN, &testbed.cancel(), || {
            std::thread::sleep(QUIET);
            let now = interface(&self.host)?;
            let same = before.replace(now) == Some(now);
            Ok(same.then_some(()))
        })?;
        loop {
            let (first, classes, last) = (interface(&self.host)?, self.read()?, interface(&self.host)?);
            if first == last {
                return Ok(Passed { classes, interface: last });
            }
        }
    }

    fn read(&self) -> Result<[[Traffic; 2]; 4]> {
        let opened = Arc::clone(&self.opened);
        let reading = self.host.on_seat(move || {
            let mut opened = opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.accounting.read()
        })??;
        let found = reading.interfaces.iter().find(|interface| interface.name == INTERFACE);
        let found = found.with_context(|| format!("{INTERFACE} is not counted"))?;
        Ok(found.classes.map(|flow| [flow.incoming, flow.outgoing]))
    }
}

impl Passed {
    /// What passed since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let less = |now: [Traffic; 2], then: [Traffic; 2]| [now[0].minus(then[0]), now[1].minus(then[1])];
        Self {
            classes: std::array::from_fn(|class| less(self.classes[class], before.classes[class])),
            interface: less(self.interface, before.interface),
        }
    }

    /// All classes together: received and sent.
    pub(super) fn all(&self) -> [Traffic; 2] {
        self.classes.iter().fold(<[Traffic; 2]>::default(), |[a, b], &[x, y]| [a.plus(x), b.plus(y)])
    }
}

fn interface(host: &Host) -> std::result::Result<[Traffic; 2], freshet_testbed::Error> {
    let found = host.interfaces()?.into_iter().find(|interface| interface.name == INTERFACE);
    Ok(found.map_or_else(Default::default, |interface| {
        [
            Traffic { bytes: interface.rx_bytes, packets: interface.rx_packets },
            Traffic { bytes: interface.tx_bytes, packets: interface.tx_packets },
        ]
    }))
}

/// What the kernel knows of TCP in a host, each segment of a merged packet by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segments {
    /// Sent, of whatever kind.
    pub(super) sent: u64,
    /// Of them, again.
    pub(super) again: u64,
    /// Connections that were opened from here or to here.
    pub(super) opened: u64,
}

impl Segments {
    /// Since the host exists.
    pub(super) fn of(host: &Host) -> Result<Self> {
        let text =
            host.on_seat(|| std::fs::read_to_string(SNMP))?.with_context(|| format!("reading {SNMP}"))?;
        Self::parse(&text).with_context(|| format!("{SNMP} does not tell of TCP as expected"))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next()?, lines.next()?);
        let value = |wanted: &str| {
            let place = names.split(' ').position(|name| name == wanted)?;
            values.split(' ').nth(place)?.parse::<u64>().ok()
        };
        Some(Self {
            sent: value("OutSegs")?,
            again: value("RetransSegs")?,
            opened: value("ActiveOpens")? + value("PassiveOpens")?,
        })
    }

    /// What was sent since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            again: self.again - before.again,
            opened: self.opened - before.opened,
        }
    }
}

/// A testbed host's own.
pub(super) const INTERFACE: &str = "eth0";
const SNMP: &str = "/proc/thread-self/net/snmp";
/// The longest that stragglers (last ACKs, neighbour probes) are waited for.
const QUIET_WITHIN: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_of_tcp_is_read_by_name() {
        let text = "Ip: a b\nIp: 1 2\nTcp: RtoMin ActiveOpens PassiveOpens OutSegs RetransSegs\n\
            Tcp: 200 3 4 500 6\nUdp: x\nUdp: 9\n";
        assert_eq!(Segments::parse(text), Some(Segments { sent: 500, again: 6, opened: 7 }));
        assert_eq!(Segments::parse("Tcp: OutSegs\nTcp: 5\n"), None);
        assert_eq!(Segments::parse(""), None);
    }
}
