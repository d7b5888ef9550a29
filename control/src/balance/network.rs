//! Who is near to whom: the operator's prefix rules, then what MaxMind-format databases say about addresses.
//!
//! Databases are read whole at the start; a look-up is in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use freshet_api::NodeId;
use freshet_policy::network::{ClientPlace, Prefix, PrefixRules, Whereabouts};
use maxminddb::Reader;
use serde::Deserialize;

use crate::registry::{NodeName, Nodes};

/// What is known of the network.
#[derive(Debug, Default)]
pub struct NetworkMap {
    rules: Arc<Vec<PrefixRule>>,
    databases: Arc<Vec<Reader<Vec<u8>>>>,
    /// The rules with the volunteers of their names that there are.
    prefixes: PrefixRules,
    known: Vec<(NodeName, NodeId)>,
}

/// Clients of a prefix prefer these volunteers: `192.0.2.0/24=south,north`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixRule {
    prefix: Prefix,
    names: Vec<NodeName>,
}

impl FromStr for PrefixRule {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let refuse = |reason: String| NetworkError::Rule { found: text.chars().take(100).collect(), reason };
        let (prefix, names) =
            text.split_once('=').ok_or_else(|| refuse("there is no `=` in it".to_owned()))?;
        let prefix = prefix
            .trim()
            .parse()
            .map_err(|error: freshet_policy::network::PrefixError| refuse(error.to_string()))?;
        let names: Result<Vec<NodeName>, _> = names.split(',').map(|name| name.trim().parse()).collect();
        let names = names.map_err(|error: crate::registry::NodeNameError| refuse(error.to_string()))?;
        Ok(Self { prefix, names })
    }
}

/// What can't be known so.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No rule.
    #[error("expected a prefix and volunteers such as `192.0.2.0/24=south,north`, found {found:?}: {reason}")]
    Rule {
        /// What came.
        found: String,
        /// In words.
        reason: String,
    },
    /// No database.
    #[error("cannot read {} as a MaxMind-format database: {reason}", file.display())]
    Database {
        /// Which.
        file: PathBuf,
        /// In words.
        reason: String,
    },
}

/// What of a database's row matters here; ASN, country and city databases have it at the same places.
#[derive(Debug, Default, Deserialize)]
struct Row {
    autonomous_system_number: Option<u32>,
    country: Option<Country>,
    continent: Option<Continent>,
}

#[derive(Debug, Deserialize)]
struct Country {
    iso_code: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Continent {
    code: Option<String>,
}

impl NetworkMap {
    /// With these rules and databases.
    ///
    /// # Errors
    /// [`NetworkError::Database`].
    pub fn open(rules: Vec<PrefixRule>, databases: &[PathBuf]) -> Result<Self, NetworkError> {
        let open = |file: &PathBuf| {
            Reader::open_readfile(file)
                .map_err(|error| NetworkError::Database { file: file.clone(), reason: error.to_string() })
        };
        let databases: Result<Vec<_>, _> = databases.iter().map(open).collect();
        Ok(Self { rules: Arc::new(rules), databases: Arc::new(databases?), ..Self::default() })
    }

    /// The same with the volunteers of the rules' names found among `nodes`; `None` when that changes nothing.
    pub(super) fn knowing(&self, nodes: &Nodes) -> Option<Self> {
        if self.rules.is_empty() {
            return None;
        }
        let names = self.rules.iter().flat_map(|rule| &rule.names);
        let known: BTreeMap<&NodeName, NodeId> =
            names.filter_map(|name| Some((name, nodes.by_name_or_id(name.as_str())?.id))).collect();
        let list: Vec<_> = known.iter().map(|(name, node)| ((*name).clone(), *node)).collect();
        if list == self.known {
            return None;
        }
        let mut prefixes = PrefixRules::default();
        for rule in self.rules.iter() {
            let preferred = rule.names.iter().filter_map(|name| known.get(name).copied()).collect();
            prefixes.insert(rule.prefix, preferred);
        }
        Some(Self {
            rules: Arc::clone(&self.rules),
            databases: Arc::clone(&self.databases),
            prefixes,
            known: list,
        })
    }

    /// A client at `address`.
    pub fn place(&self, address: IpAddr) -> ClientPlace<'_> {
        ClientPlace::new(address, &self.prefixes, self.locate(address))
    }

    /// Where an address is, as far as the databases say.
    pub fn locate(&self, address: IpAddr) -> Whereabouts {
        let mut found = Whereabouts::default();
        for database in self.databases.iter() {
            let row = database.lookup(address).ok().and_then(|result| result.decode::<Row>().ok()?);
            let row: Row = row.unwrap_or_default();
            found.autonomous_system = found.autonomous_system.or(row.autonomous_system_number);
            found.country = found.country.or(row.country.and_then(|country| code(country.iso_code)));
            found.continent = found.continent.or(row.continent.and_then(|continent| code(continent.code)));
        }
        found
    }

    /// Where an address is, in words.
    pub fn describe(&self, address: IpAddr) -> String {
        let place = self.place(address);
        let at = place.at;
        let text = |code: [u8; 2]| String::from_utf8_lossy(&code).into_owned();
        let parts = [
            (!place.preferred.is_empty()).then(|| "a prefix with a rule".to_owned()),
            at.autonomous_system.map(|number| format!("AS{number}")),
            at.country.map(text),
            at.continent.map(text),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { "nowhere that is known".to_owned() } else { parts.join(", ") }
    }
}

fn code(text: Option<String>) -> Option<[u8; 2]> {
    text?.as_bytes().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Invitation, Node};

