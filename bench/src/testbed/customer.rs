//! A customer's host: asks for what is planned with curl, as anybody would, and says what came of each request.
//!
//! It runs as a process of its own on the host (`bench testbed customer`, which people have no use for) and writes one
//! line of JSON for each request. It judges nothing: the checksum is compared by who knows what is right.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::content::sha256;
use super::schedule::{Ask, Asks, Plan};

/// Options of `bench testbed customer`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The plan, as JSON.
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    /// Where downloads are kept until they have been checked; is made.
    #[arg(long, value_name = "DIR")]
    scratch: PathBuf,
}

/// What came of one request.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Outcome {
    /// The file's path as it was asked for.
    pub(crate) path: String,
    /// When it was asked for, milliseconds after the phase's beginning.
    pub(crate) began_ms: u64,
    /// How long it took, with redirects, waits that the server asked for and new attempts.
    pub(crate) secs: f64,
    /// The last answer's HTTP status; 0 for none.
    pub(crate) status: u64,
    /// Body bytes that arrived in the last attempt.
    pub(crate) bytes: u64,
    /// Redirects that were followed in the last attempt.
    pub(crate) redirects: u64,
    /// `address:port` of who answered last.
    pub(crate) server: String,
    /// Of what arrived, in hexadecimal digits.
    pub(crate) sha256: Option<String>,
    /// What curl says when it failed.
    pub(crate) trouble: Option<String>,
}

/// Follows the plan to its end.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let reading = || format!("cannot read {}", arguments.plan.display());
    let text = fs::read_to_string(&arguments.plan).with_context(reading)?;
    let plan: Plan = serde_json::from_str(&text).with_context(reading)?;
    let scratch = &arguments.scratch;
    fs::create_dir_all(scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let customer = Customer { plan: &plan, scratch, began: Instant::now(), under_way: AtomicUsize::new(0) };
    thread::scope(|scope| match &plan.asks {
        Asks::Each(each) => {
            for (number, ask) in each.iter().enumerate() {
                customer.sleep_until(ask.after_ms);
                let customer = &customer;
                scope.spawn(move || customer.say(&customer.single(number, ask)));
            }
        }
        Asks::Rows(rows) => {
            for (number, row) in rows.iter().enumerate() {
                let customer = &customer;
                scope.spawn(move || customer.follow(number, row));
            }
        }
    });
    fs::remove_dir_all(scratch).with_context(|| format!("cannot remove {}", scratch.display()))
}

struct Customer<'a> {
    plan: &'a Plan,
    scratch: &'a Path,
    began: Instant,
    under_way: AtomicUsize,
}

impl Customer<'_> {
    /// One after the other until the time is up.
    fn follow(&self, number: usize, row: &[Ask]) {
        for ask in row {
            thread::sleep(Duration::from_millis(ask.after_ms).min(self.left()));
            if self.left().is_zero() {
                return;
            }
            self.say(&self.download(number, ask));
        }
    }

    /// A request that comes whatever the others do, unless there are too many of them for this host.
    fn single(&self, number: usize, ask: &Ask) -> Outcome {
        let others = self.under_way.fetch_add(1, Ordering::Relaxed);
        let outcome = if others < UNDER_WAY_MAX {
            self.download(number, ask)
        } else {
            let trouble = format!("not asked: {UNDER_WAY_MAX} others were under way");
            self.failed(ask, self.began.elapsed(), Duration::ZERO, trouble)
        };
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    fn download(&self, number: usize, ask: &Ask) -> Outcome {
        let file = self.scratch.join(number.to_string());
        let began = self.began.elapsed();
        let asked = Command::new("curl")
            .args(["--silent", "--show-error", "--location", "--fail", "--globoff"])
            .args([
                "--max-time",
                MAX_SECS,
                "--connect-timeout",
                "10",
                "--speed-limit",
                "1",
                "--speed-time",
                "15",
            ])
            .args(["--retry", "8", "--retry-all-errors", "--retry-max-time", MAX_SECS])
            .args(["--noproxy", "*", "--write-out", "%{json}", "--output"])
            .arg(&file)
            .arg(format!("{}/{}", self.plan.front_door, ask.path))
            .stdin(Stdio::null())
            .output();
        let took = self.began.elapsed() - began;
        let outcome = match asked {
            Err(error) => self.failed(ask, began, took, format!("cannot start curl: {error}")),
            Ok(output) => match serde_json::from_slice::<Value>(&output.stdout) {
                Ok(said) => {
                    let number = |name: &str| said[name].as_u64().unwrap_or_default();
                    let text = |name: &str| said[name].as_str().unwrap_or_default();
                    let complaint = String::from_utf8_lossy(&output.stderr);
                    let last = complaint.lines().last().unwrap_or("curl failed").to_owned();
                    Outcome {
                        path: ask.path.clone(),
                        began_ms: began.as_millis() as u64,
                        secs: took.as_secs_f64(),
                        status: number("http_code"),
                        bytes: number("size_download"),
                        redirects: number("num_redirects"),
                        server: format!("{}:{}", text("remote_ip"), number("remote_port")),
                        sha256: output.status.success().then(|| sha256(&file).ok()).flatten(),
                        trouble: (!output.status.success()).then_some(last),
                    }
                }
                Err(error) => {
                    self.failed(ask, began, took, format!("curl does not say what it did: {error}"))
                }
            },
        };
        // There is none when nothing came.
        let _ = fs::remove_file(&file);
        outcome
    }

    fn failed(&self, ask: &Ask, began: Duration, took: Duration, trouble: String) -> Outcome {
        Outcome {
            path: ask.path.clone(),
            began_ms: began.as_millis() as u64,
            secs: took.as_secs_f64(),
            status: 0,
            bytes: 0,
            redirects: 0,
            server: String::new(),
            sha256: None,
            trouble: Some(trouble),
        }
    }

    fn say(&self, outcome: &Outcome) {
        let line = serde_json::to_string(outcome).expect("an outcome is plain data");
        // Nobody reads any more when it fails, and then nobody needs to know.
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }

    fn left(&self) -> Duration {
        Duration::from_millis(self.plan.ends_ms).saturating_sub(self.began.elapsed())
    }

    fn sleep_until(&self, after_ms: u64) {
        thread::sleep(Duration::from_millis(after_ms).saturating_sub(self.began.elapsed()));
    }
}

/// Downloads at once on one host.
const UNDER_WAY_MAX: usize = 256;
/// The longest that a customer is patient, with everything.
const MAX_SECS: &str = "300";
