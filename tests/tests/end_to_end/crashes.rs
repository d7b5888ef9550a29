//! Volunteers and control are killed at random moments while a release is copied: every mirror ends equal to it, and
//! little is fetched twice.
//!
//! `FRESHET_KILL_SEEDS=1-50` tries so many releases, each with kills of its own, instead of a few. Control is one
//! process here, as it is in use: with it die the front door, the tracker and the origin's sync port.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use freshet_testbed::{Backend, Link, Rate, skip};
use freshet_tests::{Scene, SceneOptions, noise};

const VOLUNTEERS: usize = 4;
const LARGE_FILES: usize = 5;
const LARGE_BYTES: usize = 1_500_000;
const SMALL_FILES: usize = 100;
const SMALL_BYTES: usize = 4_000;
const RELEASE_BYTES: u64 = (LARGE_FILES * LARGE_BYTES + SMALL_FILES * SMALL_BYTES) as u64;
const MBIT: u64 = 24;
/// Long enough for everything that control and volunteers wait for after a crash.
const PATIENCE: Duration = Duration::from_secs(180);

/// A sequence of numbers that is the same each time (SplitMix64; Steele, Lea and Flood, 2014).
struct Chance(u64);

impl Chance {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Control,
    Volunteer(usize),
}

/// What a release cost.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Received by the volunteers' interfaces.
    wire: u64,
    /// Bytes that came in pieces or whole and were kept, as the volunteers count them since their last start, and
    /// what they found on their disks at that start.
    kept: u64,
    volunteer_kills: u64,
    control_kills: u64,
    /// Size of the release's pieces.
    piece_bytes: u64,
}

fn received(scene: &Scene) -> u64 {
    let volunteers = scene.cluster.volunteers().iter();
    let interfaces = volunteers.flat_map(|volunteer| volunteer.host().interfaces().unwrap());
    interfaces.filter(|interface| interface.name == "eth0").map(|interface| interface.rx_bytes).sum()
}

/// Puts a release in the place of the one before, which nothing of is in common with.
fn release(scene: &Scene, seed: u64) {
    let outside = scene.scratch("release").unwrap().join(seed.to_string());
    fs::create_dir_all(&outside).unwrap();
    let write = |name: String, number: usize, bytes: usize| {
        fs::write(outside.join(name), noise(seed << 20 | number as u64, bytes)).unwrap();
    };
    (0..LARGE_FILES).for_each(|n| write(format!("large-{n}.deb"), n, LARGE_BYTES));
    (0..SMALL_FILES).for_each(|n| write(format!("small-{n}.deb"), 1_000 + n, SMALL_BYTES));
    let pool = scene.repository.root.join("pool");
    fs::rename(outside, pool.join(format!("release-{seed}"))).unwrap();
    let before = pool.join(format!("release-{}", seed.wrapping_sub(1)));
    if before.exists() {
        fs::remove_dir_all(before).unwrap();
    }
}

/// Waits until the volunteers have received so many thousandths of what all of them need, or for a moment when nothing
/// comes any more.
fn wait_for_part(scene: &Scene, from: u64, thousandths: u64) {
    let wanted = from + VOLUNTEERS as u64 * RELEASE_BYTES * thousandths / 1_000;
    let (mut last, mut since) = (0, Instant::now());
    scene
        .wait("a part of the release to be copied", || {
            let now = received(scene);
            if now > last + 20_000 {
                (last, since) = (now, Instant::now());
            }
            Ok(now >= wanted || since.elapsed() > Duration::from_secs(2))
        })
        .unwrap();
}

/// Copies one release to all mirrors, with so many kills under way.
fn copied(scene: &mut Scene, seed: u64, kills: u64) -> Cost {
    let mut chance = Chance(seed);
    let mut moments: Vec<u64> = (0..kills).map(|_| chance.below(1_000)).collect();
    moments.sort_unstable();
    let counted_before: Vec<u64> = settled(scene);
    let before = received(scene);
    release(scene, seed);
    let mut cost = Cost::default();
    let mut restarted = [false; VOLUNTEERS];
    let mut dead: Option<Victim> = None;
    for moment in moments {
        wait_for_part(scene, before, moment);
        revive(scene, dead.take());
        let victim = match chance.below(VOLUNTEERS as u64 + 1) as usize {
            VOLUNTEERS => Victim::Control,
            index => Victim::Volunteer(index),
        };
        match victim {
            Victim::Control => {
                cost.control_kills += 1;
                scene.cluster.kill_control().unwrap();
            }
            Victim::Volunteer(index) => {
                cost.volunteer_kills += 1;
                restarted[index] = true;
                scene.cluster.volunteer_mut(index).unwrap().kill().unwrap();
            }
        }
        eprintln!("seed {seed}: {victim:?} killed at {moment} thousandths");
        // Half of them stay dead until the next kill.
        match chance.below(2) {
            0 => revive(scene, Some(victim)),
            _ => dead = Some(victim),
        }
    }
    revive(scene, dead);
    scene.wait_until_same(PATIENCE).unwrap();
    checked(scene);
    cost.wire = received(scene) - before;
    let bundles = scene.cluster.ctl(&["swarm"]).unwrap()["bundles"].clone();
    let sizes = bundles.as_array().unwrap().iter().filter_map(|bundle| bundle["piece_bytes"].as_u64());
    cost.piece_bytes = sizes.max().unwrap();
    let all = scene.cluster.volunteers().iter().zip(settled(scene)).zip(&counted_before);
    let kept = all.zip(restarted).map(|(((volunteer, now), before), restarted)| match restarted {
        // Of what it fetched before, what it found again counts.
        true => now + resumed(&volunteer.process().unwrap().log().unwrap()),
        false => now - before,
    });
    let kept: Vec<u64> = kept.collect();
    eprintln!("seed {seed}: kept {kept:?} of {RELEASE_BYTES} each, restarted {restarted:?}");
    cost.kept = kept.into_iter().sum();
    cost
}

