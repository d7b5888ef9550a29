//! Who asks for what, and when: drawn from the seed before anything runs, so that two runs ask alike.
//!
//! It asks nobody itself; [`super::customer`] follows what is planned here.

use freshet_policy::draw::{Draw, mix};
use serde::{Deserialize, Serialize};

use super::experiment::{Arrivals, Requests};
use super::quantity::Span;

/// What one customer's host does in one phase.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Plan {
    /// Where files are asked for, `http://host:port`.
    pub(crate) front_door: String,
    /// When nothing new is asked for any more, milliseconds after the beginning.
    pub(crate) ends_ms: u64,
    /// What it asks for.
    pub(crate) asks: Asks,
}

/// Requests, in one of two orders.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Asks {
    /// Each at its moment, whatever becomes of the others.
    Each(Vec<Ask>),
    /// Several rows, in each of which one begins some time after the one before is done.
    Rows(Vec<Vec<Ask>>),
}

/// One request.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Ask {
    /// Milliseconds after the phase's beginning, or, in a row, after the one before was done.
    pub(crate) after_ms: u64,
    /// The file's path below the front door, encoded as in a URL.
    pub(crate) path: String,
}

/// The plans of a phase, one for each of `customers` hosts; `files` are those that may be asked for.
pub(crate) fn plans(
    requests: &Requests,
    lasts: Span,
    files: &[String],
    customers: usize,
    seed: u64,
) -> Vec<Asks> {
    let mut draw = Draw::new(mix(seed));
    let popularity = Popularity::new(files, requests.popularity, &mut draw);
    let ends = lasts.as_secs();
    match requests.arrivals() {
        Arrivals::PerSecond(rate) => {
            let mut each = vec![Vec::new(); customers];
            let mut now = exponential(&mut draw, 1.0 / rate);
            while now < ends && !files.is_empty() && customers > 0 {
                let ask = Ask { after_ms: (now * 1e3) as u64, path: popularity.draw(&mut draw) };
                each[draw.below(customers)].push(ask);
                now += exponential(&mut draw, 1.0 / rate);
            }
            each.into_iter().map(Asks::Each).collect()
        }
        Arrivals::AtOnce(count) => {
            let length = ((ends * ROW_PER_SECOND) as usize).clamp(1, ROW_MAX);
            let mut row = || {
                let mut ask = || {
                    let after_ms = (exponential(&mut draw, requests.think.as_secs()) * 1e3) as u64;
                    Ask { after_ms, path: popularity.draw(&mut draw) }
                };
                (0..if files.is_empty() { 0 } else { length }).map(|_| ask()).collect()
            };
            (0..customers).map(|_| Asks::Rows((0..count).map(|_| row()).collect())).collect()
        }
    }
}

/// A number from the exponential distribution of this mean.
fn exponential(draw: &mut Draw, mean: f64) -> f64 {
    -(1.0 - draw.unit()).ln() * mean
}

/// Files in the order of how much they are asked for, and how much that is.
struct Popularity<'a> {
    /// In an order drawn from the seed: the popular ones are not those whose names come first.
    ranked: Vec<&'a str>,
    /// How much the files up to each rank are asked for.
    cumulative: Vec<f64>,
}

impl<'a> Popularity<'a> {
    fn new(files: &'a [String], exponent: f64, draw: &mut Draw) -> Self {
        let mut ranked: Vec<&str> = files.iter().map(String::as_str).collect();
        for last in (1..ranked.len()).rev() {
            ranked.swap(last, draw.below(last + 1));
        }
        let weights = (1..=ranked.len()).map(|rank| (rank as f64).powf(-exponent));
        let cumulative = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self { cumulative: cumulative.collect(), ranked }
    }

    fn draw(&self, draw: &mut Draw) -> String {
        let all = self.cumulative.last().copied().unwrap_or_default();
        let wanted = draw.unit() * all;
        let rank = self.cumulative.partition_point(|&sum| sum <= wanted);
        self.ranked[rank.min(self.ranked.len() - 1)].to_owned()
    }
}

/// Nobody is taken to be done with more files than this in a second.
const ROW_PER_SECOND: f64 = 50.0;
const ROW_MAX: usize = 20_000;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn requests(text: &str) -> Requests {
        toml::from_str(text).unwrap()
    }

    fn files(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("f{number}")).collect()
    }

    #[test]
    fn one_seed_one_schedule_and_another_another() {
        for text in ["per_second = 20.0\npopularity = 0.8", "at_once = 3\nthink = \"1 s\""] {
            let of = |seed| plans(&requests(text), Span::secs(20), &files(30), 3, seed);
            assert_eq!(of(1), of(1));
            assert_ne!(of(1), of(2));
        }
    }

    #[test]
    fn as_many_are_asked_for_as_the_rate_says_within_the_time() {
        let plans = plans(&requests("per_second = 50.0"), Span::secs(100), &files(9), 4, 7);
        let count: usize = plans
            .iter()
            .map(|asks| {
                let Asks::Each(each) = asks else { panic!("expected single requests") };
                assert!(each.is_sorted_by_key(|ask| ask.after_ms) && each.len() > 1_000);
                assert!(each.iter().all(|ask| ask.after_ms < 100_000));
                each.len()
            })
            .sum();
        assert!((4_700..5_300).contains(&count), "{count}");
    }

    #[test]
    fn the_popular_are_asked_for_more() {
        let asked = |popularity: f64| {
            let requests = requests(&format!("per_second = 100.0\npopularity = {popularity:.1}"));
            let plans = plans(&requests, Span::secs(100), &files(100), 1, 3);
            let Asks::Each(each) = &plans[0] else { panic!("expected single requests") };
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            each.iter().for_each(|ask| *counts.entry(&ask.path).or_default() += 1);
            counts.into_values().max().unwrap() as f64 / each.len() as f64
        };
        // The first of a hundred has 1/5.19 of all by Zipf's law, and 1/100 when all are alike.
        assert!((0.17..0.22).contains(&asked(1.0)), "{}", asked(1.0));
        assert!(asked(0.0) < 0.02, "{}", asked(0.0));
    }

    #[test]
    fn nobody_asks_where_there_is_nothing() {
        for text in ["per_second = 20.0", "at_once = 3"] {
            let plans = plans(&requests(text), Span::secs(20), &[], 2, 1);
            assert!(plans.iter().all(|asks| match asks {
                Asks::Each(each) => each.is_empty(),
                Asks::Rows(rows) => rows.iter().all(Vec::is_empty),
            }));
        }
    }
}
