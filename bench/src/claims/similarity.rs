//! Claim 2: identical files and versions alike, and which size of chunks they want.

use anyhow::{Context as _, Result};

use super::Ground;
use crate::chunks;
use crate::report::{Claim, Document, Measured, Table, cells};
use crate::spread::Spread;
use crate::sync;

/// Consecutive versions of packages in chunks of several sizes, then changes of a repository that mirrors have.
pub(super) fn look(ground: &Ground<'_>, document: &mut Document) -> Result<Vec<Claim>> {
    let mut claims = trade_off(ground, document)?;
    let mirrors = if ground.quick { 3 } else { 5 };
    let (costs, counted) = sync::changes(ground.programs, mirrors, MBIT, ground.scratch, ground.cancel)?;
    let mut table = Table::new("Changes of a repository of real packages; a mirror's mean")
        .text("change")
        .number("set beside", "kB", 0)
        .number("a mirror received", "kB", 1)
        .number("of it", "%", 2)
        .number("when nothing changes", "kB", 1)
        .number("server sent", "kB", 1)
        .number("until all were current", "s", 1);
    for cost in &costs {
        let part = cost.mirror_received / cost.beside_bytes.max(1) as f64;
        table.row(cells![
            cost.change,
            cost.beside_bytes as f64 / 1e3,
            cost.mirror_received / 1e3,
            part * 100.0,
            cost.idle_received / 1e3,
            cost.origin_sent as f64 / 1e3,
            cost.secs,
        ]);
        document.record("change", cost)?;
        // Heartbeats of that time are among it, which weigh where next to nothing else is sent.
        let most = cost.most.max(LITTLE);
        let measured = Measured::spread(single(part * 100.0)?, "%", 2, part <= most);
        claims.push(Claim {
            number: 2,
            figure: format!("{}: what a mirror received, of the bytes concerned", cost.change),
            claimed: format!("at most {:.1} %", most * 100.0),
            measured,
            simulated: false,
        });
    }
    document
        .latest()
        .prose(&format!(
            "Then {mirrors} volunteers that have a repository of some hundred real packages see it change. Identical contents \
             under new names are linked, a changed index comes as a patch against the one before, an installer image \
             is put together from the packages that are there."
        ))
        .table(table)
        .counters(&counted);
    Ok(claims)
}

fn trade_off(ground: &Ground<'_>, document: &mut Document) -> Result<Vec<Claim>> {
    let report = ground.trade_off.take().context("consecutive versions of packages")?;
    let mut table = Table::new("Chunks and pieces of one size, and recipes with pieces that suit the links")
        .text("size")
        .number("found in the version before", "%", 1)
        .number("hashes and heads", "%", 1)
        .number("swarm's efficiency", "", 2)
        .number("last mirror", "s", 1);
    let bytes = report.all.bytes as f64;
    for way in &report.ways {
        table.row(cells![
            way.label.as_str(),
            (1.0 - way.left as f64 / bytes) * 100.0,
            way.overhead * 100.0,
            way.efficiency,
            way.secs,
        ]);
    }
    document.record("chunks", &report)?;
    let way = |label: &str| {
        report.ways.iter().find(|way| way.label == label).with_context(|| format!("no chunks of {label}"))
    };
    let (root, moderate) = (way("sqrt(size)")?, way("64 KiB")?);
    let ours = report.ways.last().context("nothing was measured")?;
    let found = |way: &chunks::Way| bytes - way.left as f64;
    let best = report.ways[..report.ways.len() - 1].iter().map(|way| way.secs).fold(f64::INFINITY, f64::min);
    document
        .latest()
        .prose(&format!(
            "{} packages in consecutive versions ({:.0} MB) are cut into chunks of several sizes: what is found in the version \
             before is measured on the files, how a swarm of 20 mirrors does with pieces of that size is simulated over \
             the policies that the daemons use.",
            report.files,
            bytes / 1e6
        ))
        .figure("Shares by chunk size; the last group is what Freshet does.", &report.plot()?)
        .table(table);
    let claim = |figure: &str, claimed: &str, value: f64, holds: bool, simulated: bool| -> Result<Claim> {
        let measured = Measured::spread(single(value)?, "×", 2, holds);
        Ok(Claim { number: 2, figure: figure.to_owned(), claimed: claimed.to_owned(), measured, simulated })
    };
    let similarity = found(root) / found(moderate).max(1.0);
    let efficiency = moderate.efficiency / root.efficiency;
    let speed = best / ours.secs;
    Ok(vec![
        claim(
            "found again by chunks of √size, over 64 KiB",
            "more by √size",
            similarity,
            similarity > 1.0,
            false,
        )?,
        claim(
            "swarm's efficiency with pieces of 64 KiB, over √size",
            "more by 64 KiB",
            efficiency,
            efficiency > 1.0,
            true,
        )?,
        claim(
            "time with the best single size, over similarity and pieces apart",
            "the trade-off need not be made",
            speed,
            speed > 1.0,
            true,
        )?,
    ])
}

fn single(value: f64) -> Result<Spread> {
    Spread::of([value]).context("a figure is no number")
}

const MBIT: u64 = 40;
/// The part of the bytes concerned below which a change counts as having cost nothing.
const LITTLE: f64 = 0.01;
