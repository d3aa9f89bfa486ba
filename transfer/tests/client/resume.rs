//! Uploads that are interrupted.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use vdkr_transfer::{ProgressEvent, UploadOptions};

use super::double::Reply;
use super::upload::{BIG, Upload, accepted, created, stands};
use super::*;

#[tokio::test]
async fn a_broken_upload_goes_on_where_the_registry_stands() {
    let upload = Upload::of(pattern(BIG)).await;
    let digest = upload.digest();
    upload.opens("/up/1");
    let put = format!("/up/1?digest={digest}");
    upload
        .server
        .on("PUT", put)
        .reply(Reply::hang_up(2_000_000));
    upload
        .server
        .on("GET", "/up/1")
        .reply(stands("/up/2", 1_500_000));
    upload
        .server
        .on("PATCH", "/up/2")
        .reply(accepted("/up/3?s=1", BIG));
    upload
        .server
        .on("PUT", format!("/up/3?s=1&digest={digest}"))
        .reply(created());
    upload.run().await.unwrap();
    let content = upload.content.clone();
    let seen = upload.finish();
    let range = format!("1500000-{}", BIG - 1);
    assert_eq!(seen[1].header("content-range"), Some(range.as_str()));
    assert!(seen[1].body == content[1_500_000..]);
    assert!(seen[2].body.is_empty());
}

#[tokio::test]
async fn what_is_large_goes_by_patch_because_that_survives_a_break() {
    const HUGE: usize = 17 * 1024 * 1024;
    let upload = Upload::of(pattern(HUGE)).await;
    upload.opens("/up/1");
    upload
        .server
        .on("PATCH", "/up/1")
        .when(|seen| seen.header("content-range").is_none())
        .reply(Reply::hang_up(9_000_000));
    upload
        .server
        .on("GET", "/up/1")
        .reply(stands("/up/2", 8_000_000));
    let range = format!("8000000-{}", HUGE - 1);
    upload
        .server
        .on("PATCH", "/up/2")
        .when(move |seen| seen.header("content-range") == Some(&range))
        .reply(accepted("/up/3", HUGE));
    let put = format!("/up/3?digest={}", upload.digest());
    upload.server.on("PUT", put).reply(created());
    upload.run().await.unwrap();
    let content = upload.content.clone();
    let seen = upload.finish();
    assert!(seen[1].body == content[8_000_000..]);
}

#[tokio::test]
async fn it_goes_on_as_often_as_there_is_headway() {
    // More breaks than a request may have tries, each after more than a megabyte.
    const STEP: usize = 1_200_000;
    let upload = Upload::of(pattern(8 * STEP)).await;
    upload.opens("/up");
    let put = format!("/up?digest={}", upload.digest());
    upload.server.on("PUT", &put).reply(Reply::hang_up(STEP));
    for step in 1..8 {
        upload
            .server
            .on("GET", "/up")
            .reply(stands("/up", step * STEP));
        if step < 7 {
            upload.server.on("PATCH", "/up").reply(Reply::hang_up(STEP));
        }
    }
    upload
        .server
        .on("PATCH", "/up")
        .reply(accepted("/up", 8 * STEP));
    upload.server.on("PUT", &put).reply(created());
    upload.run().await.unwrap();
    let content = upload.content.clone();
    let seen = upload.finish();
    let sent: Vec<u8> = seen.into_iter().flat_map(|seen| seen.body).collect();
    assert!(sent == content, "each byte once, in order");
}

#[tokio::test]
async fn a_lost_answer_is_not_a_lost_upload() {
    for size in [10, BIG] {
        let upload = Upload::of(pattern(size)).await;
        upload.opens("/up");
        let put = format!("/up?digest={}", upload.digest());
        // All arrived and was stored; then the connection broke.
        upload.server.on("PUT", put).reply(Reply::hang_up(size));
        if size == BIG {
            upload.server.on("GET", "/up").reply(Reply::status(404));
        }
        upload.server.on("DELETE", "/up").reply(Reply::status(404));
        let head = format!("/v2/a/blobs/{}", blob(&upload.content).digest);
        upload
            .server
            .on("HEAD", head)
            .reply(Reply::status(200).header("Content-Length", size));
        upload.run().await.unwrap();
        upload.finish();
    }
}

