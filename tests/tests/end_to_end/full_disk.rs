//! A volunteer's disk is full in the middle of a release: it says so, serves what it has, and goes on when there is room.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use freshet_testbed::{Link, Rate, skip};
use freshet_tests::{Fetched, PATIENCE, Scene, SceneOptions, noise};

/// A file system of its own for a volunteer's state; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` without the right to mount.
    fn mount(path: &Path) -> Option<SmallDisk> {
        fs::create_dir_all(path).unwrap();
        let size = format!("size={DISK_BYTES},mode=0700");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "freshet-test"]).arg(path).status();
        mount.unwrap().success().then(|| SmallDisk(path.to_owned()))
    }

    fn free_bytes(&self) -> u64 {
        let df = Command::new("df").args(["--output=avail", "--block-size=1"]).arg(&self.0).output().unwrap();
        String::from_utf8(df.stdout).unwrap().lines().last().unwrap().trim().parse().unwrap()
    }

    /// Leaves so many bytes free, until [`SmallDisk::relieve`].
    fn fill(&self, left: u64) {
        let mut ballast = File::create(self.0.join("ballast")).unwrap();
        let block = vec![0; 1 << 20];
        for _ in 0..self.free_bytes().saturating_sub(left) >> 20 {
            ballast.write_all(&block).unwrap();
        }
    }

    fn relieve(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

#[test]
fn a_full_disk_is_told_of_and_serves_on_and_room_lets_it_go_on() {
    let mut scene = Scene::without_volunteers(&SceneOptions::default()).unwrap();
    let small = SmallDisk::mount(&scene.state_of(FULL));
    let Some(small) = small else {
        return skip("a_full_disk_is_told_of_and_serves_on_and_room_lets_it_go_on", "mounting needs root");
    };
    for name in [FULL, "roomy"] {
        let link = Link::new().rate(Rate::mbit(40));
        scene.cluster.add_volunteer(&scene.testbed, name, &link).unwrap();
    }
    scene.wait_for_sync().unwrap();
    let old = scene.large_files().unwrap().swap_remove(0);

    // Room for a part of what comes, above what the daemon leaves to others.
    small.fill(RESERVE_BYTES + 2 * FILE_BYTES as u64 + FILE_BYTES as u64 / 2);
    let outside = scene.scratch("release").unwrap().join("new");
    fs::create_dir_all(&outside).unwrap();
    for number in 0..FILES {
        fs::write(outside.join(format!("new-{number}.deb")), noise(number, FILE_BYTES)).unwrap();
    }
    fs::rename(&outside, scene.repository.root.join("pool/new")).unwrap();

    let node = |name: &str| scene.cluster.ctl(&["node", "show", name]).unwrap();
    let mut told = String::new();
    scene
        .wait("control to be told", || {
            node(FULL)["sync"]["trouble"].as_str().unwrap_or_default().clone_into(&mut told);
            Ok(told.contains("full"))
        })
        .unwrap();
    let log = scene.cluster.volunteers()[0].process().unwrap().log().unwrap();
    assert!(log.contains("full"), "{log}");
    eprintln!("control is told: {told}");
    // What to do stands there, and how much is missing.
    assert!(told.contains("bytes") || told.contains("MB") || told.contains("MiB"), "{told}");
    scene
        .wait("the other one to be complete", || {
            Ok(scene.difference(&scene.state_of("roomy").join("tree"))?.is_empty())
        })
        .unwrap();

    // Customers still get from it what it has. The other one is away, so that nobody else can give it.
    scene.cluster.ctl(&["node", "drain", "roomy"]).unwrap();
    let target = scene.scratch("old").unwrap().join("file");
    let delivery = scene.cluster.volunteers()[0].delivery().to_string();
    scene
        .wait("the full one to serve", || {
            let got = Fetched::get(&scene.customer, &scene.cluster.url(&old.path), &target)?;
            assert!(fs::read(&target)? == fs::read(scene.repository.root.join(&old.path))?);
            Ok(got.from == delivery)
        })
        .unwrap();
    assert!(node(FULL)["sync"]["trouble"].as_str().unwrap().contains("full"), "it is full all the while");
    let tree = scene.state_of(FULL).join("tree");
    assert!(scene.difference(&tree).unwrap().contains("new"), "it had room for everything");

    small.relieve();
    scene.wait_until_same(2 * PATIENCE).unwrap();
    scene.wait("the trouble to be over", || Ok(node(FULL)["sync"]["trouble"].is_null())).unwrap();
}

const FULL: &str = "full";
/// What a daemon leaves free for others on its file system.
const RESERVE_BYTES: u64 = 256 << 20;
const DISK_BYTES: u64 = 360 << 20;
const FILES: u64 = 8;
const FILE_BYTES: usize = 1_500_000;
