//! Who may operate this control: named keys with a role, kept as digests in `operators.json` in the state directory.
//!
//! The key of `admin.json` is always one of them. Whoever knows a key is known by its name in the audit log.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use freshet_api::enrol::Secret;
use freshet_api::operator::{KeyView, Role};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use crate::identity::fresh_secret;
use crate::private_file;

/// Everybody who may operate.
#[derive(Debug)]
pub struct Operators {
    file: PathBuf,
    first_digest: [u8; 32],
    keys: ArcSwap<Vec<Key>>,
    /// Held while the file is written, so that no change is lost to another.
    changing: Mutex<()>,
    used: Mutex<HashMap<String, u64>>,
}

/// A key as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    role: Role,
    added: u64,
    #[serde(with = "digest_text")]
    digest: [u8; 32],
}

/// Somebody whose key was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Whose key it was.
    pub name: Arc<str>,
    /// What it lets them do.
    pub role: Role,
}

/// Why there is no such key, or no new one.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The name can't be one.
    #[error(
        "expected a name of 1 to 64 letters, digits, `.`, `_`, `-` or `@`, other than `{FIRST}`, found {found:?}"
    )]
    Name {
        /// Its first characters.
        found: String,
    },
    /// Somebody has it.
    #[error("there is a key for {name} already; revoke it first, or take another name")]
    Taken {
        /// The name.
        name: String,
    },
    /// Nobody has it.
    #[error("there is no key for {name}; `ctl key list` shows whose there are")]
    Unknown {
        /// The name.
        name: String,
    },
    /// Too many.
    #[error("there are {KEYS_MAX} keys already, the most there may be; revoke one first")]
    Full,
    /// The file can't be read or written.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// In words.
        reason: String,
    },
}

impl Operators {
    /// Loads the keys in `state`; `first_digest` is that of the key in `admin.json`.
    ///
    /// # Errors
    /// [`OperatorError::File`], also when it is damaged: keys are never dropped silently.
    pub fn open(state: &Path, first_digest: [u8; 32]) -> Result<Self, OperatorError> {
        let file = state.join(FILE);
        let refuse = |reason: String| OperatorError::File { file: file.clone(), reason };
        let keys = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(refuse(error.to_string())),
        };
        Ok(Self {
            file,
            first_digest,
            keys: ArcSwap::from_pointee(keys),
            changing: Mutex::default(),
            used: Mutex::default(),
        })
    }

    /// Whose key this is. All are compared, in constant time each.
    pub fn known(&self, secret: &Secret, now: u64) -> Option<Operator> {
        let digest = secret.digest();
        let keys = self.keys.load();
        let mut found = bool::from(digest.ct_eq(&self.first_digest))
            .then(|| Operator { name: FIRST.into(), role: Role::Admin });
        for key in keys.iter() {
            if bool::from(digest.ct_eq(&key.digest)) {
                found = Some(Operator { name: key.name.as_str().into(), role: key.role });
            }
        }
        if let Some(found) = &found {
            self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(found.name.to_string(), now);
        }
        found
    }

    /// Makes a key; it is on disk when this returns, and only its digest is kept. Blocks.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub fn add(&self, name: &str, role: Role, now: u64) -> Result<Secret, OperatorError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
        if !(1..=64).contains(&name.len()) || name == FIRST || !name.bytes().all(allowed) {
            return Err(OperatorError::Name { found: name.chars().take(80).collect() });
        }
        let secret = fresh_secret().map_err(|error| self.refuse(error.to_string()))?;
        self.change(|keys| {
            if keys.iter().any(|key| key.name == name) {
                return Err(OperatorError::Taken { name: name.to_owned() });
            }
            if keys.len() >= KEYS_MAX {
                return Err(OperatorError::Full);
            }
            keys.push(Key { name: name.to_owned(), role, added: now, digest: secret.digest() });
            Ok(())
        })?;
        Ok(secret)
    }

    /// Makes a key worthless; on disk when this returns. Blocks.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub fn revoke(&self, name: &str) -> Result<(), OperatorError> {
        self.change(|keys| {
            let before = keys.len();
            keys.retain(|key| key.name != name);
            if keys.len() == before {
                return Err(OperatorError::Unknown { name: name.chars().take(80).collect() });
            }
            Ok(())
        })
    }

    /// All of them, without what is secret.
    pub fn view(&self) -> Vec<KeyView> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let first = KeyView {
            name: FIRST.to_owned(),
            role: Role::Admin,
            added: None,
            used: used.get(FIRST).copied(),
        };
        let keys = self.keys.load();
        let others = keys.iter().map(|key| KeyView {
            name: key.name.clone(),
            role: key.role,
            added: Some(key.added),
            used: used.get(&key.name).copied(),
        });
        std::iter::once(first).chain(others).collect()
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Vec<Key>) -> Result<(), OperatorError>,
    ) -> Result<(), OperatorError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = Vec::clone(&self.keys.load());
        change(&mut keys)?;
        let mut text = serde_json::to_vec_pretty(&keys).map_err(|error| self.refuse(error.to_string()))?;
        text.push(b'\n');
        private_file::write(&self.file, &text).map_err(|error| self.refuse(error.to_string()))?;
        self.keys.store(Arc::new(keys));
        Ok(())
    }

    fn refuse(&self, reason: String) -> OperatorError {
        OperatorError::File { file: self.file.clone(), reason }
    }
}

