//! One look at the counters turned into what is given until the next: rates, what is left, whether to close.
//!
//! Driven by its caller with readings and clocks; it reads no counter, no clock and no file.

use std::collections::HashMap;
use std::time::Duration;

use freshet_api::heartbeat::{BudgetReport, MonthReport};
use freshet_api::{Bytes, BytesPerSec};
use freshet_ebpf::{InterfaceReading, Reading};
use freshet_policy::Moment;
use freshet_policy::budget::{Allowance, Budget, BudgetTerms, Limit, QUOTA_KEPT, WallReading, WeekHours};
use freshet_policy::rates::{CapacityEstimate, CapacitySource, CounterRate};
use jiff::civil::DateTime;

use super::month::Month;
use super::pacer::Rates;
use crate::config::Config;
use crate::config::budget::{Directions, OwnerFirstConfig};

/// Keeps one volunteer's budget.
#[derive(Debug)]
pub struct Steward {
    budget: Budget,
    month: Month,
    terms: Terms,
    interfaces: HashMap<String, Traffic>,
    shut: Shut,
}

/// The owner's terms that are not the policy's.
#[derive(Debug)]
struct Terms {
    counts: Directions,
    sync_rate: Option<BytesPerSec>,
    receiving_hours: WeekHours,
    owner_first: Option<OwnerFirstConfig>,
    volume: Option<Bytes>,
}

/// The owner's own traffic on one interface.
#[derive(Debug)]
struct Traffic {
    out: CounterRate,
    incoming: CounterRate,
    /// Ours and his.
    total: CounterRate,
    capacity: CapacityEstimate,
    /// What the capacity was estimated from: the owner's word and the driver's.
    links: [Option<BytesPerSec>; 2],
}

/// What is given until the next look.
#[derive(Clone, Debug, PartialEq)]
pub struct Stand {
    /// For the pacers.
    pub rates: Rates,
    /// What all that is sent to customers from now on may come to on the wire; none for no end.
    pub left: Option<Bytes>,
    /// Why no more customers should come, if so.
    pub closed: Option<String>,
    /// Whether the volume is used to the last byte: nothing of ours may leave any more.
    pub exhausted: bool,
    /// What the owner gives now, the volume's end aside.
    pub offered: Option<BytesPerSec>,
    /// For the heartbeat.
    pub report: BudgetReport,
}

impl Steward {
    /// Goes on from what `month` says. `seed` is this volunteer's own and fixes its random starts of months.
    pub fn new(config: &Config, month: Month, seed: u64) -> Self {
        let budget = Budget::new(terms(config), month.budget().clone(), seed);
        Self { budget, month, terms: Terms::of(config), interfaces: HashMap::new(), shut: Shut::default() }
    }

    /// Puts the owner's changed word in force; what was used stays used.
    pub fn set_terms(&mut self, config: &Config) {
        self.budget.set_terms(terms(config));
        self.terms = Terms::of(config);
    }

    /// The month as it stands, for the disk.
    pub fn month(&self) -> &Month {
        &self.month
    }

    /// Takes in a reading, with what the drivers say that the links carry.
    pub fn look(
        &mut self,
        reading: &Reading,
        links: &HashMap<String, BytesPerSec>,
        wall: WallReading,
        now: Moment,
    ) -> Stand {
        let counted = self.month.book(reading, self.terms.counts);
        let owner = self.owner(reading, links, now);
        self.budget.set_owner_leaves(owner.leaves);
        let allowance = self.budget.tick(counted, owner.sending, wall, now);
        self.month.keep(self.budget.state());
        let left = self.left(&allowance);
        let closed = self.shut.settle(self.why_closed(&allowance, left), now);
        let spent_by_volume = allowance.is_spent() && allowance.limit == Limit::Quota;
        let receiving = if spent_by_volume { Some(BytesPerSec(0)) } else { self.receiving(&owner) };
        Stand {
            rates: Rates { sending: allowance.rate, receiving, shares: self.budget.minimum() },
            left,
            closed,
            exhausted: allowance.left == Some(Bytes(0)),
            offered: allowance.offered,
            report: report(&allowance, self.budget.state().used, self.terms.volume),
        }
    }

