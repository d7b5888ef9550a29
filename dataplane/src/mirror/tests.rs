//! Tests of the mirror as a whole, without a network: sequences of manifests, kills, hostile and broken trees.

mod model;
pub(crate) mod reopening;
pub(crate) mod small_disk;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use freshet_api::manifest::{Manifest, ManifestFile, ManifestLink};

use self::model::{Bench, Entry, Model};
use self::small_disk::SmallDisk;
use super::*;

/// Errors of the disk that a test wants to happen.
#[derive(Default)]
pub(super) struct Faults {
    /// The kernel's error number for the next writes; 0 for none.
    pub(super) errno: AtomicI32,
}

impl Faults {
    pub(super) fn check(&self, doing: &'static str, path: &Path) -> Result<(), MirrorError> {
        match self.errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(MirrorError::disk(doing, path)(rustix::io::Errno::from_raw_os_error(errno))),
        }
    }
}

fn model(entries: &[(&str, Entry)]) -> Model {
    entries.iter().map(|(path, entry)| ((*path).to_owned(), entry.clone())).collect()
}

fn file(content: &str, mtime: i64) -> Entry {
    Entry::File { content: content.as_bytes().to_vec(), mtime, last: false }
}

fn index(content: &str, mtime: i64) -> Entry {
    Entry::File { content: content.as_bytes().to_vec(), mtime, last: true }
}

fn link(target: &str) -> Entry {
    Entry::Link(target.to_owned())
}

#[test]
fn a_tree_follows_its_manifests() {
    let mut bench = Bench::new();
    let first = model(&[
        ("a/b/one", file("1", 10)),
        ("a/b/two", file("2", 20)),
        ("a/link", link("b")),
        ("Release", index("r1", 30)),
    ]);
    bench.bring(&first);
    assert_eq!(bench.walk(), first);
    assert_eq!(bench.mirror().find(b"/a/link/one").unwrap().path.as_str(), "a/b/one");
    assert_eq!(bench.mirror().find(b"a/b/two").unwrap().mtime, 20);
    assert!(bench.mirror().find(b"/a/b").is_none());
    assert!(bench.mirror().find(b"\xff").is_none());

    let second = model(&[("a/b/one", file("1", 10)), ("c", file("2", 20)), ("Release", index("r2", 40))]);
    bench.bring(&second);
    assert_eq!(bench.walk(), second);
    assert_eq!(bench.received, 4, "a content that moved is not received again");
    assert!(!bench.tree().join("a/link").exists());
    assert!(bench.mirror().find(b"/a/link/one").is_none());
}

#[test]
fn files_and_directories_change_places() {
    let mut bench = Bench::new();
    let first =
        model(&[("x", file("1", 1)), ("y/z/deep", file("2", 2)), ("l", link("y/z")), ("k/f", file("3", 3))]);
    let second =
        model(&[("x/in", file("1", 1)), ("y", file("2", 2)), ("l/f", file("4", 4)), ("k", link("x"))]);
    for model in [&first, &second, &first, &second] {
        bench.bring(model);
        assert_eq!(bench.walk(), *model);
        bench.reopen();
        assert_eq!(bench.walk(), *model);
    }
}

#[test]
fn identical_contents_share_an_inode_and_the_oldest_time() {
    let mut bench = Bench::new();
    bench.bring(&model(&[("a", file("same", 30)), ("b", file("same", 20)), ("c", file("other", 1))]));
    let inode = |path: &str| std::fs::symlink_metadata(bench.tree().join(path)).unwrap();
    assert_eq!((inode("a").ino(), inode("a").mtime()), (inode("b").ino(), 20));
    assert_eq!(bench.received, 2);
    let mtime_of =
        |bench: &Bench, path: &[u8]| bench.mirror().find(path).map(|held| (held.mtime, held.blob_mtime));
    assert_eq!(mtime_of(&bench, b"a"), Some((30, 20)));
    assert_eq!(mtime_of(&bench, b"b"), Some((20, 20)));
    bench.bring(&model(&[("a", file("same", 30)), ("c", file("other", 1))]));
    assert_eq!(std::fs::symlink_metadata(bench.tree().join("a")).unwrap().mtime(), 30);
    assert_eq!(mtime_of(&bench, b"a"), Some((30, 30)));
}

