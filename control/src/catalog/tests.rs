//! The catalogue against real trees: what it shows, what survives a restart or a kill, what it refuses.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet_api::{Checksums, ContentHash};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

mod figures;

/// A repository and the state directory beside it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("repo")).unwrap();
        Self { dir }
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    fn options(&self) -> CatalogOptions {
        let mut options = CatalogOptions::new(self.repo(), self.dir.path().join("catalog.redb"));
        options.quiet = Duration::from_millis(60);
        options.hash_threads = 2;
        options
    }

    fn open(&self) -> Arc<Catalog> {
        let catalog = Catalog::open(self.options()).unwrap();
        until("the first scan", || catalog.first_scan_done());
        catalog
    }

    fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let full = self.repo().join(path);
        fs::create_dir_all(full.parent().unwrap()).unwrap();
        fs::write(full, content).unwrap();
    }

    /// As every proper publisher does it.
    fn put_by_rename(&self, path: &str, content: impl AsRef<[u8]>) {
        let temporary = self.dir.path().join("temporary");
        fs::write(&temporary, content).unwrap();
        fs::rename(temporary, self.repo().join(path)).unwrap();
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited 30 s in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn has(catalog: &Catalog, path: &str, content: &str) -> bool {
    catalog.load().find(path.as_bytes()).is_some_and(|row| {
        row.checksums == Checksums::of(content.as_bytes()) && row.size == content.len() as u64
    })
}

fn lacks(catalog: &Catalog, path: &str) -> bool {
    catalog.load().find(path.as_bytes()).is_none()
}

fn tells(catalog: &Catalog, text: &str) -> bool {
    catalog.view().left_out.iter().any(|line| line.contains(text))
}

/// Path to checksums or link target, from the disk or from the catalogue.
type Seen = BTreeMap<String, Result<Checksums, String>>;

fn on_disk(root: &Path) -> Seen {
    let mut seen = Seen::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if entry.file_type().is_file() {
            seen.insert(path, Ok(Checksums::of(&fs::read(entry.path()).unwrap())));
        } else if entry.file_type().is_symlink() {
            let target = fs::read_link(entry.path()).unwrap().to_str().unwrap().to_owned();
            // A link that was moved nearer to the root may lead out of the tree now.
            if target.matches("../").count() <= path.matches('/').count() {
                seen.insert(path, Err(target));
            }
        }
    }
    seen
}

fn catalogued(snapshot: &Snapshot) -> Seen {
    let files = snapshot.iter().map(|row| (row.path.to_string(), Ok(row.checksums)));
    let links = snapshot.links().map(|(path, target)| (path.to_string(), Err(target.to_owned())));
    files.chain(links).collect()
}

/// What the snapshot says of itself in numbers and indexes.
fn check_indexes(snapshot: &Snapshot) {
    assert_eq!(snapshot.iter().count(), snapshot.len());
    assert_eq!(snapshot.iter().map(|row| row.size).sum::<u64>(), snapshot.bytes());
    let contents: std::collections::HashSet<_> = snapshot.iter().map(|row| row.checksums.blake3.0).collect();
    assert_eq!(contents.len() as u64, snapshot.contents());
    for row in snapshot.iter() {
        assert_eq!(snapshot.by_id(row.file).as_ref(), Some(&row));
        assert_eq!(snapshot.find(format!("/{}", row.path).as_bytes()).as_ref(), Some(&row));
        assert!(snapshot.by_content(&row.checksums.blake3).is_some());
        let (directory, name) = row.path.as_str().rsplit_once('/').unwrap_or(("", row.path.as_str()));
        let items = snapshot.list(directory.as_bytes()).unwrap();
        assert!(items.iter().any(|item| item.name == name && matches!(item.kind, ItemKind::File { .. })));
    }
}

/// A volunteer that knows nothing but manifests.
#[derive(Default)]
struct Follower {
    base: Option<u64>,
    seen: BTreeMap<String, Result<ContentHash, String>>,
    paths: BTreeMap<u32, String>,
}

