//! What volunteers ask: to join, to be heard, to know what to hold.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{FromRequest, Query, State};
use axum::response::{IntoResponse, Response};
use freshet_api::enrol::{JoinReply, JoinRequest, Secret};
use freshet_api::heartbeat::{BAN_CHARS_MAX, DELTA_MAX, Heartbeat, HeartbeatReply};
use freshet_api::manifest::{ManifestAsk, ManifestHeld, ManifestOffer};
use freshet_api::release::{self, ReleaseHeader, VALID_FOR};
use freshet_api::{Bytes as Amount, SyncToken};
use freshet_policy::reservation::DeliveryReport;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use roaring::RoaringBitmap;
use serde::Deserialize;

use super::problem::{Problem, parse};
use super::{Api, Parts, problem};
use crate::catalog::Snapshot;
use crate::clock::epoch_secs;
use crate::registry::{INTERFACES_MAX, Joining, Node, readings};
use crate::routing::DeliveryTarget;
use crate::swarm::{Offered, Wire};

pub(super) async fn join(
    State(api): State<Arc<Api>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<JoinReply>, Problem> {
    let request: JoinRequest = parse(body)?;
    let addresses = api.addresses()?;
    let joining = Joining {
        secret_digest: request.secret.digest(),
        credential_digest: request.credential.digest(),
        ticket_key: request.ticket_key.clone(),
        now: now_secs(),
    };
    let node = api.parts.registry.join(joining).await?;
    tracing::info!(node = %node.id, name = %node.name, version = shown(&request.version), "joined");
    // The sync token of its first heartbeat is worth nothing until it is in the table.
    api.parts.routing.settled(node.id).await;
    Ok(Json(JoinReply {
        node: node.id,
        name: node.name.as_str().to_owned(),
        front_door: addresses.front_door.clone(),
    }))
}

pub(super) async fn heartbeat(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<HeartbeatReply>, Problem> {
    let node = authenticate(&api, &headers)?;
    let heartbeat: Heartbeat = parse(body)?;
    check(&heartbeat)?;
    let addresses = api.addresses()?;
    let parts = &api.parts;

    let now = parts.clock.now();
    let report = DeliveryReport {
        epoch: heartbeat.boot,
        // What customers did not want any more is not coming either.
        delivered: Amount(heartbeat.delivery.body_bytes.saturating_add(heartbeat.delivery.abandoned_bytes)),
        in_flight: heartbeat.delivery.owed_bytes.map(|owed| Amount(owed.min(OWED_BYTES_MAX))),
    };
    let (boot, counters) = (heartbeat.boot, readings(&heartbeat.interfaces));
    let heard = parts.tracker.heartbeat(node.id, heartbeat, now);
    if !heard.stale {
        parts.reservations.confirm(node.id, report, now);
        if let Some(session) = parts.tracker.session(node.id, now) {
            parts.reservations.observe(node.id, session.pace(), now);
            parts.flows.saw(node.id, boot, &session.heartbeat.interfaces, now);
        }
        parts.routing.touch(node.id);
    }
    // Acknowledged only when the ledger is on disk; until then the volunteer says it all again.
    parts.registry.record(node.id, counters).await?;

    let expires = u32::try_from(now_secs() + SYNC_TOKEN_SECS).unwrap_or(u32::MAX);
    let nodes = parts.registry.nodes();
    let known = nodes.by_id(node.id);
    let draining = known.is_some_and(|node| node.draining);
    let banned = known.and_then(|node| node.ban.as_ref());
    let banned = banned.map(|ban| api.ban_words(ban).chars().take(BAN_CHARS_MAX).collect());
    Ok(Json(HeartbeatReply {
        interval_ms: u64::try_from(interval(parts).as_millis()).unwrap_or(u64::MAX),
        manifest_sequence: parts.swarm.release().load().sequence,
        front_door: addresses.front_door.clone(),
        origin_sync_url: addresses.sync.clone(),
        sync_token: SyncToken { node: node.id, expires }.seal(&parts.registry.sync_key()),
        want_holdings: heard.want_holdings,
        draining,
        banned,
        delivery_permille: parts.steward.delivery_permille(node.id),
        small_first: parts.steward.puts_small_first(),
        hold: parts.steward.planner().order(node.id),
    }))
}

/// When the next heartbeat is due: soon while a release is being made ready, so that nobody learns late of it, but not so
/// soon that all volunteers together ask more than a few hundred times a second for that.
fn interval(parts: &Parts) -> Duration {
    let usual = parts.pace.load().heartbeat;
    if !parts.swarm.is_preparing() {
        return usual;
    }
    let volunteers = u32::try_from(parts.registry.nodes().len()).unwrap_or(u32::MAX);
    usual.min((BRISK_EACH * volunteers).max(BRISK_LEAST))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestQuery {
    since: Option<u64>,
}

pub(super) async fn manifest(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    query: Result<Query<ManifestQuery>, QueryRejection>,
) -> Result<impl IntoResponse, Problem> {
    authenticate(&api, &headers)?;
    let Query(query) = query?;
    let state = released(&api)?;
    let manifests = api.parts.swarm.manifests();
    let wire = manifests.wire(&state, query.since).await.map_err(|error| failed(&error))?;
    whole(&api, wire).await
}

/// Where a volunteer gets a manifest from, or the manifest itself where that is less.
pub(super) async fn offer(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let node = authenticate(&api, &headers)?;
    let ask: ManifestAsk = parse(body)?;
    let state = released(&api)?;
    if node.ban.is_some() {
        // Nobody is sent to it, and it is sent to nobody.
        let manifests = api.parts.swarm.manifests();
        let wire = manifests.wire(&state, ask.since).await.map_err(|error| failed(&error))?;
        return Ok(whole(&api, wire).await?.into_response());
    }
    match api.parts.swarm.offer_manifest(node.id, ask, &state).await.map_err(|error| failed(&error))? {
        Offered::Whole(wire) => Ok(whole(&api, wire).await?.into_response()),
        Offered::At(wire, from) => {
            let offer = ManifestOffer { manifest: wire.hash, bytes: wire.size, from };
            Ok(([seal(&api, &wire)?], Json(offer)).into_response())
        }
    }
}

/// A volunteer has a manifest.
pub(super) async fn held(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    let node = authenticate(&api, &headers)?;
    let ManifestHeld { manifest, serves } = parse(body)?;
    api.parts.swarm.manifests().held(node.id, &manifest, serves && node.ban.is_none());
    Ok(StatusCode::NO_CONTENT)
}

/// The state that volunteers are told of.
fn released(api: &Api) -> Result<Arc<Snapshot>, Problem> {
    let released = Arc::clone(&api.parts.swarm.release().load());
    released.state.clone().ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the repository's present state is being prepared for volunteers; try again in a second",
        )
    })
}

