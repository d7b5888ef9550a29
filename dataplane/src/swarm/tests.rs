//! Tests of the swarm side of sync: several volunteers, an origin and a tracker in this process.

mod field;
mod harm;
mod manifests;
mod recipes;
mod resume;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet_api::NodeId;
use freshet_api::bundle::BundleId;
use freshet_engine::{Grant, Pacer, Want};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::field::{Field, File, Seat};
use super::*;
use crate::link::DialerOptions;
use crate::mirror::tests::reopening;
use crate::mirror::{Mirror, MirrorOptions, Selection};
use crate::sync::tests::brisk;
use crate::sync::{NoPacing, Origin};

/// A volunteer that can be killed and started again.
struct Volunteer {
    node: NodeId,
    directory: tempfile::TempDir,
    /// Another directory than the temporary one.
    on: Option<std::path::PathBuf>,
    field: Arc<Field>,
    wanted: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    mirror: Option<Arc<Mirror>>,
    meter: Arc<Meter>,
    port: Option<PeerPort>,
    running: Option<JoinHandle<()>>,
    pace: Arc<Slowed>,
    options: SwarmOptions,
    selection: Selection,
}

/// As fast as it goes, or so many bytes per second.
struct Slowed(std::sync::atomic::AtomicU64);

impl Pacer for Slowed {
    fn unlimited(&self, _class: u8) -> bool {
        false
    }

    fn take(&self, _class: u8, want: Want, _place: &mut freshet_engine::Place, _now: Instant) -> Grant {
        match self.0.load(std::sync::atomic::Ordering::Relaxed) {
            0 => Grant::Bytes(want.bytes),
            // The engine asks before each chunk; a pause before small ones makes about that rate.
            rate if rand::random::<f64>() < 0.5 => {
                Grant::Wait(Duration::from_secs_f64(2_048.0 / rate as f64))
            }
            _ => Grant::Bytes(want.bytes.min(1_024)),
        }
    }
}

impl Volunteer {
    async fn new(field: &Arc<Field>, node: u32) -> Self {
        let options = SwarmOptions {
            stall: Duration::from_secs(30),
            local_retry: Duration::from_millis(50),
            sync_apart: Duration::from_millis(5),
            list_apart: Duration::from_millis(300),
            ..SwarmOptions::default()
        };
        Self {
            node: NodeId(node),
            directory: tempfile::tempdir().unwrap(),
            on: None,
            field: Arc::clone(field),
            wanted: watch::channel(0).0,
            stop: watch::channel(false).0,
            mirror: None,
            meter: Arc::default(),
            port: None,
            running: None,
            pace: Arc::new(Slowed(0.into())),
            options,
            selection: Selection::default(),
        }
    }

    async fn started(field: &Arc<Field>, node: u32) -> Self {
        let mut volunteer = Self::new(field, node).await;
        volunteer.start().await;
        volunteer
    }

    fn root(&self) -> &Path {
        self.on.as_deref().unwrap_or(self.directory.path())
    }

    fn tree(&self) -> std::path::PathBuf {
        self.root().join("tree")
    }

    async fn start(&mut self) {
        let mut options = MirrorOptions::new(self.root().join("state"), self.tree());
        options.reserve_bytes = 0;
        options.selection = self.selection.clone();
        let mirror = reopening::open(&options).await;
        self.mirror = Some(Arc::clone(&mirror));
        let counting = freshet_ebpf::Options { classifiers: false, ..Default::default() };
        let classes = freshet_ebpf::open(counting).unwrap().classes;
        let shelves = Shelves::default();
        let port = PeerPort::open(
            "127.0.0.1:0".parse().unwrap(),
            None,
            &Field::key(self.node),
            Arc::clone(&mirror),
            shelves.clone(),
            Arc::clone(&self.pace) as Arc<dyn Pacer>,
            &classes,
        )
        .unwrap();
        let seat = Seat::sit(&self.field, self.node, format!("http://{}", port.address()));
        self.port = Some(port);
        let endpoint = OriginEndpoint { url: self.field.url(), token: "t".into() };
        // Its sender may go: the endpoint stays as it is.
        let endpoint = watch::channel(Some(endpoint)).1;
        let (head_timeout, read_timeout) = (Duration::from_secs(3), Duration::from_secs(3));
        let dialer = Dialer::new(DialerOptions { head_timeout, read_timeout, ..DialerOptions::new(2) });
        self.meter = Arc::default();
        let swarm = Swarm {
            tracker: Arc::new(seat),
            dialer: dialer.clone(),
            pacer: Arc::new(NoPacing),
            origin: endpoint.clone(),
            shelves,
            meter: Arc::clone(&self.meter),
            options: self.options.clone(),
        };
        self.running = Some(tokio::spawn(crate::sync::run(
            mirror,
            Arc::clone(&self.field),
            Origin::new(dialer, endpoint, Arc::new(NoPacing)),
            swarm,
            self.wanted.subscribe(),
            brisk(),
            self.stop.subscribe(),
        )));
    }

