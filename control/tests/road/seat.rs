//! The operator's seat: keys and roles, the audit log, events, verification, metrics and the status page.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::IntoResponse;
use freshet_api::admin::{NodeState, NodeView, OperatorCredentials};
use freshet_api::operator::{
    AddKey, AuditEntry, CheckOutcome, DownloadsView, EditNode, Event, FilesView, KeyView, Role, Verify,
    VerifyView,
};
use freshet_api::{BytesPerSec, Ticket};
use reqwest::{Method, StatusCode};

use crate::stage::{BIG, Caller, SMALL, Stage, content};

async fn key(stage: &Stage, name: &str, role: Role) -> Caller {
    let made: OperatorCredentials =
        stage.operator().ok(Method::POST, "admin/keys", &AddKey { name: name.into(), role }).await;
    Caller::new(&made.api, made.fingerprint, &made.token)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_key_sees_everything_and_changes_nothing() {
    let stage = Stage::new().await;
    stage.ready("south", "http://192.0.2.1:8080").await;
    let reader = key(&stage, "reader", Role::ReadOnly).await;
    for path in ["nodes", "status", "swarm", "keys", "audit", "events", "files?match=*.iso", "downloads"] {
        let _: serde_json::Value = reader.ok(Method::GET, &format!("admin/{path}"), &()).await;
    }
    for (method, path) in [
        (Method::POST, "nodes/south/drain"),
        (Method::POST, "nodes/south/verify"),
        (Method::POST, "publish"),
        (Method::POST, "reload"),
        (Method::POST, "keys"),
        (Method::DELETE, "nodes/south"),
        (Method::DELETE, "keys/reader"),
    ] {
        let (status, words) = reader.refused(method, &format!("admin/{path}"), &()).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
        assert!(words.contains("read-only"), "{words}");
    }
    let node: NodeView = reader.ok(Method::GET, "admin/nodes/south", &()).await;
    assert_eq!(node.state, NodeState::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_change_is_noted_with_who_and_what_and_lasts() {
    let mut stage = Stage::new().await;
    stage.ready("south", "http://192.0.2.1:8080").await;
    let ann = key(&stage, "ann@example.org", Role::Admin).await;
    let _: NodeView = ann.ok(Method::POST, "admin/nodes/south/drain", &()).await;
    let reader = key(&stage, "reader", Role::ReadOnly).await;
    reader.refused(Method::DELETE, "admin/nodes/south", &()).await;
    stage.stop().await;
    stage.start().await;
    let log: Vec<AuditEntry> = stage.operator().ok(Method::GET, "admin/audit?limit=3", &()).await;
    let shown: Vec<_> =
        log.iter().map(|entry| (entry.who.as_str(), entry.request.as_str(), entry.status)).collect();
    assert_eq!(
        shown,
        [
            ("reader", "DELETE /v1/admin/nodes/south", 403),
            ("admin.json", "POST /v1/admin/keys", 200),
            ("ann@example.org", "POST /v1/admin/nodes/south/drain", 200),
        ]
    );
    assert!(log[0].from.is_some_and(|from| from.is_loopback()));
    assert_eq!(log[1].body.as_ref().unwrap()["name"], "reader");

    // Keys last as well, and one that is revoked is worth nothing at once.
    let credentials = stage.credentials();
    let views: Vec<KeyView> = stage.operator().ok(Method::GET, "admin/keys", &()).await;
    assert_eq!(views.len(), 3);
    let again = key(&stage, "bob", Role::Admin).await;
    let _: Vec<KeyView> = stage.operator().ok(Method::DELETE, "admin/keys/bob", &()).await;
    let (status, _) = again.refused(Method::GET, "admin/status", &()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let taken = AddKey { name: "reader".into(), role: Role::Admin };
    let (status, _) = stage.operator().refused(Method::POST, "admin/keys", &taken).await;
    assert_eq!(status, StatusCode::CONFLICT);
    drop(credentials);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volunteer_is_edited_and_what_happens_to_it_is_told() {
    let stage = Stage::new().await;
    let mut south = stage.ready("south", "http://192.0.2.1:8080").await;
    stage.ready("north", "http://192.0.2.2:8080").await;
    let operator = stage.operator();
    let edit = |name: Option<&str>, sponsor: &str| EditNode {
        name: name.map(str::to_owned),
        sponsor: Some(sponsor.to_owned()),
        ..EditNode::default()
    };
    let (status, _) =
        operator.refused(Method::POST, "admin/nodes/south/edit", &edit(Some("north"), "")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (status, _) =
        operator.refused(Method::POST, "admin/nodes/south/edit", &edit(None, &"x".repeat(501))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let view: NodeView =
        operator.ok(Method::POST, "admin/nodes/south/edit", &edit(Some("physics"), "Physics")).await;
    assert_eq!((view.name.as_str(), view.profile.sponsor.as_str()), ("physics", "Physics"));
    // It goes on as before under its new name.
    south.beat().await;

    // The onlooker must have seen it once before anything can be new about it.
    stage
        .eventually(|stage| async move {
            let _: NodeView = stage.operator().ok(Method::POST, "admin/nodes/physics/drain", &()).await;
            let _: NodeView = stage.operator().ok(Method::POST, "admin/nodes/physics/resume", &()).await;
            let events: Vec<Event> =
                stage.operator().ok(Method::GET, "admin/events?node=physics&wait=1", &()).await;
            events.iter().any(|event| event.text.ends_with(": drain"))
                && events.is_sorted_by_key(|event| event.id)
        })
        .await;
    stage
        .eventually(|stage| async move {
            let _: NodeView = stage.operator().ok(Method::POST, "admin/nodes/physics/drain", &()).await;
            let events: Vec<Event> = stage.operator().ok(Method::GET, "admin/events?node=physics", &()).await;
            events.iter().any(|event| event.text.contains("is draining"))
        })
        .await;
    let last: Vec<Event> = stage.operator().ok(Method::GET, "admin/events", &()).await;
    let path = format!("admin/events?after={}", last.last().unwrap().id);
    let none: Vec<Event> = stage.operator().ok(Method::GET, &path, &()).await;
    assert!(none.len() < last.len());
}

struct Mirror {
    lies: AtomicBool,
    full: AtomicBool,
}

/// A volunteer's delivery port that has [`BIG`].
async fn mirror(State(mirror): State<Arc<Mirror>>, uri: Uri, headers: HeaderMap) -> impl IntoResponse {
    assert!(uri.query().unwrap().starts_with("t="));
    if mirror.full.load(Ordering::Relaxed) {
        return (StatusCode::FOUND, Vec::new());
    }
    let range = headers["range"].to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let mut bytes = content(BIG, 300_000)[first.parse().unwrap()..=last.parse().unwrap()].to_vec();
    if mirror.lies.load(Ordering::Relaxed) {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }
    (StatusCode::PARTIAL_CONTENT, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_volunteer_is_banned_for_wrong_bytes_only() {
    let stage = Stage::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let conduct = Arc::new(Mirror { lies: AtomicBool::new(false), full: AtomicBool::new(false) });
    let router = Router::new().fallback(mirror).with_state(Arc::clone(&conduct));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let mut south = stage.ready("south", &url).await;
    let operator = stage.operator();
    assert_eq!(south.beat().await.banned, None);
    let verify = |ranges| Verify { path: Some(BIG.into()), ranges };

    let right: VerifyView = operator.ok(Method::POST, "admin/nodes/south/verify", &verify(3)).await;
    assert_eq!(right.checks.len(), 3);
    assert!(right.checks.iter().all(|check| check.outcome == CheckOutcome::Right), "{right:?}");
    conduct.full.store(true, Ordering::Relaxed);
    let back: VerifyView = operator.ok(Method::POST, "admin/nodes/south/verify", &verify(1)).await;
    assert_eq!((back.checks[0].outcome, back.banned), (CheckOutcome::SentBack, false));
    conduct.full.store(false, Ordering::Relaxed);
    conduct.lies.store(true, Ordering::Relaxed);
    let wrong: VerifyView = operator.ok(Method::POST, "admin/nodes/south/verify", &verify(5)).await;
    assert_eq!((wrong.checks.len(), wrong.checks[0].outcome, wrong.banned), (1, CheckOutcome::Wrong, true));
    let view: NodeView = operator.ok(Method::GET, "admin/nodes/south", &()).await;
    assert_eq!(view.state, NodeState::Banned);
    // It is named by what people know, and told to the volunteer as well.
    let reason = view.reason.unwrap();
    assert!(
        reason.starts_with("banned since ") && reason.contains(&format!(" of {BIG} were sent")),
        "{reason}"
    );
    assert_eq!(south.beat().await.banned, Some(reason));
    let view: NodeView = operator.ok(Method::POST, "admin/nodes/south/pardon", &()).await;
    assert!(view.state != NodeState::Banned && south.beat().await.banned.is_none());

    for (body, status) in [
        (Verify { path: None, ranges: 0 }, StatusCode::BAD_REQUEST),
        (Verify { path: Some("nothing".into()), ranges: 1 }, StatusCode::NOT_FOUND),
    ] {
        assert_eq!(operator.refused(Method::POST, "admin/nodes/south/verify", &body).await.0, status);
    }
    // A ticket of control's own is like any other.
    assert!(Ticket::new(1, &freshet_api::ContentHash::from(blake3::hash(b"")), &[], right.node).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_found_by_pattern() {
    let stage = Stage::new().await;
    stage.ready("south", "http://192.0.2.1:8080").await;
    let all: FilesView = stage.operator().ok(Method::GET, "admin/files?match=/**", &()).await;
    assert_eq!((all.matching, all.files.len()), (4, 4));
    let one: FilesView = stage.operator().ok(Method::GET, "admin/files?match=pool/**&limit=1", &()).await;
    assert_eq!((one.matching, one.files.len(), one.files[0].holders), (3, 1, 1));
    let (status, _) = stage.operator().refused(Method::GET, "admin/files?match=%5Bx", &()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_and_figures_are_on_the_page_and_in_the_metrics() {
    let stage = Stage::new().await;
    let mut south = stage.ready("south", "http://192.0.2.1:8080").await;
    let status = stage.control().addresses().status.unwrap();
    let get = async |path: &str| {
        let answer = stage.customer().get(format!("http://{status}{path}")).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    assert_eq!(get("/healthz").await, (StatusCode::OK, "up\n".to_owned()));
    assert_eq!(get("/readyz").await.0, StatusCode::OK);

    south.next.interfaces[0].delivery.sent.bytes = 5_000_000;
    south.beat().await;
    let node: NodeView = stage.operator().ok(Method::GET, "admin/nodes/south", &()).await;
    assert!(node.rates[0].classes.delivery.sent > BytesPerSec(0));

    let (code, text) = get("/metrics").await;
    assert_eq!(code, StatusCode::OK);
    assert!(text.ends_with("# EOF\n"));
    for line in [
        "freshet_volunteers{state=\"active\"} 1",
        "freshet_volunteer_delivered_bytes_total{volunteer=\"south\"} 5000000",
        "freshet_catalogue_files 4",
        "freshet_control_ready 1",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    // What a dashboard or an alert asks for is there to be asked for.
    let there: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, _)| name)
        .collect();
    for file in [include_str!("../../monitoring/dashboard.json"), include_str!("../../monitoring/alerts.yml")]
    {
        let names = names_in(file);
        assert!(names.len() > 5, "{names:?}");
        for name in names.into_iter().filter(|name| !name.starts_with("freshet_dataplane_")) {
            let family = name.strip_suffix("_total").unwrap_or(name);
            assert!(there.contains(family), "{name} is measured nowhere");
            let counter = text.contains(&format!("# TYPE {family} counter"));
            assert_eq!(counter, name.ends_with("_total"), "{name}");
        }
    }

    let (code, page) = get("/").await;
    assert_eq!(code, StatusCode::OK);
    assert!(page.contains("south") && page.contains("1</span> of 1"), "{page}");
    assert!(!page.contains("style=") && !page.contains("http://fonts"), "nothing that the policy forbids");
    assert!(get("/?q=nobody").await.1.contains("None."));
    assert!(get("/?page=99&sort=rubbish").await.1.contains("south"));
    assert!(get("/volunteer/south").await.1.contains("eth0"));
    assert_eq!(get("/volunteer/nobody").await.0, StatusCode::NOT_FOUND);
    assert!(get(&format!("/file?path={}", BIG.replace('+', "%2B"))).await.1.contains("1 volunteers hold"));
    assert!(get(&format!("/file?path={SMALL}")).await.1.contains("SHA-256"));
    let (code, page) = get("/file?path=%3Cscript%3E").await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert!(!page.contains("<script>"), "{page}");
    let mut live = stage.customer().get(format!("http://{status}/live")).send().await.unwrap();
    assert_eq!(live.headers()["content-type"], "text/event-stream");
    let first = crate::stage::within(live.chunk()).await.unwrap().unwrap();
    let first = String::from_utf8(first.to_vec()).unwrap();
    assert!(first.starts_with("data: {") && first.contains("\"active\":\"1\""), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_begins_a_download_is_counted_once_by_file_and_for_good() {
    let mut stage = Stage::new().await;
    stage.ready("south", "http://192.0.2.1:8080").await;
    let big = BIG.replace('+', "%2B");
    let ask = async |stage: &Stage, path: &str, range: Option<&str>| {
        let request = stage.customer().get(stage.url(path));
        let request = range.iter().fold(request, |request, range| request.header("range", *range));
        request.send().await.unwrap()
    };
    for range in [None, None, Some("bytes=0-99"), Some("bytes=100-"), Some("bytes=-5")] {
        let answer = ask(&stage, &big, range).await;
        assert_eq!(answer.status(), StatusCode::FOUND);
    }
    ask(&stage, SMALL, None).await;
    // Who only looks, who is sent back, and who asks for a checksum or for nothing.
    stage.customer().head(stage.url(&big)).send().await.unwrap();
    let sent = crate::stage::location(&ask(&stage, &big, None).await);
    let (ticket, _) = crate::stage::ticket(&sent);
    ask(&stage, &format!("{big}?b={ticket}"), None).await;
    ask(&stage, &format!("{big}.sha256"), None).await;
    ask(&stage, "pool/nothing", None).await;

    let counted = async |stage: &Stage, query: &str| -> DownloadsView {
        stage.operator().ok(Method::GET, &format!("admin/downloads{query}"), &()).await
    };
    let all = counted(&stage, "").await;
    let lines: Vec<_> = all.files.iter().map(|line| (line.path.as_str(), line.today, line.total)).collect();
    assert_eq!(lines, [(BIG, 4, 4), (SMALL, 1, 1)], "{all:?}");
    assert_eq!((all.matching, all.sum.month, all.unknown), (2, 5, 0));
    let one = counted(&stage, "?match=*.txt&by=today&limit=5").await;
    assert_eq!((one.matching, one.files[0].path.as_str()), (1, SMALL));
    assert_eq!(counted(&stage, "?limit=1").await.files.len(), 1);

    stage.stop().await;
    stage.start().await;
    ask(&stage, SMALL, None).await;
    let again = counted(&stage, "?by=total").await;
    assert_eq!((again.sum.total, again.files[1].total, again.since), (6, 2, all.since));
    let (status, _) = stage.operator().refused(Method::GET, "admin/downloads?match=%5Bx", &()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = stage.operator().refused(Method::GET, "admin/downloads?by=year", &()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

/// Every name of ours in a text.
fn names_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("freshet_"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_no_file_is_not_read_again_and_nothing_is_started_anew_by_nobody() {
    let stage = Stage::new().await;
    let (status, words) = stage.operator().refused(Method::POST, "admin/reload", &()).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{words}");
    let (status, words) = stage.operator().refused(Method::POST, "admin/upgrade", &()).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(words.contains("freshet-control.socket"), "{words}");
}
