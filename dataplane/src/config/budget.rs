//! `[budget]`: what the owner gives beyond a rate (hours, a volume per month, his own traffic first), checked once.
//!
//! It holds no count and no clock: [`BudgetConfig::terms`] hands the owner's word to the policy.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use freshet_api::{Bytes, BytesPerSec};
use freshet_policy::budget::{BudgetTerms, OwnerFirst, Percentile95Terms, Quota, WeekHours, WeekSpan};
use freshet_policy::pacing::Shares;
use serde::{Deserialize, Serialize};

use super::{RATE_MIN, ValueError};

/// `[budget]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetConfig {
    /// Most that one connection is sent; kept by the kernel, from its eleventh segment on. Without it only
    /// the sum is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_rate: Option<BytesPerSec>,
    /// Whether the kernel's queue (HTB) keeps the donated rate as well.
    pub hard_limit: HardLimit,
    /// A volume per month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub month: Option<MonthConfig>,
    /// The owner's own traffic first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_first: Option<OwnerFirstConfig>,
    /// The 95th percentile that the owner pays by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentile: Option<PercentileConfig>,
    /// What each class keeps of the rate, whatever the others want.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<MinimumConfig>,
    /// Hours of the week with their own rates; the first that fits holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hours: Vec<HoursConfig>,
}

/// `[budget.month]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonthConfig {
    /// Bytes per month, counted on the wire.
    pub volume: Bytes,
    /// The day of the month on which the provider begins to count anew (1 ..= 28).
    #[serde(default = "first_day")]
    pub start_day: u8,
    /// The month is begun at a random time within so many hours after that midnight (0 ..= 72), so that not all
    /// volunteers come back at once.
    #[serde(default = "start_within")]
    pub start_within_hours: u8,
    /// Which bytes the provider counts.
    #[serde(default)]
    pub counts: Directions,
}

/// Which directions the provider counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Directions {
    /// What leaves this host.
    #[default]
    Sent,
    /// What leaves it and what comes to it.
    Both,
}

/// One entry of `[[budget.hours]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoursConfig {
    /// Days of the week.
    pub days: Days,
    /// The minute of the day from which it holds.
    pub from: MinuteOfDay,
    /// The minute before which it ends; before `from` it runs past midnight, equal to it the whole day.
    pub until: MinuteOfDay,
    /// In place of `donated_rate`; 0 for nothing.
    pub rate: BytesPerSec,
    /// In place of `sync_rate`; 0 for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_rate: Option<BytesPerSec>,
}

/// `[budget.owner_first]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OwnerFirstConfig {
    /// What the link carries each way; without it what the driver says of each interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<BytesPerSec>,
    /// Kept free beyond the owner's present traffic; without it a hundredth of the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<BytesPerSec>,
}

/// `[budget.percentile]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PercentileConfig {
    /// The rate that is paid for anyway, the owner's own traffic included.
    pub commitment: BytesPerSec,
    /// The rate that may be used in the 5 % of five-minute samples that are free.
    pub burst: BytesPerSec,
}

/// `[budget.minimum]`, in hundredths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MinimumConfig {
    /// Of what is sent to customers.
    pub delivery: u8,
    /// Of what is sent to mirrors.
    pub sync: u8,
}

/// Whether the kernel's queue keeps the donated rate as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HardLimit {
    /// It does not.
    #[default]
    Off,
    /// It does on interfaces with the kernel's default queue; one that somebody set up stays, and the daemon refuses
    /// to start.
    On,
    /// It does, also in place of a queue that somebody set up.
    Replace,
}

impl BudgetConfig {
    /// As the policy wants it, with `cap` as the most at any time.
    ///
    /// The link of [`OwnerFirst`] is the configured one, or 0 until the interfaces are known.
    pub fn terms(&self, cap: Option<BytesPerSec>) -> BudgetTerms {
        BudgetTerms {
            cap,
            hours: WeekHours::new(self.hours.iter().filter_map(|span| span.span(span.rate)).collect()),
            quota: self.month.map(|month| Quota {
                volume: month.volume,
                start_day: month.start_day,
                start_spread: Duration::from_secs(u64::from(month.start_within_hours) * 3600),
            }),
            owner_first: self.owner_first.map(|first| first.of(first.link.unwrap_or(BytesPerSec(0)))),
            percentile: self
                .percentile
                .map(|paid| Percentile95Terms { commitment: paid.commitment, burst: paid.burst }),
            minimum: self.minimum.map(MinimumConfig::shares),
        }
    }

    /// Hours with their own rates of receiving.
    pub fn receiving_hours(&self) -> WeekHours {
        let spans = self.hours.iter().filter_map(|span| span.span(span.sync_rate.unwrap_or(span.rate)));
        WeekHours::new(spans.collect())
    }

