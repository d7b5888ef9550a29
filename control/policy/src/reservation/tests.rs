//! What the ledger keeps, moves, confirms and forgets, and that nothing leaks whatever happens.

use proptest::prelude::*;

use super::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(70_000);
const MB: u64 = 1_000_000;

fn ledger() -> ReservationLedger {
    ReservationLedger::new(ReservationTerms::default(), 1024)
}

fn whole(client: u64, bytes: u64) -> Promise {
    Promise { client, file: FileId(9), bytes: Bytes(bytes), partial: false }
}

fn part(client: u64, bytes: u64) -> Promise {
    Promise { partial: true, ..whole(client, bytes) }
}

fn at(seconds: f64) -> Moment {
    Moment::from_secs_f64(1000.0 + seconds)
}

fn pace(rate: u64, contending: u64, saturated: bool) -> NodePace {
    aged(rate, contending, saturated, 0.0)
}

fn aged(rate: u64, contending: u64, saturated: bool, age: f64) -> NodePace {
    NodePace {
        rate: BytesPerSec(rate),
        sending: BytesPerSec(0),
        contending,
        saturated,
        age: Duration::from_secs_f64(age),
    }
}

fn report(epoch: u64, delivered: u64, in_flight: Option<u64>) -> DeliveryReport {
    DeliveryReport { epoch, delivered: Bytes(delivered), in_flight: in_flight.map(Bytes) }
}

#[test]
fn a_redirect_is_outstanding_until_its_bytes_are_confirmed() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 500, None), at(0.0));
    assert_eq!(ledger.reserve(A, whole(1, 10 * MB), at(0.0)), Bytes(10 * MB));
    assert_eq!(ledger.outstanding(A), Bytes(10 * MB));
    assert_eq!(ledger.outstanding(B), Bytes(0));
    ledger.confirm(A, report(1, 500 + 4 * MB, None), at(1.0));
    assert_eq!(ledger.outstanding(A), Bytes(6 * MB));
    ledger.confirm(A, report(1, 500 + 40 * MB, None), at(2.0));
    assert_eq!(ledger.outstanding(A), Bytes(0), "more delivered than promised is not a credit");
}

#[test]
fn head_reserves_nothing_and_range_its_length() {
    let ledger = ledger();
    assert_eq!(ledger.reserve(A, whole(1, 0), at(0.0)), Bytes(0));
    assert_eq!(ledger.reserve(A, part(1, MB), at(0.0)), Bytes(MB));
    assert_eq!(ledger.outstanding(A), Bytes(MB));
}

#[test]
fn a_retry_at_the_same_node_does_not_double() {
    let ledger = ledger();
    ledger.reserve(A, whole(1, 8 * MB), at(0.0));
    assert_eq!(ledger.reserve(A, whole(1, 8 * MB), at(3.0)), Bytes(0));
    assert_eq!(ledger.outstanding(A).0, 8 * MB);
}

#[test]
fn a_retry_at_another_node_moves_the_promise() {
    let ledger = ledger();
    ledger.reserve(A, whole(1, 8 * MB), at(0.0));
    ledger.reserve(B, whole(1, 8 * MB), at(3.0));
    assert_eq!(ledger.outstanding(A), Bytes(0));
    assert!(ledger.outstanding(B).0 >= 8 * MB);
}

#[test]
fn customers_behind_one_address_count_each() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, Some(0)), at(0.0));
    ledger.confirm(B, report(1, 0, Some(0)), at(0.0));
    ledger.reserve(A, whole(1, 8 * MB), at(0.0));
    ledger.reserve(B, whole(1, 8 * MB), at(1.0));
    ledger.reserve(B, whole(1, 8 * MB), at(2.0));
    assert_eq!(ledger.outstanding(A).0, 8 * MB);
    assert_eq!(ledger.outstanding(B).0, 16 * MB);
    // It was one customer after all, who went from one to the other and came twice there.
    for second in 2..=8 {
        ledger.confirm(A, report(1, 0, Some(0)), at(second.into()));
        ledger.confirm(B, report(1, MB, Some(7 * MB)), at(second.into()));
    }
    assert_eq!(ledger.outstanding(A), Bytes(0));
    assert_eq!(ledger.outstanding(B).0, 7 * MB);
}

