//! Operators themselves: whose key a request brings and what it lets them do, the log of what they changed, what happened
//! lately, and what they ask of one volunteer or of the catalogue.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use freshet_api::admin::{NodeView, OperatorCredentials};
use freshet_api::glob::Glob;
use freshet_api::operator::{
    AddKey, AuditEntry, CheckOutcome, DownloadsBy, DownloadsView, EditNode, Event, EventKind, FileLine,
    FilesView, KeyView, PROFILE_CHARS_MAX, Profile, ReloadView, Role, VERIFY_RANGES_MAX, Verify, VerifyView,
};
use http::{Method, StatusCode, header};
use rand::RngExt as _;
use serde::Deserialize;

use super::admin::{known, not_catalogued};
use super::problem::{Problem, parse};
use super::volunteer::{bearer, now_secs};
use super::{ADMIN_BYTES_MAX, Api};
use crate::operators::OperatorError;
use crate::registry::{Ban, NodeName};

/// Where a connection comes from; put into each request by the server.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Lets nobody through but who brings an operator's key with a role that is enough, and notes what is to be changed.
pub(super) async fn only_operators(
    State(api): State<Arc<Api>>,
    peer: Option<Extension<Peer>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let operator = api.parts.operators.known(&bearer(request.headers())?, now_secs()).ok_or_else(|| {
        Problem::unauthorised(
            "the token is no operator's; the first one stands in admin.json in control's state, `ctl key add` \
             makes others",
        )
    })?;
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(next.run(request).await);
    }
    let (mut head, body) = request.into_parts();
    head.extensions.insert(super::balance::Who(operator.name.clone()));
    let body = to_bytes(body, ADMIN_BYTES_MAX)
        .await
        .map_err(|_| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large for a command"))?;
    let mut entry = AuditEntry {
        at: now_secs(),
        who: operator.name.to_string(),
        role: operator.role,
        from: peer.map(|Extension(Peer(address))| address.to_canonical()),
        request: format!("{} {}", head.method, head.uri.path()),
        body: serde_json::from_slice(&body).ok().filter(|body: &serde_json::Value| !body.is_null()),
        status: StatusCode::FORBIDDEN.as_u16(),
    };
    let response = if operator.role < Role::Admin {
        Problem::new(
            StatusCode::FORBIDDEN,
            format!("the key of {} is read-only; ask an admin to do this", operator.name),
        )
        .into_response()
    } else {
        next.run(Request::from_parts(head, Body::from(body))).await
    };
    entry.status = response.status().as_u16();
    if response.status().is_success() {
        let outcome = response.extensions().get::<Told>();
        let text = told(&entry, outcome.map(|Told(outcome)| outcome.as_str()));
        api.parts.events.note(EventKind::Operator, node_in(&entry.request), text);
    }
    let noted = Arc::clone(&api);
    match tokio::task::spawn_blocking(move || noted.parts.audit.note(&entry)).await {
        Ok(Ok(())) => Ok(response),
        outcome => {
            tracing::error!(?outcome, "a change is in force that could not be noted in the audit log");
            Err(Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "it was done, but could not be noted in the audit log; see control's log, its disk may be full",
            ))
        }
    }
}

/// The volunteer that a command is about, where its path names one.
fn node_in(request: &str) -> Option<&str> {
    request.split_once("/v1/admin/nodes/")?.1.split('/').next()
}

/// What came of a command, for its event; put into the response by who did it.
#[derive(Clone, Debug)]
pub(super) struct Told(String);

