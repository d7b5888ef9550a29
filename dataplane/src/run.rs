//! `dataplane run`: puts the volunteer's rooms together, starts them, and stops them in order.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use freshet_api::{BytesPerSec, Class};
use freshet_ebpf::InterfaceChoice;
use freshet_engine::{Inherited, Listener, Observer, Observers, Pacer, Running, Server, Site};
use sd_notify::NotifyState;
use serde::Serialize;
use tokio::sync::watch;

use crate::access_log;
use crate::accounting::{Ledger, link_speed};
use crate::agent::{Agent, Offer, Phase, STOPPING};
use crate::budget::{Admission, DonationPacer, Month, Patrol, PatrolParts, Rates};
use crate::cli::RunOptions;
use crate::config::budget::{self, BudgetConfig};
use crate::config::{self, Config, LogConfig};
use crate::control::ControlClient;
use crate::counters::Counters;
use crate::credential::Credential;
use crate::delivery::{DeliverySite, SharedTerms, Terms};
use crate::exit::Failure;
use crate::link::{Dialer, DialerOptions};
use crate::logging::announce;
use crate::metrics::{self, Figures};
use crate::mirror::{Mirror, MirrorError, MirrorOptions};
use crate::orders::Orders;
use crate::queue::{self, HardLimit};
use crate::signals::{Ask, Signals};
use crate::swarm::{Meter, PeerPort, RelayedManifests, Shelves, Spare, Swarm, SwarmOptions};
use crate::sync::{Origin, ReadPacer, SyncOptions};
use crate::watch::{ClientWatch, ConnectionBounds, DeliveryWatch};

