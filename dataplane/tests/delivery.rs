//! The delivery port over real sockets: what a ticket opens, what it does not, and that no path leaves the store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod held;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use freshet_api::heartbeat::DeliveryCounters;
use freshet_api::{Bytes, Checksums, NodeId, Ticket, TicketKey};
use freshet_dataplane::budget::Admission;
use freshet_dataplane::config::Config;
use freshet_dataplane::counters::Counters;
use freshet_dataplane::delivery::{DeliverySite, SharedTerms, Terms};
use freshet_dataplane::mirror::{Mirror, MirrorOptions};
use freshet_dataplane::watch::{ConnectionBounds, DeliveryWatch};
use freshet_ebpf::SocketMeter;
use freshet_engine::{Limits, Listener, Running, Server};

const KEY: TicketKey = TicketKey([7; 32]);
const OTHER_KEY: TicketKey = TicketKey([8; 32]);
const FRONT_DOOR: &str = "http://front.example:80";
const DEB: (&str, &[u8]) = ("pool/a/apt 1.deb", b"a package that is long enough to have ranges");
const OTHER: (&str, &[u8]) = ("pool/b/bash.deb", b"another package");

struct Port {
    address: SocketAddr,
    counters: Arc<Counters>,
    terms: SharedTerms,
    mirror: Arc<Mirror>,
    admission: Arc<Admission>,
    directory: tempfile::TempDir,
    running: Option<Running>,
}

impl Port {
    /// A delivery port over a mirror with two files and a link, or `None` where the kernel has no io_uring.
    async fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mirror = mirror_with(directory.path(), &[DEB, OTHER], &[("latest", "pool/a")]).await;
        let counters = Arc::new(Counters::default());
        let terms: SharedTerms = Arc::new(ArcSwap::from_pointee(Terms {
            front_door: FRONT_DOOR.into(),
            local_networks: Vec::new(),
            closed: None,
        }));
        let admission = Arc::new(Admission::default());
        let site = DeliverySite::open(
            KEY,
            Arc::clone(&mirror),
            Arc::clone(&terms),
            Arc::clone(&admission),
            Arc::clone(&counters),
        )
        .unwrap();
        let watch = DeliveryWatch::new(
            SocketMeter::new(),
            Arc::clone(&counters),
            Arc::clone(&admission),
            Arc::new(ConnectionBounds::new(&Config::default())),
        );
        let server = Server {
            listeners: vec![Listener {
                address: "127.0.0.1:0".parse().unwrap(),
                inherited: None,
                class: 1,
                mark: None,
                site: Arc::new(site),
            }],
            rings: 1,
            limits: Limits::default(),
            pacer: None,
            observer: Some(Arc::new(watch)),
        };
        let running = match server.start() {
            Ok(running) => running,
            Err(error) => {
                eprintln!("skipped: {error}");
                assert!(std::env::var_os("CI").is_none(), "a skip in CI is a failure");
                return None;
            }
        };
        let address = running.addresses()[0];
        Some(Self { address, counters, terms, mirror, admission, directory, running: Some(running) })
    }

    /// Sends a request line and fields as they are, and reads until the connection ends.
    fn raw(&self, target: &str, fields: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: v\r\nConnection: close\r\n{fields}\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a response has a head") + 4;
        let body = answer.split_off(end);
        (String::from_utf8(answer).unwrap(), body)
    }

    fn get(&self, target: &str) -> (String, Vec<u8>) {
        self.raw(target, "")
    }

    fn set(&self, change: impl Fn(&mut Terms)) {
        self.terms.rcu(|terms| {
            let mut terms = Terms::clone(terms);
            change(&mut terms);
            terms
        });
    }

    /// The counters, once the connections of all requests so far are closed: a response is counted before that.
    fn counted(&self) -> DeliveryCounters {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let running = self.running.as_ref().expect("it runs until it is dropped");
        while running.stats().open > 0 {
            assert!(std::time::Instant::now() < deadline, "connections stay open");
            std::thread::yield_now();
        }
        self.counters.read()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop(Duration::ZERO);
        }
    }
}

/// A mirror below `directory` that holds these files.
async fn mirror_with(
    directory: &std::path::Path,
    files: &[(&str, &[u8])],
    links: &[(&str, &str)],
) -> Arc<Mirror> {
    let mirror = Mirror::open(MirrorOptions {
        reserve_bytes: 0,
        ..MirrorOptions::new(directory.join("store"), directory.join("tree"))
    })
    .unwrap();
    mirror.accept(&held::manifest(1, files, links)).unwrap();
    let mut arrived = Vec::new();
    for want in mirror.missing() {
        let (_, content) =
            files.iter().find(|(_, content)| Checksums::of(content).blake3 == want.content).unwrap();
        let mut incoming = mirror.receive(&want).unwrap();
        incoming.write(content).await.unwrap();
        arrived.push(incoming.finish().await.unwrap());
    }
    mirror.commit(arrived).unwrap();
    mirror.publish_ready().unwrap();
    mirror.finish().unwrap();
    mirror
}

