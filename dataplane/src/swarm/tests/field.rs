//! An origin, a tracker and volunteers in one process, over loopback; each misbehaves as a test wants it to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use freshet_api::bundle::{Bundle, BundleId, Member, Object, RecipeRef};
use freshet_api::manifest::{Manifest, ManifestFile};
use freshet_api::recipe::Recipe;
use freshet_api::swarm::{
    BundleList, BundleRef, Complaint, LeaseGrant, PeerHint, Runs, SwarmPoll, SwarmReply,
};
use freshet_api::{FileId, NodeId, SyncKey, SyncToken, TicketKey};
use freshet_policy::swarm::PieceSet;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::*;
use crate::sync::{FetchError, ManifestSource};

/// A file of the origin: path and content.
pub(super) type File = (String, Vec<u8>);

#[derive(Default)]
struct Shared {
    sequence: u64,
    next_file: u32,
    manifest: Manifest,
    contents: HashMap<String, Vec<u8>>,
    bundles: Vec<(BundleId, Bundle, Vec<u8>)>,
    books: HashMap<BundleId, Book>,
    /// Requests at the origin: content and range, if there was one.
    requests: Vec<(String, Option<String>)>,
    origin_bytes: u64,
    complaints: Vec<(NodeId, Complaint)>,
    volunteers: BTreeMap<NodeId, String>,
    /// Peers that are named whether they poll or not.
    also: Vec<PeerHint>,
}

#[derive(Default)]
struct Book {
    leased: HashMap<u32, Instant>,
    held: HashMap<NodeId, PieceSet>,
    unwanted: HashMap<NodeId, HashSet<u32>>,
    leaving: HashSet<NodeId>,
}

/// What a test may switch on.
#[derive(Default)]
pub(super) struct Switches {
    /// The tracker is not reached.
    pub(super) away: bool,
    /// It lists bundles, and is gone when they are asked for.
    pub(super) mute: bool,
    /// The tracker closes every bundle.
    pub(super) closed: bool,
    /// The origin sends other bytes for ranges.
    pub(super) wrong_pieces: bool,
    /// Nobody gets leases.
    pub(super) no_leases: bool,
    /// The origin waits so long before each piece.
    pub(super) slowly: Duration,
    pub(super) never_complete: bool,
    /// How long a lease lasts, if not [`LEASE`].
    pub(super) lease: Option<Duration>,
}

pub(super) struct Field {
    address: SocketAddr,
    shared: Mutex<Shared>,
    pub(super) switches: Mutex<Switches>,
}

