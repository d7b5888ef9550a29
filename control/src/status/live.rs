//! What of the status page changes while somebody looks at it: texts by the name of their place.

use std::collections::BTreeMap;
use std::time::Duration;

use freshet_api::BytesPerSec;
use freshet_api::admin::{NodeState, NodeView};
use freshet_api::operator::ClassRates;

use super::{View, page};
use crate::api::Api;

/// Texts by `data-live`.
pub(super) type Values = BTreeMap<String, String>;

/// All of them for this view of the volunteers.
pub(super) fn values(api: &Api, view: &View) -> Values {
    let mut nodes = api.node_views();
    let mut values = totals(api, &nodes);
    page::select(&mut nodes, view);
    for node in nodes.iter().skip(page::first(view)).take(page::ROWS) {
        let rates = of(node);
        values.insert(format!("{}-state", node.node), node.state.name().to_owned());
        values.insert(format!("{}-delivery", node.node), rate(rates.delivery.sent));
        values.insert(format!("{}-sync", node.node), rate(rates.sync.received));
        values.insert(format!("{}-mirror", node.node), page::mirror(node));
    }
    values
}

/// The tiles at the top.
pub(super) fn totals(api: &Api, nodes: &[NodeView]) -> Values {
    let sum = nodes.iter().fold(ClassRates::default(), |sum, node| sum.plus(of(node)));
    let now = api.parts().flows.hour().last().copied().unwrap_or_default();
    let active = nodes.iter().filter(|node| node.state == NodeState::Active).count();
    let value = |name: &str, text: String| (name.to_owned(), text);
    Values::from([
        value("delivery", rate(sum.delivery.sent)),
        value("sync", rate(sum.sync.received)),
        value("origin", rate(now.origin)),
        value("origin-sync", rate(now.origin_sync)),
        value("active", active.to_string()),
    ])
}

/// What passes all interfaces of a volunteer.
pub(super) fn of(node: &NodeView) -> ClassRates {
    node.rates.iter().fold(ClassRates::default(), |sum, rates| sum.plus(rates.classes))
}

/// A rate for people; next to nothing is nothing.
pub(super) fn rate(rate: BytesPerSec) -> String {
    if rate.0 < NOTHING { "–".to_owned() } else { rate.to_string() }
}

/// Between two updates.
pub(super) const EVERY: Duration = Duration::from_secs(2);
/// Bytes per second.
const NOTHING: u64 = 125;
