//! Freshet: volunteers that are up and current get a release that is published then. Some of them may lie.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_api::{ContentHash, NodeId};
use freshet_testbed::cluster::{Cluster, Programs, TELLS_FIGURES, Volunteer};
use freshet_testbed::wait_until;

use super::liar::{self, Liar, Port};
use super::report::{Lied, Manifests, Outcome};
use super::{Course, Meter, outcome, usage};
use crate::tally::Tally;

/// Who misbehaves, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lies {
    /// How many send wrong pieces.
    pub(super) liars: usize,
    /// Whether they send control right ones.
    pub(super) sly: bool,
}

/// Publishes the release and waits until the last honest mirror has it.
pub(super) fn measure(course: &Course<'_>, lies: Option<Lies>) -> Result<Outcome> {
    let repository = course.directory.join("repository");
    let staging = course.directory.join("staging");
    fs::create_dir(&repository)?;
    fs::write(repository.join("README"), "this repository is about to get a release\n")?;
    course.content.link_to(&staging)?;
    let mut cluster = start(course, &repository)?;
    let cancel = course.testbed.cancel();
    // Spread over all, so that slow and fast links have their part.
    let (count, liars) = (course.links.mirrors.len(), lies.map_or(0, |lies| lies.liars));
    let lying: BTreeSet<usize> = (0..liars).map(|liar| liar * count / liars.max(1)).collect();
    let truth_to = lies.filter(|lies| lies.sly).map(|_| cluster.origin().addr()).transpose()?;
    let relays: Vec<Liar> = lying
        .iter()
        .map(|&index| Liar::make(&mut cluster, index, Port::Sync, truth_to))
        .collect::<Result<_>>()?;
    wait_until("the volunteers to be current", READY, &cancel, || {
        Ok(cluster.mirrors()?.iter().all(|mirror| mirror.current).then_some(()))
    })?;

    let processes =
        || cluster.control().into_iter().chain(cluster.volunteers().iter().filter_map(Volunteer::process));
    let mut hosts = vec![cluster.origin().clone()];
    hosts.extend(cluster.volunteers().iter().map(|volunteer| volunteer.host().clone()));
    let counted = Tally::begin(&cluster, &cancel)?;
    let meter = Meter::start(hosts)?;
    let cpu_before = usage::cpu_secs(processes())?;
    let published = Instant::now();
    for entry in fs::read_dir(&staging)? {
        let entry = entry?;
        fs::rename(entry.path(), repository.join(entry.file_name()))?;
    }
    cluster.ctl(&["publish"])?;
    let prepared = published.elapsed();
    let numbers: Vec<NodeId> = cluster
        .volunteers()
        .iter()
        .map(|volunteer| liar::number_of(volunteer.state()))
        .collect::<Result<_>>()?;
    let slanderer = lies.is_some().then(|| {
        let index = (0..count).rev().find(|index| !lying.contains(index));
        let index = index.context("nobody is honest")?;
        let others: Vec<NodeId> = numbers.iter().copied().filter(|&other| other != numbers[index]).collect();
        liar::slander(&cluster, index, &others)
    });
    let slanderer = slanderer.transpose()?;

    // Each mirror's time is that of the first answer of control which shows it complete.
    let mut finished: BTreeMap<String, f64> = BTreeMap::new();
    let honest: BTreeSet<&str> = cluster
        .volunteers()
        .iter()
        .enumerate()
        .filter(|(index, _)| !lying.contains(index))
        .map(|(_, volunteer)| volunteer.name())
        .collect();
    wait_until("every mirror to be complete", course.timeout, &cancel, || {
        for mirror in cluster.mirrors()?.iter().filter(|mirror| mirror.current) {
            if honest.contains(mirror.name.as_str()) {
                let seconds = published.elapsed().as_secs_f64();
                finished.entry(mirror.name.clone()).or_insert(seconds);
            }
        }
        Ok((finished.len() == honest.len()).then_some(()))
    })?;
    let passed = meter.read()?;
    let cpu = usage::cpu_secs(processes())? - cpu_before;
    drop(slanderer);
    for volunteer in cluster.volunteers().iter().filter(|volunteer| honest.contains(volunteer.name())) {
        let tree = volunteer.state().join("tree");
        course.content.check(&tree).with_context(|| format!("the mirror of {}", volunteer.name()))?;
    }
    let counted = counted.end(&cluster, &cancel)?;
    let lied = lies.map(|lies| judge(&cluster, lies, &lying, &numbers, &relays)).transpose()?;
    let manifests = handed_on(&cluster.ctl(&["swarm"])?);
    let since_release = |seconds: f64| seconds - prepared.as_secs_f64();
    let finished = finished.into_values().map(since_release).collect();
    Ok(Outcome {
        lied,
        counted: Some(counted),
        manifests: Some(manifests),
        ..outcome(finished, &passed, Some(cpu), prepared.as_secs_f64())
    })
}

