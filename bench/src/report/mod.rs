//! Reports of whole experiments: one HTML file that needs nothing else, and the same as JSON lines. Nothing here
//! measures anything but the machine that it runs on.
//!
//! A [`Document`] is begun before the experiment, filled as it goes, and written at its end:
//!
//! ```ignore
//! let mut document = Document::begin("Ten volunteers", "What they deliver while a release arrives.");
//! document.seed(7);
//! document.parameter("volunteers", 10);
//! let mut table = Table::new("Who sent what").text("who").number("sent", "MB", 1);
//! table.row(cells!["v0", 12.25]);
//! document.section("Bytes").prose("By the kernel's counters.").table(table).figure("Rates", &lines.svg()?);
//! document.write(directory)?; // report.html and report.jsonl
//! ```

mod claim;
mod counters;
mod html;
mod provenance;
mod table;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

pub(crate) use self::claim::{Claim, Measured};
pub(crate) use self::counters::Counters;
use self::provenance::Provenance;
pub(crate) use self::table::{Cell, Table};

/// Cells of a table's row from whatever a cell can be made of.
macro_rules! cells {
    ($($value:expr),* $(,)?) => { vec![$($crate::report::Cell::from($value)),*] };
}
pub(crate) use cells;

/// A report that is being made: what was run where, and what came out.
#[derive(Debug)]
pub(crate) struct Document {
    title: String,
    about: String,
    parameters: Vec<(String, String)>,
    seed: Option<u64>,
    provenance: Provenance,
    begun: Timestamp,
    sections: Vec<Section>,
    records: Vec<Value>,
}

