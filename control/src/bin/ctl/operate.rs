//! The verbs about operators and their view of the whole: keys, the audit log, events, files, the ledger, export, reload.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Subcommand, ValueEnum};
use freshet_api::admin::{NodeView, OperatorCredentials, StatusView, WhereView};
use freshet_api::operator::{
    AddKey, AuditEntry, CheckOutcome, DownloadsBy, DownloadsView, EditNode, Event, FilesView, KeyView,
    ReloadView, Role, Verify, VerifyView,
};

use crate::client::{Client, Failure};
use crate::{confirm, export, node_path, print, show, show_operator, top, watch};

/// Verbs beside those of `main`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Operators' keys: add, list, revoke.
    #[command(subcommand)]
    Key(KeyVerb),
    /// Who changed what, and when; newest first.
    Audit {
        /// So many lines at most.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// What happened: volunteers that came and went, releases, what operators did; of one volunteer, if it is named.
    #[command(visible_alias = "logs")]
    Events {
        /// Only what is about this volunteer.
        node: Option<String>,
        /// Goes on with what happens from now on.
        #[arg(long, short)]
        follow: bool,
        /// So many lines at most.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// A file with its checksums and holders; for a pattern, the files that match, with how many hold each.
    #[command(visible_alias = "files")]
    File {
        /// Path in the repository, or a pattern of `*`, `?` and `**` (across directories).
        path: String,
        /// So many files at most.
        #[arg(long, value_name = "N", default_value_t = 200)]
        limit: usize,
    },
    /// What each volunteer delivered and copied, since it joined and just now, and its part of the whole; with --files how
    /// often customers asked for each file.
    Stats {
        /// Only this volunteer.
        node: Option<String>,
        /// Counts files in place of volunteers: all, or those whose path matches a pattern of `*`, `?` and `**`.
        #[arg(
            long,
            value_name = "PATTERN",
            num_args = 0..=1,
            default_missing_value = "/**",
            conflicts_with = "node"
        )]
        files: Option<String>,
        /// By which time files are put in order.
        #[arg(long, value_enum, default_value_t = Span::Month, requires = "files")]
        by: Span,
        /// So many files at most.
        #[arg(long, value_name = "N", default_value_t = 50, requires = "files")]
        limit: usize,
    },
    /// Who helps and who costs: bytes delivered less bytes copied, for each volunteer and in all.
    Ledger,
    /// Volunteers, ledger, files or downloads for other programs.
    Export {
        /// What.
        what: export::What,
        /// In which form.
        #[arg(long, value_enum, default_value_t = export::Form::Csv)]
        format: export::Form,
    },
    /// Live: every volunteer and interface with its classes, share, backlog and what is left. `?` shows the keys.
    Top(top::Options),
    /// A line every few seconds: what is delivered, copied and sent by the origin, and who is there.
    Watch(watch::Options),
    /// Control reads its configuration again; says what is in force and what waits for a restart.
    Reload,
    /// Control ends in order and is started anew by its service manager, with whatever program is installed now. No
    /// connection is refused meanwhile; waits until it is back.
    Upgrade {
        /// Gives up waiting after so many seconds.
        #[arg(long, value_name = "SECS", default_value_t = 120)]
        timeout: u64,
    },
    /// Completions for a shell, to be sourced.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Manual pages, one for each verb, written into a directory.
    Man {
        /// Where.
        directory: PathBuf,
    },
}

/// `ctl key`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Makes a key for an operator and writes it to a file, for `ctl --credentials`.
    Add {
        /// Who it is for: 1 to 64 letters, digits, `.`, `_`, `-`, `@`; unique.
        name: String,
        /// What it lets them do.
        #[arg(long, value_enum, default_value_t = RoleName::ReadOnly)]
        role: RoleName,
        /// Where it is written; must not be there yet [default: NAME.json]
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// All keys, without what is secret in them.
    List,
    /// Makes a key worthless, at once.
    Revoke {
        /// Whose.
        name: String,
        /// Does it without asking.
        #[arg(long)]
        yes: bool,
    },
}

/// Times over which downloads are counted, as flags; days are those of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Span {
    /// Today.
    Today,
    /// The last seven days.
    Week,
    /// The last thirty days.
    Month,
    /// Since counting began.
    Total,
}

/// Roles as flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Sees everything and changes nothing.
    ReadOnly,
    /// Changes what can be changed.
    Admin,
}

