//! Amounts and rates as people write them: `200 Mbit/s`, `64 KiB`, `2 TB`.
//!
//! Inside, amounts are bytes and rates are bytes per second. MiB is 2^20, MB is 10^6.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// A rate in bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BytesPerSec(pub u64);

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text);
        let factor = AMOUNTS.iter().find(|(name, _)| *name == unit).map(|&(_, factor)| factor);
        scale(text, number, factor, "an amount such as `64 KiB`, `500 MB` or `2 TB`").map(Self)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{} B", self.0);
        for (unit, factor) in [("KiB", 1u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)] {
            if self.0 >= factor {
                text = if self.0.is_multiple_of(factor) {
                    format!("{} {unit}", self.0 / factor)
                } else {
                    format!("{:.1} {unit}", self.0 as f64 / factor as f64)
                };
            }
        }
        f.pad(&text)
    }
}

impl BytesPerSec {
    /// The same rate in bits per second.
    pub fn bits_per_sec(self) -> u64 {
        self.0.saturating_mul(8)
    }
}

impl FromStr for BytesPerSec {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text);
        if number == "0" && unit.is_empty() {
            // Nothing is nothing in any unit.
            return Ok(Self(0));
        }
        let expected = "a rate such as `200 Mbit/s`, `1 Gbit/s` or `10 MB/s`";
        let rate = unit.strip_suffix("/s").unwrap_or("");
        if let Some(&(_, factor)) = BIT_RATES.iter().find(|(name, _)| *name == rate) {
            return scale(text, number, Some(factor), expected).map(|bits| Self(bits / 8));
        }
        let factor =
            AMOUNTS.iter().find(|(name, _)| *name == rate && !name.is_empty()).map(|&(_, factor)| factor);
        scale(text, number, factor, expected).map(Self)
    }
}

impl fmt::Display for BytesPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bits_per_sec() as f64;
        let text = match self.bits_per_sec() {
            0..1_000 => format!("{bits:.0} bit/s"),
            1_000..1_000_000 => format!("{} kbit/s", trimmed(bits / 1e3)),
            1_000_000..1_000_000_000 => format!("{} Mbit/s", trimmed(bits / 1e6)),
            _ => format!("{} Gbit/s", trimmed(bits / 1e9)),
        };
        f.pad(&text)
    }
}

/// Text that is no amount or rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found:?}")]
pub struct UnitError {
    /// What would have been right.
    pub expected: &'static str,
    /// What came.
    pub found: String,
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(self.0)
            }
        }

        /// A number of bytes (per second), or text with a unit.
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if !deserializer.is_human_readable() {
                    return u64::deserialize(deserializer).map(Self);
                }
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a whole number of bytes, or text with a unit")
                    }
                    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<$name, E> {
                        Ok($name(value))
                    }
                    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<$name, E> {
                        u64::try_from(value).map($name).map_err(|_| E::custom("must not be negative"))
                    }
                    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<$name, E> {
                        value.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}
serde_as_text!(Bytes);
serde_as_text!(BytesPerSec);

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

fn scale(text: &str, number: &str, factor: Option<u64>, expected: &'static str) -> Result<u64, UnitError> {
    let refuse = || UnitError { expected, found: text.chars().take(80).collect() };
    let factor = factor.ok_or_else(refuse)?;
    let number = number.replace('_', "");
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(refuse);
    }
    let value = number.parse::<f64>().map_err(|_| refuse())? * factor as f64;
    if value.is_finite() && (0.0..1.8e19).contains(&value) { Ok(value.round() as u64) } else { Err(refuse()) }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

const AMOUNTS: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const BIT_RATES: &[(&str, u64)] =
    &[("bit", 1), ("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000), ("Tbit", 1_000_000_000_000)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_rates_are_read_as_people_write_them() {
        assert_eq!("64 KiB".parse(), Ok(Bytes(65_536)));
        assert_eq!("1.5GB".parse(), Ok(Bytes(1_500_000_000)));
        assert_eq!("0".parse(), Ok(Bytes(0)));
        assert_eq!("0".parse(), Ok(BytesPerSec(0)));
        assert_eq!("200 Mbit/s".parse(), Ok(BytesPerSec(25_000_000)));
        assert_eq!("10 MB/s".parse(), Ok(BytesPerSec(10_000_000)));
        assert_eq!(BytesPerSec(25_000_000).to_string(), "200 Mbit/s");
        assert_eq!(Bytes(65_536).to_string(), "64 KiB");
    }

    #[test]
    fn what_has_no_clear_unit_is_refused() {
        for text in ["", "200", "200 Mbit", "fast", "-1 Mbit/s", "1e400 Mbit/s", "5 /s"] {
            assert!(text.parse::<BytesPerSec>().is_err(), "{text:?}");
        }
        for text in ["", "x", "12 furlongs", "-3", "99999999999999999999 TB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text:?}");
        }
    }
}
