//! Experiments that are left standing: `up`, `down`, and what `list` tells of them.
//!
//! What stands is held by a process of its own, the keeper (`bench testbed keep`), so that it outlives the `up` that
//! asked for it and ends as a run does: by its testbed's guard, or by the next run when the keeper was killed. A note
//! tells how to get in. It can be lost (it is in memory, and gone after a restart of the machine): keepers are found by
//! their command lines too, and leftovers by their names.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use freshet_testbed::{Cancel, Keeper, wait_until};
use serde::{Deserialize, Serialize};

use super::Ground;
use super::experiment::{Experiment, Role};
use super::progress::Progress;
use super::stand::Stand;

/// Options of `up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// A TOML file, or the name of an experiment that comes with this program (`list` tells them).
    #[arg(value_name = "FILE|NAME")]
    experiment: PathBuf,
    /// What contents are drawn from, in place of the file's `seed`.
    #[arg(long)]
    seed: Option<u64>,
    /// Sets it up on real hosts, which are reached by ssh as this TOML file says; their links stay as they are.
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
    /// Where control, ctl and dataplane are; otherwise beside this program.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// Options of `keep`.
#[derive(Debug, clap::Args)]
pub(crate) struct Keep {
    /// The experiment's name.
    #[arg(long)]
    name: String,
    #[command(flatten)]
    up: Up,
}

/// Options of `down`.
#[derive(Debug, clap::Args)]
pub(crate) struct Down {
    /// The experiment's name; not needed where only one stands.
    name: Option<String>,
    /// Everything that stands.
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

/// What is noted of an experiment that stands.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Note {
    name: String,
    keeper: Keeper,
    /// In seconds since the epoch.
    since: i64,
    /// What it runs on, in words.
    ground: String,
    front_door: String,
    logs: PathBuf,
    /// How to ask control.
    ctl: String,
    hosts: Vec<HostNote>,
    caveats: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct HostNote {
    name: String,
    role: String,
    address: String,
    /// The command that leads into it, followed by what is to run there.
    enter: String,
}

/// Sets an experiment up and returns when it stands, with its mirrors filled.
///
/// # Errors
/// When it stands already or cannot be set up; then nothing is left of it.
pub(crate) fn up(arguments: &Up, cancel: &Cancel) -> Result<()> {
    let experiment = Experiment::open(&arguments.experiment)?;
    if let Some(inventory) = &arguments.inventory {
        super::inventory::open(inventory, &experiment)?;
    }
    ensure!(
        !standing()?.iter().any(|one| one.name == experiment.name),
        "{} stands already; `bench testbed down {}` removes it",
        experiment.name,
        experiment.name
    );
    let directory = directory()?;
    let note = note_path(&directory, &experiment.name);
    remove_note(&note)?;
    let log = directory.join(format!("{}.log", experiment.name));
    let log_file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    let file = match Experiment::is_supplied(&arguments.experiment) {
        true => arguments.experiment.clone(),
        false => fs::canonicalize(&arguments.experiment)?,
    };
    command.args(KEEP).args(["--name", &experiment.name]).arg(file);
    for (option, value) in [("--inventory", &arguments.inventory), ("--programs", &arguments.programs)] {
        if let Some(path) = value {
            command
                .arg(option)
                .arg(fs::canonicalize(path).with_context(|| format!("no {}", path.display()))?);
        }
    }
    if let Some(seed) = arguments.seed {
        command.args(["--seed".to_owned(), seed.to_string()]);
    }
    // A group of its own: the terminal's ^C is for who asked, not for what stands.
    command.stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file).process_group(0);
    let mut keeper = command.spawn().context("cannot start the keeper")?;
    let stands = wait_until(&format!("{} to stand", experiment.name), STANDS, cancel, || {
        if let Ok(text) = fs::read_to_string(&note) {
            return Ok(Some(Ok(text)));
        }
        let ended = keeper.try_wait().ok().flatten();
        Ok(ended.map(|status| Err(format!("{status}"))))
    });
    let text = match stands {
        Ok(Ok(text)) => text,
        Ok(Err(status)) => {
            bail!(
                "it could not be set up ({status}): {}",
                fs::read_to_string(&log).unwrap_or_default().trim()
            )
        }
        Err(error) => {
            // Asked to end in order, it removes what it has made so far.
            Keeper::of(keeper.id()).map_or(Ok(()), |keeper| end(&experiment.name, keeper))?;
            return Err(error.into());
        }
    };
    print!("{}", serde_json::from_str::<Note>(&text).context("the keeper's note")?.text());
    Ok(())
}

