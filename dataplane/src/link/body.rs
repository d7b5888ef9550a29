//! The body of a response, read part by part within a time limit; its connection is kept when it ends well.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::SendRequest;
use tokio::time::timeout;

use super::LinkError;
use super::pool::{Place, Pool};

/// What follows the head of a response.
///
/// Dropped before its end, the connection is closed: the rest is not read.
pub struct Body {
    incoming: Incoming,
    sender: Option<SendRequest<Full<Bytes>>>,
    place: Place,
    pool: Arc<Pool>,
    read_timeout: Duration,
}

impl Body {
    pub(super) fn new(
        incoming: Incoming,
        sender: SendRequest<Full<Bytes>>,
        place: Place,
        pool: Arc<Pool>,
        read_timeout: Duration,
    ) -> Self {
        let mut body = Self { incoming, sender: Some(sender), place, pool, read_timeout };
        if body.incoming.is_end_stream() {
            body.keep();
        }
        body
    }

    /// The next part, or `None` at the end.
    ///
    /// # Errors
    /// [`LinkError::TimedOut`], or [`LinkError::Protocol`] when it was cut off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        loop {
            let frame =
                timeout(self.read_timeout, self.incoming.frame()).await.map_err(|_| LinkError::TimedOut {
                    place: self.place.to_string(),
                    what: "more of the body",
                    waited: self.read_timeout,
                })?;
            match frame {
                None => {
                    self.keep();
                    return Ok(None);
                }
                Some(Err(source)) => {
                    self.sender = None;
                    return Err(LinkError::Protocol { place: self.place.to_string(), source });
                }
                Some(Ok(frame)) => {
                    // Trailers say nothing that is needed here.
                    if let Ok(part) = frame.into_data() {
                        return Ok(Some(part));
                    }
                }
            }
        }
    }

    /// The whole body, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// As [`Body::next`], and [`LinkError::TooLarge`].
    pub async fn collect(&mut self, bytes_max: usize) -> Result<Bytes, LinkError> {
        let mut whole = BytesMut::new();
        while let Some(part) = self.next().await? {
            if whole.len() + part.len() > bytes_max {
                self.sender = None;
                return Err(LinkError::TooLarge { place: self.place.to_string(), bytes_max });
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    fn keep(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.pool.put(self.place.clone(), sender);
        }
    }
}
