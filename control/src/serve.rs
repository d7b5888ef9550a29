//! `control serve`: brings the rooms together, starts the ports, and ends everything in order.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use freshet_api::Class;
use freshet_engine::{Inherited, Limits, Listener, Root, Running, Server};
use freshet_policy::liveness::LivenessTerms;
use freshet_policy::reservation::{ReservationLedger, ReservationTerms};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{Api, ApiServer, Pace, Parts, PublicAddresses, Restart};
use crate::audit::AuditLog;
use crate::balance::{Desk, NetworkMap, Planner, Steward, StewardRooms};
use crate::catalog::{Catalog, CatalogOptions};
use crate::clock::Clock;
use crate::downloads::Downloads;
use crate::events::Events;
use crate::flow::Flows;
use crate::front_door::{FrontDoor, FrontDoorOptions, FrontDoorRooms};
use crate::identity::Identity;
use crate::observe::OriginObserver;
use crate::onlooker::Onlooker;
use crate::operators::Operators;
use crate::private_file;
use crate::registry::{RedbRegistry, Registry};
use crate::reload::Reloader;
use crate::routing::Routing;
use crate::settings::Settings;
use crate::swarm::{SentElsewhere, Swarm, SwarmOptions, SwarmRooms, SyncPacer};
use crate::sync_site::{SyncCounters, SyncSite};
use crate::tracker::{MemoryTracker, Tracker};
use crate::verify::Verifier;

/// A running control.
#[derive(Debug)]
pub struct Control {
    addresses: Addresses,
    catalog: Arc<Catalog>,
    engine: Running,
    api: JoinHandle<()>,
    status: Option<JoinHandle<()>>,
    onlooker: JoinHandle<()>,
    counting: JoinHandle<()>,
    downloads: Arc<Downloads>,
    rooms: Arc<Api>,
    routing: JoinHandle<()>,
    balancing: JoinHandle<()>,
    swarm: Arc<Swarm>,
    bundling: JoinHandle<()>,
    stop: watch::Sender<bool>,
    grace: Duration,
}

/// Where control listens, and how others reach it (`addresses.json` in the state directory).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Bound address of the front door.
    pub listen: SocketAddr,
    /// Bound address of the sync port.
    pub sync_listen: SocketAddr,
    /// Bound address of the API.
    pub api: SocketAddr,
    /// Bound address of the status port, where there is one.
    #[serde(default)]
    pub status: Option<SocketAddr>,
    /// The front door as customers reach it.
    pub public_url: String,
    /// The sync port as volunteers reach it.
    pub sync_url: String,
    /// `host:port` of the API as it stands in join strings.
    pub api_name: String,
}

