//! Times, queues and shares as people write them in an experiment's file: `30 s`, `50 ms`, `64 KiB`, `0.5 %`.
//!
//! Amounts and rates are those of the whole project (`freshet_api`).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use freshet_api::Bytes;
use serde::{Deserialize, Serialize};

/// A length of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Span(Duration);

impl Span {
    /// Of whole seconds.
    pub(crate) const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// Of thousandths of a second.
    pub(crate) const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// As the standard library has it.
    pub(crate) const fn duration(self) -> Duration {
        self.0
    }

    /// In seconds.
    pub(crate) fn as_secs(self) -> f64 {
        self.0.as_secs_f64()
    }
}

impl FromStr for Span {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, unit) = split(text);
        let factor = SPANS.iter().find(|(name, _)| *name == unit).map(|&(_, factor)| factor);
        let number: Option<f64> = number.parse().ok();
        let (Some(number), Some(factor)) = (number, factor) else {
            bail!("expected a time such as `30 s`, `50 ms` or `2 min`, found `{text}`");
        };
        Duration::try_from_secs_f64(number * factor)
            .map(Self)
            .map_err(|_| anyhow!("expected a time of less than a year, found `{text}`"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_secs_f64() * 1e3;
        if self.0.as_millis() >= 1_000 || self.0.is_zero() {
            f.pad(&format!("{} s", millis / 1e3))
        } else {
            f.pad(&format!("{millis} ms"))
        }
    }
}

/// How much waits before a link: so long, or so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Queue {
    /// What the link passes in this time.
    Time(Span),
    /// This much.
    Bytes(Bytes),
}

impl FromStr for Queue {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let time = text.parse().map(Queue::Time);
        time.or_else(|_| text.parse().map(Queue::Bytes))
            .map_err(|_| anyhow!("expected a queue such as `50 ms` or `64 KiB`, found `{text}`"))
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Queue::Time(time) => time.fmt(f),
            Queue::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

/// A share between nothing and all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Percent(f64);

impl Percent {
    /// In hundredths.
    pub(crate) fn percent(self) -> f64 {
        self.0
    }

    /// Whether it is nothing.
    pub(crate) fn is_zero(self) -> bool {
        self.0 == 0.0
    }
}

impl FromStr for Percent {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse().ok());
        match number {
            Some(percent) if (0.0..=100.0).contains(&percent) => Ok(Self(percent)),
            _ => bail!("expected a share such as `0.5 %`, from 0 to 100, found `{text}`"),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}

macro_rules! text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = anyhow::Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}
text!(Span);
text!(Queue);
text!(Percent);

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

const SPANS: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3_600.0)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_comes_back() {
        for text in ["30 s", "50 ms", "1.5 s", "0 s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("2 min".parse::<Span>().unwrap(), Span::secs(120));
        assert_eq!("64 KiB".parse::<Queue>().unwrap(), Queue::Bytes(Bytes(65_536)));
        assert_eq!("50ms".parse::<Queue>().unwrap().to_string(), "50 ms");
        assert_eq!("0.5 %".parse::<Percent>().unwrap().to_string(), "0.5 %");
    }

    #[test]
    fn what_is_none_is_refused_with_an_example() {
        for text in ["", "30", "s", "-1 s", "1e30 h", "ten s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert!("101 %".parse::<Percent>().is_err());
        let error = "5".parse::<Percent>().unwrap_err().to_string();
        assert!(error.contains("0.5 %") && error.contains("`5`"), "{error}");
        assert!("50 Mbit/s".parse::<Queue>().unwrap_err().to_string().contains("64 KiB"));
    }
}
