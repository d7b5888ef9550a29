//! `cargo xtask demo`: the whole way once, on real packages, with real clients.
//!
//! An origin and volunteers start as separate processes, mirror a repository, and a customer downloads through the
//! front door and checks what it got against what the origin says. Everything is gone afterwards, also after ^C.

mod customer;
mod report;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use freshet_testbed::cluster::{Cluster, Mirror, Programs};
use freshet_testbed::repository::{Kind, Repository, RepositoryFile, Selection};
use freshet_testbed::{Backend, Host, Link, Options, Rate, Testbed, wait_until};

use crate::workspace::Workspace;
use crate::{interrupt, setup};

/// How the demo is to be.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A directory tree to serve; unless given, one of real packages is made (or generated, without apt).
    #[arg(long, value_name = "DIR")]
    repo: Option<PathBuf>,
    /// How many volunteers, 1 to 32.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    volunteers: u16,
    /// How many files the customer downloads, 1 to 1000.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=1000))]
    downloads: u16,
    /// Leave everything running until ^C, and say what to try.
    #[arg(long)]
    stay: bool,
    /// Keep to loopback, even as root.
    #[arg(long)]
    loopback: bool,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let cancel = interrupt::cancel_on_signals()?;
    setup::prepare();
    workspace.build_programs()?;
    let programs = Programs::in_directory(&workspace.programs())?;
    let repository = repository(workspace, arguments)?;
    let files = repository.files()?;
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    if files.is_empty() {
        bail!("there is no file in {}", repository.root.display());
    }
    let kind = match &repository.kind {
        Kind::Packages { count } => format!("{count} real packages"),
        Kind::Generated { why } if arguments.repo.is_none() => format!("a generated tree, because {why}"),
        Kind::Generated { .. } => "as given".to_owned(),
    };
    say(&format!("repository: {kind}, {} files, {}", files.len(), report::size(bytes)));

    let testbed = Testbed::start(Options { loopback: arguments.loopback, cancel, ..Options::default() })?;
    let state = testbed.scratch()?;
    say(&format!("hosts: {}", testbed.backend()));
    let customer = testbed.host("customer", &Link::new().rate(CUSTOMER).single_packets())?;
    let origin = Link::new().rate(ORIGIN).single_packets();
    let mut cluster = Cluster::start(&testbed, &programs, &repository.root, &state, &origin, &[])?;
    say(&format!("control runs; the front door is {}{}", cluster.url(""), rate(&testbed, ORIGIN)));
    for number in 1..=arguments.volunteers {
        let name = format!("volunteer-{number}");
        let volunteer =
            cluster.add_volunteer(&testbed, &name, &Link::new().rate(VOLUNTEER).single_packets())?;
        say(&format!(
            "{name} has joined and serves at {}{}",
            volunteer.delivery(),
            rate(&testbed, VOLUNTEER)
        ));
    }
    let chosen = choose(&files, usize::from(arguments.downloads));
    let largest = chosen.last().context("every file is empty")?;
    sync(&testbed, &cluster, &largest.path, bytes)?;

    say(&format!("the customer downloads {} files with curl through the front door", chosen.len()));
    let downloads = customer::download_all(&customer, &cluster, &state, &chosen)?;
    let counted = settle(&testbed, &cluster, &downloads)?;
    report::print(&testbed, &cluster, &downloads, &counted)?;

    let failed = downloads.iter().filter(|download| !download.is_good()).count();
    let redirected = downloads.iter().any(|download| download.by_volunteer(&cluster));
    if arguments.stay {
        stay(&testbed, &cluster, &customer, &chosen)?;
    }
    if failed > 0 {
        bail!("{failed} of {} downloads failed", downloads.len());
    }
    if !redirected {
        bail!("no volunteer served anything: every file came from the origin itself");
    }
    say("all downloads are whole and match the origin's checksums");
    Ok(())
}

fn repository(workspace: &Workspace, arguments: &Arguments) -> Result<Repository> {
    match &arguments.repo {
        Some(directory) => {
            let root =
                directory.canonicalize().with_context(|| format!("looking for {}", directory.display()))?;
            Ok(Repository { root, kind: Kind::Generated { why: String::new() } })
        }
        None => Ok(Repository::make(&workspace.repositories(), Selection::Full, &mut say)?),
    }
}

/// Waits for the mirrors and shows how far they are: one line that is rewritten on a terminal, else one now and then.
fn sync(testbed: &Testbed, cluster: &Cluster, path: &str, bytes: u64) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let started = Instant::now();
    let mut shown: Option<Instant> = None;
    let mut show = |mirrors: &[Mirror], last: bool| {
        if !last && shown.is_some_and(|shown| shown.elapsed() < if terminal { REDRAW } else { REPEAT }) {
            return;
        }
        shown = Some(Instant::now());
        let parts: Vec<String> = mirrors.iter().map(progress).collect();
        let line = format!("syncing {:5.1} s  {}", started.elapsed().as_secs_f32(), parts.join("  "));
        if terminal {
            print!("\r\x1b[K{line}{}", if last { "\n" } else { "" });
            // A terminal that has gone away shows nothing anyway.
            let _ = std::io::stdout().flush();
        } else {
            println!("{line}");
        }
    };
    // Three copies over the slowest link, and as long again for a busy machine.
    let least = bytes / VOLUNTEER.as_bytes_per_sec() * cluster.volunteers().len() as u64;
    let patience = SYNC_MIN + Duration::from_secs(2 * least);
    cluster.wait_for_sync(testbed, path, patience, &mut |mirrors| show(mirrors, false))?;
    show(&cluster.mirrors()?, true);
    Ok(())
}

