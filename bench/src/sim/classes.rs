//! In which class of an [`Uplink`](super::uplink::Uplink) a flow is: by what its receiver takes and, where small downloads go
//! first, by its weight.

use freshet_policy::pacing::{SMALL_COUNTS, Weight};

use super::uplink::Receiver;

/// The classes of all uplinks.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    /// Ascending by limit over weight.
    pub(super) receivers: Vec<Receiver>,
    /// Where among them each rate stands, by weight.
    places: [Vec<usize>; 2],
}

impl Classes {
    /// For receivers at `limits`, ascending. Without `small_first` all weights are in the same classes.
    pub(super) fn of(limits: &[f64], small_first: bool) -> Classes {
        let of_weight = |weight: f64| limits.iter().map(move |&limit| Receiver { limit, weight });
        if !small_first {
            let all: Vec<usize> = (0..limits.len()).collect();
            return Classes { receivers: of_weight(1.0).collect(), places: [all.clone(), all] };
        }
        let both = of_weight(SMALL_COUNTS as f64).chain(of_weight(1.0)).enumerate();
        let mut all: Vec<(usize, Receiver)> = both.collect();
        let key = |receiver: &Receiver| receiver.limit / receiver.weight;
        all.sort_by(|(_, a), (_, b)| key(a).total_cmp(&key(b)));
        let mut small = vec![0; all.len()];
        for (place, &(number, _)) in all.iter().enumerate() {
            small[number] = place;
        }
        let large = small.split_off(limits.len());
        Classes { receivers: all.into_iter().map(|(_, receiver)| receiver).collect(), places: [small, large] }
    }

    /// The class of a flow to a receiver at the limit with the number `limit`.
    pub(super) fn place(&self, weight: Weight, limit: usize) -> usize {
        self.places[weight as usize][limit]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_both_weights_are_in_the_order_of_sharing() {
        let limits = [10.0, 40.0, 1000.0];
        let alike = Classes::of(&limits, false);
        assert_eq!((alike.receivers.len(), &alike.places[0]), (3, &alike.places[1]));
        let Classes { receivers, places: [small, large] } = Classes::of(&limits, true);
        assert_eq!(receivers.len(), 6);
        assert!(receivers.is_sorted_by_key(|receiver| receiver.limit / receiver.weight));
        for (class, &limit) in limits.iter().enumerate() {
            assert_eq!(receivers[small[class]], Receiver { limit, weight: SMALL_COUNTS as f64 });
            assert_eq!(receivers[large[class]], Receiver { limit, weight: 1.0 });
        }
    }
}
