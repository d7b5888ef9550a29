//! Manifests handed on from volunteer to volunteer, by the books that control keeps.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;

use bytes::Bytes;
use freshet_api::manifest::{
    Manifest, ManifestAsk, ManifestFailed, ManifestFile, ManifestFrom, ManifestHeld, ManifestOffer,
};
use freshet_api::release::ReleaseHeader;
use freshet_api::swarm::PeerHint;
use freshet_api::{Bytes as Amount, FileId, SyncKey, SyncToken};
use freshet_policy::Moment;
use freshet_policy::swarm::{Relay, RelaySource, RelayTerms};
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::field::hash;
use super::*;
use crate::sync::{FetchError, ManifestSource as _};

/// Control's side of one manifest.
struct Books {
    manifest: Manifest,
    wire: Bytes,
    relay: Mutex<Relay>,
    ports: Mutex<BTreeMap<NodeId, String>>,
    failed: Mutex<Vec<(NodeId, ManifestFailed)>>,
    held: Mutex<Vec<(NodeId, bool)>>,
    /// Who got it from control itself.
    whole: Mutex<Vec<NodeId>>,
    begun: Instant,
}

impl Books {
    fn new(rows: u32) -> Arc<Self> {
        let file = |number: u32| ManifestFile {
            file: FileId(number),
            path: format!("pool/{number:06}.deb").parse().unwrap(),
            size: 9,
            mtime: 1,
            content: hash(&number.to_le_bytes()),
            last: false,
        };
        let manifest = Manifest { sequence: 4, files: (0..rows).map(file).collect(), ..Manifest::default() };
        let wire = Bytes::from(manifest.encode().unwrap());
        let relay = Relay::new(RelayTerms::of(Amount(wire.len() as u64), 1));
        Arc::new(Self {
            manifest,
            wire,
            relay: Mutex::new(relay),
            ports: Mutex::default(),
            failed: Mutex::default(),
            held: Mutex::default(),
            whole: Mutex::default(),
            begun: Instant::now(),
        })
    }

    fn signed(&self) -> SignedManifest {
        let header = ReleaseHeader {
            sequence: self.manifest.sequence,
            previous: None,
            manifest: hash(&self.wire),
            valid_until: u64::MAX,
        };
        SignedManifest { header, wire: self.wire.clone() }
    }
}

/// Them, as one volunteer sees them.
#[derive(Clone)]
struct Desk {
    books: Arc<Books>,
    node: NodeId,
}

impl ManifestDesk for Desk {
    async fn ask(&self, ask: &ManifestAsk) -> Result<ManifestAnswer, FetchError> {
        let books = &self.books;
        let mut relay = books.relay.lock().unwrap();
        if let Some(failed) = &ask.failed {
            assert!(relay.failed(self.node, failed.peer));
            books.failed.lock().unwrap().push((self.node, failed.clone()));
        }
        let from = match relay.ask(self.node, Moment::from_secs_f64(books.begun.elapsed().as_secs_f64())) {
            RelaySource::Later => ManifestFrom::Later,
            RelaySource::Origin => ManifestFrom::Origin,
            RelaySource::Peer(node) => {
                let key = SyncKey::of_volunteer(&Field::key(node));
                let token = SyncToken { node: self.node, expires: u32::MAX }.seal(&key);
                let url = books.ports.lock().unwrap()[&node].clone();
                ManifestFrom::Peer(PeerHint { node, url, token })
            }
        };
        let signed = books.signed();
        let bytes = signed.wire.len() as u64;
        Ok(ManifestAnswer::At(ManifestOffer { manifest: signed.header.manifest, bytes, from }, signed.header))
    }

    async fn whole(&self, _since: Option<u64>) -> Result<SignedManifest, FetchError> {
        self.books.whole.lock().unwrap().push(self.node);
        Ok(self.books.signed())
    }

