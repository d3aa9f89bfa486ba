//! Authentication.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;
use vdkr_core::channel::message::{FailureCode, Mirror, RegistrySettings};
use vdkr_core::credentials::{Credential, Secret};
use vdkr_core::reference::{Host, Selector};
use vdkr_transfer::pull::{Question, client_config, connect};
use vdkr_transfer::{Client, ClientConfig, TransferError};

use super::double::{Double, Reply};
use super::*;

const MANIFEST: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
const PLAIN: &str = "Basic dTpw"; // u:p

pub(super) fn challenge(realm: &str) -> Reply {
    let value = format!(r#"Bearer realm="{realm}",service="reg",scope="repository:a:pull""#);
    Reply::status(401).header("WWW-Authenticate", value)
}

pub(super) fn manifest() -> Reply {
    Reply::ok(MANIFEST).header("Content-Type", "application/vnd.oci.image.index.v1+json")
}

pub(super) async fn pull(client: &Client, server: &Double) -> Result<(), TransferError> {
    let repository = repository(&server.host(), "a");
    client
        .get_manifest(&repository, Selector::Tag("t"))
        .await
        .map(drop)
}

#[tokio::test]
async fn bearer_flow_uses_the_credentials_once_and_keeps_the_token() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token?x=1"));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("")
        .reply(refused);
    server
        .on("GET", "/token?x=1&service=reg&scope=repository%3Aa%3Apull")
        .authorized(PLAIN)
        .reply(Reply::ok(r#"{"token":"T1","expires_in":300}"#));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer T1")
        .times(3)
        .reply(manifest());
    let client = client_as("u", "p");
    for _ in 0..3 {
        pull(&client, &server).await.unwrap();
    }
    server.finish();
}

/// A token server's 404 is about tokens: no name becomes unknown by it.
#[tokio::test]
async fn a_token_server_that_knows_nothing_is_no_missing_image() {
    let (server, hub) = (Double::start().await, Double::start().await);
    let realm = server.url("/token");
    let refused = Reply::status(401).header(
        "WWW-Authenticate",
        format!(r#"Bearer realm="{realm}",service="reg",scope="repository:yocto/app:pull""#),
    );
    server
        .on("GET", "/v2/yocto/app/manifests/latest")
        .reply(refused);
    server
        .on(
            "GET",
            "/token?service=reg&scope=repository%3Ayocto%2Fapp%3Apull",
        )
        .reply(Reply::status(404));
    let settings = RegistrySettings {
        registry: Some(format!("{}/yocto", server.host())),
        mirrors: vec![Mirror {
            host: "docker.io".into(),
            endpoints: vec![hub.url("")],
        }],
        ..RegistrySettings::default()
    };
    let client = connect(client_config(&settings).unwrap()).unwrap();
    let question = Question {
        reference: "app",
        platform: None,
        architecture: "amd64",
        settings: &settings,
        reach: &Clone::clone,
    };
    let stop = CancellationToken::new();
    let asked = question.ask(&client, &|_| (), &stop).await;
    let Err(error) = asked else { panic!() };
    assert_eq!(error.code(), FailureCode::Denied, "{error}");
    assert!(error.to_string().contains("token server"), "{error}");
    server.finish();
    assert!(hub.finish().is_empty());
}

#[tokio::test]
async fn many_requests_wait_for_one_token() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token"));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("")
        .maybe()
        .reply(refused);
    server
        .on("GET", "/token?service=reg&scope=repository%3Aa%3Apull")
        .reply(Reply::ok(r#"{"access_token":"T1"}"#));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer T1")
        .times(10)
        .reply(manifest());
    let client = client();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (client, repository) = (client.clone(), repository(&server.host(), "a"));
        running.spawn(async move {
            client
                .get_manifest(&repository, Selector::Tag("t"))
                .await
                .map(drop)
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap().unwrap();
    }
    server.finish();
}

#[tokio::test]
async fn waiters_share_a_failure() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token"));
    server.on("GET", "/v2/a/manifests/t").maybe().reply(refused);
    server
        .on("GET", "/token?service=reg&scope=repository%3Aa%3Apull")
        .maybe()
        .reply(Reply::status(403));
    let client = client();
    // The first learns the realm; the others then ask for the token together.
    assert!(pull(&client, &server).await.is_err());
    let before = server.seen().len();
    let repository = repository(&server.host(), "a");
    let (a, b, c) = tokio::join!(
        client.get_manifest(&repository, Selector::Tag("t")),
        client.get_manifest(&repository, Selector::Tag("t")),
        client.get_manifest(&repository, Selector::Tag("t")),
    );
    for result in [a, b, c] {
        assert!(matches!(result, Err(TransferError::Denied { .. })));
    }
    assert_eq!(server.seen().len(), before + 1);
    server.finish();
}

#[tokio::test]
async fn a_token_that_is_not_taken_any_more_is_fetched_again_once() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token"));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("")
        .reply(refused.clone());
    let token = "/token?service=reg&scope=repository%3Aa%3Apull";
    server
        .on("GET", token)
        .reply(Reply::ok(r#"{"token":"T1"}"#));
    server
        .on("GET", token)
        .reply(Reply::ok(r#"{"token":"T2"}"#));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer T1")
        .reply(manifest());
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer T1")
        .reply(refused.clone());
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer T2")
        .reply(manifest());
    let client = client();
    pull(&client, &server).await.unwrap();
    pull(&client, &server).await.unwrap();
    server.finish();
}

#[tokio::test]
async fn a_registry_that_never_agrees_is_asked_twice() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token"))
        .body(r#"{"errors":[{"code":"UNAUTHORIZED","message":"go away"}]}"#);
    server
        .on("GET", "/v2/a/manifests/t")
        .times(2)
        .reply(refused);
    server
        .on("GET", "/token?service=reg&scope=repository%3Aa%3Apull")
        .reply(Reply::ok(r#"{"token":"T1"}"#));
    let error = pull(&client(), &server).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("UNAUTHORIZED: go away"), "{text}");
    assert!(
        text.contains("no credentials are set for 127.0.0.1"),
        "{text}"
    );
    assert_eq!(error.codes(), ["UNAUTHORIZED"]);
    server.finish();
}

#[tokio::test]
async fn a_challenge_may_ask_for_more_than_was_thought() {
    let server = Double::start().await;
    let more = format!(
        r#"Bearer realm="{}",service="reg",scope="repository:a:pull,push repository:b:pull",error="insufficient_scope""#,
        server.url("/token")
    );
    let refused = Reply::status(401).header("WWW-Authenticate", more);
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("")
        .reply(refused);
    server
        .on(
            "GET",
            "/token?service=reg&scope=repository%3Aa%3Apull%2Cpush&scope=repository%3Ab%3Apull",
        )
        .reply(Reply::ok(r#"{"token":"T1"}"#));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer T1")
        .times(2)
        .reply(manifest());
    let client = client();
    pull(&client, &server).await.unwrap();
    pull(&client, &server).await.unwrap();
    server.finish();
}

#[tokio::test]
async fn an_identity_token_goes_into_a_form() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token"));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("")
        .reply(refused);
    server.on("POST", "/token").authorized("").reply(Reply::ok(
        r#"{"access_token":"T1","refresh_token":"ignored"}"#,
    ));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer T1")
        .reply(manifest());
    let client = Client::new(ClientConfig {
        credentials: always(Credential::IdentityToken(Secret::new("id&1"))),
        ..quick()
    })
    .unwrap();
    pull(&client, &server).await.unwrap();
    let seen = server.finish();
    let form = String::from_utf8(seen[1].body.clone()).unwrap();
    for part in [
        "grant_type=refresh_token",
        "refresh_token=id%261",
        "service=reg",
        "scope=repository%3Aa%3Apull",
    ] {
        assert!(
            form.split('&').any(|field| field == part),
            "{part} in {form}"
        );
    }
}

#[tokio::test]
async fn basic_is_used_where_it_is_asked_for_and_only_after() {
    let server = Double::start().await;
    let refused = Reply::status(401).header("WWW-Authenticate", r#"Basic realm="r""#);
    server.on("GET", "/v2/").authorized("").reply(refused);
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized(PLAIN)
        .times(2)
        .reply(manifest());
    let client = client_as("u", "p");
    // The first contact told that Basic is wanted: no request is wasted.
    pull(&client, &server).await.unwrap();
    pull(&client, &server).await.unwrap();
    server.finish();
}

#[tokio::test]
async fn wrong_basic_credentials_are_not_repeated() {
    let server = Double::start().await;
    let refused = Reply::status(401).header("WWW-Authenticate", r#"Basic realm="r""#);
    server.on("GET", "/v2/").reply(refused.clone());
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized(PLAIN)
        .reply(refused);
    let error = pull(&client_as("u", "p"), &server).await.unwrap_err();
    assert!(
        matches!(error, TransferError::Denied { hint: None, .. }),
        "{error}"
    );
    assert!(
        !error
            .to_string()
            .contains('p'.to_string().repeat(2).as_str())
    );
    server.finish();
}

#[tokio::test]
async fn bearer_is_chosen_among_several_challenges() {
    let server = Double::start().await;
    let refused = Reply::status(401)
        .header("WWW-Authenticate", r#"Negotiate, Basic realm="r""#)
        .header(
            "WWW-Authenticate",
            format!(r#"Bearer realm="{}""#, server.url("/t")),
        );
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("")
        .reply(refused);
    server
        .on("GET", "/t?scope=repository%3Aa%3Apull")
        .authorized(PLAIN)
        .reply(Reply::ok(r#"{"token":"T1"}"#));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer T1")
        .reply(manifest());
    pull(&client_as("u", "p"), &server).await.unwrap();
    server.finish();
}

#[tokio::test]
async fn a_registry_token_is_shown_as_it_is_and_once() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token"));
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("")
        .reply(refused.clone());
    server
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer own")
        .reply(refused);
    let client = Client::new(ClientConfig {
        credentials: always(Credential::Bearer(Secret::new("own"))),
        ..quick()
    })
    .unwrap();
    let error = pull(&client, &server).await.unwrap_err();
    assert!(matches!(error, TransferError::Denied { .. }));
    server.finish();
}

#[tokio::test]
async fn credentials_never_go_to_a_foreign_realm() {
    let server = Double::start().await;
    let stranger = Double::start().await;
    let realm = format!("http://tokens.test:{}/token", stranger.port());
    let refused = challenge(&realm);
    server
        .on("GET", "/v2/a/manifests/t")
        .times(2)
        .reply(refused);
    let client = client_abroad(basic("u", "p"));
    let registry = repository(&format!("reg.test:{}", server.port()), "a");
    // The stranger's name leads to this machine, where a foreign realm may not lead.
    let error = client
        .get_manifest(&registry, Selector::Tag("t"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("tokens.test"), "{error}");
    assert!(stranger.finish().is_empty());

    // From a local registry it may, but it gets no credentials.
    let stranger = Double::start().await;
    let local = Double::start().await;
    let realm = format!("http://localhost:{}/token", stranger.port());
    local
        .on("GET", "/v2/a/manifests/t")
        .times(2)
        .reply(challenge(&realm));
    stranger
        .on("GET", "/token?service=reg&scope=repository%3Aa%3Apull")
        .authorized("")
        .reply(Reply::ok(r#"{"token":"anonymous"}"#));
    let error = pull(&client_as("u", "p"), &local).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("were not sent to localhost"), "{text}");
    local.finish();
    stranger.finish();
    drop(server);
}

#[tokio::test]
async fn a_foreign_realm_that_was_granted_gets_them() {
    let registry = Double::start().await;
    let tokens = Double::start().await;
    let realm = format!("http://localhost:{}/token", tokens.port());
    registry
        .on("GET", "/v2/a/manifests/t")
        .authorized("")
        .reply(challenge(&realm));
    tokens
        .on("GET", "/token?service=reg&scope=repository%3Aa%3Apull")
        .authorized(PLAIN)
        .reply(Reply::ok(r#"{"token":"T1"}"#));
    registry
        .on("GET", "/v2/a/manifests/t")
        .authorized("Bearer T1")
        .reply(manifest());
    let host = Host::parse(&registry.host()).unwrap();
    let client = Client::new(ClientConfig {
        credentials: basic("u", "p"),
        realms: vec![(host, "localhost".to_owned())],
        ..quick()
    })
    .unwrap();
    pull(&client, &registry).await.unwrap();
    registry.finish();
    tokens.finish();
}

#[tokio::test]
async fn odd_token_answers_are_errors() {
    for (body, status) in [
        ("", 200),
        ("[]", 200),
        ("{}", 200),
        (r#"{"token":""}"#, 200),
        (r#"{"token":"a\nb"}"#, 200),
        (r#"{"token":5}"#, 200),
        ("", 302),
    ] {
        let server = Double::start().await;
        let refused = challenge(&server.url("/token"));
        server.on("GET", "/v2/a/manifests/t").reply(refused);
        server
            .on("GET", "/token?service=reg&scope=repository%3Aa%3Apull")
            .reply(
                Reply::status(status)
                    .body(body)
                    .header("Location", "http://127.0.0.1:1/"),
            );
        let error = pull(&client(), &server).await.unwrap_err();
        let expected = matches!(
            error,
            TransferError::Protocol { .. } | TransferError::Status { .. }
        );
        assert!(expected, "{body}: {error}");
        server.finish();
    }
}

#[tokio::test]
async fn an_endless_token_answer_is_cut() {
    let server = Double::start().await;
    let refused = challenge(&server.url("/token"));
    server.on("GET", "/v2/a/manifests/t").reply(refused);
    let huge = format!(r#"{{"token":"{}"}}"#, "x".repeat(1024 * 1024));
    server
        .on("GET", "/token?service=reg&scope=repository%3Aa%3Apull")
        .reply(Reply::ok(huge));
    let error = pull(&client(), &server).await.unwrap_err();
    assert!(matches!(error, TransferError::TooLarge { .. }), "{error}");
    server.finish();
}

#[tokio::test]
async fn credentials_are_looked_up_once_and_only_when_asked_for() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let source = move |_: &Host| -> Result<Credential, String> {
        counted.fetch_add(1, Ordering::SeqCst);
        Err("the helper is missing".to_owned())
    };
    let client = Client::new(ClientConfig {
        credentials: Arc::new(source),
        ..quick()
    })
    .unwrap();
    let open = Double::start().await;
    open.on("GET", "/v2/a/manifests/t").reply(manifest());
    pull(&client, &open).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 0);
    open.finish();

    let closed = Double::start().await;
    let refused = Reply::status(401).header("WWW-Authenticate", "Basic");
    closed.on("GET", "/v2/a/manifests/t").reply(refused);
    let error = pull(&client, &closed).await.unwrap_err();
    assert!(
        error.to_string().contains("the helper is missing"),
        "{error}"
    );
    assert_eq!(count.load(Ordering::SeqCst), 1);
    closed.finish();
}
