//! HTTP/1.1 rule by rule over raw sockets; every test names the section it holds the engine to.
#![allow(clippy::unwrap_used, reason = "a panic here is a failed test")]

mod support;

use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use support::{Served, request};

fn served() -> Served {
    let served = Served::new();
    served.file("a.txt", "0123456789");
    served.file("pool/p_1.deb", vec![7; 100_000]);
    served
}

/// Sends bytes that must be refused with `status`, and the connection closed after it.
fn refused(text: impl AsRef<[u8]>, status: u16) {
    let served = served();
    let mut client = served.connect();
    client.send(text.as_ref());
    let response = client.response();
    let text = String::from_utf8_lossy(text.as_ref());
    assert_eq!(response.status, status, "{text:?}");
    assert!(response.closes(), "{text:?}");
    assert!(!response.body.is_empty(), "{text:?}: a refusal says why");
    assert!(client.is_closed(), "{text:?}");
}

/// Sends bytes whose one answer has `status`, after which the connection goes on.
fn answered(text: impl AsRef<[u8]>, status: u16) -> support::Response {
    let served = served();
    let mut client = served.connect();
    client.send(text.as_ref());
    let response = client.response_to(text.as_ref().starts_with(b"HEAD"));
    assert_eq!(response.status, status, "{:?}", String::from_utf8_lossy(text.as_ref()));
    client.send(request("GET", "/a.txt", &[]));
    assert_eq!(client.response().body, b"0123456789");
    response
}

// --- Methods

