//! One connection as a state machine: it is told that the socket is ready, and says what to wait for next.
//!
//! Between two requests it holds no buffer; a transfer, a body to be read past or a cold file is boxed while it
//! lasts. It never waits itself: see [`Serve`].

use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::StatusCode;
use bytes::Bytes;

use crate::deadline::{Awaits, Slot};
use crate::files::{Missing, OpenFile};
use crate::http::Rejection;
use crate::http::body::Drain;
use crate::http::head::{Framing, Head, Verb};
use crate::http::scan::{HeadScan, Scanned};
use crate::respond::{self, Client, Close, Exchange, Outline, Prepared, Reply};
use crate::ring::Core;
use crate::send::{Progress, Transfer};
use crate::site::{FileAnswer, Unavailable};
use crate::uring::{self, Socket};

/// Serves a connection to its end.
///
/// Written by hand, since an `async fn` would keep the connection twice: an idle one is the future's size.
pub(crate) struct Serve {
    core: Rc<Core>,
    connection: Connection,
    waiting: Waiting,
}

enum Waiting {
    /// The first look: a client that connects has rarely sent its request before we see it.
    Nothing,
    Socket(uring::Readiness),
    Turn,
    Pause(Pin<Box<tokio::time::Sleep>>),
    Work(Work),
    Over,
}

/// What a connection waits for.
pub(crate) enum Step {
    Readable,
    Writable,
    Yield,
    Pause(Duration),
    Work(Work),
    Close,
}

/// Something to wait for that is rare enough to be boxed.
type Work = Pin<Box<dyn Future<Output = Done>>>;

impl Serve {
    pub(crate) fn new(core: Rc<Core>, connection: Connection) -> Self {
        Self { core, connection, waiting: Waiting::Nothing }
    }
}

impl Future for Serve {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { core, connection, waiting } = self.get_mut();
        loop {
            match waiting {
                Waiting::Nothing => {
                    *waiting = Waiting::Socket(uring::readable(Rc::clone(&connection.socket)));
                    continue;
                }
                Waiting::Socket(readiness) => ready!(Pin::new(readiness).poll(context)),
                Waiting::Turn => {}
                Waiting::Pause(pause) => ready!(pause.as_mut().poll(context)),
                Waiting::Work(work) => {
                    let done = ready!(work.as_mut().poll(context));
                    connection.resume(core, done);
                }
                Waiting::Over => return Poll::Ready(()),
            }
            *waiting = match connection.advance(core) {
                Step::Readable => Waiting::Socket(uring::readable(Rc::clone(&connection.socket))),
                Step::Writable => Waiting::Socket(uring::writable(Rc::clone(&connection.socket))),
                Step::Pause(pause) => Waiting::Pause(Box::pin(tokio::time::sleep(pause))),
                Step::Work(work) => Waiting::Work(work),
                Step::Yield => {
                    *waiting = Waiting::Turn;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Step::Close => {
                    connection.close(core);
                    Waiting::Over
                }
            };
        }
    }
}

/// What came of waiting for the disk.
pub(crate) enum Done {
    /// A file was opened, or could not be.
    Opened(Result<Rc<OpenFile>, Unavailable>),
    /// A span of a file is in the page cache now, or can't be read.
    Fetched(std::io::Result<()>),
    /// What was sent before has gone.
    Flushed,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Rc<Socket>,
    id: u64,
    slot: Slot,
    listener: u16,
    /// Requests answered since the last wait.
    turn: u16,
    scan: HeadScan,
    /// Bytes that came but are not used yet; without allocation between requests.
    input: Vec<u8>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Reading,
    Draining(Box<(Drain, Head)>),
    Opening(Box<Opening>),
    Sending(Box<Sending>),
    Lingering(u64),
    Closed,
}

#[derive(Debug)]
struct Opening {
    exchange: Exchange,
    answer: FileAnswer,
    /// Taken when the wait begins.
    missing: Option<Missing>,
}

#[derive(Debug)]
struct Sending {
    transfer: Transfer,
    exchange: Exchange,
    outline: Outline,
}

impl Connection {
    pub(crate) fn new(core: &Core, socket: Rc<Socket>, id: u64, listener: u16) -> Self {
        let slot = core.deadlines.enter(&socket);
        let connection = Self {
            socket,
            id,
            slot,
            listener,
            turn: 0,
            scan: HeadScan::default(),
            input: Vec::new(),
            phase: Phase::Reading,
        };
        connection.awaits(core, Awaits::First, core.limits.head_timeout);
        if let Some(observer) = &core.observer {
            let class = core.listeners[usize::from(listener)].class;
            let Socket { local, peer, .. } = &*connection.socket;
            observer.opened(id, class, connection.socket.as_fd(), *local, *peer);
        }
        connection
    }