    async fn held(&self, held: ManifestHeld) -> Result<(), FetchError> {
        assert_eq!(held.manifest, hash(&self.books.wire));
        self.books.held.lock().unwrap().push((self.node, held.serves));
        self.books.relay.lock().unwrap().has(self.node, held.serves);
        Ok(())
    }
}

/// A volunteer that wants a manifest and nothing else.
struct Reader {
    source: Arc<RelayedManifests<Desk>>,
    port: Option<PeerPort>,
    _directory: tempfile::TempDir,
}

impl Reader {
    async fn new(books: &Arc<Books>, field: &Field, node: u32, serves: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = MirrorOptions::new(directory.path().join("state"), directory.path().join("tree"));
        let mirror = reopening::open(&options).await;
        let counting = freshet_ebpf::Options { classifiers: false, ..Default::default() };
        let classes = freshet_ebpf::open(counting).unwrap().classes;
        let (shelves, node) = (Shelves::default(), NodeId(node));
        let open = || {
            let pace = Arc::new(Slowed(0.into())) as Arc<dyn Pacer>;
            let address = "127.0.0.1:0".parse().unwrap();
            PeerPort::open(address, None, &Field::key(node), mirror, shelves.clone(), pace, &classes).unwrap()
        };
        let port = serves.then(open);
        if let Some(port) = &port {
            books.ports.lock().unwrap().insert(node, format!("http://{}", port.address()));
        }
        let endpoint = OriginEndpoint { url: field.url(), token: "t".into() };
        let source = RelayedManifests {
            desk: Desk { books: Arc::clone(books), node },
            dialer: Dialer::new(DialerOptions::new(2)),
            pacer: Arc::new(NoPacing),
            origin: watch::channel(Some(endpoint)).1,
            shelves,
            meter: Arc::default(),
        };
        Self { source: Arc::new(source), port, _directory: directory }
    }

    async fn end(self) {
        if let Some(port) = self.port {
            tokio::task::spawn_blocking(move || port.stop(Duration::ZERO)).await.unwrap();
        }
    }
}

async fn readers(books: &Arc<Books>, field: &Field, nodes: std::ops::RangeInclusive<u32>) -> Vec<Reader> {
    let mut readers = Vec::new();
    for node in nodes {
        readers.push(Reader::new(books, field, node, true).await);
    }
    readers
}

