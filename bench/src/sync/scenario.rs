//! What small changes of a repository cost: one after the other is made to a repository of some hundred real packages
//! that all mirrors have, and what passes the wires until all of them are current again is set beside its size.
//!
//! Bytes are the kernel's, headers, heartbeats and questions among them; what passes in the same time when nothing
//! changes stands beside them and is not taken off.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::cluster::Cluster;
use freshet_testbed::repository::{Selection, files};
use freshet_testbed::{Cancel, wait_until};
use serde::Serialize;

use super::content::Content;
use super::links::Links;
use super::{Arguments, Course, Meter, NEEDED, Passed, swarm};
use crate::columns::table;
use crate::ground;
use crate::report::Counters;
use crate::tally::Tally;

/// What one change cost.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    pub(crate) change: &'static str,
    /// Bytes of the files that are new or changed by it.
    changed_bytes: u64,
    /// What that is set beside: of what is only named anew, all of it.
    pub(crate) beside_bytes: u64,
    pub(crate) origin_sent: u64,
    /// The mean over the mirrors.
    pub(crate) mirror_received: f64,
    /// Payload that the origin's sync port sent.
    payload: u64,
    /// What a mirror receives in the same time when nothing changes.
    pub(crate) idle_received: f64,
    pub(crate) secs: f64,
    /// Parts of `beside_bytes` that a mirror may receive.
    pub(crate) most: f64,
}

