//! What an experiment is, read from a TOML file and checked once; nothing here is run.
//!
//! The words are Emulab's: hosts with links to one LAN, roles, and phases in the order in which they happen.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use freshet_api::glob::Glob;
use freshet_api::{Bytes, BytesPerSec};
use freshet_testbed::HOSTS_MAX;
use freshet_testbed::repository::Selection;
use serde::{Deserialize, Serialize};

use super::quantity::{Percent, Queue, Span};

/// An experiment.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Experiment {
    /// How it is called: 1 to 40 of a-z, 0-9 and `-`.
    pub(crate) name: String,
    /// One line for the report.
    pub(crate) title: String,
    /// What generated contents and requests are drawn from.
    pub(crate) seed: u64,
    /// Whether links carry single packets, as a wire does, so that the kernel's counters are a wire's; else the kernel
    /// passes up to 64 KiB in one piece, which costs less processor time and hides headers from its counters.
    #[serde(default = "yes")]
    pub(crate) single_packets: bool,
    /// What is served.
    pub(crate) repository: Source,
    /// Who takes part.
    pub(crate) hosts: Vec<HostGroup>,
    /// How control is set.
    #[serde(default)]
    pub(crate) control: Control,
    /// What happens, in this order.
    pub(crate) phases: Vec<Phase>,
    /// What is written down.
    #[serde(default)]
    pub(crate) record: Record,
}

/// What the repository consists of: one of the two.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Source {
    /// Real packages of the distribution, with their indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) packages: Option<Packages>,
    /// Files made from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) generated: Option<Generated>,
}

/// A choice of real packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Packages {
    /// A dozen, some MB.
    Small,
    /// Three hundred small ones.
    Many,
    /// About a hundred MB.
    Full,
}

impl Packages {
    pub(crate) fn selection(self) -> Selection {
        match self {
            Packages::Small => Selection::Small,
            Packages::Many => Selection::Many,
            Packages::Full => Selection::Full,
        }
    }
}

/// Generated files, of sizes spread by ratio around the mean.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Generated {
    /// How many.
    pub(crate) files: u32,
    /// How large together.
    pub(crate) bytes: Bytes,
}

/// Hosts that are alike.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostGroup {
    /// The host's name; of several the name, `-` and a number from 1.
    pub(crate) name: String,
    /// How many.
    #[serde(default = "one")]
    pub(crate) count: u32,
    /// What they do.
    pub(crate) role: Role,
    /// What they can send at most; without it there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) up: Option<BytesPerSec>,
    /// What they can receive at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) down: Option<BytesPerSec>,
    /// What may wait before either direction of the link.
    #[serde(default = "queue")]
    pub(crate) queue: Queue,
    /// How long each direction takes beside that.
    #[serde(default)]
    pub(crate) delay: Span,
    /// Packets that each direction loses.
    #[serde(default)]
    pub(crate) loss: Percent,
    /// Most that a volunteer's owner lets it send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) donated: Option<BytesPerSec>,
}

/// What a host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// Runs control beside the repository.
    Origin,
    /// Runs a dataplane.
    Volunteer,
    /// Downloads.
    Customer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Origin => "origin",
            Role::Volunteer => "volunteer",
            Role::Customer => "customer",
        })
    }
}

/// How control is set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Control {
    /// Between two heartbeats.
    pub(crate) heartbeat: Span,
    /// What the origin's uplink gives to sync; without it, what it is seen to carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sync_rate: Option<BytesPerSec>,
    /// Knobs as `ctl balance set` takes them.
    pub(crate) balance: std::collections::BTreeMap<String, String>,
}

impl Default for Control {
    fn default() -> Control {
        Control { heartbeat: HEARTBEAT, sync_rate: None, balance: Default::default() }
    }
}

/// A part of the experiment. It begins with what is lost, brought back and published (the first with the filling of the
/// repository), and ends when its time has passed and what it waits for has come; customers then get what they have
/// asked for before the next begins.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phase {
    /// For the report.
    pub(crate) name: String,
    /// How long it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lasts: Option<Span>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<Until>,
    /// When it is given up.
    #[serde(default = "patience")]
    pub(crate) at_most: Span,
    /// Volunteers that are killed (SIGKILL) at its beginning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lose: Vec<String>,
    /// Volunteers that were killed and are started again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) bring_back: Vec<String>,
    /// What the origin releases at its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) publish: Option<Release>,
    /// What customers ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<Requests>,
}

