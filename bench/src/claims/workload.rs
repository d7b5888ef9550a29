//! What customers ask for, drawn from a seed: files of heavy-tailed sizes, and arrivals.

use freshet_policy::draw::Draw;

/// A request that is going to be made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wish {
    /// Seconds after the beginning.
    pub(super) at: f64,
    /// Below the repository's root.
    pub(super) path: String,
    pub(super) bytes: u64,
}

/// Sizes between `low` and `high` with as many small ones as a bounded Pareto distribution of exponent 1.1 has, evenly
/// over its quantiles, so that few files have the whole range.
pub(super) fn sizes(count: usize, low: f64, high: f64) -> Vec<u64> {
    let quantile = |number: usize| (number as f64 + 0.5) / count as f64;
    (0..count).map(|number| pareto(quantile(number), low, high) as u64).collect()
}

fn pareto(share: f64, low: f64, high: f64) -> f64 {
    let ratio = (low / high).powf(ALPHA);
    low / (1.0 - share * (1.0 - ratio)).powf(1.0 / ALPHA)
}

/// Poisson arrivals for `secs` seconds, whose bytes come to `rate` per second in the mean; each asks for one of the files,
/// any as likely as another.
pub(super) fn poisson(files: &[(String, u64)], rate: f64, secs: f64, seed: u64) -> Vec<Wish> {
    let mean = files.iter().map(|(_, bytes)| *bytes).sum::<u64>() as f64 / files.len().max(1) as f64;
    let mut draw = Draw::new(seed);
    let mut wishes = Vec::new();
    let mut at = 0.0;
    loop {
        at += -(1.0 - draw.unit()).ln() * mean / rate;
        if at >= secs || files.is_empty() {
            return wishes;
        }
        let (path, bytes) = &files[draw.below(files.len())];
        wishes.push(Wish { at, path: path.clone(), bytes: *bytes });
    }
}

/// So many customers within `secs` seconds, each for one of the files in turn.
pub(super) fn crowd(files: &[(String, u64)], customers: usize, secs: f64, seed: u64) -> Vec<Wish> {
    let mut draw = Draw::new(seed);
    let mut arrivals: Vec<f64> = (0..customers).map(|_| draw.unit() * secs).collect();
    arrivals.sort_by(f64::total_cmp);
    let wish = |(at, (path, bytes)): (f64, &(String, u64))| Wish { at, path: path.clone(), bytes: *bytes };
    arrivals.into_iter().zip(files.iter().cycle()).map(wish).collect()
}

const ALPHA: f64 = 1.1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_whole_range_and_most_are_small() {
        let sizes = sizes(40, 1e6, 1e8);
        assert!(sizes.is_sorted() && sizes[0] >= 1_000_000 && sizes[39] <= 100_000_000, "{sizes:?}");
        assert!(sizes[39] > 20_000_000 && sizes[20] < 2_500_000, "{sizes:?}");
    }

    #[test]
    fn a_poisson_workload_has_its_rate_and_its_seed() {
        let files = vec![("a".to_owned(), 1_000), ("b".to_owned(), 3_000)];
        let wishes = poisson(&files, 20_000.0, 1_000.0, 5);
        let bytes: u64 = wishes.iter().map(|wish| wish.bytes).sum();
        assert!((bytes as f64 / 2e7 - 1.0).abs() < 0.05, "{bytes}");
        assert!(wishes.is_sorted_by(|a, b| a.at <= b.at) && wishes.iter().all(|wish| wish.at < 1_000.0));
        assert_eq!(wishes, poisson(&files, 20_000.0, 1_000.0, 5));
        assert_ne!(wishes, poisson(&files, 20_000.0, 1_000.0, 6));
        assert!(poisson(&[], 1.0, 10.0, 1).is_empty());
    }

    #[test]
    fn a_crowd_comes_in_its_time_and_asks_for_all_files() {
        let files = vec![("a".to_owned(), 1), ("b".to_owned(), 1)];
        let wishes = crowd(&files, 10, 4.0, 3);
        assert_eq!(wishes.len(), 10);
        assert!(wishes.iter().all(|wish| (0.0..4.0).contains(&wish.at)));
        assert_eq!(wishes.iter().filter(|wish| wish.path == "a").count(), 5);
    }
}
