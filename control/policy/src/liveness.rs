//! Whether a volunteer is there: from its heartbeats alone, with damping for one that comes and goes.
//!
//! Damping follows BGP's (RFC 2439): each loss adds a penalty that decays with a half-life; above one
//! threshold the node is kept out, and it comes back only below a lower one. No clock, no timers.

use std::time::Duration;

use crate::moment::Moment;

/// How lateness is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LivenessTerms {
    /// The heartbeat interval that the node was told.
    pub interval: Duration,
    /// After so many intervals without a heartbeat a node is suspect.
    pub suspect_after: f64,
    /// After so many it is dead.
    pub dead_after: f64,
    /// But never sooner than this, and suspect never sooner than half of it, however short the interval: a busy host
    /// is late by so much and not gone.
    pub dead_min: Duration,
    /// The penalty of a flap halves in this time.
    pub half_life: Duration,
    /// With so many flaps' penalty a node is kept out.
    pub suppress_at: f64,
    /// It comes back when the penalty has fallen to this.
    pub reuse_at: f64,
}

impl Default for LivenessTerms {
    fn default() -> LivenessTerms {
        LivenessTerms {
            interval: Duration::from_secs(1),
            suspect_after: 2.5,
            dead_after: 5.0,
            dead_min: Duration::from_secs(3),
            half_life: Duration::from_secs(120),
            suppress_at: 3.0,
            reuse_at: 1.0,
        }
    }
}

/// What a volunteer's heartbeats say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Not heard of yet.
    Unknown,
    /// Heartbeats arrive.
    Alive,
    /// One or two are missing.
    Suspect,
    /// They stopped.
    Dead,
    /// They arrive, but it came and went too often lately.
    Flapping,
}

/// One volunteer's heartbeats.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    heard: Option<Moment>,
    epoch: Option<u64>,
    penalty: f64,
    penalty_at: Moment,
    suppressed: bool,
}

impl Liveness {
    /// Takes in a heartbeat; `epoch` changes when the node's process starts anew.
    pub fn heartbeat(&mut self, epoch: u64, now: Moment, terms: &LivenessTerms) {
        let was = self.state(now, terms);
        self.decay(now, terms);
        let restarted = self.epoch.is_some_and(|before| before != epoch);
        if was == Life::Dead || restarted {
            self.penalty = (self.penalty + 1.0).min(terms.suppress_at * PENALTY_MAX);
        }
        if self.penalty >= terms.suppress_at {
            self.suppressed = true;
        } else if self.penalty <= terms.reuse_at {
            self.suppressed = false;
        }
        self.epoch = Some(epoch);
        self.heard = Some(self.heard.map_or(now, |heard| heard.max(now)));
    }

    /// The node said goodbye: it is gone at once, and that is no flap.
    pub fn goodbye(&mut self) {
        self.heard = None;
        self.epoch = None;
    }

    /// How the node stands at `now`.
    pub fn state(&self, now: Moment, terms: &LivenessTerms) -> Life {
        let Some(heard) = self.heard else { return Life::Unknown };
        let silent = now.since(heard);
        let missed = silent.as_secs_f64() / terms.interval.as_secs_f64().max(1e-3);
        if missed > terms.dead_after && silent > terms.dead_min {
            Life::Dead
        } else if self.suppressed && self.penalty_now(now, terms) > terms.reuse_at {
            Life::Flapping
        } else if missed > terms.suspect_after && silent > terms.dead_min / 2 {
            Life::Suspect
        } else {
            Life::Alive
        }
    }

    /// When silence alone will change how the node stands at `now`; `None` when only a heartbeat can.
    pub fn changes_at(&self, now: Moment, terms: &LivenessTerms) -> Option<Moment> {
        let heard = self.heard?;
        let silence = |intervals: f64, least: Duration| terms.interval.mul_f64(intervals).max(least);
        let suspect = heard + silence(terms.suspect_after, terms.dead_min / 2);
        let dead = heard + silence(terms.dead_after, terms.dead_min);
        let halves = (self.penalty / terms.reuse_at.max(f64::MIN_POSITIVE)).log2();
        let reused =
            (self.suppressed && halves > 0.0).then(|| self.penalty_at + terms.half_life.mul_f64(halves));
        [Some(suspect), Some(dead), reused].into_iter().flatten().filter(|at| *at >= now).min()
    }

