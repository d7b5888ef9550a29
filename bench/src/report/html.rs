//! A document as one HTML page: styles and plots are in it, it has no scripts and asks nobody for anything.
//!
//! The markup is also well-formed XML. Plots keep the colours of the light page in their attributes; the styles give
//! them others where the reader's system is dark.

use std::fmt::Write as _;

use super::{Block, Claim, Document, Measured, Section, Table};

/// The whole page.
pub(super) fn page(document: &Document) -> String {
    let mut page = String::with_capacity(64 * 1_024);
    let title = escaped(&document.title);
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    let _ = writeln!(page, "<p class=\"about\">{}</p>", escaped(&document.about));
    let begun = document.begun.strftime("%Y-%m-%d %H:%M UTC");
    let minutes = (jiff::Timestamp::now() - document.begun).total(jiff::Unit::Minute).unwrap_or_default();
    let _ = writeln!(page, "<p class=\"when\">Begun {begun}; it took {minutes:.1} minutes.</p>");
    for one in &document.sections {
        section(&mut page, one);
    }
    page.push_str("<section>\n<h2>How it was run</h2>\n");
    let mut parameters = document.parameters.clone();
    parameters.extend(document.seed.map(|seed| ("seed".to_owned(), seed.to_string())));
    pairs(&mut page, "Parameters", &parameters);
    pairs(&mut page, "Versions and machine", &document.provenance.rows());
    page.push_str("</section>\n</main>\n</body>\n</html>\n");
    page
}

fn section(page: &mut String, section: &Section) {
    let _ = writeln!(page, "<section>\n<h2>{}</h2>", escaped(&section.heading));
    for block in &section.blocks {
        let _ = match block {
            Block::Prose(text) => writeln!(page, "<p>{}</p>", escaped(text)),
            Block::Quote(text) => writeln!(page, "<blockquote>{}</blockquote>", escaped(text)),
            Block::Figure { caption, svg } => {
                let caption = escaped(caption);
                writeln!(
                    page,
                    "<figure>\n<div class=\"wide\">{svg}</div>\n<figcaption>{caption}</figcaption>\n</figure>"
                )
            }
            Block::Text { summary, text } => {
                let (summary, text) = (escaped(summary), escaped(text));
                writeln!(page, "<details>\n<summary>{summary}</summary>\n<pre>{text}</pre>\n</details>")
            }
            Block::Table(one) => {
                table(page, one);
                Ok(())
            }
            Block::Folded { summary, table: one } => {
                let _ = writeln!(page, "<details>\n<summary>{}</summary>", escaped(summary));
                table(page, one);
                writeln!(page, "</details>")
            }
            Block::Claims(all) => {
                claims(page, all);
                Ok(())
            }
        };
    }
    page.push_str("</section>\n");
}

fn table(page: &mut String, table: &Table) {
    page.push_str("<div class=\"wide\">\n<table>\n");
    let _ = writeln!(page, "<caption>{}</caption>\n<thead>\n<tr>", escaped(&table.caption));
    let class = |figures: bool| if figures { " class=\"figure\"" } else { "" };
    for column in &table.columns {
        let header = escaped(&column.header());
        let _ = writeln!(page, "<th scope=\"col\"{}>{header}</th>", class(column.decimals.is_some()));
    }
    page.push_str("</tr>\n</thead>\n<tbody>\n");
    for row in &table.rows {
        page.push_str("<tr>");
        for (column, cell) in table.columns.iter().zip(row) {
            let shown = escaped(&column.shown(cell));
            let _ = write!(page, "<td{}>{shown}</td>", class(column.decimals.is_some()));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
}

/// On a wide screen a table; on a narrow one each row is a card, because seven columns fit on no phone.
fn claims(page: &mut String, claims: &[Claim]) {
    page.push_str("<table class=\"claims\">\n<thead>\n<tr>\n");
    for (header, class) in [
        ("claim", ""),
        ("figure", ""),
        ("claimed", ""),
        ("measured", " class=\"figure\""),
        ("quartiles", " class=\"figure\""),
        ("", ""),
    ] {
        let _ = writeln!(page, "<th scope=\"col\"{class}>{header}</th>");
    }
    page.push_str("</tr>\n</thead>\n<tbody>\n");
    for claim in claims {
        let measured = &claim.measured;
        let simulated = if claim.simulated { " <em>simulated</em>" } else { "" };
        let spread_class = if matches!(measured, Measured::NotRun { .. }) { "why" } else { "figure" };
        let verdict = measured.verdict();
        let _ = writeln!(
            page,
            "<tr><td class=\"number\">{}</td><td class=\"what\">{}{simulated}</td><td class=\"claimed\">{}</td>\
             <td class=\"figure\"><strong>{}</strong></td><td class=\"{spread_class}\">{}</td>\
             <td><span class=\"verdict {}\">{verdict}</span></td></tr>",
            claim.number,
            escaped(&claim.figure),
            escaped(&claim.claimed),
            escaped(&measured.figure()),
            escaped(&measured.spread_text()),
            verdict.replace(' ', "-"),
        );
    }
    page.push_str("</tbody>\n</table>\n");
}

fn pairs(page: &mut String, caption: &str, pairs: &[(String, String)]) {
    if pairs.is_empty() {
        return;
    }
    let _ = writeln!(page, "<h3>{}</h3>\n<dl>", escaped(caption));
    for (name, value) in pairs {
        let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value));
    }
    page.push_str("</dl>\n");
}

/// Text in which nothing is markup any more, also within quotes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot;

    #[test]
    fn every_colour_of_a_plot_has_another_on_a_dark_page() {
        for (red, green, blue) in plot::PALETTE {
            for attribute in ["fill", "stroke"] {
                let rule = format!("svg [{attribute}=\"#{red:02X}{green:02X}{blue:02X}\"]");
                assert!(STYLE.contains(&rule), "{rule} is missing");
            }
        }
    }

    #[test]
    fn escaping_holds_within_quotes() {
        assert_eq!(escaped("a\"b'c<&>"), "a&quot;b&#39;c&lt;&amp;&gt;");
    }
}
