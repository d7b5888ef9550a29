//! Properties over sockets: how bytes are cut on their way changes nothing, and a range is a slice of the file.
#![allow(clippy::unwrap_used, reason = "a panic here is a failed test")]

mod support;

use std::sync::LazyLock;

use proptest::prelude::*;
use support::{Client, Response, Served, pattern, request};

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(300_000));

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let served = Served::new();
    served.file("small", &CONTENT[..5_000]);
    served.file("middle", &CONTENT[..50_000]);
    served.file("large", &*CONTENT);
    served
});

/// Requests of a pipelined stream, and whether each is a HEAD.
fn requests() -> impl Strategy<Value = Vec<(String, bool)>> {
    let target = prop::sample::select(vec!["/small", "/middle", "/large", "/none", "/sm%61ll?x"]);
    let fields = prop::sample::subsequence(
        vec!["Range: bytes=10-4000", "If-None-Match: \"x\"", "X-Filler: aaaaaaaaaaaaaaaaaaaa", "Accept: */*"],
        0..=4,
    );
    let body = prop::sample::select(vec![
        (None, ""),
        (Some("Content-Length: 7"), "1234567"),
        (Some("Transfer-Encoding: chunked"), "3;x\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nT: x\r\n\r\n"),
    ]);
    let method = prop::sample::select(vec!["GET", "HEAD", "OPTIONS", "POST"]);
    let one = (method, target, fields, body).prop_map(|(method, target, mut fields, (framing, body))| {
        fields.extend(framing);
        (request(method, target, &fields) + body, method == "HEAD")
    });
    prop::collection::vec(one, 1..8)
}

fn responses(client: &mut Client, requests: &[(String, bool)]) -> Vec<Response> {
    requests
        .iter()
        .map(|(_, to_head)| {
            let mut response = client.response_to(*to_head);
            response.fields.retain(|(name, _)| name != "date");
            response
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_responses(
        requests in requests(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let stream: String = requests.iter().map(|(text, _)| text.as_str()).collect();
        let one_by_one: Vec<Response> = requests
            .iter()
            .flat_map(|request| {
                let mut client = SERVED.connect();
                client.send(&request.0);
                responses(&mut client, std::slice::from_ref(request))
            })
            .collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let mut client = SERVED.connect();
        for piece in cuts.windows(2) {
            client.send(&stream[piece[0]..piece[1]]);
            // Gives the server a chance to read the piece alone; nothing depends on whether it does.
            std::thread::yield_now();
        }
        prop_assert_eq!(responses(&mut client, &requests), one_by_one);
    }

    #[test]
    fn any_single_range_is_a_slice(
        name in prop::sample::select(vec![("small", 5_000_u64), ("middle", 50_000), ("large", 300_000)]),
        first in prop::option::of(0_u64..310_000),
        last in prop::option::of(0_u64..310_000),
    ) {
        let (name, size) = name;
        let text = |bound: Option<u64>| bound.map(|bound| bound.to_string()).unwrap_or_default();
        let field = format!("Range: bytes={}-{}", text(first), text(last));
        let response = SERVED.get(&format!("/{name}"), &[&field]);
        let expected = match (first, last) {
            (None, None) => None,
            (None, Some(suffix)) => Some(size.saturating_sub(suffix)..size),
            (Some(first), None) => Some(first..size),
            (Some(first), Some(last)) if first <= last => Some(first..(last + 1).min(size)),
            (Some(_), Some(_)) => None,
        };
        match expected {
            None => prop_assert_eq!(response.status, 200),
            Some(range) if range.start >= range.end => prop_assert_eq!(response.status, 416),
            Some(range) => {
                prop_assert_eq!(response.status, 206);
                let place = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                prop_assert_eq!(response.field("content-range"), Some(place.as_str()));
                let slice = &CONTENT[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
                prop_assert!(response.body == slice);
            }
        }
    }

    #[test]
    fn any_ranges_are_slices(
        name in prop::sample::select(vec![("small", 5_000_u64), ("large", 300_000)]),
        ranges in prop::collection::vec((0_u64..310_000, 0_u64..20_000), 2..10),
    ) {
        let (name, size) = name;
        let set: Vec<String> = ranges.iter().map(|(first, length)| format!("{first}-{}", first + length)).collect();
        let response = SERVED.get(&format!("/{name}"), &[&format!("Range: bytes={}", set.join(", "))]);
        if response.status == 416 {
            prop_assert!(ranges.iter().all(|&(first, _)| first >= size));
            return Ok(());
        }
        prop_assert_eq!(response.status, 206);
        let mut covered: Vec<(u64, u64)> = Vec::new();
        if let Some(place) = response.field("content-range") {
            covered.push(check(place, size, &response.body)?);
        } else {
            let kind = response.field("content-type").unwrap();
            let boundary = format!("--{}", kind.split_once("boundary=").unwrap().1);
            let mut rest = &response.body[..];
            loop {
                let after = rest.strip_prefix(boundary.as_bytes()).unwrap();
                if after == b"--\r\n" {
                    break;
                }
                let end = after.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
                let head = std::str::from_utf8(&after[..end]).unwrap();
                let place = head.split("Content-Range: ").nth(1).unwrap();
                let length = length_of(place);
                let body = &after[end + 4..];
                covered.push(check(place, size, &body[..length])?);
                rest = body[length..].strip_prefix(b"\r\n").unwrap();
            }
        }
        for (first, length) in ranges {
            if first < size {
                let last = (first + length).min(size - 1);
                prop_assert!(covered.iter().any(|&(start, end)| start <= first && last <= end));
            }
        }
    }
}

fn bounds(place: &str) -> (u64, u64) {
    let (first, last) =
        place.trim_start_matches("bytes ").split('/').next().unwrap().split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().unwrap())
}

fn length_of(place: &str) -> usize {
    let (first, last) = bounds(place);
    usize::try_from(last - first + 1).unwrap()
}

fn check(place: &str, size: u64, body: &[u8]) -> Result<(u64, u64), TestCaseError> {
    let (first, last) = bounds(place);
    let of_size = format!("/{size}");
    prop_assert!(place.ends_with(&of_size));
    prop_assert!(body == &CONTENT[usize::try_from(first).unwrap()..=usize::try_from(last).unwrap()]);
    Ok((first, last))
}