/// Runs until a signal says stop.
///
/// # Errors
/// See [`crate::exit::EXIT_STATUS_HELP`].
pub fn run(options: &RunOptions) -> Result<(), Failure> {
    // Before there are other threads.
    let inherited = Inherited::from_environment();
    let config = load(options)?;
    if options.check_config {
        let text = config.to_toml().context("cannot show the configuration")?;
        announce(format_args!("{}", text.trim_end()));
        return Ok(());
    }
    crate::logging::start(config.log.format, config.log.filter.as_deref());
    let state = config.state_directory();
    let credential = Credential::load(&state).map_err(Failure::configuration)?.ok_or_else(|| {
        Failure::membership(anyhow!(
            "{} belongs to no volunteer; run `dataplane join STRING --state {}` first, with the string that \
             `ctl node add NAME` prints at the origin",
            state.display(),
            state.display()
        ))
    })?;
    let counting = freshet_ebpf::Options {
        interfaces: interfaces(&config),
        classifiers: config.classifiers,
        pin: config.pins.directory(&state),
        ..freshet_ebpf::Options::default()
    };
    let counted = freshet_ebpf::open(counting).context("cannot count traffic")?;
    tracing::info!(source = %counted.accounting.source(), "counting");
    let hard_limit = hard_limit(&config, &counted)?;
    // Whatever starts from here on can't attach to an interface any more; who keeps the attachments was started.
    if let Err(error) = freshet_ebpf::drop_capabilities() {
        tracing::warn!(%error, "the rights for counting are kept");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("dataplane")
        .enable_all()
        .build()
        .context("cannot start")?;
    let outcome = runtime.block_on(async {
        let volunteer = Volunteer::start(options, config, credential, counted, hard_limit, inherited)?;
        volunteer.until_stopped().await
    });
    // Work that a second signal cut short must not be waited for.
    runtime.shutdown_background();
    outcome
}

/// The configuration with the flags in place of what it says.
fn load(options: &RunOptions) -> Result<Config, Failure> {
    let path = match (&options.config, &options.state) {
        (Some(path), _) => path.clone(),
        (None, Some(state)) => state.join(config::FILE_NAME),
        (None, None) => {
            return Err(Failure::configuration(anyhow!("expected --config FILE or --state DIR")));
        }
    };
    let mut config = Config::load(&path, options.state.as_deref()).map_err(Failure::configuration)?;
    let RunOptions { listen, public_url, tree, interfaces, donated_rate, sync_rate, .. } = options.clone();
    if !listen.is_empty() {
        config.listen = listen;
    }
    if !options.local_network.is_empty() {
        config.local_networks.clone_from(&options.local_network);
    }
    config.public_url = public_url.or(config.public_url);
    config.metrics_listen = options.metrics_listen.or(config.metrics_listen);
    config.tree = tree.or(config.tree);
    config.interfaces = interfaces.unwrap_or(config.interfaces);
    config.donated_rate = donated_rate.or(config.donated_rate);
    config.sync_rate = sync_rate.or(config.sync_rate);
    config.rings = options.rings.unwrap_or(config.rings);
    config.grace_secs = options.grace_secs.or(config.grace_secs);
    config.log.access = options.access_log.clone().unwrap_or(config.log.access);
    config.log.access_format = options.access_log_format.unwrap_or(config.log.access_format);
    config.log.access_sample = options.access_log_sample.unwrap_or(config.log.access_sample);
    config.log.format = options.log_format.unwrap_or(config.log.format);
    config.limits = options.limits.clone().or(config.limits);
    config.check().map_err(Failure::configuration)?;
    Ok(config)
}

/// A volunteer that is up.
struct Volunteer {
    options: RunOptions,
    config: Config,
    signals: Signals,
    delivery: Running,
    peers: Option<PeerPort>,
    terms: SharedTerms,
    patrol: Patrol,
    bounds: Arc<ConnectionBounds>,
    ledger: Arc<Mutex<Ledger>>,
    classes: freshet_ebpf::Classes,
    hard_limit: Option<HardLimit>,
    offer: watch::Sender<Offer>,
    phase: watch::Sender<Phase>,
    closed: watch::Receiver<bool>,
    agent: tokio::task::JoinHandle<()>,
    sync: tokio::task::JoinHandle<()>,
    sync_stop: watch::Sender<bool>,
    addresses: PathBuf,
    /// The ports have their class for as long as these live.
    _ports: Vec<freshet_ebpf::PortClaim>,
}

impl Volunteer {
    fn start(
        options: &RunOptions,
        config: Config,
        credential: Credential,
        counted: freshet_ebpf::Opened,
        hard_limit: Option<HardLimit>,
        mut inherited: Inherited,
    ) -> Result<Self, Failure> {
        let started = Instant::now();
        let state = config.state_directory();
        let limits = config.limits.to_limits().map_err(Failure::configuration)?;
        let signals = Signals::listen().context("cannot listen to signals")?;
        let LogConfig { access, access_format, access_sample, .. } = &config.log;
        let log = access_log::start(access, *access_format, *access_sample)
            .context("cannot open the access log")
            .map_err(Failure::configuration)?;
        let orders = Orders::load(&config.mirror, &state).map_err(Failure::configuration)?;
        let selection = orders.selection();
        let options_of_mirror =
            MirrorOptions { selection, ..MirrorOptions::new(state.join(STORE), config.tree_directory()) };
        let mirror = Mirror::open(options_of_mirror).map_err(|error| match error {
            MirrorError::Apart { .. } => Failure::configuration(error),
            other => anyhow!(other).context("cannot open the mirror").into(),
        })?;
        let counters = Arc::new(Counters::default());
        let classes = counted.classes.clone();
        let ledger = Arc::new(Mutex::new(Ledger::new(counted.accounting)));
        let pacer = Arc::new(DonationPacer::new(Rates::NONE));
        let admission = Arc::new(Admission::default());
        let bounds = Arc::new(ConnectionBounds::new(&config));
        check_links(&config, &ledger)?;
        let month = Month::load(&state).map_err(Failure::configuration)?;
        let parts = PatrolParts {
            ledger: Arc::clone(&ledger),
            classes: classes.clone(),
            pacer: Arc::clone(&pacer),
            admission: Arc::clone(&admission),
            state: state.clone(),
            seed: seed(&credential),
        };
        let patrol = Patrol::start(&config, month, parts)?;
        let terms: SharedTerms = Arc::new(ArcSwap::from_pointee(Terms {
            front_door: credential.front_door.clone(),
            local_networks: config.local_networks.clone(),
            closed: None,
        }));
        let site = DeliverySite::open(
            credential.ticket_key.clone(),
            Arc::clone(&mirror),
            Arc::clone(&terms),
            Arc::clone(&admission),
            Arc::clone(&counters),
        )
        .context("cannot open the store")?;
        let watch = DeliveryWatch::new(
            classes.meter().clone(),
            Arc::clone(&counters),
            admission,
            Arc::clone(&bounds),
        );
        let mut observers = vec![Arc::new(watch) as Arc<dyn Observer>];
        observers.extend(log.map(|log| log as Arc<dyn Observer>));
        let site: Arc<dyn Site> = Arc::new(site);
        let handed = inherited.take(DELIVERY_SOCKET);
        let places: Vec<(SocketAddr, Option<TcpListener>)> = if handed.is_empty() {
            listen_addresses(&config).into_iter().map(|address| (address, None)).collect()
        } else {
            // The service manager has said where.
            let place = |socket: TcpListener| Ok((socket.local_addr()?, Some(socket)));
            handed.into_iter().map(place).collect::<std::io::Result<_>>().context("cannot use a socket")?
        };
        let listeners = places.into_iter().map(|(address, inherited)| Listener {
            address,
            inherited,
            class: Class::Delivery.number(),
            // Without the right to mark, the port tells the class.
            mark: classes.mark_of(freshet_ebpf::Class::Delivery),
            site: Arc::clone(&site),
        });
        let delivery = Server {
            listeners: listeners.collect(),
            rings: config.rings,
            limits,
            pacer: Some(Arc::clone(&pacer) as Arc<dyn Pacer>),
            observer: Some(Arc::new(Observers(observers))),
        }
        .start()?;
        if let Err(error) = classes.listening(freshet_ebpf::Class::Delivery, delivery.listening()) {
            tracing::warn!(%error, "customers are answered also when the month is used up");
        }
        let bound = delivery.addresses().to_vec();
        let first = *bound.first().ok_or_else(|| anyhow!("no port is bound"))?;
        let ports = bound
            .iter()
            .map(|address| classes.port(address.port(), freshet_ebpf::Class::Delivery))
            .collect::<Result<_, _>>()
            .context("cannot count the delivery port")?;

        let shelves = Shelves::default();
        let handed = inherited.take(SYNC_SOCKET).into_iter().next();
        let peers =
            open_peer_port(&config, (first, handed), &credential, &mirror, &shelves, &pacer, &classes)?;
        let (last_heard, heard) = watch::channel(None);
        let metrics_socket = inherited.take(METRICS_SOCKET).into_iter().next();
        for name in inherited.left() {
            tracing::warn!(name, "a socket was handed over under a name that is not known; it is not used");
        }
        let sync_port = peers.as_ref().map(|peers| (peers.address(), config.sync_public_url.clone()));

        let client = Clients::new(&credential, classes.clone())?;
        let offer = Offer { public_url: config.public_url.clone() };
        let (offer, offer_heard) = watch::channel(offer);
        let (phase, phase_heard) = watch::channel(Phase::Serving);
        let (wanted, wanted_heard) = watch::channel(0);
        let (origin, origin_heard) = watch::channel(None);
        let (sync_stop, sync_stop_heard) = watch::channel(false);
        let (closed_said, closed) = watch::channel(false);
        let agent = Agent {
            control: client.control(&credential),
            credential: credential.clone(),
            state: state.clone(),
            mirror: Arc::clone(&mirror),
            counters: Arc::clone(&counters),
            ledger: Arc::clone(&ledger),
            outlook: patrol.outlook(),
            terms: Arc::clone(&terms),
            bound: first,
            sync_port: sync_port.clone(),
            offer: offer_heard,
            phase: phase_heard,
            wanted,
            origin,
            pacer: Arc::clone(&pacer),
            orders,
            last_heard,
            banned: None,
        };
        let mut metrics_address = None;
        if let Some(address) =
            config.metrics_listen.or(metrics_socket.as_ref().and_then(|s| s.local_addr().ok()))
        {
            let listener = metrics::bind(address, metrics_socket)
                .with_context(|| format!("cannot listen on {address} for metrics"))?;
            metrics_address = Some(listener.local_addr().unwrap_or(address));
            let figures = Figures {
                counters: Arc::clone(&counters),
                delivery: delivery.reader(),
                ledger: Arc::clone(&ledger),
                outlook: patrol.outlook(),
                terms: Arc::clone(&terms),
                mirror: Arc::clone(&mirror),
                heard,
                started,
            };
            tokio::spawn(metrics::serve(listener, Arc::new(figures)));
        }
        let (outlook, measured, counted) = (patrol.outlook(), Spare::default(), Arc::clone(&counters));
        let spare = Arc::new(move || {
            measured.of(outlook.borrow().offered, counted.read().body_bytes, Instant::now())
        });
        crate::progress::show(&mirror);
        let meter = Arc::<Meter>::default();
        let manifests = RelayedManifests {
            desk: client.control(&credential),
            dialer: client.sync.clone(),
            pacer: Arc::clone(&pacer) as Arc<dyn ReadPacer>,
            origin: origin_heard.clone(),
            shelves: shelves.clone(),
            meter: Arc::clone(&meter),
        };
        let sync = tokio::spawn(crate::sync::run(
            mirror,
            manifests,
            Origin::new(client.sync.clone(), origin_heard.clone(), Arc::clone(&pacer) as Arc<dyn ReadPacer>),
            Swarm {
                tracker: Arc::new(client.control(&credential)),
                dialer: client.sync,
                pacer: pacer as Arc<dyn ReadPacer>,
                origin: origin_heard,
                shelves,
                meter,
                options: SwarmOptions { spare, ..SwarmOptions::default() },
            },
            wanted_heard,
            SyncOptions::default(),
            sync_stop_heard,
        ));
        let agent = tokio::spawn(agent.run(closed_said));

        let addresses = state.join(ADDRESSES);
        let sync_address = sync_port.as_ref().map(|(address, _)| *address);
        write_addresses(&addresses, &bound, sync_address, metrics_address)?;
        for address in &bound {
            announce(format_args!("delivery: http://{address}"));
        }
        if let Some((address, _)) = &sync_port {
            announce(format_args!("sync: http://{address}"));
        }
        if let Some(address) = metrics_address {
            announce(format_args!("metrics: http://{address}"));
        }
        tracing::info!(node = %credential.node, name = credential.name, control = credential.api, "volunteering");
        Ok(Self {
            options: options.clone(),
            config,
            signals,
            delivery,
            peers,
            terms,
            patrol,
            bounds,
            ledger,
            classes,
            hard_limit,
            offer,
            phase,
            closed,
            agent,
            sync,
            sync_stop,
            addresses,
            _ports: ports,
        })
    }

    /// Serves until a signal says stop, then stops: no new customers, transfers end, control hears the last counters.
    async fn until_stopped(mut self) -> Result<(), Failure> {
        tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
        while self.signals.next().await == Ask::Reload {
            self.reload();
        }
        tell(&[NotifyState::Stopping, NotifyState::Status("waiting for transfers to end")]);
        let Self {
            mut signals,
            delivery,
            peers,
            terms,
            phase,
            mut closed,
            agent,
            sync,
            sync_stop,
            addresses,
            config,
            patrol,
            ledger,
            classes,
            hard_limit,
            _ports,
            ..
        } = self;
        let grace = config.grace();
        tracing::info!(grace_secs = grace.as_secs(), "stopping; a second signal ends it at once");
        sync_stop.send_replace(true);
        terms.rcu(|terms| Terms { closed: Some(STOPPING.to_owned()), ..Terms::clone(terms) });
        signals
            .unless_hurried(async {
                // Until control knows, customers still come with fresh tickets, and are sent back rather than refused.
                phase.send_replace(Phase::Closing);
                let told = closed.wait_for(|&closed| closed);
                if !matches!(tokio::time::timeout(CLOSING_TOLD_WITHIN, told).await, Ok(Ok(_))) {
                    tracing::info!("control was not told of the stop");
                }
                // Joining the rings' threads blocks.
                if let Err(error) = tokio::task::spawn_blocking(move || {
                    // Peers find their pieces elsewhere.
                    peers.into_iter().for_each(|peers| peers.stop(Duration::ZERO));
                    delivery.stop(grace);
                })
                .await
                {
                    tracing::error!(%error, "a ring did not end well");
                }
                if tokio::time::timeout(SYNC_ENDS_WITHIN, sync).await.is_err() {
                    tracing::info!("sync did not end in time; what was on its way is fetched again");
                }
                phase.send_replace(Phase::Last);
                if tokio::time::timeout(LAST_HEARTBEAT_WITHIN, agent).await.is_err() {
                    tracing::info!("control was not told the last counters; what was delivered since is not in its ledger");
                }
            })
            .await;
        // The month's last page, and then nothing of ours hangs on an interface any more.
        patrol.stop();
        drop((_ports, hard_limit));
        classes.leave_nothing();
        ledger.lock().unwrap_or_else(PoisonError::into_inner).close();
        if let Err(error) = std::fs::remove_file(&addresses) {
            tracing::debug!(%error, "the file with the addresses stays");
        }
        Ok(())
    }

    /// Reads the configuration again; what can't be changed while running stays, and the log says what.
    fn reload(&mut self) {
        let new = match load(&self.options) {
            Ok(new) => new,
            Err(failure) => {
                tracing::error!("the configuration stays as it was: {failure}");
                return;
            }
        };
        let waiting = self.config.needs_restart(&new);
        if !waiting.is_empty() {
            tracing::warn!(
                keys = waiting.join(", "),
                "changed in the configuration, in force after a restart only"
            );
        }
        if let Err(failure) = check_links(&new, &self.ledger) {
            tracing::error!("the configuration stays as it was: {failure}");
            return;
        }
        self.patrol.reload(&new);
        self.bounds.set(&new);
        if let (Some(limit), Some(rate)) = (&self.hard_limit, most_donated(&new)) {
            limit.set(rate);
        }
        self.terms.rcu(|terms| Terms { local_networks: new.local_networks.clone(), ..Terms::clone(terms) });
        self.offer.send_replace(Offer { public_url: new.public_url.clone() });
        self.config = Config {
            donated_rate: new.donated_rate,
            sync_rate: new.sync_rate,
            budget: BudgetConfig { hard_limit: self.config.budget.hard_limit, ..new.budget },
            local_networks: new.local_networks,
            public_url: new.public_url,
            grace_secs: new.grace_secs,
            ..self.config.clone()
        };
        tracing::info!("the configuration was read again");
    }
}

/// Tells the service manager, where there is one.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager can't be told");
    }
}

