//! Blobs on their way out.

use std::sync::Arc;

use bytes::Bytes;
use vdkr_transfer::{BlobSource, FileSource, MountOutcome, TransferError, UploadOptions, silent};

use super::double::{Double, Reply, Seen};
use super::*;

pub(super) const BIG: usize = 3 * 1024 * 1024 + 17;

pub(super) struct Upload {
    pub(super) server: Double,
    pub(super) content: Vec<u8>,
    pub(super) options: UploadOptions,
}

impl Upload {
    pub(super) async fn of(content: Vec<u8>) -> Self {
        Self {
            server: Double::start().await,
            content,
            options: UploadOptions::default(),
        }
    }

    /// The registry opens sessions at this place.
    pub(super) fn opens(&self, location: &str) {
        self.server
            .on("POST", "/v2/a/blobs/uploads/")
            .reply(Reply::status(202).header("Location", location));
    }

    pub(super) fn digest(&self) -> String {
        blob(&self.content).digest.to_string().replace(':', "%3A")
    }

    pub(super) async fn run(&self) -> Result<(), TransferError> {
        self.run_from(Arc::new(Bytes::from(self.content.clone())))
            .await
    }

    async fn run_from(&self, source: Arc<dyn BlobSource>) -> Result<(), TransferError> {
        let repository = repository(&self.server.host(), "a");
        let descriptor = blob(&self.content);
        client()
            .upload_blob(&repository, &descriptor, source, self.options.clone())
            .await
    }

    /// What the requests to the session carried, one after the other.
    pub(super) fn finish(self) -> Vec<Seen> {
        let mut seen = self.server.finish();
        seen.retain(|seen| matches!(seen.method.as_str(), "PUT" | "PATCH"));
        seen
    }
}

pub(super) fn created() -> Reply {
    Reply::status(201).header("Location", "/v2/a/blobs/x")
}

pub(super) fn accepted(location: &str, received: usize) -> Reply {
    Reply::status(202)
        .header("Location", location)
        .header("Range", format!("0-{}", received - 1))
}

pub(super) fn stands(location: &str, received: usize) -> Reply {
    Reply::status(204)
        .header("Location", location)
        .header("Range", format!("0-{}", received.saturating_sub(1)))
}

#[tokio::test]
async fn everything_goes_in_one_request() {
    for size in [0, 10, 1024 * 1024, 1024 * 1024 + 1, BIG] {
        let upload = Upload::of(pattern(size)).await;
        upload.opens("/up/1?_state=abc");
        let target = format!("/up/1?_state=abc&digest={}", upload.digest());
        upload.server.on("PUT", target).reply(created());
        upload.run().await.unwrap();
        let content = upload.content.clone();
        let seen = upload.finish();
        assert!(seen[0].body == content, "{size}");
        assert_eq!(
            seen[0].header("content-type"),
            Some("application/octet-stream")
        );
    }
}

#[tokio::test]
async fn the_session_may_be_absolute_or_relative() {
    for relative in [true, false] {
        let upload = Upload::of(pattern(10)).await;
        let location = if relative {
            "1".to_owned()
        } else {
            upload.server.url("/v2/a/blobs/uploads/1")
        };
        upload.opens(&location);
        let target = format!("/v2/a/blobs/uploads/1?digest={}", upload.digest());
        upload.server.on("PUT", target).reply(created());
        upload.run().await.unwrap();
        upload.finish();
    }
}

#[tokio::test]
async fn a_registry_without_patch_gets_it_with_put() {
    const HUGE: usize = 17 * 1024 * 1024;
    for status in [405, 501] {
        let upload = Upload::of(pattern(HUGE)).await;
        upload.opens("/up");
        upload
            .server
            .on("PATCH", "/up")
            .reply(Reply::status(status));
        upload.server.on("GET", "/up").reply(stands("/up", 0));
        let put = format!("/up?digest={}", upload.digest());
        upload.server.on("PUT", put).reply(created());
        upload.run().await.unwrap();
        let content = upload.content.clone();
        assert!(upload.finish()[1].body == content);
    }
}

#[tokio::test]
async fn chunks_are_as_long_as_the_registry_wants_them() {
    let mut upload = Upload::of(pattern(BIG)).await;
    upload.options.chunk = Some(1_000_000);
    upload.server.on("POST", "/v2/a/blobs/uploads/").reply(
        Reply::status(202)
            .header("Location", "/up/0")
            .header("OCI-Chunk-Min-Length", 1_500_000),
    );
    for (at, end) in [(0, 1_500_000), (1, 3_000_000), (2, BIG)] {
        upload
            .server
            .on("PATCH", format!("/up/{at}"))
            .reply(accepted(&format!("/up/{}", at + 1), end));
    }
    let put = format!("/up/3?digest={}", upload.digest());
    upload.server.on("PUT", put).reply(created());
    upload.run().await.unwrap();
    let content = upload.content.clone();
    let seen = upload.finish();
    let ranges: Vec<_> = seen
        .iter()
        .filter_map(|seen| seen.header("content-range"))
        .collect();
    let last = format!("3000000-{}", BIG - 1);
    assert_eq!(ranges, ["0-1499999", "1500000-2999999", &last]);
    let sent: Vec<u8> = seen.iter().flat_map(|seen| seen.body.clone()).collect();
    assert!(sent == content);
}

