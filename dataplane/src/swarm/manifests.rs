//! Manifests from other volunteers: control says who has the one that lacks here, and it comes from there, then from the
//! origin's sync port, and at last from control itself.
//!
//! Whatever comes is worth the hash that control signed, and nothing before it was compared. What came is served on.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use freshet_api::ContentHash;
use freshet_api::manifest::{
    Manifest, ManifestAsk, ManifestError, ManifestFailed, ManifestFrom, ManifestHeld, ManifestOffer,
};
use freshet_api::release::ReleaseHeader;
use freshet_api::swarm::PeerHint;
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::fetch::{Address, PieceError, refusal, request};
use super::meter::Meter;
use super::shelf::Shelves;
use crate::link::Dialer;
use crate::sync::{FetchError, ManifestSource, OriginEndpoint, ReadPacer};

/// Who knows where manifests are.
pub trait ManifestDesk: Clone + Send + Sync + 'static {
    /// Where what lacks here is. Its seal was checked, and what came whole has the hash in it.
    ///
    /// # Errors
    /// [`FetchError`] says whose fault it is and when a retry helps.
    fn ask(&self, ask: &ManifestAsk) -> impl Future<Output = Result<ManifestAnswer, FetchError>> + Send;

    /// All of it from the desk itself, checked likewise.
    ///
    /// # Errors
    /// [`FetchError`] says whose fault it is and when a retry helps.
    fn whole(&self, since: Option<u64>) -> impl Future<Output = Result<SignedManifest, FetchError>> + Send;

    /// Says that a manifest is here.
    ///
    /// # Errors
    /// [`FetchError`] says whose fault it is and when a retry helps.
    fn held(&self, held: ManifestHeld) -> impl Future<Output = Result<(), FetchError>> + Send;
}

/// What a desk answers.
#[derive(Clone, Debug)]
pub enum ManifestAnswer {
    /// It is small.
    Whole(SignedManifest),
    /// Where it is.
    At(ManifestOffer, ReleaseHeader),
}

/// A manifest's wire form, and what was signed of it, which it is.
#[derive(Clone, Debug)]
pub struct SignedManifest {
    /// Of those bytes.
    pub header: ReleaseHeader,
    /// As it came.
    pub wire: Bytes,
}

impl SignedManifest {
    /// Its rows. Blocks: a large one takes a second.
    ///
    /// # Errors
    /// In words, when it is none, or leads elsewhere than was signed.
    pub fn decode(&self) -> Result<Manifest, String> {
        let manifest = Manifest::decode(&self.wire).map_err(|error: ManifestError| error.to_string())?;
        let ReleaseHeader { sequence, previous, .. } = self.header;
        if (sequence, previous) != (manifest.sequence, manifest.base) {
            let found = manifest.sequence;
            return Err(format!("one to state {found} under the signature of state {sequence}"));
        }
        Ok(manifest)
    }
}

/// Manifests by way of other volunteers.
pub struct RelayedManifests<D> {
    /// Who knows where they are.
    pub desk: D,
    /// Connections to peers and to the origin.
    pub dialer: Dialer,
    /// How fast bodies are read.
    pub pacer: Arc<dyn ReadPacer>,
    /// The origin's sync port, as the last heartbeat named it.
    pub origin: watch::Receiver<Option<OriginEndpoint>>,
    /// Where it is kept for peers.
    pub shelves: Shelves,
    /// What came from where.
    pub meter: Arc<Meter>,
}

impl<D: ManifestDesk> ManifestSource for RelayedManifests<D> {
    async fn manifest(&self, since: Option<u64>) -> Result<Manifest, FetchError> {
        let signed = match self.relayed(since).await? {
            Some(signed) => signed,
            None => self.kept(self.desk.whole(since).await?).await,
        };
        let decoded = tokio::task::spawn_blocking(move || signed.decode()).await;
        decoded.unwrap_or_else(|_| Err(ManifestError::Damaged.to_string())).map_err(|found| {
            FetchError::Nonsense {
                from: "control".into(),
                path: "/v1/manifest".into(),
                expected: "a manifest".into(),
                found,
            }
        })
    }
}

