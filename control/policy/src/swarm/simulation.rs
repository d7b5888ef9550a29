//! A swarm in virtual time: links shared fairly by what goes over them, peers' holdings seen late, polls once in a
//! while; liars, churn, partial mirrors and unreachable peers. Tests only.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec, NodeId};

use super::{
    Granted, Joining, LeaseBook, LeaseTerms, Picker, PieceOrder, PieceSet, distribution_secs_min, piece_size,
};
use crate::draw::Draw;
use crate::moment::Moment;

/// One volunteer of a run.
#[derive(Clone, Debug)]
struct Link {
    /// Bytes per second up and down.
    up: f64,
    down: f64,
    /// Sends wrong bytes until it is banned.
    lies: bool,
    /// But not to the origin.
    elusive: bool,
    /// Peers cannot reach it.
    unreachable: bool,
    /// Away for this stretch of seconds, with what it had kept.
    away: Option<(f64, f64)>,
    /// Wants only the pieces below this part of the bundle.
    wants: f64,
}

impl Link {
    fn even(rate: f64) -> Self {
        Self { up: rate, down: rate, lies: false, elusive: false, unreachable: false, away: None, wants: 1.0 }
    }
}

#[derive(Debug)]
struct Outcome {
    /// Until the last was complete, over the lower bound.
    slowdown: f64,
    /// What the origin sent, in copies.
    copies: f64,
    granted: Granted,
    banned: Vec<u32>,
}

struct Run<'a> {
    links: &'a [Link],
    origin: f64,
    piece: f64,
    book: LeaseBook,
    nodes: Vec<Node>,
    flows: Vec<Flow>,
    draw: Draw,
    now: f64,
    sent: f64,
    /// When the origin will have looked for itself.
    accused: BTreeMap<u32, f64>,
    banned: Vec<u32>,
}

struct Node {
    picker: Picker,
    wanted: PieceSet,
    lacks: u32,
    /// Whether it may find something to ask for since it last looked.
    hungry: bool,
    news: Vec<u32>,
    /// Leases that wait for the one before them.
    leased: VecDeque<u32>,
    fetching: u32,
    peers: Vec<u32>,
    poll_at: f64,
    seen_at: f64,
    /// Peers that it asks no more.
    shunned: Vec<u32>,
    here: bool,
    done: bool,
}

/// A piece on its way; `from` is `None` for the origin.
struct Flow {
    from: Option<u32>,
    to: u32,
    piece: u32,
    left: f64,
}

/// Runs a bundle of `size` bytes; `sync_rate` is the origin's uplink, known to the tracker.
fn run(size: u64, origin: f64, links: &[Link], copies: f64) -> Outcome {
    let count = links.len();
    let piece = piece_size(Bytes(size), count);
    let pieces = size.div_ceil(piece.0) as u32;
    let terms = LeaseTerms {
        expiry_min: Duration::from_secs(10),
        origin_copies: copies,
        ..LeaseTerms::new(piece, BytesPerSec(origin as u64))
    };
    let node = |link: &Link| {
        let limit = (link.wants * f64::from(pieces)).ceil() as u32;
        let mut wanted = PieceSet::new(pieces);
        (0..limit).for_each(|piece| {
            wanted.insert(piece);
        });
        let mut picker = Picker::new(PieceSet::new(pieces), PieceOrder::Random);
        (limit..pieces).for_each(|piece| {
            picker.reserve(piece);
        });
        Node {
            picker,
            lacks: limit,
            hungry: false,
            wanted,
            news: Vec::new(),
            leased: VecDeque::new(),
            fetching: 0,
            peers: Vec::new(),
            poll_at: 0.0,
            seen_at: 0.0,
            shunned: Vec::new(),
            here: false,
            done: false,
        }
    };
    let mut run = Run {
        links,
        origin,
        piece: piece.0 as f64,
        book: LeaseBook::new(pieces, terms),
        nodes: links.iter().map(node).collect(),
        flows: Vec::new(),
        draw: Draw::new(11),
        now: 0.0,
        sent: 0.0,
        accused: BTreeMap::new(),
        banned: Vec::new(),
    };
    let honest: Vec<&Link> = links.iter().filter(|link| !link.lies).collect();
    let ups: f64 = honest.iter().filter(|link| !link.unreachable).map(|link| link.up).sum();
    let down_min = honest.iter().map(|link| link.down).fold(f64::INFINITY, f64::min);
    let bound = distribution_secs_min(Bytes(size), honest.len(), origin, ups, down_min);
    while !run.nodes.iter().zip(links).all(|(node, link)| node.done || link.lies) {
        run.step();
        assert!(run.now < 40.0 * bound + 200.0, "never ends: {:?}", run.book.members().collect::<Vec<_>>());
    }
    Outcome {
        slowdown: run.now / bound,
        copies: run.sent / size as f64,
        granted: run.book.granted(),
        banned: run.banned,
    }
}

