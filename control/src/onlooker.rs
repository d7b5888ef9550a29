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

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    name: String,
    state: NodeState,
    reason: Option<String>,
    trouble: Option<String>,
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
        let now = parts.clock.now();
        let mut seen = HashMap::with_capacity(self.nodes.len());
        for node in parts.registry.nodes().iter() {
            let (state, reason) = self.api.node_state(node);
            let session = parts.tracker.session(node.id, now);
            let trouble = session.and_then(|session| session.heartbeat.sync.trouble.clone());
            let name = node.name.as_str().to_owned();
            let is = Seen { name, state, reason, trouble };
            match self.nodes.get(&node.id) {
                // At the first look nothing is new.
                None if self.looks == 0 => {}
                None => events.note(EventKind::Volunteer, Some(&is.name), format!("is {}", told(&is))),
                Some(was) => {
                    if was.name != is.name {
                        events.note(EventKind::Operator, Some(&is.name), format!("was called {}", was.name));
                    }
                    if was.state != is.state {
                        let text = format!("was {}, is {}", was.state.name(), told(&is));
                        events.note(EventKind::Volunteer, Some(&is.name), text);
                    }
                    if was.trouble != is.trouble {
                        let text = match &is.trouble {
                            Some(trouble) => format!("its mirror is in trouble: {trouble}"),
                            None => "its mirror is out of trouble".to_owned(),
                        };
                        events.note(EventKind::Mirror, Some(&is.name), text);
                    }
                }
            }
            seen.insert(node.id, is);
        }
        for (id, gone) in &self.nodes {
            if !seen.contains_key(id) {
                events.note(EventKind::Volunteer, Some(&gone.name), "was removed");
            }
        }
        self.nodes = seen;
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

fn told(seen: &Seen) -> String {
    match &seen.reason {
        Some(reason) => format!("{}: {reason}", seen.state.name()),
        None => seen.state.name().to_owned(),
    }
}

const EVERY: Duration = Duration::from_secs(1);
