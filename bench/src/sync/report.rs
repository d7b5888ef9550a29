//! What `bench sync` found, as a table, as JSON and as a plot; it measures nothing.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::Contender;
use super::content::Content;
use super::links::Links;
use crate::columns::table;
use crate::plot::Groups;
use crate::report::Counters;
use crate::spread::Spread;

/// All that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    links: Links,
    release_bytes: u64,
    release_files: usize,
    /// The shortest time that these links allow.
    secs_min: f64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    contender: Contender,
    #[serde(flatten)]
    outcome: Outcome,
}

/// One contender in one round.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// From the moment when mirrors could begin until the last was complete.
    pub(crate) last_secs: f64,
    pub(super) first_secs: f64,
    /// Before that: checksums, pieces, telling the volunteers. The others have no such step.
    pub(crate) prepared_secs: f64,
    pub(crate) origin_bytes: u64,
    pub(super) mirror_received: Vec<u64>,
    pub(super) mirror_sent: Vec<u64>,
    /// Of all processes on all hosts together, where it can be had.
    pub(super) cpu_secs: Option<f64>,
    /// Per mirror.
    pub(super) finished: Vec<f64>,
    /// What became of those that lied, where some did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lied: Option<Lied>,
    /// How the manifests of the release went to the mirrors, where they did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) manifests: Option<Manifests>,
    /// The volunteers' own counters beside the harness's, where volunteers counted.
    #[serde(skip)]
    pub(crate) counted: Option<Counters>,
}

/// How the manifests of a release went to the mirrors, by what control says.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Manifests {
    /// Bytes of the largest of them.
    pub(super) bytes: u64,
    /// Times that one left the origin.
    pub(super) from_origin: u64,
    /// Times that one went from mirror to mirror.
    pub(super) from_peers: u64,
    /// Times among them that it did not come, or another one did.
    pub(super) failed: u64,
}

/// Volunteers that sent wrong pieces, and what came of it. No honest one was banned, or had or gave a wrong byte:
/// otherwise there would be no figures.
#[derive(Debug, Serialize)]
pub(super) struct Lied {
    pub(super) liars: usize,
    /// Whether they told control the truth.
    pub(super) sly: bool,
    /// Pieces that were changed on their way from a liar, to whomever.
    pub(super) spoiled_pieces: u64,
    /// Those of them that honest mirrors complained of, and dropped.
    pub(super) wrong_pieces: u64,
    /// Who is banned, and for what.
    pub(super) banned: BTreeMap<String, String>,
}

impl Outcome {
    pub(crate) fn line(&self, contender: Contender) -> String {
        let cpu = self.cpu_secs.map_or_else(String::new, |seconds| format!(", CPU {seconds:.1} s"));
        let lied = self.lied.as_ref().map_or_else(String::new, |lied| {
            let banned: Vec<String> =
                lied.banned.iter().map(|(name, why)| format!("\n  {name} {why}")).collect();
            format!(
                "; {} liars sent {} wrong pieces, {} to honest mirrors; {} of them banned, nobody else{}",
                lied.liars,
                lied.spoiled_pieces,
                lied.wrong_pieces,
                lied.banned.len(),
                banned.concat()
            )
        });
        let manifests = self.manifests.map_or_else(String::new, |Manifests { bytes, from_origin, from_peers, failed }| {
            format!(
                "; manifests of {:.1} kB: {from_origin} from the origin, {from_peers} from mirrors ({failed} failed)",
                bytes as f64 / 1e3
            )
        });
        format!(
            "{contender:?}: last mirror after {:.2} s, origin sent {:.1} MB{cpu}{manifests}{lied}",
            self.last_secs,
            self.origin_bytes as f64 / 1e6,
        )
    }
}

