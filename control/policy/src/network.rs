//! How near a volunteer is to a client: the operator's prefix rules first, then AS, country and
//! continent as some database gave them. Looks nothing up itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;

use freshet_api::NodeId;

use crate::selection::Nearness;

/// An address prefix, such as `192.0.2.0/24` or `2001:db8::/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    bits: u128,
    length: u8,
    v4: bool,
}

impl Prefix {
    /// The first `length` bits of `address`; those beyond are cleared. IPv4-mapped IPv6 counts as IPv4.
    ///
    /// # Errors
    ///
    /// When `length` exceeds the 32 or 128 bits of the family.
    pub fn new(address: IpAddr, length: u8) -> Result<Prefix, PrefixError> {
        let (bits, width) = bits_of(address);
        if length > width {
            return Err(PrefixError::Length { length, width });
        }
        Ok(Prefix { bits: bits & mask(length), length, v4: width == 32 })
    }

    /// Whether `address` lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (bits, width) = bits_of(address);
        (width == 32) == self.v4 && bits & mask(self.length) == self.bits
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let refuse = || PrefixError::Text { found: text.chars().take(80).collect() };
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse().map_err(|_| refuse())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        Prefix::new(address, length.unwrap_or_else(|| bits_of(address).1))
    }
}

/// Text or numbers that make no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not of the form.
    #[error("expected an address or a prefix such as `192.0.2.0/24`, found {found:?}")]
    Text {
        /// The first 80 characters of what was found.
        found: String,
    },
    /// More bits than the family has.
    #[error("expected a prefix length of at most {width}, found {length}")]
    Length {
        /// What came.
        length: u8,
        /// What the family allows.
        width: u8,
    },
}

/// A table of prefixes in which the longest that contains an address wins. Looks at one hash map per
/// length in use: at most 33 + 129, usually three or four.
#[derive(Clone, Debug)]
pub struct PrefixTable<T> {
    /// By family and length, longest first.
    levels: Vec<(bool, u8, HashMap<u128, T>)>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> PrefixTable<T> {
        PrefixTable { levels: Vec::new() }
    }
}

impl<T> PrefixTable<T> {
    /// Enters `value` under `prefix`; returns what stood there.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        let place = self
            .levels
            .binary_search_by(|(v4, length, _)| (v4, prefix.length).cmp(&(&prefix.v4, *length)))
            .unwrap_or_else(|place| {
                self.levels.insert(place, (prefix.v4, prefix.length, HashMap::new()));
                place
            });
        self.levels[place].2.insert(prefix.bits, value)
    }

    /// The value under the longest prefix that contains `address`.
    pub fn longest(&self, address: IpAddr) -> Option<&T> {
        let (bits, width) = bits_of(address);
        self.levels
            .iter()
            .filter(|(v4, _, _)| *v4 == (width == 32))
            .find_map(|(_, length, map)| map.get(&(bits & mask(*length))))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }
}

/// The operator's rules: clients of a prefix prefer these volunteers.
pub type PrefixRules = PrefixTable<Vec<NodeId>>;

/// Where something is in the network, as far as known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// Number of the autonomous system.
    pub autonomous_system: Option<u32>,
    /// ISO 3166 code of the country, upper case.
    pub country: Option<[u8; 2]>,
    /// Code of the continent (`EU`, `NA`, ...), upper case.
    pub continent: Option<[u8; 2]>,
}

/// A client, looked up once per request.
#[derive(Clone, Copy, Debug)]
pub struct ClientPlace<'a> {
    /// The volunteers that a prefix rule names for it.
    pub preferred: &'a [NodeId],
    /// Where it is.
    pub at: Whereabouts,
}

