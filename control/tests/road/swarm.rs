//! The swarm as volunteers see it: bundles, leases, peers, and what is released when.

use std::collections::BTreeSet;
use std::time::Duration;

use freshet_api::admin::{PublishView, StatusView, SwarmView};
use freshet_api::bundle::{Bundle, BundleId, Object};
use freshet_api::heartbeat::HeartbeatReply;
use freshet_api::recipe::Recipe;
use freshet_api::swarm::{BundleList, Runs, SwarmPoll, SwarmReply};
use freshet_api::{ContentHash, SyncKey, SyncToken};
use reqwest::{Method, StatusCode};

use crate::stage::{BIG, Caller, INDEX, SMALL, Stage, Volunteer, content, put, within};

/// A poll of somebody who has nothing and says so.
pub(crate) fn first_poll(bundle: BundleId, leases: u32) -> SwarmPoll {
    SwarmPoll { whole: true, leases, ..SwarmPoll::of(bundle) }
}

pub(crate) async fn poll(volunteer: &Volunteer, poll: &SwarmPoll) -> SwarmReply {
    volunteer.caller.ok(Method::POST, "swarm", poll).await
}

pub(crate) async fn bundles(volunteer: &Volunteer) -> Vec<(BundleId, Bundle)> {
    let list: BundleList = volunteer.caller.ok(Method::GET, "bundles", &()).await;
    let mut bundles = Vec::new();
    for listed in list.bundles {
        let answer = volunteer.caller.send(Method::GET, &format!("bundle/{}", listed.id), Vec::new()).await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        bundles.push((listed.id, Bundle::decode(listed.id, &answer.bytes().await.unwrap()).unwrap()));
    }
    bundles
}

/// Waits as `ctl publish` does.
pub(crate) async fn publish(operator: &Caller) -> PublishView {
    let mut view: PublishView = operator.ok(Method::POST, "admin/publish", &()).await;
    within(async {
        while !view.done {
            tokio::time::sleep(Duration::from_millis(20)).await;
            view = operator.ok(Method::GET, &format!("admin/publish/{}", view.walk), &()).await;
        }
        view
    })
    .await
}

/// What can be had from them.
fn contents(bundles: &[(BundleId, Bundle)]) -> BTreeSet<ContentHash> {
    let objects = bundles.iter().flat_map(|(_, bundle)| &bundle.objects);
    let own = |object: &Object| object.members.is_empty().then_some(object.content);
    objects
        .flat_map(|object| own(object).into_iter().chain(object.members.iter().map(|member| member.content)))
        .collect()
}

