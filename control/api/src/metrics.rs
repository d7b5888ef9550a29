//! Figures for monitoring as OpenMetrics text: gathered anew for each scrape, written by `prometheus-client`.
//!
//! It keeps nothing between two scrapes: every value is read where it is counted.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// Labels of one sample.
pub type Labels = Vec<(&'static str, String)>;

/// What one scrape shows.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    families: Vec<Family>,
}

#[derive(Clone, Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    counter: bool,
    samples: Vec<(Labels, Value)>,
}

/// A sample's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// Any number.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(u64::from(value))
    }
}

impl Scrape {
    /// A number that only grows while the process lives; its name is written with `_total` behind it.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: impl Into<Value>) {
        self.counters(name, help, [(Vec::new(), value)]);
    }

    /// The same, by labels.
    pub fn counters<V: Into<Value>>(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) {
        self.add(name, help, true, samples);
    }

    /// A number that is as it is just now.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: impl Into<Value>) {
        self.gauges(name, help, [(Vec::new(), value)]);
    }

    /// The same, by labels.
    pub fn gauges<V: Into<Value>>(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) {
        self.add(name, help, false, samples);
    }

    fn add<V: Into<Value>>(
        &mut self,
        name: &'static str,
        help: &'static str,
        counter: bool,
        samples: impl IntoIterator<Item = (Labels, V)>,
    ) {
        let samples = samples.into_iter().map(|(labels, value)| (labels, value.into())).collect();
        self.families.push(Family { name, help, counter, samples });
    }

    /// The text of the answer, of type [`CONTENT_TYPE`].
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("writing to a String can't fail, and no collector here does");
        text
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.families {
            let kind = if family.counter { MetricType::Counter } else { MetricType::Gauge };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (labels, value) in &family.samples {
                if labels.is_empty() {
                    write(&mut metric, family.counter, *value)?;
                } else {
                    write(&mut metric.encode_family(labels)?, family.counter, *value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder<'_>, counter: bool, value: Value) -> fmt::Result {
    match (counter, value) {
        (true, Value::Whole(value)) => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        (true, Value::Real(value)) => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        (false, Value::Whole(value)) => metric.encode_gauge(&value),
        (false, Value::Real(value)) => metric.encode_gauge(&value),
    }
}

/// `Content-Type` of [`Scrape::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_with_their_labels_and_an_end() {
        let mut scrape = Scrape::default();
        scrape.counter("freshet_things", "Things seen", 7);
        scrape.gauges(
            "freshet_heat",
            "How warm it is",
            [(vec![("room", "a \"b\"\n\\".to_owned())], 0.5), (vec![("room", "c".to_owned())], 2.0)],
        );
        scrape.gauges::<u64>("freshet_nothing", "Nobody is here", []);
        let text = scrape.text();
        assert!(text.contains("# TYPE freshet_things counter\nfreshet_things_total 7\n"), "{text}");
        assert!(text.contains("freshet_heat{room=\"a \\\"b\\\"\\n\\\\\"} 0.5\n"), "{text}");
        assert!(text.contains("# TYPE freshet_nothing gauge\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn large_counters_keep_every_digit() {
        let mut scrape = Scrape::default();
        scrape.counter("freshet_bytes", "Bytes", u64::MAX);
        assert!(scrape.text().contains("freshet_bytes_total 18446744073709551615\n"));
    }
}