    /// Whether anything but a constant rate limits the donation, so that counters must be watched.
    pub fn is_plain(&self) -> bool {
        self.month.is_none()
            && self.owner_first.is_none()
            && self.percentile.is_none()
            && self.hours.is_empty()
    }

    /// Checks what no type says; `cap` is `donated_rate`.
    pub(super) fn check(&self, cap: Option<BytesPerSec>) -> Result<(), ValueError> {
        let wrong = |key: &'static str, expected: &'static str, found: String| {
            Err(ValueError::Budget { key, expected, found })
        };
        if let Some(rate) = self.connection_rate.filter(|&rate| rate < RATE_MIN) {
            return Err(ValueError::TooSlow { key: "budget.connection_rate", found: rate });
        }
        if self.hard_limit != HardLimit::Off && cap.is_none() {
            return wrong("hard_limit", "a `donated_rate` that it can keep", "none".into());
        }
        if let Some(month) = &self.month {
            if month.volume < VOLUME_MIN {
                return wrong("month.volume", "at least 10 MB", month.volume.to_string());
            }
            if !(1..=28).contains(&month.start_day) {
                return wrong("month.start_day", "a day from 1 to 28", month.start_day.to_string());
            }
            if month.start_within_hours > START_WITHIN_HOURS_MAX {
                let found = month.start_within_hours.to_string();
                return wrong("month.start_within_hours", "at most 72", found);
            }
        }
        if let Some(first) = &self.owner_first {
            if let Some(link) = first.link.filter(|&link| link < RATE_MIN) {
                return Err(ValueError::TooSlow { key: "budget.owner_first.link", found: link });
            }
            if let (Some(link), Some(margin)) = (first.link, first.margin)
                && margin >= link
            {
                return wrong("owner_first.margin", "less than `link`", margin.to_string());
            }
        }
        if let Some(paid) = &self.percentile {
            if paid.commitment < RATE_MIN {
                let key = "budget.percentile.commitment";
                return Err(ValueError::TooSlow { key, found: paid.commitment });
            }
            if paid.burst < paid.commitment {
                return wrong("percentile.burst", "at least `commitment`", paid.burst.to_string());
            }
        }
        if let Some(minimum) = &self.minimum {
            let sum = u32::from(minimum.delivery) + u32::from(minimum.sync);
            if sum > 100 {
                return wrong("minimum", "shares of at most 100 in all", sum.to_string());
            }
            let shared = cap.is_some() || !self.hours.is_empty() || self.owner_first.is_some();
            if !shared && self.percentile.is_none() {
                return wrong("minimum", "a rate to be shared, such as `donated_rate`", "none".into());
            }
        }
        if self.hours.len() > HOURS_MAX {
            let found = self.hours.len();
            return Err(ValueError::TooMany { key: "budget.hours", most: HOURS_MAX, found });
        }
        for span in &self.hours {
            for (key, rate) in
                [("budget.hours.rate", Some(span.rate)), ("budget.hours.sync_rate", span.sync_rate)]
            {
                if let Some(rate) = rate.filter(|&rate| rate.0 > 0 && rate < RATE_MIN) {
                    return Err(ValueError::TooSlow { key, found: rate });
                }
            }
            if span.span(span.rate).is_none() {
                return wrong("hours.from", "a time before 24:00", span.from.to_string());
            }
        }
        Ok(())
    }
}

impl OwnerFirstConfig {
    /// On a link that carries `link`.
    pub fn of(&self, link: BytesPerSec) -> OwnerFirst {
        OwnerFirst { link, margin: self.margin.unwrap_or(BytesPerSec(link.0 / 100)) }
    }
}

impl MinimumConfig {
    fn shares(self) -> Shares {
        Shares::new([0.0, f32::from(self.delivery) / 100.0, f32::from(self.sync) / 100.0, 0.0])
    }
}

impl HoursConfig {
    fn span(&self, rate: BytesPerSec) -> Option<WeekSpan> {
        WeekSpan::new(self.days.0, self.from.0, self.until.0, rate).ok()
    }
}

/// Days of the week: `daily`, `mon-fri`, `sat,sun`; bit 0 is Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days(u8);

impl FromStr for Days {
    type Err = DaysError;

    fn from_str(text: &str) -> Result<Self, DaysError> {
        let refuse = || DaysError { found: text.chars().take(80).collect() };
        if text.trim() == "daily" {
            return Ok(Self(0x7f));
        }
        let day = |name: &str| DAY_NAMES.iter().position(|day| *day == name.trim()).ok_or_else(refuse);
        let mut days = 0;
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (mut at, last) = (day(first)?, day(last)?);
            days |= 1 << at;
            // `sat-mon` runs over the end of the week.
            while at != last {
                at = (at + 1) % DAY_NAMES.len();
                days |= 1 << at;
            }
        }
        Ok(Self(days))
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0x7f {
            return f.write_str("daily");
        }
        let named = DAY_NAMES.iter().enumerate().filter(|(day, _)| self.0 >> day & 1 == 1);
        f.write_str(&named.map(|(_, name)| *name).collect::<Vec<_>>().join(","))
    }
}