    /// Ends it as a kill would: whatever it was doing is dropped.
    async fn kill(&mut self) {
        let running = self.running.take().unwrap();
        running.abort();
        let _ = running.await;
        let port = self.port.take().unwrap();
        tokio::task::spawn_blocking(move || port.stop(Duration::ZERO)).await.unwrap();
        let weak = Arc::downgrade(&self.mirror.take().unwrap());
        until("blocking work has ended", || weak.strong_count() == 0).await;
        self.field.forget(self.node);
    }

    fn mirror(&self) -> &Mirror {
        self.mirror.as_ref().unwrap()
    }

    fn complete(&self) -> u64 {
        self.mirror().progress().complete
    }
}

/// `count` volunteers that are up.
async fn volunteers(field: &Arc<Field>, count: u32) -> Vec<Volunteer> {
    let mut all = Vec::new();
    for node in 1..=count {
        all.push(Volunteer::started(field, node).await);
    }
    all
}

async fn all_complete(volunteers: &[Volunteer], sequence: u64) {
    for volunteer in volunteers {
        volunteer.wanted.send_replace(sequence);
    }
    until_or(
        || volunteers.iter().all(|volunteer| volunteer.complete() == sequence),
        || format!("{:?}", volunteers.iter().map(|v| v.mirror().progress()).collect::<Vec<_>>()),
    )
    .await;
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    until_or(condition, || what.to_owned()).await;
}

