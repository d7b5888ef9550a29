//! How mirrors become current: by rsync from the origin, or as a swarm under the real lease policy.

mod rsync;
mod swarm;

use std::collections::BTreeSet;

use freshet_policy::arbiter::Turns;
use freshet_policy::draw::{Draw, mix};
use freshet_policy::placement::{self, CollectionId, Host, HotFile, Order, PlacementTerms};

use freshet_api::{Bytes, BytesPerSec, FileId, NodeId};

use self::rsync::Rsync;
use self::swarm::Bundle;
use super::node::Node;
use super::scenario::{Scenario, Sync};
use super::view::View;
use super::world::{What, World};

/// What is released, and who has it.
#[derive(Debug)]
pub(super) struct Mirrors {
    /// Holders of the repository that was there from the start.
    base: Vec<u32>,
    releases: Vec<Release>,
    pub(super) bundles: Vec<Bundle>,
    rsync: Rsync,
    /// Bytes released since the start, for those who fetch what is new once a day.
    released: f64,
    usable: Option<(f64, Option<u32>, f64)>,
    turns: Turns,
    /// Whose turn it is to copy from peers; everybody's when there are none.
    in_turn: Option<BTreeSet<NodeId>>,
    seed: u64,
}

#[derive(Debug)]
struct Release {
    size: f64,
    holders: Vec<u32>,
    bundle: Option<usize>,
    /// Bytes asked for since placement was planned last, and per second before that.
    asked: f64,
    demand: f64,
    is_published: bool,
    is_hot: bool,
}

impl Mirrors {
    pub(super) fn new(scenario: &Scenario, nodes: &[Node]) -> Mirrors {
        let whole = nodes.iter().enumerate().skip(1).filter(|(_, node)| node.whole_mirror);
        let releases = scenario
            .releases
            .iter()
            .map(|release| Release {
                size: release.size.0 as f64,
                holders: Vec::new(),
                bundle: None,
                asked: 0.0,
                // Before it is out, the crowd that is expected.
                demand: f64::from(release.crowd) * release.size.0 as f64 / release.crowd_ebb_seconds,
                is_published: false,
                is_hot: release.crowd > 0,
            })
            .collect();
        Mirrors {
            base: whole.map(|(node, _)| node as u32).collect(),
            releases,
            bundles: Vec::new(),
            rsync: Rsync::new(scenario, nodes.len()),
            released: 0.0,
            usable: None,
            turns: Turns::default(),
            in_turn: None,
            seed: mix(nodes.len() as u64),
        }
    }

    /// Who has the files of `release`, or of the repository.
    pub(super) fn holders(&self, release: Option<u32>) -> &[u32] {
        match release.and_then(|release| self.releases.get(release as usize)) {
            Some(release) => &release.holders,
            None => &self.base,
        }
    }

    /// What those who are there and have the files deliver together; looked at twice a second.
    pub(super) fn usable_rate(&mut self, views: &[View], release: Option<u32>, now: f64) -> f64 {
        if let Some((at, of, rate)) = self.usable
            && of == release
            && now - at < 0.5
        {
            return rate;
        }
        let holders = self.holders(release).iter().map(|&node| &views[node as usize]);
        let rate = holders.filter(|view| view.is_up()).map(View::rate).sum();
        self.usable = Some((now, release, rate));
        rate
    }

    /// A customer asked for `size` bytes.
    pub(super) fn asked(&mut self, release: Option<u32>, size: f64) {
        if let Some(release) = release.and_then(|release| self.releases.get_mut(release as usize)) {
            release.asked += size;
        }
    }

    /// When `node` syncs for the first time, if it does so by the day.
    pub(super) fn first_daily(scenario: &Scenario, node: u32, draw: &mut Draw) -> Option<f64> {
        match scenario.sync {
            Sync::Rsync { start_spread_seconds, .. } => Some(draw.unit() * start_spread_seconds),
            // One bundle a day for all; the first volunteer stands for it.
            Sync::Swarm { daily_bytes, .. } if daily_bytes.0 > 0 && node == 1 => Some(0.0),
            _ => None,
        }
    }

    /// The part of a day's changes that a day differs from the median by.
    fn day_factor(&self, now: f64, sigma: f64) -> f64 {
        let mut draw = Draw::new(mix(self.seed ^ (now / 86_400.0) as u64));
        (sigma * crate::trace::normal(&mut draw)).exp()
    }

    fn completed(&mut self, release: Option<u32>, node: u32) {
        if let Some(release) = release.and_then(|release| self.releases.get_mut(release as usize))
            && !release.holders.contains(&node)
        {
            release.holders.push(node);
        }
    }

    fn dropped(&mut self, release: u32, node: u32) {
        self.releases[release as usize].holders.retain(|&holder| holder != node);
    }
}