/// More verbs of `ctl node`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Changes its name, or what operators keep about it. What is not given stays; empty text takes it away.
    Edit {
        /// Its name or number.
        node: String,
        /// A new name.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Whom to ask about it.
        #[arg(long, value_name = "TEXT")]
        contact: Option<String>,
        /// Who gives it; shown on the status page.
        #[arg(long, value_name = "TEXT")]
        sponsor: Option<String>,
        /// Anything else.
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Asks it for ranges of files, as a customer would, and compares them with the repository. Who sends other bytes is
    /// banned, and the exit status is 4.
    #[command(visible_alias = "scan")]
    Verify {
        /// Its name or number.
        node: String,
        /// Only this file; without it files that it holds, drawn at random.
        #[arg(long, value_name = "PATH")]
        path: Option<String>,
        /// So many ranges of up to 256 KiB, at most 100.
        #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
        ranges: u32,
    },
}

/// Does what a verb says. Those that need no control were done before.
pub(crate) async fn run(client: &Client, json: bool, verb: &Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Key(verb) => keys(client, json, verb).await,
        Verb::Audit { limit } => {
            let limit = limit.to_string();
            let entries: Vec<AuditEntry> = client.get("audit", &[("limit", &limit)]).await?;
            print(json, &entries, |out| show_operator::audit(out, &entries))
        }
        Verb::Events { node, follow, limit } => events(client, json, node.as_deref(), *follow, *limit).await,
        Verb::File { path, limit } if path.contains(['*', '?']) => {
            let limit = limit.to_string();
            let found: FilesView = client.get("files", &[("match", path), ("limit", &limit)]).await?;
            print(json, &found, |out| show_operator::files(out, &found))
        }
        Verb::File { path, .. } => {
            let found: WhereView = client.get("where", &[("path", path)]).await?;
            print(json, &found, |out| show::holders(out, &found))
        }
        Verb::Stats { files: Some(pattern), by, limit, .. } => {
            let (by, text) = match by {
                Span::Today => (DownloadsBy::Today, "today"),
                Span::Week => (DownloadsBy::Week, "week"),
                Span::Month => (DownloadsBy::Month, "month"),
                Span::Total => (DownloadsBy::Total, "total"),
            };
            let limit = limit.to_string();
            let query = [("match", pattern.as_str()), ("by", text), ("limit", &limit)];
            let counted: DownloadsView = client.get("downloads", &query).await?;
            print(json, &counted, |out| show_operator::downloads(out, &counted, by))
        }
        Verb::Stats { node, .. } => {
            let nodes: Vec<NodeView> = client.get("nodes", &[]).await?;
            let chosen = match node {
                None => nodes.clone(),
                Some(node) => vec![client.get::<NodeView>(&node_path(node)?, &[]).await?],
            };
            print(json, &chosen, |out| show_operator::stats(out, &chosen, &nodes))
        }
        Verb::Ledger => {
            let nodes: Vec<NodeView> = client.get("nodes", &[]).await?;
            let status: StatusView = client.get("status", &[]).await?;
            let ledger = show_operator::Ledger::of(&nodes, &status);
            print(json, &ledger, |out| ledger.show(out))
        }
        Verb::Export { what, format } => export::run(client, *what, *format).await,
        Verb::Top(options) => top::run(client, options).await,
        Verb::Watch(options) => watch::run(client, json, options).await,
        Verb::Reload => {
            let view: ReloadView = client.post("reload", &()).await?;
            print(json, &view, |out| show_operator::reloaded(out, &view))
        }
        Verb::Upgrade { timeout } => upgrade(client, json, Duration::from_secs(*timeout)).await,
        Verb::Completions { .. } | Verb::Man { .. } => bail!("this verb needs no control"),
    }
}

/// Does what a verb of `ctl node` says.
pub(crate) async fn run_node(client: &Client, json: bool, verb: &NodeVerb) -> anyhow::Result<()> {
    match verb {
        NodeVerb::Edit { node, name, contact, sponsor, note } => {
            let edit = EditNode {
                name: name.clone(),
                contact: contact.clone(),
                sponsor: sponsor.clone(),
                note: note.clone(),
            };
            if edit == EditNode::default() {
                bail!("expected --name, --contact, --sponsor or --note: nothing was given to change");
            }
            let node: NodeView = client.post(&format!("{}/edit", node_path(node)?), &edit).await?;
            print(json, &node, |out| show::node(out, &node))
        }
        NodeVerb::Verify { node, path, ranges } => {
            let verify = Verify { path: path.clone(), ranges: *ranges };
            let view: VerifyView = client.post(&format!("{}/verify", node_path(node)?), &verify).await?;
            print(json, &view, |out| show_operator::verified(out, &view))?;
            if view.checks.iter().any(|check| check.outcome == CheckOutcome::Wrong) {
                return Err(Failure::Caught { name: view.name }.into());
            }
            Ok(())
        }
    }
}

