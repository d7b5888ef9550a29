//! What an owner gives: a rate, hours of the week, a volume per month, and his own traffic first.
//!
//! Every tick turns the owner's terms, the bytes counted so far and the owner's present traffic into
//! the one rate that the pacer may let through. Bytes once counted are never forgotten and never
//! counted twice, also when the wall clock jumps. The caller keeps [`BudgetState`] on disk; nothing
//! here reads a clock or a file.

mod calendar;
mod owner_first;
mod percentile;

use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};
use jiff::civil::DateTime;
use serde::{Deserialize, Serialize};

pub use self::calendar::{TrustedClock, WallReading, WeekHours, WeekSpan};
pub use self::owner_first::OwnerFirst;
pub use self::percentile::{Percentile95, Percentile95Terms};
use crate::draw::mix;
use crate::moment::Moment;
use crate::pacing::Shares;

/// The owner's terms.
#[derive(Clone, Debug, Default)]
pub struct BudgetTerms {
    /// The most that may be donated at any time; none for no limit.
    pub cap: Option<BytesPerSec>,
    /// Hours of the week with their own rates; outside them `cap` alone holds.
    pub hours: WeekHours,
    /// The volume per month.
    pub quota: Option<Quota>,
    /// Leave the link to the owner's own traffic first.
    pub owner_first: Option<OwnerFirst>,
    /// What the owner pays for, if by the 95th percentile.
    pub percentile: Option<Percentile95Terms>,
    /// The part of the donation that each class keeps whatever the others want.
    pub minimum: Option<Shares>,
}

/// A volume per month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bytes per period.
    pub volume: Bytes,
    /// The day on which the provider's month starts (1 ..= 28).
    pub start_day: u8,
    /// A period begins at a random time within this after midnight of that day, so that not every
    /// volunteer comes back at the same moment.
    pub start_spread: Duration,
}

impl Quota {
    /// No volume, by the calendar's months.
    const CALENDAR_MONTH: Quota =
        Quota { volume: Bytes(u64::MAX), start_day: 1, start_spread: Duration::ZERO };
}

/// A growing count of donated bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Changes when the counter starts again from zero (a restart without pinned counters).
    pub epoch: u64,
    /// Bytes since then.
    pub total: Bytes,
}

/// What must survive a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BudgetState {
    /// When the current period began, in local time.
    pub period_start: Option<DateTime>,
    /// Bytes donated in it.
    pub used: Bytes,
    /// The count up to which `used` is complete.
    pub counted: Option<Counted>,
    /// The last local time that was believed.
    pub believed: Option<DateTime>,
    /// The account of the 95th percentile.
    #[serde(default)]
    pub percentile: Percentile95,
}

/// What may go out now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allowance {
    /// The rate for all classes together; none for no limit.
    pub rate: Option<BytesPerSec>,
    /// What the rate would be if the volume had no end: what others may reckon with.
    pub offered: Option<BytesPerSec>,
    /// What is left of the period's volume; none for no limit.
    pub left: Option<Bytes>,
    /// How long the period still lasts; none without a quota.
    pub period_left: Option<Duration>,
    /// How long the period lasts in all; none without a quota.
    pub period: Option<Duration>,
    /// How long until hours begin in which nothing may go out; none when that is more than [`AHEAD`] away.
    pub open_for: Option<Duration>,
    /// What determines the rate.
    pub limit: Limit,
}

impl Allowance {
    /// Whether nothing may go out: clients are then sent back.
    pub fn is_spent(&self) -> bool {
        self.rate == Some(BytesPerSec(0))
    }
}

/// What determines a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Nothing does.
    None,
    /// The owner's cap.
    Cap,
    /// The hour of the week.
    Hours,
    /// The owner's own traffic.
    Owner,
    /// The 95th percentile he pays for.
    Percentile,
    /// The month's volume is used up, or so nearly that the rest is eked out.
    Quota,
}

impl std::fmt::Display for Limit {
    /// Its name as heartbeats carry it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::None => "none",
            Limit::Cap => "cap",
            Limit::Hours => "hours",
            Limit::Owner => "owner",
            Limit::Percentile => "percentile",
            Limit::Quota => "quota",
        })
    }
}

