//! Which volunteer holds what: collections for the stable ones, hot new files for those that come and go.
//!
//! Collections are placed by weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): a node
//! that joins or leaves moves only what it must. Hot files go where space and uplink are spare, before
//! the crowd when a release is announced and during it as demand is seen, and are dropped when the
//! crowd is over. What comes out is orders; carrying them out is not done here.

mod availability;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec, FileId, NodeId};
use serde::{Deserialize, Serialize};

pub use self::availability::Availability;
use crate::draw::mix;

/// A part of the repository that is mirrored as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CollectionId(pub u32);

/// A volunteer as placement sees it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Who.
    pub node: NodeId,
    /// Fraction of the time it is there.
    pub availability: f64,
    /// How long it usually stays once it has come.
    pub session: Duration,
    /// What it can deliver.
    pub uplink: BytesPerSec,
    /// Space it gives in all.
    pub space: Bytes,
    /// Collections its owner asked for; they are held whatever this plan thinks.
    pub pinned: Vec<CollectionId>,
    /// Collections it was ordered to hold.
    pub collections: BTreeSet<CollectionId>,
    /// Hot files it was ordered to hold, outside its collections.
    pub hot: BTreeSet<FileId>,
}

impl Host {
    /// Whether it is there so much that a collection on it pays.
    pub fn is_stable(&self, terms: &PlacementTerms) -> bool {
        self.availability >= terms.stable_availability && self.session >= terms.stable_session
    }
}

/// A collection and what is asked of it.
#[derive(Clone, Copy, Debug)]
pub struct Collection {
    /// Which.
    pub id: CollectionId,
    /// Its size.
    pub size: Bytes,
    /// Bytes per second that customers take of it, at the busiest hour.
    pub demand: BytesPerSec,
}

/// A file that is much asked for, or is going to be.
#[derive(Clone, Copy, Debug)]
pub struct HotFile {
    /// Which.
    pub file: FileId,
    /// The collection it belongs to.
    pub collection: CollectionId,
    /// Its size.
    pub size: Bytes,
    /// Bytes per second that are asked of it now, or are expected at its release.
    pub demand: BytesPerSec,
}

/// What the operators want of placement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlacementTerms {
    /// Every collection is on at least this many stable volunteers, if there are so many.
    pub copies_min: usize,
    /// Uplink of a collection's holders, in multiples of its demand.
    pub headroom: f64,
    /// A volunteer that is there for this part of the time may be stable.
    pub stable_availability: f64,
    /// And stays this long.
    pub stable_session: Duration,
    /// A hot file is dropped when its demand falls below this part of what made it hot, and a copy of it when the demand
    /// falls below this part of what the copies that were made can serve.
    pub cooled_part: f64,
    /// Below this demand a file is not hot.
    pub hot_demand: BytesPerSec,
}

impl Default for PlacementTerms {
    fn default() -> PlacementTerms {
        PlacementTerms {
            copies_min: 3,
            headroom: 2.0,
            stable_availability: 0.95,
            stable_session: Duration::from_secs(24 * 3600),
            cooled_part: 0.25,
            hot_demand: BytesPerSec(1_000_000),
        }
    }
}

/// What a volunteer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Mirror this collection.
    Hold(CollectionId),
    /// Mirror it no longer.
    Release(CollectionId),
    /// Fetch this file, it is going to be asked for.
    Fetch(FileId),
    /// Drop this file, its crowd is over.
    Drop(FileId),
}

/// Plans who holds what and returns the orders that lead there from what hosts hold now.
///
/// The same hosts, collections and files give the same plan; applying its orders makes the next plan
/// empty.
pub fn plan(
    hosts: &[Host],
    collections: &[Collection],
    hot: &[HotFile],
    terms: &PlacementTerms,
) -> Vec<(NodeId, Order)> {
    let sizes: BTreeMap<CollectionId, u64> = collections.iter().map(|c| (c.id, c.size.0)).collect();
    let mut rooms: Vec<Room> = hosts.iter().map(|host| Room::new(host, &sizes)).collect();
    place_collections(hosts, &mut rooms, collections, terms);
    place_hot(hosts, &mut rooms, hot, terms);
    let mut orders = Vec::new();
    for (host, room) in hosts.iter().zip(&rooms) {
        let order = |order| (host.node, order);
        // What goes is named first: it makes the room for what comes.
        orders.extend(host.collections.difference(&room.collections).map(|&id| order(Order::Release(id))));
        orders.extend(host.hot.difference(&room.hot).map(|&file| order(Order::Drop(file))));
        orders.extend(room.collections.difference(&host.collections).map(|&id| order(Order::Hold(id))));
        orders.extend(room.hot.difference(&host.hot).map(|&file| order(Order::Fetch(file))));
    }
    orders
}

