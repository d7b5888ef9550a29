//! Which files of a repository are indexes: small, changing, and worth serving from the origin itself.
//!
//! By name and place alone; nothing is opened. Operators add their own patterns.

use freshet_api::glob::Glob;

/// Whether the path (relative, without leading `/`) is an index, a signature or a list of checksums.
///
/// Known are apt, rpm, Alpine, Arch, PyPI's simple index, conda, CRAN-like `PACKAGES`, Maven, checksum files,
/// signatures and mirror traces.
pub fn is_metadata(path: &str) -> bool {
    let (directories, name) =
        path.rsplit_once('/').map_or(("", path), |(directories, name)| (directories, name));
    directories.split('/').any(|directory| METADATA_DIRECTORIES.contains(&directory))
        || is_last(path)
        || METADATA_NAMES.contains(&name)
        || METADATA_NAME_STARTS.iter().any(|start| name.starts_with(start))
        || METADATA_NAME_ENDS.iter().any(|end| name.len() > end.len() && name.ends_with(end))
}

/// Whether the path is the root of an index: the file that makes everything else visible to clients, so that it
/// must appear only after what it lists.
pub fn is_last(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    LAST_NAMES.contains(&name)
        || ARCH_DATABASE_ENDS.iter().any(|end| name.len() > end.len() && name.ends_with(end))
}

/// The built-in patterns and an operator's own.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    /// More indexes, beside [`is_metadata`].
    pub metadata: Vec<Glob>,
    /// More files that must appear last, beside [`is_last`].
    pub last: Vec<Glob>,
}

impl Patterns {
    /// Whether the path is an index by either.
    pub fn is_metadata(&self, path: &str) -> bool {
        is_metadata(path) || self.metadata.iter().any(|glob| glob.matches(path)) || self.is_last(path)
    }

    /// Whether the path must appear last by either.
    pub fn is_last(&self, path: &str) -> bool {
        is_last(path) || self.last.iter().any(|glob| glob.matches(path))
    }
}

/// apt, rpm (and zypper's media files), PyPI and npm-like simple indexes, Debian's mirror traces, TUF.
const METADATA_DIRECTORIES: &[&str] = &["dists", "repodata", "media.1", "simple", "trace", "project"];

/// apt's flat repositories, conda, CRAN, Maven, checksum lists, mirror time stamps.
const METADATA_NAMES: &[&str] = &[
    "APKINDEX.tar.gz",
    "MD5SUMS",
    "PACKAGES",
    "PACKAGES.gz",
    "PACKAGES.rds",
    "SHA1SUMS",
    "SHA256SUMS",
    "SHA512SUMS",
    "channeldata.json",
    "current_repodata.json",
    "fullfilelist",
    "fullfiletimelist",
    "lastsync",
    "lastupdate",
    "ls-lR.gz",
    "maven-metadata.xml",
    "repodata.json",
    "timestamp",
];
const METADATA_NAME_STARTS: &[&str] = &[
    "Packages",
    "Sources",
    "Contents-",
    "Translation-",
    "Release",
    "InRelease",
    "CHECKSUM",
    "md5sum",
    "sha256sum",
];
const METADATA_NAME_ENDS: &[&str] = &[
    ".asc",
    ".gpg",
    ".md5",
    ".minisig",
    ".sha1",
    ".sha256",
    ".sha512",
    ".sig",
    ".sign",
    ".signature",
    "-CHECKSUM",
    "SUMS.gpg",
];

/// apt, rpm, Alpine, zypper, conda, CRAN, TUF.
const LAST_NAMES: &[&str] = &[
    "APKINDEX.tar.gz",
    "InRelease",
    "PACKAGES.gz",
    "Release",
    "Release.gpg",
    "repodata.json",
    "repomd.xml",
    "repomd.xml.asc",
    "repomd.xml.key",
    "timestamp.json",
];

/// Arch Linux: `core.db` and what it links to.
const ARCH_DATABASE_ENDS: &[&str] = &[
    ".db",
    ".db.tar.gz",
    ".db.tar.xz",
    ".db.tar.zst",
    ".files",
    ".files.tar.gz",
    ".files.tar.xz",
    ".files.tar.zst",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_of_the_known_kinds_are_recognised() {
        for path in [
            "debian/dists/bookworm/main/binary-amd64/Packages.xz",
            "Packages.gz",
            "fedora/40/x86_64/repodata/abc-primary.xml.zst",
            "alpine/v3.20/main/x86_64/APKINDEX.tar.gz",
            "arch/core/os/x86_64/core.db",
            "arch/core/os/x86_64/core.files.tar.gz",
            "pypi/simple/numpy/index.html",
            "iso/SHA256SUMS",
            "iso/SHA256SUMS.gpg",
            "iso/Fedora-40-CHECKSUM",
            "iso/a.iso.sig",
            "project/trace/mirror.example",
            "conda/linux-64/repodata.json",
        ] {
            assert!(is_metadata(path), "{path}");
        }
    }

    #[test]
    fn packages_and_images_are_none() {
        for path in [
            "pool/main/a/apt/apt_2.6.1_amd64.deb",
            "Packages/a/acl-2.3.1.rpm",
            "iso/debian-12.iso",
            "arch/core/os/x86_64/acl-2.3.2-1-x86_64.pkg.tar.zst",
            "simplest.tar",
            ".sig",
        ] {
            assert!(!is_metadata(path), "{path}");
            assert!(!is_last(path), "{path}");
        }
    }

    #[test]
    fn the_roots_of_indexes_come_last() {
        for path in [
            "dists/a/Release",
            "dists/a/InRelease",
            "dists/a/Release.gpg",
            "r/repodata/repomd.xml",
            "core.db",
        ] {
            assert!(is_last(path) && is_metadata(path), "{path}");
        }
        for path in
            ["dists/a/main/binary-amd64/Packages", "dists/a/main/binary-amd64/Packages.gz", "SHA256SUMS"]
        {
            assert!(!is_last(path), "{path}");
        }
    }

    #[test]
    fn an_operators_patterns_are_added() {
        let patterns =
            Patterns { metadata: vec!["*.idx".parse().unwrap()], last: vec!["top/current".parse().unwrap()] };
        assert!(patterns.is_metadata("a/b.idx") && !patterns.is_last("a/b.idx"));
        assert!(patterns.is_last("top/current") && patterns.is_metadata("top/current"));
        assert!(!patterns.is_metadata("a/b.deb"));
    }
}
