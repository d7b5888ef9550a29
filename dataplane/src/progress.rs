//! How far the mirror is, on the terminal of whoever started the daemon; elsewhere nothing is shown.
//!
//! Log lines go above the bar and do not tear it.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use freshet_api::Bytes;
use freshet_api::heartbeat::SyncProgress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::mirror::Mirror;

/// Shows a bar while something is being fetched, for as long as the mirror is open; when standard error is no terminal,
/// it does nothing.
pub fn show(mirror: &Arc<Mirror>) {
    if !io::stderr().is_terminal() {
        return;
    }
    let bar = BAR.get_or_init(|| {
        let bar = ProgressBar::hidden();
        bar.set_style(ProgressStyle::with_template(LOOK).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    });
    let mirror = Arc::downgrade(mirror);
    tokio::spawn(async move {
        let mut course = Course::default();
        while let Some(mirror) = mirror.upgrade() {
            let progress = mirror.progress();
            drop(mirror);
            match course.follow(&progress) {
                Some(step) => {
                    if bar.is_hidden() {
                        bar.set_draw_target(ProgressDrawTarget::stderr());
                    }
                    bar.set_length(step.whole);
                    bar.set_position(step.done);
                    bar.set_message(step.message);
                }
                None if !bar.is_hidden() => {
                    // The line is free for others again.
                    bar.set_draw_target(ProgressDrawTarget::hidden());
                }
                None => {}
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}

/// Standard error, where log lines go around the bar.
#[derive(Clone, Copy, Debug, Default)]
pub struct BesideBar;

impl Write for BesideBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match BAR.get() {
            Some(bar) if !bar.is_hidden() => bar.suspend(|| io::stderr().write(bytes)),
            _ => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// What is fetched since the target changed last.
#[derive(Debug, Default)]
struct Course {
    target: u64,
    whole: u64,
}

/// What the bar shows.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    whole: u64,
    done: u64,
    message: String,
}

impl Course {
    /// `None` when there is nothing to fetch.
    fn follow(&mut self, progress: &SyncProgress) -> Option<Step> {
        if progress.target != self.target {
            (self.target, self.whole) = (progress.target, 0);
        }
        if progress.bytes_missing == 0 {
            return None;
        }
        // More may come to be missing: a blob that was found wrong.
        self.whole = self.whole.max(progress.bytes_missing);
        Some(Step {
            whole: self.whole,
            done: self.whole - progress.bytes_missing,
            message: message(progress),
        })
    }
}

fn message(progress: &SyncProgress) -> String {
    let missing = Bytes(progress.bytes_missing);
    let left = format!("{missing} in {} files to fetch", progress.files_missing);
    if let Some(trouble) = &progress.trouble {
        return format!("{left}; {trouble}");
    }
    let transfer = &progress.transfer;
    let from = match transfer.peers {
        0 => "the origin".to_owned(),
        1 => "1 peer".to_owned(),
        peers => format!("{peers} peers"),
    };
    match progress.bytes_missing.checked_div(transfer.rate.0) {
        Some(seconds) => format!("{left}, {} from {from}, {}", transfer.rate, time_left(seconds)),
        None => left,
    }
}

fn time_left(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s left"),
        60..3_600 => format!("{} min left", seconds.div_ceil(60)),
        _ => format!("{} h {} min left", seconds / 3_600, seconds % 3_600 / 60),
    }
}

static BAR: OnceLock<ProgressBar> = OnceLock::new();
const LOOK: &str = "{percent:>3} % {bar:24} {wide_msg}";
const EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use freshet_api::BytesPerSec;
    use freshet_api::heartbeat::Transfer;

    use super::*;

    fn progress(target: u64, bytes_missing: u64, rate: u64, peers: u32) -> SyncProgress {
        let transfer = Transfer { rate: BytesPerSec(rate), peers, ..Transfer::default() };
        SyncProgress { target, bytes_missing, files_missing: 3, transfer, ..SyncProgress::default() }
    }

    #[test]
    fn the_bar_goes_from_the_targets_beginning_to_its_end() {
        let mut course = Course::default();
        assert_eq!(course.follow(&progress(1, 0, 0, 0)), None);
        let step = course.follow(&progress(2, 1_000, 10, 4)).unwrap();
        assert_eq!((step.whole, step.done), (1_000, 0));
        assert_eq!(step.message, "1000 B in 3 files to fetch, 80 bit/s from 4 peers, 2 min left");
        let step = course.follow(&progress(2, 250, 10, 0)).unwrap();
        assert_eq!((step.whole, step.done), (1_000, 750));
        assert!(step.message.ends_with("from the origin, 25 s left"), "{}", step.message);
        assert_eq!(course.follow(&progress(3, 10, 0, 0)).unwrap().whole, 10);
    }

    #[test]
    fn trouble_is_told_in_place_of_a_rate() {
        let mut stopped = progress(1, 10, 1_000, 2);
        stopped.trouble = Some("the disk is full".to_owned());
        assert_eq!(message(&stopped), "10 B in 3 files to fetch; the disk is full");
        assert_eq!(message(&progress(1, 10, 0, 0)), "10 B in 3 files to fetch");
        assert_eq!(time_left(7_260), "2 h 1 min left");
    }
}
