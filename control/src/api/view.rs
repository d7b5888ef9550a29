//! Control as operators see it: volunteers, files, the whole in figures. Reads, changes nothing.

use freshet_api::admin::{Holder, NodeState, NodeView, StatusView, WhereView};

use super::Api;
use crate::registry::{Ban, Node};
use crate::routing::Route;

impl Api {
    /// Everything that is known of one volunteer.
    pub(crate) fn node_view(&self, node: &Node) -> NodeView {
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
            // Who is lost sends nothing that is known of.
            rates: if state == NodeState::Lost { Vec::new() } else { self.parts.flows.of(node.id, now) },
            profile: node.profile.as_ref().clone(),
            source: heartbeat.map(|heartbeat| heartbeat.source.clone()),
            ledger: self.parts.registry.ledger(node.id),
        }
    }

    /// Every volunteer, in the order of their numbers.
    pub(crate) fn node_views(&self) -> Vec<NodeView> {
        self.parts.registry.nodes().iter().map(|node| self.node_view(node)).collect()
    }

    /// The whole in figures.
    pub(crate) fn status_view(&self) -> StatusView {
        let nodes = self.parts.registry.nodes();
        let found: Vec<NodeState> = nodes.iter().map(|node| self.node_state(node).0).collect();
        let count = |state| found.iter().filter(|found| **found == state).count() as u64;
        let counted = NodeState::ALL.into_iter().map(|state| (state, count(state)));
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_secs: self.parts.clock.uptime().as_secs(),
            catalog: self.parts.catalog.view(),
            nodes: counted.filter(|(_, count)| *count > 0).collect(),
            front_door: self.parts.front_door.counters().view(),
            sync_port: self.parts.sync_counters.view(),
            swarm: self.parts.swarm.summary(),
        }
    }

    /// Who holds a path; `None` when it is not in the catalogue.
    pub(crate) fn where_view(&self, path: &str) -> Option<WhereView> {
        let catalog = self.parts.catalog.load();
        let entry = catalog.find(path.as_bytes())?;
        let table = self.parts.routing.load();
        let holders = table.routes().filter(|route| route.holdings.contains(entry.file.0));
        Some(WhereView {
            path: entry.path.to_repo_path(),
            file: entry.file,
            size: entry.size,
            mtime: entry.mtime,
            blake3: entry.checksums.blake3.to_hex(),
            sha256: entry.checksums.sha256_hex(),
            md4: entry.checksums.md4_hex(),
            holders: holders
                .map(|route| Holder {
                    node: route.node,
                    name: route.name.as_str().to_owned(),
                    state: route.state,
                })
                .collect(),
        })
    }

    /// Where a volunteer stands that is on this route, if it is on any.
    pub(crate) fn state_of(node: &Node, route: Option<&Route>) -> NodeState {
        match route {
            _ if node.membership.is_none() => NodeState::Invited,
            Some(route) => route.state,
            None => NodeState::Lost,
        }
    }

    /// A ban in words, with the path that it is about for as long as the catalogue has it.
    pub(crate) fn ban_words(&self, ban: &Ban) -> String {
        ban.words(&self.parts.catalog.load())
    }

    /// Where a volunteer stands, and why it gets no customers.
    pub(crate) fn node_state(&self, node: &Node) -> (NodeState, Option<String>) {
        let table = self.parts.routing.load();
        let route = table.route(node.id);
        let reason = match route {
            _ if node.membership.is_none() => Some("nobody has joined with its join string yet".to_owned()),
            // The routing table knows no paths.
            Some(_) if let Some(ban) = &node.ban => Some(self.ban_words(ban)),
            Some(route) => route.reason.as_ref().map(ToString::to_string),
            None => Some("no heartbeat since it joined".to_owned()),
        };
        (Self::state_of(node, route), reason)
    }
}
