//! Months in accelerated time: the steward, the pacers' law, the admission and the ledger on disk, on an injected clock.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;

use jiff::SignedDuration;
use jiff::civil::date;

use super::*;
use crate::budget::Admission;
use crate::budget::month::testing::reading;

fn config(text: &str) -> Config {
    let config: Config = toml::from_str(text).unwrap();
    config.check().unwrap();
    config
}

const TICK: Duration = Duration::from_millis(100);

/// A transfer under way.
struct Transfer {
    peer: SocketAddr,
    left: u64,
}

/// A volunteer whose customers always want more, and a wire that carries what the rate allows.
struct Volunteer {
    steward: Steward,
    admission: Admission,
    transfers: VecDeque<Transfer>,
    next_peer: u32,
    now: Moment,
    local: DateTime,
    epoch: u64,
    sent: u64,
    sent_back: u64,
    cut: u64,
    whole: u64,
    stand: Stand,
}

impl Volunteer {
    fn new(config: &Config, state: &Path, local: DateTime) -> Self {
        let mut steward = Steward::new(config, Month::load(state).unwrap(), 7);
        let wall = WallReading { local, synchronised: true };
        let stand = steward.look(&reading("eth0", 1, 0, 0), &HashMap::new(), wall, Moment::ZERO);
        Self {
            steward,
            admission: Admission::default(),
            transfers: VecDeque::new(),
            next_peer: 0,
            now: Moment::ZERO,
            local,
            epoch: 1,
            sent: 0,
            sent_back: 0,
            cut: 0,
            whole: 0,
            stand,
        }
    }

    fn look(&mut self) {
        let wall = WallReading { local: self.local, synchronised: true };
        let reading = reading("eth0", self.epoch, self.sent, 0);
        self.stand = self.steward.look(&reading, &HashMap::new(), wall, self.now);
        self.admission.settle(self.stand.left);
    }

    /// A customer asks for a file of `bytes`.
    fn customer(&mut self, bytes: u64) -> bool {
        self.next_peer += 1;
        let peer = SocketAddr::from((self.next_peer.to_be_bytes(), 80));
        let admitted = self.admission.admit(peer, bytes);
        if admitted {
            // On the wire, with the head and full segments' headers.
            let left = bytes + bytes * 66 / 1448 + 700;
            self.transfers.push_back(Transfer { peer, left });
        } else {
            self.sent_back += 1;
            self.sent += 600;
        }
        admitted
    }

    /// Lets `step` pass: `crowd` customers come, the wire carries what it may.
    fn pass(&mut self, step: Duration, crowd: usize, bytes: u64) {
        self.look();
        while self.transfers.len() < crowd && self.customer(bytes) {}
        self.carry(step);
        self.now += step;
        self.local += step;
    }

    /// Equal parts for everybody under way, as the pacers give them.
    fn carry(&mut self, step: Duration) {
        let rate = self.stand.rates.sending.map_or(50_000_000.0, |rate| rate.0 as f64);
        let mut carried = (rate * step.as_secs_f64()) as u64;
        while carried > 0 && !self.transfers.is_empty() {
            let part = carried.div_ceil(self.transfers.len() as u64).min(64 << 10);
            let Some(mut transfer) = self.transfers.pop_front() else { break };
            let bytes = part.min(transfer.left);
            (transfer.left, self.sent, carried) = (transfer.left - bytes, self.sent + bytes, carried - bytes);
            if transfer.left > 0 {
                self.transfers.push_back(transfer);
            } else {
                self.admission.ended(transfer.peer);
                self.whole += 1;
            }
        }
    }

    /// Killed and started again: the ledger is as it was last stored.
    fn restart(&mut self, config: &Config, state: &Path, pinned: bool) {
        self.cut += self.transfers.len() as u64;
        self.transfers.clear();
        self.admission = Admission::default();
        self.steward = Steward::new(config, Month::load(state).unwrap(), 7);
        self.now = Moment::ZERO;
        if !pinned {
            (self.epoch, self.sent) = (self.epoch + 1, 0);
        }
        self.look();
    }
}

