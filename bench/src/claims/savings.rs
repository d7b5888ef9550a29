//! Claim 6: what the origin sends with and without volunteers, what that costs the volunteers, and the hours of a day
//! that an edge node synchronises.

use anyhow::{Context as _, Result};

use super::Ground;
use super::bounds::payload_rate;
use super::customers::Course;
use super::stage::{Donor, Stage, sent_by};
use super::workload::{poisson, sizes};
use crate::plot::Groups;
use crate::report::{Claim, Counters, Document, Measured, Table, cells};
use crate::sim;
use crate::spread::Spread;
use crate::sync::usage;
use crate::tally::Tally;

/// What a round of the same customers came to.
struct Round {
    origin_bytes: u64,
    customers_bytes: u64,
    /// Of all volunteers: sent, and received to keep the mirror current.
    volunteers_sent: u64,
    volunteers_received: u64,
    /// Of all volunteers' daemons, per gigabyte that they sent.
    cpu_secs_per_gb: f64,
    secs: f64,
}

/// The same customers by the origin alone and with volunteers, then simulated days of the existing system.
pub(super) fn look(ground: &Ground<'_>, document: &mut Document) -> Result<Vec<Claim>> {
    let mut claims = served(ground, document)?;
    claims.extend(hours(ground, document)?);
    Ok(claims)
}

fn served(ground: &Ground<'_>, document: &mut Document) -> Result<Vec<Claim>> {
    let mut stage = set_up(ground)?;
    let rounds = ground.rounds(3);
    let mut alone = Vec::new();
    for round in 0..rounds {
        alone.push(serve(&mut stage, ground.seed * 7_000 + round as u64, None)?);
    }
    for number in 0..VOLUNTEERS {
        let name = format!("v{number}");
        stage.add(&Donor { name, up: MBIT, down: DOWNLINK, tables: String::new() })?;
    }
    stage.until_current()?;
    let tally = Tally::begin(&stage.cluster, &stage.cancel)?;
    let mut helped = Vec::new();
    for round in 0..rounds {
        let release = format!("release/{round}.pkg");
        helped.push(serve(&mut stage, ground.seed * 7_000 + round as u64, Some(&release))?);
    }
    let counted: Counters = tally.end(&stage.cluster, &stage.cancel)?;
    let mut table = Table::new("The same customers; medians over the rounds")
        .text("served by")
        .number("customers received", "MB", 1)
        .number("origin sent", "MB", 1)
        .number("volunteers sent", "MB", 1)
        .number("volunteers received", "MB", 1)
        .number("volunteers' processors", "s per GB sent", 2)
        .number("until the last was served", "s", 1);
    for (name, rounds) in [("the origin alone", &alone), ("volunteers, with a release to copy", &helped)] {
        let median = |figure: &dyn Fn(&Round) -> f64| {
            Spread::of(rounds.iter().map(figure)).map(|spread| spread.median)
        };
        table.row(cells![
            name,
            median(&|round| round.customers_bytes as f64 / 1e6),
            median(&|round| round.origin_bytes as f64 / 1e6),
            median(&|round| round.volunteers_sent as f64 / 1e6),
            median(&|round| round.volunteers_received as f64 / 1e6),
            median(&|round| round.cpu_secs_per_gb),
            median(&|round| round.secs),
        ]);
    }
    document
        .latest()
        .prose(&format!(
            "Customers come at random for files of heavy-tailed sizes: first the origin serves all of them over its link of \
             {ORIGIN_MBIT} Mbit/s, then {VOLUNTEERS} volunteers with {MBIT} Mbit/s each are there, and in each round a new \
             package of {:.0} MB is published, which all of them copy. So the origin's bytes with volunteers have what it \
             costs to keep them current, heartbeats included.",
            RELEASE_BYTES as f64 / 1e6
        ))
        .table(table)
        .counters(&counted);
    let ratio = Spread::of(alone.iter().zip(&helped).map(|(alone, helped)| {
        // Customers' bytes are alike but for headers; per byte it is exact.
        let per_byte = |round: &Round| round.origin_bytes as f64 / round.customers_bytes as f64;
        per_byte(alone) / per_byte(helped)
    }));
    let ratio = ratio.context("nothing was measured")?;
    let cpu = Spread::of(helped.iter().map(|round| round.cpu_secs_per_gb)).context("nothing was measured")?;
    let claim = |figure: &str, claimed: &str, measured| Claim {
        number: 6,
        figure: figure.to_owned(),
        claimed: claimed.to_owned(),
        measured,
        simulated: false,
    };
    Ok(vec![
        claim(
            "origin's bytes for the same customers, alone over with volunteers",
            "spared (more than 1)",
            Measured::spread(ratio, "×", 1, ratio.median > 1.0),
        ),
        claim("volunteers' processor time per gigabyte sent", "", Measured::told(cpu, "s", 2)),
    ])
}

