//! Tests of connections over loopback: reuse, metering, time limits, pinned certificates, hostile servers.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use freshet_api::enrol::Fingerprint;
use http::{Request, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// Answers each request on each connection with the same bytes, then closes if told so.
struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answer: &'static [u8], close: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, log) = (Arc::clone(&accepted), Arc::clone(&heads));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(talk(stream, answer, close, Arc::clone(&log)));
            }
        });
        Self { address, accepted, heads }
    }

    fn get(&self, path: &str) -> Request<Bytes> {
        Request::get(format!("http://{}{path}", self.address)).body(Bytes::new()).unwrap()
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    answer: &'static [u8],
    close: bool,
    log: Arc<Mutex<Vec<String>>>,
) {
    let mut head = Vec::new();
    while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
        if head.ends_with(b"\r\n\r\n") {
            log.lock().unwrap().push(String::from_utf8(std::mem::take(&mut head)).unwrap());
            if stream.write_all(answer).await.is_err() || close {
                return;
            }
        }
    }
}

fn dialer() -> Dialer {
    Dialer::new(DialerOptions::new(2))
}

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request() {
    let server = Server::start(HELLO, false).await;
    let dialer = dialer();
    for _ in 0..3 {
        let response = dialer.request(server.get("/a?b=c"), 5).await.unwrap();
        assert_eq!((response.status(), response.body().as_ref()), (StatusCode::OK, b"hello".as_slice()));
    }
    assert_eq!(server.accepted(), 1);
    let heads = server.heads.lock().unwrap();
    assert!(heads[0].starts_with("GET /a?b=c HTTP/1.1\r\n"), "{}", heads[0]);
    assert!(heads[0].contains(&format!("host: {}\r\n", server.address)), "{}", heads[0]);
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced() {
    let server = Server::start(HELLO, true).await;
    let dialer = dialer();
    for _ in 0..20 {
        assert_eq!(dialer.request(server.get("/"), 5).await.unwrap().body().as_ref(), b"hello");
        // The close is on its way; whether it has arrived or not, the next request must work.
        tokio::task::yield_now().await;
        while !idle_is_closed(&dialer) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn idle_is_closed(dialer: &Dialer) -> bool {
    dialer.pool.open() == 0
}

#[tokio::test]
async fn an_unread_body_closes_its_connection() {
    let server = Server::start(HELLO, false).await;
    let dialer = dialer();
    drop(dialer.send(server.get("/")).await.unwrap());
    dialer.request(server.get("/"), 5).await.unwrap();
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn bodies_are_bounded() {
    let server = Server::start(HELLO, false).await;
    let error = dialer().request(server.get("/"), 4).await.unwrap_err();
    assert!(matches!(error, LinkError::TooLarge { bytes_max: 4, .. }), "{error}");
    assert_eq!((error.fault(), error.retry_helps()), (Fault::Peer, false));
}

#[tokio::test]
async fn silence_is_waited_out() {
    let quick = DialerOptions {
        head_timeout: Duration::from_millis(50),
        read_timeout: Duration::from_millis(50),
        ..DialerOptions::new(2)
    };
    for (answer, what) in [
        (b"".as_slice(), "the head of the response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", "more of the body"),
    ] {
        let server = Server::start(answer, false).await;
        let began = Instant::now();
        let error = Dialer::new(quick.clone()).request(server.get("/"), 5).await.unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(error.retry_helps() && began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn what_is_no_http_is_an_error() {
    for (answer, close) in [
        (b"SSH-2.0-OpenSSH_9.2\r\n".as_slice(), false),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", true),
        (b"", true),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", false),
    ] {
        let server = Server::start(answer, close).await;
        let error = dialer().request(server.get("/"), 100).await.unwrap_err();
        assert!(matches!(error, LinkError::Protocol { .. } | LinkError::Closed { .. }), "{error}");
    }
}

#[tokio::test]
async fn addresses_that_lead_nowhere_are_told() {
    for url in ["ftp://h/x", "/x", "http://[::1", "http://h:0/"] {
        let Ok(request) = Request::get(url).body(Bytes::new()) else { continue };
        let error = dialer().send(request).await.err().unwrap();
        assert_eq!(error.fault(), Fault::Local, "{error}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let request = Request::get(format!("http://{address}/")).body(Bytes::new()).unwrap();
    let error = dialer().send(request).await.err().unwrap();
    assert!(matches!(error, LinkError::Connect { .. }) && error.retry_helps(), "{error}");
}

#[derive(Default)]
struct Log(Mutex<Vec<(bool, u64, u8)>>);

impl SocketObserver for Log {
    fn opened(&self, key: u64, class: u8, fd: BorrowedFd<'_>, local: SocketAddr, peer: SocketAddr) {
        assert!(rustix::io::fcntl_getfd(fd).is_ok() && local != peer);
        self.0.lock().unwrap().push((true, key, class));
    }

    fn closed(&self, key: u64, class: u8, fd: BorrowedFd<'_>) {
        assert!(rustix::net::getsockname(fd).is_ok(), "the socket is still open");
        self.0.lock().unwrap().push((false, key, class));
    }
}

#[tokio::test]
async fn the_meter_sees_every_connection_from_beginning_to_end() {
    let server = Server::start(HELLO, true).await;
    let log = Arc::new(Log::default());
    let dialer = Dialer::new(DialerOptions { meter: Some(log.clone()), ..DialerOptions::new(3) });
    for _ in 0..2 {
        dialer.request(server.get("/"), 5).await.unwrap();
        while log.0.lock().unwrap().len() % 2 == 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let seen = log.0.lock().unwrap();
    let [(true, first, 3), (false, closed, 3), (true, second, 3), (false, _, 3)] = seen[..] else {
        panic!("{seen:?}")
    };
    assert!(first == closed && first != second);
}

#[tokio::test]
async fn tls_takes_the_pinned_certificate_and_no_other() {
    let made = rcgen::generate_simple_self_signed(vec!["anything".into()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(talk(stream, HELLO, false, Arc::default()));
            }
        }
    });
    let request = || Request::get(format!("https://{address}/")).body(Bytes::new()).unwrap();
    let with = |fingerprint| {
        let tls = Some(Arc::new(freshet_api::pin::client_config(fingerprint).unwrap()));
        Dialer::new(DialerOptions { tls, ..DialerOptions::new(3) })
    };
    let response = with(Fingerprint::of(&certificate)).request(request(), 5).await.unwrap();
    assert_eq!(response.body().as_ref(), b"hello");
    let error = with(Fingerprint([7; 32])).request(request(), 5).await.unwrap_err();
    assert!(matches!(error, LinkError::Tls { .. }) && error.to_string().contains("join again"), "{error}");
    let error = dialer().request(request(), 5).await.unwrap_err();
    assert!(matches!(error, LinkError::NoPin { .. }), "{error}");
}