/// A digest in hexadecimal.
mod digest_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(digest: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&hex::encode(digest))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let mut digest = [0; 32];
        hex::decode_to_slice(String::deserialize(d)?, &mut digest)
            .map_err(|error| de::Error::custom(format!("expected 32 bytes in hexadecimal: {error}")))?;
        Ok(digest)
    }
}

/// The name of the key that control made at its first start.
pub const FIRST: &str = "admin.json";
/// Keys at most.
pub const KEYS_MAX: usize = 1_000;
const FILE: &str = "operators.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_last_and_are_worth_nothing_once_revoked() {
        let state = tempfile::tempdir().unwrap();
        let first = Secret([1; 32]);
        let operators = Operators::open(state.path(), first.digest()).unwrap();
        assert_eq!(operators.known(&first, 5).unwrap().name.as_ref(), FIRST);
        assert!(operators.known(&Secret([2; 32]), 5).is_none());
        let ann = operators.add("ann@example.org", Role::ReadOnly, 7).unwrap();
        assert!(matches!(operators.add("ann@example.org", Role::Admin, 8), Err(OperatorError::Taken { .. })));

        let text = std::fs::read_to_string(state.path().join(FILE)).unwrap();
        assert!(!text.contains(&ann.to_text()), "the secret itself is not kept");
        let operators = Operators::open(state.path(), first.digest()).unwrap();
        assert_eq!(operators.known(&ann, 9).unwrap().role, Role::ReadOnly);
        assert_eq!(operators.view()[1].used, Some(9));
        operators.revoke("ann@example.org").unwrap();
        assert!(operators.known(&ann, 10).is_none());
        assert!(matches!(operators.revoke("ann@example.org"), Err(OperatorError::Unknown { .. })));
        assert_eq!(Operators::open(state.path(), first.digest()).unwrap().view().len(), 1);
    }

    #[test]
    fn names_are_checked_and_a_damaged_file_is_not_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let operators = Operators::open(state.path(), [0; 32]).unwrap();
        for name in ["", "a b", "a/b", FIRST, &"x".repeat(65), "a\n"] {
            assert!(
                matches!(operators.add(name, Role::Admin, 1), Err(OperatorError::Name { .. })),
                "{name:?}"
            );
        }
        std::fs::write(state.path().join(FILE), "[{").unwrap();
        assert!(Operators::open(state.path(), [0; 32]).is_err());
    }
}
