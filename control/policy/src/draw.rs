//! Numbers drawn from a seed that the caller passes in. Holds no entropy of its own.

/// A sequence of numbers determined by its seed (splitmix64; Steele, Lea, Flood, OOPSLA 2014).
///
/// Good enough to sample candidates and spread retries; never for secrets.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `0..bound`; 0 when `bound` is 0. The bias is below `bound / 2^64`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A number in `0.0..1.0`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Spreads the bits of `value` over all 64 (the finaliser of splitmix64); a bijection.
pub fn mix(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_sequence() {
        let (mut a, mut b) = (Draw::new(7), Draw::new(7));
        assert!((0..100).all(|_| a.bits() == b.bits()));
        assert_ne!(Draw::new(7).bits(), Draw::new(8).bits());
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut draw = Draw::new(1);
        let mut seen = [0u32; 10];
        (0..100_000).for_each(|_| seen[draw.below(10)] += 1);
        assert!(seen.iter().all(|&n| (9_500..10_500).contains(&n)), "{seen:?}");
        assert_eq!(draw.below(0), 0);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&draw.unit())));
    }
}
