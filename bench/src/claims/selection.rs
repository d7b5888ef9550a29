//! Claim 4: load spread over uneven volunteers, while a release is synchronised over the same links.

use std::path::Path;

use anyhow::{Context as _, Result};
use freshet_testbed::Cancel;

use super::Ground;
use super::bounds::{payload_rate, quantile, variation};
use super::customers::{Course, Served};
use super::stage::{Donor, Stage};
use super::workload::{Wish, poisson, sizes};
use crate::plot::{Lines, cumulative};
use crate::report::{Claim, Document, Measured, Table, cells};
use crate::spread::Spread;
use crate::tally::Tally;

/// What one way of choosing came to in one round.
pub(super) struct Turn {
    pub(super) served: Vec<Served>,
    /// Of each volunteer's uplink, the part that was used.
    utilisation: Vec<f64>,
    /// From the publication until the last mirror had it; 0 where nothing was published.
    pub(super) sync_secs: f64,
    origin_part: f64,
}

impl Turn {
    fn slowdowns(&self) -> Vec<f64> {
        self.served.iter().map(slowdown).collect()
    }
}

/// A release that is published while customers come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    /// Seconds after the beginning.
    pub(super) at: f64,
    pub(super) bytes: usize,
    /// Makes its name and its contents.
    pub(super) seed: u64,
}

/// Turns of every way, with the same customers in each round.
pub(super) fn look(ground: &Ground<'_>, document: &mut Document) -> Result<Vec<Claim>> {
    let (rounds, secs) = (ground.rounds(2), if ground.quick { 12.0 } else { 25.0 });
    let ways: &[&str] = if ground.quick { &[OURS, "random"] } else { &[OURS, "random", "round-robin"] };
    let mut stage = set_up(ground.programs, ground.cancel)?;
    let files = files();
    let uplinks: f64 = uplinks().iter().map(|&mbit| payload_rate(mbit as f64)).sum();
    document.parameter("4: volunteers' uplinks", format!("{:?} Mbit/s", self::uplinks()));
    document.parameter("4: load", format!("{:.0} % of the uplinks, for {secs} s", LOAD * 100.0));
    let tally = Tally::begin(&stage.cluster, &stage.cancel)?;
    let mut turns: Vec<Vec<Turn>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (number, way) in ways.iter().enumerate() {
            let seed = ground.seed * 1_000 + round as u64;
            let wishes = poisson(&files, LOAD * uplinks, secs, seed);
            eprintln!("round {}: {way}, {} customers", round + 1, wishes.len());
            stage.set("selection", way)?;
            let release = Published { at: secs / 3.0, bytes: RELEASE_BYTES, seed: seed * 10 + number as u64 };
            let turn = turn(&mut stage, wishes, Some(release))?;
            let slowdowns = turn.slowdowns();
            let told = format!(
                "  slowdown {:.2} median, {:.2} p99; release on all mirrors after {:.1} s",
                quantile(&slowdowns, 0.5),
                quantile(&slowdowns, 0.99),
                turn.sync_secs
            );
            eprintln!("{told}");
            turns[number].push(turn);
        }
    }
    let counted = tally.end(&stage.cluster, &stage.cancel)?;
    write(document, ways, &turns, &counted)?;
    let ratio = |figure: &dyn Fn(&Turn) -> f64, number: usize| {
        Spread::of(turns[number].iter().zip(&turns[0]).map(|(theirs, ours)| figure(theirs) / figure(ours)))
    };
    let mut claims = Vec::new();
    let p99 = |turn: &Turn| quantile(&turn.slowdowns(), 0.99);
    let uneven = |turn: &Turn| variation(&turn.utilisation);
    let sync = |turn: &Turn| turn.sync_secs;
    for (number, way) in ways.iter().enumerate().skip(1) {
        let mut row = |figure: String, figures: &dyn Fn(&Turn) -> f64, decides: bool| -> Result<()> {
            let spread = ratio(figures, number).context("nothing was measured")?;
            let (claimed, measured) = if decides {
                (
                    "more without the tracker's knowledge",
                    Measured::spread(spread, "×", 2, spread.median > 1.0),
                )
            } else {
                ("", Measured::told(spread, "×", 2))
            };
            claims.push(Claim { number: 4, figure, claimed: claimed.to_owned(), measured, simulated: false });
            Ok(())
        };
        row(format!("p99 slowdown, {way} over ours"), &p99, true)?;
        row(format!("variation of the links' utilisation, {way} over ours"), &uneven, true)?;
        row(format!("time to synchronise a release meanwhile, {way} over ours"), &sync, false)?;
    }
    Ok(claims)
}