    /// Goes on as far as it can without waiting.
    pub(crate) fn advance(&mut self, core: &Rc<Core>) -> Step {
        if core.deadlines.awaits(self.slot) == Awaits::Nothing {
            return Step::Close;
        }
        self.turn = 0;
        loop {
            if core.outbox.has_rest(self.id) {
                return self.wait_for_outbox(core);
            }
            let step = match &mut self.phase {
                Phase::Reading => self.read(core),
                Phase::Draining(_) => self.drain(core),
                Phase::Sending(_) => self.send(core),
                Phase::Opening(opening) => Some(match opening.missing.take() {
                    Some(missing) => {
                        let core = Rc::clone(core);
                        Step::Work(Box::pin(async move {
                            Done::Opened(core.files.load(missing, &core.clock).await)
                        }))
                    }
                    None => Step::Close,
                }),
                Phase::Lingering(_) => Some(self.linger(core)),
                Phase::Closed => return Step::Close,
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// Takes in what the disk gave.
    pub(crate) fn resume(&mut self, core: &Rc<Core>, done: Done) {
        match (std::mem::replace(&mut self.phase, Phase::Reading), done) {
            (Phase::Opening(opening), Done::Opened(result)) => {
                let Opening { mut exchange, answer, .. } = *opening;
                let reply = respond::to_opened(core, &mut exchange, answer, result, &self.client());
                self.reply(core, exchange, reply);
            }
            (Phase::Sending(sending), Done::Fetched(Err(error))) => self.cut(core, &sending, &error),
            (phase, _) => self.phase = phase,
        }
    }

    /// Reports the end and gives everything back.
    fn close(&self, core: &Core) {
        if let Phase::Sending(sending) = &self.phase {
            self.report(core, &sending.exchange, sending.outline, sending.transfer.sent);
        }
        core.closed(&self.client(), self.slot);
    }

    /// Reads and answers requests until there is no whole one left; `None` when the phase changed.
    fn read(&mut self, core: &Rc<Core>) -> Option<Step> {
        let mut scratch = core.scratch.take();
        let mut filled = self.take_input(&mut scratch);
        let mut drained = false;
        let step = loop {
            let used = self.consume(core, &scratch[..filled]);
            scratch.copy_within(used..filled, 0);
            filled -= used;
            if !matches!(self.phase, Phase::Reading) {
                break None;
            }
            if self.turn >= TURN_REQUESTS_MAX {
                break Some(Step::Yield);
            }
            if filled >= core.limits.head_bytes_max {
                self.reject(core, head_too_long());
                filled = 0;
                break None;
            }
            if drained {
                self.await_request(core, filled);
                break Some(Step::Readable);
            }
            match uring::receive(&self.socket, &mut scratch[filled..]) {
                Ok(Some(0)) | Err(_) => break Some(Step::Close),
                Ok(Some(count)) => {
                    filled += count;
                    drained = filled < scratch.len();
                }
                Ok(None) => drained = true,
            }
        };
        if filled > 0 {
            self.input = scratch[..filled].to_vec();
            if matches!(self.phase, Phase::Closed) {
                self.ended(core, Close::Linger);
            }
        }
        core.scratch.set(scratch);
        step
    }

    /// Answers the whole requests at the start of `input` and returns how many bytes they were.
    fn consume(&mut self, core: &Rc<Core>, input: &[u8]) -> usize {
        let mut at = 0;
        while at < input.len() && matches!(self.phase, Phase::Reading) && self.turn < TURN_REQUESTS_MAX {
            match self.scan.advance(&input[at..]) {
                Ok(Scanned::Partial { .. }) => break,
                Ok(Scanned::Complete { start, end }) => {
                    self.scan = HeadScan::default();
                    if end - start > core.limits.head_bytes_max {
                        self.reject(core, head_too_long());
                        return input.len();
                    }
                    let bytes = Bytes::copy_from_slice(&input[at + start..at + end]);
                    at += end;
                    self.turn += 1;
                    match Head::parse(bytes, core.limits.head_fields_max, core.spare_headers.take()) {
                        Ok(head) => self.begin(core, head, at < input.len()),
                        Err(rejection) => {
                            self.reject(core, rejection);
                            return input.len();
                        }
                    }
                }
                Err(rejection) => {
                    self.reject(core, rejection);
                    return input.len();
                }
            }
        }
        at
    }

    /// Begins with a checked head: its body is read past first, so that the next request is found.
    fn begin(&mut self, core: &Rc<Core>, head: Head, more_came: bool) {
        if head.framing == Framing::None {
            return self.answer(core, head);
        }
        // Without our 100 the body may never come; whether it does can't be told, so the connection ends here.
        if head.expects_continue && head.verb == Verb::Other {
            return self.reject(core, Rejection::method_not_allowed());
        }
        match Drain::new(head.framing, core.limits.body_drain_bytes_max) {
            Ok(drain) => {
                if head.expects_continue && !more_came {
                    core.outbox.flush();
                    let _ = uring::send(&self.socket, b"HTTP/1.1 100 Continue\r\n\r\n", false);
                }
                self.awaits(core, Awaits::Body, core.limits.head_timeout);
                self.phase = Phase::Draining(Box::new((drain, head)));
            }
            Err(rejection) => self.reject(core, rejection),
        }
    }

    fn drain(&mut self, core: &Rc<Core>) -> Option<Step> {
        let mut scratch = core.scratch.take();
        let mut filled = self.take_input(&mut scratch);
        let step = loop {
            let Phase::Draining(draining) = &mut self.phase else { break None };
            match draining.0.advance(&scratch[..filled]) {
                Ok(used) => {
                    scratch.copy_within(used..filled, 0);
                    filled -= used;
                }
                Err(rejection) => {
                    filled = 0;
                    self.reject(core, rejection);
                    break None;
                }
            }
            if draining.0.is_done() {
                if let Phase::Draining(draining) = std::mem::replace(&mut self.phase, Phase::Reading) {
                    self.answer(core, draining.1);
                }
                break None;
            }
            match uring::receive(&self.socket, &mut scratch[filled..]) {
                Ok(Some(0)) | Err(_) => break Some(Step::Close),
                Ok(Some(count)) => filled += count,
                Ok(None) => break Some(Step::Readable),
            }
        };
        if filled > 0 {
            self.input = scratch[..filled].to_vec();
        }
        core.scratch.set(scratch);
        step
    }

    fn answer(&mut self, core: &Rc<Core>, head: Head) {
        let mut exchange = Exchange::new(core, Some(head));
        let reply = respond::to_request(core, &mut exchange, &self.client());
        self.reply(core, exchange, reply);
    }

    /// Goes on with what a request came to.
    fn reply(&mut self, core: &Rc<Core>, exchange: Exchange, reply: Reply) {
        match reply {
            Reply::Sent(outline) => {
                self.report(core, &exchange, outline, outline.promised);
                if let Some(head) = exchange.head {
                    core.spare_headers.set(head.into_spare());
                }
                self.ended(core, outline.close);
            }
            Reply::Prepared(Prepared { transfer, outline }) => {
                self.phase = Phase::Sending(Box::new(Sending { transfer, exchange, outline }));
            }
            Reply::Cold(missing, answer) => {
                self.awaits_us(core);
                self.phase = Phase::Opening(Box::new(Opening { exchange, answer, missing: Some(missing) }));
            }
        }
    }

    /// An earlier small response is still on its way to a slow client; everything else comes after it.
    fn wait_for_outbox(&self, core: &Core) -> Step {
        self.awaits_us(core);
        let sent = Rc::clone(&core.outbox).rest_sent(self.id);
        Step::Work(Box::pin(async move {
            sent.await;
            Done::Flushed
        }))
    }

    fn send(&mut self, core: &Rc<Core>) -> Option<Step> {
        core.outbox.flush();
        if core.outbox.has_rest(self.id) {
            return Some(self.wait_for_outbox(core));
        }
        let class = core.listeners[usize::from(self.listener)].class;
        let Phase::Sending(sending) = &mut self.phase else { return None };
        let before = sending.transfer.sent;
        let progress = sending.transfer.advance(core, class, &self.socket);
        core.stats.body_bytes.add(sending.transfer.sent - before);
        match progress {
            Progress::Done => {
                if let Phase::Sending(sending) = std::mem::replace(&mut self.phase, Phase::Reading) {
                    self.report(core, &sending.exchange, sending.outline, sending.transfer.sent);
                    self.ended(core, sending.outline.close);
                }
                None
            }
            Progress::Full => {
                self.awaits(core, Awaits::Room, core.limits.send_timeout);
                Some(Step::Writable)
            }
            Progress::Yield => {
                self.awaits_us(core);
                Some(Step::Yield)
            }
            Progress::Pause(pause) => {
                self.awaits_us(core);
                Some(Step::Pause(pause.clamp(PAUSE_MIN, PAUSE_MAX)))
            }
            Progress::Cold { file, start, length } => {
                self.awaits_us(core);
                let core = Rc::clone(core);
                Some(Step::Work(Box::pin(async move {
                    let fetched = uring::prefetch(Rc::clone(&file), start, length).await;
                    if fetched.is_ok() {
                        file.note_resident(start, start + length, core.clock.millis());
                    }
                    Done::Fetched(fetched)
                })))
            }
            Progress::Broken(error) => {
                if let Phase::Sending(sending) = std::mem::replace(&mut self.phase, Phase::Closed) {
                    self.cut(core, &sending, &error);
                }
                Some(Step::Close)
            }
        }
    }

    /// Ends a response that can't be kept whole, so that the client sees it was not.
    fn cut(&mut self, core: &Core, sending: &Sending, error: &std::io::Error) {
        tracing::debug!(peer = %self.socket.peer, %error, sent = sending.transfer.sent, "response cut");
        self.report(core, &sending.exchange, sending.outline, sending.transfer.sent);
        self.socket.reset_on_close();
        self.phase = Phase::Closed;
    }

    fn reject(&mut self, core: &Rc<Core>, rejection: Rejection) {
        let prepared = respond::to_rejected(core, &rejection);
        self.reply(core, Exchange::new(core, None), Reply::Prepared(prepared));
    }

    fn ended(&mut self, core: &Core, close: Close) {
        self.phase = match close {
            Close::Keep => Phase::Reading,
            // Bytes that nobody reads would turn the close into a reset, and that could overtake the response.
            Close::Now if self.input.is_empty() => Phase::Closed,
            Close::Now | Close::Linger => {
                self.socket.shut_down_sending();
                self.awaits(core, Awaits::End, LINGER_TIME);
                Phase::Lingering(LINGER_BYTES_MAX)
            }
        };
    }

    fn linger(&mut self, core: &Core) -> Step {
        let Phase::Lingering(left) = &mut self.phase else { return Step::Close };
        let mut scratch = core.scratch.take();
        let step = loop {
            match uring::receive(&self.socket, &mut scratch) {
                Ok(Some(0)) | Err(_) => break Step::Close,
                Ok(Some(count)) if *left > count as u64 => *left -= count as u64,
                Ok(Some(_)) => break Step::Close,
                Ok(None) => break Step::Readable,
            }
        };
        core.scratch.set(scratch);
        step
    }

    fn take_input(&mut self, scratch: &mut [u8]) -> usize {
        let input = std::mem::take(&mut self.input);
        scratch[..input.len()].copy_from_slice(&input);
        input.len()
    }

    /// Sets the deadline that fits: idle, or in the middle of a head whose time began with its first byte.
    fn await_request(&self, core: &Core, filled: usize) {
        if filled == 0 {
            self.awaits(core, Awaits::Request, core.limits.idle_timeout);
        } else if core.deadlines.awaits(self.slot) != Awaits::Head {
            self.awaits(core, Awaits::Head, core.limits.head_timeout);
        }
    }

    fn awaits(&self, core: &Core, what: Awaits, within: Duration) {
        let millis = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        core.deadlines.set(self.slot, what, core.clock.millis().saturating_add(millis));
    }

    fn awaits_us(&self, core: &Core) {
        core.deadlines.set(self.slot, Awaits::Us, u64::MAX);
    }

    fn client(&self) -> Client<'_> {
        Client { socket: &self.socket, connection: self.id, listener: self.listener }
    }

    fn report(&self, core: &Core, exchange: &Exchange, outline: Outline, body_bytes: u64) {
        core.responded(&self.client(), exchange, outline, body_bytes);
    }
}

fn head_too_long() -> Rejection {
    Rejection::new(
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        "the request head is longer than this server reads; send less\n",
    )
}

/// Pipelined requests of one connection that are answered before the others get their turn.
const TURN_REQUESTS_MAX: u16 = 32;

/// How long a client has to end its side after a refused request.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Bytes that are thrown away while lingering.
const LINGER_BYTES_MAX: u64 = 1 << 20;

/// The timer's resolution.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// After this the pacer is asked again, whatever it said, so that a raised budget is noticed.
const PAUSE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle connection costs is this, a task's header of about 100 bytes, and a [`Socket`].
    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Serve>() <= 120, "{}", size_of::<Serve>());
    }
}
