//! apt in a root of its own, pointed at a front door: it reads nothing of the system's and changes nothing there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use freshet_testbed::{Host, Program, make_apt_root};

use crate::PATIENCE;

/// An apt whose whole state is in one directory.
#[derive(Debug)]
pub struct Apt {
    host: Host,
    root: PathBuf,
    architecture: String,
}

impl Apt {
    /// Sets it up in `root` with the one source `url`.
    ///
    /// # Errors
    ///
    /// When there is no apt, or the directory cannot be filled.
    pub fn new(host: &Host, root: &Path, url: &str) -> Result<Apt> {
        let shown = host.run(&Program::new("dpkg").arg("--print-architecture"), PATIENCE)?;
        let architecture = shown.text().trim().to_owned();
        let further = [
            &*format!("APT::Architecture \"{architecture}\";"),
            &*format!("APT::Architectures {{ \"{architecture}\"; }};"),
            "APT::Install-Recommends \"false\";",
            "Acquire::Retries \"3\";",
        ];
        make_apt_root(root, url, &further).with_context(|| format!("making {}", root.display()))?;
        Ok(Apt { host: host.clone(), root: root.to_owned(), architecture })
    }

    /// Runs `apt-get` with these arguments; a failure is an error with its words.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn get(&self, arguments: &[&str]) -> Result<String> {
        let program = Program::new("apt-get")
            .args(["-q", "-y"])
            .args(arguments.iter().copied())
            .env("APT_CONFIG", self.root.join("apt.conf"))
            .env("LC_ALL", "C")
            .directory(self.downloads());
        let finished = self.host.run(&program, PATIENCE)?;
        if !finished.status.success() {
            bail!("apt-get {arguments:?}: {}\n{}\n{}", finished.status, finished.text(), finished.stderr);
        }
        Ok(finished.text())
    }

    /// Where `apt-get download` puts packages.
    #[must_use]
    pub fn downloads(&self) -> PathBuf {
        self.root.join("downloads")
    }

    /// Where `apt-get install --download-only` puts packages.
    #[must_use]
    pub fn archives(&self) -> PathBuf {
        self.root.join("var/cache/apt/archives")
    }

    /// Has apt believe that whatever `packages` (the text of a `Packages` file) depends on, and does not itself
    /// have, is installed: so that single packages can be installed from a repository of a dozen.
    ///
    /// # Errors
    ///
    /// When the status cannot be written.
    pub fn pretend_installed(&self, packages: &str) -> Result<()> {
        let field = |name: &'static str| packages.lines().filter_map(move |line| line.strip_prefix(name));
        let offered: BTreeSet<&str> = field("Package: ").collect();
        let needed: BTreeSet<&str> = field("Depends: ")
            .chain(field("Pre-Depends: "))
            .flat_map(|list| list.split([',', '|']))
            .filter_map(|dependency| dependency.split_whitespace().next())
            .map(|name| name.split(':').next().unwrap_or(name))
            .filter(|name| !offered.contains(name))
            .collect();
        let stanzas: String = needed
            .iter()
            .map(|name| {
                format!(
                    "Package: {name}\nStatus: install ok installed\nMaintainer: nobody\nArchitecture: {}\n\
                     Multi-Arch: same\nVersion: 999:1\nDescription: not there\n\n",
                    self.architecture
                )
            })
            .collect();
        fs::write(self.root.join("var/lib/dpkg/status"), stanzas).context("writing apt's status")
    }
}
