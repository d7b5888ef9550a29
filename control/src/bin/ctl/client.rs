//! The admin API over TLS pinned to control's certificate; no proxy and no redirect is followed.

use std::path::PathBuf;
use std::time::Duration;

use freshet_api::admin::{ApiError, OperatorCredentials};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A connection to control's admin API.
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The credentials can't be used.
    #[error(
        "cannot use the operator's credentials in {}: {reason}; name the file that control wrote with \
         --credentials FILE (it is STATE/admin.json on the origin host)",
        file.display()
    )]
    Credentials {
        /// Which file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// No answer.
    #[error("cannot reach control at {base}: {reason}; is `control serve` running there?")]
    Unreachable {
        /// Where.
        base: String,
        /// Why.
        reason: String,
    },
    /// It doesn't exist.
    #[error("{message}")]
    NotFound {
        /// Control's words.
        message: String,
    },
    /// Control said no.
    #[error("control refused ({status}): {message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its words.
        message: String,
    },
    /// A volunteer sent other bytes than the repository's.
    #[error("{name} was caught with wrong bytes")]
    Caught {
        /// Which.
        name: String,
    },
    /// An answer that `ctl` doesn't understand.
    #[error("control's answer is not understood ({reason}); bring ctl and control to the same version")]
    Garbled {
        /// Why.
        reason: String,
    },
}

impl Client {
    pub(crate) fn new(credentials: OperatorCredentials) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(freshet_api::pin::client_config(credentials.fingerprint)?)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()?;
        Ok(Self {
            http,
            base: format!("https://{}/v1/admin/", credentials.api),
            token: credentials.token.to_text(),
        })
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        self.call(self.request(Method::GET, path).query(query)).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.call(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(self.request(Method::DELETE, path)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    async fn call<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| Failure::Garbled { reason: error.to_string() });
        }
        let message = match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => error.error,
            Err(_) => String::from_utf8_lossy(&body).chars().take(MESSAGE_CHARS_MAX).collect(),
        };
        match status {
            StatusCode::NOT_FOUND => Err(Failure::NotFound { message }),
            _ => Err(Failure::Refused { status, message }),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        // The innermost cause names what a person can act on (connection refused, another fingerprint).
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Failure::Unreachable { base: self.base.clone(), reason: cause.to_string() }
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const MESSAGE_CHARS_MAX: usize = 300;
