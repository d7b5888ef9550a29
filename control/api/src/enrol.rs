//! How a host becomes a volunteer: one string that control prints and the volunteer's owner pastes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::id::NodeId;
use crate::ticket::TicketKey;

/// Where control's API is, a secret that works once, and what control's certificate must be.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinString {
    /// `host:port` of the API.
    pub api: String,
    /// Works once, until it expires.
    pub secret: Secret,
    /// SHA-256 of control's certificate in DER.
    pub fingerprint: Fingerprint,
}

impl fmt::Display for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = URL_SAFE_NO_PAD.encode(self.secret.0);
        write!(f, "{PREFIX}{}/{secret}/{}", self.api, self.fingerprint)
    }
}

impl fmt::Debug for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinString({}, ..)", self.api)
    }
}

impl FromStr for JoinString {
    type Err = JoinStringError;

    fn from_str(text: &str) -> Result<Self, JoinStringError> {
        let parts: Vec<&str> = text.trim().strip_prefix(PREFIX).ok_or(JoinStringError)?.split('/').collect();
        let [api, secret, fingerprint] = parts[..] else { return Err(JoinStringError) };
        let port = api.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        if api.len() > 300 || port.and_then(|port| port.parse::<u16>().ok()).is_none() {
            return Err(JoinStringError);
        }
        Ok(Self { api: api.to_owned(), secret: secret.parse()?, fingerprint: fingerprint.parse()? })
    }
}

/// SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(#[serde(with = "secret_text")] pub [u8; 32]);

impl Fingerprint {
    /// Of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = JoinStringError;

    fn from_str(text: &str) -> Result<Self, JoinStringError> {
        decode(text).map(Self).ok_or(JoinStringError)
    }
}

/// 256 random bits that prove who somebody is: a join secret, a volunteer's or an operator's credential.
///
/// Control keeps only [`Secret::digest`].
#[derive(Clone, PartialEq, Eq, Zeroize, zeroize::ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(#[serde(with = "secret_text")] pub [u8; 32]);

impl Secret {
    /// What is stored in place of the secret; random bits need no slow hash.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.0).as_bytes()
    }

    /// As it stands in `Authorization: Bearer`.
    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl FromStr for Secret {
    type Err = JoinStringError;

    fn from_str(text: &str) -> Result<Self, JoinStringError> {
        decode(text).map(Self).ok_or(JoinStringError)
    }
}

/// Text that is no join string, or a damaged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no join string; paste the whole line that `ctl node add NAME` printed (it starts with `{PREFIX}`)"
)]
pub struct JoinStringError;

/// `POST /v1/join`: a host asks to become the volunteer that a join string was made for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The join string's.
    pub secret: Secret,
    /// Made by the volunteer: how it proves itself from now on (`Authorization: Bearer`).
    pub credential: Secret,
    /// Made by the volunteer: control seals its tickets with it.
    pub ticket_key: TicketKey,
    /// The daemon's version.
    pub version: String,
}

/// Control's answer to a [`JoinRequest`]. The same request again gets the same answer, so that an answer
/// lost on the way costs nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinReply {
    /// The volunteer's number.
    pub node: NodeId,
    /// The name that the operator gave it.
    pub name: String,
    /// URL of the front door, without a trailing `/`, for customers who are sent back.
    pub front_door: String,
}

/// 32 bytes as base64url where people read.
pub(crate) mod secret_text {
    use serde::{Deserialize as _, Serialize as _};

    pub(crate) fn serialize<S: serde::Serializer>(bytes: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        if s.is_human_readable() {
            s.serialize_str(&super::URL_SAFE_NO_PAD.encode(bytes))
        } else {
            bytes.serialize(s)
        }
    }

    pub(crate) fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        if d.is_human_readable() {
            let text = String::deserialize(d)?;
            super::decode(&text).ok_or_else(|| serde::de::Error::custom("expected 32 bytes in base64url"))
        } else {
            <[u8; 32]>::deserialize(d)
        }
    }
}

fn decode(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text.as_bytes().get(..64.min(text.len()))?).ok()?.try_into().ok()
}

const PREFIX: &str = "freshet1:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_string_is_read_back() {
        for api in ["control.example.org:8443", "[2001:db8::1]:8443", "192.0.2.1:1"] {
            let join =
                JoinString { api: api.into(), secret: Secret([5; 32]), fingerprint: Fingerprint([9; 32]) };
            assert!(join.to_string().parse::<JoinString>().unwrap() == join);
            assert!(format!(" {join}\n").parse::<JoinString>().unwrap() == join);
        }
    }

    #[test]
    fn a_damaged_one_is_refused_without_printing_it() {
        let join =
            JoinString { api: "h:1".into(), secret: Secret([5; 32]), fingerprint: Fingerprint([9; 32]) };
        let text = join.to_string();
        for damaged in [&text[1..], &text[..text.len() - 1], "", "freshet1:h/x/y", "freshet1:h:99999/a/b"] {
            assert_eq!(damaged.parse::<JoinString>().unwrap_err(), JoinStringError, "{damaged}");
        }
        assert!(!format!("{join:?}").contains(&join.secret.to_text()));
    }

    #[test]
    fn messages_are_read_back() {
        let request = JoinRequest {
            secret: Secret([1; 32]),
            credential: Secret([2; 32]),
            ticket_key: TicketKey([3; 32]),
            version: "0.1.0".into(),
        };
        let text = serde_json::to_string(&request).unwrap();
        let back: JoinRequest = serde_json::from_str(&text).unwrap();
        assert!(back.credential == request.credential && back.ticket_key == request.ticket_key);
    }
}
