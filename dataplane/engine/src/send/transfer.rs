//! A response on its way: a queue of segments, each sent the way its size wants, paced, and never past a change.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};

use crate::files::OpenFile;
use crate::pace::Turn;
use crate::ring::Core;
use crate::uring::{self, Socket};

/// A piece of a response.
#[derive(Debug)]
pub(crate) enum Segment {
    /// Head, or the frame of a multipart body: not paced.
    Frame(Bytes),
    /// Body bytes from memory.
    Memory(Bytes),
    /// Body bytes from a file.
    File {
        /// What was opened is what is sent.
        file: Rc<OpenFile>,
        /// Next byte.
        position: u64,
        /// After the last byte.
        end: u64,
    },
}

/// A response on its way.
#[derive(Debug)]
pub(crate) struct Transfer {
    segments: VecDeque<Segment>,
    /// Body bytes that the kernel took.
    pub(crate) sent: u64,
    turn: Turn,
    /// Up to where the first segment's file is being read ahead; 0 while all was found in memory.
    ahead: u64,
    corked: bool,
    begun: bool,
    /// Whether the sending direction is shut down behind it.
    last: bool,
}

/// How far a transfer got.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Everything was taken.
    Done,
    /// The socket is full, or the turn is over. Both wait for room through the ring: an executor that is only asked
    /// to run a task again does so dozens of times before it looks for what has come on other connections.
    Full,
    /// The pacer wants this long a break.
    Pause(Duration),
    /// The disk has to be waited for.
    Cold {
        /// Of which file.
        file: Rc<OpenFile>,
        /// From which byte.
        start: u64,
        /// How many bytes.
        length: u64,
    },
    /// The promised length can't be kept, or the client is gone: the connection must be cut.
    Broken(io::Error),
}

impl Transfer {
    pub(crate) fn new(segments: impl Into<VecDeque<Segment>>) -> Self {
        Self {
            segments: segments.into(),
            sent: 0,
            turn: Turn::default(),
            ahead: 0,
            corked: false,
            begun: false,
            last: false,
        }
    }

    /// Says whether the sending direction is shut down as soon as it is done: then the last bytes need no push of
    /// their own and travel with the FIN.
    pub(crate) fn before_the_end(mut self, last: bool) -> Self {
        self.last = last;
        self
    }

    /// Counts body bytes that were sent before the transfer was made.
    pub(crate) fn with_sent(mut self, sent: u64) -> Self {
        self.sent = sent;
        self
    }

    /// Sends until something wants to be waited for, or for one turn.
    pub(crate) fn advance(&mut self, core: &Core, class: u8, socket: &Socket) -> Progress {
        let mut turn = if self.sent < FIRST_TURN_BYTES { FIRST_TURN_BYTES } else { TURN_BYTES };
        if std::mem::replace(&mut self.begun, true)
            && let Some(Segment::File { file, .. }) = self.segments.front()
            && !file.is_unchanged(core.clock.millis())
        {
            return Progress::Broken(io::Error::other("the file was changed in place while it was sent"));
        }
        if !self.corked && self.wants_cork() {
            socket.cork(true);
            self.corked = true;
        }
        loop {
            let more = self.last || self.segments.len() > 1;
            let Some(segment) = self.segments.front_mut() else {
                if self.corked && !self.last {
                    socket.cork(false);
                }
                return Progress::Done;
            };
            if turn == 0 {
                return Progress::Full;
            }
            let mut asked = 0;
            let (taken, is_body) = match segment {
                Segment::Frame(bytes) => (send_bytes(socket, bytes, usize::MAX, more), false),
                Segment::Memory(bytes) => {
                    let want = bytes.len() as u64;
                    match self.turn.allow(core.pacer.as_ref(), class, want, want) {
                        Ok(allowed) => (send_bytes(socket, bytes, size(allowed), more), true),
                        Err(pause) => return paused(core, class, pause),
                    }
                }
                Segment::File { file, position, end } => {
                    let until = match resident_until(file, *position, *end, core.clock.millis()) {
                        Ok(Some(until)) => until,
                        Ok(None) => {
                            let window = window_end(*position, *end);
                            self.ahead = self.ahead.max(window);
                            let length = window - *position;
                            return Progress::Cold { file: Rc::clone(file), start: *position, length };
                        }
                        Err(error) => return Progress::Broken(error),
                    };
                    if self.ahead > 0
                        && let Some(span) = read_ahead(*position, *end, self.ahead)
                    {
                        self.ahead = span.end;
                        uring::read_ahead(Rc::clone(file), span.start, span.end - span.start);
                    }
                    let want = (until - *position).min(turn);
                    match self.turn.allow(core.pacer.as_ref(), class, want, file.version.size) {
                        Ok(allowed) => {
                            asked = allowed;
                            (send_file(core, socket, file, position, *end, size(allowed)), true)
                        }
                        Err(pause) => return paused(core, class, pause),
                    }
                }
            };
            match taken {
                Ok(Some(count)) => {
                    turn = turn.saturating_sub(count);
                    if is_body {
                        self.sent += count;
                        self.turn.sent(count);
                    }
                    if count < asked {
                        // The socket is full; asking it again would only tell the same.
                        return Progress::Full;
                    }
                }
                Ok(None) => return Progress::Full,
                Err(error) => return Progress::Broken(error),
            }
            if self.segments.front().is_some_and(Segment::is_spent) {
                self.segments.pop_front();
                self.ahead = 0;
            }
        }
    }

    /// Whether enough follows to make holding back partial segments worth two calls.
    fn wants_cork(&self) -> bool {
        self.segments.iter().any(|segment| match segment {
            Segment::File { position, end, .. } => end - position > SENDFILE_BYTES_MAX,
            _ => false,
        })
    }
}