/// `addresses.json`: where the daemon listens, for programs that started it with port 0.
#[derive(Serialize)]
struct Addresses<'a> {
    delivery: &'a [SocketAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    sync: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<SocketAddr>,
}

fn write_addresses(
    path: &Path,
    delivery: &[SocketAddr],
    sync: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(&Addresses { delivery, sync, metrics })
        .context("cannot write the addresses")?;
    text.push(b'\n');
    crate::durable::write(path, &text, 0o644).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// The kernel's queues that keep the donated rate, where the owner wants them.
fn hard_limit(config: &Config, counted: &freshet_ebpf::Opened) -> Result<Option<HardLimit>, Failure> {
    let (wanted, Some(rate)) = (config.budget.hard_limit, most_donated(config)) else { return Ok(None) };
    if wanted == budget::HardLimit::Off {
        return Ok(None);
    }
    if !counted.classes.prioritise(Some(queue::MAJOR)).context("cannot name classes by priority")? {
        return Err(Failure::configuration(anyhow!(
            "expected `budget.hard_limit` to be off, since classes are not told apart in the kernel: {}",
            counted.accounting.source()
        )));
    }
    let replace = wanted == budget::HardLimit::Replace;
    let limit = HardLimit::start(interfaces(config), rate, replace).map_err(Failure::configuration)?;
    Ok(Some(limit))
}

/// The most that is donated at any hour.
fn most_donated(config: &Config) -> Option<BytesPerSec> {
    let hours = config.budget.hours.iter().map(|span| span.rate);
    config.donated_rate.map(|rate| hours.fold(rate, BytesPerSec::max))
}

/// Refuses to put the owner first on links of which nobody says what they carry.
fn check_links(config: &Config, ledger: &Mutex<Ledger>) -> Result<(), Failure> {
    if config.budget.owner_first.is_none_or(|first| first.link.is_some()) {
        return Ok(());
    }
    let reading = ledger.lock().unwrap_or_else(PoisonError::into_inner).reading();
    let reading = reading.context("cannot read the counters")?;
    let silent = reading.interfaces.iter().find(|interface| link_speed(&interface.name).is_none());
    silent.map_or(Ok(()), |interface| {
        Err(Failure::configuration(anyhow!(
            "expected `budget.owner_first.link`: the driver of {} does not say what its link carries",
            interface.name
        )))
    })
}

/// This volunteer's own number, the same at every start.
fn seed(credential: &Credential) -> u64 {
    let name = blake3::hash(format!("{} {}", credential.api, credential.node).as_bytes());
    name.as_bytes()[..8].iter().fold(0, |seed, &byte| seed << 8 | u64::from(byte))
}

/// Where to listen; on a host without IPv6 the default is every IPv4 address.
fn listen_addresses(config: &Config) -> Vec<SocketAddr> {
    if config.listen.is_empty() && UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).is_err() {
        return vec![(std::net::Ipv4Addr::UNSPECIFIED, config::DEFAULT_LISTEN.port()).into()];
    }
    config.listen_addresses()
}

