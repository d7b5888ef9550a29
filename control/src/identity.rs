//! What control proves itself with: its TLS key and certificate, and the operator's credentials. Made at the
//! first start, kept in the state directory, readable by its owner only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use freshet_api::admin::OperatorCredentials;
use freshet_api::enrol::{Fingerprint, Secret};
use freshet_api::release::ReleaseSigner;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Control's key, certificate and the digest of the operator's token.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Of the certificate.
    pub fingerprint: Fingerprint,
    /// For the API's listener.
    pub tls: Arc<rustls::ServerConfig>,
    /// Signs what volunteers are told to mirror, with the same key.
    pub releases: ReleaseSigner,
    /// Of the operator's token.
    pub operator_digest: [u8; 32],
    operator: Secret,
}

impl Identity {
    /// Loads what is in `state`, or makes it.
    ///
    /// # Errors
    /// [`IdentityError`], also when what is there is damaged: it is never replaced silently, since volunteers
    /// know the certificate by its fingerprint.
    pub fn load_or_make(state: &Path) -> Result<Self, IdentityError> {
        let (key_file, certificate_file) = (state.join(KEY_FILE), state.join(CERTIFICATE_FILE));
        if !key_file.exists() && !certificate_file.exists() {
            make_certificate(&key_file, &certificate_file)?;
        }
        let damaged = |file: &Path, reason: String| IdentityError::Damaged { file: file.to_owned(), reason };
        let key =
            PrivateKeyDer::from_pem_file(&key_file).map_err(|error| damaged(&key_file, error.to_string()))?;
        let certificate = CertificateDer::from_pem_file(&certificate_file)
            .map_err(|error| damaged(&certificate_file, error.to_string()))?;
        let fingerprint = Fingerprint::of(&certificate);
        let releases = ReleaseSigner::new(&key, certificate.clone())
            .map_err(|error| damaged(&key_file, error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
            .map_err(|error| damaged(&key_file, error.to_string()))?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let operator = load_or_make_operator(&state.join(OPERATOR_FILE))?;
        Ok(Self { fingerprint, tls: Arc::new(tls), releases, operator_digest: operator.digest(), operator })
    }

    /// Writes the operator's credentials, for `ctl`, with where the API is now.
    ///
    /// # Errors
    /// [`IdentityError::Write`].
    pub fn write_credentials(&self, state: &Path, api: &str) -> Result<(), IdentityError> {
        let credentials = OperatorCredentials {
            api: api.to_owned(),
            fingerprint: self.fingerprint,
            token: self.operator.clone(),
        };
        write_operator(&state.join(OPERATOR_FILE), &credentials)
    }
}

/// Why control has no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What is there can't be used.
    #[error("{}: {reason}; restore it from a backup, or remove tls.key, tls.crt and admin.json to begin anew \
             (then every volunteer must join again)", file.display())]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// In words.
        reason: String,
    },
    /// It can't be written.
    #[error("cannot write {}: {source}", file.display())]
    Write {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It can't be made.
    #[error("cannot make a key and certificate: {reason}")]
    Make {
        /// In words.
        reason: String,
    },
}

fn make_certificate(key_file: &Path, certificate_file: &Path) -> Result<(), IdentityError> {
    // Volunteers pin the certificate itself; its name is for people who look at it.
    let made = rcgen::generate_simple_self_signed([CERTIFICATE_NAME.to_owned()])
        .map_err(|error| IdentityError::Make { reason: error.to_string() })?;
    // The certificate first: a key alone after a crash in between would look damaged, a certificate alone
    // too, but neither is ever mistaken for whole.
    write(certificate_file, made.cert.pem().as_bytes())?;
    write(key_file, made.signing_key.serialize_pem().as_bytes())
}

fn load_or_make_operator(file: &Path) -> Result<Secret, IdentityError> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice::<OperatorCredentials>(&text)
            .map(|credentials| credentials.token)
            .map_err(|error| IdentityError::Damaged { file: file.to_owned(), reason: error.to_string() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fresh_secret(),
        Err(error) => Err(IdentityError::Damaged { file: file.to_owned(), reason: error.to_string() }),
    }
}

fn write_operator(file: &Path, credentials: &OperatorCredentials) -> Result<(), IdentityError> {
    let mut text = serde_json::to_vec_pretty(credentials)
        .map_err(|error| IdentityError::Make { reason: error.to_string() })?;
    text.push(b'\n');
    write(file, &text)
}

/// 256 bits from the kernel.
pub(crate) fn fresh_secret() -> Result<Secret, IdentityError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| IdentityError::Make { reason: error.to_string() })?;
    Ok(Secret(bytes))
}

fn write(file: &Path, content: &[u8]) -> Result<(), IdentityError> {
    crate::private_file::write(file, content)
        .map_err(|source| IdentityError::Write { file: file.to_owned(), source })
}

const KEY_FILE: &str = "tls.key";
const CERTIFICATE_FILE: &str = "tls.crt";
const OPERATOR_FILE: &str = "admin.json";
const CERTIFICATE_NAME: &str = "freshet-control";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn an_identity_lasts_and_is_private() {
        let state = tempfile::tempdir().unwrap();
        let first = Identity::load_or_make(state.path()).unwrap();
        first.write_credentials(state.path(), "h:1").unwrap();
        let second = Identity::load_or_make(state.path()).unwrap();
        assert!(second.fingerprint == first.fingerprint && second.operator_digest == first.operator_digest);
        for file in [KEY_FILE, CERTIFICATE_FILE, OPERATOR_FILE] {
            let mode = std::fs::metadata(state.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_damaged_one_is_not_replaced() {
        let state = tempfile::tempdir().unwrap();
        Identity::load_or_make(state.path()).unwrap();
        std::fs::write(state.path().join(KEY_FILE), "x").unwrap();
        let error = Identity::load_or_make(state.path()).unwrap_err();
        assert!(error.to_string().contains("every volunteer must join again"), "{error}");
        std::fs::remove_file(state.path().join(KEY_FILE)).unwrap();
        assert!(Identity::load_or_make(state.path()).is_err());
    }
}