fn hours(ground: &Ground<'_>, document: &mut Document) -> Result<Vec<Claim>> {
    let mut table = Table::new("Forty edge nodes, hours a day (simulated)")
        .text("system")
        .number("simulated", "days", 0)
        .number("mean", "h", 2)
        .number("shortest", "h", 2)
        .number("longest", "h", 2)
        .number("origin sent", "GB a day", 0);
    let (mut bars, mut means) = (Vec::new(), Vec::new());
    for Days { system, days, least, mean, most, origin_bytes } in ground.days.take()? {
        table.row(cells![system, days, mean, least, most, origin_bytes / 1e9 / days]);
        bars.push(Some([least, mean, most]));
        means.push(mean);
    }
    let labels = ["existing system, rsync", "swarm and volunteers"].map(str::to_owned);
    let plot = Groups {
        title: "Hours a day that an edge node synchronises (simulated)",
        unit: "hours",
        labels: &labels,
        series: &[("shortest, mean, longest".to_owned(), bars)],
        reference: Some(PUBLISHED_HOURS),
    };
    document
        .latest()
        .prose(&format!(
            "How long an edge node synchronises a day depends on a repository of 2.2 million files and on links that no single \
             machine has: days of forty nodes are simulated over the daemons' own policies, with the published \
             request rate. The line across is the published mean, {PUBLISHED_HOURS} hours."
        ))
        .figure("Shortest, mean and longest of all synchronisations.", &plot.svg()?)
        .table(table);
    let [existing, swarm] = means[..] else { anyhow::bail!("expected two systems") };
    let claim =
        |figure: &str, claimed: String, value: f64, unit, decimals, holds: Option<bool>| -> Result<Claim> {
            let spread = Spread::of([value]).context("a figure is no number")?;
            let measured = Measured::Spread { spread, unit, decimals, holds };
            Ok(Claim { number: 6, figure: figure.to_owned(), claimed, measured, simulated: true })
        };
    let near = (existing / PUBLISHED_HOURS - 1.0).abs() <= NEAR;
    Ok(vec![
        claim(
            "hours a day an edge node synchronises, existing system",
            format!("{PUBLISHED_HOURS} h in the mean (to a quarter)"),
            existing,
            "h",
            2,
            Some(near),
        )?,
        claim(
            "the same, existing system over swarm and volunteers",
            "less with the swarm".to_owned(),
            existing / swarm,
            "×",
            1,
            Some(existing > swarm),
        )?,
    ])
}

/// Simulated days of one system.
#[derive(Debug)]
pub(super) struct Days {
    system: &'static str,
    days: f64,
    /// Hours a day that an edge node synchronises.
    least: f64,
    mean: f64,
    most: f64,
    origin_bytes: f64,
}

/// Simulates both systems, at the same time.
pub(super) fn days(quick: bool, seed: u64) -> Result<Vec<Days>> {
    let simulate = |&(system, scenario, days): &(&'static str, &str, f64)| -> Result<Days> {
        let days = if quick { 1.0 } else { days };
        let outcome = sim::built_in(scenario, days * 86_400.0, seed)?;
        let of = |secs: f64| secs / 3_600.0;
        let (least, mean, most) = (of(outcome.sync_min), of(outcome.sync_mean), of(outcome.sync_max));
        eprintln!("{system}: {mean:.2} h a day ({least:.2}-{most:.2}), simulated");
        Ok(Days { system, days, least, mean, most, origin_bytes: outcome.origin_bytes })
    };
    // Threads take their priority from the one that starts them.
    std::thread::scope(|scope| {
        let threads: Vec<_> = SYSTEMS.iter().map(|system| scope.spawn(move || simulate(system))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|days| days.map_err(|_| anyhow::anyhow!("a simulation panicked"))?).collect()
    })
}

