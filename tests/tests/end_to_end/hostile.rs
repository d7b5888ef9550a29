//! Paths from outside are hostile: none of them reaches anything that is not in the repository.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;

use freshet_tests::{Answer, SECRET, Scene, SceneOptions, raw_request};

/// Ways to say "the file beside the repository", or `/etc/passwd`.
const TRICKS: &[&str] = &[
    "/../secret",
    "/../../../../../../../../etc/passwd",
    "/pool/../../secret",
    "/%2e%2e/secret",
    "/%2E%2E/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/..%2fsecret",
    "/pool/..%2f..%2fsecret",
    "/..%5csecret",
    "/..\\secret",
    "//etc/passwd",
    "///../secret",
    "/./../secret",
    "/pool/./.././../secret",
    "/%2fetc%2fpasswd",
    "/%252e%252e/secret",
    "/..%00/secret",
    "/README.txt%00.html",
    "/%00",
    "/..;/secret",
    "/.%2e/secret",
    "/%c0%ae%c0%ae/secret",
    "/secret-link",
    "/passwd-link",
    "/up/secret",
    "/up/../secret",
    "../secret",
    "/etc/passwd",
    "http://elsewhere/../secret",
    "http://elsewhere/%2e%2e/secret",
    "/../states/control/admin.json",
    "/up/states/control/admin.json",
    "/secret-link.sha256",
    "/secret-link.meta4",
];

fn reaches_nothing(scene: &Scene, addr: SocketAddr, target: &str) {
    let answer = Answer::get(&scene.customer, addr, target).unwrap();
    let text = answer.text();
    let shown = format!("{target} at {addr}: {} {text:.300}", answer.status);
    assert!((300..500).contains(&answer.status) || answer.status == 0, "{shown}");
    assert!(!text.contains(SECRET) && !text.contains("root:") && !text.contains("token"), "{shown}");
    // A redirect would only be to a path that is in the catalogue.
    if let Some(location) = answer.header("location") {
        assert!(!location.contains("secret") && !location.contains("passwd"), "{shown} -> {location}");
    }
}

#[test]
fn path_tricks_reach_nothing_at_the_front_door_nor_at_a_volunteer() {
    let scene = Scene::start(&SceneOptions { volunteers: 1, ..SceneOptions::default() }).unwrap();
    let root = &scene.repository.root;
    symlink("../secret", root.join("secret-link")).unwrap();
    symlink("/etc/passwd", root.join("passwd-link")).unwrap();
    symlink("..", root.join("up")).unwrap();
    // A good link beside them shows when the catalogue has seen the bad ones.
    let good = scene.large_files().unwrap().swap_remove(0);
    symlink(&good.path, root.join("zz-good-link")).unwrap();
    scene.wait("the catalogue to see the links", || Ok(scene.status("/zz-good-link")? != 404)).unwrap();

    let volunteer = scene.cluster.volunteers()[0].delivery();
    // With a ticket that is good for something else, too.
    let answer =
        Answer::get(&scene.customer, scene.cluster.front_door(), &format!("/{}", good.path)).unwrap();
    let (_, target) = answer.location().unwrap();
    let (_, ticket) = target.split_once('?').unwrap();
    for trick in TRICKS {
        reaches_nothing(&scene, scene.cluster.front_door(), trick);
        reaches_nothing(&scene, volunteer, trick);
        reaches_nothing(&scene, volunteer, &format!("{trick}?{ticket}"));
    }
}

#[test]
fn requests_that_are_none_are_refused_and_the_servers_go_on() {
    let scene = Scene::start(&SceneOptions { volunteers: 1, ..SceneOptions::default() }).unwrap();
    let volunteer = scene.cluster.volunteers()[0].delivery();
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000)).into_bytes();
    let nul = b"GET /README.txt\0/../secret HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    let smuggled =
        b"GET /README.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec();
    let requests = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n".to_vec(),
        b"POST /README.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
        b"DELETE /README.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"GET /README.txt HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n".to_vec(),
        long,
        nul,
        smuggled,
    ];
    for addr in [scene.cluster.front_door(), volunteer] {
        for request in &requests {
            let answer = raw_request(&scene.customer, addr, request.clone()).unwrap();
            let shown = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
            assert!(
                answer.status == 0 || (400..=505).contains(&answer.status),
                "{shown:?}: {}",
                answer.status
            );
            assert!(!answer.text().contains(SECRET));
        }
    }
    let good = Answer::get(&scene.customer, scene.cluster.front_door(), "/README.txt").unwrap();
    assert_eq!(good.body, fs::read(scene.repository.root.join("README.txt")).unwrap());
    assert!(scene.cluster.control().unwrap().is_running().unwrap());
    assert!(scene.cluster.volunteers()[0].process().unwrap().is_running().unwrap());
}