#[test]
fn a_time_that_changes_alone_is_taken_over() {
    let mut bench = Bench::new();
    bench.bring(&model(&[("a", file("1", 10))]));
    bench.bring(&model(&[("a", file("1", 99))]));
    assert_eq!(bench.walk(), model(&[("a", file("1", 99))]));
    assert_eq!((bench.received, bench.mirror().find(b"a").unwrap().mtime), (1, 99));
}

#[test]
fn indexes_appear_last_and_deletions_after_them() {
    let mut bench = Bench::new();
    bench.bring(&model(&[
        ("old.deb", file("old", 1)),
        ("d/Packages", index("p1", 2)),
        ("Release", index("r1", 3)),
    ]));
    let second = model(&[
        ("new.deb", file("new", 4)),
        ("more.deb", file("more", 5)),
        ("d/Packages", index("p2", 6)),
        ("Release", index("r2", 7)),
    ]);
    bench.accept(&second);
    let mut wants = bench.mirror().missing();
    assert_eq!(wants.iter().map(|want| want.last).collect::<Vec<_>>(), [false, false, true, true]);
    // All but one package come; then a reader looks.
    wants.remove(0);
    bench.receive(wants);
    assert_eq!(bench.mirror().finish().unwrap(), Finished::Missing);
    let seen = bench.walk();
    assert_eq!(seen.get("Release"), Some(&index("r1", 3)), "{seen:?}");
    assert_eq!(seen.get("d/Packages"), Some(&index("p1", 2)));
    assert!(seen.contains_key("old.deb") && seen.len() == 4);
    let held = bench.mirror().find(b"Release").unwrap();
    assert_eq!(held.content, blake3::hash(b"r1").into(), "what is served is what the tree shows");
    bench.receive_all();
    assert_eq!(bench.mirror().finish().unwrap(), Finished::Complete);
    assert_eq!(bench.walk(), second);
}

#[test]
fn what_is_not_the_mirrors_is_left_alone() {
    let mut bench = Bench::new();
    std::fs::create_dir_all(bench.tree().join("pool")).unwrap();
    std::fs::write(bench.tree().join("pool/own-notes.txt"), "mine").unwrap();
    std::fs::write(bench.tree().join("README"), "mine too").unwrap();
    symlink("pool", bench.tree().join("shortcut")).unwrap();
    bench.bring(&model(&[("pool/a", file("1", 1)), ("README2", file("2", 2))]));
    bench.bring(&model(&[("README2", file("2", 2))]));
    assert_eq!(std::fs::read(bench.tree().join("pool/own-notes.txt")).unwrap(), b"mine");
    assert_eq!(std::fs::read(bench.tree().join("README")).unwrap(), b"mine too");
    assert!(bench.tree().join("shortcut").is_symlink());
    assert!(!bench.tree().join("pool/a").exists());
}

#[test]
fn something_in_the_way_is_named_and_waited_for() {
    let mut bench = Bench::new();
    std::fs::create_dir_all(bench.tree().join("a")).unwrap();
    std::fs::write(bench.tree().join("a/own"), "mine").unwrap();
    std::fs::write(bench.tree().join("b"), "mine").unwrap();
    let target =
        model(&[("a", file("1", 1)), ("b/c", file("2", 2)), ("d", file("3", 3)), ("Release", index("r", 4))]);
    bench.accept(&target);
    bench.receive_all();
    let error = bench.mirror().finish().unwrap_err();
    assert!(matches!(&error, MirrorError::InTheWay { more: 1, .. }), "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");
    assert_eq!(std::fs::read(bench.tree().join("a/own")).unwrap(), b"mine");
    assert!(bench.tree().join("d").exists() && !bench.tree().join("Release").exists());
    assert_eq!(bench.mirror().progress().complete, 0);
    std::fs::remove_dir_all(bench.tree().join("a")).unwrap();
    std::fs::remove_file(bench.tree().join("b")).unwrap();
    assert_eq!(bench.mirror().finish().unwrap(), Finished::Complete);
    assert_eq!(bench.walk(), target);
}

