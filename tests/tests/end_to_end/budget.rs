//! The owner's budget on a volunteer that is killed, restarted, used up, and run without rights.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use freshet_testbed::{Backend, Host, Process, Program, Signal, skip};
use freshet_tests::{Fetched, LARGE, PATIENCE, Scene, SceneOptions};
use serde_json::Value;

const LARGE_BYTES: usize = 3_000_000;

/// A scene with one volunteer, whose configuration begins with `keys` and ends with `tables`.
fn scene(keys: &str, tables: &str) -> Scene {
    scene_with(LARGE_BYTES, keys, tables)
}

fn scene_with(large_bytes: usize, keys: &str, tables: &str) -> Scene {
    let mut scene = Scene::start(&SceneOptions {
        volunteers: 1,
        large_bytes: Some(large_bytes),
        ..SceneOptions::default()
    })
    .unwrap();
    configure(&scene, keys, tables);
    scene.cluster.volunteer_mut(0).unwrap().kill().unwrap();
    scene.cluster.start_volunteer(0).unwrap();
    scene.wait_for_sync().unwrap();
    scene
}

/// Writes what `dataplane join` wrote, between `keys` and `tables`.
fn configure(scene: &Scene, keys: &str, tables: &str) {
    let path = state(scene).join("dataplane.toml");
    let kept = state(scene).join("joined");
    if !kept.exists() {
        fs::copy(&path, &kept).unwrap();
    }
    let mut joined = fs::read_to_string(&kept).unwrap();
    if keys.contains("pins = ") {
        // The testbed pins nothing.
        joined = joined.replace("pins = \"off\"", "");
    }
    fs::write(path, format!("{keys}\n{joined}\n{tables}\n")).unwrap();
}

fn state(scene: &Scene) -> PathBuf {
    scene.cluster.volunteers()[0].state().to_owned()
}

fn host(scene: &Scene) -> Host {
    scene.cluster.volunteers()[0].host().clone()
}

/// The interface that customers come by.
fn interface(scene: &Scene) -> String {
    let interfaces = host(scene).interfaces().unwrap();
    interfaces.into_iter().map(|interface| interface.name).find(|name| name != "lo").unwrap()
}

/// The volunteer as control knows it.
fn node(scene: &Scene) -> Value {
    scene.cluster.ctl(&["node", "show", "volunteer-1"]).unwrap()
}

/// Bytes that the volunteer says it sent, by class, and the interface's own total in the same heartbeat.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sent {
    total: u64,
    delivery: u64,
    sync: u64,
    control: u64,
    other: u64,
    /// What its month's ledger says.
    month: u64,
}

impl Sent {
    fn read(node: &Value, interface: &str) -> Option<Sent> {
        let counted = node["interfaces"].as_array()?.iter().find(|i| i["name"] == interface)?;
        let bytes = |class: &str| counted[class]["out"]["bytes"].as_u64();
        Some(Sent {
            total: bytes("total")?,
            delivery: bytes("delivery")?,
            sync: bytes("sync")?,
            control: bytes("control")?,
            other: bytes("other")?,
            month: node["budget"]["used"].as_u64()?,
        })
    }

    /// Whether it is of a later heartbeat: each is counted as control's.
    fn is_later(&self, than: &Sent) -> bool {
        self.control > than.control
    }

    fn classes(&self) -> u64 {
        self.delivery + self.sync + self.control + self.other
    }
}

/// Namespaces of its own for the volunteer, and segments counted as they pass the wire; otherwise the test is skipped.
fn wired(scene: &Scene, test: &str) -> bool {
    if let Backend::Loopback { .. } = scene.testbed.backend() {
        skip(test, "comparing with an interface's own counters needs network namespaces, so root");
        return false;
    }
    let interface = interface(scene);
    let offloads = ["tso", "gso", "gro", "sg", "tx", "rx"];
    let switches = offloads.iter().flat_map(|&offload| [offload, "off"]);
    let ethtool = Program::new("ethtool").args(["-K", &interface]).args(switches);
    let finished = host(scene).run(&ethtool, PATIENCE).unwrap();
    assert!(finished.status.success(), "{}", finished.stderr);
    true
}

