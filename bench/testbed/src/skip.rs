//! How a test says that it cannot run here, so that nobody mistakes silence for success.

use std::fs::OpenOptions;
use std::io::Write;

/// Notes that `test` was skipped and why: a line on standard error, and one in the file that `FRESHET_SKIPS` names,
/// which `cargo xtask test` sets and reads.
///
/// # Panics
///
/// When `CI` is set to anything but `false`: there a skipped test is a failure.
pub fn skip(test: &str, why: &str) {
    eprintln!("skipped {test}: {why}");
    if let Some(path) = std::env::var_os(SKIPS)
        && let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path)
    {
        // One write, so that the lines of tests that run at once stay whole.
        let _ = file.write_all(format!("{test}: {why}\n").as_bytes());
    }
    let ci = std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false");
    assert!(!ci, "{test} was skipped ({why}), and a skip in CI is a failure");
}

/// The environment variable that names the file of skipped tests.
pub const SKIPS: &str = "FRESHET_SKIPS";
