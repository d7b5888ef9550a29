//! curl as a customer uses it, and what it tells of a download.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use freshet_testbed::{Host, Program};
use serde_json::Value;

use crate::PATIENCE;

/// curl that follows redirects, fails on error answers and says why; add options and URLs.
#[must_use]
pub fn curl() -> Program {
    Program::new("curl").args(["--silent", "--show-error", "--fail", "--location", "--max-redirs", "6"])
}

/// A file that curl got.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// Address and port of who served it in the end.
    pub from: String,
    /// How many redirects curl followed.
    pub redirects: u64,
}

impl Fetched {
    /// Fetches `url` into `path` on `host`.
    ///
    /// # Errors
    ///
    /// When curl fails, with its words.
    pub fn get(host: &Host, url: &str, path: &Path) -> Result<Fetched> {
        Fetched::get_with(host, url, path, &[])
    }

    /// Fetches with more options for curl.
    ///
    /// # Errors
    ///
    /// When curl fails, with its words.
    pub fn get_with(host: &Host, url: &str, path: &Path, options: &[&str]) -> Result<Fetched> {
        let program = curl()
            .args(options.iter().copied())
            .args(["--write-out", "%{json}", "--output"])
            .arg(path)
            .arg(url);
        let finished = host.run(&program, PATIENCE)?;
        if !finished.status.success() {
            bail!("curl {url} failed with {}: {}", finished.status, finished.stderr.trim());
        }
        let told: Value = serde_json::from_slice(&finished.stdout).context("reading what curl tells")?;
        let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
        Ok(Fetched {
            path: path.to_owned(),
            from: format!("{}:{}", text("remote_ip"), told["remote_port"]),
            redirects: told["num_redirects"].as_u64().unwrap_or_default(),
        })
    }
}

/// SHA-256 of a file by `sha256sum`.
///
/// # Errors
///
/// When the file cannot be read.
pub fn sha256_of(host: &Host, path: &Path) -> Result<String> {
    let finished = host.run(&Program::new("sha256sum").arg(path), PATIENCE)?;
    let text = finished.text();
    let digest = text.split_whitespace().next().unwrap_or_default().trim_start_matches('\\');
    if !finished.status.success() || digest.len() != 64 {
        bail!("sha256sum {} failed with {}: {}", path.display(), finished.status, finished.stderr.trim());
    }
    Ok(digest.to_owned())
}