fn write(
    document: &mut Document,
    ways: &[&str],
    turns: &[Vec<Turn>],
    counted: &crate::report::Counters,
) -> Result<()> {
    let mut table = Table::new("Ways of choosing a volunteer; medians over the rounds")
        .text("selection")
        .number("slowdown, median", "×", 2)
        .number("slowdown, p99", "×", 2)
        .number("variation of utilisation", "", 2)
        .number("utilisation", "%", 0)
        .number("release on all mirrors", "s", 1)
        .number("origin sent", "% of the customers' bytes", 1);
    let mut series = Vec::new();
    let mut links =
        Table::new("Part of each uplink that was used, by its rate; medians over the rounds").text("uplink");
    for way in ways {
        links = links.number(way, "%", 0);
    }
    for (way, turns) in ways.iter().zip(turns) {
        let median =
            |figure: &dyn Fn(&Turn) -> f64| Spread::of(turns.iter().map(figure)).map(|spread| spread.median);
        let mean = |turn: &Turn| turn.utilisation.iter().sum::<f64>() / turn.utilisation.len().max(1) as f64;
        table.row(cells![
            *way,
            median(&|turn| quantile(&turn.slowdowns(), 0.5)),
            median(&|turn| quantile(&turn.slowdowns(), 0.99)),
            median(&|turn| variation(&turn.utilisation)),
            median(&|turn| mean(turn) * 100.0),
            median(&|turn| turn.sync_secs),
            median(&|turn| turn.origin_part * 100.0),
        ]);
        let all = turns.iter().flat_map(Turn::slowdowns);
        series.push(((*way).to_owned(), cumulative(all.map(|slowdown| slowdown.min(SHOWN_MAX)))));
        document.record(
            "selection",
            &serde_json::json!({
                "selection": way,
                "slowdowns": turns.iter().map(Turn::slowdowns).collect::<Vec<_>>(),
                "utilisation": turns.iter().map(|turn| &turn.utilisation).collect::<Vec<_>>(),
                "sync_secs": turns.iter().map(|turn| turn.sync_secs).collect::<Vec<_>>(),
            }),
        )?;
    }
    for (number, mbit) in uplinks().into_iter().enumerate() {
        let mut row = cells![format!("{mbit} Mbit/s")];
        for turns in turns {
            let used = Spread::of(turns.iter().map(|turn| turn.utilisation[number] * 100.0));
            row.push(used.map(|spread| spread.median).into());
        }
        links.row(row);
    }
    let plot = Lines {
        title: "Customers by slowdown",
        x: "times as long as at the customer's own rate (20 and more at 20)",
        y: "part of the customers",
        series: &series,
        reference: None,
    };
    document
        .latest()
        .prose(&format!(
            "{} volunteers with uplinks from {} to {} Mbit/s serve customers who come at random for files of heavy-tailed sizes, \
             each taking at most {:.0} Mbit/s, at {:.0} % of what the uplinks carry. A third into each turn a release of \
             {:.0} MB is published, which all volunteers copy over the same links. “{OURS}” is what control does: it knows \
             each volunteer's rate, what it was promised since its last heartbeat, and what mirrors lack. The others are \
             drawn or taken in turn, as common redirectors do. Customers and arrivals are the same for all in a round. \
             Slowdown is the time from asking until the file was whole, over the time at the customer's own rate.",
            VOLUNTEERS,
            UPLINK_LEAST,
            UPLINK_MOST,
            CUSTOMER_RATE as f64 * 8e-6,
            LOAD * 100.0,
            RELEASE_BYTES as f64 / 1e6,
        ))
        .figure("All customers of all rounds.", &plot.svg()?)
        .table(table)
        .table(links)
        .counters(counted);
    Ok(())
}