impl Follower {
    fn follow(&mut self, catalog: &Catalog) {
        let manifest = catalog.manifest_since(self.base);
        if manifest.base.is_none() {
            self.seen.clear();
            self.paths.clear();
        }
        for file in &manifest.removed_files {
            let path = self.paths.remove(&file.0).expect("only what was told is taken back");
            self.seen.remove(&path);
        }
        for path in &manifest.removed_links {
            assert!(self.seen.remove(path.as_str()).is_some(), "only what was told is taken back");
        }
        for row in &manifest.files {
            self.paths.insert(row.file.0, row.path.to_string());
            self.seen.insert(row.path.to_string(), Ok(row.content));
        }
        for link in manifest.links {
            self.seen.insert(link.path.to_string(), Err(link.target));
        }
        self.base = Some(manifest.sequence);
    }
}

#[test]
fn more_fresh_files_than_are_looked_at_again_are_all_found() {
    let place = Place::new();
    place.put("first", "content");
    // Too fresh to be hashed at the first look, all of them: the clock is the file system's.
    for number in 0..1_000 {
        fs::hard_link(place.repo().join("first"), place.repo().join(format!("name{number}"))).unwrap();
    }
    let mut options = place.options();
    options.quiet = Duration::from_secs(1);
    let catalog = Catalog::open(options).unwrap();
    until("all names of one content", || catalog.load().len() == 1_001);
}

#[test]
fn a_tree_is_catalogued_and_followed() {
    let place = Place::new();
    place.put("pool/a.deb", "a");
    place.put("pool/sub/b.deb", "bb");
    place.put("dists/stable/Release", "r");
    let catalog = place.open();
    assert!(has(&catalog, "/pool/a.deb", "a") && has(&catalog, "pool/sub/b.deb", "bb"));
    assert!(catalog.load().find(b"dists/stable/Release").unwrap().last);
    assert!(!catalog.load().find(b"pool/a.deb").unwrap().last);
    check_indexes(&catalog.load());

    let first = catalog.load().find(b"pool/a.deb").unwrap().clone();
    let before = catalog.load().sequence();
    place.put_by_rename("pool/a.deb", "changed");
    until("the new content", || has(&catalog, "pool/a.deb", "changed"));
    let now = catalog.load();
    let second = now.find(b"pool/a.deb").unwrap();
    assert!(second.file > first.file && now.by_id(first.file).is_none());
    assert!(first.changed_at().is_none() && second.changed_at().is_some());
    assert_eq!(now.sequence(), before + 1);

    place.put("new/deep/c.deb", "c");
    until("a file in new directories", || has(&catalog, "new/deep/c.deb", "c"));
    place.put("new/deep/d.deb", "d");
    until("another one in them", || has(&catalog, "new/deep/d.deb", "d"));
    fs::remove_dir_all(place.repo().join("new")).unwrap();
    until("their removal", || lacks(&catalog, "new/deep/c.deb") && !catalog.load().is_directory(b"new"));
    fs::rename(place.repo().join("pool"), place.repo().join("moved")).unwrap();
    until("the move", || has(&catalog, "moved/sub/b.deb", "bb") && lacks(&catalog, "pool/a.deb"));
    assert_eq!(catalogued(&catalog.load()), on_disk(&place.repo()));
}