impl World<'_> {
    /// A trace told of a release of `size` bytes.
    pub(super) fn published(&mut self, size: f64) {
        self.mirrors.releases.push(Release {
            size,
            holders: Vec::new(),
            bundle: None,
            asked: 0.0,
            demand: 0.0,
            is_published: true,
            is_hot: false,
        });
        self.mirrors.released += size;
        self.announce(self.mirrors.releases.len() as u32 - 1);
    }

    /// Mirrors may fetch a release from now on.
    pub(super) fn announce(&mut self, release: u32) {
        if !self.is_swarm() {
            return;
        }
        let members: Vec<u32> = self.mirrors.base.clone();
        let bundle = self.start_bundle(Some(release), self.mirrors.releases[release as usize].size, members);
        self.mirrors.releases[release as usize].bundle = Some(bundle);
        if self.nodes.iter().any(|node| !node.whole_mirror) {
            self.place();
        }
    }

    /// Time for a daily sync.
    pub(super) fn daily(&mut self, node: u32) {
        match self.scenario.sync {
            Sync::Rsync { .. } => self.rsync_starts(node),
            Sync::Swarm { daily_bytes, daily_sigma, .. } => {
                let size = daily_bytes.0 as f64 * self.mirrors.day_factor(self.now, daily_sigma);
                let members = self.mirrors.base.clone();
                self.start_bundle(None, size, members);
            }
            Sync::None => return,
        }
        self.plan(self.now + 86_400.0, What::Daily(node));
    }

    /// Delivery's and sync's shares of a node's uplink, by the arbiter. At the origin it has no say, whatever the law:
    /// control gives the sync port the operator's rate there, which here is the whole uplink, and customers the rest.
    pub(super) fn balance(&mut self, node: u32) {
        let Some(work) = self.mirrors.work(node, self) else { return };
        let now = self.moment();
        let share = if node == 0 {
            ORIGIN_DELIVERY_SHARE
        } else {
            self.arbiters[node as usize].share(&work, &self.targets, now)
        };
        self.advance(node);
        let uplink = &mut self.nodes[node as usize].uplink;
        if (uplink.delivery_share() - f64::from(share)).abs() > SHARE_STEP {
            uplink.set(uplink.capacity(), f64::from(share));
            self.reshare(node);
        }
    }

    /// Placement is planned anew, now and then.
    pub(super) fn placement(&mut self) {
        for release in &mut self.mirrors.releases {
            if release.is_published {
                let seen = release.asked / PLACEMENT_SECONDS;
                release.demand += (seen - release.demand) * 0.3;
            }
            release.asked = 0.0;
        }
        for (number, release) in self.scenario.releases.iter().enumerate() {
            self.mirrors.releases[number].is_published = release.at_seconds <= self.now;
        }
        self.place();
        self.plan(self.now + PLACEMENT_SECONDS, What::Placement);
    }

    fn place(&mut self) {
        let moment = self.moment();
        let hosts: Vec<Host> = (1..self.nodes.len())
            .filter(|&node| self.nodes[node].is_up || self.nodes[node].whole_mirror)
            .map(|number| {
                let node = &self.nodes[number];
                Host {
                    node: NodeId(number as u32),
                    availability: if node.churn.is_some() { node.history.fraction(moment) } else { 1.0 },
                    session: node.history.session(moment),
                    uplink: BytesPerSec(node.donation as u64),
                    space: Bytes(SPACE_BYTES),
                    pinned: if node.whole_mirror { vec![REPOSITORY] } else { Vec::new() },
                    collections: if node.whole_mirror { [REPOSITORY].into() } else { Default::default() },
                    hot: node.ordered.iter().map(|&release| FileId(release)).collect(),
                }
            })
            .collect();
        let hot: Vec<HotFile> = self
            .mirrors
            .releases
            .iter()
            .enumerate()
            .filter(|(_, release)| release.bundle.is_some() && release.is_hot)
            .map(|(number, release)| HotFile {
                file: FileId(number as u32),
                collection: REPOSITORY,
                size: Bytes(release.size as u64),
                demand: BytesPerSec(release.demand as u64),
            })
            .collect();
        let orders = placement::plan(&hosts, &[], &hot, &PlacementTerms::default());
        for (node, order) in orders {
            match order {
                Order::Fetch(file) => {
                    self.nodes[node.0 as usize].ordered.insert(file.0);
                    if let Some(bundle) = self.mirrors.releases[file.0 as usize].bundle {
                        self.join(bundle, node.0);
                    }
                }
                Order::Drop(file) => {
                    self.nodes[node.0 as usize].ordered.remove(&file.0);
                    self.nodes[node.0 as usize].releases.remove(&file.0);
                    self.mirrors.dropped(file.0, node.0);
                    if let Some(bundle) = self.mirrors.releases[file.0 as usize].bundle {
                        self.quit(bundle, node.0);
                    }
                }
                // No collections are offered, so none is ordered.
                Order::Hold(_) | Order::Release(_) => {}
            }
        }
    }
}

/// Of the origin's uplink while it seeds: its customers go on, slowly.
const ORIGIN_DELIVERY_SHARE: f32 = 0.02;
const REPOSITORY: CollectionId = CollectionId(0);
const SPACE_BYTES: u64 = 200_000_000_000;
const PLACEMENT_SECONDS: f64 = 10.0;
/// A change of a share by less is not sent out.
const SHARE_STEP: f64 = 0.005;
