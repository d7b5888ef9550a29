//! One volunteer as the front door sees it, made from its record and its last heartbeat. No I/O.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use freshet_api::admin::NodeState;
use freshet_api::heartbeat::{BudgetReport, Heartbeat, HoldOffer, Readiness};
use freshet_api::ticket::Sealer;
use freshet_api::{Bytes, BytesPerSec, NodeId, TicketKey};
use freshet_policy::Moment;
use freshet_policy::liveness::Life;
use freshet_policy::network::Whereabouts;
use freshet_policy::selection::{Reach, Standing};
use freshet_policy::steering::BudgetOutlook;
use roaring::RoaringBitmap;

use crate::registry::{Node, NodeName};
use crate::tracker::Session;

/// One volunteer as the front door sees it.
///
/// In this order, because among a hundred thousand each line of the cache that a request reads of a volunteer costs as
/// much as all that is reckoned from it: what is weighed stands in the first line, what a redirect is made of follows.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Route {
    /// Its number.
    pub node: NodeId,
    /// Whether customers may be sent there, the file aside.
    pub standing: Standing,
    /// By which families and schemes.
    pub reach: Reach,
    /// Whether `delivery_url` names this very host.
    pub loopback: bool,
    /// Where it stands, for people.
    pub state: NodeState,
    /// What it sent lately, as a fraction of `rate`.
    pub reported_load: f32,
    /// How much dearer its month makes it.
    pub budget_price: f32,
    /// What it can send.
    pub rate: BytesPerSec,
    /// Bytes that its owner's budget had room for when it was last heard of.
    pub budget: Bytes,
    /// What other redirectors would weigh it with: its rate in Mbit/s.
    pub weight: u32,
    /// Where it is in the network, as far as known.
    pub whereabouts: Whereabouts,
    /// What it holds.
    pub holdings: Arc<RoaringBitmap>,
    /// Where customers are sent, without a trailing `/`.
    pub delivery_url: Arc<str>,
    /// Seals its tickets.
    pub sealer: Sealer,
    /// Opens them.
    pub ticket_key: TicketKey,
    /// Its name.
    pub name: NodeName,
    /// Why it gets no customers, if it gets none.
    pub reason: Option<Arc<str>>,
    /// When it was last heard of.
    pub heard: Option<Moment>,
    /// When silence alone changes how it stands.
    pub changes_at: Option<Moment>,
    /// How far its mirror is.
    pub mirror: MirrorState,
    /// What stops its mirror, by its own word.
    pub trouble: Option<Arc<str>>,
    /// What its owner leaves to control, if he does.
    pub offer: Option<Arc<HoldOffer>>,
}

/// How far a mirror is, as the balance needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorState {
    /// The state that it has completely.
    pub complete: u64,
    /// Bytes that it lacks.
    pub missing: u64,
    /// Whether others can fetch from it.
    pub sends: bool,
}

