//! The port for people and monitoring: the status page, `/metrics`, `/healthz`, `/readyz`, in plain HTTP.
//!
//! It changes nothing and asks for no key, and tells neither secrets nor customers' addresses. It is not opened unless it
//! is configured; whoever wants the page on the open network puts a proxy in front of it.

mod chart;
mod live;
mod page;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::Stream;
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::api::Api;

/// What the page shows of the volunteers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct View {
    /// By which column.
    sort: String,
    /// Whose name, sponsor or state contains this.
    q: String,
    /// Which of the pages, from 1 on.
    page: usize,
}

/// The routes of the status port.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let room = Arc::new(Room { api, viewers: Arc::new(Semaphore::new(VIEWERS_MAX)) });
    Router::new()
        .route("/", get(overview))
        .route("/volunteer/{name}", get(volunteer))
        .route("/file", get(file))
        .route("/live", get(live_values))
        .route("/chart", get(chart_alone))
        .route("/style.css", get(async || asset("text/css; charset=utf-8", STYLE)))
        .route("/live.js", get(async || asset("text/javascript; charset=utf-8", SCRIPT)))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "up\n"))
        .route("/readyz", get(ready))
        .fallback(async || (StatusCode::NOT_FOUND, "there is nothing here; / is the status page\n"))
        .layer(middleware::from_fn(fields))
        .with_state(room)
}

struct Room {
    api: Arc<Api>,
    viewers: Arc<Semaphore>,
}

async fn overview(
    State(room): State<Arc<Room>>,
    view: Result<Query<View>, QueryRejection>,
) -> impl IntoResponse {
    // A query that can't be read shows the first page.
    page::overview(&room.api, &view.map(|Query(view)| view).unwrap_or_default())
}

async fn volunteer(State(room): State<Arc<Room>>, Path(name): Path<String>) -> Response {
    match page::volunteer(&room.api, &name) {
        Some(page) => page.into_response(),
        None => (StatusCode::NOT_FOUND, page::nothing("There is no volunteer of this name.")).into_response(),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FileQuery {
    path: String,
}

async fn file(State(room): State<Arc<Room>>, query: Result<Query<FileQuery>, QueryRejection>) -> Response {
    let path = query.map(|Query(query)| query.path).unwrap_or_default();
    match room.api.where_view(path.trim()) {
        Some(found) => page::file(&room.api, &found).into_response(),
        None => {
            let words = "This path is not in the catalogue. Paths are as in the repository, such as pool/main/a/b.deb.";
            (StatusCode::NOT_FOUND, page::nothing(words)).into_response()
        }
    }
}

/// What changes on the page, every other second, for as long as somebody looks.
async fn live_values(State(room): State<Arc<Room>>, view: Result<Query<View>, QueryRejection>) -> Response {
    let Ok(permit) = Arc::clone(&room.viewers).try_acquire_owned() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "so many look already; reload the page for newer figures\n",
        )
            .into_response();
    };
    let view = view.map(|Query(view)| view).unwrap_or_default();
    let stream = live_stream(Arc::clone(&room.api), view, permit);
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

fn live_stream(
    api: Arc<Api>,
    view: View,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let mut every = tokio::time::interval(live::EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    futures_util::stream::unfold((every, permit), move |(mut every, permit)| {
        let (api, view) = (Arc::clone(&api), view.clone());
        async move {
            every.tick().await;
            let values = live::values(&api, &view);
            let event = Event::default().json_data(&values).unwrap_or_default();
            Some((Ok(event), (every, permit)))
        }
    })
}

async fn chart_alone(State(room): State<Arc<Room>>) -> impl IntoResponse {
    chart::of(&room.api.parts().flows.hour())
}

async fn metrics(State(room): State<Arc<Room>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, freshet_api::metrics::CONTENT_TYPE)], room.api.scrape().text())
}

async fn ready(State(room): State<Arc<Room>>) -> Response {
    match room.api.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

fn asset(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "max-age=3600")], text)
}

/// Nothing from elsewhere, no frames, no guessing of types.
async fn fields(request: axum::extract::Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in FIELDS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

const FIELDS: [(&str, &str); 3] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
];
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");
/// Pages that follow live at most.
const VIEWERS_MAX: usize = 64;
