//! Uploads to a registry whose storage is on this machine.

use std::sync::Arc;

use vdkr_transfer::{Client, ClientConfig, FileSource, LocalSessions, Repository, TransferError};

use super::double::Reply;
use super::upload::{BIG, Upload, accepted, created};
use super::*;

/// Sessions of a registry on this machine, in a directory.
struct Sessions(std::path::PathBuf);

impl LocalSessions for Sessions {
    fn open(&self, repository: &Repository, session: &str) -> Option<std::fs::File> {
        assert_eq!(repository.name(), "a");
        std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.0.join(session))
            .ok()
    }
}

/// Uploads the file at `layer`, which is said to be `upload`'s content.
async fn upload_locally(
    upload: &Upload,
    sessions: Sessions,
    layer: &std::path::Path,
) -> Result<(), TransferError> {
    let client = Client::new(ClientConfig {
        local_sessions: Some(Arc::new(sessions)),
        ..quick()
    })
    .unwrap();
    let source = Arc::new(FileSource::open_path(layer).unwrap());
    let descriptor = blob(&upload.content);
    let repository = repository(&upload.server.host(), "a");
    client
        .upload_blob(&repository, &descriptor, source, upload.options.clone())
        .await
}

#[tokio::test]
async fn content_is_put_where_a_registry_on_this_machine_keeps_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    let upload = Upload::of(pattern(5 * 1024 * 1024)).await;
    std::fs::write(&layer, &upload.content).unwrap();
    upload.opens("/up/session");
    let put = format!("/up/session?digest={}", upload.digest());
    upload.server.on("PUT", put).reply(created());
    let sessions = Sessions(dir.path().to_owned());
    upload_locally(&upload, sessions, &layer).await.unwrap();
    assert!(std::fs::read(dir.path().join("session")).unwrap() == upload.content);
    let seen = upload.finish();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].body.is_empty());
}

#[tokio::test]
async fn wrong_content_put_there_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    let upload = Upload::of(pattern(5 * 1024 * 1024)).await;
    let mut wrong = upload.content.clone();
    wrong[1000] ^= 1;
    std::fs::write(&layer, &wrong).unwrap();
    upload.opens("/up/session");
    let put = format!("/up/session?digest={}", upload.digest());
    upload.server.on("PUT", put).reply(Reply::status(400));
    upload
        .server
        .on("DELETE", "/up/session")
        .reply(Reply::status(204));
    let head = format!("/v2/a/blobs/{}", blob(&upload.content).digest);
    upload.server.on("HEAD", head).reply(Reply::status(404));
    // Then it goes the ordinary way, which reads what it sends.
    upload.opens("/up/next");
    upload
        .server
        .on("PATCH", "/up/next")
        .reply(accepted("/up/next", 1));
    upload
        .server
        .on("DELETE", "/up/next")
        .reply(Reply::status(204));
    let sessions = Sessions(dir.path().to_owned());
    let error = upload_locally(&upload, sessions, &layer).await.unwrap_err();
    assert!(
        matches!(error, TransferError::DigestMismatch { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn content_that_cannot_be_put_there_goes_by_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    for size in [BIG, 5 * 1024 * 1024] {
        let upload = Upload::of(pattern(size)).await;
        std::fs::write(&layer, &upload.content).unwrap();
        upload.opens("/up/session");
        let put = format!("/up/session?digest={}", upload.digest());
        upload.server.on("PUT", put).reply(created());
        let sessions = Sessions(dir.path().join("of another registry"));
        upload_locally(&upload, sessions, &layer).await.unwrap();
        assert!(upload.finish()[0].body == pattern(size));
    }
}
