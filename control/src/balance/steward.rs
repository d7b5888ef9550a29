//! Looks every second at how volunteers and mirrors stand, and works out what follows from the knobs: how each
//! volunteer's rate is shared between delivery and sync, whose turn it is to copy, and at what rate room for customers
//! appears.
//!
//! The laws are `freshet_policy::arbiter`'s; here is what they are told. Heartbeat replies carry what came of it, by what
//! is owed to customers at that moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use freshet_api::balance::{ArbiterRule, Balance, ShareView};
use freshet_api::{Bytes, BytesPerSec, FileId, NodeId};
use freshet_policy::Moment;
use freshet_policy::arbiter::{
    Arbiter, DeliveryFirst, EqualLateness, FixedSplit, Flow, ShortestRemaining, SyncFirst, Targets, Turns,
    Waiting, Work, contended, urgency,
};
use freshet_policy::reservation::ReservationLedger;
use freshet_policy::selection::Standing;

use super::{Desk, Planner};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::front_door::FrontDoor;
use crate::registry::Registry;
use crate::routing::{Route, Routing, RoutingTable};
use crate::swarm::Swarm;

/// The rooms that it looks into.
pub struct StewardRooms {
    /// The knobs.
    pub desk: Arc<Desk>,
    /// Who may take part.
    pub registry: Arc<dyn Registry>,
    /// What the front door sees.
    pub routing: Arc<Routing>,
    /// What was promised to customers.
    pub reservations: Arc<ReservationLedger>,
    /// What they ask for.
    pub front_door: Arc<FrontDoor>,
    /// The files.
    pub catalog: Arc<Catalog>,
    /// Who still lacks something.
    pub swarm: Arc<Swarm>,
    /// Who is told to hold what.
    pub planner: Planner,
    /// This process's clock.
    pub clock: Clock,
}

/// Keeps the balance.
pub struct Steward {
    rooms: StewardRooms,
    laws: Mutex<Laws>,
    shares: ArcSwap<HashMap<NodeId, Share>>,
}

/// What was decided for one volunteer, and by which numbers.
#[derive(Clone, Copy, Debug)]
struct Share {
    delivery: f32,
    work: Work,
    targets: Targets,
}

#[derive(Debug, Default)]
struct Laws {
    rule: Option<(ArbiterRule, u32)>,
    by_node: HashMap<NodeId, Box<dyn Arbiter>>,
    /// Since when a mirror has not had what was released.
    behind: HashMap<NodeId, Moment>,
    turns: Turns,
}

/// What mirrors lack.
#[derive(Clone, Copy, Debug, Default)]
struct Lack {
    bytes: u64,
    age: Duration,
    urgency: f32,
    /// What all that could send it can send.
    senders: u64,
}

impl Steward {
    /// With nothing decided yet.
    pub fn new(rooms: StewardRooms) -> Arc<Self> {
        Arc::new(Self { rooms, laws: Mutex::default(), shares: ArcSwap::default() })
    }

