//! The hook by which a budget slows the serving path; it holds no clock of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Asked before each chunk of a body is sent. Shared by all rings; must not block.
pub trait Pacer: Send + Sync + 'static {
    /// Whether nothing is limited just now; the path then skips [`Pacer::take`].
    fn unlimited(&self, class: u8) -> bool {
        let _ = class;
        false
    }

    /// Takes up to `want` for `class` at `now`. Who is told to wait asks again with the `place` he was given,
    /// which is not another's and good for one grant; at first it is nowhere.
    fn take(&self, class: u8, want: Want, place: &mut Place, now: Instant) -> Grant;

    /// Whether nothing will be granted for long: who is told to wait is then cut, so that the client asks elsewhere rather
    /// than hang.
    fn ended(&self, class: u8) -> bool {
        let _ = class;
        false
    }

    /// Takes back the place of one who waits no longer, and `unused` bytes of his last grant.
    fn leave(&self, class: u8, place: Place, unused: u64) {
        let _ = (class, place, unused);
    }
}

/// What a response asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Bytes that could go now.
    pub bytes: u64,
    /// Bytes of the whole file that they belong to, whatever part of it was asked for.
    pub file_bytes: u64,
}

/// Where somebody who was told to wait stands; only the pacer that gave it knows what it means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// A position.
    pub end: u64,
    /// A length; 0 is nowhere.
    pub bytes: u32,
}

/// A pacer's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Send this many bytes (1 ..= want).
    Bytes(u64),
    /// Ask again after this long.
    Wait(Duration),
}

/// One response's dealings with the pacer. What it does not use goes back when it is dropped.
#[derive(Default)]
pub(crate) struct Turn {
    /// What is left of the last grant, bytes.
    granted: u64,
    place: Place,
    /// Who gave them, and for which class.
    giver: Option<(Arc<dyn Pacer>, u8)>,
}

impl Turn {
    /// How many of `want` bytes, of a file of `file_bytes`, may go now, or how long to wait.
    pub(crate) fn allow(
        &mut self,
        pacer: Option<&Arc<dyn Pacer>>,
        class: u8,
        want: u64,
        file_bytes: u64,
    ) -> Result<u64, Duration> {
        let Some(pacer) = pacer else { return Ok(want) };
        if want == 0 {
            return Ok(want);
        }
        if pacer.unlimited(class) {
            self.give_back();
            return Ok(want);
        }
        if self.granted == 0 {
            self.giver.get_or_insert_with(|| (Arc::clone(pacer), class));
            let want = Want { bytes: want.min(CHUNK_BYTES), file_bytes };
            match pacer.take(class, want, &mut self.place, Instant::now()) {
                Grant::Bytes(bytes) => self.granted = bytes.max(1),
                Grant::Wait(pause) => return Err(pause),
            }
        }
        Ok(want.min(self.granted))
    }

    /// Counts what was sent of what was allowed.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.granted = self.granted.saturating_sub(bytes);
    }

    fn give_back(&mut self) {
        let (place, unused) = (std::mem::take(&mut self.place), std::mem::take(&mut self.granted));
        if let Some((pacer, class)) = &self.giver
            && (place != Place::default() || unused > 0)
        {
            pacer.leave(*class, place, unused);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn")
            .field("granted", &self.granted)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// What a limited class asks the pacer for at a time.
const CHUNK_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Grants by a list, and notes what comes back.
    #[derive(Default)]
    struct Listed {
        grants: Mutex<Vec<Grant>>,
        left: Mutex<Vec<(u32, u64)>>,
        free: std::sync::atomic::AtomicBool,
    }

    impl Pacer for Listed {
        fn unlimited(&self, _class: u8) -> bool {
            self.free.load(std::sync::atomic::Ordering::Relaxed)
        }

        fn take(&self, _class: u8, _want: Want, place: &mut Place, _now: Instant) -> Grant {
            let grant = self.grants.lock().unwrap().remove(0);
            *place = match grant {
                Grant::Bytes(_) => Place::default(),
                Grant::Wait(_) => Place { end: 7, bytes: 5 },
            };
            grant
        }

        fn leave(&self, _class: u8, place: Place, unused: u64) {
            self.left.lock().unwrap().push((place.bytes, unused));
        }
    }

    #[test]
    fn what_is_not_used_goes_back() {
        let listed = Arc::new(Listed::default());
        let pacer = Some(Arc::clone(&listed) as Arc<dyn Pacer>);
        let pause = Duration::from_millis(3);
        *listed.grants.lock().unwrap() = vec![Grant::Wait(pause), Grant::Bytes(100), Grant::Wait(pause)];

        let mut turn = Turn::default();
        assert_eq!(turn.allow(pacer.as_ref(), 1, 1000, 1 << 40), Err(pause));
        assert_eq!(turn.allow(pacer.as_ref(), 1, 1000, 1 << 40), Ok(100));
        turn.sent(40);
        assert_eq!(turn.allow(pacer.as_ref(), 1, 1000, 1 << 40), Ok(60));
        drop(turn);
        assert_eq!(*listed.left.lock().unwrap(), [(0, 60)]);

        let mut turn = Turn::default();
        assert_eq!(turn.allow(pacer.as_ref(), 1, 1000, 1 << 40), Err(pause));
        listed.free.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(turn.allow(pacer.as_ref(), 1, 1000, 1 << 40), Ok(1000));
        drop(turn);
        assert_eq!(*listed.left.lock().unwrap(), [(0, 60), (5, 0)]);
    }

    #[test]
    fn without_a_pacer_all_may_go() {
        assert_eq!(Turn::default().allow(None, 1, 1 << 40, 1 << 40), Ok(1 << 40));
    }
}
