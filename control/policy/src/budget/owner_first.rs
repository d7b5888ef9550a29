//! The owner's own traffic first: what it leaves of the link, with headroom, is the donation.

use freshet_api::BytesPerSec;

/// How the link is left to its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerFirst {
    /// What the link carries.
    pub link: BytesPerSec,
    /// Kept free beyond the owner's present traffic, so that it can grow between two ticks.
    pub margin: BytesPerSec,
}

impl OwnerFirst {
    /// What may be donated while the owner's own traffic is `owner`: `0.95 link - 1.15 owner - margin`.
    ///
    /// The 5 % keep the queue at the bottleneck empty; the 15 % follow growth within a tick.
    pub fn allowance(&self, owner: BytesPerSec) -> BytesPerSec {
        let usable = self.link.0 as f64 * LINK_PART;
        let left = usable - owner.0 as f64 * OWNER_PART - self.margin.0 as f64;
        // A float-to-int cast takes what is negative to 0.
        BytesPerSec(left as u64)
    }
}

const LINK_PART: f64 = 0.95;
const OWNER_PART: f64 = 1.15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_owner_leaves_is_given() {
        let law = OwnerFirst { link: BytesPerSec(10_000_000), margin: BytesPerSec(100_000) };
        assert_eq!(law.allowance(BytesPerSec(0)), BytesPerSec(9_400_000));
        assert_eq!(law.allowance(BytesPerSec(5_000_000)), BytesPerSec(3_650_000));
        assert_eq!(law.allowance(BytesPerSec(9_000_000)), BytesPerSec(0));
    }
}
