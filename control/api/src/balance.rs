//! The knobs that an operator turns while control runs (`ctl balance`), their bounds, and who turned them when.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::units::BytesPerSec;

/// Every knob, checked. What is not set is at its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// How a volunteer is chosen for a request.
    pub selection: SelectionRule,
    /// How much longer than at `customer_rate` a customer may wait, seconds (1 ..= 3,600): what a volunteer may have
    /// promised at most, and delivery's target towards sync's.
    pub customer_wait_secs: u64,
    /// The least rate that a customer is offered: a volunteer takes no more than it can give that much.
    pub customer_rate: BytesPerSec,
    /// How late a mirror may have a new release, seconds (10 ..= 604,800): sync's target towards delivery's.
    pub sync_wait_secs: u64,
    /// What the origin's uplink gives to customers that no volunteer can take; who comes beyond it is told when to come
    /// back. `None` for no limit.
    pub origin_rate: Option<BytesPerSec>,
    /// By which law delivery and sync share a volunteer's rate.
    pub arbiter: ArbiterRule,
    /// Delivery's part under `fixed-split`, hundredths (0 ..= 100).
    pub delivery_percent: u32,
    /// Whether volunteers that leave it to control are told what to hold.
    pub placement: bool,
    /// Stable volunteers that hold each collection, at least (1 ..= 1,000).
    pub placement_copies: u32,
    /// Uplink of those that hold something, in multiples of what is asked of it (1 ..= 100).
    pub placement_headroom: f64,
    /// From this demand on a file is hot, and volatile volunteers hold it too.
    pub hot_rate: BytesPerSec,
    /// A volunteer that is there this part of the time may hold collections, hundredths (0 ..= 100).
    pub stable_percent: u32,
    /// And that stays this long once it has come, seconds (0 ..= 31,536,000).
    pub stable_secs: u64,
    /// Whether a volunteer near the customer is preferred.
    pub nearness: bool,
}

/// How a volunteer is chosen for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SelectionRule {
    /// The less expected finish time of two that are drawn by their rates.
    #[default]
    ExpectedFinishTime,
    /// The less loaded of two, by their last reports.
    TwoChoices,
    /// The least loaded, by their last reports.
    LeastReportedLoad,
    /// A draw by the operator's weights, as other redirectors do.
    StaticWeights,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
}

/// By which law delivery and sync share a volunteer's rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArbiterRule {
    /// What is nearly copied goes before customers, what is far from it behind them; while customers wait, mirrors copy
    /// one after the other.
    ShortestRemaining,
    /// Both equally late, each towards its own target.
    #[default]
    EqualLateness,
    /// Customers first.
    DeliveryFirst,
    /// Mirrors first.
    SyncFirst,
    /// Always `delivery_percent`.
    FixedSplit,
    /// Nobody says anything: who asks first is served first.
    Off,
}

impl SelectionRule {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::ExpectedFinishTime,
        Self::TwoChoices,
        Self::LeastReportedLoad,
        Self::StaticWeights,
        Self::RoundRobin,
        Self::Random,
    ];
}

impl ArbiterRule {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::ShortestRemaining,
        Self::EqualLateness,
        Self::DeliveryFirst,
        Self::SyncFirst,
        Self::FixedSplit,
        Self::Off,
    ];
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            selection: SelectionRule::default(),
            customer_wait_secs: 30,
            customer_rate: BytesPerSec(125_000),
            sync_wait_secs: 1_800,
            origin_rate: None,
            arbiter: ArbiterRule::default(),
            delivery_percent: 50,
            placement: true,
            placement_copies: 3,
            placement_headroom: 2.0,
            hot_rate: BytesPerSec(1_000_000),
            stable_percent: 95,
            stable_secs: 86_400,
            nearness: true,
        }
    }
}

impl Balance {
    /// [`Balance::customer_wait_secs`].
    pub fn customer_wait(&self) -> Duration {
        Duration::from_secs(self.customer_wait_secs)
    }

    /// The same with one knob turned; `value` as a person types it, `default` for its default, `none` for none.
    ///
    /// # Errors
    /// [`BalanceError`] for a knob that is none, or a value out of its bounds.
    pub fn with(&self, knob: &str, value: &str) -> Result<Self, BalanceError> {
        let invalid = |expected: String| BalanceError::Value {
            knob: knob.chars().take(KNOB_CHARS_MAX).collect(),
            found: value.chars().take(VALUE_CHARS_MAX).collect(),
            expected,
        };
        let mut knobs = knobs(self);
        let defaults = self::knobs(&Self::default());
        let Some(default) = defaults.get(knob) else {
            return Err(BalanceError::Knob {
                found: knob.chars().take(KNOB_CHARS_MAX).collect(),
                known: defaults.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
            });
        };
        let given = match value {
            "default" => default.clone(),
            "none" => Value::Null,
            text => match (text.parse::<u64>(), text.parse::<f64>(), text) {
                (Ok(number), ..) => number.into(),
                (_, Ok(number), _) => number.into(),
                (.., "true" | "on" | "yes") => true.into(),
                (.., "false" | "off" | "no") if default.is_boolean() => false.into(),
                _ => text.into(),
            },
        };
        knobs.insert(knob.to_owned(), given);
        let balance: Self =
            serde_json::from_value(Value::Object(knobs)).map_err(|_| invalid(kind(knob, default, value)))?;
        balance.check().map_err(|(_, expected)| invalid(expected))?;
        Ok(balance)
    }

