//! One connection as a state machine: it is told that the socket is ready, and says what to wait for next.
//!
//! Between two requests it holds no buffer; a transfer, a body to be read past or a cold file is boxed while it
//! lasts. It never waits itself: see [`Serve`].

mod serve;

use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::StatusCode;
use bytes::Bytes;
use rustix::io::Errno;

use crate::deadline::{Awaits, Slot};
use crate::files::{Missing, OpenFile};
use crate::http::Rejection;
use crate::http::body::Drain;
use crate::http::head::{Framing, Head, Verb};
use crate::http::scan::{HeadScan, Scanned};
use crate::respond::{self, Client, Close, Exchange, Outline, Prepared, Reply};
use crate::ring::{BodyBytes, Core, HOT_MILLIS};
use crate::send::{Progress, Transfer};
use crate::site::{FileAnswer, Unavailable};
use crate::uring::{self, Delivery, ReceiveBuffer, Socket};

pub(crate) use serve::Serve;

/// What a connection waits for.
enum Step {
    /// The next request, with a buffer if one can be had.
    Request,
    Readable,
    Writable,
    /// The response that the ring is sending.
    Delivery,
    Yield,
    Pause(Duration),
    Work(Work),
    Close,
}

/// Something to wait for that is rare enough to be boxed.
type Work = Pin<Box<dyn Future<Output = Done>>>;

/// What came of waiting for the disk.
enum Done {
    /// A file was opened, or could not be.
    Opened(Result<Rc<OpenFile>, Unavailable>),
    /// A span of a file is in the page cache now, or can't be read.
    Fetched(std::io::Result<()>),
}

/// One connection.
pub(crate) struct Connection {
    socket: Rc<Socket>,
    slot: Slot,
    /// Requests answered since the last wait.
    turn: u16,
    /// Whether there may be something to read that has not been read yet.
    unread: bool,
    warmth: Warmth,
    /// Bytes that came but are not used yet; nothing between requests.
    partial: Option<Box<Partial>>,
    phase: Phase,
    /// A response that the ring is sending; nothing else is sent before it has gone.
    outgoing: Option<Delivery>,
}

/// How soon the next request is expected; a buffer is held only for one that is expected soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Warmth {
    /// It has just connected, and its first request should be on the way.
    New,
    /// It has connected and fallen silent.
    NewCold,
    /// It had an answer, and the next request may be long in coming.
    Cold,
    /// Its last request followed the answer before closely.
    Hot,
    /// It was hot and has fallen silent.
    Cooled,
}

#[derive(Debug, Default)]
struct Partial {
    scan: HeadScan,
    input: Vec<u8>,
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
    /// Body bytes that the observer was told of; none until it goes on.
    told: Option<u64>,
}

impl Connection {
    pub(crate) fn new(core: &Core, socket: Rc<Socket>) -> Self {
        let slot = core.deadlines.enter(&socket);
        let connection = Self {
            socket,
            slot,
            turn: 0,
            unread: true,
            warmth: Warmth::New,
            partial: None,
            phase: Phase::Reading,
            outgoing: None,
        };
        if let Some(observer) = &core.observer {
            let class = core.listeners[usize::from(connection.socket.listener)].class;
            let Socket { local, peer, id, .. } = &*connection.socket;
            observer.opened(*id, class, connection.socket.as_fd(), *local, *peer);
        }
        connection
    }

    /// The ring says that the socket is ready for what was waited for.
    fn is_readable(&mut self, core: &Core) {
        self.unread = true;
        let idle = u64::try_from(core.limits.idle_timeout.as_millis()).unwrap_or(u64::MAX);
        if self.warmth == Warmth::Cold
            && core.deadlines.awaits(self.slot) == Awaits::Request
            && core.deadlines.left(self.slot, core.clock.millis()).saturating_add(HOT_MILLIS) > idle
        {
            self.warmth = Warmth::Hot;
        }
    }

    /// Takes in how a receive ended and returns how many bytes came.
    fn received(&mut self, result: std::io::Result<usize>) -> usize {
        match result {
            Ok(count) if count > 0 => {
                self.unread = ReceiveBuffer::is_full(count);
                count
            }
            // The sweep wants the buffer back.
            Err(error) if error.raw_os_error() == Some(Errno::CANCELED.raw_os_error()) => {
                self.warmth = if self.warmth == Warmth::New { Warmth::NewCold } else { Warmth::Cooled };
                0
            }
            // The end, or an error: the next look meets it again.
            _ => {
                self.unread = true;
                0
            }
        }
    }

    fn is_warm(&self) -> bool {
        matches!(self.warmth, Warmth::New | Warmth::Hot)
    }