/// What a phase waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Until {
    /// Every volunteer that runs has the whole repository, and customers can be sent to it.
    Synced,
}

/// New files.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    /// The directory that they appear in.
    pub(crate) directory: String,
    /// How many.
    pub(crate) files: u32,
    /// How large together.
    pub(crate) bytes: Bytes,
}

/// What customers ask for in a phase: by one of `per_second` and `at_once`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Requests {
    /// Requests of all customers together, at random moments (a Poisson process).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) per_second: Option<f64>,
    /// So many on each customer's host at any time: who has a file asks for the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) at_once: Option<u32>,
    /// How long one of these waits between two files, on average.
    #[serde(default)]
    pub(crate) think: Span,
    /// How much more some files are asked for than others (the exponent of a Zipf distribution); 0: all alike.
    #[serde(default)]
    pub(crate) popularity: f64,
    /// Which files, as `pool/**`.
    #[serde(default = "everything")]
    pub(crate) paths: String,
}

/// How the requests of a phase come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arrivals {
    /// At random moments, so many a second.
    PerSecond(f64),
    /// When one of so many is done.
    AtOnce(u32),
}

impl Requests {
    /// How they come; the file was refused unless there is one answer.
    pub(crate) fn arrivals(&self) -> Arrivals {
        match (self.per_second, self.at_once) {
            (Some(rate), _) => Arrivals::PerSecond(rate),
            (None, count) => Arrivals::AtOnce(count.unwrap_or(1)),
        }
    }
}

/// What is written down while the experiment runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Record {
    /// Between two samples.
    pub(crate) every: Span,
    /// The kernel's counters of each interface.
    pub(crate) interfaces: bool,
    /// Our counters by interface and class, as control has them.
    pub(crate) counters: bool,
    /// Every request.
    pub(crate) requests: bool,
}

impl Default for Record {
    fn default() -> Record {
        Record { every: Span::secs(1), interfaces: true, counters: true, requests: true }
    }
}

/// One host of an experiment.
#[derive(Clone, Debug)]
pub(crate) struct Member<'a> {
    /// Its name.
    pub(crate) name: String,
    /// What it is like.
    pub(crate) group: &'a HostGroup,
}

impl Experiment {
    /// Reads a file, or one of those that come with the program by its name.
    ///
    /// # Errors
    /// When there is none, or it says something that makes no experiment; the error names the key.
    pub(crate) fn open(file_or_name: &Path) -> Result<Self> {
        let supplied = file_or_name.to_str().and_then(|name| SUPPLIED.iter().find(|one| one.0 == name));
        let text = match supplied {
            Some((_, text)) => (*text).to_owned(),
            None => std::fs::read_to_string(file_or_name).with_context(|| {
                format!(
                    "cannot read {}; expected a file, or one of {}",
                    file_or_name.display(),
                    SUPPLIED.map(|(name, _)| name).join(", ")
                )
            })?,
        };
        Self::parse(&text).with_context(|| format!("{} is no experiment", file_or_name.display()))
    }

    /// Whether this is the name of one that comes with the program, and no file.
    pub(crate) fn is_supplied(file_or_name: &Path) -> bool {
        SUPPLIED.iter().any(|(name, _)| Some(*name) == file_or_name.to_str())
    }

