//! The course of an experiment: its phases one after the other, and what is seen on the way.
//!
//! A phase ends when customers have what they asked for and the links are silent, so that the counters of both sides
//! are read at a moment at which nothing passes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freshet_policy::draw::mix;
use freshet_testbed::{Cancel, Process, Program};
use serde::Serialize;
use serde_json::{Value, json};

use super::content::Known;
use super::customer::Outcome;
use super::experiment::{Experiment, Phase, Until};
use super::progress::Progress;
use super::schedule::{self, Plan};
use super::stand::Stand;
use crate::meter::{self, Compared, Passed, Reading};

/// What was seen of an experiment.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// In order.
    pub(crate) phases: Vec<PhaseSeen>,
    /// Every so often: the kernel's counters of each host's link, received and sent.
    pub(crate) samples: Vec<Sample>,
    /// Our counters as control had them at such moments: what `ctl --json node list` says of interfaces.
    pub(crate) heartbeats: Vec<Heartbeats>,
}

/// A phase as it went.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PhaseSeen {
    pub(crate) name: String,
    /// Seconds after the first phase's beginning.
    pub(crate) began: f64,
    /// Without the time in which links fell silent.
    pub(crate) secs: f64,
    /// When what it waited for had come, seconds after its beginning.
    pub(crate) synced: Option<f64>,
    /// What the kernel counted on each host's link, the origin first.
    pub(crate) passed: Vec<(String, Passed)>,
    /// What both counted on each volunteer's link, as long as its daemon ran.
    pub(crate) compared: Vec<(String, Compared)>,
    /// Whether the links had fallen silent when counters were read at its end.
    pub(crate) silent: bool,
    /// Every request.
    #[serde(skip)]
    pub(crate) requests: Vec<Request>,
    /// Requests that had no end when the phase was given up.
    pub(crate) unfinished: usize,
    /// What the origin's front door did: redirects, answers of its own, and so on.
    pub(crate) front_door: Value,
}

/// What came of a request, judged.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Request {
    pub(crate) phase: String,
    pub(crate) customer: String,
    /// Who sent the file, by the address that curl talked to last.
    pub(crate) from: String,
    /// Whether it has the content that was published.
    pub(crate) verdict: Verdict,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// What a download was worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Every byte as published.
    Right,
    /// Something else.
    Wrong,
    /// Nothing, or not all.
    Failed,
}

/// The kernel's counters at one moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// Seconds after the first phase's beginning.
    pub(crate) at: f64,
    pub(crate) phase: usize,
    /// Bytes received and sent since the host exists, by host in the order of [`Stand::hosts`].
    pub(crate) bytes: Vec<Passed>,
    pub(crate) packets: Vec<Passed>,
}

/// Our counters at one moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Heartbeats {
    pub(crate) at: f64,
    pub(crate) phase: usize,
    /// By volunteer: how old the heartbeat is, and its interfaces with bytes by class.
    pub(crate) volunteers: Vec<Value>,
}

/// Runs all phases.
///
/// # Errors
/// When a program fails, or a phase does not come to its end in time.
pub(crate) fn run(
    stand: &mut Stand,
    experiment: &Experiment,
    seed: u64,
    bench: &std::path::Path,
    progress: &mut Progress,
) -> Result<Seen> {
    let mut course = Course {
        cancel: stand.testbed.cancel(),
        stand,
        experiment,
        seed,
        bench,
        began: Instant::now(),
        next_sample: Instant::now(),
        first: BTreeMap::new(),
        seen: Seen::default(),
    };
    for customer in &course.stand.customers {
        customer.put(bench)?;
    }
    for index in 0..course.stand.cluster.volunteers().len() {
        course.begin_comparing(index)?;
    }
    for (index, phase) in experiment.phases.iter().enumerate() {
        progress.phase(index + 1, experiment.phases.len(), &phase.name);
        course.phase(index, phase, progress).with_context(|| format!("phases[{index}] ({})", phase.name))?;
    }
    Ok(course.seen)
}