#[test]
fn each_of_several_behind_one_address_is_taken_back() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, Some(0)), at(0.0));
    for _ in 0..4 {
        ledger.reserve(A, whole(1, 8 << 20), at(0.0));
    }
    assert_eq!(ledger.outstanding(A).0, 32 << 20);
    for left in [24u64, 16, 8, 0] {
        ledger.bounce(A, whole(1, 8 << 20), at(1.0));
        assert_eq!(ledger.outstanding(A).0, left << 20);
    }
    assert_eq!(ledger.bounce(A, whole(1, 8 << 20), at(1.0)), Bytes(0));
}

#[test]
fn pieces_of_a_promised_file_add_nothing_where_it_is_told_what_is_in_flight() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, Some(0)), at(0.0));
    ledger.reserve(A, whole(1, 8 << 20), at(0.0));
    for piece in 0..8 {
        assert_eq!(ledger.reserve(A, part(1, 1 << 20), at(f64::from(piece))), Bytes(0));
    }
    assert_eq!(ledger.outstanding(A).0, 8 << 20);
}

#[test]
fn a_resumed_download_moves_what_is_left() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, None), at(0.0));
    ledger.reserve(A, whole(1, 8 << 20), at(0.0));
    ledger.confirm(A, report(1, 3 << 20, None), at(60.0));
    ledger.reserve(B, part(1, 5 << 20), at(61.0));
    assert_eq!(ledger.outstanding(A), Bytes(0));
    assert_eq!(ledger.outstanding(B), Bytes(5 << 20));
}

#[test]
fn another_client_or_a_later_download_is_not_a_retry() {
    let ledger = ledger();
    ledger.reserve(A, whole(1, MB), at(0.0));
    ledger.reserve(A, whole(2, MB), at(0.0));
    ledger.reserve(A, whole(1, MB), at(100.0));
    assert_eq!(ledger.outstanding(A).0, 3 * MB);
}

#[test]
fn a_bounce_releases_once_and_only_on_the_node_that_bounced() {
    let ledger = ledger();
    ledger.reserve(A, whole(1, 1 << 20), at(0.0));
    assert_eq!(ledger.bounce(B, whole(1, 1 << 20), at(1.0)), Bytes(0));
    assert_eq!(ledger.bounce(A, whole(1, 1 << 20), at(1.0)), Bytes(1 << 20));
    assert_eq!(ledger.bounce(A, whole(1, 1 << 20), at(1.0)), Bytes(0));
    assert_eq!(ledger.outstanding(A), Bytes(0));
}

#[test]
fn an_abandoned_download_is_noticed_by_what_is_in_flight() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, Some(0)), at(0.0));
    ledger.reserve(A, whole(1, 100 * MB), at(0.0));
    ledger.confirm(A, report(1, 0, Some(0)), at(1.0));
    assert_eq!(ledger.outstanding(A).0, 100 * MB, "the client may still be on its way");
    ledger.confirm(A, report(1, MB, Some(99 * MB)), at(2.0));
    assert_eq!(ledger.outstanding(A).0, 99 * MB);
    ledger.confirm(A, report(1, 2 * MB, Some(0)), at(7.0));
    assert_eq!(ledger.outstanding(A), Bytes(0), "it went away");
}

#[test]
fn what_nobody_confirms_ages_out() {
    let ledger = ledger();
    for second in 0..2000u32 {
        if second % 100 == 0 {
            ledger.reserve(A, whole(second.into(), MB), at(second.into()));
        }
        ledger.age(A, at(second.into()));
    }
    // 900 s of hold: the promises of the last 9 or 10 hundreds remain, within a 32nd of the hold.
    let left = ledger.outstanding(A).0 / MB;
    assert!((9..=10).contains(&left), "{left}");
    for second in 2000..3000 {
        ledger.age(A, at(second.into()));
    }
    assert_eq!(ledger.outstanding(A), Bytes(0));
}

#[test]
fn a_restarted_node_starts_from_nothing() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 70 * MB, None), at(0.0));
    ledger.reserve(A, whole(1, 8 * MB), at(0.0));
    ledger.confirm(A, report(2, 0, None), at(1.0));
    assert_eq!(ledger.outstanding(A), Bytes(0));
    ledger.reserve(A, whole(2, 8 * MB), at(2.0));
    ledger.confirm(A, report(2, MB, None), at(3.0));
    assert_eq!(ledger.outstanding(A).0, 7 * MB);
}

