//! Volunteers as operators see them. Reads, changes nothing.

use freshet_api::admin::{NodeState, NodeView};

use super::Api;
use crate::registry::Node;

impl Api {
    /// Everything that is known of one volunteer.
    pub(super) fn node_view(&self, node: &Node) -> NodeView {
        let now = self.parts.clock.now();
        let session = self.parts.tracker.session(node.id, now);
        let (state, reason) = self.node_state(node);
        let heartbeat = session.as_ref().map(|session| &session.heartbeat);
        NodeView {
            node: node.id,
            name: node.name.as_str().to_owned(),
            state,
            reason,
            budget: heartbeat.and_then(|heartbeat| heartbeat.budget.clone()),
            version: heartbeat.map(|heartbeat| heartbeat.version.chars().take(100).collect()),
            delivery_url: heartbeat.map(|heartbeat| heartbeat.delivery_url.clone()),
            heartbeat_age_ms: session
                .as_ref()
                .map(|session| u64::try_from(now.since(session.heard).as_millis()).unwrap_or(u64::MAX)),
            donated_rate: heartbeat.and_then(|heartbeat| heartbeat.donated_rate),
            estimated_rate: session.as_ref().map(|session| session.capacity),
            outstanding_bytes: self.parts.reservations.outstanding(node.id).0,
            files_held: session.as_ref().map_or(0, |session| session.holdings.len()),
            sync: heartbeat.map(|heartbeat| heartbeat.sync.clone()),
            delivery: heartbeat.map(|heartbeat| heartbeat.delivery),
            interfaces: heartbeat.map(|heartbeat| heartbeat.interfaces.clone()).unwrap_or_default(),
            source: heartbeat.map(|heartbeat| heartbeat.source.clone()),
            ledger: self.parts.registry.ledger(node.id),
        }
    }

    /// Where a volunteer stands, and why it gets no customers.
    pub(super) fn node_state(&self, node: &Node) -> (NodeState, Option<String>) {
        if node.membership.is_none() {
            return (NodeState::Invited, Some("nobody has joined with its join string yet".to_owned()));
        }
        match self.parts.routing.load().route(node.id) {
            Some(route) => (route.state, route.reason.as_ref().map(ToString::to_string)),
            None => (NodeState::Lost, Some("no heartbeat since it joined".to_owned())),
        }
    }
}
