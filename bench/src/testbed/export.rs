//! An experiment as Emulab's own testbeds read it: a profile in Python for geni-lib, and the request RSpec that such a
//! profile makes.
//!
//! There every host is a machine, all of one LAN; shaping is the testbed's. The roles are written beside the hosts, and
//! the same experiment is then run on them with an inventory (`bench testbed run --inventory`).

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use freshet_api::BytesPerSec;

use super::experiment::{Experiment, HostGroup};

/// A profile: what Emulab calls a script that makes a request.
///
/// # Errors
/// When a host's link cannot be said in the testbed's words.
pub(crate) fn profile(experiment: &Experiment) -> Result<String> {
    check(experiment)?;
    let mut text = format!(
        "\"\"\"{}\n\nInstructions:\nRun it with `bench testbed run --inventory FILE {}`, whose inventory names these \
         hosts.\n\"\"\"\n\n",
        python(&experiment.title).trim_matches('\''),
        experiment.name
    );
    text += "import geni.portal as portal\nimport geni.rspec.pg as rspec\n\n";
    let _ = writeln!(text, "IMAGE = {}", python(IMAGE));
    text += "\n# Name, role, sends at most, receives at most (kbit/s, 0: no limit), one way's delay (ms), loss (0 to 1).\n";
    text += "HOSTS = [\n";
    for member in experiment.all_members() {
        let shape = Shape::of(member.group);
        let _ = writeln!(
            text,
            "    ({}, {}, {}, {}, {}, {}),",
            python(&member.name),
            python(&member.group.role.to_string()),
            shape.up,
            shape.down,
            shape.delay,
            shape.loss
        );
    }
    text += "]\n\nrequest = portal.context.makeRequestRSpec()\nlan = request.LAN(\"lan\")\n";
    text += "lan.best_effort = True\nlan.vlan_tagging = False\n\n";
    text += "for number, (name, role, up, down, delay, loss) in enumerate(HOSTS, start=1):\n";
    text += "    node = request.RawPC(name)\n    node.disk_image = IMAGE\n";
    text += "    interface = node.addInterface(\"if0\")\n";
    text += "    interface.addAddress(rspec.IPv4Address(\"10.64.0.%d\" % number, \"255.255.0.0\"))\n";
    text += "    lan.addInterface(interface)\n";
    text += "    # A link's shape in a LAN is that of the interface: what leaves the host, and what arrives there.\n";
    text += "    lan.setProperties(source=interface, bandwidth=up, latency=delay, plr=loss)\n";
    text += "    lan.setProperties(destination=interface, bandwidth=down, latency=delay, plr=loss)\n\n";
    text += "portal.context.printRequestRSpec()\n";
    Ok(text)
}

struct Shape {
    up: u64,
    down: u64,
    delay: f64,
    loss: f64,
}

impl Shape {
    fn of(group: &HostGroup) -> Self {
        let kilobits = |rate: Option<BytesPerSec>| rate.map_or(0, |rate| rate.bits_per_sec() / 1_000);
        Self {
            up: kilobits(group.up),
            down: kilobits(group.down),
            delay: group.delay.as_secs() * 1e3,
            loss: group.loss.percent() / 100.0,
        }
    }
}
