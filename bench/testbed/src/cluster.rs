//! Freshet itself on a testbed: an origin with control, and volunteers, each as processes on hosts of their own.
//!
//! It knows the programs' command lines and nothing of their insides. It gives no program more than an operator
//! could: volunteers join with the string that `ctl node add` prints.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::{Cancel, Error, Finished, Host, Link, Process, Program, Testbed, wait_until};

/// The built programs.
#[derive(Clone, Debug)]
pub struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// The programs in a directory such as `target/debug`.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] when one of them is not there.
    pub fn in_directory(directory: &Path) -> Result<Programs, Error> {
        for name in ["control", "ctl", "dataplane"] {
            let path = directory.join(name);
            if !path.is_file() {
                let source =
                    io::Error::new(io::ErrorKind::NotFound, "`cargo build --workspace --bins` makes it");
                return Err(Error::Start { program: path.display().to_string(), source });
            }
        }
        Ok(Programs { directory: directory.to_owned() })
    }

    /// The path of one program.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// An origin and its volunteers; it lives no longer than the testbed that it stands on.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    directory: PathBuf,
    repository: PathBuf,
    origin: Host,
    front_door: SocketAddr,
    api: SocketAddr,
    control_arguments: Vec<String>,
    control: Option<Process>,
    volunteers: Vec<Volunteer>,
}

/// A volunteer: its host and, while it runs, its process.
#[derive(Debug)]
pub struct Volunteer {
    name: String,
    host: Host,
    delivery: SocketAddr,
    state: PathBuf,
    process: Option<Process>,
}

impl Cluster {
    /// Starts control for `repository` on a new host `origin`; states are kept in `directory`, and
    /// `control_arguments` are added to the command line of `control serve`.
    ///
    /// # Errors
    ///
    /// When control does not get ready.
    pub fn start(
        testbed: &Testbed,
        programs: &Programs,
        repository: &Path,
        directory: &Path,
        link: &Link,
        control_arguments: &[&str],
    ) -> Result<Cluster, Error> {
        let origin = testbed.host(ORIGIN, link)?;
        for path in [&programs.path("control"), &programs.path("ctl"), repository] {
            origin.put(path)?;
        }
        origin.make_directory(directory)?;
        let front_door = SocketAddr::new(origin.addr()?, origin.free_port()?);
        let api = SocketAddr::new(origin.addr()?, origin.free_port()?);
        let mut cluster = Cluster {
            programs: programs.clone(),
            directory: directory.to_owned(),
            repository: repository.to_owned(),
            origin,
            front_door,
            api,
            control_arguments: control_arguments.iter().map(|&argument| argument.to_owned()).collect(),
            control: None,
            volunteers: Vec::new(),
        };
        if cluster.origin.is_remote() {
            // Elsewhere only some ports may be open.
            let sync = SocketAddr::new(cluster.origin.addr()?, cluster.origin.free_port()?);
            cluster.control_arguments.extend(["--sync-listen".to_owned(), sync.to_string()]);
        }
        cluster.start_control()?;
        Ok(cluster)
    }

    /// Starts control, or starts it again with the state that it left.
    ///
    /// # Errors
    ///
    /// When it does not get ready.
    pub fn start_control(&mut self) -> Result<(), Error> {
        let program = Program::new(self.origin.place(&self.programs.path("control")))
            .args(["serve", "--repo"])
            .arg(self.origin.place(&self.repository))
            .arg("--state")
            .arg(self.origin.place(&self.directory.join("control")))
            .args(["--listen".to_owned(), self.front_door.to_string()])
            .args(["--api".to_owned(), self.api.to_string()])
            .args(["--public-url".to_owned(), self.url("")])
            .args(self.control_arguments.iter().cloned());
        let control = self.origin.start("control", &program)?;
        control.wait_for_line("ready", READY)?;
        self.control = Some(control);
        Ok(())
    }

    /// Control's process, while it has one.
    #[must_use]
    pub fn control(&self) -> Option<&Process> {
        self.control.as_ref()
    }

    /// Ends control as a crash would (SIGKILL) and waits until its port is closed.
    ///
    /// # Errors
    ///
    /// When the port stays open.
    pub fn kill_control(&mut self) -> Result<(), Error> {
        self.control = None;
        wait_until_closed(&self.origin, self.front_door)
    }