impl Segment {
    fn is_spent(&self) -> bool {
        match self {
            Self::Frame(bytes) | Self::Memory(bytes) => bytes.is_empty(),
            Self::File { position, end, .. } => position == end,
        }
    }
}

fn send_bytes(socket: &Socket, bytes: &mut Bytes, limit: usize, more: bool) -> io::Result<Option<u64>> {
    if bytes.is_empty() {
        return Ok(Some(0));
    }
    let now = &bytes[..bytes.len().min(limit)];
    let whole = now.len() == bytes.len();
    let taken = uring::send(socket, now, more || !whole)?;
    if let Some(count) = taken {
        bytes.advance(count);
    }
    Ok(taken.map(|count| count as u64))
}

/// Sends up to `limit` bytes without a copy where the file system allows it.
fn send_file(
    core: &Core,
    socket: &Socket,
    file: &OpenFile,
    position: &mut u64,
    end: u64,
    limit: usize,
) -> io::Result<Option<u64>> {
    if *position == end {
        return Ok(Some(0));
    }
    let taken = if file.copies.get() {
        copy(core, socket, file, *position, limit)
    } else {
        let attempt = if end - *position > SENDFILE_BYTES_MAX {
            core.pipe.transfer(socket, file, *position, limit)
        } else {
            uring::sendfile(socket, file, *position, limit)
        };
        match attempt {
            Err(error) if is_unsupported(&error) => {
                file.copies.set(true);
                copy(core, socket, file, *position, limit)
            }
            attempt => attempt,
        }
    };
    match taken? {
        Some(0) => {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent"))
        }
        Some(count) => {
            *position += count as u64;
            Ok(Some(count as u64))
        }
        None => Ok(None),
    }
}

/// The fallback for file systems without `splice`; what it reads was made resident before.
fn copy(
    core: &Core,
    socket: &Socket,
    file: &OpenFile,
    position: u64,
    limit: usize,
) -> io::Result<Option<usize>> {
    let mut buffer = core.scratch.take();
    let room = buffer.len().min(limit);
    let sent = match rustix::io::pread(file, &mut buffer[..room], position) {
        Ok(0) => Ok(Some(0)),
        Ok(count) => uring::send(socket, &buffer[..count], count < limit),
        Err(error) => Err(error.into()),
    };
    core.scratch.set(buffer);
    sent
}

/// How far from `position` on the file is known to be in the page cache; `None` when the next window is not.
fn resident_until(file: &OpenFile, position: u64, end: u64, now: u64) -> io::Result<Option<u64>> {
    if let Some(until) = file.resident_until(position, now) {
        return Ok(Some(until.min(end)));
    }
    let until = window_end(position, end);
    if until == position {
        return Ok(Some(position));
    }
    match uring::resident(file, until - 1, &mut [0])? {
        Some(_) => {
            file.note_resident(position, until, now);
            Ok(Some(until))
        }
        None => Ok(None),
    }
}

/// What is to be read now, by who sends from `position` to `end` and has had it read up to `ahead`: whole windows, or
/// what is left.
fn read_ahead(position: u64, end: u64, ahead: u64) -> Option<Range<u64>> {
    let (start, far) = (ahead.max(position), position.saturating_add(AHEAD_BYTES).min(end));
    let lacking = far.saturating_sub(start);
    (lacking >= WINDOW_BYTES || (lacking > 0 && far == end)).then_some(start..far)
}

fn window_end(position: u64, end: u64) -> u64 {
    (position / WINDOW_BYTES + 1).saturating_mul(WINDOW_BYTES).min(end)
}

/// A pause, unless the pacer will not grant anything any more.
fn paused(core: &Core, class: u8, pause: Duration) -> Progress {
    match &core.pacer {
        Some(pacer) if pacer.ended(class) => {
            Progress::Broken(io::Error::other("nothing more is granted to responses of this class"))
        }
        _ => Progress::Pause(pause),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Above this many bytes `splice` through the thread's pipe is cheaper than `sendfile` (measured crossover).
const SENDFILE_BYTES_MAX: u64 = 256 << 10;

/// The span whose last byte is looked for in the page cache before any of it is sent.
pub(crate) const WINDOW_BYTES: u64 = 512 << 10;

/// What a response that met the disk is read ahead by, so that disk and network work at the same time.
const AHEAD_BYTES: u64 = 4 * WINDOW_BYTES;

/// Bytes of one response before the others get their turn: what most files are smaller than goes at once, and who has had
/// that much takes smaller turns, so that a few who fetch images let others wait for a fraction of a millisecond.
const FIRST_TURN_BYTES: u64 = 2 << 20;
const TURN_BYTES: u64 = 512 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every byte is read ahead once, in spans of a window or more but for the last, and never far ahead.
        #[test]
        fn all_is_read_ahead_once(
            start in 0u64..5 << 20,
            length in 1u64..20 << 20,
            steps in proptest::collection::vec(1u64..3 << 20, 1..60),
        ) {
            let end = start + length;
            let (mut position, mut ahead) = (start, window_end(start, end));
            for step in steps.into_iter().chain([length]) {
                if let Some(span) = read_ahead(position, end, ahead) {
                    prop_assert_eq!(span.start, ahead.max(position));
                    prop_assert!(span.end - span.start >= WINDOW_BYTES || span.end == end);
                    prop_assert!(span.end <= end && span.end <= position + AHEAD_BYTES);
                    ahead = span.end;
                }
                let most = position + AHEAD_BYTES - WINDOW_BYTES;
                prop_assert!(ahead.max(position) >= end.min(most), "{} of {} behind {}", ahead, end, position);
                position = (position + step).min(end);
            }
        }
    }
}
