//! HTTP/1.1 client connections over sockets that are ours to count, mark, time out and keep.
//!
//! Used for the origin, for peers and for control's API. It never follows a redirect, never asks a
//! certificate authority, never repeats a request that the other side may have seen, and never holds more
//! of a body than its caller asked for.

mod body;
mod error;
mod pool;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

pub use body::Body;
pub use error::{Fault, LinkError};
pub use socket::SocketObserver;

use pool::{Place, Pool};
use socket::{Stream, connect};

/// Makes requests over connections of one class of traffic; cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    options: Arc<DialerOptions>,
    pool: Arc<Pool>,
}

/// How a [`Dialer`] makes and keeps its connections.
#[derive(Clone)]
pub struct DialerOptions {
    /// What the bytes are for: the number of a [`Class`](freshet_api::Class).
    pub class: u8,
    /// Mark of every packet (`SO_MARK`); left out with a note in the log where it is not permitted
    /// (it needs `CAP_NET_RAW`).
    pub mark: Option<u32>,
    /// Is told of every connection, before its first byte of payload and before it is closed.
    pub meter: Option<Arc<dyn SocketObserver>>,
    /// For `https`: see [`freshet_api::pin::client_config`]. Without it, `https` is refused.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// For one address to accept, and for the TLS handshake.
    pub connect_timeout: Duration,
    /// From the request's first byte to the end of the response's head.
    pub head_timeout: Duration,
    /// Between two parts of a body.
    pub read_timeout: Duration,
    /// Connections kept idle at most, over all hosts.
    pub idle_max: usize,
    /// How long an idle one is kept.
    pub idle_timeout: Duration,
}

impl DialerOptions {
    /// The bounds that suit a wide-area link, for one class of traffic, unmarked and unmetered.
    pub fn new(class: u8) -> Self {
        Self {
            class,
            mark: None,
            meter: None,
            tls: None,
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(30),
            idle_max: 64,
            idle_timeout: Duration::from_secs(20),
        }
    }
}

impl Dialer {
    /// A dialer without connections.
    pub fn new(options: DialerOptions) -> Self {
        let pool = Arc::new(Pool::new(options.idle_max, options.idle_timeout));
        Self { options: Arc::new(options), pool }
    }

    /// Sends a request and returns the response with its body still to be read.
    ///
    /// The request's URI is absolute (`http://…` or `https://…`); `Host` is added. A request that met a
    /// kept connection which the other side had already closed is sent again over a new one, since
    /// nothing of it was seen.
    ///
    /// # Errors
    /// [`LinkError`]; what the server answered, whatever its status, is no error here.
    pub async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, LinkError> {
        let (place, mut request) = prepare(request)?;
        while let Some(mut sender) = self.pool.take(&place) {
            match self.exchange(&mut sender, &place, request).await? {
                Exchanged::Response(response) => return Ok(self.with_body(response, sender, place)),
                Exchanged::Unsent(again) => request = again,
            }
        }
        let mut sender = self.dial(&place).await?;
        match self.exchange(&mut sender, &place, request).await? {
            Exchanged::Response(response) => Ok(self.with_body(response, sender, place)),
            Exchanged::Unsent(_) => Err(LinkError::Closed { place: place.to_string() }),
        }
    }

    /// Sends a request and reads the whole body, of at most `body_bytes_max` bytes.
    ///
    /// # Errors
    /// [`LinkError`], also when the body is larger.
    pub async fn request(
        &self,
        request: http::Request<Bytes>,
        body_bytes_max: usize,
    ) -> Result<http::Response<Bytes>, LinkError> {
        let (head, mut body) = self.send(request).await?.into_parts();
        Ok(http::Response::from_parts(head, body.collect(body_bytes_max).await?))
    }

    async fn dial(&self, place: &Place) -> Result<SendRequest<Full<Bytes>>, LinkError> {
        let stream = connect(place, &self.options).await?;
        let mut builder = hyper::client::conn::http1::Builder::new();
        builder.max_buf_size(READ_BUFFER_BYTES);
        let failed = |source| LinkError::Protocol { place: place.to_string(), source };
        let sender = match stream {
            Stream::Plain(stream) => {
                let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(failed)?;
                tokio::spawn(finish(connection));
                sender
            }
            Stream::Tls(stream) => {
                let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(failed)?;
                tokio::spawn(finish(connection));
                sender
            }
        };
        Ok(sender)
    }

    async fn exchange(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        place: &Place,
        request: http::Request<Full<Bytes>>,
    ) -> Result<Exchanged, LinkError> {
        let exchange = async {
            if sender.ready().await.is_err() {
                return Ok(Exchanged::Unsent(request));
            }
            match sender.try_send_request(request).await {
                Ok(response) => Ok(Exchanged::Response(response)),
                Err(mut error) => match error.take_message() {
                    Some(request) => Ok(Exchanged::Unsent(request)),
                    None => Err(LinkError::Protocol { place: place.to_string(), source: error.into_error() }),
                },
            }
        };
        let waited = self.options.head_timeout;
        timeout(waited, exchange).await.unwrap_or_else(|_| {
            Err(LinkError::TimedOut { place: place.to_string(), what: "the head of the response", waited })
        })
    }

    fn with_body(
        &self,
        response: http::Response<hyper::body::Incoming>,
        sender: SendRequest<Full<Bytes>>,
        place: Place,
    ) -> http::Response<Body> {
        response.map(|incoming| {
            Body::new(incoming, sender, place, Arc::clone(&self.pool), self.options.read_timeout)
        })
    }
}

enum Exchanged {
    Response(http::Response<hyper::body::Incoming>),
    Unsent(http::Request<Full<Bytes>>),
}

/// Splits an absolute request into where it goes and what is sent there.
fn prepare(request: http::Request<Bytes>) -> Result<(Place, http::Request<Full<Bytes>>), LinkError> {
    let (mut head, body) = request.into_parts();
    let place = Place::of(&head.uri)?;
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let refuse = || LinkError::BadUrl { url: head.uri.to_string() };
    let host = HeaderValue::from_str(&place.host_header()).map_err(|_| refuse())?;
    head.uri = target.parse().map_err(|_| refuse())?;
    head.headers.insert(HOST, host);
    Ok((place, http::Request::from_parts(head, Full::new(body))))
}

/// Drives a connection until it ends; what goes wrong is told to the request that it went wrong for.
async fn finish(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended");
    }
}

/// Bytes of a connection's read buffer at most, head of the response included.
const READ_BUFFER_BYTES: usize = 256 << 10;
