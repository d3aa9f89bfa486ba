//! Tokens that are not taken, or not taken any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vdkr_transfer::TransferError;

use super::client;
use super::double::{Double, Reply};
use super::token::{challenge, manifest, pull};

/// A token that is kept and not taken any more is renewed once for a request; that its successor is not
/// taken either is final.
#[tokio::test]
async fn a_token_fresh_from_its_server_that_is_refused_is_not_fetched_again() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token"));
    let target = "/v2/a/manifests/t";
    server
        .on("GET", target)
        .authorized("")
        .reply(refused.clone());
    for token in ["T1", "T2", "T3"] {
        server
            .on("GET", "/token?service=reg&scope=repository%3Aa%3Apull")
            .reply(Reply::ok(format!(r#"{{"token":"{token}"}}"#)));
    }
    server
        .on("GET", target)
        .authorized("Bearer T1")
        .reply(manifest());
    for token in ["T1", "T2", "T3"] {
        server
            .on("GET", target)
            .authorized(&format!("Bearer {token}"))
            .reply(refused.clone());
    }
    let client = client();
    pull(&client, &server).await.unwrap();
    // The kept one and its successor.
    let error = pull(&client, &server).await.unwrap_err();
    assert!(matches!(error, TransferError::Denied { .. }), "{error}");
    // There is none to begin with now: one is fetched, and that was all.
    let error = pull(&client, &server).await.unwrap_err();
    assert!(matches!(error, TransferError::Denied { .. }), "{error}");
    server.finish();
}

#[tokio::test]
async fn the_successor_of_a_token_is_fetched_again_when_more_is_asked_for() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token"));
    let more = format!(
        r#"Bearer realm="{}",service="reg",scope="repository:a:pull repository:b:pull",error="insufficient_scope""#,
        server.url("/token")
    );
    let target = "/v2/a/manifests/t";
    let shows = |token: &str| {
        server
            .on("GET", target)
            .authorized(&format!("Bearer {token}"))
    };
    server
        .on("GET", target)
        .authorized("")
        .reply(refused.clone());
    let token = "/token?service=reg&scope=repository%3Aa%3Apull";
    for value in ["T1", "T2"] {
        server
            .on("GET", token)
            .reply(Reply::ok(format!(r#"{{"token":"{value}"}}"#)));
    }
    server
        .on("GET", format!("{token}&scope=repository%3Ab%3Apull"))
        .reply(Reply::ok(r#"{"token":"T3"}"#));
    shows("T1").reply(manifest());
    shows("T1").reply(refused);
    shows("T2").reply(Reply::status(401).header("WWW-Authenticate", more));
    shows("T3").reply(manifest());
    let client = client();
    pull(&client, &server).await.unwrap();
    pull(&client, &server).await.unwrap();
    server.finish();
}

/// However the server goes on asking for more.
#[tokio::test]
async fn challenges_that_never_end_are_left_alone() {
    let server = Double::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    for number in 0..9 {
        let challenge = format!(
            r#"Bearer realm="{}",scope="repository:a:pull repository:b{number}:pull""#,
            server.url("/token")
        );
        let count = asked.clone();
        server
            .on("GET", "/v2/a/manifests/t")
            .when(move |_| count.load(Ordering::SeqCst) == number)
            .maybe()
            .reply(Reply::status(401).header("WWW-Authenticate", challenge));
        let count = asked.clone();
        let scopes = format!("scope=repository%3Aa%3Apull&scope=repository%3Ab{number}%3Apull");
        server
            .on("GET", format!("/token?{scopes}"))
            .when(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
                true
            })
            .maybe()
            .reply(Reply::ok(format!(r#"{{"token":"T{number}"}}"#)));
    }
    let error = pull(&client(), &server).await.unwrap_err();
    assert!(matches!(error, TransferError::Denied { .. }), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}
