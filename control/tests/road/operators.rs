//! What operators see and command.

use freshet_api::admin::{ExplainView, NodeState, NodeView, StatusView, WhereView};
use freshet_api::heartbeat::Readiness;
use reqwest::{Method, StatusCode};

use crate::stage::{BIG, SMALL, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_volunteer_gets_no_customers_until_it_is_resumed() {
    let stage = Stage::new().await;
    let mut south = stage.ready("south", "http://192.0.2.1:8080").await;
    let view: NodeView = stage.operator().ok(Method::POST, "admin/nodes/south/drain", &()).await;
    assert_eq!(view.state, NodeState::Draining);
    assert!(south.beat().await.draining);
    assert_eq!(stage.get(BIG).await.status(), StatusCode::OK);
    let path = format!("admin/nodes/{}/resume", south.node);
    let view: NodeView = stage.operator().ok(Method::POST, &path, &()).await;
    assert_eq!(view.state, NodeState::Active);
    assert_eq!(stage.get(BIG).await.status(), StatusCode::FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_volunteer_says_why() {
    let stage = Stage::new().await;
    let mut south = stage.ready("south", "http://192.0.2.1:8080").await;
    south.next.readiness = Readiness::Closed { why: "outside its hours".into() };
    south.beat().await;
    stage
        .eventually(|stage| async move {
            let view: NodeView = stage.operator().ok(Method::GET, "admin/nodes/south", &()).await;
            view.state == NodeState::Closed
        })
        .await;
    assert_eq!(stage.get(BIG).await.status(), StatusCode::OK);
    let view: NodeView = stage.operator().ok(Method::GET, "admin/nodes/south", &()).await;
    assert_eq!((view.state, view.reason.as_deref()), (NodeState::Closed, Some("outside its hours")));
    let explain: ExplainView = stage
        .operator()
        .ok(Method::GET, &format!("admin/explain?path={}", BIG.replace('+', "%2B")), &())
        .await;
    assert_eq!(explain.considered[0].excluded.as_deref(), Some("outside its hours"));
    assert!(explain.decision.contains("no volunteer"), "{}", explain.decision);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_volunteer_is_gone_at_once() {
    let stage = Stage::new().await;
    let south = stage.ready("south", "http://192.0.2.1:8080").await;
    let view: NodeView = stage.operator().ok(Method::DELETE, "admin/nodes/south", &()).await;
    assert_eq!(view.node, south.node);
    assert_eq!(stage.get(BIG).await.status(), StatusCode::OK);
    let (status, text) = south.caller.refused(Method::POST, "heartbeat", &south.next).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(text.contains("join again"), "{text}");
    assert_eq!(
        stage.operator().refused(Method::GET, "admin/nodes/south", &()).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_explain_and_status_tell_what_is_so() {
    let stage = Stage::new().await;
    let operator = stage.operator();
    let mut south = stage.ready("south", "http://192.0.2.1:8080").await;
    south.next.donated_rate = Some(freshet_api::BytesPerSec(2_000_000));
    south.beat().await;
    let _fast = stage.ready("north", "http://192.0.2.2:8080").await;
    let _empty = stage.volunteer("west", "http://192.0.2.3:8080").await;
    stage.invite("east").await;
    let big = BIG.replace('+', "%2B");

    let found: WhereView = operator.ok(Method::GET, &format!("admin/where?path={big}"), &()).await;
    assert_eq!((found.size, found.holders.len()), (300_000, 2));
    let (status, _) = operator.refused(Method::GET, "admin/where?path=nothing", &()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    stage
        .eventually(|stage| {
            let big = big.clone();
            async move {
                let path = format!("admin/explain?path={big}&client=192.0.2.99");
                let explain: ExplainView = stage.operator().ok(Method::GET, &path, &()).await;
                // 300,000 bytes at 2 MB/s, against 1 MB/s.
                let finish: Vec<_> = explain.considered.iter().map(|one| one.expected_finish_ms).collect();
                explain.chosen == Some(explain.considered[0].node)
                    && finish == [Some(150.0), Some(300.0), None]
                    && explain.considered[2].excluded.is_some()
            }
        })
        .await;
    let explain: ExplainView = operator.ok(Method::GET, &format!("admin/explain?path={SMALL}"), &()).await;
    assert!(explain.chosen.is_none() && explain.decision.contains("small"), "{}", explain.decision);

    let status: StatusView = operator.ok(Method::GET, "admin/status", &()).await;
    assert_eq!(status.nodes, [(NodeState::Active, 2), (NodeState::Lost, 1), (NodeState::Invited, 1)]);
    assert_eq!((status.catalog.files, status.front_door.redirects), (4, 0));
    let nodes: Vec<NodeView> = operator.ok(Method::GET, "admin/nodes", &()).await;
    assert_eq!(nodes.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_are_outstanding_until_they_are_delivered() {
    let stage = Stage::new().await;
    let mut south = stage.ready("south", "http://192.0.2.1:8080").await;
    assert_eq!(stage.get(BIG).await.status(), StatusCode::FOUND);
    let outstanding = async |stage: &Stage| -> u64 {
        let view: NodeView = stage.operator().ok(Method::GET, "admin/nodes/south", &()).await;
        view.outstanding_bytes
    };
    assert_eq!(outstanding(&stage).await, 300_000);
    south.next.delivery.body_bytes = 250_000;
    south.beat().await;
    assert_eq!(outstanding(&stage).await, 50_000);
    south.next.delivery.abandoned_bytes = 50_000;
    south.beat().await;
    assert_eq!(outstanding(&stage).await, 0);
}
