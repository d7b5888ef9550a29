//! A bundle on its way through the swarm: the policy's lease book and pickers, with simulated flows.
//!
//! Pieces are larger than real ones, so that a run has thousands of transfers and not millions; that
//! makes the end of a bundle coarser, never faster.

use std::collections::BTreeMap;

use freshet_api::{Bytes, BytesPerSec, NodeId};
use freshet_policy::arbiter::{Flow, Waiting, Work, contended, urgency};
use freshet_policy::swarm::{LeaseBook, LeaseTerms, Picker, PieceOrder, PieceSet};

use super::super::scenario::Sync;
use super::super::uplink::Group;
use super::super::world::{Cargo, PULLS_AT_ONCE, World};
use super::Mirrors;

/// A bundle that is being copied.
#[derive(Debug)]
pub(in super::super) struct Bundle {
    release: Option<u32>,
    piece_bytes: f64,
    pieces: u32,
    book: LeaseBook,
    members: BTreeMap<u32, Member>,
    started: f64,
    /// Bytes that all members together still lack.
    missing: f64,
}

#[derive(Debug)]
struct Member {
    picker: Picker,
    since: f64,
    /// Members that pull from this one.
    watchers: Vec<u32>,
    neighbours: usize,
    from_origin: u32,
    from_peers: u32,
    is_complete: bool,
    is_here: bool,
}

impl Bundle {
    fn is_active(&self) -> bool {
        self.missing > 0.5
    }
}

impl Mirrors {
    /// Since when each mirror that is there lacks something of a bundle.
    pub(in super::super) fn unfinished(&self) -> Vec<f64> {
        let members = self.bundles.iter().flat_map(|bundle| bundle.members.values());
        members.filter(|member| member.is_here && !member.is_complete).map(|member| member.since).collect()
    }

    /// What a node's uplink has to do, while anything is copied.
    pub(super) fn work(&self, node: u32, world: &World<'_>) -> Option<Work> {
        let mut work: Option<Work> = None;
        for bundle in self.bundles.iter().filter(|bundle| bundle.is_active()) {
            // The origin has every bundle.
            if node != 0 && !bundle.members.contains_key(&node) {
                continue;
            }
            let senders: f64 =
                bundle.members.keys().map(|&member| world.nodes[member as usize].donation).sum();
            let part = world.nodes[node as usize].donation / (senders + world.nodes[0].donation);
            let age = std::time::Duration::from_secs_f64(world.now - bundle.started);
            let (demand, capacity) = match bundle.release {
                Some(release) => {
                    let release = &self.releases[release as usize];
                    let holders = release.holders.iter().map(|&holder| world.nodes[holder as usize].donation);
                    (release.demand, holders.sum::<f64>())
                }
                None => (0.0, 0.0),
            };
            let urgency = urgency(BytesPerSec(demand as u64), BytesPerSec(capacity as u64));
            let backlog = match node {
                0 => world.nodes[0].uplink.backlog(Group::Delivery) as u64,
                _ => world.ledger.outstanding(NodeId(node)).0,
            };
            let entry = work.get_or_insert(Work {
                uplink: BytesPerSec(world.nodes[node as usize].uplink.capacity() as u64),
                delivery_backlog: Bytes(backlog),
                sync_backlog: Bytes(0),
                sync_age: age,
                urgency: 1.0,
            });
            entry.sync_backlog.0 += (bundle.missing * part) as u64;
            entry.sync_age = entry.sync_age.max(age);
            entry.urgency = entry.urgency.max(urgency);
        }
        work
    }
}