fn now() -> u32 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// A ticket for a file's present version.
fn ticket(file: (&str, &[u8]), expires: u32, key: &TicketKey) -> String {
    let ticket = Ticket::new(expires, &Checksums::of(file.1).blake3, &[], NodeId(1)).unwrap();
    ticket.seal(key, format!("/{}", file.0).as_bytes())
}

fn good() -> String {
    ticket(DEB, now() + 60, &KEY)
}

fn status(answer: &(String, Vec<u8>)) -> &str {
    answer.0.split(' ').nth(1).unwrap()
}

fn field<'a>(answer: &'a (String, Vec<u8>), name: &str) -> Option<&'a str> {
    answer.0.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_ticket_gets_the_file_with_the_manifests_word_for_it() {
    let Some(port) = Port::start().await else { return };
    let answer = port.get(&format!("/pool/a/apt%201.deb?t={}", good()));
    assert_eq!((status(&answer), answer.1.as_slice()), ("200", DEB.1));
    assert_eq!(field(&answer, "etag"), Some(Checksums::of(DEB.1).etag().as_str()));
    // A volunteer vouches for nothing: whoever checks has the front door's word.
    assert_eq!(field(&answer, "repr-digest"), None);
    assert_eq!(field(&answer, "last-modified"), Some("Sun, 09 Sep 2001 01:46:40 GMT"));
    assert_eq!(field(&answer, "content-type"), Some("application/vnd.debian.binary-package"));
    let part = port.raw(&format!("/pool/a/apt%201.deb?x=1&t={}", good()), "Range: bytes=2-8\r\n");
    assert_eq!((status(&part), part.1.as_slice()), ("206", &DEB.1[2..9]));
    let counted = port.counted();
    assert_eq!((counted.responses, counted.active, counted.sent_back), (2, 0, 0));
    assert_eq!(counted.body_bytes, DEB.1.len() as u64 + 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_ticket_is_refused_in_words_and_counted_by_its_kind() {
    let Some(port) = Port::start().await else { return };
    let mut altered = good();
    altered.replace_range(10..11, if &altered[10..11] == "A" { "B" } else { "A" });
    for (query, words) in [
        (String::new(), "ask http://front.example:80/pool/a/apt%201.deb"),
        ("?x=1".into(), "ask http://front.example:80/pool/a/apt%201.deb"),
        ("?t=".into(), "no ticket"),
        ("?t=rubbish".into(), "no ticket"),
        (format!("?t={altered}"), "altered"),
        (format!("?t={}", ticket(DEB, now() - 5, &KEY)), "expired"),
        (format!("?t={}", ticket(OTHER, now() + 60, &KEY)), "not for this file"),
        (format!("?t={}", ticket(DEB, now() + 60, &OTHER_KEY)), "not for this file on this server"),
    ] {
        let answer = port.get(&format!("/pool/a/apt%201.deb{query}"));
        let text = String::from_utf8_lossy(&answer.1);
        assert_eq!(status(&answer), "403", "{query}: {text}");
        assert!(text.contains(words), "{query}: {text}");
        assert!(!text.contains("package"), "nothing of the file");
    }
    let counted = port.counted();
    let kinds =
        [counted.tickets_missing, counted.tickets_malformed, counted.tickets_forged, counted.tickets_expired];
    assert_eq!(kinds, [2, 2, 3, 1]);
    assert_eq!((counted.responses, counted.body_bytes, counted.sent_back), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_served_is_sent_back_with_the_ticket() {
    let Some(port) = Port::start().await else { return };
    let back = |path: &str, ticket: &str| format!("{FRONT_DOOR}{path}?b={ticket}");
    let absent = ticket(("pool/no such", b"x"), now() + 60, &KEY);
    let other_version = ticket((DEB.0, b"the version before"), now() + 60, &KEY);
    for (path, ticket) in [("/pool/no%20such", absent), ("/pool/a/apt%201.deb", other_version)] {
        let answer = port.get(&format!("{path}?t={ticket}"));
        assert_eq!(
            (status(&answer), field(&answer, "location")),
            ("302", Some(back(path, &ticket).as_str()))
        );
        assert_eq!(field(&answer, "cache-control"), Some("no-store"));
    }
    port.set(|terms| terms.closed = Some("drained".into()));
    let ticket = good();
    let answer = port.get(&format!("/pool/a/apt%201.deb?t={ticket}"));
    assert_eq!(field(&answer, "location"), Some(back("/pool/a/apt%201.deb", &ticket).as_str()));
    port.set(|terms| terms.closed = None);
    assert_eq!(status(&port.get(&format!("/pool/a/apt%201.deb?t={ticket}"))), "200");
    assert_eq!(port.counted().sent_back, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_budget_has_no_room_for_is_sent_back_also_to_local_clients() {
    let Some(port) = Port::start().await else { return };
    let target = format!("/pool/a/apt%201.deb?t={}", good());
    port.admission.settle(Some(Bytes(1 << 20)));
    assert_eq!(status(&port.get(&target)), "200");
    assert_eq!(port.counted().responses, 1);
    // The answer ended; two readings later nothing is promised any more.
    for _ in 0..2 {
        port.admission.settle(Some(Bytes(1 << 20)));
    }
    assert_eq!(port.admission.promisable(), Some(Bytes(1 << 20)));
    port.admission.settle(Some(Bytes(1000)));
    assert_eq!(status(&port.get(&target)), "302");
    port.set(|terms| terms.local_networks = vec!["127.0.0.0/8".parse().unwrap()]);
    let answer = port.get("/pool/a/apt%201.deb");
    assert_eq!(field(&answer, "location"), Some(format!("{FRONT_DOOR}/pool/a/apt%201.deb").as_str()));
    port.admission.settle(None);
    assert_eq!(status(&port.get(&target)), "200");
    assert_eq!(port.counted().sent_back, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_changed_on_disk_is_not_served_again() {
    let Some(port) = Port::start().await else { return };
    let held = port.mirror.find(DEB.0.as_bytes()).unwrap();
    let blob = port.mirror.blobs_directory().join(std::str::from_utf8(&held.blob).unwrap());
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, "not the package at all").unwrap();
    let ticket = good();
    let answer = port.get(&format!("/pool/a/apt%201.deb?t={ticket}"));
    assert_eq!(status(&answer), "302", "{}", answer.0);
    assert!(field(&answer, "location").unwrap().ends_with(&format!("?b={ticket}")));
    assert!(port.mirror.find(DEB.0.as_bytes()).is_none(), "it is distrusted until it was hashed again");
    let counted = port.counted();
    assert_eq!((counted.responses, counted.active, counted.sent_back), (0, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn local_networks_need_no_ticket_and_others_do() {
    let Some(port) = Port::start().await else { return };
    assert_eq!(status(&port.get("/pool/b/bash.deb")), "403");
    port.set(|terms| terms.local_networks = vec!["192.0.2.0/24".parse().unwrap()]);
    assert_eq!(status(&port.get("/pool/b/bash.deb")), "403");
    port.set(|terms| terms.local_networks = vec!["127.0.0.0/8".parse().unwrap()]);
    assert_eq!(port.get("/pool/b/bash.deb").1, OTHER.1);
    assert_eq!(port.get("/latest/apt%201.deb").1, DEB.1, "links of the manifest are followed");
    assert_eq!(port.get(&format!("/pool/b/bash.deb?t={}", ticket(OTHER, 5, &KEY))).1, OTHER.1);
    let answer = port.get("/dists/stable/Release");
    let location = format!("{FRONT_DOOR}/dists/stable/Release");
    assert_eq!((status(&answer), field(&answer, "location")), ("302", Some(location.as_str())));
    assert_eq!(port.counted().tickets_missing, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_reaches_anything_but_what_is_held() {
    let Some(port) = Port::start().await else { return };
    let root = port.directory.path();
    std::fs::write(root.join("secret"), "the secret").unwrap();
    std::os::unix::fs::symlink(root.join("secret"), root.join("tree/leak")).unwrap();
    std::fs::write(root.join("tree/stranger"), "the secret").unwrap();
    port.set(|terms| terms.local_networks = vec!["127.0.0.0/8".parse().unwrap()]);
    let secret = root.join("secret");
    let held = port.mirror.find(OTHER.0.as_bytes()).unwrap();
    let blob = std::str::from_utf8(&held.blob).unwrap().to_owned();
    for target in [
        "/../secret".to_owned(),
        "/../../../../../../etc/passwd".into(),
        "/pool/../../secret".into(),
        "/%2e%2e/secret".into(),
        "/%2E%2E%2Fsecret".into(),
        "/..%2fsecret".into(),
        "/pool/%2e./../secret".into(),
        "/pool/a/apt%201.deb%00".into(),
        "/%00".into(),
        "/..%00/secret".into(),
        secret.display().to_string(),
        format!("/{}", secret.display()),
        format!("//{}", secret.display()),
        "/leak".into(),
        "/stranger".into(),
        "/latest/../../secret".into(),
        format!("/{blob}"),
        "/store/index.redb".into(),
        "/pool".into(),
        "/pool/".into(),
        "/".into(),
        "/%ff%fe".into(),
        "/pool\\..\\secret".into(),
        "secret".into(),
    ] {
        let answer = port.get(&target);
        assert!(matches!(status(&answer), "302" | "400" | "404"), "{target}: {}", answer.0);
        assert!(!String::from_utf8_lossy(&answer.1).contains("the secret"), "{target}");
    }
    assert_eq!(port.counted().responses, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_splits_a_header_of_the_answer() {
    let Some(port) = Port::start().await else { return };
    port.set(|terms| terms.local_networks = vec!["127.0.0.0/8".parse().unwrap()]);
    for target in ["/a%0d%0aSet-Cookie:x=1", "//evil.example/%2f..", "/a%20b?t=%0d%0aX:1"] {
        let answer = port.get(target);
        assert!(field(&answer, "set-cookie").is_none() && field(&answer, "x").is_none(), "{}", answer.0);
        if let Some(location) = field(&answer, "location") {
            assert!(location.starts_with(FRONT_DOOR), "{location}");
        }
    }
}
