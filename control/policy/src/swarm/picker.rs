//! What a volunteer asks its peers for: one piece at a time from each, rarest first or at random.

use std::collections::BTreeMap;

use freshet_api::NodeId;

use super::PieceSet;
use crate::draw::Draw;

/// In which order pieces are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PieceOrder {
    /// Any, with equal probability: nearly as good as rarest, and blind to lies about holdings.
    #[default]
    Random,
    /// The one that the fewest peers have, ties at random.
    Rarest,
}

/// One request to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// From whom.
    pub peer: NodeId,
    /// What.
    pub piece: u32,
}

/// A volunteer's view of a bundle that it copies.
#[derive(Debug)]
pub struct Picker {
    order: PieceOrder,
    have: PieceSet,
    asked: PieceSet,
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Debug)]
struct Peer {
    held: PieceSet,
    asked: Option<u32>,
}

impl Picker {
    /// A picker for a bundle of which `have` is here already.
    pub fn new(have: PieceSet, order: PieceOrder) -> Picker {
        let asked = PieceSet::new(have.len());
        Picker { order, have, asked, peers: BTreeMap::new() }
    }

    /// What is here.
    pub fn have(&self) -> &PieceSet {
        &self.have
    }

    /// A peer has these pieces (all that it has; a second call replaces the first). A set for a bundle
    /// of another length is taken for empty.
    pub fn peer(&mut self, peer: NodeId, held: PieceSet) {
        let held = if held.len() == self.have.len() { held } else { PieceSet::new(self.have.len()) };
        match self.peers.get_mut(&peer) {
            Some(known) => known.held = held,
            None => {
                self.peers.insert(peer, Peer { held, asked: None });
            }
        }
    }

