//! The ticket in a redirect: what lets a customer have one file from one volunteer, for a while.
//!
//! `/path?t=<base64url(version, expiry, content, nodes, MAC)>`: HMAC-SHA-256 (RFC 2104) truncated to 128
//! bits, under the key of the node that is to serve, over the ticket and the path. One volunteer can mint
//! nothing for another, a ticket for one path opens no other, and the file's name stays the last path
//! segment. The nodes tried before ride along, so that a customer who is sent back is not sent in circles
//! and the front door remembers nothing.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::{ContentHash, NodeId};

/// Permission for one content under one path from one node until a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Seconds since the epoch after which it is worth nothing.
    pub expires: u32,
    /// [`ContentHash::prefix`] of the version the front door meant.
    pub content: [u8; 16],
    /// Nodes sent to, oldest first; the last is the one this ticket is for. 1 ..= [`NODES_MAX`].
    nodes: Vec<NodeId>,
}

impl Ticket {
    /// A ticket for `node`; `tried` are the nodes that sent the customer back before, oldest first.
    ///
    /// # Errors
    /// [`TicketError::TooManyNodes`] when `tried` leaves no room: the origin must serve then.
    pub fn new(
        expires: u32,
        content: &ContentHash,
        tried: &[NodeId],
        node: NodeId,
    ) -> Result<Self, TicketError> {
        if tried.len() >= NODES_MAX {
            return Err(TicketError::TooManyNodes);
        }
        let nodes = tried.iter().copied().chain([node]).collect();
        Ok(Self { expires, content: content.prefix(), nodes })
    }

    /// The node that this ticket is for.
    pub fn node(&self) -> NodeId {
        *self.nodes.last().expect("a ticket always names the node it is for")
    }

    /// All nodes the customer was sent to, the present one last.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The text for the query, sealed for `path` (decoded, with its leading `/`) under the node's key.
    pub fn seal(&self, key: &TicketKey, path: &[u8]) -> String {
        let mut bytes = self.payload();
        let mac = mac(key, &bytes, path);
        bytes.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a ticket and checks that `key` sealed it for `path` and that it has not expired at `now`
    /// (seconds since the epoch).
    ///
    /// # Errors
    /// See [`TicketError`].
    pub fn open(text: &str, key: &TicketKey, path: &[u8], now: u64) -> Result<Self, TicketError> {
        let (ticket, sealed) = Self::read(text)?;
        if !bool::from(mac(key, &ticket.payload(), path).ct_eq(&sealed)) {
            return Err(TicketError::Forged);
        }
        if now > u64::from(ticket.expires) {
            return Err(TicketError::Expired { seconds: now - u64::from(ticket.expires) });
        }
        Ok(ticket)
    }

    /// The node that a ticket *claims* to be for, so that its key can be looked up. Proves nothing.
    ///
    /// # Errors
    /// [`TicketError::Malformed`].
    pub fn claimed_node(text: &str) -> Result<NodeId, TicketError> {
        Self::read(text).map(|(ticket, _)| ticket.node())
    }

    fn payload(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + 4 * self.nodes.len() + MAC_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.expires.to_be_bytes());
        bytes.extend_from_slice(&self.content);
        self.nodes.iter().for_each(|node| bytes.extend_from_slice(&node.0.to_be_bytes()));
        bytes
    }

    fn read(text: &str) -> Result<(Self, [u8; MAC_BYTES]), TicketError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TicketError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TicketError::Malformed)?;
        let (payload, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or(TicketError::Malformed)?;
        let (head, nodes) = payload.split_first_chunk::<HEAD_BYTES>().ok_or(TicketError::Malformed)?;
        let (nodes, rest) = nodes.as_chunks::<4>();
        if head[0] != VERSION || !rest.is_empty() || nodes.is_empty() || nodes.len() > NODES_MAX {
            return Err(TicketError::Malformed);
        }
        let mut expires = [0; 4];
        expires.copy_from_slice(&head[1..5]);
        let mut content = [0; 16];
        content.copy_from_slice(&head[5..]);
        let nodes = nodes.iter().map(|bytes| NodeId(u32::from_be_bytes(*bytes))).collect();
        Ok((Self { expires: u32::from_be_bytes(expires), content, nodes }, *mac))
    }
}

/// A node's secret under which control seals its tickets; known to that node and to control.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TicketKey(#[serde(with = "crate::enrol::secret_text")] pub [u8; 32]);

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey(..)")
    }
}

/// Why a ticket opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It is no ticket at all.
    #[error("this is no ticket; ask the front door for the file again")]
    Malformed,
    /// It was altered, or sealed for another path or by another node's key.
    #[error("the ticket is not for this file on this server, or was altered; ask the front door again")]
    Forged,
    /// Too late.
    #[error("the ticket expired {seconds} s ago; ask the front door for the file again")]
    Expired {
        /// By how much.
        seconds: u64,
    },
    /// The customer was sent around long enough.
    #[error("a customer is sent to {NODES_MAX} volunteers at most")]
    TooManyNodes,
}