/// A bpffs for one test; unmounted when dropped.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount(scene: &Scene, name: &str) -> Bpffs {
        // Neither may stand in a bpffs' path: a dot, or what belongs to another run.
        let path = PathBuf::from(format!("/tmp/freshet-bpffs-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let mount = Program::new("mount").args(["-t", "bpf", "bpf"]).arg(&path);
        let finished = scene.customer.run(&mount, PATIENCE).unwrap();
        assert!(finished.status.success(), "{}", finished.stderr);
        Bpffs(path)
    }

    fn pins(&self) -> PathBuf {
        self.0.join("pins")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) || fs::remove_dir(&self.0).is_err() {
            eprintln!("{} stays", self.0.display());
        }
    }
}

/// The daemon on the volunteer's state, without any capability, in place of the one that runs.
fn without_rights(scene: &mut Scene) -> Process {
    scene.cluster.volunteer_mut(0).unwrap().kill().unwrap();
    let program = Program::new("setpriv")
        .args(["--bounding-set", "-all", "--inh-caps", "-all"])
        .arg(scene.cluster.program("dataplane"))
        .args(["run", "--state"])
        .arg(state(scene));
    let delivery = scene.cluster.volunteers()[0].delivery();
    let daemon = host(scene).start("unprivileged", &program).unwrap();
    daemon.wait_for_port(&host(scene), delivery, PATIENCE).unwrap();
    scene.wait("control to know how it counts", || Ok(node(scene)["source"]["kind"] == "sockets")).unwrap();
    let why = node(scene)["source"]["why"].as_str().unwrap().to_owned();
    assert!(why.contains("CAP_"), "{why}");
    daemon
}

/// Downloads that follow one another until they are ended.
fn crowd(scene: &Scene, customers: usize) -> Vec<Process> {
    let url = format!("http://{}/{LARGE}", scene.cluster.volunteers()[0].delivery());
    let script =
        format!("while :; do curl --silent --max-time 20 --output /dev/null {url} || sleep 0.05; done");
    let start = |number| {
        let program = Program::new("sh").args(["-c", &script]);
        scene.customer.start(&format!("crowd-{number}"), &program).unwrap()
    };
    (0..customers).map(start).collect()
}

fn sent_by_interface(scene: &Scene, interface: &str) -> u64 {
    let interfaces = host(scene).interfaces().unwrap();
    interfaces.iter().find(|counted| counted.name == interface).unwrap().tx_bytes
}

fn cleanup(scene: &Scene, state: &Path) -> (Option<i32>, String) {
    let program = Program::new(scene.cluster.program("dataplane")).args(["cleanup", "--state"]).arg(state);
    let finished = host(scene).run(&program, PATIENCE).unwrap();
    (finished.status.code(), finished.text() + &finished.stderr)
}