#[test]
fn a_restarted_front_door_learns_what_is_in_flight() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 900 * MB, Some(30 * MB)), at(0.0));
    assert_eq!(ledger.outstanding(A).0, 30 * MB);
}

#[test]
fn a_counter_that_goes_backwards_confirms_nothing() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 100 * MB, None), at(0.0));
    ledger.reserve(A, whole(1, 8 * MB), at(0.0));
    ledger.confirm(A, report(1, 50 * MB, None), at(1.0));
    ledger.confirm(A, report(1, 100 * MB, None), at(2.0));
    assert_eq!(ledger.outstanding(A).0, 8 * MB);
}

/// Megabytes, to two digits.
fn ahead(ledger: &ReservationLedger, node: NodeId, size: u64, now: f64) -> f64 {
    (ledger.backlog(node, Bytes(size), at(now)).0 as f64 / MB as f64 * 100.0).round() / 100.0
}

#[test]
fn between_heartbeats_promises_are_expected_to_leave_at_the_rate() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, None), at(0.0));
    ledger.reserve(A, whole(1, 30 * MB), at(0.0));
    ledger.reserve(A, whole(2, 30 * MB), at(0.0));
    assert_eq!(ahead(&ledger, A, MB, 0.5), 60.0, "no rate is known yet");
    ledger.observe(A, pace(10 * MB, 2, true), at(1.0));
    assert_eq!(ahead(&ledger, A, MB, 1.0), 2.0, "as much of each of the two as of the new one");
    ledger.reserve(A, whole(3, 2 * MB), at(1.0));
    assert_eq!(ahead(&ledger, A, MB, 1.0), 3.0);
    let later: Vec<f64> = [1.2, 2.0, 5.0, 30.0].map(|now| ahead(&ledger, A, MB, now)).to_vec();
    assert!(later.is_sorted_by(|a, b| a > b), "{later:?}");
    assert!(later[1] < 2.2, "the small one has left, the large ones are still there: {later:?}");
    assert_eq!(ledger.outstanding(A).0, 62 * MB, "nothing is confirmed");
    assert!(ahead(&ledger, A, 1000 * MB, 1.0) <= 62.0, "never more than there is");
    assert_eq!(ahead(&ledger, B, MB, 3.0), 0.0);
    ledger.observe(NodeId(u32::MAX), pace(1, 1, true), at(3.0));
}

#[test]
fn slow_clients_leave_room_for_the_next() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, None), at(0.0));
    for client in 0..4 {
        ledger.reserve(A, whole(client, 500 * MB), at(0.0));
    }
    let slow = NodePace { sending: BytesPerSec(2 * MB), ..pace(10 * MB, 4, false) };
    ledger.observe(A, slow, at(1.0));
    // Four at half a megabyte each leave eight of ten: a quarter as long again as alone.
    assert_eq!(ahead(&ledger, A, MB, 1.0), 0.25);
    ledger.observe(A, NodePace { saturated: true, ..slow }, at(2.0));
    assert!(ahead(&ledger, A, MB, 2.0) <= 0.25, "what its clients take is remembered");
}

#[test]
fn a_report_speaks_of_the_time_when_it_was_written() {
    // Two nodes that are told the same; one's reports arrive ten seconds late.
    let (prompt, late) = (ledger(), ledger());
    for ledger in [&prompt, &late] {
        ledger.confirm(A, report(1, 0, None), at(0.0));
        ledger.observe(A, pace(10 * MB, 0, false), at(0.0));
    }
    for second in 0..10u32 {
        late.observe(A, aged(10 * MB, 0, false, 10.0), at(f64::from(second)));
    }
    for ledger in [&prompt, &late] {
        ledger.reserve(A, whole(1, 900 * MB), at(10.0));
        ledger.reserve(A, whole(2, 900 * MB), at(10.0));
    }
    prompt.observe(A, pace(10 * MB, 2, true), at(15.0));
    late.observe(A, aged(10 * MB, 0, false, 10.0), at(15.0));
    let (known, reckoned) = (ahead(&prompt, A, MB, 15.0), ahead(&late, A, MB, 15.0));
    assert!((known - 2.0).abs() < 0.1, "{known}");
    assert!((reckoned - 2.0).abs() < 0.2, "an old report that it was empty empties nothing: {reckoned}");
}

