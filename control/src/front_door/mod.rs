//! The front door: what a customer's GET is answered with. It decides from memory and opens no file.
//!
//! Small files, indexes and paths whose content has lately changed are the origin's own to send; the rest is
//! a redirect to a volunteer, with checksums and a ticket; and where nobody can, the origin serves.

mod choice;
mod companion;
mod counters;
mod fields;
mod listing;
mod metalink;
mod origin_load;
mod recent;

use std::borrow::Cow;
use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use freshet_api::admin::ExplainView;
use freshet_api::ticket::{NODES_MAX, TicketError};
use freshet_api::{BytesPerSec, Ticket};
use freshet_engine::{Answer, Body, FileAnswer, Method, Redirect, Refusal, Request, Root, Site, Unavailable};
use freshet_policy::admission::{Admission, CascadeGuard};
use freshet_policy::reservation::ReservationLedger;
use http::{HeaderValue, StatusCode, header};

use crate::api::PublicAddresses;
use crate::balance::{Demand, Desk};
use crate::catalog::{Catalog, FileEntry, Patterns, Snapshot};
use crate::clock::{Clock, epoch_secs};
use crate::downloads::Downloads;
use crate::routing::{Routing, RoutingTable};
use choice::{Ask, Customer, Ranked};
use companion::Companion;
use fields::RedirectHead;
use recent::Recent;

pub use counters::FrontDoorCounters;
pub(crate) use fields::encode_path;
pub use origin_load::OriginLoad;

/// How the front door behaves.
#[derive(Clone, Debug)]
pub struct FrontDoorOptions {
    /// How customers reach it; set once the ports are bound.
    pub addresses: Arc<OnceLock<PublicAddresses>>,
    /// Files smaller than this many bytes are sent by the origin itself.
    pub direct_below: u64,
    /// How long after a change of content a path is sent by the origin itself.
    pub changed_window: Duration,
    /// How long a ticket opens something.
    pub ticket_lifetime: Duration,
    /// How long a customer who asks again for the same file is not sent to the same volunteer again.
    pub avoid_window: Duration,
    /// Between two heartbeats of a volunteer.
    pub heartbeat: Duration,
    /// Other volunteers named in `Link` fields of a redirect, at most.
    pub duplicates: usize,
    /// Whether directories are listed.
    pub listings: bool,
    /// What counts as an index.
    pub patterns: Patterns,
}

/// The [`Site`] of the front door's port.
pub struct FrontDoor {
    options: FrontDoorOptions,
    catalog: Arc<Catalog>,
    routing: Arc<Routing>,
    reservations: Arc<ReservationLedger>,
    balance: Arc<Desk>,
    /// What was asked for lately.
    demand: Arc<Demand>,
    /// Of all time.
    downloads: Arc<Downloads>,
    guard: CascadeGuard,
    /// What the origin still owes to customers that no volunteer took.
    origin_load: Arc<OriginLoad>,
    /// What all usable volunteers and the origin deliver together, bytes per second: the rate at which room appears.
    drain: AtomicU64,
    root: Arc<Root>,
    recent: Recent,
    counters: Arc<FrontDoorCounters>,
    clock: Clock,
    /// Keyed anew at each start, so that nobody can aim at somebody else's slot of `recent`.
    keyed: RandomState,
    /// Where the next request's seed comes from.
    seeds: AtomicU64,
    /// Moment of the last rescan asked for, nanoseconds.
    rescan_asked: AtomicU64,
}

/// What a front door answers from.
pub struct FrontDoorRooms {
    /// The files.
    pub catalog: Arc<Catalog>,
    /// Who has them.
    pub routing: Arc<Routing>,
    /// What volunteers owe to customers.
    pub reservations: Arc<ReservationLedger>,
    /// The operators' knobs.
    pub balance: Arc<Desk>,
    /// Counts what is asked for.
    pub downloads: Arc<Downloads>,
    /// The repository.
    pub root: Arc<Root>,
}

impl FrontDoor {
    /// A front door to what the catalogue knows, with files below the root (the same tree).
    pub fn new(options: FrontDoorOptions, rooms: FrontDoorRooms, clock: Clock, seed: u64) -> Self {
        let FrontDoorRooms { catalog, routing, reservations, balance, downloads, root } = rooms;
        Self {
            options,
            catalog,
            routing,
            reservations,
            balance,
            demand: Arc::default(),
            downloads,
            guard: CascadeGuard::default(),
            origin_load: Arc::default(),
            drain: AtomicU64::new(0),
            root,
            recent: Recent::new(),
            counters: Arc::default(),
            clock,
            keyed: RandomState::new(),
            seeds: AtomicU64::new(seed),
            rescan_asked: AtomicU64::new(0),
        }
    }

