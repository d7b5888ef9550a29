//! A control that says what a test wants it to say, and remembers what it was told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use freshet_api::enrol::{Fingerprint, JoinReply, JoinRequest, JoinString, Secret};
use freshet_api::heartbeat::{Heartbeat, HeartbeatReply};
use freshet_api::manifest::Manifest;
use freshet_api::release::{self, ReleaseHeader, ReleaseSigner};
use freshet_api::{ContentHash, NodeId};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use roaring::RoaringBitmap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Its token for the sync port.
pub(crate) const SYNC_TOKEN: &str = "let-me-in";

/// A control that runs until it is dropped.
pub(crate) struct FakeControl {
    pub(crate) api: SocketAddr,
    pub(crate) fingerprint: Fingerprint,
    state: Arc<Mutex<State>>,
    _runtime: tokio::runtime::Runtime,
}

/// What it says and what it was told.
pub(crate) struct State {
    pub(crate) heartbeats: Vec<Heartbeat>,
    pub(crate) joins: Vec<JoinRequest>,
    pub(crate) holdings: Vec<RoaringBitmap>,
    /// So many answers to joins are lost on the way.
    pub(crate) lose_joins: usize,
    /// Every request is answered so, if set.
    pub(crate) refuse: Option<StatusCode>,
    /// Every connection is closed without a word.
    pub(crate) away: bool,
    pub(crate) reply: HeartbeatReply,
    pub(crate) manifest: Manifest,
    signer: ReleaseSigner,
    pub(crate) blobs: HashMap<ContentHash, Vec<u8>>,
    /// The credential that volunteers must show.
    pub(crate) credential: Option<Secret>,
}

impl FakeControl {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["control".into()]).unwrap();
        let certificate: CertificateDer<'static> = made.cert.der().clone();
        let fingerprint = Fingerprint::of(&certificate);
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let signer = ReleaseSigner::new(&key, certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (api, sync) = runtime.block_on(async {
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap())
        });
        let (api_address, sync_address) = (api.local_addr().unwrap(), sync.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            heartbeats: Vec::new(),
            joins: Vec::new(),
            holdings: Vec::new(),
            lose_joins: 0,
            refuse: None,
            away: false,
            reply: HeartbeatReply {
                interval_ms: 50,
                manifest_sequence: 0,
                front_door: "http://front.example".into(),
                origin_sync_url: format!("http://{sync_address}"),
                sync_token: SYNC_TOKEN.into(),
                want_holdings: false,
                draining: false,
                banned: None,
                delivery_permille: None,
                small_first: false,
                hold: None,
            },
            manifest: Manifest::default(),
            signer,
            blobs: HashMap::new(),
            credential: None,
        }));
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            loop {
                let (stream, _) = api.accept().await.unwrap();
                let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    // A client that dislikes the certificate hangs up.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, shared).await;
                    }
                });
            }
        });
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            loop {
                let (stream, _) = sync.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { api: api_address, fingerprint, state, _runtime: runtime }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn join_string(&self, secret: u8) -> JoinString {
        JoinString { api: self.api.to_string(), secret: Secret([secret; 32]), fingerprint: self.fingerprint }
    }

    /// Publishes these files as the catalogue's present state.
    pub(crate) fn publish(&self, manifest: Manifest, contents: &[&[u8]]) {
        let mut state = self.state();
        for content in contents {
            state.blobs.insert(blake3::hash(content).into(), content.to_vec());
        }
        state.reply.manifest_sequence = manifest.sequence;
        state.manifest = manifest;
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<Mutex<State>>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { answer(request, &state).await.ok_or_else(|| std::io::Error::other("no answer")) }
    });
    // An answer that is withheld ends the connection, which is what the test wants.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// `None` closes the connection.
async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> Option<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let bearer =
        head.headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let mut state = state.lock().unwrap();
    if state.away {
        return None;
    }
    if let Some(status) = state.refuse {
        return Some(respond(status, br#"{"error":"so the test wants it"}"#.to_vec()));
    }
    let path = head.uri.path();
    if let Some(hash) = path.strip_prefix("/blob/") {
        let blob = hash.parse().ok().and_then(|hash: ContentHash| state.blobs.get(&hash));
        return Some(match blob {
            _ if bearer != Some(SYNC_TOKEN) => respond(StatusCode::UNAUTHORIZED, Vec::new()),
            Some(blob) => respond(StatusCode::OK, blob.clone()),
            None => respond(StatusCode::NOT_FOUND, Vec::new()),
        });
    }
    if path == "/v1/join" {
        let request: JoinRequest = serde_json::from_slice(&body).unwrap();
        state.credential = Some(request.credential.clone());
        state.joins.push(request);
        if state.lose_joins > 0 {
            state.lose_joins -= 1;
            return None;
        }
        let front_door = state.reply.front_door.clone();
        return Some(json(&JoinReply { node: NodeId(7), name: "seven".into(), front_door }));
    }
    if bearer.map(str::to_owned) != state.credential.as_ref().map(Secret::to_text) {
        return Some(respond(StatusCode::UNAUTHORIZED, br#"{"error":"who are you"}"#.to_vec()));
    }
    Some(match path {
        "/v1/heartbeat" => {
            state.heartbeats.push(serde_json::from_slice(&body).unwrap());
            json(&state.reply)
        }
        "/v1/holdings" => {
            state.holdings.push(RoaringBitmap::deserialize_from(&body[..]).unwrap());
            state.reply.want_holdings = false;
            respond(StatusCode::NO_CONTENT, Vec::new())
        }
        "/v1/manifest" => signed(&state),
        _ => respond(StatusCode::NOT_FOUND, Vec::new()),
    })
}

fn signed(state: &State) -> Response<Full<Bytes>> {
    let wire = state.manifest.encode().unwrap();
    let header = ReleaseHeader {
        sequence: state.manifest.sequence,
        previous: state.manifest.base,
        manifest: ContentHash::of(&wire),
        valid_until: u64::MAX,
    };
    let seal = state.signer.seal(&header).unwrap();
    let mut response = respond(StatusCode::OK, wire);
    response.headers_mut().insert(release::FIELD, seal.parse().unwrap());
    response
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, serde_json::to_vec(value).unwrap())
}

fn respond(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
