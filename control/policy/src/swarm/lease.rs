//! Which volunteer may fetch which piece from the origin: each piece once, in proportion to who can
//! pass it on.
//!
//! The origin's uplink is the scarce thing. So it sends every piece to one volunteer only, and more of
//! them to those with more spare uplink, who spread them; everything else moves between peers. Greedy
//! windows instead of shares take 4.8 times as long. A lease that is not used in time goes to another;
//! a volunteer that is banned loses its leases and what it claimed to hold counts no more.
//!
//! Nothing here walks over all pieces when somebody asks for leases, beyond a bitmap's words.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec, NodeId};

use super::PieceSet;
use crate::draw::Draw;
use crate::moment::Moment;

/// How leases are given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeaseTerms {
    /// Size of a piece.
    pub piece: Bytes,
    /// What the origin gives to this bundle per second.
    pub origin: BytesPerSec,
    /// A lease lasts at least this long.
    pub expiry_min: Duration,
    /// How many copies of the bundle the origin may send in all, 1.0 or more. Up to [`ENDGAME_PART`] of a copy
    /// beyond the first is for pieces whose lease somebody sits on at the end; what is above that is for speed.
    /// Pieces that were lost with their only holder are leased again beyond any number of copies.
    pub origin_copies: f64,
}

impl LeaseTerms {
    /// Leases for pieces of `piece` bytes from an origin that sends `origin`.
    pub fn new(piece: Bytes, origin: BytesPerSec) -> LeaseTerms {
        LeaseTerms { piece, origin, expiry_min: Duration::from_secs(5), origin_copies: 1.0 + ENDGAME_PART }
    }
}

/// Leave to fetch one piece from the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which piece.
    pub piece: u32,
    /// Until when.
    pub until: Moment,
}

/// What a volunteer brings when it joins.
#[derive(Clone, Debug)]
pub struct Joining {
    /// What it can send to peers.
    pub spare: BytesPerSec,
    /// What it has.
    pub held: PieceSet,
    /// What it will never want.
    pub unwanted: PieceSet,
    /// Whether peers can ask it: one that nobody can reach gets pieces and passes none on.
    pub reachable: bool,
}

/// How far one volunteer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Who.
    pub node: NodeId,
    /// Pieces that it has.
    pub held: u32,
    /// Pieces that it wants and lacks.
    pub lacks: u32,
    /// Leases that it has neither used nor lost.
    pub leases: u32,
}

/// What the origin was asked for in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Leases.
    pub leases: u64,
    /// Those among them that were given again at the end because somebody sat on the first.
    pub endgame: u64,
    /// Those among them for pieces that peers have, for speed.
    pub extra: u64,
    /// Those among them for volunteers that got nothing from anybody for long.
    pub rescue: u64,
}

/// The leases of one bundle. The tracker keeps one per bundle that is being copied.
#[derive(Debug)]
pub struct LeaseBook {
    terms: LeaseTerms,
    len: u32,
    /// Reachable volunteers that have each piece.
    holders: Vec<u32>,
    leased: HashMap<u32, (NodeId, Moment)>,
    by_expiry: BTreeSet<(Moment, u32)>,
    /// Pieces that no reachable volunteer has and nobody may fetch.
    free: PieceSet,
    members: BTreeMap<NodeId, Member>,
    granted: Granted,
    /// Whether anybody got anything since it was last asked for leases, and when that was.
    moved: bool,
    moved_at: Option<Moment>,
}

#[derive(Debug)]
struct Member {
    spare: f64,
    held: PieceSet,
    lacks: PieceSet,
    reachable: bool,
    granted: u64,
    open: u32,
    /// How much it had when it last asked, and since when it has had just that.
    seen: Option<(u32, Moment)>,
    /// How often it was helped since it last got something from a peer.
    rescues: u32,
}

impl LeaseBook {
    /// A book for a bundle of `pieces` pieces that nobody but the origin has.
    pub fn new(pieces: u32, terms: LeaseTerms) -> LeaseBook {
        LeaseBook {
            terms,
            len: pieces,
            holders: vec![0; pieces as usize],
            leased: HashMap::new(),
            by_expiry: BTreeSet::new(),
            free: PieceSet::full(pieces),
            members: BTreeMap::new(),
            granted: Granted::default(),
            moved: false,
            moved_at: None,
        }
    }

