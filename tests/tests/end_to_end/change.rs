//! The repository changes under way: customers get the present version, from whoever has it.

use std::fs;
use std::path::Path;

use freshet_tests::{Fetched, Scene, SceneOptions};

/// Puts a file in its place as a publisher does: whole, by rename.
fn publish(scene: &Scene, path: &str, contents: &[u8]) {
    let target = scene.repository.root.join(path);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    let temporary = target.with_extension("tmp-outside");
    fs::write(&temporary, contents).unwrap();
    fs::rename(&temporary, &target).unwrap();
}

fn contents(seed: u8) -> Vec<u8> {
    (0..300_000_u32).map(|number| seed ^ (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn a_new_file_and_a_new_version_reach_customers_and_volunteers() {
    let scene = Scene::start(&SceneOptions::default()).unwrap();
    let (url, target) = (scene.cluster.url("news/item.bin"), scene.scratch("news").unwrap().join("item"));
    for version in [contents(1), contents(2)] {
        publish(&scene, "news/item.bin", &version);
        scene
            .wait("the version to be served", || {
                let fetched = Fetched::get(&scene.customer, &url, &target);
                Ok(fetched.is_ok() && fs::read(&target)? == version)
            })
            .unwrap();
        scene
            .wait("a volunteer to serve it", || {
                let fetched = Fetched::get(&scene.customer, &url, &target)?;
                // Whoever serves it: never again the version before.
                assert!(fs::read(&target)? == version, "an old version came from {}", fetched.from);
                Ok(fetched.redirects > 0)
            })
            .unwrap();
    }

    fs::remove_file(scene.repository.root.join("news/item.bin")).unwrap();
    scene.wait("the file to be gone", || Ok(scene.status("/news/item.bin")? == 404)).unwrap();
}

#[test]
fn a_volunteer_that_lost_a_file_sends_the_customer_back() {
    let scene = Scene::start(&SceneOptions { volunteers: 1, ..SceneOptions::default() }).unwrap();
    let file = scene.large_files().unwrap().swap_remove(0);
    // A disk that loses data: every copy of the content goes, whatever the store calls it.
    let size = file.size;
    let removed = remove_files_of_size(scene.cluster.volunteers()[0].state(), size);
    assert!(removed > 0, "the volunteer had nothing to lose");
    let target = scene.scratch("lost").unwrap().join("file");
    let got = Fetched::get(&scene.customer, &scene.cluster.url(&file.path), &target).unwrap();
    assert!(fs::read(&target).unwrap() == fs::read(scene.repository.root.join(&file.path)).unwrap());
    assert_eq!(got.from, scene.cluster.front_door().to_string());
    assert_eq!(scene.control_count("/front_door/came_back").unwrap(), 1);
}

fn remove_files_of_size(directory: &Path, size: u64) -> usize {
    let mut removed = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            removed += remove_files_of_size(&path, size);
        } else if metadata.is_file() && metadata.len() == size {
            fs::remove_file(&path).unwrap();
            removed += 1;
        }
    }
    removed
}
