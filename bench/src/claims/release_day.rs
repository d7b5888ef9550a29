//! Claim 5: a crowd for a new package, with and without volunteers that come and go and hold nothing else.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::Ground;
use super::bounds::{crowd_secs_min, payload_rate, quantile};
use super::customers::{Course, Deed};
use super::stage::{Donor, Stage};
use super::workload::crowd;
use crate::plot::{Lines, cumulative};
use crate::report::{Claim, Document, Measured, Table, cells};
use crate::spread::Spread;
use crate::tally::Tally;

/// One crowd.
struct Day {
    /// Of each customer.
    secs: Vec<f64>,
    /// Until the last was served.
    last: f64,
    /// The least that the links allow.
    least: f64,
    /// From the publication until all holders had the release.
    placed: f64,
    origin_bytes: u64,
}

/// The same crowds first by those who mirror everything alone, then with volatile volunteers beside them.
pub(super) fn look(ground: &Ground<'_>, document: &mut Document) -> Result<Vec<Claim>> {
    let rounds = ground.rounds(2);
    let customers = if ground.quick { 30 } else { 60 };
    document.parameter("5: crowd", format!("{customers} customers within {ARRIVE_SECS} s"));
    let mut stage = set_up(ground)?;
    let without: Vec<Day> = (0..rounds)
        .map(|round| day(&mut stage, ground.seed * 100 + round as u64, customers, false))
        .collect::<Result<_>>()?;
    for number in 0..VOLATILE {
        let tables = format!("[mirror]\nquota = \"{QUOTA_MB} MB\"\nordered = true\n");
        stage.add(&Donor { name: format!("volatile{number}"), up: MBIT, down: DOWNLINK, tables })?;
    }
    stage.until_current()?;

    let tally = Tally::begin(&stage.cluster, &stage.cancel)?;
    let with: Vec<Day> = (0..rounds)
        .map(|round| day(&mut stage, ground.seed * 100 + 50 + round as u64, customers, true))
        .collect::<Result<_>>()?;
    let counted = tally.end(&stage.cluster, &stage.cancel)?;
    let held = held_by_volatile(&stage)?;

    let mut table = Table::new("A crowd for a new release; medians over the rounds")
        .text("volunteers")
        .number("until half were served", "s", 1)
        .number("p99", "s", 1)
        .number("last", "s", 1)
        .number("fluid bound", "s", 1)
        .number("last / bound", "×", 2)
        .number("release placed after", "s", 1)
        .number("origin sent", "MB", 1);
    let mut series = Vec::new();
    for (name, days) in
        [(format!("{STABLE} that mirror all"), &without), (format!("and {VOLATILE} volatile"), &with)]
    {
        let median =
            |figure: &dyn Fn(&Day) -> f64| Spread::of(days.iter().map(figure)).map(|spread| spread.median);
        table.row(cells![
            name.as_str(),
            median(&|day| quantile(&day.secs, 0.5)),
            median(&|day| quantile(&day.secs, 0.99)),
            median(&|day| day.last),
            median(&|day| day.least),
            median(&|day| day.last / day.least),
            median(&|day| day.placed),
            median(&|day| day.origin_bytes as f64 / 1e6),
        ]);
        series.push((name.clone(), cumulative(days.iter().flat_map(|day| day.secs.iter().copied()))));
        document.record(
            "release day",
            &serde_json::json!({
                "volunteers": name,
                "secs": days.iter().map(|day| &day.secs).collect::<Vec<_>>(),
                "last": days.iter().map(|day| day.last).collect::<Vec<_>>(),
                "least": days.iter().map(|day| day.least).collect::<Vec<_>>(),
            }),
        )?;
    }
    let plot = Lines {
        title: "Customers of a flash crowd who have the new package",
        x: "seconds after asking",
        y: "part of the customers",
        series: &series,
        reference: None,
    };
    document
        .latest()
        .prose(&format!(
            "A package of {:.0} MB is released; when those who are to hold it have it, {customers} customers \
             ask for it within {ARRIVE_SECS} s. Origin and all volunteers have uplinks of {MBIT} Mbit/s. \
             {STABLE} volunteers mirror the whole repository. {VOLATILE} more give {QUOTA_MB} MB of space and \
             leave it to control what is kept there: they hold {held} of {} files, what was newly released, and \
             {LEAVE} of them vanish (SIGKILL) while the crowd is served; their customers go on elsewhere. The \
             fluid bound is the time in which all the uplinks together, the origin's and those that vanish \
             among them, could have served everybody.",
            PACKAGE_BYTES as f64 / 1e6,
            OLD_FILES + 2 * rounds,
        ))
        .figure("All customers of all rounds.", &plot.svg()?)
        .table(table)
        .counters(&counted);
    let ratio = |figure: &dyn Fn(&Day) -> f64| {
        let pairs = without.iter().zip(&with);
        Spread::of(pairs.map(|(without, with)| figure(without) / figure(with)))
            .context("nothing was measured")
    };
    let claim = |figure: &str, claimed: &str, measured| Claim {
        number: 5,
        figure: figure.to_owned(),
        claimed: claimed.to_owned(),
        measured,
        simulated: false,
    };
    let (half, last) = (ratio(&|day| quantile(&day.secs, 0.5))?, ratio(&|day| day.last)?);
    let bound = Spread::of(with.iter().map(|day| day.last / day.least)).context("nothing was measured")?;
    let crowds_bytes = (customers * PACKAGE_BYTES) as f64;
    let origin = Spread::of(with.iter().map(|day| day.origin_bytes as f64 / crowds_bytes * 100.0));
    let origin = origin.context("nothing was measured")?;
    Ok(vec![
        claim(
            "until half of the crowd was served, without volatile volunteers over with them",
            "diminished",
            Measured::spread(half, "×", 2, half.median > 1.0),
        ),
        claim(
            "until the last was served, without volatile volunteers over with them",
            "diminished",
            Measured::spread(last, "×", 2, last.median > 1.0),
        ),
        claim(
            "with volatile volunteers, last customer over the fluid bound",
            "",
            Measured::told(bound, "×", 2),
        ),
        claim(
            "origin's bytes during the crowd, of what the crowd received",
            "",
            Measured::told(origin, "%", 1),
        ),
    ])
}