/// A manifest, sealed.
async fn whole(api: &Arc<Api>, wire: Wire) -> Result<impl IntoResponse + use<>, Problem> {
    let seal = seal(api, &wire)?;
    let manifests = Arc::clone(api.parts.swarm.manifests());
    let read = tokio::task::spawn_blocking(move || wire.read(&manifests)).await;
    let bytes = read.map_err(std::io::Error::other).flatten().map_err(|error| failed(&error))?;
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(([content_type, seal], bytes))
}

/// What control says of a manifest, in a header field.
fn seal(api: &Api, wire: &Wire) -> Result<(HeaderName, HeaderValue), Problem> {
    let signed = ReleaseHeader {
        sequence: wire.sequence,
        previous: wire.base,
        manifest: wire.hash,
        valid_until: now_secs() + VALID_FOR.as_secs(),
    };
    let seal = api.parts.releases.seal(&signed).map_err(|error| failed(&error))?;
    let seal = HeaderValue::try_from(seal).map_err(|error| failed(&error))?;
    Ok((HeaderName::from_static(release::FIELD), seal))
}

fn failed(error: &impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

pub(super) async fn holdings(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    request: axum::extract::Request,
) -> Result<StatusCode, Problem> {
    let node = authenticate(&api, &headers)?;
    // Taken before the body is read: so many bitmaps are in memory at once, and no more.
    let _permit = api.holdings_uploads.acquire().await.map_err(|_| Problem::starting())?;
    let body = <Bytes as FromRequest<()>>::from_request(request, &()).await?;
    let (parsing, id) = (Arc::clone(&api), node.id);
    let outcome = tokio::task::spawn_blocking(move || {
        let holdings = read_holdings(&body)?;
        parsing.parts.tracker.replace_holdings(id, holdings);
        Ok(())
    });
    outcome.await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the holdings could not be read"))
    })?;
    api.parts.routing.touch(id);
    Ok(StatusCode::NO_CONTENT)
}

