//! Request targets (RFC 9112 section 3.2): their forms, and a path decoded once into what a site may trust.

use std::borrow::Cow;

use super::Rejection;

/// A target in parts; all slices are of the text that was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// Origin-form or absolute-form.
    Resource {
        /// The authority of an absolute-form.
        authority: Option<&'a str>,
        /// Still encoded; starts with `/`, or is empty in an absolute-form, which means `/` (section 4.2.3 of RFC 9110).
        path: &'a str,
        /// What follows `?`.
        query: Option<&'a str>,
    },
    /// `*`, for OPTIONS only.
    Server,
    /// `host:port`, for CONNECT only.
    Authority,
}

impl<'a> Target<'a> {
    /// Takes the target apart.
    ///
    /// # Errors
    /// 400 for a form that HTTP/1.1 doesn't know, a fragment, or a byte outside visible ASCII.
    pub(crate) fn parse(text: &'a str, method: &str) -> Result<Self, Rejection> {
        if text.bytes().any(|byte| !(0x21..=0x7e).contains(&byte) || byte == b'#') {
            return Err(Rejection::bad(
                "expected a target of visible ASCII characters without a fragment; percent-encode the others\n",
            ));
        }
        if text.starts_with('/') {
            return Ok(Self::resource(None, text));
        }
        match method {
            "OPTIONS" if text == "*" => return Ok(Self::Server),
            "CONNECT" => return Ok(Self::Authority),
            _ => {}
        }
        for scheme in ["http://", "https://"] {
            let Some((start, rest)) = text.split_at_checked(scheme.len()) else { continue };
            if !start.eq_ignore_ascii_case(scheme) {
                continue;
            }
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            if authority.is_empty() || !is_authority(authority) {
                return Err(Rejection::bad("expected a host after the scheme of the target\n"));
            }
            return if path.starts_with('/') {
                Ok(Self::resource(Some(authority), path))
            } else {
                let query = path.strip_prefix('?');
                Ok(Self::Resource { authority: Some(authority), path: "", query })
            };
        }
        Err(Rejection::bad("expected a target that starts with / or http://\n"))
    }

    fn resource(authority: Option<&'a str>, text: &'a str) -> Self {
        match text.split_once('?') {
            Some((path, query)) => Self::Resource { authority, path, query: Some(query) },
            None => Self::Resource { authority, path: text, query: None },
        }
    }
}

/// Decodes a path once, merges empty segments, and refuses what could leave a tree.
///
/// # Errors
/// 400 for a broken escape, a NUL, or a `.` or `..` segment (also an encoded one).
pub(crate) fn decode_path(raw: &str) -> Result<Cow<'_, [u8]>, Rejection> {
    let bytes = raw.as_bytes();
    let plain = !bytes.contains(&b'%') && !bytes.windows(2).any(|pair| pair == b"//" || pair == b"/.");
    if plain {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        let byte = if byte == b'%' {
            let escape = after.first_chunk::<2>().and_then(|&[high, low]| Some(hex(high)? << 4 | hex(low)?));
            let Some(escape) = escape else {
                return Err(Rejection::bad("expected two hexadecimal digits after % in the path\n"));
            };
            rest = &after[2..];
            escape
        } else {
            rest = after;
            byte
        };
        if byte == 0 {
            return Err(Rejection::bad("expected a path without NUL\n"));
        }
        if byte != b'/' || decoded.last() != Some(&b'/') {
            decoded.push(byte);
        }
    }
    if decoded.split(|&byte| byte == b'/').any(|segment| segment == b"." || segment == b"..") {
        return Err(Rejection::bad(
            "expected a path without . and .. segments; resolve them before sending\n",
        ));
    }
    Ok(Cow::Owned(decoded))
}

/// Whether a `Host` value or authority has only the characters of RFC 3986 section 3.2 (no user information).
pub(crate) fn is_authority(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(&byte))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let parse = |text| Target::parse(text, "GET");
        assert_eq!(
            parse("/a?b?c").unwrap(),
            Target::Resource { authority: None, path: "/a", query: Some("b?c") }
        );
        assert_eq!(
            parse("HTTP://h:8/x").unwrap(),
            Target::Resource { authority: Some("h:8"), path: "/x", query: None }
        );
        assert_eq!(
            parse("http://h?q").unwrap(),
            Target::Resource { authority: Some("h"), path: "", query: Some("q") }
        );
        assert_eq!(Target::parse("*", "OPTIONS").unwrap(), Target::Server);
        for bad in ["*", "a", "http://", "http://u@h/", "ftp://h/", "/a#b", "/\u{e9}", "/a\u{7f}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn decodes_once() {
        let decode = |raw| decode_path(raw).map(Cow::into_owned);
        assert_eq!(decode("/a%20b").unwrap(), b"/a b");
        assert_eq!(decode("/%2541").unwrap(), b"/%41");
        assert_eq!(decode("//a///b/").unwrap(), b"/a/b/");
        assert_eq!(decode("/.hidden/..x").unwrap(), b"/.hidden/..x");
        for bad in ["/..", "/a/../b", "/%2e%2E/x", "/.", "/a/.", "/%00", "/%", "/%4", "/%zz", "/a%2f..%2fb"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }
}
