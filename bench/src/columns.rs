//! The plain table of every report: columns without lines, figures aligned to the right.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// An empty table whose columns from `figures` on hold figures.
pub(crate) fn table(header: &[&str], figures: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for column in figures..header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