/// Fetches a piece from the origin as a volunteer does.
async fn piece(stage: &Stage, reply: &HeartbeatReply, bundle: &Bundle, number: u32) -> Vec<u8> {
    let place = bundle.place(&bundle.spans(), number).unwrap();
    let url = format!("{}/blob/{}", reply.origin_sync_url, bundle.objects[place.object].content);
    let range = format!("bytes={}-{}", place.range.start, place.range.end - 1);
    let request = stage.customer().get(&url).bearer_auth(&reply.sync_token).header("range", range);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{url}");
    answer.bytes().await.unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_has_every_content_of_the_release_and_every_piece_is_what_it_says() {
    let stage = Stage::new().await;
    let mut south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    let beat = south.beat().await;
    let bundles = bundles(&south).await;
    for (id, bundle) in &bundles {
        let reply = poll(&south, &first_poll(*id, 256)).await;
        assert!(!reply.closed && !reply.complete && !reply.want_whole && reply.peers.is_empty());
        assert!((50..=10_000).contains(&reply.interval_ms));
        let mut leased: Vec<u32> = reply.leases.iter().map(|lease| lease.piece).collect();
        leased.sort_unstable();
        assert!(leased.iter().copied().eq(0..bundle.len()), "alone, it is given everything");
        for number in leased {
            let bytes = piece(&stage, &beat, bundle, number).await;
            assert_eq!(ContentHash::from(blake3::hash(&bytes)), bundle.pieces[number as usize]);
        }
    }
    let expected = [(BIG, 300_000), (SMALL, 100), (INDEX, 90_000), ("pool/other.iso", 200_000)]
        .map(|(path, size)| ContentHash::of(&content(path, size)));
    assert_eq!(contents(&bundles), BTreeSet::from(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_state_is_released_with_a_bundle_of_what_is_new_and_nothing_else() {
    let mut stage = Stage::new().await;
    let mut south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    let before = south.beat().await.manifest_sequence;
    let old: Vec<BundleId> = bundles(&south).await.into_iter().map(|(id, _)| id).collect();
    let new = content("new", 400_000);
    put(stage.repo(), "pool/new.deb", &new);
    put(stage.repo(), "pool/twin.iso", &content("pool/other.iso", 200_000));
    let view = publish(&stage.operator()).await;
    assert!(view.released > before && south.manifest().await.files.len() == 6);
    let fresh: Vec<(BundleId, Bundle)> =
        bundles(&south).await.into_iter().filter(|(id, _)| !old.contains(id)).collect();
    let bytes: u64 = fresh.iter().map(|(_, bundle)| bundle.bytes()).sum();
    assert_eq!(bytes, 400_000, "the twin's content was there already");

    // A restart neither makes anything again nor forgets anything.
    let known = bundles(&south).await;
    let sequence = south.beat().await.manifest_sequence;
    stage.stop().await;
    let files = listed(&stage);
    stage.start().await;
    south.find(stage.state());
    assert_eq!(south.beat().await.manifest_sequence, sequence);
    assert!(bundles(&south).await == known);
    assert_eq!(listed(&stage), files, "no file was written anew");
}

/// Files of the swarm in control's state with their times.
fn listed(stage: &Stage) -> Vec<(std::path::PathBuf, std::time::SystemTime)> {
    let mut files: Vec<_> = ["bundles", "spool"]
        .iter()
        .flat_map(|directory| std::fs::read_dir(stage.state().join(directory)).unwrap())
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap()))
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_bundle_is_made_again() {
    let mut stage = Stage::new().await;
    let mut south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    let known = contents(&bundles(&south).await);
    for damage in ["bundles", "spool"] {
        stage.stop().await;
        for entry in std::fs::read_dir(stage.state().join(damage)).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() != "index.json" {
                std::fs::write(path, b"torn").unwrap();
            }
        }
        stage.start().await;
        south.find(stage.state());
        south.beat().await;
        assert_eq!(contents(&bundles(&south).await), known, "{damage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_piece_is_named_to_who_lacks_it_with_a_token_for_its_port() {
    let stage = Stage::new().await;
    let mut south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    let mut north = stage.volunteer("north", "http://192.0.2.2:8080").await;
    for (volunteer, url) in [(&mut south, "http://192.0.2.1:8081"), (&mut north, "http://192.0.2.2:8081")] {
        volunteer.next.sync_url = Some(url.into());
        volunteer.beat().await;
    }
    let (id, bundle) = bundles(&south).await.remove(0);
    let given = poll(&south, &first_poll(id, 256)).await.leases;
    assert!(!given.is_empty());
    let reply = poll(&north, &first_poll(id, 256)).await;
    assert!(reply.leases.iter().all(|lease| !given.iter().any(|other| other.piece == lease.piece)));
    let [peer] = reply.peers.as_slice() else { panic!("{:?}", reply.peers) };
    assert_eq!((peer.node, peer.url.as_str()), (south.node, "http://192.0.2.1:8081"));
    let token = SyncToken::open(&peer.token, &SyncKey::of_volunteer(&south.ticket_key), 0).unwrap();
    assert_eq!(token.node, north.node);
    assert!(SyncToken::open(&peer.token, &SyncKey::of_volunteer(&north.ticket_key), 0).is_err());

    // One that went without having all is asked for everything when it is back.
    let gone = SwarmPoll { leaving: true, ..first_poll(id, 0) };
    poll(&north, &gone).await;
    let news = SwarmPoll { whole: false, ..first_poll(id, 1) };
    assert!(poll(&north, &news).await.want_whole);
    // One that is done lets the others be done too.
    let all: Runs = (0..bundle.len()).collect();
    for volunteer in [&south, &north] {
        let done = SwarmPoll { have: all.clone(), ..first_poll(id, 0) };
        poll(volunteer, &done).await;
    }
    stage
        .eventually(|_| async {
            let news = SwarmPoll { whole: false, ..first_poll(id, 0) };
            poll(&south, &news).await.complete
        })
        .await;
    let unknown = first_poll(BundleId(ContentHash([7; 32])), 5);
    assert!(poll(&north, &unknown).await.closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_told_anything_of_the_swarm() {
    let stage = Stage::new().await;
    let south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    let (id, _) = bundles(&south).await.remove(0);
    let operator = stage.operator();
    for path in ["bundles".to_owned(), format!("bundle/{id}")] {
        assert_eq!(operator.refused(Method::GET, &path, &()).await.0, StatusCode::UNAUTHORIZED);
    }
    let refused = operator.refused(Method::POST, "swarm", &first_poll(id, 1)).await;
    assert_eq!(refused.0, StatusCode::UNAUTHORIZED);
    assert_eq!(south.caller.refused(Method::GET, "bundle/xyz", &()).await.0, StatusCode::BAD_REQUEST);
    let other = format!("bundle/{}", "0".repeat(64));
    assert_eq!(south.caller.refused(Method::GET, &other, &()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(south.caller.refused(Method::POST, "swarm", &"rubbish").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_ends_when_volunteers_are_told_and_ctl_shows_the_swarm() {
    let stage = Stage::new().await;
    let mut south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    south.beat().await;
    put(stage.repo(), "pool/late.deb", &content("late", 500_000));
    let operator = stage.operator();
    let view = publish(&operator).await;
    assert_eq!(stage.get("pool/late.deb").await.status(), StatusCode::OK);
    assert_eq!(south.beat().await.manifest_sequence, view.released);
    assert!(south.manifest().await.files.iter().any(|file| file.path.as_str() == "pool/late.deb"));

    let late = ContentHash::of(&content("late", 500_000));
    let listed = bundles(&south).await;
    let (id, bundle) = listed.into_iter().find(|(_, bundle)| bundle.objects[0].content == late).unwrap();
    let leases = poll(&south, &first_poll(id, 3)).await.leases;
    let swarm: SwarmView = operator.ok(Method::GET, "admin/swarm", &()).await;
    let shown = swarm.bundles.iter().find(|shown| shown.id == id.to_string()).unwrap();
    assert_eq!((shown.bytes, shown.pieces, shown.leases), (500_000, bundle.len(), leases.len() as u64));
    let [member] = shown.members.as_slice() else { panic!("{shown:?}") };
    assert_eq!((member.name.as_str(), member.lacks, member.leases), ("south", bundle.len(), 3));
    assert!(!shown.complete && swarm.summary.released == view.released);
    let status: StatusView = operator.ok(Method::GET, "admin/status", &()).await;
    assert_eq!((status.swarm.released, status.swarm.bundles), (view.released, swarm.bundles.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_index_travels_as_a_recipe_that_the_origin_serves() {
    let stage = Stage::new().await;
    let mut south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    let before = south.beat().await.manifest_sequence;
    let mut changed = content(INDEX, 90_000);
    changed[50_000] ^= 1;
    put(stage.repo(), INDEX, &changed);
    assert!(publish(&stage.operator()).await.released > before);
    let target = ContentHash::of(&changed);
    let (_, bundle) = bundles(&south).await.pop().unwrap();
    let [made] = bundle.recipes.as_slice() else { panic!("{:?}", bundle.recipes) };
    assert_eq!((made.target, made.target_size), (target, 90_000));
    assert_eq!(made.bases, [ContentHash::of(&content(INDEX, 90_000))]);
    assert!(bundle.bytes() < 2_000, "a recipe instead of 90,000 bytes: {}", bundle.bytes());
    let beat = south.beat().await;
    let wire = south.get(&format!("{}/blob/{}", beat.origin_sync_url, made.recipe), &beat.sync_token).await;
    let recipe = Recipe::decode(&wire).unwrap();
    assert_eq!((recipe.target, recipe.size), (target, 90_000));
    // Who cannot use it has the whole from the origin.
    let whole = south.get(&format!("{}/blob/{target}", beat.origin_sync_url), &beat.sync_token).await;
    assert!(whole == changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_takes_nothing_delays_no_release() {
    let stage = Stage::new().await;
    let south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    // Files where directories were: nothing can be written there, whoever tries.
    for (directory, bundled) in [("spool", true), ("bundles", false)] {
        let known: Vec<BundleId> = bundles(&south).await.into_iter().map(|(id, _)| id).collect();
        let place = stage.state().join(directory);
        std::fs::rename(&place, place.with_extension("away")).unwrap();
        std::fs::write(&place, b"").unwrap();
        let paths = ["a", "b"].map(|half| format!("pool/{directory}-{half}.deb"));
        for path in &paths {
            put(stage.repo(), path, &content(path, 5_000));
        }
        publish(&stage.operator()).await;
        let files = south.manifest().await.files;
        assert!(paths.iter().all(|path| files.iter().any(|file| file.path.as_str() == path)));
        std::fs::remove_file(&place).unwrap();
        std::fs::rename(place.with_extension("away"), &place).unwrap();
        let new = bundles(&south).await.into_iter().filter(|(id, _)| !known.contains(id)).collect::<Vec<_>>();
        assert_eq!(!new.is_empty(), bundled, "{directory}");
        for (_, bundle) in new {
            assert!(
                bundle.objects.iter().all(|object| object.members.is_empty()),
                "there is no room for packs"
            );
        }
    }
}
