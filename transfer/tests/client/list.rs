//! Lists and their pages.

use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::{OCI_INDEX, OCI_MANIFEST};
use vdkr_core::manifest::{Descriptor, ImageIndex};
use vdkr_core::reference::Host;
use vdkr_transfer::{TransferError, referrers_tag};

use super::double::{Double, Reply};
use super::*;

#[tokio::test]
async fn all_pages_are_followed() {
    let server = Double::start().await;
    let page = |tags: &str, next: Option<&str>| {
        let reply = Reply::ok(format!(r#"{{"name":"a","tags":{tags}}}"#));
        match next {
            Some(next) => reply.header("Link", format!(r#"<{next}>; rel="next""#)),
            None => reply,
        }
    };
    server
        .on("GET", "/v2/a/tags/list?n=1000")
        .reply(page(r#"["1","2"]"#, Some("/v2/a/tags/list?last=2&n=2")));
    let absolute = server.url("/v2/a/tags/list?last=4&n=2");
    server
        .on("GET", "/v2/a/tags/list?last=2&n=2")
        .reply(page(r#"["3","4"]"#, Some(&absolute)));
    // Names that are no tags are left out; an empty page is `null`.
    server
        .on("GET", "/v2/a/tags/list?last=4&n=2")
        .reply(page(r#"["../5","5\u001b"]"#, Some("?last=6")));
    server
        .on("GET", "/v2/a/tags/list?last=6")
        .reply(page("null", None));
    let tags = client()
        .tags(&repository(&server.host(), "a"))
        .await
        .unwrap();
    assert_eq!(tags, ["1", "2", "3", "4"]);
    server.finish();
}

#[tokio::test]
async fn pages_stay_within_the_registry() {
    let stranger = Double::start().await;
    let server = Double::start().await;
    let link = format!(r#"<{}>; rel="next""#, stranger.url("/v2/a/tags/list"));
    server
        .on("GET", "/v2/a/tags/list?n=1000")
        .reply(Reply::ok("{}").header("Link", link));
    let error = client()
        .tags(&repository(&server.host(), "a"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, TransferError::UnsafeTarget { .. }),
        "{error}"
    );
    server.finish();
    assert!(stranger.finish().is_empty());
}

#[tokio::test]
async fn pages_that_go_round_end() {
    let server = Double::start().await;
    let link = r#"</v2/_catalog?n=1000>; rel="next""#;
    server
        .on("GET", "/v2/_catalog?n=1000")
        .reply(Reply::ok(r#"{"repositories":["a"]}"#).header("Link", link));
    let host = Host::parse(&server.host()).unwrap();
    let error = client().catalog(&host).await.unwrap_err();
    assert!(error.to_string().contains("circle"), "{error}");
    server.finish();
}

#[tokio::test]
async fn the_catalog_is_a_list_too() {
    let server = Double::start().await;
    server
        .on("GET", "/v2/_catalog?n=1000")
        .reply(Reply::ok(r#"{"repositories":["a/b","UPPER","c"]}"#));
    let host = Host::parse(&server.host()).unwrap();
    assert_eq!(client().catalog(&host).await.unwrap(), ["a/b", "c"]);
    server.finish();
}

#[tokio::test]
async fn a_list_that_is_none_is_an_error() {
    for body in ["", "[]", r#"{"tags":"x"}"#, "<html>"] {
        let server = Double::start().await;
        server
            .on("GET", "/v2/a/tags/list?n=1000")
            .reply(Reply::ok(body));
        let error = client()
            .tags(&repository(&server.host(), "a"))
            .await
            .unwrap_err();
        assert!(
            matches!(error, TransferError::Protocol { .. }),
            "{body}: {error}"
        );
        server.finish();
    }
}

fn entry(text: &str, artifact_type: &str) -> Descriptor {
    Descriptor {
        artifact_type: Some(artifact_type.to_owned()),
        ..Descriptor::new(OCI_MANIFEST, Digest::sha256(text.as_bytes()), 1)
    }
}

fn index(entries: &[Descriptor]) -> Vec<u8> {
    let index = ImageIndex {
        manifests: entries.to_vec(),
        ..ImageIndex::default()
    };
    index.to_json().unwrap()
}

#[tokio::test]
async fn referrers_are_filtered_here_when_the_registry_does_not() {
    let server = Double::start().await;
    let subject = Digest::sha256(b"subject");
    let (a, b) = (entry("a", "x/sbom"), entry("b", "x/signature"));
    server
        .on(
            "GET",
            format!("/v2/a/referrers/{subject}?artifactType=x%2Fsbom"),
        )
        .reply(Reply::ok(index(&[a.clone(), b])).header("Content-Type", OCI_INDEX));
    let found = client()
        .referrers(&repository(&server.host(), "a"), &subject, Some("x/sbom"))
        .await
        .unwrap();
    assert_eq!(found, [a]);
    server.finish();
}

#[tokio::test]
async fn without_the_api_the_tag_stands_in() {
    let server = Double::start().await;
    let subject = Digest::sha256(b"subject");
    let tag = referrers_tag(&subject);
    let (a, b) = (entry("a", "x/sbom"), entry("b", "x/signature"));
    let list = index(std::slice::from_ref(&a));
    server
        .on("GET", format!("/v2/a/referrers/{subject}"))
        .times(2)
        .reply(Reply::status(404));
    server
        .on("GET", format!("/v2/a/manifests/{tag}"))
        .times(2)
        .reply(Reply::ok(&list).header("Content-Type", OCI_INDEX));
    let before = format!("\"{}\"", Digest::sha256(&list));
    server
        .on("PUT", format!("/v2/a/manifests/{tag}"))
        .when(move |seen| seen.header("if-match") == Some(&before))
        .reply(Reply::status(201));
    let client = client();
    let repository = repository(&server.host(), "a");
    let found = client.referrers(&repository, &subject, None).await.unwrap();
    assert_eq!(found, std::slice::from_ref(&a));
    client
        .list_referrer(&repository, &subject, &b)
        .await
        .unwrap();
    let seen = server.finish();
    assert_eq!(seen.last().unwrap().body, index(&[a, b]));
}
