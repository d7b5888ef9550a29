//! Which real hosts an experiment is run on: a TOML file with a table for each host of the experiment.
//!
//! It holds no secrets: keys are named by their files, which ssh reads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use freshet_testbed::Reach;
use serde::Deserialize;

use super::experiment::Experiment;

/// Reads an inventory for an experiment; paths in it are meant from its own directory.
///
/// # Errors
/// When it cannot be read, has a key that is none, or lacks one of the experiment's hosts.
pub(crate) fn open(path: &Path, experiment: &Experiment) -> Result<freshet_testbed::Inventory> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let base = path.parent().unwrap_or(Path::new("."));
    parse(&text, base, experiment).with_context(|| format!("{} is no inventory", path.display()))
}

fn parse(text: &str, base: &Path, experiment: &Experiment) -> Result<freshet_testbed::Inventory> {
    let file: File = toml::from_str(text)?;
    let mut inventory = freshet_testbed::Inventory::new();
    for member in experiment.all_members() {
        let key = format!("hosts.{}", member.name);
        let Some(host) = file.hosts.get(&member.name) else {
            bail!(
                "{key}: the experiment has a host of this name and the inventory none; add `[{key}]` with `ssh` and \
                 `address`"
            );
        };
        let directory =
            host.directory.as_ref().or(file.directory.as_ref()).cloned().unwrap_or(DIRECTORY.into());
        ensure!(
            directory.is_absolute() && !directory.to_string_lossy().contains('\''),
            "{key}.directory: expected an absolute path without quotes, found {}",
            directory.display()
        );
        ensure!(
            !host.ssh.is_empty() && !host.ssh.starts_with('-'),
            "{key}.ssh: expected `user@host` or a name that ssh knows, found `{}`",
            host.ssh
        );
        let from_here = |path: &PathBuf| base.join(path);
        inventory.insert(
            member.name,
            Reach {
                destination: host.ssh.clone(),
                port: host.port.or(file.port),
                key: host.key.as_ref().or(file.key.as_ref()).map(from_here),
                known_hosts: file.known_hosts.as_ref().map(from_here),
                directory,
                address: host.address,
                interface: host.interface.clone(),
                first_port: host.first_port.or(file.first_port).unwrap_or(FIRST_PORT),
            },
        );
    }
    Ok(inventory)
}

/// What holds for all hosts, and each by its name in the experiment.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// sshd's port, where ssh does not know better.
    port: Option<u16>,
    /// The private key, where ssh does not know better.
    key: Option<PathBuf>,
    /// The hosts' public keys, where ssh does not know better.
    known_hosts: Option<PathBuf>,
    /// Below it a run makes a directory of its own on each host.
    directory: Option<PathBuf>,
    /// Programs listen on this port and some above it.
    first_port: Option<u16>,
    hosts: BTreeMap<String, Host>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    /// `user@host`, or a name of ssh's configuration.
    ssh: String,
    port: Option<u16>,
    key: Option<PathBuf>,
    directory: Option<PathBuf>,
    /// At which the other hosts reach it.
    address: IpAddr,
    /// Which has that address.
    #[serde(default = "interface")]
    interface: String,
    first_port: Option<u16>,
}

fn interface() -> String {
    "eth0".to_owned()
}

const DIRECTORY: &str = "/var/tmp";
const FIRST_PORT: u16 = 28_000;

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = r#"
        key = "id"
        [hosts.origin]
        ssh = "root@192.0.2.1"
        address = "192.0.2.1"
        interface = "ens3"
        [hosts.volunteer-1]
        ssh = "v1"
        address = "192.0.2.2"
        port = 2222
        [hosts.volunteer-2]
        ssh = "v2"
        address = "2001:db8::2"
        directory = "/srv"
    "#;

    fn smallest(text: &str) -> Result<freshet_testbed::Inventory> {
        parse(text, Path::new("/etc/lab"), &Experiment::open(Path::new("smallest"))?)
    }

    #[test]
    fn every_host_of_the_experiment_is_reached() {
        let all =
            smallest(&format!("{HOSTS}[hosts.customer]\nssh = \"c\"\naddress = \"192.0.2.4\"")).unwrap();
        assert_eq!(all.len(), 4);
        assert_eq!(all["origin"].key.as_deref(), Some(Path::new("/etc/lab/id")));
        assert_eq!((all["origin"].interface.as_str(), all["customer"].interface.as_str()), ("ens3", "eth0"));
        assert_eq!((all["volunteer-1"].port, all["volunteer-2"].port), (Some(2222), None));
        assert_eq!(all["volunteer-2"].directory, Path::new("/srv"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let error = format!("{:#}", smallest(HOSTS).unwrap_err());
        assert!(error.contains("hosts.customer") && error.contains("add"), "{error}");
        for (wrong, named) in [
            ("ssh = \"c\"\naddress = \"nowhere\"", "address"),
            ("ssh = \"-oProxyCommand=x\"\naddress = \"192.0.2.4\"", "hosts.customer.ssh"),
            ("ssh = \"c\"\naddress = \"192.0.2.4\"\ndirectory = \"here\"", "hosts.customer.directory"),
            ("ssh = \"c\"\naddress = \"192.0.2.4\"\npassword = \"x\"", "password"),
        ] {
            let error = format!("{:#}", smallest(&format!("{HOSTS}[hosts.customer]\n{wrong}")).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
