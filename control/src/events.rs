//! What happened lately, for operators: a bounded list in memory, each event also a line in the log.
//!
//! It remembers and tells; who finds out that something happened calls [`Events::note`].

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use freshet_api::operator::{Event, EventKind};
use tokio::sync::watch;

use crate::clock::epoch_secs;

/// The list.
#[derive(Debug)]
pub struct Events {
    list: Mutex<VecDeque<Event>>,
    last: watch::Sender<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    /// An empty one. Numbers begin at the milliseconds since the epoch, so that they grow over restarts too.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let first = u64::try_from(now.as_millis()).unwrap_or_default();
        Self { list: Mutex::default(), last: watch::channel(first).0 }
    }

    /// Adds an event; the oldest goes when there are too many.
    pub fn note(&self, kind: EventKind, node: Option<&str>, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(kind = kind.name(), node, "{text}");
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let id = *self.last.borrow() + 1;
        if list.len() == EVENTS_MAX {
            list.pop_front();
        }
        list.push_back(Event {
            id,
            at: epoch_secs(SystemTime::now()),
            kind,
            node: node.map(str::to_owned),
            text,
        });
        self.last.send_replace(id);
    }

    /// Those after `id`, oldest first, the newest `limit` of them; about one volunteer only, if it is named.
    pub fn after(&self, id: u64, node: Option<&str>, limit: usize) -> Vec<Event> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |event: &&Event| event.id > id && (node.is_none() || event.node.as_deref() == node);
        let mut found: Vec<Event> = list.iter().rev().filter(wanted).take(limit).cloned().collect();
        found.reverse();
        found
    }

    /// Changes with every event.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

/// Events remembered at most; older ones stand in the log.
pub const EVENTS_MAX: usize = 5_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_filtered_and_bounded() {
        let events = Events::new();
        let before = *events.subscribe().borrow();
        for i in 0..EVENTS_MAX + 10 {
            events.note(EventKind::Volunteer, Some(if i % 2 == 0 { "a" } else { "b" }), format!("{i}"));
        }
        let all = events.after(0, None, usize::MAX);
        assert_eq!(all.len(), EVENTS_MAX);
        assert!(all[0].id > before && all.is_sorted_by_key(|event| event.id));
        let last = events.after(0, Some("a"), 2);
        let number = |i: usize| (EVENTS_MAX + i).to_string();
        assert_eq!(last.iter().map(|event| event.text.clone()).collect::<Vec<_>>(), [number(6), number(8)]);
        assert_eq!(events.after(all[EVENTS_MAX - 1].id, None, 10), []);
    }
}
