//! Lays packages out as a Debian repository: pool, `Packages` and `Release` (the format is Debian's
//! RepositoryFormat). It is unsigned; apt is told `[trusted=yes]`.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{make_parent, tool};
use crate::Error;

/// Fills `root` with the packages and their indexes.
pub(super) fn lay_out(debs: &[PathBuf], root: &Path) -> Result<(), Error> {
    let architecture = text(tool(root, "dpkg", &["--print-architecture"])?);
    let architecture = architecture.trim();
    let mut packages = String::new();
    let mut largest: Option<(u64, PathBuf)> = None;
    for deb in debs {
        let control = text(tool(root, "dpkg-deb", &["--field", &deb.to_string_lossy()])?);
        let path = pool_path(deb, &control)?;
        let placed = root.join(&path);
        make_parent(&placed)?;
        if fs::hard_link(deb, &placed).is_err() {
            fs::copy(deb, &placed).map_err(Error::io(format!("copying to {path}")))?;
        }
        let size = fs::metadata(&placed).map_err(Error::io(format!("reading {path}")))?.size();
        let sha256 = sha256(root, &path)?;
        let control = control.trim_end();
        // Writing to a string does not fail.
        let _ = write!(packages, "{control}\nFilename: {path}\nSize: {size}\nSHA256: {sha256}\n\n");
        if largest.as_ref().is_none_or(|(largest, _)| size > *largest) {
            largest = Some((size, placed));
        }
    }
    write_indexes(root, architecture, &packages)?;
    write_extras(root, largest.map(|(_, path)| path).as_deref())
}

fn write_indexes(root: &Path, architecture: &str, packages: &str) -> Result<(), Error> {
    let suite = root.join("dists/stable");
    let binary = format!("main/binary-{architecture}");
    let directory = suite.join(&binary);
    fs::create_dir_all(&directory).map_err(Error::io(format!("making {}", directory.display())))?;
    write_file(&directory.join("Packages"), packages)?;
    tool(&directory, "gzip", &["--keep", "--no-name", "-9", "Packages"])?;
    let mut names = vec!["Packages", "Packages.gz"];
    // apt takes any of them; xz is the smallest where the tool is there.
    if tool(&directory, "xz", &["--keep", "Packages"]).is_ok() {
        names.push("Packages.xz");
    }
    let date = text(tool(root, "date", &["--utc", "+%a, %d %b %Y %H:%M:%S UTC"])?);
    let mut release = format!(
        "Origin: Freshet\nLabel: Freshet\nSuite: stable\nCodename: stable\nDate: {}\nArchitectures: {architecture}\n\
         Components: main\nDescription: packages for trying out a mirror\nSHA256:\n",
        date.trim()
    );
    for name in names {
        let path = format!("{binary}/{name}");
        let size = fs::metadata(suite.join(&path)).map_err(Error::io(format!("reading {path}")))?.size();
        let _ = writeln!(release, " {} {size} {path}", sha256(&suite, &path)?);
    }
    write_file(&suite.join("Release"), &release)
}

/// What a mirror has besides packages: a text, and one content under two names.
fn write_extras(root: &Path, largest: Option<&Path>) -> Result<(), Error> {
    write_file(&root.join("README.txt"), README)?;
    let Some(largest) = largest else { return Ok(()) };
    let latest = root.join("latest/largest.deb");
    make_parent(&latest)?;
    fs::copy(largest, &latest).map(drop).map_err(Error::io(format!("copying to {}", latest.display())))
}

/// `pool/main/<first letter>/<source>/<file>`, the file without the version's epoch, as in Debian's archive.
fn pool_path(deb: &Path, control: &str) -> Result<String, Error> {
    let field = |name: &str| {
        let prefix = format!("{name}: ");
        control.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::trim)
    };
    let broken = |what: &str| Error::Repository { why: format!("{} has no {what}", deb.display()) };
    let package = field("Package").ok_or_else(|| broken("Package field"))?;
    let version = field("Version").ok_or_else(|| broken("Version field"))?;
    let architecture = field("Architecture").ok_or_else(|| broken("Architecture field"))?;
    let source = field("Source").and_then(|source| source.split_whitespace().next()).unwrap_or(package);
    let version = version.split_once(':').map_or(version, |(_, after_epoch)| after_epoch);
    let letters = if source.starts_with("lib") { 4 } else { 1 };
    let shelf = source.get(..letters.min(source.len())).ok_or_else(|| broken("usable Source field"))?;
    Ok(format!("pool/main/{shelf}/{source}/{package}_{version}_{architecture}.deb"))
}

fn sha256(root: &Path, path: &str) -> Result<String, Error> {
    let line = text(tool(root, "sha256sum", &["--", path])?);
    match line.split_whitespace().next() {
        Some(digest) if digest.len() == 64 => Ok(digest.to_owned()),
        _ => Err(Error::Repository { why: format!("sha256sum gave `{}` for {path}", line.trim()) }),
    }
}

fn write_file(path: &Path, contents: &str) -> Result<(), Error> {
    fs::write(path, contents).map_err(Error::io(format!("writing {}", path.display())))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

const README: &str = "Packages from the distribution's archive, indexed for trying out a mirror.\n\
    For apt: deb [trusted=yes] http://HOST:PORT stable main\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_stand_where_debian_puts_them() {
        let deb = Path::new("x.deb");
        let git = "Package: git\nVersion: 1:2.39.5-0+deb12u2\nArchitecture: amd64\n";
        assert_eq!(pool_path(deb, git).unwrap(), "pool/main/g/git/git_2.39.5-0+deb12u2_amd64.deb");
        let lib = "Package: libc-bin\nSource: glibc (2.36)\nVersion: 2.36\nArchitecture: amd64\n";
        assert_eq!(pool_path(deb, lib).unwrap(), "pool/main/g/glibc/libc-bin_2.36_amd64.deb");
        let expat = "Package: libexpat1\nSource: libexpat\nVersion: 1\nArchitecture: amd64\n";
        assert_eq!(pool_path(deb, expat).unwrap(), "pool/main/libe/libexpat/libexpat1_1_amd64.deb");
        assert!(pool_path(deb, "Package: git\n").is_err());
    }
}