    /// `node` takes part, with `spare` uplink measured and the pieces it has already; it wants all others.
    pub fn join(&mut self, node: NodeId, spare: BytesPerSec, held: PieceSet) {
        let unwanted = PieceSet::new(self.len);
        self.join_as(node, Joining { spare, held, unwanted, reachable: true });
    }

    /// `node` takes part; sets for a bundle of another length are taken for empty.
    pub fn join_as(&mut self, node: NodeId, joining: Joining) {
        self.leave(node);
        let fitting = |set: PieceSet| if set.len() == self.len { set } else { PieceSet::new(self.len) };
        let (held, unwanted) = (fitting(joining.held), fitting(joining.unwanted));
        let mut lacks = PieceSet::full(self.len);
        held.iter().chain(unwanted.iter()).for_each(|piece| {
            lacks.remove(piece);
        });
        if joining.reachable {
            for piece in held.iter() {
                self.holders[piece as usize] += 1;
                self.free.remove(piece);
            }
        }
        // Newcomers begin at the present share, not at zero: otherwise the last to join would be given
        // everything that is left.
        let spare = weight(joining.spare, joining.reachable);
        let granted = (self.granted.leases as f64 * spare / (self.spare_sum() + spare)) as u64;
        let reachable = joining.reachable;
        let member = Member { spare, held, lacks, reachable, granted, open: 0, seen: None, rescues: 0 };
        self.members.insert(node, member);
        self.moved = true;
    }

    /// `node` left, crashed, or was banned: its leases are free again and its holdings count no more.
    pub fn leave(&mut self, node: NodeId) {
        let Some(member) = self.members.remove(&node) else { return };
        if member.open > 0 {
            let lost: Vec<(u32, Moment)> = self
                .leased
                .iter()
                .filter(|(_, (holder, _))| *holder == node)
                .map(|(&piece, &(_, until))| (piece, until))
                .collect();
            for (piece, until) in lost {
                self.leased.remove(&piece);
                self.by_expiry.remove(&(until, piece));
                self.settle(piece);
            }
        }
        if member.reachable {
            for piece in member.held.iter() {
                self.holders[piece as usize] = self.holders[piece as usize].saturating_sub(1);
                self.settle(piece);
            }
        }
    }

    /// `node` has all that it wants and will ask for nothing more; of what it has, `kept` stays for others.
    pub fn retire(&mut self, node: NodeId, kept: &PieceSet) {
        let Some(member) = self.members.get(&node) else { return };
        let (spare, reachable) = (BytesPerSec(member.spare as u64), member.reachable);
        let (mut held, mut unwanted) = (PieceSet::new(self.len), PieceSet::new(self.len));
        for piece in 0..self.len {
            let stays = member.held.contains(piece) && kept.contains(piece);
            if stays {
                held.insert(piece)
            } else {
                unwanted.insert(piece)
            };
        }
        self.join_as(node, Joining { spare, held, unwanted, reachable });
    }

    /// `node` now has this much spare uplink.
    pub fn measured(&mut self, node: NodeId, spare: BytesPerSec) {
        if let Some(member) = self.members.get_mut(&node) {
            member.spare = weight(spare, member.reachable);
        }
    }

    /// Whether peers can, and should, ask `node` from now on; if not, what it has counts as had by nobody.
    pub fn set_reachable(&mut self, node: NodeId, reachable: bool) {
        let Some(member) = self.members.get_mut(&node).filter(|member| member.reachable != reachable) else {
            return;
        };
        member.reachable = reachable;
        let held: Vec<u32> = member.held.iter().collect();
        if !reachable {
            member.spare = weight(BytesPerSec(0), false);
        }
        for piece in held {
            let holders = &mut self.holders[piece as usize];
            *holders = if reachable { *holders + 1 } else { holders.saturating_sub(1) };
            if reachable {
                self.free.remove(piece);
            } else {
                self.settle(piece);
            }
        }
        self.moved = true;
    }

