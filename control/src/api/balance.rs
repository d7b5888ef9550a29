//! What operators turn while control runs: the balance of requests, delivery and sync, and who holds what.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use freshet_api::balance::{BalanceView, Change, Revert, SetKnob};
use freshet_api::placement::{Expectation, Forget, PlacementView};
use http::StatusCode;

use super::Api;
use super::problem::{Problem, parse};
use super::volunteer::now_secs;
use crate::balance::{DeskError, PlacementError};

/// Whose key a request brings; put into it where that is checked.
#[derive(Clone, Debug)]
pub(super) struct Who(pub(super) Arc<str>);

pub(super) async fn balance(State(api): State<Arc<Api>>) -> Json<BalanceView> {
    Json(view(&api))
}

pub(super) async fn set(
    State(api): State<Arc<Api>>,
    who: Option<Extension<Who>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<BalanceView>, Problem> {
    let SetKnob { knob, value } = parse(body)?;
    let who = who.map_or_else(|| "admin".into(), |Extension(Who(name))| name);
    let setting = Arc::clone(&api);
    blocking(move || setting.parts.balance.set(&knob, &value, &who, now_secs())).await??;
    Ok(Json(view(&api)))
}

pub(super) async fn revert(
    State(api): State<Arc<Api>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Vec<Change>>, Problem> {
    let Revert { changes } = parse(body)?;
    let reverting = Arc::clone(&api);
    Ok(Json(blocking(move || reverting.parts.balance.revert(changes)).await??))
}

pub(super) async fn placement(State(api): State<Arc<Api>>) -> Json<PlacementView> {
    Json(placement_view(&api))
}

pub(super) async fn expect(
    State(api): State<Arc<Api>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PlacementView>, Problem> {
    let expectation: Expectation = parse(body)?;
    let expecting = Arc::clone(&api);
    blocking(move || expecting.parts.steward.planner().expect(expectation, now_secs())).await??;
    Ok(Json(placement_view(&api)))
}

pub(super) async fn forget(
    State(api): State<Arc<Api>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PlacementView>, Problem> {
    let Forget { pattern } = parse(body)?;
    let forgetting = Arc::clone(&api);
    blocking(move || forgetting.parts.steward.planner().forget(&pattern)).await??;
    Ok(Json(placement_view(&api)))
}

fn view(api: &Api) -> BalanceView {
    let (knobs, changes) = api.parts.balance.view();
    BalanceView { knobs, changes, shares: api.parts.steward.view() }
}

fn placement_view(api: &Api) -> PlacementView {
    api.parts.steward.planner().view(api.parts.balance.rules().balance.placement)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "it ended badly; see control's log"))
}

impl From<DeskError> for Problem {
    fn from(error: DeskError) -> Self {
        let status = match &error {
            DeskError::Balance(_) | DeskError::Changes { .. } => StatusCode::BAD_REQUEST,
            DeskError::File { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem::new(status, error.to_string())
    }
}

impl From<PlacementError> for Problem {
    fn from(error: PlacementError) -> Self {
        let status = match &error {
            PlacementError::Unknown { .. } => StatusCode::NOT_FOUND,
            PlacementError::File { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        Problem::new(status, error.to_string())
    }
}
