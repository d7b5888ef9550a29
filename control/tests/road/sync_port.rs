//! What volunteers fetch from the origin.

use freshet_api::admin::StatusView;
use freshet_api::{ContentHash, NodeId, SyncKey, SyncToken};
use reqwest::{Method, StatusCode};

use crate::stage::{BIG, Stage, content};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_the_last_heartbeat_opens_every_blob() {
    let stage = Stage::new().await;
    let mut south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    let reply = south.beat().await;
    assert_eq!(reply.origin_sync_url, stage.control().addresses().sync_url);
    let manifest = south.manifest().await;
    assert_eq!((manifest.sequence, manifest.base), (reply.manifest_sequence, None));
    assert_eq!((manifest.files.len(), manifest.links.len()), (4, 1));
    for file in &manifest.files {
        let url = format!("{}/blob/{}", reply.origin_sync_url, file.content);
        let answer = stage.customer().get(&url).bearer_auth(&reply.sync_token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{}", file.path);
        assert_eq!(ContentHash::of(&answer.bytes().await.unwrap()), file.content);
    }
    stage
        .eventually(|stage| async move {
            let status: StatusView = stage.operator().ok(Method::GET, "admin/status", &()).await;
            status.sync_port.blobs == 4 && status.sync_port.body_bytes == 590_100
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_other_token_opens_anything() {
    let stage = Stage::new().await;
    let mut south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    let reply = south.beat().await;
    let wanted = ContentHash::of(&content(BIG, 300_000));
    let url = format!("{}/blob/{}", reply.origin_sync_url, wanted);
    let forged = SyncToken { node: NodeId(1), expires: u32::MAX }.seal(&SyncKey([0; 32]));
    for token in ["", "x", forged.as_str(), &reply.sync_token[1..]] {
        let answer = stage.customer().get(&url).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{token:?}");
    }
    assert_eq!(stage.customer().get(&url).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let unknown = format!("{}/blob/{}", reply.origin_sync_url, "0".repeat(64));
    let answer = stage.customer().get(&unknown).bearer_auth(&reply.sync_token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    // The front door opens no blobs, and the sync port no paths.
    assert_eq!(stage.get(&format!("blob/{}", wanted)).await.status(), StatusCode::NOT_FOUND);
    let path = format!("{}/{BIG}", reply.origin_sync_url);
    let answer = stage.customer().get(&path).bearer_auth(&reply.sync_token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let _: serde_json::Value = stage.operator().ok(reqwest::Method::DELETE, "admin/nodes/south", &()).await;
    let answer = stage.customer().get(&url).bearer_auth(&reply.sync_token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "its volunteer was removed");
}