    /// Reads and checks an experiment's text.
    ///
    /// # Errors
    /// As [`Experiment::open`].
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let experiment: Self = toml::from_str(text)?;
        experiment.check()?;
        Ok(experiment)
    }

    /// Those that come with the program.
    pub(crate) fn supplied() -> Result<Vec<Self>> {
        SUPPLIED.iter().map(|(_, text)| Self::parse(text)).collect()
    }

    /// All hosts of a role, in the file's order.
    pub(crate) fn members(&self, role: Role) -> Vec<Member<'_>> {
        self.all_members().into_iter().filter(|member| member.group.role == role).collect()
    }

    /// All hosts, in the file's order.
    pub(crate) fn all_members(&self) -> Vec<Member<'_>> {
        let of_group = |group: &'_ HostGroup| -> Vec<String> {
            match group.count {
                1 => vec![group.name.clone()],
                count => (1..=count).map(|number| format!("{}-{number}", group.name)).collect(),
            }
        };
        let groups = self.hosts.iter();
        groups.flat_map(|group| of_group(group).into_iter().map(move |name| Member { name, group })).collect()
    }

    /// As TOML again, for the report.
    pub(crate) fn text(&self) -> Result<String> {
        toml::to_string_pretty(self).context("cannot write the experiment")
    }

    fn check(&self) -> Result<()> {
        check_name("name", &self.name, 40)?;
        match (&self.repository.packages, &self.repository.generated) {
            (Some(_), None) => {}
            (None, Some(generated)) => {
                check_files("repository.generated", generated.files, generated.bytes)?;
            }
            _ => bail!(
                "repository: expected one of `packages = \"small\"` (or \"many\", \"full\") and \
                 `generated = {{ files = 100, bytes = \"50 MB\" }}`"
            ),
        }
        self.check_hosts()?;
        ensure!(
            Span::secs(0) < self.control.heartbeat && self.control.heartbeat <= Span::secs(60),
            "control.heartbeat: expected more than 0 s and at most 60 s, found {}",
            self.control.heartbeat
        );
        ensure!(
            SAMPLE_MIN <= self.record.every,
            "record.every: expected at least {SAMPLE_MIN}, found {}",
            self.record.every
        );
        ensure!(!self.phases.is_empty(), "phases: expected at least one; begin with `[[phases]]`");
        let volunteers: BTreeSet<String> =
            self.members(Role::Volunteer).into_iter().map(|member| member.name).collect();
        let mut lost = BTreeSet::new();
        for (index, phase) in self.phases.iter().enumerate() {
            let key = format!("phases[{index}] ({})", phase.name);
            phase.check(&key)?;
            for name in &phase.lose {
                ensure!(
                    volunteers.contains(name),
                    "{key}.lose: expected names of volunteers, found `{name}`"
                );
                ensure!(lost.insert(name), "{key}.lose: {name} is lost already; bring it back first");
            }
            for name in &phase.bring_back {
                ensure!(lost.remove(name), "{key}.bring_back: expected one that was lost, found `{name}`");
            }
            let customers = self.hosts.iter().any(|group| group.role == Role::Customer);
            ensure!(
                phase.requests.is_none() || customers,
                "{key}.requests: there is nobody to ask; add hosts with `role = \"customer\"`"
            );
        }
        Ok(())
    }

    fn check_hosts(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for (index, group) in self.hosts.iter().enumerate() {
            let key = format!("hosts[{index}] ({})", group.name);
            ensure!(group.count > 0, "{key}.count: expected at least 1, found 0");
            ensure!(
                group.donated.is_none() || group.role == Role::Volunteer,
                "{key}.donated: only volunteers donate; remove it, or give the host `role = \"volunteer\"`"
            );
            for rate in [group.up, group.down, group.donated].into_iter().flatten() {
                ensure!(
                    rate >= RATE_MIN,
                    "{key}: expected rates (up, down, donated) of at least {RATE_MIN}, found {rate}"
                );
            }
            ensure!(
                group.delay <= DELAY_MAX,
                "{key}.delay: expected at most {DELAY_MAX}, found {}",
                group.delay
            );
        }
        let count: u64 = self.hosts.iter().map(|group| u64::from(group.count)).sum();
        ensure!(count < HOSTS_MAX as u64, "hosts: expected fewer than {HOSTS_MAX} in all, found {count}");
        let members = self.all_members();
        for member in &members {
            check_name("hosts.name", &member.name, HOST_NAME_MAX)?;
            ensure!(
                names.insert(member.name.as_str()) && member.name != "hub",
                "hosts.name: expected each once and none `hub`, found `{}` again or there",
                member.name
            );
        }
        let origins = members.iter().filter(|member| member.group.role == Role::Origin).collect::<Vec<_>>();
        match origins[..] {
            [origin] if origin.name == ORIGIN => Ok(()),
            [origin] => bail!("hosts: expected the origin to be called `{ORIGIN}`, found `{}`", origin.name),
            _ => bail!(
                "hosts: expected exactly one with `role = \"origin\"`, found {}; there is one repository",
                origins.len()
            ),
        }
    }
}