/// Sets an experiment up and holds it until it is told to end.
///
/// # Errors
/// When it cannot be set up.
pub(crate) fn keep(arguments: &Keep, cancel: &Cancel) -> Result<()> {
    let up = &arguments.up;
    let experiment = Experiment::open(&up.experiment)?;
    let experiment = Experiment { seed: up.seed.unwrap_or(experiment.seed), ..experiment };
    let ground = Ground::new(&experiment, up.programs.as_deref(), up.inventory.as_deref(), cancel)?;
    let stand = ground.stand(&experiment, &mut Progress::new())?;
    stand.open()?;
    if let Some(file) = stand.content.largest() {
        stand.cluster.wait_for_sync(&stand.testbed, file, STANDS, &mut |_| {})?;
    }
    let directory = directory()?;
    let path = note_path(&directory, &experiment.name);
    let note = serde_json::to_vec_pretty(&Note::of(&experiment, &stand, &ground)?)?;
    let fresh = path.with_extension("new");
    fs::write(&fresh, note)
        .and_then(|()| fs::rename(&fresh, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    while !cancel.is_cancelled() {
        std::thread::sleep(TICK);
    }
    drop(stand);
    remove_note(&path)
}

/// Ends what stands and removes what is left of what stood.
///
/// # Errors
/// When nothing stands by this name, or something cannot be removed.
pub(crate) fn down(arguments: &Down) -> Result<()> {
    let all = standing()?;
    if arguments.name.is_none() && !arguments.all && all.len() > 1 {
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        bail!("several stand ({}): name one, or say --all", names.join(", "));
    }
    let is_meant = |one: &&Standing| arguments.name.as_ref().is_none_or(|name| one.name == *name);
    let chosen: Vec<&Standing> = all.iter().filter(is_meant).collect();
    let nothing = chosen.is_empty();
    for one in chosen {
        match one.keeper {
            Some(keeper) => end(&one.name, keeper)?,
            None => println!("{}: its keeper is gone", one.name),
        }
        remove_note(&note_path(&directory()?, &one.name))?;
        println!("{} is down", one.name);
    }
    let removed = freshet_testbed::remove_leftovers()?;
    for what in &removed {
        println!("removed {what}, which nobody owned any more");
    }
    match &arguments.name {
        Some(name) if nothing && removed.is_empty() => {
            bail!("nothing stands by the name {name}; `bench testbed list` tells what does")
        }
        _ if nothing => println!("nothing stands"),
        _ => {}
    }
    Ok(())
}

/// What stands, in lines.
///
/// # Errors
/// When notes cannot be read.
pub(crate) fn list() -> Result<String> {
    let mut text = String::new();
    for one in standing()? {
        text += &match (one.keeper, one.note) {
            (Some(_), Some(note)) => note.text(),
            (Some(keeper), None) => format!(
                "{} stands (process {}); how to get in is not known any more, `down {}` removes it\n",
                one.name,
                keeper.pid(),
                one.name
            ),
            (None, _) => format!(
                "{} stood until its keeper was killed; `down {}` removes what is left\n",
                one.name, one.name
            ),
        };
    }
    Ok(text)
}

/// An experiment that stands, or of which only a note is left.
struct Standing {
    name: String,
    /// While it lives.
    keeper: Option<Keeper>,
    note: Option<Note>,
}

/// By notes, and by the keepers that run.
fn standing() -> Result<Vec<Standing>> {
    let directory = directory()?;
    let mut all = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            // One that is half written or of another version tells nothing; its keeper is found below.
            if let Ok(note) = serde_json::from_str::<Note>(&text) {
                let keeper = Some(note.keeper).filter(Keeper::is_alive);
                all.push(Standing { name: note.name.clone(), keeper, note: Some(note) });
            }
        }
    }
    for (name, keeper) in running_keepers() {
        if !all.iter().any(|one| one.keeper == Some(keeper)) {
            all.push(Standing { name, keeper: Some(keeper), note: None });
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Processes that were started as `bench testbed keep --name NAME ...`, by name.
fn running_keepers() -> Vec<(String, Keeper)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let keeper = |entry: fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let name = kept_name(&line)?;
        Some((name, Keeper::of(pid)?))
    };
    entries.flatten().filter_map(keeper).collect()
}

/// The experiment's name from a keeper's command line, whose words end with a zero byte each.
fn kept_name(line: &[u8]) -> Option<String> {
    let mut words = line.split(|&byte| byte == 0).map(std::str::from_utf8);
    let program = words.next()?.ok()?;
    if Path::new(program).file_name()? != "bench" {
        return None;
    }
    for expected in KEEP.iter().copied().chain(["--name"]) {
        if words.next()?.ok()? != expected {
            return None;
        }
    }
    words.next()?.ok().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Asks a keeper to end, and waits until everything of it is gone.
fn end(name: &str, keeper: Keeper) -> Result<()> {
    keeper.stop(ENDS).with_context(|| format!("{name} does not end"))
}

impl Note {
    fn of(experiment: &Experiment, stand: &Stand, ground: &Ground) -> Result<Note> {
        let cluster = &stand.cluster;
        let role = |name: &str| {
            let members = experiment.all_members();
            members.iter().find(|member| member.name == name).map_or(Role::Origin, |member| member.group.role)
        };
        let enter = |host: &freshet_testbed::Host| {
            let reach = ground.inventory.as_ref().and_then(|inventory| inventory.get(host.name()));
            match (host.namespace().as_deref().and_then(Path::file_name), reach) {
                (Some(namespace), _) => format!("ip netns exec {} ", namespace.to_string_lossy()),
                (None, Some(reach)) => {
                    let port = reach.port.map_or_else(String::new, |port| format!("-p {port} "));
                    let key =
                        reach.key.as_ref().map_or_else(String::new, |key| format!("-i {} ", key.display()));
                    format!("ssh {port}{key}{} ", reach.destination)
                }
                (None, None) => String::new(),
            }
        };
        let hosts = stand.hosts().into_iter().map(|host| {
            Ok(HostNote {
                name: host.name().to_owned(),
                role: role(host.name()).to_string(),
                address: host.addr()?.to_string(),
                enter: enter(&host),
            })
        });
        let origin = cluster.origin();
        let ctl = format!(
            "{}{} --credentials {}",
            enter(origin),
            origin.place(&cluster.program("ctl")).display(),
            origin.place(&cluster.credentials()).display()
        );
        Ok(Note {
            name: experiment.name.clone(),
            keeper: Keeper::of(std::process::id()).context("this process runs")?,
            since: jiff::Timestamp::now().as_second(),
            ground: stand.testbed.backend().to_string(),
            front_door: cluster.url(""),
            logs: stand.testbed.logs().to_owned(),
            ctl,
            hosts: hosts.collect::<Result<_>>()?,
            caveats: stand.caveats.clone(),
        })
    }

    fn text(&self) -> String {
        let since =
            jiff::Timestamp::from_second(self.since).map_or_else(|_| "?".to_owned(), |at| at.to_string());
        let mut text = format!("{} stands since {since} on {}\n", self.name, self.ground);
        for caveat in &self.caveats {
            text += &format!("  note: {caveat}\n");
        }
        for host in &self.hosts {
            text += &format!("  {:20} {:9} {:15} {}bash\n", host.name, host.role, host.address, host.enter);
        }
        let customer = self.hosts.iter().find(|host| host.role == Role::Customer.to_string());
        if let Some(customer) = customer {
            text += &format!("  download: {}curl -LO {}/PATH\n", customer.enter, self.front_door);
        }
        text += &format!("  control:  {} node list\n  logs:     {}\n", self.ctl, self.logs.display());
        text + &format!("  its end:  bench testbed down {}\n", self.name)
    }
}

/// Where notes and keepers' logs are; runs of the testbed leave it alone.
fn directory() -> Result<PathBuf> {
    let directory = freshet_testbed::state_directory()?.join("standing");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

fn note_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.json"))
}

fn remove_note(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// How a keeper's command line goes on after the program.
const KEEP: [&str; 2] = ["testbed", "keep"];
/// The longest that setting up and the first copy may take.
const STANDS: Duration = Duration::from_secs(600);
/// The longest that a keeper has to clean up.
const ENDS: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepers_are_told_from_everything_else_by_their_command_lines() {
        let line = |words: &[&str]| {
            words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect::<Vec<u8>>()
        };
        let keeper = line(&["/opt/bench", "testbed", "keep", "--name", "lab", "lab.toml"]);
        assert_eq!(kept_name(&keeper).as_deref(), Some("lab"));
        for other in [
            &["/opt/bench", "testbed", "run", "--name", "lab"][..],
            &["vi", "testbed", "keep", "--name", "lab"],
            &["/opt/bench", "testbed", "keep", "--name"],
            &["/opt/bench"],
            &[],
        ] {
            assert_eq!(kept_name(&line(other)), None, "{other:?}");
        }
    }
}
