//! A swarm in virtual time over the real leases and pickers: what the size of pieces costs in round trips, heads and
//! waiting. Links are shared fairly by what goes over them; nobody comes, goes or lies.

use std::collections::VecDeque;

use freshet_api::{Bytes, BytesPerSec, NodeId};
use freshet_policy::draw::Draw;
use freshet_policy::moment::Moment;
use freshet_policy::swarm::{
    Joining, LeaseBook, LeaseTerms, Picker, PieceOrder, PieceSet, distribution_secs_min,
};

/// The mirrors and their links.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Field {
    /// Mirrors.
    pub(super) mirrors: u32,
    /// What each of them and the origin sends and receives, bytes per second.
    pub(super) rate: f64,
    /// From a request to its answer's first byte, seconds.
    pub(super) round_trip: f64,
}

/// How the swarm did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The shortest time possible over the time it took.
    pub(super) efficiency: f64,
    /// What the origin sent, in copies.
    pub(super) copies: f64,
}

impl Field {
    /// The shortest time in which all mirrors can have `bytes`.
    pub(super) fn secs_min(&self, bytes: f64) -> f64 {
        let uplinks = self.rate * f64::from(self.mirrors);
        distribution_secs_min(Bytes(bytes as u64), self.mirrors as usize, self.rate, uplinks, self.rate)
    }

    /// Copies `bytes` in pieces of `piece`; of very many pieces only as many as tell.
    pub(super) fn copy(&self, bytes: f64, piece: u64) -> Pace {
        let pieces = ((bytes / piece as f64).ceil() as u32).clamp(1, PIECES_MAX);
        let shown = if pieces == PIECES_MAX { f64::from(pieces) * piece as f64 } else { bytes };
        let mut run = Run::new(self, pieces, shown / f64::from(pieces));
        let bound = self.secs_min(shown);
        while run.nodes.iter().any(|node| !node.done) && run.now < bound * GIVE_UP + 60.0 {
            run.step();
        }
        Pace { efficiency: bound / run.now, copies: run.sent / shown }
    }
}

struct Run<'a> {
    field: &'a Field,
    piece: f64,
    book: LeaseBook,
    nodes: Vec<Node>,
    flows: Vec<Flow>,
    draw: Draw,
    now: f64,
    sent: f64,
}

struct Node {
    picker: Picker,
    news: Vec<u32>,
    /// Leases that wait for a request to the origin to end.
    leased: VecDeque<u32>,
    fetching: u32,
    peers: Vec<NodeId>,
    poll_at: f64,
    seen_at: f64,
    hungry: bool,
    done: bool,
}

/// A piece on its way; `from` is `None` for the origin.
struct Flow {
    from: Option<u32>,
    to: u32,
    piece: u32,
    /// Until its first byte.
    wait: f64,
    left: f64,
}