    /// The origin now gives this much to this bundle.
    pub fn set_origin(&mut self, origin: BytesPerSec) {
        self.terms.origin = origin;
    }

    /// `node` has these pieces, verified and durable. Returns how many were news.
    pub fn have(&mut self, node: NodeId, pieces: impl IntoIterator<Item = u32>) -> u32 {
        let Some(member) = self.members.get_mut(&node) else { return 0 };
        let mut news = 0;
        for piece in pieces {
            if !member.held.insert(piece) {
                continue;
            }
            news += 1;
            self.moved = true;
            member.lacks.remove(piece);
            if member.reachable {
                self.holders[piece as usize] += 1;
                self.free.remove(piece);
            }
            if let Some(&(holder, until)) = self.leased.get(&piece)
                && holder == node
            {
                member.open = member.open.saturating_sub(1);
                self.leased.remove(&piece);
                self.by_expiry.remove(&(until, piece));
                if self.holders[piece as usize] == 0 {
                    self.free.insert(piece);
                }
            } else {
                member.rescues = 0;
            }
        }
        news
    }

    /// Gives `node` up to `wanted` leases; fewer, or none, when its share is used up for now.
    pub fn grant(&mut self, node: NodeId, wanted: u32, now: Moment) -> Vec<Lease> {
        self.expire(now);
        self.unblock(now);
        let help = self.help(node, now);
        let (until, window, spares) = (now + self.expiry(), self.window(), self.spare_sum());
        let mut leases = Vec::new();
        while (leases.len() as u32) < wanted {
            let Some(member) = self.members.get(&node) else { break };
            let open = self.leased.len() as u32;
            let free = member.lacks.first_common(&self.free);
            let piece = if let Some(piece) = free {
                // Ahead of its share by more than a window: others first, unless the origin would idle
                // because those others do not ask.
                let fair = member.spare / spares * (self.granted.leases as f64 + f64::from(window));
                let idle = open < window.div_ceil(2);
                if open >= window || (member.granted as f64 >= fair.max(1.0) && !idle) {
                    break;
                }
                piece
            } else if let Some(piece) = self.endgame_piece(node, now) {
                self.granted.endgame += 1;
                piece
            } else if let Some(piece) = self.extra_piece(node, window) {
                self.granted.extra += 1;
                piece
            } else if (leases.len() as u32) < help
                && let Some(piece) = self.unleased_piece(node)
            {
                self.granted.rescue += 1;
                piece
            } else {
                break;
            };
            self.lease(node, piece, until);
            leases.push(Lease { piece, until });
        }
        leases
    }

    /// Whether `node` may fetch `piece` from the origin at `now`.
    pub fn is_leased(&self, node: NodeId, piece: u32, now: Moment) -> bool {
        self.leased.get(&piece).is_some_and(|&(holder, until)| holder == node && now < until)
    }

    /// How many volunteers that peers can ask have `piece`.
    pub fn holders(&self, piece: u32) -> u32 {
        self.holders.get(piece as usize).copied().unwrap_or(0)
    }

    /// Pieces that at least one such volunteer has.
    pub fn spread(&self) -> u32 {
        self.holders.iter().filter(|&&holders| holders > 0).count() as u32
    }

    /// What `node` has said it has.
    pub fn held(&self, node: NodeId) -> Option<&PieceSet> {
        self.members.get(&node).map(|member| &member.held)
    }

