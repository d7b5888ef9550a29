//! The thread that keeps the budget: reads counters and clocks ten times a second, puts in force what the steward
//! says, and keeps the month on disk. It decides nothing.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use freshet_api::heartbeat::BudgetReport;
use freshet_api::{Bytes, BytesPerSec};
use freshet_ebpf::{Class, Classes, Reading, Source};
use freshet_policy::Moment;
use freshet_policy::budget::WallReading;
use tokio::sync::watch;

use super::admission::Admission;
use super::headers::WireShare;
use super::month::Month;
use super::pacer::DonationPacer;
use super::steward::{Stand, Steward};
use crate::accounting::{Ledger, link_speed};
use crate::config::Config;

/// What the thread works with.
pub struct PatrolParts {
    /// What passed the interfaces.
    pub ledger: Arc<Mutex<Ledger>>,
    /// The kill-switch.
    pub classes: Classes,
    /// Where rates are kept.
    pub pacer: Arc<DonationPacer>,
    /// Where customers are let in.
    pub admission: Arc<Admission>,
    /// Where the month is kept.
    pub state: PathBuf,
    /// This volunteer's own number for its random starts of months.
    pub seed: u64,
}

/// What others are told of the budget.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// What the owner gives now; none for no limit.
    pub offered: Option<BytesPerSec>,
    /// Why no more customers should come, if so.
    pub closed: Option<String>,
    /// For the heartbeat.
    pub report: BudgetReport,
}

/// The running thread; [`Patrol::stop`] ends it with the last page on disk.
#[derive(Debug)]
pub struct Patrol {
    orders: Sender<Config>,
    outlook: watch::Receiver<Outlook>,
    thread: Option<JoinHandle<()>>,
}

impl Patrol {
    /// Takes a first look, so that the owner's word is in force when this returns, and goes on from there.
    ///
    /// # Errors
    /// When the counters can't be read, or no thread can be started.
    pub fn start(config: &Config, month: Month, parts: PatrolParts) -> anyhow::Result<Self> {
        let (said, outlook) = watch::channel(Outlook::default());
        let (orders, ordered) = mpsc::channel();
        let mut rounds = Rounds::new(config, month, parts, said);
        rounds.look()?;
        // Only what is on disk tells the next run from where on it counts.
        let page = rounds.steward.month();
        page.store(&rounds.parts.state).context("cannot write the month's ledger")?;
        let thread = thread::Builder::new().name("budget".into()).spawn(move || rounds.walk(&ordered))?;
        Ok(Self { orders, outlook, thread: Some(thread) })
    }

    /// What others may know; changes are told when something changed that control should hear at once.
    pub fn outlook(&self) -> watch::Receiver<Outlook> {
        self.outlook.clone()
    }

    /// Puts the owner's changed word in force.
    pub fn reload(&self, config: &Config) {
        if self.orders.send(config.clone()).is_err() {
            tracing::error!("the budget's thread is gone; the changed budget is in force after a restart");
        }
    }

    /// Takes a last look and ends with it on disk.
    pub fn stop(self) {
        let Self { orders, thread, .. } = self;
        drop(orders);
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the budget's thread panicked; the month's ledger is as it was last written");
        }
    }
}

struct Rounds {
    steward: Steward,
    parts: PatrolParts,
    said: watch::Sender<Outlook>,
    origin: Instant,
    every: Duration,
    links: HashMap<String, BytesPerSec>,
    links_read: Option<Instant>,
    exhausted: bool,
    blind: u32,
    wire_share: WireShare,
    scribe: Scribe,
}

impl Rounds {
    fn new(config: &Config, month: Month, parts: PatrolParts, said: watch::Sender<Outlook>) -> Self {
        let pinned = {
            let ledger = parts.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            matches!(ledger.kind(), Source::Kernel { pinned: Some(_), .. })
        };
        let mut scribe = Scribe::new(parts.state.clone(), month.clone(), pinned);
        scribe.set_volume(volume(config));
        Self {
            steward: Steward::new(config, month, parts.seed),
            every: every(config),
            parts,
            said,
            origin: Instant::now(),
            links: HashMap::new(),
            links_read: None,
            exhausted: false,
            blind: 0,
            wire_share: WireShare::FULL_SEGMENTS,
            scribe,
        }
    }

