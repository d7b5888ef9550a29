//! `Content-Type` by a path's ending: package and repository types first, then the maintained table of `mime_guess`.

use ::http::HeaderValue;

/// The type of a file of this path; `application/octet-stream` when nothing better is known.
pub(crate) fn of_path(path: &[u8]) -> HeaderValue {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let Ok(name) = std::str::from_utf8(name) else { return HeaderValue::from_static(UNKNOWN) };
    if let Some(&(_, kind)) = WHOLE_NAMES.iter().find(|(known, _)| *known == name) {
        return HeaderValue::from_static(kind);
    }
    let Some((_, extension)) = name.rsplit_once('.') else { return HeaderValue::from_static(UNKNOWN) };
    let lower = extension.to_ascii_lowercase();
    if let Some(&(_, kind)) = EXTENSIONS.iter().find(|(known, _)| *known == lower) {
        return HeaderValue::from_static(kind);
    }
    match mime_guess::from_ext(&lower).first_raw() {
        Some("text/plain") => HeaderValue::from_static(TEXT),
        Some(kind) => HeaderValue::from_static(kind),
        None => HeaderValue::from_static(UNKNOWN),
    }
}

const UNKNOWN: &str = "application/octet-stream";

const TEXT: &str = "text/plain; charset=utf-8";

/// Files of Debian, RPM and checksum metadata that have no extension.
const WHOLE_NAMES: [(&str, &str); 10] = [
    ("InRelease", TEXT),
    ("Release", TEXT),
    ("Packages", TEXT),
    ("Sources", TEXT),
    ("MD5SUMS", TEXT),
    ("SHA1SUMS", TEXT),
    ("SHA256SUMS", TEXT),
    ("SHA512SUMS", TEXT),
    ("CHECKSUM", TEXT),
    ("README", TEXT),
];

/// Package formats, images and the compressions they come in; the outermost ending decides, since the engine
/// never sends a `Content-Encoding`.
const EXTENSIONS: [(&str, &str); 30] = [
    ("deb", "application/vnd.debian.binary-package"),
    ("udeb", "application/vnd.debian.binary-package"),
    ("ddeb", "application/vnd.debian.binary-package"),
    ("dsc", "text/prs.debian.dsc"),
    ("rpm", "application/x-rpm"),
    ("drpm", "application/x-rpm"),
    ("apk", "application/octet-stream"),
    ("whl", "application/zip"),
    ("crate", "application/gzip"),
    ("gem", "application/x-tar"),
    ("iso", "application/vnd.efi.iso"),
    ("img", "application/octet-stream"),
    ("qcow2", "application/octet-stream"),
    ("zst", "application/zstd"),
    ("zck", "application/octet-stream"),
    ("xz", "application/x-xz"),
    ("lz4", "application/x-lz4"),
    ("bz2", "application/x-bzip2"),
    ("gz", "application/gzip"),
    ("tgz", "application/gzip"),
    ("torrent", "application/x-bittorrent"),
    ("metalink", "application/metalink+xml"),
    ("meta4", "application/metalink4+xml"),
    ("jigdo", "application/x-jigdo"),
    ("gpg", "application/pgp-encrypted"),
    ("sig", "application/pgp-signature"),
    ("asc", "application/pgp-signature"),
    ("md5", TEXT),
    ("sha256", TEXT),
    ("xml", "text/xml"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_types() {
        for (path, kind) in [
            (&b"pool/a/apt_2.7.deb"[..], "application/vnd.debian.binary-package"),
            (b"x/repodata/repomd.xml", "text/xml"),
            (b"x/repodata/primary.xml.zst", "application/zstd"),
            (b"A.RPM", "application/x-rpm"),
            (b"dists/stable/InRelease", "text/plain; charset=utf-8"),
            (b"x.whl", "application/zip"),
            (b"debian.iso", "application/vnd.efi.iso"),
            (b"index.html", "text/html"),
            (b"notes.txt", "text/plain; charset=utf-8"),
            (b"dir.deb/none", "application/octet-stream"),
            (b"\xff\xfe.deb", "application/octet-stream"),
        ] {
            assert_eq!(of_path(path), kind, "{}", String::from_utf8_lossy(path));
        }
    }
}
