//! What operators ask and command, through `ctl`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use freshet_api::JoinString;
use freshet_api::admin::{
    AddNode, ExplainView, NodeAdded, NodeView, PublishView, StatusView, SwarmView, WhereView,
};
use http::StatusCode;
use serde::Deserialize;

use super::Api;
use super::problem::{Problem, parse};
use super::volunteer::now_secs;
use crate::identity::fresh_secret;
use crate::registry::{Invitation, Node, NodeName};

pub(super) async fn add(
    State(api): State<Arc<Api>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<NodeAdded>, Problem> {
    let request: AddNode = parse(body)?;
    let name: NodeName = request.name.parse().map_err(|error: crate::registry::NodeNameError| {
        Problem::new(StatusCode::BAD_REQUEST, error.to_string())
    })?;
    let secret =
        fresh_secret().map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let (now, lifetime) = (now_secs(), api.parts.pace.load().join_lifetime.as_secs());
    let invitation =
        Invitation { secret_digest: secret.digest(), made: now, expires: now.saturating_add(lifetime) };
    let join = JoinString { api: api.addresses()?.api.clone(), secret, fingerprint: api.parts.fingerprint };
    let node = api.parts.registry.invite(name, invitation).await?;
    tracing::info!(node = %node.id, name = %node.name, "invited");
    Ok(Json(NodeAdded {
        node: node.id,
        name: node.name.as_str().to_owned(),
        join: join.to_string(),
        expires_in_secs: lifetime,
    }))
}

pub(super) async fn nodes(State(api): State<Arc<Api>>) -> Json<Vec<NodeView>> {
    Json(api.node_views())
}

pub(super) async fn node(
    State(api): State<Arc<Api>>,
    node: Result<Path<String>, PathRejection>,
) -> Result<Json<NodeView>, Problem> {
    Ok(Json(api.node_view(&*known(&api, node)?)))
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    node: Result<Path<String>, PathRejection>,
) -> Result<Json<NodeView>, Problem> {
    let node = known(&api, node)?;
    let view = api.node_view(&node);
    api.parts.registry.remove(node.id).await?;
    api.parts.tracker.forget(node.id);
    api.parts.flows.forget(node.id);
    api.parts.swarm.expel(node.id);
    api.parts.reservations.clear(node.id);
    api.parts.routing.rebuild();
    tracing::info!(node = %node.id, name = %node.name, "removed");
    Ok(Json(view))
}

pub(super) async fn drain(
    State(api): State<Arc<Api>>,
    node: Result<Path<String>, PathRejection>,
) -> Result<Json<NodeView>, Problem> {
    set_draining(&api, node, true).await
}

pub(super) async fn resume(
    State(api): State<Arc<Api>>,
    node: Result<Path<String>, PathRejection>,
) -> Result<Json<NodeView>, Problem> {
    set_draining(&api, node, false).await
}

pub(super) async fn pardon(
    State(api): State<Arc<Api>>,
    node: Result<Path<String>, PathRejection>,
) -> Result<Json<NodeView>, Problem> {
    let id = known(&api, node)?.id;
    let node = api.parts.registry.pardon(id).await?;
    api.parts.routing.rebuild();
    tracing::info!(node = %node.id, name = %node.name, "pardoned");
    Ok(Json(api.node_view(&node)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WhereQuery {
    path: String,
}

pub(super) async fn holders(
    State(api): State<Arc<Api>>,
    query: Result<Query<WhereQuery>, QueryRejection>,
) -> Result<Json<WhereView>, Problem> {
    let Query(query) = query?;
    api.where_view(&query.path).map(Json).ok_or_else(|| not_catalogued(&query.path))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainQuery {
    path: String,
    client: Option<IpAddr>,
}

pub(super) async fn explain(
    State(api): State<Arc<Api>>,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Result<Json<ExplainView>, Problem> {
    let Query(query) = query?;
    let client = query.client.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let explained = api.parts.front_door.explain(&query.path, client, now_secs());
    explained.map(Json).ok_or_else(|| not_catalogued(&query.path))
}

pub(super) async fn status(State(api): State<Arc<Api>>) -> Json<StatusView> {
    Json(api.status_view())
}

pub(super) async fn swarm(State(api): State<Arc<Api>>) -> Json<SwarmView> {
    Json(api.parts.swarm.view())
}

pub(super) async fn publish(State(api): State<Arc<Api>>) -> Json<PublishView> {
    let walk = api.parts.catalog.rescan();
    tracing::info!(walk, "asked to publish what is in the repository now");
    Json(publication(&api, walk))
}

pub(super) async fn published(
    State(api): State<Arc<Api>>,
    walk: Result<Path<u64>, PathRejection>,
) -> Result<Json<PublishView>, Problem> {
    let Path(walk) = walk?;
    Ok(Json(publication(&api, walk)))
}

fn publication(api: &Api, walk: u64) -> PublishView {
    // In this order: what was walked is in the state that is read then.
    let walked = *api.parts.catalog.walks().borrow() >= walk;
    let catalog = api.parts.catalog.view();
    let released = api.parts.swarm.release().load();
    let done = walked && released.state.is_some() && released.sequence >= catalog.sequence;
    PublishView {
        walk,
        walked,
        pending: catalog.pending,
        sequence: catalog.sequence,
        released: released.sequence,
        done,
    }
}

async fn set_draining(
    api: &Api,
    node: Result<Path<String>, PathRejection>,
    draining: bool,
) -> Result<Json<NodeView>, Problem> {
    let id = known(api, node)?.id;
    let node = api.parts.registry.set_draining(id, draining).await?;
    api.parts.routing.rebuild();
    tracing::info!(node = %node.id, name = %node.name, draining, "drained or resumed");
    Ok(Json(api.node_view(&node)))
}

pub(super) fn known(api: &Api, node: Result<Path<String>, PathRejection>) -> Result<Arc<Node>, Problem> {
    let Path(text) = node?;
    api.parts.registry.nodes().by_name_or_id(&text).cloned().ok_or_else(|| {
        let text: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
        Problem::new(
            StatusCode::NOT_FOUND,
            format!("there is no volunteer {text}; `ctl node list` shows who there is"),
        )
    })
}

pub(super) fn not_catalogued(path: &str) -> Problem {
    let path: String = path.chars().filter(|c| !c.is_control()).take(200).collect();
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("{path} is not in the catalogue; `ctl status` tells how far it is"),
    )
}