const MONTH: &str = "donated_rate = '80 Mbit/s'\n[budget.month]\nvolume = '500 MB'\nstart_day = 5\n";

#[test]
fn a_month_ends_by_sending_back_and_cuts_nobody() {
    let (config, state) = (config(MONTH), tempfile::tempdir().unwrap());
    let mut volunteer = Volunteer::new(&config, state.path(), date(2026, 1, 10).at(12, 0, 0, 0));
    // What no longer fits is sent back; what is small is served to the end.
    for bytes in [3_000_000, 200_000] {
        let before = volunteer.sent_back;
        for _ in 0..1_200 {
            volunteer.pass(TICK, 8, bytes);
            assert!(volunteer.sent <= 500_000_000, "{}", volunteer.sent);
            // With less than a mebibyte left, nobody is to come any more.
            let left = volunteer.stand.left.unwrap();
            assert_eq!(volunteer.stand.closed.is_some(), left < LEFT_MIN, "{left}");
        }
        assert!(volunteer.transfers.is_empty(), "all that was begun was finished");
        assert!(volunteer.sent_back > before);
    }
    assert!(volunteer.sent > 490_000_000 && volunteer.whole > 150, "{}", volunteer.sent);
    let closed = volunteer.stand.closed.clone().unwrap();
    assert_eq!(closed, "this month's 476.8 MiB are used up, the next month begins on 2026-02-05");
    let month = volunteer.stand.report.month.unwrap();
    assert_eq!(month.volume, Bytes(500_000_000));
    assert!(month.left < Bytes(10_000_000) && volunteer.stand.report.used > Bytes(490_000_000));

    // The next one begins by itself, within six hours after the fifth.
    let used_up = volunteer.sent;
    while volunteer.local < date(2026, 2, 5).at(0, 0, 0, 0) {
        volunteer.pass(Duration::from_secs(3600), 0, 0);
        assert!(volunteer.stand.closed.is_some(), "{}", volunteer.local);
    }
    while volunteer.stand.closed.is_some() {
        volunteer.pass(Duration::from_secs(600), 0, 0);
        assert!(volunteer.local < date(2026, 2, 5).at(6, 30, 0, 0));
    }
    assert_eq!(volunteer.sent, used_up);
    assert!(volunteer.customer(3_000_000));
}

#[test]
fn a_large_file_is_sent_back_when_it_no_longer_fits_and_small_ones_are_served_on() {
    let (config, state) = (config(MONTH), tempfile::tempdir().unwrap());
    let mut volunteer = Volunteer::new(&config, state.path(), date(2026, 1, 10).at(12, 0, 0, 0));
    while volunteer.sent < 400_000_000 {
        volunteer.pass(TICK, 4, 1_000_000);
    }
    while !volunteer.transfers.is_empty() {
        volunteer.pass(TICK, 0, 0);
    }
    for _ in 0..3 {
        volunteer.look();
    }
    assert!(!volunteer.customer(100_000_000));
    assert!(volunteer.customer(50_000_000));
    assert!(volunteer.stand.closed.is_none());
}

#[test]
fn kills_and_restarts_neither_refund_nor_rob() {
    for pinned in [true, false] {
        let (config, state) = (config(MONTH), tempfile::tempdir().unwrap());
        let mut volunteer = Volunteer::new(&config, state.path(), date(2026, 1, 10).at(12, 0, 0, 0));
        volunteer.steward.month().store(state.path()).unwrap();
        let mut sent_before = 0;
        for kill in 0..20 {
            for round in 0..15 {
                volunteer.pass(TICK, 8, 3_000_000);
                // With pins a page is written now and then; without, what is not written is forgotten.
                if !pinned || round == 7 && kill % 2 == 0 {
                    volunteer.look();
                    volunteer.steward.month().store(state.path()).unwrap();
                }
            }
            if !pinned {
                sent_before += volunteer.sent;
            }
            volunteer.restart(&config, state.path(), pinned);
            let sent = if pinned { volunteer.sent } else { sent_before };
            assert_eq!(volunteer.stand.report.used, Bytes(sent), "pinned: {pinned}");
        }
        assert!(volunteer.cut > 0 && volunteer.stand.report.used > Bytes(200_000_000));
    }
}