impl<'a> ClientPlace<'a> {
    /// A client at `address` under the operator's `rules`.
    pub fn new(address: IpAddr, rules: &'a PrefixRules, at: Whereabouts) -> ClientPlace<'a> {
        ClientPlace { preferred: rules.longest(address).map_or(&[], Vec::as_slice), at }
    }

    /// How near the volunteer `node` at `at` is to this client.
    pub fn nearness(&self, node: NodeId, at: &Whereabouts) -> Nearness {
        fn same<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
            a.is_some() && a == b
        }
        if self.preferred.contains(&node) {
            Nearness::Prefix
        } else if same(self.at.autonomous_system, at.autonomous_system) {
            Nearness::AutonomousSystem
        } else if same(self.at.country, at.country) {
            Nearness::Country
        } else if same(self.at.continent, at.continent) {
            Nearness::Continent
        } else {
            Nearness::Elsewhere
        }
    }
}

/// An address as the upper bits of 128, and how many bits its family has.
fn bits_of(address: IpAddr) -> (u128, u8) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut table = PrefixTable::default();
        table.insert(prefix("0.0.0.0/0"), 0);
        table.insert(prefix("192.0.2.0/24"), 24);
        table.insert(prefix("192.0.2.128/25"), 25);
        table.insert(prefix("2001:db8::/32"), 32);
        assert_eq!(table.longest(address("192.0.2.200")), Some(&25));
        assert_eq!(table.longest(address("192.0.2.1")), Some(&24));
        assert_eq!(table.longest(address("8.8.8.8")), Some(&0));
        assert_eq!(table.longest(address("2001:db8::1")), Some(&32));
        assert_eq!(table.longest(address("2001:db9::1")), None, "the IPv4 default is none for IPv6");
        assert_eq!(table.longest(address("::ffff:192.0.2.1")), Some(&24), "mapped addresses are IPv4");
        assert_eq!(table.insert(prefix("192.0.2.77/24"), 1), Some(24), "host bits don't matter");
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for text in ["", "192.0.2.0/33", "::/129", "192.0.2/24", "192.0.2.0/", "192.0.2.0/-1", "x/8"] {
            assert!(text.parse::<Prefix>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn rules_come_before_geography_and_unknown_matches_nothing() {
        let mut rules = PrefixRules::default();
        rules.insert(prefix("10.0.0.0/8"), vec![NodeId(4)]);
        let home =
            Whereabouts { autonomous_system: Some(680), country: Some(*b"DE"), continent: Some(*b"EU") };
        let client = ClientPlace::new(address("10.1.2.3"), &rules, home);
        let nowhere = Whereabouts::default();
        assert_eq!(client.nearness(NodeId(4), &nowhere), Nearness::Prefix);
        assert_eq!(client.nearness(NodeId(5), &home), Nearness::AutonomousSystem);
        let other_as = Whereabouts { autonomous_system: Some(3320), ..home };
        assert_eq!(client.nearness(NodeId(5), &other_as), Nearness::Country);
        let neighbour = Whereabouts { country: Some(*b"FR"), ..other_as };
        assert_eq!(client.nearness(NodeId(5), &neighbour), Nearness::Continent);
        let lost = ClientPlace::new(address("192.0.2.1"), &rules, nowhere);
        assert_eq!(lost.nearness(NodeId(4), &nowhere), Nearness::Elsewhere);
    }

    proptest! {
        /// The table answers as a plain search for the longest would.
        #[test]
        fn agrees_with_a_linear_search(
            entries in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..40), probe: u32
        ) {
            let mut table = PrefixTable::default();
            let mut plain: Vec<(Prefix, usize)> = Vec::new();
            for (n, (bits, length)) in entries.into_iter().enumerate() {
                // Few distinct bits, so that prefixes do contain the probe.
                let address = IpAddr::V4((probe ^ (bits >> (length / 2))).into());
                let prefix = Prefix::new(address, length).unwrap();
                table.insert(prefix, n);
                plain.retain(|(other, _)| *other != prefix);
                plain.push((prefix, n));
            }
            let probe = IpAddr::V4(probe.into());
            let expected = plain.iter().filter(|(p, _)| p.contains(probe)).max_by_key(|(p, _)| p.length);
            prop_assert_eq!(table.longest(probe), expected.map(|(_, n)| n));
        }
    }
}