    /// Whether every knob is within its bounds; otherwise its name and what would be right.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        fn within<T: PartialOrd + std::fmt::Display>(
            knob: &'static str,
            value: &T,
            least: T,
            most: T,
        ) -> Result<(), (&'static str, String)> {
            if *value >= least && *value <= most { Ok(()) } else { Err((knob, format!("{least} to {most}"))) }
        }
        within("customer_wait_secs", &self.customer_wait_secs, 1, 3_600)?;
        within("customer_rate", &self.customer_rate, BytesPerSec(1_000), BytesPerSec(1 << 40))?;
        within("sync_wait_secs", &self.sync_wait_secs, 10, 604_800)?;
        if let Some(rate) = &self.origin_rate {
            within("origin_rate", rate, BytesPerSec(1_000), BytesPerSec(1 << 40))?;
        }
        within("delivery_percent", &self.delivery_percent, 0, 100)?;
        within("placement_copies", &self.placement_copies, 1, 1_000)?;
        within("placement_headroom", &self.placement_headroom, 1.0, 100.0)?;
        within("hot_rate", &self.hot_rate, BytesPerSec(1), BytesPerSec(1 << 40))?;
        within("stable_percent", &self.stable_percent, 0, 100)?;
        within("stable_secs", &self.stable_secs, 0, 31_536_000)
    }

    /// Every knob with its value as a person reads it, in the order of their names.
    pub fn shown(&self) -> Vec<(String, String)> {
        let rates = [
            ("customer_rate", Some(self.customer_rate)),
            ("origin_rate", self.origin_rate),
            ("hot_rate", Some(self.hot_rate)),
        ];
        let shown = knobs(self).into_iter().map(|(knob, value)| {
            let rate = rates.iter().find(|(name, _)| *name == knob).and_then(|(_, rate)| *rate);
            let text = match (rate, value) {
                (Some(rate), _) => rate.to_string(),
                (None, Value::Null) => "none".to_owned(),
                (None, Value::String(text)) => text,
                (None, value) => value.to_string(),
            };
            (knob, text)
        });
        shown.collect()
    }
}

/// What a knob takes, in words, when `value` is of another kind.
fn kind(knob: &str, default: &Value, value: &str) -> String {
    match knob {
        "selection" => names(&SelectionRule::ALL),
        "arbiter" => names(&ArbiterRule::ALL),
        "origin_rate" => format!("{}, or `none`", rate_words(value)),
        "customer_rate" | "hot_rate" => rate_words(value).to_owned(),
        _ if default.is_boolean() => "`on` or `off`".to_owned(),
        _ if default.is_u64() => "a whole number".to_owned(),
        _ => "a number".to_owned(),
    }
}

fn rate_words(value: &str) -> &'static str {
    value.parse::<BytesPerSec>().map_or_else(|error| error.expected, |_| "a rate")
}

fn names<T: Serialize>(all: &[T]) -> String {
    let name =
        |one: &T| serde_json::to_value(one).ok().and_then(|name| Some(format!("`{}`", name.as_str()?)));
    let names: Vec<String> = all.iter().filter_map(name).collect();
    match names.split_last() {
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
        None => String::new(),
    }
}

fn knobs(balance: &Balance) -> serde_json::Map<String, Value> {
    match serde_json::to_value(balance) {
        Ok(Value::Object(knobs)) => knobs,
        _ => unreachable!("a struct of plain fields is an object"),
    }
}

/// What can't be turned so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalanceError {
    /// No knob.
    #[error("expected one of {known}; found {found:?}")]
    Knob {
        /// What came.
        found: String,
        /// What there is.
        known: String,
    },
    /// No value for it.
    #[error("`{knob}`: expected {expected}, found {found:?}")]
    Value {
        /// Which.
        knob: String,
        /// What came.
        found: String,
        /// What would be right.
        expected: String,
    },
}

/// `POST /v1/admin/balance`: turns one knob.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetKnob {
    /// Which.
    pub knob: String,
    /// To what, as a person types it.
    pub value: String,
}

/// `POST /v1/admin/balance/revert`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revert {
    /// How many of the last changes are undone (1 ..= [`CHANGES_MAX`]).
    pub changes: usize,
}

