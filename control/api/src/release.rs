//! What control signs of a release, so that a manifest is worth the same wherever it was kept on its way: by a cache, a
//! peer, or a file.
//!
//! The key is that of control's certificate, which volunteers know by its fingerprint since they joined. The seal travels
//! beside the manifest, as the header field [`FIELD`]: version, header, certificate and signature (ECDSA or EdDSA, as the
//! certificate's key is) in base64url.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::SigningKey;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq as _;

use crate::enrol::Fingerprint;
use crate::id::ContentHash;

/// What is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseHeader {
    /// The state of the catalogue that the manifest leads to.
    pub sequence: u64,
    /// The state that it starts from; `None` for a snapshot.
    pub previous: Option<u64>,
    /// BLAKE3 of the manifest's wire form.
    pub manifest: ContentHash,
    /// Seconds since the epoch after which nobody should take it for the present state.
    pub valid_until: u64,
}

/// Signs releases.
#[derive(Clone, Debug)]
pub struct ReleaseSigner {
    key: Arc<dyn SigningKey>,
    certificate: CertificateDer<'static>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    header: Vec<u8>,
    certificate: Vec<u8>,
    scheme: u16,
    signature: Vec<u8>,
}

impl ReleaseSigner {
    /// Signs with the key of `certificate`.
    ///
    /// # Errors
    /// rustls', for a key of an unknown kind.
    pub fn new(
        key: &PrivateKeyDer<'_>,
        certificate: CertificateDer<'static>,
    ) -> Result<ReleaseSigner, rustls::Error> {
        Ok(ReleaseSigner { key: rustls::crypto::ring::sign::any_supported_type(key)?, certificate })
    }

    /// The seal of a header, for [`open`].
    ///
    /// # Errors
    /// rustls', when the key cannot sign.
    pub fn seal(&self, header: &ReleaseHeader) -> Result<String, rustls::Error> {
        let failed = |what: &str| rustls::Error::General(what.to_owned());
        let signer =
            self.key.choose_scheme(SCHEMES).ok_or_else(|| failed("the key signs by no known scheme"))?;
        let header = postcard::to_stdvec(header).map_err(|_| failed("a header is always encoded"))?;
        let signature = signer.sign(&signed(&header))?;
        let sealed = Sealed {
            header,
            certificate: self.certificate.to_vec(),
            scheme: u16::from(signer.scheme()),
            signature,
        };
        let sealed = postcard::to_stdvec(&sealed).map_err(|_| failed("a seal is always encoded"))?;
        Ok(URL_SAFE_NO_PAD.encode([&[VERSION][..], &sealed].concat()))
    }
}

/// The header in a seal that `wire`, a manifest, came with, when the server with this `fingerprint` signed it and it is
/// still good at `now` (seconds since the epoch).
///
/// # Errors
/// [`ReleaseError`].
pub fn open(
    text: &str,
    wire: &[u8],
    fingerprint: Fingerprint,
    now: u64,
) -> Result<ReleaseHeader, ReleaseError> {
    let header = header(text, fingerprint, now)?;
    if header.manifest == ContentHash::of(wire) { Ok(header) } else { Err(ReleaseError::OtherManifest) }
}

/// The header in a seal whose manifest is still to come, which must then have the hash that the header names.
///
/// # Errors
/// [`ReleaseError`].
pub fn header(text: &str, fingerprint: Fingerprint, now: u64) -> Result<ReleaseHeader, ReleaseError> {
    let header = verify(text, fingerprint)?;
    if now > header.valid_until {
        return Err(ReleaseError::Expired { since_secs: now - header.valid_until });
    }
    Ok(header)
}

fn verify(text: &str, fingerprint: Fingerprint) -> Result<ReleaseHeader, ReleaseError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(ReleaseError::Damaged);
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| ReleaseError::Damaged)?;
    let sealed = match bytes.split_first() {
        Some((&VERSION, sealed)) => sealed,
        Some(_) => return Err(ReleaseError::Unknown),
        None => return Err(ReleaseError::Damaged),
    };
    let sealed: Sealed = postcard::from_bytes(sealed).map_err(|_| ReleaseError::Damaged)?;
    let certificate = CertificateDer::from(sealed.certificate);
    if !bool::from(Fingerprint::of(&certificate).0.ct_eq(&fingerprint.0)) {
        return Err(ReleaseError::OtherKey);
    }
    let scheme = SignatureScheme::from(sealed.scheme);
    let known = rustls::crypto::ring::default_provider().signature_verification_algorithms.mapping;
    let algorithms = known.iter().find(|(named, _)| *named == scheme && SCHEMES.contains(named));
    let (_, algorithms) = algorithms.ok_or(ReleaseError::Unknown)?;
    let entity = webpki::EndEntityCert::try_from(&certificate).map_err(|_| ReleaseError::Damaged)?;
    // A scheme of TLS 1.2 may stand for several curves.
    let right = algorithms.iter().any(|algorithm| {
        entity.verify_signature(*algorithm, &signed(&sealed.header), &sealed.signature).is_ok()
    });
    if !right {
        return Err(ReleaseError::Forged);
    }
    postcard::from_bytes(&sealed.header).map_err(|_| ReleaseError::Damaged)
}

