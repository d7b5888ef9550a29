//! What control still knows after a restart, and how volunteers give back the rest.

use freshet_api::admin::NodeView;
use reqwest::{Method, StatusCode};

use crate::stage::{BIG, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_control_knows_its_volunteers_and_asks_what_they_hold() {
    let mut stage = Stage::new().await;
    let mut south = stage.ready("south", "http://192.0.2.1:8080").await;
    south.next.interfaces[0].delivery.sent.bytes = 5_000;
    south.next.interfaces[0].sync.received.bytes = 70;
    south.beat().await;
    let before = stage.control().addresses().clone();
    stage.stop().await;
    stage.start().await;
    assert_eq!(stage.control().addresses().sync_listen, before.sync_listen, "the sync port stays");
    south.find(stage.state());
    assert_eq!(stage.get(BIG).await.status(), StatusCode::OK, "nobody was heard of yet");
    let reply = south.beat().await;
    assert!(reply.want_holdings);
    south.put_holdings().await;
    assert!(!south.beat().await.want_holdings);
    stage.eventually(|stage| async move { stage.get(BIG).await.status() == StatusCode::FOUND }).await;
    let view: NodeView = stage.operator().ok(Method::GET, "admin/nodes/south", &()).await;
    assert_eq!((view.ledger.delivered_bytes, view.ledger.synced_in_bytes), (5_000, 70));
    south.next.boot = 2;
    south.next.interfaces[0].epoch = 2;
    south.next.interfaces[0].delivery.sent.bytes = 11;
    south.beat().await;
    south.beat().await;
    let view: NodeView = stage.operator().ok(Method::GET, "admin/nodes/south", &()).await;
    assert_eq!(view.ledger.delivered_bytes, 5_011);
}