    /// Until nobody gives orders any more.
    fn walk(mut self, orders: &Receiver<Config>) {
        let mut due = Instant::now() + self.every;
        loop {
            match orders.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(config) => {
                    self.every = every(&config);
                    self.scribe.set_volume(volume(&config));
                    self.steward.set_terms(&config);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if let Err(error) = self.look() {
                self.blind = self.blind.saturating_add(1);
                if self.blind.is_power_of_two() {
                    tracing::warn!(%error, "the counters can't be read; the budget stays as it is");
                }
            } else {
                self.blind = 0;
            }
            self.scribe.write(self.steward.month(), false);
            due = (due + self.every).max(Instant::now());
        }
        if let Err(error) = self.look() {
            tracing::warn!(%error, "the counters can't be read any more; the month ends with the last reading");
        }
        self.scribe.write(self.steward.month(), true);
    }

    fn look(&mut self) -> Result<(), freshet_ebpf::ReadError> {
        let reading = self.parts.ledger.lock().unwrap_or_else(PoisonError::into_inner).reading()?;
        self.read_links(&reading);
        let wall = WallReading {
            local: jiff::Zoned::now().datetime(),
            synchronised: freshet_ebpf::host::clock_is_synchronised(),
        };
        let now = Moment::ZERO + self.origin.elapsed();
        let wire = [Class::Delivery, Class::Sync].map(|class| reading.class(class).outgoing.bytes);
        self.wire_share.observe(wire.iter().sum(), self.parts.pacer.granted(), now);
        self.parts.pacer.set_wire_share(self.wire_share.ratio());
        let stand = self.steward.look(&reading, &self.links, wall, now);
        self.enforce(stand);
        Ok(())
    }

    fn enforce(&mut self, stand: Stand) {
        let Stand { rates, left, closed, exhausted, offered, report } = stand;
        self.parts.pacer.set(rates);
        self.parts.admission.settle(left);
        if exhausted != self.exhausted {
            self.exhausted = exhausted;
            self.switch(exhausted);
        }
        let promisable = self.parts.admission.promisable();
        let spared = report.month.map(|month| spared(month.volume, offered));
        let makes_way = promisable.zip(spared).is_some_and(|(promisable, spared)| promisable < spared);
        self.parts.pacer.stop_sync(makes_way);
        let report = BudgetReport { promisable, ..report };
        let outlook = Outlook { offered, closed, report };
        self.said.send_if_modified(|last| {
            let urgent = last.closed != outlook.closed
                || (last.offered != outlook.offered && is_steady(&outlook.report.limit));
            if last.closed != outlook.closed {
                let why = outlook.closed.as_deref().unwrap_or("the budget allows it again");
                tracing::info!(closed = outlook.closed.is_some(), why, "whether customers may come");
            }
            *last = outlook;
            urgent
        });
    }

    /// The kill-switch at the volume's last byte.
    fn switch(&self, off: bool) {
        let dropped: &[Class] = if off { &[Class::Delivery, Class::Sync] } else { &[] };
        match self.parts.classes.drop_outgoing(dropped) {
            Ok(()) => tracing::info!(off, "the month's kill-switch"),
            Err(error) => tracing::error!(%error, off, "the month's kill-switch does not work"),
        }
    }

    /// What the drivers say that the links carry; it changes when a cable is plugged elsewhere.
    fn read_links(&mut self, reading: &Reading) {
        if self.links_read.is_some_and(|read| read.elapsed() < LINKS_EVERY) {
            return;
        }
        self.links_read = Some(Instant::now());
        let speeds = reading.interfaces.iter().filter_map(|interface| {
            let speed = link_speed(&interface.name).map(BytesPerSec)?;
            Some((interface.name.clone(), speed))
        });
        self.links = speeds.collect();
    }
}

/// Whether a rate with this limit changes with the owner's word or the hour only, and not with every look.
fn is_steady(limit: &str) -> bool {
    matches!(limit, "none" | "cap" | "hours")
}

/// With less than this free of promises sync sends no more: what it can send before the next look must not be promised.
fn spared(volume: Bytes, offered: Option<BytesPerSec>) -> Bytes {
    let soon = offered.map_or(u64::MAX, |rate| rate.0 / SPARED_PER_SEC);
    Bytes(soon.clamp(SPARED_BYTES_MIN, (volume.0 / SPARED_PARTS).max(SPARED_BYTES_MIN)))
}

fn volume(config: &Config) -> Option<Bytes> {
    config.budget.month.map(|month| month.volume)
}

fn every(config: &Config) -> Duration {
    if config.budget.is_plain() { RELAXED } else { freshet_policy::budget::TICK_EXPECTED }
}

/// Writes pages of the ledger, beside the patrol, since a disk may take its time.
#[derive(Debug)]
struct Scribe {
    pages: Option<SyncSender<Month>>,
    thread: Option<JoinHandle<()>>,
    stored: Month,
    at: Instant,
    pinned: bool,
    /// With more booked than this a page is due at once; none where the kernel counts on.
    unwritten_max: Option<Bytes>,
    /// How long the last page took, in microseconds.
    took: Arc<AtomicU64>,
}

impl Scribe {
    /// `pinned`: whether the kernel goes on counting when this process dies, so that pages may be rarer.
    fn new(state: PathBuf, stored: Month, pinned: bool) -> Self {
        let (pages, written) = mpsc::sync_channel::<Month>(1);
        let took = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&took);
        let thread = thread::Builder::new().name("ledger".into()).spawn(move || {
            let mut failed = false;
            for page in written {
                let begun = Instant::now();
                let stored = page.store(&state);
                told.store(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                match &stored {
                    Ok(()) if failed => tracing::info!("the month's ledger is written again"),
                    Err(error) if !failed => {
                        tracing::error!(%error, "the month's ledger can't be written; a crash now would forget bytes");
                    }
                    Ok(()) | Err(_) => {}
                }
                failed = stored.is_err();
            }
        });
        if let Err(error) = &thread {
            tracing::error!(%error, "the month's ledger can't be written");
        }
        Self {
            pages: Some(pages),
            thread: thread.ok(),
            stored,
            at: Instant::now(),
            pinned,
            unwritten_max: None,
            took,
        }
    }