impl Report {
    pub(super) fn new(links: &Links, content: &Content) -> Self {
        Self {
            links: links.clone(),
            release_bytes: content.bytes,
            release_files: content.files.len(),
            secs_min: links.secs_min(content.bytes),
            rows: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, contender: Contender, outcome: Outcome) {
        self.rows.push(Row { contender, outcome });
    }

    /// Writes report.json and the plot.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("report.json"), serde_json::to_string_pretty(self)?)?;
        std::fs::write(directory.join("sync.svg"), self.plot()?)?;
        Ok(())
    }

    pub(super) fn table(&self) -> String {
        let mut rows = table(
            &[
                "",
                "last mirror, s",
                "/ bound",
                "first, s",
                "prepare, s",
                "origin / F",
                "mirror in / F",
                "mirror out / F",
                "CPU, s",
            ],
            1,
        );
        let release = self.release_bytes as f64;
        for contender in self.contenders() {
            let over = |figure: &dyn Fn(&Outcome) -> f64| {
                let values =
                    self.rows.iter().filter(|row| row.contender == contender).map(|row| figure(&row.outcome));
                Spread::of(values).map_or_else(|| "-".to_owned(), |spread| spread.text())
            };
            let mean = |bytes: &[u64]| bytes.iter().sum::<u64>() as f64 / bytes.len().max(1) as f64;
            rows.add_row([
                format!("{contender:?}").to_lowercase(),
                over(&|outcome| outcome.last_secs),
                over(&|outcome| outcome.last_secs / self.secs_min),
                over(&|outcome| outcome.first_secs),
                over(&|outcome| outcome.prepared_secs),
                over(&|outcome| outcome.origin_bytes as f64 / release),
                over(&|outcome| mean(&outcome.mirror_received) / release),
                over(&|outcome| mean(&outcome.mirror_sent) / release),
                over(&|outcome| outcome.cpu_secs.unwrap_or(f64::NAN)),
            ]);
        }
        let rates = match (self.links.mirrors.iter().min(), self.links.mirrors.iter().max()) {
            (Some(low), Some(high)) if low != high => format!("{low}-{high}"),
            (low, _) => low.map_or_else(String::new, u64::to_string),
        };
        let median = |contender: Contender| {
            let values = self.rows.iter().filter(|row| row.contender == contender);
            Spread::of(values.map(|row| row.outcome.last_secs)).map(|spread| spread.median)
        };
        let mut against = String::new();
        for contender in [Contender::Liars, Contender::SlyLiars] {
            if let (Some(lied), Some(honest)) = (median(contender), median(Contender::Swarm)) {
                let name = format!("{contender:?}").to_lowercase();
                against.push_str(&format!("{name}: {:.2} times as long as without\n", lied / honest));
            }
        }
        format!(
            "{} mirrors at {rates} Mbit/s, origin at {} Mbit/s, F = {:.1} MB in {} files; bound {:.2} s\n\
             median (quartiles); bytes by the kernel's counters, with headers\n\n{}\n\n{against}",
            self.links.mirrors.len(),
            self.links.origin,
            release / 1e6,
            self.release_files,
            self.secs_min,
            rows.trim_fmt(),
        )
    }

    fn contenders(&self) -> Vec<Contender> {
        let mut contenders: Vec<Contender> = Vec::new();
        for row in &self.rows {
            if !contenders.contains(&row.contender) {
                contenders.push(row.contender);
            }
        }
        contenders
    }

    fn plot(&self) -> Result<String> {
        let contenders = self.contenders();
        let labels: Vec<String> = contenders.iter().map(|one| format!("{one:?}").to_lowercase()).collect();
        let points = contenders
            .iter()
            .map(|&contender| {
                let values = self.rows.iter().filter(|row| row.contender == contender);
                let spread = Spread::of(values.map(|row| row.outcome.last_secs / self.secs_min));
                spread.map(|spread| [spread.q25, spread.median, spread.q75])
            })
            .collect();
        Groups {
            title: "Time until the last mirror is complete",
            unit: "times the shortest that the links allow",
            labels: &labels,
            series: &[("last mirror".to_owned(), points)],
            reference: Some(1.0),
        }
        .svg()
    }
}