impl World<'_> {
    /// A bundle of `size` bytes sets off to `members`.
    pub(super) fn start_bundle(&mut self, release: Option<u32>, size: f64, members: Vec<u32>) -> usize {
        let Sync::Swarm { pieces, .. } = self.scenario.sync else { return usize::MAX };
        let pieces = pieces.clamp(1, PIECES_MAX);
        let piece_bytes = size / f64::from(pieces);
        let origin = self.nodes[0].uplink.capacity();
        let terms = LeaseTerms::new(Bytes(piece_bytes.ceil() as u64), BytesPerSec(origin as u64));
        let number = self.mirrors.bundles.len();
        self.mirrors.bundles.push(Bundle {
            release,
            piece_bytes,
            pieces,
            book: LeaseBook::new(pieces, terms),
            members: BTreeMap::new(),
            started: self.now,
            missing: 0.0,
        });
        for member in members {
            self.join(number, member);
        }
        number
    }

    /// `node` takes part in a bundle from now on, with what it has of it.
    pub(super) fn join(&mut self, number: usize, node: u32) {
        let Sync::Swarm { peers, .. } = self.scenario.sync else { return };
        let spare = self.nodes[node as usize].uplink.capacity();
        let is_up = self.nodes[node as usize].is_up;
        let bundle = &mut self.mirrors.bundles[number];
        let kept = bundle.members.remove(&node);
        let (have, since) = match kept {
            Some(member) => (member.picker.have().clone(), member.since),
            None => {
                bundle.missing += f64::from(bundle.pieces) * bundle.piece_bytes;
                (PieceSet::new(bundle.pieces), self.now)
            }
        };
        let is_complete = have.is_full();
        let mut member = Member {
            picker: Picker::new(have.clone(), PieceOrder::Random),
            since,
            watchers: Vec::new(),
            neighbours: 0,
            from_origin: 0,
            from_peers: 0,
            is_complete,
            is_here: is_up,
        };
        if is_up {
            bundle.book.join(NodeId(node), BytesPerSec(spare as u64), have.clone());
            let candidates = bundle.book.peers(NodeId(node), usize::MAX, self.draw.bits());
            for peer in candidates.into_iter().map(|peer| peer.0) {
                let Some(other) = bundle.members.get_mut(&peer).filter(|other| other.is_here) else {
                    continue;
                };
                // Both ways, so that those who came early know those who came late.
                if member.neighbours < peers {
                    member.picker.peer(NodeId(peer), other.picker.have().clone());
                    member.neighbours += 1;
                    other.watchers.push(node);
                }
                if other.neighbours < peers && !other.is_complete {
                    other.picker.peer(NodeId(node), have.clone());
                    other.neighbours += 1;
                    member.watchers.push(peer);
                }
            }
        }
        bundle.members.insert(node, member);
        if is_up {
            self.pump(number, node);
        }
    }

    /// `node` drops a bundle.
    pub(super) fn quit(&mut self, number: usize, node: u32) {
        let bundle = &mut self.mirrors.bundles[number];
        bundle.book.leave(NodeId(node));
        if let Some(member) = bundle.members.remove(&node) {
            let lacks = bundle.pieces - member.picker.have().count();
            bundle.missing -= f64::from(lacks) * bundle.piece_bytes;
        }
        for other in bundle.members.values_mut() {
            other.forget(node);
        }
    }

    /// `node` went away: others stop asking it, and its leases are free.
    pub(in super::super) fn unjoin(&mut self, node: u32) {
        for bundle in &mut self.mirrors.bundles {
            let Some(member) = bundle.members.get_mut(&node) else { continue };
            member.is_here = false;
            bundle.book.leave(NodeId(node));
            for other in bundle.members.values_mut() {
                other.forget(node);
            }
        }
    }

    /// `node` is back with what it had.
    pub(in super::super) fn rejoin(&mut self, node: u32) {
        for number in 0..self.mirrors.bundles.len() {
            let bundle = &self.mirrors.bundles[number];
            if bundle.members.contains_key(&node) && bundle.is_active() {
                self.join(number, node);
            }
        }
    }

    /// Once per heartbeat: leases for those who have room, and the origin's own balance.
    pub(in super::super) fn swarm_tick(&mut self) {
        if !self.is_swarm() {
            return;
        }
        self.take_turns();
        for number in 0..self.mirrors.bundles.len() {
            if !self.mirrors.bundles[number].is_active() {
                continue;
            }
            let members: Vec<u32> = self.mirrors.bundles[number].members.keys().copied().collect();
            for node in members {
                let spare = self.nodes[node as usize].uplink.capacity()
                    * (1.0 - self.nodes[node as usize].uplink.delivery_share());
                self.mirrors.bundles[number].book.measured(NodeId(node), BytesPerSec(spare as u64));
                self.pump(number, node);
                self.refresh_peers(number, node);
            }
        }
        self.balance(0);
    }

    /// Whose turn it is to copy, if the law has turns and customers wait at the same uplinks.
    fn take_turns(&mut self) {
        if !self.arbiters[0].takes_turns() {
            return;
        }
        let mut lacking: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for bundle in self.mirrors.bundles.iter().filter(|bundle| bundle.is_active()) {
            for (&node, member) in bundle.members.iter().filter(|(_, member)| member.is_here) {
                let lacks = f64::from(bundle.pieces - member.picker.have().count()) * bundle.piece_bytes;
                if lacks > 0.0 {
                    let entry = lacking.entry(node).or_insert((0.0, member.since));
                    *entry = (entry.0 + lacks, entry.1.min(member.since));
                }
            }
        }
        let (mut sendable, mut owed, mut rate) = (self.nodes[0].uplink.capacity(), 0.0, 0.0);
        for (number, node) in self.nodes.iter().enumerate().skip(1).filter(|(_, node)| node.is_up) {
            sendable += node.uplink.capacity() * (1.0 - node.uplink.delivery_share());
            rate += node.uplink.capacity();
            owed += self.ledger.outstanding(NodeId(number as u32)).0 as f64;
        }
        let moment = self.moment();
        self.mirrors.in_turn = None;
        if lacking.is_empty() || !contended(Bytes(owed as u64), BytesPerSec(rate as u64)) {
            self.mirrors.turns.clear();
            return;
        }
        let waiting: Vec<Waiting> = lacking
            .into_iter()
            .map(|(node, (missing, since))| Waiting {
                node: NodeId(node),
                missing: Bytes(missing as u64),
                uplink: BytesPerSec(self.nodes[node as usize].donation as u64),
                since: std::time::Duration::from_secs_f64(self.now - since),
            })
            .collect();
        let mut active = self.mirrors.bundles.iter().filter(|bundle| bundle.is_active());
        let flow = Flow {
            sendable: BytesPerSec(sendable as u64),
            origin: BytesPerSec(self.nodes[0].uplink.capacity() as u64),
            is_held: active.all(|bundle| bundle.members.values().any(|member| member.is_complete)),
        };
        let chosen = self.mirrors.turns.look(&waiting, flow, &self.targets, moment);
        self.mirrors.in_turn = Some(chosen.clone());
    }

    /// A member that finds too little to pull is named other peers by the tracker.
    fn refresh_peers(&mut self, number: usize, node: u32) {
        let Sync::Swarm { peers, .. } = self.scenario.sync else { return };
        let seed = self.draw.bits();
        let bundle = &mut self.mirrors.bundles[number];
        let Some(mut member) = bundle.members.remove(&node) else { return };
        let hungry = member.is_here && !member.is_complete && f64::from(member.from_peers) < PULLS_AT_ONCE;
        if hungry && member.neighbours < peers * PEERS_KNOWN {
            for peer in bundle.book.peers(NodeId(node), peers, seed) {
                let Some(other) = bundle.members.get_mut(&peer.0).filter(|other| other.is_here) else {
                    continue;
                };
                if !other.watchers.contains(&node) {
                    other.watchers.push(node);
                    member.picker.peer(peer, other.picker.have().clone());
                    member.neighbours += 1;
                }
            }
        }
        bundle.members.insert(node, member);
        if hungry {
            self.pump(number, node);
        }
    }

    /// Asks for all that `node` may ask for now.
    fn pump(&mut self, number: usize, node: u32) {
        let now = self.moment();
        let downlink = self.nodes[node as usize].downlink / PULLS_AT_ONCE;
        let class = self.limits.iter().rposition(|&limit| limit <= downlink).unwrap_or(0);
        let mut flows = Vec::new();
        let bundle = &mut self.mirrors.bundles[number];
        let size = bundle.piece_bytes;
        let Some(member) = bundle.members.get_mut(&node) else { return };
        if !member.is_here || member.is_complete {
            return;
        }
        // As the tracker does: who waits for its turn is named no peers, and gets what nobody has yet.
        let in_turn = self.mirrors.in_turn.as_ref().is_none_or(|chosen| chosen.contains(&NodeId(node)));
        let pulls = if in_turn { PULLS_AT_ONCE } else { 0.0 };
        if member.from_origin < LEASES_OPEN && (in_turn || bundle.book.spread() < bundle.pieces) {
            for lease in bundle.book.grant(NodeId(node), LEASES_OPEN - member.from_origin, now) {
                if member.picker.reserve(lease.piece) {
                    member.from_origin += 1;
                    flows.push((0, lease.piece));
                }
            }
        }
        while f64::from(member.from_peers) < pulls {
            let Some(pull) = member.picker.next(self.draw.bits()) else { break };
            member.from_peers += 1;
            flows.push((pull.peer.0, pull.piece));
        }
        for (from, piece) in flows {
            let cargo = Cargo::Piece { bundle: number as u32, piece, from, to: node };
            self.open(from, Group::Sync, class, cargo, size);
        }
    }

    /// A piece has arrived.
    pub(in super::super) fn piece_done(&mut self, number: u32, piece: u32, from: u32, to: u32) {
        let number = number as usize;
        let target = self.scenario.front_door.sync_target_seconds;
        let bundle = &mut self.mirrors.bundles[number];
        let Some(member) = bundle.members.get_mut(&to).filter(|member| member.is_here) else { return };
        if from == 0 {
            member.from_origin = member.from_origin.saturating_sub(1);
        } else {
            member.from_peers = member.from_peers.saturating_sub(1);
        }
        if member.picker.have().contains(piece) {
            return;
        }
        member.picker.arrived(piece);
        bundle.missing -= bundle.piece_bytes;
        let complete = member.picker.have().is_full() && !member.is_complete;
        let watchers = member.watchers.clone();
        let since = member.since;
        member.is_complete |= complete;
        bundle.book.have(NodeId(to), [piece]);
        let release = bundle.release;
        for &watcher in &watchers {
            if let Some(other) = bundle.members.get_mut(&watcher) {
                other.picker.has(NodeId(to), piece);
            }
        }
        if complete {
            self.metrics.synced(self.now - since, target);
            self.mirrors.completed(release, to);
            if let Some(release) = release {
                self.nodes[to as usize].releases.insert(release);
            }
        }
        self.pump(number, to);
        for watcher in watchers {
            self.pump(number, watcher);
        }
    }

    /// The sender of a piece went away.
    pub(in super::super) fn piece_failed(&mut self, number: u32, from: u32, to: u32) {
        if let Some(member) = self.mirrors.bundles[number as usize].members.get_mut(&to) {
            member.forget(from);
            member.from_peers = member.from_peers.saturating_sub(1);
        }
    }
}

impl Member {
    fn forget(&mut self, node: u32) {
        self.picker.forget(NodeId(node));
        self.watchers.retain(|&watcher| watcher != node);
        self.neighbours = self.neighbours.saturating_sub(1);
    }
}

const PIECES_MAX: u32 = 4096;
/// In time a member knows so many times as many peers as it starts with.
const PEERS_KNOWN: usize = 4;
/// Pieces that a member fetches from the origin at once.
const LEASES_OPEN: u32 = 2;