async fn keys(client: &Client, json: bool, verb: &KeyVerb) -> anyhow::Result<()> {
    match verb {
        KeyVerb::Add { name, role, out } => {
            let file = out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.json")));
            // Before there is a key that could not be written anywhere.
            let mut written = private_file(&file)?;
            let role = match role {
                RoleName::ReadOnly => Role::ReadOnly,
                RoleName::Admin => Role::Admin,
            };
            let made = client.post("keys", &AddKey { name: name.clone(), role }).await;
            let credentials: OperatorCredentials = match made {
                Ok(credentials) => credentials,
                Err(error) => {
                    drop(written);
                    // It is empty and ours.
                    let _ = std::fs::remove_file(&file);
                    return Err(error.into());
                }
            };
            serde_json::to_writer_pretty(&mut written, &credentials)?;
            writeln!(written)?;
            written.sync_all().with_context(|| format!("cannot write {}", file.display()))?;
            let made = serde_json::json!({"name": name, "role": role, "file": file});
            print(json, &made, |out| {
                writeln!(out, "{}: the {role} key of {name}; give it to them in private", file.display())
            })
        }
        KeyVerb::List => {
            let keys: Vec<KeyView> = client.get("keys", &[]).await?;
            print(json, &keys, |out| show_operator::keys(out, &keys))
        }
        KeyVerb::Revoke { name, yes } => {
            if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte)) {
                bail!("expected an operator's name, found {name:?}; `ctl key list` prints them");
            }
            if !yes {
                confirm(&format!("make the key of {name} worthless?"), "key revoke")?;
            }
            let keys: Vec<KeyView> = client.delete(&format!("keys/{name}")).await?;
            print(json, &keys, |out| show_operator::keys(out, &keys))
        }
    }
}

/// A new file that only its owner may read.
fn private_file(path: &std::path::Path) -> anyhow::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
        .open(path)
        .with_context(|| format!("cannot make {}; name another file with --out", path.display()))
}

async fn events(
    client: &Client,
    json: bool,
    node: Option<&str>,
    follow: bool,
    limit: usize,
) -> anyhow::Result<()> {
    let (mut after, mut wait) = (0_u64, 0_u64);
    let limit = limit.to_string();
    loop {
        let (after_text, wait_text) = (after.to_string(), wait.to_string());
        let mut query = vec![("after", after_text.as_str()), ("wait", &wait_text), ("limit", &limit)];
        if let Some(node) = node {
            query.push(("node", node));
        }
        let events: Vec<Event> = client.get("events", &query).await?;
        if !follow {
            return print(json, &events, |out| show_operator::events(out, &events));
        }
        for event in &events {
            if json {
                println!("{}", serde_json::to_string(event)?);
            } else {
                print(false, event, |out| show_operator::events(out, std::slice::from_ref(event)))?;
            }
        }
        after = events.last().map_or(after, |event| event.id);
        wait = FOLLOW_WAIT_SECS;
    }
}

/// Asks for a new start and waits until another process answers.
async fn upgrade(client: &Client, json: bool, timeout: Duration) -> anyhow::Result<()> {
    let before: StatusView = client.get("status", &[]).await?;
    let begun = Instant::now();
    let _: ReloadView = client.post("upgrade", &()).await?;
    eprintln!("control {} ends; waiting for the next one", before.version);
    loop {
        tokio::time::sleep(UPGRADE_POLL).await;
        // Refused or cut off while the one goes and the other comes.
        let now = client.get::<StatusView>("status", &[]).await;
        if let Ok(now) = now
            && now.uptime_secs <= begun.elapsed().as_secs()
        {
            return print(json, &now, |out| {
                writeln!(out, "control {} runs, in place of {}", now.version, before.version)
            });
        }
        if begun.elapsed() > timeout {
            bail!(
                "no new control answered within {} s; look at `systemctl status freshet-control`",
                timeout.as_secs()
            );
        }
    }
}

/// Below the time in which an answer must come.
const FOLLOW_WAIT_SECS: u64 = 45;
const UPGRADE_POLL: Duration = Duration::from_millis(500);