/// All of them want it at once, and get it.
async fn all_read(books: &Books, readers: &[Reader]) {
    let mut reading = tokio::task::JoinSet::new();
    for reader in readers {
        let source = Arc::clone(&reader.source);
        reading.spawn(async move { source.manifest(None).await });
    }
    let all = async {
        while let Some(read) = reading.join_next().await {
            assert!(read.unwrap().unwrap() == books.manifest);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("not in time");
}

/// Answers everything with rubbish of the right length.
async fn liar(books: &Arc<Books>, node: u32) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    books.ports.lock().unwrap().insert(NodeId(node), url);
    books.relay.lock().unwrap().has(NodeId(node), true);
    let mut rubbish = books.wire.to_vec();
    rubbish[40] ^= 1;
    let rubbish = Bytes::from(rubbish);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let rubbish = rubbish.clone();
            let service = service_fn(move |_| {
                let body = Full::new(rubbish.clone());
                async move { Ok::<_, Infallible>(Response::new(body)) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_leaves_the_origin_once_for_all_mirrors() {
    for rows in [1_000, 40_000] {
        let (field, books) = (Field::start().await, Books::new(rows));
        field.serve(&books.wire);
        let readers = readers(&books, &field, 1..=12).await;
        all_read(&books, &readers).await;
        assert_eq!(field.requests(&books.wire), (0, 1), "{rows}");
        assert_eq!(field.origin_bytes(), books.wire.len() as u64);
        let load = |counter: fn(&Meter) -> &std::sync::atomic::AtomicU64| -> u64 {
            readers.iter().map(|r| counter(&r.source.meter).load(std::sync::atomic::Ordering::Relaxed)).sum()
        };
        assert_eq!(load(|meter| &meter.origin), books.wire.len() as u64);
        assert_eq!(load(|meter| &meter.peers), 11 * books.wire.len() as u64);
        until("all said so", || books.held.lock().unwrap().len() == 12).await;
        assert!(books.whole.lock().unwrap().is_empty());
        for reader in readers {
            reader.end().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_liar_sends_is_dropped_and_told_and_everybody_gets_the_right_one() {
    let (field, books) = (Field::start().await, Books::new(1_000));
    field.serve(&books.wire);
    liar(&books, 99).await;
    let readers = readers(&books, &field, 1..=8).await;
    all_read(&books, &readers).await;
    let failed = books.failed.lock().unwrap().clone();
    assert!(!failed.is_empty());
    for (_, failed) in &failed {
        assert_eq!((failed.peer, failed.wrong), (Some(NodeId(99)), true), "{failed:?}");
    }
    let wasted: u64 = readers
        .iter()
        .map(|reader| reader.source.meter.wasted.load(std::sync::atomic::Ordering::Relaxed))
        .sum();
    assert_eq!(wasted, failed.len() as u64 * books.wire.len() as u64);
    assert!(field.requests(&books.wire).1 <= 2, "{:?}", field.requests(&books.wire));
    for reader in readers {
        let manifests = reader.source.shelves.manifests();
        assert_eq!(manifests.size(&hash(&books.wire)), Some(books.wire.len() as u64));
        reader.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nobody_gives_it_control_does() {
    let (field, books) = (Field::start().await, Books::new(1_000));
    // The origin's port does not have it, and a peer is gone.
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    books.ports.lock().unwrap().insert(NodeId(99), format!("http://{address}"));
    books.relay.lock().unwrap().has(NodeId(99), true);
    let reader = Reader::new(&books, &field, 1, false).await;
    all_read(&books, std::slice::from_ref(&reader)).await;
    assert_eq!(*books.whole.lock().unwrap(), [NodeId(1)]);
    let failed = books.failed.lock().unwrap().clone();
    assert!(failed.len() == 1 && !failed[0].1.wrong, "a peer that is gone is no liar: {failed:?}");
    until("it said so", || *books.held.lock().unwrap() == [(NodeId(1), false)]).await;
    // Who cannot be asked is named to nobody.
    let other = Reader::new(&books, &field, 2, true).await;
    field.serve(&books.wire);
    all_read(&books, std::slice::from_ref(&other)).await;
    assert_eq!(field.requests(&books.wire).1, 2);
    other.end().await;
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_was_sent_here_gets_a_manifest() {
    let (field, books) = (Field::start().await, Books::new(1_000));
    field.serve(&books.wire);
    let reader = Reader::new(&books, &field, 1, true).await;
    all_read(&books, std::slice::from_ref(&reader)).await;
    let url = books.ports.lock().unwrap()[&NodeId(1)].clone();
    let token =
        |key| SyncToken { node: NodeId(2), expires: u32::MAX }.seal(&SyncKey::of_volunteer(&Field::key(key)));
    let ask = async |path: String, token: String| {
        let request = http::Request::get(format!("{url}{path}"))
            .header(http::header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Bytes::new())
            .unwrap();
        reader.source.dialer.request(request, 1 << 20).await.unwrap()
    };
    let manifest = hash(&books.wire);
    let right = ask(format!("/manifest/{manifest}"), token(NodeId(1))).await;
    assert!(right.status() == 200 && *right.body() == books.wire);
    assert_eq!(ask(format!("/manifest/{manifest}"), token(NodeId(2))).await.status(), 401);
    for path in [format!("/manifest/{}", hash(b"other")), "/manifest/x".into(), "/manifest/".into()] {
        assert_eq!(ask(path, token(NodeId(1))).await.status(), 404);
    }
    assert_eq!(ask(format!("/manifest/../manifest/{manifest}"), token(NodeId(1))).await.status(), 400);
    reader.end().await;
}
