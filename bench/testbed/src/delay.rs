//! Links that delay and lose frames where the kernel has nothing that does: both ends of the link are interfaces whose
//! frames a thread of the harness passes on, each when its time has come.
//!
//! The thread ends with the testbed, and the interfaces vanish when the harness does. It changes no frame, and counts
//! nothing that a report compares: interfaces are read in the kernel.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::line::Line;
use crate::link::Link;
use crate::seat::Seat;
use crate::{Error, tap};

/// What makes delays and losses of this testbed's links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delays {
    /// The kernel's netem.
    Kernel,
    /// Threads of the harness.
    Harness {
        /// Why it is not the kernel.
        why: String,
    },
    /// Nothing: links have neither.
    None {
        /// Why.
        why: String,
    },
}

/// What the harness did for delayed links so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DelayCost {
    /// Links that it delays.
    pub links: u64,
    /// Frames that it passed on.
    pub frames: u64,
    /// Frames that were lost as was asked for.
    pub lost: u64,
    /// Frames that found no room, or an end that was cut.
    pub dropped: u64,
    /// Time that its threads used of the processors.
    pub cpu: Duration,
}

/// Whether the harness can make such interfaces here.
pub(crate) fn is_possible() -> bool {
    Path::new(tap::DEVICE).exists()
}

/// A link under way; dropping it ends its thread and takes its interfaces away.
#[derive(Debug)]
pub(crate) struct DelayedLink {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    frames: AtomicU64,
    lost: AtomicU64,
    dropped: AtomicU64,
    cpu_nanos: AtomicU64,
}

impl DelayedLink {
    /// Makes the interface `name` in the one namespace and `port` in the other, and passes on what they send. Nobody has
    /// given them addresses or set them up yet.
    pub(crate) fn lay(
        host: (&Path, &str),
        hub: (&Path, &str),
        link: &Link,
        seed: u64,
    ) -> Result<DelayedLink, Error> {
        let [one, other] = [open(host)?, open(hub)?];
        let line = |side: u64| Line::new(link.delay, link.loss_percent, seed.wrapping_add(side));
        let shared = Arc::<Shared>::default();
        let passing = Passing { ends: [one, other], lines: [line(0), line(1)], shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new()
            .name("delayed link".to_owned())
            .spawn(move || passing.run())
            .map_err(Error::io("starting a delayed link"))?;
        Ok(DelayedLink { shared, thread: Some(thread) })
    }

    pub(crate) fn ask_to_end(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn add_to(&self, cost: &mut DelayCost) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        cost.links += 1;
        cost.frames += read(&self.shared.frames);
        cost.lost += read(&self.shared.lost);
        cost.dropped += read(&self.shared.dropped);
        cost.cpu += Duration::from_nanos(read(&self.shared.cpu_nanos));
    }
}

impl Drop for DelayedLink {
    fn drop(&mut self) {
        self.ask_to_end();
        if let Some(thread) = self.thread.take() {
            // A panic was told already; there is nothing to tear down but the thread.
            let _ = thread.join();
        }
    }
}

/// An interface in a namespace: made on a thread that is there.
fn open((netns, name): (&Path, &str)) -> Result<File, Error> {
    let seat = Seat::open(name, Some(netns))?;
    let owned = name.to_owned();
    let opened = seat.call(move || tap::open(&owned));
    opened
        .ok_or_else(|| Error::Gone { what: format!("the thread of {name}") })?
        .map_err(Error::io(format!("making the interface {name}")))
}

/// The thread's own.
struct Passing {
    ends: [File; 2],
    /// What goes into the first end comes out of the second, and the reverse.
    lines: [Line; 2],
    shared: Arc<Shared>,
}

impl Passing {
    fn run(mut self) {
        let mut frame = vec![0; FRAME_BYTES_MAX];
        let mut told = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            for side in [0, 1] {
                if !self.take_in(side, &mut frame) {
                    // The interface is gone, with its namespace.
                    return self.tell();
                }
                self.let_out(side);
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                self.tell();
            }
            let now = Instant::now();
            let next = self.lines.iter().filter_map(Line::next).min();
            let wait = next.map_or(LOOK_EVERY, |at| at.saturating_duration_since(now).min(LOOK_EVERY));
            let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
            let [one, other] = &self.ends;
            let mut ready = [PollFd::new(one, PollFlags::IN), PollFd::new(other, PollFlags::IN)];
            match poll(&mut ready, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return self.tell(),
            }
        }
        self.tell();
    }

    /// Reads what an end has; whether it is still there.
    fn take_in(&mut self, side: usize, frame: &mut [u8]) -> bool {
        for _ in 0..FRAMES_IN_TURN {
            match self.ends[side].read(frame) {
                Ok(length) => self.lines[side].offer(Instant::now(), &frame[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Set down for a while.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn let_out(&mut self, side: usize) {
        let now = Instant::now();
        while let Some(frame) = self.lines[side].due(now) {
            match self.ends[1 - side].write(&frame) {
                Ok(written) if written == frame.len() => {
                    self.shared.frames.fetch_add(1, Ordering::Relaxed);
                }
                // An end that is set down receives nothing.
                Ok(_) | Err(_) => self.lines[side].dropped += 1,
            }
        }
    }

    fn tell(&self) {
        let sum = |of: fn(&Line) -> u64| self.lines.iter().map(of).sum();
        self.shared.lost.store(sum(|line| line.lost), Ordering::Relaxed);
        self.shared.dropped.store(sum(|line| line.dropped), Ordering::Relaxed);
        let used = clock_gettime(ClockId::ThreadCPUTime);
        let nanos = used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64;
        self.shared.cpu_nanos.store(nanos, Ordering::Relaxed);
    }
}

/// Larger than any frame that an interface without offloads sends.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// Frames read from one end before the other has its turn.
const FRAMES_IN_TURN: usize = 64;
/// At most this long after it is asked to a thread ends.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const TELL_EVERY: Duration = Duration::from_millis(100);
/// Frames that wait in an interface for the thread, at most.
pub(crate) const INTERFACE_FRAMES: &str = "4000";
