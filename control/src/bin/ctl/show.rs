//! Tables for people; what programs read is the JSON of the wire types.

use std::io::Write;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use freshet_api::admin::{NodeAdded, NodeState, NodeView, StatusView, SuspectView, SwarmView, WhereView};
use freshet_api::heartbeat::{BudgetReport, SyncProgress, Transfer};
use freshet_api::traffic::{CounterSource, InOut};
use freshet_api::units::Bytes;

pub(crate) type Outcome = std::io::Result<()>;

/// What to do with a join string: the line for the Debian package, whole, and what is different without it.
pub(crate) fn node_added(out: &mut impl Write, added: &NodeAdded) -> Outcome {
    let within = age(Duration::from_secs(added.expires_in_secs));
    writeln!(
        out,
        "volunteer {} is number {}. On its host, within {within}, with the package freshet-volunteer:

  runuser -u freshet -- dataplane join '{}' \\
      --state /var/lib/freshet/volunteer --config /etc/freshet/dataplane.toml

Without the package leave `runuser` and `--config` away and name the places: `--state DIR --tree DIR
--listen ADDR:PORT --public-url URL` (`dataplane join --help`).",
        added.name, added.node, added.join
    )
}

/// One line a volunteer; on a terminal the last column is cut to what room there is.
pub(crate) fn nodes(out: &mut impl Write, nodes: &[NodeView]) -> Outcome {
    use std::io::IsTerminal as _;
    let size = std::io::stdout().is_terminal().then(ratatui::crossterm::terminal::size);
    let columns = size.and_then(Result::ok).map(|(columns, _)| usize::from(columns));
    nodes_within(out, nodes, columns)
}

fn nodes_within(out: &mut impl Write, nodes: &[NodeView], columns: Option<usize>) -> Outcome {
    if nodes.is_empty() {
        return writeln!(out, "no volunteers yet; `ctl node add NAME` invites one");
    }
    let mut table = table(&[
        "node",
        "name",
        "state",
        "mirror",
        "files",
        "delivered",
        "synced",
        "outstanding",
        "rate",
        "heard",
    ]);
    right(&mut table, &[0, 4, 5, 6, 7, 8, 9]);
    for node in nodes {
        table.add_row([
            node.node.to_string(),
            node.name.clone(),
            state(node.state).to_owned(),
            node.sync.as_ref().map_or_else(|| "-".to_owned(), mirror),
            node.files_held.to_string(),
            Bytes(node.ledger.delivered_bytes).to_string(),
            Bytes(node.ledger.synced_in_bytes).to_string(),
            Bytes(node.outstanding_bytes).to_string(),
            node.estimated_rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string()),
            heard(node.heartbeat_age_ms),
        ]);
    }
    let whys: Vec<String> = nodes.iter().map(why).collect();
    if whys.iter().all(String::is_empty) {
        return writeln!(out, "{}", table.trim_fmt());
    }
    let lines: Vec<String> = table.lines().collect();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(width + 1).max(WHY_LEAST));
    for (line, why) in lines.iter().zip(std::iter::once("why").chain(whys.iter().map(String::as_str))) {
        writeln!(out, "{}", format!("{line:<width$} {}", cut(why, room)).trim_end())?;
    }
    Ok(())
}

/// Why a volunteer gets no customers, or its mirror no further; nothing where all is well.
fn why(node: &NodeView) -> String {
    let trouble = node.sync.as_ref().and_then(|sync| sync.trouble.clone());
    node.reason.clone().or(trouble).unwrap_or_default()
}

