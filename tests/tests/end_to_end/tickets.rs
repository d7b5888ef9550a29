//! A ticket opens one file on one volunteer for a while, and nothing else.

use freshet_tests::{Answer, Scene, SceneOptions, raw_request};

/// A redirect taken apart: who, and the path with the ticket behind `?t=`.
struct Redirect {
    volunteer: std::net::SocketAddr,
    path: String,
    ticket: String,
}

fn redirect(scene: &Scene, path: &str) -> Redirect {
    let mut answer = None;
    // While no volunteer is heard of in time, the origin serves the file itself.
    scene
        .wait("a redirect", || {
            let asked = Answer::get(&scene.customer, scene.cluster.front_door(), &format!("/{path}"))?;
            answer = (asked.status == 302).then_some(asked);
            Ok(answer.is_some())
        })
        .unwrap();
    let answer = answer.unwrap();
    let (volunteer, target) = answer.location().unwrap();
    let (path, query) = target.split_once('?').unwrap();
    let ticket = query.strip_prefix("t=").unwrap();
    Redirect { volunteer, path: path.to_owned(), ticket: ticket.to_owned() }
}

/// Asks and expects a refusal in words that a customer understands.
fn refused(scene: &Scene, addr: std::net::SocketAddr, target: &str) {
    let answer = Answer::get(&scene.customer, addr, target).unwrap();
    assert_eq!(answer.status, 403, "{target}: {}", answer.text());
    let text = answer.text();
    // It says what to do: ask the front door.
    assert!(text.contains("front door") && text.len() < 2000, "{text}");
}

#[test]
fn an_altered_or_foreign_ticket_is_refused_and_counted() {
    let scene = Scene::start(&SceneOptions::default()).unwrap();
    let files = scene.large_files().unwrap();
    let Redirect { volunteer, path, ticket } = redirect(&scene, &files[0].path);
    let good = format!("{path}?t={ticket}");
    assert_eq!(Answer::get(&scene.customer, volunteer, &good).unwrap().body.len() as u64, files[0].size);

    let count = |name: &str| scene.volunteers_count(&format!("/delivery/{name}")).unwrap();
    let before = (count("tickets_forged"), count("tickets_malformed"), count("tickets_missing"));

    // Every character counts, from the first to the last.
    let mut altered = 0;
    for position in [0, 1, ticket.len() / 3, ticket.len() / 2, ticket.len() - 3] {
        let other = if ticket.as_bytes()[position] == b'A' { "B" } else { "A" };
        let mut changed = ticket.clone();
        changed.replace_range(position..=position, other);
        refused(&scene, volunteer, &format!("{path}?t={changed}"));
        altered += 1;
    }
    // For another file.
    refused(&scene, volunteer, &format!("/{}?t={ticket}", files[1].path));
    // For another volunteer.
    let other = scene.cluster.volunteers().iter().find(|other| other.delivery() != volunteer).unwrap();
    refused(&scene, other.delivery(), &good);
    // Cut short, empty, and none at all.
    refused(&scene, volunteer, &format!("{path}?t={}", &ticket[..ticket.len() / 2]));
    refused(&scene, volunteer, &format!("{path}?t="));
    refused(&scene, volunteer, &path);

    scene
        .wait("the refusals to be counted", || {
            let refused = (count("tickets_forged") + count("tickets_malformed") + count("tickets_missing"))
                - (before.0 + before.1 + before.2);
            Ok(refused == altered + 5)
        })
        .unwrap();
    assert!(count("tickets_forged") > before.0);
    assert!(count("tickets_missing") > before.2);
    // The good one still opens what it is for.
    assert_eq!(Answer::get(&scene.customer, volunteer, &good).unwrap().status, 200);
}

#[test]
fn an_expired_ticket_is_refused_and_counted() {
    let scene =
        Scene::start(&SceneOptions { volunteers: 1, ticket_secs: 10, ..SceneOptions::default() }).unwrap();
    let file = scene.large_files().unwrap().pop().unwrap();
    let Redirect { volunteer, path, ticket } = redirect(&scene, &file.path);
    let target = format!("{path}?t={ticket}");
    let head =
        format!("HEAD {target} HTTP/1.1\r\nHost: {volunteer}\r\nConnection: close\r\n\r\n").into_bytes();
    let status = || Ok(raw_request(&scene.customer, volunteer, head.clone())?.status);
    assert_eq!(status().unwrap_or_else(|error: anyhow::Error| panic!("{error}")), 200);
    scene.wait("the ticket to expire", || Ok(status()? == 403)).unwrap();
    let answer = Answer::get(&scene.customer, volunteer, &target).unwrap();
    assert_eq!(answer.status, 403);
    assert!(answer.text().contains("expired"), "{}", answer.text());
    scene
        .wait("the refusals to be counted", || Ok(scene.volunteers_count("/delivery/tickets_expired")? >= 2))
        .unwrap();
    // Another ticket is to be had for the asking.
    let again = redirect(&scene, &file.path);
    let target = format!("{}?t={}", again.path, again.ticket);
    assert_eq!(Answer::get(&scene.customer, again.volunteer, &target).unwrap().status, 200);
}

#[test]
fn a_removed_volunteer_gets_no_customers() {
    let scene = Scene::start(&SceneOptions { volunteers: 1, ..SceneOptions::default() }).unwrap();
    let file = scene.large_files().unwrap().swap_remove(0);
    redirect(&scene, &file.path);
    scene.cluster.ctl(&["node", "remove", "--yes", "volunteer-1"]).unwrap();
    let target = format!("/{}", file.path);
    scene.wait("the origin to serve in its place", || Ok(scene.status(&target)? == 200)).unwrap();
    assert!(scene.cluster.ctl(&["node", "show", "volunteer-1"]).is_err());
}

#[test]
fn a_join_string_works_once() {
    let scene = Scene::without_volunteers(&SceneOptions::default()).unwrap();
    let added = scene.cluster.ctl(&["node", "add", "once"]).unwrap();
    let join = added["join"].as_str().unwrap().to_owned();
    let state = scene.scratch("first").unwrap();
    let first = scene.cluster.join(&scene.customer, &join, &state, None).unwrap();
    assert!(first.status.success(), "{}", first.stderr);
    let second = scene.cluster.join(&scene.customer, &join, &scene.scratch("second").unwrap(), None).unwrap();
    assert!(!second.status.success());
    // One with a bit changed in the fingerprint speaks to nobody.
    let third = scene.cluster.ctl(&["node", "add", "third"]).unwrap()["join"].as_str().unwrap().to_owned();
    let last = if third.ends_with('A') { "Q" } else { "A" };
    let forged = format!("{}{last}", &third[..third.len() - 1]);
    let joined =
        scene.cluster.join(&scene.customer, &forged, &scene.scratch("third").unwrap(), None).unwrap();
    assert!(!joined.status.success());
}
