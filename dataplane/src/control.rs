//! Control's API as a volunteer uses it: a few requests over one pinned connection.
//!
//! It repeats nothing by itself and keeps no state: what an answer means is its caller's business.

use std::time::Duration;

use bytes::Bytes;
use freshet_api::admin::ApiError;
use freshet_api::bundle::BundleId;
use freshet_api::enrol::{Fingerprint, JoinReply, JoinRequest, Secret};
use freshet_api::heartbeat::{Heartbeat, HeartbeatReply};
use freshet_api::manifest::{BYTES_MAX, ManifestAsk, ManifestHeld, ManifestOffer};
use freshet_api::release::{self, ReleaseError};
use freshet_api::swarm::{BundleList, SwarmPoll, SwarmReply};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;

use crate::link::{Dialer, LinkError};
use crate::swarm::{ManifestAnswer, ManifestDesk, SignedManifest, Tracker};
use crate::sync::FetchError;

/// Control's API at one address.
#[derive(Clone)]
pub struct ControlClient {
    dialer: Dialer,
    base: String,
    authorization: Option<HeaderValue>,
    /// By whose key releases must be signed; nobody has that of zeros.
    signed_by: Fingerprint,
}

impl ControlClient {
    /// For the API at `api` (`host:port`), over connections of `dialer`, which pins the certificate.
    pub fn new(dialer: Dialer, api: &str) -> Self {
        Self { dialer, base: format!("https://{api}"), authorization: None, signed_by: Fingerprint([0; 32]) }
    }

    /// The same, as the volunteer that this credential belongs to.
    #[must_use]
    pub fn as_volunteer(mut self, credential: &Secret) -> Self {
        // base64url is always a header value.
        self.authorization =
            HeaderValue::try_from(format!("Bearer {}", credential.to_text())).ok().map(|mut value| {
                value.set_sensitive(true);
                value
            });
        self
    }

    /// The same, taking only manifests that the key with this fingerprint signed.
    #[must_use]
    pub fn signed_by(mut self, fingerprint: Fingerprint) -> Self {
        self.signed_by = fingerprint;
        self
    }

    /// `POST /v1/join`.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinReply, ControlError> {
        self.exchange("/v1/join", request).await
    }

    /// `POST /v1/heartbeat`.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<HeartbeatReply, ControlError> {
        self.exchange("/v1/heartbeat", heartbeat).await
    }

    /// `PUT /v1/holdings`: everything that is held, as a Roaring bitmap in its portable form.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn put_holdings(&self, bitmap: Vec<u8>) -> Result<(), ControlError> {
        self.send(Method::PUT, "/v1/holdings", "application/octet-stream", bitmap.into()).await.map(drop)
    }

    async fn get(&self, target: &str, bytes_max: usize) -> Result<Bytes, ControlError> {
        self.answer(self.request(Method::GET, target, Bytes::new())?, bytes_max).await
    }

    async fn exchange<R: DeserializeOwned>(
        &self,
        path: &'static str,
        message: &impl serde::Serialize,
    ) -> Result<R, ControlError> {
        let body = serde_json::to_vec(message).map_err(|source| ControlError::Nonsense { path, source })?;
        let answer = self.send(Method::POST, path, "application/json", body.into()).await?;
        serde_json::from_slice(&answer).map_err(|source| ControlError::Nonsense { path, source })
    }

    async fn send(
        &self,
        method: Method,
        path: &'static str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<Bytes, ControlError> {
        let mut request = self.request(method, path, body)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.answer(request, ANSWER_BYTES_MAX).await
    }

    fn request(&self, method: Method, target: &str, body: Bytes) -> Result<Request<Bytes>, ControlError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{target}", self.base))
            .body(body)
            .map_err(|_| LinkError::BadUrl { url: self.base.clone() })?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    async fn answer(&self, request: Request<Bytes>, bytes_max: usize) -> Result<Bytes, ControlError> {
        Ok(self.answer_with_head(request, bytes_max).await?.1)
    }

    async fn answer_with_head(
        &self,
        request: Request<Bytes>,
        bytes_max: usize,
    ) -> Result<(http::response::Parts, Bytes), ControlError> {
        let (head, body) = self.dialer.request(request, bytes_max).await?.into_parts();
        if head.status.is_success() {
            return Ok((head, body));
        }
        let why = match serde_json::from_slice::<ApiError>(&body) {
            Ok(answer) => answer.error,
            Err(_) => String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned(),
        };
        let retry_after = head
            .headers
            .get(http::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        Err(ControlError::Refused { status: head.status, why, retry_after })
    }
}

