//! Tables for people, of operators' own verbs: keys, audit log, events, files, statistics, ledger, verification.

use std::io::Write;

use freshet_api::Bytes;
use freshet_api::admin::{NodeView, StatusView};
use freshet_api::operator::{
    AuditEntry, CheckOutcome, ClassRates, DownloadsBy, DownloadsView, Event, FilesView, KeyView, ReloadView,
    VerifyView,
};
use serde::Serialize;

use crate::show::{Outcome, moment, right, table};

pub(crate) fn keys(out: &mut impl Write, keys: &[KeyView]) -> Outcome {
    let mut table = table(&["name", "role", "made", "last used"]);
    for key in keys {
        table.add_row([
            key.name.clone(),
            key.role.to_string(),
            key.added.map_or_else(|| "at the first start".to_owned(), at),
            key.used.map_or_else(|| "not since control's start".to_owned(), at),
        ]);
    }
    writeln!(out, "{}", table.trim_fmt())
}

pub(crate) fn audit(out: &mut impl Write, entries: &[AuditEntry]) -> Outcome {
    if entries.is_empty() {
        return writeln!(out, "nobody changed anything yet");
    }
    let mut table = table(&["when", "who", "role", "from", "status", "what"]);
    for entry in entries {
        let body = entry.body.as_ref().map_or_else(String::new, |body| format!(" {body}"));
        table.add_row([
            at(entry.at),
            entry.who.clone(),
            entry.role.to_string(),
            entry.from.map_or_else(|| "-".to_owned(), |from| from.to_string()),
            if entry.status < 300 { "done".to_owned() } else { format!("refused ({})", entry.status) },
            format!("{}{body}", entry.request.replace("/v1/admin/", "")),
        ]);
    }
    writeln!(out, "{}", table.trim_fmt())
}

pub(crate) fn events(out: &mut impl Write, events: &[Event]) -> Outcome {
    for event in events {
        let node = event.node.as_deref().unwrap_or("-");
        writeln!(out, "{}  {:<9}  {node:<16}  {}", at(event.at), event.kind.name(), event.text)?;
    }
    if events.is_empty() {
        writeln!(out, "nothing happened since control's start; what was before stands in its log")?;
    }
    Ok(())
}

pub(crate) fn files(out: &mut impl Write, found: &FilesView) -> Outcome {
    let mut table = table(&["size", "modified", "holders", "path"]);
    right(&mut table, &[0, 2]);
    for file in &found.files {
        table.add_row([
            Bytes(file.size).to_string(),
            moment(file.mtime),
            file.holders.to_string(),
            file.path.to_string(),
        ]);
    }
    if found.files.is_empty() {
        return writeln!(
            out,
            "no file matches; a pattern with a `/` is for the whole path, `**` crosses directories"
        );
    }
    writeln!(out, "{}", table.trim_fmt())?;
    let (shown, matching) = (found.files.len() as u64, found.matching);
    if shown < matching {
        writeln!(out, "{shown} of {matching}; --limit shows more")?;
    }
    Ok(())
}

pub(crate) fn stats(out: &mut impl Write, chosen: &[NodeView], all: &[NodeView]) -> Outcome {
    let whole: u64 = all.iter().map(|node| node.ledger.delivered_bytes).sum();
    let mut table = table(&[
        "name",
        "state",
        "delivered",
        "part",
        "copied",
        "given on",
        "delivers",
        "copies",
        "responses",
        "sent back",
        "abandoned",
    ]);
    right(&mut table, &[2, 3, 4, 5, 6, 7, 8, 9, 10]);
    for node in chosen {
        let rates = node.rates.iter().fold(ClassRates::default(), |sum, rates| sum.plus(rates.classes));
        let delivery = node.delivery.unwrap_or_default();
        table.add_row([
            node.name.clone(),
            node.state.name().to_owned(),
            Bytes(node.ledger.delivered_bytes).to_string(),
            part(node.ledger.delivered_bytes, whole),
            Bytes(node.ledger.synced_in_bytes).to_string(),
            Bytes(node.ledger.synced_out_bytes).to_string(),
            rates.delivery.sent.to_string(),
            rates.sync.received.to_string(),
            delivery.responses.to_string(),
            delivery.sent_back.to_string(),
            Bytes(delivery.abandoned_bytes).to_string(),
        ]);
    }
    writeln!(out, "{}", table.trim_fmt())
}