fn progress(mirror: &Mirror) -> String {
    let all = mirror.held_bytes + mirror.missing_bytes;
    if mirror.is_ready() {
        format!("{} complete", mirror.name)
    } else if all == 0 {
        format!("{} {}", mirror.name, mirror.state)
    } else {
        let percent = mirror.held_bytes as f64 * 100.0 / all as f64;
        format!("{} {percent:3.0} % of {}", mirror.name, report::size(all))
    }
}

/// Files of all sizes, from the smallest to the largest, in turns, so that several kinds of answers are seen.
fn choose(files: &[RepositoryFile], wanted: usize) -> Vec<RepositoryFile> {
    let mut by_size: Vec<&RepositoryFile> = files.iter().filter(|file| file.size > 0).collect();
    by_size.sort_by_key(|file| file.size);
    let (count, wanted) = (by_size.len(), wanted.min(by_size.len()));
    let picks =
        (0..wanted).map(|pick| if wanted == 1 { count - 1 } else { pick * (count - 1) / (wanted - 1) });
    picks.map(|index| by_size[index].clone()).collect()
}

/// Waits until control has heard of every byte that volunteers delivered, and gives its view of them.
fn settle(
    testbed: &Testbed,
    cluster: &Cluster,
    downloads: &[customer::Download],
) -> Result<serde_json::Value> {
    let served: u64 = downloads
        .iter()
        .filter(|download| download.by_volunteer(cluster))
        .map(|download| download.size)
        .sum();
    let what = "control to hear of all delivered bytes";
    let view = wait_until(what, SETTLE, &testbed.cancel(), || {
        let nodes = cluster.ctl(&["node", "list"])?;
        let heard: u64 = nodes
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|node| node["ledger"]["delivered_bytes"].as_u64())
            .sum();
        Ok((heard >= served).then_some(nodes))
    });
    view.with_context(|| format!("the volunteers delivered {served} bytes"))
}

fn stay(testbed: &Testbed, cluster: &Cluster, customer: &Host, files: &[RepositoryFile]) -> Result<()> {
    let enter = |host: &Host| match host.namespace() {
        Some(path) => format!("nsenter --net={} ", path.display()),
        None => String::new(),
    };
    let path = files.last().map(|file| file.path.as_str()).unwrap_or_default();
    let (on_customer, on_origin) = (enter(customer), enter(cluster.origin()));
    let ctl = format!(
        "{on_origin}{} --credentials {}",
        cluster.program("ctl").display(),
        cluster.credentials().display()
    );
    println!("\nEverything stays until ^C. To try, in another terminal:");
    println!("  {on_customer}curl -v -L -O {}", cluster.url(path));
    println!("  {on_customer}curl {}.sha256", cluster.url(path));
    println!("  {on_customer}aria2c {}.meta4", cluster.url(path));
    println!("  {ctl} node list");
    println!("  {ctl} explain '{path}'");
    println!("  {ctl} node drain volunteer-1");
    println!("  tail -f {}/*.log", testbed.logs().display());
    let cancel = testbed.cancel();
    while !cancel.is_cancelled() {
        std::thread::sleep(REDRAW);
    }
    Ok(())
}

fn rate(testbed: &Testbed, rate: Rate) -> String {
    match testbed.backend() {
        Backend::Namespaces => format!(" ({rate} each way)"),
        Backend::Loopback { .. } | Backend::Remote => String::new(),
    }
}

fn say(line: &str) {
    println!("{line}");
}

const ORIGIN: Rate = Rate::mbit(200);
const VOLUNTEER: Rate = Rate::mbit(100);
const CUSTOMER: Rate = Rate::mbit(500);
const REDRAW: Duration = Duration::from_millis(200);
const REPEAT: Duration = Duration::from_secs(3);
const SYNC_MIN: Duration = Duration::from_secs(120);
const SETTLE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_files_are_chosen_and_none_twice() {
        let files: Vec<RepositoryFile> = (0..50)
            .map(|number| RepositoryFile { path: format!("f{number}"), size: 1000 - number })
            .collect();
        let chosen = choose(&files, 5);
        assert_eq!(chosen.len(), 5);
        assert_eq!((chosen[0].size, chosen[4].size), (951, 1000));
        let mut all = choose(&files, 99);
        all.dedup();
        assert_eq!(all.len(), 50);
        assert_eq!(choose(&files, 1)[0].size, 1000);
    }
}