/// Lets these customers come, and publishes a release meanwhile if there is one.
pub(super) fn turn(stage: &mut Stage, wishes: Vec<Wish>, release: Option<Published>) -> Result<Turn> {
    let bytes: u64 = wishes.iter().map(|wish| wish.bytes).sum();
    let (sent_before, origin_before) = (stage.sent()?, stage.origin_sent()?);
    let path = release.map_or_else(String::new, |release| format!("releases/{}.bin", release.seed));
    let holders = stage.cluster.volunteers().len();
    let mut publishing = None;
    let mut synced = None;
    let mut course = Course { wishes, customer_rate: CUSTOMER_RATE, deeds: Vec::new(), watch: None };
    if let Some(release) = release {
        let (named, publishing) = (path.clone(), &mut publishing);
        let publish = move |stage: &mut Stage| -> Result<()> {
            stage.put(&named, release.bytes, release.seed)?;
            *publishing = Some(stage.begin_publishing()?);
            Ok(())
        };
        course.deeds.push((release.at, Box::new(publish)));
        let (path, synced) = (&path, &mut synced);
        course.watch = Some(Box::new(move |stage, at| {
            if at > release.at && synced.is_none() {
                let held = stage.cluster.ctl(&["where", path]);
                let count = held.map_or(0, |held| held["holders"].as_array().map_or(0, Vec::len));
                *synced = (count >= holders).then_some(at - release.at);
            }
            Ok(())
        }));
    }
    let begun = std::time::Instant::now();
    let directory = stage.directory.join("downloads");
    let told = course.run(stage, &directory)?;
    let sent_after = stage.sent()?;
    let origin = stage.origin_sent()? - origin_before;
    if release.is_some() {
        stage.until_held(&path, holders)?;
    }
    let until_now = |release: Published| begun.elapsed().as_secs_f64() - release.at;
    let sync_secs = synced.or(release.map(until_now)).unwrap_or(0.0);
    drop(publishing);
    let used = sent_after.iter().zip(&sent_before).map(|(after, before)| (after - before) as f64);
    let utilisation =
        used.zip(uplinks()).map(|(bytes, mbit)| bytes / (mbit as f64 * 125_000.0 * told.secs)).collect();
    Ok(Turn { served: told.served, utilisation, sync_secs, origin_part: origin as f64 / bytes.max(1) as f64 })
}

/// Of a customer: its time over that at its own rate.
fn slowdown(served: &Served) -> f64 {
    served.secs / (served.wish.bytes as f64 / CUSTOMER_RATE as f64 + REDIRECTED_SECS)
}

pub(super) fn set_up(programs: &Path, cancel: &Cancel) -> Result<Stage> {
    let mut stage = Stage::start(programs, cancel, ORIGIN_MBIT, CUSTOMERS, &[], |repository| {
        for (number, (path, bytes)) in files().into_iter().enumerate() {
            let to = repository.join(path);
            std::fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
            std::fs::write(to, super::stage::noise(bytes as usize, number as u64))?;
        }
        Ok(())
    })?;
    for (number, up) in uplinks().into_iter().enumerate() {
        stage.add(&Donor { name: format!("v{number}"), up, down: DOWNLINK, tables: String::new() })?;
    }
    stage.until_current()?;
    Ok(stage)
}

pub(super) fn files() -> Vec<(String, u64)> {
    let sizes = sizes(FILES, SIZE_LEAST, SIZE_MOST);
    sizes.into_iter().enumerate().map(|(number, bytes)| (format!("pool/{number}.bin"), bytes)).collect()
}

/// In equal ratios.
pub(super) fn uplinks() -> Vec<u64> {
    let ratio = UPLINK_MOST as f64 / UPLINK_LEAST as f64;
    let step = |number: usize| ratio.powf(number as f64 / (VOLUNTEERS - 1) as f64);
    (0..VOLUNTEERS).map(|number| (UPLINK_LEAST as f64 * step(number)).round() as u64).collect()
}

/// What control does unless an operator chooses otherwise.
pub(super) const OURS: &str = "expected-finish-time";
const VOLUNTEERS: usize = 10;
const UPLINK_LEAST: u64 = 4;
const UPLINK_MOST: u64 = 40;
/// Mbit/s.
pub(super) const DOWNLINK: u64 = 60;
pub(super) const ORIGIN_MBIT: u64 = 60;
const CUSTOMERS: usize = 4;
/// Bytes per second: 20 Mbit/s.
pub(super) const CUSTOMER_RATE: u64 = 2_500_000;
/// Of the volunteers' uplinks.
const LOAD: f64 = 0.6;
const FILES: usize = 16;
const SIZE_LEAST: f64 = 400_000.0;
const SIZE_MOST: f64 = 8_000_000.0;
const RELEASE_BYTES: usize = 4_000_000;
/// What starting curl, asking twice and the check of a ticket take, also where nothing is busy.
const REDIRECTED_SECS: f64 = 0.1;
/// Slower ones are shown as if they were so slow.
const SHOWN_MAX: f64 = 20.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplinks_go_from_the_least_to_the_most() {
        let uplinks = uplinks();
        assert_eq!((uplinks.len(), uplinks[0], uplinks[9]), (10, 4, 40));
        assert!(uplinks.is_sorted());
    }

    #[test]
    fn a_customer_at_its_own_rate_is_not_slowed_down() {
        let wish = Wish { at: 0.0, path: String::new(), bytes: CUSTOMER_RATE * 2 };
        let served = |secs| Served { wish: wish.clone(), secs };
        assert!((slowdown(&served(2.1)) - 1.0).abs() < 1e-9);
        assert!((slowdown(&served(4.2)) - 2.0).abs() < 1e-9);
    }
}
