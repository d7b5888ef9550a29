//! The grammar of `Range: bytes=` (RFC 9110 section 14) and what its ranges come to; it sends nothing.

use std::ops::Range;

/// What a `Range` field asks of a representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// The field is to be ignored: another unit, a broken grammar, or more ranges than allowed.
    Ignored,
    /// No range overlaps the representation: 416.
    Unsatisfiable,
    /// One or more ranges within the representation, in the order asked, overlaps and neighbours joined.
    Satisfiable(Vec<Range<u64>>),
}

impl Ranges {
    /// Reads a field's value for a representation of `size` bytes, taking at most `ranges_max` ranges.
    ///
    /// Ranges that overlap, touch, or lie closer than the part header between them would cost are joined
    /// (section 14.2 and 17.15 allow it, and ask for it against floods of small ranges).
    pub(crate) fn read(value: &[u8], size: u64, ranges_max: usize) -> Self {
        let Ok(text) = std::str::from_utf8(value) else { return Self::Ignored };
        let Some((unit, set)) = text.split_once('=') else { return Self::Ignored };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::Ignored;
        }
        let mut found = Vec::new();
        let mut asked = 0;
        for part in set.split(',').map(|part| part.trim_matches([' ', '\t'])) {
            // RFC 9110 section 5.6.1.2: empty list elements are skipped.
            if part.is_empty() {
                continue;
            }
            asked += 1;
            if asked > ranges_max {
                return Self::Ignored;
            }
            match one(part, size) {
                None => return Self::Ignored,
                Some(range) if range.is_empty() => {}
                Some(range) => found.push(range),
            }
        }
        match (asked, found.is_empty()) {
            (0, _) => Self::Ignored,
            (_, true) => Self::Unsatisfiable,
            (_, false) => Self::Satisfiable(coalesce(found)),
        }
    }
}

/// `first-last`, `first-` or `-suffix`; an empty range when it lies outside; `None` when it is no range.
fn one(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.split_once('-')?;
    match (first, last) {
        ("", suffix) => {
            let length = number(suffix)?.min(size);
            Some(size - length..size)
        }
        (first, "") => {
            let first = number(first)?;
            Some(first.min(size)..size)
        }
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then(|| first.min(size)..last.saturating_add(1).min(size))
        }
    }
}

/// Decimal digits; what is above `u64::MAX` lies beyond every file anyway.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// Joins ranges that lie close together, keeping the place of the one that was asked for first.
fn coalesce(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for mut range in ranges {
        let mut place = joined.len();
        let mut index = 0;
        while index < joined.len() {
            let other = &joined[index];
            if range.start <= other.end.saturating_add(GAP_JOINED)
                && other.start <= range.end.saturating_add(GAP_JOINED)
            {
                range = range.start.min(other.start)..range.end.max(other.end);
                joined.remove(index);
                place = place.min(index);
                // The grown range may now touch one that was passed already.
                index = 0;
            } else {
                index += 1;
            }
        }
        joined.insert(place.min(joined.len()), range);
    }
    joined
}

/// Bytes between two ranges that are sent rather than skipped: about what a part header costs.
const GAP_JOINED: u64 = 80;

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "one range is what is meant")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(value: &str) -> Ranges {
        Ranges::read(value.as_bytes(), 10_000, 4)
    }

    #[test]
    fn grammar() {
        use Ranges::{Ignored, Satisfiable, Unsatisfiable};
        for (value, expected) in [
            ("bytes=0-0", Satisfiable(vec![0..1])),
            ("bytes=0-", Satisfiable(vec![0..10_000])),
            ("Bytes = 5-9", Satisfiable(vec![5..10])),
            ("bytes=-1", Satisfiable(vec![9_999..10_000])),
            ("bytes=-99999", Satisfiable(vec![0..10_000])),
            ("bytes=9999-99999999999999999999999", Satisfiable(vec![9_999..10_000])),
            ("bytes=10000-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=20000-,0-1", Satisfiable(vec![0..2])),
            ("bytes=0-1, 5000-5001", Satisfiable(vec![0..2, 5_000..5_002])),
            ("bytes=5000-5001,0-1", Satisfiable(vec![5_000..5_002, 0..2])),
            ("bytes=0-9,,5-20,", Satisfiable(vec![0..21])),
            ("bytes=0-1,9000-9001,1000-1001,2-1500", Satisfiable(vec![0..1_501, 9_000..9_002])),
            ("bytes=1-0", Ignored),
            ("bytes=", Ignored),
            ("bytes=,", Ignored),
            ("bytes=a-b", Ignored),
            ("bytes=1", Ignored),
            ("bytes=--1", Ignored),
            ("bytes=+1-2", Ignored),
            ("bytes 0-1", Ignored),
            ("pages=0-1", Ignored),
            ("bytes=0-0,500-500,1000-1000,1500-1500,2000-2000", Ignored),
        ] {
            assert_eq!(read(value), expected, "{value}");
        }
    }

    #[test]
    fn an_empty_representation_satisfies_nothing() {
        assert_eq!(Ranges::read(b"bytes=0-", 0, 4), Ranges::Unsatisfiable);
        assert_eq!(Ranges::read(b"bytes=-5", 0, 4), Ranges::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn joined_ranges_cover_what_was_asked(asked in prop::collection::vec((0_u64..5_000, 0_u64..300), 1..12)) {
            let value = asked.iter().map(|(first, length)| format!("{first}-{}", first + length)).collect::<Vec<_>>();
            let read = Ranges::read(format!("bytes={}", value.join(",")).as_bytes(), 4_000, 12);
            let inside: Vec<u64> =
                asked.iter().flat_map(|&(first, length)| first..=first + length).filter(|&at| at < 4_000).collect();
            match read {
                Ranges::Satisfiable(ranges) => {
                    for at in inside {
                        prop_assert_eq!(ranges.iter().filter(|range| range.contains(&at)).count(), 1);
                    }
                    for range in &ranges {
                        prop_assert!(range.start < range.end && range.end <= 4_000);
                    }
                }
                Ranges::Unsatisfiable => prop_assert!(inside.is_empty()),
                Ranges::Ignored => prop_assert!(false, "a valid set was ignored"),
            }
        }

        #[test]
        fn nothing_panics(value: Vec<u8>, size: u64) {
            let _ = Ranges::read(&value, size, 16);
        }
    }
}
