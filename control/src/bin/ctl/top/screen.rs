//! What `ctl top` draws: made for 80 columns and 24 rows, with more columns where there is more room.

use std::cmp::Reverse;

use clap::ValueEnum;
use freshet_api::admin::{NodeState, NodeView};
use freshet_api::operator::{ClassRates, FlowRates};
use freshet_api::{Bytes, BytesPerSec};
use ratatui::Frame;
use ratatui::backend::TestBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Clear, Paragraph, Row, Table};

use super::{Picture, Wish};

/// By what volunteers are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// What they deliver just now.
    Delivery,
    /// What they copy just now.
    Sync,
    /// What they send to other mirrors just now.
    Give,
    /// What their owners send just now.
    Owner,
    /// Customers' part of what goes out for Freshet.
    Share,
    /// What is promised to customers and not delivered yet.
    Backlog,
    /// What is left of their month, the least first.
    Left,
    /// What their mirror lacks.
    Mirror,
    /// Where they stand.
    State,
    /// Their names.
    Name,
}

impl Sort {
    /// As their columns stand, and from the last to the first two.
    const ALL: [Self; 10] = [
        Self::Delivery,
        Self::Sync,
        Self::Give,
        Self::Owner,
        Self::Share,
        Self::Backlog,
        Self::Left,
        Self::Mirror,
        Self::Name,
        Self::State,
    ];

    fn place(self) -> usize {
        Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0)
    }

    pub(crate) fn next(self) -> Self {
        Self::ALL[(self.place() + 1) % Self::ALL.len()]
    }

    pub(crate) fn before(self) -> Self {
        Self::ALL[(self.place() + Self::ALL.len() - 1) % Self::ALL.len()]
    }

    fn name(self) -> &'static str {
        match self {
            Self::Delivery => "delivery",
            Self::Sync => "sync",
            Self::Give => "give",
            Self::Owner => "owner",
            Self::Share => "share",
            Self::Backlog => "backlog",
            Self::Left => "left",
            Self::Mirror => "mirror",
            Self::State => "state",
            Self::Name => "name",
        }
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, picture: &Picture, wish: &mut Wish) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(3), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    let nodes = chosen(&picture.nodes, wish);
    frame.render_widget(Paragraph::new(summary(picture)), head);
    let mut columns = columns(body.width);
    spread(&mut columns, body.width, &nodes);
    let rows = rows(&nodes, wish, &columns);
    let room = usize::from(body.height.saturating_sub(1));
    wish.first = wish.first.min(rows.len().saturating_sub(room));
    let more = rows.len().saturating_sub(wish.first + room);
    let header = Row::new(columns.iter().map(|column| {
        let style = if column.sort == Some(wish.sort) {
            Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
        } else {
            Style::new().add_modifier(Modifier::BOLD)
        };
        aligned(column.title.to_owned(), column).style(style)
    }));
    let widths = columns.iter().map(|column| Constraint::Length(column.width));
    let table =
        Table::new(rows.into_iter().skip(wish.first).take(room), widths).header(header).column_spacing(1);
    frame.render_widget(table, body);
    frame.render_widget(Paragraph::new(footer(wish, picture, nodes.len(), more, foot.width)), foot);
    if wish.help {
        help(frame);
    }
}

/// One screen as lines of text.
pub(super) fn as_text(picture: &Picture, wish: &mut Wish, (columns, rows): (u16, u16)) -> String {
    let mut terminal = match ratatui::Terminal::new(TestBackend::new(columns, rows)) {
        Ok(terminal) => terminal,
        Err(never) => match never {},
    };
    if let Err(never) = terminal.draw(|frame| draw(frame, picture, wish)) {
        match never {}
    }
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..rows {
        let line: String = (0..columns).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Those that are wanted, in the order that is wanted.
fn chosen<'a>(nodes: &'a [NodeView], wish: &Wish) -> Vec<&'a NodeView> {
    let filter = wish.filter.to_lowercase();
    let mut nodes: Vec<&NodeView> = nodes
        .iter()
        .filter(|node| {
            [node.name.as_str(), node.profile.sponsor.as_str(), node.state.name()]
                .iter()
                .any(|text| text.to_lowercase().contains(&filter))
        })
        .collect();
    match wish.sort {
        Sort::Delivery => nodes.sort_by_key(|node| Reverse(sum(node).delivery.sent)),
        Sort::Sync => nodes.sort_by_key(|node| Reverse(sum(node).sync.received)),
        Sort::Give => nodes.sort_by_key(|node| Reverse(sum(node).sync.sent)),
        Sort::Owner => nodes.sort_by_key(|node| Reverse(sum(node).other.sent)),
        Sort::Share => nodes.sort_by_key(|node| Reverse(share(&sum(node)))),
        Sort::Backlog => nodes.sort_by_key(|node| Reverse(node.outstanding_bytes)),
        Sort::Left => nodes.sort_by_key(|node| left(node).map_or(u64::MAX, |(left, _)| left)),
        Sort::Mirror => nodes.sort_by_key(|node| Reverse(lacks(node))),
        Sort::State => {
            nodes.sort_by_key(|node| TROUBLE_FIRST.iter().position(|state| *state == node.state));
        }
        Sort::Name => nodes.sort_by(|a, b| a.name.cmp(&b.name)),
    }
    if wish.reversed {
        nodes.reverse();
    }
    nodes
}

