//! The seams of the sync client: where manifests and contents come from, and how fast they may.

use std::time::Duration;

use freshet_api::ContentHash;
use freshet_api::manifest::Manifest;

use crate::link::{Fault, LinkError};
use crate::mirror::{Incoming, MirrorError, Want};

/// Where contents come from: the origin, or a swarm of mirrors.
pub trait BlobSource: Send + Sync + 'static {
    /// Who it is, for messages and for blame.
    fn name(&self) -> String;

    /// Fetches one content into `incoming`, from [`Incoming::received`] on, and leaves it there whole.
    ///
    /// What was received stays in `incoming` when this fails or is dropped half-way, and a later call
    /// continues there. `incoming` verifies; the source need not.
    ///
    /// # Errors
    /// [`FetchError`] says whose fault it is and when a retry helps.
    fn fetch(
        &self,
        want: &Want,
        incoming: &mut Incoming,
    ) -> impl Future<Output = Result<(), FetchError>> + Send;
}

/// Where manifests come from.
pub trait ManifestSource: Send + Sync + 'static {
    /// What changed since state `since`, or everything for `None`.
    ///
    /// A source that no longer knows `since` answers with a snapshot ([`Manifest::base`] is `None`).
    ///
    /// # Errors
    /// [`FetchError`] says whose fault it is and when a retry helps.
    fn manifest(&self, since: Option<u64>) -> impl Future<Output = Result<Manifest, FetchError>> + Send;
}

/// Slows the reading of bodies, so that a budget can be kept.
pub trait ReadPacer: Send + Sync + 'static {
    /// `bytes` of payload have been read; nothing more is read from that connection before the returned
    /// time has passed. Called from many connections at once.
    fn after_read(&self, bytes: u64) -> Duration;

    /// While nothing at all may be read: how long to wait before asking again. Zero when reading goes on.
    fn stopped(&self) -> Duration {
        Duration::ZERO
    }
}

/// As fast as it comes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPacing;

impl ReadPacer for NoPacing {
    fn after_read(&self, _bytes: u64) -> Duration {
        Duration::ZERO
    }
}

/// Why a manifest or a content was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Before or below HTTP.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Nobody to ask yet: no heartbeat was answered.
    #[error("the origin's address is not known yet: no heartbeat was answered")]
    NoSource,
    /// The other side is there and can't answer now.
    #[error("{from}: answered {status}; it is busy or being restarted")]
    Busy {
        /// Who.
        from: String,
        /// 429, 500, 502, 503 or 504.
        status: u16,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// It does not let us.
    #[error("{from}: answered {status}; expected to be let in with the token of the last heartbeat")]
    Denied {
        /// Who.
        from: String,
        /// 401 or 403.
        status: u16,
    },
    /// It has no such file, or has another version by now.
    #[error("{from}: answered {status} for {path}; a newer manifest will tell what became of it")]
    Gone {
        /// Who.
        from: String,
        /// 404, 410 or 412.
        status: u16,
        /// What was asked for.
        path: String,
    },
    /// Its answer makes no sense.
    #[error("{from}: expected {expected} for {path}, found {found}")]
    Nonsense {
        /// Who.
        from: String,
        /// What was asked for.
        path: String,
        /// What would have been right.
        expected: String,
        /// What came.
        found: String,
    },
    /// The bytes are not the content's.
    #[error("{from}: sent something else than {content} for {path}; it was dropped")]
    WrongContent {
        /// Who.
        from: String,
        /// What was asked for.
        path: String,
        /// What was expected.
        content: ContentHash,
    },
    /// This host can't keep it.
    #[error(transparent)]
    Local(#[from] MirrorError),
}

/// When a retry helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After a growing while; the whole source is in trouble, so that nothing else is asked of it either.
    SourceLater,
    /// After a growing while; other files are not concerned, unless several are answered so in a row.
    FileLater {
        /// What the other side asked for, if it did.
        at_least: Option<Duration>,
    },
    /// When this host is in order again.
    LocalLater,
}

/// Who is to be told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blame {
    /// Whose fault.
    pub fault: Fault,
    /// Whether bytes came that were wrong, which a working peer never sends.
    pub wrong_bytes: bool,
}

impl FetchError {
    /// Whose fault it is.
    pub fn blame(&self) -> Blame {
        let fault = match self {
            Self::Link(error) => error.fault(),
            Self::NoSource => Fault::Network,
            Self::Busy { .. } | Self::Denied { .. } | Self::Gone { .. } => Fault::Peer,
            Self::Nonsense { .. } | Self::WrongContent { .. } => Fault::Peer,
            Self::Local(_) => Fault::Local,
        };
        Blame { fault, wrong_bytes: matches!(self, Self::WrongContent { .. }) }
    }

    /// When a retry helps.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Busy { retry_after, .. } => Retry::FileLater { at_least: *retry_after },
            Self::Link(LinkError::TooLarge { .. }) => Retry::FileLater { at_least: None },
            Self::Link(_) | Self::NoSource | Self::Denied { .. } => Retry::SourceLater,
            Self::Gone { .. } | Self::Nonsense { .. } | Self::WrongContent { .. } => {
                Retry::FileLater { at_least: None }
            }
            Self::Local(MirrorError::Busy { .. }) => Retry::FileLater { at_least: None },
            Self::Local(_) => Retry::LocalLater,
        }
    }
}
