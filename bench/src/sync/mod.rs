//! `bench sync`: how long a release takes to reach every mirror, and what it costs the origin: the swarm against
//! rsync and BitTorrent (aria2) over the same links, with the same real packages, in the same run.
//!
//! Every host is a network namespace with a link limited at both ends. Bytes are read from the kernel's counters of
//! the hosts' interfaces, never from the programs measured. Beside each time stands the shortest that any protocol
//! could take over these links (Kumar and Ross, "Peer-assisted file distribution: the minimum distribution time",
//! 2006), for links that carry headers too.

mod content;
pub(crate) mod liar;
mod links;
mod report;
mod rsync;
mod scenario;
mod swarm;
mod torrent;
mod trial;
pub(crate) mod usage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use freshet_testbed::repository::Selection;
use freshet_testbed::{Cancel, Host, Testbed};

use self::content::Content;
use self::links::Links;
pub(crate) use self::links::PAYLOAD_PART;
pub(crate) use self::report::Outcome;
use self::report::Report;
pub(crate) use self::scenario::changes;
use self::swarm::Lies;
pub(crate) use self::trial::{Ran, Trial};
use crate::ground;

/// Options of `bench sync`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many mirrors.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    mirrors: u32,
    /// Links of the origin and of the mirrors, Mbit/s in both directions.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    mbit: u64,
    /// Spreads the mirrors' links evenly (by ratio) from this rate up to `--mbit`, Mbit/s.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    from_mbit: Option<u64>,
    /// The origin's link, when it is not as the mirrors', Mbit/s.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    origin_mbit: Option<u64>,
    /// Megabytes of real packages that the release consists of, at most (there may be fewer).
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    megabytes: u64,
    /// Who is measured; each round measures all of them in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "swarm,rsync,torrent")]
    contenders: Vec<Contender>,
    /// How often.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Also measures the swarm with this share of the mirrors sending wrong pieces, at least one, and one that slanders
    /// everybody: once with liars that are caught, and once with sly ones, which send control the truth.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    liars: Option<f64>,
    /// Instead of contenders: what small changes of a repository cost, one after the other, such as a hundredth of the
    /// files touched, everything renamed, a changed index, an installer image (needs xorriso).
    #[arg(long)]
    changes: bool,
    /// Copies of a release that the origin may send to save time (control's `--origin-copies`).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    origin_copies: Option<u32>,
    /// Gives up on a contender after so many seconds.
    #[arg(long, default_value_t = 1_800, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Where `dataplane`, `control` and `ctl` are; otherwise beside this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where report.json and the plot go.
    #[arg(long, value_name = "DIR", default_value = "target/bench/sync-report")]
    out: PathBuf,
}

/// What copies the release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contender {
    /// Freshet: control at the origin, a volunteer on each mirror.
    Swarm,
    /// An rsync daemon at the origin, `rsync -aH --delete-delay` on each mirror.
    Rsync,
    /// aria2 seeding at the origin and one on each mirror, with a tracker at the origin.
    Torrent,
    /// Freshet with mirrors that send wrong pieces, and one that slanders.
    Liars,
    /// The same, where the liars send control itself what is right.
    SlyLiars,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "expected a number such as 0.1".to_owned())?;
    if share > 0.0 && share <= 0.5 {
        Ok(share)
    } else {
        Err("expected more than 0 and at most 0.5".to_owned())
    }
}

/// What each contender is given.
struct Course<'a> {
    testbed: &'a Testbed,
    links: &'a Links,
    content: &'a Content,
    programs: &'a Path,
    directory: &'a Path,
    origin_copies: Option<u32>,
    timeout: Duration,
}

impl Course<'_> {
    /// A host for each mirror, on its link.
    fn mirrors(&self) -> Result<Vec<Host>> {
        let host = |(number, link)| Ok(self.testbed.host(&format!("m{number}"), &link)?);
        self.links.mirror_links().enumerate().map(host).collect()
    }
}