impl Run<'_> {
    fn step(&mut self) {
        self.now += STEP;
        let proven =
            self.accused.iter().filter(|(liar, at)| **at <= self.now && !self.links[**liar as usize].elusive);
        let proven: Vec<u32> =
            proven.map(|(&liar, _)| liar).filter(|liar| !self.banned.contains(liar)).collect();
        self.banned.extend(proven);
        for node in 0..self.nodes.len() as u32 {
            self.come_and_go(node);
            if self.nodes[node as usize].here {
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
                    self.flows.push(Flow { from: None, to: node, piece, left: self.piece });
                }
                self.pull(node);
            }
        }
        self.flow();
    }

    fn come_and_go(&mut self, node: u32) {
        let link = &self.links[node as usize];
        let away = link.away.is_some_and(|(from, to)| (from..to).contains(&self.now));
        let out = away || self.banned.contains(&node);
        let state = &mut self.nodes[node as usize];
        if out && state.here {
            state.here = false;
            for piece in std::mem::take(&mut state.leased) {
                state.picker.failed_elsewhere(piece);
            }
            state.fetching = 0;
            // As a tracker that notices some seconds later is worse, leases stay until then.
            if !away {
                self.book.leave(NodeId(node));
            }
            for flow in std::mem::take(&mut self.flows) {
                if flow.from == Some(node) || flow.to == node {
                    self.drop_flow(&flow);
                } else {
                    self.flows.push(flow);
                }
            }
        } else if !out && !state.here {
            state.here = true;
            let held = state.picker.have().clone();
            let mut unwanted = PieceSet::full(held.len());
            state.wanted.iter().for_each(|piece| {
                unwanted.remove(piece);
            });
            let reachable = !link.unreachable;
            let spare = BytesPerSec(link.up as u64);
            self.book.join_as(NodeId(node), Joining { spare, held, unwanted, reachable });
        }
        if let Some((from, to)) = link.away
            && self.now > from + 5.0
            && self.now < to
        {
            self.book.leave(NodeId(node));
        }
    }

    fn drop_flow(&mut self, flow: &Flow) {
        let to = &mut self.nodes[flow.to as usize];
        match flow.from {
            None => to.picker.failed_elsewhere(flow.piece),
            Some(from) => to.picker.forget(NodeId(from)),
        }
    }

    fn poll(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        state.poll_at = self.now + POLL;
        let news = std::mem::take(&mut state.news);
        self.book.have(NodeId(node), news);
        let now = Moment::from_secs_f64(self.now);
        for lease in self.book.grant(NodeId(node), LEASES_OPEN.saturating_sub(state.leased.len() as u32), now)
        {
            if state.picker.reserve(lease.piece) {
                state.leased.push_back(lease.piece);
            }
        }
        state.peers =
            self.book.peers(NodeId(node), 24, u64::from(node) ^ 77).iter().map(|peer| peer.0).collect();
    }

    fn look_at_peers(&mut self, node: u32) {
        self.nodes[node as usize].hungry = true;
        self.nodes[node as usize].seen_at = self.now + HAVE + self.draw.unit() * STEP;
        for peer in self.nodes[node as usize].peers.clone() {
            let there = self.nodes[peer as usize].here && !self.links[peer as usize].unreachable;
            if !there || self.nodes[node as usize].shunned.contains(&peer) {
                self.nodes[node as usize].picker.forget(NodeId(peer));
                continue;
            }
            let held = match self.links[peer as usize].lies {
                true => PieceSet::full(self.nodes[peer as usize].wanted.len()),
                false => self.nodes[peer as usize].picker.have().clone(),
            };
            self.nodes[node as usize].picker.peer(NodeId(peer), held);
        }
    }

    fn pull(&mut self, node: u32) {
        if !std::mem::take(&mut self.nodes[node as usize].hungry) {
            return;
        }
        while let Some(pull) = self.nodes[node as usize].picker.next(self.draw.bits()) {
            if !self.nodes[pull.peer.0 as usize].here {
                self.nodes[node as usize].picker.forget(pull.peer);
                continue;
            }
            self.flows.push(Flow { from: Some(pull.peer.0), to: node, piece: pull.piece, left: self.piece });
        }
    }

    /// What each flow gets: max-min fair over the uplinks and downlinks, as TCP about does.
    fn rates(&self) -> Vec<f64> {
        let nodes = self.links.len();
        let origin = 2 * nodes;
        let mut room: Vec<f64> = self.links.iter().map(|link| link.up).collect();
        room.extend(self.links.iter().map(|link| link.down));
        room.push(self.origin);
        let ends = |flow: &Flow| [flow.from.map_or(origin, |from| from as usize), nodes + flow.to as usize];
        let mut open = vec![0usize; room.len()];
        self.flows.iter().flat_map(ends).for_each(|link| open[link] += 1);
        let mut rates = vec![None; self.flows.len()];
        loop {
            let shares = (0..room.len()).filter(|&link| open[link] > 0);
            let tightest = shares.map(|link| (room[link].max(0.0) / open[link] as f64, link));
            let Some((share, link)) = tightest.min_by(|a, b| a.0.total_cmp(&b.0)) else { break };
            for (flow, rate) in self.flows.iter().zip(&mut rates) {
                if rate.is_none() && ends(flow).contains(&link) {
                    *rate = Some(share);
                    for end in ends(flow) {
                        room[end] -= share;
                        open[end] -= 1;
                    }
                }
            }
        }
        rates.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// Moves every flow on by one step.
    fn flow(&mut self) {
        let rates = self.rates();
        let mut arrived = Vec::new();
        for (index, (flow, rate)) in self.flows.iter_mut().zip(rates).enumerate() {
            let bytes = (rate * STEP).min(flow.left);
            flow.left -= bytes;
            if flow.from.is_none() {
                self.sent += bytes;
            }
            if flow.left <= 0.5 {
                arrived.push(index);
            }
        }
        for index in arrived.into_iter().rev() {
            let flow = self.flows.swap_remove(index);
            let wrong = flow.from.is_some_and(|from| self.links[from as usize].lies);
            let state = &mut self.nodes[flow.to as usize];
            state.hungry = true;
            if wrong {
                let liar = flow.from.unwrap_or_default();
                state.picker.failed(NodeId(liar));
                state.picker.forget(NodeId(liar));
                state.shunned.push(liar);
                // The origin looks for itself, and bans.
                self.accused.entry(liar).or_insert(self.now + RECHECK);
                continue;
            }
            if flow.from.is_none() {
                state.fetching = state.fetching.saturating_sub(1);
                if state.leased.is_empty() {
                    state.poll_at = self.now;
                }
            }
            if !state.picker.have().contains(flow.piece) {
                state.lacks -= 1;
                state.news.push(flow.piece);
            }
            state.picker.arrived(flow.piece);
            state.done = state.lacks == 0;
        }
    }
}