#[tokio::test]
async fn a_lost_session_begins_anew() {
    let upload = Upload::of(pattern(BIG)).await;
    upload.opens("/up/1");
    let digest = upload.digest();
    upload
        .server
        .on("PUT", format!("/up/1?digest={digest}"))
        .reply(Reply::hang_up(2_000_000));
    upload.server.on("GET", "/up/1").reply(Reply::status(404));
    upload
        .server
        .on("DELETE", "/up/1")
        .reply(Reply::status(404));
    let head = format!("/v2/a/blobs/{}", blob(&upload.content).digest);
    upload.server.on("HEAD", head).reply(Reply::status(404));
    upload.opens("/up/2");
    upload
        .server
        .on("PUT", format!("/up/2?digest={digest}"))
        .reply(created());
    upload.run().await.unwrap();
    let content = upload.content.clone();
    assert!(upload.finish()[1].body == content);
}

#[tokio::test]
async fn an_upload_that_is_dropped_is_cancelled() {
    let upload = Upload::of(pattern(BIG)).await;
    upload.opens("/up");
    let put = format!("/up?digest={}", upload.digest());
    upload.server.on("PUT", put).reply(Reply::stall());
    upload.server.on("DELETE", "/up").reply(Reply::status(204));
    let came = async |method: &str| {
        while !upload
            .server
            .seen()
            .iter()
            .any(|seen| seen.method == method)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        result = upload.run() => panic!("{result:?}"),
        () = came("PUT") => {}
    }
    tokio::time::timeout(Duration::from_secs(30), came("DELETE"))
        .await
        .expect("the registry is told");
    upload.finish();
}

#[tokio::test]
async fn an_upload_that_stalls_is_taken_up_again() {
    let upload = Upload::of(pattern(BIG)).await;
    upload.opens("/up");
    let digest = upload.digest();
    upload
        .server
        .on("PUT", format!("/up?digest={digest}"))
        .reply(Reply::stall());
    upload.server.on("GET", "/up").reply(stands("/up/2", BIG));
    upload
        .server
        .on("PUT", format!("/up/2?digest={digest}"))
        .reply(created());
    let config = ClientConfig {
        commit_timeout: Duration::from_secs(2),
        ..quick()
    };
    Client::new(config)
        .unwrap()
        .upload_blob(
            &repository(&upload.server.host(), "a"),
            &blob(&upload.content),
            Arc::new(Bytes::from(upload.content.clone())),
            UploadOptions::default(),
        )
        .await
        .unwrap();
    upload.finish();
}

#[tokio::test]
async fn bytes_damaged_on_the_way_are_sent_once_more() {
    let upload = Upload::of(pattern(BIG)).await;
    let digest = upload.digest();
    for session in ["/up/1", "/up/2"] {
        upload.opens(session);
        let invalid = r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#;
        upload
            .server
            .on("PUT", format!("{session}?digest={digest}"))
            .reply(Reply::status(400).body(invalid));
        upload
            .server
            .on("DELETE", session)
            .reply(Reply::status(204));
    }
    let head = format!("/v2/a/blobs/{}", blob(&upload.content).digest);
    upload.server.on("HEAD", head).reply(Reply::status(404));
    let error = upload.run().await.unwrap_err();
    assert_eq!(error.codes(), ["DIGEST_INVALID"]);
    upload.finish();
}

