//! TCP sockets that are marked and metered, plain or under TLS with a pinned certificate.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pool::Place;
use super::{DialerOptions, LinkError};

/// Is told of sockets, so that it can read their counters.
pub trait SocketObserver: Send + Sync {
    /// A socket is about to connect to `peer`: the last chance to bind or mark it. [`SocketObserver::closed`] follows
    /// also when it does not connect.
    ///
    /// # Errors
    /// Why it must not; then nothing leaves.
    fn connecting(&self, key: u64, class: u8, fd: BorrowedFd<'_>, peer: SocketAddr) -> io::Result<()> {
        let _ = (key, class, fd, peer);
        Ok(())
    }

    /// A connection stands; nothing of its payload was sent yet. `key` is unique in this process, and the
    /// descriptor may be duplicated but not kept.
    fn opened(&self, key: u64, class: u8, fd: BorrowedFd<'_>, local: SocketAddr, peer: SocketAddr);

    /// It is about to be closed: the last chance to read it.
    fn closed(&self, key: u64, class: u8, fd: BorrowedFd<'_>);
}

/// A connection ready for HTTP.
pub(super) enum Stream {
    Plain(Metered),
    Tls(Box<TlsStream<Metered>>),
}

/// Connects to the first of a name's addresses that accepts.
pub(super) async fn connect(place: &Place, options: &DialerOptions) -> Result<Stream, LinkError> {
    let tls = match (place.tls, &options.tls) {
        (false, _) => None,
        (true, Some(config)) => Some(TlsConnector::from(Arc::clone(config))),
        (true, None) => return Err(LinkError::NoPin { place: place.to_string() }),
    };
    let resolving = tokio::net::lookup_host((place.host.as_str(), place.port));
    let addresses = match timeout(options.connect_timeout, resolving).await {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(source)) => return Err(LinkError::Resolve { place: place.to_string(), source }),
        Err(_) => return Err(timed_out(place, "the name's addresses", options)),
    };
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    let mut connected = None;
    for address in addresses.take(ADDRESSES_MAX) {
        match timeout(options.connect_timeout, connect_to(address, options)).await {
            Ok(Ok(stream)) => {
                connected = Some(stream);
                break;
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    let stream = connected.ok_or_else(|| LinkError::Connect { place: place.to_string(), source: last })?;
    let Some(tls) = tls else { return Ok(Stream::Plain(stream)) };
    let name =
        ServerName::try_from(place.host.clone()).map_err(|_| LinkError::BadUrl { url: place.to_string() })?;
    match timeout(options.connect_timeout, tls.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
        Ok(Err(source)) => Err(LinkError::Tls { place: place.to_string(), source }),
        Err(_) => Err(timed_out(place, "the TLS handshake", options)),
    }
}

async fn connect_to(address: SocketAddr, options: &DialerOptions) -> io::Result<Metered> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(mark) = options.mark
        && let Err(error) = socket.set_mark(mark)
        && !MARK_REFUSED.swap(true, Ordering::Relaxed)
    {
        tracing::info!(%error, "sockets stay unmarked, counters go by ports: marking needs CAP_NET_RAW");
    }
    let connecting = Connecting::new(&socket, address, options)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    connecting.connected(stream)
}

/// A connection that is not yet one; its observer hears of the end also when nothing comes of it.
struct Connecting<'a> {
    key: u64,
    options: &'a DialerOptions,
    /// Of the socket that its observer was told of, until it is connected.
    watched: Option<Socket>,
}

impl<'a> Connecting<'a> {
    fn new(socket: &Socket, peer: SocketAddr, options: &'a DialerOptions) -> io::Result<Self> {
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let mut connecting = Self { key, options, watched: None };
        if let Some(observer) = &options.meter {
            connecting.watched = socket.try_clone().ok();
            observer.connecting(key, options.class, socket.as_fd(), peer)?;
        }
        Ok(connecting)
    }

    fn connected(mut self, stream: TcpStream) -> io::Result<Metered> {
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        // From here on the stream's own end is told.
        self.watched = None;
        if let Some(observer) = &self.options.meter {
            observer.opened(self.key, self.options.class, stream.as_fd(), local, peer);
        }
        let Self { key, options, .. } = &self;
        Ok(Metered { stream, key: *key, class: options.class, observer: options.meter.clone() })
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        if let (Some(socket), Some(observer)) = (&self.watched, &self.options.meter) {
            observer.closed(self.key, self.options.class, socket.as_fd());
        }
    }
}

fn timed_out(place: &Place, what: &'static str, options: &DialerOptions) -> LinkError {
    LinkError::TimedOut { place: place.to_string(), what, waited: options.connect_timeout }
}

/// A TCP stream whose observer hears of its beginning and of its end.
pub(super) struct Metered {
    stream: TcpStream,
    key: u64,
    class: u8,
    observer: Option<Arc<dyn SocketObserver>>,
}

impl Drop for Metered {
    fn drop(&mut self) {
        if let Some(observer) = &self.observer {
            observer.closed(self.key, self.class, self.stream.as_fd());
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

static NEXT_KEY: AtomicU64 = AtomicU64::new(1);
static MARK_REFUSED: AtomicBool = AtomicBool::new(false);

/// Addresses of one name that are tried at most.
const ADDRESSES_MAX: usize = 4;