#[test]
fn twenty_kills_under_load_lose_and_double_no_byte_and_a_stop_leaves_nothing() {
    let mut scene = scene("", "");
    if !wired(&scene, "twenty_kills_under_load_lose_and_double_no_byte_and_a_stop_leaves_nothing") {
        return;
    }
    let interface = interface(&scene);
    let bpffs = Bpffs::mount(&scene, "kills");
    let pins = bpffs.pins();
    configure(
        &scene,
        &format!(
            "interfaces = '{interface}'\npins = '{}'\ndonated_rate = '200 Mbit/s'\nlocal_networks = ['0.0.0.0/0']",
            pins.display()
        ),
        "[budget.month]\nvolume = '1 TB'",
    );
    scene.cluster.volunteer_mut(0).unwrap().kill().unwrap();
    scene.cluster.start_volunteer(0).unwrap();
    // Totals and classes are read one after the other: packets in between show in one of them only, for a moment.
    let outside = |sent: &Sent| sent.total - sent.classes();
    let mut before = None;
    scene
        .wait("the counting to begin", || {
            let Some(now) = Sent::read(&node(&scene), &interface) else { return Ok(false) };
            let steady =
                before.is_some_and(|before| now.is_later(&before) && outside(&before) == outside(&now));
            before = Some(now);
            Ok(steady)
        })
        .unwrap();
    assert_eq!(node(&scene)["source"]["kind"], "ebpf", "{}", node(&scene));
    let before = before.unwrap();
    // Nothing was delivered yet, and control says so.
    let credited = |node: &Value| node["ledger"]["delivered_bytes"].as_u64().unwrap();
    assert_eq!(credited(&node(&scene)), before.delivery);

    let crowd = crowd(&scene, 4);
    for _ in 0..KILLS {
        let sent = sent_by_interface(&scene, &interface);
        scene
            .wait(
                "some megabytes to be sent",
                || Ok(sent_by_interface(&scene, &interface) > sent + 2_000_000),
            )
            .unwrap();
        scene.cluster.volunteer_mut(0).unwrap().kill().unwrap();
        assert!(pins.exists(), "the kernel counts on");
        scene.cluster.start_volunteer(0).unwrap();
    }
    drop(crowd);

    let mut seen = BTreeSet::new();
    let settled = scene.wait("the counts to agree", || {
        let node = node(&scene);
        let Some(now) = Sent::read(&node, &interface) else { return Ok(false) };
        let donated = now.delivery + now.sync - before.delivery - before.sync;
        let lost = (
            outside(&now) as i64 - outside(&before) as i64,
            donated as i64 - (now.month - before.month) as i64,
            now.delivery as i64 - credited(&node) as i64,
        );
        seen.insert(lost);
        Ok(lost == (0, 0, 0) && donated > 2_000_000 * KILLS)
    });
    // By interface, by the month and by control's ledger: how many bytes the counters lack, at each look.
    settled.unwrap_or_else(|error| panic!("{error}: {seen:?}"));

    let state = state(&scene);
    let (code, said) = cleanup(&scene, &state);
    assert!(code == Some(1) && said.contains("in use by a daemon that runs"), "{code:?} {said}");
    let volunteer = scene.cluster.volunteers()[0].process().unwrap();
    assert!(volunteer.stop(PATIENCE).unwrap().success(), "{}", volunteer.log().unwrap());
    assert!(!pins.exists(), "a stop takes the pins away");
    let filters = Program::new("tc").args(["filter", "show", "dev", &interface, "egress"]);
    assert_eq!(host(&scene).run(&filters, PATIENCE).unwrap().text().trim(), "");

    scene.cluster.start_volunteer(0).unwrap();
    scene.cluster.volunteer_mut(0).unwrap().kill().unwrap();
    assert!(pins.exists());
    let (code, said) = cleanup(&scene, &state);
    assert!(code == Some(0) && said.contains("removed: ") && !pins.exists(), "{code:?} {said}");
    let (code, said) = cleanup(&scene, &state);
    assert!(code == Some(0) && said.contains("nothing of ours is left"), "{code:?} {said}");
}