pub(crate) fn downloads(out: &mut impl Write, counted: &DownloadsView, by: DownloadsBy) -> Outcome {
    let DownloadsView { since, files, matching, sum, unknown } = counted;
    if files.is_empty() {
        return writeln!(
            out,
            "nobody asked for such a file since {}; a pattern with a `/` is for the whole path, `**` crosses directories",
            at(*since)
        );
    }
    let mut table = table(&["today", "7 days", "30 days", "total", "path"]);
    right(&mut table, &[0, 1, 2, 3]);
    let row = |numbers: [u64; 4], path: &str| {
        numbers.map(|number| number.to_string()).into_iter().chain([path.to_owned()]).collect::<Vec<_>>()
    };
    for file in files {
        table.add_row(row([file.today, file.week, file.month, file.total], &file.path));
    }
    let all = format!("all {matching} together, counted since {}", at(*since));
    table.add_row(row([sum.today, sum.week, sum.month, sum.total], &all));
    writeln!(out, "{}", table.trim_fmt())?;
    if (files.len() as u64) < *matching {
        let order = match by {
            DownloadsBy::Today => "today",
            DownloadsBy::Week => "in 7 days",
            DownloadsBy::Month => "in 30 days",
            DownloadsBy::Total => "in all",
        };
        writeln!(out, "the {} most asked for {order}; --limit shows more", files.len())?;
    }
    if *unknown > 0 {
        writeln!(out, "and {unknown} requests for files that are long gone")?;
    }
    Ok(())
}

/// Who helps and who costs.
#[derive(Debug, Serialize)]
pub(crate) struct Ledger {
    /// One a volunteer, who helps most first.
    volunteers: Vec<LedgerLine>,
    /// All together.
    delivered_bytes: u64,
    synced_in_bytes: u64,
    /// What the origin itself sent since its start: to customers, and to volunteers.
    origin_to_customers_bytes: u64,
    origin_to_volunteers_bytes: u64,
}

#[derive(Debug, Serialize)]
struct LedgerLine {
    name: String,
    delivered_bytes: u64,
    synced_in_bytes: u64,
    synced_out_bytes: u64,
    /// Delivered and given on to other mirrors, less what it took.
    balance_bytes: i64,
}

impl Ledger {
    pub(crate) fn of(nodes: &[NodeView], status: &StatusView) -> Self {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut volunteers: Vec<LedgerLine> = nodes
            .iter()
            .map(|node| {
                let ledger = &node.ledger;
                let gives = ledger.delivered_bytes.saturating_add(ledger.synced_out_bytes);
                LedgerLine {
                    name: node.name.clone(),
                    delivered_bytes: ledger.delivered_bytes,
                    synced_in_bytes: ledger.synced_in_bytes,
                    synced_out_bytes: ledger.synced_out_bytes,
                    balance_bytes: signed(gives).saturating_sub(signed(ledger.synced_in_bytes)),
                }
            })
            .collect();
        volunteers.sort_by_key(|line| std::cmp::Reverse(line.balance_bytes));
        Self {
            delivered_bytes: volunteers.iter().map(|line| line.delivered_bytes).sum(),
            synced_in_bytes: volunteers.iter().map(|line| line.synced_in_bytes).sum(),
            volunteers,
            origin_to_customers_bytes: status.front_door.body_bytes,
            origin_to_volunteers_bytes: status.sync_port.body_bytes,
        }
    }

    pub(crate) fn show(&self, out: &mut impl Write) -> Outcome {
        let mut table = table(&["name", "delivered", "given on", "copied", "balance"]);
        right(&mut table, &[1, 2, 3, 4]);
        for line in &self.volunteers {
            let balance = Bytes(line.balance_bytes.unsigned_abs());
            table.add_row([
                line.name.clone(),
                Bytes(line.delivered_bytes).to_string(),
                Bytes(line.synced_out_bytes).to_string(),
                Bytes(line.synced_in_bytes).to_string(),
                if line.balance_bytes < 0 { format!("-{balance}") } else { balance.to_string() },
            ]);
        }
        writeln!(out, "{}", table.trim_fmt())?;
        writeln!(
            out,
            "\nin all: {} delivered for {} copied; since control's start the origin sent {} to customers and {} to \
             volunteers",
            Bytes(self.delivered_bytes),
            Bytes(self.synced_in_bytes),
            Bytes(self.origin_to_customers_bytes),
            Bytes(self.origin_to_volunteers_bytes)
        )
    }
}

