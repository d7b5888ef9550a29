//! From a checked request to a response that is sent or ready to be sent; it asks the site and waits for nothing.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use ::http::{HeaderName, StatusCode, header};
use bytes::{Buf as _, Bytes};

use crate::files::opened::{Content, Kept, read_resident};
use crate::files::{Lookup, Missing, OpenFile};
use crate::http::head::{Head, Verb, Version};
use crate::http::multipart::Multipart;
use crate::http::plan::Plan;
use crate::http::response::HeadWriter;
use crate::http::{ALLOWED_METHODS, Rejection, digest};
use crate::ring::Core;
use crate::send::assembled::{Assembled, closing, plain_head};
use crate::send::{Representation, Segment, Transfer};
use crate::site::{Answer, Body, FileAnswer, Method, Redirect, Refusal, Request, Unavailable};
use crate::uring::{self, Socket};

/// Who asks, and by which listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client<'a> {
    pub(crate) socket: &'a Rc<Socket>,
    /// Whether a send may be left to the ring: the connection looks after it before it goes on.
    pub(crate) busy: bool,
}

/// A request while it is answered.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// `None` when it could not be read.
    pub(crate) head: Option<Head>,
    /// When the head was complete, if anybody wants to know.
    pub(crate) started: Option<Instant>,
    /// Files that the site named and that could not be served.
    failures: u8,
}

impl Exchange {
    pub(crate) fn new(core: &Core, head: Option<Head>) -> Self {
        Self { head, started: core.observer.is_some().then(Instant::now), failures: 0 }
    }
}

impl Exchange {
    /// Gives allocations back for the next request.
    pub(crate) fn recycle(self, core: &Core) {
        if let Some(head) = self.head {
            core.spare_headers.set(head.into_spare());
        }
    }
}

/// What a request came to.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The kernel has taken all of the response.
    Sent(Outline),
    /// All of the response is here, to be sent through the ring.
    Queued(Outline, Bytes),
    /// Ready to be sent.
    Prepared(Prepared),
    /// The file must be waited for.
    Cold(Box<(Missing, FileAnswer)>),
}

/// A response that is ready to be sent.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) transfer: Transfer,
    pub(crate) outline: Outline,
}

/// What is reported of a response once it has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outline {
    pub(crate) status: StatusCode,
    /// Body bytes that the head promises and that follow it.
    pub(crate) promised: u64,
    pub(crate) close: Close,
}

/// What becomes of a connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// It is kept.
    Keep,
    /// It is closed.
    Now,
    /// It is closed once the client has had time to read; bytes that it still sends are thrown away.
    Linger,
}

/// Answers a request.
pub(crate) fn to_request(core: &Core, exchange: &mut Exchange, client: &Client<'_>) -> Reply {
    let Some(head) = &exchange.head else { return Reply::Prepared(to_rejected(core, &Rejection::bad(""))) };
    match head.verb {
        Verb::Get | Verb::Head => {
            let site = &core.listeners[usize::from(client.socket.listener)].site;
            let answer = with_request(core, head, client, |request| site.answer(request));
            resolve(core, exchange, client, answer)
        }
        Verb::Options => Reply::Prepared(options(core, head)),
        Verb::Other => {
            let mut refusal =
                Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Rejection::method_not_allowed().text);
            refusal.headers.push((header::ALLOW, header::HeaderValue::from_static(ALLOWED_METHODS)));
            Reply::Prepared(of_refusal(core, head, &refusal))
        }
    }
}

/// Answers a request whose file had to be waited for.
pub(crate) fn to_opened(
    core: &Core,
    exchange: &mut Exchange,
    wanted: FileAnswer,
    opened: Result<Rc<OpenFile>, Unavailable>,
    client: &Client<'_>,
) -> Reply {
    let Some(head) = &exchange.head else { return Reply::Prepared(to_rejected(core, &Rejection::bad(""))) };
    match opened.and_then(|file| check(&wanted, file)) {
        Ok(file) => of_file(core, head, &wanted, &file, client),
        Err(why) => {
            let answer = ask_again(core, exchange, client, &wanted, &why);
            resolve(core, exchange, client, answer)
        }
    }
}

