//! The status page as HTML: whole without JavaScript, which only keeps the figures fresh.

use std::cmp::Reverse;
use std::time::Duration;

use freshet_api::Bytes;
use freshet_api::admin::{BundleView, NodeState, NodeView, WhereView};
use freshet_api::heartbeat::SyncProgress;
use freshet_api::operator::{Event, EventKind};
use maud::{DOCTYPE, Markup, html};

use super::{View, chart, live};
use crate::api::Api;
use crate::events::EVENTS_MAX;

/// Everything at a glance, and the volunteers.
pub(super) fn overview(api: &Api, view: &View) -> Markup {
    let status = api.status_view();
    let mut nodes = api.node_views();
    let totals = live::totals(api, &nodes);
    let all = nodes.len();
    let ledger = nodes.iter().fold((0_u64, 0_u64, 0_u64), |(delivered, synced_in, synced_out), node| {
        (
            delivered + node.ledger.delivered_bytes,
            synced_in + node.ledger.synced_in_bytes,
            synced_out + node.ledger.synced_out_bytes,
        )
    });
    let current = nodes_current(&nodes);
    select(&mut nodes, view);
    let door = &status.front_door;
    let served = door.redirects + door.direct + door.fallback;
    let tile = |what: &str, name: &str, beside: String| {
        html! {
            div.tile {
                div.what { (what) }
                div.value data-live=(name) { (totals.get(name).map_or("–", String::as_str)) }
                div.beside { (beside) }
            }
        }
    };
    let swarm = api.parts().swarm.view();
    html_page(
        "Status",
        Some(api),
        html! {
            div.tiles {
                (tile("volunteers deliver", "delivery", format!("{} in all", Bytes(ledger.0))))
                (tile("volunteers copy", "sync", format!("{} in all", Bytes(ledger.1))))
                (tile("origin to customers", "origin", format!("{} since start", Bytes(door.body_bytes))))
                (tile("origin to volunteers", "origin-sync", format!("{} since start", Bytes(status.sync_port.body_bytes))))
                div.tile {
                    div.what { "take customers" }
                    div.value { span data-live="active" { (totals.get("active").map_or("0", String::as_str)) } " of " (all) }
                    div.beside { "volunteers" }
                }
                div.tile {
                    div.what { "sent to volunteers" }
                    div.value { (percent(door.redirects, served)) }
                    div.beside { "of " (served) " answers" }
                }
            }
            section { h2 { "Rates" } (chart::of(&api.parts().flows.hour())) }
            div.columns {
                section {
                    h2 { "Repository and release" }
                    dl {
                        dt { "Files" } dd { (status.catalog.files) ", " (Bytes(status.catalog.bytes)) }
                        @if status.catalog.pending > 0 { dt { "Still to hash" } dd { (status.catalog.pending) } }
                        dt { "Release" }
                        dd {
                            @if status.swarm.released >= status.catalog.sequence { "volunteers are told of it" }
                            @else { "being bundled for volunteers; customers see it already" }
                            span.faint { " (state " (status.catalog.sequence) ")" }
                        }
                        dt { "Whole on" } dd { (current.0) " of " (current.1) " mirrors" }
                        @if !status.catalog.left_out.is_empty() {
                            dt { "Left out" } dd { (status.catalog.left_out.join("; ")) }
                        }
                    }
                    @let copying: Vec<&BundleView> = swarm.bundles.iter().filter(|bundle| !bundle.complete).rev().take(BUNDLES).collect();
                    @if !copying.is_empty() {
                        div.scroll { table {
                            thead { tr { th { "Bundle" } th.n { "Size" } th.n { "Copied" } th.n { "Origin sent" } } }
                            tbody { @for bundle in copying { (bundle_row(bundle)) } }
                        } }
                    }
                    h2.later { "Who holds a file?" }
                    form action="/file" { input name="path" aria-label="Path in the repository" required; button { "Find" } }
                p.faint { "A path in the repository, such as pool/main/h/hello.deb" }
                }
                section {
                    h2 { "Lately" }
                    (events(&lately_public(api, None)))
                }
            }
            section {
                div.head {
                    h2 { "Volunteers" }
                    form action="/" {
                        @if !view.sort.is_empty() { input type="hidden" name="sort" value=(view.sort); }
                        label.faint for="q" { "name, sponsor or state" }
                        input type="search" id="q" name="q" value=(view.q);
                        button { "Show" }
                    }
                }
                (volunteers(&nodes, view))
            }
        },
    )
}

