//! What goes wrong in the API, as a status and one sentence in JSON.

use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use freshet_api::admin::ApiError;
use http::{HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;

use crate::registry::RegistryError;

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(super) fn starting() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "control is starting; try again in a second")
    }

    pub(super) fn unauthorised(text: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, text)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ApiError { error: self.text })).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        let status = match error {
            RegistryError::UnknownNode { .. } => StatusCode::NOT_FOUND,
            RegistryError::NameTaken { .. } | RegistryError::Full { .. } => StatusCode::CONFLICT,
            RegistryError::UnknownSecret
            | RegistryError::SecretExpired { .. }
            | RegistryError::SecretUsed => StatusCode::FORBIDDEN,
            RegistryError::Storage { .. } | RegistryError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

/// Reads a JSON body, whatever its `Content-Type`.
pub(super) fn parse<T: DeserializeOwned>(
    body: Result<axum::body::Bytes, BytesRejection>,
) -> Result<T, Problem> {
    serde_json::from_slice(&body?).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, format!("the body is not as expected: {error}"))
    })
}

pub(super) async fn no_such_route() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "there is nothing at this path; volunteer, ctl and control should be of one version",
    )
}

pub(super) async fn no_such_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path is not asked for with this method")
}

/// Ends a request that takes too long.
pub(super) async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let words = format!("the request was not done within {} s", REQUEST_TIMEOUT.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, words).into_response()
        }
    }
}

/// For reading a body and making an answer; sending the answer is not within it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
