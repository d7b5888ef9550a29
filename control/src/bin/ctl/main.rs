//! `ctl`: what operators steer Freshet with; it talks to control's admin API and touches nothing else.
#![forbid(unsafe_code)]

mod balance;
mod client;
mod export;
mod manual;
mod operate;
mod show;
mod show_operator;
mod top;
mod watch;

use std::io::{IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, Parser, Subcommand};
use freshet_api::admin::{
    AddNode, ExplainView, NodeAdded, NodeView, OperatorCredentials, PublishView, StatusView, SwarmView,
    WhereView,
};
use serde::Serialize;

use crate::client::{Client, Failure};

/// Steers a Freshet origin: its volunteers, and where files are.
///
/// Exit status: 0 done; 1 control could not be reached or refused; 2 wrong usage or unusable credentials;
/// 3 the volunteer or path asked for does not exist; 4 a volunteer was caught with wrong bytes.
#[derive(Debug, Parser)]
#[command(name = "ctl", version, max_term_width = 100)]
struct Arguments {
    /// The operator's credentials, as control wrote them to STATE/admin.json at its first start.
    #[arg(long, global = true, env = "FRESHET_CREDENTIALS", value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// `HOST:PORT` of control's API, when it is not the one in the credentials.
    #[arg(long, global = true, env = "FRESHET_API", value_name = "HOST:PORT")]
    api: Option<String>,
    /// Prints JSON (the wire types of the admin API) in place of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Volunteers: add, list, show, edit, verify, drain, resume, pardon, remove.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Which volunteers hold a path, with its size and checksums.
    Where {
        /// Path in the repository, with or without the leading `/`.
        path: String,
    },
    /// What the front door would answer for a path, and the numbers by which it would choose.
    Explain {
        /// Path in the repository, with or without the leading `/`.
        path: String,
        /// For which client; without it, for a client that nothing is known about.
        #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
        client: IpAddr,
    },
    /// The knobs of a running control: how customers are sent to volunteers, and how a volunteer's rate is shared between
    /// them and other mirrors.
    #[command(subcommand)]
    Balance(balance::BalanceVerb),
    /// Where every volunteer's budget stands, as its owner set it.
    Budget,
    /// Who is told to hold what, where owners leave that to control.
    #[command(subcommand)]
    Placement(balance::PlacementVerb),
    /// The catalogue, the volunteers and the front door in figures.
    Status,
    /// The swarm: bundles, who has how much of them, copies that the origin sent, who is banned and why.
    Swarm,
    /// Publishes what is in the repository now: the last step of a job that changes it. Ends when customers see it and
    /// volunteers are told of it.
    Publish {
        /// Gives up waiting after so many seconds; what was asked for goes on.
        #[arg(long, value_name = "SECS", default_value_t = 3600)]
        timeout: u64,
    },
    #[command(flatten)]
    Operate(operate::Verb),
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// Invites a volunteer and prints the string that its owner pastes behind `dataplane join`.
    Add {
        /// 1 to 64 letters, digits, `.`, `_`, `-`; unique.
        name: String,
    },
    /// All volunteers, one a line.
    List,
    /// One volunteer with its interfaces, budget and mirror.
    Show {
        /// Its name or number.
        node: String,
    },
    /// Sends it no new customers; transfers under way finish, its mirror stays current.
    #[command(visible_alias = "disable")]
    Drain {
        /// Its name or number.
        node: String,
    },
    /// Sends it customers again after a drain.
    #[command(visible_alias = "enable")]
    Resume {
        /// Its name or number.
        node: String,
    },
    /// Lifts its ban for wrong bytes; `show` tells what it was caught with.
    Pardon {
        /// Its name or number.
        node: String,
    },
    /// Forgets it: its credential is worth nothing from now on. Its ledger stays on record.
    Remove {
        /// Its name or number.
        node: String,
        /// Does it without asking.
        #[arg(long)]
        yes: bool,
    },
    #[command(flatten)]
    More(operate::NodeVerb),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(&arguments)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ctl: {error:#}");
            match error.downcast_ref::<Failure>() {
                Some(Failure::NotFound { .. }) => ExitCode::from(3),
                Some(Failure::Unreachable { .. } | Failure::Refused { .. } | Failure::Garbled { .. }) => {
                    ExitCode::from(1)
                }
                Some(Failure::Caught { .. }) => ExitCode::from(4),
                Some(Failure::Credentials { .. }) | None => ExitCode::from(2),
            }
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // What needs no control needs no credentials either.
    match &arguments.verb {
        Verb::Operate(operate::Verb::Completions { shell }) => {
            manual::completions(*shell, Arguments::command());
            return Ok(());
        }
        Verb::Operate(operate::Verb::Man { directory }) => {
            return manual::pages(directory, Arguments::command());
        }
        _ => {}
    }
    let client = Client::new(credentials(arguments)?)?;
    let json = arguments.json;
    match &arguments.verb {
        Verb::Node(NodeVerb::Add { name }) => {
            let added: NodeAdded = client.post("nodes", &AddNode { name: name.clone() }).await?;
            print(json, &added, |out| show::node_added(out, &added))
        }
        Verb::Node(NodeVerb::List) => {
            let nodes: Vec<NodeView> = client.get("nodes", &[]).await?;
            print(json, &nodes, |out| show::nodes(out, &nodes))
        }
        Verb::Node(NodeVerb::Show { node }) => {
            let node: NodeView = client.get(&node_path(node)?, &[]).await?;
            print(json, &node, |out| show::node(out, &node))
        }
        Verb::Node(NodeVerb::Drain { node }) => {
            let node: NodeView = client.post(&format!("{}/drain", node_path(node)?), &()).await?;
            print(json, &node, |out| show::nodes(out, std::slice::from_ref(&node)))
        }
        Verb::Node(NodeVerb::Resume { node }) => {
            let node: NodeView = client.post(&format!("{}/resume", node_path(node)?), &()).await?;
            print(json, &node, |out| show::nodes(out, std::slice::from_ref(&node)))
        }
        Verb::Node(NodeVerb::Pardon { node }) => {
            let node: NodeView = client.post(&format!("{}/pardon", node_path(node)?), &()).await?;
            print(json, &node, |out| show::nodes(out, std::slice::from_ref(&node)))
        }
        Verb::Operate(verb) => operate::run(&client, json, verb).await,
        Verb::Node(NodeVerb::More(verb)) => operate::run_node(&client, json, verb).await,
        Verb::Node(NodeVerb::Remove { node, yes }) => {
            let path = node_path(node)?;
            if !yes {
                confirm(
                    &format!("remove volunteer {node}, and make its credential worthless?"),
                    "node remove",
                )?;
            }
            let removed: NodeView = client.delete(&path).await?;
            print(json, &removed, |out| {
                writeln!(out, "removed volunteer {} ({})", removed.name, removed.node)
            })
        }
        Verb::Where { path } => {
            let found: WhereView = client.get("where", &[("path", path)]).await?;
            print(json, &found, |out| show::holders(out, &found))
        }
        Verb::Explain { path, client: address } => {
            let address = address.to_string();
            let explained: ExplainView =
                client.get("explain", &[("path", path), ("client", &address)]).await?;
            print(json, &explained, |out| balance::explanation(out, &explained))
        }
        Verb::Balance(verb) => balance::balance(&client, json, verb).await,
        Verb::Budget => balance::budget(&client, json).await,
        Verb::Placement(verb) => balance::placement(&client, json, verb).await,
        Verb::Swarm => {
            let swarm: SwarmView = client.get("swarm", &[]).await?;
            print(json, &swarm, |out| show::swarm(out, &swarm))
        }
        Verb::Publish { timeout } => {
            let published = publish(&client, Duration::from_secs(*timeout)).await?;
            print(json, &published, |out| {
                writeln!(out, "published: state {} is what customers and volunteers see", published.released)
            })
        }
        Verb::Status => {
            let status: StatusView = client.get("status", &[]).await?;
            print(json, &status, |out| show::status(out, &status))
        }
    }
}

/// Asks for a walk and waits until volunteers are told of all that it found.
async fn publish(client: &Client, timeout: Duration) -> anyhow::Result<PublishView> {
    let begun = Instant::now();
    let mut view: PublishView = client.post("publish", &()).await?;
    let mut told = None;
    while !view.done {
        let stage = if view.walked { "making bundles for volunteers" } else { "reading the repository" };
        if told != Some(stage) {
            eprintln!("{stage}");
            told = Some(stage);
        }
        if begun.elapsed() >= timeout {
            bail!(
                "not done within {} s ({stage}, {} files still to hash); control goes on with it",
                timeout.as_secs(),
                view.pending
            );
        }
        tokio::time::sleep(PUBLISH_POLL).await;
        view = client.get(&format!("publish/{}", view.walk), &[]).await?;
    }
    Ok(view)
}

fn credentials(arguments: &Arguments) -> anyhow::Result<OperatorCredentials> {
    let file = arguments.credentials.clone().unwrap_or_else(|| PathBuf::from(CREDENTIALS_DEFAULT));
    let refuse = |reason: String| Failure::Credentials { file: file.clone(), reason };
    let text = std::fs::read_to_string(&file).map_err(|error| refuse(error.to_string()))?;
    let mut credentials: OperatorCredentials =
        serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
    if let Some(api) = &arguments.api {
        credentials.api.clone_from(api);
    }
    Ok(credentials)
}

/// A name or number as one segment of a URL's path; nothing that could be more than one segment passes.
pub(crate) fn node_path(node: &str) -> anyhow::Result<String> {
    let fits = (1..=64).contains(&node.len())
        && node.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !fits {
        bail!("expected a volunteer's name or number, found {node:?}; `ctl node list` prints them");
    }
    Ok(format!("nodes/{node}"))
}

pub(crate) fn confirm(question: &str, verb: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("`ctl {verb}` asks before it does that; add --yes where nobody can answer");
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was changed");
    }
    Ok(())
}

pub(crate) fn print<T: Serialize>(
    json: bool,
    view: &T,
    table: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut text = Vec::new();
    if json {
        serde_json::to_writer_pretty(&mut text, view)?;
        text.push(b'\n');
    } else {
        table(&mut text)?;
    }
    match std::io::stdout().lock().write_all(&text) {
        // The reader has seen enough (`ctl node list | head`).
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write the answer"),
    }
}

const PUBLISH_POLL: Duration = Duration::from_millis(200);
const CREDENTIALS_DEFAULT: &str = "/var/lib/freshet/control/admin.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_node_is_one_segment() {
        assert_eq!(node_path("edge-7.example").unwrap(), "nodes/edge-7.example");
        for node in ["", "a/b", "a?b", "a b", "%2e", &"x".repeat(65)] {
            assert!(node_path(node).is_err(), "{node:?}");
        }
    }
}
