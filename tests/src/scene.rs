//! A scene: a testbed with Freshet on it, serving a copy of the small repository, and a customer's host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use freshet_testbed::cluster::{Cluster, Programs};
use freshet_testbed::repository::{Repository, RepositoryFile, Selection};
use freshet_testbed::{Backend, Cancel, Host, Link, Options, Rate, Testbed, wait_until};
use serde_json::Value;

use crate::{Answer, noise};

/// How long a test waits for anything: long enough for a debug build on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// What a test wants of its scene.
#[derive(Clone, Debug)]
pub struct SceneOptions {
    /// How many volunteers.
    pub volunteers: usize,
    /// The volunteers' links, where links have rates.
    pub volunteer_rate: Rate,
    /// Adds `large/generated.bin` of so many bytes to the repository: more than the sockets' buffers swallow.
    pub large_bytes: Option<usize>,
    /// For how long a ticket is good, in seconds.
    pub ticket_secs: u32,
}

impl Default for SceneOptions {
    fn default() -> SceneOptions {
        SceneOptions { volunteers: 2, volunteer_rate: Rate::mbit(400), large_bytes: None, ticket_secs: 900 }
    }
}

/// The scene; dropping it ends and removes everything.
#[derive(Debug)]
pub struct Scene {
    /// The origin and its volunteers. Before the testbed, so that it goes first.
    pub cluster: Cluster,
    /// The customer's host.
    pub customer: Host,
    /// The repository that is served; files in it are to be replaced by rename.
    pub repository: Repository,
    /// The hosts.
    pub testbed: Testbed,
    directory: PathBuf,
}

impl Scene {
    /// Starts everything and waits until the mirrors are complete.
    ///
    /// # Errors
    ///
    /// When something does not get ready in time.
    pub fn start(options: &SceneOptions) -> Result<Scene> {
        let mut scene = Scene::without_volunteers(options)?;
        for number in 1..=options.volunteers {
            let link = Link::new().rate(options.volunteer_rate);
            scene.cluster.add_volunteer(&scene.testbed, &format!("volunteer-{number}"), &link)?;
        }
        scene.wait_for_sync()?;
        Ok(scene)
    }

    /// Starts control and the customer's host only.
    ///
    /// # Errors
    ///
    /// When control does not get ready in time.
    pub fn without_volunteers(options: &SceneOptions) -> Result<Scene> {
        let programs = find_programs()?;
        let made =
            Repository::make(&find_repositories()?, Selection::Small, &mut |step| eprintln!("{step}"))?;
        let testbed = Testbed::start(Options::default())?;
        let directory = testbed.scratch()?;
        let repository = made.copy_to(&directory.join("repository"))?;
        if let Some(bytes) = options.large_bytes {
            write_large(&repository.root.join(LARGE), bytes)?;
        }
        // Beside the repository, so that a path that climbs out of it would find it.
        fs::write(directory.join("secret"), SECRET)?;
        let customer = testbed.host("customer", &Link::new())?;
        let states = directory.join(STATES);
        fs::create_dir(&states)?;
        let ticket_secs = options.ticket_secs.to_string();
        let arguments = [BRISK, &["--ticket-secs", &ticket_secs]].concat();
        let cluster =
            Cluster::start(&testbed, &programs, &repository.root, &states, &Link::new(), &arguments)?;
        Ok(Scene { cluster, customer, repository, testbed, directory })
    }

    /// Waits until every running volunteer has what control has and takes customers.
    ///
    /// # Errors
    ///
    /// When that does not come in time.
    pub fn wait_for_sync(&self) -> Result<()> {
        let files = self.large_files()?;
        let file = files.first().context("expected a large file in the repository")?;
        Ok(self.cluster.wait_for_sync(&self.testbed, &file.path, PATIENCE, &mut |_| {})?)
    }

    /// Waits for a condition, for as long as tests wait.
    ///
    /// # Errors
    ///
    /// When it does not come true in time, or cannot be asked.
    pub fn wait(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let mut trouble = None;
        let waited = wait_until(what, PATIENCE, &Cancel::default(), || match holds() {
            Ok(held) => Ok(held.then_some(Ok(()))),
            Err(error) => Ok(Some(Err(error))),
        });
        match waited {
            Ok(Ok(())) => {}
            Ok(Err(error)) => trouble = Some(error.context(format!("while waiting for {what}"))),
            Err(error) => trouble = Some(error.into()),
        }
        trouble.map_or(Ok(()), Err)
    }

    /// What `diff -r` says of a mirror's tree; nothing when it is the repository, byte for byte.
    ///
    /// # Errors
    ///
    /// When `diff` cannot be run.
    pub fn difference(&self, tree: &Path) -> Result<String> {
        let diff = Command::new("diff").arg("-rq").arg(&self.repository.root).arg(tree).output();
        let diff = diff.context("running diff")?;
        Ok(String::from_utf8_lossy(&[diff.stdout, diff.stderr].concat()).into_owned())
    }