#[tokio::test]
async fn an_expired_token_in_the_middle_is_renewed_and_the_upload_goes_on() {
    let upload = Upload::of(pattern(BIG)).await;
    let server = &upload.server;
    let digest = upload.digest();
    let value = format!(r#"Bearer realm="{}""#, server.url("/token"));
    let refused = Reply::status(401).header("WWW-Authenticate", value);
    server
        .on("POST", "/v2/a/blobs/uploads/")
        .authorized("")
        .reply(refused.clone());
    let token = "/token?scope=repository%3Aa%3Apull%2Cpush";
    server
        .on("GET", token)
        .reply(Reply::ok(r#"{"token":"T1"}"#));
    server
        .on("GET", token)
        .reply(Reply::ok(r#"{"token":"T2"}"#));
    server
        .on("POST", "/v2/a/blobs/uploads/")
        .authorized("Bearer T1")
        .reply(Reply::status(202).header("Location", "/up"));
    let put = format!("/up?digest={digest}");
    server
        .on("PUT", &put)
        .authorized("Bearer T1")
        .reply(refused);
    server
        .on("GET", "/up")
        .authorized("Bearer T2")
        .reply(stands("/up", 0));
    server
        .on("PUT", &put)
        .authorized("Bearer T2")
        .reply(created());
    upload.run().await.unwrap();
    upload.finish();
}

/// Each request of an upload may need a new token, also when the one before broke off.
#[tokio::test]
async fn a_token_is_renewed_for_each_request_of_an_upload() {
    let upload = Upload::of(pattern(BIG)).await;
    let server = &upload.server;
    let value = format!(r#"Bearer realm="{}""#, server.url("/token"));
    let refused = Reply::status(401).header("WWW-Authenticate", value);
    let opens = "/v2/a/blobs/uploads/";
    server
        .on("POST", opens)
        .authorized("")
        .reply(refused.clone());
    for value in ["T1", "T2", "T3"] {
        server
            .on("GET", "/token?scope=repository%3Aa%3Apull%2Cpush")
            .reply(Reply::ok(format!(r#"{{"token":"{value}"}}"#)));
    }
    server
        .on("POST", opens)
        .authorized("Bearer T1")
        .reply(Reply::status(202).header("Location", "/up"));
    let put = format!("/up?digest={}", upload.digest());
    let shows = |method: &str, target: &str, token: &str| {
        server
            .on(method, target)
            .authorized(&format!("Bearer {token}"))
    };
    shows("PUT", &put, "T1").reply(refused.clone());
    shows("GET", "/up", "T2").reply(stands("/up", 0));
    shows("PUT", &put, "T2").reply(Reply::hang_up(1_000_000));
    shows("GET", "/up", "T2").reply(stands("/up", 500_000));
    shows("PATCH", "/up", "T2").reply(refused);
    shows("GET", "/up", "T3").reply(stands("/up", 500_000));
    shows("PATCH", "/up", "T3").reply(accepted("/up", BIG));
    shows("PUT", &put, "T3").reply(created());
    upload.run().await.unwrap();
    upload.finish();
}

#[tokio::test]
async fn progress_tells_positions_and_falls_back_on_a_break() {
    let mut upload = Upload::of(pattern(BIG)).await;
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = events.clone();
    upload.options.progress = Arc::new(move |event: &ProgressEvent| {
        heard.lock().unwrap().push(event.clone());
    });
    upload.opens("/up");
    let put = format!("/up?digest={}", upload.digest());
    upload
        .server
        .on("PUT", &put)
        .reply(Reply::hang_up(2_000_000));
    upload.server.on("GET", "/up").reply(stands("/up", 600_000));
    upload.server.on("PATCH", "/up").reply(accepted("/up", BIG));
    upload.server.on("PUT", &put).reply(created());
    upload.run().await.unwrap();
    upload.finish();
    let events = events.lock().unwrap();
    let retried = events
        .iter()
        .position(|event| matches!(event, ProgressEvent::Retrying { .. }))
        .unwrap();
    let ProgressEvent::Advanced { done, .. } = events[retried + 1] else {
        panic!("{:?}", events[retried + 1]);
    };
    assert!(done > 600_000 && done <= 600_000 + 1024 * 1024);
    let Some(ProgressEvent::Advanced { done, .. }) = events.last() else {
        panic!("{events:?}");
    };
    assert_eq!(*done, BIG as u64);
}