#[test]
fn clock_jumps_of_a_day_neither_refund_nor_rob() {
    for hours in [24, -24] {
        let (config, state) = (config(MONTH), tempfile::tempdir().unwrap());
        let mut volunteer = Volunteer::new(&config, state.path(), date(2026, 2, 4).at(12, 0, 0, 0));
        for _ in 0..1_000 {
            volunteer.pass(TICK, 8, 200_000);
        }
        assert!(volunteer.stand.closed.is_some());
        let used = volunteer.stand.report.used;
        let jump = |volunteer: &mut Volunteer, hours| {
            volunteer.local = volunteer.local.saturating_add(SignedDuration::from_hours(hours));
        };
        jump(&mut volunteer, hours);
        for _ in 0..60 {
            volunteer.pass(Duration::from_secs(60), 8, 200_000);
        }
        let more = volunteer.stand.report.used.0 - used.0;
        assert!(more < LEFT_MIN.0, "{more} bytes were given after {hours} h");
        assert!(volunteer.stand.closed.is_some());
        jump(&mut volunteer, -hours);
        while volunteer.local < date(2026, 2, 5).at(6, 30, 0, 0) {
            volunteer.pass(Duration::from_secs(600), 0, 0);
        }
        assert!(volunteer.stand.closed.is_none(), "the next month is not robbed after {hours} h");
        let used = volunteer.stand.report.used;
        assert!(used < Bytes(1_000_000), "{used} of the new month are used already");
    }
}

#[test]
fn hours_close_before_they_begin_and_customers_finish() {
    let text = "donated_rate = '80 Mbit/s'\n[[budget.hours]]\ndays = 'mon-fri'\nfrom = '08:00'\nuntil = '18:00'\n\
                rate = 0\nsync_rate = '8 Mbit/s'\n";
    let (config, state) = (config(text), tempfile::tempdir().unwrap());
    // A Friday.
    let mut volunteer = Volunteer::new(&config, state.path(), date(2026, 1, 2).at(7, 55, 0, 0));
    while volunteer.local < date(2026, 1, 2).at(8, 0, 0, 0) {
        volunteer.pass(TICK, 8, 20_000_000);
    }
    assert!(volunteer.sent_back > 0 && volunteer.whole > 10);
    assert!(volunteer.transfers.is_empty(), "nobody is left waiting until the evening");
    volunteer.look();
    assert_eq!(volunteer.stand.rates.sending, Some(BytesPerSec(0)));
    assert_eq!(volunteer.stand.rates.receiving, Some(BytesPerSec(1_000_000)));
    assert_eq!(volunteer.stand.closed.as_deref(), Some("nothing is given at this hour"));
    assert!(!volunteer.stand.exhausted);
    volunteer.local = date(2026, 1, 2).at(17, 59, 59, 0);
    volunteer.now += Duration::from_secs(36_000);
    volunteer.pass(Duration::from_secs(2), 0, 0);
    volunteer.look();
    assert_eq!(volunteer.stand.rates.sending, Some(BytesPerSec(10_000_000)));
    assert_eq!((volunteer.stand.closed.as_deref(), volunteer.stand.left), (None, None));
}

/// A steward on one interface whose owner's traffic the test sets.
fn owner_first(text: &str, links: &[(&str, u64)], owners: &[u64]) -> Vec<Stand> {
    let (config, state) = (config(text), tempfile::tempdir().unwrap());
    let mut steward = Steward::new(&config, Month::load(state.path()).unwrap(), 7);
    let links = links.iter().map(|&(name, rate)| (name.to_owned(), BytesPerSec(rate))).collect();
    let (mut now, mut counted) = (Moment::ZERO, 0);
    let wall = WallReading { local: date(2026, 1, 10).at(12, 0, 0, 0), synchronised: true };
    let mut stands = Vec::new();
    for rate in owners {
        stands.push(steward.look(&reading("eth0", 1, 0, counted), &links, wall, now));
        counted += rate / 10;
        now += TICK;
    }
    stands
}