    /// Looks after the response that the ring is sending; `false` when it could not be sent.
    fn delivered(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let Some(outgoing) = &mut self.outgoing else { return Poll::Ready(true) };
        let whole = ready!(Pin::new(outgoing).poll(context));
        self.outgoing = None;
        if !whole {
            self.socket.reset_on_close();
        }
        Poll::Ready(whole)
    }

    /// Keeps bytes for later.
    fn put_aside(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.partial.get_or_insert_default().input.extend_from_slice(bytes);
        }
    }

    /// Goes on as far as it can without waiting, with bytes that have just come.
    fn advance(&mut self, core: &Rc<Core>, mut arrived: &[u8]) -> Step {
        if core.deadlines.awaits(self.slot) == Awaits::Nothing {
            return Step::Close;
        }
        self.turn = 0;
        loop {
            let step = match &mut self.phase {
                Phase::Reading => self.read(core, std::mem::take(&mut arrived)),
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
    fn resume(&mut self, core: &Rc<Core>, done: Done) {
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
            self.report_end(core, sending);
        }
        core.closed(&self.client(), self.slot);
    }

    /// Answers requests until there is no whole one left; `None` when the phase changed.
    fn read(&mut self, core: &Rc<Core>, arrived: &[u8]) -> Option<Step> {
        let mut scratch = core.scratch.take();
        let Partial { mut scan, input } =
            self.partial.take().map_or_else(Partial::default, |partial| *partial);
        let mut filled = input.len();
        scratch[..filled].copy_from_slice(&input);
        scratch[filled..filled + arrived.len()].copy_from_slice(arrived);
        filled += arrived.len();
        let step = loop {
            let used = self.consume(core, &scratch[..filled], &mut scan);
            scratch.copy_within(used..filled, 0);
            filled -= used;
            if !matches!(self.phase, Phase::Reading) {
                break None;
            }
            if self.outgoing.is_some() && filled > 0 {
                break Some(Step::Delivery);
            }
            if self.turn >= TURN_REQUESTS_MAX {
                break Some(Step::Yield);
            }
            if filled >= core.limits.head_bytes_max {
                self.reject(core, head_too_long());
                filled = 0;
                break None;
            }
            // Reading on after a response would let a fast client keep the others from their turn.
            if !std::mem::take(&mut self.unread) {
                if filled == 0 {
                    break Some(Step::Request);
                }
                self.await_rest_of_head(core);
                break Some(Step::Readable);
            }
            match uring::receive(&self.socket, &mut scratch[filled..]) {
                Ok(Some(0)) | Err(_) => break Some(Step::Close),
                Ok(Some(count)) => {
                    filled += count;
                    self.unread = filled == scratch.len();
                }
                Ok(None) => {}
            }
        };
        if filled > 0 {
            self.partial = Some(Box::new(Partial { scan, input: scratch[..filled].to_vec() }));
            if matches!(self.phase, Phase::Closed) {
                self.ended(core, Close::Linger);
            }
        }
        core.scratch.set(scratch);
        step
    }

    /// Answers the whole requests at the start of `input` and returns how many bytes they were.
    fn consume(&mut self, core: &Rc<Core>, input: &[u8], scan: &mut HeadScan) -> usize {
        let mut at = 0;
        while at < input.len()
            && matches!(self.phase, Phase::Reading)
            && self.outgoing.is_none()
            && self.turn < TURN_REQUESTS_MAX
        {
            match scan.advance(&input[at..]) {
                Ok(Scanned::Partial { .. }) => break,
                Ok(Scanned::Complete { start, end }) => {
                    *scan = HeadScan::default();
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
        let input = self.partial.take().map(|partial| partial.input).unwrap_or_default();
        let mut filled = input.len();
        scratch[..filled].copy_from_slice(&input);
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
            self.put_aside(&scratch[..filled]);
            if matches!(self.phase, Phase::Closed) {
                self.ended(core, Close::Linger);
            }
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
                core.stats.body_bytes.add(outline.promised);
                self.report(core, &exchange, outline, BodyBytes { sent: outline.promised, told: None });
                exchange.recycle(core);
                self.ended(core, outline.close);
            }
            Reply::Queued(outline, bytes) => {
                // It counts as sent: the kernel has it from this turn on.
                self.outgoing = Some(uring::deliver(Rc::clone(&self.socket), bytes));
                core.stats.body_bytes.add(outline.promised);
                self.report(core, &exchange, outline, BodyBytes { sent: outline.promised, told: None });
                exchange.recycle(core);
                self.ended(core, outline.close);
            }
            Reply::Prepared(Prepared { transfer, outline }) => {
                self.phase = Phase::Sending(Box::new(Sending { transfer, exchange, outline, told: None }));
            }
            Reply::Cold(cold) => {
                let (missing, answer) = *cold;
                self.awaits_us(core);
                self.phase = Phase::Opening(Box::new(Opening { exchange, answer, missing: Some(missing) }));
            }
        }
    }

    fn send(&mut self, core: &Rc<Core>) -> Option<Step> {
        self.unread = false;
        let class = core.listeners[usize::from(self.socket.listener)].class;
        let Phase::Sending(sending) = &mut self.phase else { return None };
        let before = sending.transfer.sent;
        let progress = sending.transfer.advance(core, class, &self.socket);
        core.stats.body_bytes.add(sending.transfer.sent - before);
        let goes_on = !matches!(progress, Progress::Done | Progress::Broken(_));
        if goes_on {
            let Outline { status, promised, .. } = sending.outline;
            let told = sending.told.get_or_insert_with(|| {
                core.lasts(class, status, promised);
                0
            });
            if sending.transfer.sent > *told {
                core.progressed(class, status, sending.transfer.sent - *told);
                *told = sending.transfer.sent;
            }
        }
        match progress {
            Progress::Done => {
                if let Phase::Sending(sending) = std::mem::replace(&mut self.phase, Phase::Reading) {
                    self.report_end(core, &sending);
                    self.ended(core, sending.outline.close);
                    if sending.transfer.sent >= TURN_BYTES && matches!(self.phase, Phase::Reading) {
                        return Some(if self.partial.is_none() { Step::Request } else { Step::Yield });
                    }
                }
                None
            }
            Progress::Full => {
                self.awaits(core, Awaits::Room, core.limits.send_timeout);
                Some(Step::Writable)
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
        self.report_end(core, sending);
        self.socket.reset_on_close();
        self.phase = Phase::Closed;
    }

    fn reject(&mut self, core: &Rc<Core>, rejection: Rejection) {
        let prepared = respond::to_rejected(core, &rejection);
        self.reply(core, Exchange::new(core, None), Reply::Prepared(prepared));
    }

    fn ended(&mut self, core: &Core, close: Close) {
        self.phase = match close {
            Close::Keep => {
                if self.warmth != Warmth::Hot {
                    self.warmth = Warmth::Cold;
                }
                Phase::Reading
            }
            Close::Now if self.partial.is_none() => {
                // The response's last bytes wait for this FIN. A close alone would throw them away if the client had
                // sent more than was read.
                self.socket.shut_down_sending();
                Phase::Closed
            }
            // Bytes that nobody reads would turn the close into a reset, and that could overtake the response.
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

    /// Sets the deadline between two requests, or before the first.
    fn await_request(&self, core: &Core, with_buffer: bool) {
        let (first, whole) = match self.warmth {
            Warmth::New | Warmth::NewCold => (true, core.limits.head_timeout),
            Warmth::Cold | Warmth::Hot | Warmth::Cooled => (false, core.limits.idle_timeout),
        };
        let hot = Duration::from_millis(HOT_MILLIS).min(whole / 2);
        let time = match self.warmth {
            _ if with_buffer => hot,
            Warmth::NewCold | Warmth::Cooled => whole - hot,
            Warmth::New | Warmth::Cold | Warmth::Hot => whole,
        };
        let what = match (first, with_buffer) {
            (true, true) => Awaits::FirstHot,
            (true, false) => Awaits::First,
            (false, true) => Awaits::RequestHot,
            (false, false) => Awaits::Request,
        };
        self.awaits(core, what, time);
    }

    /// A head's time began with its first bytes, however many more come.
    fn await_rest_of_head(&self, core: &Core) {
        if core.deadlines.awaits(self.slot) != Awaits::Head {
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
        Client { socket: &self.socket, busy: self.warmth == Warmth::Hot }
    }

    fn report_end(&self, core: &Core, sending: &Sending) {
        let bytes = BodyBytes { sent: sending.transfer.sent, told: sending.told };
        self.report(core, &sending.exchange, sending.outline, bytes);
    }

    fn report(&self, core: &Core, exchange: &Exchange, outline: Outline, bytes: BodyBytes) {
        core.responded(&self.client(), exchange, outline, bytes);
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

/// Body bytes of one response after which the others get their turn, whatever was pipelined.
const TURN_BYTES: u64 = 256 << 10;

/// How long a client has to end its side after a refused request.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Bytes that are thrown away while lingering.
const LINGER_BYTES_MAX: u64 = 1 << 20;

/// The timer's resolution.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// After this the pacer is asked again, whatever it said, so that a raised budget is noticed.
const PAUSE_MAX: Duration = Duration::from_secs(1);