/// A knob that was turned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Seconds since the epoch.
    pub at: u64,
    /// Whose key it was.
    pub who: String,
    /// Which knob.
    pub knob: String,
    /// From what.
    pub before: String,
    /// To what.
    pub after: String,
}

/// `GET /v1/admin/balance`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BalanceView {
    /// Every knob.
    pub knobs: Vec<KnobView>,
    /// What was changed, newest first.
    pub changes: Vec<Change>,
    /// What each volunteer is told.
    #[serde(default)]
    pub shares: Vec<ShareView>,
}

/// A knob.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnobView {
    /// Its name.
    pub knob: String,
    /// What it is at.
    pub value: String,
    /// What it would be at.
    pub default: String,
}

/// How a volunteer's rate is shared, and by which numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShareView {
    /// Who.
    pub name: String,
    /// Delivery's part, hundredths.
    pub delivery_percent: f32,
    /// What it can send.
    pub rate: BytesPerSec,
    /// Bytes promised to customers there.
    pub delivery_backlog: u64,
    /// Bytes that other mirrors want from it.
    pub sync_backlog: u64,
    /// For how long the slowest mirror has been behind, seconds.
    pub sync_age_secs: u64,
    /// How much more than usual what is being synced is asked for.
    pub urgency: f32,
    /// How late customers are towards their target at this share.
    pub delivery_lateness: f64,
    /// How late mirrors are towards theirs.
    pub sync_lateness: f64,
}

/// Changes that are kept and can be undone, at most.
pub const CHANGES_MAX: usize = 200;
const KNOB_CHARS_MAX: usize = 60;
const VALUE_CHARS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knobs_are_turned_as_people_type_them() {
        let balance = Balance::default();
        let turned = |knob, value| balance.with(knob, value).unwrap();
        assert_eq!(turned("customer_wait_secs", "12").customer_wait_secs, 12);
        assert_eq!(turned("origin_rate", "200 Mbit/s").origin_rate, Some(BytesPerSec(25_000_000)));
        assert_eq!(turned("arbiter", "off").arbiter, ArbiterRule::Off);
        assert_eq!(turned("selection", "round-robin").selection, SelectionRule::RoundRobin);
        assert!(!turned("placement", "off").placement && turned("nearness", "on").nearness);
        assert!((turned("placement_headroom", "3").placement_headroom - 3.0).abs() < 1e-9);
        let set = turned("origin_rate", "1 Gbit/s");
        assert_eq!(set.with("origin_rate", "none").unwrap(), balance);
        assert_eq!(set.with("origin_rate", "default").unwrap(), balance);
    }

    #[test]
    fn what_is_no_knob_or_out_of_bounds_is_refused_with_what_would_be_right() {
        let refused = |knob: &str, value: &str| Balance::default().with(knob, value).unwrap_err().to_string();
        assert!(refused("custmer_wait_secs", "3").contains("customer_wait_secs"));
        assert!(refused("customer_wait_secs", "0").contains("1 to 3600"));
        assert_eq!(
            refused("customer_wait_secs", "none"),
            "`customer_wait_secs`: expected a whole number, found \"none\""
        );
        assert_eq!(
            refused("customer_rate", "fast"),
            "`customer_rate`: expected a rate such as `200 Mbit/s`, `1 Gbit/s` or `10 MB/s`, found \"fast\""
        );
        assert!(refused("origin_rate", "fast").contains("`10 MB/s`, or `none`, found"));
        assert_eq!(
            refused("arbiter", "fair"),
            "`arbiter`: expected `shortest-remaining`, `equal-lateness`, `delivery-first`, `sync-first`, `fixed-split` \
             or `off`, found \"fair\""
        );
        assert!(refused("placement_headroom", "0.5").contains("1 to 100"));
        assert_eq!(refused("placement", "3"), "`placement`: expected `on` or `off`, found \"3\"");
    }

    #[test]
    fn every_rule_that_can_be_chosen_is_named() {
        fn chosen<T: for<'de> Deserialize<'de>>() -> String {
            serde_json::from_str::<T>("\"?\"").err().unwrap().to_string()
        }
        for (refusal, named) in [
            (chosen::<SelectionRule>(), names(&SelectionRule::ALL)),
            (chosen::<ArbiterRule>(), names(&ArbiterRule::ALL)),
        ] {
            let all: Vec<&str> = refusal.split('`').skip(3).step_by(2).collect();
            assert!(all.len() == 6 && all.iter().all(|one| named.contains(&format!("`{one}`"))), "{refusal}");
        }
    }

    #[test]
    fn every_knob_is_shown_and_what_is_shown_can_be_typed() {
        let balance = Balance { origin_rate: Some(BytesPerSec(12_500_000)), ..Balance::default() };
        for (knob, value) in balance.shown() {
            assert_eq!(balance.with(&knob, &value).unwrap(), balance, "{knob} {value}");
        }
    }
}