/// Which interfaces are counted; who serves on the loopback only wants to see that one.
fn interfaces(config: &Config) -> InterfaceChoice {
    let loopback_only =
        !config.listen.is_empty() && config.listen.iter().all(|listen| listen.ip().is_loopback());
    match config.interfaces.choice() {
        InterfaceChoice::Automatic if loopback_only => LOOPBACK.parse().unwrap_or_default(),
        choice => choice.clone(),
    }
}

/// Opens the port for peers. One that the owner did not ask for is done without when it can't be had.
fn open_peer_port(
    config: &Config,
    (delivery, inherited): (SocketAddr, Option<TcpListener>),
    credential: &Credential,
    mirror: &Arc<Mirror>,
    shelves: &Shelves,
    pacer: &Arc<DonationPacer>,
    classes: &freshet_ebpf::Classes,
) -> Result<Option<PeerPort>, Failure> {
    // Beside a delivery port that was picked, one that is picked too.
    let picked = config.listen.first().is_some_and(|listen| listen.port() == 0);
    let beside = SocketAddr::new(delivery.ip(), if picked { 0 } else { delivery.port().wrapping_add(1) });
    let opened = PeerPort::open(
        config.sync_listen.unwrap_or(beside),
        inherited,
        &credential.ticket_key,
        Arc::clone(mirror),
        shelves.clone(),
        Arc::clone(pacer) as Arc<dyn Pacer>,
        classes,
    );
    match opened {
        Ok(port) => Ok(Some(port)),
        Err(error) if config.sync_listen.is_some() => Err(anyhow!(error).into()),
        Err(error) => {
            tracing::warn!(%error, "going on without a sync port; set `sync_listen` to a free one");
            Ok(None)
        }
    }
}