/// Publishes a release, waits until it is where it is to be, and lets the crowd come.
fn day(stage: &mut Stage, seed: u64, customers: usize, volatile: bool) -> Result<Day> {
    let path = format!("release/{seed}.pkg");
    if volatile {
        // As an operator does before a release.
        stage.cluster.ctl(&["placement", "expect", &path, EXPECTED])?;
    }
    let begun = Instant::now();
    stage.put(&path, PACKAGE_BYTES, seed)?;
    stage.cluster.ctl(&["publish"])?;
    let running = stage.cluster.volunteers().len();
    stage.until_held(&path, running)?;
    let placed = begun.elapsed().as_secs_f64();
    let wishes = crowd(&[(path.clone(), PACKAGE_BYTES as u64)], customers, ARRIVE_SECS, seed);
    eprintln!("{customers} customers for a release on {running} volunteers, placed after {placed:.1} s");
    let arrivals: Vec<f64> = wishes.iter().map(|wish| wish.at).collect();
    let uplinks = payload_rate((MBIT * (running as u64 + 1)) as f64);
    let least = crowd_secs_min(&arrivals, PACKAGE_BYTES as f64, uplinks, CUSTOMER_RATE as f64);
    let origin_before = stage.origin_sent()?;
    let leaving = if volatile { LEAVE } else { 0 };
    let deeds = (0..leaving).map(|number| {
        let at = ARRIVE_SECS + number as f64;
        let leave: Deed<'_> = Box::new(move |stage: &mut Stage| {
            let gone =
                stage.cluster.volunteer_mut(STABLE + number).context("a volunteer that is to leave")?;
            Ok(gone.kill()?)
        });
        (at, leave)
    });
    let course = Course { wishes, customer_rate: CUSTOMER_RATE, deeds: deeds.collect(), watch: None };
    let directory = stage.directory.join("downloads");
    let told = course.run(stage, &directory)?;
    let origin_bytes = stage.origin_sent()? - origin_before;
    for number in 0..leaving {
        stage.cluster.start_volunteer(STABLE + number)?;
    }
    stage.until_current()?;
    if volatile {
        stage.cluster.ctl(&["placement", "forget", &path])?;
    }
    let secs: Vec<f64> = told.served.iter().map(|served| served.secs).collect();
    eprintln!(
        "  half after {:.1} s, last after {:.1} s, bound {least:.1} s",
        quantile(&secs, 0.5),
        told.secs
    );
    Ok(Day { secs, last: told.secs, least, placed, origin_bytes })
}

/// Files that a volatile volunteer holds, at most.
fn held_by_volatile(stage: &Stage) -> Result<u64> {
    let nodes = stage.cluster.ctl(&["node", "list"])?;
    let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
    let volatile =
        nodes.iter().filter(|node| node["name"].as_str().is_some_and(|name| name.starts_with("volatile")));
    let held = volatile.filter_map(|node| node["files_held"].as_u64());
    held.max().context("no volatile volunteer holds anything")
}

fn set_up(ground: &Ground<'_>) -> Result<Stage> {
    let mut stage = Stage::start(ground.programs, ground.cancel, MBIT, CUSTOMERS, &[], |repository| {
        let old = repository.join("pool");
        std::fs::create_dir(&old)?;
        for number in 0..OLD_FILES {
            let content = super::stage::noise(OLD_BYTES, 77 + number as u64);
            std::fs::write(old.join(format!("{number}.pkg")), content)?;
        }
        Ok(())
    })?;
    for number in 0..STABLE {
        let name = format!("mirror{number}");
        stage.add(&Donor { name, up: MBIT, down: DOWNLINK, tables: String::new() })?;
    }
    stage.until_current()?;
    let origin = format!("{} kbit/s", MBIT * 900);
    stage.set("origin_rate", &origin)?;
    stage.set("customer_wait_secs", "60")?;
    Ok(stage)
}

const STABLE: usize = 3;
const VOLATILE: usize = 8;
/// Of the volatile ones, so many go in each round.
const LEAVE: usize = 2;
/// Uplinks.
const MBIT: u64 = 20;
const DOWNLINK: u64 = 60;
const CUSTOMERS: usize = 4;
/// Bytes per second: 40 Mbit/s.
const CUSTOMER_RATE: u64 = 5_000_000;
/// What the operator says will be asked of a release: more than there is.
const EXPECTED: &str = "1 Gbit/s";
const PACKAGE_BYTES: usize = 5_000_000;
const OLD_FILES: usize = 10;
const OLD_BYTES: usize = 1_000_000;
const QUOTA_MB: u64 = 100;
const ARRIVE_SECS: f64 = 4.0;
