//! What volunteers ask about bundles: which there are, what is in one, whom to ask for its pieces.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use freshet_api::bundle::BundleId;
use freshet_api::swarm::{BundleList, SwarmPoll, SwarmReply};
use http::{HeaderMap, StatusCode, header};

use super::Api;
use super::problem::{Problem, parse};
use super::volunteer::authenticate;
use crate::registry::Node;

pub(super) async fn bundles(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
) -> Result<Json<BundleList>, Problem> {
    member(&api, &headers)?;
    Ok(Json(api.parts.swarm.bundles()))
}

pub(super) async fn bundle(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<impl IntoResponse, Problem> {
    member(&api, &headers)?;
    let Path(text) = id?;
    let id: BundleId = text.parse().map_err(|_| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "expected a bundle as 64 hexadecimal digits, as /v1/bundles lists them",
        )
    })?;
    let wire = api.parts.swarm.bundle(id).await.map_err(|error| {
        tracing::error!(bundle = %id, %error, "a bundle cannot be read");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the bundle cannot be read just now; try again later")
    })?;
    let wire = wire.ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "the bundle is not kept (any more); /v1/bundles lists those that are",
        )
    })?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], wire))
}

pub(super) async fn poll(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<SwarmReply>, Problem> {
    let node = member(&api, &headers)?;
    let poll: SwarmPoll = parse(body)?;
    Ok(Json(api.parts.swarm.poll(node.id, poll)))
}

/// Whose credential the request brings; a banned one takes no part.
fn member(api: &Api, headers: &HeaderMap) -> Result<Arc<Node>, Problem> {
    let node = authenticate(api, headers)?;
    match &node.ban {
        None => Ok(node),
        Some(ban) => Err(Problem::new(
            StatusCode::FORBIDDEN,
            format!(
                "this volunteer is {}; check its disk and memory, then ask the operator for `ctl node pardon`",
                api.ban_words(ban)
            ),
        )),
    }
}
