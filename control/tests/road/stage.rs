//! A control over a small repository, volunteers that only talk, and a customer that follows nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use freshet_api::admin::{AddNode, ApiError, NodeAdded, OperatorCredentials};
use freshet_api::enrol::{Fingerprint, JoinReply, JoinRequest, Secret};
use freshet_api::heartbeat::{
    DeliveryCounters, Heartbeat, HeartbeatReply, HoldingsDelta, Readiness, SyncProgress, holdings_digest,
};
use freshet_api::manifest::Manifest;
use freshet_api::traffic::{CounterSource, InterfaceCounters};
use freshet_api::{BytesPerSec, FileId, JoinString, NodeId, TicketKey, pin, release};
use freshet_control::serve::Control;
use freshet_control::settings::{Options, Settings};
use reqwest::{Client, Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

/// A file that is large enough to be redirected.
pub(crate) const BIG: &str = "pool/main/b/big+1_amd64.deb";
/// A file that the origin sends itself.
pub(crate) const SMALL: &str = "pool/small.txt";
/// An index, larger than `direct_below`.
pub(crate) const INDEX: &str = "dists/stable/main/binary-amd64/Packages";

/// Control with a repository.
pub(crate) struct Stage {
    repo: TempDir,
    state: TempDir,
    control: Option<Control>,
    customer: Client,
    prefer: Vec<String>,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(Vec::new()).await
    }

    /// With a rule about whom customers of a prefix prefer.
    pub(crate) async fn preferring(rule: &str) -> Self {
        Self::with(vec![rule.to_owned()]).await
    }

    async fn with(prefer: Vec<String>) -> Self {
        let repo = tempfile::tempdir().unwrap();
        for (path, bytes) in [(BIG, 300_000), (SMALL, 100), (INDEX, 90_000), ("pool/other.iso", 200_000)] {
            put(repo.path(), path, &content(path, bytes));
        }
        std::os::unix::fs::symlink("main/b/big+1_amd64.deb", repo.path().join("pool/latest.deb")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", repo.path().join("pool/escape")).unwrap();
        let customer = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent("customer/1")
            .tls_backend_preconfigured(pin::client_config(Fingerprint([0; 32])).unwrap())
            .build()
            .unwrap();
        let mut stage = Self { repo, state: tempfile::tempdir().unwrap(), control: None, customer, prefer };
        stage.start().await;
        stage
    }

    /// Starts control over the same state, and waits for the catalogue.
    pub(crate) async fn start(&mut self) {
        let options = Options {
            repo: Some(self.repo.path().to_owned()),
            state: Some(self.state.path().to_owned()),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            api: Some("127.0.0.1:0".parse().unwrap()),
            status: Some("127.0.0.1:0".parse().unwrap()),
            heartbeat_ms: Some(60_000),
            quiet_ms: Some(0),
            hold_secs: Some(0),
            rings: Some(1),
            grace_secs: Some(1),
            prefer: Some(self.prefer.clone()),
            ..Options::default()
        };
        let control = Control::start(Settings::check(options).unwrap()).await.unwrap();
        let mut scanned = control.catalog().first_scan();
        within(scanned.wait_for(|done| *done)).await.unwrap();
        self.control = Some(control);
        self.eventually(|stage| async move {
            let published = stage.control().catalog().load().sequence();
            stage
                .control()
                .swarm()
                .release()
                .load()
                .state
                .as_ref()
                .is_some_and(|state| state.sequence() >= published)
        })
        .await;
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(control) = self.control.take() {
            control.stop().await;
        }
    }

    pub(crate) fn control(&self) -> &Control {
        self.control.as_ref().unwrap()
    }

    pub(crate) fn repo(&self) -> &Path {
        self.repo.path()
    }

    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.control().addresses().public_url)
    }

    pub(crate) fn customer(&self) -> &Client {
        &self.customer
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.customer.get(self.url(path)).send().await.unwrap()
    }

    pub(crate) fn credentials(&self) -> OperatorCredentials {
        credentials(self.state())
    }

    /// The operator.
    pub(crate) fn operator(&self) -> Caller {
        operator(self.state())
    }

    pub(crate) async fn invite(&self, name: &str) -> JoinString {
        let added: NodeAdded =
            self.operator().ok(Method::POST, "admin/nodes", &AddNode { name: name.into() }).await;
        added.join.parse().unwrap()
    }

    /// A volunteer that has joined and said nothing yet.
    pub(crate) async fn volunteer(&self, name: &str, delivery_url: &str) -> Volunteer {
        Volunteer::join(&self.invite(name).await, delivery_url).await.unwrap()
    }

    /// A volunteer that holds everything and takes customers.
    pub(crate) async fn ready(&self, name: &str, delivery_url: &str) -> Volunteer {
        let mut volunteer = self.volunteer(name, delivery_url).await;
        volunteer.hold_everything().await;
        volunteer.beat().await;
        self.eventually(|stage| {
            let node = volunteer.node;
            async move { stage.holders(BIG).await.contains(&node) }
        })
        .await;
        volunteer
    }

    async fn holders(&self, path: &str) -> Vec<NodeId> {
        let view: freshet_api::admin::WhereView = self
            .operator()
            .ok(Method::GET, &format!("admin/where?path={}", path.replace('+', "%2B")), &())
            .await;
        view.holders.iter().map(|holder| holder.node).collect()
    }

    /// Waits until `condition` holds.
    pub(crate) async fn eventually<'a, F: Future<Output = bool>>(
        &'a self,
        condition: impl Fn(&'a Self) -> F,
    ) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self).await {
            assert!(Instant::now() < deadline, "what was waited for did not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The operator's credentials in a state directory.
pub(crate) fn credentials(state: &Path) -> OperatorCredentials {
    serde_json::from_slice(&std::fs::read(state.join("admin.json")).unwrap()).unwrap()
}

/// The operator of the control with this state directory.
pub(crate) fn operator(state: &Path) -> Caller {
    let credentials = credentials(state);
    Caller::new(&credentials.api, credentials.fingerprint, &credentials.token)
}

/// Somebody who talks to the API.
#[derive(Clone)]
pub(crate) struct Caller {
    http: Client,
    base: String,
    token: String,
    fingerprint: Fingerprint,
}

impl Caller {
    pub(crate) fn new(api: &str, fingerprint: Fingerprint, token: &Secret) -> Self {
        let http = Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(pin::client_config(fingerprint).unwrap())
            .build()
            .unwrap();
        Self { http, base: format!("https://{api}/v1/"), token: token.to_text(), fingerprint }
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> reqwest::Result<Response> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        request.bearer_auth(&self.token).body(body).send().await
    }

    pub(crate) async fn ok<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> T {
        let answer = self.send(method, path, serde_json::to_vec(body).unwrap()).await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn refused(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> (StatusCode, String) {
        let answer = self.send(method, path, serde_json::to_vec(body).unwrap()).await.unwrap();
        let status = answer.status();
        assert!(!status.is_success(), "{path}: {status}");
        (status, answer.json::<ApiError>().await.unwrap().error)
    }
}

/// A volunteer that joins, sends heartbeats, and delivers nothing.
pub(crate) struct Volunteer {
    pub(crate) node: NodeId,
    pub(crate) ticket_key: TicketKey,
    pub(crate) caller: Caller,
    pub(crate) next: Heartbeat,
    credential: Secret,
    held: Vec<FileId>,
}

impl Volunteer {
    pub(crate) async fn join(join: &JoinString, delivery_url: &str) -> Result<Self, (StatusCode, String)> {
        let mark = delivery_url.bytes().fold(7u8, |mark, byte| mark.wrapping_mul(31).wrapping_add(byte));
        let request = JoinRequest {
            secret: join.secret.clone(),
            credential: Secret([mark; 32]),
            ticket_key: TicketKey([mark ^ 0xff; 32]),
            version: "0.1.0".into(),
        };
        let caller = Caller::new(&join.api, join.fingerprint, &request.credential);
        let body = serde_json::to_vec(&request).unwrap();
        let answer = caller.send(Method::POST, "join", body).await.unwrap();
        if answer.status() != StatusCode::OK {
            return Err((answer.status(), answer.json::<ApiError>().await.unwrap().error));
        }
        let reply: JoinReply = answer.json().await.unwrap();
        let next = Heartbeat {
            boot: 1,
            sequence: 1,
            written_ms: None,
            version: "0.1.0".into(),
            delivery_url: delivery_url.into(),
            sync_url: None,
            readiness: Readiness::Ready,
            donated_rate: Some(BytesPerSec(1_000_000)),
            budget: None,
            source: CounterSource::Ebpf,
            interfaces: vec![InterfaceCounters { name: "eth0".into(), ..Default::default() }],
            delivery: DeliveryCounters::default(),
            sync: SyncProgress::default(),
            holdings: HoldingsDelta::default(),
        };
        Ok(Self {
            node: reply.node,
            ticket_key: request.ticket_key,
            caller,
            next,
            credential: request.credential,
            held: Vec::new(),
        })
    }

    /// Talks to the API where it is now: control takes any port at each start here.
    pub(crate) fn find(&mut self, state: &Path) {
        let credentials = credentials(state);
        self.caller = Caller::new(&credentials.api, credentials.fingerprint, &self.credential);
    }

    pub(crate) async fn manifest(&self) -> Manifest {
        let answer = self.caller.send(Method::GET, "manifest", Vec::new()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let seal = answer.headers()[release::FIELD].to_str().unwrap().to_owned();
        let wire = answer.bytes().await.unwrap();
        let manifest = Manifest::decode(&wire).unwrap();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let signed = release::open(&seal, &wire, self.caller.fingerprint, now).unwrap();
        assert_eq!((signed.sequence, signed.previous), (manifest.sequence, manifest.base));
        manifest
    }

    /// Puts every file of the manifest into the next heartbeat.
    pub(crate) async fn hold_everything(&mut self) {
        let files: Vec<FileId> = self.manifest().await.files.iter().map(|file| file.file).collect();
        self.hold(&files);
    }

    pub(crate) fn hold(&mut self, files: &[FileId]) {
        self.held.extend_from_slice(files);
        self.next.holdings = HoldingsDelta {
            added: files.to_vec(),
            removed: Vec::new(),
            count: self.held.len() as u64,
            digest: self.held.iter().fold(0, |digest, file| digest ^ holdings_digest(*file)),
        };
    }

    /// Sends the next heartbeat, and says whether it was acknowledged.
    pub(crate) async fn try_beat(&mut self) -> bool {
        let body = serde_json::to_vec(&self.next).unwrap();
        self.next.sequence += 1;
        let answer = self.caller.send(Method::POST, "heartbeat", body).await;
        let Ok(answer) = answer else { return false };
        answer.status() == StatusCode::OK && answer.json::<HeartbeatReply>().await.is_ok()
    }

    /// Sends the next heartbeat.
    pub(crate) async fn beat(&mut self) -> HeartbeatReply {
        let reply = self.caller.ok(Method::POST, "heartbeat", &self.next).await;
        self.next.sequence += 1;
        self.next.holdings.added.clear();
        reply
    }

    /// A blob of a sync port.
    pub(crate) async fn get(&self, url: &str, token: &str) -> Vec<u8> {
        let answer = self.caller.http.get(url).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{url}");
        answer.bytes().await.unwrap().to_vec()
    }

    pub(crate) async fn put_holdings(&self) {
        let held: roaring::RoaringBitmap = self.held.iter().map(|file| file.0).collect();
        let mut body = Vec::new();
        held.serialize_into(&mut body).unwrap();
        let answer = self.caller.send(Method::PUT, "holdings", body).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }
}

/// The bytes of a file of the repository.
pub(crate) fn content(path: &str, bytes: usize) -> Vec<u8> {
    path.bytes().cycle().zip(0u32..).map(|(byte, i)| byte ^ (i >> 8) as u8).take(bytes).collect()
}

/// Puts a file in one step, written outside the repository, where a control that waits for no quiet sees nothing of it.
pub(crate) fn put(repo: &Path, path: &str, bytes: &[u8]) {
    let path = repo.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let temporary = repo.with_extension("new~");
    std::fs::write(&temporary, bytes).unwrap();
    std::fs::rename(temporary, path).unwrap();
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("what was waited for did not come")
}

/// The `Location` of a redirect.
pub(crate) fn location(answer: &Response) -> String {
    assert_eq!(answer.status(), StatusCode::FOUND, "{answer:?}");
    answer.headers()["location"].to_str().unwrap().to_owned()
}

/// The ticket in a URL, and the URL before it.
pub(crate) fn ticket(url: &str) -> (&str, &str) {
    let (place, ticket) = url.split_once("?t=").unwrap();
    (ticket, place)
}

const PATIENCE: Duration = Duration::from_secs(20);