#[test]
fn a_restart_hashes_nothing_again_and_keeps_numbers() {
    let place = Place::new();
    for i in 0..300 {
        place.put(&format!("pool/{}/{i}.deb", i % 7), format!("content {i}"));
    }
    symlink("0", place.repo().join("pool/zero")).unwrap();
    let catalog = place.open();
    assert_eq!(catalog.hashed_files(), 300);
    let before = catalog.load().clone();
    catalog.stop();

    place.put("pool/1/1.deb", "changed while it was down");
    fs::remove_file(place.repo().join("pool/2/2.deb")).unwrap();
    let catalog = Catalog::open(place.options()).unwrap();
    assert!(has(&catalog, "pool/zero/7.deb", "content 7"), "known rows are served before the scan");
    until("the first scan", || catalog.first_scan_done());
    assert_eq!(catalog.hashed_files(), 1);
    assert!(lacks(&catalog, "pool/2/2.deb") && has(&catalog, "pool/1/1.deb", "changed while it was down"));
    let now = catalog.load();
    assert_eq!(now.sequence(), before.sequence() + 1);
    for row in now.iter().filter(|row| row.path.as_str() != "pool/1/1.deb") {
        assert_eq!(before.by_id(row.file).as_ref(), Some(&row));
    }
    let changed = now.find(b"pool/1/1.deb").unwrap().file;
    assert!(before.iter().all(|row| row.file < changed));
    let diff = catalog.manifest_since(Some(before.sequence()));
    assert_eq!((diff.base, diff.files.len(), diff.removed_files.len()), (Some(before.sequence()), 1, 2));
    catalog.stop();

    let catalog = place.open();
    assert_eq!((catalog.hashed_files(), catalog.load().sequence()), (0, before.sequence() + 1));
    assert_eq!(catalog.manifest_since(Some(before.sequence())).files.len(), 1, "the history is kept too");
    check_indexes(&catalog.load());
}