#[test]
fn nothing_is_written_or_deleted_through_a_symbolic_link() {
    let mut bench = Bench::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("sub")).unwrap();
    std::fs::write(outside.path().join("sub/victim"), "keep").unwrap();
    std::fs::write(outside.path().join("target"), "keep").unwrap();
    // A directory of the manifest and a file of it are links out of the tree.
    symlink(outside.path(), bench.tree().join("pool")).unwrap();
    symlink(outside.path().join("target"), bench.tree().join("file")).unwrap();
    let first = model(&[
        ("pool/sub/victim", file("new", 1)),
        ("pool/sub/gone", file("g", 2)),
        ("file", file("f", 3)),
    ]);
    bench.bring(&first);
    assert_eq!(bench.walk(), first);
    // Somebody puts the link back before deletions.
    std::fs::remove_dir_all(bench.tree().join("pool")).unwrap();
    symlink(outside.path(), bench.tree().join("pool")).unwrap();
    std::fs::write(outside.path().join("sub/gone"), "keep").unwrap();
    bench.bring(&model(&[("file", file("f", 3))]));
    for kept in ["sub/victim", "target", "sub/gone"] {
        assert_eq!(std::fs::read(outside.path().join(kept)).unwrap(), b"keep", "{kept}");
    }
    assert_eq!(std::fs::read_dir(outside.path().join("sub")).unwrap().count(), 2);
}

#[test]
fn links_out_of_the_tree_are_not_made() {
    let mut bench = Bench::new();
    let mut target = model(&[("a/f", file("1", 1)), ("a/good", link("f"))]);
    for (path, to) in [("a/up", "../../etc"), ("a/root", "/etc/passwd"), ("top", "..")] {
        target.insert(path.to_owned(), link(to));
    }
    bench.bring(&target);
    assert_eq!(bench.walk(), model(&[("a/f", file("1", 1)), ("a/good", link("f"))]));
}

#[test]
fn an_older_mirrors_files_are_taken_over() {
    let mut bench = Bench::new();
    std::fs::create_dir_all(bench.tree().join("pool")).unwrap();
    let large = "x".repeat(700_000);
    std::fs::write(bench.tree().join("pool/same"), "same").unwrap();
    std::fs::write(bench.tree().join("pool/large"), &large).unwrap();
    std::fs::write(bench.tree().join("pool/differs"), "sama").unwrap();
    let inode = std::fs::metadata(bench.tree().join("pool/large")).unwrap().ino();
    let target = model(&[
        ("pool/same", file("same", 5)),
        ("pool/large", file(&large, 6)),
        ("pool/differs", file("diff", 7)),
    ]);
    bench.bring(&target);
    assert_eq!(bench.walk(), target);
    assert_eq!(bench.received, 1, "only what differs is received");
    let metadata = std::fs::metadata(bench.tree().join("pool/large")).unwrap();
    assert_eq!((metadata.ino(), metadata.permissions().mode() & 0o777), (inode, 0o444));
}

#[test]
fn a_blob_that_changed_while_we_were_away_is_not_served() {
    let mut bench = Bench::new();
    let target = model(&[("a", file("1111", 1)), ("b", file("2222", 2)), ("Release", index("rrrr", 3))]);
    bench.bring(&target);
    let held = bench.mirror().find(b"a").unwrap();
    bench.close();
    // In place, through the tree, with time and size as they were: only the change time tells.
    let path = bench.tree().join("a");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, "9999").unwrap();
    let file_handle = std::fs::File::options().write(true).open(&path).unwrap();
    file_handle.set_modified(UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    // And an index's file is deleted from the tree by hand.
    std::fs::remove_file(bench.tree().join("Release")).unwrap();
    bench.open();
    assert!(bench.mirror().find(b"a").is_none() && bench.mirror().find_content(&held.content).is_none());
    assert!(bench.mirror().find(b"b").is_some());
    assert_eq!(bench.mirror().recheck(|| true).unwrap(), Rechecked { right: 1, lost: 1 });
    assert!(!bench.mirror().holdings().contains(held.file.0));
    assert_eq!(bench.mirror().progress().files_missing, 1);
    bench.receive_all();
    bench.mirror().finish().unwrap();
    assert_eq!(bench.walk(), target);
    assert_eq!(bench.mirror().find(b"a").unwrap().content, held.content);
}