impl Phase {
    fn check(&self, key: &str) -> Result<()> {
        ensure!(
            self.lasts.is_some() || self.until.is_some(),
            "{key}: expected `lasts = \"30 s\"`, `until = \"synced\"` or both; without them it has no end"
        );
        ensure!(
            self.at_most <= PHASE_MAX && self.lasts.is_none_or(|lasts| lasts <= self.at_most),
            "{key}: expected `lasts` to be within `at_most` ({}), and that within {PHASE_MAX}",
            self.at_most
        );
        if let Some(release) = &self.publish {
            check_name(&format!("{key}.publish.directory"), &release.directory, 40)?;
            check_files(&format!("{key}.publish"), release.files, release.bytes)?;
        }
        let Some(requests) = &self.requests else { return Ok(()) };
        ensure!(
            self.lasts.is_some(),
            "{key}.requests: expected `lasts` beside it, so that there is an end to asking"
        );
        match (requests.per_second, requests.at_once) {
            (Some(rate), None) => ensure!(
                rate > 0.0 && rate <= PER_SECOND_MAX,
                "{key}.requests.per_second: expected more than 0 and at most {PER_SECOND_MAX}, found {rate}"
            ),
            (None, Some(count)) => ensure!(
                (1..=AT_ONCE_MAX).contains(&count),
                "{key}.requests.at_once: expected 1 to {AT_ONCE_MAX}, found {count}"
            ),
            _ => bail!("{key}.requests: expected one of `per_second = 4.0` and `at_once = 2`"),
        }
        ensure!(
            (0.0..=4.0).contains(&requests.popularity),
            "{key}.requests.popularity: expected 0 to 4, found {}",
            requests.popularity
        );
        let pattern = requests.paths.parse::<Glob>();
        pattern.map(drop).with_context(|| format!("{key}.requests.paths"))
    }
}

fn check_name(key: &str, name: &str, max: usize) -> Result<()> {
    let fits = (1..=max).contains(&name.len())
        && !name.starts_with('-')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    ensure!(fits, "{key}: expected 1 to {max} of a-z, 0-9 and `-`, found `{name}`");
    Ok(())
}