/// Text that names no days.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected days such as `daily`, `mon-fri` or `sat,sun`, found {found:?}")]
pub struct DaysError {
    /// The first 80 characters of what was found.
    pub found: String,
}

/// A time of day such as `08:30`, from `00:00` to `24:00`; minutes since midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinuteOfDay(u16);

impl FromStr for MinuteOfDay {
    type Err = MinuteOfDayError;

    fn from_str(text: &str) -> Result<Self, MinuteOfDayError> {
        let refuse = || MinuteOfDayError { found: text.chars().take(80).collect() };
        let (hours, minutes) = text.split_once(':').ok_or_else(refuse)?;
        let number = |digits: &str, longest| {
            let plain = (1..=longest).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<u16>().ok().filter(|_| plain).ok_or_else(refuse)
        };
        let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
        let of_day = hours * 60 + minutes;
        if minutes >= 60 || of_day > 24 * 60 { Err(refuse()) } else { Ok(Self(of_day)) }
    }
}

impl fmt::Display for MinuteOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

/// Text that is no time of day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a time of day such as `08:30`, at most `24:00`, found {found:?}")]
pub struct MinuteOfDayError {
    /// The first 80 characters of what was found.
    pub found: String,
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(Days);
serde_as_text!(MinuteOfDay);

fn first_day() -> u8 {
    1
}

fn start_within() -> u8 {
    6
}

const DAY_NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const VOLUME_MIN: Bytes = Bytes(10_000_000);
const START_WITHIN_HOURS_MAX: u8 = 72;
const HOURS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_and_written() {
        for (text, bits, shown) in [
            ("daily", 0x7f, "daily"),
            ("mon-fri", 0x1f, "mon,tue,wed,thu,fri"),
            ("sat,sun", 0x60, "sat,sun"),
            ("sat-mon", 0x61, "mon,sat,sun"),
            ("wed, fri", 0x14, "wed,fri"),
        ] {
            let days: Days = text.parse().unwrap();
            assert_eq!((days.0, days.to_string().as_str()), (bits, shown), "{text}");
            assert_eq!(days.to_string().parse::<Days>().unwrap(), days);
        }
        for text in ["", "monday", "mon-", "mon-fri-sun", "mo", "1-5"] {
            assert!(text.parse::<Days>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_of_day_are_read_and_written() {
        for (text, minutes) in [("00:00", 0), ("8:30", 510), ("23:59", 1439), ("24:00", 1440)] {
            assert_eq!(text.parse::<MinuteOfDay>().unwrap(), MinuteOfDay(minutes), "{text}");
        }
        for text in ["", "8", "24:01", "12:60", "-1:00", "+1:00", "1:2:3", "100:00"] {
            assert!(text.parse::<MinuteOfDay>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_owners_word_reaches_the_policy() {
        let text = "[month]\nvolume = '2 TB'\nstart_day = 5\n[owner_first]\nlink = '1 Gbit/s'\n\
             [minimum]\nsync = 20\n[[hours]]\ndays = 'mon-fri'\nfrom = '08:00'\nuntil = '18:00'\n\
             rate = '8 Mbit/s'\nsync_rate = '0'\n";
        let config: BudgetConfig = toml::from_str(text).unwrap();
        config.check(Some(BytesPerSec(25_000_000))).unwrap();
        let terms = config.terms(Some(BytesPerSec(25_000_000)));
        assert_eq!(terms.cap, Some(BytesPerSec(25_000_000)));
        let quota = terms.quota.unwrap();
        assert_eq!((quota.volume, quota.start_day), (Bytes(2_000_000_000_000), 5));
        assert_eq!(quota.start_spread, Duration::from_secs(6 * 3600));
        assert_eq!(
            terms.owner_first,
            Some(OwnerFirst { link: BytesPerSec(125_000_000), margin: BytesPerSec(1_250_000) })
        );
        assert_eq!(terms.minimum.unwrap().of(2), 0.2);
        let monday = jiff::civil::date(2026, 3, 2).at(9, 0, 0, 0);
        assert_eq!(terms.hours.rate_at(monday), Some(BytesPerSec(1_000_000)));
        assert_eq!(config.receiving_hours().rate_at(monday), Some(BytesPerSec(0)));
        assert!(!config.is_plain() && BudgetConfig::default().is_plain());
    }
}