    /// What it did so far.
    pub fn counters(&self) -> &Arc<FrontDoorCounters> {
        &self.counters
    }

    /// What was asked for lately.
    pub fn demand(&self) -> &Arc<Demand> {
        &self.demand
    }

    /// What the origin owes to customers; an observer of the front door's port keeps it.
    pub fn origin_load(&self) -> &Arc<OriginLoad> {
        &self.origin_load
    }

    /// What all usable volunteers and the origin deliver together.
    pub fn set_drain(&self, drain: BytesPerSec) {
        self.drain.store(drain.0, Ordering::Relaxed);
    }

    fn respond(&self, request: &Request<'_>) -> Answer {
        let catalog = self.catalog.load();
        if let Some(entry) = catalog.find(request.path) {
            return self.respond_file(request, &entry, &shown(request.path));
        }
        if let Some((companion, path, entry)) = Companion::find(&catalog, request.path) {
            FrontDoorCounters::count(&self.counters.direct);
            return self.respond_companion(request, companion, &entry, &shown(path));
        }
        if let Some(answer) = self.respond_directory(request, &catalog) {
            return answer;
        }
        self.not_found()
    }

    fn respond_file(&self, request: &Request<'_>, entry: &FileEntry<'_>, path: &str) -> Answer {
        let now = epoch_secs(request.now);
        if self.direct_reason(entry, now).is_some() {
            FrontDoorCounters::count(&self.counters.direct);
            self.count_download(request, entry);
            return self.origin(entry, path);
        }
        let table = self.routing.load();
        let returned = match self.returned(request, &table, now) {
            Ok(returned) => returned,
            Err(refusal) => return Answer::Refusal(refusal),
        };
        let customer =
            Customer::of(request, entry, returned.as_ref().map_or(&[], Ticket::nodes), &self.keyed);
        let moment = self.clock.now();
        let rules = self.balance.rules();
        let ask = Ask { table: &table, rules: &rules, entry, customer: &customer, now: moment };
        if request.method == Method::Get {
            self.demand.note(entry.file, customer.bytes);
        }
        if returned.is_none() {
            self.count_download(request, entry);
        }
        if let Some(ticket) = &returned {
            self.reservations.bounce(ticket.node(), customer.promise(entry), moment);
            if ticket.nodes().len() >= NODES_MAX {
                return self.fall_back(request, &ask, path);
            }
        }
        let routes = self.choose(&ask);
        match self.redirect(request, &ask, path, &routes, now) {
            Some(answer) => answer,
            None => self.fall_back(request, &ask, path),
        }
    }

    /// Counts who begins a download; who goes on with one was counted before.
    fn count_download(&self, request: &Request<'_>, entry: &FileEntry<'_>) {
        let range = request.headers.get(header::RANGE);
        if request.method == Method::Get
            && range.is_none_or(|range| range.as_bytes().starts_with(b"bytes=0-"))
        {
            self.downloads.note(entry.file);
        }
    }

