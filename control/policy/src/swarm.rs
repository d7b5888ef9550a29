//! How volunteers copy a bundle among themselves: who gets which piece from the origin, who asks whom
//! for what, and how large pieces are. No sockets, no clock.

mod lease;
mod origin_rate;
mod picker;
mod piece_set;
mod relay;
#[cfg(test)]
mod simulation;
mod suspicion;

use freshet_api::Bytes;

pub use self::lease::{ENDGAME_PART, Granted, Joining, Lease, LeaseBook, LeaseTerms, Progress};
pub use self::origin_rate::OriginRate;
pub use self::picker::{Picker, PieceOrder, Pull};
pub use self::piece_set::PieceSet;
pub use self::relay::{Relay, RelayFigures, RelaySource, RelayTerms};
pub use self::suspicion::{Suspicions, accusers_needed};

/// The size of the pieces of a bundle of `size` bytes that `peers` volunteers copy: about fifty pieces
/// per volunteer, so that nobody waits long for the last, as a power of two within 16 KiB ..= 1 MiB,
/// so that a piece fills a socket buffer and a lost one costs little.
///
/// Every volunteer gets the hashes of all pieces from the origin: pieces are never so small that this
/// is more than a fiftieth of a copy.
pub fn piece_size(size: Bytes, peers: usize) -> Bytes {
    let peers = peers.max(1) as u64;
    let ideal = size.0 / (PIECES_PER_PEER * peers);
    let power = 1u64 << (63 - ideal.max(1).leading_zeros());
    let worth_its_hash = (HASH_BYTES * HASHES_PART * peers).next_power_of_two();
    Bytes(power.max(worth_its_hash).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX))
}

/// The shortest time in which `peers` can have `size` bytes from an origin that sends `origin`, when
/// they send `uplinks` together and the slowest receives `downlink_min`; in seconds (Kumar and Ross,
/// "Peer-assisted file distribution: the minimum distribution time", 2006).
pub fn distribution_secs_min(size: Bytes, peers: usize, origin: f64, uplinks: f64, downlink_min: f64) -> f64 {
    let size = size.0 as f64;
    (size / origin).max(size * peers as f64 / (origin + uplinks)).max(size / downlink_min)
}

const PIECES_PER_PEER: u64 = 50;
const HASH_BYTES: u64 = 32;
/// The hashes that all volunteers get are at most one part in so many of a copy.
const HASHES_PART: u64 = 50;
const PIECE_BYTES_MIN: u64 = 16 << 10;
const PIECE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_powers_of_two_within_their_bounds() {
        assert_eq!(piece_size(Bytes(4_000_000_000), 40), Bytes(1 << 20));
        assert_eq!(piece_size(Bytes(400_000_000), 40), Bytes(128 << 10));
        assert_eq!(piece_size(Bytes(50_000_000), 40), Bytes(64 << 10));
        assert_eq!(piece_size(Bytes(10), 4), Bytes(16 << 10));
        assert_eq!(piece_size(Bytes(0), 0), Bytes(16 << 10));
    }

    #[test]
    fn each_of_the_three_bounds_can_bind() {
        assert_eq!(distribution_secs_min(Bytes(1000), 4, 10.0, 1e9, 1e9), 100.0);
        assert_eq!(distribution_secs_min(Bytes(1000), 4, 100.0, 100.0, 1e9), 20.0);
        assert_eq!(distribution_secs_min(Bytes(1000), 4, 1e9, 1e9, 5.0), 200.0);
    }
}
