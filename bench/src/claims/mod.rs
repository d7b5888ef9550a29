//! `bench claims`: what was claimed for volunteer-assisted software delivery (Shah, Pâris, Morgan, Schettino,
//! Venkatraman, Mowbray: "Resource-Efficient Software Delivery Using Volunteer Assistance"), measured again on real
//! programs, at a scale that one small machine carries.
//!
//! Each claim is a file here. The programs are those beside this one; hosts are network namespaces with rate-limited
//! links. What is simulated says so in its row.

mod aside;
mod bounds;
mod customers;
mod delivery;
mod release_day;
mod savings;
mod selection;
mod similarity;
mod stage;
mod synchronising;
mod validation;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use freshet_testbed::{Cancel, Options, Testbed};

use aside::Aside;

use crate::chunks;
use crate::columns;
use crate::ground;
use crate::report::{Claim, Document, Measured};

pub(crate) use validation::{Arguments as ValidateArguments, run as validate};

/// Options of `bench claims`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only these claims, by number.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=6))]
    only: Vec<u8>,
    /// Fewer rounds and fewer hosts: half of the time, with less to say.
    #[arg(long)]
    quick: bool,
    /// What sizes, arrivals and contents are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where `dataplane`, `control` and `ctl` are; otherwise beside this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where report.html and report.jsonl go.
    #[arg(long, value_name = "DIR", default_value = "target/bench/claims")]
    out: PathBuf,
}

/// What every claim is given.
struct Ground<'a> {
    programs: &'a Path,
    /// For what a claim lays out; each has a directory of its own there.
    scratch: &'a Path,
    cancel: &'a Cancel,
    quick: bool,
    seed: u64,
    /// Of claim 2.
    trade_off: &'a Aside<chunks::Report>,
    /// Of claim 6.
    days: &'a Aside<Vec<savings::Days>>,
}

impl Ground<'_> {
    /// How often something is repeated.
    fn rounds(&self, usual: usize) -> usize {
        if self.quick { 1 } else { usual }
    }
}

/// One claim and how it is looked at.
struct Subject {
    number: u8,
    title: &'static str,
    /// In the words of the paper.
    claimed: &'static str,
    /// Programs that must be installed.
    needs: &'static [&'static str],
    look: fn(&Ground<'_>, &mut Document) -> Result<Vec<Claim>>,
}

const SUBJECTS: &[Subject] = &[
    Subject {
        number: 1,
        title: "Synchronising edge nodes",
        claimed: "Swarm synchronisation reduces the server's workload of synchronising the edge nodes significantly.",
        needs: &["rsync"],
        look: synchronising::look,
    },
    Subject {
        number: 2,
        title: "Identical files, similar versions, chunk sizes",
        claimed: "Identical files and similar versions are exploited; similarity wants small chunks (the square root of the \
                  file's size), a swarm wants moderately large ones (64 KB).",
        needs: &["apt-get", "xorriso"],
        look: similarity::look,
    },
    Subject {
        number: 3,
        title: "Ordinary tools, untrusted volunteers",
        claimed: "Customers need no custom tools: the server redirects them to a volunteer, and they authenticate what \
                  they get through checksums from the server, because volunteers cannot be fully trusted.",
        needs: &["curl", "sha256sum"],
        look: delivery::look,
    },
    Subject {
        number: 4,
        title: "Load on uneven volunteers",
        claimed: "By utilising the information available at the tracker the load is aptly distributed to the volunteers, \
                  under synchronisation and delivery on the same network.",
        needs: &["curl"],
        look: selection::look,
    },
    Subject {
        number: 5,
        title: "A flash crowd and volatile volunteers",
        claimed: "By replicating only the newly released packages, volatile volunteers diminish the flash crowd effects.",
        needs: &["curl"],
        look: release_day::look,
    },
    Subject {
        number: 6,
        title: "What volunteers save and cost",
        claimed: "Volunteers spare the server's bandwidth; an edge node of the existing system spends 1.81 hours a day \
                  (0.54 to 20.53) synchronising.",
        needs: &["curl"],
        look: savings::look,
    },
];

/// Looks at the claims, prints what came out and writes the report. Exit status: 0 when all were run and hold, 1 when one
/// failed, 3 when something that it needs is missing, 4 when one does not hold.
///
/// # Errors
/// When it is interrupted, or the report cannot be written.
pub(crate) fn run(arguments: &Arguments, cancel: &Cancel) -> Result<ExitCode> {
    let programs = ground::programs(arguments.programs.as_deref())?;
    // What a testbed owns is removed by the next run when this one is killed.
    let keeper = Testbed::start(Options { loopback: true, cancel: cancel.clone(), ..Options::default() })?;
    let scratch = keeper.scratch()?;
    let mut document = Document::begin(TITLE, ABOUT);
    document.seed(arguments.seed);
    document.parameter("scale", if arguments.quick { "quick" } else { "full" });
    note_versions(&mut document);
    let mut claims = Vec::new();
    let mut failed = false;
    let begun = Instant::now();
    let chosen = |subject: &Subject| arguments.only.is_empty() || arguments.only.contains(&subject.number);
    let looked_at =
        |number| SUBJECTS.iter().any(|one| one.number == number && chosen(one) && missing(one).is_none());
    let trade_off = Aside::begin(looked_at(2), chunks::of_small_packages)?;
    let (quick, seed) = (arguments.quick, arguments.seed);
    let days = Aside::begin(looked_at(6), move || savings::days(quick, seed))?;
    for subject in SUBJECTS.iter().filter(|subject| chosen(subject)) {
        let begun = Instant::now();
        eprintln!("claim {}: {}", subject.number, subject.claimed);
        let directory = scratch.join(subject.number.to_string());
        std::fs::create_dir(&directory)?;
        let ground = Ground {
            programs: &programs,
            scratch: &directory,
            cancel,
            quick,
            seed,
            trade_off: &trade_off,
            days: &days,
        };
        document.section(&format!("{}. {}", subject.number, subject.title)).quote(subject.claimed);
        let outcome = match missing(subject) {
            Some(why) => Err(why),
            None => (subject.look)(&ground, &mut document).map_err(|error| {
                failed = true;
                format!("failed: {error:#}")
            }),
        };
        if cancel.is_cancelled() {
            bail!("interrupted; nothing is reported");
        }
        std::fs::remove_dir_all(&directory)?;
        let minutes = begun.elapsed().as_secs_f64() / 60.0;
        eprintln!("claim {}: {minutes:.1} minutes", subject.number);
        document.parameter(&format!("{}: looked at for", subject.number), format!("{minutes:.1} minutes"));
        match outcome {
            Ok(found) => {
                document.latest().claims(found.clone());
                claims.extend(found);
            }
            Err(why) => {
                eprintln!("claim {}: not run: {why}", subject.number);
                document.latest().prose(&format!("Not run: {why}."));
                claims.push(not_run(subject, why));
            }
        }
    }
    document.parameter("measured for", format!("{:.1} minutes", begun.elapsed().as_secs_f64() / 60.0));
    document.lead("Claimed and measured").prose(READING).claims(claims.clone());
    print!("{}", plain(&claims));
    println!("report: {}", document.write(&arguments.out)?.display());
    Ok(ExitCode::from(status(&claims, failed)))
}