fn serve(stage: &mut Stage, seed: u64, release: Option<&str>) -> Result<Round> {
    let wishes = poisson(&files(), LOAD * payload_rate(ORIGIN_MBIT as f64), SECS, seed);
    eprintln!("{} customers, {} volunteers", wishes.len(), stage.cluster.volunteers().len());
    let customers_bytes = wishes.iter().map(|wish| wish.bytes).sum();
    let cpu = |stage: &Stage| {
        let volunteers = stage.cluster.volunteers().iter();
        usage::cpu_secs(volunteers.filter_map(|volunteer| volunteer.process()))
    };
    let received = |stage: &Stage| -> Result<u64> {
        let hosts = stage.cluster.volunteers().iter().map(|volunteer| volunteer.host());
        hosts.map(received_by).sum()
    };
    let (cpu_before, sent_before) = (cpu(stage)?, stage.sent()?.iter().sum::<u64>());
    let (received_before, origin_before) = (received(stage)?, sent_by(stage.cluster.origin())?);
    let mut publishing = None;
    let mut course = Course { wishes, customer_rate: CUSTOMER_RATE, deeds: Vec::new(), watch: None };
    if let Some(path) = release {
        course.deeds.push((
            SECS / 4.0,
            Box::new(|stage| {
                stage.put(path, RELEASE_BYTES, seed)?;
                publishing = Some(stage.begin_publishing()?);
                Ok(())
            }),
        ));
    }
    let directory = stage.directory.join("downloads");
    let told = course.run(stage, &directory)?;
    if let Some(path) = release {
        stage.until_held(path, stage.cluster.volunteers().len())?;
    }
    drop(publishing);
    let volunteers_sent = stage.sent()?.iter().sum::<u64>() - sent_before;
    Ok(Round {
        origin_bytes: sent_by(stage.cluster.origin())? - origin_before,
        customers_bytes,
        volunteers_sent,
        volunteers_received: received(stage)? - received_before,
        cpu_secs_per_gb: (cpu(stage)? - cpu_before) / (volunteers_sent as f64 / 1e9),
        secs: told.secs,
    })
}

fn received_by(host: &freshet_testbed::Host) -> Result<u64> {
    let interfaces = host.interfaces()?;
    let wire = interfaces.iter().find(|interface| interface.name == "eth0");
    Ok(wire.with_context(|| format!("{} has no eth0", host.name()))?.rx_bytes)
}

fn set_up(ground: &Ground<'_>) -> Result<Stage> {
    Stage::start(ground.programs, ground.cancel, ORIGIN_MBIT, CUSTOMERS, &[], |repository| {
        for (number, (path, bytes)) in files().into_iter().enumerate() {
            let to = repository.join(path);
            std::fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
            std::fs::write(to, super::stage::noise(bytes as usize, 500 + number as u64))?;
        }
        Ok(())
    })
}

fn files() -> Vec<(String, u64)> {
    let sizes = sizes(FILES, 400_000.0, 6_000_000.0);
    sizes.into_iter().enumerate().map(|(number, bytes)| (format!("pool/{number}.bin"), bytes)).collect()
}

const VOLUNTEERS: usize = 4;
/// Uplinks of volunteers.
const MBIT: u64 = 20;
const DOWNLINK: u64 = 60;
const ORIGIN_MBIT: u64 = 60;
const CUSTOMERS: usize = 2;
/// Bytes per second: 20 Mbit/s.
const CUSTOMER_RATE: u64 = 2_500_000;
/// Of the origin's link.
const LOAD: f64 = 0.7;
const SECS: f64 = 12.0;
const FILES: usize = 12;
const RELEASE_BYTES: usize = 3_000_000;
/// Name, scenario of `bench sim`, and days of it: ten as the published trace has, fewer where a day takes longer.
const SYSTEMS: &[(&str, &str, f64)] =
    &[("existing system, rsync", "existing-system", 10.0), ("swarm and volunteers", "swarm-volunteers", 3.0)];
/// Section 2 of the paper.
const PUBLISHED_HOURS: f64 = 1.81;
/// How far from it a mean may be and still be called the same.
const NEAR: f64 = 0.25;
