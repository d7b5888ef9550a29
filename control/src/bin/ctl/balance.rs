//! `ctl balance`, `ctl budget`, `ctl placement` and the table of `ctl explain`: what decides where customers go and how
//! volunteers' rates are shared.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use comfy_table::Table;
use freshet_api::admin::{ExplainView, NodeView};
use freshet_api::balance::{BalanceView, Change, Revert, SetKnob};
use freshet_api::placement::{Expectation, Forget, PlacementView};
use freshet_api::{Bytes, BytesPerSec};

use crate::client::Client;
use crate::print;
use crate::show::{age, right, table};

type Outcome = std::io::Result<()>;

/// Turns the knobs of a running control.
#[derive(Debug, Subcommand)]
pub(crate) enum BalanceVerb {
    /// Every knob with its default, what was changed by whom, and how each volunteer's rate is shared just now.
    Get,
    /// Turns one; in force within a second, and kept across restarts.
    Set {
        /// Its name, as `ctl balance get` prints it.
        knob: String,
        /// A number, a rate such as `200 Mbit/s`, a word; `default` or `none`.
        value: String,
    },
    /// Undoes the last changes, newest first.
    Revert {
        /// How many.
        #[arg(default_value_t = 1)]
        changes: usize,
    },
}

/// Who is told to hold what.
#[derive(Debug, Subcommand)]
pub(crate) enum PlacementVerb {
    /// Volunteers that leave it to control, and what they are told.
    Show,
    /// Expects a crowd, so that files are where they will be asked for before it comes.
    Expect {
        /// Which files, such as `iso/13.0/**`.
        pattern: String,
        /// What will be asked of all of them together, such as `10 Gbit/s`.
        rate: BytesPerSec,
        /// For how many hours.
        #[arg(long, default_value_t = 72)]
        hours: u64,
    },
    /// Does not expect it any more.
    Forget {
        /// The pattern it was expected by.
        pattern: String,
    },
}

pub(crate) async fn balance(client: &Client, json: bool, verb: &BalanceVerb) -> anyhow::Result<()> {
    match verb {
        BalanceVerb::Get => {
            let view: BalanceView = client.get("balance", &[]).await?;
            print(json, &view, |out| show_balance(out, &view))
        }
        BalanceVerb::Set { knob, value } => {
            let set = SetKnob { knob: knob.clone(), value: value.clone() };
            let view: BalanceView = client.post("balance", &set).await?;
            print(json, &view, |out| {
                let now = view.knobs.iter().find(|one| one.knob == *knob);
                writeln!(out, "{knob} is at {}", now.map_or("", |one| one.value.as_str()))
            })
        }
        BalanceVerb::Revert { changes } => {
            let undone: Vec<Change> = client.post("balance/revert", &Revert { changes: *changes }).await?;
            print(json, &undone, |out| {
                undone.iter().try_for_each(|change| {
                    writeln!(out, "{} is back at {} (was {})", change.knob, change.before, change.after)
                })
            })
        }
    }
}

pub(crate) async fn placement(client: &Client, json: bool, verb: &PlacementVerb) -> anyhow::Result<()> {
    let view: PlacementView = match verb {
        PlacementVerb::Show => client.get("placement", &[]).await?,
        PlacementVerb::Expect { pattern, rate, hours } => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let until = now.saturating_add(hours.saturating_mul(3_600));
            client
                .post("placement/expect", &Expectation { pattern: pattern.clone(), rate: *rate, until })
                .await?
        }
        PlacementVerb::Forget { pattern } => {
            client.post("placement/forget", &Forget { pattern: pattern.clone() }).await?
        }
    };
    print(json, &view, |out| show_placement(out, &view))
}

pub(crate) async fn budget(client: &Client, json: bool) -> anyhow::Result<()> {
    let nodes: Vec<NodeView> = client.get("nodes", &[]).await?;
    print(json, &nodes, |out| show_budgets(out, &nodes))
}