fn summary(picture: &Picture) -> Vec<Line<'static>> {
    let whole = picture.nodes.iter().fold(ClassRates::default(), |whole, node| whole.plus(sum(node)));
    let count = |state| picture.nodes.iter().filter(|node| node.state == state).count();
    let mut states = vec![Span::raw(format!("volunteers {}: ", picture.nodes.len()))];
    for state in NodeState::ALL.into_iter().filter(|state| count(*state) > 0) {
        states.push(Span::styled(format!("{} {}  ", count(state), state.name()), colour(state)));
    }
    let (up, release) = picture.status.as_ref().map_or_else(Default::default, |status| {
        let release = if status.swarm.released < status.catalog.sequence {
            "release: being bundled".to_owned()
        } else {
            format!("release: whole on {} of {} mirrors", current(picture), mirrors(picture))
        };
        (age(status.uptime_secs), release)
    });
    vec![
        Line::from(vec![
            Span::raw("freshet top").bold(),
            Span::raw(format!("   control up {up}   {release}")),
        ]),
        Line::from(states),
        Line::from(vec![
            Span::raw("deliver ").dim(),
            Span::styled(format!("{:<15}", whole.delivery.sent.to_string()), Style::new().fg(Color::Cyan)),
            Span::raw("copy ").dim(),
            Span::styled(format!("{:<15}", whole.sync.received.to_string()), Style::new().fg(Color::Green)),
            Span::raw("owners send ").dim(),
            Span::raw(format!("{:<12}", whole.other.sent.to_string())),
        ]),
    ]
}

fn mirrors(picture: &Picture) -> usize {
    picture.nodes.iter().filter(|node| node.sync.is_some()).count()
}

fn current(picture: &Picture) -> usize {
    picture.nodes.iter().filter(|node| node.sync.is_some() && mirror(node) == "current").count()
}

fn rows(nodes: &[&NodeView], wish: &Wish, columns: &[Column]) -> Vec<Row<'static>> {
    let mut rows = Vec::with_capacity(nodes.len());
    for node in nodes {
        let style = colour(node.state);
        let all = Shown { node, name: node.name.clone(), rates: sum(node), whole: true };
        rows.push(Row::new(columns.iter().map(|column| {
            let cell = aligned((column.text)(&all), column);
            if column.sort == Some(Sort::State) { cell.style(style) } else { cell }
        })));
        if !wish.interfaces {
            continue;
        }
        for interface in &node.rates {
            let name = format!("  {}", interface.name);
            let one = Shown { node, name, rates: interface.classes, whole: false };
            let cells = columns.iter().map(|column| aligned((column.text)(&one), column));
            rows.push(Row::new(cells).dim());
        }
    }
    rows
}

/// A line: a volunteer, or one of its interfaces.
struct Shown<'a> {
    node: &'a NodeView,
    name: String,
    rates: ClassRates,
    whole: bool,
}

