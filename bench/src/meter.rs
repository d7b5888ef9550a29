//! The independent measurement: what passes each interface by the kernel's statistics, beside what volunteers say.
//!
//! The kernel is asked in each host's namespace (or on the host, by ssh); no program of ours has a part in that. What
//! volunteers count themselves is read from their own port for monitoring at the same moment.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use freshet_testbed::{Cancel, Host, InterfaceCounters, Program, wait_until};
use serde::Serialize;

/// Bytes received and sent.
pub(crate) type Passed = [u64; 2];

/// One moment of one volunteer's interface, by both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// By the kernel, just before ours were read.
    pub(crate) kernel: Passed,
    /// By the kernel, just after; the same unless something passed meanwhile.
    pub(crate) kernel_after: Passed,
    /// By the volunteer, all classes together.
    pub(crate) ours: Passed,
    /// By the volunteer: delivery, sync, control, other; bytes received and sent.
    pub(crate) classes: [Passed; 4],
}

/// The kernel's counters of the host's link.
pub(crate) fn interface(host: &Host) -> Result<InterfaceCounters> {
    let name = host.interface()?;
    let found = host.interfaces()?.into_iter().find(|counters| counters.name == name);
    found.with_context(|| format!("{} has no {name}", host.name()))
}

/// Reads both counters of a volunteer at once, several times if something passes meanwhile.
pub(crate) fn read(host: &Host, metrics: &str) -> Result<Reading> {
    let script = format!(
        "cat /proc/net/dev; echo {SEPARATOR}; curl -sS --noproxy '*' --max-time 10 '{metrics}' || exit; \
         echo {SEPARATOR}; cat /proc/net/dev"
    );
    let interface = host.interface()?;
    let mut best = None;
    for _ in 0..ATTEMPTS {
        let answer = host.run(&Program::new("sh").args(["-c", &script]), PATIENCE)?;
        if !answer.status.success() {
            bail!("cannot read the counters of {}: {}", host.name(), answer.stderr.trim());
        }
        let reading = parse(&answer.text(), &interface)
            .with_context(|| format!("{} tells its counters in an unexpected way", host.name()))?;
        if reading.kernel == reading.kernel_after {
            return Ok(reading);
        }
        best = Some(reading);
    }
    best.context("there is at least one attempt")
}

/// Waits until next to nothing passes these interfaces any more; whether that came before `patience` ended.
pub(crate) fn settle(hosts: &[Host], patience: Duration, cancel: &Cancel) -> Result<bool> {
    let all = || hosts.iter().map(interface).collect::<Result<Vec<_>>>();
    let mut before = all()?;
    let mut calm = || -> Result<bool> {
        std::thread::sleep(STEP);
        let now = all()?;
        let quiet = |(now, before): (&InterfaceCounters, &InterfaceCounters)| {
            now.rx_bytes + now.tx_bytes < before.rx_bytes + before.tx_bytes + QUIET_BYTES
        };
        let calm = now.iter().zip(&before).all(quiet);
        before = now;
        Ok(calm)
    };
    let mut failed = None;
    let waited = wait_until("the links to fall silent", patience, cancel, || match calm() {
        Ok(calm) => Ok(calm.then_some(())),
        Err(error) => {
            failed = Some(error);
            Ok(Some(()))
        }
    });
    match (waited, failed) {
        (_, Some(error)) => Err(error),
        (Ok(()), None) => Ok(true),
        (Err(freshet_testbed::Error::Timeout { .. }), None) => Ok(false),
        (Err(error), None) => Err(error.into()),
    }
}

/// What both counted on one volunteer's interface, in all the time in which its daemon ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Compared {
    /// By the kernel.
    pub(crate) kernel: Passed,
    /// By the volunteer.
    pub(crate) ours: Passed,
    /// By the volunteer and class: delivery, sync, control, other.
    pub(crate) classes: [Passed; 4],
}

impl Compared {
    /// Adds what passed between two readings of one daemon.
    pub(crate) fn add(&mut self, first: &Reading, last: &Reading) {
        let less = |now: Passed, then: Passed| [0, 1].map(|side| now[side].saturating_sub(then[side]));
        let ours = less(last.ours, first.ours);
        for side in [0, 1] {
            // Where something passed while they were read, any figure between the two readings is right.
            let low = last.kernel[side].saturating_sub(first.kernel_after[side]);
            let high = last.kernel_after[side].saturating_sub(first.kernel[side]);
            self.kernel[side] += ours[side].clamp(low, high);
            self.ours[side] += ours[side];
            for (sum, class) in self.classes.iter_mut().zip(0..) {
                sum[side] += less(last.classes[class], first.classes[class])[side];
            }
        }
    }

