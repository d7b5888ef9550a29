//! The API over TLS: volunteers join, send heartbeats and fetch manifests; operators ask and command.
//!
//! Every error is an [`ApiError`](freshet_api::admin::ApiError) in JSON. Nothing here is on a customer's path.

mod admin;
mod balance;
mod operators;
mod problem;
mod server;
mod swarm;
mod view;
mod volunteer;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use freshet_api::enrol::Fingerprint;
use freshet_api::heartbeat::HOLDINGS_BYTES_MAX;
use freshet_api::operator::ReloadView;
use freshet_api::release::ReleaseSigner;
use freshet_engine::StatsReader;
use freshet_policy::reservation::ReservationLedger;
use tokio::sync::Semaphore;

use crate::audit::AuditLog;
use crate::balance::{Desk, Steward};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::downloads::Downloads;
use crate::events::Events;
use crate::flow::Flows;
use crate::front_door::FrontDoor;
use crate::operators::Operators;
use crate::registry::Registry;
use crate::reload::Reloader;
use crate::routing::Routing;
use crate::swarm::{SentElsewhere, Swarm};
use crate::sync_site::SyncCounters;
use crate::tracker::Tracker;
use crate::verify::Verifier;

pub use operators::Peer;
pub use server::{ApiServer, CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX};

/// What the handlers work with.
#[derive(Debug)]
pub struct Api {
    parts: Parts,
    holdings_uploads: Semaphore,
    verifications: Semaphore,
}

/// The rooms that the API is the door to.
pub struct Parts {
    /// Lasting memory.
    pub registry: Arc<dyn Registry>,
    /// Passing memory.
    pub tracker: Arc<dyn Tracker>,
    /// The routing table.
    pub routing: Arc<Routing>,
    /// Promised bytes.
    pub reservations: Arc<ReservationLedger>,
    /// The catalogue.
    pub catalog: Arc<Catalog>,
    /// Bundles, and who copies them.
    pub swarm: Arc<Swarm>,
    /// For its counters and explanations.
    pub front_door: Arc<FrontDoor>,
    /// The knobs.
    pub balance: Arc<Desk>,
    /// What follows from them.
    pub steward: Arc<Steward>,
    /// The sync port's counters.
    pub sync_counters: Arc<SyncCounters>,
    /// What the sync port holds back for.
    pub sent_elsewhere: Arc<SentElsewhere>,
    /// This process's clock.
    pub clock: Clock,
    /// Who may operate.
    pub operators: Operators,
    /// What they changed.
    pub audit: AuditLog,
    /// What happened lately.
    pub events: Arc<Events>,
    /// What passes volunteers' interfaces.
    pub flows: Arc<Flows>,
    /// Asks volunteers as customers do.
    pub verifier: Verifier,
    /// How often customers asked for each file.
    pub downloads: Arc<Downloads>,
    /// The engine's counters; set once it runs.
    pub engine: Arc<OnceLock<StatsReader>>,
    /// How control ends to be started anew.
    pub restart: Restart,
    /// Reads the settings again.
    pub reloader: Reloader,
    /// Of the certificate, for join strings.
    pub fingerprint: Fingerprint,
    /// Signs manifests.
    pub releases: ReleaseSigner,
    /// How others reach the three ports; set once they are bound, before the API answers.
    pub addresses: Arc<OnceLock<PublicAddresses>>,
    /// What may change while control runs.
    pub pace: Arc<ArcSwap<Pace>>,
}

/// Settings that a reload puts into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// How long a join string is good.
    pub join_lifetime: Duration,
}

/// How control ends to be started anew.
#[derive(Clone, Debug)]
pub struct Restart {
    /// Whether something starts it again on the same sockets, so that no connection is refused meanwhile.
    pub possible: bool,
    /// Becomes true when an operator asks for it.
    pub asked: tokio::sync::watch::Sender<bool>,
}

/// How others reach control.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicAddresses {
    /// Front door, without a trailing `/`.
    pub front_door: String,
    /// Sync port, without a trailing `/`.
    pub sync: String,
    /// `host:port` of the API.
    pub api: String,
}