pub(crate) fn verified(out: &mut impl Write, view: &VerifyView) -> Outcome {
    let count = |outcome| view.checks.iter().filter(|check| check.outcome == outcome).count();
    for check in view.checks.iter().filter(|check| check.outcome != CheckOutcome::Right) {
        let outcome = match check.outcome {
            CheckOutcome::Right => "right",
            CheckOutcome::Wrong => "WRONG",
            CheckOutcome::SentBack => "sent back to the front door",
            CheckOutcome::NoAnswer => "no answer",
        };
        let why = if check.why.is_empty() { String::new() } else { format!(" ({})", check.why) };
        writeln!(out, "{} bytes from {} of {}: {outcome}{why}", check.length, check.offset, check.path)?;
    }
    if view.checks.is_empty() {
        writeln!(out, "{} holds nothing of what the catalogue has now", view.name)?;
    }
    writeln!(
        out,
        "{}: {} ranges right, {} wrong, {} sent back, {} without an answer{}",
        view.name,
        count(CheckOutcome::Right),
        count(CheckOutcome::Wrong),
        count(CheckOutcome::SentBack),
        count(CheckOutcome::NoAnswer),
        if view.banned { "; it is banned now (`ctl node pardon` lifts that)" } else { "" }
    )
}

pub(crate) fn reloaded(out: &mut impl Write, view: &ReloadView) -> Outcome {
    if view.applied.is_empty() && view.waiting.is_empty() {
        return writeln!(out, "the settings are as they were");
    }
    if !view.applied.is_empty() {
        writeln!(out, "in force now: {}", view.applied.join(", "))?;
    }
    if !view.waiting.is_empty() {
        writeln!(out, "in force after a restart (`ctl upgrade`): {}", view.waiting.join(", "))?;
    }
    Ok(())
}

fn at(seconds: u64) -> String {
    moment(i64::try_from(seconds).unwrap_or(i64::MAX))
}

fn part(bytes: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{:.1} %", bytes as f64 * 100.0 / whole as f64),
    }
}

