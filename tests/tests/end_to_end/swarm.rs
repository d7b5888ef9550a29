//! What is new reaches many mirrors at about the cost of one copy, also when one of them is killed half-way.

use std::fs;

use freshet_testbed::{Link, Rate};
use freshet_tests::{PATIENCE, Scene, SceneOptions, noise};

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
        fs::write(path, noise(seed * 1_000 + number as u64, LARGE_BYTES)).unwrap();
    }
    for number in 0..SMALL_FILES {
        let path = outside.join(format!("small-{number}.deb"));
        fs::write(path, noise(seed * 1_000_000 + number as u64, 4_000)).unwrap();
    }
    fs::rename(outside, directory).unwrap();
}

fn sent(scene: &Scene) -> u64 {
    scene.control_count("/sync_port/body_bytes").unwrap()
}

#[test]
fn a_release_costs_the_origin_about_one_copy() {
    let scene = scene();
    let before = sent(&scene);
    release(&scene, 1);
    scene.wait_until_same(PATIENCE).unwrap();
    let sent = sent(&scene) - before;
    eprintln!("the origin sent {sent} bytes for {NEW_BYTES} new ones to {VOLUNTEERS} mirrors");
    assert!(sent < NEW_BYTES * 2, "{sent} bytes for {NEW_BYTES} new ones\n{}", scene.volunteers_logs());
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
    scene.wait_until_same(PATIENCE).unwrap();
    let sent = sent(&scene) - before;
    eprintln!("the origin sent {sent} bytes for {NEW_BYTES} new ones, one mirror killed under way");
    assert!(sent < NEW_BYTES * 3, "{sent} bytes for {NEW_BYTES} new ones\n{}", scene.volunteers_logs());
}

#[test]
fn who_comes_late_is_served_by_the_other_mirrors() {
    let mut scene = scene();
    release(&scene, 3);
    scene.wait_until_same(PATIENCE).unwrap();
    let copying = || {
        let swarm = scene.cluster.ctl(&["swarm"])?;
        let bundles = swarm["bundles"].as_array().cloned().unwrap_or_default();
        // Members that have all and poll no more are those that stay for others.
        Ok(bundles.iter().all(|bundle| bundle["complete"] == true))
    };
    scene.wait("everybody to be done with it", copying).unwrap();
    let before = sent(&scene);
    for number in 1..=2 {
        let link = Link::new().rate(Rate::mbit(40));
        scene.cluster.add_volunteer(&scene.testbed, &format!("late-{number}"), &link).unwrap();
    }
    scene.wait_until_same(PATIENCE).unwrap();
    let (sent, all) = (sent(&scene) - before, scene.repository.files().unwrap());
    let all: u64 = all.iter().map(|file| file.size).sum();
    eprintln!("the origin sent {sent} bytes to two who came late to {all}");
    assert!(sent * 3 < all, "{sent} of {all} bytes\n{}", scene.volunteers_logs());
}