async fn until_or(condition: impl Fn() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {}", what());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; length];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Every file below a directory: path and content.
fn walk(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn same(volunteer: &Volunteer, files: &[File]) {
    let expected: BTreeMap<String, Vec<u8>> = files.iter().cloned().collect();
    let found = walk(&volunteer.tree());
    assert!(found.keys().eq(expected.keys()), "{:?}", found.keys());
    assert!(found == expected, "the contents differ");
}

/// A few large files and some small ones, an empty one and an index among them.
fn sample() -> Vec<File> {
    let mut files = vec![
        ("pool/large".to_owned(), content(1, 1_500_000)),
        ("pool/odd".to_owned(), content(2, 333_333)),
        ("pool/one-piece".to_owned(), content(3, 100_000)),
        ("pool/empty".to_owned(), Vec::new()),
        ("dists/Release".to_owned(), content(4, 900)),
    ];
    files.extend((0..60).map(|n| (format!("pool/small/{n}"), content(100 + n, 40 + n as usize * 300))));
    files
}

fn contents(files: &[File]) -> Vec<Vec<u8>> {
    files.iter().map(|(_, content)| content.clone()).collect()
}

fn bundled(field: &Field, files: &[File]) -> BundleId {
    field.bundle(&contents(files), 16 << 10, 64 << 10, &[])
}

fn total(files: &[File]) -> u64 {
    files.iter().map(|(_, content)| content.len() as u64).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_mirrors_cost_the_origin_about_one_copy() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    let sequence = field.publish(&files);
    let volunteers = volunteers(&field, 6).await;
    all_complete(&volunteers, sequence).await;
    volunteers.iter().for_each(|volunteer| same(volunteer, &files));
    let sent = field.origin_bytes();
    assert!(sent <= total(&files) * 11 / 10, "the origin sent {sent} of {} bytes", total(&files));
    // Nobody needs what was kept for peers.
    let kept =
        |volunteer: &Volunteer| std::fs::read_dir(volunteer.mirror().swarm_directory()).unwrap().count();
    until("all is swept", || volunteers.iter().all(|volunteer| kept(volunteer) == 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_fetches_from_those_who_are_done() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    let sequence = field.publish(&files);
    let mut early = volunteers(&field, 3).await;
    all_complete(&early, sequence).await;
    let swept = |volunteer: &Volunteer| {
        std::fs::read_dir(volunteer.mirror().swarm_directory()).unwrap().next().is_none()
    };
    until("the early ones are done with it", || early.iter().all(swept)).await;
    // One of them was restarted since.
    early[0].kill().await;
    early[0].start().await;
    early[0].wanted.send_replace(sequence);
    let before = field.origin_bytes();
    let late = Volunteer::started(&field, 4).await;
    all_complete(std::slice::from_ref(&late), sequence).await;
    same(&late, &files);
    // Packs of small files are not kept; everything else is.
    let small: u64 =
        files.iter().map(|(_, content)| content.len() as u64).filter(|&size| size < 64 << 10).sum();
    let sent = field.origin_bytes() - before;
    assert!(sent <= small + 16_384, "the origin sent {sent} bytes, {small} of them in packs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_after_a_release_moves_what_is_new() {
    let field = Field::start().await;
    let mut files = sample();
    let volunteers = volunteers(&field, 3).await;
    bundled(&field, &files);
    all_complete(&volunteers, field.publish(&files)).await;
    let before = field.origin_bytes();
    let new =
        vec![("pool/new".to_owned(), content(50, 200_000)), ("pool/copy".to_owned(), content(1, 1_500_000))];
    bundled(&field, &new[..1]);
    files.extend(new);
    files.remove(1);
    all_complete(&volunteers, field.publish(&files)).await;
    volunteers.iter().for_each(|volunteer| same(volunteer, &files));
    let moved = field.origin_bytes() - before;
    assert!(moved <= 200_000 + 16_384, "{moved} bytes for 200,000 new ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_come_in_packs() {
    let field = Field::start().await;
    let files: Vec<File> =
        (0..3_000).map(|n| (format!("pool/{}/f{n}", n % 40), content(n, n as usize % 3_000))).collect();
    bundled(&field, &files);
    let sequence = field.publish(&files);
    let volunteers = volunteers(&field, 2).await;
    all_complete(&volunteers, sequence).await;
    volunteers.iter().for_each(|volunteer| same(volunteer, &files));
    assert_eq!(field.requests(&files[77].1), (0, 0), "no small file is fetched by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_a_part_fetches_that_part() {
    let field = Field::start().await;
    let all = sample();
    let bundle = bundled(&field, &all);
    // The bundle has all of it, the mirror wants one large file and a few small ones.
    let files: Vec<File> =
        all.iter().filter(|(path, _)| path == "pool/odd" || path.ends_with('7')).cloned().collect();
    let sequence = field.publish(&files);
    let volunteers = volunteers(&field, 1).await;
    all_complete(&volunteers, sequence).await;
    same(&volunteers[0], &files);
    assert_eq!(field.requests(&all[0].1), (0, 0));
    // Each small file may cost two pieces.
    assert!(field.origin_bytes() <= 333_333 + 12 * 2 * 16_384, "{}", field.origin_bytes());
    assert!(field.held(bundle, NodeId(1)) < field.bundle_pieces(bundle));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_bundle_has_is_fetched_whole() {
    let field = Field::start().await;
    let mut files = sample();
    bundled(&field, &files);
    files.push(("pool/alone".to_owned(), content(60, 80_000)));
    let sequence = field.publish(&files);
    let volunteers = volunteers(&field, 2).await;
    all_complete(&volunteers, sequence).await;
    volunteers.iter().for_each(|volunteer| same(volunteer, &files));
    assert_eq!(field.requests(&files.last().unwrap().1), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_disk_has_is_not_fetched() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    let mut volunteer = Volunteer::new(&field, 1).await;
    // An older mirror's tree: one file is right, one has the size and other bytes.
    let tree = volunteer.tree();
    std::fs::create_dir_all(tree.join("pool/small")).unwrap();
    std::fs::write(tree.join("pool/large"), &files[0].1).unwrap();
    std::fs::write(tree.join("pool/odd"), content(999, 333_333)).unwrap();
    volunteer.start().await;
    all_complete(std::slice::from_ref(&volunteer), field.publish(&files)).await;
    same(&volunteer, &files);
    assert_eq!(field.requests(&files[0].1), (0, 0), "it is here");
    let (ranges, whole) = field.requests(&files[1].1);
    assert!(ranges >= 21 && whole == 0, "what is not here comes in pieces");
    assert_eq!(volunteer.meter.disk.load(std::sync::atomic::Ordering::Relaxed), 1_500_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_selected_anew_is_kept_anew() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    let sequence = field.publish(&files);
    let mut volunteer = Volunteer::new(&field, 1).await;
    let part =
        |pattern: &str| Selection::new(&[pattern.to_owned(), "dists/**".to_owned()], &[], None).unwrap();
    let kept = |kept: fn(&str) -> bool| -> Vec<File> {
        files.iter().filter(|(path, _)| path.starts_with("dists/") || kept(path)).cloned().collect()
    };
    volunteer.selection = part("pool/small/1*");
    volunteer.start().await;
    all_complete(std::slice::from_ref(&volunteer), sequence).await;
    same(&volunteer, &kept(|path| path.starts_with("pool/small/1")));
    assert_eq!(field.requests(&files[0].1), (0, 0));
    // Another part, at the same state of the catalogue.
    volunteer.kill().await;
    volunteer.selection = part("pool/o*");
    volunteer.start().await;
    volunteer.wanted.send_replace(sequence);
    let there = |path: String| volunteer.tree().join(path).exists();
    until("the other part is here, and this one gone", || {
        there("pool/odd".into())
            && there("pool/one-piece".into())
            && !(0..60).any(|n| there(format!("pool/small/{n}")))
    })
    .await;
    same(&volunteer, &kept(|path| path.starts_with("pool/o")));
    assert_eq!(volunteer.mirror().holdings().len(), 3, "what is not kept is not announced");
    volunteer.kill().await;
    volunteer.start().await;
    assert!(!volunteer.mirror().needs_whole_manifest(), "it is known by now");
}