/// The account of one volunteer's donation.
#[derive(Debug)]
pub struct Budget {
    terms: BudgetTerms,
    state: BudgetState,
    clock: TrustedClock,
    seed: u64,
    tick: Option<Moment>,
    owner_leaves: Option<BytesPerSec>,
}

impl Budget {
    /// Continues from `state` (the default for a new volunteer). `seed` is the node's own and fixes
    /// its random starts of periods.
    pub fn new(terms: BudgetTerms, state: BudgetState, seed: u64) -> Budget {
        let clock = TrustedClock::resume(state.believed);
        Budget { terms, state, clock, seed, tick: None, owner_leaves: None }
    }

    /// Replaces the owner's terms; what was used stays used.
    pub fn set_terms(&mut self, terms: BudgetTerms) {
        self.terms = terms;
    }

    /// The terms in force.
    pub fn terms(&self) -> &BudgetTerms {
        &self.terms
    }

    /// What to keep on disk.
    pub fn state(&self) -> &BudgetState {
        &self.state
    }

    /// Books the donated bytes counted so far and says what may go out until the next tick.
    ///
    /// `owner` is the rate of the owner's own traffic out of the interface. Call every 100 ms.
    pub fn tick(
        &mut self,
        counted: Counted,
        owner: BytesPerSec,
        wall: WallReading,
        now: Moment,
    ) -> Allowance {
        let sent = self.book(counted);
        let local = self.clock.read(wall, now);
        self.state.believed = Some(local);
        let since = self.tick.map_or(TICK_EXPECTED, |tick| now.since(tick));
        self.tick = Some(now);
        let mut rate = (None, Limit::None);
        lower(&mut rate, self.terms.cap, Limit::Cap);
        if let Some(hours) = self.terms.hours.rate_at(local) {
            // An hour's own rate replaces the cap; it may be above it.
            rate = (Some(hours), Limit::Hours);
        }
        if let Some(owner_first) = &self.terms.owner_first {
            let leaves = self.owner_leaves.unwrap_or_else(|| owner_first.allowance(owner));
            lower(&mut rate, Some(leaves), Limit::Owner);
        }
        let quota = self.terms.quota.unwrap_or(Quota::CALENDAR_MONTH);
        self.roll_period(quota, local);
        if let Some(terms) = &self.terms.percentile {
            let within = self.state.percentile.account(terms, sent, owner, now);
            lower(&mut rate, Some(within), Limit::Percentile);
        }
        let offered = rate.0;
        let (mut left, mut period_left, mut period) = (None, None, None);
        if self.terms.quota.is_some() {
            let rest = quota.volume.0.saturating_sub(self.state.used.0);
            left = Some(Bytes(rest));
            let next = period_start(quota, local, 1, self.seed);
            let begun = period_start(quota, local, 0, self.seed);
            period_left = Some(Duration::try_from(next.duration_since(local)).unwrap_or_default());
            period = Some(Duration::try_from(next.duration_since(begun)).unwrap_or_default());
            // What goes out before the next tick must not exceed what is left: the last bytes are eked out.
            let horizon = since.clamp(TICK_EXPECTED, TICK_LATE_MAX).as_secs_f64() * 2.0;
            let last = rest.saturating_sub(QUOTA_END);
            let last = if last < QUOTA_END / 2 { 0 } else { (last as f64 / horizon) as u64 };
            lower(&mut rate, Some(BytesPerSec(last)), Limit::Quota);
        }
        let open_for = self.terms.hours.open_for(local, AHEAD);
        Allowance { rate: rate.0, offered, left, period_left, period, open_for, limit: rate.1 }
    }

    /// The local time that is believed; none before the first tick.
    pub fn local(&self) -> Option<DateTime> {
        self.state.believed
    }

    /// What the owner leaves of the narrowest of several links, each reckoned by [`OwnerFirst::allowance`]: it is taken in
    /// place of what the terms' one link would give.
    pub fn set_owner_leaves(&mut self, leaves: Option<BytesPerSec>) {
        self.owner_leaves = leaves;
    }

