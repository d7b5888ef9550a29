//! What customers get: redirects that open, files that the origin sends, and where they go when sent back.

use freshet_api::admin::StatusView;
use freshet_api::{Checksums, NodeId, Ticket};
use reqwest::{Method, StatusCode};

use crate::stage::{BIG, INDEX, SMALL, Stage, content, location, put, ticket};

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_carries_a_ticket_that_opens_and_the_checksums() {
    let stage = Stage::new().await;
    let south = stage.ready("south", "http://192.0.2.1:8080").await;
    let north = stage.ready("north", "http://192.0.2.2:8080").await;
    let sums = Checksums::of(&content(BIG, 300_000));
    for method in [Method::HEAD, Method::GET] {
        let answer = stage.customer().request(method, stage.url(BIG)).send().await.unwrap();
        let url = location(&answer);
        let (text, place) = ticket(&url);
        let chosen = if place.starts_with("http://192.0.2.1:8080/") { &south } else { &north };
        assert!(place.ends_with("/pool/main/b/big+1_amd64.deb"), "the name stays: {place}");
        let path = format!("/{BIG}");
        let opened = Ticket::open(text, &chosen.ticket_key, path.as_bytes(), 0).unwrap();
        assert_eq!((opened.node(), opened.content), (chosen.node, sums.blake3.prefix()));
        let field = |name: &str| answer.headers()[name].to_str().unwrap();
        assert_eq!(field("repr-digest"), sums.repr_digest());
        assert_eq!(field("digest"), sums.digest());
        assert_eq!(field("x-checksum-md4"), sums.md4_hex());
        assert_eq!(field("cache-control"), "no-store");
        let links: Vec<&str> =
            answer.headers().get_all("link").iter().map(|link| link.to_str().unwrap()).collect();
        assert!(links.iter().any(|link| link.contains("rel=describedby")), "{links:?}");
        assert!(links.contains(&format!("<{url}>; rel=duplicate; pri=1").as_str()), "{links:?}");
        assert_eq!(links.iter().filter(|link| link.contains("rel=duplicate")).count(), 2, "{links:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_sends_small_files_and_indexes_itself() {
    let stage = Stage::new().await;
    let _south = stage.ready("south", "http://192.0.2.1:8080").await;
    for (path, bytes) in [(SMALL, 100), (INDEX, 90_000)] {
        let answer = stage.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let sums = Checksums::of(&content(path, bytes));
        assert_eq!(answer.headers()["etag"].to_str().unwrap(), sums.etag());
        assert_eq!(answer.headers()["repr-digest"].to_str().unwrap(), sums.repr_digest());
        assert_eq!(answer.bytes().await.unwrap(), content(path, bytes));
        let conditional = stage.customer().get(stage.url(path)).header("if-none-match", sums.etag());
        assert_eq!(conditional.send().await.unwrap().status(), StatusCode::NOT_MODIFIED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_volunteers_the_origin_sends_everything() {
    let stage = Stage::new().await;
    let answer = stage.get(BIG).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.bytes().await.unwrap(), content(BIG, 300_000));
    let part = stage.customer().get(stage.url(BIG)).header("range", "bytes=299990-").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), content(BIG, 300_000)[299_990..]);
    let status: StatusView = stage.operator().ok(Method::GET, "admin/status", &()).await;
    assert_eq!((status.front_door.fallback, status.front_door.redirects), (2, 0));
    stage
        .eventually(|stage| async move {
            let status: StatusView = stage.operator().ok(Method::GET, "admin/status", &()).await;
            status.front_door.body_bytes == 300_010
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_sent_back_goes_elsewhere_and_at_last_to_the_origin() {
    let stage = Stage::new().await;
    let south = stage.ready("south", "http://192.0.2.1:8080").await;
    let north = stage.ready("north", "http://192.0.2.2:8080").await;
    let first = location(&stage.get(BIG).await);
    let (text, place) = ticket(&first);
    let second = location(&stage.get(&format!("{BIG}?b={text}")).await);
    let (text, other) = ticket(&second);
    assert_ne!(place, other);
    let key = if other.starts_with("http://192.0.2.1:") { &south.ticket_key } else { &north.ticket_key };
    let opened = Ticket::open(text, key, format!("/{BIG}").as_bytes(), 0).unwrap();
    let mut tried = opened.nodes().to_vec();
    tried.sort();
    assert_eq!(tried, [south.node, north.node]);
    let last = stage.get(&format!("{BIG}?b={text}")).await;
    assert_eq!(last.status(), StatusCode::OK);
    assert_eq!(last.bytes().await.unwrap(), content(BIG, 300_000));
    let status: StatusView = stage.operator().ok(Method::GET, "admin/status", &()).await;
    assert_eq!((status.front_door.came_back, status.front_door.fallback), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_return_ticket_that_was_not_sealed_here_is_refused_and_counted() {
    let stage = Stage::new().await;
    let south = stage.ready("south", "http://192.0.2.1:8080").await;
    let url = location(&stage.get(BIG).await);
    let (text, _) = ticket(&url);
    let altered = format!("{}{}", &text[..text.len() - 2], if text.ends_with("AA") { "BB" } else { "AA" });
    let elsewhere = Ticket::new(u32::MAX, &Checksums::of(b"x").blake3, &[], south.node).unwrap();
    let elsewhere = elsewhere.seal(&south.ticket_key, b"/pool/other.iso");
    for bad in ["x", "", altered.as_str(), elsewhere.as_str()] {
        let answer = stage.get(&format!("{BIG}?b={bad}")).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{bad:?}");
        assert!(answer.text().await.unwrap().contains("refused"));
    }
    // Too old, or of a volunteer that is gone: the customer is not to blame.
    let sums = Checksums::of(&content(BIG, 300_000));
    let path = format!("/{BIG}");
    let old = Ticket::new(1, &sums.blake3, &[], south.node).unwrap().seal(&south.ticket_key, path.as_bytes());
    let gone = Ticket::new(u32::MAX, &sums.blake3, &[], NodeId(99)).unwrap();
    let gone = gone.seal(&south.ticket_key, path.as_bytes());
    for harmless in [old, gone] {
        let status = stage.get(&format!("{BIG}?b={harmless}")).await.status();
        assert!(matches!(status, StatusCode::OK | StatusCode::FOUND), "{status}");
    }
    let status: StatusView = stage.operator().ok(Method::GET, "admin/status", &()).await;
    assert_eq!(status.front_door.tickets_refused, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_again_at_once_is_sent_to_another_first() {
    let stage = Stage::new().await;
    let _south = stage.ready("south", "http://192.0.2.1:8080").await;
    let _north = stage.ready("north", "http://192.0.2.2:8080").await;
    let first = location(&stage.get(BIG).await);
    let second = location(&stage.get(BIG).await);
    assert_ne!(ticket(&first).1, ticket(&second).1);
    // No heartbeat was due since: whoever fetches many parts at once stays with the volunteers.
    for _ in 0..6 {
        location(&stage.get(BIG).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn companions_tell_checksums_and_sources_unless_a_real_file_has_that_name() {
    let stage = Stage::new().await;
    let _south = stage.ready("south", "http://192.0.2.1:8080").await;
    let sums = Checksums::of(&content(BIG, 300_000));
    let text = stage.get(&format!("{BIG}.md4")).await.text().await.unwrap();
    assert_eq!(text, format!("{}  big+1_amd64.deb\n", sums.md4_hex()));
    let text = stage.get(&format!("{BIG}.sha256")).await.text().await.unwrap();
    assert_eq!(text, format!("{}  big+1_amd64.deb\n", sums.sha256_hex()));
    let answer = stage.get(&format!("{BIG}.meta4")).await;
    assert_eq!(answer.headers()["content-type"], "application/metalink4+xml");
    let text = answer.text().await.unwrap();
    for part in [
        "<file name=\"big+1_amd64.deb\">".to_owned(),
        "<size>300000</size>".to_owned(),
        format!("<hash type=\"sha-256\">{}</hash>", sums.sha256_hex()),
        format!("<hash type=\"md4\">{}</hash>", sums.md4_hex()),
        format!("<url priority=\"1\">http://192.0.2.1:8080/{BIG}?t="),
        format!("<url priority=\"2\">{}</url>", stage.url(BIG)),
    ] {
        assert!(text.contains(&part), "{part} is not in {text}");
    }
    let small = stage.get(&format!("{SMALL}.meta4")).await.text().await.unwrap();
    assert_eq!(small.matches("<url").count(), 1, "{small}");
    assert_eq!(stage.get("pool/nothing.md4").await.status(), StatusCode::NOT_FOUND);

    put(stage.repo(), &format!("{SMALL}.sha256"), b"the maintainer's own\n");
    stage
        .eventually(|stage| async move {
            stage.get(&format!("{SMALL}.sha256")).await.text().await.unwrap() == "the maintainer's own\n"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_lead_to_their_target_and_nothing_leads_out_of_the_tree() {
    let stage = Stage::new().await;
    std::fs::write(stage.repo().parent().unwrap().join("outside-of-freshet-test"), "secret").unwrap();
    assert_eq!(stage.get("pool/latest.deb").await.bytes().await.unwrap(), content(BIG, 300_000));
    let sums = stage.get("pool/latest.deb.sha256").await.text().await.unwrap();
    assert!(sums.ends_with("  latest.deb\n"), "the name that was asked for: {sums}");
    for path in [
        "pool/escape",
        "../outside-of-freshet-test",
        "pool/..%2f..%2foutside-of-freshet-test",
        "%2e%2e/outside-of-freshet-test",
        "pool/%00",
        "//etc/passwd",
        "pool/small.txt/",
        "pool/small.txt%2f..%2f..%2f..%2fetc%2fpasswd",
    ] {
        let answer = stage.get(path).await;
        let status = answer.status();
        assert!(status.is_client_error(), "{path}: {status}");
        assert!(!answer.text().await.unwrap().contains("secret"));
    }
    let south = stage.ready("south", "http://192.0.2.1:8080").await;
    let url = location(&stage.get("pool/latest.deb").await);
    let (text, place) = ticket(&url);
    assert_eq!(place, "http://192.0.2.1:8080/pool/latest.deb");
    assert!(Ticket::open(text, &south.ticket_key, b"/pool/latest.deb", 0).is_ok());
    std::fs::remove_file(stage.repo().parent().unwrap().join("outside-of-freshet-test")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_listed() {
    let stage = Stage::new().await;
    let answer = stage.get("pool").await;
    assert_eq!(answer.status(), StatusCode::MOVED_PERMANENTLY);
    assert_eq!(answer.headers()["location"], "/pool/");
    let text = stage.get("pool/").await.text().await.unwrap();
    assert!(text.contains("href=\"./small.txt\"") && text.contains("href=\"./main/\""), "{text}");
    assert_eq!(stage.get("").await.status(), StatusCode::OK);
    assert_eq!(stage.get("nowhere/").await.status(), StatusCode::NOT_FOUND);
    put(stage.repo(), "site/index.html", b"<p>hello");
    stage.eventually(|stage| async move { stage.get("site/").await.status() == StatusCode::OK }).await;
    assert_eq!(stage.get("site/").await.text().await.unwrap(), "<p>hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_just_changed_comes_from_the_origin() {
    let stage = Stage::new().await;
    let _south = stage.ready("south", "http://192.0.2.1:8080").await;
    assert_eq!(stage.get(BIG).await.status(), StatusCode::FOUND);
    let new = content("something else", 310_000);
    put(stage.repo(), BIG, &new);
    let sums = Checksums::of(&new);
    // Until the catalogue knows, the answer is a redirect to the old version or a pause, never wrong bytes.
    stage
        .eventually(|stage| {
            let new = &new;
            async move {
                let answer = stage.get(BIG).await;
                answer.status() == StatusCode::OK && answer.bytes().await.unwrap() == new
            }
        })
        .await;
    let answer = stage.get(BIG).await;
    assert_eq!(answer.headers()["repr-digest"].to_str().unwrap(), sums.repr_digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_not_sent_to_a_family_or_host_it_cannot_reach() {
    let stage = Stage::new().await;
    let _six = stage.ready("six", "http://[2001:db8::1]:8080").await;
    assert_eq!(stage.get(BIG).await.status(), StatusCode::OK, "an IPv4 customer");
    let _named = stage.ready("named", "http://mirror.example:8080").await;
    assert!(location(&stage.get(BIG).await).starts_with("http://mirror.example:8080/"));
}
