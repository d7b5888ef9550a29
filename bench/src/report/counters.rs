//! Our counters beside the harness's own, interface by interface: every report says whether the two agree.

use super::{Cell, Table, cells};

/// Bytes of interfaces in both directions, by us and by the harness, over the same time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    host: String,
    interface: String,
    direction: &'static str,
    ours: u64,
    harness: u64,
}

impl Counters {
    /// Adds an interface: received and sent bytes as our programs counted them, and as the harness read them from
    /// the kernel in the host's namespace.
    pub(crate) fn add(&mut self, host: &str, interface: &str, ours: [u64; 2], harness: [u64; 2]) {
        for (direction, ours, harness) in [("received", ours[0], harness[0]), ("sent", ours[1], harness[1])] {
            let (host, interface) = (host.to_owned(), interface.to_owned());
            self.rows.push(Row { host, interface, direction, ours, harness });
        }
    }

    /// Adds those of another experiment, whose hosts get `before` before their names.
    pub(crate) fn extend(&mut self, before: &str, others: Counters) {
        self.rows
            .extend(others.rows.into_iter().map(|row| Row { host: format!("{before}{}", row.host), ..row }));
    }

    /// Whether nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The largest difference of an interface and direction, as a part of what the harness read.
    pub(crate) fn worst(&self) -> f64 {
        self.rows.iter().map(Row::difference).fold(0.0, f64::max)
    }

    /// Whether no interface differs by more than [`AGREE`].
    pub(crate) fn agree(&self) -> bool {
        self.worst() <= AGREE
    }

    /// All of it as a table.
    pub(crate) fn table(&self, caption: &str) -> Table {
        let mut table = Table::new(caption)
            .text("host")
            .text("interface")
            .text("direction")
            .number("our counters", "bytes", 0)
            .number("the harness's", "bytes", 0)
            .number("difference", "%", 4)
            .text("within 0.1 %");
        for row in &self.rows {
            let difference = row.difference();
            let within = if difference <= AGREE { "yes" } else { "no" };
            let mut cells: Vec<Cell> = cells![row.host.as_str(), row.interface.as_str(), row.direction];
            cells.extend(cells![row.ours, row.harness, difference * 100.0, within]);
            table.row(cells);
        }
        table
    }
}

impl Row {
    fn difference(&self) -> f64 {
        self.ours.abs_diff(self.harness) as f64 / self.harness.max(1) as f64
    }
}

/// Parts of an interface's bytes by which our counters may differ from the harness's.
pub(crate) const AGREE: f64 = 0.001;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_interface_that_differs_is_enough() {
        let mut counters = Counters::default();
        assert!(counters.is_empty() && counters.agree());
        counters.add("v0", "eth0", [1_000_000, 2_000_000], [1_000_500, 2_000_000]);
        assert!(counters.agree(), "{}", counters.worst());
        counters.add("v1", "eth0", [1_000_000, 2_000_000], [1_000_000, 2_002_100]);
        assert!(!counters.agree());
        let plain = counters.table("c").plain();
        assert_eq!(plain.lines().count(), 5, "{plain}");
        assert_eq!(plain.matches(" no").count(), 1, "{plain}");
    }
}