impl Api {
    /// The API to these rooms.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            holdings_uploads: Semaphore::new(HOLDINGS_UPLOADS_MAX),
            verifications: Semaphore::new(VERIFICATIONS_MAX),
        })
    }

    /// All routes, with their limits.
    pub fn router(self: Arc<Self>) -> Router {
        let volunteers = Router::new()
            .route("/v1/join", post(volunteer::join))
            .route("/v1/heartbeat", post(volunteer::heartbeat))
            .route("/v1/manifest", get(volunteer::manifest).post(volunteer::offer))
            .route("/v1/manifest/held", post(volunteer::held))
            .route("/v1/bundles", get(swarm::bundles))
            .route("/v1/bundle/{id}", get(swarm::bundle))
            .layer(DefaultBodyLimit::max(MESSAGE_BYTES_MAX));
        let polls =
            Router::new().route("/v1/swarm", post(swarm::poll)).layer(DefaultBodyLimit::max(POLL_BYTES_MAX));
        let holdings = Router::new()
            .route("/v1/holdings", put(volunteer::holdings))
            .layer(DefaultBodyLimit::max(HOLDINGS_BYTES_MAX));
        let operators = Router::new()
            .route("/v1/admin/nodes", get(admin::nodes).post(admin::add))
            .route("/v1/admin/nodes/{node}", get(admin::node).delete(admin::remove))
            .route("/v1/admin/nodes/{node}/drain", post(admin::drain))
            .route("/v1/admin/nodes/{node}/resume", post(admin::resume))
            .route("/v1/admin/nodes/{node}/pardon", post(admin::pardon))
            .route("/v1/admin/nodes/{node}/edit", post(operators::edit))
            .route("/v1/admin/nodes/{node}/verify", post(operators::verify))
            .route("/v1/admin/keys", get(operators::keys).post(operators::add_key))
            .route("/v1/admin/keys/{name}", delete(operators::revoke_key))
            .route("/v1/admin/audit", get(operators::audit))
            .route("/v1/admin/events", get(operators::events))
            .route("/v1/admin/files", get(operators::files))
            .route("/v1/admin/downloads", get(operators::downloads))
            .route("/v1/admin/reload", post(operators::reload))
            .route("/v1/admin/upgrade", post(operators::upgrade))
            .route("/v1/admin/metrics", get(operators::metrics))
            .route("/v1/admin/where", get(admin::holders))
            .route("/v1/admin/explain", get(admin::explain))
            .route("/v1/admin/status", get(admin::status))
            .route("/v1/admin/swarm", get(admin::swarm))
            .route("/v1/admin/balance", get(balance::balance).post(balance::set))
            .route("/v1/admin/balance/revert", post(balance::revert))
            .route("/v1/admin/placement", get(balance::placement))
            .route("/v1/admin/placement/expect", post(balance::expect))
            .route("/v1/admin/placement/forget", post(balance::forget))
            .route("/v1/admin/publish", post(admin::publish))
            .route("/v1/admin/publish/{walk}", get(admin::published))
            .layer(DefaultBodyLimit::max(ADMIN_BYTES_MAX))
            .layer(middleware::from_fn_with_state(Arc::clone(&self), operators::only_operators));
        let swarm = volunteers.merge(polls).layer(middleware::from_fn_with_state(
            Arc::clone(&self.parts.sent_elsewhere),
            sent_to_volunteers,
        ));
        Router::new()
            .merge(swarm)
            .merge(holdings)
            .merge(operators)
            .fallback(problem::no_such_route)
            .method_not_allowed_fallback(problem::no_such_method)
            .layer(middleware::from_fn(problem::in_time))
            .with_state(self)
    }

    /// The rooms that this is the door to.
    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Whether customers can be answered for every path of the repository.
    ///
    /// # Errors
    /// Why not yet.
    pub(crate) fn ready(&self) -> Result<(), String> {
        if self.parts.catalog.first_scan_done() {
            return Ok(());
        }
        if let Some(why) = self.parts.catalog.standstill() {
            return Err(why);
        }
        Err(format!(
            "the repository is being read; {} files are still to hash",
            self.parts.catalog.view().pending
        ))
    }

    /// Reads the settings again and puts into force what a running control can change.
    pub(crate) fn reload(&self) -> Result<ReloadView, String> {
        let (view, settings) = self.parts.reloader.reload()?;
        self.parts
            .pace
            .store(Arc::new(Pace { heartbeat: settings.heartbeat, join_lifetime: settings.join_lifetime }));
        Ok(view)
    }

    /// How others reach control.
    fn addresses(&self) -> Result<&PublicAddresses, problem::Problem> {
        self.parts.addresses.get().ok_or_else(problem::Problem::starting)
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Tells the sync port what leaves by its uplink here.
async fn sent_to_volunteers(
    State(sent): State<Arc<SentElsewhere>>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    sent.note(response.body().size_hint().lower());
    response
}

/// Bytes of a volunteer's message at most: a heartbeat with 20,000 numbers has about 220 kB.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a poll at most: every second of 65,536 pieces in two lists as text.
const POLL_BYTES_MAX: usize = 2 << 20;
const ADMIN_BYTES_MAX: usize = 16 << 10;
/// Bitmaps that are read at the same time at most; the others wait.
const HOLDINGS_UPLOADS_MAX: usize = 4;
/// Volunteers that operators have asked for ranges at the same time at most; the others wait.
const VERIFICATIONS_MAX: usize = 4;