    /// The guaranteed share of each class.
    pub fn minimum(&self) -> Shares {
        self.terms.minimum.unwrap_or(Shares::NONE)
    }

    fn book(&mut self, counted: Counted) -> Bytes {
        let sent = match self.state.counted {
            Some(before) if before.epoch == counted.epoch => counted.total.0.saturating_sub(before.total.0),
            // A new count began at zero: all of it is new.
            Some(_) => counted.total.0,
            // A counter that ran before this budget was made says nothing about this period.
            None => 0,
        };
        let total = match self.state.counted {
            Some(before) if before.epoch == counted.epoch => counted.total.max(before.total),
            _ => counted.total,
        };
        self.state.counted = Some(Counted { epoch: counted.epoch, total });
        self.state.used = Bytes(self.state.used.0.saturating_add(sent));
        Bytes(sent)
    }

    fn roll_period(&mut self, quota: Quota, local: DateTime) {
        let current = period_start(quota, local, 0, self.seed);
        match self.state.period_start {
            Some(start) if current > start => {
                self.state.period_start = Some(current);
                self.state.used = Bytes(0);
                self.state.percentile.reset();
            }
            // The believed clock was set back: the period is the earlier one again, but what was used
            // is not given back.
            Some(start) if current < start => self.state.period_start = Some(current),
            Some(_) => {}
            None => self.state.period_start = Some(current),
        }
    }
}