#[tokio::test]
async fn a_chunk_that_was_taken_in_part_is_completed() {
    let mut upload = Upload::of(pattern(BIG)).await;
    upload.options.chunk = Some(2_000_000);
    upload.opens("/up");
    for end in [700_000, 2_700_000, BIG] {
        upload.server.on("PATCH", "/up").reply(accepted("/up", end));
    }
    let put = format!("/up?digest={}", upload.digest());
    upload.server.on("PUT", put).reply(created());
    upload.run().await.unwrap();
    let ranges: Vec<_> = upload
        .finish()
        .iter()
        .filter_map(|seen| seen.header("content-range").map(str::to_owned))
        .collect();
    assert_eq!(ranges[1], "700000-2699999");
    assert_eq!(ranges[2], format!("2700000-{}", BIG - 1));
}

#[tokio::test]
async fn nonsense_about_the_position_ends_it() {
    for received in [1, BIG + 1] {
        let mut upload = Upload::of(pattern(BIG)).await;
        upload.options.chunk = Some(2_000_000);
        upload.opens("/up");
        upload
            .server
            .on("PATCH", "/up")
            .reply(accepted("/up", received));
        upload.server.on("DELETE", "/up").reply(Reply::status(204));
        let error = upload.run().await.unwrap_err();
        assert!(matches!(error, TransferError::Protocol { .. }), "{error}");
        upload.finish();
    }
}

#[tokio::test]
async fn too_large_for_one_request_goes_in_chunks() {
    let upload = Upload::of(pattern(BIG)).await;
    upload.opens("/up");
    let put = format!("/up?digest={}", upload.digest());
    upload.server.on("PUT", &put).reply(Reply::status(413));
    upload.server.on("GET", "/up").reply(stands("/up", 0));
    upload.server.on("PATCH", "/up").reply(accepted("/up", BIG));
    upload.server.on("PUT", &put).reply(created());
    upload.run().await.unwrap();
    upload.finish();
}

#[tokio::test]
async fn a_refusal_before_the_end_is_heard_and_ends_the_sending() {
    const HUGE: usize = 40 * 1024 * 1024;
    let upload = Upload::of(pattern(HUGE)).await;
    upload.opens("/up");
    let full = r#"{"errors":[{"code":"STORAGE_FULL","message":"no space"}]}"#;
    let refusal = Reply::status(507).body(full).early();
    upload.server.on("PATCH", "/up").reply(refusal);
    upload.server.on("DELETE", "/up").reply(Reply::status(204));
    let error = upload.run().await.unwrap_err();
    assert!(error.to_string().contains("no space"), "{error}");
    // What the connection had taken by then came, and no more.
    let seen = upload.finish();
    assert!(seen.iter().all(|seen| seen.body != pattern(HUGE)));
}

#[tokio::test]
async fn wrong_content_is_never_sent_in_full_and_the_upload_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    for size in [10, BIG] {
        let upload = Upload::of(pattern(size)).await;
        let mut wrong = upload.content.clone();
        wrong[size / 2] ^= 1;
        std::fs::write(&path, &wrong).unwrap();
        if size == BIG {
            upload.opens("/up");
            let put = format!("/up?digest={}", upload.digest());
            upload.server.on("PUT", put).reply(created());
            upload.server.on("DELETE", "/up").reply(Reply::status(204));
        }
        let source = Arc::new(FileSource::open_path(&path).unwrap());
        let error = upload.run_from(source).await.unwrap_err();
        assert!(
            matches!(error, TransferError::DigestMismatch { .. }),
            "{error}"
        );
        let sent = upload.finish().iter().all(|seen| seen.body != wrong);
        assert!(sent);
    }
}

#[tokio::test]
async fn a_session_is_cancelled_when_the_content_turns_out_wrong_before_the_first_request() {
    let upload = Upload::of(pattern(10)).await;
    let mount = format!("/v2/a/blobs/uploads/?mount={}", upload.digest());
    let session = Reply::status(202).header("Location", "/up");
    upload.server.on("POST", mount).reply(session);
    upload.server.on("DELETE", "/up").reply(Reply::status(204));
    let to = repository(&upload.server.host(), "a");
    let described = blob(&upload.content);
    let mounted = client().mount_blob(&to, None, &described.digest).await;
    let Ok(MountOutcome::Session(session)) = mounted else {
        panic!("a session")
    };
    let options = UploadOptions {
        session: Some(session),
        ..UploadOptions::default()
    };
    let wrong = Arc::new(Bytes::from_static(b"ten bytes!"));
    let error = client().upload_blob(&to, &described, wrong, options).await;
    assert!(error.unwrap_err().is_content());
    upload.finish();
}