    /// What both counted in either time.
    pub(crate) fn plus(mut self, other: &Compared) -> Compared {
        for side in [0, 1] {
            self.kernel[side] += other.kernel[side];
            self.ours[side] += other.ours[side];
            for (sum, class) in self.classes.iter_mut().zip(&other.classes) {
                sum[side] += class[side];
            }
        }
        self
    }
}

fn parse(text: &str, interface: &str) -> Option<Reading> {
    let mut parts = text.split(SEPARATOR);
    let (before, metrics, after) = (parts.next()?, parts.next()?, parts.next()?);
    let kernel = |table: &str| {
        let all = InterfaceCounters::parse(table.trim_start_matches('\n'));
        all.into_iter().find(|one| one.name == interface).map(|one| [one.rx_bytes, one.tx_bytes])
    };
    let mut classes = [[0; 2]; 4];
    let mut found = 0;
    for line in metrics.lines().filter_map(|line| line.strip_prefix(BYTES_METRIC)) {
        let (labels, value) = line.split_once('}')?;
        let label = |name: &str| {
            let rest = labels.split_once(&format!("{name}=\""))?.1;
            rest.split_once('"').map(|(value, _)| value)
        };
        if label("interface") != Some(interface) {
            continue;
        }
        let class = CLASSES.iter().position(|&class| Some(class) == label("class"))?;
        let side = ["in", "out"].iter().position(|&side| Some(side) == label("direction"))?;
        classes[class][side] = value.split_whitespace().next()?.parse().ok()?;
        found += 1;
    }
    let ours = classes.iter().fold([0; 2], |sum, class| [sum[0] + class[0], sum[1] + class[1]]);
    (found == 2 * CLASSES.len()).then_some(Reading {
        kernel: kernel(before)?,
        kernel_after: kernel(after)?,
        ours,
        classes,
    })
}

/// In the order of [`Reading::classes`].
pub(crate) const CLASSES: [&str; 4] = ["delivery", "sync", "control", "other"];
const BYTES_METRIC: &str = "freshet_dataplane_interface_bytes_total{";
const SEPARATOR: &str = "=====";
/// Readings of one volunteer until one is undisturbed.
const ATTEMPTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(300);
/// Heartbeats and answers of a few hundred bytes.
const QUIET_BYTES: u64 = 12 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rx: u64, tx: u64) -> String {
        format!("Inter-|\n face |bytes\n  eth0: {rx} 1 0 0 0 0 0 0 {tx} 1 0 0 0 0 0 0\n")
    }

    fn text(before: (u64, u64), after: (u64, u64)) -> String {
        let mut metrics = "# TYPE freshet_dataplane_interface_bytes counter\n".to_owned();
        for (class, name) in CLASSES.iter().enumerate() {
            for (side, direction) in ["in", "out"].iter().enumerate() {
                let value = 10 * (class + 1) + side;
                metrics += &format!(
                    "{BYTES_METRIC}interface=\"eth0\",class=\"{name}\",direction=\"{direction}\"}} {value}\n"
                );
            }
        }
        metrics += &format!("{BYTES_METRIC}interface=\"eth9\",class=\"sync\",direction=\"in\"}} 7000\n");
        [table(before.0, before.1), metrics, table(after.0, after.1)].join(&format!("{SEPARATOR}\n"))
    }

    #[test]
    fn both_counters_are_read_from_one_answer() {
        let reading = parse(&text((5, 6), (7, 8)), "eth0").unwrap();
        assert_eq!((reading.kernel, reading.kernel_after, reading.ours), ([5, 6], [7, 8], [100, 104]));
        assert_eq!(reading.classes[1], [20, 21]);
        assert_eq!(parse(&text((5, 6), (7, 8)), "eth1"), None);
        assert_eq!(parse("", "eth0"), None);
        assert_eq!(parse(&text((5, 6), (7, 8)).replace("sync", "sink"), "eth0"), None);
    }

    #[test]
    fn what_passed_while_counters_were_read_is_no_difference_and_everything_else_is() {
        let at = |kernel, kernel_after, ours| Reading { kernel, kernel_after, ours, classes: [[0; 2]; 4] };
        let (first, last) = (at([0, 0], [10, 0], [5, 0]), at([1_000, 1_000], [1_020, 1_000], [1_005, 1_003]));
        let mut compared = Compared::default();
        compared.add(&first, &last);
        assert_eq!(compared.ours, [1_000, 1_003]);
        assert_eq!(compared.kernel, [1_000, 1_000]);
    }
}
