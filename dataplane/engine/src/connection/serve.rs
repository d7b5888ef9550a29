//! The task of one connection: waits for what the state machine names, and wakes it; it decides nothing.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::{Connection, Step, Work};
use crate::ring::Core;
use crate::uring::{self, Readiness, ReceiveBuffer, Receiving};

/// Serves a connection to its end.
///
/// Written by hand, since an `async fn` would keep the connection twice: an idle one is the future's size.
pub(crate) struct Serve {
    core: Rc<Core>,
    connection: Connection,
    waiting: Waiting,
}

enum Waiting {
    /// At first: the request is often there by the time its connection is accepted.
    Nothing,
    Socket(Readiness),
    Request(Receiving),
    /// For [`Connection::outgoing`].
    Delivery,
    Turn,
    Pause(Pin<Box<tokio::time::Sleep>>),
    Work(Work),
    Over,
}

impl Serve {
    pub(crate) fn new(core: Rc<Core>, connection: Connection) -> Self {
        Self { core, connection, waiting: Waiting::Nothing }
    }

    /// Waits with a buffer while the connection is busy, without one when it is not or none can be had.
    fn wait_for_request(&mut self, held: Option<ReceiveBuffer>) {
        let Self { core, connection, waiting } = self;
        let buffer = match held {
            Some(buffer) if connection.is_warm() => Some(buffer),
            Some(buffer) => {
                core.buffers.put(buffer);
                None
            }
            None if connection.is_warm() => core.buffers.take(),
            None => None,
        };
        let socket = Rc::clone(&connection.socket);
        connection.await_request(core, buffer.is_some());
        *waiting = match buffer {
            Some(buffer) => Waiting::Request(uring::receive_later(socket, buffer)),
            None => Waiting::Socket(uring::readable(socket)),
        };
    }
}

impl Future for Serve {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let mut held = None;
            let mut arrived = 0;
            let Self { core, connection, waiting } = &mut *this;
            match waiting {
                Waiting::Nothing | Waiting::Turn | Waiting::Delivery => {}
                Waiting::Socket(readiness) => {
                    ready!(Pin::new(readiness).poll(context));
                    connection.is_readable(core);
                }
                Waiting::Request(receiving) => {
                    let (result, buffer) = ready!(Pin::new(receiving).poll(context));
                    arrived = connection.received(result);
                    held = Some(buffer);
                }
                Waiting::Pause(pause) => ready!(pause.as_mut().poll(context)),
                Waiting::Work(work) => {
                    let done = ready!(work.as_mut().poll(context));
                    connection.resume(core, done);
                }
                Waiting::Over => return Poll::Ready(()),
            }
            let bytes = held.as_ref().map_or(&[][..], |buffer| buffer.filled(arrived));
            let step = match connection.delivered(context) {
                Poll::Ready(true) => connection.advance(core, bytes),
                Poll::Ready(false) => Step::Close,
                Poll::Pending => {
                    connection.put_aside(bytes);
                    if let Some(buffer) = held {
                        core.buffers.put(buffer);
                    }
                    *waiting = Waiting::Delivery;
                    return Poll::Pending;
                }
            };
            if matches!(step, Step::Request) {
                this.wait_for_request(held);
                continue;
            }
            if let Some(buffer) = held {
                core.buffers.put(buffer);
            }
            *waiting = match step {
                Step::Request | Step::Readable => {
                    Waiting::Socket(uring::readable(Rc::clone(&connection.socket)))
                }
                Step::Writable => Waiting::Socket(uring::writable(Rc::clone(&connection.socket))),
                Step::Delivery => Waiting::Delivery,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle connection costs is this, a task's header of about 100 bytes, and a [`uring::Socket`].
    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Serve>() <= 136, "{}", size_of::<Serve>());
    }
}