impl TicketKey {
    /// The key made ready for sealing many tickets.
    pub fn sealer(&self) -> Sealer {
        Sealer(Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length"))
    }
}

/// A [`TicketKey`] made ready for many tickets: what is the same for all of them was hashed once.
#[derive(Clone)]
pub struct Sealer(Hmac<Sha256>);

impl Sealer {
    /// Appends the text that [`Ticket::seal`] gives for `node` after `tried`, without any allocation but `text`'s own.
    ///
    /// # Errors
    /// [`TicketError::TooManyNodes`] when `tried` leaves no room; nothing is appended then.
    pub fn seal_into(
        &self,
        text: &mut Vec<u8>,
        expires: u32,
        content: &ContentHash,
        tried: &[NodeId],
        node: NodeId,
        path: &[u8],
    ) -> Result<(), TicketError> {
        if tried.len() >= NODES_MAX {
            return Err(TicketError::TooManyNodes);
        }
        let mut bytes = [0; HEAD_BYTES + 4 * NODES_MAX + MAC_BYTES];
        bytes[0] = VERSION;
        bytes[1..5].copy_from_slice(&expires.to_be_bytes());
        bytes[5..HEAD_BYTES].copy_from_slice(&content.prefix());
        let mut length = HEAD_BYTES;
        for node in tried.iter().chain([&node]) {
            bytes[length..length + 4].copy_from_slice(&node.0.to_be_bytes());
            length += 4;
        }
        let sealed = self.mac(&bytes[..length], path);
        bytes[length..length + MAC_BYTES].copy_from_slice(&sealed);
        let begin = text.len();
        text.resize(begin + TEXT_BYTES_MAX, 0);
        let written = URL_SAFE_NO_PAD
            .encode_slice(&bytes[..length + MAC_BYTES], &mut text[begin..])
            .expect("the longest ticket has room");
        text.truncate(begin + written);
        Ok(())
    }

    fn mac(&self, payload: &[u8], path: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = self.0.clone();
        mac.update(DOMAIN);
        mac.update(&[payload.len() as u8]);
        mac.update(payload);
        mac.update(path);
        let mut truncated = [0; MAC_BYTES];
        truncated.copy_from_slice(&mac.finalize().into_bytes()[..MAC_BYTES]);
        truncated
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(..)")
    }
}

fn mac(key: &TicketKey, payload: &[u8], path: &[u8]) -> [u8; MAC_BYTES] {
    key.sealer().mac(payload, path)
}

/// How many volunteers one customer is sent to for one file before the origin serves it.
pub const NODES_MAX: usize = 4;

const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"freshet ticket 1\0";
const HEAD_BYTES: usize = 1 + 4 + 16;
const MAC_BYTES: usize = 16;
const TEXT_BYTES_MAX: usize = (HEAD_BYTES + 4 * NODES_MAX + MAC_BYTES).div_ceil(3) * 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sealer_writes_what_a_ticket_does() {
        let (content, path) = (ContentHash([7; 32]), b"/pool/a.deb");
        for tried in [&[][..], &[NodeId(3)], &[NodeId(3), NodeId(1 << 30), NodeId(9)]] {
            let mut text = b"http://host/pool/a.deb?t=".to_vec();
            let begin = text.len();
            key(4).sealer().seal_into(&mut text, 99, &content, tried, NodeId(5), path).unwrap();
            let ticket = Ticket::new(99, &content, tried, NodeId(5)).unwrap();
            assert_eq!(&text[begin..], ticket.seal(&key(4), path).as_bytes());
        }
        let mut text = Vec::new();
        let many = [NodeId(1); NODES_MAX];
        assert_eq!(
            key(4).sealer().seal_into(&mut text, 99, &content, &many, NodeId(5), path),
            Err(TicketError::TooManyNodes)
        );
        assert!(text.is_empty());
    }

    fn key(byte: u8) -> TicketKey {
        TicketKey([byte; 32])
    }

    fn ticket() -> Ticket {
        Ticket::new(1_000, &ContentHash([7; 32]), &[NodeId(3)], NodeId(9)).unwrap()
    }

    #[test]
    fn a_ticket_opens_what_it_was_sealed_for() {
        let text = ticket().seal(&key(1), b"/pool/a.deb");
        let opened = Ticket::open(&text, &key(1), b"/pool/a.deb", 1_000).unwrap();
        assert_eq!(opened, ticket());
        assert_eq!(opened.nodes(), [NodeId(3), NodeId(9)]);
        assert_eq!(Ticket::claimed_node(&text), Ok(NodeId(9)));
    }

    #[test]
    fn another_path_key_or_time_is_refused() {
        let text = ticket().seal(&key(1), b"/pool/a.deb");
        assert_eq!(Ticket::open(&text, &key(1), b"/pool/b.deb", 1), Err(TicketError::Forged));
        assert_eq!(Ticket::open(&text, &key(2), b"/pool/a.deb", 1), Err(TicketError::Forged));
        assert_eq!(
            Ticket::open(&text, &key(1), b"/pool/a.deb", 1_001),
            Err(TicketError::Expired { seconds: 1 })
        );
    }

    #[test]
    fn no_customer_is_sent_round_for_ever() {
        let tried: Vec<NodeId> = (1..=NODES_MAX as u32).map(NodeId).collect();
        assert_eq!(Ticket::new(1, &ContentHash([0; 32]), &tried, NodeId(99)), Err(TicketError::TooManyNodes));
        let full = Ticket::new(1, &ContentHash([0; 32]), &tried[1..], NodeId(99)).unwrap();
        let text = full.seal(&key(1), b"/");
        assert_eq!(Ticket::open(&text, &key(1), b"/", 0).unwrap(), full);
    }

    proptest! {
        #[test]
        fn no_altered_character_passes(position in 0usize..60, replacement in "[A-Za-z0-9_-]") {
            let text = ticket().seal(&key(1), b"/pool/a.deb");
            let position = position % text.len();
            let mut altered = text.clone();
            altered.replace_range(position..=position, &replacement);
            let outcome = Ticket::open(&altered, &key(1), b"/pool/a.deb", 1);
            prop_assert_eq!(outcome.is_ok(), altered == text);
        }

        #[test]
        fn rubbish_never_panics(text in ".{0,200}") {
            prop_assert!(Ticket::open(&text, &key(1), b"/", 1).is_err());
        }
    }
}
