//! `ctl watch`: a line every few seconds, for a terminal that scrolls or a program that reads.

use std::io::Write as _;
use std::time::Duration;

use freshet_api::admin::{NodeState, NodeView, StatusView};
use freshet_api::operator::ClassRates;
use freshet_api::{Bytes, BytesPerSec};
use freshet_policy::Moment;
use freshet_policy::rates::CounterRate;
use serde::Serialize;

use crate::client::Client;

/// What is watched.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds between two lines.
    #[arg(long, value_name = "SECS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// Ends after so many lines; 0 for never.
    #[arg(long, value_name = "N", default_value_t = 0)]
    count: u64,
}

/// One line.
#[derive(Debug, Serialize)]
struct Line {
    at: String,
    volunteers: usize,
    active: usize,
    delivery_bytes_per_sec: u64,
    sync_bytes_per_sec: u64,
    origin_bytes_per_sec: u64,
    outstanding_bytes: u64,
    missing_bytes: u64,
    released: u64,
}

pub(crate) async fn run(client: &Client, json: bool, options: &Options) -> anyhow::Result<()> {
    let mut origin = CounterRate::new(Duration::from_millis(1));
    let begun = std::time::Instant::now();
    let mut every = tokio::time::interval(Duration::from_secs(options.every));
    for line in 0_u64.. {
        if options.count > 0 && line == options.count {
            break;
        }
        every.tick().await;
        let nodes: Vec<NodeView> = client.get("nodes", &[]).await?;
        let status: StatusView = client.get("status", &[]).await?;
        let sent = status.front_door.body_bytes + status.sync_port.body_bytes;
        origin.read(sent, Moment::from_secs_f64(begun.elapsed().as_secs_f64()));
        let sum = nodes
            .iter()
            .flat_map(|node| &node.rates)
            .fold(ClassRates::default(), |sum, rates| sum.plus(rates.classes));
        let now = Line {
            at: jiff::Timestamp::now().strftime("%H:%M:%S").to_string(),
            volunteers: nodes.len(),
            active: nodes.iter().filter(|node| node.state == NodeState::Active).count(),
            delivery_bytes_per_sec: sum.delivery.sent.0,
            sync_bytes_per_sec: sum.sync.received.0,
            origin_bytes_per_sec: origin.latest().0,
            outstanding_bytes: nodes.iter().map(|node| node.outstanding_bytes).sum(),
            missing_bytes: nodes.iter().filter_map(|node| Some(node.sync.as_ref()?.bytes_missing)).sum(),
            released: status.swarm.released,
        };
        let mut out = std::io::stdout().lock();
        let written = if json {
            writeln!(out, "{}", serde_json::to_string(&now)?)
        } else {
            if line.is_multiple_of(HEADER_EVERY) {
                let header = ["time", "deliver", "copy", "origin", "promised", "to fetch", "active", "state"];
                let [time, rest @ ..] = header;
                let rest: String = rest.iter().map(|word| format!(" {word:>12}")).collect();
                // A pipe that is closed shows at the line itself.
                let _ = writeln!(out, "{time:<8}{rest}");
            }
            writeln!(
                out,
                "{:<8} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12}",
                now.at,
                BytesPerSec(now.delivery_bytes_per_sec),
                BytesPerSec(now.sync_bytes_per_sec),
                BytesPerSec(now.origin_bytes_per_sec),
                Bytes(now.outstanding_bytes),
                Bytes(now.missing_bytes),
                format!("{}/{}", now.active, now.volunteers),
                now.released
            )
        };
        if written.and_then(|()| out.flush()).is_err() {
            // The reader has seen enough.
            return Ok(());
        }
    }
    Ok(())
}

const HEADER_EVERY: u64 = 20;
