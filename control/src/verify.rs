//! Asks a volunteer for ranges of files, as a customer whom the front door sent would, and compares them with the
//! repository's own bytes. Who sends others is banned for what control itself was sent.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use freshet_api::enrol::Fingerprint;
use freshet_api::manifest::RepoPath;
use freshet_api::operator::{Check, CheckOutcome};
use freshet_api::{ContentHash, FileId, Ticket, pin};
use freshet_policy::trust::{Evidence, Subject, audit_range};
use http::{StatusCode, header};

use crate::catalog::FileEntry;
use crate::clock::epoch_secs;
use crate::front_door::encode_path;
use crate::routing::Route;

/// Who asks.
#[derive(Debug)]
pub struct Verifier {
    http: reqwest::Client,
    repo: PathBuf,
}

/// What is asked for.
#[derive(Clone, Debug)]
struct Sample {
    file: FileId,
    path: RepoPath,
    size: u64,
    mtime: i64,
    blake3: ContentHash,
    offset: u64,
    length: u64,
}

impl Verifier {
    /// Compares with what is below `repo`.
    ///
    /// # Errors
    /// When no client can be set up.
    pub fn new(repo: PathBuf) -> anyhow::Result<Self> {
        // No TLS of control's is spoken here; the client wants to be told which it would be.
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(pin::client_config(Fingerprint([0; 32]))?)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            // A liar would tell a customer by this.
            .user_agent("Wget/1.21.3")
            .build()?;
        Ok(Self { http, repo })
    }

    /// Asks for a range of this file, drawn by `seed`, and says what came; with evidence when it was wrong.
    pub async fn check(&self, route: &Route, entry: &FileEntry<'_>, seed: u64) -> (Check, Option<Evidence>) {
        let (offset, length) = audit_range(entry.size, seed);
        let sample = Sample {
            file: entry.file,
            path: entry.path.to_repo_path(),
            size: entry.size,
            mtime: entry.mtime,
            blake3: entry.checksums.blake3,
            offset,
            length,
        };
        let check = |outcome, why: String| Check { path: sample.path.clone(), offset, length, outcome, why };
        let received = match self.ask(route, &sample).await {
            Ok(Answer::Bytes(bytes)) => bytes,
            Ok(Answer::SentBack) => return (check(CheckOutcome::SentBack, String::new()), None),
            Err(why) => return (check(CheckOutcome::NoAnswer, why), None),
        };
        let (repo, wanted) = (self.repo.clone(), sample.clone());
        let expected = tokio::task::spawn_blocking(move || own(&repo, &wanted)).await;
        let expected = match expected {
            Ok(Ok(expected)) => expected,
            Ok(Err(why)) => return (check(CheckOutcome::NoAnswer, why), None),
            Err(error) => return (check(CheckOutcome::NoAnswer, error.to_string()), None),
        };
        if received == expected {
            return (check(CheckOutcome::Right, String::new()), None);
        }
        let hash = |bytes: &[u8]| ContentHash::from(blake3::hash(bytes));
        let evidence = Evidence {
            of: Subject::File(sample.file),
            offset,
            length: received.len() as u64,
            expected: hash(&expected),
            received: hash(&received),
        };
        (check(CheckOutcome::Wrong, "other bytes than the repository's".to_owned()), Some(evidence))
    }

    async fn ask(&self, route: &Route, sample: &Sample) -> Result<Answer, String> {
        let path = format!("/{}", sample.path);
        let expires = epoch_secs(std::time::SystemTime::now()) + TICKET_SECS;
        let expires = u32::try_from(expires).map_err(|error| error.to_string())?;
        let ticket =
            Ticket::new(expires, &sample.blake3, &[], route.node).map_err(|error| error.to_string())?;
        let sealed = ticket.seal(&route.ticket_key, path.as_bytes());
        let mut request = self.http.get(format!("{}{}?t={sealed}", route.delivery_url, encode_path(&path)));
        if sample.length > 0 {
            let last = sample.offset + sample.length - 1;
            request = request.header(header::RANGE, format!("bytes={}-{last}", sample.offset));
        }
        let mut answer = request.send().await.map_err(|error| told(&error))?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK if sample.length == sample.size => {}
            status if status.is_redirection() => return Ok(Answer::SentBack),
            status => return Err(format!("it answered {status}")),
        }
        let length = usize::try_from(sample.length).map_err(|error| error.to_string())?;
        let mut bytes = Vec::with_capacity(length);
        while let Some(chunk) = answer.chunk().await.map_err(|error| told(&error))? {
            if bytes.len() + chunk.len() > length {
                return Err(format!("it sent more than {length} bytes"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.len() < length {
            return Err(format!("it sent {} of {length} bytes", bytes.len()));
        }
        Ok(Answer::Bytes(bytes))
    }
}

enum Answer {
    Bytes(Vec<u8>),
    SentBack,
}

/// The repository's own bytes, of the version that was asked for.
fn own(repo: &Path, sample: &Sample) -> Result<Vec<u8>, String> {
    let fail = |error: std::io::Error| format!("the repository's own file can't be read: {error}");
    let mut file = std::fs::File::open(repo.join(sample.path.as_str())).map_err(fail)?;
    let same = |meta: &std::fs::Metadata| meta.len() == sample.size && meta.mtime() == sample.mtime;
    if !same(&file.metadata().map_err(fail)?) {
        return Err("the repository's own file was changed just now".to_owned());
    }
    file.seek(SeekFrom::Start(sample.offset)).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(sample.length).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 != sample.length {
        return Err("the repository's own file was changed just now".to_owned());
    }
    Ok(bytes)
}

/// The innermost cause, which names what a person can act on.
fn told(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const TICKET_SECS: u64 = 120;