impl ManifestDesk for ControlClient {
    async fn ask(&self, ask: &ManifestAsk) -> Result<ManifestAnswer, FetchError> {
        let failed = |error| fetch_error(self.base.clone(), error);
        let body = serde_json::to_vec(ask)
            .map_err(|source| failed(ControlError::Nonsense { path: MANIFEST, source }))?;
        let mut request = self.request(Method::POST, MANIFEST, body.into()).map_err(failed)?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (head, body) = self.answer_with_head(request, ANSWER_BYTES_MAX).await.map_err(failed)?;
        if head.headers.get(CONTENT_TYPE).is_none_or(|kind| kind != "application/json") {
            return self.signed(body, &head).await.map(ManifestAnswer::Whole);
        }
        let offer: ManifestOffer = serde_json::from_slice(&body)
            .map_err(|source| failed(ControlError::Nonsense { path: MANIFEST, source }))?;
        let header = release::header(seal(&head), self.signed_by, now_secs());
        match header.map_err(|error| failed(ControlError::Release(error)))? {
            header if header.manifest == offer.manifest => Ok(ManifestAnswer::At(offer, header)),
            _ => Err(failed(ControlError::Release(ReleaseError::OtherManifest))),
        }
    }

    async fn whole(&self, since: Option<u64>) -> Result<SignedManifest, FetchError> {
        let failed = |error| fetch_error(self.base.clone(), error);
        let query = since.map(|since| format!("?since={since}")).unwrap_or_default();
        let request =
            self.request(Method::GET, &format!("{MANIFEST}{query}"), Bytes::new()).map_err(failed)?;
        let (head, body) = self.answer_with_head(request, BYTES_MAX).await.map_err(failed)?;
        self.signed(body, &head).await
    }

    async fn held(&self, held: ManifestHeld) -> Result<(), FetchError> {
        let failed = |error| fetch_error(self.base.clone(), error);
        let body = serde_json::to_vec(&held)
            .map_err(|source| failed(ControlError::Nonsense { path: HELD, source }))?;
        self.send(Method::POST, HELD, "application/json", body.into()).await.map(drop).map_err(failed)
    }
}

impl ControlClient {
    /// A manifest that came whole, with what was signed of it.
    async fn signed(&self, wire: Bytes, head: &http::response::Parts) -> Result<SignedManifest, FetchError> {
        let (seal, signed_by, bytes) = (seal(head).to_owned(), self.signed_by, wire.clone());
        // A large one takes a while to hash.
        let opened =
            tokio::task::spawn_blocking(move || release::open(&seal, &bytes, signed_by, now_secs())).await;
        let header = opened.unwrap_or(Err(ReleaseError::Damaged));
        let header = header.map_err(|error| fetch_error(self.base.clone(), ControlError::Release(error)))?;
        Ok(SignedManifest { header, wire })
    }
}

/// What control signed of the manifest that an answer is about.
fn seal(head: &http::response::Parts) -> &str {
    head.headers.get(release::FIELD).and_then(|seal| seal.to_str().ok()).unwrap_or_default()
}

fn now_secs() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}

impl Tracker for ControlClient {
    async fn bundles(&self) -> Result<BundleList, FetchError> {
        let failed = |error| asked(BUNDLES, self.base.clone(), error);
        let answer = self.get(BUNDLES, ANSWER_BYTES_MAX).await.map_err(failed)?;
        serde_json::from_slice(&answer)
            .map_err(|source| failed(ControlError::Nonsense { path: BUNDLES, source }))
    }

    async fn bundle(&self, id: BundleId) -> Result<Bytes, FetchError> {
        let answer = self.get(&format!("{BUNDLE}{id}"), freshet_api::bundle::BYTES_MAX).await;
        answer.map_err(|error| asked(BUNDLE, self.base.clone(), error))
    }

    async fn poll(&self, poll: &SwarmPoll) -> Result<SwarmReply, FetchError> {
        self.exchange(SWARM, poll).await.map_err(|error| asked(SWARM, self.base.clone(), error))
    }
}

fn asked(path: &'static str, from: String, error: ControlError) -> FetchError {
    match error {
        ControlError::Refused { status, .. } if matches!(status.as_u16(), 404 | 410) => {
            FetchError::Gone { from, status: status.as_u16(), path: path.to_owned() }
        }
        error => fetch_error(from, error),
    }
}

fn fetch_error(from: String, error: ControlError) -> FetchError {
    match error {
        ControlError::Link(error) => error.into(),
        ControlError::Refused { status, why, retry_after } => match status.as_u16() {
            401 | 403 => FetchError::Denied { from, status: status.as_u16() },
            408 | 425 | 429 | 500..=599 => FetchError::Busy { from, status: status.as_u16(), retry_after },
            _ => nonsense(from, format!("{status}: {why}")),
        },
        error => nonsense(from, error.to_string()),
    }
}

fn nonsense(from: String, found: String) -> FetchError {
    FetchError::Nonsense { from, path: MANIFEST.to_owned(), expected: "a manifest".into(), found }
}