#[test]
fn a_month_that_is_used_up_sends_customers_back_and_cuts_nobody() {
    let volume = 40_000_000;
    let month = |volume: u64| format!("[budget.month]\nvolume = {volume}");
    let mut scene = scene("", &month(volume));
    let directory = scene.scratch("month").unwrap();
    let url = scene.cluster.url(LARGE);
    let expected = fs::read(scene.repository.root.join(LARGE)).unwrap();
    let mut from_volunteer = 0;
    let left = |scene: &Scene| node(scene)["budget"]["month"]["left"].as_u64().unwrap();
    // Rounds of customers at once, until no file of this size fits into what is left.
    for round in 0..60 {
        let targets: Vec<PathBuf> = (0..4).map(|n| directory.join(format!("{round}-{n}"))).collect();
        let redirected: Vec<u64> = std::thread::scope(|scope| {
            let customers: Vec<_> = targets
                .iter()
                .map(|target| scope.spawn(|| Fetched::get(&scene.customer, &url, target).unwrap()))
                .collect();
            customers.into_iter().map(|customer| customer.join().unwrap().redirects).collect()
        });
        for target in &targets {
            assert!(fs::read(target).unwrap() == expected, "every customer gets the whole file");
            fs::remove_file(target).unwrap();
        }
        // One redirect goes to the volunteer; a second one is its sending back.
        from_volunteer += redirected.iter().filter(|&&redirects| redirects == 1).count();
        if left(&scene) < TOO_LITTLE_LEFT {
            break;
        }
    }
    assert!((7..=13).contains(&from_volunteer), "{from_volunteer} of 3 MB were served of 40 MB");
    let used = |scene: &Scene| node(scene)["budget"]["used"].as_u64().unwrap();
    assert!(used(&scene) > 20_000_000 && used(&scene) <= volume, "{} of {volume}", used(&scene));
    scene
        .wait("the front door to know", || Ok(scene.cluster.ctl(&["explain", LARGE])?["chosen"].is_null()))
        .unwrap();

    // Neither a crash nor a restart gives anything back.
    scene
        .wait("the ledger to be on disk", || {
            let page: Value = serde_json::from_slice(&fs::read(state(&scene).join("month.json"))?)?;
            Ok(page["budget"]["used"].as_u64() == Some(used(&scene)))
        })
        .unwrap();
    let used_before = used(&scene);
    scene.cluster.volunteer_mut(0).unwrap().kill().unwrap();
    scene.cluster.start_volunteer(0).unwrap();
    scene
        .wait("the volunteer to be back", || Ok(node(&scene)["heartbeat_age_ms"].as_u64() < Some(1_000)))
        .unwrap();
    assert!(used(&scene) >= used_before);
    let left_before = left(&scene);
    let again = Fetched::get(&scene.customer, &url, &directory.join("again")).unwrap();
    assert_eq!(
        again.redirects, 0,
        "the origin serves it, {left_before} bytes were left of {TOO_LITTLE_LEFT}"
    );

    // The owner gives more, and customers come again.
    configure(&scene, "", &month(10 * volume));
    scene.cluster.volunteers()[0].process().unwrap().signal(Signal::HUP).unwrap();
    scene
        .wait("customers to be sent to it again", || Ok(scene.status(&format!("/{LARGE}"))? == 302))
        .unwrap();
}

#[test]
fn a_volume_lowered_under_running_downloads_is_kept_within_a_chunk_each() {
    let keys = "donated_rate = '80 Mbit/s'\nlocal_networks = ['0.0.0.0/0', '::/0']";
    let scene = scene_with(40_000_000, keys, "[budget.month]\nvolume = '1 TB'");
    let used = || node(&scene)["budget"]["used"].as_u64().unwrap();
    let url = format!("http://{}/{LARGE}", scene.cluster.volunteers()[0].delivery());
    let curl =
        Program::new("curl").args(["--silent", "--output", "/dev/null", "--write-out", "%{num_redirects}"]);
    let curl = curl.arg(url);
    let downloads: Vec<Process> =
        (0..CUSTOMERS).map(|n| scene.customer.start(&format!("lowered-{n}"), &curl).unwrap()).collect();
    scene.wait("the downloads to be under way", || Ok(used() > 15_000_000)).unwrap();
    // Less than what was promised, and more than what is used by the time that it is in force.
    let volume = used() + 20_000_000;
    configure(&scene, keys, &format!("[budget.month]\nvolume = {volume}"));
    scene.cluster.volunteers()[0].process().unwrap().signal(Signal::HUP).unwrap();
    // Nobody hangs: what can't be finished is cut after a while, so that the client asks elsewhere.
    for download in &downloads {
        // Twenty seconds of it are the daemon's.
        assert!(!download.wait(2 * PATIENCE).unwrap().success(), "not all of it could be sent");
    }
    scene
        .wait("control to know", || {
            Ok(node(&scene)["reason"].as_str().is_some_and(|why| why.contains("used up")))
        })
        .unwrap();
    let (used, chunks) = (used(), CUSTOMERS * (64 << 10));
    assert!(used <= volume + chunks, "{used} of {volume}, {} too many", used - volume);
    assert!(used > volume - 2_000_000, "{used} of {volume}");
    eprintln!("{used} of {volume} bytes are used: {}", used as i64 - volume as i64);
    let back = scene.customer.run(&curl, PATIENCE).unwrap();
    assert_eq!(back.text(), "0", "it is sent back: {}", back.stderr);
    let status = curl.args(["--dump-header", "-"]);
    let text = scene.customer.run(&status, PATIENCE).unwrap().text();
    assert!(text.starts_with("HTTP/1.1 302"), "{text}");
}