/// Not a test by itself: what [`a_kill_loses_no_hash`] runs in a process of its own.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var("FRESHET_TEST_KILLED_CHILD") else { return };
    let dir = PathBuf::from(dir);
    let mut options = CatalogOptions::new(dir.join("repo"), dir.join("catalog.redb"));
    options.quiet = Duration::from_millis(1);
    options.hash_threads = 1;
    // A file that never comes to rest for long keeps the first scan from ending.
    let writer = dir.join("repo/busy");
    let catalog = Catalog::open(options).unwrap();
    loop {
        fs::OpenOptions::new().append(true).create(true).open(&writer).unwrap().write_all(b"x").unwrap();
        fs::write(dir.join("progress"), catalog.hashed_files().to_string()).unwrap();
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_kill_loses_no_hash() {
    let place = Place::new();
    let files = 8_000;
    for i in 0..files {
        place.put(&format!("pool/{}/{i}.deb", i % 40), format!("content {i}").repeat(20));
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "catalog::tests::child_that_is_killed", "--nocapture"])
        .env("FRESHET_TEST_KILLED_CHILD", place.dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let progress = || -> u64 {
        fs::read_to_string(place.dir.path().join("progress"))
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    until("some hashes", || progress() > 5_000);
    child.kill().unwrap();
    child.wait().unwrap();
    let hashed = progress();
    let _ = fs::remove_file(place.repo().join("busy"));

    let catalog = place.open();
    assert_eq!(catalogued(&catalog.load()), on_disk(&place.repo()));
    // A slow transaction holds a batch and a fetch, the desk fills meanwhile; the busy file may count now and then.
    let unwritten_max = (keeper::KEEP_MAX + 2 * hashing::OUTCOMES_MAX) as u64;
    let lost = (hashed + catalog.hashed_files()).saturating_sub(files);
    assert!(lost <= unwritten_max + 100, "{lost} of {hashed} hashes were computed again");
    assert!(catalog.hashed_files() < files, "nothing was kept");
}

#[test]
fn a_copy_of_the_database_taken_at_any_time_can_be_opened() {
    let place = Place::new();
    place.put("a", "1");
    let catalog = place.open();
    place.put_by_rename("a", "2");
    until("the change", || has(&catalog, "a", "2"));
    let id = catalog.load().find(b"a").unwrap().file;
    // As a crash of the machine would leave it: no end was written.
    let copy = place.dir.path().join("copy.redb");
    fs::copy(place.dir.path().join("catalog.redb"), &copy).unwrap();
    let mut options = place.options();
    options.database = copy;
    let other = Catalog::open(options).unwrap();
    assert_eq!(other.load().find(b"a").map(|row| row.file), Some(id));
    until("the first scan", || other.first_scan_done());
    assert_eq!(other.hashed_files(), 0);
}

#[test]
fn a_file_being_written_appears_only_when_it_is_left_alone() {
    let place = Place::new();
    place.put("seed", "s");
    let catalog = place.open();
    let before = catalog.load().sequence();
    let mut file = fs::File::create(place.repo().join("growing.deb")).unwrap();
    let mut content = String::new();
    for i in 0..60 {
        let part = format!("part {i};");
        file.write_all(part.as_bytes()).unwrap();
        content.push_str(&part);
        assert!(lacks(&catalog, "growing.deb"), "it was shown half written");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(file);
    until("the whole file", || has(&catalog, "growing.deb", &content));
    assert_eq!(catalog.load().sequence(), before + 1);
}

#[test]
fn an_endless_writer_holds_up_nobody_else() {
    let place = Place::new();
    place.put("seed", "s");
    let catalog = place.open();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, path) = (Arc::clone(&stop), place.repo().join("log"));
        move || {
            let mut log = fs::File::create(path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                log.write_all(b"line\n").unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    until("the writer to be noticed", || tells(&catalog, "log: still being written"));
    assert!(lacks(&catalog, "log"));
    place.put_by_rename("dists-Release", "x");
    place.put_by_rename("Release", "r");
    until("an index beside it", || has(&catalog, "Release", "r"));
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    until("the log itself", || !lacks(&catalog, "log") && !tells(&catalog, "log: still"));
}

#[test]
fn an_index_and_its_packages_appear_in_one_step() {
    let place = Place::new();
    place.put("dists/Release", "0");
    place.put("dists/Packages", "0");
    let catalog = place.open();
    let mut sequence = catalog.subscribe();
    sequence.mark_unchanged();
    let first = catalog.load().sequence();
    place.put("pool/new.deb", vec![7; 3 << 20]);
    place.put_by_rename("dists/Packages", "1");
    place.put_by_rename("dists/Release", "1");
    until("the release", || {
        let now = catalog.load();
        let release = now.find(b"dists/Release").unwrap().size == 1 && has_sum(&now, "dists/Release", "1");
        assert_eq!(release, has_sum(&now, "dists/Packages", "1"), "a mix was shown");
        assert_eq!(release, now.find(b"pool/new.deb").is_some(), "a mix was shown");
        release
    });
    assert!(sequence.has_changed().unwrap());
    assert_eq!(*sequence.borrow_and_update(), first + 1);
}

fn has_sum(now: &Snapshot, path: &str, content: &str) -> bool {
    now.find(path.as_bytes()).is_some_and(|row| row.checksums == Checksums::of(content.as_bytes()))
}

#[test]
fn new_packages_need_not_wait_for_a_tree_that_is_never_quiet() {
    let place = Place::new();
    place.put("Release", "0");
    let mut options = place.options();
    options.hold_max = Duration::from_millis(300);
    options.quiet = Duration::from_millis(400);
    let catalog = Catalog::open(options).unwrap();
    until("the first scan", || catalog.first_scan_done());
    place.put_by_rename("Release", "1");
    place.put("early.deb", "e");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut number = 0;
    while lacks(&catalog, "early.deb") {
        assert!(Instant::now() < deadline, "the package never appeared");
        number += 1;
        place.put(&format!("next/{number}"), "n");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(has(&catalog, "Release", "0"), "the index came before the tree was quiet");
    until("the index", || has(&catalog, "Release", "1"));
}

#[test]
fn links_within_the_tree_are_followed_and_others_left_out() {
    let place = Place::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    place.put("dists/bookworm/Release", "r");
    place.put("pool/a.deb", "a");
    let repo = place.repo();
    symlink("bookworm", repo.join("dists/stable")).unwrap();
    symlink("../pool/a.deb", repo.join("dists/a")).unwrap();
    symlink("dists/stable/Release", repo.join("chain")).unwrap();
    symlink("loop2", repo.join("loop1")).unwrap();
    symlink("loop1", repo.join("loop2")).unwrap();
    symlink("nowhere", repo.join("dangling")).unwrap();
    symlink("..", repo.join("dists/up")).unwrap();
    symlink(outside.path(), repo.join("absolute")).unwrap();
    symlink("../../secret", repo.join("dists/escape")).unwrap();
    let catalog = place.open();
    for path in ["dists/stable/Release", "chain", "dists/up/dists/stable/Release", "dists/up/chain"] {
        assert!(has(&catalog, path, "r"), "{path}");
    }
    assert!(has(&catalog, "dists/a", "a"));
    for path in
        ["loop1", "loop2/x", "dangling", "absolute/secret", "dists/escape", "dists/up", "dists/up/../chain"]
    {
        assert!(lacks(&catalog, path), "{path}");
    }
    assert!(tells(&catalog, "absolute: ") && tells(&catalog, "dists/escape: "));
    assert_eq!(catalog.view().links, 7);
    let now = catalog.load();
    assert!(now.is_directory(b"dists/stable/") && !now.is_directory(b"absolute") && now.is_directory(b"/"));
    let names: Vec<_> = now.list(b"/dists/stable").unwrap().into_iter().map(|item| item.name).collect();
    assert_eq!(names, ["Release"]);
    let manifest = catalog.manifest_since(None);
    assert!(
        manifest.links.iter().any(|link| link.path.as_str() == "dists/stable" && link.target == "bookworm")
    );

    fs::remove_file(repo.join("dists/stable")).unwrap();
    symlink("trixie", repo.join("dists/stable")).unwrap();
    place.put("dists/trixie/Release", "t");
    until("the link's new target", || has(&catalog, "dists/stable/Release", "t"));
}

#[test]
fn what_cannot_be_catalogued_is_told_with_its_reason() {
    use std::os::unix::ffi::OsStrExt as _;
    let place = Place::new();
    let repo = place.repo();
    place.put("good", "g");
    place.put("tab\tname", "x");
    place.put(".good.deb.Xy12Zq", "half");
    fs::write(repo.join(std::ffi::OsStr::from_bytes(b"latin-\xe9")), "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(repo.join("socket")).unwrap();
    place.put("closed", "c");
    fs::set_permissions(repo.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
    let catalog = place.open();
    assert!(has(&catalog, "good", "g"));
    for text in ["control characters", "rsync", "not UTF-8", "socket: a device"] {
        assert!(tells(&catalog, text), "{text} is missing in {:?}", catalog.view().left_out);
    }
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: unreadable files, which root can read all the same");
    } else {
        assert!(lacks(&catalog, "closed") && tells(&catalog, "closed: cannot be read"));
        fs::set_permissions(repo.join("closed"), fs::Permissions::from_mode(0o644)).unwrap();
        until("the opened file", || has(&catalog, "closed", "c") && !tells(&catalog, "closed"));
    }
    fs::remove_file(repo.join("socket")).unwrap();
    until("the reason to go with the socket", || !tells(&catalog, "socket"));
}

#[test]
fn a_hard_linked_file_is_read_once() {
    let place = Place::new();
    place.put("one", vec![1; 2 << 20]);
    for i in 0..5 {
        fs::hard_link(place.repo().join("one"), place.repo().join(format!("name-{i}"))).unwrap();
    }
    let catalog = place.open();
    let now = catalog.load();
    assert_eq!((now.len(), now.contents(), catalog.hashed_files()), (6, 1, 1));
    let ids: std::collections::HashSet<_> = now.iter().map(|row| row.file).collect();
    assert_eq!(ids.len(), 6, "each path has a number of its own");
    check_indexes(&now);
}

#[test]
fn a_root_that_disappears_deletes_nothing() {
    let place = Place::new();
    place.put("pool/a", "a");
    let catalog = place.open();
    let sequence = catalog.load().sequence();
    let away = place.dir.path().join("away");
    fs::rename(place.repo(), &away).unwrap();
    catalog.rescan();
    until("the refusal", || tells(&catalog, "cannot be read"));
    assert!(has(&catalog, "pool/a", "a") && catalog.load().sequence() == sequence);
    fs::rename(&away, place.repo()).unwrap();
    place.put("pool/b", "b");
    catalog.rescan();
    until("the return", || has(&catalog, "pool/b", "b") && !tells(&catalog, "cannot be read"));
    place.put("pool/c", "c");
    until("the watch to be back", || has(&catalog, "pool/c", "c"));
    catalog.stop();

    // Down and not mounted at the next start: what is known is served all the same.
    fs::rename(place.repo(), &away).unwrap();
    let catalog = Catalog::open(place.options()).unwrap();
    until("the refusal", || tells(&catalog, "cannot be read"));
    assert!(has(&catalog, "pool/a", "a") && !catalog.first_scan_done() && catalog.standstill().is_some());
}

#[test]
fn an_emptied_mount_point_deletes_nothing() {
    let place = Place::new();
    place.put("pool/a", "a");
    place.put("other/b", "b");
    let catalog = place.open();
    catalog.stop();
    drop(catalog);
    // The same as if `pool` and the root had been other file systems before: only their recorded devices tell.
    let store = store::Store::open(&place.dir.path().join("catalog.redb")).unwrap();
    let loaded = store.load(&Patterns::default(), 1).unwrap();
    let mut mounts = loaded.mounts.clone();
    assert_eq!(mounts.keys().map(String::as_str).collect::<Vec<_>>(), [""]);
    mounts.insert("pool".to_owned(), u64::MAX);
    let write = store::Write {
        next_file: loaded.next_file,
        sequence: loaded.snapshot.sequence(),
        mounts: Some(mounts.clone()),
        ..store::Write::default()
    };
    store.write(&write).unwrap();
    drop(store);
    fs::remove_file(place.repo().join("pool/a")).unwrap();
    fs::remove_file(place.repo().join("other/b")).unwrap();
    let catalog = place.open();
    assert!(has(&catalog, "pool/a", "a") && lacks(&catalog, "other/b"));
    assert!(tells(&catalog, "/pool was another file system"));
    place.put("pool/new", "n");
    until("the refuted doubt", || lacks(&catalog, "pool/a") && has(&catalog, "pool/new", "n"));
    until("the note to go", || !tells(&catalog, "another file system"));
    catalog.stop();
    drop(catalog);

    mounts.clear();
    mounts.insert(String::new(), u64::MAX);
    let store = store::Store::open(&place.dir.path().join("catalog.redb")).unwrap();
    let loaded = store.load(&Patterns::default(), 1).unwrap();
    let sequence = loaded.snapshot.sequence();
    let write =
        store::Write { next_file: loaded.next_file, sequence, mounts: Some(mounts), ..Default::default() };
    store.write(&write).unwrap();
    drop(store);
    fs::remove_dir_all(place.repo().join("pool")).unwrap();
    fs::remove_dir_all(place.repo().join("other")).unwrap();
    let catalog = Catalog::open(place.options()).unwrap();
    until("the refusal", || tells(&catalog, "/ was another file system"));
    assert!(has(&catalog, "pool/new", "n") && !catalog.first_scan_done());
}

#[test]
fn misplaced_and_missing_things_are_refused() {
    let place = Place::new();
    let mut options = place.options();
    options.database = place.repo().join("catalog.redb");
    assert!(matches!(Catalog::open(options), Err(CatalogError::DatabaseInRepository { .. })));
    let mut options = place.options();
    options.repo = place.dir.path().join("missing");
    assert!(matches!(Catalog::open(options), Err(CatalogError::Repository { .. })));
    fs::write(place.dir.path().join("catalog.redb"), "this is no database at all").unwrap();
    assert!(matches!(Catalog::open(place.options()), Err(CatalogError::Store(_))));
    fs::remove_file(place.dir.path().join("catalog.redb")).unwrap();
    let _first = place.open();
    assert!(matches!(Catalog::open(place.options()), Err(CatalogError::Store(StoreError::Open { .. }))));
}

/// One edit of a tree.
#[derive(Clone, Debug)]
enum Edit {
    Write(String, String),
    Replace(String, String),
    Touch(String),
    Remove(String),
    Rename(String, String),
    Link(String, String),
    HardLink(String, String),
    Settle,
    Restart,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let path = || {
        prop::sample::select(vec![
            "a", "b", "d/a", "d/b", "d/e/a", "d/e/b", "d/e/f/a", "g/a", "g/d/a", "d", "g", "d/e", "h",
        ])
        .prop_map(str::to_owned)
    };
    let content = || "[xy]{0,3}";
    let edit = prop_oneof![
        4 => (path(), content()).prop_map(|(p, c)| Edit::Write(p, c)),
        3 => (path(), content()).prop_map(|(p, c)| Edit::Replace(p, c)),
        1 => path().prop_map(Edit::Touch),
        3 => path().prop_map(Edit::Remove),
        3 => (path(), path()).prop_map(|(a, b)| Edit::Rename(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Edit::Link(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Edit::HardLink(a, b)),
        3 => Just(Edit::Settle),
        1 => Just(Edit::Restart),
    ];
    prop::collection::vec(edit, 1..25)
}

/// Whatever cannot be done on the tree as it is fails here and changes nothing.
fn apply(place: &Place, edit: &Edit) {
    let full = |path: &str| place.repo().join(path);
    let parents = |path: &str| fs::create_dir_all(full(path).parent().unwrap());
    let _ = match edit {
        Edit::Write(path, content) => {
            // Through a link the writer would write elsewhere; that is tested by the link's target.
            parents(path).and_then(|()| match fs::symlink_metadata(full(path)) {
                Ok(meta) if meta.is_symlink() => Ok(()),
                _ => fs::write(full(path), content),
            })
        }
        Edit::Replace(path, content) => parents(path).and_then(|()| {
            let temporary = place.dir.path().join("temporary");
            fs::write(&temporary, content)?;
            fs::rename(temporary, full(path))
        }),
        Edit::Touch(path) => fs::File::open(full(path))
            .and_then(|file| file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000))),
        Edit::Remove(path) => match fs::symlink_metadata(full(path)) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(full(path)),
            _ => fs::remove_file(full(path)),
        },
        Edit::Rename(from, to) => parents(to).and_then(|()| fs::rename(full(from), full(to))),
        Edit::Link(path, to) => {
            let up = "../".repeat(path.matches('/').count());
            parents(path).and_then(|()| symlink(format!("{up}{to}"), full(path)))
        }
        Edit::HardLink(from, to) => parents(to).and_then(|()| fs::hard_link(full(from), full(to))),
        Edit::Settle | Edit::Restart => Ok(()),
    };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_edits_the_catalogue_equals_the_tree(script in edits()) {
        let place = Place::new();
        let mut options = place.options();
        options.quiet = Duration::from_millis(15);
        let mut catalog = Catalog::open(options.clone()).unwrap();
        let mut follower = Follower::default();
        let mut used = std::collections::HashMap::new();
        let agree = |catalog: &Catalog| {
            let disk = on_disk(&place.repo());
            let deadline = Instant::now() + Duration::from_secs(5);
            while catalogued(&catalog.load()) != disk {
                if Instant::now() > deadline {
                    assert_eq!(catalogued(&catalog.load()), disk, "left out: {:?}", catalog.view().left_out);
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        };
        for edit in script.iter().chain([&Edit::Settle, &Edit::Restart, &Edit::Settle]) {
            apply(&place, edit);
            if matches!(edit, Edit::Restart) {
                catalog.stop();
                drop(catalog);
                catalog = Catalog::open(options.clone()).unwrap();
            }
            if matches!(edit, Edit::Settle) {
                // Of a file written through one of its names inotify tells that name only.
                if script.iter().any(|edit| matches!(edit, Edit::HardLink(..))) {
                    catalog.rescan();
                }
                agree(&catalog);
                let now = catalog.load().clone();
                check_indexes(&now);
                for row in now.iter() {
                    let meant = (row.path.to_string(), row.checksums);
                    let first = used.entry(row.file).or_insert_with(|| meant.clone());
                    prop_assert_eq!(&meant, &*first, "a number was used for two things");
                }
                follower.follow(&catalog);
                let shown = catalogued(&now).into_iter().map(|(path, what)| (path, what.map(|sums| sums.blake3)));
                prop_assert_eq!(&follower.seen, &shown.collect());
            }
        }
    }
}