impl<D: ManifestDesk> RelayedManifests<D> {
    /// What lacks, from whom control names; none when that comes to nothing.
    async fn relayed(&self, since: Option<u64>) -> Result<Option<SignedManifest>, FetchError> {
        let mut failed = None;
        let begun = Instant::now();
        for _ in 0..ASKED_MAX {
            let (offer, header) = match self.desk.ask(&ManifestAsk { since, failed: failed.take() }).await? {
                ManifestAnswer::Whole(signed) => return Ok(Some(signed)),
                ManifestAnswer::At(offer, header) => (offer, header),
            };
            let within = patience(offer.bytes);
            let (address, peer) = match &offer.from {
                ManifestFrom::Later if begun.elapsed() < within * 8 => {
                    // The desk holds such an answer back; one that does not is not asked in a loop.
                    sleep(AGAIN).await;
                    continue;
                }
                ManifestFrom::Later => return Ok(None),
                ManifestFrom::Peer(PeerHint { node, url, token }) => {
                    (Address { url: url.clone(), token: token.clone() }, Some(*node))
                }
                ManifestFrom::Origin => {
                    let Some(origin) = self.origin.borrow().clone() else { return Ok(None) };
                    (Address { url: origin.url, token: origin.token }, None)
                }
            };
            match self.fetch(&address, &offer, within).await {
                Ok(wire) => {
                    let from = if peer.is_some() { &self.meter.peers } else { &self.meter.origin };
                    Meter::add(from, offer.bytes);
                    return Ok(Some(self.kept(SignedManifest { header, wire }).await));
                }
                Err(error) => {
                    let wrong = matches!(error, PieceError::Wrong);
                    let from = &address.url;
                    if wrong {
                        Meter::add(&self.meter.wasted, offer.bytes);
                        tracing::warn!(from, manifest = %offer.manifest, "another manifest came than control signed; it was dropped");
                    } else {
                        tracing::debug!(from, manifest = %offer.manifest, %error, "a manifest did not come");
                    }
                    if peer.is_none() {
                        return Ok(None);
                    }
                    failed = Some(ManifestFailed { manifest: offer.manifest, peer, wrong });
                }
            }
        }
        Ok(None)
    }

    /// The wire form that was offered, with the hash that was signed. The pauses that the owner's own limit makes are
    /// not the other side's.
    async fn fetch(
        &self,
        from: &Address,
        offer: &ManifestOffer,
        within: Duration,
    ) -> Result<Bytes, PieceError> {
        let mut deadline = Instant::now() + within;
        let slow = |_| PieceError::Slow { waited: within };
        let asking = self.dialer.send(request(from, &format!("/manifest/{}", offer.manifest), None)?);
        let response = timeout_at(deadline, asking).await.map_err(slow)??;
        if response.status() != StatusCode::OK {
            return Err(refusal(response.status(), response.headers()));
        }
        let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let nonsense =
            |found: String| PieceError::Nonsense { expected: format!("{} bytes", offer.bytes), found };
        if let Some(found) = length.filter(|found| found.parse() != Ok(offer.bytes)) {
            return Err(nonsense(format!("{found} bytes")));
        }
        let mut body = response.into_body();
        let mut wire = BytesMut::new();
        while let Some(part) = timeout_at(deadline, body.next()).await.map_err(slow)?? {
            if (wire.len() + part.len()) as u64 > offer.bytes {
                return Err(nonsense("more".into()));
            }
            wire.extend_from_slice(&part);
            let mut pause = self.pacer.after_read(part.len() as u64);
            while !pause.is_zero() {
                sleep(pause).await;
                deadline += pause;
                pause = self.pacer.stopped();
            }
        }
        if (wire.len() as u64) < offer.bytes {
            return Err(nonsense(format!("{} bytes", wire.len())));
        }
        let (wire, manifest) = (wire.freeze(), offer.manifest);
        let bytes = wire.clone();
        let right = tokio::task::spawn_blocking(move || ContentHash::of(&bytes) == manifest).await;
        if right.unwrap_or(false) { Ok(wire) } else { Err(PieceError::Wrong) }
    }

    /// Keeps it for peers, and says so while it is read here.
    async fn kept(&self, signed: SignedManifest) -> SignedManifest {
        let (shelf, wire) = (self.shelves.manifests().clone(), signed.wire.clone());
        let manifest = signed.header.manifest;
        let kept = tokio::task::spawn_blocking(move || shelf.keep(manifest, &wire)).await;
        let serves = kept.map_err(std::io::Error::other).flatten().unwrap_or_else(|error| {
            tracing::warn!(%error, "a manifest can't be kept for peers");
            false
        });
        let desk = self.desk.clone();
        tokio::spawn(async move {
            if let Err(error) = desk.held(ManifestHeld { manifest, serves }).await {
                tracing::debug!(%error, "control does not know that a manifest is here");
            }
        });
        signed
    }
}

/// How long one that gives a manifest may take.
fn patience(bytes: u64) -> Duration {
    PATIENCE_LEAST + Duration::from_secs(bytes / SLOWEST)
}

/// Times that control is asked where one manifest is.
const ASKED_MAX: u32 = 400;
const AGAIN: Duration = Duration::from_millis(50);
const PATIENCE_LEAST: Duration = Duration::from_secs(8);
/// Bytes per second of the slowest peer that is waited for: less patient than control, which takes its time for it.
const SLOWEST: u64 = 160 << 10;
