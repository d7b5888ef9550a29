//! One join string, one volunteer.

use freshet_api::JoinString;
use freshet_api::enrol::{Fingerprint, Secret};
use reqwest::{Method, StatusCode};

use crate::stage::{Caller, Stage, Volunteer};

#[tokio::test(flavor = "multi_thread")]
async fn a_join_string_makes_one_volunteer() {
    let stage = Stage::new().await;
    let join = stage.invite("south").await;
    let first = Volunteer::join(&join, "http://192.0.2.1:80").await.unwrap();
    let again = Volunteer::join(&join, "http://192.0.2.1:80").await.unwrap();
    assert_eq!(first.node, again.node, "the same request gets the same answer");
    let (status, text) = Volunteer::join(&join, "http://192.0.2.2:80").await.err().unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(text.contains("used already"), "{text}");
    let unknown = JoinString { secret: Secret([3; 32]), ..join };
    let (status, text) = Volunteer::join(&unknown, "http://192.0.2.3:80").await.err().unwrap();
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(text.contains("ask the operator"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_is_never_talked_to() {
    let stage = Stage::new().await;
    let credentials = stage.credentials();
    let caller = Caller::new(&credentials.api, Fingerprint([1; 32]), &credentials.token);
    let error = caller.send(Method::GET, "admin/status", Vec::new()).await.unwrap_err();
    assert!(format!("{error:?}").contains("fingerprint"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_right_secret() {
    let stage = Stage::new().await;
    let credentials = stage.credentials();
    let volunteer = stage.volunteer("south", "http://192.0.2.1:80").await;
    let stranger = Caller::new(&credentials.api, credentials.fingerprint, &Secret([9; 32]));
    for (method, path) in [
        (Method::GET, "admin/status"),
        (Method::GET, "admin/nodes"),
        (Method::POST, "admin/nodes"),
        (Method::DELETE, "admin/nodes/south"),
        (Method::GET, "manifest"),
    ] {
        let (status, _) = stranger.refused(method, path, &()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let (status, _) = stranger.refused(Method::POST, "heartbeat", &volunteer.next).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    // A volunteer is no operator, and an operator no volunteer.
    let (status, _) = volunteer.caller.refused(Method::GET, "admin/nodes", &()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let (status, _) = stage.operator().refused(Method::GET, "manifest", &()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_no_message_is_refused_in_json() {
    let stage = Stage::new().await;
    let operator = stage.operator();
    // The rest of the body is not waited for, so a client may see the connection break before the answer.
    if let Ok(answer) = stage.operator().send(Method::POST, "join", vec![b'x'; 2 << 20]).await {
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    let (status, text) = operator.refused(Method::POST, "join", &1).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("not as expected"), "{text}");
    assert_eq!(operator.refused(Method::GET, "nonsense", &()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(operator.refused(Method::GET, "join", &()).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let names = ["", "a b", "17", "../x"];
    for name in names {
        let body = freshet_api::admin::AddNode { name: name.into() };
        assert_eq!(operator.refused(Method::POST, "admin/nodes", &body).await.0, StatusCode::BAD_REQUEST);
    }
}
