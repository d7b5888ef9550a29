//! An experiment's hosts and programs, set up and ready: what `run` measures and `up` leaves standing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use freshet_testbed::cluster::{Cluster, Programs, TELLS_FIGURES};
use freshet_testbed::{Backend, Delays, Host, Link, Program, Rate, Testbed};

use super::content::Content;
use super::experiment::{Experiment, HostGroup, Release, Role};
use super::quantity::Queue;

/// Everything that stands; dropping it ends and removes all of it.
pub(crate) struct Stand {
    pub(crate) cluster: Cluster,
    pub(crate) customers: Vec<Host>,
    pub(crate) content: Content,
    repository: PathBuf,
    /// Where releases are made before they appear.
    staging: PathBuf,
    /// What is not as the experiment asks for, in sentences.
    pub(crate) caveats: Vec<String>,
    // Last, so that nothing of it is used after it is gone.
    pub(crate) testbed: Testbed,
}

impl Stand {
    /// Sets it up; `programs` is the directory of control, ctl and dataplane, `interfaces` are those of real hosts, and
    /// `told` hears what is being done.
    pub(crate) fn set_up(
        testbed: Testbed,
        experiment: &Experiment,
        programs: &Path,
        interfaces: &BTreeMap<String, String>,
        told: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let scratch = testbed.scratch()?;
        let programs = Programs::in_directory(programs)?;
        told("the repository");
        let repository = scratch.join("repository");
        let content = Content::make(&experiment.repository, &scratch.join("content"), experiment.seed)?;
        fs::create_dir_all(&repository)?;
        fs::write(repository.join("README"), "This repository is about to be filled.\n")?;
        let (states, staging) = (scratch.join("states"), scratch.join("staging"));
        for directory in [&states, &staging] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let heartbeat = experiment.control.heartbeat.duration().as_millis().to_string();
        let mut arguments = vec!["--heartbeat-ms", &heartbeat, "--quiet-ms", "200"];
        let sync_rate = experiment.control.sync_rate.map(|rate| rate.to_string());
        arguments.extend(sync_rate.iter().flat_map(|rate| ["--sync-rate", rate]));
        told("control");
        let origin = experiment.members(Role::Origin);
        let origin = origin.first().context("an experiment has an origin")?;
        let link = link(origin.group, experiment);
        let mut cluster = Cluster::start(&testbed, &programs, &repository, &states, &link, &arguments)?;
        for (knob, value) in &experiment.control.balance {
            cluster.ctl(&["balance", "set", knob, value])?;
        }
        for member in experiment.members(Role::Volunteer) {
            told(&member.name);
            let interface = interfaces.get(&member.name).map_or(INTERFACE, String::as_str);
            let mut settings = format!("interfaces = \"{interface}\"\n{TELLS_FIGURES}");
            if let Some(rate) = member.group.donated {
                settings += &format!("donated_rate = \"{rate}\"\n");
            }
            let link = self::link(member.group, experiment);
            cluster.add_volunteer_with(&testbed, &member.name, &link, &settings)?;
        }
        let customers = experiment.members(Role::Customer);
        let customers = customers
            .iter()
            .map(|member| {
                let link = self::link(member.group, experiment);
                Ok(testbed.host(&member.name, &link)?)
            })
            .collect::<Result<Vec<Host>>>()?;
        let caveats = caveats(&testbed, experiment);
        for customer in &customers {
            check_tools(customer)?;
        }
        Ok(Self { cluster, customers, content, repository, staging, caveats, testbed })
    }

    /// Fills the repository, which is empty until then: mirrors begin to copy.
    pub(crate) fn open(&self) -> Result<()> {
        let root = self.content.root();
        let entries = fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?;
        let entries = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
        self.appear(&entries)
    }

    /// Releases new files.
    pub(crate) fn release(&mut self, release: &Release, seed: u64) -> Result<()> {
        let fresh = self.content.release(release, &self.staging, seed)?;
        self.appear(&[fresh])
    }

    /// Moves files and directories into the repository; returns when customers see them.
    fn appear(&self, entries: &[PathBuf]) -> Result<()> {
        for entry in entries {
            let name = entry.file_name().context("what is released has a name")?;
            let to = self.repository.join(name);
            let origin = self.cluster.origin();
            origin.move_into(entry, &to).with_context(|| format!("cannot release {}", to.display()))?;
        }
        self.cluster.ctl(&["publish"]).map(drop).context("control does not publish")
    }

