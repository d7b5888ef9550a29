//! Who may have one more connection: the server's bound and each client address's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits::Limits;

/// Open connections of a whole server.
#[derive(Debug)]
pub(crate) struct Admission {
    open: AtomicUsize,
    open_max: usize,
    /// Absent when the bound per address can't be reached before the other.
    by_address: Option<Mutex<HashMap<IpAddr, usize>>>,
    by_address_max: usize,
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        let by_address_max = limits.connections_of_one_address();
        let bounded = by_address_max < limits.connections_max;
        Self {
            open: AtomicUsize::new(0),
            open_max: limits.connections_max,
            by_address: bounded.then(Mutex::default),
            by_address_max,
        }
    }

    /// Counts a connection in; `false` when a bound is reached.
    pub(crate) fn enter(&self, client: IpAddr) -> bool {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.open_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let Some(by_address) = &self.by_address else { return true };
        let mut by_address = by_address.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = by_address.entry(network(client)).or_insert(0);
        if *count >= self.by_address_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        *count += 1;
        true
    }

    /// Counts a connection out.
    pub(crate) fn leave(&self, client: IpAddr) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let Some(by_address) = &self.by_address else { return };
        let mut by_address = by_address.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = network(client);
        if let Some(count) = by_address.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&key);
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or the /64 that an IPv6 host usually has to itself.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & (u128::MAX << 64)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let limits = Limits { connections_max: 3, connections_per_address_max: Some(2), ..Limits::default() };
        let admission = Admission::new(&limits);
        let a: IpAddr = "2001:db8::1".parse().unwrap();
        let same_network: IpAddr = "2001:db8::2".parse().unwrap();
        let b: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert!(admission.enter(a) && admission.enter(same_network));
        assert!(!admission.enter(a), "the address has two");
        assert!(admission.enter(b));
        assert!(!admission.enter(mapped), "the server has three");
        admission.leave(a);
        assert!(admission.enter(mapped));
        assert!(!admission.enter(b));
    }
    /// However many connections there may be, it takes several addresses to have them all.
    #[test]
    fn one_address_has_a_quarter_unless_told_otherwise() {
        for (connections_max, of_one) in [(1, 1), (4, 1), (300, 75), (301, 76), (20_000, 5_000)] {
            let limits = Limits { connections_max, ..Limits::default() };
            let admission = Admission::new(&limits);
            let [greedy, other]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
            assert_eq!((0..connections_max).filter(|_| admission.enter(greedy)).count(), of_one);
            assert_eq!(admission.enter(other), connections_max > of_one);
        }
    }
}