#[test]
fn what_a_late_report_corrects_is_corrected_once() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, None), at(0.0));
    ledger.observe(A, pace(10 * MB, 0, false), at(0.0));
    for client in 0..8 {
        ledger.reserve(A, whole(client, 4000 * MB), at(0.0));
    }
    // Four of the eight never came; every report of the next half minute is ten seconds old and says so.
    for second in 1..40u32 {
        let seen = if second <= 10 { 0 } else { 4 };
        ledger.observe(A, aged(10 * MB, seen, seen > 0, 10.0), at(f64::from(second)));
        let ahead = ahead(&ledger, A, MB, f64::from(second));
        assert!((3.0..=8.1).contains(&ahead), "{second}: {ahead}");
    }
    assert!((ahead(&ledger, A, MB, 40.0) - 4.0).abs() < 0.7);
}

#[test]
fn what_is_released_is_open_no_more() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, None), at(0.0));
    ledger.observe(A, pace(10 * MB, 0, false), at(0.0));
    ledger.reserve(A, whole(1, 800 * MB), at(0.0));
    ledger.reserve(A, whole(2, 800 * MB), at(0.0));
    ledger.bounce(A, whole(1, 800 * MB), at(0.0));
    assert_eq!(ahead(&ledger, A, MB, 0.0), 1.0);
    ledger.clear(A);
    assert_eq!(ahead(&ledger, A, MB, 0.0), 0.0);
    ledger.reserve(A, whole(3, 800 * MB), at(1.0));
    assert_eq!(ahead(&ledger, A, MB, 1.0), 1.0);
}

#[test]
fn nodes_beyond_the_ledger_are_left_out_without_harm() {
    let ledger = ledger();
    assert_eq!(ledger.reserve(NodeId(u32::MAX), whole(1, MB), at(0.0)), Bytes(0));
    ledger.confirm(NodeId(u32::MAX), report(1, 5, None), at(0.0));
    assert_eq!(ledger.outstanding(NodeId(u32::MAX)), Bytes(0));
}

#[test]
fn rings_that_reserve_and_heartbeats_that_confirm_lose_nothing() {
    let ledger = ledger();
    ledger.confirm(A, report(1, 0, None), at(0.0));
    std::thread::scope(|scope| {
        for ring in 0..4u64 {
            let ledger = &ledger;
            scope.spawn(move || {
                for n in 0..10_000 {
                    ledger.reserve(A, whole(ring * 1_000_000 + n, 1000), at(0.0));
                }
            });
        }
    });
    ledger.confirm(A, report(1, 30_000_000, None), at(1.0));
    assert_eq!(ledger.outstanding(A), Bytes(10_000_000));
}

proptest! {
    /// Whatever happens, in whatever order, outstanding stays within what was promised, and all
    /// of it is gone a hold after the last promise.
    #[test]
    fn never_leaks_and_never_exceeds_what_was_promised(
        steps in proptest::collection::vec((0u8..5, 0u64..20, 1u64..50_000_000, 0.0f64..40.0), 1..200)
    ) {
        let ledger = ledger();
        let (mut now, mut promised, mut delivered) = (0.0, 0u64, 0u64);
        for (what, client, bytes, pause) in steps {
            now += pause;
            let node = if client % 2 == 0 { A } else { B };
            match what {
                0 => promised += ledger.reserve(node, whole(client, bytes), at(now)).0,
                1 => promised += ledger.reserve(node, part(client, bytes), at(now)).0,
                2 => { ledger.bounce(node, whole(client, bytes), at(now)); }
                3 => {
                    delivered += bytes;
                    ledger.confirm(node, report(1, delivered, None), at(now));
                }
                _ => ledger.age(node, at(now)),
            }
            prop_assert!(ledger.outstanding(A).0 + ledger.outstanding(B).0 <= promised);
        }
        for extra in 0..200 {
            for node in [A, B] { ledger.age(node, at(now + f64::from(extra) * 10.0)); }
        }
        prop_assert_eq!(ledger.outstanding(A), Bytes(0));
        prop_assert_eq!(ledger.outstanding(B), Bytes(0));
    }
}
