//! The repository is published again and again, and customers who come at any moment find index and packages that
//! belong together.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use freshet_testbed::skip;
use freshet_tests::{Apt, Archive, PATIENCE, Scene, SceneOptions};

const PUBLISHES: u32 = 20;

/// One customer who updates and downloads until it is told to stop; counts its rounds.
fn customer(apt: &Apt, rounds: &AtomicU32, stop: &AtomicBool) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        apt.get(&["update"])?;
        // apt compares each package with what the index says, and the index with what `Release` says.
        apt.get(&[&["download"], Archive::changing().as_slice()].concat())?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn apt_in_a_loop_never_sees_a_mix_of_states() {
    let scene = Scene::start(&SceneOptions::default()).unwrap();
    if !scene.repository.serves_apt() {
        let why = format!("there are no packages: {:?}", scene.repository.kind);
        skip("apt_in_a_loop_never_sees_a_mix_of_states", &why);
        return;
    }
    let mut archive = Archive::open(&scene.repository.root, &scene.scratch("workshop").unwrap()).unwrap();
    archive.publish().unwrap();
    scene.cluster.ctl(&["publish"]).unwrap();

    let apts: Vec<Apt> = (0..2)
        .map(|number| {
            let root = scene.scratch(&format!("apt-{number}")).unwrap();
            Apt::new(&scene.customer, &root, &scene.cluster.url("")).unwrap()
        })
        .collect();
    let rounds: Vec<AtomicU32> = apts.iter().map(|_| AtomicU32::new(0)).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let customers: Vec<_> = apts
            .iter()
            .zip(&rounds)
            .map(|(apt, rounds)| scope.spawn(|| customer(apt, rounds, &stop)))
            .collect();
        let finished = || customers.iter().any(|customer| customer.is_finished());
        let round = || rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed)).collect::<Vec<_>>();
        for _ in 0..PUBLISHES {
            let before = round();
            archive.publish().unwrap();
            scene.cluster.ctl(&["publish"]).unwrap();
            // One whole round at least begins in each state and ends in it or the next.
            let waited = scene.wait("the customers to have come round", || {
                Ok(finished() || round().iter().zip(&before).all(|(now, before)| now > before))
            });
            if waited.is_err() || finished() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        for customer in customers {
            customer.join().unwrap().unwrap_or_else(|error| panic!("after {:?} rounds: {error:#}", round()));
        }
    });
    let rounds: u32 = rounds.into_iter().map(AtomicU32::into_inner).sum();
    eprintln!("{rounds} rounds of update and download during {PUBLISHES} publishes");
    assert!(rounds >= 2 * PUBLISHES);
    assert!(scene.control_count("/front_door/redirects").unwrap() > 0, "no volunteer was asked for anything");
    // In the end the mirrors are what was published last.
    scene.wait_until_same(PATIENCE).unwrap();
}