    /// What the owner's own traffic is, and what it leaves where it leaves least.
    fn owner(&mut self, reading: &Reading, links: &HashMap<String, BytesPerSec>, now: Moment) -> Owner {
        let first = self.terms.owner_first;
        let mut owner = Owner::default();
        for interface in reading.interfaces.iter().filter(|interface| interface.present) {
            let traffic = self.interfaces.entry(interface.name.clone()).or_insert_with(Traffic::new);
            let [configured, driver] =
                [first.and_then(|first| first.link), links.get(&interface.name).copied()];
            if traffic.links != [configured, driver] {
                traffic.capacity = CapacityEstimate::new(configured, driver);
                traffic.links = [configured, driver];
            }
            let (out, incoming) = traffic.read(interface, now);
            owner.sending = BytesPerSec(owner.sending.0.saturating_add(out.0));
            let Some(first) = first else { continue };
            // A link of which nobody knows what it carries is left to its owner.
            let capacity = traffic.capacity.capacity(now);
            let known = capacity.source != CapacitySource::Observed;
            let law = first.of(if known { capacity.rate } else { BytesPerSec(0) });
            owner.leaves = less(owner.leaves, law.allowance(out));
            owner.leaves_incoming = less(owner.leaves_incoming, law.allowance(incoming));
        }
        owner
    }

    /// What may still be promised: before the volume's end, less what is kept for sending customers back, and before
    /// hours in which nothing goes out.
    fn left(&self, allowance: &Allowance) -> Option<Bytes> {
        if allowance.is_spent() {
            return Some(Bytes(0));
        }
        let volume = self.terms.volume.zip(allowance.left);
        let by_volume = volume.map(|(volume, left)| left.0.saturating_sub(kept(volume)));
        let by_hours = allowance.open_for.zip(allowance.offered).map(|(open, rate)| {
            let usable = open.saturating_sub(HOURS_SPARED).as_secs_f64() * HOURS_PART;
            (rate.0 as f64 * usable) as u64
        });
        [by_volume, by_hours].into_iter().flatten().min().map(Bytes)
    }

    fn why_closed(&self, allowance: &Allowance, left: Option<Bytes>) -> Option<Why> {
        let closes_soon = allowance.open_for.is_some_and(|open| open < CLOSED_BEFORE);
        let little = left.is_some_and(|left| left < LEFT_MIN);
        let next = self.budget.local().zip(allowance.period_left);
        let next = next.map(|(local, period_left)| local.saturating_add(period_left));
        let month = || Some(Why::month(self.terms.volume, next));
        match allowance.limit {
            Limit::Hours if allowance.is_spent() => Some(Why::Hours),
            _ if closes_soon => Some(Why::Hours),
            Limit::Owner if allowance.is_spent() => Some(Why::Owner),
            Limit::Percentile if allowance.is_spent() => Some(Why::Percentile),
            Limit::Quota if allowance.is_spent() => month(),
            _ if little && allowance.open_for.is_none() => month(),
            _ => None,
        }
    }

    fn receiving(&self, owner: &Owner) -> Option<BytesPerSec> {
        let hours = self.budget.local().and_then(|local| self.terms.receiving_hours.rate_at(local));
        let rate = hours.or(self.terms.sync_rate);
        owner.leaves_incoming.map_or(rate, |leaves| less(rate, leaves))
    }
}

impl Terms {
    fn of(config: &Config) -> Self {
        let budget = &config.budget;
        Self {
            counts: budget.month.map(|month| month.counts).unwrap_or_default(),
            sync_rate: config.effective_sync_rate(),
            receiving_hours: budget.receiving_hours(),
            owner_first: budget.owner_first,
            volume: budget.month.map(|month| month.volume),
        }
    }
}

/// The owner's own traffic just now.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    /// Over all interfaces.
    sending: BytesPerSec,
    /// What it leaves of the narrowest link; none unless it comes first.
    leaves: Option<BytesPerSec>,
    leaves_incoming: Option<BytesPerSec>,
}

impl Traffic {
    fn new() -> Self {
        Self {
            out: CounterRate::new(OWNER_TIME),
            incoming: CounterRate::new(OWNER_TIME),
            total: CounterRate::new(OWNER_TIME),
            capacity: CapacityEstimate::new(None, None),
            links: [None; 2],
        }
    }

