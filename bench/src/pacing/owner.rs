//! The owner first: his load and his round trips over a bottleneck that he shares with what he donates.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use freshet_testbed::{Host, Link, Program, Testbed};
use serde::Serialize;

use super::echo::Echo;
use super::volunteer::Stage;
use super::{INTERFACE, mbit, received_bytes, segment_in_software};
use crate::spread::Spread;

/// One way to share the link.
#[derive(Debug, Serialize)]
pub(super) struct Result {
    /// What was running.
    pub(super) case: &'static str,
    /// What arrived of the owner's load at its other end, payload; none while he sends nothing.
    pub(super) owner_mbit: Option<f64>,
    /// What arrived at the customers, on the wire.
    pub(super) donated_mbit: f64,
    /// Round trips over the bottleneck.
    pub(super) ping_ms: Spread,
    pub(super) ping_p95_ms: f64,
    pub(super) pings_lost: usize,
}

/// The link and its parts, beside the results.
#[derive(Debug, Serialize)]
pub(super) struct Sharing {
    pub(super) link_mbit: u64,
    pub(super) owner_wants_mbit: u64,
    pub(super) results: Vec<Result>,
}

/// Measures the link idle, with the owner alone, and with eight downloads beside him under three rules.
pub(super) fn measure(testbed: &Testbed, programs: &Path, time: Duration) -> anyhow::Result<Sharing> {
    let stage = Stage::start(testbed, programs, &Link::new())?;
    let customer = testbed.host("customer", &Link::new())?;
    let friend = testbed.host("friend", &Link::new())?;
    segment_in_software(&stage.host)?;
    bottleneck(&stage.host)?;
    let iperf = Program::new("iperf3").args(["--server", "--forceflush", "--port", IPERF_PORT]);
    let server = friend.start("iperf3-server", &iperf)?;
    server.wait_for_line("Server listening", GRACE)?;
    let place = Place { stage: &stage, customer: &customer, friend: &friend, time };
    stage.configure("donated_rate = \"1 Mbit/s\"", "")?;
    let mut results = vec![place.measure("nothing", false)?, place.measure("the owner alone", true)?];
    let _downloads = stage.downloads(&customer, DOWNLOADS)?;
    let whole = format!("donated_rate = \"{LINK_MBIT} Mbit/s\"");
    let first = format!("[budget.owner_first]\nlink = \"{LINK_MBIT} Mbit/s\"\n");
    for (case, keys, tables, owner) in [
        ("downloads, owner first, owner silent", whole.as_str(), first.as_str(), false),
        ("owner and downloads, owner first", whole.as_str(), first.as_str(), true),
        ("owner and downloads, fixed 80 %", FIXED, "", true),
    ] {
        stage.configure(keys, tables)?;
        std::thread::sleep(SETTLE);
        results.push(place.measure(case, owner)?);
    }
    Ok(Sharing { link_mbit: LINK_MBIT, owner_wants_mbit: OWNER_MBIT, results })
}

struct Place<'a> {
    stage: &'a Stage,
    customer: &'a Host,
    friend: &'a Host,
    time: Duration,
}

impl Place<'_> {
    fn measure(&self, case: &'static str, owner: bool) -> anyhow::Result<Result> {
        eprintln!("{LINK_MBIT} Mbit/s link: {case}");
        let seconds = self.time.as_secs();
        let load = Program::new("iperf3")
            .args(["--client".to_owned(), self.friend.addr()?.to_string()])
            // Small writes, so that what he sends does not queue up behind itself.
            .args(["--port", IPERF_PORT, "--json", "--omit", "2", "--length", "4K"])
            .args(["--time", &seconds.to_string(), "--bitrate", &format!("{OWNER_MBIT}M")]);
        let load = owner.then(|| self.stage.host.start("iperf3", &load)).transpose()?;
        std::thread::sleep(if owner { OMITTED } else { Duration::ZERO });
        let echo = Echo::start(self.friend, self.stage.host.addr()?)?;
        let begin = received_bytes(self.customer)?;
        // The owner's load ends a little later than the measurement, which so sees nothing of its end.
        std::thread::sleep(self.time.saturating_sub(END));
        let end = received_bytes(self.customer)?;
        let (mut trips, lost) = echo.finish()?;
        let owner_mbit = match load {
            Some(load) => {
                load.wait(self.time + GRACE)?;
                Some(arrived(&load.log()?)?)
            }
            None => None,
        };
        trips.sort_by(f64::total_cmp);
        let ping_ms = Spread::of(trips.iter().copied()).context("no echo request was answered")?;
        let ping_p95_ms = trips[(trips.len() - 1) * 95 / 100];
        Ok(Result {
            case,
            owner_mbit,
            donated_mbit: mbit(begin, end),
            ping_ms,
            ping_p95_ms,
            pings_lost: lost,
        })
    }
}

/// Makes the host's link slow, with a queue of 100 ms and next to no burst.
fn bottleneck(host: &Host) -> anyhow::Result<()> {
    let queue = LINK_MBIT * 125_000 / 10;
    let words = format!(
        "qdisc replace dev {INTERFACE} root tbf rate {LINK_MBIT}mbit burst {BURST_BYTES} limit {queue}"
    );
    let done = host.run(&Program::new("tc").args(words.split(' ')), Duration::from_secs(10))?;
    if !done.status.success() {
        bail!("cannot limit the link of {}: {}", host.name(), done.stderr.trim());
    }
    Ok(())
}

/// Megabits per second that `iperf3` says arrived.
fn arrived(log: &str) -> anyhow::Result<f64> {
    let report: serde_json::Value =
        serde_json::from_str(log).with_context(|| format!("iperf3 said {log:?}"))?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3 did not say what was received")? * 1e-6)
}

const LINK_MBIT: u64 = 50;
/// Of payload; with headers it is half of the link.
const OWNER_MBIT: u64 = 24;
const FIXED: &str = "donated_rate = \"40 Mbit/s\"";
const DOWNLOADS: usize = 8;
/// Three full frames: the link sends packet by packet, as a wire does.
const BURST_BYTES: u64 = 4_600;
const IPERF_PORT: &str = "5201";
/// What iperf3 leaves out of its figures.
const OMITTED: Duration = Duration::from_secs(2);
const END: Duration = Duration::from_millis(500);
const SETTLE: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iperfs_report_is_read() {
        let report = r#"{"end":{"sum_received":{"bits_per_second":24000000.0}}}"#;
        assert!((arrived(report).unwrap() - 24.0).abs() < 1e-9);
        assert!(arrived(r#"{"error":"unable to connect"}"#).unwrap_err().to_string().contains("unable"));
        assert!(arrived("{}").is_err());
        assert!(arrived("").is_err());
    }
}