#[test]
fn without_rights_too_nothing_leaves_at_the_last_byte() {
    let keys = "donated_rate = '80 Mbit/s'\nlocal_networks = ['0.0.0.0/0', '::/0']";
    let mut scene = scene_with(40_000_000, keys, "[budget.month]\nvolume = '1 TB'");
    if !wired(&scene, "without_rights_too_nothing_leaves_at_the_last_byte") {
        return;
    }
    let interface = interface(&scene);
    let keys = format!("interfaces = '{interface}'\n{keys}");
    let volume = |bytes: u64| configure(&scene, &keys, &format!("[budget.month]\nvolume = {bytes}"));
    volume(1_000_000_000_000);
    let sent_before = sent_by_interface(&scene, &interface);
    let daemon = without_rights(&mut scene);
    let used = |scene: &Scene| node(scene)["budget"]["used"].as_u64().unwrap();
    let used_before = used(&scene);
    let url = format!("http://{}/{LARGE}", scene.cluster.volunteers()[0].delivery());
    let curl = Program::new("curl").args(["--silent", "--output", "/dev/null", "--connect-timeout", "1"]);
    let download = curl.clone().arg(&url);
    let downloads: Vec<Process> =
        (0..CUSTOMERS).map(|n| scene.customer.start(&format!("last-{n}"), &download).unwrap()).collect();
    scene.wait("the downloads to be under way", || Ok(used(&scene) > used_before + 15_000_000)).unwrap();
    let volume = |bytes: u64| configure(&scene, &keys, &format!("[budget.month]\nvolume = {bytes}"));
    let end = used(&scene) + 20_000_000;
    volume(end);
    daemon.signal(Signal::HUP).unwrap();
    for download in &downloads {
        assert!(!download.wait(2 * PATIENCE).unwrap().success(), "not all of it could be sent");
    }
    // What is kept for refusals is used for them, and then nobody is answered.
    let refusals = curl.args(["--fail-early", "--no-keepalive", "--header", "Connection: close"]);
    let refusals = refusals.arg(format!("{url}?n=[1-2000]"));
    let is_over = (0..4).any(|_| {
        scene.customer.run(&refusals, 4 * PATIENCE).unwrap();
        scene.customer.run(&download, PATIENCE).unwrap().status.code() == Some(CURL_TIMED_OUT)
    });
    assert!(is_over, "{} of {end}: somebody is still answered", used(&scene));
    // Without the classifiers' help, and by the interface's own count: all that was sent, heartbeats included.
    let sent = sent_by_interface(&scene, &interface) - sent_before;
    let used_now = used(&scene);
    let chunks = CUSTOMERS * (64 << 10);
    assert!(used_now <= end + chunks && used_now > end - 2_000_000, "{used_now} of {end}");
    let now = Sent::read(&node(&scene), &interface).unwrap();
    let donated = sent.saturating_sub(now.control);
    let volume_left = end - used_before;
    assert!(donated <= volume_left + chunks, "{donated} of {volume_left}");
    eprintln!("{donated} of {volume_left} bytes left: {:+}", donated as i64 - volume_left as i64);

    // However many come, it costs the owner nothing.
    let before = Sent::read(&node(&scene), &interface).unwrap();
    for _ in 0..5 {
        assert_eq!(scene.customer.run(&download, PATIENCE).unwrap().status.code(), Some(CURL_TIMED_OUT));
    }
    let later = || Sent::read(&node(&scene), &interface).filter(|now| now.is_later(&before));
    scene.wait("another heartbeat", || Ok(later().is_some())).unwrap();
    let now = later().unwrap();
    assert_eq!((now.delivery, now.sync), (before.delivery, before.sync));

    volume(2 * end + 100_000_000);
    daemon.signal(Signal::HUP).unwrap();
    scene
        .wait("it to answer again", || Ok(scene.customer.run(&download, PATIENCE)?.status.success()))
        .unwrap();
    assert!(daemon.stop(PATIENCE).unwrap().success());
}