    /// The origin's host.
    #[must_use]
    pub fn origin(&self) -> &Host {
        &self.origin
    }

    /// Where the front door listens.
    #[must_use]
    pub fn front_door(&self) -> SocketAddr {
        self.front_door
    }

    /// The front door's URL of a path below the repository's root; characters that a URL cannot hold are encoded.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        let mut url = format!("http://{}", self.front_door);
        if !path.is_empty() {
            url.push('/');
            url.push_str(&encode(path));
        }
        url
    }

    /// The path of one of the programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.path(name)
    }

    /// The operator's credentials that control wrote.
    #[must_use]
    pub fn credentials(&self) -> PathBuf {
        self.directory.join("control/admin.json")
    }

    /// The volunteers, in the order in which they were added.
    #[must_use]
    pub fn volunteers(&self) -> &[Volunteer] {
        &self.volunteers
    }

    /// One volunteer, to kill it or start it again.
    pub fn volunteer_mut(&mut self, index: usize) -> Option<&mut Volunteer> {
        self.volunteers.get_mut(index)
    }

    /// Who listens at an address: a volunteer's name, or `origin`.
    #[must_use]
    pub fn name_at(&self, addr: SocketAddr) -> Option<&str> {
        if addr == self.front_door {
            return Some(ORIGIN);
        }
        self.volunteers
            .iter()
            .find(|volunteer| volunteer.delivery == addr)
            .map(|volunteer| volunteer.name.as_str())
    }

    /// Adds a volunteer on a new host of that name: `ctl node add`, `dataplane join`, `dataplane run`.
    ///
    /// # Errors
    ///
    /// When a step fails or the volunteer does not get ready.
    pub fn add_volunteer(
        &mut self,
        testbed: &Testbed,
        name: &str,
        link: &Link,
    ) -> Result<&mut Volunteer, Error> {
        self.add_volunteer_with(testbed, name, link, "")
    }

    /// As [`Cluster::add_volunteer`], with keys for its `dataplane.toml`, a line each, which stand before the tables.
    ///
    /// # Errors
    ///
    /// When a step fails or the volunteer does not get ready.
    pub fn add_volunteer_with(
        &mut self,
        testbed: &Testbed,
        name: &str,
        link: &Link,
        settings: &str,
    ) -> Result<&mut Volunteer, Error> {
        let host = testbed.host(name, link)?;
        host.put(&self.programs.path("dataplane"))?;
        host.make_directory(&self.directory)?;
        let added = self.ctl(&["node", "add", name])?;
        let join = added["join"].as_str().ok_or_else(|| Error::Command {
            command: format!("ctl node add {name}"),
            status: "success".to_owned(),
            stderr: format!("expected a join string in {added}"),
        })?;
        let delivery = SocketAddr::new(host.addr()?, host.free_port()?);
        let state = self.directory.join(name);
        let joined = self.join(&host, join, &state, Some(delivery))?;
        if !joined.status.success() {
            return Err(Error::Command {
                command: format!("dataplane join on {name}"),
                status: joined.status.to_string(),
                stderr: joined.stderr.trim().to_owned(),
            });
        }
        configure(&host, &state, settings)?;
        let mut volunteer = Volunteer { name: name.to_owned(), host, delivery, state, process: None };
        volunteer.start(&self.programs)?;
        self.volunteers.push(volunteer);
        self.volunteers.last_mut().ok_or_else(|| Error::Gone { what: name.to_owned() })
    }

    /// Runs `dataplane join` on a host to its end.
    ///
    /// # Errors
    ///
    /// When it does not end; what its status means is the caller's to judge.
    pub fn join(
        &self,
        host: &Host,
        join: &str,
        state: &Path,
        delivery: Option<SocketAddr>,
    ) -> Result<Finished, Error> {
        let mut program =
            Program::new(host.place(&self.programs.path("dataplane"))).args(["join", join, "--state"]);
        program = program.arg(host.place(state));
        if let Some(delivery) = delivery {
            program = program.args(["--listen".to_owned(), delivery.to_string()]);
            program = program.args(["--public-url".to_owned(), format!("http://{delivery}")]);
        }
        host.run(&program, READY)
    }

    /// Starts a volunteer again with the state that it left.
    ///
    /// # Errors
    ///
    /// When it does not get ready.
    pub fn start_volunteer(&mut self, index: usize) -> Result<(), Error> {
        let volunteer = self
            .volunteers
            .get_mut(index)
            .ok_or_else(|| Error::Gone { what: format!("volunteer {index}") })?;
        volunteer.start(&self.programs)
    }

    /// Asks control by `ctl --json` and gives its answer.
    ///
    /// # Errors
    ///
    /// [`Error::Command`] with what `ctl` says when it fails or its answer is no JSON.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Value, Error> {
        let program = Program::new(self.origin.place(&self.programs.path("ctl")))
            .arg("--credentials")
            .arg(self.origin.place(&self.credentials()))
            .arg("--json")
            .args(arguments.iter().copied());
        let failed = |status: String, stderr: String| Error::Command {
            command: format!("ctl {}", arguments.join(" ")),
            status,
            stderr,
        };
        let answer = self.origin.run(&program, CTL)?;
        if !answer.status.success() {
            return Err(failed(answer.status.to_string(), answer.stderr.trim().to_owned()));
        }
        serde_json::from_slice(&answer.stdout)
            .map_err(|error| failed("success".to_owned(), format!("its answer is no JSON: {error}")))
    }

    /// Waits until every volunteer that runs has the whole of control's catalogue, and customers who ask for `path`
    /// can be sent to each of them; `progress` is told how far each is.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], [`Error::Cancelled`], or what `ctl` fails with.
    pub fn wait_for_sync(
        &self,
        testbed: &Testbed,
        path: &str,
        timeout: Duration,
        progress: &mut dyn FnMut(&[Mirror]),
    ) -> Result<(), Error> {
        let running = || self.volunteers.iter().filter(|volunteer| volunteer.process.is_some());
        let mut eligible = BTreeSet::new();
        let waited = wait_until("the volunteers' mirrors to be complete", timeout, &testbed.cancel(), || {
            let mirrors = self.mirrors()?;
            progress(&mirrors);
            let done = running()
                .map(|volunteer| mirrors.iter().find(|mirror| mirror.name == volunteer.name))
                .all(|mirror| mirror.is_some_and(Mirror::is_ready));
            if !done || mirrors.is_empty() {
                return Ok(None);
            }
            // Of many volunteers control weighs some, drawn anew for each question: each must have been among them.
            let explained = self.ctl(&["explain", path])?;
            let considered = explained["considered"].as_array().map(Vec::as_slice).unwrap_or_default();
            let weighed = considered.iter().filter(|one| one["excluded"].is_null());
            eligible.extend(weighed.filter_map(|one| one["name"].as_str()).map(str::to_owned));
            Ok(running().all(|volunteer| eligible.contains(&volunteer.name)).then_some(()))
        });
        waited.map_err(|error| match error {
            Error::Timeout { what, after, .. } => {
                Error::Timeout { what, after, tail: self.state_of_things(path) }
            }
            other => other,
        })
    }

    /// For whom a wait was in vain: what control knows, and what the daemons said last.
    fn state_of_things(&self, path: &str) -> String {
        let mut text = String::new();
        for question in [&["status"][..], &["node", "list"], &["explain", path]] {
            let answer = self.ctl(question).map_or_else(|error| error.to_string(), |value| value.to_string());
            text.push_str(&format!("ctl {}: {answer}\n", question.join(" ")));
        }
        let processes =
            self.volunteers.iter().map(|volunteer| (volunteer.name.as_str(), volunteer.process.as_ref()));
        for (name, process) in processes.chain([("control", self.control())]) {
            let log = process.and_then(|process| process.log().ok()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..] {
                text.push_str(&format!("{name}: {line}\n"));
            }
        }
        text
    }

    /// How far each volunteer's mirror is, as control knows it.
    ///
    /// # Errors
    ///
    /// What `ctl` fails with.
    pub fn mirrors(&self) -> Result<Vec<Mirror>, Error> {
        let catalog = &self.ctl(&["status"])?["catalog"];
        // Right after its start control publishes nothing yet: what it has then is not what is wanted.
        let whole = catalog["pending"].as_u64() == Some(0) && catalog["files"].as_u64() > Some(0);
        let sequence = catalog["sequence"].as_u64().filter(|_| whole);
        let nodes = self.ctl(&["node", "list"])?;
        let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(nodes.iter().map(|node| Mirror::read(node, sequence)).collect())
    }
}

