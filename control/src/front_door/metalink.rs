//! A Metalink document (RFC 5854): size, checksums, and where the file can be had. No I/O.

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use crate::catalog::FileEntry;

/// The document for one file under the name it was asked for by; `urls` in the order of preference, `origin`
/// the document's own URL.
pub(super) fn document(entry: &FileEntry<'_>, name: &str, urls: &[String], origin: &str) -> Vec<u8> {
    let mut document = Vec::with_capacity(DOCUMENT_BYTES_USUAL);
    write(&mut Writer::new_with_indent(&mut document, b' ', 2), entry, name, urls, origin)
        .expect("writing to memory does not fail");
    document.push(b'\n');
    document
}

fn write(
    writer: &mut Writer<&mut Vec<u8>>,
    entry: &FileEntry<'_>,
    name: &str,
    urls: &[String],
    origin: &str,
) -> std::io::Result<()> {
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let root = writer.create_element("metalink").with_attribute(("xmlns", NAMESPACE));
    root.write_inner_content(|writer| {
        let generator = concat!("freshet/", env!("CARGO_PKG_VERSION"));
        writer.create_element("generator").write_text_content(BytesText::new(generator))?;
        let element = writer.create_element("origin").with_attribute(("dynamic", "true"));
        element.write_text_content(BytesText::new(origin))?;
        let file = writer.create_element("file").with_attribute(("name", name));
        file.write_inner_content(|writer| {
            let size = entry.size.to_string();
            writer.create_element("size").write_text_content(BytesText::new(&size))?;
            for (kind, digits) in
                [("sha-256", entry.checksums.sha256_hex()), ("md4", entry.checksums.md4_hex())]
            {
                let hash = writer.create_element("hash").with_attribute(("type", kind));
                hash.write_text_content(BytesText::new(&digits))?;
            }
            for (url, priority) in urls.iter().zip(1u32..) {
                let priority = priority.to_string();
                let element = writer.create_element("url").with_attribute(("priority", priority.as_str()));
                element.write_text_content(BytesText::new(url))?;
            }
            Ok(())
        })?;
        Ok(())
    })?;
    Ok(())
}

/// RFC 5854 section 5.1.
pub(super) const CONTENT_TYPE: &str = "application/metalink4+xml";
const NAMESPACE: &str = "urn:ietf:params:xml:ns:metalink";
const DOCUMENT_BYTES_USUAL: usize = 2_048;
