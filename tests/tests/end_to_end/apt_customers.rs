//! apt, pointed at the front door, gets its packages from volunteers and notices nothing.

use std::fs;
use std::path::Path;

use freshet_testbed::skip;
use freshet_tests::{Apt, Scene, SceneOptions};

/// A scene with real packages, or nothing where there are none.
fn scene(test: &str) -> Option<Scene> {
    let scene = Scene::start(&SceneOptions::default()).unwrap();
    if !scene.repository.serves_apt() {
        skip(test, &format!("there are no packages: {:?}", scene.repository.kind));
        return None;
    }
    Some(scene)
}

fn packages_file(scene: &Scene) -> String {
    let files = scene.repository.files().unwrap();
    let index = files.iter().find(|file| file.path.ends_with("/Packages")).unwrap();
    fs::read_to_string(scene.repository.root.join(&index.path)).unwrap()
}

/// Whether a downloaded package is, byte for byte, one of the repository's; gives its size.
fn size_if_genuine(scene: &Scene, deb: &Path) -> u64 {
    let got = fs::read(deb).unwrap();
    let same = scene.repository.files().unwrap().into_iter().find(|file| {
        file.size == got.len() as u64 && fs::read(scene.repository.root.join(&file.path)).unwrap() == got
    });
    same.unwrap_or_else(|| panic!("{} is none of the repository's files", deb.display())).size
}

fn debs(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect()
}

#[test]
fn apt_get_download_has_its_bytes_from_volunteers() {
    let Some(scene) = scene("apt_get_download_has_its_bytes_from_volunteers") else { return };
    let apt = Apt::new(&scene.customer, &scene.scratch("apt").unwrap(), &scene.cluster.url("")).unwrap();
    apt.get(&["update"]).unwrap();

    let index = packages_file(&scene);
    let names: Vec<&str> = index.lines().filter_map(|line| line.strip_prefix("Package: ")).collect();
    assert!(names.len() >= 10, "{names:?}");
    let (origin_before, kernel_before) =
        (scene.control_count("/front_door/body_bytes").unwrap(), scene.sent_by_volunteers().unwrap());
    apt.get(&[&["download"], names.as_slice()].concat()).unwrap();

    let got = debs(&apt.downloads());
    assert_eq!(got.len(), names.len());
    let bytes: u64 = got.iter().map(|deb| size_if_genuine(&scene, deb)).sum();
    let by_origin = scene.control_count("/front_door/body_bytes").unwrap() - origin_before;
    assert!(by_origin * 10 <= bytes, "the origin served {by_origin} of {bytes} bytes");
    // The same by the kernel's own count of what the volunteers' hosts sent.
    if let (Some(before), Some(after)) = (kernel_before, scene.sent_by_volunteers().unwrap()) {
        assert!((after - before) * 10 >= bytes * 9, "{} of {bytes}", after - before);
    }
    // And control hears of it.
    scene
        .wait("control to hear of what was delivered", || {
            Ok(scene.volunteers_count("/ledger/delivered_bytes")? * 10 >= bytes * 9)
        })
        .unwrap();
}

#[test]
fn apt_get_install_download_only_resolves_and_downloads() {
    let Some(scene) = scene("apt_get_install_download_only_resolves_and_downloads") else { return };
    let apt = Apt::new(&scene.customer, &scene.scratch("apt").unwrap(), &scene.cluster.url("")).unwrap();
    apt.pretend_installed(&packages_file(&scene)).unwrap();
    apt.get(&["update"]).unwrap();
    let before = scene.control_count("/front_door/redirected_bytes").unwrap();
    apt.get(&["install", "--download-only", "nano", "less", "tar", "zstd"]).unwrap();

    let got = debs(&apt.archives());
    // libc6 comes along, because the others depend on it and nothing is installed.
    for name in ["nano_", "less_", "tar_", "zstd_", "libc6_"] {
        let named =
            |path: &&std::path::PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(name);
        assert!(got.iter().any(|path| named(&path)), "{name} is not among {got:?}");
    }
    let bytes: u64 = got.iter().map(|deb| size_if_genuine(&scene, deb)).sum();
    let redirected = scene.control_count("/front_door/redirected_bytes").unwrap() - before;
    assert!(redirected * 10 >= bytes * 9, "{redirected} of {bytes} bytes were redirected");
}

#[test]
fn metadata_comes_from_the_origin_itself() {
    let Some(scene) = scene("metadata_comes_from_the_origin_itself") else { return };
    let before = scene.control_count("/front_door/redirects").unwrap();
    let apt = Apt::new(&scene.customer, &scene.scratch("apt").unwrap(), &scene.cluster.url("")).unwrap();
    apt.get(&["update"]).unwrap();
    // An index from a volunteer that is a minute behind would contradict a Release file that is not.
    assert_eq!(scene.control_count("/front_door/redirects").unwrap(), before);
    assert!(scene.control_count("/front_door/direct").unwrap() >= 2);
}