#[test]
fn a_connection_is_never_faster_than_its_ceiling() {
    // TCP paces by itself where no queue does: the kernel keeps this, not the serving path.
    // It lets a connection's first ten segments go at once, which on loopback are 655 kB: of 16 MB that is little.
    let bytes = 16_000_000;
    let keys = "local_networks = ['0.0.0.0/0', '::/0']";
    let scene = scene_with(bytes, keys, "[budget]\nconnection_rate = '8 Mbit/s'");
    let target = scene.scratch("ceiling").unwrap().join("file");
    let url = format!("http://{}/{LARGE}", scene.cluster.volunteers()[0].delivery());
    let begun = std::time::Instant::now();
    Fetched::get(&scene.customer, &url, &target).unwrap();
    let rate = bytes as f64 * 8.0 / begun.elapsed().as_secs_f64();
    assert!(rate < 8.4e6, "{rate} bit/s");
    eprintln!("{:.2} Mbit/s of payload under a ceiling of 8 Mbit/s", rate / 1e6);
}

#[test]
fn hours_in_which_nothing_is_given_close_the_volunteer() {
    let closed =
        "[[budget.hours]]\ndays = 'daily'\nfrom = '00:00'\nuntil = '24:00'\nrate = 0\nsync_rate = '1 Gbit/s'";
    let scene = Scene::start(&SceneOptions { volunteers: 1, ..SceneOptions::default() }).unwrap();
    let file = format!("/{}", scene.large_files().unwrap().swap_remove(0).path);
    scene.wait("customers to be sent to it", || Ok(scene.status(&file)? == 302)).unwrap();
    configure(&scene, "", closed);
    let volunteer = scene.cluster.volunteers()[0].process().unwrap();
    volunteer.signal(Signal::HUP).unwrap();
    scene.wait("the origin to serve in its place", || Ok(scene.status(&file)? == 200)).unwrap();
    let node = node(&scene);
    assert_eq!((node["state"].as_str(), node["budget"]["limit"].as_str()), (Some("closed"), Some("hours")));
    assert!(node["reason"].as_str().unwrap().contains("at this hour"), "{node}");
    configure(&scene, "", "");
    volunteer.signal(Signal::HUP).unwrap();
    scene.wait("customers to be sent to it again", || Ok(scene.status(&file)? == 302)).unwrap();
}

#[test]
fn without_rights_the_sockets_are_counted_within_a_thousandth() {
    let mut scene = scene("", "");
    if !wired(&scene, "without_rights_the_sockets_are_counted_within_a_thousandth") {
        return;
    }
    let interface = interface(&scene);
    configure(&scene, &format!("interfaces = '{interface}'\nlocal_networks = ['0.0.0.0/0']"), "");
    let daemon = without_rights(&mut scene);
    let delivery = scene.cluster.volunteers()[0].delivery();
    let quiet = |scene: &Scene| {
        let mut last = None;
        scene
            .wait("the counts to come to rest", || {
                let Some(now) = Sent::read(&node(scene), &interface) else { return Ok(false) };
                let still =
                    last.is_some_and(|last: Sent| now.is_later(&last) && now.delivery == last.delivery);
                last = Some(now);
                Ok(still)
            })
            .unwrap();
        last.unwrap()
    };
    let before = quiet(&scene);
    let target = scene.scratch("fallback").unwrap().join("file");
    for _ in 0..20 {
        Fetched::get(&scene.customer, &format!("http://{delivery}/{LARGE}"), &target).unwrap();
    }
    let after = quiet(&scene);
    // What is not delivery is known exactly enough: it is a thousandth of it, as heartbeats are.
    let wire = (after.total - before.total) as f64;
    let counted = (after.delivery - before.delivery + after.control - before.control) as f64;
    let error = (counted - wire) / wire;
    assert!(wire > 60e6 && error.abs() <= 0.001, "{counted} of {wire} bytes: {:.4} %", error * 100.0);
    eprintln!("own sockets against the interface's counters: {:+.4} %", error * 100.0);
    assert!(daemon.stop(PATIENCE).unwrap().success());
}

