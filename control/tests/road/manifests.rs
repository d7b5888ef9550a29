//! How manifests reach many volunteers: by way of each other, with control as the one who knows who has what.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use bytes::Bytes;
use freshet_api::admin::{NodeState, NodeView, SwarmView};
use freshet_api::manifest::{
    Manifest, ManifestAsk, ManifestFailed, ManifestFrom, ManifestHeld, ManifestOffer,
};
use freshet_api::{ContentHash, SyncKey, SyncToken};
use http::HeaderMap;
use reqwest::{Method, StatusCode};

use crate::stage::{Stage, Volunteer, put};
use crate::swarm::publish;

/// A repository whose manifest is worth being handed on.
async fn stage() -> Stage {
    let stage = Stage::new().await;
    for number in 0..400 {
        put(stage.repo(), &format!("pool/many/{number}.deb"), format!("{number}").as_bytes());
    }
    publish(&stage.operator()).await;
    stage
}

/// The sync port of a volunteer that answers every question for a manifest with these bytes.
async fn port(volunteer: &Volunteer, answer: Bytes) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let state = Arc::new((SyncKey::of_volunteer(&volunteer.ticket_key), answer));
    let router = Router::new().route("/manifest/{hash}", axum::routing::get(manifest)).with_state(state);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

async fn manifest(State(port): State<Arc<(SyncKey, Bytes)>>, headers: HeaderMap) -> impl IntoResponse {
    let token = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    SyncToken::open(token, &port.0, 0).unwrap();
    port.1.clone()
}

async fn joined(stage: &Stage, name: &str) -> Volunteer {
    let mut volunteer = stage.volunteer(name, &format!("http://{name}.example:8080")).await;
    volunteer.beat().await;
    volunteer
}

async fn ask(volunteer: &Volunteer, failed: Option<ManifestFailed>) -> ManifestOffer {
    volunteer.caller.ok(Method::POST, "manifest", &ManifestAsk { since: None, failed }).await
}

async fn held(volunteer: &Volunteer, manifest: ContentHash) {
    let body = serde_json::to_vec(&ManifestHeld { manifest, serves: true }).unwrap();
    let answer = volunteer.caller.send(Method::POST, "manifest/held", body).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_gets_it_from_the_sync_port_and_the_next_from_the_first() {
    let stage = stage().await;
    let mut south = joined(&stage, "south").await;
    let north = joined(&stage, "north").await;
    let offer = ask(&south, None).await;
    assert_eq!(offer.from, ManifestFrom::Origin);
    // While it is on its way nobody else is sent to the origin for it.
    assert_eq!(ask(&north, None).await.from, ManifestFrom::Later);
    let beat = south.beat().await;
    let url = format!("{}/manifest/{}", beat.origin_sync_url, offer.manifest);
    let wire = south.get(&url, &beat.sync_token).await;
    assert_eq!((wire.len() as u64, ContentHash::of(&wire)), (offer.bytes, offer.manifest));
    assert!(Manifest::decode(&wire).unwrap() == south.manifest().await, "the API has the same");
    assert_eq!(
        stage.customer().get(&url).bearer_auth("x").send().await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
    let other = format!("{}/manifest/{}", beat.origin_sync_url, "0".repeat(64));
    let answer = stage.customer().get(&other).bearer_auth(&beat.sync_token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);

    south.next.sync_url = Some(port(&south, wire.into()).await);
    south.beat().await;
    // Who waits is told as soon as there is something to tell.
    let (offered, ()) = tokio::join!(ask(&north, None), held(&south, offer.manifest));
    let ManifestFrom::Peer(hint) = offered.from else { panic!("{offered:?}") };
    assert_eq!((hint.node, Some(&hint.url)), (south.node, south.next.sync_url.as_ref()));
    let token = SyncToken::open(&hint.token, &SyncKey::of_volunteer(&south.ticket_key), 0).unwrap();
    assert_eq!(token.node, north.node);
    held(&north, offer.manifest).await;

    let swarm: SwarmView = stage.operator().ok(Method::GET, "admin/swarm", &()).await;
    let shown = swarm.manifests.iter().find(|shown| shown.bytes == offer.bytes).unwrap();
    assert_eq!((shown.since, shown.from_origin, shown.from_peers, shown.failed), (None, 1, 1, 0));
    assert_eq!(shown.holders, 1, "the other one has no port");

    // What is small comes at once.
    let since = shown.sequence;
    let body = serde_json::to_vec(&ManifestAsk { since: Some(since), failed: None }).unwrap();
    let answer = south.caller.send(Method::POST, "manifest", body).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/octet-stream");
    assert_eq!(Manifest::decode(&answer.bytes().await.unwrap()).unwrap().base, Some(since));
    assert_eq!(south.caller.refused(Method::POST, "manifest", &"rubbish").await.0, StatusCode::BAD_REQUEST);
    let stranger = stage.operator().refused(Method::POST, "manifest", &ManifestAsk::default()).await;
    assert_eq!(stranger.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_another_manifest_is_banned_and_nobody_is_framed() {
    let stage = stage().await;
    let (mut honest, mut liar) = (joined(&stage, "honest").await, joined(&stage, "liar").await);
    let victim = joined(&stage, "victim").await;
    let offer = ask(&honest, None).await;
    let beat = honest.beat().await;
    let url = format!("{}/manifest/{}", beat.origin_sync_url, offer.manifest);
    let wire = honest.get(&url, &beat.sync_token).await;
    let mut wrong = wire.clone();
    wrong[99] ^= 1;
    honest.next.sync_url = Some(port(&honest, wire.into()).await);
    honest.beat().await;
    held(&honest, offer.manifest).await;
    let failed = |peer: &Volunteer| {
        Some(ManifestFailed { manifest: offer.manifest, peer: Some(peer.node), wrong: true })
    };
    let state = async |volunteer: &Volunteer| {
        let path = format!("admin/nodes/{}", volunteer.node);
        let view: NodeView = stage.operator().ok(Method::GET, &path, &()).await;
        (view.state, view.reason.unwrap_or_default())
    };
    // A slander of somebody it was sent to: control looks, and finds nothing.
    let ManifestFrom::Peer(hint) = ask(&victim, None).await.from else { panic!("nobody is named") };
    assert_eq!(hint.node, honest.node);
    ask(&victim, failed(&honest)).await;
    let swarm: SwarmView = stage.operator().ok(Method::GET, "admin/swarm", &()).await;
    let [suspect] = swarm.suspects.as_slice() else { panic!("{:?}", swarm.suspects) };
    assert_eq!((suspect.name.as_str(), suspect.accusers.as_slice()), ("honest", &["victim".to_owned()][..]));
    assert!(!suspect.avoided && suspect.believed == 1 && suspect.needed == 3, "{suspect:?}");

    liar.next.sync_url = Some(port(&liar, wrong.into()).await);
    liar.beat().await;
    held(&liar, offer.manifest).await;
    // Whom the honest one failed, as it says, is sent to the liar.
    let ManifestFrom::Peer(hint) = ask(&victim, None).await.from else { panic!("nobody is named") };
    assert_eq!(hint.node, liar.node);
    ask(&victim, failed(&liar)).await;
    stage
        .eventually(|_| {
            let (state, liar) = (&state, &liar);
            async move { state(liar).await.0 == NodeState::Banned }
        })
        .await;
    assert!(state(&liar).await.1.contains(&offer.manifest.to_string()), "{}", state(&liar).await.1);
    assert_ne!(state(&honest).await.0, NodeState::Banned);
}
