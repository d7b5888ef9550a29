//! The origin's sync port as a source of contents: `GET /blob/<hash>` with the token of the last heartbeat.
//!
//! It asks for what is missing only, and checks what the head promises before it reads a body. It follows no
//! redirect and verifies no content: the receiving side does.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, IF_RANGE, RANGE, RETRY_AFTER};
use http::{HeaderMap, Request, StatusCode};
use tokio::sync::watch;

use super::source::{BlobSource, FetchError, ReadPacer};
use crate::link::Dialer;
use crate::mirror::{Incoming, ReceiveError, Want};

/// Where the origin's sync port is, and what lets us in; comes with every heartbeat.
#[derive(Clone, PartialEq, Eq)]
pub struct OriginEndpoint {
    /// Without a trailing `/`.
    pub url: String,
    /// For `Authorization: Bearer`.
    pub token: String,
}

impl fmt::Debug for OriginEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OriginEndpoint({}, ..)", self.url)
    }
}

/// The origin as a [`BlobSource`].
pub struct Origin {
    dialer: Dialer,
    endpoint: watch::Receiver<Option<OriginEndpoint>>,
    pacer: Arc<dyn ReadPacer>,
}

impl Origin {
    /// A source that asks whatever `endpoint` says at the time, over `dialer`'s connections, at `pacer`'s pace.
    pub fn new(
        dialer: Dialer,
        endpoint: watch::Receiver<Option<OriginEndpoint>>,
        pacer: Arc<dyn ReadPacer>,
    ) -> Self {
        Self { dialer, endpoint, pacer }
    }

    fn request(&self, want: &Want, from: u64) -> Result<(String, Request<Bytes>), FetchError> {
        let endpoint = self.endpoint.borrow().clone().ok_or(FetchError::NoSource)?;
        let url = format!("{}/blob/{}", endpoint.url.trim_end_matches('/'), want.content);
        let mut request = Request::get(&url).header(AUTHORIZATION, format!("Bearer {}", endpoint.token));
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-")).header(IF_RANGE, &want.etag);
        }
        let request = request.body(Bytes::new()).map_err(|error| FetchError::Nonsense {
            from: endpoint.url.clone(),
            path: want.path.to_string(),
            expected: "an address and a token that make a request".into(),
            found: error.to_string(),
        })?;
        Ok((endpoint.url, request))
    }
}

impl BlobSource for Origin {
    fn name(&self) -> String {
        let endpoint = self.endpoint.borrow();
        endpoint.as_ref().map_or_else(|| "the origin".to_owned(), |endpoint| endpoint.url.clone())
    }

    async fn fetch(&self, want: &Want, incoming: &mut Incoming) -> Result<(), FetchError> {
        let (from, request) = self.request(want, incoming.received())?;
        let response = self.dialer.send(request).await?;
        let nonsense = |expected: String, found: String| FetchError::Nonsense {
            from: from.clone(),
            path: want.path.to_string(),
            expected,
            found,
        };
        match (response.status(), incoming.received()) {
            (StatusCode::OK, received) => {
                let length = number(response.headers(), CONTENT_LENGTH.as_str());
                if length.is_some_and(|length| length != want.size) {
                    let found = format!("{} bytes", length.unwrap_or_default());
                    return Err(nonsense(format!("{} bytes", want.size), found));
                }
                if received > 0 {
                    incoming.restart().await?;
                }
            }
            (StatusCode::PARTIAL_CONTENT, received) if received > 0 => {
                let expected = format!("bytes {received}-{}/{}", want.size - 1, want.size);
                let found = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                if found != Some(expected.as_str()) {
                    return Err(nonsense(expected, found.unwrap_or("no Content-Range").to_owned()));
                }
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => {
                // What is here is no beginning of it: the next attempt starts anew.
                incoming.restart().await?;
                return Err(nonsense("the rest of the file".into(), "416 Range Not Satisfiable".into()));
            }
            (status, _) => return Err(refusal(from, want, status, response.headers())),
        }
        let mut body = response.into_body();
        while let Some(part) = body.next().await? {
            match incoming.write(&part).await {
                Ok(()) => {}
                Err(ReceiveError::Mirror(error)) => return Err(error.into()),
                Err(error) => return Err(nonsense(format!("{} bytes", want.size), error.to_string())),
            }
            let mut pause = self.pacer.after_read(part.len() as u64);
            while !pause.is_zero() {
                tokio::time::sleep(pause).await;
                pause = self.pacer.stopped();
            }
        }
        Ok(())
    }
}

fn refusal(from: String, want: &Want, status: StatusCode, headers: &HeaderMap) -> FetchError {
    let path = want.path.to_string();
    match status.as_u16() {
        401 | 403 => FetchError::Denied { from, status: status.as_u16() },
        404 | 410 | 412 => FetchError::Gone { from, status: status.as_u16(), path },
        408 | 425 | 429 | 500..=599 => {
            let retry_after = retry_after(headers, SystemTime::now());
            FetchError::Busy { from, status: status.as_u16(), retry_after }
        }
        _ => FetchError::Nonsense { from, path, expected: "200 or 206".into(), found: status.to_string() },
    }
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(seconds) = number(headers, RETRY_AFTER.as_str()) {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(headers.get(RETRY_AFTER)?.to_str().ok()?).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let with = |value: &str| HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        assert_eq!(retry_after(&with("120"), now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after(&with("Sun, 06 Nov 1994 08:50:37 GMT"), now), Some(Duration::from_secs(60)));
        assert_eq!(retry_after(&with("Sun, 06 Nov 1994 08:40:37 GMT"), now), Some(Duration::ZERO));
        assert_eq!(retry_after(&with("soon"), now), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
