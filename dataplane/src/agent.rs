//! Tells control how this volunteer is, at the interval that control asks for, and takes in what control says.
//!
//! It decides nothing about the mirror or about customers: what it hears goes to the delivery port's terms and to
//! sync. While control is away, nothing here stops: customers with good tickets are served from what is there.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use freshet_api::heartbeat::{BAN_CHARS_MAX, DELTA_MAX, Heartbeat, HeartbeatReply, Readiness, SyncProgress};
use rand::RngExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::accounting::Ledger;
use crate::budget::{DonationPacer, Outlook};
use crate::config::PublicUrl;
use crate::control::{ControlClient, ControlError};
use crate::counters::Counters;
use crate::credential::Credential;
use crate::delivery::{SharedTerms, Terms};
use crate::mirror::Mirror;
use crate::orders::Orders;
use crate::sync::OriginEndpoint;

/// What the agent works with.
pub struct Agent {
    /// Control's API, as this volunteer.
    pub control: ControlClient,
    /// Who this is; its front door follows control's word.
    pub credential: Credential,
    /// Where the credential is kept.
    pub state: PathBuf,
    /// What is held.
    pub mirror: Arc<Mirror>,
    /// What was delivered.
    pub counters: Arc<Counters>,
    /// What passed the interfaces.
    pub ledger: Arc<Mutex<Ledger>>,
    /// Where the owner's budget stands.
    pub outlook: watch::Receiver<Outlook>,
    /// The delivery port's terms.
    pub terms: SharedTerms,
    /// The first address of the delivery port.
    pub bound: SocketAddr,
    /// The sync port: where it is bound and what the owner says that peers are sent to; `None` when it is not open.
    pub sync_port: Option<(SocketAddr, Option<PublicUrl>)>,
    /// What the owner says; may change.
    pub offer: watch::Receiver<Offer>,
    /// How far the stop of the daemon is.
    pub phase: watch::Receiver<Phase>,
    /// The state of the catalogue that the mirror should have; 0 until control says.
    pub wanted: watch::Sender<u64>,
    /// Where the mirror gets it.
    pub origin: watch::Sender<Option<OriginEndpoint>>,
    /// Where control's word on delivery and sync is put in force.
    pub pacer: Arc<DonationPacer>,
    /// What control ordered this mirror to hold.
    pub orders: Orders,
    /// When control answered last.
    pub last_heard: watch::Sender<Option<std::time::Instant>>,
    /// Why control has it banned, as it was told last; none at the start.
    pub banned: Option<String>,
}

/// What the owner says that control must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// What customers are sent to, if not the port's own address.
    pub public_url: Option<PublicUrl>,
}

/// How far the stop of the daemon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// No stop.
    #[default]
    Serving,
    /// No new customers; transfers end.
    Closing,
    /// All transfers ended: one last heartbeat.
    Last,
}

impl Agent {
    /// Sends heartbeats until the phase is [`Phase::Last`] and control heard of it, or can't be reached then.
    ///
    /// `closed` is told when control knows that no more customers may come (or doesn't answer).
    pub async fn run(mut self, closed: watch::Sender<bool>) {
        let (boot, begun) = (rand::rng().random(), std::time::Instant::now());
        let mut pulse = Pulse::default();
        let mut url = None;
        let mut sync_url = None;
        for sequence in 1.. {
            let phase = *self.phase.borrow_and_update();
            if url.is_none() {
                url = delivery_url(self.bound, &self.credential.api).await;
                sync_url = match self.sync_port.clone() {
                    Some((_, Some(said))) => Some(said.to_string()),
                    Some((bound, None)) => {
                        delivery_url(bound, &self.credential.api).await.map(|url| url.to_string())
                    }
                    None => None,
                };
            }
            let offer = self.offer.borrow_and_update().clone();
            let delivery_url = offer.public_url.as_ref().or(url.as_ref()).map(ToString::to_string);
            let wait = match delivery_url {
                Some(delivery_url) => {
                    let mut heartbeat = self.heartbeat(boot, sequence, delivery_url, sync_url.clone(), phase);
                    heartbeat.written_ms = u64::try_from(begun.elapsed().as_millis()).ok();
                    let outcome =
                        tokio::time::timeout(HEARTBEAT_TIMEOUT, self.control.heartbeat(&heartbeat)).await;
                    match outcome.unwrap_or(Err(ControlError::Silent { waited: HEARTBEAT_TIMEOUT })) {
                        Ok(reply) => self.heard(&heartbeat, &reply, &mut pulse).await,
                        Err(error) => {
                            // The way to control may have changed, and with it the address that customers need.
                            url = None;
                            let wait = pulse.missed(&error);
                            if pulse.missed >= MISSED_UNTOLD {
                                // What control asked for was for the load of then.
                                self.pacer.share(None);
                            }
                            wait
                        }
                    }
                }
                None => pulse.unresolved(&self.credential.api),
            };
            if phase != Phase::Serving {
                // Nobody listens any more only after the daemon has ended.
                let _ = closed.send(true);
            }
            if phase == Phase::Last {
                return;
            }
            self.rest(wait).await;
        }
    }