#[test]
fn the_kernels_queue_keeps_the_rate_too_and_never_takes_anothers_place_unasked() {
    let scene = scene("", "");
    if !wired(&scene, "the_kernels_queue_keeps_the_rate_too_and_never_takes_anothers_place_unasked") {
        return;
    }
    let interface = interface(&scene);
    let tc = |command: &str| {
        let (verb, more) = command.split_once('@').unwrap_or((command, ""));
        let dev = ["dev", interface.as_str()];
        let arguments = verb.split_whitespace().chain(dev).chain(more.split_whitespace());
        let finished = host(&scene).run(&Program::new("tc").args(arguments), PATIENCE).unwrap();
        assert!(finished.status.success(), "{command}: {}", finished.stderr);
        finished.text()
    };
    // The one that the testbed set up for the link's rate.
    tc("qdisc del @ root");
    let before = tc("qdisc show");
    let keys = format!(
        "interfaces = '{interface}'\npins = 'off'\ndonated_rate = '40 Mbit/s'\nlocal_networks = ['0.0.0.0/0']"
    );
    let limit = |word: &str| configure(&scene, &keys, &format!("[budget]\nhard_limit = '{word}'"));
    let program =
        Program::new(scene.cluster.program("dataplane")).args(["run", "--state"]).arg(state(&scene));
    let delivery = scene.cluster.volunteers()[0].delivery();
    let start = || {
        let daemon = host(&scene).start("limited", &program).unwrap();
        daemon.wait_for_port(&host(&scene), delivery, PATIENCE).unwrap();
        daemon
    };
    limit("on");
    assert!(scene.cluster.volunteers()[0].process().unwrap().stop(PATIENCE).unwrap().success());
    let daemon = start();
    assert!(tc("qdisc show").contains("qdisc htb 4652: root"), "{}", tc("qdisc show"));
    let target = scene.scratch("queue").unwrap().join("file");
    let url = format!("http://{delivery}/{LARGE}");
    Fetched::get(&scene.customer, &url, &target).unwrap();
    let classes = tc("-s class show");
    let delivered = classes.split("class htb 4652:11").nth(1).unwrap_or_default();
    let sent = delivered.split("Sent ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    assert!(sent >= Some(LARGE_BYTES as u64) && delivered.contains("ceil 40Mbit"), "{classes}");

    // Another rate, without a restart.
    configure(&scene, &keys.replace("40 Mbit/s", "80 Mbit/s"), "[budget]\nhard_limit = 'on'");
    daemon.signal(Signal::HUP).unwrap();
    scene.wait("the queue to follow", || Ok(tc("class show").contains("ceil 80Mbit"))).unwrap();
    assert!(daemon.stop(PATIENCE).unwrap().success());
    assert_eq!(tc("qdisc show"), before, "a stop leaves the queue that was there");

    // Killed, it stays; the next run takes it over, and the cleanup removes it.
    let daemon = start();
    daemon.kill();
    scene.wait("its end", || Ok(!host(&scene).reaches(delivery)?)).unwrap();
    assert!(tc("qdisc show").contains("htb 4652:"));
    let daemon = start();
    daemon.kill();
    scene.wait("its end", || Ok(!host(&scene).reaches(delivery)?)).unwrap();
    let (code, said) = cleanup(&scene, &state(&scene));
    assert!(
        code == Some(0) && said.contains(&format!("removed: the queue on {interface}")),
        "{code:?} {said}"
    );
    assert_eq!(tc("qdisc show"), before);

    // Somebody's own queue is respected.
    tc("qdisc add @ root handle 7: pfifo limit 1000");
    let refused = host(&scene).run(&program, PATIENCE).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("found pfifo with handle 7:"), "{}", refused.stderr);
    assert!(tc("qdisc show").contains("pfifo 7: root"));
    limit("replace");
    let daemon = start();
    assert!(tc("qdisc show").contains("htb 4652: root"));
    assert!(daemon.stop(PATIENCE).unwrap().success());
}

