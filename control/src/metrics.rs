//! Control's figures for monitoring (`GET /metrics`), read anew for each scrape. `control/monitoring` has a dashboard
//! and alert rules made of them.

use freshet_api::admin::{NodeState, NodeView};
use freshet_api::metrics::{Labels, Scrape};
use freshet_api::operator::{ClassRates, FlowRates};
use freshet_api::traffic::InOut;

use crate::api::Api;

impl Api {
    /// Everything that is measured, as it is now.
    pub(crate) fn scrape(&self) -> Scrape {
        let mut scrape = Scrape::default();
        self.whole(&mut scrape);
        let nodes = self.node_views();
        volunteers(&mut scrape, &nodes[..nodes.len().min(VOLUNTEERS_MAX)]);
        self.shares(&mut scrape);
        scrape
    }

    /// How the steward shares volunteers' rates between customers and mirrors.
    fn shares(&self, scrape: &mut Scrape) {
        let shares = self.parts().steward.view();
        let shares = &shares[..shares.len().min(VOLUNTEERS_MAX)];
        scrape.gauges(
            "freshet_volunteer_delivery_share",
            "Customers' part of what it sends while mirrors want it too, 0 to 1",
            shares
                .iter()
                .map(|share| (label("volunteer", &share.name), f64::from(share.delivery_percent) / 100.0)),
        );
        let late = shares.iter().flat_map(|share| {
            let of = |class: &str| with(label("volunteer", &share.name), "class", class);
            [(of("delivery"), share.delivery_lateness), (of("sync"), share.sync_lateness)]
        });
        scrape.gauges(
            "freshet_volunteer_lateness",
            "How late a class is expected to be, relative to its target: above 1 is later than wanted",
            late,
        );
    }

    fn whole(&self, scrape: &mut Scrape) {
        let status = self.status_view();
        let (door, sync, catalogue) = (&status.front_door, &status.sync_port, &status.catalog);
        let build = vec![("version", status.version.clone())];
        scrape.gauges("freshet_control_build", "1, with control's version", [(build, 1)]);
        scrape.gauge("freshet_control_uptime_seconds", "Since control's start", status.uptime_secs);
        scrape.gauge("freshet_control_ready", "1 once the whole repository was read", self.ready().is_ok());

        let outcomes = [
            ("redirect", door.redirects),
            ("direct", door.direct),
            ("fallback", door.fallback),
            ("put_off", door.put_off),
            ("not_found", door.not_found),
        ];
        scrape.counters(
            "freshet_front_door_answers",
            "Answers to customers: sent to a volunteer, served because small or metadata, served for want of a \
             volunteer, told to come back later, not in the catalogue",
            outcomes.map(|(outcome, count)| (label("outcome", outcome), count)),
        );
        scrape.counter(
            "freshet_front_door_redirected_bytes",
            "Bytes of the files that customers were sent to volunteers for",
            door.redirected_bytes,
        );
        scrape.counter(
            "freshet_front_door_sent_bytes",
            "Body bytes sent to customers by the origin",
            door.body_bytes,
        );
        scrape.counter("freshet_front_door_came_back", "Customers whom volunteers sent back", door.came_back);
        scrape.counter(
            "freshet_front_door_tickets_refused",
            "Forged tickets of such customers",
            door.tickets_refused,
        );
        if let Some(engine) = self.parts().engine.get().map(freshet_engine::StatsReader::stats) {
            scrape.counter(
                "freshet_connections_accepted",
                "Connections to front door and sync port",
                engine.accepted,
            );
            scrape.counter(
                "freshet_connections_refused",
                "Connections closed at once by a limit",
                engine.refused,
            );
            scrape.counter(
                "freshet_connections_timed_out",
                "Connections closed by a timeout",
                engine.timed_out,
            );
            scrape.gauge("freshet_connections_open", "Connections open now", engine.open);
        }
        scrape.counter("freshet_sync_port_blobs", "Contents or parts of them sent to volunteers", sync.blobs);
        scrape.counter("freshet_sync_port_sent_bytes", "Body bytes sent to volunteers", sync.body_bytes);
        scrape.counter(
            "freshet_sync_port_tokens_refused",
            "Requests without a good token",
            sync.tokens_refused,
        );

        scrape.gauge("freshet_catalogue_sequence", "State of the catalogue", catalogue.sequence);
        scrape.gauge("freshet_catalogue_files", "Files in the repository", catalogue.files);
        scrape.gauge("freshet_catalogue_bytes", "Bytes of all files", catalogue.bytes);
        scrape.gauge("freshet_catalogue_contents", "Different contents", catalogue.contents);
        scrape.gauge("freshet_catalogue_pending_files", "Files still to hash", catalogue.pending);
        scrape.gauge(
            "freshet_catalogue_left_out",
            "Reasons for which paths are left out, up to the first few",
            catalogue.left_out.len() as u64,
        );

        let swarm = &status.swarm;
        scrape.gauge("freshet_swarm_released_sequence", "State that volunteers are told of", swarm.released);
        scrape.gauge("freshet_swarm_bundles", "Bundles kept", swarm.bundles);
        scrape.gauge(
            "freshet_swarm_copying_bundles",
            "Bundles that some volunteer still lacks",
            swarm.copying,
        );
        scrape.gauge("freshet_swarm_spooled_bytes", "Packs and recipes on disk", swarm.spooled_bytes);

        let count = |state| status.nodes.iter().find(|(of, _)| *of == state).map_or(0, |(_, count)| *count);
        scrape.gauges(
            "freshet_volunteers",
            "Volunteers by state",
            NodeState::ALL.map(|state| (label("state", state.name()), count(state))),
        );
    }
}

