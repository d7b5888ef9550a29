//! Tells volunteers whose owners leave it to control what to hold: collections the stable ones, hot files everybody else.
//!
//! The plan is `freshet_policy::placement`'s. A collection is a first directory of the repository. What was ordered, how
//! volunteers came and went, and the crowds that operators expect stand in `placement.json` in the state directory, so
//! that a restart orders nothing away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use freshet_api::balance::Balance;
use freshet_api::glob::Glob;
use freshet_api::heartbeat::{HOLD_PATTERNS_MAX, HoldOffer, HoldOrder};
use freshet_api::placement::{EXPECTATIONS_MAX, Expectation, HostView, PlacementView};
use freshet_api::{Bytes, BytesPerSec, FileId, NodeId};
use freshet_policy::Moment;
use freshet_policy::placement::{
    Availability, Collection, CollectionId, Host, HotFile, Order, PlacementTerms, plan,
};
use freshet_policy::selection::Standing;
use serde::{Deserialize, Serialize};

use crate::catalog::Snapshot;
use crate::clock::epoch_secs;
use crate::private_file;
use crate::routing::RoutingTable;
use crate::swarm::collection;

/// Who is told to hold what.
#[derive(Debug)]
pub struct Planner {
    file: PathBuf,
    state: Mutex<State>,
    orders: ArcSwap<HashMap<NodeId, HoldOrder>>,
}

#[derive(Debug, Default)]
struct State {
    kept: Kept,
    planned: Option<Moment>,
    stored: Option<Moment>,
    /// The repository's parts as of a state of the catalogue.
    parts: Parts,
    /// What is asked of each collection at its busiest.
    busiest: HashMap<CollectionId, f64>,
    view: Vec<HostView>,
}

/// As it is on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Kept {
    nodes: BTreeMap<NodeId, Told>,
    expected: Vec<Expectation>,
}

/// What is remembered of a volunteer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Told {
    history: Availability,
    /// By name.
    collections: BTreeSet<String>,
    /// Path by number.
    hot: BTreeMap<FileId, String>,
}

#[derive(Debug, Default)]
struct Parts {
    sequence: Option<u64>,
    expected: Vec<Expectation>,
    /// Bytes by name.
    collections: BTreeMap<String, u64>,
    /// Files of an expected crowd, with what is expected of each.
    awaited: HashMap<FileId, f64>,
}

/// Why an expectation was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// No pattern.
    #[error(transparent)]
    Pattern(#[from] freshet_api::glob::GlobError),
    /// Too late, or for nothing.
    #[error("expected a rate above 0 and a time that is to come")]
    Empty,
    /// Too many.
    #[error(
        "there are {EXPECTATIONS_MAX} expectations already, the most there may be; `ctl placement forget` one"
    )]
    Full,
    /// Nothing to forget.
    #[error("nothing is expected of {pattern:?}; `ctl placement` shows what is")]
    Unknown {
        /// What came.
        pattern: String,
    },
    /// The disk's word.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// In words.
        reason: String,
    },
}