/// A command in words, with what came of it where that is known.
fn told(entry: &AuditEntry, outcome: Option<&str>) -> String {
    let who = &entry.who;
    let (method, path) = entry.request.split_once(' ').unwrap_or_default();
    let path = path.strip_prefix("/v1/admin/").unwrap_or(path);
    let segments: Vec<&str> = path.split('/').collect();
    let field = |key: &str| {
        let value = entry.body.as_ref().map(|body| &body[key]);
        value
            .map_or_else(String::new, |value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let outcome = outcome.map_or_else(String::new, |outcome| format!(": {outcome}"));
    let name = || entry.body.as_ref().and_then(|body| body["name"].as_str()).unwrap_or("somebody");
    match (method, segments.as_slice()) {
        ("POST", ["nodes"]) => format!("{who} invited {}", name()),
        ("DELETE", ["nodes", _]) => format!("{who} removed it"),
        ("POST", ["nodes", _, verb]) => format!("{who}: {verb}{outcome}"),
        ("POST", ["balance"]) => format!("{who} set {} to {}", field("knob"), field("value")),
        ("POST", ["balance", "revert"]) => {
            format!("{who} undid the last changes of knobs: {}", field("changes"))
        }
        ("POST", ["placement", verb]) => format!("{who}: {verb} {}", field("pattern")),
        ("POST", ["keys"]) => format!("{who} made a key for {}", name()),
        ("DELETE", ["keys", name]) => format!("{who} made the key of {name} worthless"),
        _ => format!("{who}: {path}"),
    }
}

pub(super) async fn keys(State(api): State<Arc<Api>>) -> Json<Vec<KeyView>> {
    Json(api.parts.operators.view())
}

pub(super) async fn add_key(
    State(api): State<Arc<Api>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<OperatorCredentials>, Problem> {
    let AddKey { name, role } = parse(body)?;
    let address = api.addresses()?.api.clone();
    let adding = Arc::clone(&api);
    let token = blocking(move || adding.parts.operators.add(&name, role, now_secs())).await?;
    Ok(Json(OperatorCredentials { api: address, fingerprint: api.parts.fingerprint, token }))
}

pub(super) async fn revoke_key(
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Vec<KeyView>>, Problem> {
    let Path(name) = name?;
    let revoking = Arc::clone(&api);
    blocking(move || revoking.parts.operators.revoke(&name)).await?;
    Ok(Json(api.parts.operators.view()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OperatorError> + Send + 'static,
) -> Result<T, Problem> {
    let outcome = tokio::task::spawn_blocking(work).await;
    let outcome =
        outcome.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    outcome.map_err(|error| {
        let status = match error {
            OperatorError::Name { .. } => StatusCode::BAD_REQUEST,
            OperatorError::Taken { .. } | OperatorError::Full => StatusCode::CONFLICT,
            OperatorError::Unknown { .. } => StatusCode::NOT_FOUND,
            OperatorError::File { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, error.to_string())
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    limit: Option<usize>,
}

pub(super) async fn audit(
    State(api): State<Arc<Api>>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<Vec<AuditEntry>>, Problem> {
    let limit = query?.0.limit.unwrap_or(LINES).min(LINES_MAX);
    let read = tokio::task::spawn_blocking(move || api.parts.audit.last(limit)).await;
    match read {
        Ok(Ok(entries)) => Ok(Json(entries)),
        Ok(Err(error)) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(error) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Only those after this one.
    after: Option<u64>,
    /// Waits so many seconds for one, when there is none.
    wait: Option<u64>,
    node: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn events(
    State(api): State<Arc<Api>>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Json<Vec<Event>>, Problem> {
    let Query(EventsQuery { after, wait, node, limit }) = query?;
    let (after, limit) = (after.unwrap_or(0), limit.unwrap_or(LINES).min(LINES_MAX));
    // A number finds the volunteer's events too.
    let node = node.map(|text| match api.parts.registry.nodes().by_name_or_id(&text) {
        Some(node) => node.name.as_str().to_owned(),
        None => text,
    });
    let mut news = api.parts.events.subscribe();
    let wait = Duration::from_secs(wait.unwrap_or(0).min(WAIT_SECS_MAX));
    let found = tokio::time::timeout(wait, async {
        loop {
            news.borrow_and_update();
            let found = api.parts.events.after(after, node.as_deref(), limit);
            if !found.is_empty() || wait.is_zero() || news.changed().await.is_err() {
                return found;
            }
        }
    });
    Ok(Json(found.await.unwrap_or_default()))
}

pub(super) async fn edit(
    State(api): State<Arc<Api>>,
    node: Result<Path<String>, PathRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<NodeView>, Problem> {
    let node = known(&api, node)?;
    let EditNode { name, contact, sponsor, note } = parse(body)?;
    let bad = |words: String| Problem::new(StatusCode::BAD_REQUEST, words);
    let name =
        name.map(|name| name.parse::<NodeName>().map_err(|error| bad(error.to_string()))).transpose()?;
    let before = node.profile.as_ref().clone();
    let profile = Profile {
        contact: contact.unwrap_or(before.contact),
        sponsor: sponsor.unwrap_or(before.sponsor),
        note: note.unwrap_or(before.note),
    };
    for (key, text) in [("contact", &profile.contact), ("sponsor", &profile.sponsor), ("note", &profile.note)]
    {
        if text.chars().count() > PROFILE_CHARS_MAX || text.contains(|c: char| c.is_control() && c != '\n') {
            return Err(bad(format!(
                "`{key}`: expected at most {PROFILE_CHARS_MAX} characters, and no control characters"
            )));
        }
    }
    let node = api.parts.registry.edit(node.id, name, profile).await?;
    api.parts.routing.rebuild();
    Ok(Json(api.node_view(&node)))
}

/// Asks one volunteer for ranges. One at a time for each call, and so many calls at once as there are permits.
pub(super) async fn verify(
    State(api): State<Arc<Api>>,
    node: Result<Path<String>, PathRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(Extension<Told>, Json<VerifyView>), Problem> {
    let node = known(&api, node)?;
    let Verify { path, ranges } = parse(body)?;
    if !(1..=VERIFY_RANGES_MAX).contains(&ranges) {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            format!("`ranges`: expected 1 to {VERIFY_RANGES_MAX}, found {ranges}"),
        ));
    }
    let table = api.parts.routing.load();
    let route = table.route(node.id).filter(|route| !route.delivery_url.is_empty()).cloned();
    drop(table);
    let route = route.ok_or_else(|| {
        Problem::new(
            StatusCode::CONFLICT,
            format!("{} was not heard of since control's start, so where it serves is not known", node.name),
        )
    })?;
    let _permit = api.verifications.acquire().await.map_err(|_| Problem::starting())?;
    let begun = std::time::Instant::now();
    let mut view =
        VerifyView { node: node.id, name: node.name.as_str().to_owned(), checks: Vec::new(), banned: false };
    for _ in 0..ranges {
        let entry = {
            let catalog = api.parts.catalog.load();
            match &path {
                Some(path) => Some(catalog.find(path.as_bytes()).ok_or_else(|| not_catalogued(path))?),
                None => {
                    let held = u32::try_from(route.holdings.len()).unwrap_or(u32::MAX);
                    let drawn = (held > 0).then(|| rand::rng().random_range(0..held));
                    let file = drawn.and_then(|drawn| route.holdings.select(drawn));
                    file.and_then(|file| catalog.by_id(freshet_api::FileId(file)))
                }
            }
        };
        // What it holds may be older than the catalogue.
        let Some(entry) = entry else { continue };
        let (check, evidence) = api.parts.verifier.check(&route, &entry, rand::random()).await;
        let wrong = check.outcome == CheckOutcome::Wrong;
        view.checks.push(check);
        if let Some(evidence) = evidence {
            let ban = Ban { since: now_secs(), evidence };
            tracing::warn!(volunteer = %node.name, %ban, "caught with wrong bytes");
            api.parts.registry.ban(node.id, ban).await?;
            api.parts.routing.rebuild();
            view.banned = true;
        }
        if wrong || begun.elapsed() > VERIFY_WITHIN {
            break;
        }
    }
    Ok((Extension(Told(verified(&view))), Json(view)))
}

/// What checks gave, in a line.
fn verified(view: &VerifyView) -> String {
    let all = view.checks.len();
    if let Some(check) = view.checks.iter().find(|check| check.outcome == CheckOutcome::Wrong) {
        return format!("wrong bytes of {}", check.path);
    }
    let right = view.checks.iter().filter(|check| check.outcome == CheckOutcome::Right).count();
    match all {
        0 => "nothing that it holds could be checked".to_owned(),
        all if all == right => format!("{right} of {all} ranges were right"),
        all => format!("{right} of {all} ranges were right, the others did not come"),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilesQuery {
    #[serde(rename = "match")]
    pattern: String,
    limit: Option<usize>,
}

/// Goes through the whole catalogue, beside the traffic.
pub(super) async fn files(
    State(api): State<Arc<Api>>,
    query: Result<Query<FilesQuery>, QueryRejection>,
) -> Result<Json<FilesView>, Problem> {
    let Query(FilesQuery { pattern, limit }) = query?;
    let glob: Glob = pattern.parse().map_err(|error: freshet_api::glob::GlobError| {
        Problem::new(StatusCode::BAD_REQUEST, error.to_string())
    })?;
    let limit = limit.unwrap_or(LINES).min(FILES_MAX);
    let walk = tokio::task::spawn_blocking(move || {
        let catalog = api.parts.catalog.load();
        let table = api.parts.routing.load();
        let mut view = FilesView::default();
        for entry in catalog.iter() {
            if !glob.matches(entry.path.as_str()) {
                continue;
            }
            view.matching += 1;
            if view.files.len() < limit {
                let holders = table.routes().filter(|route| route.holdings.contains(entry.file.0));
                view.files.push(FileLine {
                    path: entry.path.to_repo_path(),
                    size: entry.size,
                    mtime: entry.mtime,
                    holders: holders.count() as u64,
                });
            }
        }
        view
    });
    walk.await.map(Json).map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DownloadsQuery {
    #[serde(rename = "match")]
    pattern: Option<String>,
    by: Option<DownloadsBy>,
    limit: Option<usize>,
}

/// Goes through all counts, beside the traffic.
pub(super) async fn downloads(
    State(api): State<Arc<Api>>,
    query: Result<Query<DownloadsQuery>, QueryRejection>,
) -> Result<Json<DownloadsView>, Problem> {
    let Query(DownloadsQuery { pattern, by, limit }) = query?;
    let glob: Glob =
        pattern.as_deref().unwrap_or("/**").parse().map_err(|error: freshet_api::glob::GlobError| {
            Problem::new(StatusCode::BAD_REQUEST, error.to_string())
        })?;
    let limit = limit.unwrap_or(LINES).min(FILES_MAX);
    let failed = |words: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, words);
    let counts = move || api.parts.downloads.view(&glob, by.unwrap_or_default(), limit);
    let view = tokio::task::spawn_blocking(counts).await.map_err(|error| failed(error.to_string()))?;
    view.map(Json).map_err(|error| failed(error.to_string()))
}

pub(super) async fn reload(State(api): State<Arc<Api>>) -> Result<Json<ReloadView>, Problem> {
    let reloading = Arc::clone(&api);
    let outcome = tokio::task::spawn_blocking(move || reloading.reload()).await;
    let outcome =
        outcome.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    outcome.map(Json).map_err(|why| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why))
}

/// Ends this process in order, where something starts it anew on the same sockets.
pub(super) async fn upgrade(State(api): State<Arc<Api>>) -> Result<Json<ReloadView>, Problem> {
    if !api.parts.restart.possible {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "nothing would start control again without refusing connections meanwhile: its sockets are its own. Run it \
             from the packages' units (freshet-control.socket), or restart it yourself",
        ));
    }
    api.parts.restart.asked.send_replace(true);
    Ok(Json(ReloadView::default()))
}

pub(super) async fn metrics(State(api): State<Arc<Api>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, freshet_api::metrics::CONTENT_TYPE)], api.scrape().text())
}

/// Lines of a list, unless another number is asked for.
const LINES: usize = 200;
const LINES_MAX: usize = 100_000;
const FILES_MAX: usize = 100_000;
/// Below the API's own limit for a request.
const WAIT_SECS_MAX: u64 = 50;
const VERIFY_WITHIN: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_in_words() {
        let with = |request: &str, body, outcome| {
            let entry = AuditEntry {
                at: 1,
                who: "ann".into(),
                role: Role::Admin,
                from: None,
                request: request.into(),
                body,
                status: 200,
            };
            told(&entry, outcome)
        };
        let told = |request: &str, body| with(request, body, None);
        let verify = "POST /v1/admin/nodes/edge/verify";
        assert_eq!(
            with(verify, None, Some("3 of 3 ranges were right")),
            "ann: verify: 3 of 3 ranges were right"
        );
        let knob = Some(serde_json::json!({"knob": "hot_rate", "value": "8 Mbit/s"}));
        assert_eq!(told("POST /v1/admin/balance", knob), "ann set hot_rate to 8 Mbit/s");
        let back = Some(serde_json::json!({"changes": 2}));
        assert_eq!(told("POST /v1/admin/balance/revert", back), "ann undid the last changes of knobs: 2");
        let body = Some(serde_json::json!({"name": "edge"}));
        assert_eq!(told("POST /v1/admin/nodes", body.clone()), "ann invited edge");
        assert_eq!(told("POST /v1/admin/keys", body), "ann made a key for edge");
        assert_eq!(told("DELETE /v1/admin/nodes/edge", None), "ann removed it");
        assert_eq!(told("POST /v1/admin/nodes/edge/drain", None), "ann: drain");
        assert_eq!(told("POST /v1/admin/publish", None), "ann: publish");
        assert_eq!(node_in("POST /v1/admin/nodes/edge/drain"), Some("edge"));
        assert_eq!(node_in("POST /v1/admin/nodes"), None);
    }
}