impl Route {
    /// As `node` stands now; what stays the same is taken from how it stood `before`.
    pub(super) fn of(
        node: &Node,
        session: Option<Session>,
        before: Option<&Route>,
        locate: impl Fn(IpAddr) -> Whereabouts,
    ) -> Option<Self> {
        let membership = node.membership.as_ref()?;
        let (standing, state, reason) = standing(node, session.as_ref());
        let target =
            session.as_ref().and_then(|session| DeliveryTarget::parse(&session.heartbeat.delivery_url));
        let budget = session.as_ref().and_then(|session| session.heartbeat.budget.as_ref());
        let same_key = before.filter(|before| before.ticket_key == membership.ticket_key);
        let sealer = same_key.map(|before| before.sealer.clone());
        let sealer = sealer.unwrap_or_else(|| membership.ticket_key.sealer());
        let (budget, budget_price) = (room(budget), price(budget));
        let heartbeat = session.as_ref().map(|session| &*session.heartbeat);
        let load = session.as_ref().map_or(0.0, |s| s.sending_rate.0 as f32 / s.capacity.0.max(1) as f32);
        Some(Self {
            node: node.id,
            name: node.name.clone(),
            ticket_key: membership.ticket_key.clone(),
            sealer,
            standing,
            state,
            reason: reason.map(Into::into),
            heard: session.as_ref().map(|session| session.heard),
            changes_at: session.as_ref().and_then(|session| session.changes_at),
            reach: target.as_ref().map_or(Reach::default(), |target| target.reach),
            loopback: target.as_ref().is_some_and(|target| target.loopback),
            delivery_url: target.as_ref().map_or_else(|| "".into(), |target| Arc::clone(&target.url)),
            rate: session.as_ref().map_or(BytesPerSec(0), |session| session.capacity),
            reported_load: load,
            budget,
            budget_price,
            weight: session
                .as_ref()
                .map_or(1, |s| u32::try_from(s.capacity.0 / 125_000).unwrap_or(u32::MAX).max(1)),
            whereabouts: target
                .as_ref()
                .and_then(|target| target.address)
                .map_or_else(Whereabouts::default, locate),
            mirror: heartbeat.map_or_else(MirrorState::default, |heartbeat| MirrorState {
                complete: heartbeat.sync.complete,
                missing: heartbeat.sync.bytes_missing,
                sends: heartbeat.sync_url.is_some(),
            }),
            trouble: heartbeat.and_then(|heartbeat| heartbeat.sync.trouble.as_deref()).map(Into::into),
            offer: heartbeat.and_then(|heartbeat| heartbeat.sync.offer.clone()).map(Arc::new),
            holdings: session.as_ref().map(|session| Arc::clone(&session.holdings)).unwrap_or_default(),
        })
    }
}

impl Route {
    /// What it counts for when holders are drawn: what it can send, or nothing while it takes no customers.
    pub fn weight(&self) -> f32 {
        match self.standing {
            Standing::Ready | Standing::Suspect => self.rate.0 as f32,
            _ => 0.0,
        }
    }
}

/// What the owner's budget has room for.
fn room(budget: Option<&BudgetReport>) -> Bytes {
    budget.and_then(|budget| budget.promisable).unwrap_or(Bytes(u64::MAX))
}

fn price(budget: Option<&BudgetReport>) -> f32 {
    let Some(month) = budget.and_then(|budget| budget.month.as_ref()) else { return 1.0 };
    let outlook = BudgetOutlook {
        left: Some(month.left),
        volume: month.volume,
        period_left: Duration::from_secs(month.ends_in_secs),
        period: Duration::from_secs(month.lasts_secs),
        open_for: None,
    };
    outlook.price()
}

/// A checked `delivery_url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryTarget {
    /// `scheme://host:port`, nothing behind it.
    pub url: Arc<str>,
    /// What a client must be able to speak.
    pub reach: Reach,
    /// Whether it is a literal loopback address.
    pub loopback: bool,
    /// The address, where it is a literal one.
    pub address: Option<IpAddr>,
}

impl DeliveryTarget {
    /// Reads `http://host:port` or `https://host:port`; `None` for anything else, which could not stand in a
    /// `Location`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > DELIVERY_URL_BYTES_MAX {
            return None;
        }
        let uri: http::Uri = text.parse().ok()?;
        let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
        let scheme_reach = match scheme {
            "http" => Reach::HTTP,
            "https" => Reach::HTTPS,
            _ => return None,
        };
        let bare = uri.query().is_none() && matches!(uri.path(), "" | "/");
        if !bare || authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let address: Option<IpAddr> = host.parse().ok();
        let families = match address {
            Some(IpAddr::V4(_)) => Reach::V4,
            Some(IpAddr::V6(_)) => Reach::V6,
            None => Reach::V4.and(Reach::V6),
        };
        Some(Self {
            url: format!("{scheme}://{authority}").into(),
            reach: families.and(scheme_reach),
            loopback: address.is_some_and(|address| address.is_loopback()),
            address,
        })
    }
}

