//! The bearer token for a sync port: who may fetch blobs, and until when.
//!
//! base64url of (version, node, expiry, MAC): HMAC-SHA-256 (RFC 2104) truncated to 128 bits. For the origin's port
//! the key is one that only control has; for a volunteer's port it is one that this volunteer and control have, so
//! that a volunteer can let its peers in and can mint nothing for anybody else. Whoever brings one treats it as
//! opaque.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::NodeId;
use crate::ticket::TicketKey;

/// Permission for one node to fetch blobs from the origin until a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncToken {
    /// Whom it was given to.
    pub node: NodeId,
    /// Seconds since the epoch after which it is worth nothing.
    pub expires: u32,
}

impl SyncToken {
    /// The text for `Authorization: Bearer`.
    pub fn seal(&self, key: &SyncKey) -> String {
        let mut bytes = self.payload().to_vec();
        bytes.extend_from_slice(&mac(key, &self.payload()));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token and checks that `key` sealed it and that it has not expired at `now` (seconds since the
    /// epoch).
    ///
    /// # Errors
    /// See [`SyncTokenError`].
    pub fn open(text: &str, key: &SyncKey, now: u64) -> Result<Self, SyncTokenError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(SyncTokenError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| SyncTokenError::Malformed)?;
        let bytes: [u8; PAYLOAD_BYTES + MAC_BYTES] =
            bytes.try_into().map_err(|_| SyncTokenError::Malformed)?;
        let (payload, sealed) = bytes.split_at(PAYLOAD_BYTES);
        let [version, n0, n1, n2, n3, e0, e1, e2, e3] = *payload else {
            return Err(SyncTokenError::Malformed);
        };
        if version != VERSION {
            return Err(SyncTokenError::Malformed);
        }
        if !bool::from(mac(key, payload).ct_eq(sealed)) {
            return Err(SyncTokenError::Forged);
        }
        let token = Self {
            node: NodeId(u32::from_be_bytes([n0, n1, n2, n3])),
            expires: u32::from_be_bytes([e0, e1, e2, e3]),
        };
        if now > u64::from(token.expires) {
            return Err(SyncTokenError::Expired { seconds: now - u64::from(token.expires) });
        }
        Ok(token)
    }

    fn payload(&self) -> [u8; PAYLOAD_BYTES] {
        let mut payload = [VERSION; PAYLOAD_BYTES];
        payload[1..5].copy_from_slice(&self.node.0.to_be_bytes());
        payload[5..].copy_from_slice(&self.expires.to_be_bytes());
        payload
    }
}

/// The secret under which control seals the sync tokens for one port.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SyncKey(#[serde(with = "crate::enrol::secret_text")] pub [u8; 32]);

impl SyncKey {
    /// The key for the sync port of the volunteer with this ticket key.
    pub fn of_volunteer(ticket_key: &TicketKey) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(&ticket_key.0).expect("HMAC takes a key of any length");
        mac.update(VOLUNTEER_DOMAIN);
        Self(mac.finalize().into_bytes().into())
    }
}

impl std::fmt::Debug for SyncKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SyncKey(..)")
    }
}

/// Why a sync token opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncTokenError {
    /// It is no token at all.
    #[error("this is no sync token; send `Authorization: Bearer` with the one of the last heartbeat's reply")]
    Malformed,
    /// It was altered, or sealed for another port.
    #[error("the sync token was not sealed for this port; the next heartbeat's reply brings a good one")]
    Forged,
    /// Too late.
    #[error("the sync token expired {seconds} s ago; the next heartbeat's reply brings a fresh one")]
    Expired {
        /// By how much.
        seconds: u64,
    },
}

fn mac(key: &SyncKey, payload: &[u8]) -> [u8; MAC_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("HMAC takes a key of any length");
    mac.update(DOMAIN);
    mac.update(payload);
    let mut truncated = [0; MAC_BYTES];
    truncated.copy_from_slice(&mac.finalize().into_bytes()[..MAC_BYTES]);
    truncated
}

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"freshet sync token 1\0";
const VOLUNTEER_DOMAIN: &[u8] = b"freshet sync port of a volunteer 1\0";
const PAYLOAD_BYTES: usize = 1 + 4 + 4;
const MAC_BYTES: usize = 16;
const TEXT_BYTES_MAX: usize = (PAYLOAD_BYTES + MAC_BYTES).div_ceil(3) * 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: SyncKey = SyncKey([7; 32]);

    #[test]
    fn a_token_is_read_back_until_it_expires() {
        let token = SyncToken { node: NodeId(9), expires: 100 };
        let text = token.seal(&KEY);
        assert_eq!(SyncToken::open(&text, &KEY, 100), Ok(token));
        assert_eq!(SyncToken::open(&text, &KEY, 103), Err(SyncTokenError::Expired { seconds: 3 }));
    }

    #[test]
    fn another_key_is_refused() {
        let text = SyncToken { node: NodeId(9), expires: 100 }.seal(&SyncKey([8; 32]));
        assert_eq!(SyncToken::open(&text, &KEY, 1), Err(SyncTokenError::Forged));
        let [one, other] = [1, 2].map(|n| SyncKey::of_volunteer(&TicketKey([n; 32])));
        let text = SyncToken { node: NodeId(9), expires: 100 }.seal(&one);
        assert!(SyncToken::open(&text, &one, 1).is_ok());
        assert_eq!(SyncToken::open(&text, &other, 1), Err(SyncTokenError::Forged));
    }

    proptest! {
        #[test]
        fn no_altered_character_passes(position in 0usize..33, replacement in "[A-Za-z0-9_-]") {
            let text = SyncToken { node: NodeId(3), expires: 50 }.seal(&KEY);
            let position = position % text.len();
            let mut altered = text.clone();
            altered.replace_range(position..=position, &replacement);
            prop_assert_eq!(SyncToken::open(&altered, &KEY, 1).is_ok(), altered == text);
        }

        #[test]
        fn rubbish_never_panics(text in ".{0,80}") {
            prop_assert!(SyncToken::open(&text, &KEY, 1).is_err());
        }
    }
}
