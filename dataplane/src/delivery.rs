//! The delivery port: serves a file to a customer who brings a ticket for it, and sends back whoever it can't serve.
//!
//! Answered from memory. Checksums, entity tag and times come from the manifest, never from this host; a file that
//! is not what the ticket means is never served.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use freshet_api::ticket::TicketError;
use freshet_api::{Ticket, TicketKey};
use freshet_engine::{Answer, FileAnswer, Method, Redirect, Refusal, Request, Root, Site, Unavailable};
use http::header::{IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::budget::Admission;
use crate::counters::Counters;
use crate::mirror::{Held, Mirror};
use crate::network::Network;

/// What may change while the port is open.
#[derive(Clone, Debug)]
pub struct Terms {
    /// URL of the front door, without a trailing `/`.
    pub front_door: String,
    /// Networks whose clients need no ticket.
    pub local_networks: Vec<Network>,
    /// Why nobody is served just now, if so: everybody with a ticket is sent back.
    pub closed: Option<String>,
}

/// The terms in force; readers never wait.
pub type SharedTerms = Arc<ArcSwap<Terms>>;

/// The [`Site`] behind the delivery port.
pub struct DeliverySite {
    key: TicketKey,
    mirror: Arc<Mirror>,
    blobs: Arc<Root>,
    terms: SharedTerms,
    admission: Arc<Admission>,
    counters: Arc<Counters>,
}

impl DeliverySite {
    /// Serves what `mirror` holds, from its blobs, to those with a ticket under `key`, as far as `admission` lets them.
    ///
    /// # Errors
    /// When the directory of blobs can't be opened.
    pub fn open(
        key: TicketKey,
        mirror: Arc<Mirror>,
        terms: SharedTerms,
        admission: Arc<Admission>,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let blobs = Root::open(mirror.blobs_directory())?;
        Ok(Self { key, mirror, blobs, terms, admission, counters })
    }

    /// With a ticket that was presented.
    fn with_ticket(&self, request: &Request<'_>, text: &str, terms: &Terms) -> Answer {
        let now = request.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let ticket = match Ticket::open(text, &self.key, request.path, now) {
            Ok(ticket) => ticket,
            // Who needs no ticket needs no good one either, such as a download that is resumed days later.
            Err(_) if is_local(terms, request.peer.ip()) => return self.without_ticket(request, terms),
            Err(why) => return self.refuse_ticket(&why),
        };
        match self.mirror.find(request.path) {
            Some(held)
                if terms.closed.is_none()
                    && held.content.prefix() == ticket.content
                    && self.admits(request, &held) =>
            {
                self.file(&held)
            }
            _ => self.send_back(request, terms, Some(text)),
        }
    }

    fn without_ticket(&self, request: &Request<'_>, terms: &Terms) -> Answer {
        match self.mirror.find(request.path) {
            Some(held) if self.admits(request, &held) => self.file(&held),
            _ => self.send_back(request, terms, None),
        }
    }

    /// Whether the owner's budget has room for the whole answer.
    fn admits(&self, request: &Request<'_>, held: &Held) -> bool {
        let bytes = match request.method {
            Method::Head => 0,
            Method::Get => body_bytes(request.headers, held.size),
        };
        self.admission.admit(request.peer, bytes)
    }

    fn file(&self, held: &Held) -> Answer {
        self.counters.file_started();
        Answer::File(FileAnswer {
            root: Arc::clone(&self.blobs),
            path: held.blob.clone(),
            expected_size: Some(held.size),
            expected_mtime: Some(held.blob_mtime),
            // The mirror keeps whole seconds; a blob is named by its content, and no other ever has its name.
            expected_mtime_nanos: None,
            etag: HeaderValue::try_from(held.content.etag()).ok(),
            last_modified: u64::try_from(held.mtime)
                .ok()
                .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))),
            content_type: Some(freshet_engine::content_type_of(held.path.as_str().as_bytes())),
            // Checksums are the front door's to tell: nobody should check a volunteer's bytes by its own word.
            headers: Vec::new(),
        })
    }

    /// To the front door, with the ticket, so that it knows who could not serve.
    fn send_back(&self, request: &Request<'_>, terms: &Terms, ticket: Option<&str>) -> Answer {
        let mut location = format!("{}{}", terms.front_door, request.raw_path);
        if let Some(ticket) = ticket {
            location.push_str("?b=");
            location.push_str(ticket);
        }
        let Ok(location) = HeaderValue::try_from(location) else {
            return Answer::Refusal(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the front door's address is not known here; ask it for the file again\n",
            ));
        };
        self.counters.sent_back();
        // Whoever stores this answer would send later customers back without need.
        let headers = [(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        Answer::Redirect(Redirect::new(StatusCode::FOUND, &location, &headers))
    }

    fn refuse_ticket(&self, why: &TicketError) -> Answer {
        self.counters.ticket_refused(why);
        Answer::Refusal(Refusal::new(StatusCode::FORBIDDEN, format!("{why}\n")))
    }

    fn refuse_missing(&self, request: &Request<'_>, terms: &Terms) -> Answer {
        self.counters.ticket_missing();
        let text = format!(
            "this volunteer serves files to those whom the front door sends here; ask {}{}\n",
            terms.front_door, request.raw_path
        );
        Answer::Refusal(Refusal::new(StatusCode::FORBIDDEN, text))
    }
}