/// The start of the period that contains `local`, or of the one `ahead` (0 or 1) periods later.
fn period_start(quota: Quota, local: DateTime, ahead: u8, seed: u64) -> DateTime {
    let day = i8::try_from(quota.start_day.clamp(1, 28)).unwrap_or(1);
    let spread = quota.start_spread.min(SPREAD_MAX).as_secs();
    let start_of = |year: i16, month: i8| {
        let months = (year as u64).wrapping_mul(12).wrapping_add(month as u64);
        let offset = if spread == 0 { 0 } else { mix(seed ^ mix(months)) % spread };
        let midnight = jiff::civil::date(year, month, day).at(0, 0, 0, 0);
        midnight.saturating_add(jiff::SignedDuration::from_secs(offset as i64))
    };
    let (mut year, mut month) = (local.year(), local.month());
    // With a late start day and a long spread, a period may begin in the following month.
    while local < start_of(year, month) {
        (year, month) = if month == 1 { (year - 1, 12) } else { (year, month - 1) };
    }
    for _ in 0..ahead {
        (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    }
    start_of(year, month)
}

/// Lowers `rate` to `limit` if that is less, and remembers why.
fn lower(rate: &mut (Option<BytesPerSec>, Limit), limit: Option<BytesPerSec>, why: Limit) {
    if let Some(limit) = limit
        && rate.0.is_none_or(|rate| limit < rate)
    {
        *rate = (Some(limit), why);
    }
}

/// How often the caller is asked to tick.
pub const TICK_EXPECTED: Duration = Duration::from_millis(100);
/// How far ahead [`Allowance::open_for`] looks.
pub const AHEAD: Duration = Duration::from_secs(3600);
/// So much of a volume is never given to the pacer: what the kernel still has to send comes out of it.
pub const QUOTA_KEPT: Bytes = Bytes(QUOTA_END + QUOTA_END / 2);
const TICK_LATE_MAX: Duration = Duration::from_secs(5);
/// A burst and a chunk that the pacer may be ahead: the volume ends this much early.
const QUOTA_END: u64 = 128 * 1024;
const SPREAD_MAX: Duration = Duration::from_secs(72 * 3600);

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use proptest::prelude::*;

    use super::*;

    const SEED: u64 = 77;

    fn monthly(volume: u64) -> BudgetTerms {
        let quota =
            Quota { volume: Bytes(volume), start_day: 5, start_spread: Duration::from_secs(6 * 3600) };
        BudgetTerms { cap: Some(BytesPerSec(10_000_000)), quota: Some(quota), ..BudgetTerms::default() }
    }

    fn wall(local: DateTime) -> WallReading {
        WallReading { local, synchronised: true }
    }

    fn counted(total: u64) -> Counted {
        Counted { epoch: 1, total: Bytes(total) }
    }

    /// A budget, a clock and a sender that sends all it may.
    struct Month {
        budget: Budget,
        now: Moment,
        local: DateTime,
        total: u64,
    }

    impl Month {
        fn new(terms: BudgetTerms, local: DateTime) -> Month {
            Month {
                budget: Budget::new(terms, BudgetState::default(), SEED),
                now: Moment::ZERO,
                local,
                total: 0,
            }
        }

        /// Passes `step` of time, sending as much as was allowed; returns what was sent.
        fn pass(&mut self, step: Duration) -> u64 {
            let reading = wall(self.local);
            let allowance = self.budget.tick(counted(self.total), BytesPerSec(0), reading, self.now);
            let sent = (allowance.rate.unwrap().0 as f64 * step.as_secs_f64()) as u64;
            self.total += sent;
            self.now += step;
            self.local += step;
            sent
        }

        fn jump(&mut self, hours: i64) {
            self.local = self.local.saturating_add(jiff::SignedDuration::from_hours(hours));
        }
    }

    #[test]
    fn the_cap_the_hours_and_no_limit() {
        let at = wall(date(2026, 3, 2).at(9, 30, 0, 0));
        let mut budget = Budget::new(BudgetTerms::default(), BudgetState::default(), SEED);
        let free = budget.tick(counted(0), BytesPerSec(5), at, Moment::ZERO);
        assert_eq!((free.rate, free.limit), (None, Limit::None));
        let mut terms = BudgetTerms { cap: Some(BytesPerSec(1000)), ..BudgetTerms::default() };
        budget.set_terms(terms.clone());
        let capped = budget.tick(counted(0), BytesPerSec(5), at, Moment::ZERO);
        assert_eq!((capped.rate, capped.limit), (Some(BytesPerSec(1000)), Limit::Cap));
        terms.hours =
            WeekHours::new(vec![WeekSpan::new(0b0011111, 8 * 60, 18 * 60, BytesPerSec(0)).unwrap()]);
        budget.set_terms(terms);
        let office = budget.tick(counted(0), BytesPerSec(5), at, Moment::ZERO);
        assert!(office.is_spent());
        assert_eq!(office.limit, Limit::Hours);
    }

    #[test]
    fn a_month_ends_at_its_volume_and_the_next_starts_by_itself() {
        let mut month = Month::new(monthly(500_000_000), date(2026, 1, 10).at(0, 0, 0, 0));
        let step = Duration::from_millis(100);
        for _ in 0..6_000 {
            month.pass(step);
        }
        assert!(month.total <= 500_000_000, "{}", month.total);
        assert!(month.total > 499_000_000, "{}", month.total);
        let spent = month.budget.tick(counted(month.total), BytesPerSec(0), wall(month.local), month.now);
        assert!(spent.is_spent());
        assert_eq!(spent.limit, Limit::Quota);
        let before = month.total;
        while month.local < date(2026, 2, 5).at(0, 0, 0, 0) {
            month.pass(Duration::from_secs(3600));
        }
        assert_eq!(month.total, before, "nothing until the provider's month is over");
        for _ in 0..8 {
            month.pass(Duration::from_secs(3600));
        }
        assert!(month.total > before, "the next period began within its first six hours");
    }

    #[test]
    fn a_restart_forgets_and_doubles_nothing() {
        let at = wall(date(2026, 1, 10).at(0, 0, 0, 0));
        let mut budget = Budget::new(monthly(1_000_000_000), BudgetState::default(), SEED);
        budget.tick(counted(5_000), BytesPerSec(0), at, Moment::ZERO);
        budget.tick(counted(105_000), BytesPerSec(0), at, Moment::ZERO);
        let kept = serde_round_trip(budget.state());
        // Pinned counters went on counting while nobody ran.
        let mut budget = Budget::new(monthly(1_000_000_000), kept, SEED);
        budget.tick(counted(305_000), BytesPerSec(0), at, Moment::ZERO);
        assert_eq!(budget.state().used, Bytes(300_000));
        // Counters of the process itself begin again.
        let anew = Counted { epoch: 2, total: Bytes(70) };
        budget.tick(anew, BytesPerSec(0), at, Moment::ZERO);
        assert_eq!(budget.state().used, Bytes(300_070));
    }

    fn serde_round_trip(state: &BudgetState) -> BudgetState {
        // jiff's types serialise as text; any self-describing format does.
        serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
    }

    #[test]
    fn clock_jumps_of_a_day_neither_refund_nor_rob() {
        for hours in [24, -24] {
            let mut month = Month::new(monthly(500_000_000), date(2026, 2, 4).at(12, 0, 0, 0));
            for _ in 0..6_000 {
                month.pass(Duration::from_millis(100));
            }
            let spent = month.total;
            // The clock jumps, stays wrong for two hours, and is put right.
            month.jump(hours);
            for _ in 0..720 {
                month.pass(Duration::from_secs(10));
            }
            month.jump(-hours);
            assert_eq!(month.total, spent, "no refund after {hours} h");
            for _ in 0..24 {
                month.pass(Duration::from_secs(3600));
            }
            assert!(month.total > spent, "the next period was not robbed after {hours} h");
            let second = month.total - spent;
            assert!(second <= 500_000_000 + 10_000_000 * 3600, "{second}");
        }
    }

    #[test]
    fn a_restart_with_a_clock_a_day_ahead_gives_no_new_month_unless_it_is_synchronised() {
        let mut month = Month::new(monthly(50_000_000), date(2026, 2, 4).at(12, 0, 0, 0));
        for _ in 0..2_000 {
            month.pass(Duration::from_millis(100));
        }
        let ahead = month.local.saturating_add(jiff::SignedDuration::from_hours(24));
        let resume = |synchronised| {
            let mut budget = Budget::new(monthly(50_000_000), month.budget.state().clone(), SEED);
            let reading = WallReading { local: ahead, synchronised };
            budget.tick(counted(month.total), BytesPerSec(0), reading, Moment::ZERO).is_spent()
        };
        assert!(resume(false), "a clock that nobody vouches for starts no month");
        assert!(!resume(true), "after a day off, the new month is the owner's to give");
    }

    proptest! {
        /// However ticks fall and whatever is sent within the allowance, a period's volume is kept.
        #[test]
        fn a_volume_is_never_exceeded(
            volume in 200_000u64..1_000_000_000,
            ticks in proptest::collection::vec((50u64..400, 0.0f64..1.0), 10..400),
        ) {
            let mut month = Month::new(monthly(volume), date(2026, 1, 10).at(0, 0, 0, 0));
            for (millis, eagerness) in ticks {
                let reading = wall(month.local);
                let allowance = month.budget.tick(counted(month.total), BytesPerSec(0), reading, month.now);
                let step = Duration::from_millis(millis);
                // A tick may come up to twice as late as the one before.
                let step = step.min(TICK_EXPECTED * 2);
                month.total += (allowance.rate.unwrap().0 as f64 * step.as_secs_f64() * eagerness) as u64;
                month.now += step;
                month.local += step;
                prop_assert!(month.total <= volume);
            }
        }

        /// Every local time lies in exactly one period, and periods follow one another.
        #[test]
        fn periods_tile_the_calendar(day in 1u8..=28, hours in 0u64..72, offset in 0i64..1_000_000, seed: u64) {
            let quota = Quota { volume: Bytes(1), start_day: day, start_spread: Duration::from_secs(hours * 3600) };
            let local = date(2025, 1, 1).at(0, 0, 0, 0).saturating_add(jiff::SignedDuration::from_mins(offset));
            let start = period_start(quota, local, 0, seed);
            let next = period_start(quota, local, 1, seed);
            prop_assert!(start <= local && local < next);
            prop_assert_eq!(period_start(quota, next, 0, seed), next);
            let days = next.duration_since(start).as_hours() / 24;
            prop_assert!((25..=34).contains(&days), "{days}");
        }
    }
}
