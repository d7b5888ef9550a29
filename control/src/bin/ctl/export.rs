//! Volunteers, ledger and files in forms that other programs read.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use freshet_api::admin::NodeView;
use freshet_api::operator::{DownloadsView, FilesView};

use crate::client::Client;

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Volunteers with what operators keep about them.
    Nodes,
    /// Bytes of each volunteer since it joined.
    Ledger,
    /// Files with how many hold them.
    Files,
    /// How often customers asked for each file.
    Downloads,
}

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// A line each, with a header (RFC 4180).
    Csv,
    /// One JSON array.
    Json,
    /// Volunteers as mirmon's list of mirrors: a country, `xx` where it is not known, the URL, whom to ask.
    Mirmon,
}

pub(crate) async fn run(client: &Client, what: What, form: Form) -> anyhow::Result<()> {
    let text = match what {
        What::Files => {
            let limit = FILES_MAX.to_string();
            let found: FilesView = client.get("files", &[("match", "/**"), ("limit", &limit)]).await?;
            if found.matching > found.files.len() as u64 {
                eprintln!("the first {} of {} files", found.files.len(), found.matching);
            }
            match form {
                Form::Json => json(&found.files)?,
                Form::Csv => {
                    let rows = found.files.iter().map(|file| {
                        let numbers =
                            [file.size.to_string(), file.mtime.to_string(), file.holders.to_string()];
                        std::iter::once(file.path.to_string()).chain(numbers).collect()
                    });
                    csv(&["path", "size", "mtime", "holders"], rows)
                }
                Form::Mirmon => bail!("expected --format csv or json: mirmon reads volunteers only"),
            }
        }
        What::Downloads => {
            let limit = FILES_MAX.to_string();
            let query = [("match", "/**"), ("by", "total"), ("limit", &limit)];
            let counted: DownloadsView = client.get("downloads", &query).await?;
            if counted.matching > counted.files.len() as u64 {
                eprintln!("the {} most asked for of {} files", counted.files.len(), counted.matching);
            }
            match form {
                Form::Json => json(&counted.files)?,
                Form::Csv => {
                    let rows = counted.files.iter().map(|file| {
                        let numbers = [file.today, file.week, file.month, file.total].map(|n| n.to_string());
                        std::iter::once(file.path.clone()).chain(numbers).collect()
                    });
                    csv(&["path", "today", "week", "month", "total"], rows)
                }
                Form::Mirmon => bail!("expected --format csv or json: mirmon reads volunteers only"),
            }
        }
        What::Nodes | What::Ledger => {
            let nodes: Vec<NodeView> = client.get("nodes", &[]).await?;
            match (what, form) {
                (_, Form::Json) => json(&nodes)?,
                (What::Ledger, Form::Csv) => csv(
                    &["node", "name", "delivered_bytes", "synced_in_bytes", "synced_out_bytes"],
                    nodes.iter().map(|node| {
                        let ledger = &node.ledger;
                        let sums = [ledger.delivered_bytes, ledger.synced_in_bytes, ledger.synced_out_bytes];
                        let id = [node.node.to_string(), node.name.clone()];
                        id.into_iter().chain(sums.map(|sum| sum.to_string())).collect()
                    }),
                ),
                (_, Form::Csv) => csv(
                    &["node", "name", "state", "url", "version", "files", "sponsor", "contact", "note"],
                    nodes.iter().map(|node| {
                        vec![
                            node.node.to_string(),
                            node.name.clone(),
                            node.state.name().to_owned(),
                            node.delivery_url.clone().unwrap_or_default(),
                            node.version.clone().unwrap_or_default(),
                            node.files_held.to_string(),
                            node.profile.sponsor.clone(),
                            node.profile.contact.clone(),
                            node.profile.note.clone(),
                        ]
                    }),
                ),
                (What::Nodes, Form::Mirmon) => mirmon(&nodes),
                (_, Form::Mirmon) => bail!("expected `ctl export nodes --format mirmon`"),
            }
        }
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write the answer"),
    }
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn csv(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = header.join(",") + "\r\n";
    for row in rows {
        let fields: Vec<String> = row.iter().map(|field| quoted(field)).collect();
        text.push_str(&fields.join(","));
        text.push_str("\r\n");
    }
    text
}

fn quoted(field: &str) -> String {
    if field.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

fn mirmon(nodes: &[NodeView]) -> String {
    let lines = nodes.iter().filter_map(|node| {
        let contact: String = node.profile.contact.split_whitespace().next().unwrap_or("-").to_owned();
        Some(format!("xx {}/ {contact}\n", node.delivery_url.as_ref()?))
    });
    lines.collect()
}

const FILES_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_line_is_quoted() {
        let rows =
            [vec!["a,b".to_owned(), "say \"x\"".to_owned()], vec!["plain".to_owned(), "l\nm".to_owned()]];
        let text = csv(&["one", "two"], rows.into_iter());
        assert_eq!(text, "one,two\r\n\"a,b\",\"say \"\"x\"\"\"\r\nplain,\"l\nm\"\r\n");
    }
}
