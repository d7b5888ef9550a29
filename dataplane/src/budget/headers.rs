//! What a byte of payload comes to on the wire, measured: the owner's figure counts the wire, the pacers grant payload.
//!
//! Headers differ with the address family and the size of segments; heads of responses, redirects, acknowledgements and
//! what is sent again are granted by nobody and count all the same.

use std::net::SocketAddr;
use std::time::Duration;

use freshet_policy::Moment;

/// Bytes on the wire for each byte granted, smoothed over some seconds.
#[derive(Clone, Copy, Debug)]
pub struct WireShare {
    ratio: f64,
    /// Where the present span began.
    since: Option<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    wire: u64,
    payload: u64,
    at: Moment,
}

impl WireShare {
    /// Full segments of IPv4, until something was measured.
    pub const FULL_SEGMENTS: Self = Self { ratio: SEGMENT_WIRE_BYTES / SEGMENT_PAYLOAD_BYTES, since: None };

    /// Full segments as clients of these addresses get them; where some come by IPv6, as if all did.
    pub fn of(locals: &[SocketAddr]) -> Self {
        let payload = if locals.iter().any(SocketAddr::is_ipv6) {
            SEGMENT_PAYLOAD_V6_BYTES
        } else {
            SEGMENT_PAYLOAD_BYTES
        };
        Self { ratio: SEGMENT_WIRE_BYTES / payload, since: None }
    }

    /// Takes in two counts that only grow: what left by the wire, and what was granted of it.
    pub fn observe(&mut self, wire: u64, payload: u64, now: Moment) {
        let Some(since) = self.since else {
            self.since = Some(Span { wire, payload, at: now });
            return;
        };
        let took = now.since(since.at);
        if took < SPAN_MIN {
            return;
        }
        let sent = payload.saturating_sub(since.payload);
        if sent < SPAN_PAYLOAD_MIN {
            // Too little to tell headers from what stood in a socket's buffer before.
            if took >= SPAN_MAX {
                self.since = Some(Span { wire, payload, at: now });
            }
            return;
        }
        // What was granted may still wait in a socket's buffer: less than full segments is never believed.
        let measured = wire.saturating_sub(since.wire) as f64 / sent as f64;
        let measured = measured.clamp(SEGMENT_WIRE_BYTES / SEGMENT_PAYLOAD_BYTES, RATIO_MAX);
        self.ratio += (measured - self.ratio) * WEIGHT;
        self.since = Some(Span { wire, payload, at: now });
    }

    /// Bytes on the wire for each byte of payload, from full segments (1514/1448) to 3.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }
}

/// Ethernet, IPv4 and TCP with timestamps.
const SEGMENT_WIRE_BYTES: f64 = 1_514.0;
const SEGMENT_PAYLOAD_BYTES: f64 = 1_448.0;
/// The same with IPv6, whose header is 20 bytes longer.
const SEGMENT_PAYLOAD_V6_BYTES: f64 = 1_428.0;
/// Beyond it the difference is no header any more, and less payload would not help.
const RATIO_MAX: f64 = 3.0;
const SPAN_MIN: Duration = Duration::from_secs(2);
const SPAN_MAX: Duration = Duration::from_secs(20);
const SPAN_PAYLOAD_MIN: u64 = 512 << 10;
/// Of a new span; some ten seconds until a change is nearly whole.
const WEIGHT: f64 = 0.3;

#[cfg(test)]
mod tests {
    use super::*;

    /// After a minute at a megabyte a second.
    fn after(wire_per_payload: f64) -> f64 {
        let mut share = WireShare::FULL_SEGMENTS;
        for tenth in 0..600_u64 {
            let payload = tenth * 100_000;
            let wire = (payload as f64 * wire_per_payload) as u64;
            share.observe(wire, payload, Moment::ZERO + Duration::from_millis(tenth * 100));
        }
        share.ratio()
    }

    #[test]
    fn other_headers_are_learnt() {
        for ratio in [1_514.0 / 1_428.0, 1.3, 2.5] {
            assert!((after(ratio) / ratio - 1.0).abs() < 0.002, "{ratio}: {}", after(ratio));
        }
    }

    #[test]
    fn no_less_than_full_segments_and_no_more_than_thrice() {
        assert!((after(0.1) - 1_514.0 / 1_448.0).abs() < 1e-9);
        assert!((after(50.0) - RATIO_MAX).abs() < 0.01);
    }

    #[test]
    fn a_little_payload_says_nothing() {
        let mut share = WireShare::FULL_SEGMENTS;
        for second in 0..100 {
            share.observe(second * 1_000_000, second * 1_000, Moment::ZERO + Duration::from_secs(second));
        }
        assert!((share.ratio() - 1_514.0 / 1_448.0).abs() < 1e-9);
    }
}