    /// Waits until the next heartbeat is due, or there is something to tell at once.
    async fn rest(&mut self, wait: Duration) {
        let due = Instant::now() + wait;
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            changed = self.phase.changed() => {
                if changed.is_err() {
                    // Who could change it is gone; the runtime is about to end.
                    tokio::time::sleep_until(due).await;
                }
            }
            Ok(()) = self.offer.changed() => {}
            Ok(()) = self.outlook.changed() => {}
            // Customers may come for it.
            () = self.mirror.completed() => {}
        }
    }

    fn heartbeat(
        &mut self,
        boot: u64,
        sequence: u64,
        delivery_url: String,
        sync_url: Option<String>,
        phase: Phase,
    ) -> Heartbeat {
        let Outlook { offered, closed, report } = self.outlook.borrow_and_update().clone();
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let interfaces = ledger.read().unwrap_or_else(|error| {
            tracing::warn!(%error, "the interfaces' counters can't be read; this heartbeat goes without");
            Vec::new()
        });
        let readiness = match (phase, closed) {
            (Phase::Serving, None) => Readiness::Ready,
            (Phase::Serving, Some(why)) => Readiness::Closed { why },
            (Phase::Closing | Phase::Last, _) => Readiness::Closed { why: STOPPING.to_owned() },
        };
        Heartbeat {
            boot,
            sequence,
            // The caller's: it knows since when the daemon runs.
            written_ms: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            delivery_url,
            sync_url,
            readiness,
            donated_rate: offered,
            budget: Some(report),
            source: ledger.source(),
            interfaces,
            delivery: self.counters.read(),
            sync: SyncProgress { offer: self.orders.offer().cloned(), ..self.mirror.progress() },
            holdings: self.mirror.delta(),
        }
    }

    /// Takes in a reply; how long to wait until the next heartbeat.
    async fn heard(&mut self, heartbeat: &Heartbeat, reply: &HeartbeatReply, pulse: &mut Pulse) -> Duration {
        pulse.heard();
        self.last_heard.send_replace(Some(std::time::Instant::now()));
        self.mirror.acknowledge(&heartbeat.holdings);
        self.take_terms(reply);
        let origin = OriginEndpoint {
            url: reply.origin_sync_url.trim_end_matches('/').to_owned(),
            token: reply.sync_token.clone(),
        };
        self.pacer.share(reply.delivery_permille);
        self.pacer.put_small_first(reply.small_first);
        replace(&self.origin, Some(origin));
        replace(&self.wanted, reply.manifest_sequence);
        if self.orders.follow(reply.hold.as_ref(), &self.mirror) {
            // Whoever waits for another state looks again, and finds that another part is wanted.
            self.wanted.send_modify(|_| {});
        }
        if reply.want_holdings
            && let Err(error) = put_holdings(&self.control, &self.mirror).await
        {
            tracing::warn!(%error, "control does not know what this volunteer holds; it is told again");
        }
        let interval = Duration::from_millis(reply.interval_ms.clamp(INTERVAL_MS_MIN, INTERVAL_MS_MAX));
        let more = heartbeat.holdings.added.len().max(heartbeat.holdings.removed.len()) >= DELTA_MAX;
        if more { MORE_AFTER } else { jittered(interval) }
    }

    fn take_terms(&mut self, reply: &HeartbeatReply) {
        let front_door = reply.front_door.trim_end_matches('/');
        let banned = reply.banned.as_deref().map(ban_words);
        let news = self.banned != banned;
        match &banned {
            Some(why) if news => tracing::warn!("{why}"),
            None if news => tracing::info!("this volunteer is not banned any more"),
            _ => {}
        }
        self.banned.clone_from(&banned);
        let terms = self.terms.load();
        let closed = match (&terms.closed, banned) {
            // A stop is the owner's, and control's word does not undo it.
            (Some(why), _) if why == STOPPING => Some(why.clone()),
            (_, Some(why)) => Some(why),
            (_, None) => reply.draining.then(|| DRAINED.to_owned()),
        };
        if terms.closed != closed && !news {
            tracing::info!(draining = reply.draining, "control says whether customers come here");
        }
        if terms.front_door != front_door || terms.closed != closed {
            self.terms.rcu(|terms| {
                // A stop that began since must not be lost.
                let stopping = terms.closed.as_deref() == Some(STOPPING);
                let closed = if stopping { terms.closed.clone() } else { closed.clone() };
                Terms { front_door: front_door.to_owned(), closed, ..Terms::clone(terms) }
            });
        }
        if self.credential.front_door != front_door {
            self.credential.front_door = front_door.to_owned();
            if let Err(error) = self.credential.store(&self.state) {
                tracing::warn!(%error, "the front door's new address is known until the next restart only");
            }
        }
    }
}

/// What control says of a ban, with what the owner can do.
fn ban_words(why: &str) -> String {
    let why: String = why.chars().filter(|c| !c.is_control()).take(BAN_CHARS_MAX).collect();
    format!(
        "control takes nothing from this volunteer: {why}; check its disk and memory, then ask the operator for a pardon"
    )
}

/// Wakes those who wait only when there is something new.
fn replace<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|last| {
        let news = *last != value;
        *last = value;
        news
    });
}

