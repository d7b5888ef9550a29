//! The volunteer's own figures for monitoring: `/metrics`, `/healthz` and `/readyz` on a port of their own, which is not
//! opened unless it is configured. It reads and changes nothing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use freshet_api::metrics::{CONTENT_TYPE, Labels, Scrape};
use freshet_api::traffic::InOut;
use freshet_engine::StatsReader;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::accounting::Ledger;
use crate::budget::Outlook;
use crate::counters::Counters;
use crate::delivery::SharedTerms;
use crate::mirror::Mirror;

/// Where the figures are read.
pub struct Figures {
    /// The delivery port's responses.
    pub counters: Arc<Counters>,
    /// The delivery port's connections.
    pub delivery: StatsReader,
    /// The interfaces.
    pub ledger: Arc<Mutex<Ledger>>,
    /// The owner's budget.
    pub outlook: watch::Receiver<Outlook>,
    /// Whether customers are served.
    pub terms: SharedTerms,
    /// The mirror.
    pub mirror: Arc<Mirror>,
    /// When control answered last.
    pub heard: watch::Receiver<Option<Instant>>,
    /// When the daemon started.
    pub started: Instant,
}

/// Answers on `listener` until the runtime ends.
pub async fn serve(listener: TcpListener, figures: Arc<Figures>) {
    let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&open).acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors, most likely.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let figures = Arc::clone(&figures);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let figures = Arc::clone(&figures);
                async move { Ok::<_, Infallible>(figures.answer(&request)) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection for metrics ended"),
            }
            drop(permit);
        });
    }
}