/// Virtual seconds of one step.
const STEP: f64 = 0.02;
/// Between two polls of the tracker.
const POLL: f64 = 0.5;
/// How late a peer's holdings are known.
const HAVE: f64 = 0.25;
/// How long the origin takes to look for itself.
const RECHECK: f64 = 1.0;
const LEASES_OPEN: u32 = 4;
/// Requests under way to the origin.
const ORIGIN_AT_ONCE: u32 = 2;
const MBIT: f64 = 125_000.0;

#[test]
fn twenty_and_forty_even_mirrors_come_near_the_bound_for_one_copy() {
    for (count, rate, size) in [(20, 40.0, 96 << 20), (40, 16.0, 40 << 20)] {
        let links = vec![Link::even(rate * MBIT); count];
        let outcome = run(size, rate * MBIT, &links, 1.05);
        println!("{count} at {rate} Mbit/s: {outcome:?}");
        assert!(
            outcome.slowdown < 1.15 && outcome.granted.rescue == 0 && outcome.copies <= 1.03,
            "{outcome:?}"
        );
    }
}

#[test]
fn uneven_links_are_used_by_what_they_can() {
    let link = |n: usize| Link::even([10.0, 20.0, 40.0, 100.0][n % 4] * MBIT);
    let links: Vec<Link> = (0..20).map(link).collect();
    let outcome = run(48 << 20, 40.0 * MBIT, &links, 1.05);
    println!("uneven: {outcome:?}");
    assert!(outcome.slowdown < 1.12 && outcome.copies <= 1.05, "{outcome:?}");
}

