//! The bounds of the engine, each with a name, a unit and a default.

use std::time::Duration;

/// What the engine never exceeds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections over all rings; further ones are closed at once.
    pub connections_max: usize,
    /// Open connections of one client address (a /64 counts as one for IPv6); `None` is a quarter of
    /// `connections_max`, so that no one client has all places.
    pub connections_per_address_max: Option<usize>,
    /// Bytes of a request's head; above: 431 and close.
    pub head_bytes_max: usize,
    /// Header fields of a request; above: 431 and close.
    pub head_fields_max: usize,
    /// Bytes of a request body that are drained; above: 413 and close.
    pub body_drain_bytes_max: u64,
    /// Ranges in one request; above, the whole file is sent.
    pub ranges_max: usize,
    /// Time for a whole head since its first byte (or since the connection was accepted).
    pub head_timeout: Duration,
    /// Time without progress while sending.
    pub send_timeout: Duration,
    /// Idle time between requests of one connection.
    pub idle_timeout: Duration,
    /// Files up to this many bytes are served from memory.
    pub memory_file_bytes_max: u64,
    /// Bytes of the memory cache, over all rings.
    pub memory_cache_bytes_max: u64,
    /// Cached open descriptors, over all rings.
    pub descriptors_max: usize,
    /// How long a cached descriptor is trusted before it is compared with the path again.
    pub revalidate_after: Duration,
}

impl Limits {
    /// Open connections that one client address may have.
    pub fn connections_of_one_address(&self) -> usize {
        self.connections_per_address_max.unwrap_or(self.connections_max.div_ceil(ADDRESSES_MIN))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_address_max: None,
            head_bytes_max: 16 * 1024,
            head_fields_max: 64,
            body_drain_bytes_max: 64 * 1024,
            ranges_max: 16,
            head_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(75),
            memory_file_bytes_max: 16 * 1024,
            memory_cache_bytes_max: 64 << 20,
            descriptors_max: 8_192,
            revalidate_after: Duration::from_millis(500),
        }
    }
}

/// Client addresses that it takes at least to have all connections, unless a bound is set.
const ADDRESSES_MIN: usize = 4;