/// One volunteer; `None` when there is none of this name.
pub(super) fn volunteer(api: &Api, name: &str) -> Option<Markup> {
    let nodes = api.parts().registry.nodes();
    let node = api.node_view(nodes.by_name_or_id(name)?);
    let events_of = lately_public(api, Some(&node.name));
    Some(html_page(
        &node.name,
        Some(api),
        html! {
            section {
                h2 { (node.name) }
                dl {
                    dt { "State" } dd { (state(&node)) @if let Some(reason) = why(&node) { ": " (reason) } }
                    @if !node.profile.sponsor.is_empty() { dt { "Given by" } dd { (node.profile.sponsor) } }
                    @if let Some(url) = &node.delivery_url { dt { "Serves at" } dd { (url) } }
                    @if let Some(version) = &node.version { dt { "Version" } dd { (version) } }
                    @if let Some(ms) = node.heartbeat_age_ms { dt { "Last heard" } dd { (age(Duration::from_millis(ms))) " ago" } }
                    dt { "Mirror" } dd data-live=(format!("{}-mirror", node.node)) { (mirror(&node)) }
                    @if let Some(trouble) = node.sync.as_ref().and_then(|sync| sync.trouble.as_ref()) { dt { "Trouble" } dd { (trouble) } }
                    @if let Some(rate) = node.donated_rate { dt { "Given now" } dd { (rate) } }
                    @if let Some(month) = node.budget.as_ref().and_then(|budget| budget.month) {
                        dt { "Left this month" }
                        dd { (Bytes(month.left.0)) " of " (Bytes(month.volume.0)) ", " (age(Duration::from_secs(month.ends_in_secs))) " to go" }
                    }
                    dt { "Delivered" } dd { (Bytes(node.ledger.delivered_bytes)) " since it joined" }
                    dt { "Copied" } dd { (Bytes(node.ledger.synced_in_bytes)) " in, " (Bytes(node.ledger.synced_out_bytes)) " out" }
                }
            }
            @if !node.rates.is_empty() {
                section {
                    h2 { "Interfaces, just now" }
                    div.scroll { table {
                        thead { tr { th { "Interface" } th.n { "Delivery out" } th.n { "Sync in" } th.n { "Sync out" } th.n { "Owner's in" } th.n { "Owner's out" } } }
                        tbody { @for interface in &node.rates { tr {
                            td { (interface.name) }
                            td.n { (live::rate(interface.classes.delivery.sent)) }
                            td.n { (live::rate(interface.classes.sync.received)) }
                            td.n { (live::rate(interface.classes.sync.sent)) }
                            td.n { (live::rate(interface.classes.other.received)) }
                            td.n { (live::rate(interface.classes.other.sent)) }
                        } } }
                    } }
                }
            }
            section { h2 { "Lately" } (events(&events_of)) }
        },
    ))
}

/// One file, and who holds it.
pub(super) fn file(api: &Api, found: &WhereView) -> Markup {
    html_page(
        "File",
        Some(api),
        html! {
            section {
                h2 { (found.path) }
                dl {
                    dt { "Size" } dd { (found.size) " bytes (" (Bytes(found.size)) ")" }
                    dt { "Modified" } dd { (moment(found.mtime)) }
                    dt { "SHA-256" } dd { (found.sha256) }
                    dt { "BLAKE3" } dd { (found.blake3) }
                    dt { "MD4" } dd { (found.md4) }
                }
            }
            section {
                h2 { (found.holders.len()) " volunteers hold this version" }
                @if found.holders.is_empty() { p.faint { "The origin sends it." } }
                @else { div.scroll { table { tbody {
                    @for holder in &found.holders { tr {
                        td { a href=(format!("/volunteer/{}", holder.name)) { (holder.name) } }
                        td { span class=(format!("state {}", holder.state.name())) { (holder.state.name()) } }
                    } }
                } } } }
            }
        },
    )
}

/// A page that says only this.
pub(super) fn nothing(words: &str) -> Markup {
    html_page(
        "Not found",
        None,
        html! { section { p { (words) } p { a href="/" { "To the status page" } } } },
    )
}

