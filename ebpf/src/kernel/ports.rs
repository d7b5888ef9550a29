//! Which local TCP ports are ours, and for how long after; it tells the maps nothing by itself.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use freshet_ebpf_abi::Class;

use super::KernelError;
use super::object::Maps;

/// Ports with a class. Several sockets may hold one port, as the listeners of several rings do.
#[derive(Debug, Default)]
pub(super) struct Ports {
    held: HashMap<u16, Held>,
    /// Released, in the order in which their time ends; until then they keep their class.
    leaving: VecDeque<(Instant, u16, Class)>,
}

#[derive(Debug)]
struct Held {
    class: Class,
    holders: u32,
}

impl Ports {
    /// Adds a holder; true when the maps must be told.
    pub(super) fn claim(&mut self, port: u16, class: Class) -> Result<bool, KernelError> {
        if let Some(held) = self.held.get_mut(&port) {
            if held.class != class {
                return Err(KernelError::PortTaken { port, held: held.class, wanted: class });
            }
            held.holders += 1;
            return Ok(false);
        }
        self.held.insert(port, Held { class, holders: 1 });
        self.leaving.retain(|&(_, leaving, _)| leaving != port);
        Ok(true)
    }

    /// Takes a holder away. The last one's port keeps its class for [`LINGER`], for the end of its connections.
    pub(super) fn release(&mut self, port: u16, now: Instant) {
        let Some(held) = self.held.get_mut(&port) else { return };
        held.holders -= 1;
        if held.holders == 0 {
            let class = held.class;
            self.held.remove(&port);
            self.leave(port, class, now + LINGER);
        }
    }

    /// Ports whose class is to be taken from the maps now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<u16> {
        let mut due = Vec::new();
        while let Some(&(until, port, _)) = self.leaving.front()
            && until <= now
        {
            self.leaving.pop_front();
            due.push(port);
        }
        due
    }

    /// Tells maps all ports. Those that an earlier run left in `used` ones stay for a moment, so that its successor can
    /// claim them without a gap.
    pub(super) fn replay(&mut self, maps: &mut Maps, used: bool) -> Result<(), KernelError> {
        let until = Instant::now() + INHERITED;
        let left_there = if used { maps.registered_ports()? } else { Vec::new() };
        for port in left_there {
            let known =
                self.held.contains_key(&port) || self.leaving.iter().any(|&(_, leaving, _)| leaving == port);
            if !known {
                self.leave(port, Class::Other, until);
            }
        }
        for (&port, held) in &self.held {
            maps.set_port(port, held.class)?;
        }
        // An inherited port's class is not known here, and is in the map already.
        for &(_, port, class) in self.leaving.iter().filter(|&&(_, _, class)| class != Class::Other) {
            maps.set_port(port, class)?;
        }
        Ok(())
    }

    fn leave(&mut self, port: u16, class: Class, until: Instant) {
        let at = self.leaving.partition_point(|&(other, _, _)| other <= until);
        self.leaving.insert(at, (until, port, class));
    }
}

/// How long a released port keeps its class: FIN and its acknowledgement still come.
const LINGER: Duration = Duration::from_secs(2);

/// How long the ports of an earlier run keep their class, unless they are claimed.
const INHERITED: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_held_until_its_last_holder_leaves_and_a_moment_longer() {
        let mut ports = Ports::default();
        let start = Instant::now();
        assert!(ports.claim(80, Class::Delivery).unwrap());
        assert!(!ports.claim(80, Class::Delivery).unwrap());
        ports.release(80, start);
        assert!(ports.due(start + LINGER).is_empty());
        ports.release(80, start);
        assert!(ports.due(start).is_empty());
        assert_eq!(ports.due(start + LINGER), [80]);
        assert!(ports.due(start + LINGER).is_empty());
    }

    #[test]
    fn a_port_that_is_claimed_again_does_not_leave() {
        let mut ports = Ports::default();
        let start = Instant::now();
        ports.claim(80, Class::Delivery).unwrap();
        ports.release(80, start);
        assert!(ports.claim(80, Class::Sync).unwrap(), "another class must be told to the maps");
        assert!(ports.due(start + LINGER * 2).is_empty());
    }

    #[test]
    fn one_port_has_one_class() {
        let mut ports = Ports::default();
        ports.claim(80, Class::Delivery).unwrap();
        let refused = ports.claim(80, Class::Sync).unwrap_err();
        assert_eq!(refused.to_string(), "port 80 is registered for delivery, so it can't be for sync");
    }

    #[test]
    fn a_release_without_a_claim_changes_nothing() {
        let mut ports = Ports::default();
        ports.release(80, Instant::now());
        assert!(ports.due(Instant::now() + LINGER).is_empty());
    }

    #[test]
    fn ports_leave_in_the_order_of_their_time() {
        let mut ports = Ports::default();
        let now = Instant::now();
        ports.leave(1, Class::Sync, now + INHERITED);
        ports.leave(2, Class::Sync, now + LINGER);
        assert_eq!(ports.due(now + LINGER), [2]);
        assert_eq!(ports.due(now + INHERITED), [1]);
    }
}
