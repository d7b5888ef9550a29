//! Volunteers that join, say what they hold and send heartbeats, as real ones do over the API, and deliver nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use freshet_api::admin::{AddNode, NodeAdded};
use freshet_api::enrol::{JoinReply, JoinRequest, Secret};
use freshet_api::heartbeat::{
    DeliveryCounters, Heartbeat, HeartbeatReply, HoldingsDelta, Readiness, SyncProgress, holdings_digest,
};
use freshet_api::manifest::Manifest;
use freshet_api::traffic::{CounterSource, InterfaceCounters};
use freshet_api::{BytesPerSec, FileId, JoinString, TicketKey};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use roaring::RoaringBitmap;

use super::api::Api;
use super::origin::Origin;
use super::tree::FILES_PER_DIRECTORY;

/// The volunteers of one control.
pub(super) struct Crowd {
    members: Vec<Member>,
}

struct Member {
    credential: Secret,
    beat: Heartbeat,
}

impl Crowd {
    /// Lets `count` volunteers join; each holds its own random choice of collections, `part` of all of them.
    ///
    /// # Errors
    /// When control refuses anybody.
    pub(super) fn join(origin: &Origin, count: u32, part: f64) -> Result<Self> {
        let first = member(origin, &mut origin.api()?, 0)?;
        let collections = collections(&manifest(origin, &first)?);
        let begun = Instant::now();
        let done = AtomicU64::new(0);
        let lanes = (count as usize).min(LANES);
        let mut members: Vec<Member> = std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..lanes)
                .map(|lane| {
                    let (collections, done) = (&collections, &done);
                    scope.spawn(move || -> Result<Vec<Member>> {
                        let mut api = origin.api()?;
                        let numbers = (1..count).skip(lane).step_by(lanes);
                        numbers
                            .map(|number| {
                                let mut member = member(origin, &mut api, number)?;
                                member.hold(&mut api, collections, part, number)?;
                                member.beat(&mut api)?;
                                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                                if done % 10_000 == 0 {
                                    eprintln!("  {done} of {count} volunteers after {:.0?}", begun.elapsed());
                                }
                                Ok(member)
                            })
                            .collect()
                    })
                })
                .collect();
            lanes
                .into_iter()
                .map(|lane| lane.join().expect("a lane does not panic"))
                .collect::<Result<Vec<_>>>()
        })?
        .into_iter()
        .flatten()
        .collect();
        let mut first = first;
        let mut api = origin.api()?;
        first.hold(&mut api, &collections, part, 0)?;
        first.beat(&mut api)?;
        members.push(first);
        Ok(Self { members })
    }

    /// Sends `per_second` heartbeats, each from the next volunteer, until told to stop; how many there were.
    ///
    /// # Errors
    /// When control refuses one.
    pub(super) fn beat(&mut self, origin: &Origin, per_second: f64, stop: &AtomicBool) -> Result<u64> {
        let mut api = origin.api()?;
        let (begun, mut sent) = (Instant::now(), 0u64);
        while !stop.load(Ordering::Relaxed) {
            let due = begun + Duration::from_secs_f64(sent as f64 / per_second);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let next = sent as usize % self.members.len();
            self.members[next].beat(&mut api)?;
            sent += 1;
        }
        Ok(sent)
    }

    /// One heartbeat from everybody.
    ///
    /// # Errors
    /// When control refuses one.
    pub(super) fn beat_all(&mut self, origin: &Origin) -> Result<()> {
        let lane = self.members.len().div_ceil(LANES).max(1);
        std::thread::scope(|scope| {
            let lanes: Vec<_> = self
                .members
                .chunks_mut(lane)
                .map(|members| {
                    scope.spawn(move || -> Result<()> {
                        let mut api = origin.api()?;
                        members.iter_mut().try_for_each(|member| member.beat(&mut api))
                    })
                })
                .collect();
            lanes.into_iter().try_for_each(|lane| lane.join().expect("a lane does not panic"))
        })
    }
}