fn standing(node: &Node, session: Option<&Session>) -> (Standing, NodeState, Option<String>) {
    if let Some(ban) = &node.ban {
        return (Standing::Untrusted, NodeState::Banned, Some(ban.to_string()));
    }
    let Some(session) = session else {
        return (Standing::Dead, NodeState::Lost, Some(SILENT.into()));
    };
    let heartbeat: &Heartbeat = &session.heartbeat;
    match session.life {
        Life::Unknown | Life::Dead => {
            return (Standing::Dead, NodeState::Lost, Some("its heartbeats stopped".into()));
        }
        Life::Flapping | Life::Alive | Life::Suspect => {}
    }
    if node.draining {
        return (Standing::Draining, NodeState::Draining, Some("drained by an operator".into()));
    }
    if let Readiness::Closed { why } = &heartbeat.readiness {
        return (Standing::OutsideHours, NodeState::Closed, Some(why.clone()));
    }
    match session.life {
        Life::Flapping => {
            (Standing::Flapping, NodeState::Closed, Some("it comes and goes too often just now".into()))
        }
        Life::Suspect => (Standing::Suspect, NodeState::Active, None),
        _ => (Standing::Ready, NodeState::Active, None),
    }
}

/// Of one that was never heard of; whether it ran before control's start is not known.
const SILENT: &str = "no heartbeat since control's start: not started yet where it joined, stopped, or control is out of \
                      its reach";
/// Bytes of a `delivery_url` at most.
pub const DELIVERY_URL_BYTES_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use freshet_api::heartbeat::MonthReport;

    use super::*;

    #[test]
    fn what_is_weighed_stands_in_one_line_of_the_cache() {
        assert_eq!(std::mem::offset_of!(Route, holdings) + size_of::<usize>(), 64);
        assert_eq!(size_of::<Option<Route>>(), size_of::<Route>());
    }

    #[test]
    fn delivery_urls_are_checked_and_say_how_they_are_reached() {
        let target = |text| DeliveryTarget::parse(text);
        let v4 = target("http://192.0.2.7:8080").unwrap();
        assert_eq!((&*v4.url, v4.reach), ("http://192.0.2.7:8080", Reach::V4.and(Reach::HTTP)));
        let v6 = target("http://[2001:db8::1]:80/").unwrap();
        assert_eq!((&*v6.url, v6.reach), ("http://[2001:db8::1]:80", Reach::V6.and(Reach::HTTP)));
        assert_eq!(
            target("https://mirror.example").unwrap().reach,
            Reach::V4.and(Reach::V6).and(Reach::HTTPS)
        );
        assert!(target("http://127.0.0.1:1").unwrap().loopback && !v4.loopback);
    }

    #[test]
    fn a_month_that_is_used_too_fast_makes_dear_and_one_without_end_does_not() {
        let mut report = BudgetReport {
            promisable: Some(Bytes(7)),
            month: Some(MonthReport {
                volume: Bytes(100),
                left: Bytes(10),
                ends_in_secs: 500,
                lasts_secs: 1000,
            }),
            ..BudgetReport::default()
        };
        assert_eq!(room(Some(&report)), Bytes(7));
        assert!(price(Some(&report)) > 10.0);
        (report.month, report.promisable) = (None, None);
        assert_eq!((room(Some(&report)), price(Some(&report))), (Bytes(u64::MAX), 1.0));
        assert_eq!((room(None), price(None)), (Bytes(u64::MAX), 1.0));
    }

    #[test]
    fn what_could_not_stand_in_a_location_is_refused() {
        let long = format!("http://{}", "a".repeat(DELIVERY_URL_BYTES_MAX));
        for text in [
            "",
            "mirror",
            "/x",
            "ftp://a",
            "http://",
            "http://u@a",
            "http://a/b",
            "http://a?x",
            "http://a\r\nb",
            &long,
        ] {
            assert_eq!(DeliveryTarget::parse(text), None, "{text:?}");
        }
    }
}