/// Answers bytes that are no request; the connection can't go on after them.
pub(crate) fn to_rejected(core: &Core, rejection: &Rejection) -> Prepared {
    let mut writer = HeadWriter::new(rejection.status, &core.clock.date());
    writer.field("Content-Type", PLAIN_TEXT.as_bytes()).length(rejection.text.len() as u64);
    if rejection.status == StatusCode::METHOD_NOT_ALLOWED {
        writer.field("Allow", ALLOWED_METHODS.as_bytes());
    }
    let frame = Segment::Frame(writer.end(Some("close")).into());
    let body = Bytes::copy_from_slice(rejection.text.as_bytes());
    let outline = Outline { status: rejection.status, promised: body.len() as u64, close: Close::Linger };
    Prepared { transfer: Transfer::new([frame, Segment::Memory(body)]).before_the_end(true), outline }
}

/// Follows the site's answer to something that can be sent.
fn resolve(core: &Core, exchange: &mut Exchange, client: &Client<'_>, mut answer: Answer) -> Reply {
    loop {
        let Some(head) = &exchange.head else {
            return Reply::Prepared(to_rejected(core, &Rejection::bad("")));
        };
        let (wanted, why) = match answer {
            Answer::File(wanted) => match core.files.lookup(&wanted, core.clock.millis()) {
                Lookup::Found(file) => match check(&wanted, file) {
                    Ok(file) => return of_file(core, head, &wanted, &file, client),
                    Err(why) => (wanted, why),
                },
                Lookup::Cold(missing) => return Reply::Cold(Box::new((missing, wanted))),
                Lookup::Failed(why) => (wanted, why),
            },
            Answer::Body(body) => return Reply::Prepared(of_body(core, head, &body)),
            Answer::Redirect(redirect) => return of_redirect(core, head, redirect, client),
            Answer::Refusal(refusal) => return Reply::Prepared(of_refusal(core, head, &refusal)),
        };
        answer = ask_again(core, exchange, client, &wanted, &why);
    }
}

/// Asks the site what to do without a file; after a few of them the answer is the engine's own.
fn ask_again(
    core: &Core,
    exchange: &mut Exchange,
    client: &Client<'_>,
    wanted: &FileAnswer,
    why: &Unavailable,
) -> Answer {
    let Some(head) = &exchange.head else { return out_of_ideas() };
    exchange.failures += 1;
    if let Unavailable::Io(error) = why {
        tracing::warn!(path = %String::from_utf8_lossy(&wanted.path), root = %wanted.root.path().display(), %error, "cannot read a file");
    }
    if exchange.failures > FAILURES_MAX {
        return out_of_ideas();
    }
    let site = &core.listeners[usize::from(client.socket.listener)].site;
    with_request(core, head, client, |request| site.unavailable(request, wanted, why))
}

fn out_of_ideas() -> Answer {
    Answer::Refusal(Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the file could not be read; try again later\n",
    ))
}

fn with_request<T>(core: &Core, head: &Head, client: &Client<'_>, ask: impl FnOnce(&Request<'_>) -> T) -> T {
    ask(&Request {
        method: if head.verb == Verb::Head { Method::Head } else { Method::Get },
        path: head.path(),
        raw_path: head.raw_path(),
        query: head.query(),
        headers: &head.headers,
        host: head.host(),
        peer: client.socket.peer,
        local: client.socket.local,
        class: core.listeners[usize::from(client.socket.listener)].class,
        now: core.clock.wall(),
    })
}

/// Whether the file is the version that the site means.
fn check(wanted: &FileAnswer, file: Rc<OpenFile>) -> Result<Rc<OpenFile>, Unavailable> {
    let found = file.version;
    if found.is_what(wanted) {
        return Ok(file);
    }
    Err(Unavailable::Changed {
        expected_size: wanted.expected_size,
        expected_mtime: wanted.expected_mtime,
        size: found.size,
        mtime: found.mtime,
    })
}

fn of_file(core: &Core, head: &Head, wanted: &FileAnswer, file: &Rc<OpenFile>, client: &Client<'_>) -> Reply {
    let plain = head.verb == Verb::Get && !head.selective && head.version == Version::Http11;
    if plain && core.is_unpaced(core.listeners[usize::from(client.socket.listener)].class) {
        return of_plain_file(core, wanted, file, client, close_after(core, head));
    }
    let representation = Representation::of_file(file, wanted);
    Reply::Prepared(of_representation(core, head, &representation, |range| match &file.content {
        Content::Memory => Segment::Memory(slice(&file.kept.borrow().buffer.body(), &range)),
        Content::Descriptor(_) => {
            Segment::File { file: Rc::clone(file), position: range.start, end: range.end }
        }
    }))
}

