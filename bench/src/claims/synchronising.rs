//! Claim 1: what synchronising the edge nodes costs the server, by rsync and by the swarm, over the same links.

use anyhow::Result;

use super::{Ground, largest};
use crate::plot::Groups;
use crate::report::{Claim, Counters, Document, Measured, Table, cells};
use crate::spread::Spread;
use crate::sync::{Contender, Ran, Trial};

/// For each number of nodes: rounds of both, side by side on links of their own.
pub(super) fn look(ground: &Ground<'_>, document: &mut Document) -> Result<Vec<Claim>> {
    let nodes: &[usize] = if ground.quick { &[5, 10] } else { &[5, 10, 20, 40] };
    document.parameter("1: links of origin and mirrors", format!("{MBIT} Mbit/s both ways"));
    let mut table = Table::new("A release for so many mirrors; medians")
        .number("mirrors", "", 0)
        .text("by")
        .number("release", "MB", 1)
        .number("server sent", "MB", 1)
        .number("server sent", "releases", 2)
        .number("last mirror", "s", 1)
        .number("shortest possible", "s", 1)
        .number("prepared", "s", 1);
    let mut claims = Vec::new();
    let mut counters = Counters::default();
    let mut copies = [Vec::new(), Vec::new()];
    for &count in nodes {
        let release = release_bytes(count);
        let trial = Trial::new(count, MBIT, release, &ground.scratch.join(format!("release-{count}")))?;
        eprintln!("{count} mirrors; {}", trial.describe());
        let mut runs: [Vec<Ran>; 2] = [Vec::new(), Vec::new()];
        for round in 0..ground.rounds(if count <= 10 { 3 } else { 2 }) {
            let run = |contender: Contender| -> Result<Ran> {
                let directory = ground.scratch.join(format!("{count}-{round}-{contender:?}"));
                let ran = trial.run(contender, ground.programs, &directory, ground.cancel)?;
                eprintln!("{}", ran.outcome.line(contender));
                Ok(ran)
            };
            // Each has links of its own, and rsync's are what it waits for.
            let (swarm, rsync) = std::thread::scope(|scope| {
                let rsync = scope.spawn(|| run(Contender::Rsync));
                (run(Contender::Swarm), rsync.join())
            });
            let rsync = rsync.map_err(|_| anyhow::anyhow!("the measurement of rsync panicked"))?;
            for (ran, (contender, one)) in
                runs.iter_mut().zip([(Contender::Swarm, swarm), (Contender::Rsync, rsync)])
            {
                let mut one = one?;
                document.record(
                    "sync",
                    &serde_json::json!({
                        "mirrors": count, "round": round, "contender": contender, "outcome": one.outcome,
                        "release_bytes": one.release_bytes, "secs_min": one.secs_min,
                    }),
                )?;
                if let Some(counted) = one.outcome.counted.take() {
                    counters.extend(&format!("{count} mirrors, round {}: ", round + 1), counted);
                }
                ran.push(one);
            }
        }
        let [swarm, rsync] = &runs;
        for (copies, (name, ran)) in copies.iter_mut().zip([("swarm", swarm), ("rsync", rsync)]) {
            let of = |figure: fn(&Ran) -> f64| Spread::of(ran.iter().map(figure));
            let in_releases = of(|ran| ran.outcome.origin_bytes as f64 / ran.release_bytes as f64);
            copies.push(in_releases.map(|spread| [spread.q25, spread.median, spread.q75]));
            let median = |figure: fn(&Ran) -> f64| of(figure).map(|spread| spread.median);
            table.row(cells![
                count,
                name,
                median(|ran| ran.release_bytes as f64 / 1e6),
                median(|ran| ran.outcome.origin_bytes as f64 / 1e6),
                in_releases.map(|spread| spread.median),
                median(|ran| ran.outcome.last_secs),
                median(|ran| ran.secs_min),
                median(|ran| ran.outcome.prepared_secs),
            ]);
        }
        let ratio = |figure: fn(&Ran) -> f64| {
            Spread::of(rsync.iter().zip(swarm).map(|(rsync, swarm)| figure(rsync) / figure(swarm)))
        };
        let claim = |figure: String, claimed: &str, measured| Claim {
            number: 1,
            figure,
            claimed: claimed.to_owned(),
            measured,
            simulated: false,
        };
        if let Some(spread) = ratio(|ran| ran.outcome.origin_bytes as f64) {
            let measured = Measured::spread(spread, "×", 1, spread.median >= SIGNIFICANT);
            let figure = format!("server's bytes, rsync over swarm, {count} mirrors");
            claims.push(claim(figure, "significantly more by rsync (2× taken for that)", measured));
        }
        if let Some(spread) = ratio(|ran| ran.outcome.last_secs) {
            let figure = format!("time to the last mirror, rsync over swarm, {count} mirrors");
            claims.push(claim(figure, "", Measured::told(spread, "×", 1)));
        }
    }
    let worst = largest(copies[0].iter().flatten().map(|[_, median, _]| *median))?;
    let labels: Vec<String> = nodes.iter().map(|count| format!("{count} mirrors")).collect();
    let [swarm, rsync] = copies;
    let plot = Groups {
        title: "What the server sends until every mirror has a release",
        unit: "times the release's size",
        labels: &labels,
        series: &[("swarm".to_owned(), swarm), ("rsync".to_owned(), rsync)],
        reference: Some(1.0),
    };
    document
        .latest()
        .prose(&format!(
            "Real packages are released to empty mirrors over links of {MBIT} Mbit/s, by an rsync daemon with a client on \
             every mirror, and at the same time, over links of their own, by control with a volunteer on every mirror. The \
             release is as large as rsync can \
             bring to all of them in {RSYNC_SECS:.0} s, at most {:.0} MB. Whatever their number, the swarm's server \
             sent at most {worst:.2} times the release, headers, heartbeats and orders included; “prepared” is the \
             time for checksums and pieces before the first byte, which rsync has not.",
            RELEASE_BYTES_MAX as f64 / 1e6
        ))
        .figure("Medians with quartiles, bytes by the kernel's counter of the server's interface.", &plot.svg()?)
        .table(table)
        .counters(&counters);
    Ok(claims)
}

/// As much as rsync brings to so many mirrors in the time that is given to it.
fn release_bytes(mirrors: usize) -> u64 {
    let rate = MBIT as f64 * 125_000.0 * super::bounds::PAYLOAD_PART;
    RELEASE_BYTES_MAX.min((RSYNC_SECS * rate / mirrors as f64) as u64)
}

const MBIT: u64 = 40;
const RSYNC_SECS: f64 = 25.0;
const RELEASE_BYTES_MAX: u64 = 16_000_000;
/// From this ratio on the workload counts as significantly less: half of it is gone.
const SIGNIFICANT: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_fit_rsyncs_time() {
        assert_eq!(release_bytes(5), RELEASE_BYTES_MAX);
        let forty = release_bytes(40) as f64 * 40.0 / (40.0 * 125_000.0 * 1_448.0 / 1_514.0);
        assert!((forty - RSYNC_SECS).abs() < 0.1, "{forty}");
    }
}