    /// Every host with its name, the origin first.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        let volunteers = self.cluster.volunteers().iter().map(|volunteer| volunteer.host().clone());
        let mut hosts = vec![self.cluster.origin().clone()];
        hosts.extend(volunteers.chain(self.customers.iter().cloned()));
        hosts
    }

    /// Which of the volunteers has this name.
    pub(crate) fn volunteer(&self, name: &str) -> Result<usize> {
        let place = self.cluster.volunteers().iter().position(|volunteer| volunteer.name() == name);
        place.with_context(|| format!("there is no volunteer {name}"))
    }

    /// Kills a volunteer as a crash would.
    pub(crate) fn lose(&mut self, name: &str) -> Result<()> {
        let index = self.volunteer(name)?;
        let volunteer = self.cluster.volunteer_mut(index).context("it was found a moment ago")?;
        Ok(volunteer.kill()?)
    }

    /// Starts it again.
    pub(crate) fn bring_back(&mut self, name: &str) -> Result<()> {
        let index = self.volunteer(name)?;
        Ok(self.cluster.start_volunteer(index)?)
    }

    /// Whether every volunteer that runs is complete and takes customers.
    pub(crate) fn is_synced(&self) -> Result<bool> {
        let mirrors = self.cluster.mirrors()?;
        let mut running = self.cluster.volunteers().iter().filter(|one| one.process().is_some());
        Ok(running.all(|one| mirrors.iter().any(|mirror| mirror.name == one.name() && mirror.is_ready())))
    }
}

fn link(group: &HostGroup, experiment: &Experiment) -> Link {
    let rate = |rate: freshet_api::BytesPerSec| Rate::bytes_per_sec(rate.0);
    let mut link = Link::new().interface(INTERFACE).delay(group.delay.duration()).loss(group.loss.percent());
    link = link.seed(experiment.seed);
    link = match group.queue {
        Queue::Time(time) => link.queue(time.duration()),
        Queue::Bytes(bytes) => link.queue_bytes(bytes.0),
    };
    if let Some(up) = group.up {
        link = link.up(rate(up));
    }
    if let Some(down) = group.down {
        link = link.down(rate(down));
    }
    if experiment.single_packets { link.single_packets() } else { link }
}

/// Fails unless a customer's host has what customers use.
fn check_tools(customer: &Host) -> Result<()> {
    let curl = customer.run(&Program::new("curl").arg("--version"), READY);
    let found = curl.as_ref().is_ok_and(|curl| curl.status.success());
    ensure!(found, "{} has no curl, which customers download with; install it there", customer.name());
    Ok(())
}

/// What these links do not have although it was asked for.
fn caveats(testbed: &Testbed, experiment: &Experiment) -> Vec<String> {
    let mut caveats = Vec::new();
    let wanted: Vec<&str> = experiment
        .hosts
        .iter()
        .filter(|group| !group.delay.duration().is_zero() || !group.loss.is_zero())
        .map(|group| group.name.as_str())
        .collect();
    match (testbed.backend(), testbed.delays()) {
        (Backend::Remote, _) => caveats.push(
            "The hosts are real ones, reached by ssh: rates, queues, delays and losses of their links are what they \
             are, not what the experiment says. Where a host has no other interface, the harness's own sessions pass the \
             one that is counted."
                .to_owned(),
        ),
        (_, Delays::Harness { why }) if !wanted.is_empty() => caveats.push(format!(
            "Delay and loss of the links of {} are made by the harness, which passes each frame on when its time has come, \
             because the kernel makes none ({why}). That costs processor time, which the report tells, and such links carry \
             single packets.",
            wanted.join(", ")
        )),
        (_, Delays::None { why }) if !wanted.is_empty() => caveats.push(format!(
            "The links of {} have no delay and no loss, although the experiment asks for them: this kernel cannot make \
             any ({why}).",
            wanted.join(", ")
        )),
        _ => {}
    }
    if testbed.backend() == &Backend::Namespaces && !experiment.single_packets {
        caveats.push(
            "Links carry packets of up to 64 KiB in one piece, which the kernel counts with one header: its counters \
             show less than a wire would have, and less than ours."
                .to_owned(),
        );
    }
    caveats
}

/// What a host's link is called.
pub(crate) const INTERFACE: &str = "eth0";
const READY: Duration = Duration::from_secs(30);