    /// A known peer has one piece more.
    pub fn has(&mut self, peer: NodeId, piece: u32) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.held.insert(piece);
        }
    }

    /// A peer went away, or is not asked any more; what it was asked for is free again.
    pub fn forget(&mut self, peer: NodeId) {
        if let Some(piece) = self.peers.remove(&peer).and_then(|peer| peer.asked) {
            self.release(piece);
        }
    }

    /// Something else (an origin lease) fetches `piece`, so that no peer is asked for it; undone by
    /// [`Picker::failed_elsewhere`]. Whether it was free.
    pub fn reserve(&mut self, piece: u32) -> bool {
        !self.have.contains(piece) && self.asked.insert(piece)
    }

    /// Whether somebody is asked for `piece`, or it is reserved.
    pub fn is_asked(&self, piece: u32) -> bool {
        self.asked.contains(piece)
    }

    /// The reserved `piece` could not be had.
    pub fn failed_elsewhere(&mut self, piece: u32) {
        self.asked.remove(piece);
    }

    /// The next request to make, if some peer that is not busy has something that nobody is asked for.
    pub fn next(&mut self, seed: u64) -> Option<Pull> {
        let mut draw = Draw::new(seed);
        let idle: Vec<NodeId> =
            self.peers.iter().filter(|(_, peer)| peer.asked.is_none()).map(|(&node, _)| node).collect();
        let start = draw.below(idle.len());
        for step in 0..idle.len() {
            let node = idle[(start + step) % idle.len()];
            if let Some(piece) = self.pick(node, &mut draw) {
                self.asked.insert(piece);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.asked = Some(piece);
                }
                return Some(Pull { peer: node, piece });
            }
        }
        None
    }

    /// `piece` is here, verified and durable.
    pub fn arrived(&mut self, piece: u32) {
        self.have.insert(piece);
        self.asked.remove(piece);
        for peer in self.peers.values_mut() {
            if peer.asked == Some(piece) {
                peer.asked = None;
            }
        }
    }

    /// `piece` is not here after all (it could not be kept), or is wanted only now.
    pub fn lost(&mut self, piece: u32) {
        self.have.remove(piece);
    }

    /// One request more for `piece`, which somebody is asked for already and takes long to give: to a peer that is
    /// idle and has it, if there is one.
    pub fn again(&mut self, piece: u32, seed: u64) -> Option<Pull> {
        if self.have.contains(piece) {
            return None;
        }
        let able: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.asked.is_none() && peer.held.contains(piece))
            .map(|(&node, _)| node)
            .collect();
        let peer = *able.get(Draw::new(seed).below(able.len()))?;
        self.asked.insert(piece);
        if let Some(known) = self.peers.get_mut(&peer) {
            known.asked = Some(piece);
        }
        Some(Pull { peer, piece })
    }

    /// How many pieces `peer` has that are missing here and that nobody is asked for.
    pub fn offers(&self, peer: NodeId) -> usize {
        let Some(peer) = self.peers.get(&peer) else { return 0 };
        self.have.missing_from(&peer.held).filter(|&piece| !self.asked.contains(piece)).count()
    }

    /// Whether `peer` is known and asked for nothing.
    pub fn is_idle(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.asked.is_none())
    }

    /// `peer` could not give the piece it was asked for, or gave wrong bytes: it is taken to lack it.
    pub fn failed(&mut self, peer: NodeId) {
        if let Some(known) = self.peers.get_mut(&peer)
            && let Some(piece) = known.asked.take()
        {
            known.held.remove(piece);
            self.release(piece);
        }
    }

    /// A request for `piece` ended; it is free unless another peer is asked for it too.
    fn release(&mut self, piece: u32) {
        if !self.peers.values().any(|peer| peer.asked == Some(piece)) {
            self.asked.remove(piece);
        }
    }

    fn pick(&self, node: NodeId, draw: &mut Draw) -> Option<u32> {
        let peer = self.peers.get(&node)?;
        let mut best: Option<(u32, u32)> = None;
        let mut ties = 0;
        for piece in self.have.missing_from(&peer.held).filter(|&piece| !self.asked.contains(piece)) {
            let rarity = match self.order {
                PieceOrder::Random => 0,
                PieceOrder::Rarest => {
                    self.peers.values().filter(|peer| peer.held.contains(piece)).count() as u32
                }
            };
            match best {
                Some((least, _)) if rarity > least => {}
                Some((least, _)) if rarity == least => {
                    // Reservoir sampling: each of the ties with equal probability.
                    ties += 1;
                    if draw.below(ties) == 0 {
                        best = Some((rarity, piece));
                    }
                }
                _ => {
                    best = Some((rarity, piece));
                    ties = 1;
                }
            }
        }
        best.map(|(_, piece)| piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(len: u32, pieces: &[u32]) -> PieceSet {
        let mut set = PieceSet::new(len);
        pieces.iter().for_each(|&piece| assert!(set.insert(piece)));
        set
    }

    #[test]
    fn one_request_per_peer_and_none_twice() {
        let mut picker = Picker::new(PieceSet::new(4), PieceOrder::Random);
        picker.peer(NodeId(1), set(4, &[0, 1, 2, 3]));
        picker.peer(NodeId(2), set(4, &[0, 1, 2, 3]));
        let first = picker.next(1).unwrap();
        let second = picker.next(2).unwrap();
        assert_ne!(first.peer, second.peer);
        assert_ne!(first.piece, second.piece);
        assert_eq!(picker.next(3), None, "both are busy");
        picker.arrived(first.piece);
        assert_eq!(picker.next(4).unwrap().peer, first.peer);
    }

    #[test]
    fn the_rarest_comes_first() {
        let mut picker = Picker::new(PieceSet::new(3), PieceOrder::Rarest);
        picker.peer(NodeId(1), set(3, &[0, 1, 2]));
        picker.peer(NodeId(2), set(3, &[0, 1]));
        picker.peer(NodeId(3), set(3, &[0]));
        picker.forget(NodeId(2));
        picker.peer(NodeId(2), set(3, &[0, 1]));
        for seed in 0..20 {
            let mut fresh = Picker::new(PieceSet::new(3), PieceOrder::Rarest);
            fresh.peer(NodeId(1), set(3, &[0, 1, 2]));
            fresh.peer(NodeId(4), set(3, &[0, 1]));
            if let Some(pull) = fresh.next(seed)
                && pull.peer == NodeId(1)
            {
                assert_eq!(pull.piece, 2);
            }
        }
    }

    #[test]
    fn failures_and_departures_free_what_was_asked() {
        let mut picker = Picker::new(PieceSet::new(1), PieceOrder::Random);
        picker.peer(NodeId(1), set(1, &[0]));
        picker.peer(NodeId(2), set(1, &[0]));
        let pull = picker.next(1).unwrap();
        picker.failed(pull.peer);
        let other = picker.next(1).unwrap();
        assert_ne!(other.peer, pull.peer, "who failed is taken to lack it");
        picker.forget(other.peer);
        assert!(picker.reserve(0));
        assert!(!picker.reserve(0));
        picker.failed_elsewhere(0);
        assert!(picker.reserve(0));
        picker.arrived(0);
        assert!(!picker.reserve(0) && picker.have().is_full());
    }

    #[test]
    fn a_slow_piece_is_asked_for_again_elsewhere() {
        let mut picker = Picker::new(PieceSet::new(2), PieceOrder::Random);
        picker.peer(NodeId(1), set(2, &[0]));
        assert_eq!(picker.next(1), Some(Pull { peer: NodeId(1), piece: 0 }));
        assert_eq!(picker.again(0, 1), None, "nobody else has it");
        picker.peer(NodeId(2), set(2, &[0]));
        assert_eq!(picker.again(0, 1), Some(Pull { peer: NodeId(2), piece: 0 }));
        picker.failed(NodeId(1));
        picker.peer(NodeId(3), set(2, &[0]));
        assert_eq!(picker.next(1), None, "the other one is still asked");
        picker.failed(NodeId(2));
        assert_eq!(picker.next(1), Some(Pull { peer: NodeId(3), piece: 0 }));
        picker.arrived(0);
        assert_eq!(picker.again(0, 1), None);
        picker.lost(0);
        picker.peer(NodeId(1), set(2, &[0]));
        assert!(picker.next(1).is_some() && picker.offers(NodeId(1)) == 0);
    }

    #[test]
    fn a_peer_with_another_bundle_is_asked_for_nothing() {
        let mut picker = Picker::new(PieceSet::new(4), PieceOrder::Random);
        picker.peer(NodeId(1), set(900, &[0, 1, 800]));
        assert_eq!(picker.next(1), None);
    }

    proptest! {
        /// Whatever peers hold and lose, everything that somebody keeps is had in the end, each piece once.
        #[test]
        fn all_that_is_there_is_had(
            len in 1u32..60, holders in proptest::collection::vec(any::<u64>(), 1..8), rarest: bool, seed: u64
        ) {
            let order = if rarest { PieceOrder::Rarest } else { PieceOrder::Random };
            let mut picker = Picker::new(PieceSet::new(len), order);
            let mut there = PieceSet::new(len);
            for (n, bits) in holders.iter().enumerate() {
                let mut held = PieceSet::new(len);
                (0..len).filter(|piece| bits >> piece & 1 == 1).for_each(|piece| { held.insert(piece); there.insert(piece); });
                picker.peer(NodeId(n as u32 + 1), held);
            }
            let mut draw = Draw::new(seed);
            let mut open = Vec::new();
            loop {
                while let Some(pull) = picker.next(draw.bits()) { open.push(pull); }
                let Some(pull) = open.pop() else { break };
                prop_assert!(!picker.have().contains(pull.piece));
                picker.arrived(pull.piece);
            }
            prop_assert_eq!(picker.have(), &there);
        }
    }
}