    /// Nobody else takes the customer: the origin does while it has headroom, and otherwise says when to come back.
    fn fall_back(&self, request: &Request<'_>, ask: &Ask<'_, '_>, path: &str) -> Answer {
        if let Admission::RetryAfter(wait) = self.origin_or_later(ask) {
            FrontDoorCounters::count(&self.counters.put_off);
            let mut refusal = Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "all that is given to downloads is taken just now; come back when Retry-After says\n",
            );
            refusal.headers.push((header::RETRY_AFTER, HeaderValue::from(wait.as_secs())));
            return Answer::Refusal(refusal);
        }
        FrontDoorCounters::count(&self.counters.fallback);
        self.origin_load.owe(request.peer, ask.customer.bytes);
        self.origin(ask.entry, path)
    }

    /// Why the origin sends this file itself, if it does so always.
    fn direct_reason(&self, entry: &FileEntry<'_>, now: u64) -> Option<&'static str> {
        if entry.size < self.options.direct_below {
            return Some("small enough for the origin to send it itself");
        }
        if entry.last || self.options.patterns.is_metadata(entry.path.as_str()) {
            return Some("an index, which the origin sends itself");
        }
        let changed = u64::try_from(entry.changed_at()?).ok()?;
        (now < changed.saturating_add(self.options.changed_window.as_secs()))
            .then_some("its content has lately changed, so volunteers may still have the older one")
    }

    /// The ticket of a customer who was sent back, checked; `None` for one who comes for the first time.
    ///
    /// A ticket that is too old, or of a volunteer that is gone, makes a first visit of it: the customer is
    /// not to blame. One that was never sealed here is refused.
    fn returned(
        &self,
        request: &Request<'_>,
        table: &RoutingTable,
        now: u64,
    ) -> Result<Option<Ticket>, Refusal> {
        let Some(text) = request.query.and_then(|query| parameter(query, RETURN_PARAMETER)) else {
            return Ok(None);
        };
        let opened = Ticket::claimed_node(text).and_then(|node| match table.route(node) {
            Some(route) => Ticket::open(text, &route.ticket_key, request.path, now).map(Some),
            None => Ok(None),
        });
        match opened {
            Ok(Some(ticket)) => {
                FrontDoorCounters::count(&self.counters.came_back);
                Ok(Some(ticket))
            }
            Ok(None) | Err(TicketError::Expired { .. }) => {
                FrontDoorCounters::count(&self.counters.tickets_refused);
                Ok(None)
            }
            Err(error) => {
                FrontDoorCounters::count(&self.counters.tickets_refused);
                Err(Refusal::new(
                    StatusCode::FORBIDDEN,
                    format!("the ticket in `{RETURN_PARAMETER}=` was refused: {error}\n"),
                ))
            }
        }
    }

    /// A redirect to the first of `routes`, the next few named as duplicates; `None` when there is none.
    fn redirect(
        &self,
        request: &Request<'_>,
        ask: &Ask<'_, '_>,
        path: &str,
        routes: &Ranked<'_>,
        now: u64,
    ) -> Option<Answer> {
        let (entry, customer) = (ask.entry, ask.customer);
        let chosen = routes.iter().next()?;
        let named = routes.iter().take(1 + self.options.duplicates);
        let expires = self.ticket_expiry(now);
        let fields = RedirectHead::new(entry, path, expires, customer.tried()).with(named)?;
        if request.method == Method::Get {
            self.reservations.reserve(chosen.node, customer.promise(entry), ask.now);
            self.recent.note(customer.key(entry), chosen.node, ask.now);
        }
        FrontDoorCounters::count(&self.counters.redirects);
        FrontDoorCounters::add(&self.counters.redirected_bytes, customer.bytes);
        Some(Answer::Redirect(Redirect { status: StatusCode::FOUND, fields }))
    }

    /// The file itself, from the repository, as the answer for `path`.
    fn origin(&self, entry: &FileEntry<'_>, path: &str) -> Answer {
        let mut headers = fields::of_content(entry, &fields::encode_path(path));
        headers.push((header::CACHE_CONTROL, HeaderValue::from_static("no-cache")));
        Answer::File(file_answer(&self.root, entry, headers))
    }

    fn respond_companion(
        &self,
        request: &Request<'_>,
        companion: Companion,
        entry: &FileEntry<'_>,
        path: &str,
    ) -> Answer {
        let name = path.rsplit('/').next().unwrap_or(path);
        if companion != Companion::Metalink {
            return Answer::Body(companion::checksum_body(companion, entry, name));
        }
        let now = epoch_secs(request.now);
        let encoded = fields::encode_path(path);
        let mut urls = Vec::new();
        if self.direct_reason(entry, now).is_none() {
            let table = self.routing.load();
            let rules = self.balance.rules();
            let customer = Customer::of(request, entry, &[], &self.keyed);
            let expires = self.ticket_expiry(now);
            let ask = Ask { table: &table, rules: &rules, entry, customer: &customer, now: self.clock.now() };
            let holders = self.rank(&ask, rules.selector_of_many(), &[]);
            urls.extend(holders.iter().filter_map(|route| {
                let mut url = Vec::new();
                fields::ticketed_url(&mut url, route, path, &encoded, entry, expires, &[]).ok()?;
                String::from_utf8(url).ok()
            }));
        }
        let own = self.options.addresses.get().map_or("", |addresses| &addresses.front_door);
        urls.push(format!("{own}{encoded}"));
        let bytes = metalink::document(entry, name, &urls, &format!("{own}{encoded}.meta4"));
        Answer::Body(Body {
            status: StatusCode::OK,
            bytes: Bytes::from(bytes),
            content_type: HeaderValue::from_static(metalink::CONTENT_TYPE),
            etag: None,
            last_modified: None,
            headers: vec![(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))],
        })
    }

    fn respond_directory(&self, request: &Request<'_>, catalog: &Snapshot) -> Option<Answer> {
        let inner = request.path.strip_suffix(b"/").unwrap_or(request.path);
        let inner = inner.strip_prefix(b"/").unwrap_or(inner);
        if !catalog.is_directory(inner) {
            return None;
        }
        let directory = std::str::from_utf8(inner).ok()?;
        let index = if directory.is_empty() { INDEX.to_owned() } else { format!("{directory}/{INDEX}") };
        let index = catalog.find(index.as_bytes());
        if index.is_none() && !self.options.listings {
            return None;
        }
        FrontDoorCounters::count(&self.counters.direct);
        if !request.raw_path.ends_with('/') {
            // From the decoded path: what the client sent might name another host (`//host`).
            let location =
                HeaderValue::try_from(format!("{}/", fields::encode_path(&format!("/{directory}"))));
            let location = location.ok()?;
            return Some(Answer::Redirect(Redirect::new(StatusCode::MOVED_PERMANENTLY, &location, &[])));
        }
        if let Some(entry) = index {
            return Some(self.origin(&entry, &format!("/{}", entry.path)));
        }
        Some(Answer::Body(listing::page(directory, &catalog.list(inner)?)))
    }

    fn not_found(&self) -> Answer {
        if !self.catalog.first_scan_done() {
            let mut refusal = Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the catalogue is being made; this path may appear in it, try again soon\n",
            );
            refusal.headers.push((header::RETRY_AFTER, HeaderValue::from_static("5")));
            return Answer::Refusal(refusal);
        }
        FrontDoorCounters::count(&self.counters.not_found);
        Answer::Refusal(Refusal::new(StatusCode::NOT_FOUND, "no such file in this repository\n"))
    }

    fn ticket_expiry(&self, now: u64) -> u32 {
        u32::try_from(now.saturating_add(self.options.ticket_lifetime.as_secs())).unwrap_or(u32::MAX)
    }

    fn next_seed(&self) -> u64 {
        self.seeds.fetch_add(1, Ordering::Relaxed)
    }

    /// What would be answered to `client` for `path`, and why; nothing is reserved or counted.
    pub fn explain(&self, path: &str, client: std::net::IpAddr, now: u64) -> Option<ExplainView> {
        let catalog = self.catalog.load();
        let entry = catalog.find(path.as_bytes())?;
        Some(self.explain_entry(path, &entry, client, self.direct_reason(&entry, now)))
    }

    /// Asks for a walk of the tree, at most once a second.
    fn ask_rescan(&self) {
        let now = self.clock.now().0;
        let last = self.rescan_asked.load(Ordering::Relaxed);
        let due = now.saturating_sub(last) >= RESCAN_EVERY_NANOS;
        if due && self.rescan_asked.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.catalog.rescan();
        }
    }
}