impl Planner {
    /// With what was ordered before.
    ///
    /// # Errors
    /// When `placement.json` in `state` can't be read.
    pub fn open(state: &Path) -> Result<Self, PlacementError> {
        let file = state.join(FILE);
        let fail = |reason: String| PlacementError::File { file: file.clone(), reason };
        let kept: Kept = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(fail(error.to_string())),
        };
        let orders = ArcSwap::from_pointee(kept.orders());
        Ok(Self { file, state: Mutex::new(State { kept, ..State::default() }), orders })
    }

    /// What `node` is told to hold; `None` before anything was ordered.
    pub fn order(&self, node: NodeId) -> Option<HoldOrder> {
        self.orders.load().get(&node).cloned()
    }

    /// Everything that was ordered, and why.
    pub fn view(&self, on: bool) -> PlacementView {
        let state = self.lock();
        PlacementView { on, hosts: state.view.clone(), expected: state.kept.expected.clone() }
    }

    /// An operator expects a crowd; the same pattern again replaces what was expected of it. Blocks.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn expect(&self, expectation: Expectation, now_secs: u64) -> Result<(), PlacementError> {
        let _: Glob = expectation.pattern.parse()?;
        if expectation.rate.0 == 0 || expectation.until <= now_secs {
            return Err(PlacementError::Empty);
        }
        let mut state = self.lock();
        let expected = &mut state.kept.expected;
        expected.retain(|other| other.until > now_secs && other.pattern != expectation.pattern);
        if expected.len() >= EXPECTATIONS_MAX {
            return Err(PlacementError::Full);
        }
        expected.push(expectation);
        state.planned = None;
        self.store(&state.kept)
    }

    /// The crowd of `pattern` is not expected any more. Blocks.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn forget(&self, pattern: &str) -> Result<(), PlacementError> {
        let mut state = self.lock();
        let before = state.kept.expected.len();
        state.kept.expected.retain(|other| other.pattern != pattern);
        if state.kept.expected.len() == before {
            return Err(PlacementError::Unknown { pattern: pattern.chars().take(100).collect() });
        }
        state.planned = None;
        self.store(&state.kept)
    }

    /// Plans again when it is time. Blocks while something is written.
    pub(super) fn look(
        &self,
        table: &RoutingTable,
        balance: &Balance,
        demand: &HashMap<FileId, f64>,
        catalog: &Snapshot,
        now: Moment,
    ) {
        let mut state = self.lock();
        if state.planned.is_some_and(|planned| now.since(planned) < PLAN_EVERY) {
            return;
        }
        state.planned = Some(now);
        let now_secs = epoch_secs(std::time::SystemTime::now());
        state.kept.expected.retain(|expectation| expectation.until > now_secs);
        let offers: Vec<(Offering, Arc<HoldOffer>)> = table
            .routes()
            .filter_map(|route| {
                let offer = route.offer.clone()?;
                let here = !matches!(route.standing, Standing::Dead | Standing::Untrusted);
                let name = route.name.as_str().to_owned();
                Some((Offering { node: route.node, name, here, rate: route.rate }, offer))
            })
            .collect();
        for (offering, _) in &offers {
            state.kept.nodes.entry(offering.node).or_default().history.seen(offering.here, now);
        }
        let changed =
            if offers.is_empty() { false } else { state.plan(&offers, balance, demand, catalog, now) };
        // Histories are worth a write now and then, orders at once.
        let due = !offers.is_empty() && state.stored.is_none_or(|stored| now.since(stored) >= STORE_EVERY);
        if changed || due {
            state.stored = Some(now);
            if let Err(error) = self.store(&state.kept) {
                tracing::error!(%error, "what volunteers are told to hold is forgotten with a restart");
            }
        }
        if changed {
            self.orders.store(Arc::new(state.kept.orders()));
        }
    }

    fn store(&self, kept: &Kept) -> Result<(), PlacementError> {
        let fail = |reason: String| PlacementError::File { file: self.file.clone(), reason };
        let mut text = serde_json::to_vec(kept).map_err(|error| fail(error.to_string()))?;
        text.push(b'\n');
        private_file::write(&self.file, &text).map_err(|error| fail(error.to_string()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A volunteer whose owner leaves it to control.
struct Offering {
    node: NodeId,
    name: String,
    here: bool,
    rate: BytesPerSec,
}

impl State {
    /// Plans, and says whether anybody is told something else than before.
    fn plan(
        &mut self,
        offers: &[(Offering, Arc<HoldOffer>)],
        balance: &Balance,
        demand: &HashMap<FileId, f64>,
        catalog: &Snapshot,
        now: Moment,
    ) -> bool {
        if self.parts.sequence != Some(catalog.sequence()) || self.parts.expected != self.kept.expected {
            self.parts = Parts::of(catalog, &self.kept.expected);
        }
        let terms = PlacementTerms {
            copies_min: balance.placement_copies as usize,
            headroom: balance.placement_headroom,
            stable_availability: f64::from(balance.stable_percent) / 100.0,
            stable_session: Duration::from_secs(balance.stable_secs),
            hot_demand: balance.hot_rate,
            ..PlacementTerms::default()
        };
        let names: BTreeMap<CollectionId, String> =
            self.parts.collections.keys().map(|name| (identity(name), name.clone())).collect();
        let hosts: Vec<Host> =
            offers.iter().map(|(offering, offer)| self.host(offering, offer, &names, now)).collect();
        let mut changed = false;
        for (offering, _) in offers {
            // Who was told nothing yet is told so: nothing, beside what its owner keeps.
            changed |= !self.view.iter().any(|host| host.node == offering.node);
        }
        if balance.placement {
            let hot = self.hot(demand, catalog);
            let collections = self.collections(demand, catalog);
            for (node, order) in plan(&hosts, &collections, &hot, &terms) {
                changed |= self.follow(node, order, &names, catalog);
            }
        }
        let view = offers.iter().zip(&hosts).map(|((offering, offer), host)| {
            let told = self.kept.nodes.get(&offering.node).cloned().unwrap_or_default();
            HostView {
                node: offering.node,
                name: offering.name.clone(),
                stable: host.is_stable(&terms),
                available_percent: host.availability * 100.0,
                session_secs: host.session.as_secs(),
                space: offer.space,
                collections: told.collections.into_iter().collect(),
                hot: told.hot.into_values().collect(),
            }
        });
        self.view = view.collect();
        changed
    }

    fn host(
        &self,
        offering: &Offering,
        offer: &HoldOffer,
        names: &BTreeMap<CollectionId, String>,
        now: Moment,
    ) -> Host {
        let told = self.kept.nodes.get(&offering.node).cloned().unwrap_or_default();
        let kept_by_owner = |name: &str| offer.include.iter().any(|pattern| *pattern == pattern_of(name));
        let pinned = names.iter().filter(|(_, name)| kept_by_owner(name)).map(|(&id, _)| id).collect();
        Host {
            node: offering.node,
            availability: if offering.here { told.history.fraction(now) } else { 0.0 },
            session: told.history.session(now),
            uplink: offering.rate,
            space: offer.space,
            pinned,
            collections: told.collections.iter().map(|name| identity(name)).collect(),
            hot: told.hot.keys().copied().collect(),
        }
    }

    fn collections(&mut self, demand: &HashMap<FileId, f64>, catalog: &Snapshot) -> Vec<Collection> {
        let fade = (-PLAN_EVERY.as_secs_f64() / BUSIEST_FADES.as_secs_f64()).exp();
        self.busiest.values_mut().for_each(|rate| *rate *= fade);
        let mut asked: HashMap<CollectionId, f64> = HashMap::new();
        for (&file, rate) in demand {
            if let Some(entry) = catalog.by_id(file) {
                *asked.entry(identity(collection(entry.path.as_str()))).or_default() += rate;
            }
        }
        for (id, rate) in asked {
            let busiest = self.busiest.entry(id).or_default();
            *busiest = busiest.max(rate);
        }
        let collections = self.parts.collections.iter().map(|(name, &size)| {
            let id = identity(name);
            let demand = self.busiest.get(&id).copied().unwrap_or(0.0);
            Collection { id, size: Bytes(size), demand: BytesPerSec(demand as u64) }
        });
        collections.collect()
    }

    /// Files that are asked for, and those that are going to be.
    fn hot(&self, demand: &HashMap<FileId, f64>, catalog: &Snapshot) -> Vec<HotFile> {
        let held = self.kept.nodes.values().flat_map(|told| told.hot.keys());
        let files: BTreeSet<FileId> =
            demand.keys().chain(self.parts.awaited.keys()).chain(held).copied().collect();
        let hot = files.into_iter().filter_map(|file| {
            let entry = catalog.by_id(file).filter(|entry| entry.size >= HOT_BYTES_MIN && !entry.last)?;
            let path = entry.path.as_str();
            if !is_plain(path) {
                return None;
            }
            let asked = demand.get(&file).copied().unwrap_or(0.0);
            let rate = asked.max(self.parts.awaited.get(&file).copied().unwrap_or(0.0));
            Some(HotFile {
                file,
                collection: identity(collection(path)),
                size: Bytes(entry.size),
                demand: BytesPerSec(rate as u64),
            })
        });
        hot.collect()
    }

    fn follow(
        &mut self,
        node: NodeId,
        order: Order,
        names: &BTreeMap<CollectionId, String>,
        catalog: &Snapshot,
    ) -> bool {
        let told = self.kept.nodes.entry(node).or_default();
        if told.collections.len() + told.hot.len() >= HOLD_PATTERNS_MAX
            && matches!(order, Order::Hold(_) | Order::Fetch(_))
        {
            return false;
        }
        match order {
            Order::Hold(id) => names.get(&id).is_some_and(|name| told.collections.insert(name.clone())),
            Order::Release(id) => {
                let before = told.collections.len();
                told.collections.retain(|name| identity(name) != id);
                told.collections.len() != before
            }
            Order::Fetch(file) => catalog.by_id(file).is_some_and(|entry| {
                tracing::info!(%node, path = entry.path.as_str(), "is told to hold a hot file");
                told.hot.insert(file, entry.path.as_str().to_owned()).is_none()
            }),
            Order::Drop(file) => told.hot.remove(&file).is_some(),
        }
    }
}

impl Kept {
    fn orders(&self) -> HashMap<NodeId, HoldOrder> {
        let orders = self.nodes.iter().map(|(&node, told)| {
            let collections = told.collections.iter().map(|name| pattern_of(name));
            // From the root, so that a file there is not meant by its name alone.
            let hot = told.hot.values().map(|path| format!("/{path}"));
            (node, HoldOrder { include: collections.chain(hot).collect() })
        });
        orders.collect()
    }
}

impl Parts {
    fn of(catalog: &Snapshot, expected: &[Expectation]) -> Self {
        let mut collections: BTreeMap<String, u64> = BTreeMap::new();
        let globs: Vec<(Glob, f64)> = expected
            .iter()
            .filter_map(|expectation| Some((expectation.pattern.parse().ok()?, expectation.rate.0 as f64)))
            .collect();
        let mut awaited: Vec<Vec<(FileId, u64)>> = vec![Vec::new(); globs.len()];
        for entry in catalog.iter() {
            let path = entry.path.as_str();
            let name = collection(path);
            match collections.get_mut(name) {
                Some(bytes) => *bytes += entry.size,
                None if !name.is_empty() && is_plain(name) => {
                    collections.insert(name.to_owned(), entry.size);
                }
                None => {}
            }
            for ((glob, _), files) in globs.iter().zip(&mut awaited) {
                if glob.matches(path) {
                    files.push((entry.file, entry.size));
                }
            }
        }
        let mut rates: HashMap<FileId, f64> = HashMap::new();
        for ((_, rate), files) in globs.iter().zip(awaited) {
            // A crowd takes files in proportion to nothing that is known; large ones are what it costs.
            let bytes: u64 = files.iter().map(|(_, size)| size).sum();
            for (file, size) in files {
                *rates.entry(file).or_default() += rate * size as f64 / bytes.max(1) as f64;
            }
        }
        Self { sequence: Some(catalog.sequence()), expected: expected.to_vec(), collections, awaited: rates }
    }
}

/// The number by which a collection is planned; the same after every restart.
fn identity(name: &str) -> CollectionId {
    let hash = blake3::hash(name.as_bytes());
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&hash.as_bytes()[..4]);
    CollectionId(u32::from_le_bytes(bytes))
}

fn pattern_of(name: &str) -> String {
    format!("{name}/**")
}

/// Whether a path means only itself as a pattern.
fn is_plain(path: &str) -> bool {
    !path.contains(['*', '?', '[', ']', '{', '}'])
}

const FILE: &str = "placement.json";
const PLAN_EVERY: Duration = Duration::from_secs(5);
const STORE_EVERY: Duration = Duration::from_secs(600);
/// How long a busy hour counts.
const BUSIEST_FADES: Duration = Duration::from_secs(7 * 86_400);
/// Smaller ones the origin sends itself.
const HOT_BYTES_MIN: u64 = 64 << 10;
