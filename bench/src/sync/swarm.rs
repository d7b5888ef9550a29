//! Freshet: volunteers that are up and current get a release that is published then.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_testbed::cluster::{Cluster, Programs};
use freshet_testbed::wait_until;

use super::report::Outcome;
use super::{Course, Meter, outcome, usage};

/// Publishes the release and waits until the last mirror has it.
pub(super) fn measure(course: &Course<'_>) -> Result<Outcome> {
    let repository = course.directory.join("repository");
    let staging = course.directory.join("staging");
    fs::create_dir(&repository)?;
    fs::write(repository.join("README"), "this repository is about to get a release\n")?;
    course.content.link_to(&staging)?;
    let programs = Programs::in_directory(course.programs)?;
    let rate = format!("{} Mbit/s", course.links.origin);
    let mut arguments = vec!["--heartbeat-ms", "500", "--quiet-ms", "200", "--sync-rate", &rate];
    let copies = course.origin_copies.map(|copies| copies.to_string());
    arguments.extend(copies.iter().flat_map(|copies| ["--origin-copies", copies]));
    let states = course.directory.join("states");
    fs::create_dir(&states)?;
    let origin_link = course.links.origin_link();
    let mut cluster =
        Cluster::start(course.testbed, &programs, &repository, &states, &origin_link, &arguments)?;
    for (number, link) in course.links.mirror_links().enumerate() {
        cluster.add_volunteer(course.testbed, &format!("v{number}"), &link)?;
    }
    let cancel = course.testbed.cancel();
    wait_until("the volunteers to be current", READY, &cancel, || {
        Ok(cluster.mirrors()?.iter().all(|mirror| mirror.current).then_some(()))
    })?;

    let processes =
        || cluster.control().into_iter().chain(cluster.volunteers().iter().filter_map(|v| v.process()));
    let mut hosts = vec![cluster.origin().clone()];
    hosts.extend(cluster.volunteers().iter().map(|volunteer| volunteer.host().clone()));
    let meter = Meter::start(hosts)?;
    let cpu_before = usage::cpu_secs(processes())?;
    let published = Instant::now();
    for entry in fs::read_dir(&staging)? {
        let entry = entry?;
        fs::rename(entry.path(), repository.join(entry.file_name()))?;
    }
    cluster.ctl(&["publish"])?;
    let prepared = published.elapsed();

    // Each mirror's time is that of the first answer of control which shows it complete.
    let mut finished: BTreeMap<String, f64> = BTreeMap::new();
    wait_until("every mirror to be complete", course.timeout, &cancel, || {
        for mirror in cluster.mirrors()?.iter().filter(|mirror| mirror.current) {
            let seconds = published.elapsed().as_secs_f64();
            finished.entry(mirror.name.clone()).or_insert(seconds);
        }
        Ok((finished.len() == course.links.mirrors.len()).then_some(()))
    })?;
    let passed = meter.read()?;
    let cpu = usage::cpu_secs(processes())? - cpu_before;
    for volunteer in cluster.volunteers() {
        let tree = volunteer.state().join("tree");
        course.content.check(&tree).with_context(|| format!("the mirror of {}", volunteer.name()))?;
    }
    if finished.len() < cluster.volunteers().len() {
        bail!("control lost sight of a volunteer");
    }
    let since_release = |seconds: f64| seconds - prepared.as_secs_f64();
    Ok(outcome(
        finished.into_values().map(since_release).collect(),
        &passed,
        Some(cpu),
        prepared.as_secs_f64(),
    ))
}

const READY: Duration = Duration::from_secs(120);