fn check_files(key: &str, files: u32, bytes: Bytes) -> Result<()> {
    ensure!((1..=FILES_MAX).contains(&files), "{key}.files: expected 1 to {FILES_MAX}, found {files}");
    let least = u64::from(files) * FILE_BYTES_MIN;
    ensure!(
        (least..=BYTES_MAX.0).contains(&bytes.0),
        "{key}.bytes: expected {} (for {files} files) to {BYTES_MAX}, found {bytes}",
        Bytes(least)
    );
    Ok(())
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

fn queue() -> Queue {
    QUEUE
}

fn patience() -> Span {
    Span::secs(300)
}

fn everything() -> String {
    "**".to_owned()
}

/// What the origin's host is called everywhere.
pub(crate) const ORIGIN: &str = "origin";
/// The experiments that come with the program.
const SUPPLIED: [(&str, &str); 4] = [
    ("flash-crowd", include_str!("../../experiments/flash-crowd.toml")),
    ("lost-volunteer", include_str!("../../experiments/lost-volunteer.toml")),
    ("smallest", include_str!("../../experiments/smallest.toml")),
    ("ten-volunteers", include_str!("../../experiments/ten-volunteers.toml")),
];

const QUEUE: Queue = Queue::Time(Span::millis(50));
const HEARTBEAT: Span = Span::millis(500);
const SAMPLE_MIN: Span = Span::millis(200);
const DELAY_MAX: Span = Span::secs(10);
const PHASE_MAX: Span = Span::secs(24 * 3_600);
const PER_SECOND_MAX: f64 = 200.0;
const AT_ONCE_MAX: u32 = 64;
const RATE_MIN: BytesPerSec = BytesPerSec(12_500);
const HOST_NAME_MAX: usize = 20;
const FILES_MAX: u32 = 100_000;
/// So that each has a size of its own.
const FILE_BYTES_MIN: u64 = 64;
const BYTES_MAX: Bytes = Bytes(10 << 30);

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = include_str!("../../experiments/smallest.toml");

    /// What is wrong with the smallest experiment once `from` in it is `to`.
    fn refusal(from: &str, to: &str) -> String {
        assert!(SMALLEST.contains(from), "{from}");
        format!("{:#}", Experiment::parse(&SMALLEST.replacen(from, to, 1)).unwrap_err())
    }

    #[test]
    fn those_that_come_along_are_what_their_names_say() {
        for ((name, _), experiment) in SUPPLIED.iter().zip(Experiment::supplied().unwrap()) {
            assert_eq!(experiment.name, *name);
            // What is written into reports is the same experiment again.
            let again = Experiment::parse(&experiment.text().unwrap()).unwrap();
            assert_eq!(again.text().unwrap(), experiment.text().unwrap());
        }
        let ten = Experiment::open(Path::new("ten-volunteers")).unwrap();
        let names: Vec<String> = ten.members(Role::Volunteer).into_iter().map(|member| member.name).collect();
        assert_eq!((names.len(), names[0].as_str(), names[9].as_str()), (10, "volunteer-1", "volunteer-10"));
    }

    #[test]
    fn a_key_that_is_none_is_named_with_those_that_are() {
        let error = refusal("title =", "titel = \"x\"\ntitle =");
        assert!(error.contains("titel") && error.contains("`title`"), "{error}");
        let error = refusal("requests = { per_second = 3.0 }", "requests = { per_secnd = 3.0 }");
        assert!(error.contains("per_secnd") && error.contains("per_second"), "{error}");
        let error = refusal("role = \"origin\"", "role = \"server\"");
        assert!(error.contains("server") && error.contains("customer"), "{error}");
    }

    #[test]
    fn quantities_without_units_are_refused_with_an_example() {
        let error = refusal("up = \"40 Mbit/s\"", "up = \"40\"");
        assert!(error.contains("200 Mbit/s"), "{error}");
        let error = refusal("at_most = \"120 s\"", "at_most = \"120\"");
        assert!(error.contains("`30 s`") && error.contains("`120`"), "{error}");
        let error = refusal("up = \"40 Mbit/s\"", "loss = \"2\"\nup = \"40 Mbit/s\"");
        assert!(error.contains("0.5 %"), "{error}");
    }

    #[test]
    fn what_makes_no_experiment_is_refused_by_its_key() {
        for (from, to, named) in [
            ("name = \"smallest\"", "name = \"The Smallest\"", "name: expected 1 to 40"),
            ("generated = {", "packages = \"small\"\ngenerated = {", "repository: expected one of"),
            ("files = 12", "files = 0", "repository.generated.files"),
            ("bytes = \"6 MB\"", "bytes = \"700 B\"", "repository.generated.bytes"),
            ("count = 2", "count = 0", "hosts[1] (volunteer).count"),
            ("count = 2", "count = 4000000000", "fewer than 200 in all"),
            ("name = \"customer\"", "name = \"volunteer-2\"", "hosts.name: expected each once"),
            ("name = \"origin\"", "name = \"server\"", "expected the origin to be called `origin`"),
            ("role = \"origin\"", "role = \"customer\"", "exactly one with `role = \"origin\"`"),
            ("role = \"customer\"", "role = \"customer\"\ndonated = \"1 Mbit/s\"", "only volunteers donate"),
            ("up = \"40 Mbit/s\"", "up = \"1 kbit/s\"", "hosts[0] (origin): expected rates"),
            ("up = \"40 Mbit/s\"", "delay = \"1 min\"\nup = \"40 Mbit/s\"", "hosts[0] (origin).delay"),
            ("until = \"synced\"", "", "phases[0] (sync): expected `lasts"),
            ("lasts = \"4 s\"", "lasts = \"10 min\"", "phases[1] (steady): expected `lasts` to be within"),
            ("lasts = \"4 s\"", "until = \"synced\"", "phases[1] (steady).requests: expected `lasts`"),
            ("lasts = \"4 s\"", "lose = [\"customer\"]\nlasts = \"4 s\"", "names of volunteers"),
            ("lasts = \"4 s\"", "bring_back = [\"volunteer-1\"]\nlasts = \"4 s\"", "one that was lost"),
            ("per_second = 3.0", "per_second = 0.0", "requests.per_second"),
            ("per_second = 3.0", "at_once = 65", "requests.at_once"),
            ("per_second = 3.0", "per_second = 3.0, at_once = 2", "one of `per_second"),
            ("per_second = 3.0", "per_second = 3.0, popularity = 9.0", "requests.popularity"),
            ("per_second = 3.0", "per_second = 3.0, paths = \"[a]\"", "requests.paths"),
        ] {
            let error = refusal(from, to);
            assert!(error.contains(named), "{to}: {error}");
        }
        let nobody = SMALLEST.replacen("role = \"customer\"", "role = \"volunteer\"", 1);
        let error = Experiment::parse(&nobody).unwrap_err().to_string();
        assert!(error.contains("nobody to ask"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_there_is_told_with_what_is() {
        let error = Experiment::open(Path::new("no-such-thing")).unwrap_err().to_string();
        assert!(error.contains("no-such-thing") && error.contains("ten-volunteers"), "{error}");
    }
}