/// How far one volunteer's mirror is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The volunteer's name.
    pub name: String,
    /// Where it stands, in control's word: `invited`, `active`, `closed`, `draining`, `lost`.
    pub state: String,
    /// Bytes that it holds.
    pub held_bytes: u64,
    /// Bytes that it still has to fetch.
    pub missing_bytes: u64,
    /// Whether it has all of the catalogue that control has now.
    pub current: bool,
}

impl Mirror {
    fn read(node: &Value, sequence: Option<u64>) -> Mirror {
        let sync = &node["sync"];
        Mirror {
            name: node["name"].as_str().unwrap_or_default().to_owned(),
            state: node["state"].as_str().unwrap_or_default().to_owned(),
            held_bytes: sync["bytes_held"].as_u64().unwrap_or_default(),
            missing_bytes: sync["bytes_missing"].as_u64().unwrap_or_default(),
            current: sequence.is_some() && sync["complete"].as_u64() == sequence,
        }
    }

    /// Whether it is complete and takes customers.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.current && self.state == "active"
    }
}

impl Volunteer {
    /// Its name, which is its host's too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where it serves customers.
    #[must_use]
    pub fn delivery(&self) -> SocketAddr {
        self.delivery
    }

    /// The directory of its state.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its process, while it has one.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// The URL at which it tells its own figures, when its settings have [`TELLS_FIGURES`].
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] while it does not run, and what it said instead of the URL.
    pub fn metrics(&self) -> Result<String, Error> {
        let gone = || Error::Gone { what: format!("the figures of {}", self.name) };
        let line = self.process.as_ref().ok_or_else(gone)?.wait_for_line(METRICS_LINE, READY)?;
        let (_, address) = line.split_once(METRICS_LINE).ok_or_else(gone)?;
        Ok(format!("http://{}/metrics", address.trim()))
    }

    /// Ends it as a crash would (SIGKILL) and waits until its port is closed.
    ///
    /// # Errors
    ///
    /// When the port stays open.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.process = None;
        wait_until_closed(&self.host, self.delivery)
    }

    fn start(&mut self, programs: &Programs) -> Result<(), Error> {
        let program = Program::new(self.host.place(&programs.path("dataplane")))
            .args(["run", "--state"])
            .arg(self.host.place(&self.state));
        let process = self.host.start("dataplane", &program)?;
        process.wait_for_port(&self.host, self.delivery, READY)?;
        self.process = Some(process);
        Ok(())
    }
}

