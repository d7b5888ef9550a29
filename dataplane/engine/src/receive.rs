//! Buffers that busy connections receive into; bounded, so that a connection without one must do without.

use std::cell::{Cell, RefCell};

use crate::uring::ReceiveBuffer;

/// The buffers of one ring.
#[derive(Debug, Default)]
pub(crate) struct ReceiveBuffers {
    free: RefCell<Vec<ReceiveBuffer>>,
    lent: Cell<usize>,
}

impl ReceiveBuffers {
    /// Lends a buffer, unless too many are lent already.
    pub(crate) fn take(&self) -> Option<ReceiveBuffer> {
        if self.lent.get() >= LENT_MAX {
            return None;
        }
        self.lent.set(self.lent.get() + 1);
        Some(self.free.borrow_mut().pop().unwrap_or_else(ReceiveBuffer::new))
    }

    /// Takes a buffer back.
    pub(crate) fn put(&self, buffer: ReceiveBuffer) {
        self.lent.set(self.lent.get() - 1);
        let mut free = self.free.borrow_mut();
        if free.len() < FREE_MAX {
            free.push(buffer);
        }
    }
}

/// Buffers lent at a time: 4 MiB. Connections beyond it wait for readiness and receive inline.
const LENT_MAX: usize = 2_048;

/// Buffers kept for the next connection.
const FREE_MAX: usize = 64;