#[test]
fn the_kernels_queue_follows_interfaces_that_appear_and_come_back() {
    let scene = scene("", "");
    if !wired(&scene, "the_kernels_queue_follows_interfaces_that_appear_and_come_back") {
        return;
    }
    let run = |program: &str, command: &str| {
        let finished = host(&scene).run(&Program::new(program).args(command.split(' ')), PATIENCE).unwrap();
        assert!(finished.status.success(), "{program} {command}: {}", finished.stderr);
        finished.text()
    };
    let queue = |device: &str| run("tc", &format!("qdisc show dev {device}"));
    let wait_for_queue = |device: &str| {
        scene.wait("its queue", || Ok(queue(device).contains("qdisc htb 4652: root"))).unwrap();
    };
    configure(
        &scene,
        "interfaces = 'frlate*'\npins = 'off'\ndonated_rate = '40 Mbit/s'",
        "[budget]\nhard_limit = 'on'",
    );
    assert!(scene.cluster.volunteers()[0].process().unwrap().stop(PATIENCE).unwrap().success());
    let program =
        Program::new(scene.cluster.program("dataplane")).args(["run", "--state"]).arg(state(&scene));
    let delivery = scene.cluster.volunteers()[0].delivery();
    let daemon = host(&scene).start("late", &program).unwrap();
    daemon.wait_for_port(&host(&scene), delivery, PATIENCE).unwrap();

    for _ in 0..2 {
        run("ip", "link add frlate0 type veth peer name frother0");
        wait_for_queue("frlate0");
        run("ip", "link del frlate0");
    }
    // A rate that changed in between is the one of the next.
    configure(
        &scene,
        "interfaces = 'frlate*'\npins = 'off'\ndonated_rate = '80 Mbit/s'",
        "[budget]\nhard_limit = 'on'",
    );
    daemon.signal(Signal::HUP).unwrap();
    scene
        .wait("the new rate to be read", || Ok(daemon.log()?.contains("the configuration was read again")))
        .unwrap();
    run("ip", "link add frlate1 type veth peer name frother1");
    wait_for_queue("frlate1");
    assert!(run("tc", "class show dev frlate1").contains("ceil 80Mbit"));
    // One that has a queue of somebody's is left alone, and the others are kept all the same.
    run("ip", "link add frother2 type veth peer name frother3");
    run("tc", "qdisc add dev frother2 root handle 7: pfifo limit 1000");
    run("ip", "link set frother2 name frlate2");
    scene.wait("it to be told of", || Ok(daemon.log()?.contains("found pfifo with handle 7:"))).unwrap();
    assert!(queue("frlate2").contains("pfifo 7: root"), "{}", queue("frlate2"));
    run("ip", "link add frlate3 type veth peer name frother4");
    wait_for_queue("frlate3");
    assert!(daemon.stop(PATIENCE).unwrap().success());
    for device in ["frlate1", "frlate3"] {
        assert!(!queue(device).contains("htb"), "a stop leaves nothing: {}", queue(device));
    }
}

/// curl's exit status when a connection or a transfer takes too long.
const CURL_TIMED_OUT: i32 = 28;
const KILLS: u64 = 20;
const CUSTOMERS: u64 = 8;
/// What is kept for sending customers back, and a file of [`LARGE_BYTES`] with its headers at their most.
const TOO_LITTLE_LEFT: u64 = 1_300_000 + LARGE_BYTES as u64 * 17 / 16;
