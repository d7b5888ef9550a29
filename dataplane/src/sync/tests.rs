//! Tests of the sync client against an origin in this process, over loopback.

mod origin;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet_api::manifest::{Manifest, ManifestFile};
use freshet_api::{Checksums, FileId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::origin::{FakeOrigin, Twist};
use super::*;
use crate::link::{Dialer, DialerOptions};
use crate::mirror::{Mirror, MirrorOptions};

/// A mirror in a temporary directory, with the sync client running against a fake origin.
struct Bench {
    directory: tempfile::TempDir,
    origin: Arc<FakeOrigin>,
    mirror: Option<Arc<Mirror>>,
    wanted: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    running: Option<JoinHandle<()>>,
    // Kept, so that the source never sees it closed.
    _endpoint: watch::Sender<Option<OriginEndpoint>>,
    endpoint: watch::Receiver<Option<OriginEndpoint>>,
}

impl Bench {
    async fn new() -> Self {
        let origin = FakeOrigin::start().await;
        let (sender, endpoint) =
            watch::channel(Some(OriginEndpoint { url: origin.url(), token: "t".into() }));
        Self {
            directory: tempfile::tempdir().unwrap(),
            origin,
            mirror: None,
            wanted: watch::channel(0).0,
            stop: watch::channel(false).0,
            running: None,
            _endpoint: sender,
            endpoint,
        }
    }

    fn tree(&self) -> std::path::PathBuf {
        self.directory.path().join("tree")
    }

    async fn start(&mut self) {
        self.start_with(|_| {}).await;
    }

    async fn start_with(&mut self, change: impl FnOnce(&mut MirrorOptions)) {
        let mut options = MirrorOptions::new(self.directory.path().join("state"), self.tree());
        options.reserve_bytes = 0;
        change(&mut options);
        let mirror = Mirror::open(options).unwrap();
        self.mirror = Some(Arc::clone(&mirror));
        let blobs = Origin::new(
            Dialer::new(DialerOptions { read_timeout: Duration::from_secs(2), ..DialerOptions::new(2) }),
            self.endpoint.clone(),
            Arc::new(NoPacing),
        );
        let options = SyncOptions {
            retry_first: Duration::from_millis(10),
            retry_most: Duration::from_millis(100),
            local_retry: Duration::from_millis(50),
            grace: Duration::ZERO,
            ..SyncOptions::default()
        };
        let manifests = Arc::clone(&self.origin);
        let stop = self.stop.subscribe();
        self.running =
            Some(tokio::spawn(run(mirror, manifests, blobs, self.wanted.subscribe(), options, stop)));
    }

    /// Ends the client as a kill would: whatever it was doing is dropped.
    async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        running.abort();
        let _ = running.await;
        let weak = Arc::downgrade(&self.mirror.take().unwrap());
        until("blocking work has ended", || weak.strong_count() == 0).await;
    }

    /// Publishes a state of the origin and waits until the mirror has it.
    async fn sync(&self, files: &[File]) {
        let sequence = self.origin.publish(files);
        self.wanted.send_replace(sequence);
        self.complete(sequence).await;
    }

    async fn complete(&self, sequence: u64) {
        let mirror = self.mirror.as_ref().unwrap();
        until_or(|| mirror.progress().complete == sequence, || format!("{:?}", mirror.progress())).await;
    }

    fn mirror(&self) -> &Mirror {
        self.mirror.as_ref().unwrap()
    }
}

/// A file of the origin: path, content, mtime.
type File = (&'static str, Vec<u8>, i64);

fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; length];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    until_or(condition, || what.to_owned()).await;
}

async fn until_or(condition: impl Fn() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {}", what());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Every file below a directory: path, content, mtime.
fn walk(root: &Path) -> BTreeMap<String, (Vec<u8>, i64)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                directories.push(path);
            } else {
                assert!(metadata.is_file(), "{}", path.display());
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, (std::fs::read(&path).unwrap(), metadata.mtime()));
            }
        }
    }
    found
}

fn expected(files: &[File]) -> BTreeMap<String, (Vec<u8>, i64)> {
    files.iter().map(|(path, content, mtime)| ((*path).to_owned(), (content.clone(), *mtime))).collect()
}

fn sample() -> Vec<File> {
    vec![
        ("pool/a/a_1.deb", content(1, 70_000), 1_000),
        ("pool/b/b_1.deb", content(2, 3_000_000), 2_000),
        ("pool/c/empty", Vec::new(), 3_000),
        ("dists/stable/main/Packages", content(3, 9_000), 4_000),
        ("dists/stable/Release", content(4, 900), 5_000),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_fetched_changed_and_served() {
    let mut bench = Bench::new().await;
    bench.start().await;
    let mut files = sample();
    bench.sync(&files).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    let held = bench.mirror().find(b"/pool/b/b_1.deb").unwrap();
    assert_eq!((held.size, held.mtime, held.checksums), (3_000_000, 2_000, Checksums::of(&files[1].1)));
    let blob = bench.mirror().blobs_directory().join(std::str::from_utf8(&held.blob).unwrap());
    assert_eq!(std::fs::read(blob).unwrap(), files[1].1);
    assert_eq!(bench.mirror().holdings().len(), 5);
    assert_eq!(bench.origin.requests(), 4, "an empty file needs no fetch");

    // One goes, one changes, one comes with a content that is there already.
    files.remove(0);
    files[3] = ("dists/stable/Release", content(5, 901), 6_000);
    files.push(("pool/b/copy.deb", content(2, 3_000_000), 2_000));
    bench.sync(&files).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    assert_eq!(bench.origin.requests(), 5, "what is held is not fetched again");
    assert!(bench.mirror().find(b"pool/a/a_1.deb").is_none());
    let progress = bench.mirror().progress();
    assert_eq!((progress.files_missing, progress.bytes_missing, progress.files_held), (0, 0, 5));
    assert_eq!(progress.trouble, None);
}
