//! Median and quartiles of repeated measurements; no mean, because this kind of noise is one-sided.

use serde::Serialize;

/// Median with the quartiles around it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Lower quartile.
    pub(crate) q25: f64,
    /// Median.
    pub(crate) median: f64,
    /// Upper quartile.
    pub(crate) q75: f64,
    /// How many measurements.
    pub(crate) count: usize,
}

impl Spread {
    /// Of the finite ones among `values`; `None` when there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            let position = q * (values.len() - 1) as f64;
            let (low, high) = (position.floor() as usize, position.ceil() as usize);
            values[low] + (values[high] - values[low]) * position.fract()
        };
        (!values.is_empty()).then(|| Self {
            q25: quantile(0.25),
            median: quantile(0.5),
            q75: quantile(0.75),
            count: values.len(),
        })
    }

    /// `1.97 (1.90-2.04)`.
    pub(crate) fn text(&self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median, self.q25, self.q75)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_interpolated() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0, f64::NAN]).unwrap();
        assert_eq!((spread.q25, spread.median, spread.q75, spread.count), (1.75, 2.5, 3.25, 4));
        assert_eq!(Spread::of([7.0]).unwrap().text(), "7.00 (7.00-7.00)");
        assert_eq!(Spread::of([]), None);
    }
}