impl Control {
    /// Opens what lasts, starts every part and returns when all ports accept.
    ///
    /// # Errors
    /// With what could not be opened or bound.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        Self::start_with(settings, Inherited::default(), Reloader::fixed()).await
    }

    /// Looks, without starting, whether what the settings name is there and can be read by whoever runs this.
    ///
    /// # Errors
    /// What is not, and what to do.
    pub fn look(settings: &Settings) -> anyhow::Result<()> {
        std::fs::read_dir(&settings.repo).and_then(|mut names| names.next().transpose()).with_context(|| {
            format!(
                "`repo`: {} cannot be read by this user; make the directory, or let the user that control runs as read it",
                settings.repo.display()
            )
        })?;
        NetworkMap::open(settings.prefer.clone(), &settings.geo_databases)
            .context("`geo_databases`: put the file there, or take it out of the configuration")?;
        Ok(())
    }

    /// The same, on sockets that were handed over where there are any, and with a way to read the settings again.
    ///
    /// # Errors
    /// With what could not be opened or bound.
    pub async fn start_with(
        settings: Settings,
        mut inherited: Inherited,
        reloader: Reloader,
    ) -> anyhow::Result<Self> {
        let state = &settings.state;
        private_file::make_directory(state).with_context(|| format!("cannot make {}", state.display()))?;
        let identity = Identity::load_or_make(state)?;
        let clock = Clock::start();
        let registry: Arc<dyn Registry> = Arc::new(RedbRegistry::open(&state.join(REGISTRY_FILE))?);
        let terms = LivenessTerms { interval: settings.heartbeat, ..LivenessTerms::default() };
        let tracker: Arc<dyn Tracker> = Arc::new(MemoryTracker::new(terms));
        let reservations = Arc::new(ReservationLedger::new(
            ReservationTerms { hold: settings.ticket_lifetime, ..ReservationTerms::default() },
            RESERVATION_CLAIMS,
        ));
        let network = NetworkMap::open(settings.prefer.clone(), &settings.geo_databases)?;
        let balance = Arc::new(Desk::open(state, network)?);
        balance.know(&registry.nodes());
        let routing = Arc::new(Routing::new(
            Arc::clone(&registry),
            Arc::clone(&tracker),
            Arc::clone(&reservations),
            Arc::clone(&balance),
            clock,
        ));
        let catalog = Catalog::open(catalog_options(&settings))?;
        let root = Root::open(&settings.repo)
            .with_context(|| format!("cannot open the repository {}", settings.repo.display()))?;

        let downloads = Downloads::open(&state.join(DOWNLOADS_FILE), Arc::clone(&catalog))?;
        let addresses = Arc::new(OnceLock::new());
        let front_door = Arc::new(FrontDoor::new(
            front_door_options(&settings, Arc::clone(&addresses)),
            FrontDoorRooms {
                catalog: Arc::clone(&catalog),
                routing: Arc::clone(&routing),
                reservations: Arc::clone(&reservations),
                balance: Arc::clone(&balance),
                downloads: Arc::clone(&downloads),
                root: Arc::clone(&root),
            },
            clock,
            rand::random(),
        ));
        let sync_counters = Arc::new(SyncCounters::default());
        let swarm = Swarm::open(
            swarm_options(&settings),
            SwarmRooms {
                catalog: Arc::clone(&catalog),
                registry: Arc::clone(&registry),
                tracker: Arc::clone(&tracker),
                sync_counters: Arc::clone(&sync_counters),
                clock,
            },
        )?;
        let sync = SyncSite::new(
            Arc::clone(&catalog),
            Arc::clone(&routing),
            (Arc::clone(swarm.shelf()), Arc::clone(swarm.manifests())),
            root,
            registry.sync_key(),
            Arc::clone(&sync_counters),
        );
        let sockets = Sockets::take(&mut inherited);
        let restartable = sockets.all();
        let sent_elsewhere = Arc::new(SentElsewhere::default());
        let (engine, api_socket, status_socket) =
            start_engine(&settings, &front_door, sync, sockets, &sent_elsewhere)?;
        let stats = Arc::new(OnceLock::from(engine.reader()));
        let api_server = ApiServer::bind(settings.api, api_socket, Some(Arc::clone(&identity.tls)))
            .await
            .with_context(|| format!("cannot listen on {} for the API", settings.api))?;

        let status_server = match (settings.status, status_socket) {
            (None, None) => None,
            (address, socket) => {
                let address = address.unwrap_or(settings.api);
                let bound = ApiServer::bind(address, socket, None).await;
                Some(bound.with_context(|| format!("cannot listen on {address} for the status page"))?)
            }
        };
        let bound = bound_addresses(&settings, &engine, &api_server, status_server.as_ref())?;
        // Nothing else sets it, so it is unset here.
        let _ = addresses.set(PublicAddresses {
            front_door: bound.public_url.clone(),
            sync: bound.sync_url.clone(),
            api: bound.api_name.clone(),
        });
        identity.write_credentials(state, &bound.api_name)?;
        let mut text = serde_json::to_vec_pretty(&bound).context("cannot write the addresses as JSON")?;
        text.push(b'\n');
        private_file::write(&state.join(ADDRESSES_FILE), &text)
            .with_context(|| format!("cannot write {ADDRESSES_FILE} in {}", state.display()))?;

        let steward = Steward::new(StewardRooms {
            desk: Arc::clone(&balance),
            registry: Arc::clone(&registry),
            routing: Arc::clone(&routing),
            reservations: Arc::clone(&reservations),
            front_door: Arc::clone(&front_door),
            catalog: Arc::clone(&catalog),
            swarm: Arc::clone(&swarm),
            planner: Planner::open(state)?,
            clock,
        });
        let balancing = Arc::clone(&steward);
        let api = Api::new(Parts {
            balance,
            steward,
            registry,
            tracker,
            routing: Arc::clone(&routing),
            reservations,
            catalog: Arc::clone(&catalog),
            swarm: Arc::clone(&swarm),
            front_door,
            sync_counters,
            sent_elsewhere,
            clock,
            operators: Operators::open(state, identity.operator_digest)?,
            audit: AuditLog::open(state)
                .with_context(|| format!("cannot open the audit log in {}", state.display()))?,
            events: Arc::new(Events::new()),
            flows: Arc::new(Flows::default()),
            downloads: Arc::clone(&downloads),
            verifier: Verifier::new(settings.repo.clone())?,
            engine: stats,
            restart: Restart { possible: restartable, asked: watch::channel(false).0 },
            reloader,
            fingerprint: identity.fingerprint,
            releases: identity.releases.clone(),
            addresses,
            pace: Arc::new(ArcSwap::from_pointee(Pace {
                heartbeat: settings.heartbeat,
                join_lifetime: settings.join_lifetime,
            })),
        });
        for name in inherited.left() {
            tracing::warn!(name, "a socket was handed over under a name that is not known; it is not used");
        }
        let ban_routing = Arc::clone(&routing);
        let (stop, stopping) = watch::channel(false);
        let stopped = |mut stopping: watch::Receiver<bool>| async move {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let status = status_server.map(|server| {
            let router = crate::status::router(Arc::clone(&api));
            tokio::spawn(server.run(router, stopped(stopping.clone()), STATUS_GRACE))
        });
        Ok(Self {
            addresses: bound,
            catalog,
            engine,
            api: tokio::spawn(api_server.run(Arc::clone(&api).router(), stopped(stopping), API_GRACE)),
            status,
            onlooker: tokio::spawn(Onlooker::new(Arc::clone(&api)).run()),
            counting: tokio::spawn(Arc::clone(&downloads).run()),
            downloads,
            rooms: api,
            routing: tokio::spawn(async move { routing.keep_current().await }),
            balancing: tokio::spawn(balancing.run()),
            bundling: tokio::spawn(Arc::clone(&swarm).run(move |_| ban_routing.rebuild())),
            swarm,
            stop,
            grace: settings.grace,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The catalogue it serves.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The swarm that it tracks.
    pub fn swarm(&self) -> &Arc<Swarm> {
        &self.swarm
    }

    /// Reads the settings again, and says what is in force now and what waits for a restart.
    ///
    /// # Errors
    /// When they can't be read; then everything stays as it was.
    pub fn reload(&self) -> Result<freshet_api::operator::ReloadView, String> {
        self.rooms.reload()
    }

    /// Becomes true when an operator asks for control to be started anew.
    pub fn restart_asked(&self) -> watch::Receiver<bool> {
        self.rooms.parts().restart.asked.subscribe()
    }

    /// Takes nothing new, lets what is under way end within the grace time, and closes everything.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.swarm.stop();
        let (engine, grace) = (self.engine, self.grace);
        let engine = tokio::task::spawn_blocking(move || engine.stop(grace));
        for (part, task) in [("front door", engine), ("API", self.api), ("swarm", self.bundling)] {
            if let Err(error) = task.await {
                tracing::error!(part, %error, "did not end in order");
            }
        }
        if let Some(status) = self.status {
            let _ = status.await;
        }
        self.onlooker.abort();
        self.counting.abort();
        let _ = self.counting.await;
        if let Err(error) = tokio::task::spawn_blocking(move || self.downloads.keep()).await {
            tracing::error!(%error, "the last downloads were not counted");
        }
        for task in [self.routing, self.balancing] {
            task.abort();
            let _ = task.await;
        }
        self.catalog.stop();
    }
}

fn catalog_options(settings: &Settings) -> CatalogOptions {
    CatalogOptions {
        rescan_every: settings.rescan_every,
        hash_threads: settings.hash_threads,
        quiet: settings.quiet,
        hold_max: settings.hold_max,
        patterns: settings.patterns.clone(),
        ..CatalogOptions::new(&settings.repo, settings.state.join(CATALOG_FILE))
    }
}

fn swarm_options(settings: &Settings) -> SwarmOptions {
    SwarmOptions {
        repo: settings.repo.clone(),
        state: settings.state.clone(),
        spool_max: settings.spool_max,
        patterns: settings.patterns.clone(),
        sync_rate: settings.sync_rate,
        origin_copies: settings.origin_copies,
    }
}

fn front_door_options(settings: &Settings, addresses: Arc<OnceLock<PublicAddresses>>) -> FrontDoorOptions {
    FrontDoorOptions {
        addresses,
        direct_below: settings.direct_below,
        changed_window: settings.changed_window,
        ticket_lifetime: settings.ticket_lifetime,
        avoid_window: settings.avoid_window,
        heartbeat: settings.heartbeat,
        duplicates: settings.duplicates,
        listings: settings.listings,
        patterns: settings.patterns.clone(),
    }
}

/// Sockets that were handed over, by what they are for.
struct Sockets {
    front_door: Option<TcpListener>,
    sync: Option<TcpListener>,
    api: Option<TcpListener>,
    status: Option<TcpListener>,
}

impl Sockets {
    fn take(inherited: &mut Inherited) -> Self {
        let mut first = |name| {
            let mut sockets = inherited.take(name).into_iter();
            let first = sockets.next();
            for _ in sockets {
                tracing::warn!(name, "more than one socket was handed over for this; the first is used");
            }
            first
        };
        Self {
            front_door: first("front-door"),
            sync: first("sync"),
            api: first("api"),
            status: first("status"),
        }
    }

    /// Whether nothing that others connect to is refused while control is away.
    fn all(&self) -> bool {
        self.front_door.is_some() && self.sync.is_some() && self.api.is_some()
    }
}

/// The engine, and the sockets that are not its own.
type Started = (Running, Option<TcpListener>, Option<TcpListener>);

fn start_engine(
    settings: &Settings,
    front_door: &Arc<FrontDoor>,
    sync: SyncSite,
    sockets: Sockets,
    sent_elsewhere: &Arc<SentElsewhere>,
) -> anyhow::Result<Started> {
    let listener = |address, inherited, class: Class, site| Listener {
        address,
        inherited,
        class: class.number(),
        mark: None,
        site,
    };
    let sync_address = match &sockets.sync {
        Some(_) => settings.sync_listen,
        None => same_port_as_before(settings),
    };
    let observer = OriginObserver::new(
        Arc::clone(front_door.counters()),
        Arc::clone(sync.counters()),
        Arc::clone(front_door.origin_load()),
    );
    let server = Server {
        listeners: vec![
            listener(
                settings.listen,
                sockets.front_door,
                Class::Delivery,
                Arc::clone(front_door) as Arc<dyn freshet_engine::Site>,
            ),
            listener(sync_address, sockets.sync, Class::Sync, Arc::new(sync)),
        ],
        rings: settings.rings,
        limits: Limits { connections_max: settings.connections_max, ..Limits::default() },
        pacer: settings.sync_rate.map(|rate| {
            Arc::new(SyncPacer::new(rate, Arc::clone(sent_elsewhere))) as Arc<dyn freshet_engine::Pacer>
        }),
        observer: Some(Arc::new(observer)),
    };
    let running = server.start().context("cannot start the front door and the sync port")?;
    Ok((running, sockets.api, sockets.status))
}

/// The sync address with the port of the last start, where any port will do and that one is free.
fn same_port_as_before(settings: &Settings) -> SocketAddr {
    let wanted = settings.sync_listen;
    if wanted.port() != 0 {
        return wanted;
    }
    let before = last_addresses(&settings.state).map(|before| before.sync_listen);
    match before {
        Some(before) if before.ip() == wanted.ip() && TcpListener::bind(before).is_ok() => before,
        _ => wanted,
    }
}

fn last_addresses(state: &Path) -> Option<Addresses> {
    serde_json::from_slice(&std::fs::read(state.join(ADDRESSES_FILE)).ok()?).ok()
}

fn bound_addresses(
    settings: &Settings,
    engine: &Running,
    api: &ApiServer,
    status: Option<&ApiServer>,
) -> anyhow::Result<Addresses> {
    let [listen, sync_listen] = engine.addresses() else {
        anyhow::bail!("expected two bound addresses of the engine, found {:?}", engine.addresses());
    };
    let api = api.address().context("the API port has no address")?;
    Ok(Addresses {
        public_url: settings.public_url.clone().unwrap_or_else(|| format!("http://{listen}")),
        sync_url: settings.sync_url.clone().unwrap_or_else(|| format!("http://{sync_listen}")),
        api_name: settings.api_name.clone().unwrap_or_else(|| api.to_string()),
        listen: *listen,
        sync_listen: *sync_listen,
        api,
        status: status.map(ApiServer::address).transpose().context("the status port has no address")?,
    })
}

const REGISTRY_FILE: &str = "control.redb";
const DOWNLOADS_FILE: &str = "downloads.redb";
const CATALOG_FILE: &str = "catalog.redb";
const ADDRESSES_FILE: &str = "addresses.json";
const API_GRACE: Duration = Duration::from_secs(2);
/// Who follows the page live is cut off.
const STATUS_GRACE: Duration = Duration::from_millis(200);
/// Recent customers that are recognised when they ask again (1 MiB).
const RESERVATION_CLAIMS: usize = 1 << 16;