    fn set_volume(&mut self, volume: Option<Bytes>) {
        let part = |volume: Bytes| Bytes((volume.0 / UNWRITTEN_PARTS).max(UNWRITTEN_BYTES_MIN));
        self.unwritten_max = volume.filter(|_| !self.pinned).map(part);
    }

    /// Whether `month` must go to disk, so long after the last page.
    fn is_due(&self, month: &Month, waited: Duration) -> bool {
        if waited >= WRITE_ANYHOW {
            return true;
        }
        let every = if self.pinned { WRITE_EVERY_PINNED } else { WRITE_EVERY };
        // However slow the disk is, it has most of the time to itself.
        let rested = Duration::from_micros(self.took.load(Ordering::Relaxed)).saturating_mul(RESTS);
        let much = self.unwritten_max.is_some_and(|most| month.booked_since(&self.stored) >= most);
        (waited >= every || (much && waited >= rested)) && !month.is_as_good_as(&self.stored)
    }

    fn write(&mut self, month: &Month, last: bool) {
        let due = self.is_due(month, self.at.elapsed());
        if let Some(pages) = &self.pages
            && (due || last)
        {
            let taken =
                if last { pages.send(month.clone()).is_ok() } else { pages.try_send(month.clone()).is_ok() };
            if taken {
                (self.stored, self.at) = (month.clone(), Instant::now());
            }
        }
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        self.pages = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes the month's ledger panicked");
        }
    }
}

