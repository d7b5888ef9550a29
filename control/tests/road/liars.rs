//! Who sends wrong pieces is caught, and who only says so of others catches nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use freshet_api::admin::{NodeState, NodeView};
use freshet_api::bundle::{Bundle, BundleId};
use freshet_api::swarm::{Complaint, Runs, SwarmPoll};
use freshet_api::{SyncKey, SyncToken, TicketKey};
use http::{HeaderMap, StatusCode};
use reqwest::Method;

use crate::stage::{BIG, Stage, Volunteer, content};
use crate::swarm::{bundles, first_poll, poll};

/// How a peer answers for pieces.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Conduct {
    Honest,
    /// One wrong byte.
    Liar,
    /// The right status, too few bytes.
    Short,
    /// It lacks everything.
    Refuses,
}

struct Peer {
    conduct: Conduct,
    key: SyncKey,
    asked: AtomicUsize,
}

/// The sync port of a volunteer that has [`BIG`].
async fn peer(ticket_key: &TicketKey, conduct: Conduct) -> (String, Arc<Peer>) {
    let peer = Arc::new(Peer { conduct, key: SyncKey::of_volunteer(ticket_key), asked: AtomicUsize::new(0) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(blob).with_state(Arc::clone(&peer));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, peer)
}

async fn blob(State(peer): State<Arc<Peer>>, headers: HeaderMap) -> impl IntoResponse {
    peer.asked.fetch_add(1, Ordering::Relaxed);
    let token = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    SyncToken::open(token, &peer.key, 0).unwrap();
    let range = headers["range"].to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let mut bytes = content(BIG, 300_000)[first.parse().unwrap()..=last.parse().unwrap()].to_vec();
    match peer.conduct {
        Conduct::Honest => {}
        Conduct::Liar => bytes[7] ^= 1,
        Conduct::Short => bytes.truncate(8),
        Conduct::Refuses => return (StatusCode::NOT_FOUND, Vec::new()),
    }
    (StatusCode::PARTIAL_CONTENT, bytes)
}

/// The bundle, and a piece of it that is of [`BIG`].
async fn piece(volunteer: &Volunteer) -> (BundleId, Bundle, u32) {
    let has = |bundle: &Bundle| bundle.objects.iter().position(|object| object.size == 300_000);
    let (id, bundle) =
        bundles(volunteer).await.into_iter().find(|(_, bundle)| has(bundle).is_some()).unwrap();
    let object = has(&bundle).unwrap();
    let first = bundle.spans()[object].start;
    (id, bundle, first + 1)
}

async fn join(stage: &Stage, name: &str, conduct: Conduct) -> (Volunteer, Arc<Peer>) {
    let mut volunteer = stage.ready(name, &format!("http://{name}.example:8080")).await;
    let (url, peer) = peer(&volunteer.ticket_key, conduct).await;
    volunteer.next.sync_url = Some(url);
    volunteer.beat().await;
    let (id, bundle, _) = piece(&volunteer).await;
    let all: Runs = (0..bundle.len()).collect();
    poll(&volunteer, &SwarmPoll { have: all, ..first_poll(id, 0) }).await;
    (volunteer, peer)
}

async fn complain(by: &Volunteer, about: &Volunteer, pieces: impl IntoIterator<Item = u32>) {
    let (id, ..) = piece(by).await;
    let complaints = pieces.into_iter().map(|piece| Complaint { peer: about.node, piece }).collect();
    poll(by, &SwarmPoll { whole: false, complaints, ..first_poll(id, 0) }).await;
}

async fn view(stage: &Stage, volunteer: &Volunteer) -> NodeView {
    stage.operator().ok(Method::GET, &format!("admin/nodes/{}", volunteer.node), &()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_banned_with_evidence_for_good_and_can_be_pardoned() {
    let mut stage = Stage::new().await;
    let (mut liar, _) = join(&stage, "liar", Conduct::Liar).await;
    let (honest, _) = join(&stage, "honest", Conduct::Honest).await;
    let (id, bundle, number) = piece(&honest).await;
    let beat = liar.beat().await;
    complain(&honest, &liar, [number]).await;
    stage
        .eventually(|stage| {
            let (stage, liar) = (stage, &liar);
            async move { view(stage, liar).await.state == NodeState::Banned }
        })
        .await;
    let reason = view(&stage, &liar).await.reason.unwrap();
    assert!(reason.contains(&bundle.pieces[number as usize].to_string()), "{reason}");
    // No customers, no leases, no peers, nothing from the origin.
    assert!(crate::stage::location(&stage.get(BIG).await).contains("honest"));
    let (status, words) = liar.caller.refused(Method::POST, "swarm", &first_poll(id, 5)).await;
    assert!(status == StatusCode::FORBIDDEN && words.contains("pardon"), "{words}");
    let url = format!("{}/blob/{}", beat.origin_sync_url, bundle.objects[0].content);
    let answer = stage.customer().get(&url).bearer_auth(&beat.sync_token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let newcomer = stage.volunteer("newcomer", "http://newcomer.example:8080").await;
    let peers = poll(&newcomer, &first_poll(id, 0)).await.peers;
    assert!(peers.iter().map(|peer| peer.node).eq([honest.node]), "{peers:?}");

    stage.stop().await;
    stage.start().await;
    assert_eq!(view(&stage, &liar).await.state, NodeState::Banned);
    let path = format!("admin/nodes/{}/pardon", liar.node);
    let pardoned: NodeView = stage.operator().ok(Method::POST, &path, &()).await;
    assert_ne!(pardoned.state, NodeState::Banned);
    liar.find(stage.state());
    assert!(!poll(&liar, &first_poll(id, 0)).await.closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_framed() {
    let stage = Stage::new().await;
    let mut accused = Vec::new();
    for (name, conduct) in
        [("honest", Conduct::Honest), ("short", Conduct::Short), ("refuses", Conduct::Refuses)]
    {
        accused.push(join(&stage, name, conduct).await);
    }
    let (slanderer, _) = join(&stage, "slanderer", Conduct::Honest).await;
    let (_, bundle, number) = piece(&slanderer).await;
    for (victim, peer) in &accused {
        complain(&slanderer, victim, [number]).await;
        stage.eventually(|_| async { peer.asked.load(Ordering::Relaxed) == 1 }).await;
    }
    // Of oneself, of nobody, of a piece that is none: not looked into.
    complain(&slanderer, &slanderer, [number]).await;
    complain(&slanderer, &accused[0].0, [bundle.len(), u32::MAX]).await;
    // In the end nobody listens to it.
    let (victim, peer) = &accused[0];
    let object = bundle.objects.iter().position(|object| object.size == 300_000).unwrap();
    let span = bundle.spans()[object].clone();
    let mut asked = 0;
    for piece in span.clone() {
        complain(&slanderer, victim, [piece]).await;
        stage
            .eventually(|_| async {
                let now = peer.asked.load(Ordering::Relaxed);
                now > asked || now >= HEARD_MAX
            })
            .await;
        asked = peer.asked.load(Ordering::Relaxed);
    }
    // Those that were under way when the last one was counted may come on top.
    assert!(asked <= HEARD_MAX + UNDER_WAY_MAX && span.len() > HEARD_MAX + UNDER_WAY_MAX, "{asked} looks");
    for (volunteer, _) in &accused {
        assert_eq!(view(&stage, volunteer).await.state, NodeState::Active);
    }
    assert_eq!(view(&stage, &slanderer).await.state, NodeState::Active);
}

/// Refuted complaints about one volunteer that are looked into.
const HEARD_MAX: usize = 5;
/// Looks at once.
const UNDER_WAY_MAX: usize = 4;