/// The common case: the kept head, and the body with it when that is in memory.
fn of_plain_file(
    core: &Core,
    wanted: &FileAnswer,
    file: &Rc<OpenFile>,
    client: &Client<'_>,
    close: Close,
) -> Reply {
    let size = file.version.size;
    let outline = Outline { status: StatusCode::OK, promised: size, close };
    let closes = close != Close::Keep;
    if matches!(file.content, Content::Descriptor(_)) && core.files.is_small(file) {
        return of_passing_file(core, wanted, file, client, outline);
    }
    let mut kept = file.kept.borrow_mut();
    let Kept { buffer, assembled } = &mut *kept;
    match assembled {
        Some(assembled) if assembled.fits(wanted) => assembled.refresh(buffer, &core.clock),
        other => *other = Some(Assembled::new(file, buffer, wanted, &core.clock)),
    }
    if matches!(file.content, Content::Descriptor(_)) {
        let frame = Segment::Frame(if closes { closing(buffer) } else { buffer.whole() });
        let body = Segment::File { file: Rc::clone(file), position: 0, end: size };
        let transfer = Transfer::new([frame, body]).before_the_end(closes);
        return Reply::Prepared(Prepared { transfer, outline });
    }
    if closes {
        let whole = closing(buffer);
        return sent_at_once(core, client, outline, &whole, || whole.clone());
    }
    if client.busy {
        return Reply::Queued(outline, buffer.whole());
    }
    sent_at_once(core, client, outline, buffer.as_slice(), || buffer.whole())
}

/// A small file that is not kept: read behind its head and sent from there, without an allocation.
fn of_passing_file(
    core: &Core,
    wanted: &FileAnswer,
    file: &Rc<OpenFile>,
    client: &Client<'_>,
    outline: Outline,
) -> Reply {
    let closes = outline.close != Close::Keep;
    let head = plain_head(file, wanted, &core.clock, closes.then_some("close"));
    let size = usize::try_from(outline.promised).unwrap_or(usize::MAX);
    let mut outgoing = core.outgoing.take();
    if outgoing.len() < head.len() + size {
        outgoing.resize(head.len() + size, 0);
    }
    let whole = &mut outgoing[..head.len() + size];
    whole[..head.len()].copy_from_slice(&head);
    let read = read_resident(file, &mut whole[head.len()..]);
    // What was read may be a later version, or the disk is needed: the transfer deals with both.
    let reply = if matches!(read, Ok(true)) && file.is_still() {
        sent_at_once(core, client, outline, whole, || Bytes::copy_from_slice(whole))
    } else {
        let body = Segment::File { file: Rc::clone(file), position: 0, end: outline.promised };
        let transfer = Transfer::new([Segment::Frame(head.into()), body]).before_the_end(closes);
        Reply::Prepared(Prepared { transfer, outline })
    };
    core.outgoing.set(outgoing);
    reply
}

/// Sends head and body now; what the socket does not take of them is left to a transfer, and `keep` keeps it so long.
fn sent_at_once(
    core: &Core,
    client: &Client<'_>,
    outline: Outline,
    whole: &[u8],
    keep: impl FnOnce() -> Bytes,
) -> Reply {
    let closes = outline.close != Close::Keep;
    // A broken connection is met again, and dealt with, by the transfer.
    let taken = uring::send(client.socket, whole, closes).ok().flatten().unwrap_or(0);
    if taken == whole.len() {
        return Reply::Sent(outline);
    }
    let head_length = whole.len() - usize::try_from(outline.promised).unwrap_or(usize::MAX).min(whole.len());
    let body_taken = taken.saturating_sub(head_length);
    let rest = keep();
    let mut segments = VecDeque::with_capacity(2);
    if taken < head_length {
        segments.push_back(Segment::Frame(rest.slice(taken..head_length)));
    }
    segments.push_back(Segment::Memory(rest.slice(head_length + body_taken..)));
    core.stats.body_bytes.add(body_taken as u64);
    let transfer = Transfer::new(segments).with_sent(body_taken as u64).before_the_end(closes);
    Reply::Prepared(Prepared { transfer, outline })
}

