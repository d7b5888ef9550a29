//! A directory as a page of links. Names come from the repository, and are escaped all the same.

use std::fmt::Write as _;

use bytes::Bytes;
use freshet_engine::Body;
use http::{HeaderValue, StatusCode, header};
use quick_xml::escape::escape;

use super::fields::encode_name;
use crate::catalog::{ItemKind, ListItem};

/// The page of `directory` (relative, empty for the root); at most [`ITEMS_MAX`] of its items.
pub(super) fn page(directory: &str, items: &[ListItem]) -> Body {
    let title = escape(format!("/{directory}")).into_owned();
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <style>table{{border-spacing:1em 0}}td:nth-child(n+2){{text-align:right}}</style></head>\n\
         <body><h1>{title}</h1>\n<table>\n"
    );
    if !directory.is_empty() {
        page.push_str("<tr><td><a href=\"../\">../</a></td></tr>\n");
    }
    for item in items.iter().take(ITEMS_MAX) {
        row(&mut page, item);
    }
    page.push_str("</table>\n");
    if items.len() > ITEMS_MAX {
        let _ = writeln!(page, "<p>and {} more, which can be asked for by name</p>", items.len() - ITEMS_MAX);
    }
    page.push_str("</body></html>\n");
    Body {
        status: StatusCode::OK,
        bytes: Bytes::from(page),
        content_type: HeaderValue::from_static("text/html; charset=utf-8"),
        etag: None,
        last_modified: None,
        headers: vec![
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
            ),
        ],
    }
}

fn row(page: &mut String, item: &ListItem) {
    let slash = if item.kind == ItemKind::Directory { "/" } else { "" };
    let (href, name) = (encode_name(&item.name), escape(&item.name));
    let _ = write!(page, "<tr><td><a href=\"{href}{slash}\">{name}{slash}</a></td>");
    if let ItemKind::File { size, mtime, .. } = item.kind {
        let time =
            jiff::Timestamp::from_second(mtime).map(|time| time.strftime("%Y-%m-%d %H:%M").to_string());
        let _ = write!(page, "<td>{}</td><td>{size}</td>", time.unwrap_or_default());
    }
    page.push_str("</tr>\n");
}

/// Items on one page at most.
const ITEMS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use freshet_api::FileId;

    use super::*;

    #[test]
    fn names_can_do_no_harm() {
        let items = [
            ListItem { name: "<script>".into(), kind: ItemKind::Directory },
            ListItem {
                name: "a\"b&c.deb".into(),
                kind: ItemKind::File { file: FileId(1), size: 12, mtime: 0 },
            },
        ];
        let body = page("x<y", &items);
        let text = std::str::from_utf8(&body.bytes).unwrap();
        assert!(!text.contains("<script>") && text.contains("&lt;script&gt;"), "{text}");
        assert!(text.contains("href=\"./a%22b%26c.deb\"") && text.contains("1970-01-01 00:00"), "{text}");
        assert!(text.contains("/x&lt;y"), "{text}");
    }

    #[test]
    fn a_page_is_bounded() {
        let item = ListItem { name: "a".into(), kind: ItemKind::Directory };
        let body = page("", &vec![item; ITEMS_MAX + 5]);
        let text = std::str::from_utf8(&body.bytes).unwrap();
        assert_eq!(text.matches("<tr>").count(), ITEMS_MAX);
        assert!(text.contains("and 5 more"));
    }
}