#[test]
fn a_distrusted_blob_is_hashed_before_it_is_served_again() {
    let mut bench = Bench::new();
    bench.bring(&model(&[("a", file("1", 1))]));
    let held = bench.mirror().find(b"a").unwrap();
    bench.mirror().distrust(&held.content);
    assert!(bench.mirror().find(b"a").is_none());
    assert_eq!(bench.mirror().recheck(|| false).unwrap(), Rechecked::default());
    assert!(bench.mirror().find(b"a").is_none());
    assert_eq!(bench.mirror().recheck(|| true).unwrap(), Rechecked { right: 1, lost: 0 });
    assert_eq!(bench.mirror().find(b"a"), Some(held));
}

#[test]
fn old_contents_stay_for_the_grace_period() {
    let mut bench = Bench::new();
    bench.bring(&model(&[("a", file("old", 1))]));
    let old = bench.mirror().find(b"a").unwrap();
    bench.bring(&model(&[("a", file("new", 2))]));
    bench.mirror().sweep(Duration::from_secs(3_600)).unwrap();
    assert!(bench.mirror().find_content(&old.content).is_some());
    let blob = bench.mirror().blobs_directory().join(std::str::from_utf8(&old.blob).unwrap());
    assert!(blob.exists());
    // It comes back before it is swept: nothing is received.
    bench.bring(&model(&[("a", file("new", 2)), ("b", file("old", 1))]));
    assert_eq!(bench.received, 2);
    bench.bring(&model(&[("a", file("new", 2))]));
    bench.mirror().sweep(Duration::ZERO).unwrap();
    assert!(bench.mirror().find_content(&old.content).is_none() && !blob.exists());
    bench.reopen();
    assert_eq!(bench.walk(), model(&[("a", file("new", 2))]));
}

#[test]
fn a_lost_index_is_made_anew_from_the_blobs() {
    let mut bench = Bench::new();
    let target = model(&[("a", file("1", 1)), ("b/c", file("2", 2)), ("Release", index("r", 3))]);
    bench.bring(&target);
    let received = bench.received;
    bench.close();
    std::fs::write(bench.state().join("index.redb"), "this is no database, and long enough to be looked at")
        .unwrap();
    bench.open();
    assert!(bench.mirror().find(b"a").is_none());
    bench.bring(&target);
    assert_eq!((bench.walk(), bench.received), (target, received));
    assert!(bench.state().join("index.damaged").exists());
}

#[test]
fn a_state_directory_has_one_user() {
    let bench = Bench::new();
    let error = Mirror::open(bench.options()).err().unwrap();
    assert!(matches!(error, MirrorError::InUse { .. }), "{error}");
}

#[test]
fn a_difference_to_another_state_is_refused() {
    let mut bench = Bench::new();
    bench.bring(&model(&[("a", file("1", 1))]));
    let difference = Manifest { sequence: 90, base: Some(80), ..Manifest::default() };
    let error = bench.mirror().accept(&difference).unwrap_err();
    assert!(matches!(error, MirrorError::OtherBase { expected: 1, found: 80 }), "{error}");
    let mut lying = bench.snapshot();
    lying.files = lying.files.iter().map(|file| ManifestFile { size: 2, ..file }).collect();
    assert!(matches!(bench.mirror().accept(&lying), Err(MirrorError::Contradiction { .. })));
    assert_eq!(bench.mirror().progress().target, 1);
}

#[test]
fn a_control_that_numbers_anew_changes_numbers_only() {
    let mut bench = Bench::new();
    let target = model(&[("a", file("1", 1)), ("b", file("2", 2)), ("c", file("3", 3))]);
    bench.bring(&target);
    let mut manifest = bench.snapshot();
    manifest.sequence = 1_000;
    let numbers: Vec<FileId> = manifest.files.iter().map(|file| file.file).collect();
    // Each gets its neighbour's old number.
    let neighbours = numbers.iter().cycle().skip(1);
    manifest.files = manifest
        .files
        .iter()
        .zip(neighbours)
        .map(|(file, &number)| ManifestFile { file: number, ..file })
        .collect();
    bench.mirror().accept(&manifest).unwrap();
    assert_eq!(bench.mirror().finish().unwrap(), Finished::Complete);
    for file in &manifest.files {
        assert_eq!(bench.mirror().find(file.path.as_str().as_bytes()).unwrap().file, file.file);
    }
    assert_eq!(bench.mirror().holdings(), numbers.iter().map(|number| number.0).collect());
    assert_eq!((bench.walk(), bench.received), (target, 3));
}

