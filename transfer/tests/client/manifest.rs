//! Manifests.

use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::manifest::MAX_MANIFEST;
use vdkr_core::manifest::media_type::{OCI_INDEX, OCI_MANIFEST};
use vdkr_core::reference::Selector;
use vdkr_transfer::{IfMatch, TransferError};

use super::double::{Double, Reply};
use super::*;

const INDEX: &str = r#"{ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] }"#;

#[tokio::test]
async fn a_manifest_has_the_digest_it_was_asked_for_by() {
    let digest = Digest::sha256(INDEX.as_bytes());
    let longer = Digest::of(Algorithm::Sha512, INDEX.as_bytes());
    let other = Digest::sha256(b"other");
    for (asked, claimed, good) in [
        (Some(&digest), None, true),
        (Some(&digest), Some(&digest), true),
        (Some(&longer), Some(&digest), true),
        (Some(&other), None, false),
        (Some(&other), Some(&other), false),
        (Some(&digest), Some(&other), false),
        (None, Some(&digest), true),
        (None, Some(&longer), true),
        (None, None, true),
        (None, Some(&other), false),
    ] {
        let server = Double::start().await;
        let selector = asked.map_or(Selector::Tag("t"), Selector::Digest);
        let mut reply = Reply::ok(INDEX).header("Content-Type", OCI_INDEX);
        if let Some(claimed) = claimed {
            reply = reply.header("Docker-Content-Digest", claimed);
        }
        server
            .on("GET", format!("/v2/a/manifests/{selector}"))
            .reply(reply);
        let got = client()
            .get_manifest(&repository(&server.host(), "a"), selector)
            .await;
        match got {
            Ok(manifest) => {
                assert!(good);
                assert_eq!(manifest.raw, INDEX);
                assert_eq!(manifest.media_type, OCI_INDEX);
                let expected = asked.or(claimed).unwrap_or(&digest);
                assert_eq!(manifest.digest, *expected);
            }
            Err(error) => {
                assert!(!good, "{error}");
                assert!(error.is_content(), "{error}");
            }
        }
        server.finish();
    }
}

#[tokio::test]
async fn a_claim_that_is_no_digest_is_against_the_protocol() {
    let server = Double::start().await;
    let reply = Reply::ok(INDEX).header("Docker-Content-Digest", "sha256:../../x");
    server.on("GET", "/v2/a/manifests/t").reply(reply);
    let error = client()
        .get_manifest(&repository(&server.host(), "a"), Selector::Tag("t"))
        .await
        .unwrap_err();
    assert!(matches!(error, TransferError::Protocol { .. }), "{error}");
    server.finish();
}

#[tokio::test]
async fn manifests_have_a_size_limit_with_and_without_a_stated_length() {
    let huge = vec![b' '; MAX_MANIFEST + 1];
    let chunked = {
        let mut body = format!("{:x}\r\n", huge.len()).into_bytes();
        body.extend_from_slice(&huge);
        body.extend_from_slice(b"\r\n0\r\n\r\n");
        Reply::ok(body).header("Transfer-Encoding", "chunked")
    };
    for reply in [
        Reply::ok(&huge),
        // Only the length is large: it is believed enough to refuse.
        Reply::ok(b"").header("Content-Length", 1u64 << 40).cut(0),
        chunked,
    ] {
        let server = Double::start().await;
        server.on("GET", "/v2/a/manifests/t").reply(reply);
        let error = client()
            .get_manifest(&repository(&server.host(), "a"), Selector::Tag("t"))
            .await
            .unwrap_err();
        assert!(matches!(error, TransferError::TooLarge { .. }), "{error}");
        server.finish();
    }
}

#[tokio::test]
async fn a_manifest_that_breaks_off_is_asked_for_again() {
    let server = Double::start().await;
    let reply = || Reply::ok(INDEX).header("Content-Type", OCI_INDEX);
    server.on("GET", "/v2/a/manifests/t").reply(reply().cut(10));
    server
        .on("GET", "/v2/a/manifests/t")
        .reply(Reply::hang_up(0));
    server.on("GET", "/v2/a/manifests/t").reply(reply());
    let manifest = client()
        .get_manifest(&repository(&server.host(), "a"), Selector::Tag("t"))
        .await
        .unwrap();
    assert_eq!(manifest.raw, INDEX);
    server.finish();
}

#[tokio::test]
async fn the_type_comes_from_the_body_where_the_header_says_nothing() {
    let server = Double::start().await;
    let vague = Reply::ok(INDEX).header("Content-Type", "application/json; charset=utf-8");
    server.on("GET", "/v2/a/manifests/t").reply(vague);
    let manifest = client()
        .get_manifest(&repository(&server.host(), "a"), Selector::Tag("t"))
        .await
        .unwrap();
    assert_eq!(manifest.media_type, OCI_INDEX);
    server.finish();
}

#[tokio::test]
async fn head_asks_for_the_body_only_where_it_must() {
    let digest = Digest::sha256(INDEX.as_bytes());
    let server = Double::start().await;
    let head = Reply::status(200)
        .header("Content-Type", OCI_INDEX)
        .header("Content-Length", INDEX.len());
    let told = head.clone().header("Docker-Content-Digest", &digest);
    server.on("HEAD", "/v2/a/manifests/t").reply(told);
    server.on("HEAD", "/v2/a/manifests/u").reply(head.clone());
    server
        .on("GET", "/v2/a/manifests/u")
        .reply(Reply::ok(INDEX).header("Content-Type", OCI_INDEX));
    server
        .on("HEAD", format!("/v2/a/manifests/{digest}"))
        .reply(head);
    server
        .on("HEAD", "/v2/a/manifests/none")
        .reply(Reply::status(404));
    let client = client();
    let repository = repository(&server.host(), "a");
    for selector in [
        Selector::Tag("t"),
        Selector::Tag("u"),
        Selector::Digest(&digest),
    ] {
        let found = client
            .head_manifest(&repository, selector)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((&found.digest, found.size), (&digest, INDEX.len() as u64));
    }
    let none = client
        .head_manifest(&repository, Selector::Tag("none"))
        .await;
    assert_eq!(none.unwrap(), None);
    server.finish();
}

