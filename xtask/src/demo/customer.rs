//! A customer with ordinary tools: curl downloads, sha256sum and openssl check.
//!
//! The checksums come from the front door itself (`FILE.sha256`, `FILE.md4`), never from whoever served the file.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use freshet_testbed::cluster::Cluster;
use freshet_testbed::repository::RepositoryFile;
use freshet_testbed::{Error, Host, Program};
use serde::Deserialize;

/// One file as the customer got it.
pub(super) struct Download {
    pub(super) path: String,
    pub(super) size: u64,
    /// Where the body came from in the end.
    pub(super) from: Option<SocketAddr>,
    pub(super) bytes_per_sec: f64,
    pub(super) sha256: Check,
    pub(super) md4: Check,
    /// What went wrong before there was anything to check.
    pub(super) trouble: Option<String>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Matches,
    Differs,
    NotDone,
}

impl Download {
    pub(super) fn is_good(&self) -> bool {
        self.trouble.is_none() && self.sha256 == Check::Matches && self.md4 == Check::Matches
    }

    pub(super) fn by_volunteer(&self, cluster: &Cluster) -> bool {
        self.from.is_some_and(|from| from != cluster.front_door() && cluster.name_at(from).is_some())
    }
}

/// Downloads all files, several at once, as several customers would; ends early only when cancelled.
pub(super) fn download_all(
    customer: &Host,
    cluster: &Cluster,
    directory: &Path,
    files: &[RepositoryFile],
) -> Result<Vec<Download>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, file)) = {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    files.get(number).map(|file| (number, file))
                } {
                    let target = directory.join(format!("download-{number}"));
                    let result = download(customer, cluster, &target, file);
                    // On a thread that panicked there is nothing to add to.
                    if let Ok(mut results) = results.lock() {
                        results.push((number, result));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_by_key(|(number, _)| *number);
    results
        .into_iter()
        .map(|(number, result)| match result {
            Err(error) if matches!(error.downcast_ref(), Some(Error::Cancelled { .. })) => Err(error),
            Err(error) => Ok(Download {
                path: files[number].path.clone(),
                size: files[number].size,
                from: None,
                bytes_per_sec: 0.0,
                sha256: Check::NotDone,
                md4: Check::NotDone,
                trouble: Some(format!("{error:#}")),
            }),
            Ok(download) => Ok(download),
        })
        .collect()
}

fn download(customer: &Host, cluster: &Cluster, target: &Path, file: &RepositoryFile) -> Result<Download> {
    let url = cluster.url(&file.path);
    let curl = curl().args(["--write-out", "%{json}", "--output"]).arg(target).arg(&url);
    let output = output(customer, &curl)?;
    let seen: Seen = serde_json::from_slice(&output).context("reading what curl says of the transfer")?;
    if seen.size_download != file.size {
        bail!("expected {} bytes of {}, curl got {}", file.size, file.path, seen.size_download);
    }
    let said = |kind: &str| -> Result<String> {
        let text = output_text(customer, &curl_of(format!("{url}.{kind}")))?;
        digest(&text).with_context(|| format!("expected a digest in {url}.{kind}, found `{}`", text.trim()))
    };
    let computed = |program: Program| -> Result<String> {
        let text = output_text(customer, &program.arg(target))?;
        digest(&text).with_context(|| format!("expected a digest, found `{}`", text.trim()))
    };
    let sha256 = compare(&said("sha256")?, &computed(Program::new("sha256sum").arg("--"))?);
    let md4_tool =
        Program::new("openssl").args(["dgst", "-provider", "legacy", "-provider", "default", "-md4", "-r"]);
    let md4 = compare(&said("md4")?, &computed(md4_tool)?);
    // What has been checked is needed no more; the whole repository may be large.
    std::fs::remove_file(target).with_context(|| format!("removing {}", target.display()))?;
    Ok(Download {
        path: file.path.clone(),
        size: file.size,
        from: seen.remote_ip.parse().ok().map(|ip| SocketAddr::new(ip, seen.remote_port)),
        bytes_per_sec: seen.speed_download,
        sha256,
        md4,
        trouble: None,
    })
}

/// What curl tells of the last transfer of a download (`--write-out %{json}`).
#[derive(Deserialize)]
struct Seen {
    remote_ip: String,
    remote_port: u16,
    size_download: u64,
    speed_download: f64,
}

fn curl() -> Program {
    Program::new("curl").args(["--silent", "--show-error", "--fail", "--location", "--max-redirs", "6"])
}

fn curl_of(url: String) -> Program {
    curl().arg(url)
}

fn output(host: &Host, program: &Program) -> Result<Vec<u8>> {
    let finished = host.run(program, PATIENCE)?;
    if !finished.status.success() {
        bail!("`{program}` failed with {}: {}", finished.status, finished.stderr.trim());
    }
    Ok(finished.stdout)
}

fn output_text(host: &Host, program: &Program) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(host, program)?).into_owned())
}

/// The first word of a line such as `sha256sum` writes, when it is hexadecimal.
fn digest(line: &str) -> Option<String> {
    let word = line.split_whitespace().next()?.trim_start_matches('\\');
    let is_hex = word.len() >= 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| word.to_ascii_lowercase())
}

fn compare(said: &str, computed: &str) -> Check {
    if said == computed { Check::Matches } else { Check::Differs }
}

const AT_ONCE: usize = 4;
const PATIENCE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_as_the_tools_write_them() {
        let md4 = "31d6cfe0d16ae931b73c59d7e0c089c0";
        assert_eq!(digest(&format!("{md4} *file")).as_deref(), Some(md4));
        assert_eq!(digest(&format!("\\{md4}  fi\\nle")).as_deref(), Some(md4));
        assert_eq!(digest(&md4.to_ascii_uppercase()).as_deref(), Some(md4));
        assert_eq!(digest("404 not found"), None);
        assert_eq!(digest(""), None);
    }

    #[test]
    fn a_wrong_digest_is_not_taken_for_a_right_one() {
        assert_eq!(compare("aa", "ab"), Check::Differs);
        assert_eq!(compare("aa", "aa"), Check::Matches);
    }
}