/// Binds the port, or takes over one that was handed over.
///
/// # Errors
/// The kernel's.
pub fn bind(address: SocketAddr, inherited: Option<std::net::TcpListener>) -> std::io::Result<TcpListener> {
    let socket = match inherited {
        Some(socket) => socket,
        None => std::net::TcpListener::bind(address)?,
    };
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

impl Figures {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let text = |status, text: String| (status, "text/plain; charset=utf-8", text);
        let (status, kind, text) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => {
                (StatusCode::OK, CONTENT_TYPE, self.scrape().text())
            }
            (&Method::GET | &Method::HEAD, "/healthz") => text(StatusCode::OK, "up\n".to_owned()),
            (&Method::GET | &Method::HEAD, "/readyz") => match self.closed() {
                None => text(StatusCode::OK, "ready\n".to_owned()),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            (&Method::GET | &Method::HEAD, _) => {
                text(StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n".to_owned())
            }
            _ => text(StatusCode::METHOD_NOT_ALLOWED, "this port is asked with GET\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let kind = http::HeaderValue::from_static(kind);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    /// Why no customers come, if none may.
    fn closed(&self) -> Option<String> {
        let terms = self.terms.load().closed.clone();
        let never = self.heard.borrow().is_none().then(|| "control has not answered yet".to_owned());
        terms.or_else(|| self.outlook.borrow().closed.clone()).or(never)
    }

    /// Everything that is measured, as it is now.
    pub fn scrape(&self) -> Scrape {
        let mut scrape = Scrape::default();
        let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        scrape.gauges("freshet_dataplane_build", "1, with the daemon's version", [(build, 1)]);
        scrape.gauge(
            "freshet_dataplane_uptime_seconds",
            "Since the daemon's start",
            self.started.elapsed().as_secs_f64(),
        );
        scrape.gauge("freshet_dataplane_ready", "1 when customers may come", self.closed().is_none());
        let heard = self.heard.borrow().map(|heard| (Vec::new(), heard.elapsed().as_secs_f64()));
        scrape.gauges("freshet_dataplane_control_heard_seconds", "Since control's last answer", heard);
        self.delivery(&mut scrape);
        self.interfaces(&mut scrape);
        self.budget(&mut scrape);
        self.mirror(&mut scrape);
        scrape
    }

    fn delivery(&self, scrape: &mut Scrape) {
        let (delivery, engine) = (self.counters.read(), self.delivery.stats());
        scrape.counter("freshet_dataplane_responses", "Responses with a file", delivery.responses);
        scrape.counter("freshet_dataplane_sent_bytes", "Body bytes sent to customers", delivery.body_bytes);
        scrape.counter(
            "freshet_dataplane_abandoned_bytes",
            "Body bytes that customers did not wait for",
            delivery.abandoned_bytes,
        );
        scrape.counter(
            "freshet_dataplane_sent_back",
            "Customers sent back to the front door",
            delivery.sent_back,
        );
        let refused = [
            ("missing", delivery.tickets_missing),
            ("malformed", delivery.tickets_malformed),
            ("forged", delivery.tickets_forged),
            ("expired", delivery.tickets_expired),
        ];
        scrape.counters(
            "freshet_dataplane_tickets_refused",
            "Requests refused for their ticket",
            refused.map(|(why, count)| (label("why", why), count)),
        );
        scrape.gauge("freshet_dataplane_transfers", "Transfers to customers under way", delivery.active);
        scrape.counter(
            "freshet_dataplane_connections_accepted",
            "Connections to the delivery port",
            engine.accepted,
        );
        scrape.counter(
            "freshet_dataplane_connections_refused",
            "Connections closed at once by a limit",
            engine.refused,
        );
        scrape.counter(
            "freshet_dataplane_connections_timed_out",
            "Connections closed by a timeout",
            engine.timed_out,
        );
        scrape.gauge("freshet_dataplane_connections_open", "Connections open now", engine.open);
    }

    fn interfaces(&self, scrape: &mut Scrape) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let ebpf = matches!(ledger.source(), freshet_api::traffic::CounterSource::Ebpf);
        let interfaces = ledger.read().unwrap_or_default();
        drop(ledger);
        scrape.gauge(
            "freshet_dataplane_counted_by_ebpf",
            "1 when the classifiers count, 0 when sockets do",
            ebpf,
        );
        let each = || {
            interfaces.iter().flat_map(|interface| {
                let classes = [
                    ("delivery", interface.delivery),
                    ("sync", interface.sync),
                    ("control", interface.control),
                    ("other", interface.other),
                ];
                classes.into_iter().flat_map(|(class, InOut { received, sent })| {
                    let labels = |direction: &str| -> Labels {
                        vec![
                            ("interface", interface.name.clone()),
                            ("class", class.to_owned()),
                            ("direction", direction.to_owned()),
                        ]
                    };
                    [(labels("in"), received), (labels("out"), sent)]
                })
            })
        };
        let bytes = each().map(|(labels, count)| (labels, count.bytes));
        scrape.counters(
            "freshet_dataplane_interface_bytes",
            "Bytes on the wire by interface and class",
            bytes,
        );
        let packets = each().map(|(labels, count)| (labels, count.packets));
        scrape.counters("freshet_dataplane_interface_packets", "Packets by interface and class", packets);
    }

    fn budget(&self, scrape: &mut Scrape) {
        let report = self.outlook.borrow().report.clone();
        let rate = report.rate.map(|rate| (label("limit", &report.limit), rate.0));
        scrape.gauges(
            "freshet_dataplane_rate_bytes_per_second",
            "What may be sent now, and what sets it",
            rate,
        );
        scrape.gauge("freshet_dataplane_month_used_bytes", "Given in this month", report.used.0);
        let month = |of: fn(&freshet_api::heartbeat::MonthReport) -> u64| {
            report.month.as_ref().map(|month| (Vec::new(), of(month)))
        };
        scrape.gauges(
            "freshet_dataplane_month_volume_bytes",
            "Given in a month",
            month(|month| month.volume.0),
        );
        scrape.gauges(
            "freshet_dataplane_month_left_bytes",
            "What is left of that",
            month(|month| month.left.0),
        );
        scrape.gauges(
            "freshet_dataplane_month_left_seconds",
            "Until the next month begins",
            month(|month| month.ends_in_secs),
        );
    }

    fn mirror(&self, scrape: &mut Scrape) {
        let sync = self.mirror.progress();
        scrape.gauge("freshet_dataplane_mirror_files", "Files held", sync.files_held);
        scrape.gauge("freshet_dataplane_mirror_bytes", "Bytes held, each content once", sync.bytes_held);
        scrape.gauge("freshet_dataplane_mirror_missing_files", "Files still to fetch", sync.files_missing);
        scrape.gauge("freshet_dataplane_mirror_missing_bytes", "Bytes still to fetch", sync.bytes_missing);
        scrape.gauge("freshet_dataplane_mirror_sequence", "State that is whole on disk", sync.complete);
        scrape.gauge("freshet_dataplane_mirror_target_sequence", "State that is fetched", sync.target);
        scrape.gauge("freshet_dataplane_mirror_trouble", "1 when something stops it", sync.trouble.is_some());
        scrape.gauge(
            "freshet_dataplane_swarm_peers",
            "Peers that are asked now",
            u64::from(sync.transfer.peers),
        );
        let from = [
            ("origin", sync.transfer.origin_bytes),
            ("peer", sync.transfer.peer_bytes),
            ("disk", sync.transfer.disk_bytes),
            ("recipe", sync.transfer.recipe_bytes),
            ("wasted", sync.transfer.wasted_bytes),
        ];
        scrape.counters(
            "freshet_dataplane_swarm_bytes",
            "Where the mirror's new bytes came from, and what came in vain",
            from.map(|(from, bytes)| (label("from", from), bytes)),
        );
    }
}

fn label(key: &'static str, value: &str) -> Labels {
    vec![(key, value.to_owned())]
}

/// Connections at once at most.
const CONNECTIONS_MAX: usize = 32;
const HEAD_TIMEOUT: Duration = Duration::from_secs(70);
/// Scrapers come again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
const HEAD_BYTES_MAX: usize = 16 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
