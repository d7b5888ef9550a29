//! What goes wrong between us and the other side, whose fault it is, and whether a retry helps.

use std::time::Duration;

/// Who has to do something about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The way there: try again later.
    Network,
    /// The other side answered, and wrongly.
    Peer,
    /// This host: its disk, its permissions, its configuration.
    Local,
}

/// Why a request got no response, or a body no end.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The URL names nothing that can be connected to.
    #[error("expected an absolute http or https URL, found {url:?}")]
    BadUrl {
        /// What was found.
        url: String,
    },
    /// `https` without a certificate to expect.
    #[error(
        "{place}: https needs the fingerprint of the server's certificate; join with control's join string"
    )]
    NoPin {
        /// Where to.
        place: String,
    },
    /// The name has no address.
    #[error("{place}: cannot resolve the name: {source}")]
    Resolve {
        /// Where to.
        place: String,
        /// The resolver's word.
        source: std::io::Error,
    },
    /// No address took the connection.
    #[error("{place}: cannot connect: {source}")]
    Connect {
        /// Where to.
        place: String,
        /// The last address's error.
        source: std::io::Error,
    },
    /// The TLS handshake failed.
    #[error("{place}: {source}")]
    Tls {
        /// Where to.
        place: String,
        /// rustls' word.
        source: std::io::Error,
    },
    /// Nothing came in time.
    #[error("{place}: waited {} s for {what}", waited.as_secs_f64())]
    TimedOut {
        /// Where to.
        place: String,
        /// What did not come.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The connection closed before the request was sent.
    #[error("{place}: the connection was closed before the request could be sent")]
    Closed {
        /// Where to.
        place: String,
    },
    /// Not HTTP, or cut off.
    #[error("{place}: {source}{}", cause(source))]
    Protocol {
        /// Where to.
        place: String,
        /// hyper's word.
        source: hyper::Error,
    },
    /// A body beyond the caller's bound.
    #[error("{place}: expected a body of at most {bytes_max} bytes, more came")]
    TooLarge {
        /// Where to.
        place: String,
        /// The bound.
        bytes_max: usize,
    },
}

impl LinkError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::BadUrl { .. } | Self::NoPin { .. } => Fault::Local,
            Self::Tls { .. } | Self::TooLarge { .. } => Fault::Peer,
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Closed { .. }
            | Self::Protocol { .. } => Fault::Network,
        }
    }

    /// Whether the same request may succeed later without anybody changing a configuration.
    pub fn retry_helps(&self) -> bool {
        self.fault() == Fault::Network
    }
}

fn cause(error: &hyper::Error) -> String {
    std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default()
}