#[tokio::test]
async fn put_sends_the_bytes_as_they_are_under_a_condition() {
    let digest = Digest::sha256(INDEX.as_bytes());
    let before = Digest::sha256(b"before");
    let server = Double::start().await;
    let created = Reply::status(201).header("Docker-Content-Digest", &digest);
    let tag = "/v2/a/manifests/t";
    let expected = format!("\"{before}\"");
    server
        .on("PUT", tag)
        .when(move |seen| seen.header("if-match") == Some(&expected))
        .reply(created.clone().header("OCI-Subject", &before));
    server
        .on("PUT", tag)
        .when(|seen| seen.header("if-none-match") == Some("*"))
        .reply(created.clone());
    server.on("PUT", tag).reply(created);
    let client = client();
    let repository = repository(&server.host(), "a");
    for (condition, listed) in [
        (Some(IfMatch::Digest(&before)), true),
        (Some(IfMatch::Absent), false),
        (None, false),
    ] {
        let put = client
            .put_manifest(
                &repository,
                Selector::Tag("t"),
                INDEX.into(),
                OCI_INDEX,
                condition,
            )
            .await
            .unwrap();
        assert_eq!((put.digest, put.subject_listed), (digest.clone(), listed));
    }
    let seen = server.finish();
    assert!(seen.iter().all(|seen| seen.body == INDEX.as_bytes()));
    assert!(
        seen.iter()
            .all(|seen| seen.header("content-type") == Some(OCI_INDEX))
    );
}

#[tokio::test]
async fn a_failed_condition_is_a_conflict_unless_it_was_our_own_success() {
    let ours = Digest::sha256(INDEX.as_bytes());
    for (now, conflict) in [(Digest::sha256(b"theirs"), true), (ours, false)] {
        let server = Double::start().await;
        let tag = "/v2/a/manifests/t";
        // The first answer is lost.
        server.on("PUT", tag).reply(Reply::hang_up(INDEX.len()));
        server.on("PUT", tag).reply(Reply::status(412));
        server.on("HEAD", tag).reply(
            Reply::status(200)
                .header("Docker-Content-Digest", now)
                .header("Content-Type", OCI_INDEX)
                .header("Content-Length", 5),
        );
        let put = client()
            .put_manifest(
                &repository(&server.host(), "a"),
                Selector::Tag("t"),
                INDEX.into(),
                OCI_INDEX,
                Some(IfMatch::Absent),
            )
            .await;
        assert_eq!(
            matches!(put, Err(TransferError::Conflict { .. })),
            conflict,
            "{put:?}"
        );
        assert_eq!(put.is_err(), conflict);
        server.finish();
    }
}

#[tokio::test]
async fn a_registry_that_stored_something_else_is_found_out() {
    let server = Double::start().await;
    let other = Digest::sha256(b"re-serialised");
    server
        .on("PUT", "/v2/a/manifests/t")
        .reply(Reply::status(201).header("Docker-Content-Digest", other));
    let error = client()
        .put_manifest(
            &repository(&server.host(), "a"),
            Selector::Tag("t"),
            INDEX.into(),
            OCI_MANIFEST,
            None,
        )
        .await
        .unwrap_err();
    assert!(error.is_content(), "{error}");
    server.finish();
}

#[tokio::test]
async fn bytes_are_put_under_their_own_digest_only() {
    let server = Double::start().await;
    let other = Digest::sha256(b"other");
    let put = client()
        .put_manifest(
            &repository(&server.host(), "a"),
            Selector::Digest(&other),
            INDEX.into(),
            OCI_INDEX,
            None,
        )
        .await;
    assert!(put.unwrap_err().is_content());
    assert!(server.finish().is_empty());
}

#[tokio::test]
async fn deletion_tells_absent_from_forbidden() {
    let server = Double::start().await;
    server
        .on("DELETE", "/v2/a/manifests/t")
        .reply(Reply::status(202));
    server
        .on("DELETE", "/v2/a/manifests/t")
        .reply(Reply::status(404));
    server
        .on("DELETE", "/v2/a/manifests/t")
        .reply(Reply::status(405));
    let client = client();
    let repository = repository(&server.host(), "a");
    let delete = || client.delete_manifest(&repository, Selector::Tag("t"));
    assert!(delete().await.unwrap());
    assert!(!delete().await.unwrap());
    let error = delete().await.unwrap_err();
    assert!(
        error.to_string().contains("storage.delete.enabled"),
        "{error}"
    );
    server.finish();
}

#[tokio::test]
async fn errors_show_what_the_registry_said_and_no_more() {
    for (body, shown) in [
        (
            r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known\u001b[31m"}]}"#.to_owned(),
            "(HTTP 404: NAME_UNKNOWN: repository name not known",
        ),
        ("<html>not a registry</html>".to_owned(), "(HTTP 404)"),
        (format!(r#"{{"errors":[{{"code":"X","message":"{}"}}]}}"#, "y".repeat(100_000)), "(HTTP 404)"),
    ] {
        let server = Double::start().await;
        server.on("GET", "/v2/a/tags/list?n=1000").reply(Reply::status(404).body(body));
        let error = client().tags(&repository(&server.host(), "a")).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(shown), "{text}");
        assert!(!text.contains('\u{1b}') && text.len() < 1000);
        server.finish();
    }
}
