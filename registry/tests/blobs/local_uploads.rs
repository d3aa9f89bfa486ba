//! A client on this machine writes to a session's file itself; whoever else writes to it.

use std::os::unix::fs::FileExt as _;

use vdkr_core::digest::Digest;
use vdkr_registry::storage::{LocalUploads, Sink, StorageError, UploadId};

use crate::common::{Answer, Bench, noise};
use crate::{UPLOADS, assert_served, blob, sessions};

#[tokio::test]
async fn a_client_on_this_machine_writes_to_the_session_itself() {
    let bench = Bench::new();
    let uploads = LocalUploads::open(bench.storage()).unwrap();
    let content = noise(5_000_000, 9);
    let digest = Digest::sha256(&content);
    for good in [false, true] {
        let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
        let id = begun.header("docker-upload-uuid").to_owned();
        let file = uploads.session("yocto/app", &id).unwrap();
        file.write_all_at(&content, 0).unwrap();
        if !good {
            file.write_all_at(b"wrong", 1000).unwrap();
        }
        drop(file);
        let path = begun.header("location").to_owned();
        let told = bench.get(&path).await.expect(204);
        assert_eq!(told.header("range"), format!("0-{}", content.len() - 1));
        let path = format!("{path}?digest={digest}");
        let done = bench.send("PUT", &path, &[], "").await;
        if good {
            done.expect(201);
        } else {
            done.refused(400, "DIGEST_INVALID");
            bench.get(&blob(&digest)).await.expect(404);
        }
        assert_eq!(sessions(&bench), 0);
    }
    assert_served(&bench, &digest, &content).await;
}

#[tokio::test]
async fn nothing_else_of_the_storage_is_lent_to_a_client_on_this_machine() {
    let bench = Bench::new();
    let uploads = LocalUploads::open(bench.storage()).unwrap();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let id = begun.header("docker-upload-uuid");
    assert!(uploads.session("yocto/other", id).is_none());
    assert!(uploads.session("yocto/../yocto/app", id).is_none());
    assert!(uploads.session("yocto/app", "..").is_none());
    let unknown = "0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f";
    assert!(uploads.session("yocto/app", unknown).is_none());
    let data = bench.repository("yocto/app/_uploads").join(id).join("data");
    std::os::unix::fs::symlink("/etc/hostname", data).unwrap();
    assert!(uploads.session("yocto/app", id).is_none());
    assert!(LocalUploads::open(&bench.storage().join("absent")).is_none());
}

/// The right to write to the session that an answer has begun.
fn sink(bench: &Bench, begun: &Answer) -> Option<Sink> {
    let storage = bench.registry.storage();
    let id = UploadId::parse(begun.header("docker-upload-uuid")).unwrap();
    let session = storage.upload("yocto/app", &id).unwrap().unwrap();
    storage.resume(&session).unwrap()
}

#[tokio::test]
async fn a_session_has_one_writer_whatever_is_asked_under_other_names() {
    let bench = Bench::new();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let location = begun.header("location");
    let (content, digest) = (noise(300_000, 21), Digest::sha256(&noise(300_000, 21)));
    let mut first = sink(&bench, &begun).unwrap();
    first.write(&[content.clone().into()]).unwrap();

    let elsewhere = location.replace("yocto/app", "yocto/other");
    bench
        .get(&elsewhere)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    bench
        .delete(&elsewhere)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert!(sink(&bench, &begun).is_none(), "the first one is at it");
    assert!(
        sink(&bench.reopened(), &begun).is_none(),
        "nor is another process let in"
    );
    bench
        .send("PATCH", location, &[], noise(400_000, 22))
        .await
        .refused(416, "RANGE_INVALID");

    let storage = bench.registry.storage();
    storage.finish("yocto/app", first, &digest).unwrap();
    assert_served(&bench, &digest, &content).await;
    bench
        .send("PATCH", location, &[], "more")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert_served(&bench, &digest, &content).await;
}

#[tokio::test]
async fn a_cancelled_session_becomes_no_blob() {
    let bench = Bench::new();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let digest = Digest::sha256(b"content");
    let mut writing = sink(&bench, &begun).unwrap();
    writing.write(&[bytes::Bytes::from("content")]).unwrap();
    bench.delete(begun.header("location")).await.expect(204);
    let storage = bench.registry.storage();
    let error = storage.finish("yocto/app", writing, &digest).unwrap_err();
    assert!(matches!(error, StorageError::UploadUnknown), "{error}");
    bench.get(&blob(&digest)).await.expect(404);
    assert_eq!(sessions(&bench), 0);
}

#[tokio::test]
async fn what_somebody_else_wrote_to_a_session_gets_into_no_blob() {
    let bench = Bench::new();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let digest = Digest::sha256(b"content");
    let mut writing = sink(&bench, &begun).unwrap();
    writing.write(&[bytes::Bytes::from("content")]).unwrap();
    let uploads = LocalUploads::open(bench.storage()).unwrap();
    let file = uploads
        .session("yocto/app", begun.header("docker-upload-uuid"))
        .unwrap();
    file.write_all_at(b" and more", 7).unwrap();
    let storage = bench.registry.storage();
    let error = storage.finish("yocto/app", writing, &digest).unwrap_err();
    assert!(
        matches!(
            error,
            StorageError::UploadDisturbed {
                length: 16,
                offset: 7
            }
        ),
        "{error}"
    );
    bench.get(&blob(&digest)).await.expect(404);
}
