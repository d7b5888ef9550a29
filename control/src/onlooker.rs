//! Looks every second at how things stand, and notes what became different as events. It changes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use freshet_api::NodeId;
use freshet_api::admin::NodeState;
use freshet_api::operator::EventKind;
use freshet_policy::rates::CounterRate;

use crate::api::Api;
use crate::clock::epoch_secs;
use crate::flow::{Instant, MARK_EVERY};
use crate::registry::NodeName;

/// What was seen last.
pub(crate) struct Onlooker {
    api: Arc<Api>,
    nodes: HashMap<NodeId, Seen>,
    released: u64,
    catalogue: u64,
    left_out: usize,
    origin: CounterRate,
    origin_sync: CounterRate,
    looks: u32,
}

/// How a volunteer was seen; with a hundred thousand of them most looks find nothing new, and copy nothing.
#[derive(Debug)]
struct Seen {
    name: NodeName,
    state: NodeState,
    trouble: Option<Arc<str>>,
    /// At which look.
    look: u32,
}

impl Onlooker {
    pub(crate) fn new(api: Arc<Api>) -> Self {
        Self {
            api,
            nodes: HashMap::new(),
            released: 0,
            catalogue: 0,
            left_out: 0,
            origin: CounterRate::new(MARK_EVERY),
            origin_sync: CounterRate::new(MARK_EVERY),
            looks: 0,
        }
    }

    /// Until the task is dropped.
    pub(crate) async fn run(mut self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.look();
        }
    }

    fn look(&mut self) {
        self.look_at_nodes();
        self.look_at_releases();
        self.look_at_rates();
        self.looks = self.looks.wrapping_add(1);
    }

    fn look_at_nodes(&mut self) {
        let parts = self.api.parts();
        let events = &parts.events;
        let (nodes, table, look) = (parts.registry.nodes(), parts.routing.load(), self.looks);
        let mut count = 0;
        for node in nodes.iter() {
            count += 1;
            let route = table.route(node.id);
            let state = Api::state_of(node, route);
            let trouble = route.and_then(|route| route.trouble.as_ref());
            let is = || Seen { name: node.name.clone(), state, trouble: trouble.cloned(), look };
            let told = || match self.api.node_state(node) {
                (state, Some(reason)) => format!("{}: {reason}", state.name()),
                (state, None) => state.name().to_owned(),
            };
            let name = node.name.as_str();
            let Some(was) = self.nodes.get_mut(&node.id) else {
                // At the first look nothing is new.
                if look > 0 {
                    events.note(EventKind::Volunteer, Some(name), format!("is {}", told()));
                }
                self.nodes.insert(node.id, is());
                continue;
            };
            was.look = look;
            if was.state == state && was.trouble.as_ref() == trouble && was.name == node.name {
                continue;
            }
            if was.name != node.name {
                events.note(EventKind::Operator, Some(name), format!("was called {}", was.name));
            }
            if was.state != state {
                let text = format!("was {}, is {}", was.state.name(), told());
                events.note(EventKind::Volunteer, Some(name), text);
            }
            if was.trouble.as_ref() != trouble {
                let text = match trouble {
                    Some(trouble) => format!("its mirror is in trouble: {trouble}"),
                    None => "its mirror is out of trouble".to_owned(),
                };
                events.note(EventKind::Mirror, Some(name), text);
            }
            *was = is();
        }
        if self.nodes.len() > count {
            self.nodes.retain(|_, seen| {
                let there = seen.look == look;
                if !there {
                    events.note(EventKind::Volunteer, Some(seen.name.as_str()), "was removed");
                }
                there
            });
        }
    }

    fn look_at_releases(&mut self) {
        let parts = self.api.parts();
        let catalogue = parts.catalog.view();
        if catalogue.sequence != self.catalogue {
            if self.looks > 0 {
                let (state, files) = (catalogue.sequence, catalogue.files);
                parts.events.note(
                    EventKind::Release,
                    None,
                    format!("customers see state {state} with {files} files"),
                );
            }
            self.catalogue = catalogue.sequence;
        }
        let released = parts.swarm.release().load().sequence;
        if released != self.released {
            if self.looks > 0 {
                parts.events.note(
                    EventKind::Release,
                    None,
                    format!("volunteers are told of state {released}"),
                );
            }
            self.released = released;
        }
        if catalogue.left_out.len() > self.left_out
            && let Some(reason) = catalogue.left_out.last()
        {
            parts.events.note(EventKind::Release, None, format!("left out of the catalogue: {reason}"));
        }
        self.left_out = catalogue.left_out.len();
    }

    fn look_at_rates(&mut self) {
        let parts = self.api.parts();
        let now = parts.clock.now();
        self.origin.read(parts.front_door.counters().view().body_bytes, now);
        self.origin_sync.read(parts.sync_counters.view().body_bytes, now);
        if u64::from(self.looks).is_multiple_of(MARK_EVERY.as_secs()) {
            parts.flows.mark(Instant {
                at: epoch_secs(std::time::SystemTime::now()),
                volunteers: parts.flows.sum(now),
                origin: self.origin.smoothed(),
                origin_sync: self.origin_sync.smoothed(),
            });
        }
    }
}

const EVERY: Duration = Duration::from_secs(1);