    /// A database of one row for 192.0.2.0/24, as the format's specification 2.0 has it.
    fn database(row: &[u8]) -> Vec<u8> {
        let prefix = u32::from_be_bytes([192, 0, 2, 0]);
        let (bits, nothing) = (24u32, 24u32);
        let mut file = Vec::new();
        for bit in 0..bits {
            // Of each node one way leads on and the other nowhere; the last leads to the data.
            let on = if bit + 1 == bits { nothing + 16 } else { bit + 1 };
            let right = prefix >> (31 - bit) & 1 == 1;
            let records = if right { [nothing, on] } else { [on, nothing] };
            for record in records {
                file.extend_from_slice(&record.to_be_bytes()[1..]);
            }
        }
        file.extend_from_slice(&[0; 16]);
        file.extend_from_slice(row);
        file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
        file.push(0xe9);
        for (key, value) in [
            ("node_count", &[0xc1, bits as u8][..]),
            ("record_size", &[0xa1, 24]),
            ("ip_version", &[0xa1, 4]),
            ("binary_format_major_version", &[0xa1, 2]),
            ("binary_format_minor_version", &[0xa0]),
            ("build_epoch", &[0x00, 0x02]),
            ("database_type", b"\x44Test"),
            ("description", &[0xe0]),
            ("languages", &[0x00, 0x04]),
        ] {
            text(&mut file, key);
            file.extend_from_slice(value);
        }
        file
    }

    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.push(0x40 | text.len().min(28) as u8);
        bytes.extend_from_slice(text.as_bytes());
    }

    fn map(rules: &[&str], rows: &[Vec<u8>]) -> NetworkMap {
        let directory = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = rows
            .iter()
            .enumerate()
            .map(|(number, row)| {
                let file = directory.path().join(number.to_string());
                std::fs::write(&file, database(row)).unwrap();
                file
            })
            .collect();
        NetworkMap::open(rules.iter().map(|rule| rule.parse().unwrap()).collect(), &files).unwrap()
    }

    fn nodes(names: &[(&str, u32)]) -> Nodes {
        let mut nodes = Nodes::default();
        for &(name, id) in names {
            nodes.put_for_tests(Node {
                id: NodeId(id),
                name: name.parse().unwrap(),
                added: 1,
                invitation: Invitation { secret_digest: [id as u8; 32], made: 1, expires: 2 },
                membership: None,
                draining: false,
                ban: None,
                profile: Arc::default(),
            });
        }
        nodes
    }

    #[test]
    fn databases_say_network_country_and_continent() {
        let mut asn = vec![0xe1];
        text(&mut asn, "autonomous_system_number");
        asn.extend_from_slice(&[0xc2, 0xfb, 0xf0]);
        let mut city = vec![0xe2];
        for (group, key, value) in [("country", "iso_code", "DE"), ("continent", "code", "EU")] {
            text(&mut city, group);
            city.push(0xe1);
            text(&mut city, key);
            text(&mut city, value);
        }
        let map = map(&[], &[asn, city]);
        let at = map.locate("192.0.2.9".parse().unwrap());
        assert_eq!(at.autonomous_system, Some(64_496));
        assert_eq!((at.country, at.continent), (Some(*b"DE"), Some(*b"EU")));
        assert_eq!(map.locate("192.0.3.9".parse().unwrap()), Whereabouts::default());
        assert_eq!(map.locate("2001:db8::1".parse().unwrap()), Whereabouts::default());
        assert_eq!(map.describe("192.0.2.9".parse().unwrap()), "AS64496, DE, EU");
    }

    #[test]
    fn rules_name_volunteers_as_soon_as_there_are_any() {
        let map = map(&["192.0.2.0/24=south, north", "192.0.2.128/25=north"], &[]);
        let client = "192.0.2.7".parse().unwrap();
        assert!(map.place(client).preferred.is_empty());
        let map = map.knowing(&nodes(&[("south", 3)])).unwrap();
        assert_eq!(map.place(client).preferred, [NodeId(3)]);
        assert!(map.knowing(&nodes(&[("south", 3), ("west", 9)])).is_none());
        let map = map.knowing(&nodes(&[("south", 3), ("north", 5)])).unwrap();
        assert_eq!(map.place(client).preferred, [NodeId(3), NodeId(5)]);
        assert_eq!(map.place("192.0.2.200".parse().unwrap()).preferred, [NodeId(5)]);
    }

    #[test]
    fn what_is_no_rule_or_database_is_refused() {
        for rule in ["192.0.2.0/24", "192.0.2.0/33=a", "x=a", "192.0.2.0/24=a b", "192.0.2.0/24="] {
            assert!(rule.parse::<PrefixRule>().is_err(), "{rule}");
        }
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("geo.mmdb");
        std::fs::write(&file, "no database").unwrap();
        let error = NetworkMap::open(Vec::new(), &[file]).unwrap_err();
        assert!(error.to_string().contains("geo.mmdb"), "{error}");
    }
}