/// The connections that this host opens, by what they are for.
struct Clients {
    control: Dialer,
    sync: Dialer,
}

impl Clients {
    fn new(credential: &Credential, classes: freshet_ebpf::Classes) -> Result<Self, Failure> {
        let tls = freshet_api::pin::client_config(credential.fingerprint).context("cannot set up TLS")?;
        let (tls, watch) = (Arc::new(tls), Arc::new(ClientWatch::new(classes)));
        let options = |class: Class| DialerOptions {
            tls: Some(Arc::clone(&tls)),
            meter: Some(watch.clone()),
            ..DialerOptions::new(class.number())
        };
        // What control answers is small and made before it is sent: asking again is quicker than waiting on.
        let control = DialerOptions { read_timeout: CONTROL_READ_TIMEOUT, ..options(Class::Control) };
        Ok(Self { control: Dialer::new(control), sync: Dialer::new(options(Class::Sync)) })
    }

    fn control(&self, credential: &Credential) -> ControlClient {
        ControlClient::new(self.control.clone(), &credential.api)
            .as_volunteer(&credential.credential)
            .signed_by(credential.fingerprint)
    }
}

/// Between two parts of an answer of control.
const CONTROL_READ_TIMEOUT: Duration = Duration::from_secs(8);

/// Agent and sync wait for the network most of the time; the rings have threads of their own.
const WORKERS: usize = 2;
/// The store's name within a state directory.
const STORE: &str = "store";
/// What the sockets are called that a service manager hands over.
const DELIVERY_SOCKET: &str = "delivery";
const SYNC_SOCKET: &str = "sync";
const METRICS_SOCKET: &str = "metrics";
const LOOPBACK: &str = "lo";
const ADDRESSES: &str = "addresses.json";
const SYNC_ENDS_WITHIN: Duration = Duration::from_secs(10);
const CLOSING_TOLD_WITHIN: Duration = Duration::from_secs(2);
const LAST_HEARTBEAT_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &[&str], interfaces: &str) -> Config {
        Config {
            listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
            interfaces: interfaces.parse().unwrap(),
            ..Config::default()
        }
    }

    #[test]
    fn the_loopback_is_counted_by_those_who_serve_there_only() {
        let lo: InterfaceChoice = LOOPBACK.parse().unwrap();
        assert_eq!(interfaces(&config(&["127.0.0.1:0", "[::1]:0"], "auto")), lo);
        assert_eq!(interfaces(&config(&["127.0.0.1:0", "192.0.2.1:0"], "auto")), InterfaceChoice::Automatic);
        assert_eq!(interfaces(&config(&[], "auto")), InterfaceChoice::Automatic);
        assert_eq!(interfaces(&config(&["127.0.0.1:0"], "eth*")), "eth*".parse().unwrap());
    }

    #[test]
    fn the_default_port_is_the_same_with_and_without_ipv6() {
        let addresses = listen_addresses(&config(&[], "auto"));
        assert_eq!(addresses.len(), 1);
        assert!(addresses[0].ip().is_unspecified() && addresses[0].port() == config::DEFAULT_LISTEN.port());
    }
}