    /// Until the task is aborted.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let steward = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || steward.look()).await {
                tracing::error!(%error, "shares and placement stay as they were");
            }
        }
    }

    /// Delivery's share of `node`'s rate in thousandths, if anybody has a say: by the law, and half while nothing is to be
    /// shared, so that neither is at the mercy of how many connections the other has until the law is heard.
    pub fn delivery_permille(&self, node: NodeId) -> Option<u16> {
        if self.rooms.desk.rules().balance.arbiter == ArbiterRule::Off {
            return None;
        }
        let Some(share) = self.shares.load().get(&node).copied() else { return Some(HALF) };
        let delivery = self.share_now(node, &share).unwrap_or(share.delivery);
        Some((f64::from(delivery) * 1e3).round().clamp(0.0, 1e3) as u16)
    }

    /// Whether small downloads go before large ones, at all volunteers and at all times.
    pub fn puts_small_first(&self) -> bool {
        let rules = self.rooms.desk.rules();
        rules.balance.arbiter != ArbiterRule::Off && law(&rules.balance).puts_small_first()
    }

    /// What the law says by what is owed now; `None` while everybody's share is being worked out anyhow.
    fn share_now(&self, node: NodeId, last: &Share) -> Option<f32> {
        let mut laws = self.laws.try_lock().ok()?;
        let law = laws.by_node.get_mut(&node)?;
        let work = Work { delivery_backlog: self.rooms.reservations.outstanding(node), ..last.work };
        Some(law.share(&work, &last.targets, self.rooms.clock.now()))
    }

    /// Who is told to hold what.
    pub fn planner(&self) -> &Planner {
        &self.rooms.planner
    }

    /// Every share with the numbers that decided, by name.
    pub fn view(&self) -> Vec<ShareView> {
        let (shares, table) = (self.shares.load(), self.rooms.routing.load());
        let views = table.routes().filter_map(|route| {
            let Share { delivery, work, targets } = shares.get(&route.node)?;
            Some(ShareView {
                name: route.name.as_str().to_owned(),
                delivery_percent: delivery * 100.0,
                rate: work.uplink,
                delivery_backlog: work.delivery_backlog.0,
                sync_backlog: work.sync_backlog.0,
                sync_age_secs: work.sync_age.as_secs(),
                urgency: work.urgency,
                delivery_lateness: work.delivery_lateness(f64::from(*delivery), targets),
                sync_lateness: work.sync_lateness(f64::from(*delivery), targets),
            })
        });
        views.collect()
    }

    fn look(&self) {
        let rooms = &self.rooms;
        rooms.desk.know(&rooms.registry.nodes());
        let (now, rules, table) = (rooms.clock.now(), rooms.desk.rules(), rooms.routing.load());
        let demand = rooms.front_door.demand().rates(now);
        let usable = |route: &&Route| matches!(route.standing, Standing::Ready | Standing::Suspect);
        let volunteers: u64 = table.routes().filter(usable).map(|route| route.rate.0).sum();
        let origin = rules.balance.origin_rate.map_or(0, |rate| rate.0);
        rooms.front_door.set_drain(BytesPerSec(volunteers.saturating_add(origin)));
        self.share(&table, &rules.balance, &demand, now);
        rooms.planner.look(&table, &rules.balance, &demand, &rooms.catalog.load(), now);
    }

    fn share(&self, table: &RoutingTable, balance: &Balance, demand: &HashMap<FileId, f64>, now: Moment) {
        let mut laws = self.laws.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = (balance.arbiter, balance.delivery_percent);
        if laws.rule != Some(rule) {
            (laws.rule, laws.by_node) = (Some(rule), HashMap::new());
        }
        if balance.arbiter == ArbiterRule::Off {
            self.nothing_to_share(&mut laws);
            return;
        }
        let lack = self.lack(table, demand, &mut laws.behind, now);
        if lack.bytes == 0
            && matches!(balance.arbiter, ArbiterRule::ShortestRemaining | ArbiterRule::EqualLateness)
        {
            // With many volunteers that is worth not working out.
            self.nothing_to_share(&mut laws);
            return;
        }
        let targets = Targets {
            customer_wait: balance.customer_wait(),
            sync: Duration::from_secs(balance.sync_wait_secs),
        };
        let mut shares = HashMap::new();
        for route in table.routes().filter(|route| is_live(route)) {
            let can_send = route.mirror.sends && route.rate.0 > 0;
            let part = if can_send { route.rate.0 as f64 / lack.senders.max(1) as f64 } else { 0.0 };
            let work = Work {
                uplink: route.rate,
                delivery_backlog: self.rooms.reservations.outstanding(route.node),
                sync_backlog: Bytes((lack.bytes as f64 * part) as u64),
                sync_age: lack.age,
                urgency: lack.urgency,
            };
            let law = laws.by_node.entry(route.node).or_insert_with(|| law(balance));
            let delivery = law.share(&work, &targets, now);
            shares.insert(route.node, Share { delivery, work, targets });
        }
        laws.by_node.retain(|node, _| shares.contains_key(node));
        self.take_turns(table, &shares, &mut laws, &targets, now);
        self.shares.store(Arc::new(shares));
    }

    fn nothing_to_share(&self, laws: &mut Laws) {
        laws.by_node.clear();
        laws.turns.clear();
        self.rooms.swarm.set_turns(None);
        self.shares.store(Arc::default());
    }

    /// Tells the swarm whose turn it is to copy, if the law has turns and customers wait at the same uplinks.
    fn take_turns(
        &self,
        table: &RoutingTable,
        shares: &HashMap<NodeId, Share>,
        laws: &mut Laws,
        targets: &Targets,
        now: Moment,
    ) {
        let Laws { by_node, behind, turns, .. } = laws;
        if !by_node.values().next().is_some_and(|law| law.takes_turns()) {
            turns.clear();
            self.rooms.swarm.set_turns(None);
            return;
        }
        let origin = self.rooms.swarm.origin_rate();
        let (mut sendable, mut owed, mut rate, mut is_held) = (origin.0 as f64, 0u64, 0u64, false);
        let mut waiting = Vec::new();
        for route in table.routes().filter(|route| is_live(route)) {
            let Some(share) = shares.get(&route.node) else { continue };
            owed = owed.saturating_add(share.work.delivery_backlog.0);
            rate = rate.saturating_add(route.rate.0);
            if route.mirror.sends {
                sendable += route.rate.0 as f64 * (1.0 - f64::from(share.delivery));
                is_held |= route.mirror.missing == 0 && !behind.contains_key(&route.node);
            }
            if route.mirror.missing > 0 {
                let since = behind.get(&route.node).map_or(Duration::ZERO, |&since| now.since(since));
                waiting.push(Waiting {
                    node: route.node,
                    missing: Bytes(route.mirror.missing),
                    uplink: route.rate,
                    since,
                });
            }
        }
        if waiting.is_empty() || !contended(Bytes(owed), BytesPerSec(rate)) {
            turns.clear();
            self.rooms.swarm.set_turns(None);
            return;
        }
        let chosen = turns.look(
            &waiting,
            Flow { sendable: BytesPerSec(sendable as u64), origin, is_held },
            targets,
            now,
        );
        // Who is not among those that lack something here is only told of it later, and waits for nobody.
        let waits = waiting.iter().map(|mirror| mirror.node).filter(|node| !chosen.contains(node));
        self.rooms.swarm.set_turns(Some(waits.collect()));
    }

    /// What all mirrors together lack of what was released, and how much it is asked for.
    fn lack(
        &self,
        table: &RoutingTable,
        demand: &HashMap<FileId, f64>,
        behind: &mut HashMap<NodeId, Moment>,
        now: Moment,
    ) -> Lack {
        let released = self.rooms.swarm.release().load().sequence;
        let mut lack = Lack { urgency: 1.0, ..Lack::default() };
        let mut still = HashMap::new();
        for route in table.routes().filter(|route| is_live(route)) {
            let mirror = route.mirror;
            if mirror.sends {
                lack.senders = lack.senders.saturating_add(route.rate.0);
            }
            if mirror.missing > 0 || mirror.complete < released {
                let since = behind.get(&route.node).copied().unwrap_or(now);
                still.insert(route.node, since);
                lack.bytes = lack.bytes.saturating_add(mirror.missing);
                lack.age = lack.age.max(now.since(since));
            }
        }
        *behind = still;
        if lack.bytes > 0 {
            let hottest = demand.iter().filter(|(_, rate)| **rate >= URGENT_FROM);
            lack.urgency = hottest
                .map(|(&file, &rate)| {
                    let holders = table.holders(file);
                    let holders = (0..holders.len()).filter_map(|place| table.route(holders.node(place)));
                    let holders = holders.filter(|route| is_live(route) && route.holdings.contains(file.0));
                    let capacity: u64 = holders.map(|route| route.rate.0).sum();
                    urgency(BytesPerSec(rate as u64), BytesPerSec(capacity))
                })
                .fold(1.0, f32::max);
        }
        lack
    }
}

fn is_live(route: &Route) -> bool {
    !matches!(route.standing, Standing::Dead | Standing::Untrusted)
}

fn law(balance: &Balance) -> Box<dyn Arbiter> {
    match balance.arbiter {
        ArbiterRule::DeliveryFirst => Box::new(DeliveryFirst),
        ArbiterRule::SyncFirst => Box::new(SyncFirst),
        ArbiterRule::FixedSplit => Box::new(FixedSplit::new(balance.delivery_percent as f32 / 100.0)),
        ArbiterRule::EqualLateness => Box::new(EqualLateness::default()),
        ArbiterRule::ShortestRemaining | ArbiterRule::Off => Box::new(ShortestRemaining::default()),
    }
}

impl std::fmt::Debug for Steward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steward").field("shares", &self.shares).finish_non_exhaustive()
    }
}

const EVERY: Duration = Duration::from_secs(1);
/// Thousandths.
const HALF: u16 = 500;
/// Files that are asked for less do not make a release urgent, bytes per second.
const URGENT_FROM: f64 = 100_000.0;
