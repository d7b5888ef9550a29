//! Accepting connections for the API and the status port: TLS, limits and timeouts. What is answered is the router's business.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::Peer;

/// A bound API port.
#[derive(Debug)]
pub struct ApiServer {
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl ApiServer {
    /// Binds the port, or takes over one that is bound; connections wait in the kernel until [`ApiServer::run`]. Without
    /// `tls` it speaks plain HTTP.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn bind(
        address: SocketAddr,
        inherited: Option<std::net::TcpListener>,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> std::io::Result<Self> {
        let listener = match inherited {
            Some(socket) => {
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket)?
            }
            None => TcpListener::bind(address).await?,
        };
        Ok(Self { listener, tls })
    }

    /// The bound address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves; then lets answers under way end for at most `grace`.
    pub async fn run(self, router: Router, stop: impl Future<Output = ()>, grace: Duration) {
        let acceptor = self.tls.map(TlsAcceptor::from);
        let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let addresses = Arc::new(Addresses::default());
        let graceful = GracefulShutdown::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = accept(&self.listener, &open) => accepted,
            };
            let Some((stream, peer, permit)) = accepted else { continue };
            let Some(seat) = addresses.take(peer.ip().to_canonical()) else { continue };
            let router = router.clone().layer(Extension(Peer(peer.ip())));
            let (acceptor, watcher) = (acceptor.clone(), graceful.watcher());
            tokio::spawn(async move {
                let _kept_open = (permit, seat);
                if let Err(reason) = converse(stream, acceptor, router, watcher).await {
                    tracing::debug!(%peer, %reason, "API connection ended");
                }
            });
        }
        drop(self.listener);
        if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
            tracing::warn!("some API requests were cut off");
        }
    }
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

/// The next connection, as soon as there is room for it; `None` after a failure that may pass.
async fn accept(listener: &TcpListener, open: &Arc<Semaphore>) -> Option<Accepted> {
    let permit = Arc::clone(open).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, permit)),
        Err(error) => {
            // Out of descriptors, most likely: trying at once would only burn the processor.
            tracing::warn!(%error, "cannot accept on the API port");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn converse(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    watcher: Watcher,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    // A peer that vanished in the middle of an answer is given up after this.
    socket2::SockRef::from(&stream)
        .set_tcp_user_timeout(Some(SEND_TIMEOUT))
        .map_err(|error| error.to_string())?;
    let Some(acceptor) = acceptor else { return answer(stream, router, watcher).await };
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_| "no TLS handshake in time".to_owned())?
        .map_err(|error| format!("TLS: {error}"))?;
    answer(stream, router, watcher).await
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    watcher: Watcher,
) -> Result<(), String> {
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    watcher.watch(connection).await.map_err(|error| error.to_string())
}

/// How many connections each address has.
#[derive(Debug, Default)]
struct Addresses {
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Addresses {
    /// A seat for one more connection of `address`, unless it has too many.
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Seat { addresses: Arc::clone(self), address })
    }
}

#[derive(Debug)]
struct Seat {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.addresses.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Open API connections at most; further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Of one address at most (many volunteers may stand behind one); further ones are closed at once.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 1_024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Also how long a connection may be idle: longer than the longest heartbeat interval.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
const HEAD_BYTES_MAX: usize = 32 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_bounded_number_of_seats() {
        let addresses = Arc::new(Addresses::default());
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let mut seats: Vec<Seat> =
            (0..CONNECTIONS_PER_ADDRESS_MAX).map(|_| addresses.take(one).unwrap()).collect();
        assert!(addresses.take(one).is_none());
        assert!(addresses.take("192.0.2.2".parse().unwrap()).is_some());
        seats.pop();
        assert!(addresses.take(one).is_some());
        drop(seats);
        assert!(addresses.open.lock().unwrap().is_empty());
    }
}