/// Sorts and filters as the view says.
pub(super) fn select(nodes: &mut Vec<NodeView>, view: &View) {
    let wanted = view.q.trim().to_lowercase();
    if !wanted.is_empty() {
        nodes.retain(|node| {
            [node.name.as_str(), node.profile.sponsor.as_str(), node.state.name()]
                .iter()
                .any(|text| text.to_lowercase().contains(&wanted))
        });
    }
    match view.sort.as_str() {
        "name" => nodes.sort_by(|a, b| a.name.cmp(&b.name)),
        "mirror" => nodes.sort_by_key(|node| Reverse(missing(node))),
        "sync" => nodes.sort_by_key(|node| Reverse(live::of(node).sync.received)),
        "left" => nodes.sort_by_key(|node| month_left(node).unwrap_or(u64::MAX)),
        "delivered" => nodes.sort_by_key(|node| Reverse(node.ledger.delivered_bytes)),
        "state" => nodes.sort_by_key(|node| NodeState::ALL.iter().position(|state| *state == node.state)),
        _ => nodes.sort_by_key(|node| Reverse(live::of(node).delivery.sent)),
    }
}

/// The first row that a view shows.
pub(super) fn first(view: &View) -> usize {
    view.page.saturating_sub(1).saturating_mul(ROWS)
}

/// How far a mirror is, in a few words.
pub(super) fn mirror(node: &NodeView) -> String {
    match &node.sync {
        None => "–".to_owned(),
        Some(SyncProgress { trouble: Some(trouble), .. }) => {
            match trouble.char_indices().nth(TROUBLE_CHARS) {
                Some((end, _)) => format!("trouble: {}…", trouble[..end].trim_end()),
                None => format!("trouble: {trouble}"),
            }
        }
        Some(sync) if sync.files_missing == 0 && sync.complete == sync.target => "current".to_owned(),
        Some(sync) => format!("{} to fetch", Bytes(sync.bytes_missing)),
    }
}

fn html_page(title: &str, api: Option<&Api>, content: Markup) -> Markup {
    let front_door = api.and_then(|api| Some(api.parts().addresses.get()?.front_door.clone()));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " – Freshet" }
                link rel="stylesheet" href="/style.css";
                script src="/live.js" defer {}
            }
            body {
                header {
                    h1 { a href="/" { "Freshet" } }
                    @if let Some(url) = &front_door { p { a href=(url) { (url) } } }
                    p.right id="following" { "as of the page's loading" }
                }
                main { (content) }
                @if let Some(api) = api {
                    footer { "control " (env!("CARGO_PKG_VERSION")) ", up " (age(api.parts().clock.uptime())) }
                }
            }
        }
    }
}

fn volunteers(nodes: &[NodeView], view: &View) -> Markup {
    let pages = nodes.len().div_ceil(ROWS).max(1);
    let page = view.page.clamp(1, pages);
    let shown = nodes.iter().skip((page - 1) * ROWS).take(ROWS);
    let sorted = if view.sort.is_empty() { "delivery" } else { &view.sort };
    let column = |key: &str, words: &str, number: bool| {
        html! {
            th.n[number] { a.by[key == sorted] href=(link(key, &view.q, 1)) { (words) } }
        }
    };
    html! {
        @if nodes.is_empty() { p.faint { "None." } }
        @else {
            table.volunteers {
                thead { tr {
                    (column("name", "Name", false)) (column("state", "State", false)) (column("mirror", "Mirror", false))
                    (column("delivery", "Delivers", true)) (column("sync", "Copies", true))
                    (column("left", "Left this month", true)) (column("delivered", "Delivered", true))
                } }
                tbody { @for node in shown { (row(node)) } }
            }
            @if pages > 1 {
                nav {
                    @if page > 1 { a href=(link(sorted, &view.q, page - 1)) { "before" } }
                    span.faint { "page " (page) " of " (pages) }
                    @if page < pages { a href=(link(sorted, &view.q, page + 1)) { "next" } }
                }
            }
        }
    }
}

fn row(node: &NodeView) -> Markup {
    let rates = live::of(node);
    let id = node.node;
    html! {
        tr {
            td { a href=(format!("/volunteer/{}", node.name)) { (node.name) } @if !node.profile.sponsor.is_empty() { small { (node.profile.sponsor) } } }
            td { (state(node)) }
            td data-label="mirror" { span data-live=(format!("{id}-mirror")) { (mirror(node)) } }
            td.n data-label="delivers" { span data-live=(format!("{id}-delivery")) { (live::rate(rates.delivery.sent)) } }
            td.n data-label="copies" { span data-live=(format!("{id}-sync")) { (live::rate(rates.sync.received)) } }
            td.n data-label="left" { (month(node)) }
            td.n data-label="delivered" { (Bytes(node.ledger.delivered_bytes)) }
        }
    }
}

fn state(node: &NodeView) -> Markup {
    let title = node.reason.as_deref().unwrap_or_default();
    html! {
        span class=(format!("state {}", node.state.name())) title=(title) data-live=(format!("{}-state", node.node)) { (node.state.name()) }
    }
}