    /// The penalty for coming and going, in flaps.
    pub fn penalty_now(&self, now: Moment, terms: &LivenessTerms) -> f64 {
        let halves = now.since(self.penalty_at).as_secs_f64() / terms.half_life.as_secs_f64().max(1e-3);
        self.penalty * (-halves * std::f64::consts::LN_2).exp()
    }

    fn decay(&mut self, now: Moment, terms: &LivenessTerms) {
        self.penalty = self.penalty_now(now, terms);
        self.penalty_at = self.penalty_at.max(now);
    }
}

/// The penalty stops growing at this many times the threshold, so that no node is out for ever.
const PENALTY_MAX: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Moment {
        Moment::from_secs_f64(seconds)
    }

    #[test]
    fn alive_suspect_dead_and_back() {
        let terms = LivenessTerms::default();
        let mut node = Liveness::default();
        assert_eq!(node.state(at(0.0), &terms), Life::Unknown);
        node.heartbeat(1, at(0.0), &terms);
        assert_eq!(node.state(at(2.4), &terms), Life::Alive);
        assert_eq!(node.state(at(2.6), &terms), Life::Suspect);
        assert_eq!(node.state(at(5.1), &terms), Life::Dead);
        node.heartbeat(1, at(6.0), &terms);
        assert_eq!(node.state(at(6.0), &terms), Life::Alive);
    }

    #[test]
    fn short_intervals_make_no_node_dead_for_being_busy() {
        let terms = LivenessTerms { interval: Duration::from_millis(200), ..LivenessTerms::default() };
        let mut node = Liveness::default();
        node.heartbeat(1, at(0.0), &terms);
        assert_eq!(node.state(at(1.4), &terms), Life::Alive);
        assert_eq!(node.state(at(2.9), &terms), Life::Suspect);
        assert_eq!(node.state(at(3.1), &terms), Life::Dead);
    }

    #[test]
    fn a_node_that_flaps_is_kept_out_and_let_back() {
        let terms = LivenessTerms::default();
        let mut node = Liveness::default();
        for flap in 0..5 {
            node.heartbeat(1, at(f64::from(flap) * 10.0), &terms);
        }
        assert_eq!(node.state(at(40.0), &terms), Life::Flapping);
        let mut second = 41.0;
        while node.state(at(second), &terms) == Life::Flapping {
            node.heartbeat(1, at(second), &terms);
            second += 1.0;
        }
        // ln2(3.5 / 1) halvings of 120 s.
        assert!((200.0..300.0).contains(&second), "{second}");
        assert_eq!(node.state(at(second), &terms), Life::Alive);
    }

    #[test]
    fn restarts_count_as_flaps_and_goodbyes_do_not() {
        let terms = LivenessTerms::default();
        let mut node = Liveness::default();
        for epoch in 0..5 {
            node.heartbeat(epoch, at(epoch as f64), &terms);
        }
        assert_eq!(node.state(at(4.0), &terms), Life::Flapping);
        let mut node = Liveness::default();
        for epoch in 0..5 {
            node.heartbeat(epoch, at(epoch as f64), &terms);
            node.goodbye();
            assert_eq!(node.state(at(epoch as f64), &terms), Life::Unknown);
        }
        node.heartbeat(9, at(5.0), &terms);
        assert_eq!(node.state(at(5.0), &terms), Life::Alive);
    }

    #[test]
    fn a_change_by_silence_is_foretold() {
        let terms = LivenessTerms::default();
        let mut node = Liveness::default();
        assert_eq!(node.changes_at(at(0.0), &terms), None);
        for epoch in 0..4 {
            node.heartbeat(epoch, at(10.0 + epoch as f64), &terms);
        }
        // Walks from one foretold change to the next: nothing changes in between, and it ends.
        let (mut now, mut steps) = (at(13.0), 0);
        while let Some(next) = node.changes_at(now, &terms) {
            assert_eq!(node.state(now, &terms), node.state(next.before(Duration::from_micros(1)), &terms));
            now = next + Duration::from_millis(1);
            steps += 1;
        }
        assert!(steps >= 2 && node.state(now, &terms) == Life::Dead, "{steps}");
    }

    #[test]
    fn a_heartbeat_out_of_order_takes_nothing_back() {
        let terms = LivenessTerms::default();
        let mut node = Liveness::default();
        node.heartbeat(1, at(10.0), &terms);
        node.heartbeat(1, at(8.0), &terms);
        assert_eq!(node.state(at(12.0), &terms), Life::Alive);
    }
}
