//! What is told while an experiment runs: one line that changes on a terminal, one a phase elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use freshet_api::BytesPerSec;

/// Writes to standard error.
pub(crate) struct Progress {
    live: bool,
    heading: String,
}

impl Progress {
    /// Finds out who reads.
    pub(crate) fn new() -> Self {
        Self { live: std::io::stderr().is_terminal(), heading: String::new() }
    }

    /// A step of setting things up.
    pub(crate) fn step(&mut self, what: &str) {
        if self.live {
            self.over(&format!("setting up {what}"));
        }
    }

    /// A phase begins.
    pub(crate) fn phase(&mut self, number: usize, of: usize, name: &str) {
        self.heading = format!("phase {number} of {of}: {name}");
        if self.live {
            self.over(&self.heading);
        } else {
            eprintln!("{}", self.heading);
        }
    }

    /// A moment of it: how many customers' hosts still ask, and what everybody but the origin sends.
    pub(crate) fn moment(&mut self, elapsed: Duration, asking: usize, rate: f64) {
        if self.live {
            let sent = BytesPerSec((rate / 1e4).round() as u64 * 10_000);
            let asking = if asking > 0 { format!(", {asking} customers ask") } else { String::new() };
            self.over(&format!("{}, {} s{asking}, {sent} sent", self.heading, elapsed.as_secs()));
        }
    }

    /// What stays on the screen.
    pub(crate) fn done(&mut self, text: &str) {
        if self.live {
            self.over(text);
            eprintln!();
        } else {
            eprintln!("{text}");
        }
    }

    fn over(&self, text: &str) {
        let mut out = std::io::stderr().lock();
        // A terminal that is gone is no reason to stop.
        let _ = write!(out, "\r\x1b[2K{text}").and_then(|()| out.flush());
    }
}