impl Site for FrontDoor {
    fn answer(&self, request: &Request<'_>) -> Answer {
        self.respond(request)
    }

    fn unavailable(&self, _request: &Request<'_>, file: &FileAnswer, why: &Unavailable) -> Answer {
        self.ask_rescan();
        stale(file, why)
    }
}

impl std::fmt::Debug for FrontDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontDoor").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The answer for a catalogued file, with the version it must have.
pub(crate) fn file_answer(
    root: &Arc<Root>,
    entry: &FileEntry<'_>,
    headers: Vec<(header::HeaderName, HeaderValue)>,
) -> FileAnswer {
    FileAnswer {
        root: Arc::clone(root),
        path: Bytes::copy_from_slice(entry.path.as_str().as_bytes()),
        expected_size: Some(entry.size),
        expected_mtime: Some(entry.mtime),
        expected_mtime_nanos: Some(entry.mtime_nanos),
        etag: HeaderValue::try_from(entry.checksums.etag()).ok(),
        last_modified: None,
        content_type: None,
        headers,
    }
}

/// The answer when the tree is not what the catalogue says: soon it will be.
pub(crate) fn stale(file: &FileAnswer, why: &Unavailable) -> Answer {
    let path = String::from_utf8_lossy(&file.path);
    match why {
        Unavailable::Changed { .. } => {
            tracing::info!(%path, %why, "the file changed under the catalogue");
            Answer::Refusal(retry_soon("this file is being replaced just now; try again in a second\n"))
        }
        Unavailable::NotFound | Unavailable::Directory | Unavailable::Escapes => {
            tracing::info!(%path, %why, "a catalogued file is gone");
            Answer::Refusal(Refusal::new(StatusCode::NOT_FOUND, "this file was removed just now\n"))
        }
        Unavailable::Io(error) => {
            tracing::error!(%path, %error, "a catalogued file can't be opened");
            Answer::Refusal(retry_soon("the file could not be read; try again later\n"))
        }
    }
}

fn retry_soon(text: &'static str) -> Refusal {
    let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, text);
    refusal.headers.push((header::RETRY_AFTER, HeaderValue::from_static("1")));
    refusal
}

/// A request's path as text. What the catalogue has found is text; the rest is only shown.
fn shown(path: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(path)
}

/// The value of the first `name=value` of a query; tickets need no decoding.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

const RETURN_PARAMETER: &str = "b";
const INDEX: &str = "index.html";
const RESCAN_EVERY_NANOS: u64 = 1_000_000_000;
