//! `cargo xtask setup`: the system packages that `demo` and `test` need.
//!
//! As root it installs what is missing with apt; otherwise it only prints the command. Nothing that is there is
//! ever upgraded or removed.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use rustix::process::geteuid;

use crate::workspace;

pub(crate) fn run() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        println!("everything that `demo` and `test` need is installed");
        return Ok(());
    }
    for tool in &missing {
        println!("missing: {} ({})", tool.program, tool.purpose);
    }
    let packages = packages(&missing);
    let install = format!("apt-get install --yes --no-install-recommends {}", packages.join(" "));
    if !is_program("apt-get") {
        bail!("there is no apt-get; install what is missing by this system's own means");
    }
    if !geteuid().is_root() {
        bail!("not root; run: sudo {install}");
    }
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        workspace::run(&mut command)
    };
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&packages);
    if apt_get(&arguments).is_err() {
        // Lists that are absent or old are the usual reason.
        apt_get(&["update"])?;
        apt_get(&arguments)?;
    }
    let missing = self::missing();
    if let Some(tool) = missing.first() {
        bail!("still missing after `{install}`: {}", tool.program);
    }
    Ok(())
}

/// Does the set-up where it can, and only says what is missing where it cannot.
pub(crate) fn prepare() {
    if missing().is_empty() {
        return;
    }
    if let Err(error) = run() {
        eprintln!("warning: {error:#}; what needs it is skipped or fails");
    }
}

struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
    /// Whether it is of use to root only.
    root: bool,
    /// Whether its package starts a service, which is for nobody's own machine: only CI gets it.
    service: bool,
}

fn missing() -> Vec<&'static Tool> {
    let root = geteuid().is_root();
    let ci = std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false");
    let wanted = |tool: &&Tool| (root || !tool.root) && (ci || !tool.service);
    TOOLS.iter().filter(wanted).filter(|tool| !is_program(tool.program)).collect()
}

fn packages(tools: &[&'static Tool]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = tools.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An ordinary user's PATH often lacks the directory where `ip` and `tc` are.
    let places =
        std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(|place| Path::new(place).into()));
    places.into_iter().any(|place| place.join(name).is_file())
}

const TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
        purpose: "hosts as network namespaces",
        root: true,
        service: false,
    },
    Tool { program: "tc", package: "iproute2", purpose: "links with rates", root: true, service: false },
    Tool {
        program: "ethtool",
        package: "ethtool",
        purpose: "links without offloads, where counts are exact",
        root: true,
        service: false,
    },
    Tool {
        program: "setpriv",
        package: "util-linux",
        purpose: "processes that end with the testbed",
        root: false,
        service: false,
    },
    Tool {
        program: "ssh",
        package: "openssh-client",
        purpose: "an experiment on real hosts",
        root: true,
        service: false,
    },
    Tool {
        program: "sshd",
        package: "openssh-server",
        purpose: "an experiment on real hosts",
        root: true,
        service: true,
    },
    Tool { program: "curl", package: "curl", purpose: "a customer", root: false, service: false },
    Tool { program: "wget", package: "wget", purpose: "a customer", root: false, service: false },
    Tool {
        program: "aria2c",
        package: "aria2",
        purpose: "a customer that reads .meta4",
        root: false,
        service: false,
    },
    Tool {
        program: "openssl",
        package: "openssl",
        purpose: "a customer's MD4 check",
        root: false,
        service: false,
    },
    Tool {
        program: "sha256sum",
        package: "coreutils",
        purpose: "a customer's SHA-256 check",
        root: false,
        service: false,
    },
    Tool {
        program: "dpkg-deb",
        package: "dpkg",
        purpose: "a repository of real packages",
        root: false,
        service: false,
    },
    Tool { program: "gzip", package: "gzip", purpose: "a repository's indexes", root: false, service: false },
    Tool {
        program: "xz",
        package: "xz-utils",
        purpose: "a repository's indexes",
        root: false,
        service: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_installed_once() {
        let both: Vec<&Tool> = TOOLS.iter().filter(|tool| tool.package == "iproute2").collect();
        assert_eq!(both.len(), 2);
        assert_eq!(packages(&both), ["iproute2"]);
    }

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(is_program("sh"));
        assert!(!is_program("no-such-program-anywhere"));
    }
}