struct Column {
    title: &'static str,
    width: u16,
    sort: Option<Sort>,
    text: fn(&Shown<'_>) -> String,
}

/// As many as there is room for; those of 80 columns first.
fn columns(width: u16) -> Vec<Column> {
    let column = |title, width, sort, text| Column { title, width, sort, text };
    let mut columns = vec![
        column("VOLUNTEER", 17, Some(Sort::Name), |shown| shown.name.clone()),
        column("STATE", 8, Some(Sort::State), |shown| whole(shown, shown.node.state.name().to_owned())),
        column("DELIVER", 7, Some(Sort::Delivery), |shown| short(shown.rates.delivery.sent)),
        column("SYNC", 5, Some(Sort::Sync), |shown| short(shown.rates.sync.received)),
        column("GIVE", 5, Some(Sort::Give), |shown| short(shown.rates.sync.sent)),
        column("OWNER", 5, Some(Sort::Owner), |shown| short(shown.rates.other.sent)),
        column("SHARE", 5, Some(Sort::Share), |shown| {
            share(&shown.rates).map_or_else(|| "-".to_owned(), |part| format!("{part}%"))
        }),
        column("BACKLOG", 7, Some(Sort::Backlog), |shown| whole(shown, amount(shown.node.outstanding_bytes))),
        column("LEFT", 4, Some(Sort::Left), |shown| {
            whole(shown, left(shown.node).map_or_else(|| "-".to_owned(), |(_, part)| format!("{part}%")))
        }),
        column("MIRROR", 8, Some(Sort::Mirror), |shown| whole(shown, mirror(shown.node))),
    ];
    let more = [
        column("MAY", 6, None, |shown| {
            whole(shown, shown.node.donated_rate.map_or_else(|| "-".to_owned(), short))
        }),
        column("ACTIVE", 6, None, |shown| {
            whole(shown, shown.node.delivery.as_ref().map_or_else(String::new, |d| d.active.to_string()))
        }),
        column("OWNER IN", 8, None, |shown| short(shown.rates.other.received)),
        column("HEARD", 7, None, |shown| {
            whole(shown, shown.node.heartbeat_age_ms.map_or_else(|| "never".to_owned(), silence))
        }),
        column("DELIVERED", 10, None, |shown| {
            whole(shown, Bytes(shown.node.ledger.delivered_bytes).to_string())
        }),
        column("WHY", WHY_LEAST, None, |shown| {
            let trouble = shown.node.sync.as_ref().and_then(|sync| sync.trouble.clone());
            whole(shown, shown.node.reason.clone().or(trouble).unwrap_or_default())
        }),
    ];
    let mut used: u16 = columns.iter().map(|column| column.width + 1).sum();
    for column in more {
        used += column.width + 1;
        if used > width {
            break;
        }
        columns.push(column);
    }
    columns
}

/// Gives the room that is left to names that need it, and what then is left to the reasons, or else to the names.
fn spread(columns: &mut [Column], width: u16, nodes: &[&NodeView]) {
    let used: u16 = columns.iter().map(|column| column.width + 1).sum();
    let mut left = (width + 1).saturating_sub(used);
    let longest = nodes.iter().map(|node| node.name.chars().count()).max().unwrap_or(0);
    let longest = u16::try_from(longest).unwrap_or(u16::MAX);
    let [volunteer, .., last] = columns else { return };
    let wanted = longest.saturating_sub(volunteer.width).min(left);
    volunteer.width += wanted;
    left -= wanted;
    if last.title == "WHY" {
        last.width += left;
    } else {
        volunteer.width += left;
    }
}

fn footer(wish: &Wish, picture: &Picture, shown: usize, more: usize, width: u16) -> Line<'static> {
    if wish.typing {
        return Line::from(format!("show only: {}_   Enter keeps it, Esc takes it away", wish.filter));
    }
    if let Some(trouble) = &picture.trouble {
        return Line::from(trouble.clone()).style(Style::new().fg(Color::Red));
    }
    let filter = match wish.filter.as_str() {
        "" => String::new(),
        filter => format!("  {shown} with `{filter}`"),
    };
    let more = if more > 0 { format!("  {more} more below") } else { String::new() };
    let order = if wish.reversed { ", reversed" } else { "" };
    let told = format!("by {}{order}{filter}{more}  ", wish.sort.name());
    let room = usize::from(width).saturating_sub(told.chars().count());
    let keys = "s sort  r reverse  / filter  i interfaces  ? help  q quit";
    let keys = if keys.len() <= room { keys } else { "? help  q quit" };
    Line::from(told + keys).dim()
}

fn help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let lines = HELP.lines().count() as u16;
    let (width, height) = (area.width.min(76), area.height.min(lines + 2));
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let block = ratatui::widgets::Block::bordered().title(" ctl top ");
    frame.render_widget(Paragraph::new(HELP).block(block), place);
}