#[test]
fn the_owner_comes_first_at_once_and_the_donation_comes_back_slowly() {
    let text = "donated_rate = '80 Mbit/s'\n[budget.owner_first]\nlink = '100 Mbit/s'\nmargin = '4 Mbit/s'\n";
    let owners = [vec![0; 20], vec![10_000_000; 40], vec![0; 60]].concat();
    let stands = owner_first(text, &[("eth0", 1_250_000_000)], &owners);
    let sending = |at: usize| stands[at].rates.sending.unwrap().0;
    assert_eq!(sending(19), 10_000_000, "the cap, while the owner is silent");
    assert_eq!(sending(21), 0, "one look after he began he has it all");
    assert!(stands[30].closed.is_none() && stands[30].left == Some(Bytes(0)));
    let why = stands[50].closed.as_deref();
    assert_eq!(why, Some("the owner's own traffic needs the whole link"));
    assert!((61..80).any(|at| sending(at) > 0 && sending(at) < 10_000_000), "it grows by and by");
    assert_eq!(sending(119), 10_000_000);
    assert!(stands[119].closed.is_none());
}

#[test]
fn a_link_is_what_the_driver_says_unless_the_owner_says_less() {
    let text = "[budget.owner_first]\nmargin = 0\n";
    let of = |text, links: &[(&str, u64)]| owner_first(text, links, &[0; 3])[2].rates;
    assert_eq!(of(text, &[("eth0", 1_000_000)]).sending, Some(BytesPerSec(950_000)));
    assert_eq!(of(text, &[("eth0", 1_000_000)]).receiving, Some(BytesPerSec(950_000)));
    assert_eq!(of(text, &[]).sending, Some(BytesPerSec(0)), "an unknown link is the owner's");
    let text = "[budget.owner_first]\nlink = 500000\nmargin = 0\n";
    assert_eq!(of(text, &[("eth0", 1_000_000)]).sending, Some(BytesPerSec(475_000)));
    assert_eq!(of(text, &[("eth0", 100_000)]).sending, Some(BytesPerSec(95_000)));
    assert_eq!(of(text, &[]).sending, Some(BytesPerSec(475_000)), "the driver need not say anything");
}

#[test]
fn the_last_byte_throws_the_switch_and_the_next_month_turns_it_back() {
    let (config, state) = (config(MONTH), tempfile::tempdir().unwrap());
    let mut volunteer = Volunteer::new(&config, state.path(), date(2026, 1, 10).at(12, 0, 0, 0));
    volunteer.look();
    assert!(!volunteer.stand.exhausted);
    volunteer.sent = 500_000_000;
    volunteer.look();
    assert!(volunteer.stand.exhausted && volunteer.stand.left == Some(Bytes(0)));
    assert_eq!(volunteer.stand.rates.receiving, Some(BytesPerSec(0)), "sync stops too");
    volunteer.local = date(2026, 2, 5).at(7, 0, 0, 0);
    volunteer.restart(&config, tempfile::tempdir().unwrap().path(), true);
    assert!(!volunteer.stand.exhausted);
}

#[test]
fn changed_terms_do_not_forget_what_was_used() {
    let (config_before, state) = (config(MONTH), tempfile::tempdir().unwrap());
    let mut volunteer = Volunteer::new(&config_before, state.path(), date(2026, 1, 10).at(12, 0, 0, 0));
    volunteer.sent = 400_000_000;
    volunteer.look();
    volunteer
        .steward
        .set_terms(&config("donated_rate = '8 Mbit/s'\n[budget.month]\nvolume = '300 MB'\nstart_day = 5"));
    volunteer.look();
    assert!(volunteer.stand.exhausted);
    volunteer.steward.set_terms(&config(""));
    volunteer.look();
    assert_eq!((volunteer.stand.left, volunteer.stand.rates), (None, Rates::NONE));
    assert_eq!(volunteer.stand.report.used, Bytes(400_000_000));
}
