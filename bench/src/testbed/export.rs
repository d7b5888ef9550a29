//! An experiment as Emulab's own testbeds read it: a profile in Python for geni-lib, and the request RSpec.
//!
//! There every host is a machine and all are in one LAN, whose shaping is the testbed's. The experiment is then run on
//! them from one that reaches all by ssh, with an inventory (`bench testbed run --inventory`).

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use freshet_api::BytesPerSec;

use super::experiment::{Experiment, HostGroup};

/// A profile: the script with which Emulab makes a request.
///
/// # Errors
/// When there are more hosts than the LAN's addresses.
pub(crate) fn profile(experiment: &Experiment) -> Result<String> {
    check(experiment)?;
    let mut text = String::from("\"\"\"");
    let _ = writeln!(text, "{}\n", docstring(&experiment.title));
    let _ = writeln!(text, "Instructions:\nOn a host that reaches the others by ssh:");
    let _ = writeln!(text, "`bench testbed run --inventory FILE {}`.\n\"\"\"\n", experiment.name);
    text += "import geni.portal as portal\nimport geni.rspec.pg as pg\n\n";
    let _ = writeln!(text, "IMAGE = {}\n", python(IMAGE));
    text += "# Name, role, sends and receives at most (kbit/s, 0: no limit), delay each way (ms), loss (0 to 1).\n";
    text += "HOSTS = [\n";
    for member in experiment.all_members() {
        let Shape { up, down, delay, loss } = Shape::of(member.group);
        let (name, role) = (python(&member.name), python(&member.group.role.to_string()));
        let _ = writeln!(text, "    ({name}, {role}, {up}, {down}, {delay}, {loss}),");
    }
    text += PROFILE_END;
    Ok(text)
}

/// The request that such a profile makes, with both directions of every link.
///
/// # Errors
/// As [`profile`].
pub(crate) fn rspec(experiment: &Experiment) -> Result<String> {
    check(experiment)?;
    let mut text =
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- {} -->\n", comment(&experiment.title));
    text += "<rspec xmlns=\"http://www.geni.net/resources/rspec/3\" \
             xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" \
             xsi:schemaLocation=\"http://www.geni.net/resources/rspec/3 \
             http://www.geni.net/resources/rspec/3/request.xsd\" type=\"request\">\n";
    let members = experiment.all_members();
    for (number, member) in members.iter().enumerate() {
        let (name, address) = (xml(&member.name), address(number));
        let _ = write!(
            text,
            "  <node client_id=\"{name}\" exclusive=\"true\">\n    \
             <sliver_type name=\"raw-pc\">\n      <disk_image name=\"{IMAGE}\"/>\n    </sliver_type>\n    \
             <interface client_id=\"{name}:if0\">\n      \
             <ip address=\"{address}\" netmask=\"{NETMASK}\" type=\"ipv4\"/>\n    </interface>\n  </node>\n"
        );
    }
    text += "  <link client_id=\"lan\">\n    <link_type name=\"lan\"/>\n";
    for member in &members {
        let _ = writeln!(text, "    <interface_ref client_id=\"{}:if0\"/>", xml(&member.name));
    }
    for member in &members {
        let Shape { up, down, delay, loss } = Shape::of(member.group);
        let interface = format!("{}:if0", xml(&member.name));
        for (from, to, rate) in [(interface.as_str(), "lan", up), ("lan", interface.as_str(), down)] {
            let mut property = format!("    <property source_id=\"{from}\" dest_id=\"{to}\"");
            if rate > 0 {
                let _ = write!(property, " capacity=\"{rate}\"");
            }
            if delay > 0.0 {
                let _ = write!(property, " latency=\"{delay}\"");
            }
            if loss > 0.0 {
                let _ = write!(property, " packet_loss=\"{loss}\"");
            }
            let _ = writeln!(text, "{property}/>");
        }
    }
    text += "  </link>\n</rspec>\n";
    Ok(text)
}

fn check(experiment: &Experiment) -> Result<()> {
    let hosts = experiment.all_members().len();
    ensure!(
        hosts <= ADDRESSES,
        "hosts: expected at most {ADDRESSES} in an Emulab LAN's network, found {hosts}"
    );
    Ok(())
}

/// A link as these testbeds say it: kbit/s, milliseconds, parts of one.
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