fn aligned(text: String, column: &Column) -> Cell<'static> {
    let left = matches!(column.title, "VOLUNTEER" | "STATE" | "WHY");
    if left {
        return Cell::from(crate::show::cut(&text, usize::from(column.width)));
    }
    Cell::from(format!("{text:>width$}", width = usize::from(column.width)))
}

/// Nothing on an interface's line, where it is the volunteer's as a whole.
fn whole(shown: &Shown<'_>, text: String) -> String {
    if shown.whole { text } else { String::new() }
}

fn sum(node: &NodeView) -> ClassRates {
    node.rates.iter().fold(ClassRates::default(), |sum, rates| sum.plus(rates.classes))
}

/// What customers get of what goes out for Freshet.
fn share(rates: &ClassRates) -> Option<u64> {
    let [delivery, sync] = [rates.delivery, rates.sync].map(|FlowRates { sent, .. }| sent.0);
    match delivery.saturating_add(sync) {
        0..1_000 => None,
        all => u64::try_from(u128::from(delivery) * 100 / u128::from(all)).ok(),
    }
}

fn left(node: &NodeView) -> Option<(u64, u64)> {
    let month = node.budget.as_ref()?.month?;
    Some((month.left.0, month.left.0.saturating_mul(100) / month.volume.0.max(1)))
}

fn lacks(node: &NodeView) -> u64 {
    node.sync.as_ref().map_or(0, |sync| sync.bytes_missing)
}

fn mirror(node: &NodeView) -> String {
    match &node.sync {
        None => "-".to_owned(),
        Some(sync) if sync.trouble.is_some() => "trouble".to_owned(),
        Some(sync) if sync.files_missing == 0 && sync.complete == sync.target => "current".to_owned(),
        Some(sync) => format!("-{}", amount(sync.bytes_missing)),
    }
}