    /// Who takes part, and how far everybody is.
    pub fn members(&self) -> impl Iterator<Item = Progress> + '_ {
        self.members.iter().map(|(&node, member)| Progress {
            node,
            held: member.held.count(),
            lacks: member.lacks.count(),
            leases: member.open,
        })
    }

    /// Whether `node` takes part.
    pub fn is_member(&self, node: NodeId) -> bool {
        self.members.contains_key(&node)
    }

    /// Whether `node` takes part and has every piece that it wants.
    pub fn is_done(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| member.lacks.is_empty())
    }

    /// Whether every member has every piece that it wants.
    pub fn is_complete(&self) -> bool {
        self.members.values().all(|member| member.lacks.is_empty())
    }

    /// Whether the origin is asked for pieces just now, as much as it is let.
    pub fn is_saturated(&self) -> bool {
        self.leased.len() as u32 >= self.window().div_ceil(2)
    }

    /// Whether the origin is asked for pieces just now.
    pub fn is_active(&self) -> bool {
        !self.leased.is_empty()
    }

    /// Leases granted in all.
    pub fn granted(&self) -> Granted {
        self.granted
    }

    /// Peers for `node` to pull from, up to `wanted`: those that have what it lacks or are still getting it.
    /// Drawn by `seed`, one with twice the spare uplink about twice as often, so that not everybody asks the
    /// same and the strong are asked by more.
    pub fn peers(&self, node: NodeId, wanted: usize, seed: u64) -> Vec<NodeId> {
        let Some(member) = self.members.get(&node) else { return Vec::new() };
        let mut peers: Vec<(f64, NodeId)> = self
            .members
            .iter()
            .filter(|(peer, other)| **peer != node && other.reachable)
            .filter(|(_, other)| member.lacks.first_common(&other.held).is_some() || !other.lacks.is_empty())
            .map(|(peer, other)| {
                // Sampling without replacement by weight (Efraimidis and Spirakis, 2006).
                let chance =
                    Draw::new(seed ^ crate::draw::mix(u64::from(peer.0))).unit().max(f64::MIN_POSITIVE);
                (-chance.ln() / other.spare, *peer)
            })
            .collect();
        peers.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        peers.into_iter().take(wanted).map(|(_, peer)| peer).collect()
    }

    /// How long a lease lasts: three times what the origin needs to send one piece to everybody.
    pub fn expiry(&self) -> Duration {
        let seconds =
            3.0 * self.members.len() as f64 * self.terms.piece.0 as f64 / self.terms.origin.0.max(1) as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(self.terms.expiry_min).max(self.terms.expiry_min)
    }

    fn lease(&mut self, node: NodeId, piece: u32, until: Moment) {
        if let Some((before, when)) = self.leased.insert(piece, (node, until)) {
            self.by_expiry.remove(&(when, piece));
            if let Some(member) = self.members.get_mut(&before) {
                member.open = member.open.saturating_sub(1);
            }
        }
        self.by_expiry.insert((until, piece));
        self.free.remove(piece);
        self.granted.leases += 1;
        if let Some(member) = self.members.get_mut(&node) {
            member.granted += 1;
            member.open += 1;
        }
    }

    fn expire(&mut self, now: Moment) {
        while let Some(&(until, piece)) = self.by_expiry.first() {
            if now < until {
                break;
            }
            self.by_expiry.pop_first();
            if let Some((holder, _)) = self.leased.remove(&piece)
                && let Some(member) = self.members.get_mut(&holder)
            {
                member.open = member.open.saturating_sub(1);
            }
            self.settle(piece);
        }
    }

    /// Frees a piece that nobody has and nobody may fetch.
    fn settle(&mut self, piece: u32) {
        if self.holders[piece as usize] == 0 && !self.leased.contains_key(&piece) {
            self.free.insert(piece);
        }
    }

    /// At the end: a piece whose lease somebody else sits on longer than is usual.
    fn endgame_piece(&self, node: NodeId, now: Moment) -> Option<u32> {
        let part = (self.terms.origin_copies - 1.0).clamp(0.0, ENDGAME_PART);
        if self.granted.endgame as f64 >= part * f64::from(self.len) {
            return None;
        }
        let member = self.members.get(&node)?;
        let slow_until = now + self.expiry().mul_f64(1.0 - ENDGAME_PATIENCE);
        let slow = self.by_expiry.iter().take_while(|(until, _)| *until <= slow_until);
        slow.map(|&(_, piece)| piece).find(|&piece| {
            self.holders[piece as usize] == 0
                && member.lacks.contains(piece)
                && self.leased.get(&piece).is_some_and(|(holder, _)| *holder != node)
        })
    }

    /// For speed: a piece that few have, as long as the operator lets the origin send more copies.
    fn extra_piece(&self, node: NodeId, window: u32) -> Option<u32> {
        let part = (self.terms.origin_copies - 1.0 - ENDGAME_PART).max(0.0);
        if (self.granted.extra + 1) as f64 > part * f64::from(self.len) || self.leased.len() as u32 >= window
        {
            return None;
        }
        let member = self.members.get(&node)?;
        // A bounded look from a place that moves on, so that nobody waits for a walk over all pieces.
        let from = (crate::draw::mix(self.granted.leases) % u64::from(self.len.max(1))) as u32;
        member
            .lacks
            .iter_from(from)
            .chain(member.lacks.iter().take_while(move |&piece| piece < from))
            .filter(|piece| !self.leased.contains_key(piece))
            .take(EXTRA_LOOK)
            .min_by_key(|&piece| self.holders[piece as usize])
    }

    /// Some piece that `node` lacks, whoever has it.
    fn unleased_piece(&self, node: NodeId) -> Option<u32> {
        let member = self.members.get(&node)?;
        member.lacks.iter().find(|piece| !self.leased.contains_key(piece))
    }

    /// When nobody has got anything for long although somebody lacks something, those who are said to have it do not
    /// give it: then it counts as had by nobody.
    fn unblock(&mut self, now: Moment) {
        if std::mem::take(&mut self.moved) || self.moved_at.is_none() {
            self.moved_at = Some(now);
        }
        if self.moved_at.is_some_and(|at| now.since(at) < STALLED_MIN) || !self.leased.is_empty() {
            return;
        }
        self.moved_at = Some(now);
        for member in self.members.values() {
            member.lacks.iter().for_each(|piece| {
                self.free.insert(piece);
            });
        }
    }

    /// How many pieces `node` may have from the origin beyond its share because it has got nothing from anybody for
    /// long: those that have what it lacks may be out of its reach. More each time, as long as that does not change.
    fn help(&mut self, node: NodeId, now: Moment) -> u32 {
        let Some(member) = self.members.get_mut(&node) else { return 0 };
        let held = member.held.count();
        let since = match member.seen {
            Some((seen, since)) if seen == held => since,
            _ => now,
        };
        member.seen = Some((held, since));
        let patience = if member.rescues == 0 { STARVED_MIN } else { STARVED_AGAIN };
        if member.lacks.is_empty() || member.open > 0 || now.since(since) < patience {
            return 0;
        }
        member.seen = Some((held, now));
        member.rescues += 1;
        1 << (member.rescues - 1).min(RESCUE_DOUBLINGS)
    }

    /// Leases open at once: enough to keep the origin busy for two seconds, and at least one each.
    fn window(&self) -> u32 {
        let busy = 2.0 * self.terms.origin.0 as f64 / self.terms.piece.0.max(1) as f64;
        (busy as u32).max(self.members.len() as u32).max(1)
    }

    /// Of those who still lack something.
    fn spare_sum(&self) -> f64 {
        let lacking = self.members.values().filter(|member| !member.lacks.is_empty());
        lacking.map(|member| member.spare).sum::<f64>().max(1.0)
    }
}

/// What a member's share of the leases goes by: who passes nothing on gets what nobody else asks for.
fn weight(spare: BytesPerSec, reachable: bool) -> f64 {
    if reachable { spare.0.max(1) as f64 } else { 1.0 }
}

/// The part of a bundle that may be leased a second time at the end, at most.
pub const ENDGAME_PART: f64 = 0.05;
/// The part of a lease's time after which its holder counts as slow.
const ENDGAME_PATIENCE: f64 = 0.34;
/// Pieces that are compared when one is given for speed.
const EXTRA_LOOK: usize = 64;
/// Without anything new for this long a volunteer starves.
const STARVED_MIN: Duration = Duration::from_secs(15);
/// The same after it was helped and has still got nothing from a peer.
const STARVED_AGAIN: Duration = Duration::from_secs(1);
/// A starving volunteer gets so many pieces at once at most, as a power of two.
const RESCUE_DOUBLINGS: u32 = 5;
/// When nobody got anything for this long and the origin was not asked either, what is said to be there is not.
const STALLED_MIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