fn read_holdings(body: &[u8]) -> Result<RoaringBitmap, Problem> {
    let damaged = |words: String| Problem::new(StatusCode::BAD_REQUEST, words);
    let holdings = RoaringBitmap::deserialize_from(body)
        .map_err(|error| damaged(format!("expected a Roaring bitmap in its portable form: {error}")))?;
    // Runs are short to write and long to go through.
    if holdings.len() > HOLDINGS_FILES_MAX {
        let (found, max) = (holdings.len(), HOLDINGS_FILES_MAX);
        return Err(damaged(format!("expected at most {max} files, found {found}")));
    }
    Ok(holdings)
}

/// Whose credential the request brings.
pub(super) fn authenticate(api: &Api, headers: &HeaderMap) -> Result<Arc<Node>, Problem> {
    let secret = bearer(headers)?;
    api.parts.registry.nodes().by_credential(&secret).cloned().ok_or_else(|| {
        Problem::unauthorised("the credential is not known here; if this volunteer was removed, join again")
    })
}

/// The secret in `Authorization: Bearer`.
pub(super) fn bearer(headers: &HeaderMap) -> Result<Secret, problem::Problem> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| crate::bearer::token(value.to_str().ok()?)?.parse().ok())
        .ok_or_else(|| Problem::unauthorised("expected `Authorization: Bearer` and a credential"))
}

/// What later code takes for granted about a heartbeat.
fn check(heartbeat: &Heartbeat) -> Result<(), Problem> {
    let refuse = |words: String| Err(Problem::new(StatusCode::BAD_REQUEST, words));
    if DeliveryTarget::parse(&heartbeat.delivery_url).is_none() {
        let found = shown(&heartbeat.delivery_url);
        return refuse(format!("`delivery_url`: expected http://host:port, found {found:?}"));
    }
    if heartbeat.holdings.added.len() > DELTA_MAX || heartbeat.holdings.removed.len() > DELTA_MAX {
        return refuse(format!(
            "expected at most {DELTA_MAX} files in a difference; send the whole set instead"
        ));
    }
    if heartbeat.interfaces.len() > INTERFACES_MAX {
        let found = heartbeat.interfaces.len();
        return refuse(format!("expected at most {INTERFACES_MAX} interfaces, found {found}"));
    }
    Ok(())
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

pub(super) fn now_secs() -> u64 {
    epoch_secs(std::time::SystemTime::now())
}

/// Heartbeats while a release is being made ready: 400 a second at most.
const BRISK_EACH: Duration = Duration::from_micros(2_500);
const BRISK_LEAST: Duration = Duration::from_millis(100);
/// A sync token outlasts a control that is away for a while.
const SYNC_TOKEN_SECS: u64 = 3_600;
/// No volunteer owes its customers more, whatever it says: a tebibyte.
const OWED_BYTES_MAX: u64 = 1 << 40;
/// Files of one volunteer at most.
const HOLDINGS_FILES_MAX: u64 = 50_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::testing;

    #[test]
    fn a_heartbeat_is_checked_before_it_is_believed() {
        let good = testing::heartbeat(1, 1, &[], &[]);
        assert_eq!(check(&good), Ok(()));
        let bad_url = Heartbeat { delivery_url: "http://a/\r\nSet-Cookie: x".into(), ..good.clone() };
        assert_eq!(check(&bad_url).unwrap_err().status, StatusCode::BAD_REQUEST);
        let mut large = good.clone();
        large.holdings.added = vec![freshet_api::FileId(1); DELTA_MAX + 1];
        assert!(check(&large).is_err());
        let interfaces = vec![Default::default(); INTERFACES_MAX + 1];
        assert!(check(&Heartbeat { interfaces, ..good }).is_err());
    }

    #[test]
    fn holdings_are_bounded_by_what_they_say_not_by_their_bytes() {
        let mut small: RoaringBitmap = (0..1000).collect();
        small.optimize();
        let mut bytes = Vec::new();
        small.serialize_into(&mut bytes).unwrap();
        assert_eq!(read_holdings(&bytes).unwrap().len(), 1000);
        let mut large = RoaringBitmap::new();
        large.insert_range(0..=u32::MAX);
        large.optimize();
        let mut bytes = Vec::new();
        large.serialize_into(&mut bytes).unwrap();
        assert!(bytes.len() < 2 << 20 && read_holdings(&bytes).is_err());
        assert!(read_holdings(b"rubbish").is_err());
    }
}