/// What a subject needs and this machine lacks, in words.
fn missing(subject: &Subject) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    absent(subject.needs)
}

/// Those of the programs that are not installed, in words.
fn absent(needs: &[&str]) -> Option<String> {
    let absent: Vec<&str> = needs.iter().copied().filter(|name| !installed(name)).collect();
    (!absent.is_empty()).then(|| format!("{} must be installed", absent.join(", ")))
}

/// Whether a program of this name can be started.
fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

fn not_run(subject: &Subject, why: String) -> Claim {
    Claim {
        number: subject.number,
        figure: subject.title.to_owned(),
        claimed: String::new(),
        measured: Measured::NotRun { why },
        simulated: false,
    }
}

fn status(claims: &[Claim], failed: bool) -> u8 {
    let any = |verdict: &str| claims.iter().any(|claim| claim.measured.verdict() == verdict);
    match () {
        () if failed => 1,
        () if any("not run") => 3,
        () if any("does not hold") => 4,
        () => 0,
    }
}

/// For a terminal.
fn plain(claims: &[Claim]) -> String {
    let mut table = columns::table(&["", "figure", "claimed", "measured", "quartiles", ""], 3);
    for claim in claims {
        let simulated = if claim.simulated { " (simulated)" } else { "" };
        table.add_row([
            claim.number.to_string(),
            format!("{}{simulated}", claim.figure),
            claim.claimed.clone(),
            claim.measured.figure(),
            claim.measured.spread_text(),
            claim.measured.verdict().to_owned(),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

/// Of the tools that are measured against or download.
fn note_versions(document: &mut Document) {
    for program in ["curl", "rsync", "aria2c", "apt-get"] {
        let output = std::process::Command::new(program).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let line = text.as_deref().ok().and_then(|text| text.lines().next()).unwrap_or("not installed");
        document.version(program, line);
    }
}

/// The largest of several values, or why there is none.
fn largest(values: impl IntoIterator<Item = f64>) -> Result<f64> {
    values.into_iter().reduce(f64::max).context("nothing was measured")
}

const TITLE: &str = "Volunteer-assisted delivery: claimed and measured";
const ABOUT: &str = "The claims of “Resource-Efficient Software Delivery Using Volunteer Assistance” as experiments on \
                     Freshet's own programs, over network namespaces with rate-limited links on one machine.";
const READING: &str = "Figures are medians, with the quartiles beside them where a measurement was repeated. A row holds when \
                       its median meets what the column “claimed” asks for; rows without a verdict say how much. Bytes \
                       are the kernel's, read in each host's namespace by the harness. Below, every experiment that \
                       volunteers took part in has their own counters beside the harness's.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::Spread;

    fn claim(measured: Measured) -> Claim {
        Claim { number: 1, figure: "f".to_owned(), claimed: "c".to_owned(), measured, simulated: true }
    }

    #[test]
    fn the_exit_status_tells_the_worst() {
        let one = |holds| Measured::spread(Spread::of([1.0]).unwrap(), "", 0, holds);
        let absent = || claim(Measured::NotRun { why: "no root".to_owned() });
        assert_eq!(status(&[claim(one(true))], false), 0);
        assert_eq!(status(&[claim(one(true)), claim(one(false))], false), 4);
        assert_eq!(status(&[claim(one(false)), absent()], false), 3);
        assert_eq!(status(&[absent()], true), 1);
    }

    #[test]
    fn the_table_says_what_is_simulated_and_what_was_not_run() {
        let text = plain(&[claim(Measured::NotRun { why: "no root".to_owned() })]);
        assert!(
            text.contains("(simulated)") && text.contains("no root") && text.contains("not run"),
            "{text}"
        );
    }

    #[test]
    fn subjects_are_numbered_in_order() {
        assert!(SUBJECTS.iter().map(|subject| subject.number).eq(1..=6));
    }

    #[test]
    fn what_is_not_installed_is_named() {
        let needs = ["sh", "no-such-program-here"];
        assert_eq!(absent(&needs).as_deref(), Some("no-such-program-here must be installed"));
        assert_eq!(absent(&["sh"]), None);
    }
}
