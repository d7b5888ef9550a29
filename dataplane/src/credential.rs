//! What a host got by joining: who it is, how it proves it, and where control is.
//!
//! As secret as a password: the file is readable by its owner only.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use freshet_api::enrol::{Fingerprint, Secret};
use freshet_api::{JoinString, NodeId, TicketKey};
use serde::{Deserialize, Serialize};

/// `credential.json` in the state directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Credential {
    /// The volunteer's number.
    pub node: NodeId,
    /// The name that the operator gave it.
    pub name: String,
    /// `host:port` of control's API.
    pub api: String,
    /// What control's certificate must be.
    pub fingerprint: Fingerprint,
    /// How this host proves itself to control.
    pub credential: Secret,
    /// Control seals the tickets of this host's customers with it.
    pub ticket_key: TicketKey,
    /// URL of the front door, without a trailing `/`, until a heartbeat's answer tells another.
    pub front_door: String,
    /// [`join_mark`] of the join string that made it.
    pub joined_with: String,
}

/// Keys that were made for a join whose answer has not come yet, so that the same join can be repeated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) joined_with: String,
    pub(crate) credential: Secret,
    pub(crate) ticket_key: TicketKey,
}

impl Credential {
    /// Reads the credential of a state directory; `None` when the host has not joined.
    ///
    /// # Errors
    /// [`CredentialError`].
    pub fn load(state: &Path) -> Result<Option<Self>, CredentialError> {
        read(&state.join(FILE_NAME))
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// [`CredentialError::Disk`].
    pub fn store(&self, state: &Path) -> Result<(), CredentialError> {
        write(&state.join(FILE_NAME), self)
    }
}

impl Pending {
    /// The keys for a join string: those of an earlier attempt with the same one, or new ones.
    pub(crate) fn for_join(state: &Path, join: &JoinString) -> Result<Self, CredentialError> {
        let path = state.join(PENDING_FILE_NAME);
        let mark = join_mark(join);
        if let Some(pending) = read::<Self>(&path)?
            && pending.joined_with == mark
        {
            return Ok(pending);
        }
        let pending =
            Self { joined_with: mark, credential: Secret(random()?), ticket_key: TicketKey(random()?) };
        write(&path, &pending)?;
        Ok(pending)
    }

    /// Forgets it, after the credential is stored.
    pub(crate) fn remove(state: &Path) -> Result<(), CredentialError> {
        let path = state.join(PENDING_FILE_NAME);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CredentialError::Disk { doing: "remove", path, source })
            }
            _ => Ok(()),
        }
    }
}

/// Tells join strings apart without keeping their secret.
pub fn join_mark(join: &JoinString) -> String {
    hex::encode(&join.secret.digest()[..16])
}

/// Makes a state directory that only its owner may enter; one that is there stays as it is.
///
/// # Errors
/// [`CredentialError::Disk`].
pub fn make_state_directory(state: &Path) -> Result<(), CredentialError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .map_err(|source| CredentialError::Disk { doing: "make", path: state.to_owned(), source })
}

/// Why a credential can't be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The kernel's word.
    #[error("cannot {doing} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else could have read it.
    #[error(
        "{} can be read by others (mode {mode:o}); if nobody did, `chmod 600` it, otherwise remove the volunteer at the \
         origin and join anew",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is damaged.
    #[error("{} is damaged ({source}); move it away and join anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
}

fn random() -> Result<[u8; 32], CredentialError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(CredentialError::Random)?;
    Ok(bytes)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, CredentialError> {
    let disk = |source| CredentialError::Disk { doing: "read", path: path.to_owned(), source };
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(disk)?,
    };
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CredentialError::Exposed { path: path.to_owned(), mode });
    }
    let text = std::fs::read(path).map_err(disk)?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| CredentialError::Damaged { path: path.to_owned(), source })
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), CredentialError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|source| CredentialError::Damaged { path: path.to_owned(), source })?;
    text.push(b'\n');
    crate::durable::write(path, &text, 0o600).map_err(|source| CredentialError::Disk {
        doing: "write",
        path: path.to_owned(),
        source,
    })
}

/// The credential's name within a state directory.
pub const FILE_NAME: &str = "credential.json";
const PENDING_FILE_NAME: &str = "joining.json";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn join(secret: u8) -> JoinString {
        JoinString { api: "h:1".into(), secret: Secret([secret; 32]), fingerprint: Fingerprint([2; 32]) }
    }

    fn credential() -> Credential {
        Credential {
            node: NodeId(7),
            name: "v7".into(),
            api: "h:1".into(),
            fingerprint: Fingerprint([2; 32]),
            credential: Secret([3; 32]),
            ticket_key: TicketKey([4; 32]),
            front_door: "http://h".into(),
            joined_with: join_mark(&join(1)),
        }
    }

    #[test]
    fn a_credential_is_read_back_and_private() {
        let state = tempfile::tempdir().unwrap();
        assert!(Credential::load(state.path()).unwrap().is_none());
        credential().store(state.path()).unwrap();
        let path = state.path().join(FILE_NAME);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let loaded = Credential::load(state.path()).unwrap().unwrap();
        assert!(loaded.credential == Secret([3; 32]) && loaded.node == NodeId(7));
        assert!(!std::fs::read_to_string(&path).unwrap().contains(&join(1).secret.to_text()));
    }

    #[test]
    fn an_exposed_or_damaged_one_is_refused() {
        let state = tempfile::tempdir().unwrap();
        credential().store(state.path()).unwrap();
        let path = state.path().join(FILE_NAME);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Credential::load(state.path()), Err(CredentialError::Exposed { mode: 0o640, .. })));
        std::fs::write(&path, "{").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Credential::load(state.path()), Err(CredentialError::Damaged { .. })));
    }

    #[test]
    fn a_repeated_join_uses_the_same_keys_and_another_one_does_not() {
        let state = tempfile::tempdir().unwrap();
        let first = Pending::for_join(state.path(), &join(1)).unwrap();
        let again = Pending::for_join(state.path(), &join(1)).unwrap();
        assert!(first.credential == again.credential && first.ticket_key == again.ticket_key);
        let other = Pending::for_join(state.path(), &join(9)).unwrap();
        assert!(first.credential != other.credential && first.ticket_key != other.ticket_key);
        Pending::remove(state.path()).unwrap();
        Pending::remove(state.path()).unwrap();
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
    }
}