/// Tells control all that is held.
async fn put_holdings(control: &ControlClient, mirror: &Mirror) -> Result<(), ControlError> {
    let holdings = mirror.holdings();
    let mut bitmap = Vec::with_capacity(holdings.serialized_size());
    holdings.serialize_into(&mut bitmap).map_err(|source| ControlError::Bitmap { source })?;
    control.put_holdings(bitmap).await?;
    mirror.acknowledge_holdings(holdings);
    Ok(())
}

/// What customers are sent to when the owner does not say: the bound address, or this host's on the way to control.
async fn delivery_url(bound: SocketAddr, api: &str) -> Option<PublicUrl> {
    let mut address = bound;
    if address.ip().is_unspecified() {
        let control = tokio::net::lookup_host(api).await.ok()?.next()?;
        address.set_ip(local_address_towards(control)?);
    }
    Some(PublicUrl::of(address))
}

/// When the next heartbeat is due, and how loudly a missed one is told.
#[derive(Debug, Default)]
struct Pulse {
    missed: u32,
}

impl Pulse {
    fn heard(&mut self) {
        if self.missed > 0 {
            tracing::info!(missed = self.missed, "control answers again");
        }
        self.missed = 0;
    }

    fn missed(&mut self, error: &ControlError) -> Duration {
        self.missed = self.missed.saturating_add(1);
        let tell = self.missed.is_power_of_two();
        if error.is_unknown_host() {
            if tell {
                tracing::error!(
                    %error,
                    "control does not let this host in; if it was removed, move credential.json away and join again with \
                     a new join string (`ctl node add NAME` at the origin)"
                );
            }
        } else if tell {
            tracing::warn!(%error, missed = self.missed, "control was not told; customers with tickets are served on");
        }
        let asked = match error {
            ControlError::Refused { retry_after, .. } => retry_after.unwrap_or_default().min(RETRY_AFTER_MAX),
            _ => Duration::ZERO,
        };
        self.backoff().max(asked)
    }

    fn unresolved(&mut self, api: &str) -> Duration {
        self.missed = self.missed.saturating_add(1);
        if self.missed.is_power_of_two() {
            tracing::warn!(
                api,
                "no way to control, so this host's own address is not known; set `public_url` if it has no route there"
            );
        }
        self.backoff()
    }

    /// Doubles up to [`BACKOFF_MAX`]; drawn from its upper half, so that volunteers do not come back all at once.
    fn backoff(&self) -> Duration {
        let doubled = BACKOFF_MIN.saturating_mul(1 << self.missed.saturating_sub(1).min(16));
        doubled.min(BACKOFF_MAX).mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// Within a tenth of it, so that volunteers spread out.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.9..=1.0))
}

/// The address that packets to `peer` leave from; asks the routing table, sends nothing.
fn local_address_towards(peer: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    socket.local_addr().ok().map(|local| local.ip()).filter(|ip| !ip.is_unspecified())
}

/// Why nobody is served any more when the daemon stops.
pub const STOPPING: &str = "stopping";
const DRAINED: &str = "drained by the operator";

/// A reply that does not come in this time counts as missed.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
const INTERVAL_MS_MIN: u64 = 50;
const INTERVAL_MS_MAX: u64 = 60_000;
/// Between heartbeats that carry one full difference after the other.
const MORE_AFTER: Duration = Duration::from_millis(50);
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// After so many heartbeats missed (half a minute and more) what control said of delivery and sync is forgotten.
const MISSED_UNTOLD: u32 = 7;
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_bound_and_ends_with_an_answer() {
        let mut pulse = Pulse::default();
        let silent = ControlError::Silent { waited: Duration::ZERO };
        let waits: Vec<Duration> = (0..20).map(|_| pulse.missed(&silent)).collect();
        assert!(waits[0] <= BACKOFF_MIN && waits[0] >= BACKOFF_MIN / 2);
        assert!(waits[19] <= BACKOFF_MAX && waits[19] >= BACKOFF_MAX / 2);
        pulse.heard();
        assert!(pulse.missed(&silent) <= BACKOFF_MIN);
    }

    #[test]
    fn control_may_ask_for_patience_within_bounds() {
        let mut pulse = Pulse::default();
        let refused = |secs| ControlError::Refused {
            status: http::StatusCode::SERVICE_UNAVAILABLE,
            why: String::new(),
            retry_after: Some(Duration::from_secs(secs)),
        };
        assert_eq!(pulse.missed(&refused(30)), Duration::from_secs(30));
        assert_eq!(pulse.missed(&refused(1 << 40)), RETRY_AFTER_MAX);
    }

    #[test]
    fn the_interval_is_kept_within_a_tenth() {
        for _ in 0..100 {
            let wait = jittered(Duration::from_secs(1));
            assert!((Duration::from_millis(900)..=Duration::from_secs(1)).contains(&wait));
        }
    }

    #[test]
    fn a_loopback_control_is_reached_from_loopback() {
        let local = local_address_towards("127.0.0.1:9".parse().unwrap()).unwrap();
        assert!(local.is_loopback());
    }
}