fn revive(scene: &mut Scene, dead: Option<Victim>) {
    match dead {
        Some(Victim::Control) => scene.cluster.start_control().unwrap(),
        Some(Victim::Volunteer(index)) => scene.cluster.start_volunteer(index).unwrap(),
        None => {}
    }
}

/// What each volunteer says that it fetched since its start, when heartbeats have brought the last of it.
fn settled(scene: &Scene) -> Vec<u64> {
    let mut told = (Vec::new(), Instant::now());
    scene
        .wait("the volunteers to have told what they fetched", || {
            let now = counted(scene);
            if now != told.0 {
                told = (now, Instant::now());
            }
            Ok(told.1.elapsed() > Duration::from_secs(2))
        })
        .unwrap();
    told.0
}

fn counted(scene: &Scene) -> Vec<u64> {
    let nodes = scene.cluster.ctl(&["node", "list"]).unwrap();
    let of = |name: &str| {
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == name).unwrap();
        let count = |what: &str| node["sync"]["transfer"][what].as_u64().unwrap_or(0);
        count("origin_bytes") + count("peer_bytes") + count("wasted_bytes")
    };
    scene.cluster.volunteers().iter().map(|volunteer| of(volunteer.name())).collect()
}

/// What a volunteer found of the release when it was started the last time: pieces, and contents that were whole.
fn resumed(log: &str) -> u64 {
    let field = |line: &str| line.split("here=").nth(1)?.split_whitespace().next()?.parse::<u64>().ok();
    log.lines().filter(|line| line.contains("goes on with the pieces that are here")).filter_map(field).sum()
}

/// Fails unless the checksums of each mirror's files are the repository's.
fn checked(scene: &Scene) {
    let sums = |root: &Path| {
        let script = "find . -type f -print0 | sort -z | xargs -0 sha256sum";
        let done = Command::new("sh").args(["-c", script]).current_dir(root).output().unwrap();
        assert!(done.status.success() && !done.stdout.is_empty());
        done.stdout
    };
    let right = sums(&scene.repository.root);
    for volunteer in scene.cluster.volunteers() {
        assert!(sums(&volunteer.state().join("tree")) == right, "{} differs", volunteer.name());
    }
}

#[test]
fn killed_at_random_moments_all_mirrors_end_equal_and_little_is_fetched_twice() {
    let asked = std::env::var("FRESHET_KILL_SEEDS").unwrap_or_else(|_| "1-3".to_owned());
    let (first, last) = asked.split_once('-').expect("seeds as 1-50");
    let seeds: std::ops::RangeInclusive<u64> = first.parse().unwrap()..=last.parse().unwrap();
    let mut scene = Scene::without_volunteers(&SceneOptions::default()).unwrap();
    if let Backend::Loopback { .. } = scene.testbed.backend() {
        let why = "counting what each volunteer receives needs network namespaces, so root";
        return skip("killed_at_random_moments_all_mirrors_end_equal_and_little_is_fetched_twice", why);
    }
    for number in 1..=VOLUNTEERS {
        let link = Link::new().rate(Rate::mbit(MBIT));
        scene.cluster.add_volunteer(&scene.testbed, &format!("volunteer-{number}"), &link).unwrap();
    }
    scene.wait_for_sync().unwrap();
    scene.wait_until_same(PATIENCE).unwrap();

    // What headers, questions and heartbeats add to a release that nobody disturbs.
    let calm = copied(&mut scene, 1_000, 0);
    let needed = VOLUNTEERS as u64 * RELEASE_BYTES;
    assert!(calm.kept >= needed && calm.wire >= needed, "{calm:?}");
    let mut sum = Cost::default();
    for seed in seeds.clone() {
        let cost = copied(&mut scene, 1_000 + seed, 1 + seed % 4);
        // A volunteer has 20 requests under way, and the others one each with it; control serves 4 of each.
        let connections =
            cost.volunteer_kills * (20 + VOLUNTEERS as u64 - 1) + cost.control_kills * 4 * VOLUNTEERS as u64;
        let (again, most) = (cost.wire as i64 - calm.wire as i64, connections * cost.piece_bytes);
        eprintln!(
            "seed {seed}: {} volunteers and {} times control killed; {again:+} bytes on the wires against a calm \
             release ({} bytes), at most {most} of pieces under way; {:+} bytes counted as fetched twice after a restart",
            cost.volunteer_kills,
            cost.control_kills,
            calm.wire,
            cost.kept as i64 - needed as i64,
        );
        // Heartbeats and questions go on while somebody is away.
        let chatter = calm.wire / 20;
        assert!(again <= (most + most / 10 + chatter) as i64, "{cost:?} against {calm:?}");
        sum.wire += cost.wire;
        sum.kept += cost.kept;
        sum.volunteer_kills += cost.volunteer_kills;
        sum.control_kills += cost.control_kills;
    }
    let count = seeds.count() as u64;
    let again = sum.wire as f64 - (count * calm.wire) as f64;
    eprintln!(
        "{count} releases of {RELEASE_BYTES} bytes to {VOLUNTEERS} mirrors, {} volunteers and {} times control killed: \
         all equal; {:.0} bytes more on the wires for each kill, {} counted as fetched twice after restarts",
        sum.volunteer_kills,
        sum.control_kills,
        again / (sum.volunteer_kills + sum.control_kills) as f64,
        sum.kept as i64 - (count * needed) as i64,
    );
}
