//! Which volunteer may fetch which piece from the origin: each piece once, in proportion to who can
//! pass it on.
//!
//! The origin's uplink is the scarce thing. So it sends every piece to one volunteer only, and more of
//! them to those with more spare uplink, who spread them; everything else moves between peers. Greedy
//! windows instead of shares take 4.8 times as long. A lease that is not used in time goes to another;
//! a volunteer that is banned loses its leases and what it claimed to hold counts no more.

use std::collections::BTreeMap;
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec, NodeId};

use super::PieceSet;
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
    /// At the end, pieces that are leased but not seen may be leased again, up to this part of the
    /// bundle in all.
    pub endgame_part: f64,
}

impl LeaseTerms {
    /// Leases for pieces of `piece` bytes from an origin that sends `origin`.
    pub fn new(piece: Bytes, origin: BytesPerSec) -> LeaseTerms {
        LeaseTerms { piece, origin, expiry_min: Duration::from_secs(5), endgame_part: 0.05 }
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

/// The leases of one bundle. The tracker keeps one per bundle that is being copied.
#[derive(Debug)]
pub struct LeaseBook {
    terms: LeaseTerms,
    pieces: Vec<Piece>,
    members: BTreeMap<NodeId, Member>,
    /// Pieces never leased yet, from here on; before it, those whose lease was lost.
    next: u32,
    lost: Vec<u32>,
    granted: u64,
    again: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    holders: u32,
    leased: Option<(NodeId, Moment)>,
}

#[derive(Debug)]
struct Member {
    spare: f64,
    held: PieceSet,
    granted: u64,
    open: u32,
}

impl LeaseBook {
    /// A book for a bundle of `pieces` pieces that nobody but the origin has.
    pub fn new(pieces: u32, terms: LeaseTerms) -> LeaseBook {
        LeaseBook {
            terms,
            pieces: vec![Piece::default(); pieces as usize],
            members: BTreeMap::new(),
            next: 0,
            lost: Vec::new(),
            granted: 0,
            again: 0,
        }
    }

    /// `node` takes part, with `spare` uplink measured and the pieces it has already.
    pub fn join(&mut self, node: NodeId, spare: BytesPerSec, held: PieceSet) {
        self.leave(node);
        let held = if held.len() as usize == self.pieces.len() { held } else { PieceSet::new(self.len()) };
        for piece in held.iter() {
            self.pieces[piece as usize].holders += 1;
        }
        // Newcomers begin at the present share, not at zero: otherwise the last to join would be given
        // everything that is left.
        let granted = self.fair_share_now(spare);
        let member = Member { spare: spare.0.max(1) as f64, held, granted, open: 0 };
        self.members.insert(node, member);
    }

    /// `node` left, crashed, or was banned: its leases are free again and its holdings count no more.
    pub fn leave(&mut self, node: NodeId) {
        let Some(member) = self.members.remove(&node) else { return };
        for piece in member.held.iter() {
            let piece = &mut self.pieces[piece as usize];
            piece.holders = piece.holders.saturating_sub(1);
        }
        for (number, piece) in self.pieces.iter_mut().enumerate() {
            if piece.leased.is_some_and(|(holder, _)| holder == node) {
                piece.leased = None;
                self.lost.push(number as u32);
            } else if piece.holders == 0
                && piece.leased.is_none()
                && (number as u32) < self.next
                && member.held.contains(number as u32)
            {
                // It was the only one that had it.
                self.lost.push(number as u32);
            }
        }
    }

    /// `node` now has this much spare uplink.
    pub fn measured(&mut self, node: NodeId, spare: BytesPerSec) {
        if let Some(member) = self.members.get_mut(&node) {
            member.spare = spare.0.max(1) as f64;
        }
    }

    /// `node` has these pieces, verified and durable. Returns how many were news.
    pub fn have(&mut self, node: NodeId, pieces: impl IntoIterator<Item = u32>) -> u32 {
        let Some(member) = self.members.get_mut(&node) else { return 0 };
        let mut news = 0;
        for number in pieces {
            if !member.held.insert(number) {
                continue;
            }
            news += 1;
            let piece = &mut self.pieces[number as usize];
            piece.holders += 1;
            if piece.leased.is_some_and(|(holder, _)| holder == node) {
                piece.leased = None;
                member.open = member.open.saturating_sub(1);
            }
        }
        news
    }

    /// Gives `node` up to `wanted` leases; fewer, or none, when its share is used up for now.
    pub fn grant(&mut self, node: NodeId, wanted: u32, now: Moment) -> Vec<Lease> {
        self.expire(now);
        let until = now + self.expiry();
        let window = self.window();
        let endgame = self.endgame();
        let mut leases = Vec::new();
        while (leases.len() as u32) < wanted {
            let Some(member) = self.members.get(&node) else { break };
            // Ahead of its share by more than a window: others first, unless the origin would idle
            // because those others do not ask.
            let share = member.spare / self.spare_sum();
            let fair = share * (self.granted as f64 + f64::from(window));
            let open = self.open();
            let idle = open < window.div_ceil(2);
            if open >= window && !endgame {
                break;
            }
            if member.granted as f64 >= fair.max(1.0) && !endgame && !idle {
                break;
            }
            let Some(number) = self.free_piece().or_else(|| self.endgame_piece(node, now)) else { break };
            self.pieces[number as usize].leased = Some((node, until));
            if let Some(member) = self.members.get_mut(&node) {
                member.granted += 1;
                member.open += 1;
            }
            self.granted += 1;
            leases.push(Lease { piece: number, until });
        }
        leases
    }

    /// Whether `node` may fetch `piece` from the origin at `now`.
    pub fn is_leased(&self, node: NodeId, piece: u32, now: Moment) -> bool {
        self.pieces
            .get(piece as usize)
            .and_then(|piece| piece.leased)
            .is_some_and(|(holder, until)| holder == node && now < until)
    }

    /// How many volunteers have `piece`.
    pub fn holders(&self, piece: u32) -> u32 {
        self.pieces.get(piece as usize).map_or(0, |piece| piece.holders)
    }

    /// What `node` has said it has.
    pub fn held(&self, node: NodeId) -> Option<&PieceSet> {
        self.members.get(&node).map(|member| &member.held)
    }

    /// Whether every member has every piece.
    pub fn is_complete(&self) -> bool {
        self.members.values().all(|member| member.held.is_full())
    }

    /// Leases granted in all, those granted a second time at the end among them.
    pub fn granted(&self) -> (u64, u64) {
        (self.granted, self.again)
    }

    /// Peers for `node` to pull from: up to `wanted`, those that have most of what it lacks first,
    /// with ties in an order of its own, so that not everybody asks the same.
    pub fn peers(&self, node: NodeId, wanted: usize, seed: u64) -> Vec<NodeId> {
        let Some(member) = self.members.get(&node) else { return Vec::new() };
        let mut peers: Vec<(u64, NodeId)> = self
            .members
            .iter()
            .filter(|(peer, _)| **peer != node)
            .filter(|(_, other)| member.held.wants_from(&other.held) || !other.held.is_full())
            .map(|(peer, _)| (crate::draw::mix(seed ^ crate::draw::mix(u64::from(peer.0))), *peer))
            .collect();
        peers.sort_unstable();
        peers.into_iter().take(wanted).map(|(_, peer)| peer).collect()
    }

    /// How long a lease lasts: three times what the origin needs to send one piece to everybody.
    pub fn expiry(&self) -> Duration {
        let seconds =
            3.0 * self.members.len() as f64 * self.terms.piece.0 as f64 / self.terms.origin.0.max(1) as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(self.terms.expiry_min).max(self.terms.expiry_min)
    }

    fn expire(&mut self, now: Moment) {
        for (number, piece) in self.pieces.iter_mut().enumerate() {
            if let Some((holder, until)) = piece.leased
                && now >= until
            {
                piece.leased = None;
                if let Some(member) = self.members.get_mut(&holder) {
                    member.open = member.open.saturating_sub(1);
                }
                if piece.holders == 0 {
                    self.lost.push(number as u32);
                }
            }
        }
    }

    /// The next piece that nobody has and nobody may fetch.
    fn free_piece(&mut self) -> Option<u32> {
        while let Some(number) = self.lost.pop() {
            let piece = &self.pieces[number as usize];
            if piece.holders == 0 && piece.leased.is_none() {
                return Some(number);
            }
        }
        while self.next < self.len() {
            let number = self.next;
            let piece = &self.pieces[number as usize];
            self.next += 1;
            if piece.holders == 0 && piece.leased.is_none() {
                return Some(number);
            }
        }
        None
    }

    /// At the end: a piece whose lease somebody else sits on longer than is usual.
    fn endgame_piece(&mut self, node: NodeId, now: Moment) -> Option<u32> {
        if !self.endgame() {
            return None;
        }
        let member = self.members.get(&node)?;
        let slow_until = now + self.expiry().mul_f64(1.0 - ENDGAME_PATIENCE);
        let number = (0..self.len()).find(|&number| {
            let piece = &self.pieces[number as usize];
            piece.holders == 0
                && !member.held.contains(number)
                && piece.leased.is_some_and(|(holder, until)| holder != node && until <= slow_until)
        })?;
        if let Some((before, _)) = self.pieces[number as usize].leased
            && let Some(member) = self.members.get_mut(&before)
        {
            member.open = member.open.saturating_sub(1);
        }
        self.again += 1;
        Some(number)
    }

    fn endgame(&self) -> bool {
        self.next == self.len()
            && self.lost.is_empty()
            && (self.again as f64) < self.terms.endgame_part * f64::from(self.len())
    }

    /// Leases open at once: enough to keep the origin busy for two seconds, and at least one each.
    fn window(&self) -> u32 {
        let busy = 2.0 * self.terms.origin.0 as f64 / self.terms.piece.0.max(1) as f64;
        (busy as u32).max(self.members.len() as u32).max(1)
    }

    /// Leases that are neither used nor expired.
    fn open(&self) -> u32 {
        self.members.values().map(|member| member.open).sum()
    }

    fn spare_sum(&self) -> f64 {
        self.members.values().map(|member| member.spare).sum::<f64>().max(1.0)
    }

    fn fair_share_now(&self, spare: BytesPerSec) -> u64 {
        let spare = spare.0.max(1) as f64;
        let sum = self.members.values().map(|member| member.spare).sum::<f64>() + spare;
        (self.granted as f64 * spare / sum) as u64
    }

    fn len(&self) -> u32 {
        self.pieces.len() as u32
    }
}

/// The part of a lease's time after which its holder counts as slow.
const ENDGAME_PATIENCE: f64 = 0.34;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::draw::Draw;
    use crate::swarm::{Picker, PieceOrder, distribution_secs_min, piece_size};

    fn terms() -> LeaseTerms {
        LeaseTerms::new(Bytes(1 << 20), BytesPerSec(10 << 20))
    }

    fn node(number: u32) -> NodeId {
        NodeId(number)
    }

    fn book(pieces: u32, spares: &[u64]) -> LeaseBook {
        let mut book = LeaseBook::new(pieces, terms());
        for (n, &spare) in spares.iter().enumerate() {
            book.join(node(n as u32 + 1), BytesPerSec(spare), PieceSet::new(pieces));
        }
        book
    }

    #[test]
    fn each_piece_goes_to_one_volunteer_in_proportion_to_its_spare_uplink() {
        let mut book = book(1000, &[100, 200, 700]);
        let mut counts = [0u32; 3];
        let mut seen = PieceSet::new(1000);
        let mut under_way = std::collections::VecDeque::new();
        for round in 0..10_000 {
            let which = round % 3;
            for lease in book.grant(node(which + 1), 20, Moment::ZERO) {
                assert!(seen.insert(lease.piece), "piece {} twice", lease.piece);
                counts[which as usize] += 1;
                under_way.push_back((which, lease.piece));
            }
            if under_way.len() > 16 || round > 9000 {
                let Some((which, piece)) = under_way.pop_front() else { continue };
                book.have(node(which + 1), [piece]);
            }
        }
        assert!(seen.is_full());
        for (count, share) in counts.iter().zip([100, 200, 700]) {
            assert!(count.abs_diff(share) < 30, "{counts:?}");
        }
        assert_eq!(book.granted(), (1000, 0));
    }

    #[test]
    fn an_unused_lease_goes_to_another_and_is_void_for_the_first() {
        let mut book = book(1, &[100, 100]);
        let lease = book.grant(node(1), 5, Moment::ZERO)[0];
        assert!(book.is_leased(node(1), 0, Moment::ZERO));
        assert!(!book.is_leased(node(2), 0, Moment::ZERO));
        assert!(!book.is_leased(node(1), 7, Moment::ZERO));
        assert!(!book.is_leased(node(1), 0, lease.until));
        assert_eq!(book.grant(node(2), 1, lease.until).len(), 1);
        assert!(book.is_leased(node(2), 0, lease.until));
    }

    #[test]
    fn a_banned_liar_loses_leases_and_holdings() {
        let mut book = book(10, &[100, 100]);
        let leases = book.grant(node(1), 10, Moment::ZERO);
        assert!(!leases.is_empty());
        book.have(node(1), (0..10).filter(|n| !leases.iter().any(|lease| lease.piece == *n)));
        book.leave(node(1));
        assert!((0..10).all(|piece| book.holders(piece) == 0));
        let mut had = 0;
        for _ in 0..100 {
            for lease in book.grant(node(2), 1, Moment::ZERO) {
                book.have(node(2), [lease.piece]);
                had += 1;
            }
        }
        assert_eq!(had, 10, "everything it had or claimed is leased again");
        assert!(book.is_complete());
    }

    #[test]
    fn strangers_get_and_say_nothing() {
        let mut book = book(4, &[100]);
        assert!(book.grant(node(9), 4, Moment::ZERO).is_empty());
        assert_eq!(book.have(node(9), [0, 1]), 0);
        assert_eq!(book.have(node(1), [2, 2, 77]), 1, "twice is no news, and 77 is no piece");
        assert!(book.peers(node(9), 3, 1).is_empty());
    }

    #[test]
    fn the_endgame_is_bounded() {
        let mut book = book(100, &[100, 100, 100]);
        for half in 0..40u32 {
            let now = Moment::from_secs_f64(f64::from(half) * 0.5);
            for n in 1..=3 {
                for lease in book.grant(node(n), 10, now) {
                    // The third sits on what it is given.
                    if n < 3 {
                        book.have(node(n), [lease.piece]);
                    }
                }
            }
        }
        let (granted, again) = book.granted();
        assert!((1..=5).contains(&again), "{again}");
        assert!(granted > 100, "{granted}");
    }

    /// The whole swarm in lock-step time: every round each uplink sends as many pieces as it can.
    /// Returns rounds needed over the lower bound, and origin bytes over the bundle's.
    fn swarm(peers: u32, pieces: u32, origin_rate: f64, uplink: impl Fn(u32) -> f64) -> (f64, f64) {
        let piece = 1 << 20;
        let mut terms = LeaseTerms::new(Bytes(piece), BytesPerSec((origin_rate * piece as f64) as u64));
        terms.expiry_min = Duration::from_secs(60);
        let mut book = LeaseBook::new(pieces, terms);
        let mut pickers = Vec::new();
        for n in 1..=peers {
            let spare = BytesPerSec((uplink(n) * piece as f64) as u64);
            book.join(node(n), spare, PieceSet::new(pieces));
            pickers.push(Picker::new(PieceSet::new(pieces), PieceOrder::Rarest));
        }
        let mut draw = Draw::new(5);
        let step = 0.25;
        let mut credit = vec![0.0f64; peers as usize + 1];
        let mut origin_sent = 0u32;
        let mut now = Moment::ZERO;
        let mut queue: Vec<(NodeId, u32)> = Vec::new();
        for round in 1..200_000 {
            now += Duration::from_secs_f64(step);
            for n in 1..=peers {
                let picker = &mut pickers[n as usize - 1];
                for lease in book.grant(node(n), 4, now) {
                    picker.reserve(lease.piece);
                    queue.push((node(n), lease.piece));
                }
                for peer in book.peers(node(n), 16, draw.bits()) {
                    picker.peer(peer, book.held(peer).unwrap().clone());
                }
            }
            credit[0] = (credit[0] + origin_rate * step).min(4.0);
            let mut arrivals: Vec<(NodeId, u32)> = Vec::new();
            while credit[0] >= 1.0 && !queue.is_empty() {
                credit[0] -= 1.0;
                origin_sent += 1;
                arrivals.push(queue.remove(0));
            }
            for n in 1..=peers {
                credit[n as usize] = (credit[n as usize] + uplink(n) * step).min(4.0);
            }
            let start = draw.below(peers as usize) as u32;
            loop {
                let mut any = false;
                for offset in 0..peers {
                    let n = (start + offset) % peers + 1;
                    let picker = &mut pickers[n as usize - 1];
                    if let Some(pull) = picker.next(draw.bits()) {
                        if credit[pull.peer.0 as usize] >= 1.0 {
                            credit[pull.peer.0 as usize] -= 1.0;
                            arrivals.push((node(n), pull.piece));
                            picker.arrived(pull.piece);
                            any = true;
                        } else {
                            picker.forget(pull.peer);
                        }
                    }
                }
                if !any {
                    break;
                }
            }
            for (to, number) in arrivals {
                pickers[to.0 as usize - 1].arrived(number);
                book.have(to, [number]);
            }
            if book.is_complete() {
                let uplinks: f64 = (1..=peers).map(&uplink).sum();
                let size = Bytes(u64::from(pieces));
                let bound = distribution_secs_min(size, peers as usize, origin_rate, uplinks, f64::INFINITY);
                return (f64::from(round) * step / bound, f64::from(origin_sent) / f64::from(pieces));
            }
        }
        panic!("the swarm never finished");
    }

    #[test]
    fn a_swarm_comes_near_the_lower_bound_and_spares_the_origin() {
        // An origin with more than a volunteer's uplink still sends little more than one copy, so the
        // bound, in which it never stops sending, is out of reach by that part.
        for (origin, limit) in [(10.0, 1.2), (40.0, 1.3)] {
            let (time, bytes) = swarm(12, 600, origin, |_| 10.0);
            assert!(time < limit && bytes <= 1.05, "origin {origin}: {time:.3} x bound, {bytes:.3} F");
            println!("origin {origin}: {time:.3} x bound, {bytes:.3} F");
        }
        let (time, bytes) = swarm(12, 600, 10.0, |n| if n % 3 == 0 { 24.0 } else { 4.0 });
        println!("uneven: {time:.3} x bound, {bytes:.3} F");
        assert!(time < 1.25 && bytes <= 1.05, "uneven: {time:.3} x bound, {bytes:.3} F");
    }

    #[test]
    fn the_piece_grid_suits_the_swarm() {
        assert!(piece_size(Bytes(600 << 20), 12).0 >= 512 << 10);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Members come and go, leases expire, and still no piece is leased to two at once, and
        /// everybody who stays can be completed.
        #[test]
        fn leases_stay_unique_and_nothing_gets_stuck(
            steps in proptest::collection::vec((0u8..4, 1u32..6, 0u64..20_000), 1..200)
        ) {
            let mut book = book(30, &[100, 300]);
            let mut now = Moment::ZERO;
            for (what, n, millis) in steps {
                now += Duration::from_millis(millis);
                match what {
                    0 => book.join(node(n), BytesPerSec(u64::from(n) * 50), PieceSet::new(30)),
                    1 => book.leave(node(n)),
                    _ => {
                        for lease in book.grant(node(n), 3, now) {
                            for other in 1..6 {
                                prop_assert_eq!(book.is_leased(node(other), lease.piece, now), other == n);
                            }
                            if what == 2 { book.have(node(n), [lease.piece]); }
                        }
                    }
                }
            }
            book.leave(node(1));
            book.join(node(1), BytesPerSec(100), PieceSet::new(30));
            for _ in 0..300 {
                now += Duration::from_secs(10);
                for lease in book.grant(node(1), 30, now) { book.have(node(1), [lease.piece]); }
                // What others have, it can pull.
                let from_peers: Vec<u32> = (0..30).filter(|&piece| book.holders(piece) > 0).collect();
                book.have(node(1), from_peers);
            }
            prop_assert!(book.held(node(1)).unwrap().is_full());
        }
    }
}