impl Site for DeliverySite {
    fn answer(&self, request: &Request<'_>) -> Answer {
        let terms = self.terms.load();
        match ticket_of(request.query) {
            Some(text) => self.with_ticket(request, text, &terms),
            None if is_local(&terms, request.peer.ip()) => self.without_ticket(request, &terms),
            None => self.refuse_missing(request, &terms),
        }
    }

    fn unavailable(&self, request: &Request<'_>, file: &FileAnswer, why: &Unavailable) -> Answer {
        self.counters.file_unavailable();
        self.admission.ended(request.peer);
        if let Some(held) = self.mirror.find(request.path) {
            tracing::warn!(path = %held.path, %why, "a blob is not what it was; it is checked again before it is served");
            self.mirror.distrust(&held.content);
        } else {
            tracing::debug!(blob = %String::from_utf8_lossy(&file.path), %why, "gone since it was looked up");
        }
        // The same ticket passed a moment ago, or its bearer needs none.
        self.send_back(request, &self.terms.load(), ticket_of(request.query))
    }
}

/// The value of the first `t=` of a query.
fn ticket_of(query: Option<&str>) -> Option<&str> {
    query?.split('&').find_map(|pair| pair.strip_prefix("t="))
}

/// Body bytes of the answer at most: those of one plain range where the client asks for no more.
fn body_bytes(headers: &HeaderMap, size: u64) -> u64 {
    let range = headers.get(RANGE).and_then(|value| value.to_str().ok()?.trim().strip_prefix("bytes="));
    // With a condition, or several ranges, it may be all of it.
    let (Some(range), false) = (range, headers.contains_key(IF_RANGE)) else { return size };
    let Some((first, last)) = range.split_once('-') else { return size };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => last.saturating_add(1).min(size).saturating_sub(first),
        (Ok(first), Err(_)) if last.trim().is_empty() => size.saturating_sub(first),
        (Err(_), Ok(suffix)) if first.trim().is_empty() => suffix.min(size),
        _ => size,
    }
}

fn is_local(terms: &Terms, peer: IpAddr) -> bool {
    terms.local_networks.iter().any(|network| network.contains(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_promised_no_more_than_it_is() {
        for (range, bytes) in [
            ("bytes=0-99", 100),
            ("bytes=900-", 100),
            ("bytes=-30", 30),
            ("bytes=-3000", 1000),
            ("bytes=990-5000", 10),
            ("bytes=5000-", 0),
            ("bytes=0-9,20-29", 1000),
            ("bytes=9-1", 1000),
            ("bytes=x", 1000),
            ("lines=1-2", 1000),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, range.parse().unwrap());
            assert_eq!(body_bytes(&headers, 1000), bytes, "{range}");
            headers.insert(IF_RANGE, "\"x\"".parse().unwrap());
            assert_eq!(body_bytes(&headers, 1000), 1000, "{range} with a condition");
        }
        assert_eq!(body_bytes(&HeaderMap::new(), 1000), 1000);
    }
}