    /// The owner's rates out and in: believed at once when they grow, and only slowly when they fall.
    fn read(&mut self, interface: &InterfaceReading, now: Moment) -> (BytesPerSec, BytesPerSec) {
        let (owner, total) = (interface.other(), interface.ours().plus(interface.other()));
        self.out.read(owner.outgoing.bytes, now);
        self.incoming.read(owner.incoming.bytes, now);
        self.total.read(total.outgoing.bytes, now);
        self.capacity.observe(self.total.latest(), false, now);
        let rate = |rate: &CounterRate| rate.latest().max(rate.smoothed());
        (rate(&self.out), rate(&self.incoming))
    }
}

/// Why no more customers should come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    Hours,
    Owner,
    Percentile,
    Month { volume: Bytes, next: Option<DateTime> },
}

impl Why {
    fn month(volume: Option<Bytes>, next: Option<DateTime>) -> Self {
        Self::Month { volume: volume.unwrap_or_default(), next }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hours => f.write_str("nothing is given at this hour"),
            Self::Owner => f.write_str("the owner's own traffic needs the whole link"),
            Self::Percentile => f.write_str("more would raise the owner's 95th percentile"),
            Self::Month { volume, next } => {
                write!(f, "this month's {volume} are used up")?;
                next.map_or(Ok(()), |next| write!(f, ", the next month begins on {}", next.date()))
            }
        }
    }
}

/// Keeps the owner's bursts of a second from sending customers to and fro.
#[derive(Debug, Default)]
struct Shut {
    why: Option<Why>,
    /// Since when it should be otherwise.
    otherwise: Option<Moment>,
}

impl Shut {
    fn settle(&mut self, why: Option<Why>, now: Moment) -> Option<String> {
        if why == self.why {
            self.otherwise = None;
        } else {
            let since = *self.otherwise.get_or_insert(now);
            let passing = |why: &Option<Why>| matches!(why, Some(Why::Owner));
            if !(passing(&why) || passing(&self.why)) || now.since(since) >= PASSING {
                (self.why, self.otherwise) = (why, None);
            }
        }
        self.why.as_ref().map(ToString::to_string)
    }
}

fn terms(config: &Config) -> BudgetTerms {
    config.budget.terms(config.donated_rate)
}

fn report(allowance: &Allowance, used: Bytes, volume: Option<Bytes>) -> BudgetReport {
    let month = volume.map(|volume| MonthReport {
        volume,
        left: allowance.left.unwrap_or_default(),
        ends_in_secs: allowance.period_left.unwrap_or_default().as_secs(),
        lasts_secs: allowance.period.unwrap_or_default().as_secs(),
    });
    BudgetReport { rate: allowance.rate, limit: allowance.limit.to_string(), used, promisable: None, month }
}

/// Of a volume, what is kept for sending customers back when the rest is used up: some hundred bytes each.
fn kept(volume: Bytes) -> u64 {
    (volume.0 / 1000).clamp(KEPT_MIN, KEPT_MAX) + QUOTA_KEPT.0
}

fn less(rate: Option<BytesPerSec>, limit: BytesPerSec) -> Option<BytesPerSec> {
    Some(rate.map_or(limit, |rate| rate.min(limit)))
}

/// Over which the owner's rates are smoothed.
const OWNER_TIME: Duration = Duration::from_millis(500);
/// How long the owner must need everything before customers are sent elsewhere, and then leave something again.
const PASSING: Duration = Duration::from_secs(2);
/// So long before hours in which nothing is given customers stop coming.
const CLOSED_BEFORE: Duration = Duration::from_secs(20);
/// Of the time until then, what promises may use: less a while, and of the rest a part, since clients are not even.
const HOURS_SPARED: Duration = Duration::from_secs(5);
const HOURS_PART: f64 = 0.8;
/// With less than this left it is not worth being chosen.
const LEFT_MIN: Bytes = Bytes(1 << 20);
const KEPT_MIN: u64 = 1 << 20;
const KEPT_MAX: u64 = 64 << 20;

#[cfg(test)]
mod tests;