impl Member {
    fn hold(&mut self, api: &mut Api, collections: &[Vec<FileId>], part: f64, number: u32) -> Result<()> {
        let mut random = SmallRng::seed_from_u64(u64::from(number));
        let wanted = ((collections.len() as f64 * part).round() as usize).clamp(1, collections.len());
        let mut order: Vec<usize> = (0..collections.len()).collect();
        let mut held = RoaringBitmap::new();
        for place in 0..wanted {
            let other = random.random_range(place..order.len());
            order.swap(place, other);
            held.extend(collections[order[place]].iter().map(|file| file.0));
        }
        held.optimize();
        let mut body = Vec::with_capacity(held.serialized_size());
        held.serialize_into(&mut body)?;
        api.call("PUT", "/v1/holdings", Some(&self.credential), &body)?;
        let digest = held.iter().fold(0, |digest, file| digest ^ holdings_digest(FileId(file)));
        self.beat.holdings = HoldingsDelta { count: held.len(), digest, ..HoldingsDelta::default() };
        Ok(())
    }

    fn beat(&mut self, api: &mut Api) -> Result<()> {
        let reply: HeartbeatReply = api.post("/v1/heartbeat", Some(&self.credential), &self.beat)?;
        anyhow::ensure!(!reply.want_holdings, "control knows other holdings than it was told");
        self.beat.sequence += 1;
        let moved = 1_000_000;
        self.beat.delivery.body_bytes += moved;
        self.beat.interfaces[0].delivery.sent.bytes += moved;
        Ok(())
    }
}

fn member(origin: &Origin, api: &mut Api, number: u32) -> Result<Member> {
    let add = AddNode { name: format!("volunteer-{number:06}") };
    let added: NodeAdded = api.post("/v1/admin/nodes", Some(&origin.credentials.token), &add)?;
    let join: JoinString = added.join.parse()?;
    let mark = |salt: u8| {
        let mut bytes = [salt; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    let credential = Secret(mark(1));
    let request = JoinRequest {
        secret: join.secret,
        credential: credential.clone(),
        ticket_key: TicketKey(mark(2)),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let _: JoinReply = api.post("/v1/join", None, &request)?;
    let beat = Heartbeat {
        boot: 1,
        sequence: 1,
        written_ms: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        delivery_url: format!("http://volunteer-{number:06}.example.org:8080"),
        sync_url: None,
        readiness: Readiness::Ready,
        // 10 to 1,000 Mbit/s.
        donated_rate: Some(BytesPerSec(
            1_250_000 * (1 + u64::from(number).wrapping_mul(2_654_435_761) % 100),
        )),
        budget: None,
        source: CounterSource::Ebpf,
        interfaces: vec![InterfaceCounters { name: "eth0".to_owned(), ..InterfaceCounters::default() }],
        delivery: DeliveryCounters::default(),
        sync: SyncProgress::default(),
        holdings: HoldingsDelta::default(),
    };
    Ok(Member { credential, beat })
}

fn manifest(origin: &Origin, member: &Member) -> Result<Manifest> {
    let mut api = origin.api()?;
    let wire = api.call("GET", "/v1/manifest", Some(&member.credential), &[])?;
    Manifest::decode(wire).context("control's manifest cannot be read")
}

/// The files' numbers by directory.
fn collections(manifest: &Manifest) -> Vec<Vec<FileId>> {
    let mut collections: Vec<Vec<FileId>> = Vec::new();
    let mut last = String::new();
    for file in &manifest.files {
        let directory = file.path.as_str().rsplit_once('/').map_or("", |(directory, _)| directory);
        if directory != last || collections.is_empty() {
            collections.push(Vec::with_capacity(FILES_PER_DIRECTORY as usize));
            last = directory.to_owned();
        }
        if let Some(files) = collections.last_mut() {
            files.push(file.file);
        }
    }
    collections
}

/// Connections that speak at the same time while everybody joins.
const LANES: usize = 64;
