//! The deadlines of a ring's connections in one flat table, swept a few times a second; it closes nothing itself.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use crate::uring::Socket;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaits {
    /// The first request; nothing has come yet.
    First,
    /// The next request; nothing of it has come.
    Request,
    /// The first request, with a buffer held for it: to be given back soon.
    FirstHot,
    /// The next request, with a buffer held for it: to be given back soon.
    RequestHot,
    /// The rest of a head.
    Head,
    /// The rest of a request body.
    Body,
    /// Room in the socket.
    Room,
    /// The client's end, after ours.
    End,
    /// Something of our own (the disk, the pacer): no deadline.
    Us,
    /// Nothing more: its time has run out, and it is to be closed.
    Nothing,
}

/// A connection's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u32);

#[derive(Debug)]
struct Entry {
    socket: Weak<Socket>,
    /// Unacknowledged bytes at the last look, while it awaits room.
    unsent: Cell<u32>,
}

/// Deadlines in coarse milliseconds; `u64::MAX` is none.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    at: RefCell<Vec<u64>>,
    awaits: RefCell<Vec<Awaits>>,
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<u32>>,
}

/// A connection whose time has come.
pub(crate) struct Due {
    pub(crate) slot: Slot,
    pub(crate) socket: Rc<Socket>,
    pub(crate) awaits: Awaits,
}

impl Deadlines {
    /// Enters a connection.
    pub(crate) fn enter(&self, socket: &Rc<Socket>) -> Slot {
        let entry = Entry { socket: Rc::downgrade(socket), unsent: Cell::new(u32::MAX) };
        if let Some(index) = self.free.borrow_mut().pop() {
            self.entries.borrow_mut()[index as usize] = entry;
            return Slot(index);
        }
        let mut entries = self.entries.borrow_mut();
        entries.push(entry);
        self.at.borrow_mut().push(u64::MAX);
        self.awaits.borrow_mut().push(Awaits::Us);
        Slot(u32::try_from(entries.len() - 1).unwrap_or(u32::MAX))
    }

    /// Takes a connection out.
    pub(crate) fn leave(&self, slot: Slot) {
        self.at.borrow_mut()[slot.index()] = u64::MAX;
        self.awaits.borrow_mut()[slot.index()] = Awaits::Us;
        self.entries.borrow_mut()[slot.index()].socket = Weak::new();
        self.free.borrow_mut().push(slot.0);
    }

    /// Sets what is awaited, and until when.
    pub(crate) fn set(&self, slot: Slot, awaits: Awaits, at: u64) {
        self.at.borrow_mut()[slot.index()] = at;
        self.awaits.borrow_mut()[slot.index()] = awaits;
        if awaits == Awaits::Room {
            self.entries.borrow()[slot.index()].unsent.set(u32::MAX);
        }
    }

    /// Moves a deadline without touching what is remembered of its progress.
    pub(crate) fn extend(&self, slot: Slot, at: u64) {
        self.at.borrow_mut()[slot.index()] = at;
    }

    /// Milliseconds until the deadline.
    pub(crate) fn left(&self, slot: Slot, now: u64) -> u64 {
        self.at.borrow()[slot.index()].saturating_sub(now)
    }

    /// What is awaited now.
    pub(crate) fn awaits(&self, slot: Slot) -> Awaits {
        self.awaits.borrow()[slot.index()]
    }

    /// Whether fewer bytes wait than at the last call: a slow client that does read.
    pub(crate) fn made_progress(&self, slot: Slot, unsent: u32) -> bool {
        unsent < self.entries.borrow()[slot.index()].unsent.replace(unsent)
    }

    /// Connections whose deadline has passed; each is returned once.
    pub(crate) fn due(&self, now: u64) -> Vec<Due> {
        let mut due = Vec::new();
        for (index, at) in self.at.borrow_mut().iter_mut().enumerate() {
            if *at <= now {
                *at = u64::MAX;
                due.extend(self.describe(index));
            }
        }
        due
    }

    /// All connections, or only those between two requests.
    pub(crate) fn open(&self, idle_only: bool) -> Vec<Due> {
        let count = self.entries.borrow().len();
        (0..count)
            .filter_map(|index| self.describe(index))
            .filter(|due| !idle_only || matches!(due.awaits, Awaits::Request | Awaits::RequestHot))
            .collect()
    }

    fn describe(&self, index: usize) -> Option<Due> {
        let socket = self.entries.borrow()[index].socket.upgrade()?;
        let awaits = self.awaits.borrow()[index];
        Some(Due { slot: Slot(u32::try_from(index).unwrap_or(u32::MAX)), socket, awaits })
    }
}

impl Slot {
    fn index(self) -> usize {
        self.0 as usize
    }
}