/// Any other answer about a file or a body of status 200: preconditions, ranges, HEAD, HTTP/1.0.
fn of_representation(
    core: &Core,
    head: &Head,
    representation: &Representation<'_>,
    segment: impl Fn(Range<u64>) -> Segment,
) -> Prepared {
    let size = representation.size;
    let plan =
        Plan::make(head, &representation.validators(), size, core.limits.ranges_max, core.clock.wall());
    let date = core.clock.date();
    match plan {
        Plan::Whole => {
            let mut writer = HeadWriter::new(StatusCode::OK, &date);
            write_representation(&mut writer, representation, head);
            writer.length(size).field("Accept-Ranges", b"bytes");
            finish(core, head, StatusCode::OK, writer, vec![segment(0..size)], size)
        }
        Plan::Part(range) => {
            let mut writer = HeadWriter::new(StatusCode::PARTIAL_CONTENT, &date);
            write_representation(&mut writer, representation, head);
            let length = range.end - range.start;
            writer.length(length).content_range(&range, size).field("Accept-Ranges", b"bytes");
            finish(core, head, StatusCode::PARTIAL_CONTENT, writer, vec![segment(range)], length)
        }
        Plan::Parts(ranges) => {
            let kind = representation.content_type.as_bytes();
            let multipart = Multipart::new(ranges, size, kind, core.unpredictable());
            let length = multipart.length();
            let mut writer = HeadWriter::new(StatusCode::PARTIAL_CONTENT, &date);
            writer.field("Content-Type", multipart.content_type().as_bytes());
            representation.write_validators(&mut writer);
            write_site_fields(&mut writer, representation, head);
            writer.length(length).field("Accept-Ranges", b"bytes");
            let mut segments = Vec::with_capacity(2 * multipart.parts.len() + 1);
            for (frame, range) in multipart.parts {
                segments.push(Segment::Memory(frame.into()));
                segments.push(segment(range));
            }
            segments.push(Segment::Memory(multipart.tail.into()));
            finish(core, head, StatusCode::PARTIAL_CONTENT, writer, segments, length)
        }
        Plan::NotModified => {
            let mut writer = HeadWriter::new(StatusCode::NOT_MODIFIED, &date);
            if let Some(etag) = &representation.etag {
                writer.field("ETag", etag.as_bytes());
            } else if let Some(modified) = representation.last_modified {
                writer.last_modified(modified);
            }
            writer.site_fields(representation.headers, |name| !NOT_MODIFIED_FIELDS.contains(name));
            finish(core, head, StatusCode::NOT_MODIFIED, writer, Vec::new(), 0)
        }
        Plan::PreconditionFailed => {
            let text = "the file is another version than the precondition asks for\n";
            of_refusal(core, head, &Refusal::new(StatusCode::PRECONDITION_FAILED, text))
        }
        Plan::Unsatisfiable => {
            let text = "no range of the request lies within the file; Content-Range tells its size\n";
            let mut writer = HeadWriter::new(StatusCode::RANGE_NOT_SATISFIABLE, &date);
            writer.unsatisfied_range(size);
            write_text(core, head, &Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, text), writer)
        }
    }
}

fn write_representation(writer: &mut HeadWriter, representation: &Representation<'_>, head: &Head) {
    writer.field("Content-Type", representation.content_type.as_bytes());
    representation.write_validators(writer);
    write_site_fields(writer, representation, head);
}

/// The site's fields, its digests narrowed to what the client wants.
fn write_site_fields(writer: &mut HeadWriter, representation: &Representation<'_>, head: &Head) {
    let narrows = head.selective && head.headers.contains_key(digest::WANT_REPR_DIGEST);
    writer.site_fields(representation.headers, |name| narrows && name.as_str() == digest::REPR_DIGEST);
    if narrows {
        for (name, value) in representation.headers {
            if name.as_str() == digest::REPR_DIGEST
                && let Some(wanted) = digest::wanted(value, &head.headers)
            {
                writer.field(name.as_str(), wanted.as_bytes());
            }
        }
    }
}