/// One series a volunteer, or one each for its interfaces' classes.
fn volunteers(scrape: &mut Scrape, nodes: &[NodeView]) {
    let joined = || nodes.iter().filter(|node| node.state != NodeState::Invited);
    let heard = || joined().filter(|node| node.heartbeat_age_ms.is_some());
    scrape.gauges(
        "freshet_volunteer_takes_customers",
        "1 when customers are sent there",
        joined().map(|node| (name(node), node.state == NodeState::Active)),
    );
    scrape.gauges(
        "freshet_volunteer_banned",
        "1 when it was caught with wrong bytes",
        joined().map(|node| (name(node), node.state == NodeState::Banned)),
    );
    scrape.gauges(
        "freshet_volunteer_heartbeat_age_seconds",
        "Since it was last heard of",
        heard().map(|node| (name(node), node.heartbeat_age_ms.unwrap_or_default() as f64 / 1e3)),
    );
    scrape.counters(
        "freshet_volunteer_delivered_bytes",
        "Bytes sent to customers since it joined, as counted on its interfaces; lasting",
        joined().map(|node| (name(node), node.ledger.delivered_bytes)),
    );
    let synced = joined().flat_map(|node| {
        let of = |direction: &str| with(name(node), "direction", direction);
        [(of("in"), node.ledger.synced_in_bytes), (of("out"), node.ledger.synced_out_bytes)]
    });
    scrape.counters(
        "freshet_volunteer_synced_bytes",
        "Bytes from and to mirrors and the origin; lasting",
        synced,
    );
    scrape.gauges(
        "freshet_volunteer_outstanding_bytes",
        "Bytes promised by redirects and not yet confirmed",
        joined().map(|node| (name(node), node.outstanding_bytes)),
    );
    scrape.gauges(
        "freshet_volunteer_transfers",
        "Transfers to customers under way",
        heard().filter_map(|node| Some((name(node), node.delivery.as_ref()?.active))),
    );
    scrape.counters(
        "freshet_volunteer_sent_back",
        "Customers that it sent back to the front door, since its daemon's start",
        heard().filter_map(|node| Some((name(node), node.delivery.as_ref()?.sent_back))),
    );
    scrape.gauges(
        "freshet_volunteer_estimated_rate_bytes_per_second",
        "Delivery rate that selection reckons with",
        heard().filter_map(|node| Some((name(node), node.estimated_rate?.0))),
    );
    scrape.gauges(
        "freshet_volunteer_donated_rate_bytes_per_second",
        "Most that its owner gives just now",
        heard().filter_map(|node| Some((name(node), node.donated_rate?.0))),
    );
    scrape.gauges(
        "freshet_volunteer_files",
        "Files that it holds",
        heard().map(|node| (name(node), node.files_held)),
    );
    scrape.gauges(
        "freshet_volunteer_missing_bytes",
        "Bytes that its mirror still has to fetch",
        heard().filter_map(|node| Some((name(node), node.sync.as_ref()?.bytes_missing))),
    );
    scrape.gauges(
        "freshet_volunteer_mirror_trouble",
        "1 when something stops its mirror",
        heard().filter_map(|node| Some((name(node), node.sync.as_ref()?.trouble.is_some()))),
    );
    let month = || heard().filter_map(|node| Some((node, node.budget.as_ref()?.month.as_ref()?)));
    scrape.gauges(
        "freshet_volunteer_month_volume_bytes",
        "What its owner gives in a month",
        month().map(|(node, month)| (name(node), month.volume.0)),
    );
    scrape.gauges(
        "freshet_volunteer_month_left_bytes",
        "What is left of that",
        month().map(|(node, month)| (name(node), month.left.0)),
    );
    scrape.gauges(
        "freshet_volunteer_month_left_seconds",
        "Until the next month begins",
        month().map(|(node, month)| (name(node), month.ends_in_secs)),
    );
    let interfaces = heard().flat_map(|node| {
        node.interfaces.iter().flat_map(move |interface| {
            let classes = [
                ("delivery", &interface.delivery),
                ("sync", &interface.sync),
                ("control", &interface.control),
                ("other", &interface.other),
            ];
            classes.into_iter().flat_map(move |(class, InOut { received, sent })| {
                let of = |direction: &str| {
                    let labels = with(name(node), "interface", &interface.name);
                    with(with(labels, "class", class), "direction", direction)
                };
                [(of("in"), received.bytes), (of("out"), sent.bytes)]
            })
        })
    });
    scrape.counters(
        "freshet_volunteer_interface_bytes",
        "Bytes on the wire by interface and class, since its daemon's start",
        interfaces,
    );
    let rates = heard().flat_map(|node| {
        let sum = node.rates.iter().fold(ClassRates::default(), |sum, rates| sum.plus(rates.classes));
        let classes =
            [("delivery", sum.delivery), ("sync", sum.sync), ("control", sum.control), ("other", sum.other)];
        classes.into_iter().flat_map(move |(class, FlowRates { received, sent })| {
            let of = |direction: &str| with(with(name(node), "class", class), "direction", direction);
            [(of("in"), received.0), (of("out"), sent.0)]
        })
    });
    scrape.gauges(
        "freshet_volunteer_rate_bytes_per_second",
        "What passes its interfaces just now, by class",
        rates,
    );
}

fn label(key: &'static str, value: &str) -> Labels {
    vec![(key, value.to_owned())]
}

fn name(node: &NodeView) -> Labels {
    label("volunteer", &node.name)
}

fn with(mut labels: Labels, key: &'static str, value: &str) -> Labels {
    labels.push((key, value.to_owned()));
    labels
}

/// Volunteers that have series of their own at most, by number; the sums count all of them.
const VOLUNTEERS_MAX: usize = 2_000;
