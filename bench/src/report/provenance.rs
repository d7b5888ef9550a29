//! Where and with what an experiment was run: versions, machine and load.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// What is the same for a whole run, and the load when it began.
#[derive(Debug)]
pub(super) struct Provenance {
    command: String,
    revision: Option<String>,
    kernel: String,
    processor: String,
    processors: usize,
    memory_bytes: Option<u64>,
    load_at_start: String,
    programs: Vec<(String, String)>,
}

impl Provenance {
    pub(super) fn of_this_machine() -> Provenance {
        let uname = rustix::system::uname();
        let kernel = [uname.sysname(), uname.release(), uname.machine()];
        Provenance {
            command: command(std::env::args()),
            revision: revision(),
            kernel: kernel.map(|part| part.to_string_lossy().into_owned()).join(" "),
            processor: fs::read_to_string("/proc/cpuinfo")
                .ok()
                .and_then(|text| value_of(&text, "model name"))
                .unwrap_or_else(|| "unknown".to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: fs::read_to_string("/proc/meminfo")
                .ok()
                .and_then(|text| value_of(&text, "MemTotal")?.strip_suffix(" kB")?.parse::<u64>().ok())
                .map(|kib| kib * 1_024),
            load_at_start: load(),
            programs: Vec::new(),
        }
    }

    pub(super) fn program(&mut self, name: &str, version: &str) {
        if !self.programs.iter().any(|(known, _)| known == name) {
            self.programs.push((name.to_owned(), version.to_owned()));
        }
    }

    /// Name and value of all, in the order in which they are shown.
    pub(super) fn rows(&self) -> Vec<(String, String)> {
        let own = |name: &str, value: String| (name.to_owned(), value);
        let mut rows = vec![
            own("command", self.command.clone()),
            own("Freshet", env!("CARGO_PKG_VERSION").to_owned()),
            own("revision", self.revision.clone().unwrap_or_else(|| "not in a checkout".to_owned())),
            own("built", if cfg!(debug_assertions) { "for development" } else { "for release" }.to_owned()),
            own("kernel", self.kernel.clone()),
            own("processor", format!("{}, {} of them", self.processor, self.processors)),
        ];
        if let Some(bytes) = self.memory_bytes {
            rows.push(own("memory", format!("{:.1} GB", bytes as f64 / 1e9)));
        }
        rows.extend(self.programs.iter().cloned());
        let now = load();
        rows.push(own("load average", format!("{} at the start, {now} at the end", self.load_at_start)));
        rows
    }

    pub(super) fn json(&self) -> Value {
        let rows = self.rows().into_iter().map(|(name, value)| (name, Value::String(value)));
        json!(rows.collect::<serde_json::Map<String, Value>>())
    }
}

/// The command line by the program's name alone: where it lies is nobody's business.
fn command(mut arguments: impl Iterator<Item = String>) -> String {
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program).file_name().map_or(program.clone(), |name| name.to_string_lossy().into());
    let quoted = arguments.map(|argument| {
        if argument.is_empty() || argument.contains(char::is_whitespace) {
            format!("'{argument}'")
        } else {
            argument
        }
    });
    [name].into_iter().chain(quoted).collect::<Vec<_>>().join(" ")
}

/// Of the checkout of Freshet in which this was called.
fn revision() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let top = git(&["rev-parse", "--show-toplevel"])?;
    Path::new(&top).join("bench/src/report/provenance.rs").exists().then_some(())?;
    let revision = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { revision } else { format!("{revision} with changes") })
}

/// The value of the first line `name : value`.
fn value_of(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// Of the last minute, five and fifteen.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_without_where_the_program_lies() {
        let arguments = ["/a/b/bench", "claims", "--out", "a b"].map(str::to_owned);
        assert_eq!(command(arguments.into_iter()), "bench claims --out 'a b'");
    }

    #[test]
    fn this_machine_is_known() {
        let provenance = Provenance::of_this_machine();
        let rows = provenance.rows();
        let value = |name: &str| rows.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert!(value("kernel").unwrap().contains("Linux"));
        assert!(value("load average").unwrap().contains("at the end"));
        assert_eq!(value_of("a : b\nmodel name\t: c d\n", "model name").as_deref(), Some("c d"));
    }
}