/// What a host is going to hold, and what it has left.
struct Room {
    collections: BTreeSet<CollectionId>,
    hot: BTreeSet<FileId>,
    space: u64,
    uplink: f64,
}

impl Room {
    fn new(host: &Host, sizes: &BTreeMap<CollectionId, u64>) -> Room {
        let collections: BTreeSet<_> = host.pinned.iter().copied().collect();
        let taken: u64 = collections.iter().map(|id| sizes.get(id).copied().unwrap_or(0)).sum();
        Room {
            collections,
            hot: BTreeSet::new(),
            space: host.space.0.saturating_sub(taken),
            uplink: host.uplink.0 as f64 * host.availability.clamp(0.0, 1.0),
        }
    }
}

fn place_collections(hosts: &[Host], rooms: &mut [Room], collections: &[Collection], terms: &PlacementTerms) {
    let mut order: Vec<&Collection> = collections.iter().collect();
    // The most asked per byte of space first; ties by id, so that the plan is one.
    order.sort_by(|a, b| {
        density(b.demand, b.size).total_cmp(&density(a.demand, a.size)).then(a.id.cmp(&b.id))
    });
    for collection in order {
        let mut wanted = collection.demand.0 as f64 * terms.headroom;
        let mut copies = 0;
        for (host, room) in hosts.iter().zip(rooms.iter_mut()) {
            if room.collections.contains(&collection.id) && host.is_stable(terms) {
                wanted -= take(room, wanted);
                copies += 1;
            }
        }
        let mut ranked: Vec<usize> =
            (0..hosts.len()).filter(|&index| hosts[index].is_stable(terms)).collect();
        ranked.sort_by(|&a, &b| {
            let score = |index: usize| rendezvous(&hosts[index], u64::from(collection.id.0));
            score(b).total_cmp(&score(a)).then(hosts[a].node.cmp(&hosts[b].node))
        });
        for index in ranked {
            if copies >= terms.copies_min && wanted <= 0.0 {
                break;
            }
            let room = &mut rooms[index];
            if room.collections.contains(&collection.id) || room.space < collection.size.0 {
                continue;
            }
            room.space -= collection.size.0;
            room.collections.insert(collection.id);
            wanted -= take(room, wanted);
            copies += 1;
        }
    }
}

/// Hot files share uplinks in proportion to their demand where there is not enough for all: otherwise the first would
/// take everything, and customers of the others would find nobody.
fn place_hot(hosts: &[Host], rooms: &mut [Room], hot: &[HotFile], terms: &PlacementTerms) {
    let mut order: Vec<&HotFile> = hot.iter().filter(|file| is_hot(hosts, file, terms)).collect();
    order.sort_by(|a, b| {
        density(b.demand, b.size).total_cmp(&density(a.demand, a.size)).then(a.file.cmp(&b.file))
    });
    let wanted = |file: &HotFile| file.demand.0 as f64 * terms.headroom;
    let asked: f64 = order.iter().map(|file| wanted(file)).sum();
    let there: f64 = rooms.iter().map(|room| room.uplink).sum();
    let mut booked = vec![0.0; order.len()];
    // What is left because others found no space is for whoever can use it.
    for part in [(there / asked.max(1.0)).min(1.0), 1.0] {
        for (file, booked) in order.iter().zip(&mut booked) {
            *booked += place_file(hosts, rooms, file, wanted(file) * part - *booked);
        }
    }
    for file in order {
        keep_copies(hosts, rooms, file, wanted(file) / terms.cooled_part.clamp(0.01, 1.0));
    }
}