struct Course<'a> {
    stand: &'a mut Stand,
    experiment: &'a Experiment,
    seed: u64,
    bench: &'a std::path::Path,
    cancel: Cancel,
    began: Instant,
    next_sample: Instant,
    /// The last reading of each volunteer whose daemon runs.
    first: BTreeMap<usize, Reading>,
    seen: Seen,
}

/// A customer's host that follows its plan.
struct Following {
    customer: String,
    process: Process,
    planned: Option<usize>,
}

impl Course<'_> {
    fn phase(&mut self, index: usize, phase: &Phase, progress: &mut Progress) -> Result<()> {
        let hosts = self.stand.hosts();
        let kernel_before = hosts.iter().map(meter::interface).collect::<Result<Vec<_>>>()?;
        let front_door_before = self.stand.cluster.ctl(&["status"])?["front_door"].clone();
        let mut compared: BTreeMap<usize, Compared> = BTreeMap::new();
        let began = Instant::now();
        for name in &phase.lose {
            let lost = self.stand.volunteer(name)?;
            self.end_comparing(lost, &mut compared)?;
            self.stand.lose(name)?;
        }
        for name in &phase.bring_back {
            self.stand.bring_back(name)?;
            self.begin_comparing(self.stand.volunteer(name)?)?;
        }
        if index == 0 {
            self.stand.open()?;
        }
        if let Some(release) = &phase.publish {
            self.stand.release(release, self.drawn_from(index, "release"))?;
        }
        let following = self.send_customers(index, phase)?;

        let mut synced = None;
        let lasts = phase.lasts.map_or(Duration::ZERO, |lasts| lasts.duration());
        let end = loop {
            if self.cancel.is_cancelled() {
                bail!("cancelled");
            }
            if phase.until == Some(Until::Synced) && synced.is_none() && self.stand.is_synced()? {
                synced = Some(began.elapsed().as_secs_f64());
            }
            let asking =
                following.iter().map(|one| one.process.is_running()).collect::<Result<Vec<bool>, _>>()?;
            let asking = asking.into_iter().filter(|&asking| asking).count();
            self.sample(index, progress, began, asking)?;
            let waits = began.elapsed() < lasts || (phase.until.is_some() && synced.is_none());
            if !waits && asking == 0 {
                break began.elapsed();
            }
            if began.elapsed() > phase.at_most.duration() {
                if phase.until.is_some() && synced.is_none() {
                    bail!("not synced after {}: {}", phase.at_most, self.state()?);
                }
                break began.elapsed();
            }
            std::thread::sleep(TICK);
        };
        let (requests, unfinished) = self.judge(phase, following)?;
        let volunteers: Vec<_> =
            self.stand.cluster.volunteers().iter().map(|volunteer| volunteer.host().clone()).collect();
        let silent = meter::settle(&volunteers, SILENCE, &self.cancel)?;
        for volunteer in 0..self.stand.cluster.volunteers().len() {
            self.end_comparing(volunteer, &mut compared)?;
            self.begin_comparing(volunteer)?;
        }
        let passed = hosts.iter().zip(&kernel_before).map(|(host, before)| {
            let now = meter::interface(host)?;
            let passed = [now.rx_bytes - before.rx_bytes, now.tx_bytes - before.tx_bytes];
            Ok((host.name().to_owned(), passed))
        });
        let passed = passed.collect::<Result<Vec<_>>>()?;
        let front_door = difference(&self.stand.cluster.ctl(&["status"])?["front_door"], &front_door_before);
        let name_of = |index: usize| self.stand.cluster.volunteers()[index].name().to_owned();
        self.seen.phases.push(PhaseSeen {
            name: phase.name.clone(),
            began: (began - self.began).as_secs_f64(),
            secs: end.as_secs_f64(),
            synced,
            passed,
            compared: compared.into_iter().map(|(index, compared)| (name_of(index), compared)).collect(),
            silent,
            requests,
            unfinished,
            front_door,
        });
        Ok(())
    }

    /// Reads a volunteer's counters, from which on both sides are compared.
    fn begin_comparing(&mut self, index: usize) -> Result<()> {
        let volunteer = &self.stand.cluster.volunteers()[index];
        if volunteer.process().is_some() && !self.first.contains_key(&index) {
            let reading = meter::read(volunteer.host(), &volunteer.metrics()?)?;
            self.first.insert(index, reading);
        }
        Ok(())
    }

    fn end_comparing(&mut self, index: usize, compared: &mut BTreeMap<usize, Compared>) -> Result<()> {
        let Some(first) = self.first.remove(&index) else { return Ok(()) };
        let volunteer = &self.stand.cluster.volunteers()[index];
        let last = meter::read(volunteer.host(), &volunteer.metrics()?)?;
        compared.entry(index).or_default().add(&first, &last);
        Ok(())
    }

    /// Starts each customer on its plan.
    fn send_customers(&self, index: usize, phase: &Phase) -> Result<Vec<Following>> {
        let (Some(requests), Some(lasts)) = (&phase.requests, phase.lasts) else { return Ok(Vec::new()) };
        let paths = self.stand.content.matching(&requests.paths)?;
        if paths.is_empty() {
            bail!("requests.paths: no file matches `{}`", requests.paths);
        }
        let front_door = self.stand.cluster.url("");
        let encoded: Vec<String> = paths.iter().map(|path| self.encoded(path)).collect();
        let customers = &self.stand.customers;
        let seed = self.drawn_from(index, "requests");
        let plans = schedule::plans(requests, lasts, &encoded, customers.len(), seed);
        let scratch = self.stand.testbed.scratch()?;
        let start = |(customer, asks): (&freshet_testbed::Host, schedule::Asks)| {
            let planned = match &asks {
                schedule::Asks::Each(each) => Some(each.len()),
                schedule::Asks::Rows(_) => None,
            };
            let ends_ms = lasts.duration().as_millis() as u64;
            let plan = Plan { front_door: front_door.clone(), ends_ms, asks };
            let path = scratch.join(format!("plan-{index}-{}.json", customer.name()));
            customer.make_directory(&scratch)?;
            customer.write_text(&path, &serde_json::to_string(&plan)?)?;
            let downloads = scratch.join(format!("downloads-{}", customer.name()));
            let program = Program::new(customer.place(self.bench))
                .args(["testbed", "customer", "--plan"])
                .arg(customer.place(&path))
                .arg("--scratch")
                .arg(customer.place(&downloads));
            let process = customer.start(&format!("customer-{index}"), &program)?;
            Ok(Following { customer: customer.name().to_owned(), process, planned })
        };
        customers.iter().zip(plans).map(start).collect()
    }

    /// What the customers say, compared with what was published.
    fn judge(&self, phase: &Phase, following: Vec<Following>) -> Result<(Vec<Request>, usize)> {
        let known: BTreeMap<String, &Known> =
            self.stand.content.files.iter().map(|(path, known)| (self.encoded(path), known)).collect();
        let (mut requests, mut unfinished) = (Vec::new(), 0);
        for Following { customer, process, planned } in following {
            // Whoever still waits is not waited for any longer.
            let was_running = process.is_running()?;
            process.kill();
            let log = process.log()?;
            let outcomes: Vec<Outcome> = log
                .lines()
                .filter(|line| line.starts_with('{'))
                .map(|line| serde_json::from_str(line).with_context(|| format!("{customer} says: {line}")))
                .collect::<Result<_>>()?;
            match planned {
                Some(planned) => unfinished += planned.saturating_sub(outcomes.len()),
                None => unfinished += usize::from(was_running),
            }
            if !was_running && outcomes.is_empty() && planned != Some(0) {
                bail!("{customer} asked for nothing; it said: {}", log.trim());
            }
            requests.extend(outcomes.into_iter().map(|outcome| {
                let right = known.get(&outcome.path);
                let verdict = match &outcome.sha256 {
                    Some(sha256) if right.is_some_and(|right| right.sha256 == *sha256) => Verdict::Right,
                    Some(_) => Verdict::Wrong,
                    None => Verdict::Failed,
                };
                let server = outcome.server.parse().ok();
                let from = server.and_then(|server| self.stand.cluster.name_at(server)).unwrap_or("nobody");
                Request {
                    phase: phase.name.clone(),
                    customer: customer.clone(),
                    from: from.to_owned(),
                    verdict,
                    outcome,
                }
            }));
        }
        Ok((requests, unfinished))
    }

    fn sample(&mut self, phase: usize, progress: &mut Progress, began: Instant, asking: usize) -> Result<()> {
        if Instant::now() < self.next_sample {
            return Ok(());
        }
        self.next_sample = Instant::now() + self.experiment.record.every.duration();
        let at = self.began.elapsed().as_secs_f64();
        let counters = self.stand.hosts().iter().map(meter::interface).collect::<Result<Vec<_>>>()?;
        let bytes: Vec<Passed> = counters.iter().map(|one| [one.rx_bytes, one.tx_bytes]).collect();
        let packets = counters.iter().map(|one| [one.rx_packets, one.tx_packets]).collect();
        let sent = |bytes: &[Passed]| -> u64 { bytes.iter().skip(1).map(|one| one[1]).sum() };
        let rate = self
            .seen
            .samples
            .last()
            .map_or(0.0, |last| (sent(&bytes) - sent(&last.bytes)) as f64 / (at - last.at).max(1e-3));
        progress.moment(began.elapsed(), asking, rate);
        self.seen.samples.push(Sample { at, phase, bytes, packets });
        if self.experiment.record.counters {
            let nodes = self.stand.cluster.ctl(&["node", "list"])?;
            let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
            let picked = |node: &Value| {
                json!({
                    "name": node["name"],
                    "heartbeat_age_ms": node["heartbeat_age_ms"],
                    "source": node["source"],
                    "interfaces": node["interfaces"],
                })
            };
            let volunteers = nodes.iter().map(picked).collect();
            self.seen.heartbeats.push(Heartbeats { at, phase, volunteers });
        }
        Ok(())
    }

    /// The path as it stands in a URL.
    fn encoded(&self, path: &str) -> String {
        let url = self.stand.cluster.url(path);
        let root = self.stand.cluster.url("");
        url.strip_prefix(&format!("{root}/")).unwrap_or(path).to_owned()
    }

    /// A seed of its own for each use in each phase.
    fn drawn_from(&self, phase: usize, what: &str) -> u64 {
        let salt = what.bytes().fold(phase as u64 + 1, |salt, byte| mix(salt ^ u64::from(byte)));
        mix(self.seed ^ salt)
    }

    fn state(&self) -> Result<String> {
        Ok(self.stand.cluster.ctl(&["node", "list"])?.to_string())
    }
}

/// Counts that are numbers in both, as far as they have grown.
fn difference(now: &Value, before: &Value) -> Value {
    let Some(now) = now.as_object() else { return Value::Null };
    let grown = now.iter().filter_map(|(name, value)| {
        let then = before[name].as_u64().unwrap_or_default();
        Some((name.clone(), json!(value.as_u64()?.saturating_sub(then))))
    });
    Value::Object(grown.collect())
}

const TICK: Duration = Duration::from_millis(100);
/// The longest that links are given to fall silent at a phase's end.
const SILENCE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counts_have_a_difference() {
        let (before, now) = (json!({"a": 3, "b": "x"}), json!({"a": 10, "b": "y", "c": 2}));
        assert_eq!(difference(&now, &before), json!({"a": 7, "c": 2}));
        assert_eq!(difference(&Value::Null, &before), Value::Null);
    }
}