/// Makes all changes and writes what they cost.
pub(super) fn run(
    arguments: &Arguments,
    programs: &Path,
    links: &Links,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<()> {
    let timeout = Duration::from_secs(arguments.timeout);
    let measured = measure(programs, links, arguments.origin_copies, timeout, scratch, cancel)?;
    print!("{}", shown(links, &measured.costs));
    fs::create_dir_all(&arguments.out)?;
    fs::write(arguments.out.join("changes.json"), serde_json::to_string_pretty(&measured.costs)?)?;
    println!("report: {}", arguments.out.join("changes.json").display());
    Ok(())
}

/// The same for other measurements: so many mirrors at so many Mbit/s; with the volunteers' counters.
pub(crate) fn changes(
    programs: &Path,
    mirrors: usize,
    mbit: u64,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<(Vec<Cost>, Counters)> {
    let links = Links { single_packets: true, ..Links::new(mirrors, mbit, mbit, mbit) };
    let measured = measure(programs, &links, None, CHANGE_MAX, scratch, cancel)?;
    Ok((measured.costs, measured.counted))
}

struct Measured {
    costs: Vec<Cost>,
    counted: Counters,
}

fn measure(
    programs: &Path,
    links: &Links,
    origin_copies: Option<u32>,
    timeout: Duration,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<Measured> {
    let repository = scratch.join("repository");
    let content = Content::gather(&repository, Selection::Many, u64::MAX)?;
    if !content.is_real() {
        bail!("real packages are needed: {}", content.describe());
    }
    eprintln!("{}", content.describe());
    let held_back = hold_back(&repository, scratch)?;
    let index = repository.join("dists/whole/main/binary-all/Packages");
    write_index(&index)?;

    let testbed = ground::namespaces(cancel, NEEDED)?;
    let directory = scratch.join("run");
    fs::create_dir(&directory)?;
    let course = Course {
        testbed: &testbed,
        links,
        content: &content,
        programs,
        directory: &directory,
        origin_copies,
        timeout,
    };
    let cluster = swarm::start(&course, &repository)?;
    let bench = Bench { cluster: &cluster, repository: &repository, timeout, cancel };
    bench.until_current()?;
    let tally = Tally::begin(&cluster, cancel)?;
    let idle = bench.idle()?;
    eprintln!("all mirrors have it; a mirror that nothing changes for receives {idle:.0} B/s");

    let costs = vec![
        bench.cost("1 in 100 packages exchanged", 1.25, idle, || exchange(&repository, &held_back))?,
        bench.cost("all packages under new names", 0.005, idle, || rename(&repository))?,
        bench.cost("a changed Packages", 0.02, idle, || change_index(&index, scratch))?,
        bench.cost("an installer image of the packages", 0.01, idle, || image(&repository, scratch))?,
    ];
    Ok(Measured { costs, counted: tally.end(&cluster, cancel)? })
}

/// What a change made: bytes of files that are new or changed, and what their cost is set beside.
struct Made {
    changed_bytes: u64,
    beside_bytes: u64,
}

struct Bench<'a> {
    cluster: &'a Cluster,
    repository: &'a Path,
    timeout: Duration,
    cancel: &'a Cancel,
}

impl Bench<'_> {
    fn meter(&self) -> Result<Meter> {
        let mut hosts = vec![self.cluster.origin().clone()];
        hosts.extend(self.cluster.volunteers().iter().map(|volunteer| volunteer.host().clone()));
        Meter::start(hosts)
    }

    fn payload(&self) -> Result<u64> {
        let status = self.cluster.ctl(&["status"])?;
        status["sync_port"]["body_bytes"].as_u64().context("expected what the sync port sent")
    }

    fn until_current(&self) -> Result<()> {
        Ok(wait_until("every mirror to be current", self.timeout, self.cancel, || {
            Ok(self.cluster.mirrors()?.iter().all(|mirror| mirror.current).then_some(()))
        })?)
    }

    /// Bytes that a mirror receives per second when nothing changes.
    fn idle(&self) -> Result<f64> {
        let (meter, begun) = (self.meter()?, Instant::now());
        wait_until("some time to pass", IDLE * 2, self.cancel, || {
            Ok((begun.elapsed() >= IDLE).then_some(()))
        })?;
        Ok(received(&meter.read()?) / begun.elapsed().as_secs_f64())
    }

    fn cost(
        &self,
        change: &'static str,
        most: f64,
        idle: f64,
        make: impl FnOnce() -> Result<Made>,
    ) -> Result<Cost> {
        let (meter, payload, begun) = (self.meter()?, self.payload()?, Instant::now());
        let made = make().with_context(|| format!("making the change: {change}"))?;
        // Mirrors have no empty directories.
        Command::new("find").arg(self.repository).args(["-type", "d", "-empty", "-delete"]).status()?;
        self.cluster.ctl(&["publish"])?;
        self.until_current()?;
        let (passed, secs) = (meter.read()?, begun.elapsed().as_secs_f64());
        let payload = self.payload()? - payload;
        for volunteer in self.cluster.volunteers() {
            let tree = volunteer.state().join("tree");
            let diff = Command::new("diff").arg("-rq").arg(self.repository).arg(&tree).output()?;
            if !diff.stdout.is_empty() || !diff.stderr.is_empty() {
                bail!("{} is not the repository: {}", tree.display(), String::from_utf8_lossy(&diff.stdout));
            }
        }
        let cost = Cost {
            change,
            changed_bytes: made.changed_bytes,
            beside_bytes: made.beside_bytes,
            origin_sent: passed.first().map_or(0, |origin| origin.sent),
            mirror_received: received(&passed),
            payload,
            idle_received: idle * secs,
            secs,
            most,
        };
        eprintln!("{change}: a mirror received {:.0} of {} bytes", cost.mirror_received, cost.beside_bytes);
        Ok(cost)
    }
}

/// Mean over the mirrors.
fn received(passed: &[Passed]) -> f64 {
    let mirrors = passed.get(1..).unwrap_or_default();
    mirrors.iter().map(|passed| passed.received).sum::<u64>() as f64 / mirrors.len().max(1) as f64
}

/// Takes every hundredth package away, to be put in another's place later.
fn hold_back(repository: &Path, scratch: &Path) -> Result<Vec<PathBuf>> {
    let outside = scratch.join("held-back");
    fs::create_dir(&outside)?;
    let mut held = Vec::new();
    for deb in debs(repository)?.iter().step_by(100) {
        let to = outside.join(deb.file_name().context("a package has a name")?);
        fs::rename(deb, &to)?;
        held.push(to);
    }
    Ok(held)
}

fn debs(repository: &Path) -> Result<Vec<PathBuf>> {
    let all = files(repository)?.into_iter().filter(|file| file.path.ends_with(".deb"));
    Ok(all.map(|file| repository.join(file.path)).collect())
}

/// Puts the packages that were held back in the places of others.
fn exchange(repository: &Path, held_back: &[PathBuf]) -> Result<Made> {
    let there = debs(repository)?;
    let mut bytes = 0;
    for (new, old) in held_back.iter().zip(there.iter().skip(7).step_by(31)) {
        bytes += fs::metadata(new)?.len();
        fs::rename(new, old.with_file_name(new.file_name().context("a package has a name")?))?;
        fs::remove_file(old)?;
    }
    Ok(Made { changed_bytes: bytes, beside_bytes: bytes })
}

/// Gives all packages other paths.
fn rename(repository: &Path) -> Result<Made> {
    let bytes = debs(repository)?.iter().map(|deb| Ok(fs::metadata(deb)?.len())).sum::<Result<u64>>()?;
    fs::rename(repository.join("pool/main"), repository.join("pool/renamed"))?;
    Ok(Made { changed_bytes: 0, beside_bytes: bytes })
}

/// Writes the stanzas of the distribution's packages, as an index of all of them has them.
fn write_index(path: &Path) -> Result<()> {
    let lists = Command::new("apt-cache").arg("dumpavail").output().context("running apt-cache")?;
    let text = String::from_utf8_lossy(&lists.stdout).into_owned();
    let end = text.floor_char_boundary(INDEX_BYTES_MAX);
    let end = text[..end].rfind("\n\n").map_or(end, |at| at + 2);
    fs::create_dir_all(path.parent().context("a file has a directory")?)?;
    fs::write(path, &text[..end]).with_context(|| format!("cannot write {}", path.display()))
}

/// Gives one in two hundred packages of the index another version and checksum, as a day of a distribution does.
fn change_index(path: &Path, scratch: &Path) -> Result<Made> {
    let text = fs::read_to_string(path)?;
    let mut changed = String::with_capacity(text.len() + 4_096);
    for (number, stanza) in text.split_inclusive("\n\n").enumerate() {
        if number % 200 != 77 {
            changed.push_str(stanza);
            continue;
        }
        for line in stanza.split_inclusive('\n') {
            match line.split_once(": ") {
                Some(("Version", version)) => {
                    changed.push_str(&format!("Version: {}+deb12u1\n", version.trim_end()));
                }
                Some(("SHA256", digest)) => {
                    // Another digest: its digits in another order, one that no compression foresees.
                    let mut digits: Vec<char> = digest.trim_end().chars().collect();
                    digits.rotate_left(number % 61 + 1);
                    changed.push_str(&format!("SHA256: {}\n", digits.into_iter().rev().collect::<String>()));
                }
                _ => changed.push_str(line),
            }
        }
    }
    let made = scratch.join("Packages");
    let mut file = fs::File::create(&made)?;
    file.write_all(changed.as_bytes())?;
    fs::rename(&made, path)?;
    let bytes = changed.len() as u64;
    Ok(Made { changed_bytes: bytes, beside_bytes: bytes })
}

/// An image with all packages and their index, as an installer has them.
fn image(repository: &Path, scratch: &Path) -> Result<Made> {
    let (tree, made) = (scratch.join("image-tree"), scratch.join("installer.iso"));
    fs::create_dir(&tree)?;
    let packages = debs(repository)?;
    if packages.len() < 300 {
        bail!("expected 300 packages for an image, there are {}", packages.len());
    }
    for deb in &packages {
        let to = tree.join(deb.strip_prefix(repository)?);
        fs::create_dir_all(to.parent().context("a file has a directory")?)?;
        fs::hard_link(deb, to)?;
    }
    let program = "xorriso";
    let mut command = Command::new(program);
    command.args(["-as", "mkisofs", "-quiet", "-r", "-J", "-V", "FRESHET", "-o"]).arg(&made).arg(&tree);
    let done = command.output().context("`xorriso` is needed (package xorriso)")?;
    if !done.status.success() {
        bail!("xorriso: {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    let bytes = fs::metadata(&made)?.len();
    fs::create_dir_all(repository.join("iso"))?;
    fs::rename(&made, repository.join("iso/installer.iso"))?;
    Ok(Made { changed_bytes: bytes, beside_bytes: bytes })
}

fn shown(links: &Links, costs: &[Cost]) -> String {
    let columns = [
        "",
        "beside, kB",
        "a mirror received, kB",
        "of it",
        "expected at most",
        "idle in that time, kB",
        "origin sent, kB",
        "payload, kB",
        "s",
    ];
    let mut rows = table(&columns, 1);
    let kilo = |bytes: f64| format!("{:.1}", bytes / 1e3);
    for cost in costs {
        let part = cost.mirror_received / cost.beside_bytes.max(1) as f64;
        rows.add_row([
            cost.change.to_owned(),
            kilo(cost.beside_bytes as f64),
            kilo(cost.mirror_received),
            format!("{:.2} %", part * 100.0),
            format!("{:.1} %{}", cost.most * 100.0, if part > cost.most { " (missed)" } else { "" }),
            kilo(cost.idle_received),
            kilo(cost.origin_sent as f64),
            kilo(cost.payload as f64),
            format!("{:.1}", cost.secs),
        ]);
    }
    format!(
        "{} mirrors; bytes by the kernel's counters, headers and heartbeats among them\n\n{}\n\n",
        links.mirrors.len(),
        rows.trim_fmt()
    )
}

/// For one change to be on all mirrors, where nobody says otherwise.
const CHANGE_MAX: Duration = Duration::from_secs(180);
/// How long nothing is changed, to see what passes then.
const IDLE: Duration = Duration::from_secs(10);
/// Of the distribution's index so much is taken.
const INDEX_BYTES_MAX: usize = 16_000_000;
