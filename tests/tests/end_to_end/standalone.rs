//! Programs by themselves: `dataplane serve` as a plain static server, and configurations that are refused.

use std::fs;
use std::net::SocketAddr;

use freshet_testbed::{Finished, Host, Link, Options, Program, Signal, Testbed};
use freshet_tests::{Answer, Fetched, PATIENCE, SECRET, find_programs};

#[test]
fn a_directory_is_served_without_an_origin() {
    let testbed = Testbed::start(Options::default()).unwrap();
    let server = testbed.host("server", &Link::new()).unwrap();
    let customer = testbed.host("customer", &Link::new()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("deep")).unwrap();
    let contents: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()).collect();
    fs::write(root.join("deep/file.bin"), &contents).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(directory.path().join("secret"), SECRET).unwrap();

    let addr = SocketAddr::new(server.addr().unwrap(), server.free_port().unwrap());
    let program = Program::new(find_programs().unwrap().path("dataplane"))
        .args(["serve", "--root"])
        .arg(&root)
        .args(["--listen", &addr.to_string()]);
    let process = server.start("dataplane", &program).unwrap();
    process.wait_for_port(&customer, addr, PATIENCE).unwrap();

    let target = directory.path().join("got");
    Fetched::get(&customer, &format!("http://{addr}/deep/file.bin"), &target).unwrap();
    assert!(fs::read(&target).unwrap() == contents);
    Fetched::get_with(&customer, &format!("http://{addr}/deep/file.bin"), &target, &["--range", "-5"])
        .unwrap();
    assert!(fs::read(&target).unwrap() == contents[contents.len() - 5..]);
    assert_eq!(Answer::get(&customer, addr, "/empty").unwrap().status, 200);
    assert_eq!(Answer::get(&customer, addr, "/nothing").unwrap().status, 404);
    let climbed = Answer::get(&customer, addr, "/%2e%2e/secret").unwrap();
    assert!(climbed.status >= 400 && !climbed.text().contains(SECRET));

    process.signal(Signal::TERM).unwrap();
    assert!(process.wait(PATIENCE).unwrap().success(), "{}", process.log().unwrap());
}

/// Runs a program with a configuration file of this text.
fn with_configuration(host: &Host, program: Program, text: &str) -> Finished {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    host.run(&program.arg("--config").arg(file.path()).arg("--check-config"), PATIENCE).unwrap()
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    let testbed = Testbed::start(Options::default()).unwrap();
    let host = testbed.host("host", &Link::new()).unwrap();
    let programs = find_programs().unwrap();
    let volunteer = || Program::new(programs.path("dataplane")).arg("run");
    let control = || Program::new(programs.path("control")).arg("serve");
    let directory = tempfile::tempdir().unwrap();
    let origin =
        format!("repo = '{0}'\nstate = '{0}-state'\nlisten = '127.0.0.1:0'\n", directory.path().display());

    let refused = with_configuration(&host, volunteer(), "donatd_rate = '10 Mbit/s'\n");
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stderr.contains("did you mean `donated_rate`"), "{}", refused.stderr);
    let refused = with_configuration(&host, control(), &format!("{origin}heartbeatms = 5\n"));
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stderr.contains("did you mean `heartbeat_ms`"), "{}", refused.stderr);

    let taken = with_configuration(&host, volunteer(), "donated_rate = '10 Mbit/s'\n");
    assert!(taken.status.success(), "{}", taken.stderr);
    let taken = with_configuration(&host, control(), &origin);
    assert!(taken.status.success(), "{}", taken.stderr);
}