    /// Waits until every volunteer's tree is the repository, for at most `patience`.
    ///
    /// # Errors
    ///
    /// When that does not come in time: with what differs, and the end of the volunteers' logs.
    pub fn wait_until_same(&self, patience: Duration) -> Result<()> {
        let trees = || self.cluster.volunteers().iter().map(|volunteer| volunteer.state().join("tree"));
        let mut left = String::new();
        let same = wait_until("every mirror to be the repository", patience, &Cancel::default(), || {
            let differences: Result<String> = trees().map(|tree| self.difference(&tree)).collect();
            left = differences.unwrap_or_else(|error| error.to_string());
            Ok(left.is_empty().then_some(()))
        });
        same.with_context(|| {
            let shown: String = left.chars().take(2_000).collect();
            format!("{shown}\n{}", self.volunteers_logs())
        })
    }

    /// The end of what each volunteer has written, for whom a test failed.
    #[must_use]
    pub fn volunteers_logs(&self) -> String {
        let logs = self.cluster.volunteers().iter().map(|volunteer| {
            let log = volunteer.process().and_then(|process| process.log().ok()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
            format!("--- {}\n{shown}\n", volunteer.name())
        });
        logs.collect()
    }

    /// A directory for what the test downloads, outside the repository.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join("scratch").join(name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    /// Where a volunteer of that name keeps its state, also before it is added.
    #[must_use]
    pub fn state_of(&self, name: &str) -> PathBuf {
        self.directory.join(STATES).join(name)
    }

    /// The repository's packages that the origin does not serve itself for being small, largest first; in a
    /// generated tree its binary files.
    ///
    /// # Errors
    ///
    /// When the tree cannot be read.
    pub fn large_files(&self) -> Result<Vec<RepositoryFile>> {
        let mut files = self.repository.files()?;
        files.retain(|file| file.size > DIRECT_BELOW_BYTES && file.path.starts_with("pool/"));
        files.sort_by_key(|file| std::cmp::Reverse(file.size));
        Ok(files)
    }

    /// The status code with which the front door answers a customer who asks for `target`.
    ///
    /// # Errors
    ///
    /// When no answer comes.
    pub fn status(&self, target: &str) -> Result<u16> {
        Ok(Answer::get(&self.customer, self.cluster.front_door(), target)?.status)
    }

    /// A number that the volunteers count, such as `/delivery/tickets_forged`, added up over all of them.
    ///
    /// # Errors
    ///
    /// When control cannot be asked.
    pub fn volunteers_count(&self, pointer: &str) -> Result<u64> {
        let nodes = self.cluster.ctl(&["node", "list"])?;
        let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(nodes.iter().filter_map(|node| node.pointer(pointer).and_then(Value::as_u64)).sum())
    }

    /// A number that control counts, such as `/front_door/body_bytes`.
    ///
    /// # Errors
    ///
    /// When control cannot be asked or does not count it.
    pub fn control_count(&self, pointer: &str) -> Result<u64> {
        let status = self.cluster.ctl(&["status"])?;
        status.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("no {pointer} in {status}"))
    }

    /// Bytes that the volunteers' hosts have sent by the kernel's count, where hosts have interfaces of their own.
    ///
    /// # Errors
    ///
    /// When the counters cannot be read.
    pub fn sent_by_volunteers(&self) -> Result<Option<u64>> {
        if matches!(self.testbed.backend(), Backend::Loopback { .. }) {
            return Ok(None);
        }
        let mut sent = 0;
        for volunteer in self.cluster.volunteers() {
            let interfaces = volunteer.host().interfaces()?;
            sent +=
                interfaces.iter().filter(|interface| interface.name != "lo").map(|i| i.tx_bytes).sum::<u64>();
        }
        Ok(Some(sent))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the scene was {}", self.testbed.backend());
        }
    }
}

/// The built programs: beside the directory that the test itself is in.
///
/// # Errors
///
/// When they have not been built.
pub fn find_programs() -> Result<Programs> {
    let directory = profile_directory()?;
    Programs::in_directory(&directory)
        .context("`cargo xtask test` builds the programs before it runs the tests")
}

/// The cache of made repositories, the one that `cargo xtask` uses.
///
/// # Errors
///
/// When this is no program in a cargo target directory.
pub fn find_repositories() -> Result<PathBuf> {
    let profile = profile_directory()?;
    let target = profile.parent().context("expected the test in a cargo target directory")?;
    Ok(target.join("freshet/repositories"))
}

fn profile_directory() -> Result<PathBuf> {
    let test = std::env::current_exe().context("looking for this program")?;
    // target/debug/deps/end_to_end-0123456789abcdef
    Ok(test.ancestors().nth(2).context("expected the test in a cargo target directory")?.to_owned())
}

fn write_large(path: &Path, bytes: usize) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    fs::create_dir_all(parent)?;
    fs::write(path, noise(0, bytes)).with_context(|| format!("writing {}", path.display()))
}

/// Where [`SceneOptions::large_bytes`] puts its file.
pub const LARGE: &str = "large/generated.bin";
/// What stands in a file beside the repository, and must never be served.
pub const SECRET: &str = "this stands outside of the repository";
/// As control is by default, only that it notices sooner what changes: a test has no minutes.
const BRISK: &[&str] = &["--heartbeat-ms", "200", "--quiet-ms", "200", "--changed-window-secs", "2"];
const STATES: &str = "states";
const LOG_LINES_SHOWN: usize = 25;
/// Below this size an origin serves files itself, unless it is told otherwise.
const DIRECT_BELOW_BYTES: u64 = 64 * 1024;
