//! curl, wget and aria2: files arrive whole, from volunteers, and can be checked against what the origin says.

use std::fs;
use std::path::Path;

use freshet_testbed::Program;
use freshet_tests::{Answer, Fetched, PATIENCE, Scene, SceneOptions, curl, sha256_of};

fn same(scene: &Scene, path: &str, got: &Path) {
    let wanted = fs::read(scene.repository.root.join(path)).unwrap();
    assert!(wanted == fs::read(got).unwrap(), "{path} differs from what came");
}

#[test]
fn curl_wget_and_aria2_get_whole_files_from_volunteers() {
    let scene = Scene::start(&SceneOptions::default()).unwrap();
    let files = scene.large_files().unwrap();
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    assert!(files.len() >= 6);
    let mut before = scene.control_count("/front_door/body_bytes").unwrap();
    let mut mostly_by_volunteers = |client: &str| {
        let after = scene.control_count("/front_door/body_bytes").unwrap();
        assert!((after - before) * 10 <= bytes, "{client}: the origin served {} of {bytes}", after - before);
        before = after;
    };

    for file in &files {
        // As people do it: the name stays that of the file, whatever the redirect's query.
        let directory = scene.scratch("curl").unwrap();
        let program = curl().args(["--remote-name", &scene.cluster.url(&file.path)]).directory(&directory);
        let finished = scene.customer.run(&program, PATIENCE).unwrap();
        assert!(finished.status.success(), "{}", finished.stderr);
        same(&scene, &file.path, &directory.join(file.path.rsplit('/').next().unwrap()));
    }
    mostly_by_volunteers("curl");

    let directory = scene.scratch("wget").unwrap();
    let urls = files.iter().map(|file| scene.cluster.url(&file.path));
    let program = Program::new("wget").args(["--no-verbose", "--tries=3"]).args(urls).directory(&directory);
    let finished = scene.customer.run(&program, PATIENCE).unwrap();
    assert!(finished.status.success(), "{}", finished.stderr);
    for file in &files {
        same(&scene, &file.path, &directory.join(file.path.rsplit('/').next().unwrap()));
    }
    mostly_by_volunteers("wget");

    for file in &files {
        let directory = scene.scratch("aria2").unwrap();
        let metalink = format!("{}.meta4", scene.cluster.url(&file.path));
        let program = Program::new("aria2c")
            .args([
                "--follow-metalink=mem",
                "--check-integrity=true",
                "--allow-overwrite=true",
                "--console-log-level=warn",
            ])
            .arg(metalink)
            .directory(&directory);
        let finished = scene.customer.run(&program, PATIENCE).unwrap();
        assert!(finished.status.success(), "{} {}", finished.text(), finished.stderr);
        same(&scene, &file.path, &directory.join(file.path.rsplit('/').next().unwrap()));
    }
    mostly_by_volunteers("aria2c");
}

