//! Volunteers and control die in the middle of downloads, and no customer is stranded.

use std::fs;
use std::path::{Path, PathBuf};

use freshet_testbed::{Process, Program, Rate};
use freshet_tests::{Fetched, LARGE, PATIENCE, Scene, SceneOptions, curl};

/// More than the kernel's socket buffers hold on their way, so that a server that dies has not sent it all.
const LARGE_BYTES: usize = 40_000_000;

fn scene(volunteers: usize) -> Scene {
    let volunteer_rate = Rate::mbit(800);
    Scene::start(&SceneOptions {
        volunteers,
        volunteer_rate,
        large_bytes: Some(LARGE_BYTES),
        ..SceneOptions::default()
    })
    .unwrap()
}

/// A download that takes a few seconds, in the background.
struct Slow {
    process: Process,
    target: PathBuf,
}

impl Slow {
    fn start(scene: &Scene, name: &str, options: &[&str]) -> Slow {
        let target = scene.scratch("slow").unwrap().join(name);
        let program: Program = curl()
            .args(["--limit-rate", "6M", "--verbose"])
            .args(options.iter().copied())
            .arg("--output")
            .arg(&target)
            .arg(scene.cluster.url(LARGE));
        Slow { process: scene.customer.start(name, &program).unwrap(), target }
    }

    /// Waits until it is under way, yet far from its end.
    fn wait_until_under_way(&self, scene: &Scene) {
        scene
            .wait("the download to be under way", || {
                Ok(fs::metadata(&self.target).is_ok_and(|metadata| metadata.len() > 1_000_000))
            })
            .unwrap();
        assert!(
            fs::metadata(&self.target).unwrap().len() < LARGE_BYTES as u64 / 2,
            "too far for the test to show anything"
        );
    }

    fn finish(&self, scene: &Scene) {
        let status = self.process.wait(PATIENCE).unwrap();
        assert!(status.success(), "{status}: {}", self.process.log().unwrap());
        assert!(is_large(scene, &self.target), "what came is not the file");
    }
}

fn is_large(scene: &Scene, path: &Path) -> bool {
    fs::read(path).unwrap() == fs::read(scene.repository.root.join(LARGE)).unwrap()
}

/// Which volunteer serves a customer now: the one whose delivery counter says that a transfer is under way.
fn serving(scene: &Scene) -> usize {
    let mut found = None;
    scene
        .wait("control to know who serves", || {
            let nodes = scene.cluster.ctl(&["node", "list"])?;
            let active = nodes
                .as_array()
                .into_iter()
                .flatten()
                .find(|node| node["delivery"]["active"].as_u64() > Some(0));
            let name = active.and_then(|node| node["name"].as_str());
            found = name.and_then(|name| scene.cluster.volunteers().iter().position(|v| v.name() == name));
            Ok(found.is_some())
        })
        .unwrap();
    found.unwrap()
}

const RETRY: [&str; 7] = ["--continue-at", "-", "--retry", "30", "--retry-all-errors", "--retry-delay", "1"];

#[test]
fn a_killed_volunteers_customer_finishes_from_another() {
    let mut scene = scene(2);
    let download = Slow::start(&scene, "survivor", &RETRY);
    download.wait_until_under_way(&scene);
    let victim = serving(&scene);
    scene.cluster.volunteer_mut(victim).unwrap().kill().unwrap();
    download.finish(&scene);
    // It did break: otherwise the test shows nothing.
    let log = download.process.log().unwrap();
    assert!(log.contains("transfer closed with") || log.contains("Recv failure"), "{log}");
    let survivor = scene.cluster.volunteers()[1 - victim].delivery();
    let (ip, port) = (survivor.ip().to_string(), survivor.port().to_string());
    assert!(log.contains(&format!("({ip}) port {port}")) || log.contains(&format!("{ip}:{port}")), "{log}");
}

