//! What was claimed beside what was measured: a row of the table that a reader looks for first.

use serde_json::{Value, json};

use crate::spread::Spread;

/// One figure of a claim.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// Which claim it belongs to, as experiments are numbered.
    pub(crate) number: u8,
    /// What was looked at.
    pub(crate) figure: String,
    /// What was claimed, or what would have to come out for the claim to hold.
    pub(crate) claimed: String,
    /// What came out.
    pub(crate) measured: Measured,
    /// Whether it is the outcome of a simulation; everything else is of real programs.
    pub(crate) simulated: bool,
}

/// What came out of looking at a claim.
#[derive(Clone, Debug)]
pub(crate) enum Measured {
    /// A figure.
    Spread {
        /// Median and quartiles.
        spread: Spread,
        /// Of the figure; empty where it has none.
        unit: &'static str,
        /// Digits behind the point.
        decimals: usize,
        /// Whether the claim holds; `None` where the figure only says how much.
        holds: Option<bool>,
    },
    /// It could not be looked at.
    NotRun {
        /// What is missing, or what failed.
        why: String,
    },
}

impl Measured {
    /// A figure that the claim stands or falls with.
    pub(crate) fn spread(spread: Spread, unit: &'static str, decimals: usize, holds: bool) -> Measured {
        Measured::Spread { spread, unit, decimals, holds: Some(holds) }
    }

    /// A figure that belongs to the claim and decides nothing.
    pub(crate) fn told(spread: Spread, unit: &'static str, decimals: usize) -> Measured {
        Measured::Spread { spread, unit, decimals, holds: None }
    }

    /// The figure with its unit, then the quartiles where there were several measurements.
    pub(crate) fn figure(&self) -> String {
        match self {
            Measured::Spread { spread, unit, decimals, .. } => {
                let space = if unit.is_empty() || *unit == "×" { "" } else { " " };
                format!("{:.*}{space}{unit}", decimals, spread.median)
            }
            Measured::NotRun { .. } => "not run".to_owned(),
        }
    }

    /// `1.1–1.4, n = 5`, or why there is none.
    pub(crate) fn spread_text(&self) -> String {
        match self {
            Measured::Spread { spread, .. } if spread.count == 1 => "n = 1".to_owned(),
            Measured::Spread { spread, decimals, .. } => {
                format!("{:.*}–{:.*}, n = {}", decimals, spread.q25, decimals, spread.q75, spread.count)
            }
            Measured::NotRun { why } => why.clone(),
        }
    }

    /// `holds`, `does not hold`, `not run`, or nothing where nothing was to be decided.
    pub(crate) fn verdict(&self) -> &'static str {
        match self {
            Measured::Spread { holds: Some(true), .. } => "holds",
            Measured::Spread { holds: Some(false), .. } => "does not hold",
            Measured::Spread { holds: None, .. } => "",
            Measured::NotRun { .. } => "not run",
        }
    }
}

impl Claim {
    pub(super) fn json(&self) -> Value {
        let mut line = json!({
            "kind": "claim",
            "claim": self.number,
            "figure": self.figure,
            "claimed": self.claimed,
            "simulated": self.simulated,
            "verdict": self.measured.verdict(),
        });
        match &self.measured {
            Measured::Spread { spread, unit, .. } => {
                line["median"] = json!(spread.median);
                line["q25"] = json!(spread.q25);
                line["q75"] = json!(spread.q75);
                line["count"] = json!(spread.count);
                line["unit"] = json!(unit);
            }
            Measured::NotRun { why } => line["why"] = json!(why),
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_shown_with_unit_and_spread() {
        let measured = Measured::spread(Spread::of([1.0, 2.0, 3.0]).unwrap(), "s", 1, true);
        assert_eq!((measured.figure(), measured.verdict()), ("2.0 s".to_owned(), "holds"));
        assert_eq!(measured.spread_text(), "1.5–2.5, n = 3");
        let factor = Measured::told(Spread::of([4.0]).unwrap(), "×", 0);
        assert_eq!(
            (factor.figure(), factor.spread_text(), factor.verdict()),
            ("4×".into(), "n = 1".into(), "")
        );
    }

    #[test]
    fn what_was_not_run_says_why() {
        let measured = Measured::NotRun { why: "aria2 is not installed".to_owned() };
        assert_eq!(
            (measured.verdict(), measured.spread_text().as_str()),
            ("not run", "aria2 is not installed")
        );
        let claim =
            Claim { number: 3, figure: "f".to_owned(), claimed: "c".to_owned(), measured, simulated: false };
        assert_eq!(claim.json()["why"], "aria2 is not installed");
    }
}