/// At most so many characters, the last of them a sign that there are more.
pub(crate) fn cut(text: &str, room: usize) -> String {
    if text.chars().nth(room).is_none() {
        return text.to_owned();
    }
    let kept: String = text.chars().take(room.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// All that is known of one volunteer.
pub(crate) fn node(out: &mut impl Write, node: &NodeView) -> Outcome {
    let mut facts = vec![
        ("volunteer", format!("{} (number {})", node.name, node.node)),
        (
            "state",
            match &node.reason {
                Some(reason) => format!("{}: {reason}", state(node.state)),
                None => state(node.state).to_owned(),
            },
        ),
        ("version", node.version.clone().unwrap_or_else(|| "-".to_owned())),
        ("delivers at", node.delivery_url.clone().unwrap_or_else(|| "-".to_owned())),
        ("last heard", heard(node.heartbeat_age_ms)),
    ];
    for (name, text) in [
        ("given by", &node.profile.sponsor),
        ("contact", &node.profile.contact),
        ("note", &node.profile.note),
    ] {
        if !text.is_empty() {
            facts.push((name, text.clone()));
        }
    }
    if let Some(rate) = node.donated_rate {
        facts.push(("donated rate", rate.to_string()));
    }
    if let Some(rate) = node.estimated_rate {
        facts.push(("estimated rate", rate.to_string()));
    }
    if let Some(budget) = &node.budget {
        facts.push(("gives now", given(budget)));
        facts.push(("this month", month(budget)));
    }
    facts.push(("outstanding", Bytes(node.outstanding_bytes).to_string()));
    if let Some(sync) = &node.sync {
        facts.push(("mirror", mirror(sync)));
        facts.push(("holds", format!("{} files, {}", sync.files_held, Bytes(sync.bytes_held))));
        if let Some(trouble) = &sync.trouble {
            facts.push(("trouble", trouble.clone()));
        }
    }
    let ledger = &node.ledger;
    facts.push(("delivered in all", Bytes(ledger.delivered_bytes).to_string()));
    facts.push((
        "synced in all",
        format!("{} in, {} out", Bytes(ledger.synced_in_bytes), Bytes(ledger.synced_out_bytes)),
    ));
    if let Some(delivery) = &node.delivery {
        facts.push((
            "since its start",
            format!("{} responses, {} under way", delivery.responses, delivery.active),
        ));
        facts.push(("sent back", delivery.sent_back.to_string()));
        facts.push((
            "tickets refused",
            format!(
                "{} missing, {} malformed, {} forged, {} expired",
                delivery.tickets_missing,
                delivery.tickets_malformed,
                delivery.tickets_forged,
                delivery.tickets_expired
            ),
        ));
    }
    if let Some(source) = &node.source {
        facts.push((
            "counted by",
            match source {
                CounterSource::Ebpf => "eBPF on the interfaces".to_owned(),
                CounterSource::Sockets { why } => format!("the kernel's socket counters ({why})"),
            },
        ));
    }
    for (name, value) in facts {
        writeln!(out, "{name:<17} {value}")?;
    }
    if node.interfaces.is_empty() {
        return Ok(());
    }
    let mut table =
        table(&["interface", "delivery out", "in", "sync out", "in", "control out", "in", "other out", "in"]);
    right(&mut table, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for interface in &node.interfaces {
        let mut row = vec![interface.name.clone()];
        for class in [&interface.delivery, &interface.sync, &interface.control, &interface.other] {
            row.extend(out_in(class));
        }
        table.add_row(row);
    }
    writeln!(out, "\n{}", table.trim_fmt())
}

/// The rate in force, and what determines it.
fn given(budget: &BudgetReport) -> String {
    let rate = budget.rate.map_or_else(|| "without a limit".to_owned(), |rate| rate.to_string());
    let why = match budget.limit.as_str() {
        "none" => return rate,
        "cap" => "the donated rate",
        "hours" => "the hour of the week",
        "owner" => "what the owner's own traffic leaves",
        "percentile" => "the owner's 95th percentile",
        "quota" => "the end of the month's volume",
        other => other,
    };
    let left = budget.promisable.map_or_else(String::new, |left| format!("; room for {left} more"));
    format!("{rate} ({why}){left}")
}

fn month(budget: &BudgetReport) -> String {
    match &budget.month {
        None => format!("{} given", budget.used),
        Some(month) => format!(
            "{} of {} given, {} left, {} to go",
            budget.used,
            month.volume,
            month.left,
            age(Duration::from_secs(month.ends_in_secs))
        ),
    }
}

/// Who holds a file.
pub(crate) fn holders(out: &mut impl Write, found: &WhereView) -> Outcome {
    writeln!(out, "{}", found.path)?;
    for (name, value) in [
        ("file", found.file.to_string()),
        ("size", format!("{} bytes ({})", found.size, Bytes(found.size))),
        ("modified", moment(found.mtime)),
        ("blake3", found.blake3.clone()),
        ("sha256", found.sha256.clone()),
        ("md4", found.md4.clone()),
    ] {
        writeln!(out, "  {name:<9} {value}")?;
    }
    if found.holders.is_empty() {
        return writeln!(out, "no volunteer holds this version; the origin serves it");
    }
    let mut table = table(&["node", "name", "state"]);
    right(&mut table, &[0]);
    for holder in &found.holders {
        table.add_row([holder.node.to_string(), holder.name.clone(), state(holder.state).to_owned()]);
    }
    writeln!(out, "{}", table.trim_fmt())
}

/// The whole in figures.
pub(crate) fn status(out: &mut impl Write, status: &StatusView) -> Outcome {
    let (catalog, door) = (&status.catalog, &status.front_door);
    let scan = match catalog.pending {
        0 => String::new(),
        pending => format!(", {pending} still to hash"),
    };
    let nodes: Vec<String> =
        status.nodes.iter().map(|(which, count)| format!("{count} {}", state(*which))).collect();
    for (name, value) in [
        ("control", format!("{}, up {}", status.version, age(Duration::from_secs(status.uptime_secs)))),
        (
            "catalogue",
            format!(
                "{} files, {}, {} contents, {} links, state {}{scan}",
                catalog.files,
                Bytes(catalog.bytes),
                catalog.contents,
                catalog.links,
                catalog.sequence
            ),
        ),
        ("volunteers", if nodes.is_empty() { "none".to_owned() } else { nodes.join(", ") }),
        ("redirected", format!("{} requests, {}", door.redirects, Bytes(door.redirected_bytes))),
        (
            "served here",
            format!("{} small or metadata, {} for want of a volunteer", door.direct, door.fallback),
        ),
        ("origin sent", Bytes(door.body_bytes).to_string()),
        (
            "swarm",
            format!(
                "volunteers see state {}; {} bundles, {} being copied; the origin sends {}",
                status.swarm.released, status.swarm.bundles, status.swarm.copying, status.swarm.origin_rate
            ),
        ),
        ("came back", format!("{} customers, {} forged tickets", door.came_back, door.tickets_refused)),
        ("not found", door.not_found.to_string()),
    ] {
        writeln!(out, "{name:<12} {value}")?;
    }
    if !catalog.left_out.is_empty() {
        writeln!(out, "left out of the catalogue:")?;
        for reason in &catalog.left_out {
            writeln!(out, "  {reason}")?;
        }
    }
    Ok(())
}

/// The swarm: a line a bundle, and a line a volunteer for those that are being copied.
pub(crate) fn swarm(out: &mut impl Write, swarm: &SwarmView) -> Outcome {
    let summary = &swarm.summary;
    for (name, value) in [
        ("released", format!("state {}", summary.released)),
        (
            "origin",
            format!(
                "sends {}, reckoned with {}, at most {} copies",
                summary.origin_rate, swarm.origin_rate_reckoned, swarm.origin_copies_max
            ),
        ),
        ("on disk", format!("{} of packs and recipes", Bytes(summary.spooled_bytes))),
    ] {
        writeln!(out, "{name:<9} {value}")?;
    }
    let mut bundles = table(&[
        "bundle",
        "state",
        "size",
        "objects",
        "recipes",
        "they save",
        "pieces",
        "piece",
        "spread",
        "copies sent",
        "",
    ]);
    right(&mut bundles, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for bundle in &swarm.bundles {
        bundles.add_row([
            bundle.id.chars().take(ID_CHARS_SHOWN).collect(),
            bundle.sequence.to_string(),
            Bytes(bundle.bytes).to_string(),
            bundle.objects.to_string(),
            bundle.recipes.to_string(),
            Bytes(bundle.recipe_target_bytes).to_string(),
            bundle.pieces.to_string(),
            Bytes(u64::from(bundle.piece_bytes)).to_string(),
            bundle.spread.to_string(),
            format!("{:.3}", bundle.origin_copies),
            if bundle.complete {
                "everybody has it".to_owned()
            } else if bundle.members.is_empty() {
                "nobody here asks for it".to_owned()
            } else if bundle.members.iter().all(|member| member.lacks == 0) {
                "all who are here have it".to_owned()
            } else {
                "being copied".to_owned()
            },
        ]);
    }
    if swarm.bundles.is_empty() {
        writeln!(out, "no bundles: nothing was released yet")?;
    } else {
        writeln!(out, "{}", bundles.trim_fmt())?;
    }
    let mut members = table(&["bundle", "node", "name", "has", "lacks", "leases"]);
    right(&mut members, &[1, 3, 4, 5]);
    for bundle in swarm.bundles.iter().filter(|bundle| !bundle.complete) {
        for member in &bundle.members {
            members.add_row([
                bundle.id.chars().take(ID_CHARS_SHOWN).collect(),
                member.node.to_string(),
                member.name.clone(),
                format!("{} %", u64::from(member.held) * 100 / u64::from(bundle.pieces.max(1))),
                member.lacks.to_string(),
                member.leases.to_string(),
            ]);
        }
    }
    if members.row_count() > 0 {
        writeln!(out, "\n{}", members.trim_fmt())?;
    }
    let mut manifests =
        table(&["manifest to", "since", "size", "from the origin", "from volunteers", "failed", "have it"]);
    right(&mut manifests, &[0, 1, 2, 3, 4, 5, 6]);
    for manifest in &swarm.manifests {
        manifests.add_row([
            manifest.sequence.to_string(),
            manifest.since.map_or_else(|| "nothing".to_owned(), |since| since.to_string()),
            Bytes(manifest.bytes).to_string(),
            manifest.from_origin.to_string(),
            manifest.from_peers.to_string(),
            manifest.failed.to_string(),
            manifest.holders.to_string(),
        ]);
    }
    if manifests.row_count() > 0 {
        writeln!(out, "\n{}", manifests.trim_fmt())?;
    }
    for banned in &swarm.banned {
        writeln!(out, "volunteer {} ({}) is {}", banned.name, banned.node, banned.why)?;
    }
    for suspect in &swarm.suspects {
        let SuspectView { name, node, believed, needed, .. } = suspect;
        let what = if suspect.avoided { "nobody is sent there for now" } else { "too few to be believed" };
        let by: Vec<&str> = suspect.accusers.iter().map(String::as_str).take(ACCUSERS_SHOWN).collect();
        let more = suspect.accusers.len() - by.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        writeln!(
            out,
            "volunteer {name} ({node}) is accused of wrong pieces by {}{more}: {believed} of {needed} that it takes; {what}",
            by.join(", ")
        )?;
    }
    Ok(())
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table
}

pub(crate) fn right(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn state(state: NodeState) -> &'static str {
    state.name()
}

fn mirror(sync: &SyncProgress) -> String {
    match sync.files_missing {
        0 if sync.complete == sync.target => format!("current ({})", sync.complete),
        missing if sync.transfer.rate.0 > 0 => {
            let Transfer { rate, peers, .. } = sync.transfer;
            format!("{missing} files, {} to fetch, {rate} from {peers} peers", Bytes(sync.bytes_missing))
        }
        missing => format!("{missing} files, {} to fetch", Bytes(sync.bytes_missing)),
    }
}

fn out_in(class: &InOut) -> [String; 2] {
    [Bytes(class.sent.bytes).to_string(), Bytes(class.received.bytes).to_string()]
}

fn heard(age_ms: Option<u64>) -> String {
    age_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", age(Duration::from_millis(ms))))
}

pub(crate) fn age(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

pub(crate) fn moment(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |moment| moment.to_string())
}

/// Columns of a reason that are shown however narrow the terminal is.
const WHY_LEAST: usize = 24;
/// Names of accusers in a line at most.
const ACCUSERS_SHOWN: usize = 8;
/// As many as tell bundles apart.
const ID_CHARS_SHOWN: usize = 12;

/// A volunteer for tests, with something in every part of it.
#[cfg(test)]
pub(crate) fn sample_node() -> NodeView {
    use freshet_api::NodeId;
    use freshet_api::admin::LedgerView;
    use freshet_api::heartbeat::{DeliveryCounters, MonthReport};
    use freshet_api::operator::{InterfaceRates, Profile};
    use freshet_api::units::BytesPerSec;
    NodeView {
        node: NodeId(3),
        name: "edge".into(),
        state: NodeState::Closed,
        budget: Some(BudgetReport {
            rate: Some(BytesPerSec(12_500_000)),
            limit: "cap".into(),
            used: Bytes(3 << 30),
            promisable: Some(Bytes(5 << 30)),
            month: Some(MonthReport {
                volume: Bytes(9 << 30),
                left: Bytes(6 << 30),
                ends_in_secs: 259_200,
                lasts_secs: 2_678_400,
            }),
        }),
        reason: Some("its disk is full".into()),
        version: None,
        delivery_url: None,
        heartbeat_age_ms: Some(400),
        donated_rate: None,
        estimated_rate: None,
        outstanding_bytes: 1024,
        files_held: 2,
        sync: Some(SyncProgress::default()),
        delivery: Some(DeliveryCounters::default()),
        interfaces: vec![freshet_api::traffic::InterfaceCounters {
            name: "eth0".into(),
            ..Default::default()
        }],
        rates: vec![InterfaceRates::default()],
        profile: Profile::default(),
        source: Some(CounterSource::Sockets { why: "no rights".into() }),
        ledger: LedgerView { delivered_bytes: 3 << 20, ..Default::default() },
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>) -> Outcome) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn sample() -> NodeView {
        sample_node()
    }

    #[test]
    fn a_volunteer_is_shown_with_its_reason_and_ledger() {
        let shown = text(|out| node(out, &sample()));
        for part in ["edge (number 3)", "closed: its disk is full", "400 ms ago", "3 MiB", "eth0"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        assert!(text(|out| nodes(out, &[sample()])).contains("edge"));
        assert!(text(|out| nodes(out, &[])).contains("ctl node add"));
    }

    #[test]
    fn the_list_says_why_and_keeps_to_the_terminal() {
        let mut all = [sample(), NodeView { state: NodeState::Active, reason: None, ..sample() }];
        all[0].reason = Some("banned since 1970: ".repeat(20));
        let whole = text(|out| nodes_within(out, &all, None));
        assert!(whole.lines().next().unwrap().ends_with(" why"), "{whole}");
        assert!(whole.contains(all[0].reason.as_deref().unwrap().trim_end()), "{whole}");
        let narrow = text(|out| nodes_within(out, &all, Some(140)));
        let longest = narrow.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(140) && narrow.lines().nth(1).unwrap().ends_with('…'), "{narrow}");
        let well = text(|out| nodes_within(out, &all[1..], Some(140)));
        assert!(!well.contains("why") && well.lines().count() == 2, "{well}");
    }

    #[test]
    fn the_line_for_joining_is_whole() {
        let added = NodeAdded {
            node: freshet_api::NodeId(3),
            name: "edge".into(),
            join: "freshet1:a:1/b/c".into(),
            expires_in_secs: 86_400,
        };
        let shown = text(|out| node_added(out, &added)).replace("\\\n     ", "");
        let line = "runuser -u freshet -- dataplane join 'freshet1:a:1/b/c'  --state /var/lib/freshet/volunteer \
                    --config /etc/freshet/dataplane.toml\n";
        assert!(shown.contains(line), "{shown}");
        // The handbook and the README show the same.
        let shown = text(|out| node_added(out, &added)).replace("a:1/b/c", "origin.example.org:8443/…");
        let shown: Vec<&str> = shown.lines().skip(1).collect();
        let readme = include_str!("../../../../README.md");
        assert!(readme.contains(&shown.join("\n")), "{shown:?}");
        assert!(include_str!("../../../handbook/README.md").contains(&shown[..3].join("\n")), "{shown:?}");
    }
}
