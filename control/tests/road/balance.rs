//! What operators turn while control runs: knobs, limits and their end, shares, placement, and who is near to whom.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use freshet_api::admin::ExplainView;
use freshet_api::balance::{BalanceView, Change, Revert, SetKnob};
use freshet_api::heartbeat::HoldOffer;
use freshet_api::placement::{Expectation, Forget, PlacementView};
use freshet_api::{Bytes, BytesPerSec};
use reqwest::{Method, StatusCode};

use crate::stage::{BIG, Caller, Stage, content, location, put};

async fn set(operator: &Caller, knob: &str, value: &str) -> BalanceView {
    let set = SetKnob { knob: knob.into(), value: value.into() };
    operator.ok(Method::POST, "admin/balance", &set).await
}

fn value<'a>(view: &'a BalanceView, knob: &str) -> &'a str {
    view.knobs.iter().find(|one| one.knob == knob).map(|one| one.value.as_str()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn knobs_are_turned_kept_and_turned_back() {
    let mut stage = Stage::new().await;
    let operator = stage.operator();
    let view = set(&operator, "customer_wait_secs", "7").await;
    assert_eq!(value(&view, "customer_wait_secs"), "7");
    set(&operator, "arbiter", "fixed-split").await;
    let wrong = SetKnob { knob: "customer_wait_secs".into(), value: "soon".into() };
    let (status, words) = operator.refused(Method::POST, "admin/balance", &wrong).await;
    assert!(status == StatusCode::BAD_REQUEST && words.contains("soon"), "{words}");
    let wrong = SetKnob { knob: "customer_wait".into(), value: "7".into() };
    let (_, words) = operator.refused(Method::POST, "admin/balance", &wrong).await;
    assert!(words.contains("customer_wait_secs"), "{words}");

    stage.stop().await;
    stage.start().await;
    let operator = stage.operator();
    let view: BalanceView = operator.ok(Method::GET, "admin/balance", &()).await;
    assert_eq!((value(&view, "customer_wait_secs"), value(&view, "arbiter")), ("7", "fixed-split"));
    assert_eq!(view.changes.len(), 2);
    assert_eq!(
        (view.changes[0].knob.as_str(), view.changes[0].before.as_str()),
        ("arbiter", "equal-lateness")
    );
    assert!(!view.changes[0].who.is_empty() && view.changes[0].at > 0);

    let undone: Vec<Change> = operator.ok(Method::POST, "admin/balance/revert", &Revert { changes: 2 }).await;
    assert_eq!(undone.len(), 2);
    let view: BalanceView = operator.ok(Method::GET, "admin/balance", &()).await;
    assert_eq!((value(&view, "customer_wait_secs"), value(&view, "arbiter")), ("30", "equal-lateness"));
    operator.refused(Method::POST, "admin/balance/revert", &Revert { changes: 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_past_every_limit_is_served_by_the_origin_and_then_told_when_to_come_back() {
    let stage = Stage::new().await;
    let south = stage.ready("south", "http://192.0.2.1:8080").await;
    // Which south does not have.
    put(stage.repo(), "iso/huge.iso", &content("huge", 24 << 20));
    let operator = stage.operator();
    set(&operator, "customer_wait_secs", "1").await;
    // South sends a megabyte a second, and each customer is to have an eighth of that: some are taken, not all.
    let mut taken = 0;
    while let StatusCode::FOUND = ask(&stage, BIG, taken).await {
        taken += 1;
        assert!(taken < 200, "a volunteer promised more than its limit");
    }
    assert!(taken > 2, "{taken}");
    let explained: ExplainView =
        operator.ok(Method::GET, &format!("admin/explain?path={}", BIG.replace('+', "%2B")), &()).await;
    let considered = explained.considered.iter().find(|one| one.node == south.node).unwrap();
    let limit = considered.limit_bytes.unwrap();
    assert!(
        considered.backlog_bytes <= limit && considered.backlog_bytes + 300_000 > limit,
        "{considered:?}"
    );
    assert!(explained.decision.contains("origin"), "{}", explained.decision);
    assert!(considered.excluded.as_deref().unwrap().contains("admission"), "{considered:?}");

    // The origin has taken somebody who takes his time, and has given all that it may.
    set(&operator, "origin_rate", "1 Mbit/s").await;
    stage.eventually(|stage| async { ask(stage, "iso/huge.iso", 0).await == StatusCode::OK }).await;
    let held_open = std::sync::Mutex::new(None);
    // Until the origin has seen that the one before has hung up.
    stage
        .eventually(|stage| {
            let mut socket = TcpStream::connect(stage.control().addresses().listen).unwrap();
            socket.write_all(b"GET /iso/huge.iso HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut first = [0; 16];
            socket.read_exact(&mut first).unwrap();
            let taken = first.starts_with(b"HTTP/1.1 200");
            if taken {
                *held_open.lock().unwrap() = Some(socket);
            }
            async move { taken }
        })
        .await;
    let mut waits = Vec::new();
    for number in 0..20 {
        let answer = asking(&stage, "iso/huge.iso", 1_000 + number).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        waits.push(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap());
    }
    assert!(waits.iter().all(|wait| (1..=300).contains(wait)), "{waits:?}");
    // How far apart hangs on what else was promised; that they come one after the other is the policy's own test.
    let distinct: std::collections::BTreeSet<_> = waits.iter().collect();
    assert!(distinct.len() >= 5, "they come back each at his own time: {waits:?}");
    // Who asks again at once stands where he stood.
    let again = asking(&stage, "iso/huge.iso", 1_000).await;
    let wait: u64 = again.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(wait <= waits[0], "{wait} {waits:?}");
    drop(held_open);
    stage.eventually(|stage| async { ask(stage, "iso/huge.iso", 5_000).await == StatusCode::OK }).await;
}

/// Asks as customer `number`, and hangs up before the body.
async fn ask(stage: &Stage, path: &str, number: u32) -> StatusCode {
    asking(stage, path, number).await.status()
}

async fn asking(stage: &Stage, path: &str, number: u32) -> reqwest::Response {
    let request = stage.customer().get(stage.url(path)).header("User-Agent", format!("customer/{number}"));
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn volunteers_are_told_how_to_share_their_rate() {
    let stage = Stage::new().await;
    let mut south = stage.ready("south", "http://192.0.2.1:8080").await;
    let operator = stage.operator();
    set(&operator, "arbiter", "fixed-split").await;
    set(&operator, "delivery_percent", "80").await;
    told(&mut south, Some(800)).await;
    let view: BalanceView = operator.ok(Method::GET, "admin/balance", &()).await;
    let share = view.shares.iter().find(|share| share.name == "south").unwrap();
    assert!((share.delivery_percent - 80.0).abs() < 0.1 && share.rate == BytesPerSec(1_000_000), "{share:?}");
    set(&operator, "arbiter", "off").await;
    told(&mut south, None).await;
    // A mirror is behind and nobody waits for a download: nearly all for the mirrors.
    set(&operator, "arbiter", "equal-lateness").await;
    south.next.sync_url = Some("http://192.0.2.1:8081".into());
    south.next.sync.bytes_missing = 10_000_000_000;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while south.beat().await.delivery_permille.is_none_or(|permille| permille > 200) {
        assert!(std::time::Instant::now() < deadline, "sync has work and is given nothing");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    // Nothing is to be shared any more: half for whoever has work first.
    south.next.sync.bytes_missing = 0;
    told(&mut south, Some(500)).await;
    // One law puts small downloads first, also where nothing is to be copied.
    assert!(!south.beat().await.small_first);
    set(&operator, "arbiter", "shortest-remaining").await;
    assert!(south.beat().await.small_first);
    set(&operator, "arbiter", "off").await;
    assert!(!south.beat().await.small_first);
}

async fn told(volunteer: &mut crate::stage::Volunteer, expected: Option<u16>) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while volunteer.beat().await.delivery_permille != expected {
        assert!(std::time::Instant::now() < deadline, "expected {expected:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volunteers_that_leave_it_to_control_are_told_what_to_hold() {
    let stage = Stage::new().await;
    let mut south = stage.volunteer("south", "http://192.0.2.1:8080").await;
    let offer = HoldOffer { space: Bytes(1 << 30), ..HoldOffer::default() };
    south.next.sync.offer = Some(offer);
    let mut plain = stage.volunteer("plain", "http://192.0.2.2:8080").await;
    let operator = stage.operator();
    // Nobody is stable enough for a collection.
    set(&operator, "stable_percent", "100").await;
    held(&mut south, &[]).await;
    let until = u64::MAX;
    let expectation = Expectation { pattern: "pool/main/**".into(), rate: BytesPerSec(10_000_000), until };
    let view: PlacementView = operator.ok(Method::POST, "admin/placement/expect", &expectation).await;
    assert_eq!(view.expected, [expectation]);
    held(&mut south, &["/pool/main/b/big+1_amd64.deb"]).await;
    let forget = Forget { pattern: "pool/main/**".into() };
    let _: PlacementView = operator.ok(Method::POST, "admin/placement/forget", &forget).await;
    operator.refused(Method::POST, "admin/placement/forget", &forget).await;
    held(&mut south, &[]).await;
    // Everybody is.
    set(&operator, "stable_percent", "0").await;
    set(&operator, "stable_secs", "0").await;
    held(&mut south, &["dists/**", "pool/**"]).await;
    let view: PlacementView = operator.ok(Method::GET, "admin/placement", &()).await;
    assert!(view.on && view.hosts.len() == 1 && view.hosts[0].stable, "{view:?}");
    assert_eq!(plain.beat().await.hold, None);
}

async fn held(volunteer: &mut crate::stage::Volunteer, expected: &[&str]) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let hold = volunteer.beat().await.hold;
        if hold.as_ref().is_some_and(|hold| hold.include == expected) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "expected {expected:?}, told {hold:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn customers_of_a_prefix_go_to_the_volunteers_that_a_rule_names() {
    let stage = Stage::preferring("127.0.0.0/8=near").await;
    let _far = stage.ready("far", "http://192.0.2.1:8080").await;
    let _near = stage.ready("near", "http://192.0.2.2:8080").await;
    // The rule's volunteer is known within a second.
    stage
        .eventually(|stage| async {
            let mut near = 0;
            for number in 0..5 {
                let answer = asking(stage, BIG, number).await;
                near += u32::from(location(&answer).starts_with("http://192.0.2.2:8080/"));
            }
            near == 5
        })
        .await;
    let explained: ExplainView = stage
        .operator()
        .ok(Method::GET, &format!("admin/explain?client=127.0.0.1&path={}", BIG.replace('+', "%2B")), &())
        .await;
    let near = explained.considered.iter().find(|one| one.name == "near").unwrap();
    assert_eq!(near.nearness, "prefix rule");
}
