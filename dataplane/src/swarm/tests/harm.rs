//! Peers that lie or stall, an origin that sends rubbish, a tracker that is away, a disk that is full.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use freshet_api::{SyncKey, SyncToken};
use http::header::RANGE;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::field::{answer_range, hash};
use super::*;
use crate::mirror::tests::small_disk::SmallDisk;

/// A peer that says it has everything.
struct Liar {
    url: String,
    asked: Arc<AtomicUsize>,
}

#[derive(Clone, Copy)]
enum Lie {
    OtherBytes,
    Silence,
    Refusal(u16),
}

impl Liar {
    async fn start(contents: Vec<Vec<u8>>, pieces: u32, lie: Lie) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, contents) = (Arc::clone(&asked), Arc::new(contents));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (count, contents) = (Arc::clone(&count), Arc::clone(&contents));
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (count, contents) = (Arc::clone(&count), Arc::clone(&contents));
                    async move {
                        if request.uri().path().starts_with("/have/") {
                            let all = vec![0xff; (pieces as usize).div_ceil(8)];
                            return Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(all))));
                        }
                        count.fetch_add(1, Ordering::Relaxed);
                        let name = request.uri().path().trim_start_matches("/blob/");
                        let content = contents.iter().find(|content| hash(content).to_hex() == name);
                        let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
                        Ok(match (lie, content) {
                            (Lie::Silence, _) => std::future::pending().await,
                            (Lie::Refusal(status), _) => {
                                let status = StatusCode::from_u16(status).unwrap();
                                Response::builder().status(status).body(Full::default()).unwrap()
                            }
                            (Lie::OtherBytes, Some(content)) => answer_range(content, range, true),
                            (Lie::OtherBytes, None) => {
                                Response::builder().status(404).body(Full::default()).unwrap()
                            }
                        })
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_wrong_bytes_is_told_on_and_not_asked_again() {
    let field = Field::start().await;
    let files = sample();
    let bundle = bundled(&field, &files);
    let liar = Liar::start(contents(&files), field.bundle_pieces(bundle), Lie::OtherBytes).await;
    field.name_peer(NodeId(99), liar.url.clone());
    let sequence = field.publish(&files);
    let volunteers = volunteers(&field, 3).await;
    all_complete(&volunteers, sequence).await;
    volunteers.iter().for_each(|volunteer| same(volunteer, &files));
    // The pack is no file of the liar's: it may say once that it lacks a piece.
    assert!(liar.asked() <= 3 * 4, "{} requests to a known liar", liar.asked());
    until("the complaints are in", || !field.complaints().is_empty()).await;
    assert!(field.complaints().iter().all(|(_, complaint)| complaint.peer == NodeId(99)));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_stall_or_refuse_hold_nobody_up() {
    for lie in [Lie::Silence, Lie::Refusal(401), Lie::Refusal(404), Lie::Refusal(503), Lie::Refusal(302)] {
        let field = Field::start().await;
        let files = sample();
        let bundle = bundled(&field, &files);
        let liar = Liar::start(Vec::new(), field.bundle_pieces(bundle), lie).await;
        field.name_peer(NodeId(99), liar.url.clone());
        // Nobody listens there any more.
        field.name_peer(NodeId(98), "http://127.0.0.1:1".to_owned());
        let sequence = field.publish(&files);
        let volunteers = volunteers(&field, 2).await;
        all_complete(&volunteers, sequence).await;
        volunteers.iter().for_each(|volunteer| same(volunteer, &files));
        assert_eq!(field.complaints(), [], "no wrong piece came");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_pieces_from_the_origin_lead_to_whole_contents() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    field.switches.lock().unwrap().wrong_pieces = true;
    let sequence = field.publish(&files);
    let volunteers = volunteers(&field, 2).await;
    all_complete(&volunteers, sequence).await;
    volunteers.iter().for_each(|volunteer| same(volunteer, &files));
    assert_eq!(field.complaints(), [], "nobody is blamed for the origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tracker_contents_come_whole_after_a_while() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    field.switches.lock().unwrap().away = true;
    let sequence = field.publish(&files);
    let mut volunteer = Volunteer::new(&field, 1).await;
    volunteer.options.list_patience = Duration::from_millis(300);
    volunteer.start().await;
    all_complete(std::slice::from_ref(&volunteer), sequence).await;
    same(&volunteer, &files);
    assert_eq!(field.requests(&files[0].1), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_does_not_get_on_is_given_up() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    field.switches.lock().unwrap().no_leases = true;
    let sequence = field.publish(&files);
    let mut volunteer = Volunteer::new(&field, 1).await;
    volunteer.options.stall = Duration::from_millis(300);
    volunteer.start().await;
    all_complete(std::slice::from_ref(&volunteer), sequence).await;
    same(&volunteer, &files);
    assert_eq!(field.requests(&files[0].1), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_is_closed_half_way_is_fetched_whole() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    field.switches.lock().unwrap().slowly = Duration::from_millis(20);
    let sequence = field.publish(&files);
    let volunteers = volunteers(&field, 2).await;
    volunteers.iter().for_each(|volunteer| assert_eq!(volunteer.wanted.send_replace(sequence), 0));
    until("some pieces came", || field.origin_bytes() > 200_000).await;
    field.switches.lock().unwrap().closed = true;
    all_complete(&volunteers, sequence).await;
    volunteers.iter().for_each(|volunteer| same(volunteer, &files));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_it_and_room_lets_it_go_on() {
    let field = Field::start().await;
    let files = sample();
    bundled(&field, &files);
    let volunteers = volunteers(&field, 2).await;
    field.switches.lock().unwrap().lease = Some(Duration::from_secs(1));
    volunteers[0].mirror().fail_writes(rustix::io::Errno::NOSPC.raw_os_error());
    let sequence = field.publish(&files);
    volunteers.iter().for_each(|volunteer| assert_eq!(volunteer.wanted.send_replace(sequence), 0));
    let trouble = || volunteers[0].mirror().progress().trouble.unwrap_or_default();
    until("it says so", || trouble().contains("make room")).await;
    until("the other one is not held up", || volunteers[1].complete() == sequence).await;
    volunteers[0].mirror().fail_writes(0);
    all_complete(&volunteers, sequence).await;
    volunteers.iter().for_each(|volunteer| same(volunteer, &files));
    until_or(
        || volunteers[0].mirror().progress().trouble.is_none(),
        || format!("{:?}", volunteers[0].mirror().progress()),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_filesystem_fills_and_is_relieved() {
    let Some(small) = SmallDisk::mount(16 << 20) else {
        eprintln!("skipped: mounting a tmpfs needs root (CAP_SYS_ADMIN)");
        return;
    };
    let field = Field::start().await;
    let files: Vec<File> = (0..3).map(|n| (format!("pool/{n}"), content(n, 900_000))).collect();
    bundled(&field, &files);
    let mut volunteer = Volunteer::new(&field, 1).await;
    volunteer.on = Some(small.path.clone());
    volunteer.start().await;
    small.fill(1 << 20);
    let sequence = field.publish(&files);
    volunteer.wanted.send_replace(sequence);
    let trouble = || volunteer.mirror().progress().trouble.unwrap_or_default();
    until_or(|| trouble().contains("full"), || format!("{:?}", volunteer.mirror().progress())).await;
    small.relieve();
    all_complete(std::slice::from_ref(&volunteer), sequence).await;
    same(&volunteer, &files);
    volunteer.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sync_port_gives_verified_pieces_to_those_with_a_token_and_nothing_else() {
    let field = Field::start().await;
    let files = sample();
    let bundle = bundled(&field, &files);
    {
        let mut switches = field.switches.lock().unwrap();
        (switches.slowly, switches.never_complete) = (Duration::from_millis(30), true);
    }
    let sequence = field.publish(&files);
    let volunteers = volunteers(&field, 1).await;
    volunteers[0].wanted.send_replace(sequence);
    let url = format!("http://{}", volunteers[0].port.as_ref().unwrap().address());
    let token = |node| {
        SyncToken { node: NodeId(7), expires: u32::MAX }
            .seal(&SyncKey::of_volunteer(&Field::key(NodeId(node))))
    };
    let dialer = Dialer::new(DialerOptions::new(2));
    let get = async |path: &str, token: &str, range: Option<&str>| {
        let mut request =
            http::Request::get(format!("{url}{path}")).header("authorization", format!("Bearer {token}"));
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let answer = dialer.request(request.body(Bytes::new()).unwrap(), 4 << 20).await.unwrap();
        (answer.status().as_u16(), answer.into_body())
    };
    let have = format!("/have/{bundle}");
    assert_eq!(get(&have, &token(2), None).await.0, 401, "sealed for another volunteer");
    assert_eq!(get(&have, "rubbish", None).await.0, 401);
    assert_eq!(get("/have/nothing", &token(1), None).await.0, 404);
    assert_eq!(get("/etc/passwd", &token(1), None).await.0, 404);
    let large = &files[0].1;
    let blob = format!("/blob/{}", hash(large));
    // Every piece that it says it has is right, and no other is given; whatever it says is true until it is whole.
    let (mut refused, mut given) = (0, 0);
    let began = Instant::now();
    while given == 0 || refused == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "{given} given, {refused} refused");
        let (status, bits) = get(&have, &token(1), None).await;
        if status == 404 {
            // The session has not begun.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        for piece in 0..(large.len() / 16_384) {
            let range = piece * 16_384..(piece + 1) * 16_384;
            let (status, body) =
                get(&blob, &token(1), Some(&format!("bytes={}-{}", range.start, range.end - 1))).await;
            match status {
                206 => {
                    assert_eq!(body, large[range]);
                    given += 1;
                }
                404 => {
                    refused += 1;
                    assert_eq!(bits[piece / 8] >> (piece % 8) & 1, 0, "it said that it has this one");
                }
                other => panic!("{other}"),
            }
        }
        if refused > 0 && volunteers[0].complete() < sequence {
            let (status, body) = get(&blob, &token(1), None).await;
            assert!(status == 404 || body == *large, "the whole is not there");
        }
    }
    field.switches.lock().unwrap().slowly = Duration::ZERO;
    all_complete(&volunteers, sequence).await;
    assert_eq!(get(&blob, &token(1), None).await, (200, large.clone().into()));
    assert_eq!(get(&blob, &token(1), Some("bytes=-3")).await.1, large[large.len() - 3..]);
}
