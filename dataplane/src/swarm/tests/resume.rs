//! Killed in the middle, and started again.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_volunteer_fetches_nothing_again_that_was_durable() {
    let field = Field::start().await;
    let files = sample();
    let bundle = bundled(&field, &files);
    field.switches.lock().unwrap().slowly = Duration::from_millis(5);
    let sequence = field.publish(&files);
    let mut volunteer = Volunteer::started(&field, 1).await;
    let all = u64::from(field.bundle_pieces(bundle)) * 16_384;
    let mut kills = 0;
    for part in 1..=3 {
        volunteer.wanted.send_replace(sequence);
        until("some pieces came", || field.origin_bytes() > all * part / 5).await;
        volunteer.kill().await;
        kills += 1;
        volunteer.start().await;
    }
    all_complete(std::slice::from_ref(&volunteer), sequence).await;
    same(&volunteer, &files);
    // One piece per connection, and what was on its way when the tracker's fake forgot its leases.
    let most = total(&files) + 60 * 16_384 / 4 + kills * 4 * 16_384;
    assert!(field.origin_bytes() <= most, "{} bytes for {}", field.origin_bytes(), total(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_and_not_recorded_is_found_again() {
    let field = Field::start().await;
    let files = sample();
    let bundle = bundled(&field, &files);
    field.switches.lock().unwrap().slowly = Duration::from_millis(5);
    let sequence = field.publish(&files);
    let mut volunteer = Volunteer::new(&field, 1).await;
    // Nothing is recorded as long as something is under way.
    volunteer.options.sync_apart = Duration::from_secs(1);
    volunteer.start().await;
    volunteer.wanted.send_replace(sequence);
    let half = u64::from(field.bundle_pieces(bundle)) * 16_384 / 2;
    until("half of it came", || field.origin_bytes() > half).await;
    volunteer.kill().await;
    let directory = volunteer.root().join("state/swarm").join(bundle.to_string());
    // As after a crash in which the bitmap's last write was lost.
    std::fs::write(directory.join("have"), b"").unwrap();
    volunteer.start().await;
    all_complete(std::slice::from_ref(&volunteer), sequence).await;
    same(&volunteer, &files);
    let most = total(&files) + 60 * 16_384 / 4 + 4 * 16_384;
    assert!(field.origin_bytes() <= most, "{} bytes for {}", field.origin_bytes(), total(&files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_piece_on_disk_is_fetched_again() {
    let field = Field::start().await;
    let files = vec![("pool/large".to_owned(), content(1, 1_000_000))];
    let bundle = bundled(&field, &files);
    field.switches.lock().unwrap().slowly = Duration::from_millis(10);
    let sequence = field.publish(&files);
    let mut volunteer = Volunteer::started(&field, 1).await;
    volunteer.wanted.send_replace(sequence);
    until("some are announced", || field.held(bundle, NodeId(1)) > 10).await;
    volunteer.kill().await;
    let object = field::hash(&files[0].1).to_hex();
    let path = volunteer.root().join("state/swarm").join(bundle.to_string()).join(object);
    // All of it turns to zeros behind the bitmap's back.
    std::fs::write(&path, vec![0; 1_000_000]).unwrap();
    volunteer.start().await;
    all_complete(std::slice::from_ref(&volunteer), sequence).await;
    same(&volunteer, &files);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_others_go_on_when_one_is_killed_for_good() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    field.switches.lock().unwrap().slowly = Duration::from_millis(5);
    let sequence = field.publish(&files);
    let mut volunteers = volunteers(&field, 4).await;
    volunteers.iter().for_each(|volunteer| assert_eq!(volunteer.wanted.send_replace(sequence), 0));
    until("some pieces came", || field.origin_bytes() > 300_000).await;
    let mut killed = volunteers.remove(0);
    killed.kill().await;
    all_complete(&volunteers, sequence).await;
    volunteers.iter().for_each(|volunteer| same(volunteer, &files));
}

/// A volunteer that has about half of the pieces and was killed.
async fn half_way(field: &Arc<Field>, files: &[File]) -> (Volunteer, u64) {
    let bundle = bundled(field, files);
    field.switches.lock().unwrap().slowly = Duration::from_millis(5);
    let sequence = field.publish(files);
    let mut volunteer = Volunteer::new(field, 1).await;
    volunteer.options.stall = Duration::from_millis(500);
    volunteer.start().await;
    volunteer.wanted.send_replace(sequence);
    let half = u64::from(field.bundle_pieces(bundle)) * 16_384 / 2;
    until("half of it came", || field.origin_bytes() > half).await;
    volunteer.kill().await;
    (volunteer, sequence)
}

/// It goes on, and what it had is not fetched again.
async fn ends_with_one_copy(field: &Field, files: &[File], (mut killed, sequence): (Volunteer, u64)) {
    killed.start().await;
    all_complete(std::slice::from_ref(&killed), sequence).await;
    same(&killed, files);
    let most = total(files) + 4 * 16_384;
    assert!(field.origin_bytes() <= most, "{} bytes for {}", field.origin_bytes(), total(files));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_durable_is_not_fetched_again_when_the_tracker_gives_no_leases_any_more() {
    let field = Field::start().await;
    let files = sample();
    let killed = half_way(&field, &files).await;
    field.switches.lock().unwrap().no_leases = true;
    ends_with_one_copy(&field, &files, killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_when_the_bundle_is_closed_meanwhile() {
    let field = Field::start().await;
    let files = sample();
    let killed = half_way(&field, &files).await;
    field.switches.lock().unwrap().closed = true;
    ends_with_one_copy(&field, &files, killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_when_the_tracker_is_away_at_the_start() {
    let field = Field::start().await;
    let files = sample();
    let killed = half_way(&field, &files).await;
    field.switches.lock().unwrap().away = true;
    ends_with_one_copy(&field, &files, killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_all_and_is_restarted_for_the_others_fetches_nothing() {
    let field = Field::start().await;
    let files = sample();
    let bundle = bundled(&field, &files);
    field.switches.lock().unwrap().never_complete = true;
    let sequence = field.publish(&files);
    let mut early = volunteers(&field, 2).await;
    all_complete(&early, sequence).await;
    early[0].kill().await;
    early[0].start().await;
    early[0].wanted.send_replace(sequence);
    let pieces = field.bundle_pieces(bundle);
    until("it says what it has", || field.held(bundle, NodeId(1)) == pieces).await;
    // Time in which somebody else fetches everything.
    let late = Volunteer::started(&field, 3).await;
    all_complete(std::slice::from_ref(&late), sequence).await;
    let received =
        |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    let meter = &early[0].meter;
    assert_eq!((received(&meter.peers), received(&meter.origin)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_new_while_the_tracker_is_away_waits_for_it_and_comes_in_pieces() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    field.switches.lock().unwrap().away = true;
    let sequence = field.publish(&files);
    let volunteer = Volunteer::started(&field, 1).await;
    volunteer.wanted.send_replace(sequence);
    until("the new state is known", || volunteer.mirror.as_ref().unwrap().target() == Some(sequence)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(field.origin_bytes(), 0, "nothing is fetched whole that a bundle may have");
    field.switches.lock().unwrap().away = false;
    all_complete(std::slice::from_ref(&volunteer), sequence).await;
    same(&volunteer, &files);
    assert_eq!(field.requests(&files[0].1).1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_when_the_tracker_goes_away_while_it_tells_of_bundles() {
    let field = Field::start().await;
    // One that is over: its description is not kept, and is asked for again after a restart.
    let before = vec![("pool/before".to_owned(), content(9, 50_000))];
    bundled(&field, &before);
    let over = field.publish(&before);
    let mut volunteer = Volunteer::started(&field, 1).await;
    all_complete(std::slice::from_ref(&volunteer), over).await;
    let files = sample();
    let bundle = bundled(&field, &files);
    field.switches.lock().unwrap().slowly = Duration::from_millis(5);
    let sequence = field.publish(&files);
    volunteer.wanted.send_replace(sequence);
    let half = u64::from(field.bundle_pieces(bundle)) * 16_384 / 2;
    until("half of it came", || field.held(bundle, NodeId(1)) > 5 && field.origin_bytes() > half).await;
    volunteer.kill().await;
    field.switches.lock().unwrap().mute = true;
    volunteer.start().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    field.switches.lock().unwrap().mute = false;
    all_complete(std::slice::from_ref(&volunteer), sequence).await;
    same(&volunteer, &files);
    assert!(files.iter().all(|(_, content)| field.requests(content).1 == 0), "nothing came whole");
}