impl Document {
    /// Begins the report of an experiment that begins now: the time and the load are taken here.
    pub(crate) fn begin(title: &str, about: &str) -> Document {
        Document {
            title: title.to_owned(),
            about: about.to_owned(),
            parameters: Vec::new(),
            seed: None,
            provenance: Provenance::of_this_machine(),
            begun: Timestamp::now(),
            sections: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Notes a parameter of the experiment; the value says its unit.
    pub(crate) fn parameter(&mut self, name: &str, value: impl Display) -> &mut Document {
        self.parameters.push((name.to_owned(), value.to_string()));
        self
    }

    /// Notes what randomness was drawn from.
    pub(crate) fn seed(&mut self, seed: u64) -> &mut Document {
        self.seed = Some(seed);
        self
    }

    /// Notes the version of a program that took part.
    pub(crate) fn version(&mut self, program: &str, version: &str) -> &mut Document {
        self.provenance.program(program, version);
        self
    }

    /// Opens the next section.
    pub(crate) fn section(&mut self, heading: &str) -> &mut Section {
        self.sections.push(Section { heading: heading.to_owned(), blocks: Vec::new() });
        self.sections.last_mut().expect("one was pushed")
    }

    /// Opens a section that stands before all others.
    pub(crate) fn lead(&mut self, heading: &str) -> &mut Section {
        self.sections.insert(0, Section { heading: heading.to_owned(), blocks: Vec::new() });
        &mut self.sections[0]
    }

    /// The section that was opened last.
    ///
    /// # Panics
    /// When none was.
    pub(crate) fn latest(&mut self) -> &mut Section {
        self.sections.last_mut().expect("a section was opened")
    }

    /// Puts a line of its own into the JSON lines, beside those of tables and claims.
    ///
    /// # Errors
    /// When `value` can't be JSON, as a map whose keys aren't text.
    pub(crate) fn record(&mut self, kind: &str, value: &impl Serialize) -> Result<()> {
        let value = serde_json::to_value(value).with_context(|| format!("a record of {kind}"))?;
        self.records.push(json!({ "kind": kind, "value": value }));
        Ok(())
    }

    /// Writes `report.html` and `report.jsonl` into the directory, which is made, and gives the former's path.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn write(&self, directory: &Path) -> Result<PathBuf> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join("report.html");
        self.write_html(&path)?;
        self.write_json_lines(&directory.join("report.jsonl"))?;
        Ok(path)
    }

    /// Writes the report as one HTML file without scripts, whose styles and plots are in it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write_html(&self, path: &Path) -> Result<()> {
        fs::write(path, html::page(self)).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes what was run, then every claim, table's row and record as a line of JSON each.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write_json_lines(&self, path: &Path) -> Result<()> {
        fs::write(path, self.json_lines()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn json_lines(&self) -> String {
        let mut lines = vec![json!({
            "kind": "run",
            "title": self.title,
            "begun": self.begun.to_string(),
            "ended": Timestamp::now().to_string(),
            "parameters": self.parameters.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "seed": self.seed,
            "provenance": self.provenance.json(),
        })];
        for section in &self.sections {
            for block in &section.blocks {
                match block {
                    Block::Claims(claims) => lines.extend(claims.iter().map(Claim::json)),
                    Block::Table(table) | Block::Folded { table, .. } => {
                        lines.extend(table.json(&section.heading));
                    }
                    Block::Prose(_) | Block::Quote(_) | Block::Figure { .. } | Block::Text { .. } => {}
                }
            }
        }
        lines.extend(self.records.iter().cloned());
        lines.into_iter().map(|line| format!("{line}\n")).collect()
    }
}

/// A part of a report under a heading of its own; what is added to it stands in that order.
#[derive(Debug)]
pub(crate) struct Section {
    heading: String,
    blocks: Vec<Block>,
}

#[derive(Debug)]
enum Block {
    Prose(String),
    Quote(String),
    Table(Table),
    Claims(Vec<Claim>),
    Figure { caption: String, svg: String },
    Text { summary: String, text: String },
    Folded { summary: String, table: Table },
}

impl Section {
    /// Adds a paragraph; an empty line begins another.
    pub(crate) fn prose(&mut self, text: &str) -> &mut Section {
        for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
            self.blocks.push(Block::Prose(paragraph.trim().to_owned()));
        }
        self
    }

    /// Adds somebody else's words.
    pub(crate) fn quote(&mut self, text: &str) -> &mut Section {
        self.blocks.push(Block::Quote(text.to_owned()));
        self
    }

    /// Adds a table.
    pub(crate) fn table(&mut self, table: Table) -> &mut Section {
        self.blocks.push(Block::Table(table));
        self
    }

    /// Adds rows of what was claimed and what was measured.
    pub(crate) fn claims(&mut self, claims: Vec<Claim>) -> &mut Section {
        self.blocks.push(Block::Claims(claims));
        self
    }

    /// Adds a plot: SVG as `crate::plot` makes it, which is put into the page as it is.
    pub(crate) fn figure(&mut self, caption: &str, svg: &str) -> &mut Section {
        self.blocks.push(Block::Figure { caption: caption.to_owned(), svg: svg.to_owned() });
        self
    }

    /// Adds our counters beside the harness's, and says whether they agree; nothing where nobody counted.
    pub(crate) fn counters(&mut self, counters: &Counters) -> &mut Section {
        if counters.is_empty() {
            return self;
        }
        let verdict = if counters.agree() { "agree" } else { "do not agree" };
        self.prose(&format!(
            "The volunteers' own counters and the harness's {verdict} within 0.1 %: they differ by at most {:.4} %.",
            counters.worst() * 100.0
        ));
        self.blocks.push(Block::Folded {
            summary: "Every interface, by both counts".to_owned(),
            table: counters.table("Bytes since the experiment's beginning"),
        });
        self
    }

    /// Adds text as it is, such as a configuration or an answer, folded away behind `summary`.
    pub(crate) fn text(&mut self, summary: &str, text: &str) -> &mut Section {
        self.blocks.push(Block::Text { summary: summary.to_owned(), text: text.to_owned() });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::Lines;
    use crate::spread::Spread;

    fn everything() -> Document {
        let mut document = Document::begin("A <title> & more", "About \"this\".");
        document.seed(7).parameter("links <", "10 Mbit/s").version("curl", "8 & a half");
        let mut table = Table::new("Bytes <by> host").text("host").number("sent", "MB", 1);
        table.row(cells!["<script>alert(1)</script>", 12.25]).row(cells!["v1", None::<f64>]);
        let lines = Lines {
            title: "a & b",
            x: "s",
            y: "MB",
            series: &[("<one>".to_owned(), vec![[0.0, 0.0], [1.0, 2.0]])],
            reference: None,
        };
        document
            .section("What <came> out")
            .prose("First & last.\n\nSecond.")
            .table(table)
            .claims(vec![Claim {
                number: 1,
                figure: "origin's bytes < rsync's".to_owned(),
                claimed: "significantly & so".to_owned(),
                measured: Measured::spread(Spread::of([2.0, 3.0]).unwrap(), "×", 1, true),
                simulated: false,
            }])
            .figure("Caption <&>", &lines.svg().unwrap())
            .text("a file", "<b>x</b> & y");
        document.record("own", &json!({ "a": 1 })).unwrap();
        document
    }

    #[test]
    fn what_was_measured_cannot_become_markup() {
        let page = html::page(&everything());
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("<b>x"), "{page}");
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(page.contains("A &lt;title&gt; &amp; more"));
    }

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_else() {
        let page = html::page(&everything());
        if let Err(why) = balanced(&page) {
            panic!("{why}\n{page}");
        }
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        for part in ["prefers-color-scheme: dark", "name=\"viewport\"", "<svg", "12.2", "10 Mbit/s", "seed"] {
            assert!(page.contains(part), "{part} is missing");
        }
    }

    #[test]
    fn an_unclosed_element_would_be_noticed() {
        assert!(balanced("<!DOCTYPE html><a><b></a></b>").is_err());
        assert!(balanced("<a>x < y</a>").is_err());
        assert!(balanced("<a>x & y</a>").is_err());
        assert!(balanced("<a").is_err());
        assert_eq!(balanced("<a c=\"1 &lt; 2\">x &amp; <b/></a>"), Ok(()));
    }

    #[test]
    fn every_line_is_json_and_none_is_lost() {
        let text = everything().json_lines();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["run", "row", "row", "claim", "own"]);
        assert_eq!(lines[0]["seed"], 7);
        assert_eq!(lines[1]["row"]["sent, MB"], 12.25);
        assert_eq!(lines[2]["row"]["sent, MB"], Value::Null);
        assert_eq!(lines[3]["median"], 2.5);
    }

