//! Which pieces the wanted contents need, and what changes when other contents are wanted.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use freshet_policy::swarm::{Picker, PieceOrder, PieceSet};

use super::Session;
use crate::mirror::Want;
use crate::swarm::layout::Source;
use crate::swarm::tracker::Tracker;

impl<T: Tracker> Session<T> {
    /// Makes `wants` what is to be taken out of the bundle.
    pub(super) fn plan(&mut self, wants: &[Want]) {
        let now = Instant::now();
        let idle = self.missing() == 0;
        self.wants = wants.iter().map(|want| (want.content, want.clone())).collect::<HashMap<_, _>>();
        self.by_object = BTreeMap::new();
        self.by_recipe = BTreeMap::new();
        let mut needed = PieceSet::new(self.layout.pieces());
        for want in wants {
            let source = self.layout.source(want);
            let lies_in = match source {
                Some(Source::Recipe(number)) => {
                    self.by_recipe.insert(number, want.content);
                    self.layout.recipe_source(number)
                }
                Some(Source::Object(object) | Source::Member { object, .. }) => {
                    self.by_object.entry(object).or_default().push(want.content);
                    source
                }
                None => None,
            };
            if let Some(source) = lies_in {
                for piece in self.layout.pieces_of(source) {
                    needed.insert(piece);
                }
            }
        }
        self.ripe = self.by_object.keys().copied().collect();
        self.ripe.retain(|&object| !self.harvesting.contains(&object));
        if needed != self.needed {
            // What is not wanted is told with the whole state.
            self.poll.whole = true;
            self.poll.at = now;
            self.needed = needed;
            self.adjust_picker();
        }
        self.ripen(self.ripe.clone());
        self.make_at = now;
        if idle && self.missing() > 0 {
            self.progress_at = now;
        }
    }

    /// Of these objects keeps those as ripe whose wanted contents are here.
    pub(super) fn ripen(&mut self, objects: impl IntoIterator<Item = usize>) {
        for object in objects {
            let here = self.by_object.get(&object).is_some_and(|contents| {
                contents.iter().filter_map(|content| self.wants.get(content)).all(|want| {
                    let source = self.layout.source(want);
                    source.is_some_and(|source| {
                        self.layout.pieces_of(source).all(|piece| self.have.contains(piece))
                    })
                })
            });
            if here && !self.harvesting.contains(&object) {
                self.ripe.insert(object);
            } else {
                self.ripe.remove(&object);
            }
        }
    }

    /// Tells the picker which pieces are to be asked for: needed, and not here.
    pub(super) fn adjust_picker(&mut self) {
        for piece in 0..self.layout.pieces() {
            let wanted =
                self.needed.contains(piece) && !self.have.contains(piece) && !self.written.contains(piece);
            match (wanted, self.picker.have().contains(piece)) {
                (true, true) => self.picker.lost(piece),
                (false, false) => {
                    self.picker.arrived(piece);
                    self.stop_asking_for(piece);
                }
                _ => {}
            }
        }
    }

    /// Begins anew with the durable pieces: what was under way is dropped, and peers are asked what they have.
    pub(super) fn start_over(&mut self, now: Instant) {
        self.stop_asking();
        self.picker = Picker::new(PieceSet::new(self.layout.pieces()), PieceOrder::Random);
        self.adjust_picker();
        for node in self.peers.active(now) {
            self.peers.have_before(node, now);
        }
    }
}