fn of_body(core: &Core, head: &Head, body: &Body) -> Prepared {
    let representation = Representation::of_body(body);
    let segment = |range: Range<u64>| Segment::Memory(slice(&body.bytes, &range));
    if body.status == StatusCode::OK {
        return of_representation(core, head, &representation, segment);
    }
    let mut writer = HeadWriter::new(body.status, &core.clock.date());
    write_representation(&mut writer, &representation, head);
    writer.length(representation.size);
    finish(core, head, body.status, writer, vec![segment(0..representation.size)], representation.size)
}

/// A head and nothing behind it, in the buffer that the site wrote it into.
fn of_redirect(core: &Core, head: &Head, redirect: Redirect, client: &Client<'_>) -> Reply {
    let outline = Outline { status: redirect.status, promised: 0, close: close_after(core, head) };
    let connection = connection_value(outline.close, head.version);
    let (bytes, begin) = redirect.fields.finish(redirect.status, &core.clock.date(), connection);
    let mut whole = Bytes::from(bytes);
    whole.advance(begin);
    if client.busy && outline.close == Close::Keep {
        return Reply::Queued(outline, whole);
    }
    sent_at_once(core, client, outline, &whole, || whole.clone())
}

fn of_refusal(core: &Core, head: &Head, refusal: &Refusal) -> Prepared {
    let writer = HeadWriter::new(refusal.status, &core.clock.date());
    write_text(core, head, refusal, writer)
}

fn write_text(core: &Core, head: &Head, refusal: &Refusal, mut writer: HeadWriter) -> Prepared {
    let length = refusal.text.len() as u64;
    writer.field("Content-Type", PLAIN_TEXT.as_bytes());
    writer.site_fields(&refusal.headers, |_| false).length(length);
    let body = Segment::Memory(Bytes::copy_from_slice(refusal.text.as_bytes()));
    let close = if refusal.close { Close::Linger } else { close_after(core, head) };
    finish_closing(head, refusal.status, writer, vec![body], length, close)
}

/// `OPTIONS`, also of `*`: what every resource here knows.
fn options(core: &Core, head: &Head) -> Prepared {
    let mut writer = HeadWriter::new(StatusCode::NO_CONTENT, &core.clock.date());
    writer.field("Allow", ALLOWED_METHODS.as_bytes()).field("Accept-Ranges", b"bytes");
    finish(core, head, StatusCode::NO_CONTENT, writer, Vec::new(), 0)
}

fn finish(
    core: &Core,
    head: &Head,
    status: StatusCode,
    writer: HeadWriter,
    body: Vec<Segment>,
    length: u64,
) -> Prepared {
    finish_closing(head, status, writer, body, length, close_after(core, head))
}

fn finish_closing(
    head: &Head,
    status: StatusCode,
    writer: HeadWriter,
    body: Vec<Segment>,
    length: u64,
    close: Close,
) -> Prepared {
    let connection = connection_value(close, head.version);
    let mut segments = VecDeque::with_capacity(body.len() + 1);
    segments.push_back(Segment::Frame(writer.end(connection).into()));
    let promised = if head.verb == Verb::Head {
        0
    } else {
        segments.extend(body);
        length
    };
    let transfer = Transfer::new(segments).before_the_end(close != Close::Keep);
    Prepared { transfer, outline: Outline { status, promised, close } }
}

/// What `Connection` says where the version's default does not say it.
fn connection_value(close: Close, version: Version) -> Option<&'static str> {
    match (close, version) {
        (Close::Keep, Version::Http11) => None,
        (Close::Keep, Version::Http10) => Some("keep-alive"),
        (Close::Now | Close::Linger, _) => Some("close"),
    }
}

fn close_after(core: &Core, head: &Head) -> Close {
    if head.keep_alive && !core.is_stopping() { Close::Keep } else { Close::Now }
}

/// A range of bytes that are in memory, so its ends fit.
fn slice(bytes: &Bytes, range: &Range<u64>) -> Bytes {
    let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(at(range.start)..at(range.end))
}

const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// Times that a site may name another file in place of one that can't be served.
const FAILURES_MAX: u8 = 3;

/// What a 304 repeats of a site's fields (RFC 9110 section 15.4.5).
const NOT_MODIFIED_FIELDS: [HeaderName; 4] =
    [header::CACHE_CONTROL, header::CONTENT_LOCATION, header::EXPIRES, header::VARY];
