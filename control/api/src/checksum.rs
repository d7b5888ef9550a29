//! BLAKE3, SHA-256 and MD4 of a file in one pass, and the header fields that carry them.
//!
//! BLAKE3 is Freshet's own identity. SHA-256 is what a customer checks. MD4 is published because the design
//! asks for it; it is broken (RFC 6150) and decides nothing by itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::id::ContentHash;

/// The three checksums of one content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Checksums {
    /// Identity.
    pub blake3: ContentHash,
    /// For customers.
    #[serde(with = "hex_array")]
    pub sha256: [u8; 32],
    /// For customers, beside SHA-256 only.
    #[serde(with = "hex_array")]
    pub md4: [u8; 16],
}

impl Checksums {
    /// Of a content in memory.
    pub fn of(content: &[u8]) -> Self {
        let mut hasher = ChecksumHasher::new();
        hasher.update(content);
        hasher.finish()
    }

    /// SHA-256 in 64 lower-case hexadecimal digits, as `sha256sum` prints it.
    pub fn sha256_hex(&self) -> String {
        hex::encode(self.sha256)
    }

    /// MD4 in 32 lower-case hexadecimal digits.
    pub fn md4_hex(&self) -> String {
        hex::encode(self.md4)
    }

    /// The value of `Repr-Digest` (RFC 9530): `sha-256=:…:`.
    pub fn repr_digest(&self) -> String {
        format!("sha-256=:{}:", STANDARD.encode(self.sha256))
    }

    /// The value of `Digest` (RFC 3230), for clients that know the older field only: `SHA-256=…`.
    pub fn digest(&self) -> String {
        format!("SHA-256={}", STANDARD.encode(self.sha256))
    }

    /// A strong entity tag with its quotes, from the content's identity.
    pub fn etag(&self) -> String {
        self.blake3.etag()
    }
}

/// Computes [`Checksums`] from a content that is fed in parts.
#[derive(Clone, Debug)]
pub struct ChecksumHasher {
    blake3: blake3::Hasher,
    sha256: sha2::Sha256,
    md4: md4::Md4,
    length: u64,
}

impl ChecksumHasher {
    /// Of nothing so far.
    pub fn new() -> Self {
        Self { blake3: blake3::Hasher::new(), sha256: sha2::Sha256::new(), md4: md4::Md4::new(), length: 0 }
    }

    /// Adds a part; parts of 64 KiB and more keep all three in the processor's cache.
    pub fn update(&mut self, part: &[u8]) {
        self.blake3.update(part);
        self.sha256.update(part);
        self.md4.update(part);
        self.length += part.len() as u64;
    }

    /// Bytes fed so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The checksums of all that was fed.
    pub fn finish(self) -> Checksums {
        Checksums {
            blake3: self.blake3.finalize().into(),
            sha256: self.sha256.finalize().into(),
            md4: self.md4.finalize().into(),
        }
    }
}

impl Default for ChecksumHasher {
    fn default() -> Self {
        Self::new()
    }
}

/// Byte arrays as hexadecimal text where people read, as they are elsewhere.
mod hex_array {
    use serde::{Deserialize as _, Serialize as _};

    pub(super) fn serialize<S: serde::Serializer, const N: usize>(
        bytes: &[u8; N],
        s: S,
    ) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.serialize_str(&hex::encode(bytes))
        } else {
            bytes.as_slice().serialize(s)
        }
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>, const N: usize>(
        d: D,
    ) -> Result<[u8; N], D::Error> {
        let mut bytes = [0; N];
        if d.is_human_readable() {
            let text = String::deserialize(d)?;
            hex::decode_to_slice(text, &mut bytes)
                .map_err(|_| serde::de::Error::custom(format!("expected {} hexadecimal digits", 2 * N)))?;
        } else {
            let found = Vec::<u8>::deserialize(d)?;
            if found.len() != N {
                return Err(serde::de::Error::invalid_length(found.len(), &"a checksum of the right length"));
            }
            bytes.copy_from_slice(&found);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_come_out() {
        let sums = Checksums::of(b"abc");
        // RFC 1320 appendix A.5; FIPS 180-4 example; BLAKE3 reference vector for "abc".
        assert_eq!(sums.md4_hex(), "a448017aaf21d8525fc10ae87aa6729d");
        assert_eq!(sums.sha256_hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(sums.blake3.to_hex(), "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
        assert_eq!(sums.digest(), "SHA-256=ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    }

    #[test]
    fn parts_do_not_matter() {
        let content: Vec<u8> = (0..100_000u32).map(|i| (i * 7) as u8).collect();
        for part in [1, 63, 64, 4096, 99_999] {
            let mut hasher = ChecksumHasher::new();
            content.chunks(part).for_each(|chunk| hasher.update(chunk));
            assert_eq!(hasher.length(), content.len() as u64);
            assert_eq!(hasher.finish(), Checksums::of(&content));
        }
    }

    #[test]
    fn both_encodings_are_read_back() {
        let sums = Checksums::of(b"x");
        assert_eq!(serde_json::from_str::<Checksums>(&serde_json::to_string(&sums).unwrap()).unwrap(), sums);
        assert_eq!(postcard::from_bytes::<Checksums>(&postcard::to_stdvec(&sums).unwrap()).unwrap(), sums);
    }
}