#[test]
fn the_origin_says_what_a_file_must_be() {
    let scene = Scene::start(&SceneOptions::default()).unwrap();
    let file = scene.large_files().unwrap().swap_remove(0);
    let origin = scene.cluster.front_door();
    let path = scene.repository.root.join(&file.path);
    let sha256 = sha256_of(&scene.customer, &path).unwrap();
    let openssl = ["dgst", "-provider", "legacy", "-provider", "default", "-md4", "-r"];
    let md4 = scene.customer.run(&Program::new("openssl").args(openssl).arg(&path), PATIENCE).unwrap().text();
    let md4 = md4.split_whitespace().next().unwrap().to_owned();

    let target = format!("/{}", file.path);
    let said = |kind: &str| Answer::get(&scene.customer, origin, &format!("{target}.{kind}")).unwrap();
    assert_eq!(said("sha256").text().split_whitespace().next(), Some(sha256.as_str()));
    assert_eq!(said("md4").text().split_whitespace().next(), Some(md4.as_str()));
    let metalink = said("meta4").text();
    assert!(
        metalink.contains(&sha256) && metalink.contains(&format!("<size>{}</size>", file.size)),
        "{metalink}"
    );

    // The digests in the redirect are base64 of the same bytes (RFC 9530, RFC 3230); openssl says what that is.
    let to_base64 = format!("openssl dgst -sha256 -binary '{}' | openssl base64 -A", path.display());
    let base64 = scene.customer.run(&Program::new("sh").args(["-c", &to_base64]), PATIENCE).unwrap().text();
    scene.wait("customers to be redirected", || Ok(scene.status(&target)? == 302)).unwrap();
    let redirect = Answer::get(&scene.customer, origin, &target).unwrap();
    assert_eq!(redirect.status, 302);
    let repr = redirect.header("repr-digest").expect("a Repr-Digest");
    assert!(repr.contains(&format!("sha-256=:{base64}:")), "{repr}");
    let digest = redirect.headers("digest");
    assert!(
        digest.iter().any(|value| value.to_lowercase().contains(&format!("sha-256={base64}").to_lowercase())),
        "{digest:?}"
    );
    assert!(
        redirect
            .headers("link")
            .iter()
            .any(|link| link.contains("rel=duplicate") || link.contains("rel=\"duplicate\""))
    );
    let (volunteer, _) = redirect.location().unwrap();
    assert!(scene.cluster.name_at(volunteer).is_some_and(|name| name.starts_with("volunteer-")));

    // The companion file is what `sha256sum --check` reads.
    let directory = scene.scratch("check").unwrap();
    let name = file.path.rsplit('/').next().unwrap();
    let url = scene.cluster.url(&file.path);
    Fetched::get(&scene.customer, &url, &directory.join(name)).unwrap();
    Fetched::get(&scene.customer, &format!("{url}.sha256"), &directory.join("SUM")).unwrap();
    let check = Program::new("sha256sum").args(["--check", "--strict", "SUM"]).directory(&directory);
    let checked = scene.customer.run(&check, PATIENCE).unwrap();
    assert!(checked.status.success(), "{} {}", checked.text(), checked.stderr);
}

#[test]
fn ranges_heads_and_conditions_go_through_the_redirect() {
    let scene = Scene::start(&SceneOptions { volunteers: 1, ..SceneOptions::default() }).unwrap();
    let file = scene.large_files().unwrap().swap_remove(0);
    let url = scene.cluster.url(&file.path);
    let directory = scene.scratch("ranges").unwrap();
    let whole = fs::read(scene.repository.root.join(&file.path)).unwrap();

    let part = Fetched::get_with(&scene.customer, &url, &directory.join("part"), &["--range", "1000-70999"])
        .unwrap();
    assert!(fs::read(&part.path).unwrap() == whole[1000..71_000]);
    assert_eq!(part.redirects, 1);

    // A download that was broken off is continued where it stopped.
    let target = directory.join("resumed");
    fs::write(&target, &whole[..100_000]).unwrap();
    let finished = scene
        .customer
        .run(&curl().args(["--continue-at", "-", "--output"]).arg(&target).arg(&url), PATIENCE)
        .unwrap();
    assert!(finished.status.success(), "{}", finished.stderr);
    assert!(fs::read(&target).unwrap() == whole);

    let head = scene.customer.run(&curl().arg("--head").arg(&url), PATIENCE).unwrap().text().to_lowercase();
    assert!(head.contains(&format!("content-length: {}", file.size)), "{head}");

    let got = Fetched::get_with(&scene.customer, &url, &directory.join("whole"), &["--remote-time"]).unwrap();
    let again = curl()
        .args(["--write-out", "%{http_code}", "--output", "/dev/null", "--time-cond"])
        .arg(&got.path)
        .arg(&url);
    assert_eq!(scene.customer.run(&again, PATIENCE).unwrap().text(), "304");
}

#[test]
fn a_small_file_comes_from_the_origin_without_a_redirect() {
    let scene = Scene::start(&SceneOptions { volunteers: 1, ..SceneOptions::default() }).unwrap();
    let target = scene.scratch("small").unwrap().join("README.txt");
    let got = Fetched::get(&scene.customer, &scene.cluster.url("README.txt"), &target).unwrap();
    assert_eq!((got.redirects, got.from), (0, scene.cluster.front_door().to_string()));
    same(&scene, "README.txt", &target);
}
