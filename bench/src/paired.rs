//! Whether pairs of measurements differ: the sign test, and the bootstrap's interval of the median ratio.
//!
//! Both make no assumption on how the noise is distributed. The bootstrap's draws are the same in every run.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

use crate::spread::Spread;

/// What the ratios of pairs say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Paired {
    /// Of the ratios.
    pub(crate) spread: Spread,
    /// Where the median lies with 95 % confidence (percentile bootstrap).
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// How likely at least as many pairs on one side are if neither were favoured (two-sided sign test).
    pub(crate) p: f64,
}

impl Paired {
    /// Of the finite ones among the ratios; `None` when there are none.
    pub(crate) fn of(ratios: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = ratios.iter().copied().filter(|ratio| ratio.is_finite()).collect();
        let spread = Spread::of(ratios.iter().copied())?;
        let mut random = SmallRng::seed_from_u64(SEED);
        let mut draw = || Spread::of((0..ratios.len()).map(|_| ratios[random.random_range(0..ratios.len())]));
        let mut medians: Vec<f64> = (0..DRAWS).filter_map(|_| Some(draw()?.median)).collect();
        medians.sort_by(f64::total_cmp);
        let at = |q: f64| medians[((medians.len() - 1) as f64 * q).round() as usize];
        let above = ratios.iter().filter(|&&ratio| ratio > 1.0).count();
        let below = ratios.iter().filter(|&&ratio| ratio < 1.0).count();
        Some(Self { spread, low: at(0.025), high: at(0.975), p: sign_test(above, below) })
    }

    /// In a few words: by how much it is less or more, if by anything.
    pub(crate) fn verdict(&self) -> String {
        let percent = |ratio: f64| (ratio - 1.0) * 100.0;
        let (low, median, high) = (percent(self.low), percent(self.spread.median), percent(self.high));
        let seen = self.p < SIGNIFICANT && (self.high < 1.0 || self.low > 1.0);
        match seen {
            true => format!("{median:+.1} % ({low:+.1} to {high:+.1})"),
            false => format!("none seen ({low:+.1} to {high:+.1} %)"),
        }
    }
}

/// The two-sided probability of a split at least as uneven; ties are left out before.
fn sign_test(above: usize, below: usize) -> f64 {
    let (few, all) = (above.min(below), above + below);
    let mut term = 0.5f64.powi(i32::try_from(all).unwrap_or(i32::MAX));
    let mut sum = term;
    for hit in 1..=few {
        term *= (all - hit + 1) as f64 / hit as f64;
        sum += term;
    }
    (2.0 * sum).min(1.0)
}

const DRAWS: usize = 10_000;
const SEED: u64 = 95;
const SIGNIFICANT: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_test_is_the_binomials() {
        assert_eq!(sign_test(0, 0), 1.0);
        assert_eq!(sign_test(5, 5), 1.0);
        assert!((sign_test(0, 5) - 0.0625).abs() < 1e-12);
        // Two of ten or fewer: 56 of 1024, twice.
        assert!((sign_test(8, 2) - 0.109_375).abs() < 1e-12);
    }

    #[test]
    fn a_loss_is_seen_and_noise_is_not() {
        let loss: Vec<f64> = (0..15).map(|n| 0.95 + 0.002 * f64::from(n % 5)).collect();
        let seen = Paired::of(&loss).unwrap();
        assert!(seen.high < 1.0 && seen.p < 0.001 && seen.verdict().starts_with("-4."), "{seen:?}");
        let noise: Vec<f64> = (0..15).map(|n| 0.97 + 0.01 * f64::from(n % 7)).collect();
        let unseen = Paired::of(&noise).unwrap();
        assert!(unseen.low <= 1.0 && unseen.high >= 1.0, "{unseen:?}");
        assert!(unseen.verdict().starts_with("none seen"), "{}", unseen.verdict());
        assert_eq!(Paired::of(&[f64::NAN]), None);
    }
}
