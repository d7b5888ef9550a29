//! Small responses of one turn, sent one after the other at its end.
//!
//! Sending in one go keeps the kernel's code warm and wakes a client once for many responses instead of once for
//! each; it is what a batch of SEND entries would do, without an entry, a completion and a wake-up per response.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::uring::{self, Socket};

/// Responses that wait for the end of the turn, and those that their sockets did not take whole.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: RefCell<Vec<Outgoing>>,
    /// Told when the queue is no longer empty.
    filled: Notify,
    /// By connection: what is still to be sent in the background.
    rests: RefCell<HashMap<u64, Rest>>,
    has_rests: Cell<bool>,
    send_timeout: Duration,
}

#[derive(Debug)]
struct Outgoing {
    connection: u64,
    socket: Rc<Socket>,
    bytes: Rc<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Rest {
    /// Responses after the one that is being sent; bounded by the requests of one turn.
    next: VecDeque<Rc<Vec<u8>>>,
    sent: Rc<Notify>,
}

impl Outbox {
    pub(crate) fn new(send_timeout: Duration) -> Self {
        Self {
            queue: RefCell::default(),
            filled: Notify::new(),
            rests: RefCell::default(),
            has_rests: Cell::new(false),
            send_timeout,
        }
    }

    /// Puts a whole response in; it goes before anything that the connection sends later.
    pub(crate) fn push(&self, connection: u64, socket: &Rc<Socket>, bytes: &Rc<Vec<u8>>) {
        let mut queue = self.queue.borrow_mut();
        if queue.is_empty() {
            self.filled.notify_one();
        }
        queue.push(Outgoing { connection, socket: Rc::clone(socket), bytes: Rc::clone(bytes) });
    }

    /// Sends what waits, at the end of every turn in which there is something.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            self.filled.notified().await;
            self.flush();
        }
    }

    /// Sends what waits, now.
    pub(crate) fn flush(self: &Rc<Self>) {
        let mut queue = self.queue.take();
        for outgoing in queue.drain(..) {
            if self.has_rest(outgoing.connection) {
                if let Some(rest) = self.rests.borrow_mut().get_mut(&outgoing.connection) {
                    rest.next.push_back(outgoing.bytes);
                }
                continue;
            }
            match uring::send(&outgoing.socket, &outgoing.bytes, false) {
                Ok(Some(count)) if count == outgoing.bytes.len() => {}
                Ok(taken) => self.send_rest(outgoing, taken.unwrap_or(0)),
                // The connection meets the end of its socket by itself.
                Err(_) => outgoing.socket.shut_down(),
            }
        }
        // Keeps the allocation; nothing was put in meanwhile, since sending runs no code of others.
        self.queue.replace(queue);
    }

    /// Whether the connection must wait before it sends anything else.
    pub(crate) fn has_rest(&self, connection: u64) -> bool {
        self.has_rests.get() && self.rests.borrow().contains_key(&connection)
    }

    /// Waits until the rest of a connection's responses has gone, or can't go.
    pub(crate) async fn rest_sent(self: Rc<Self>, connection: u64) {
        let Some(sent) = self.rests.borrow().get(&connection).map(|rest| Rc::clone(&rest.sent)) else {
            return;
        };
        sent.notified().await;
    }

    /// Goes on with a response whose client is slow, beside everything else.
    fn send_rest(self: &Rc<Self>, outgoing: Outgoing, taken: usize) {
        self.rests.borrow_mut().insert(outgoing.connection, Rest::default());
        self.has_rests.set(true);
        let outbox = Rc::clone(self);
        uring::spawn(async move {
            let Outgoing { connection, socket, bytes } = outgoing;
            let mut next = Some(bytes);
            let mut skip = taken;
            while let Some(bytes) = next {
                if outbox.send_slowly(&socket, &bytes[skip..]).await.is_err() {
                    socket.reset_on_close();
                    socket.shut_down();
                    break;
                }
                skip = 0;
                next = outbox.rests.borrow_mut().get_mut(&connection).and_then(|rest| rest.next.pop_front());
            }
            let mut rests = outbox.rests.borrow_mut();
            if let Some(rest) = rests.remove(&connection) {
                // One connection waits at most, now or soon.
                rest.sent.notify_one();
            }
            outbox.has_rests.set(!rests.is_empty());
        });
    }

    async fn send_slowly(&self, socket: &Rc<Socket>, mut bytes: &[u8]) -> io::Result<()> {
        let mut unsent = u32::MAX;
        while !bytes.is_empty() {
            if tokio::time::timeout(self.send_timeout, uring::writable(Rc::clone(socket))).await.is_err() {
                let before = std::mem::replace(&mut unsent, uring::unsent_bytes(socket).unwrap_or(u32::MAX));
                if unsent >= before {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                continue;
            }
            let taken = uring::send(socket, bytes, false)?.unwrap_or(0);
            bytes = &bytes[taken..];
        }
        Ok(())
    }
}