/// Starts control for `repository`, and a volunteer for each mirror.
pub(super) fn start(course: &Course<'_>, repository: &Path) -> Result<Cluster> {
    let programs = Programs::in_directory(course.programs)?;
    let rate = format!("{} Mbit/s", course.links.origin);
    let mut arguments = vec!["--heartbeat-ms", "500", "--quiet-ms", "200", "--sync-rate", &rate];
    let copies = course.origin_copies.map(|copies| copies.to_string());
    arguments.extend(copies.iter().flat_map(|copies| ["--origin-copies", copies]));
    let states = course.directory.join("states");
    fs::create_dir(&states)?;
    let origin_link = course.links.origin_link();
    let mut cluster =
        Cluster::start(course.testbed, &programs, repository, &states, &origin_link, &arguments)?;
    for (number, link) in course.links.mirror_links().enumerate() {
        cluster.add_volunteer_with(course.testbed, &format!("v{number}"), &link, TELLS_FIGURES)?;
    }
    Ok(cluster)
}

/// How the manifests since the first state went to the mirrors.
fn handed_on(swarm: &serde_json::Value) -> Manifests {
    let shown = swarm["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut sum = Manifests::default();
    for manifest in shown {
        let figure = |name: &str| manifest[name].as_u64().unwrap_or(0);
        sum.bytes = sum.bytes.max(figure("bytes"));
        sum.from_origin += figure("from_origin");
        sum.from_peers += figure("from_peers");
        sum.failed += figure("failed");
    }
    sum
}

/// What became of the liars and of what they sent; fails when an honest mirror has, or gave, a wrong byte.
fn judge(
    cluster: &Cluster,
    lies: Lies,
    lying: &BTreeSet<usize>,
    numbers: &[NodeId],
    relays: &[Liar],
) -> Result<Lied> {
    let swarm = cluster.ctl(&["swarm"])?;
    let banned = swarm["banned"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |index: usize| cluster.volunteers()[index].name();
    let banned: BTreeMap<String, String> = banned
        .iter()
        .map(|one| {
            let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
            (text("name"), text("why"))
        })
        .collect();
    let liars: BTreeSet<&str> = lying.iter().map(|&index| name(index)).collect();
    if let Some((innocent, why)) = banned.iter().find(|(name, _)| !liars.contains(name.as_str())) {
        bail!("{innocent}, which did not lie, is banned: {why}");
    }
    let mut wrong_pieces = 0;
    for (index, volunteer) in
        cluster.volunteers().iter().enumerate().filter(|(index, _)| !lying.contains(index))
    {
        check_blobs(&volunteer.state().join("store/blobs"))?;
        let log = volunteer.process().context("it runs")?.log()?;
        // Whoever gets a wrong piece says from whom: it is never one of the honest.
        for line in log.lines().filter(|line| line.contains("wrong bytes came from a peer")) {
            let from = field(line, "node").and_then(|number| number.parse().ok()).map(NodeId);
            let liar = lying.iter().any(|&liar| Some(numbers[liar]) == from);
            if !liar {
                bail!("{} got a wrong piece from one who does not lie: {line}", name(index));
            }
            wrong_pieces += 1;
        }
    }
    Ok(Lied {
        liars: lying.len(),
        sly: lies.sly,
        spoiled_pieces: relays.iter().map(Liar::spoiled).sum(),
        wrong_pieces,
        banned,
    })
}

/// The value of `name=` in a log line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    rest.map(|value| value.trim_matches('"'))
}

/// Fails unless each blob is what its name says.
fn check_blobs(directory: &Path) -> Result<()> {
    for shard in fs::read_dir(directory).with_context(|| format!("no blobs in {}", directory.display()))? {
        let shard = shard?;
        for blob in fs::read_dir(shard.path())? {
            let blob = blob?;
            let found = ContentHash::of(&fs::read(blob.path())?);
            let name = [shard.file_name(), blob.file_name()].map(|part| part.to_string_lossy().into_owned());
            if name.concat() != found.to_hex() {
                bail!("{} holds {found}", blob.path().display());
            }
        }
    }
    Ok(())
}

/// For volunteers to be current before anything is measured.
pub(super) const READY: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_log_lines() {
        let line =
            "WARN swarm: wrong bytes came from a peer; it is not asked again bundle=ab node=7 piece=12";
        assert_eq!(field(line, "node"), Some("7"));
        assert_eq!(field(line, "peer"), None);
    }
}