#[test]
fn with_all_volunteers_dead_the_origin_serves() {
    let mut scene = scene(2);
    let target = scene.scratch("all-dead").unwrap().join("file");
    let first = Fetched::get(&scene.customer, &scene.cluster.url(LARGE), &target).unwrap();
    assert_eq!(first.redirects, 1);
    for index in 0..scene.cluster.volunteers().len() {
        scene.cluster.volunteer_mut(index).unwrap().kill().unwrap();
    }
    let download = Slow::start(&scene, "stranded", &RETRY[2..]);
    download.finish(&scene);
    // Once control has noticed, nobody is sent to the dead any more.
    let last = Fetched::get(&scene.customer, &scene.cluster.url(LARGE), &target).unwrap();
    assert_eq!((last.redirects, last.from), (0, scene.cluster.front_door().to_string()));
    assert!(is_large(&scene, &target));
}

#[test]
fn control_killed_and_restarted_loses_nothing() {
    let mut scene = scene(2);
    let target = scene.scratch("ledger").unwrap().join("file");
    Fetched::get(&scene.customer, &scene.cluster.url(LARGE), &target).unwrap();
    scene
        .wait("the ledger to have the download", || {
            Ok(scene.volunteers_count("/ledger/delivered_bytes")? >= LARGE_BYTES as u64)
        })
        .unwrap();
    let ledger = scene.volunteers_count("/ledger/delivered_bytes").unwrap();
    let names = |scene: &Scene| -> Vec<String> {
        let nodes = scene.cluster.ctl(&["node", "list"]).unwrap();
        nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned()).collect()
    };
    let registered = names(&scene);
    assert_eq!(registered.len(), 2);

    let download = Slow::start(&scene, "running", &[]);
    download.wait_until_under_way(&scene);
    scene.cluster.kill_control().unwrap();
    scene.cluster.start_control().unwrap();

    assert_eq!(names(&scene), registered);
    assert!(scene.volunteers_count("/ledger/delivered_bytes").unwrap() >= ledger);
    // The volunteers were not touched: they come back by themselves, and customers are sent to them again.
    scene.wait_for_sync().unwrap();
    download.finish(&scene);
    let again = Fetched::get(&scene.customer, &scene.cluster.url(LARGE), &target).unwrap();
    assert_eq!(again.redirects, 1);
}

#[test]
fn a_volunteer_that_was_killed_comes_back_with_what_it_had() {
    let mut scene = scene(1);
    let synced = scene.volunteers_count("/ledger/synced_in_bytes").unwrap();
    scene.cluster.volunteer_mut(0).unwrap().kill().unwrap();
    scene.cluster.start_volunteer(0).unwrap();
    scene.wait_for_sync().unwrap();
    let target = scene.scratch("back").unwrap().join("file");
    let got = Fetched::get(&scene.customer, &scene.cluster.url(LARGE), &target).unwrap();
    assert_eq!(got.redirects, 1);
    assert!(is_large(&scene, &target));
    // The file was not fetched a second time.
    let fetched = scene.volunteers_count("/ledger/synced_in_bytes").unwrap() - synced;
    assert!(fetched < LARGE_BYTES as u64 / 2, "{fetched} bytes were fetched again");
}

#[test]
fn a_drained_volunteer_gets_no_new_customers_and_a_resumed_one_does() {
    let scene = Scene::start(&SceneOptions { volunteers: 1, ..SceneOptions::default() }).unwrap();
    let file = scene.large_files().unwrap().swap_remove(0);
    let target = format!("/{}", file.path);
    scene.wait("customers to be sent to it", || Ok(scene.status(&target)? == 302)).unwrap();
    scene.cluster.ctl(&["node", "drain", "volunteer-1"]).unwrap();
    scene.wait("the origin to serve in its place", || Ok(scene.status(&target)? == 200)).unwrap();
    scene.cluster.ctl(&["node", "resume", "volunteer-1"]).unwrap();
    scene.wait("customers to be sent to it again", || Ok(scene.status(&target)? == 302)).unwrap();
}
