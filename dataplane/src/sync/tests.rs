//! Tests of the sync client against an origin in this process, over loopback.

mod origin;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet_api::manifest::{Manifest, ManifestFile};
use freshet_api::{ContentHash, FileId};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::origin::{FakeOrigin, Twist};
use super::*;
use crate::link::{Dialer, DialerOptions};
use crate::mirror::tests::reopening;
use crate::mirror::tests::small_disk::SmallDisk;
use crate::mirror::{Mirror, MirrorOptions};

/// A mirror in a temporary directory, with the sync client running against a fake origin.
struct Bench {
    directory: tempfile::TempDir,
    origin: Arc<FakeOrigin>,
    mirror: Option<Arc<Mirror>>,
    wanted: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    running: Option<JoinHandle<()>>,
    /// Another directory than the temporary one.
    on: Option<std::path::PathBuf>,
    new_endpoint: watch::Sender<Option<OriginEndpoint>>,
    endpoint: watch::Receiver<Option<OriginEndpoint>>,
}

/// As by default, only that nothing waits for long.
pub(crate) fn brisk() -> SyncOptions {
    SyncOptions {
        retry_first: Duration::from_millis(10),
        retry_most: Duration::from_millis(100),
        local_retry: Duration::from_millis(50),
        grace: Duration::ZERO,
        ..SyncOptions::default()
    }
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
            on: None,
            new_endpoint: sender,
            endpoint,
        }
    }

    fn tree(&self) -> std::path::PathBuf {
        self.root().join("tree")
    }

    fn root(&self) -> &Path {
        self.on.as_deref().unwrap_or(self.directory.path())
    }

    async fn start(&mut self) {
        self.start_with(|_| {}).await;
    }

    async fn start_with(&mut self, change: impl FnOnce(&mut MirrorOptions)) {
        let mut options = MirrorOptions::new(self.root().join("state"), self.tree());
        options.reserve_bytes = 0;
        change(&mut options);
        let mirror = reopening::open(&options).await;
        self.mirror = Some(Arc::clone(&mirror));
        let blobs = Origin::new(
            Dialer::new(DialerOptions { read_timeout: Duration::from_secs(2), ..DialerOptions::new(2) }),
            self.endpoint.clone(),
            Arc::new(NoPacing),
        );
        let options = brisk();
        let manifests = Arc::clone(&self.origin);
        let stop = self.stop.subscribe();
        let swarm = crate::swarm::Swarm::none(Dialer::new(DialerOptions::new(2)));
        self.running =
            Some(tokio::spawn(run(mirror, manifests, blobs, swarm, self.wanted.subscribe(), options, stop)));
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
    assert_eq!((held.size, held.mtime, held.content), (3_000_000, 2_000, ContentHash::of(&files[1].1)));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_link_costs_what_was_cut_and_no_more() {
    let mut bench = Bench::new().await;
    let large = content(7, 5_000_000);
    bench.origin.twist(&large, [Twist::CutAfter(1_000_000), Twist::CutAfter(2_500_000), Twist::CutAfter(10)]);
    bench.start().await;
    let files = [("iso", large, 1)];
    bench.sync(&files).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    let ranges = bench.origin.ranges();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    // What the origin had in its buffers when it broke off counts as sent there.
    assert!(bench.origin.body_bytes() <= 5_000_000 + 3 * 600_000, "{}", bench.origin.body_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_continues_where_it_was() {
    let mut bench = Bench::new().await;
    let large = content(8, 4_000_000);
    // It stops for good after 2 MB: the body says neither more nor that it ends.
    bench.origin.twist(&large, [Twist::StallAfter(2_000_000)]);
    bench.start().await;
    let files = [("iso", large, 1), ("small", content(9, 100), 2)];
    let sequence = bench.origin.publish(&files);
    bench.wanted.send_replace(sequence);
    let partial = bench.directory.path().join("state/partial");
    let received = || {
        let sizes = std::fs::read_dir(&partial)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().map_or(0, |m| m.len()));
        sizes.sum::<u64>()
    };
    until("a part is on disk", || received() >= 1 << 20).await;
    bench.kill().await;
    assert!(!bench.tree().join("iso").exists());
    let on_disk = received();
    bench.start().await;
    bench.complete(sequence).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    assert_eq!(bench.origin.ranges(), [format!("bytes={on_disk}-")]);
    assert_eq!(received(), 0, "no partial file is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_dropped_and_asked_for_again() {
    let mut bench = Bench::new().await;
    let (small, large) = (content(10, 5_000), content(11, 1_000_000));
    for content in [&small, &large] {
        let twists = [Twist::WrongBytes, Twist::WrongLength, Twist::TooLong, Twist::WrongBytes];
        bench.origin.twist(content, twists);
    }
    // What lies here already is not the beginning of it: the whole is fetched once more.
    bench.origin.twist(&large, [Twist::CutAfter(500_000), Twist::WrongBytes, Twist::None]);
    bench.start().await;
    let files = [("small", small, 1), ("large", large, 2)];
    bench.sync(&files).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    until("the trouble is over", || bench.mirror().progress().trouble.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_ranges_is_asked_for_the_whole() {
    let mut bench = Bench::new().await;
    let large = content(12, 1_000_000);
    bench.origin.twist(&large, [Twist::CutAfter(400_000), Twist::Whole]);
    let other = content(13, 1_000_000);
    bench.origin.twist(&other, [Twist::CutAfter(400_000), Twist::WrongRange, Twist::Status(416)]);
    bench.start().await;
    let files = [("large", large, 1), ("other", other, 2)];
    bench.sync(&files).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_waited_out_and_told() {
    let mut bench = Bench::new().await;
    let mut files = sample();
    for (_, content, _) in &files {
        bench.origin.twist(content, [503, 500, 401, 404, 301].map(Twist::Status));
    }
    bench.start().await;
    bench.sync(&files).await;
    assert_eq!(walk(&bench.tree()), expected(&files));

    // One file is gone at the origin: the others come, and the indexes stay as they were.
    let gone = content(14, 1_000);
    bench.origin.twist(&gone, std::iter::repeat_n(Twist::Status(404), 200));
    files.push(("pool/gone.deb", gone, 7));
    files.push(("pool/new.deb", content(15, 1_000), 8));
    let old_release = files[4].1.clone();
    files[4] = ("dists/stable/Release", content(16, 900), 9);
    let sequence = bench.origin.publish(&files);
    bench.wanted.send_replace(sequence);
    until("the other one is here", || bench.tree().join("pool/new.deb").exists()).await;
    until_or(
        || bench.mirror().progress().trouble.is_some_and(|trouble| trouble.contains("pool/gone.deb")),
        || format!("{:?}", bench.mirror().progress()),
    )
    .await;
    assert_eq!(std::fs::read(bench.tree().join("dists/stable/Release")).unwrap(), old_release);
    // The next manifest knows that it is gone.
    files.remove(5);
    bench.sync(&files).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    until("the trouble is over", || bench.mirror().progress().trouble.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_it_and_room_lets_it_go_on() {
    let mut bench = Bench::new().await;
    bench.start().await;
    let mut files = sample();
    bench.sync(&files).await;
    bench.mirror().fail_writes(rustix::io::Errno::NOSPC.raw_os_error());
    files.push(("pool/d.deb", content(17, 1_000), 1));
    files.push(("pool/e.deb", content(18, 1_000_000), 1));
    let sequence = bench.origin.publish(&files);
    bench.wanted.send_replace(sequence);
    let trouble = || bench.mirror().progress().trouble.unwrap_or_default();
    until("it says so", || trouble().contains("make room")).await;
    assert_eq!(walk(&bench.tree()), expected(&files[..5]));
    assert!(bench.mirror().find(b"pool/a/a_1.deb").is_some(), "what is held is still served");
    bench.mirror().fail_writes(rustix::io::Errno::ROFS.raw_os_error());
    until("it says so", || trouble().contains("read-only")).await;
    bench.mirror().fail_writes(0);
    bench.complete(sequence).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    until("the trouble is over", || bench.mirror().progress().trouble.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_filesystem_fills_and_is_relieved() {
    let Some(small) = SmallDisk::mount(12 << 20) else {
        eprintln!("skipped: mounting a tmpfs needs root (CAP_SYS_ADMIN)");
        return;
    };
    let mut bench = Bench::new().await;
    bench.on = Some(small.path.clone());
    bench.start_with(|options| options.reserve_bytes = 256 << 10).await;
    small.fill(2 << 20);
    let files: Vec<File> =
        (0..3).map(|n| (["a", "b", "c"][n], content(n as u64, 900_000), n as i64)).collect();
    let sequence = bench.origin.publish(&files);
    bench.wanted.send_replace(sequence);
    let trouble = || bench.mirror().progress().trouble.unwrap_or_default();
    until_or(|| trouble().contains("full"), || format!("{:?}", bench.mirror().progress())).await;
    small.relieve();
    bench.complete(sequence).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    bench.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_mirror_is_taken_over_without_a_fetch() {
    let mut bench = Bench::new().await;
    let files = sample();
    for (path, content, _) in &files {
        let path = bench.tree().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    std::fs::write(bench.tree().join("pool/own"), "mine").unwrap();
    bench.start().await;
    bench.sync(&files).await;
    assert_eq!(bench.origin.requests(), 0);
    let mut found = walk(&bench.tree());
    assert_eq!(found.remove("pool/own").unwrap().0, b"mine");
    assert_eq!(found, expected(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_found_wrong_is_fetched_again() {
    let mut bench = Bench::new().await;
    bench.start().await;
    let files = sample();
    bench.sync(&files).await;
    let held = bench.mirror().find(b"pool/a/a_1.deb").unwrap();
    let path = bench.mirror().blobs_directory().join(std::str::from_utf8(&held.blob).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "rubbish").unwrap();
    bench.mirror().distrust(&held.content);
    assert!(bench.mirror().find(b"pool/a/a_1.deb").is_none());
    until("it is back", || bench.mirror().find(b"pool/a/a_1.deb").is_some()).await;
    assert_eq!(std::fs::read(path).unwrap(), files[0].1);
    assert_eq!(walk(&bench.tree()), expected(&files));
    assert_eq!(bench.origin.requests(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_manifest_overtakes_an_older_one() {
    let mut bench = Bench::new().await;
    let (never, old) = (content(20, 3_000_000), content(21, 1_000));
    bench.origin.twist(&never, std::iter::repeat_n(Twist::StallAfter(1_000), 50));
    bench.start().await;
    let sequence = bench.origin.publish(&[("huge", never, 1), ("old", old, 2)]);
    bench.wanted.send_replace(sequence);
    until("the small one is here", || bench.tree().join("old").exists()).await;
    let files = [("new", content(22, 2_000), 3)];
    bench.sync(&files).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    until("its partial file is swept", || {
        std::fs::read_dir(bench.directory.path().join("state/partial")).unwrap().next().is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_and_a_clean_stop() {
    let mut bench = Bench::new().await;
    let names: Vec<String> = (0..3_000).map(|n| format!("pool/{}/f{n}", n % 40)).collect();
    let names: &'static [String] = names.leak();
    let files: Vec<File> = names
        .iter()
        .enumerate()
        .map(|(n, name)| (name.as_str(), content(n as u64, n % 5_000), n as i64))
        .collect();
    bench.start().await;
    let sequence = bench.origin.publish(&files);
    bench.wanted.send_replace(sequence);
    until("some are here", || bench.mirror().progress().files_held > 100).await;
    bench.stop.send_replace(true);
    bench.running.take().unwrap().await.unwrap();
    let held = bench.mirror().progress().files_held;
    let weak = Arc::downgrade(&bench.mirror.take().unwrap());
    until("all work has ended", || weak.strong_count() == 0).await;
    bench.stop.send_replace(false);
    bench.start().await;
    assert!(bench.mirror().progress().files_held >= held, "what was held before a stop is held after it");
    bench.complete(sequence).await;
    assert_eq!(walk(&bench.tree()), expected(&files));
    // Each content once, but for those that were on their way when it was stopped.
    assert!(bench.origin.requests() <= 3_000 + 600, "{}", bench.origin.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_waits_for_a_better_one() {
    let mut bench = Bench::new().await;
    let url = bench.origin.url();
    bench.new_endpoint.send_replace(Some(OriginEndpoint { url: url.clone(), token: "old".into() }));
    bench.start().await;
    let files = sample();
    let sequence = bench.origin.publish(&files);
    bench.wanted.send_replace(sequence);
    until("it says so", || bench.mirror().progress().trouble.is_some_and(|t| t.contains("401"))).await;
    bench.new_endpoint.send_replace(Some(OriginEndpoint { url, token: "t".into() }));
    bench.complete(sequence).await;
    until("the trouble is over", || bench.mirror().progress().trouble.is_none()).await;
    assert!(bench.origin.requests() < 200, "the source is left alone while it refuses");
}