impl Field {
    pub(super) async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let field = Arc::new(Self { address, shared: Mutex::default(), switches: Mutex::default() });
        let weak = Arc::downgrade(&field);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(field) = weak.upgrade() else { break };
                let service = service_fn(move |request| {
                    let field = Arc::clone(&field);
                    async move { Ok::<_, Infallible>(field.answer(&request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        field
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// Makes these files the state of the origin; returns its sequence.
    pub(super) fn publish(&self, files: &[File]) -> u64 {
        let mut shared = self.shared();
        let mut manifest = Manifest { sequence: shared.sequence + 1, ..Manifest::default() };
        for (path, content) in files {
            shared.contents.insert(hash(content).to_hex(), content.clone());
            let path: freshet_api::manifest::RepoPath = path.parse().unwrap();
            let known =
                shared.manifest.files.iter().find(|row| row.path == path && row.content == hash(content));
            let file = known.map(|row| row.file).unwrap_or(FileId(shared.next_file + 1));
            shared.next_file = shared.next_file.max(file.0);
            let last = path.as_str().starts_with("dists/");
            let (size, content) = (content.len() as u64, hash(content));
            manifest.files.push(ManifestFile { file, path, size, mtime: 1_000, content, last });
        }
        shared.sequence += 1;
        shared.manifest = manifest;
        shared.sequence
    }

    /// Makes a bundle of these contents (in addition to other bundles), with recipes for others.
    pub(super) fn bundle(
        &self,
        contents: &[Vec<u8>],
        piece_bytes: u32,
        packed_below: usize,
        recipes: &[(Vec<u8>, Recipe)],
    ) -> BundleId {
        let mut bundle = Bundle { piece_bytes, ..Bundle::default() };
        let mut pack: Vec<Vec<u8>> = Vec::new();
        let mut objects: Vec<(Vec<u8>, Vec<Member>)> = Vec::new();
        for (target, recipe) in recipes {
            let wire = recipe.encode().unwrap();
            bundle.recipes.push(RecipeRef {
                target: recipe.target,
                target_size: target.len() as u64,
                recipe: hash(&wire),
                recipe_size: wire.len() as u64,
                bases: recipe.bases.clone(),
            });
            pack.push(wire);
        }
        for content in contents {
            match content.len() < packed_below {
                true => pack.push(content.clone()),
                false => objects.push((content.clone(), Vec::new())),
            }
        }
        for part in pack.chunks(500) {
            let members =
                part.iter().map(|member| Member { content: hash(member), size: member.len() as u64 });
            let (members, whole) = (members.collect(), part.concat());
            if !whole.is_empty() {
                objects.push((whole, members));
            }
        }
        let mut shared = self.shared();
        for (whole, members) in objects {
            bundle.pieces.extend(whole.chunks(piece_bytes as usize).map(hash));
            bundle.objects.push(Object { content: hash(&whole), size: whole.len() as u64, members });
            shared.contents.insert(hash(&whole).to_hex(), whole);
        }
        let (id, wire) = bundle.encode().unwrap();
        shared.bundles.push((id, bundle, wire));
        shared.books.insert(id, Book::default());
        id
    }

    /// Serves this at the origin's port, as a content and as a manifest.
    pub(super) fn serve(&self, content: &[u8]) {
        self.shared().contents.insert(hash(content).to_hex(), content.to_vec());
    }

    pub(super) fn origin_bytes(&self) -> u64 {
        self.shared().origin_bytes
    }

    /// How often ranges of one content were asked for at the origin, and how often all of it.
    pub(super) fn requests(&self, content: &[u8]) -> (usize, usize) {
        let name = hash(content).to_hex();
        let shared = self.shared();
        let of = shared.requests.iter().filter(|(content, _)| *content == name);
        let (ranges, whole): (Vec<_>, Vec<_>) = of.partition(|(_, range)| range.is_some());
        (ranges.len(), whole.len())
    }

    pub(super) fn complaints(&self) -> Vec<(NodeId, Complaint)> {
        self.shared().complaints.clone()
    }

    pub(super) fn name_peer(&self, node: NodeId, url: String) {
        self.shared().also.push(PeerHint { node, url, token: "any".into() });
    }

    /// Pieces that a volunteer has told it has.
    pub(super) fn held(&self, bundle: BundleId, node: NodeId) -> u32 {
        self.shared().books[&bundle].held.get(&node).map_or(0, PieceSet::count)
    }

    pub(super) fn bundle_pieces(&self, bundle: BundleId) -> u32 {
        self.shared().bundles.iter().find(|(id, ..)| *id == bundle).unwrap().1.len()
    }

    pub(super) fn key(node: NodeId) -> TicketKey {
        TicketKey([u8::try_from(node.0).unwrap(); 32])
    }

    async fn answer(&self, request: &Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
        let (slowly, wrong) = {
            let switches = self.switches.lock().unwrap();
            (switches.slowly, switches.wrong_pieces)
        };
        if !slowly.is_zero() {
            tokio::time::sleep(slowly).await;
        }
        let mut shared = self.shared();
        let status = |code: StatusCode| Response::builder().status(code).body(Full::default()).unwrap();
        let field = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        if field(AUTHORIZATION) != Some("Bearer t") {
            return status(StatusCode::UNAUTHORIZED);
        }
        let path = request.uri().path();
        let name =
            path.strip_prefix("/blob/").or(path.strip_prefix("/manifest/")).unwrap_or_default().to_owned();
        shared.requests.push((name.clone(), field(RANGE).map(str::to_owned)));
        let Some(content) = shared.contents.get(&name).cloned() else { return status(StatusCode::NOT_FOUND) };
        let response = answer_range(&content, field(RANGE), wrong);
        let length =
            response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        shared.origin_bytes += length.unwrap_or(0u64);
        response
    }

    fn reply(&self, node: NodeId, poll: &SwarmPoll) -> SwarmReply {
        let mut shared = self.shared();
        let switches = self.switches.lock().unwrap();
        let volunteers = shared.volunteers.clone();
        let also = shared.also.clone();
        shared.complaints.extend(poll.complaints.iter().map(|&complaint| (node, complaint)));
        let Some(pieces) =
            shared.bundles.iter().find(|(id, ..)| *id == poll.bundle).map(|(_, bundle, _)| bundle.len())
        else {
            return SwarmReply { closed: true, ..SwarmReply::default() };
        };
        if switches.closed {
            return SwarmReply { closed: true, ..SwarmReply::default() };
        }
        let lease = switches.lease.unwrap_or(LEASE);
        let book = shared.books.get_mut(&poll.bundle).unwrap();
        if poll.leaving {
            book.leaving.insert(node);
            return SwarmReply { interval_ms: 50, ..SwarmReply::default() };
        }
        book.leaving.remove(&node);
        let unknown = !poll.whole && !book.held.contains_key(&node);
        let held = book.held.entry(node).or_insert_with(|| PieceSet::new(pieces));
        if poll.whole {
            *held = PieceSet::new(pieces);
            book.unwanted.insert(node, poll.unwanted.iter().collect());
        }
        poll.have.iter().for_each(|piece| {
            assert!(piece < pieces);
            held.insert(piece);
        });
        assert!(poll.whole || poll.unwanted == Runs::default());
        let unwanted = book.unwanted.entry(node).or_default().clone();
        let held_by_any = |book: &Book, piece| book.held.values().any(|held| held.contains(piece));
        let mut leases = Vec::new();
        book.leased.retain(|_, until| *until > Instant::now());
        for piece in 0..pieces {
            let free = !book.leased.contains_key(&piece) && !held_by_any(book, piece);
            if leases.len() < poll.leases as usize
                && free
                && !unwanted.contains(&piece)
                && !switches.no_leases
            {
                book.leased.insert(piece, Instant::now() + lease);
                leases.push(LeaseGrant { piece, for_ms: lease.as_millis() as u64 });
            }
        }
        let complete = book.held.iter().all(|(node, held)| {
            let unwanted = book.unwanted.get(node).map_or(0, HashSet::len);
            held.count() as usize + unwanted >= pieces as usize
        });
        let hint = |(&node, url): (&NodeId, &String)| {
            let token = SyncToken { node, expires: u32::MAX }.seal(&SyncKey::of_volunteer(&Self::key(node)));
            PeerHint { node, url: url.clone(), token }
        };
        let peers = volunteers.iter().filter(|(other, _)| **other != node && book.held.contains_key(*other));
        SwarmReply {
            want_whole: unknown,
            leases,
            peers: peers.map(hint).chain(also).collect(),
            // Always another list than the one before.
            peers_are: poll.peers_known + 1,
            complete: complete && !switches.never_complete,
            closed: false,
            waits: false,
            interval_ms: 100,
        }
    }

    /// What a volunteer that was killed had leased is free again.
    pub(super) fn forget(&self, node: NodeId) {
        let mut shared = self.shared();
        shared.volunteers.remove(&node);
        for book in shared.books.values_mut() {
            book.held.remove(&node);
            book.leased.clear();
        }
    }
}

/// Content, or a part of it.
pub(super) fn answer_range(content: &[u8], range: Option<&str>, wrong: bool) -> Response<Full<Bytes>> {
    let size = content.len();
    let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")) else {
        let body = Full::new(Bytes::copy_from_slice(content));
        return Response::builder().header(CONTENT_LENGTH, size).body(body).unwrap();
    };
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last: usize = if last.is_empty() { size - 1 } else { last.parse().unwrap() };
    let mut part = content[first..=last].to_vec();
    if wrong {
        part[0] ^= 1;
    }
    Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(CONTENT_RANGE, format!("bytes {first}-{last}/{size}"))
        .header(CONTENT_LENGTH, part.len())
        .body(Full::new(part.into()))
        .unwrap()
}

/// The field as one volunteer sees it.
pub(super) struct Seat {
    pub(super) field: Arc<Field>,
    pub(super) node: NodeId,
}

impl Seat {
    pub(super) fn sit(field: &Arc<Field>, node: NodeId, url: String) -> Self {
        field.shared().volunteers.insert(node, url);
        Self { field: Arc::clone(field), node }
    }
}

impl Tracker for Seat {
    async fn bundles(&self) -> Result<BundleList, FetchError> {
        if self.field.switches.lock().unwrap().away {
            return Err(FetchError::NoSource);
        }
        let shared = self.field.shared();
        let sequence = shared.sequence;
        let bundles = shared.bundles.iter().map(|&(id, ..)| BundleRef { id, sequence }).collect();
        Ok(BundleList { bundles })
    }

    async fn bundle(&self, id: BundleId) -> Result<Bytes, FetchError> {
        if self.field.switches.lock().unwrap().mute {
            return Err(FetchError::NoSource);
        }
        let shared = self.field.shared();
        let found = shared.bundles.iter().find(|(found, ..)| *found == id);
        let gone = FetchError::Gone { from: "fake".into(), status: 404, path: id.to_string() };
        found.map(|(_, _, wire)| wire.clone().into()).ok_or(gone)
    }

    async fn poll(&self, poll: &SwarmPoll) -> Result<SwarmReply, FetchError> {
        if self.field.switches.lock().unwrap().away {
            return Err(FetchError::NoSource);
        }
        Ok(self.field.reply(self.node, poll))
    }
}

impl ManifestSource for Arc<Field> {
    async fn manifest(&self, _since: Option<u64>) -> Result<Manifest, FetchError> {
        Ok(self.shared().manifest.clone())
    }
}

pub(super) fn hash(bytes: &[u8]) -> freshet_api::ContentHash {
    freshet_api::ContentHash::from(blake3::hash(bytes))
}

/// How long a lease lasts.
const LEASE: Duration = Duration::from_secs(20);