/// What the signature is of: nothing else that this key signs begins so.
fn signed(header: &[u8]) -> Vec<u8> {
    [CONTEXT, header].concat()
}

/// Why a manifest is not taken for a release of control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// Of another version of Freshet.
    #[error("the release is signed in an unknown way; bring volunteer and control to the same version")]
    Unknown,
    /// Cut off or altered.
    #[error("the release's signature is damaged; it will be fetched again")]
    Damaged,
    /// By another key than the one that was pinned when the volunteer joined.
    #[error(
        "the release is signed by another key than control's: another server answers, or control's key was made anew (then join again)"
    )]
    OtherKey,
    /// The signature is not the key's.
    #[error("the release's signature is not control's; what came was altered on the way")]
    Forged,
    /// The manifest is another one.
    #[error("the signature is that of another manifest; it will be fetched again")]
    OtherManifest,
    /// An old one was brought out again, or a clock is wrong.
    #[error(
        "the release was good until {since_secs} s ago; an old one was sent, or this host's clock is wrong"
    )]
    Expired {
        /// For how long.
        since_secs: u64,
    },
}

/// The header field of a manifest's response.
pub const FIELD: &str = "freshet-release";
/// How long a signature is good: longer than anybody is away and still believes a difference, shorter than old packages
/// stay dangerous.
pub const VALID_FOR: Duration = Duration::from_secs(7 * 24 * 3_600);
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"freshet release 1\0";
/// Bytes of a seal at most; one of an ECDSA key has about 700.
const TEXT_BYTES_MAX: usize = 16 << 10;
/// In the order of preference.
const SCHEMES: &[SignatureScheme] = &[
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> (ReleaseSigner, Fingerprint) {
        let made = rcgen::generate_simple_self_signed(["control".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let certificate = made.cert.der().clone();
        let fingerprint = Fingerprint::of(&certificate);
        (ReleaseSigner::new(&key, certificate).unwrap(), fingerprint)
    }

    fn header() -> ReleaseHeader {
        ReleaseHeader {
            sequence: 7,
            previous: Some(3),
            manifest: ContentHash::of(b"rows"),
            valid_until: 1_000,
        }
    }

    #[test]
    fn what_control_signed_is_opened_and_nothing_else() {
        let (signer, fingerprint) = key();
        let seal = signer.seal(&header()).unwrap();
        assert_eq!(open(&seal, b"rows", fingerprint, 1_000), Ok(header()));
        assert_eq!(open(&seal, b"rows", fingerprint, 1_001), Err(ReleaseError::Expired { since_secs: 1 }));
        assert_eq!(open(&seal, b"others", fingerprint, 0), Err(ReleaseError::OtherManifest));
        assert_eq!(super::header(&seal, fingerprint, 1_000), Ok(header()));
        assert_eq!(super::header(&seal, fingerprint, 1_002), Err(ReleaseError::Expired { since_secs: 2 }));
        let (other, others) = key();
        assert_eq!(open(&seal, b"rows", others, 0), Err(ReleaseError::OtherKey));
        // Somebody's own signature under control's certificate.
        let forger = ReleaseSigner { certificate: signer.certificate.clone(), ..other };
        assert_eq!(
            open(&forger.seal(&header()).unwrap(), b"rows", fingerprint, 0),
            Err(ReleaseError::Forged)
        );
    }

    #[test]
    fn every_altered_byte_is_noticed() {
        let (signer, fingerprint) = key();
        let seal = signer.seal(&header()).unwrap();
        for place in 0..seal.len() {
            let mut bytes = seal.clone().into_bytes();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            let text = String::from_utf8(bytes).unwrap();
            assert!(open(&text, b"rows", fingerprint, 0).is_err(), "byte {place}");
        }
        for text in ["", "A", "AQ", "%%", &"A".repeat(20_000)] {
            assert!(open(text, b"rows", fingerprint, 0).is_err());
        }
    }
}