/// Adds keys to the configuration, and has the volunteer pin nothing in the kernel: what is killed here must leave
/// nothing on this machine.
fn configure(host: &Host, state: &Path, settings: &str) -> Result<(), Error> {
    let path = state.join("dataplane.toml");
    let joined = host.read_text(&path)?;
    host.write_text(&path, &format!("pins = \"off\"\n{settings}\n{joined}"))
}

/// The kernel takes some milliseconds to give up a dead process's ring, and with it the port: until then a
/// connection still comes about, which would pass for a sign of life.
fn wait_until_closed(host: &Host, addr: SocketAddr) -> Result<(), Error> {
    wait_until(&format!("{addr} to be closed"), READY, &Cancel::default(), || {
        Ok((!host.reaches(addr)?).then_some(()))
    })
}

/// Percent-encodes what may not stand in a URL's path (RFC 3986, section 3.3).
fn encode(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A setting for volunteers whose own figures are to be read ([`Volunteer::metrics`]).
pub const TELLS_FIGURES: &str = "metrics_listen = \"127.0.0.1:0\"\n";
const METRICS_LINE: &str = "metrics: http://";
const ORIGIN: &str = "origin";
/// Of each daemon, when a wait was in vain.
const LOG_LINES_SHOWN: usize = 12;
/// Debug builds on a busy machine start slowly.
const READY: Duration = Duration::from_secs(30);
const CTL: Duration = Duration::from_secs(30);
