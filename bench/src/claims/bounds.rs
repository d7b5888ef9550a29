//! The least that links allow, and measures of evenness: arithmetic only.

pub(super) use crate::sync::PAYLOAD_PART;

/// Payload per second of a link of so many Mbit/s.
pub(super) fn payload_rate(mbit: f64) -> f64 {
    mbit * 125_000.0 * PAYLOAD_PART
}

/// Seconds from the beginning in which requests of `bytes` each, that arrive at `arrivals`, can be served at the soonest
/// by links that send `rate` together, when one customer takes at most `customer_rate`: a fluid that flows as soon as it
/// is asked for.
pub(super) fn crowd_secs_min(arrivals: &[f64], bytes: f64, rate: f64, customer_rate: f64) -> f64 {
    let mut arrivals = arrivals.to_vec();
    arrivals.sort_by(f64::total_cmp);
    let last = arrivals.last().copied().unwrap_or_default();
    // What arrives from some moment on can't be sent before it.
    let queued = arrivals
        .iter()
        .enumerate()
        .map(|(before, &arrival)| arrival + (arrivals.len() - before) as f64 * bytes / rate);
    queued.fold(last + bytes / customer_rate, f64::max)
}

/// Standard deviation over mean; 0 where nothing is.
pub(super) fn variation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    if mean <= 0.0 {
        return 0.0;
    }
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
    variance.sqrt() / mean
}

/// The value that this share of them does not exceed, by the nearest rank.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_bound_by_the_links_or_by_the_last_customer() {
        // Ten at once: all of their bytes over the rate.
        assert!((crowd_secs_min(&[0.0; 10], 100.0, 50.0, 1_000.0) - 20.0).abs() < 1e-9);
        // One after the other, slowly: the last one's own time.
        assert!((crowd_secs_min(&[0.0, 100.0], 100.0, 50.0, 20.0) - 105.0).abs() < 1e-9);
        // A crowd late in the day is not served before it comes.
        let arrivals = [0.0, 60.0, 60.0, 60.0];
        assert!((crowd_secs_min(&arrivals, 100.0, 10.0, 1_000.0) - 90.0).abs() < 1e-9);
        assert!(crowd_secs_min(&[], 1.0, 1.0, 1.0).is_finite());
    }

    #[test]
    fn evenness() {
        assert_eq!(variation(&[2.0, 2.0]), 0.0);
        assert!((variation(&[1.0, 3.0]) - 0.5).abs() < 1e-9);
        assert_eq!(variation(&[]), 0.0);
        assert_eq!(variation(&[0.0, 0.0]), 0.0);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(quantile(&[7.0], 0.0), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_link_carries_headers_too() {
        assert!((payload_rate(8.0) - 956_406.9).abs() < 0.1);
    }
}