#[cfg(test)]
mod tests {
    use freshet_api::manifest::RepoPath;
    use freshet_api::operator::Check;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>) -> Outcome) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_wrong_range_is_told_first_and_counted() {
        let check = |outcome| Check {
            path: "pool/a".parse::<RepoPath>().unwrap(),
            offset: 5,
            length: 7,
            outcome,
            why: String::new(),
        };
        let view = VerifyView {
            name: "edge".into(),
            checks: vec![check(CheckOutcome::Right), check(CheckOutcome::Wrong)],
            banned: true,
            node: freshet_api::NodeId(1),
        };
        let shown = text(|out| verified(out, &view));
        assert!(shown.starts_with("7 bytes from 5 of pool/a: WRONG\n"), "{shown}");
        assert!(shown.contains("1 ranges right, 1 wrong") && shown.contains("pardon"), "{shown}");
    }

    /// Every name of a field in a value.
    fn names(value: &serde_json::Value, found: &mut std::collections::BTreeSet<String>) {
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(name, value)| {
                found.insert(name.clone());
                names(value, found);
            }),
            serde_json::Value::Array(values) => values.iter().for_each(|value| names(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_field_that_programs_read_stands_in_the_handbook() {
        use freshet_api::admin::{
            BundleMember, BundleView, Considered, ExplainView, Holder, ManifestView, NodeState, PublishView,
            SuspectView, SwarmView, WhereView,
        };
        use freshet_api::operator::{EventKind, FileLine, Role};
        let handbook = include_str!("../../../handbook/json.md");
        let status: StatusView = serde_json::from_value(serde_json::json!({
            "version": "1", "uptime_secs": 1, "catalog": freshet_api::admin::CatalogView::default(),
            "nodes": [["active", 1]], "front_door": freshet_api::admin::FrontDoorView::default(),
        }))
        .unwrap();
        let node = crate::show::sample_node();
        let (id, path) = (freshet_api::NodeId(1), "a".parse::<RepoPath>().unwrap());
        let member = BundleMember { node: id, name: String::new(), held: 0, lacks: 0, leases: 0 };
        let bundle: BundleView = serde_json::from_value(serde_json::json!({
            "id": "", "sequence": 1, "bytes": 1, "objects": 1, "recipes": 1, "recipe_target_bytes": 1, "pieces": 1,
            "piece_bytes": 1, "spread": 1, "leases": 1, "leases_again": 1, "origin_copies": 1.0, "complete": true,
            "members": [member],
        }))
        .unwrap();
        let values = [
            serde_json::to_value(&node).unwrap(),
            serde_json::to_value(&status).unwrap(),
            serde_json::to_value(SwarmView {
                bundles: vec![bundle],
                suspects: vec![SuspectView {
                    node: id,
                    name: String::new(),
                    accusers: Vec::new(),
                    believed: 1,
                    needed: 3,
                    avoided: false,
                }],
                manifests: vec![ManifestView {
                    sequence: 1,
                    since: None,
                    bytes: 1,
                    from_origin: 1,
                    from_peers: 1,
                    failed: 1,
                    holders: 1,
                }],
                ..SwarmView::default()
            })
            .unwrap(),
            serde_json::to_value(Ledger::of(std::slice::from_ref(&node), &status)).unwrap(),
            serde_json::to_value(WhereView {
                path: path.clone(),
                file: freshet_api::FileId(1),
                size: 0,
                mtime: 0,
                blake3: String::new(),
                sha256: String::new(),
                md4: String::new(),
                holders: vec![Holder { node: id, name: String::new(), state: NodeState::Active }],
            })
            .unwrap(),
            serde_json::to_value(ExplainView {
                path: String::new(),
                client: "192.0.2.1".parse().unwrap(),
                decision: String::new(),
                chosen: None,
                considered: vec![Considered {
                    node: id,
                    name: String::new(),
                    excluded: None,
                    expected_finish_ms: None,
                    outstanding_bytes: 0,
                    rate: None,
                    backlog_bytes: 0,
                    limit_bytes: None,
                    budget_bytes: None,
                    budget_price: 1.0,
                    nearness: "elsewhere".into(),
                    factor: None,
                    reported_load: 0.0,
                    weight: 1,
                }],
                numbers: Vec::new(),
            })
            .unwrap(),
            serde_json::to_value(PublishView {
                walk: 0,
                walked: true,
                pending: 0,
                sequence: 0,
                released: 0,
                done: true,
            })
            .unwrap(),
            serde_json::to_value(FilesView {
                files: vec![FileLine { path, size: 0, mtime: 0, holders: 0 }],
                matching: 1,
            })
            .unwrap(),
            serde_json::to_value(Event {
                id: 1,
                at: 1,
                kind: EventKind::Mirror,
                node: None,
                text: String::new(),
            })
            .unwrap(),
            serde_json::to_value(AuditEntry {
                at: 1,
                who: String::new(),
                role: Role::Admin,
                from: None,
                request: String::new(),
                body: Some(serde_json::Value::Null),
                status: 200,
            })
            .unwrap(),
            serde_json::to_value(KeyView { name: String::new(), role: Role::Admin, added: None, used: None })
                .unwrap(),
            serde_json::to_value(ReloadView::default()).unwrap(),
        ];
        let mut found = std::collections::BTreeSet::new();
        values.iter().for_each(|value| names(value, &mut found));
        assert!(found.len() > 60);
        for name in found {
            assert!(handbook.contains(&format!("`{name}`")), "`{name}` is not in handbook/json.md");
        }
    }

    #[test]
    fn a_reload_says_what_waits() {
        let view = ReloadView { applied: vec!["a".into()], waiting: vec!["b".into(), "c".into()] };
        let shown = text(|out| reloaded(out, &view));
        assert!(shown.contains("now: a\n") && shown.contains("`ctl upgrade`): b, c"), "{shown}");
    }
}
