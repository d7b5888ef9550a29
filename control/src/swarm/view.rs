//! The swarm as operators see it. Reads, changes nothing.

use freshet_api::NodeId;
use freshet_api::admin::{BannedView, BundleMember, BundleView, SuspectView, SwarmSummary, SwarmView};

use super::Swarm;
use super::shelf::Kept;
use crate::swarm::books::BookFigures;

impl Swarm {
    /// The swarm in a line.
    pub fn summary(&self) -> SwarmSummary {
        let shown = self.shelf.load();
        let figures = self.books.figures(self.clock.now());
        SwarmSummary {
            released: self.release.load().sequence,
            bundles: shown.bundles.len() as u64,
            copying: figures
                .values()
                .filter(|figures| figures.members.iter().any(|member| member.lacks > 0))
                .count() as u64,
            spooled_bytes: shown.spooled.values().sum(),
            origin_rate: self.books.origin_rate().1,
        }
    }

    /// Everything.
    pub fn view(&self) -> SwarmView {
        let figures = self.books.figures(self.clock.now());
        let shown = self.shelf.load();
        let bundles = shown.bundles.iter().map(|kept| self.bundle_view(kept, figures.get(&kept.id)));
        let nodes = self.registry.nodes();
        let released = self.release.load();
        let banned = nodes.iter().filter_map(|node| {
            let ban = node.ban.as_ref()?;
            let why = released.state.as_ref().map_or_else(|| ban.to_string(), |state| ban.words(state));
            Some(BannedView { node: node.id, name: node.name.as_str().to_owned(), why })
        });
        SwarmView {
            summary: self.summary(),
            origin_rate_reckoned: self.books.origin_rate().0,
            origin_copies_max: self.books.origin_copies(),
            bundles: bundles.collect(),
            banned: banned.collect(),
            suspects: self.suspects(),
            manifests: self.manifests.view(),
        }
    }

    /// Who is accused and was caught at nothing, those first whom nobody is sent to.
    fn suspects(&self) -> Vec<SuspectView> {
        let nodes = self.registry.nodes();
        let name = |id: NodeId| nodes.by_id(id).map_or_else(|| id.to_string(), |node| node.name.to_string());
        let accused = self.books.accused(self.clock.now()).into_iter();
        let mut suspects: Vec<SuspectView> = accused
            .filter(|accused| nodes.by_id(accused.node).is_some_and(|node| node.ban.is_none()))
            .map(|accused| SuspectView {
                node: accused.node,
                name: name(accused.node),
                accusers: accused.accusers.into_iter().map(name).collect(),
                believed: accused.believed as u64,
                needed: accused.needed as u64,
                avoided: accused.avoided,
            })
            .collect();
        suspects.sort_by_key(|suspect| (!suspect.avoided, std::cmp::Reverse(suspect.believed)));
        suspects
    }

    fn bundle_view(&self, kept: &Kept, figures: Option<&BookFigures>) -> BundleView {
        let bundle = &kept.bundle;
        let nodes = self.registry.nodes();
        let name = |id| nodes.by_id(id).map_or_else(String::new, |node| node.name.as_str().to_owned());
        let granted = figures.map(|figures| figures.granted).unwrap_or_default();
        let members = figures.map(|figures| figures.members.as_slice()).unwrap_or_default();
        BundleView {
            id: kept.id.to_string(),
            sequence: kept.sequence,
            bytes: bundle.bytes(),
            objects: bundle.objects.len() as u64,
            recipes: bundle.recipes.len() as u64,
            recipe_target_bytes: bundle.recipes.iter().map(|recipe| recipe.target_size).sum(),
            pieces: bundle.len(),
            piece_bytes: bundle.piece_bytes,
            spread: figures.map_or(0, |figures| figures.spread),
            leases: granted.leases,
            leases_again: granted.endgame + granted.extra + granted.rescue,
            origin_copies: granted.leases as f64 / f64::from(bundle.len().max(1)),
            complete: figures.is_some_and(|figures| figures.complete),
            members: members
                .iter()
                .map(|member| BundleMember {
                    node: member.node,
                    name: name(member.node),
                    held: member.held,
                    lacks: member.lacks,
                    leases: member.leases,
                })
                .collect(),
        }
    }
}