/// Keeps copies that were made, up to so much uplink in all: demand comes and goes, and a copy that is dropped for the
/// moment has to come over the same uplinks once more.
fn keep_copies(hosts: &[Host], rooms: &mut [Room], file: &HotFile, most: f64) {
    let uplink = |host: &Host| host.uplink.0 as f64 * host.availability.clamp(0.0, 1.0);
    let mut kept = 0.0;
    for (host, room) in hosts.iter().zip(rooms.iter()) {
        if room.hot.contains(&file.file) || room.collections.contains(&file.collection) {
            kept += uplink(host);
        }
    }
    for (host, room) in hosts.iter().zip(rooms) {
        let has = room.hot.contains(&file.file) || !host.hot.contains(&file.file);
        if has || room.space < file.size.0 || kept + uplink(host) > most {
            continue;
        }
        kept += uplink(host);
        room.space -= file.size.0;
        room.hot.insert(file.file);
    }
}

/// Whether a file is asked for so much that it is placed by itself.
fn is_hot(hosts: &[Host], file: &HotFile, terms: &PlacementTerms) -> bool {
    let held = hosts.iter().any(|host| host.hot.contains(&file.file));
    // Hysteresis: what is already out stays until its demand has fallen well below the threshold.
    let threshold = terms.hot_demand.0 as f64 * if held { terms.cooled_part } else { 1.0 };
    file.demand.0 as f64 >= threshold
}

/// Books up to `wanted` of uplinks for a file, with as many more copies as that takes; returns how much was found.
fn place_file(hosts: &[Host], rooms: &mut [Room], file: &HotFile, wanted: f64) -> f64 {
    let mut left = wanted;
    let has = |room: &Room| room.collections.contains(&file.collection) || room.hot.contains(&file.file);
    for room in rooms.iter_mut().filter(|room| has(room)) {
        left -= take(room, left);
    }
    let mut ranked: Vec<usize> = (0..hosts.len()).collect();
    ranked.sort_by(|&a, &b| {
        let holds = |index: usize| hosts[index].hot.contains(&file.file);
        let score = |index: usize| rendezvous(&hosts[index], u64::from(file.file.0) << 32);
        // Whoever has it keeps it; a copy made is capacity.
        holds(b).cmp(&holds(a)).then(score(b).total_cmp(&score(a))).then(hosts[a].node.cmp(&hosts[b].node))
    });
    for index in ranked {
        if left < LITTLE {
            break;
        }
        let room = &mut rooms[index];
        if has(room) || room.space < file.size.0 || room.uplink < LITTLE {
            continue;
        }
        room.space -= file.size.0;
        room.hot.insert(file.file);
        left -= take(room, left);
    }
    wanted - left
}

/// Books up to `wanted` of a room's uplink.
fn take(room: &mut Room, wanted: f64) -> f64 {
    let taken = room.uplink.min(wanted.max(0.0));
    room.uplink -= taken;
    taken
}

fn density(demand: BytesPerSec, size: Bytes) -> f64 {
    demand.0 as f64 / size.0.max(1) as f64
}

/// Rank of a host for a thing: higher is better; in proportion to its dependable uplink.
fn rendezvous(host: &Host, thing: u64) -> f64 {
    let hash = mix(mix(u64::from(host.node.0)) ^ mix(thing.wrapping_add(0x5bd1_e995)));
    let unit = (hash >> 11) as f64 / (1u64 << 53) as f64;
    let weight = (host.uplink.0 as f64 * host.availability.clamp(0.0, 1.0)).max(1.0);
    -weight / unit.max(f64::MIN_POSITIVE).ln()
}