fn show_balance(out: &mut impl Write, view: &BalanceView) -> Outcome {
    let mut knobs = table(&["knob", "value", "default"]);
    for knob in &view.knobs {
        let default = if knob.value == knob.default { "" } else { &knob.default };
        knobs.add_row([&knob.knob, &knob.value, default]);
    }
    writeln!(out, "{}", knobs.trim_fmt())?;
    if !view.changes.is_empty() {
        let mut changes = table(&["changed", "by", "knob", "from", "to"]);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for change in &view.changes {
            let ago = now.saturating_sub(Duration::from_secs(change.at));
            changes.add_row([
                format!("{} ago", age(ago)),
                change.who.clone(),
                change.knob.clone(),
                change.before.clone(),
                change.after.clone(),
            ]);
        }
        writeln!(out, "\n{}", changes.trim_fmt())?;
    }
    if view.shares.is_empty() {
        return Ok(());
    }
    let mut shares = table(&[
        "volunteer",
        "delivery",
        "sync",
        "rate",
        "owes customers",
        "mirrors want",
        "behind",
        "urgency",
        "late: delivery",
        "sync",
    ]);
    right(&mut shares, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for share in &view.shares {
        shares.add_row([
            share.name.clone(),
            format!("{:.0} %", share.delivery_percent),
            format!("{:.0} %", 100.0 - share.delivery_percent),
            share.rate.to_string(),
            Bytes(share.delivery_backlog).to_string(),
            Bytes(share.sync_backlog).to_string(),
            age(Duration::from_secs(share.sync_age_secs)),
            format!("{:.1}", share.urgency),
            format!("{:.2}", share.delivery_lateness),
            format!("{:.2}", share.sync_lateness),
        ]);
    }
    writeln!(out, "\n{}", shares.trim_fmt())
}

fn show_placement(out: &mut impl Write, view: &PlacementView) -> Outcome {
    if !view.on {
        writeln!(out, "placement is off: nobody is told anything else (`ctl balance set placement on`)")?;
    }
    for expectation in &view.expected {
        writeln!(out, "expected: {} of {}", expectation.rate, expectation.pattern)?;
    }
    if view.hosts.is_empty() {
        return writeln!(
            out,
            "no volunteer leaves it to control what to hold (`ordered = true` in its [mirror])"
        );
    }
    let mut hosts = table(&["volunteer", "there", "stays", "room", "collections", "hot files"]);
    right(&mut hosts, &[1, 2, 3]);
    for host in &view.hosts {
        hosts.add_row([
            host.name.clone(),
            format!("{:.0} %{}", host.available_percent, if host.stable { ", stable" } else { "" }),
            age(Duration::from_secs(host.session_secs)),
            host.space.to_string(),
            host.collections.join("\n"),
            host.hot.join("\n"),
        ]);
    }
    writeln!(out, "{}", hosts.trim_fmt())
}

fn show_budgets(out: &mut impl Write, nodes: &[NodeView]) -> Outcome {
    let mut budgets = table(&[
        "volunteer",
        "gives now",
        "limited by",
        "this month",
        "left",
        "month ends in",
        "still promises",
    ]);
    right(&mut budgets, &[1, 3, 4, 5, 6]);
    let mut shown = 0;
    for node in nodes {
        let Some(budget) = &node.budget else { continue };
        shown += 1;
        let month = budget.month.as_ref();
        let none = || "-".to_owned();
        budgets.add_row([
            node.name.clone(),
            budget.rate.map_or_else(|| "no limit".to_owned(), |rate| rate.to_string()),
            budget.limit.clone(),
            budget.used.to_string(),
            month.map_or_else(none, |month| format!("{} of {}", month.left, month.volume)),
            month.map_or_else(none, |month| age(Duration::from_secs(month.ends_in_secs))),
            budget.promisable.map_or_else(|| "no end".to_owned(), |bytes| bytes.to_string()),
        ]);
    }
    if shown == 0 {
        return writeln!(out, "no volunteer has told of its budget yet");
    }
    writeln!(
        out,
        "{}\nowners set these, in `dataplane.toml`; `ctl node drain` takes one out",
        budgets.trim_fmt()
    )
}

/// Every number that decided about a request.
pub(crate) fn explanation(out: &mut impl Write, explained: &ExplainView) -> Outcome {
    writeln!(out, "{} for {}: {}", explained.path, explained.client, explained.decision)?;
    for (name, value) in &explained.numbers {
        writeln!(out, "  {name}: {value}")?;
    }
    if explained.considered.is_empty() {
        return Ok(());
    }
    let mut shown: Table = table(&[
        "",
        "node",
        "name",
        "finish in",
        "times",
        "before it",
        "may stand",
        "outstanding",
        "rate",
        "budget",
        "dearer",
        "nearness",
        "left out because",
    ]);
    right(&mut shown, &[1, 3, 4, 5, 6, 7, 8, 9, 10]);
    let none = || "-".to_owned();
    for node in &explained.considered {
        shown.add_row([
            if explained.chosen == Some(node.node) { "->".to_owned() } else { String::new() },
            node.node.to_string(),
            node.name.clone(),
            node.expected_finish_ms.map_or_else(none, |ms| format!("{ms:.1} ms")),
            node.factor.map_or_else(none, |factor| format!("{factor:.1}")),
            Bytes(node.backlog_bytes).to_string(),
            node.limit_bytes.map_or_else(none, |bytes| Bytes(bytes).to_string()),
            Bytes(node.outstanding_bytes).to_string(),
            node.rate.map_or_else(none, |rate| rate.to_string()),
            node.budget_bytes.map_or_else(none, |bytes| Bytes(bytes).to_string()),
            format!("{:.1}", node.budget_price),
            node.nearness.clone(),
            node.excluded.clone().unwrap_or_default(),
        ]);
    }
    writeln!(out, "{}", shown.trim_fmt())
}

#[cfg(test)]
mod tests {
    use freshet_api::NodeId;
    use freshet_api::admin::Considered;
    use freshet_api::balance::{KnobView, ShareView};

    use super::*;

    fn text(show: impl FnOnce(&mut Vec<u8>) -> Outcome) -> String {
        let mut out = Vec::new();
        show(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_chosen_volunteer_is_marked_and_every_number_shown() {
        let considered = |node, excluded: Option<&str>| Considered {
            node: NodeId(node),
            name: format!("n{node}"),
            excluded: excluded.map(str::to_owned),
            expected_finish_ms: Some(12.5),
            outstanding_bytes: 1 << 20,
            rate: None,
            backlog_bytes: 2 << 20,
            limit_bytes: Some(3 << 20),
            budget_bytes: None,
            budget_price: 1.5,
            nearness: "same country".into(),
            factor: Some(2.0),
            reported_load: 0.1,
            weight: 1,
        };
        let explained = ExplainView {
            path: "/a".into(),
            client: "192.0.2.1".parse().unwrap(),
            decision: "redirect".into(),
            chosen: Some(NodeId(2)),
            considered: vec![considered(1, Some("draining")), considered(2, None)],
            numbers: vec![("customer_wait_secs".into(), "30".into())],
        };
        let shown = text(|out| explanation(out, &explained));
        let marked = shown.lines().find(|line| line.contains("->")).unwrap();
        for part in ["n2", "12.5 ms", "1 MiB", "2 MiB", "3 MiB", "same country", "1.5"] {
            assert!(marked.contains(part), "{part} is missing in\n{shown}");
        }
        assert!(shown.contains("draining") && shown.contains("customer_wait_secs: 30"), "{shown}");
    }

    #[test]
    fn knobs_shares_and_changes_are_shown() {
        let view = BalanceView {
            knobs: vec![KnobView {
                knob: "arbiter".into(),
                value: "off".into(),
                default: "equal-lateness".into(),
            }],
            changes: vec![Change {
                at: 1,
                who: "ada".into(),
                knob: "arbiter".into(),
                before: "equal-lateness".into(),
                after: "off".into(),
            }],
            shares: vec![ShareView {
                name: "south".into(),
                delivery_percent: 62.0,
                rate: BytesPerSec(125_000),
                delivery_backlog: 1,
                sync_backlog: 2,
                sync_age_secs: 3,
                urgency: 1.0,
                delivery_lateness: 0.5,
                sync_lateness: 0.5,
            }],
        };
        let shown = text(|out| show_balance(out, &view));
        for part in ["arbiter", "ada", "south", "62 %", "38 %", "equal-lateness"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        assert!(text(|out| show_placement(out, &PlacementView::default())).contains("ordered = true"));
        assert!(text(|out| show_budgets(out, &[])).contains("no volunteer"));
    }
}