/// RFC 9110 section 9.3.1.
#[test]
fn get_sends_the_representation() {
    let response = answered(request("GET", "/a.txt", &[]), 200);
    assert_eq!(response.body, b"0123456789");
    assert_eq!(response.field("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(response.field("accept-ranges"), Some("bytes"));
}

/// RFC 9110 section 9.3.2: the fields of GET, without the body.
#[test]
fn head_has_the_fields_of_get() {
    let served = served();
    let mut get = served.get("/a.txt", &[]).fields;
    let mut head = served.ask(&request("HEAD", "/a.txt", &[])).fields;
    for fields in [&mut get, &mut head] {
        fields.retain(|(name, _)| name != "date");
        fields.sort();
    }
    assert_eq!(get, head);
    answered(request("HEAD", "/a.txt", &[]), 200);
}

/// RFC 9110 section 9.3.7.
#[test]
fn options_tells_the_methods() {
    for target in ["*", "/a.txt"] {
        let response = answered(request("OPTIONS", target, &[]), 204);
        assert_eq!(response.field("allow"), Some("GET, HEAD, OPTIONS"));
        assert_eq!(response.field("content-length"), None, "RFC 9110 section 8.6");
    }
}

/// RFC 9110 section 15.5.6: 405 with Allow.
#[test]
fn other_methods_are_not_allowed() {
    for method in ["POST", "PUT", "DELETE", "TRACE", "PATCH", "get", "X-MINE"] {
        let response = answered(request(method, "/a.txt", &[]), 405);
        assert_eq!(response.field("allow"), Some("GET, HEAD, OPTIONS"), "{method}");
    }
    let response = answered("CONNECT test:80 HTTP/1.1\r\nHost: test\r\n\r\n", 405);
    assert_eq!(response.field("allow"), Some("GET, HEAD, OPTIONS"));
}

// --- Targets

/// RFC 9112 section 3.2.2: the absolute form is accepted, and its authority is the host.
#[test]
fn absolute_form() {
    assert_eq!(answered(request("GET", "http://other:80/a.txt", &[]), 200).body, b"0123456789");
    for target in ["http://other", "http://other:80?a"] {
        assert_eq!(
            answered(request("GET", target, &[]), 404).text().lines().count(),
            1,
            "the root: RFC 9110 section 4.2.3"
        );
    }
    refused("GET http:///a.txt HTTP/1.1\r\nHost: test\r\n\r\n", 400);
}

/// RFC 9112 section 3.2: forms that belong to other methods, or to none.
#[test]
fn other_forms_are_refused() {
    for target in ["a.txt", "*", "test:80", "/a.txt#part", "ftp://x/a.txt"] {
        refused(request("GET", target, &[]), 400);
    }
}

/// RFC 3986 section 2.4: percent-encoding is undone once.
#[test]
fn percent_decoding_happens_once() {
    let served = served();
    served.file("with space", "s");
    served.file("%41", "percent");
    served.file("A", "letter");
    assert_eq!(served.get("/with%20space", &[]).body, b"s");
    assert_eq!(served.get("/%41", &[]).body, b"letter");
    assert_eq!(served.get("/%2541", &[]).body, b"percent");
    assert_eq!(served.get("/a%2Etxt", &[]).body, b"0123456789");
    let name = std::ffi::OsStr::from_bytes(b"\xff");
    std::fs::write(served.path().join(name), "raw").unwrap();
    assert_eq!(served.get("/%FF", &[]).body, b"raw");
    for broken in ["/%", "/%2", "/%zz", "/%00", "/a.txt%00.deb"] {
        refused(request("GET", broken, &[]), 400);
    }
}

/// RFC 3986 section 5.2.4 leaves dot segments to the client; here they are refused, encoded or not.
#[test]
fn dot_segments_are_refused() {
    for path in [
        "/../etc/passwd",
        "/./a.txt",
        "/pool/../a.txt",
        "/%2e%2e/x",
        "/pool/.%2E/a.txt",
        "/..%2fx",
        "/pool/..",
    ] {
        refused(request("GET", path, &[]), 400);
    }
}

/// Nothing outside the tree is reached by links, and links within it are followed.
#[test]
fn links_out_of_the_tree_are_refused() {
    let served = served();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let link = |target: &std::path::Path, name: &str| {
        std::os::unix::fs::symlink(target, served.path().join(name)).unwrap();
    };
    link(outside.path(), "absolute");
    link(std::path::Path::new("../../etc/passwd"), "relative");
    link(std::path::Path::new("/"), "slash");
    link(std::path::Path::new("a.txt"), "inside");
    assert_eq!(served.get("/absolute", &[]).status, 404);
    assert_eq!(served.get("/relative", &[]).status, 404);
    assert_eq!(served.get("/slash/etc/passwd", &[]).status, 404);
    assert_eq!(served.get("/inside", &[]).body, b"0123456789");
}

/// A query selects nothing, and is no part of the name.
#[test]
fn queries_are_not_names() {
    assert_eq!(answered(request("GET", "/a.txt?x=/../y", &[]), 200).body, b"0123456789");
}

/// What is neither a file nor a directory is never opened: a FIFO would hang.
#[test]
fn special_files_are_not_there() {
    let served = served();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        served.path().join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(served.get("/fifo", &[]).status, 404);
    assert_eq!(served.get("/none", &[]).status, 404);
    assert_eq!(served.get("/a.txt/below", &[]).status, 404);
    let directory = served.get("/pool?x", &[]);
    assert_eq!((directory.status, directory.field("location")), (301, Some("/pool/?x")));
}

// --- Versions and the connection

/// RFC 9112 section 9.3: HTTP/1.1 persists, in order, also when pipelined (section 9.3.2).
#[test]
fn pipelined_requests_are_answered_in_order() {
    let served = served();
    served.file("b.txt", "b");
    let mut client = served.connect();
    let one = request("GET", "/a.txt", &[]);
    let two = request("GET", "/pool/p_1.deb", &[]);
    let three = request("HEAD", "/b.txt", &[]);
    let four = request("GET", "/b.txt", &[]);
    client.send([one.as_str(), &two, &three, &four].concat().repeat(50));
    for _ in 0..50 {
        assert_eq!(client.response().body, b"0123456789");
        assert_eq!(client.response().body.len(), 100_000);
        assert_eq!(client.response_to(true).field("content-length"), Some("1"));
        assert_eq!(client.response().body, b"b");
    }
}

/// RFC 9112 section 9.6: close means close, and nothing after it is answered.
#[test]
fn connection_close_is_honoured() {
    let served = served();
    for file in ["/a.txt", "/pool/p_1.deb"] {
        let mut client = served.connect();
        client.send(request("GET", file, &["Connection: foo, Close"]).repeat(2));
        let response = client.response();
        assert!(response.closes());
        assert!(client.is_closed());
    }
}

/// RFC 9112 section 9.3: HTTP/1.0 ends unless asked to stay, and needs no Host (section 3.2).
#[test]
fn http_1_0() {
    let served = served();
    let mut client = served.connect();
    client.send("GET /a.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let response = client.response();
    assert_eq!(response.field("connection"), Some("keep-alive"));
    client.send("GET /a.txt HTTP/1.0\r\n\r\n");
    let response = client.response();
    assert!(response.closes());
    assert_eq!(response.body, b"0123456789");
    assert!(client.is_closed());
}

/// RFC 9110 section 15.6.6: other versions get 505; what is no version gets 400.
#[test]
fn versions() {
    refused("GET / HTTP/2.0\r\nHost: test\r\n\r\n", 505);
    refused("GET / HTTP/0.9\r\nHost: test\r\n\r\n", 505);
    refused("GET / HTTP/11\r\nHost: test\r\n\r\n", 400);
    refused("GET / http/1.1\r\nHost: test\r\n\r\n", 400);
    refused("GET /\r\n\r\n", 400);
}

/// RFC 9112 section 3.2: exactly one valid Host in HTTP/1.1.
#[test]
fn host_is_required_once() {
    refused("GET /a.txt HTTP/1.1\r\n\r\n", 400);
    refused("GET http://test/a.txt HTTP/1.1\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: a/b\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: u@h\r\n\r\n", 400);
    answered("GET /a.txt HTTP/1.1\r\nHost:\r\n\r\n", 200);
    answered("GET /a.txt HTTP/1.1\r\nhOsT: [::1]:80\r\n\r\n", 200);
}

// --- Framing of the head

/// RFC 9112 section 2.2: an empty line before a request is forgiven, a whole flood is not.
#[test]
fn leading_empty_lines() {
    answered(format!("\r\n{}", request("GET", "/a.txt", &[])), 200);
    refused("\r\n".repeat(10), 400);
}

/// RFC 9112 section 2.2: a bare CR or LF ends nothing.
#[test]
fn bare_line_ends_are_refused() {
    refused("GET /a.txt HTTP/1.1\nHost: test\n\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: test\nX: y\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: te\rst\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\rHost: test\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: test\r\nX: a\0b\r\n\r\n", 400);
}

/// RFC 9112 section 5.1: no whitespace before the colon.
#[test]
fn whitespace_before_the_colon_is_refused() {
    refused("GET /a.txt HTTP/1.1\r\nHost : test\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: test\r\nX\t: y\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: test\r\nnocolon\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: test\r\n: empty\r\n\r\n", 400);
}

/// RFC 9112 section 5.2: folded lines are refused, as is whitespace before the first field (section 2.2).
#[test]
fn folded_lines_are_refused() {
    refused("GET /a.txt HTTP/1.1\r\nHost: test\r\nX: a\r\n b\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\nHost: test\r\nX: a\r\n\tb\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1\r\n Host: test\r\n\r\n", 400);
}

/// RFC 9112 section 3: single spaces in the request line.
#[test]
fn request_lines() {
    refused("GET  /a.txt HTTP/1.1\r\nHost: test\r\n\r\n", 400);
    refused("GET /a.txt  HTTP/1.1\r\nHost: test\r\n\r\n", 400);
    refused("GET /a b HTTP/1.1\r\nHost: test\r\n\r\n", 400);
    refused("GET /a.txt HTTP/1.1 \r\nHost: test\r\n\r\n", 400);
    refused("G@T /a.txt HTTP/1.1\r\nHost: test\r\n\r\n", 400);
    refused([&b"GET /\xff HTTP/1.1\r\nHost: test\r\n\r\n"[..]].concat(), 400);
}

/// RFC 9112 section 2.3 and plain sense: TLS on this port is told at once that it is wrong here.
#[test]
fn tls_is_refused_at_once() {
    refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400);
}

/// RFC 6585 section 5: a head beyond the bound, in bytes or fields.
#[test]
fn long_heads_are_refused() {
    let long = "x".repeat(20_000);
    refused(format!("GET /{long} HTTP/1.1\r\nHost: test\r\n\r\n"), 431);
    refused(request("GET", "/a.txt", &[&format!("X: {long}")]), 431);
    // Endless: the end of the head never comes.
    refused(format!("GET /a.txt HTTP/1.1\r\nX: {long}"), 431);
    let many: Vec<String> = (0..80).map(|index| format!("X{index}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(request("GET", "/a.txt", &many), 431);
    let fits: Vec<&str> = many[..60].to_vec();
    answered(request("GET", "/a.txt", &fits), 200);
}

// --- Bodies

/// RFC 9112 section 6.3: a body is read past, whatever the method and its framing.
#[test]
fn bodies_are_read_past() {
    let length = |method, body: &str| {
        format!("{}{body}", request(method, "/a.txt", &[&format!("Content-Length: {}", body.len())]))
    };
    answered(length("GET", "GET / HTTP/1.1\r\n\r\n"), 200);
    answered(length("POST", &"x".repeat(60_000)), 405);
    let chunked =
        |body: &str| format!("{}{body}", request("POST", "/a.txt", &["Transfer-Encoding: chunked"]));
    answered(chunked("0\r\n\r\n"), 405);
    answered(chunked("5;ext=\"1\"\r\nhello\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"), 405);
    answered(length("GET", ""), 200);
}

/// RFC 9110 section 15.5.14: beyond the bound the connection ends.
#[test]
fn long_bodies_are_refused() {
    refused(request("POST", "/a.txt", &["Content-Length: 99999999"]), 413);
    let chunks = "ffff\r\n".to_owned() + &"x".repeat(0xffff) + "\r\nffff\r\n" + &"x".repeat(0xffff);
    refused(request("POST", "/a.txt", &["Transfer-Encoding: chunked"]) + &chunks, 413);
}

/// RFC 9112 section 6.1 and 6.3: ambiguous or broken framing is an attack.
#[test]
fn ambiguous_framing_is_refused() {
    let with = |fields: &[&str]| request("GET", "/a.txt", fields) + "0\r\n\r\n";
    refused(with(&["Transfer-Encoding: chunked", "Content-Length: 5"]), 400);
    refused(with(&["Content-Length: 5", "Transfer-Encoding: chunked"]), 400);
    refused(with(&["Content-Length: 5", "Content-Length: 6"]), 400);
    refused(with(&["Content-Length: 5", "Content-Length: 5"]), 400);
    refused(with(&["Content-Length: 5, 5"]), 400);
    refused(with(&["Content-Length: +5"]), 400);
    refused(with(&["Content-Length: 0x5"]), 400);
    refused(with(&["Content-Length:"]), 400);
    refused(with(&["Content-Length: 99999999999999999999999"]), 400);
    refused(with(&["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"]), 501);
    refused(with(&["Transfer-Encoding: gzip, chunked"]), 501);
    refused(with(&["Transfer-Encoding: identity"]), 501);
    refused("GET /a.txt HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
}

/// RFC 9112 section 7.1.
#[test]
fn broken_chunks_are_refused() {
    for body in ["x\r\n", "5\r\nhelloX\r\n", "-1\r\n", "5\nhello\r\n", "0\r\n\n", "11111111111111111\r\n"] {
        refused(request("POST", "/a.txt", &["Transfer-Encoding: chunked"]) + body, 400);
    }
}

/// RFC 9110 section 10.1.1: 100 before the body, then the answer; other expectations get 417.
#[test]
fn expect_continue() {
    let served = served();
    let mut client = served.connect();
    client.send(request("GET", "/a.txt", &["Content-Length: 4", "Expect: 100-continue"]));
    assert_eq!(client.response().status, 100);
    client.send("body");
    assert_eq!(client.response().body, b"0123456789");
    client.send(request("GET", "/a.txt", &["Expect: 100-continue"]));
    assert_eq!(client.response().status, 200, "no body, no 100");
    // The client may send the body all the same or not: only a closed connection is unambiguous.
    let mut client = served.connect();
    client.send(request("POST", "/a.txt", &["Content-Length: 4", "Expect: 100-continue"]));
    let response = client.response();
    assert_eq!((response.status, response.closes()), (405, true));
    refused(request("GET", "/a.txt", &["Content-Length: 9999999", "Expect: 100-continue"]), 413);
    refused(request("GET", "/a.txt", &["Expect: tea"]), 417);
}

// --- Preconditions

/// RFC 9110 section 8.8.3: a strong tag, the same for the same version and another for another.
#[test]
fn entity_tags_are_strong_and_change() {
    let served = served();
    let tag = |served: &Served| served.get("/a.txt", &[]).field("etag").unwrap().to_owned();
    let first = tag(&served);
    assert!(first.starts_with('"') && first.ends_with('"'));
    assert_eq!(tag(&served), first);
    std::fs::write(served.path().join("new"), "9876543210").unwrap();
    std::fs::rename(served.path().join("new"), served.path().join("a.txt")).unwrap();
    support::eventually("the new version is served", || served.get("/a.txt", &[]).body == b"9876543210");
    assert_ne!(tag(&served), first);
}

/// RFC 9110 section 13.1.1.
#[test]
fn if_match() {
    let served = served();
    let tag = served.get("/a.txt", &[]).field("etag").unwrap().to_owned();
    let status = |value: &str| served.get("/a.txt", &[&format!("If-Match: {value}")]).status;
    assert_eq!(status(&tag), 200);
    assert_eq!(status("*"), 200);
    assert_eq!(status(&format!("\"x\", {tag}")), 200);
    assert_eq!(status("\"x\""), 412);
    assert_eq!(status(&format!("W/{tag}")), 412, "strong comparison");
    assert_eq!(served.get("/none", &["If-Match: *"]).status, 404, "section 13.2.1");
}

/// RFC 9110 section 13.1.2.
#[test]
fn if_none_match() {
    let served = served();
    let tag = served.get("/a.txt", &[]).field("etag").unwrap().to_owned();
    let ask = |value: &str| served.get("/a.txt", &[&format!("If-None-Match: {value}")]);
    let response = ask(&tag);
    assert_eq!((response.status, response.field("etag")), (304, Some(tag.as_str())));
    assert_eq!(response.field("content-length"), None);
    assert!(response.field("date").is_some(), "section 15.4.5");
    assert_eq!(ask("*").status, 304);
    assert_eq!(ask(&format!("W/{tag}")).status, 304, "weak comparison");
    assert_eq!(ask(&format!("\"x\",{tag}")).status, 304);
    assert_eq!(ask("\"x\"").status, 200);
    let head = served.ask(&request("HEAD", "/a.txt", &[&format!("If-None-Match: {tag}")]));
    assert_eq!(head.status, 304);
}

/// RFC 9110 sections 13.1.3 and 13.1.4, and their place behind the tags (section 13.2.2).
#[test]
fn dates() {
    let served = served();
    let modified = served.get("/a.txt", &[]).field("last-modified").unwrap().to_owned();
    let (old, new) = ("Thu, 01 Jan 1998 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
    let status = |fields: &[String]| {
        served.get("/a.txt", &fields.iter().map(String::as_str).collect::<Vec<_>>()).status
    };
    assert_eq!(status(&[format!("If-Modified-Since: {modified}")]), 304);
    assert_eq!(status(&[format!("If-Modified-Since: {old}")]), 200);
    assert_eq!(status(&["If-Modified-Since: soon".into()]), 200);
    assert_eq!(status(&[format!("If-Unmodified-Since: {modified}")]), 200);
    assert_eq!(status(&[format!("If-Unmodified-Since: {old}")]), 412);
    assert_eq!(status(&["If-None-Match: \"x\"".into(), format!("If-Modified-Since: {new}")]), 200);
    assert_eq!(status(&["If-Match: *".into(), format!("If-Unmodified-Since: {old}")]), 200);
}

// --- Ranges

/// RFC 9110 section 14.1.2 and 15.3.7.1: one range.
#[test]
fn single_ranges() {
    for (range, body, place) in [
        ("0-0", "0", "bytes 0-0/10"),
        ("2-4", "234", "bytes 2-4/10"),
        ("7-", "789", "bytes 7-9/10"),
        ("-3", "789", "bytes 7-9/10"),
        ("-99", "0123456789", "bytes 0-9/10"),
        ("5-99", "56789", "bytes 5-9/10"),
    ] {
        let response = answered(request("GET", "/a.txt", &[&format!("Range: bytes={range}")]), 206);
        assert_eq!(
            (response.text().as_str(), response.field("content-range")),
            (body, Some(place)),
            "{range}"
        );
        assert_eq!(response.field("content-type"), Some("text/plain; charset=utf-8"));
    }
    let served = served();
    let body = served.get("/pool/p_1.deb", &["Range: bytes=50000-59999"]).body;
    assert_eq!(body, vec![7; 10_000]);
}

/// RFC 9110 section 15.5.17.
#[test]
fn unsatisfiable_ranges() {
    for range in ["10-", "-0", "99-100"] {
        let response = answered(request("GET", "/a.txt", &[&format!("Range: bytes={range}")]), 416);
        assert_eq!(response.field("content-range"), Some("bytes */10"), "{range}");
    }
}

/// RFC 9110 section 14.2: what can't be read, other units, and other methods leave the whole.
#[test]
fn ignored_ranges() {
    for range in ["bytes=4-2", "bytes=x", "bytes", "lines=0-1", "bytes=", "bytes=0-1-2"] {
        assert_eq!(answered(request("GET", "/a.txt", &[&format!("Range: {range}")]), 200).body.len(), 10);
    }
    let many = (0..40).map(|index| format!("{0}-{0}", index * 200)).collect::<Vec<_>>().join(",");
    assert_eq!(
        answered(request("GET", "/pool/p_1.deb", &[&format!("Range: bytes={many}")]), 200).body.len(),
        100_000
    );
    answered(request("GET", "/a.txt", &["Range: bytes=0-1", "Range: bytes=2-3"]), 200);
    answered(request("HEAD", "/a.txt", &["Range: bytes=0-1"]), 200);
}

/// RFC 9110 section 15.3.7.2: several ranges, in the order asked, in parts.
#[test]
fn multiple_ranges() {
    let served = Served::new();
    let content = support::pattern(600_000);
    served.file("big.bin", &content);
    served.file("small.bin", &content[..10_000]);
    for (name, size) in [("big.bin", 600_000_usize), ("small.bin", 10_000)] {
        let response = served.get(&format!("/{name}"), &["Range: bytes=5000-5009, 0-99, -50"]);
        assert_eq!(response.status, 206);
        assert_eq!(response.field("content-range"), None);
        let kind = response.field("content-type").unwrap();
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let part = |first: usize, last: usize| {
            let mut part = format!(
                "--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n"
            )
            .into_bytes();
            part.extend_from_slice(&content[first..=last]);
            part.extend_from_slice(b"\r\n");
            part
        };
        let mut expected = [part(5_000, 5_009), part(0, 99), part(size - 50, size - 1)].concat();
        write!(expected, "--{boundary}--\r\n").unwrap();
        assert!(response.body == expected, "{name}: {}", response.text());
    }
}

/// RFC 9110 section 14.2: overlapping and neighbouring ranges are joined, down to one.
#[test]
fn ranges_are_joined() {
    let response = answered(request("GET", "/a.txt", &["Range: bytes=0-1,2-3,1-5"]), 206);
    assert_eq!((response.text().as_str(), response.field("content-range")), ("012345", Some("bytes 0-5/10")));
}

/// RFC 9110 section 13.1.5: a range counts only for the very version that was meant.
#[test]
fn if_range() {
    let served = served();
    let whole = served.get("/a.txt", &[]);
    let tag = whole.field("etag").unwrap();
    let status =
        |value: &str| served.get("/a.txt", &["Range: bytes=0-1", &format!("If-Range: {value}")]).status;
    assert_eq!(status(tag), 206);
    assert_eq!(status("\"x\""), 200);
    assert_eq!(status(&format!("W/{tag}")), 200);
    assert_eq!(status("Thu, 01 Jan 1998 00:00:00 GMT"), 200);
    // An unsatisfiable range of another version is no error either.
    assert_eq!(served.get("/a.txt", &["Range: bytes=99-", "If-Range: \"x\""]).status, 200);
    let path = served.path().join("a.txt");
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    support::eventually("the old date is seen", || status("Sun, 09 Sep 2001 01:46:40 GMT") == 206);
    assert_eq!(status("Sun, 09 Sep 2001 01:46:41 GMT"), 200, "exact match only");
}

/// RFC 9110 section 13.2.2: preconditions come before ranges.
#[test]
fn preconditions_come_before_ranges() {
    let served = served();
    let tag = served.get("/a.txt", &[]).field("etag").unwrap().to_owned();
    let status = |fields: &[&str]| served.get("/a.txt", fields).status;
    assert_eq!(status(&["Range: bytes=0-1", &format!("If-None-Match: {tag}")]), 304);
    assert_eq!(status(&["Range: bytes=99-", "If-Match: \"x\""]), 412);
}

/// RFC 9110 section 6.6.1: every answer carries a date in the preferred form.
#[test]
fn every_answer_is_dated() {
    let served = served();
    for target in ["/a.txt", "/none", "/../x"] {
        let response = served.get(target, &[]);
        let date = response.field("date").unwrap();
        assert_eq!(date.len(), 29, "{date}");
        assert!(date.ends_with(" GMT"), "{date}");
    }
}

/// An empty file is a file: no body, nothing to range over.
#[test]
fn empty_files() {
    let served = served();
    served.file("empty", "");
    let response = served.get("/empty", &[]);
    assert_eq!((response.status, response.field("content-length")), (200, Some("0")));
    assert_eq!(served.get("/empty", &["Range: bytes=0-"]).status, 416);
    let mut client = served.connect();
    client.send(request("GET", "/empty", &[]).repeat(3));
    for _ in 0..3 {
        assert_eq!(client.response().body, b"");
    }
}