    #[test]
    fn both_files_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = everything().write(&directory.path().join("new")).unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("<!DOCTYPE html>"));
        assert!(path.with_extension("jsonl").exists());
    }

    /// Whether every element that is opened is closed in order, as in XML; its text has no bare `<` or `&`.
    fn balanced(page: &str) -> std::result::Result<(), String> {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = page;
        while let Some(at) = rest.find(['<', '&']) {
            let here = &rest[at..];
            let shown = &here[..here.floor_char_boundary(40)];
            if let Some(named) = here.strip_prefix('&') {
                let entity = named.split_once(';').map(|(name, _)| name);
                match entity {
                    Some("amp" | "lt" | "gt" | "quot" | "apos" | "#39") => rest = named,
                    _ => return Err(format!("a bare & at {shown}")),
                }
                continue;
            }
            let (tag, after) = here[1..].split_once('>').ok_or(format!("unended at {shown}"))?;
            rest = after;
            if tag.starts_with('!') || tag.ends_with('/') {
                continue;
            }
            let name = tag.split_whitespace().next().unwrap_or_default();
            match name.strip_prefix('/') {
                Some(name) if open.pop() == Some(name) => {}
                Some(name) => return Err(format!("</{name}> closes what is not open")),
                None if name.starts_with(|c: char| c.is_ascii_alphabetic()) && !name.contains('<') => {
                    open.push(name);
                }
                None => return Err(format!("a bare < at {shown}")),
            }
        }
        if open.is_empty() { Ok(()) } else { Err(format!("left open: {open:?}")) }
    }
}