/// Where only a constant rate is kept, the counters are but for the ledger.
const RELAXED: Duration = Duration::from_secs(1);
/// Half a second's worth, no less than this, and no more than a hundredth of the volume.
const SPARED_PER_SEC: u64 = 2;
const SPARED_BYTES_MIN: u64 = 1 << 20;
const SPARED_PARTS: u64 = 100;
const LINKS_EVERY: Duration = Duration::from_secs(10);
const WRITE_EVERY_PINNED: Duration = Duration::from_secs(10);
/// What passed in this time is forgotten at most when the process is killed and nothing is pinned.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// A ten-thousandth of the volume is not forgotten either, so that this rule makes ten thousand pages a month at most and a
/// process that is killed again and again does not give away much; only a disk that is slower than that limits it.
const UNWRITTEN_PARTS: u64 = 10_000;
const UNWRITTEN_BYTES_MIN: u64 = 1 << 20;
/// After a page, so many times as long as it took until the next one for this reason.
const RESTS: u32 = 10;
/// So that after a restart it is known about when it is.
const WRITE_ANYHOW: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::month::testing::reading;
    use crate::config::budget::Directions;

    fn scribe(directory: &std::path::Path, pinned: bool) -> (Scribe, Month) {
        let mut month = Month::load(directory).unwrap();
        month.book(&reading("eth0", 1, 0, 0), Directions::Sent);
        (Scribe::new(directory.to_owned(), month.clone(), pinned), month)
    }

    fn booked(month: &Month, delivered: u64) -> Month {
        let mut later = month.clone();
        later.book(&reading("eth0", 1, delivered, 0), Directions::Sent);
        later
    }

    #[test]
    fn a_page_is_due_after_a_second_or_a_ten_thousandth_of_the_volume() {
        let directory = tempfile::tempdir().unwrap();
        let (mut scribe, month) = scribe(directory.path(), false);
        let tick = Duration::from_millis(100);
        let (little, much) = (booked(&month, 5_000_000), booked(&month, 10_000_000));
        assert!(!scribe.is_due(&much, tick), "without a volume nothing is lost");
        scribe.set_volume(Some(Bytes(100_000_000_000)));
        assert!(scribe.is_due(&much, tick) && !scribe.is_due(&little, tick));
        assert!(scribe.is_due(&little, WRITE_EVERY) && !scribe.is_due(&month, WRITE_EVERY));
        assert!(scribe.is_due(&month, WRITE_ANYHOW));
        scribe.took.store(50_000, Ordering::Relaxed);
        assert!(!scribe.is_due(&much, tick), "a slow disk has its rest");
        assert!(scribe.is_due(&much, Duration::from_millis(500)));
        scribe.set_volume(Some(Bytes(10_000_000)));
        assert!(!scribe.is_due(&booked(&month, UNWRITTEN_BYTES_MIN - 1), Duration::from_millis(500)));
    }

    #[test]
    fn where_the_kernel_counts_on_pages_are_rare() {
        let directory = tempfile::tempdir().unwrap();
        let (mut scribe, month) = scribe(directory.path(), true);
        scribe.set_volume(Some(Bytes(10_000_000)));
        let much = booked(&month, 9_000_000);
        assert!(!scribe.is_due(&much, WRITE_EVERY) && scribe.is_due(&much, WRITE_EVERY_PINNED));
    }

    #[test]
    fn the_last_page_is_on_disk_when_the_scribe_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let (mut scribe, month) = scribe(directory.path(), false);
        let last = booked(&month, 7_000);
        scribe.write(&last, true);
        drop(scribe);
        let mut again = Month::load(directory.path()).unwrap();
        assert_eq!(again.book(&reading("eth0", 1, 7_000, 0), Directions::Sent).total, Bytes(7_000));
    }
}
