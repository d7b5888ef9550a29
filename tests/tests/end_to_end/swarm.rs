//! What is new reaches many mirrors at about the cost of one copy, also when one of them is killed half-way.

use std::fs;
use std::path::{Path, PathBuf};

use freshet_testbed::{Link, Rate};
use freshet_tests::{Scene, SceneOptions};

const VOLUNTEERS: usize = 5;
const LARGE_FILES: usize = 6;
const LARGE_BYTES: usize = 2_000_000;
const SMALL_FILES: usize = 200;
/// In packages, where the swarm takes them up; with what a pack's members add.
const NEW_BYTES: u64 = (LARGE_FILES * LARGE_BYTES + SMALL_FILES * 4_000) as u64;

fn scene() -> Scene {
    let mut scene = Scene::without_volunteers(&SceneOptions::default()).unwrap();
    for number in 1..=VOLUNTEERS {
        let link = Link::new().rate(Rate::mbit(40));
        scene.cluster.add_volunteer(&scene.testbed, &format!("volunteer-{number}"), &link).unwrap();
    }
    scene.wait_for_sync().unwrap();
    scene
}

/// Adds a release of some large and many small packages; nothing of it is to be had elsewhere.
fn release(scene: &Scene, seed: u64) {
    let directory = scene.repository.root.join(format!("pool/release-{seed}"));
    let outside = scene.scratch("release").unwrap().join(seed.to_string());
    fs::create_dir_all(&outside).unwrap();
    for number in 0..LARGE_FILES {
        let path = outside.join(format!("large-{number}.deb"));
        fs::write(path, bytes(seed * 1_000 + number as u64, LARGE_BYTES)).unwrap();
    }
    for number in 0..SMALL_FILES {
        let path = outside.join(format!("small-{number}.deb"));
        fs::write(path, bytes(seed * 1_000_000 + number as u64, 4_000)).unwrap();
    }
    fs::rename(outside, directory).unwrap();
}

/// Xorshift64 (Marsaglia, 2003).
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn trees(scene: &Scene) -> Vec<PathBuf> {
    scene.cluster.volunteers().iter().map(|volunteer| volunteer.state().join("tree")).collect()
}

/// What `diff -r` says of a mirror's tree; nothing when it is the repository.
fn difference(scene: &Scene, tree: &Path) -> String {
    let diff = std::process::Command::new("diff").arg("-rq").arg(&scene.repository.root).arg(tree).output();
    let diff = diff.unwrap();
    String::from_utf8_lossy(&[diff.stdout, diff.stderr].concat()).into_owned()
}

fn wait_until_same(scene: &Scene) {
    let mut left = String::new();
    let same = scene.wait("every mirror to be the repository", || {
        let differences = trees(scene).into_iter().map(|tree| difference(scene, &tree));
        left = differences.filter(|difference| !difference.is_empty()).collect();
        Ok(left.is_empty())
    });
    assert!(same.is_ok(), "{same:?}: {}\n{}", left.chars().take(2_000).collect::<String>(), log(scene));
}

fn log(scene: &Scene) -> String {
    let logs = scene.cluster.volunteers().iter().filter_map(|volunteer| volunteer.process()?.log().ok());
    logs.map(|log| log.chars().take(3_000).collect::<String>() + "\n").collect()
}

fn sent(scene: &Scene) -> u64 {
    scene.control_count("/sync_port/body_bytes").unwrap()
}

#[test]
fn a_release_costs_the_origin_about_one_copy() {
    let scene = scene();
    let before = sent(&scene);
    release(&scene, 1);
    wait_until_same(&scene);
    let sent = sent(&scene) - before;
    eprintln!("the origin sent {sent} bytes for {NEW_BYTES} new ones to {VOLUNTEERS} mirrors");
    assert!(sent < NEW_BYTES * 2, "{sent} bytes for {NEW_BYTES} new ones\n{}", log(&scene));
    let transfers: u64 = scene.volunteers_count("/sync/transfer/peer_bytes").unwrap();
    assert!(transfers > NEW_BYTES, "the mirrors had only {transfers} bytes from each other");
}

#[test]
fn a_volunteer_killed_half_way_ends_with_the_same_tree() {
    let mut scene = scene();
    let before = sent(&scene);
    release(&scene, 2);
    scene.wait("the release to be under way", || Ok(sent(&scene) > before + NEW_BYTES / 10)).unwrap();
    scene.cluster.volunteer_mut(0).unwrap().kill().unwrap();
    scene.cluster.start_volunteer(0).unwrap();
    wait_until_same(&scene);
    let sent = sent(&scene) - before;
    eprintln!("the origin sent {sent} bytes for {NEW_BYTES} new ones, one mirror killed under way");
    assert!(sent < NEW_BYTES * 3, "{sent} bytes for {NEW_BYTES} new ones\n{}", log(&scene));
}