#[tokio::test]
async fn content_of_another_size_is_an_error() {
    for (size, other) in [(10, 9), (10, 11), (BIG, BIG - 1), (BIG, BIG + 1)] {
        let upload = Upload::of(pattern(size)).await;
        if size == BIG {
            upload.opens("/up");
            let put = format!("/up?digest={}", upload.digest());
            upload.server.on("PUT", put).maybe().reply(created());
            upload.server.on("DELETE", "/up").reply(Reply::status(204));
        }
        let source = Arc::new(Bytes::from(pattern(other)));
        let error = upload.run_from(source).await.unwrap_err();
        assert!(
            matches!(error, TransferError::SizeMismatch { .. }),
            "{error}"
        );
        upload.finish();
    }
}

#[tokio::test]
async fn what_the_registry_refuses_for_good_is_cancelled() {
    let upload = Upload::of(pattern(BIG)).await;
    upload.opens("/up");
    let put = format!("/up?digest={}", upload.digest());
    let full = r#"{"errors":[{"code":"STORAGE_FULL","message":"no space"}]}"#;
    upload
        .server
        .on("PUT", put)
        .reply(Reply::status(507).body(full));
    upload.server.on("DELETE", "/up").reply(Reply::status(204));
    let error = upload.run().await.unwrap_err();
    assert!(error.to_string().contains("no space"), "{error}");
    upload.finish();
}

#[tokio::test]
async fn a_location_elsewhere_gets_the_bytes_but_no_credentials() {
    let storage = Double::start().await;
    let content = pattern(BIG);
    let digest = blob(&content).digest.to_string().replace(':', "%3A");
    storage
        .on("PUT", format!("/up?sig=1&digest={digest}"))
        .authorized("")
        .reply(created());
    let upload = Upload::of(content).await;
    let refused = Reply::status(401).header("WWW-Authenticate", "Basic realm=r");
    upload.server.on("GET", "/v2/").reply(refused);
    upload
        .server
        .on("POST", "/v2/a/blobs/uploads/")
        .authorized("Basic dTpw")
        .reply(Reply::status(202).header("Location", storage.url("/up?sig=1")));
    client_as("u", "p")
        .upload_blob(
            &repository(&upload.server.host(), "a"),
            &blob(&upload.content),
            Arc::new(Bytes::from(upload.content.clone())),
            UploadOptions::default(),
        )
        .await
        .unwrap();
    upload.finish();
    storage.finish();
}

#[tokio::test]
async fn a_stranger_may_not_have_it_sent_into_this_machine() {
    let inside = Double::start().await;
    let upload = Upload::of(pattern(10)).await;
    upload.opens(&inside.url("/up"));
    let host = format!("reg.test:{}", upload.server.port());
    let error = client_abroad(vdkr_transfer::anonymous())
        .upload_blob(
            &repository(&host, "a"),
            &blob(&upload.content),
            Arc::new(Bytes::from(upload.content.clone())),
            UploadOptions::default(),
        )
        .await
        .unwrap_err();
    assert!(
        matches!(error, TransferError::UnsafeTarget { .. }),
        "{error}"
    );
    upload.finish();
    assert!(inside.finish().is_empty());
}

#[tokio::test]
async fn mounting_has_three_outcomes() {
    let server = Double::start().await;
    let descriptor = blob(b"x");
    let digest = descriptor.digest.to_string().replace(':', "%3A");
    let target = format!("/v2/a/blobs/uploads/?mount={digest}&from=b%2Fc");
    server.on("POST", &target).reply(created());
    server
        .on("POST", &target)
        .reply(Reply::status(202).header("Location", "/up/5"));
    server.on("POST", &target).reply(Reply::status(405));
    server
        .on("PUT", format!("/up/5?digest={digest}"))
        .reply(created());
    let client = client();
    let repository = repository(&server.host(), "a");
    let mount = || client.mount_blob(&repository, Some("b/c"), &descriptor.digest);
    assert!(matches!(mount().await.unwrap(), MountOutcome::Mounted));
    let MountOutcome::Session(session) = mount().await.unwrap() else {
        panic!("an upload was opened");
    };
    assert!(matches!(mount().await.unwrap(), MountOutcome::Refused));
    let options = UploadOptions {
        session: Some(session),
        chunk: None,
        progress: silent(),
    };
    client
        .upload_blob(
            &repository,
            &descriptor,
            Arc::new(Bytes::from("x")),
            options,
        )
        .await
        .unwrap();
    server.finish();
}