/// Why it gets no customers, without the word that its state says already.
fn why(node: &NodeView) -> Option<&str> {
    let reason = node.reason.as_deref()?;
    Some(reason.strip_prefix(node.state.name()).map_or(reason, str::trim_start))
}

fn month(node: &NodeView) -> Markup {
    let Some(month) = node.budget.as_ref().and_then(|budget| budget.month) else { return html! { "–" } };
    html! {
        progress max=(month.volume.0) value=(month.left.0) {} " " (Bytes(month.left.0))
    }
}

fn bundle_row(bundle: &BundleView) -> Markup {
    let (held, wanted) = bundle.members.iter().fold((0_u64, 0_u64), |(held, wanted), member| {
        (held + u64::from(member.held), wanted + u64::from(member.held) + u64::from(member.lacks))
    });
    html! {
        tr {
            td { "state " (bundle.sequence) }
            td.n { (Bytes(bundle.bytes)) }
            td.n { (percent(held, wanted)) }
            td.n { (format!("{:.2} copies", bundle.origin_copies)) }
        }
    }
}

fn events(events: &[Event]) -> Markup {
    html! {
        @if events.is_empty() { p.faint { "Nothing since control's start." } }
        @else {
            ol.events { @for event in events.iter().rev() { li {
                time { (lately(event.at)) }
                span { @if let Some(node) = &event.node { strong { (node) } " " } (event.text) }
            } } }
        }
    }
}

/// The last events but operators' own: the page may be public, and who works there is nobody's business.
fn lately_public(api: &Api, node: Option<&str>) -> Vec<Event> {
    let mut events = api.parts().events.after(0, node, EVENTS_MAX);
    events.retain(|event| event.kind != EventKind::Operator);
    events.split_off(events.len().saturating_sub(EVENTS))
}

fn nodes_current(nodes: &[NodeView]) -> (usize, usize) {
    let mirrors = nodes.iter().filter_map(|node| node.sync.as_ref());
    let current = mirrors.clone().filter(|sync| sync.files_missing == 0 && sync.complete == sync.target);
    (current.count(), mirrors.count())
}

fn missing(node: &NodeView) -> u64 {
    node.sync.as_ref().map_or(0, |sync| sync.bytes_missing)
}

fn month_left(node: &NodeView) -> Option<u64> {
    Some(node.budget.as_ref()?.month?.left.0)
}

fn link(sort: &str, q: &str, page: usize) -> String {
    let encode = |text: &str| {
        percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
    };
    let mut link = format!("/?sort={}", encode(sort));
    if !q.is_empty() {
        link.push_str(&format!("&q={}", encode(q)));
    }
    if page > 1 {
        link.push_str(&format!("&page={page}"));
    }
    link
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "–".to_owned(),
        whole => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

fn age(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn moment(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| seconds.to_string(), |moment| moment.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// A moment of the last day or so without the year.
fn lately(seconds: u64) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    moment.map_or_else(|| seconds.to_string(), |moment| moment.strftime("%m-%d %H:%M:%S").to_string())
}

/// Volunteers on a page.
pub(super) const ROWS: usize = 100;
const EVENTS: usize = 8;
/// Of what stops a mirror, in the list.
const TROUBLE_CHARS: usize = 60;
const BUNDLES: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(state: NodeState, reason: &str) -> NodeView {
        let node = serde_json::json!({
            "node": 3, "name": "edge", "state": state, "reason": reason, "outstanding_bytes": 0, "files_held": 0,
            "interfaces": [], "ledger": freshet_api::admin::LedgerView::default(), "sync": SyncProgress::default(),
        });
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn a_mirror_in_trouble_is_not_current() {
        let mut node = node(NodeState::Active, "");
        assert_eq!(mirror(&node), "current");
        let mut trouble = |text: String| {
            node.sync.as_mut().unwrap().trouble = Some(text);
            mirror(&node)
        };
        assert_eq!(trouble("the disk is full".into()), "trouble: the disk is full");
        assert_eq!(trouble("ä".repeat(100)), format!("trouble: {}…", "ä".repeat(TROUBLE_CHARS)));
    }

    #[test]
    fn a_state_and_its_reason_are_told_apart() {
        assert_eq!(why(&node(NodeState::Closed, "hours: nothing now")), Some("hours: nothing now"));
        assert_eq!(why(&node(NodeState::Banned, "banned since today: x")), Some("since today: x"));
    }
}