impl<'a> Run<'a> {
    fn new(field: &'a Field, pieces: u32, piece: f64) -> Self {
        let rate = BytesPerSec(field.rate as u64);
        let terms = LeaseTerms::new(Bytes(piece as u64), rate);
        let mut book = LeaseBook::new(pieces, terms);
        for node in 0..field.mirrors {
            let joining = Joining {
                spare: rate,
                held: PieceSet::new(pieces),
                unwanted: PieceSet::new(pieces),
                reachable: true,
            };
            book.join_as(NodeId(node), joining);
        }
        let node = |number: u32| Node {
            picker: Picker::new(PieceSet::new(pieces), PieceOrder::Random),
            news: Vec::new(),
            leased: VecDeque::new(),
            fetching: 0,
            peers: Vec::new(),
            // They do not ask all at once.
            poll_at: POLL * f64::from(number) / f64::from(field.mirrors),
            seen_at: 0.0,
            hungry: false,
            done: false,
        };
        Self {
            field,
            piece: piece + HEAD_BYTES,
            book,
            nodes: (0..field.mirrors).map(node).collect(),
            flows: Vec::new(),
            draw: Draw::new(11),
            now: 0.0,
            sent: 0.0,
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        for node in 0..self.field.mirrors {
            if self.now >= self.nodes[node as usize].poll_at {
                self.poll(node);
            }
            if self.now >= self.nodes[node as usize].seen_at {
                self.look_at_peers(node);
            }
            let state = &mut self.nodes[node as usize];
            while state.fetching < ORIGIN_AT_ONCE
                && let Some(piece) = state.leased.pop_front()
            {
                state.fetching += 1;
                let wait = self.field.round_trip;
                self.flows.push(Flow { from: None, to: node, piece, wait, left: self.piece });
            }
            self.pull(node);
        }
        self.flow();
    }

    fn poll(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        state.poll_at = self.now + POLL;
        let news = std::mem::take(&mut state.news);
        self.book.have(NodeId(node), news);
        // As many as its share of the origin's link carries for a while.
        let share = self.field.rate / f64::from(self.field.mirrors);
        let ahead = ((share * LEASE_AHEAD / self.piece) as u32).max(LEASES_LEAST);
        let wanted = ahead.saturating_sub(state.leased.len() as u32);
        for lease in self.book.grant(NodeId(node), wanted, Moment::from_secs_f64(self.now)) {
            if state.picker.reserve(lease.piece) {
                state.leased.push_back(lease.piece);
            }
        }
        state.peers = self.book.peers(NodeId(node), PEERS, u64::from(node) ^ 77);
    }

    fn look_at_peers(&mut self, node: u32) {
        let peers = self.nodes[node as usize].peers.clone();
        self.nodes[node as usize].hungry = true;
        self.nodes[node as usize].seen_at = self.now + HAVE;
        for peer in peers {
            let held = self.nodes[peer.0 as usize].picker.have().clone();
            self.nodes[node as usize].picker.peer(peer, held);
        }
    }

    fn pull(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        if !std::mem::take(&mut state.hungry) {
            return;
        }
        while let Some(pull) = state.picker.next(self.draw.bits()) {
            self.flows.push(Flow {
                from: Some(pull.peer.0),
                to: node,
                piece: pull.piece,
                wait: self.field.round_trip,
                left: self.piece,
            });
        }
    }

    /// What each flow sends in this step: max-min fair over the links, and no more than it has left.
    fn shares(&self) -> Vec<f64> {
        let nodes = self.nodes.len();
        let origin = 2 * nodes;
        let mut room = vec![self.field.rate * STEP; origin + 1];
        let ends = |flow: &Flow| [flow.from.map_or(origin, |from| from as usize), nodes + flow.to as usize];
        let mut open = vec![0usize; origin + 1];
        let mut shares = vec![0.0; self.flows.len()];
        let mut active: Vec<usize> =
            (0..self.flows.len()).filter(|&flow| self.flows[flow].wait <= 0.0).collect();
        active.iter().flat_map(|&flow| ends(&self.flows[flow])).for_each(|link| open[link] += 1);
        while !active.is_empty() {
            let of_link = |link: usize| room[link].max(0.0) / open[link] as f64;
            let least =
                (0..room.len()).filter(|&link| open[link] > 0).map(of_link).fold(f64::INFINITY, f64::min);
            // Whoever needs less than the tightest link gives, has it; otherwise that link's flows share it.
            let fits = |flow: usize| self.flows[flow].left <= least;
            let any_fits = active.iter().any(|&flow| fits(flow));
            let settled: Vec<(usize, f64)> = active
                .iter()
                .filter_map(|&flow| {
                    if any_fits {
                        return fits(flow).then_some((flow, self.flows[flow].left));
                    }
                    let tight =
                        ends(&self.flows[flow]).into_iter().any(|link| of_link(link) <= least * (1.0 + 1e-9));
                    tight.then_some((flow, least))
                })
                .collect();
            for (flow, share) in settled {
                shares[flow] = share;
                for link in ends(&self.flows[flow]) {
                    room[link] -= share;
                    open[link] -= 1;
                }
                active.retain(|&other| other != flow);
            }
        }
        shares
    }

    /// Moves every flow on by one step.
    fn flow(&mut self) {
        let shares = self.shares();
        let mut arrived = Vec::new();
        for (index, (flow, share)) in self.flows.iter_mut().zip(shares).enumerate() {
            if flow.wait > 0.0 {
                flow.wait -= STEP;
                continue;
            }
            flow.left -= share;
            if flow.from.is_none() {
                self.sent += share;
            }
            if flow.left <= 0.5 {
                arrived.push(index);
            }
        }
        for index in arrived.into_iter().rev() {
            let flow = self.flows.swap_remove(index);
            let state = &mut self.nodes[flow.to as usize];
            state.hungry = true;
            if flow.from.is_none() {
                state.fetching -= 1;
                if state.leased.is_empty() {
                    state.poll_at = self.now;
                }
            }
            if !state.picker.have().contains(flow.piece) {
                state.news.push(flow.piece);
            }
            state.picker.arrived(flow.piece);
            state.done = state.picker.have().is_full();
        }
    }
}

/// A request's head and its answer's, as volunteers send them.
pub(super) const HEAD_BYTES: f64 = 700.0;

/// Virtual seconds of one step.
const STEP: f64 = 0.002;
/// Between two polls of the tracker, and how late a peer's holdings are known.
const POLL: f64 = 0.5;
const HAVE: f64 = 0.25;
/// Leases that are asked for ahead, in seconds of the origin's link, and at least.
const LEASE_AHEAD: f64 = 2.0;
const LEASES_LEAST: u32 = 4;
/// Requests under way to the origin, and peers that are asked for a piece each.
const ORIGIN_AT_ONCE: u32 = 4;
const PEERS: usize = 16;
/// More pieces tell nothing more.
const PIECES_MAX: u32 = 4_096;
/// Times the shortest time after which a swarm is said not to end.
const GIVE_UP: f64 = 50.0;

#[cfg(test)]
mod tests {
    use super::*;

    const FIELD: Field = Field { mirrors: 12, rate: 5e6, round_trip: 0.02 };

    #[test]
    fn pieces_too_small_wait_and_pieces_too_large_are_few() {
        let [small, right, large] =
            [4 << 10, 128 << 10, 4 << 20].map(|piece| FIELD.copy(24e6, piece).efficiency);
        assert!(right > 0.7, "{right}");
        assert!(small < right && large < right, "{small} {right} {large}");
    }

    #[test]
    fn the_origin_sends_about_one_copy() {
        let pace = FIELD.copy(24e6, 128 << 10);
        assert!((0.99..1.1).contains(&pace.copies), "{pace:?}");
    }
}