#[test]
fn a_full_disk_loses_nothing() {
    let mut bench = Bench::new();
    bench.bring(&model(&[("a", file("1", 1))]));
    let target = model(&[("a", file("1", 1)), ("b", file("2", 2))]);
    bench.accept(&target);
    bench.mirror().fail_writes(rustix::io::Errno::NOSPC.raw_os_error());
    let wants = bench.mirror().missing();
    let error = bench.try_receive(wants).unwrap_err();
    assert!(error.is_full() && error.to_string().contains("make room"), "{error}");
    assert_eq!(bench.mirror().finish().unwrap(), Finished::Missing);
    assert_eq!(bench.walk(), model(&[("a", file("1", 1))]));
    bench.mirror().fail_writes(0);
    bench.receive_all();
    assert_eq!(bench.mirror().finish().unwrap(), Finished::Complete);
    assert_eq!(bench.walk(), target);
}

#[test]
fn contradicting_links_do_not_stop_the_rest() {
    let mut bench = Bench::new();
    let target = model(&[("a", file("1", 1)), ("b", file("2", 2))]);
    bench.accept(&target);
    let mut manifest = bench.snapshot();
    manifest.links.push(ManifestLink { path: "a".parse().unwrap(), target: "b".into() });
    bench.mirror().accept(&manifest).unwrap();
    bench.receive_all();
    assert_eq!(bench.mirror().finish().unwrap(), Finished::Complete);
    assert_eq!(bench.walk(), target);
}

#[test]
fn an_index_that_finds_no_room_is_written_later() {
    let Some(small) = SmallDisk::mount(16 << 20) else {
        eprintln!("skipped: mounting a tmpfs needs root (CAP_SYS_ADMIN)");
        return;
    };
    let mut bench = Bench::on(&small.path);
    let before = model(&[("a", file("1", 1)), ("Release", index("r1", 1))]);
    bench.bring(&before);
    small.fill(0);
    let many: Model = (0..20_000).map(|n| (format!("pool/{n:0100}"), file("1", 1))).collect();
    let error = bench.try_accept(&many).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert!(bench.mirror().find(b"a").is_some(), "what is held is still served");
    small.relieve();
    bench.mirror().publish_ready().unwrap();
    bench.receive_all();
    assert_eq!(bench.mirror().finish().unwrap(), Finished::Complete);
    bench.reopen();
    while bench.mirror().recheck(|| true).unwrap() != Rechecked::default() {}
    assert_eq!(bench.walk(), many);
    assert_eq!(bench.mirror().progress().files_held, 20_000);
}

#[test]
fn a_file_that_can_not_be_linked_is_copied() {
    let mut bench = Bench::new();
    let large = "y".repeat(600_000);
    let target = model(&[("small", file("small", 1)), ("large", file(&large, 2))]);
    bench.accept(&target);
    let outside = tempfile::tempdir().unwrap();
    for (want, content) in bench.mirror().missing().iter().zip([large.as_str(), "small"]) {
        let path = outside.path().join("file");
        std::fs::write(&path, content.replace('y', "z")).unwrap();
        if want.size > 5 {
            let changed = bench.mirror().copy(std::fs::File::open(&path).unwrap(), want);
            assert!(changed.is_err(), "what is copied is verified");
        }
        std::fs::write(&path, content).unwrap();
        let arrived = bench.mirror().copy(std::fs::File::open(&path).unwrap(), want).unwrap();
        bench.mirror().commit(vec![arrived]).unwrap();
    }
    assert_eq!(bench.mirror().finish().unwrap(), Finished::Complete);
    assert_eq!(bench.walk(), target);
}