/// Bytes per second for which no copy is made: what sums of fractions leave over.
const LITTLE: f64 = 1.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAYS: Duration = Duration::from_secs(7 * 86_400);
    const GB: u64 = 1_000_000_000;

    fn host(node: u32, availability: f64, session: Duration) -> Host {
        Host {
            node: NodeId(node),
            availability,
            session,
            uplink: BytesPerSec(10_000_000),
            space: Bytes(100 * GB),
            pinned: Vec::new(),
            collections: BTreeSet::new(),
            hot: BTreeSet::new(),
        }
    }

    fn stable(node: u32) -> Host {
        host(node, 0.99, DAYS)
    }

    fn volatile(node: u32) -> Host {
        host(node, 0.4, Duration::from_secs(3600))
    }

    fn collection(id: u32, size: u64, demand: u64) -> Collection {
        Collection { id: CollectionId(id), size: Bytes(size), demand: BytesPerSec(demand) }
    }

    fn hot(file: u32, size: u64, demand: u64) -> HotFile {
        let collection = CollectionId(1);
        HotFile { file: FileId(file), collection, size: Bytes(size), demand: BytesPerSec(demand) }
    }

    fn apply(hosts: &mut [Host], orders: &[(NodeId, Order)]) {
        for (node, order) in orders {
            let host = hosts.iter_mut().find(|host| host.node == *node).unwrap();
            match order {
                Order::Hold(id) => assert!(host.collections.insert(*id)),
                Order::Release(id) => assert!(host.collections.remove(id)),
                Order::Fetch(file) => assert!(host.hot.insert(*file)),
                Order::Drop(file) => assert!(host.hot.remove(file)),
            }
        }
    }

    #[test]
    fn collections_go_to_the_stable_and_hot_files_to_all() {
        let mut hosts: Vec<_> = (1..=5).map(stable).chain((6..=15).map(volatile)).collect();
        let collections = [collection(1, 20 * GB, 1_000_000)];
        let orders = plan(&hosts, &collections, &[], &PlacementTerms::default());
        assert_eq!(orders.len(), 3);
        assert!(orders.iter().all(|(node, _)| node.0 <= 5));
        apply(&mut hosts, &orders);
        let crowd = [hot(9, 4 * GB, 60_000_000)];
        let orders = plan(&hosts, &collections, &crowd, &PlacementTerms::default());
        assert!(orders.len() >= 8, "{orders:?}");
        assert!(orders.iter().any(|(node, _)| node.0 > 5));
        apply(&mut hosts, &orders);
        assert!(hosts.iter().all(|host| host.collections.is_empty() || host.hot.is_empty()));
    }

    #[test]
    fn a_crowd_that_ebbs_is_kept_a_while_and_then_dropped() {
        let mut hosts: Vec<_> = (1..=10).map(volatile).collect();
        let terms = PlacementTerms::default();
        let with = |hosts: &[Host], demand| plan(hosts, &[], &[hot(9, GB, demand)], &terms);
        assert!(with(&hosts, 900_000).is_empty(), "not hot");
        let orders = with(&hosts, 3_000_000);
        apply(&mut hosts, &orders);
        assert!(!orders.is_empty());
        let fewer = with(&hosts, 400_000);
        assert!(fewer.iter().all(|(_, order)| matches!(order, Order::Drop(_))) && fewer.len() < orders.len());
        apply(&mut hosts, &fewer);
        let last = with(&hosts, 100_000);
        apply(&mut hosts, &last);
        assert!(hosts.iter().all(|host| host.hot.is_empty()));
        assert!(plan(&hosts, &[], &[], &terms).is_empty());
    }

    #[test]
    fn a_demand_that_comes_and_goes_moves_no_copies() {
        let mut hosts: Vec<_> = (1..=20).map(volatile).collect();
        let terms = PlacementTerms::default();
        let with = |hosts: &[Host], demand| plan(hosts, &[], &[hot(9, GB, demand)], &terms);
        let first = with(&hosts, 20_000_000);
        assert!(first.len() >= 5, "{first:?}");
        apply(&mut hosts, &first);
        for demand in [14_000_000, 20_000_000, 11_000_000, 19_000_000] {
            assert_eq!(with(&hosts, demand), [], "{demand}");
        }
        assert!(with(&hosts, 2_000_000).iter().all(|(_, order)| matches!(order, Order::Drop(_))));
        assert_ne!(with(&hosts, 2_000_000), []);
    }

    #[test]
    fn hot_files_share_uplinks_by_demand_where_there_is_not_enough() {
        let hosts: Vec<_> = (1..=30).map(volatile).collect();
        let there: u64 = hosts.iter().map(|host| host.uplink.0).sum();
        // Each alone would take everything; the small one comes first by its density.
        let files = [hot(1, GB, there), hot(2, 8 * GB, there), hot(3, 8 * GB, 3 * there)];
        let orders = plan(&hosts, &[], &files, &PlacementTerms::default());
        let copies = |file| orders.iter().filter(|(_, order)| *order == Order::Fetch(FileId(file))).count();
        // A fifth, a fifth and three fifths of thirty; a host whose uplink two share counts for both.
        assert!((5..=8).contains(&copies(1)) && (5..=8).contains(&copies(2)), "{orders:?}");
        assert!((17..=20).contains(&copies(3)), "{orders:?}");
    }

    #[test]
    fn what_has_no_space_leaves_its_part_to_the_others() {
        let hosts: Vec<_> = (1..=10).map(|node| Host { space: Bytes(5 * GB), ..volatile(node) }).collect();
        let files = [hot(1, GB, 1_000_000_000), hot(2, 8 * GB, 1_000_000_000)];
        let orders = plan(&hosts, &[], &files, &PlacementTerms::default());
        assert_eq!(orders.len(), 10);
        assert!(orders.iter().all(|(_, order)| *order == Order::Fetch(FileId(1))));
    }

    #[test]
    fn what_owners_pin_is_held_and_counted() {
        let mut hosts: Vec<_> = (1..=4).map(stable).collect();
        hosts[3].pinned = vec![CollectionId(1)];
        let orders = plan(&hosts, &[collection(1, GB, 0)], &[], &PlacementTerms::default());
        assert_eq!(orders.len(), 3);
        assert!(orders.contains(&(NodeId(4), Order::Hold(CollectionId(1)))));
    }

    #[test]
    fn a_node_lost_moves_only_what_it_held() {
        let mut hosts: Vec<_> = (1..=20).map(stable).collect();
        let collections: Vec<_> = (0..30).map(|id| collection(id, GB, 0)).collect();
        let terms = PlacementTerms::default();
        let orders = plan(&hosts, &collections, &[], &terms);
        apply(&mut hosts, &orders);
        let lost = hosts.remove(7);
        let orders = plan(&hosts, &collections, &[], &terms);
        assert_eq!(orders.len(), lost.collections.len());
        assert!(orders.iter().all(|(_, order)| matches!(order, Order::Hold(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Nobody is given more than fits, and a plan once carried out asks for nothing more.
        #[test]
        fn plans_fit_and_settle(
            hosts in proptest::collection::vec((any::<bool>(), 1u64..50, 1u64..200), 1..20),
            collections in proptest::collection::vec((1u64..20, 0u64..50_000_000), 0..10),
            files in proptest::collection::vec((1u64..8, 0u64..80_000_000), 0..10),
        ) {
            let mut hosts: Vec<Host> = hosts.into_iter().enumerate().map(|(n, (is_stable, space, mbit))| {
                let base = if is_stable { stable(n as u32 + 1) } else { volatile(n as u32 + 1) };
                Host { space: Bytes(space * GB), uplink: BytesPerSec(mbit * 125_000), ..base }
            }).collect();
            let collections: Vec<_> = collections.into_iter().enumerate()
                .map(|(n, (size, demand))| collection(n as u32, size * GB, demand)).collect();
            let files: Vec<_> = files.into_iter().enumerate()
                .map(|(n, (size, demand))| hot(n as u32, size * GB, demand)).collect();
            let terms = PlacementTerms::default();
            let orders = plan(&hosts, &collections, &files, &terms);
            apply(&mut hosts, &orders);
            for host in &hosts {
                let whole: u64 = host.collections.iter().map(|id| collections[id.0 as usize].size.0).sum();
                let single: u64 = host.hot.iter().map(|file| files[file.0 as usize].size.0).sum();
                prop_assert!(whole + single <= host.space.0);
                prop_assert!(host.collections.is_empty() || host.is_stable(&terms));
            }
            let again = plan(&hosts, &collections, &files, &terms);
            prop_assert!(again.is_empty(), "{again:?}");
        }
    }
}
