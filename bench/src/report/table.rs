//! Tables of a report: columns that have units and figures that stand below each other.

use serde_json::{Map, Value, json};

use crate::columns;

/// Rows under named columns.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(super) caption: String,
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<Cell>>,
}

#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    unit: &'static str,
    /// Digits behind the point; `None` where the column holds text.
    pub(super) decimals: Option<usize>,
}

/// What stands in one place of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    /// Words.
    Text(String),
    /// A figure, shown with as many digits as its column has.
    Number(f64),
    /// Nothing was measured.
    None,
}

impl Table {
    /// A table without columns; the caption stands above it.
    pub(crate) fn new(caption: &str) -> Table {
        Table { caption: caption.to_owned(), columns: Vec::new(), rows: Vec::new() }
    }

    /// Adds a column of words.
    #[must_use]
    pub(crate) fn text(mut self, name: &str) -> Table {
        self.columns.push(Column { name: name.to_owned(), unit: "", decimals: None });
        self
    }

    /// Adds a column of figures in `unit` (empty where they have none), shown with so many digits behind the point.
    #[must_use]
    pub(crate) fn number(mut self, name: &str, unit: &'static str, decimals: usize) -> Table {
        self.columns.push(Column { name: name.to_owned(), unit, decimals: Some(decimals) });
        self
    }

    /// Adds a row.
    ///
    /// # Panics
    /// When it has not as many cells as there are columns.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) -> &mut Table {
        assert_eq!(cells.len(), self.columns.len(), "a row has a cell for each column of {}", self.caption);
        self.rows.push(cells);
        self
    }

    /// As plain text for a terminal.
    pub(crate) fn plain(&self) -> String {
        let header: Vec<String> = self.columns.iter().map(Column::header).collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let first = self.columns.iter().position(|column| column.decimals.is_some());
        let mut table = columns::table(&header, first.unwrap_or(header.len()));
        for row in &self.rows {
            table.add_row(row.iter().zip(&self.columns).map(|(cell, column)| column.shown(cell)));
        }
        format!("{}\n", table.trim_fmt())
    }

    /// One line for each row, by the names of the columns.
    pub(super) fn json<'a>(&'a self, section: &'a str) -> impl Iterator<Item = Value> + 'a {
        self.rows.iter().map(move |row| {
            let cells = self.columns.iter().zip(row).map(|(column, cell)| (column.header(), cell.json()));
            json!({
                "kind": "row",
                "section": section,
                "table": self.caption,
                "row": cells.collect::<Map<String, Value>>(),
            })
        })
    }
}

impl Column {
    /// `sent, MB`
    pub(super) fn header(&self) -> String {
        if self.unit.is_empty() { self.name.clone() } else { format!("{}, {}", self.name, self.unit) }
    }

    pub(super) fn shown(&self, cell: &Cell) -> String {
        match cell {
            Cell::Text(text) => text.clone(),
            Cell::Number(number) if number.is_finite() => {
                format!("{number:.*}", self.decimals.unwrap_or_default())
            }
            Cell::Number(_) | Cell::None => "–".to_owned(),
        }
    }
}

impl Cell {
    fn json(&self) -> Value {
        match self {
            Cell::Text(text) => json!(text),
            // Not all of them are numbers in JSON: what is none becomes null.
            Cell::Number(number) => json!(number),
            Cell::None => Value::Null,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Cell {
        Cell::Number(number)
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Cell {
        Cell::Number(number as f64)
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Cell {
        Cell::Number(number as f64)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Cell {
        value.map_or(Cell::None, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::cells;

    #[test]
    fn figures_have_their_columns_digits_and_what_is_not_there_a_dash() {
        let mut table = Table::new("t").text("who").number("sent", "MB", 2).number("files", "", 0);
        table.row(cells!["a", 1.005_f64, 3_u64]).row(cells!["b", f64::NAN, None::<u64>]);
        let plain = table.plain();
        assert!(plain.contains("sent, MB"), "{plain}");
        assert!(plain.contains("1.00") && plain.contains(" 3"), "{plain}");
        assert_eq!(plain.matches('–').count(), 2, "{plain}");
    }

    #[test]
    #[should_panic(expected = "a row has a cell for each column")]
    fn a_short_row_is_refused() {
        Table::new("t").text("a").text("b").row(cells!["only one"]);
    }
}