/// How long nothing was heard, in seven characters.
fn silence(ms: u64) -> String {
    match ms / 1_000 {
        0..1_000 => format!("{:.1} s", (ms / 100) as f64 / 10.0),
        seconds @ 1_000..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds if seconds < 8_640_000 => format!("{} days", seconds / 86_400),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// Bits per second in six characters: `812M`, `1.2G`.
fn short(rate: BytesPerSec) -> String {
    scaled(rate.bits_per_sec() as f64, 1e3, "")
}

/// Bytes in seven characters: `812MiB`, `1.2GiB`.
fn amount(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        1..1_024 => format!("{bytes}B"),
        bytes => scaled(bytes as f64, 1024.0, "iB").replace('k', "K"),
    }
}

fn scaled(value: f64, step: f64, unit: &str) -> String {
    if value < step {
        return if value < 1.0 { "-".to_owned() } else { format!("{value:.0}{unit}") };
    }
    let mut value = value;
    for prefix in ["k", "M", "G", "T", "P", "E"] {
        value /= step;
        if value < 9.95 {
            return format!("{value:.1}{prefix}{unit}");
        }
        if value < step - 0.5 {
            return format!("{value:.0}{prefix}{unit}");
        }
    }
    format!("{value:.0}Z{unit}")
}

fn colour(state: NodeState) -> Style {
    match state {
        NodeState::Active => Style::new().fg(Color::Green),
        NodeState::Closed | NodeState::Draining => Style::new().fg(Color::Yellow),
        NodeState::Lost | NodeState::Banned => Style::new().fg(Color::Red),
        NodeState::Invited => Style::new().add_modifier(Modifier::DIM),
    }
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

const TROUBLE_FIRST: [NodeState; 6] = [
    NodeState::Banned,
    NodeState::Lost,
    NodeState::Closed,
    NodeState::Draining,
    NodeState::Active,
    NodeState::Invited,
];
const WHY_LEAST: u16 = 30;
const HELP: &str = "\
DELIVER  sent to customers         SYNC   received to keep the mirror
GIVE     sent to other mirrors     OWNER  the owner's own, sent
SHARE    customers' part of what goes out for Freshet
BACKLOG  promised to customers and not yet delivered
LEFT     of the month's volume     MIRROR what it still has to fetch
MAY      what the owner gives now (wide screens)
Rates are bits per second.

s, right, left   sort by the next or the previous column
r                the other way round
/                show only names, sponsors or states that contain a text
i                interfaces below their volunteers
up, down, PgUp, PgDn, Home, End   scroll
q                leave";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_their_columns() {
        for (rate, text) in [
            (0, "-"),
            (10, "80"),
            (125_000, "1.0M"),
            (1_240_000, "9.9M"),
            (1_244_000, "10M"),
            (12_500_000, "100M"),
            (124_990_000, "1.0G"),
            (u64::MAX / 8, "18E"),
        ] {
            assert_eq!(short(BytesPerSec(rate)), text);
            assert!(short(BytesPerSec(rate)).len() <= 5);
        }
        assert_eq!((amount(0).as_str(), amount(1 << 30).as_str()), ("-", "1.0GiB"));
        for (bytes, text) in [(1, "1B"), (1_023, "1023B"), (1 << 10, "1.0KiB"), (1_023 << 20, "1023MiB")] {
            assert_eq!(amount(bytes), text);
        }
        assert!(amount(u64::MAX).len() <= 7);
        for (ms, text) in [
            (0, "0.0 s"),
            (999_999, "999.9 s"),
            (1_000_000, "16 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 days"),
            (8_640_000_000, "100 d"),
        ] {
            assert_eq!(silence(ms), text);
        }
    }

    fn picture(count: usize) -> Picture {
        let mut node = crate::show::sample_node();
        node.name = "edge-of-the-department-of-physics".into();
        Picture { nodes: vec![node; count], ..Picture::default() }
    }

    #[test]
    fn a_long_name_is_cut_with_a_mark_or_gets_room() {
        let narrow = as_text(&picture(1), &mut Wish::sorted_by(Sort::Name), (80, 24));
        assert!(narrow.contains("\nedge-of-the-depa… closed"), "{narrow}");
        let wide = as_text(&picture(1), &mut Wish::sorted_by(Sort::Name), (200, 24));
        assert!(wide.contains("\nedge-of-the-department-of-physics closed"), "{wide}");
    }

    #[test]
    fn a_screen_of_160_columns_says_why_and_which_keys_there_are() {
        let wide = as_text(&picture(60), &mut Wish::sorted_by(Sort::Name), (160, 24));
        assert!(wide.contains(" WHY") && wide.contains("its disk is full"), "{wide}");
        let foot = wide.lines().last().unwrap();
        assert!(foot.contains("more below  s sort") && foot.ends_with("q quit"), "{foot}");
        let narrow = as_text(&picture(60), &mut Wish::sorted_by(Sort::Name), (80, 24));
        let foot = narrow.lines().last().unwrap();
        assert!(foot.contains("more below") && foot.ends_with("q quit"), "{foot}");
    }

    #[test]
    fn every_column_of_a_narrow_screen_can_be_sorted_by() {
        let sorts: Vec<Sort> = columns(80).iter().map(|column| column.sort.unwrap()).collect();
        assert!(Sort::ALL.iter().all(|sort| sorts.contains(sort)) && sorts.len() == Sort::ALL.len());
        let mut nodes = picture(2).nodes;
        nodes[1].name = "giver".into();
        nodes[1].rates[0].classes.sync.sent = BytesPerSec(10_000);
        nodes[1].rates[0].classes.other.sent = BytesPerSec(10_000);
        nodes[0].rates[0].classes.delivery.sent = BytesPerSec(5_000);
        for (sort, first) in [(Sort::Give, "giver"), (Sort::Owner, "giver"), (Sort::Share, &*nodes[0].name)] {
            assert_eq!(chosen(&nodes, &Wish::sorted_by(sort))[0].name, first);
        }
    }

    #[test]
    fn every_column_is_within_80_and_more_come_with_room() {
        let width = |columns: &[Column]| columns.iter().map(|column| column.width + 1).sum::<u16>() - 1;
        assert!(width(&columns(80)) <= 80, "{}", width(&columns(80)));
        assert!(columns(200).len() > columns(80).len());
        assert!(width(&columns(200)) <= 200);
    }

    #[test]
    fn an_empty_screen_is_drawn_at_any_size() {
        let mut wish = Wish {
            reversed: true,
            filter: "x".into(),
            interfaces: true,
            help: true,
            first: usize::MAX,
            ..Wish::sorted_by(Sort::Name)
        };
        for size in [(80, 24), (10, 10), (300, 60)] {
            as_text(&Picture::default(), &mut wish, size);
        }
    }
}