#[test]
fn liars_are_banned_and_cost_little() {
    let links: Vec<Link> = (0..20).map(|n| Link { lies: n % 10 == 3, ..Link::even(40.0 * MBIT) }).collect();
    let outcome = run(48 << 20, 40.0 * MBIT, &links, 1.05);
    println!("liars: {outcome:?}");
    let mut banned = outcome.banned.clone();
    banned.sort_unstable();
    assert_eq!(banned, [3, 13]);
    assert!(outcome.slowdown < 1.25 && outcome.copies <= 1.1, "{outcome:?}");
}

#[test]
fn liars_that_are_never_proven_to_lie_stop_nobody() {
    let link = |n: usize| Link { lies: n % 10 == 3, elusive: n % 10 == 3, ..Link::even(40.0 * MBIT) };
    let links: Vec<Link> = (0..20).map(link).collect();
    let outcome = run(32 << 20, 40.0 * MBIT, &links, 1.05);
    println!("elusive liars: {outcome:?}");
    assert!(outcome.banned.is_empty() && outcome.slowdown < 4.0 && outcome.copies <= 1.3, "{outcome:?}");
}

#[test]
fn who_goes_and_comes_back_and_who_cannot_be_reached_hold_up_nobody_else() {
    let link = |n: usize| Link {
        away: (n % 5 == 1).then_some((2.0 + n as f64 / 10.0, 9.0)),
        unreachable: n % 7 == 2,
        ..Link::even(40.0 * MBIT)
    };
    let links: Vec<Link> = (0..20).map(link).collect();
    let outcome = run(48 << 20, 40.0 * MBIT, &links, 1.05);
    println!("churn: {outcome:?}");
    assert!(outcome.slowdown < 2.0 && outcome.copies <= 1.35, "{outcome:?}");
}

#[test]
fn partial_mirrors_get_what_they_want_and_the_origin_sends_it_once() {
    let link = |n: usize| Link { wants: [1.0, 0.5, 0.2][n % 3], ..Link::even(40.0 * MBIT) };
    let links: Vec<Link> = (0..12).map(link).collect();
    let outcome = run(24 << 20, 40.0 * MBIT, &links, 1.05);
    println!("partial: {outcome:?}");
    assert!(outcome.slowdown < 1.35 && outcome.copies <= 1.05, "{outcome:?}");
}

#[test]
fn more_copies_from_a_strong_origin_are_faster() {
    let links = vec![Link::even(10.0 * MBIT); 10];
    let links: Vec<Link> = links.into_iter().map(|link| Link { down: 100.0 * MBIT, ..link }).collect();
    let [one, three] = [1.05, 4.0].map(|copies| run(16 << 20, 100.0 * MBIT, &links, copies));
    println!("one copy: {one:?}\nup to four: {three:?}");
    assert!(one.copies <= 1.05 && three.copies <= 4.05 && three.copies > 1.5);
    assert!(three.slowdown < 0.85 * one.slowdown, "{} and {}", three.slowdown, one.slowdown);
}