/// Runs the measurement and writes its report.
///
/// # Errors
/// Without root (no namespaces), when a program is missing or fails, or when a mirror differs in the end.
pub(crate) fn run(arguments: &Arguments, cancel: &Cancel) -> Result<()> {
    let programs = ground::programs(arguments.programs.as_deref())?;
    let links = Links::new(
        arguments.mirrors as usize,
        arguments.origin_mbit.unwrap_or(arguments.mbit),
        arguments.from_mbit.unwrap_or(arguments.mbit),
        arguments.mbit,
    );
    let scratch = tempfile::Builder::new().prefix("freshet-sync-").tempdir()?;
    if arguments.changes {
        return scenario::run(arguments, &programs, &links, scratch.path(), cancel);
    }
    let content =
        Content::gather(&scratch.path().join("release"), Selection::Full, arguments.megabytes * 1_000_000)?;
    eprintln!("{}", content.describe());
    let mut report = Report::new(&links, &content);
    let mut contenders = arguments.contenders.clone();
    if arguments.liars.is_some() {
        contenders.extend([Contender::Liars, Contender::SlyLiars]);
    }
    let liars = (links.mirrors.len() as f64 * arguments.liars.unwrap_or(LIARS)).round().max(1.0) as usize;
    for round in 1..=arguments.rounds {
        for &contender in &contenders {
            eprintln!("round {round}: {contender:?}, {} mirrors", links.mirrors.len());
            let testbed = ground::namespaces(cancel, NEEDED)?;
            let directory = scratch.path().join(format!("{contender:?}-{round}"));
            std::fs::create_dir(&directory)?;
            let course = Course {
                testbed: &testbed,
                links: &links,
                content: &content,
                programs: &programs,
                directory: &directory,
                origin_copies: arguments.origin_copies,
                timeout: Duration::from_secs(arguments.timeout),
            };
            let outcome = match contender {
                Contender::Swarm => swarm::measure(&course, None)?,
                Contender::Liars => swarm::measure(&course, Some(Lies { liars, sly: false }))?,
                Contender::SlyLiars => swarm::measure(&course, Some(Lies { liars, sly: true }))?,
                Contender::Rsync => rsync::measure(&course)?,
                Contender::Torrent => torrent::measure(&course)?,
            };
            drop(testbed);
            std::fs::remove_dir_all(&directory)?;
            eprintln!("{}", outcome.line(contender));
            report.add(contender, outcome);
        }
    }
    report.write(&arguments.out)?;
    print!("{}", report.table());
    println!("report: {}", arguments.out.display());
    Ok(())
}

/// Bytes that a host's interface has received and sent.
#[derive(Clone, Copy, Debug)]
struct Passed {
    received: u64,
    sent: u64,
}

impl Passed {
    fn of(host: &Host) -> Result<Self> {
        let interfaces = host.interfaces()?;
        let wire = interfaces.iter().find(|interface| interface.name == "eth0");
        let wire = wire.with_context(|| format!("{} has no eth0", host.name()))?;
        Ok(Self { received: wire.rx_bytes, sent: wire.tx_bytes })
    }

    fn since(self, before: Self) -> Self {
        Self { received: self.received - before.received, sent: self.sent - before.sent }
    }
}

/// Counts what passes all hosts while something is measured.
struct Meter {
    hosts: Vec<Host>,
    before: Vec<Passed>,
}

impl Meter {
    /// The origin first.
    fn start(hosts: Vec<Host>) -> Result<Self> {
        let before = hosts.iter().map(Passed::of).collect::<Result<_>>()?;
        Ok(Self { hosts, before })
    }

    fn read(&self) -> Result<Vec<Passed>> {
        self.hosts
            .iter()
            .zip(&self.before)
            .map(|(host, &before)| Ok(Passed::of(host)?.since(before)))
            .collect()
    }
}

/// The figures of one contender in one round.
fn outcome(finished: Vec<f64>, passed: &[Passed], cpu_secs: Option<f64>, prepared_secs: f64) -> Outcome {
    let (origin, mirrors) = passed.split_first().expect("the origin is always metered");
    Outcome {
        last_secs: finished.iter().copied().fold(0.0, f64::max),
        first_secs: finished.iter().copied().fold(f64::INFINITY, f64::min),
        prepared_secs,
        origin_bytes: origin.sent,
        mirror_received: mirrors.iter().map(|passed| passed.received).collect(),
        mirror_sent: mirrors.iter().map(|passed| passed.sent).collect(),
        cpu_secs,
        finished,
        lied: None,
        manifests: None,
        counted: None,
    }
}

/// The share of liars unless another is asked for.
const LIARS: f64 = 0.1;
/// Why this can't be done on loopback.
const NEEDED: &str = "links with rates need";