/// Why control did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It was not reached, or not it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It said no.
    #[error("control answered {status}: {why}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its words.
        why: String,
        /// When it wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
    /// Its answer can't be read.
    #[error(
        "control's answer to {path} can't be read ({source}); bring control and dataplane to the same version"
    )]
    Nonsense {
        /// What was asked.
        path: &'static str,
        /// Where.
        source: serde_json::Error,
    },
    /// A manifest came that its key did not sign.
    #[error("a manifest came that is not a release of control: {0}")]
    Release(ReleaseError),
    /// It did not answer.
    #[error("control did not answer within {} s", waited.as_secs())]
    Silent {
        /// How long was waited.
        waited: Duration,
    },
    /// The holdings could not be written down.
    #[error("the holdings can't be encoded: {source}")]
    Bitmap {
        /// Why.
        source: std::io::Error,
    },
}

impl ControlError {
    /// Whether control does not know this host (any more).
    pub fn is_unknown_host(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if matches!(status.as_u16(), 401 | 403))
    }
}

const MANIFEST: &str = "/v1/manifest";
const HELD: &str = "/v1/manifest/held";
const BUNDLES: &str = "/v1/bundles";
const BUNDLE: &str = "/v1/bundle/";
const SWARM: &str = "/v1/swarm";
/// Bytes of an answer at most, manifests apart.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use freshet_api::ContentHash;
    use freshet_api::manifest::{Manifest, ManifestFrom};
    use freshet_api::release::{ReleaseHeader, ReleaseSigner};
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::link::DialerOptions;

    /// Answers every request with what is in `answer`.
    async fn serve(
        listener: tokio::net::TcpListener,
        tls: rustls::ServerConfig,
        answer: Arc<Mutex<Vec<u8>>>,
    ) {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut head = Vec::new();
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let answer = answer.lock().unwrap().clone();
                stream.write_all(&answer).await.unwrap();
                let _ = stream.shutdown().await;
            });
        }
    }

    #[tokio::test]
    async fn only_what_control_signed_is_taken_for_a_release() {
        let made = rcgen::generate_simple_self_signed(vec!["control".into()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let signer = ReleaseSigner::new(&key, certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(serve(listener, tls, Arc::clone(&answer)));

        let fingerprint = Fingerprint::of(&certificate);
        let tls = Some(Arc::new(freshet_api::pin::client_config(fingerprint).unwrap()));
        let dialer = Dialer::new(DialerOptions { tls, ..DialerOptions::new(3) });
        let client = ControlClient::new(dialer, &address.to_string()).signed_by(fingerprint);
        let manifest = Manifest { sequence: 5, ..Manifest::default() };
        let wire = manifest.encode().unwrap();
        let ask = async |seal: Option<String>| {
            let field = seal.map(|seal| format!("{}: {seal}\r\n", release::FIELD)).unwrap_or_default();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{field}\r\n", wire.len());
            *answer.lock().unwrap() = [head.as_bytes(), &wire].concat();
            client.whole(None).await.map_err(|error| error.to_string())?.decode()
        };
        let header = ReleaseHeader {
            sequence: 5,
            previous: None,
            manifest: ContentHash::of(&wire),
            valid_until: u64::MAX,
        };
        let seal = |header: ReleaseHeader| Some(signer.seal(&header).unwrap());
        assert_eq!(ask(seal(header)).await, Ok(manifest));
        let refused = ask(None).await.unwrap_err();
        assert!(refused.contains("not a release of control"), "{refused}");
        let other = ReleaseHeader { manifest: ContentHash::of(b"other"), ..header };
        let refused = ask(seal(other)).await.unwrap_err();
        assert!(refused.contains("another manifest"), "{refused}");
        let refused = ask(seal(ReleaseHeader { valid_until: 1, ..header })).await.unwrap_err();
        assert!(refused.contains("clock"), "{refused}");
        let refused = ask(seal(ReleaseHeader { sequence: 6, ..header })).await.unwrap_err();
        assert!(refused.contains("under the signature of state 6"), "{refused}");

        let offered = async |seal: Option<String>, manifest: ContentHash| {
            let offer = ManifestOffer { manifest, bytes: 9, from: ManifestFrom::Origin };
            let body = serde_json::to_vec(&offer).unwrap();
            let field = seal.map(|seal| format!("{}: {seal}\r\n", release::FIELD)).unwrap_or_default();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{field}\r\n",
                body.len()
            );
            *answer.lock().unwrap() = [head.as_bytes(), &body].concat();
            client.ask(&ManifestAsk::default()).await.map_err(|error| error.to_string())
        };
        let at = offered(seal(header), header.manifest).await;
        assert!(matches!(at, Ok(ManifestAnswer::At(_, signed)) if signed == header), "{at:?}");
        let refused = offered(seal(header), ContentHash::of(b"other")).await.unwrap_err();
        assert!(refused.contains("another manifest"), "{refused}");
        assert!(offered(None, header.manifest).await.is_err());
        let late = seal(ReleaseHeader { valid_until: 1, ..header });
        assert!(offered(late, header.manifest).await.unwrap_err().contains("clock"));
    }
}
