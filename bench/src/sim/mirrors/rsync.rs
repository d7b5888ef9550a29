//! The existing way: once a day every mirror compares all its files with the origin and fetches what
//! has changed, each for itself.

use super::super::scenario::{Scenario, Sync};
use super::super::uplink::{FlowId, Group, Receiver, Uplink};
use super::super::world::{Cargo, What, World};

/// The origin's comparing, shared by all who sync, and who is at it.
#[derive(Debug)]
pub(super) struct Rsync {
    /// Files compared per second, as if they were bytes.
    comparing: Uplink,
    each: f64,
    generation: u32,
    /// Since when a node syncs, and the bytes released until its last sync.
    since: Vec<Option<f64>>,
    known: Vec<f64>,
}

impl Rsync {
    pub(super) fn new(scenario: &Scenario, nodes: usize) -> Rsync {
        let (all, each) = match scenario.sync {
            Sync::Rsync { files_per_second, files_per_second_each, .. } => {
                (files_per_second, files_per_second_each)
            }
            _ => (1.0, 1.0),
        };
        let comparing = Uplink::new(all, 1);
        Rsync { comparing, each, generation: 0, since: vec![None; nodes], known: vec![0.0; nodes] }
    }
}

impl World<'_> {
    pub(super) fn rsync_starts(&mut self, node: u32) {
        let Sync::Rsync { files, .. } = self.scenario.sync else { return };
        // The one of the day before still runs, and holds the lock.
        if self.mirrors.rsync.since[node as usize].is_some() {
            return;
        }
        self.mirrors.rsync.since[node as usize] = Some(self.now);
        let compare = f64::from(files) * self.nodes[node as usize].part;
        let comparing = &mut self.mirrors.rsync.comparing;
        comparing.advance(self.now);
        comparing.open(Group::Sync, 0, node, compare);
        self.comparing_changed();
    }

    /// Some node's comparison is done, if `generation` is still the present one.
    pub(in super::super) fn compared(&mut self, generation: u32) {
        if generation == self.mirrors.rsync.generation {
            self.mirrors.rsync.comparing.advance(self.now);
            self.comparing_changed();
        }
    }

    fn comparing_changed(&mut self) {
        let rsync = &mut self.mirrors.rsync;
        let mut done: Vec<FlowId> = Vec::new();
        rsync.comparing.done(&mut done);
        rsync.generation = rsync.generation.wrapping_add(1);
        let generation = rsync.generation;
        if let Some(at) = rsync.comparing.share_out(&[Receiver { limit: rsync.each, weight: 1.0 }]) {
            self.plan(at, What::Compared(generation));
        }
        for node in done {
            self.fetch_changes(node);
        }
    }

    fn fetch_changes(&mut self, node: u32) {
        let Sync::Rsync { files, bytes_per_file, daily_bytes, daily_sigma, .. } = self.scenario.sync else {
            return;
        };
        let part = self.nodes[node as usize].part;
        let released = self.mirrors.released - self.mirrors.rsync.known[node as usize];
        self.mirrors.rsync.known[node as usize] = self.mirrors.released;
        let changed = daily_bytes.0 as f64 * self.mirrors.day_factor(self.now, daily_sigma) + released;
        let bytes = part * (changed + f64::from(files) * bytes_per_file);
        let downlink = self.nodes[node as usize].downlink;
        let class = self.limits.iter().rposition(|&limit| limit <= downlink).unwrap_or(0);
        // To the origin an rsync is one more client: no group of its own.
        self.open(0, Group::Delivery, class, Cargo::Changes { node }, bytes);
    }

    pub(in super::super) fn changes_done(&mut self, node: u32) {
        if let Some(since) = self.mirrors.rsync.since[node as usize].take() {
            self.metrics.synced(self.now - since, self.scenario.front_door.sync_target_seconds);
        }
    }
}