fn address(number: usize) -> String {
    format!("10.64.0.{}", number + 1)
}

/// Text as a literal of Python.
fn python(text: &str) -> String {
    let mut literal = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                literal.push('\\');
                literal.push(c);
            }
            c if c.is_control() => literal.push(' '),
            c => literal.push(c),
        }
    }
    literal.push('"');
    literal
}

/// Text between three quotes.
fn docstring(text: &str) -> String {
    let literal = python(text);
    literal[1..literal.len() - 1].to_owned()
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text within a comment, where two hyphens may not stand.
fn comment(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    xml(&text).replace('-', "\u{2010}")
}

const IMAGE: &str = "urn:publicid:IDN+emulab.net+image+emulab-ops//DEB12-64-STD";
const NETMASK: &str = "255.255.255.0";
const ADDRESSES: usize = 253;
const PROFILE_END: &str = r#"]

request = portal.context.makeRequestRSpec()
lan = request.LAN("lan")
for number, (name, role, up, down, delay, loss) in enumerate(HOSTS, start=1):
    node = request.RawPC(name)
    node.disk_image = IMAGE
    interface = node.addInterface("if0")
    interface.addAddress(pg.IPv4Address("10.64.0.%d" % number, "255.255.255.0"))
    # geni-lib gives an interface one shape, which is that of what it sends; the RSpec that is exported beside this
    # profile has that of what it receives as well.
    if up:
        interface.bandwidth = up
    if delay:
        interface.latency = delay
    if loss:
        interface.plr = loss
    lan.addInterface(interface)

portal.context.printRequestRSpec()
"#;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;

    fn experiment() -> Experiment {
        let mut experiment = Experiment::open(Path::new("smallest")).unwrap();
        experiment.title = "A \"title\" with <angles>, a back\\slash -- and & more".to_owned();
        experiment.hosts[1].delay = "20 ms".parse().unwrap();
        experiment.hosts[1].loss = "0.5 %".parse().unwrap();
        experiment
    }

    /// Fails unless every element is closed by its own name and no attribute holds what it must not.
    fn well_formed(text: &str) -> Vec<String> {
        let (mut open, mut seen) = (Vec::new(), Vec::new());
        let mut rest = text;
        while let Some(start) = rest.find('<') {
            let between = &rest[..start];
            assert!(between.trim().is_empty() && !between.contains('>'), "text {between:?}");
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            rest = &rest[end + 1..];
            if tag.starts_with('?') || tag.starts_with('!') {
                assert!(!tag.starts_with("!--") || !tag[3..tag.len() - 2].contains("--"), "{tag}");
                continue;
            }
            assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop().as_deref(), Some(name)),
                None => {
                    let name = tag.split_whitespace().next().expect("a tag has a name").trim_end_matches('/');
                    seen.push(tag.to_owned());
                    if !tag.ends_with('/') {
                        open.push(name.to_owned());
                    }
                }
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest:?}");
        seen
    }

    #[test]
    fn the_rspec_is_well_formed_and_shapes_both_directions() {
        let tags = well_formed(&rspec(&experiment()).unwrap());
        let count = |start: &str| tags.iter().filter(|tag| tag.starts_with(start)).count();
        assert_eq!((count("node "), count("interface_ref "), count("property ")), (4, 4, 8));
        let wanted = "property source_id=\"lan\" dest_id=\"volunteer-1:if0\" capacity=\"40000\" latency=\"20\" \
                      packet_loss=\"0.005\"/";
        assert!(tags.iter().any(|tag| tag == wanted), "{tags:?}");
    }

    #[test]
    fn the_profile_is_python_that_compiles() {
        let profile = profile(&experiment()).unwrap();
        for part in
            ["(\"volunteer-2\", \"volunteer\", 40000, 40000, 20, 0.005)", "printRequestRSpec", "request.LAN"]
        {
            assert!(profile.contains(part), "{part} is missing in {profile}");
        }
        let compile = "import sys; compile(sys.stdin.read(), 'profile.py', 'exec')";
        let child = Command::new("python3").args(["-c", compile]).stdin(Stdio::piped()).spawn();
        let Ok(mut child) = child else {
            freshet_testbed::skip("the_profile_is_python_that_compiles", "python3 is not installed");
            return;
        };
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), profile.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{profile}");
    }
}
