//! Blobs on their way here.

use std::io::Read as _;

use vdkr_transfer::{BlobReader, TransferError, VerifyingReader};

use super::double::{Double, Reply};
use super::*;

const SIZE: usize = 300_000;

async fn get(server: &Double, content: &[u8]) -> Result<Vec<u8>, TransferError> {
    let descriptor = blob(content);
    let reader = client()
        .get_blob(&repository(&server.host(), "a"), &descriptor)
        .await?;
    read(reader).await
}

async fn read(mut reader: VerifyingReader<BlobReader>) -> Result<Vec<u8>, TransferError> {
    let mut all = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut all).await?;
    Ok(all)
}

fn path(content: &[u8]) -> String {
    format!("/v2/a/blobs/{}", blob(content).digest)
}

fn part(content: &[u8], from: usize) -> Reply {
    let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
    Reply::status(206)
        .header("Content-Range", range)
        .body(&content[from..])
}

/// Expects one request for everything from `from` on.
fn expect(server: &Double, content: &[u8], from: usize, reply: Reply) {
    let range = (from > 0).then(|| format!("bytes={from}-"));
    server
        .on("GET", path(content))
        .when(move |seen| seen.header("range") == range.as_deref())
        .reply(reply);
}

#[tokio::test]
async fn broken_connections_are_taken_up_where_they_broke() {
    let content = pattern(SIZE);
    let server = Double::start().await;
    expect(&server, &content, 0, Reply::ok(&content).cut(100_000));
    expect(
        &server,
        &content,
        100_000,
        part(&content, 100_000).cut(50_000),
    );
    expect(&server, &content, 150_000, Reply::status(503));
    expect(&server, &content, 150_000, part(&content, 150_000));
    assert_eq!(get(&server, &content).await.unwrap(), content);
    server.finish();
}

#[tokio::test]
async fn any_number_of_breaks_is_borne_while_there_is_progress() {
    let content = pattern(50_000);
    let server = Double::start().await;
    for from in (0..50_000).step_by(2_000) {
        let whole = if from == 0 {
            Reply::ok(&content)
        } else {
            part(&content, from)
        };
        expect(&server, &content, from, whole.cut(2_000));
    }
    assert_eq!(get(&server, &content).await.unwrap(), content);
    server.finish();
}

#[tokio::test]
async fn without_progress_it_ends() {
    let content = pattern(SIZE);
    let server = Double::start().await;
    expect(&server, &content, 0, Reply::ok(&content).cut(1000));
    server
        .on("GET", path(&content))
        .times(3)
        .reply(part(&content, 1000).cut(0));
    let error = get(&server, &content).await.unwrap_err();
    assert!(
        matches!(error, TransferError::Unreachable { .. }),
        "{error}"
    );
    server.finish();
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start_again() {
    let content = pattern(SIZE);
    let server = Double::start().await;
    expect(&server, &content, 0, Reply::ok(&content).cut(200_000));
    expect(&server, &content, 200_000, Reply::ok(&content).cut(150_000));
    expect(&server, &content, 200_000, Reply::ok(&content));
    assert_eq!(get(&server, &content).await.unwrap(), content);
    server.finish();
}

#[tokio::test]
async fn a_wrong_range_is_not_believed() {
    let content = pattern(SIZE);
    for wrong in [
        part(&content, 100_001),
        part(&content, 99_999),
        Reply::status(206).body(&content[100_000..]),
        Reply::status(206).header("Content-Range", "bytes x"),
        Reply::status(206)
            .header("Content-Range", format!("bytes 100000-{SIZE}/{}", SIZE + 1))
            .body(&content[100_000..]),
        Reply::status(416),
    ] {
        let server = Double::start().await;
        expect(&server, &content, 0, Reply::ok(&content).cut(100_000));
        expect(&server, &content, 100_000, wrong.clone());
        let error = get(&server, &content).await.unwrap_err();
        let expected = matches!(
            error,
            TransferError::Protocol { .. }
                | TransferError::SizeMismatch { .. }
                | TransferError::Status { .. }
        );
        assert!(expected, "{wrong:?}: {error}");
        server.finish();
    }
}

#[tokio::test]
async fn wrong_bytes_are_an_error_however_they_come() {
    let content = pattern(SIZE);
    let mut wrong = content.clone();
    wrong[SIZE - 1] ^= 1;
    let server = Double::start().await;
    expect(&server, &content, 0, Reply::ok(&wrong));
    let error = get(&server, &content).await.unwrap_err();
    assert!(
        matches!(error, TransferError::DigestMismatch { .. }),
        "{error}"
    );
    server.finish();

    // A part of one thing and a part of another.
    let server = Double::start().await;
    expect(&server, &content, 0, Reply::ok(&content).cut(1000));
    expect(&server, &content, 1000, part(&wrong, 1000));
    let error = get(&server, &content).await.unwrap_err();
    assert!(
        matches!(error, TransferError::DigestMismatch { .. }),
        "{error}"
    );
    server.finish();
}

#[tokio::test]
async fn wrong_sizes_are_found_before_reading() {
    let content = pattern(SIZE);
    for other in [&content[1..], &pattern(SIZE + 1)[..], b""] {
        let server = Double::start().await;
        expect(&server, &content, 0, Reply::ok(other));
        let error = get(&server, &content).await.unwrap_err();
        assert!(
            matches!(error, TransferError::SizeMismatch { .. }),
            "{error}"
        );
        server.finish();
    }
}

#[tokio::test]
async fn an_endless_body_without_a_length_ends_here() {
    let content = pattern(1000);
    let server = Double::start().await;
    let chunked = |bytes: &[u8]| {
        let mut body = format!("{:x}\r\n", bytes.len()).into_bytes();
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n0\r\n\r\n");
        body
    };
    server
        .on("GET", path(&content))
        .reply(Reply::ok(chunked(&pattern(100_000))).header("Transfer-Encoding", "chunked"));
    let error = get(&server, &content).await.unwrap_err();
    assert!(
        matches!(error, TransferError::SizeMismatch { .. }),
        "{error}"
    );
    server.finish();
}

#[tokio::test]
async fn a_blob_that_is_not_there_is_not_found() {
    let content = pattern(10);
    let server = Double::start().await;
    expect(&server, &content, 0, Reply::status(404));
    let error = get(&server, &content).await.unwrap_err();
    assert!(matches!(error, TransferError::NotFound { .. }), "{error}");
    server.finish();
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let server = Double::start().await;
    expect(&server, b"", 0, Reply::ok(b""));
    assert_eq!(get(&server, b"").await.unwrap(), b"");
    server.finish();
}

/// The agent's way: a thread that may block, beside a runtime of one thread.
#[tokio::test(flavor = "current_thread")]
async fn it_reads_on_a_blocking_thread_too() {
    let content = pattern(SIZE);
    let server = Double::start().await;
    expect(&server, &content, 0, Reply::ok(&content).cut(100_000));
    expect(&server, &content, 100_000, part(&content, 100_000));
    let mut reader = client()
        .get_blob(&repository(&server.host(), "a"), &blob(&content))
        .await
        .unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        reader
            .read_to_end(&mut all)
            .map(|_| (all, reader.is_verified()))
    });
    assert_eq!(read.await.unwrap().unwrap(), (content, true));
    server.finish();
}

#[tokio::test]
async fn too_many_requests_waits_as_long_as_it_is_told() {
    let content = pattern(10);
    let server = Double::start().await;
    let busy = Reply::status(429).header("Retry-After", "1");
    expect(&server, &content, 0, busy);
    expect(&server, &content, 0, Reply::ok(&content));
    let config = ClientConfig {
        retry: RetryPolicy {
            longest_pause: Duration::from_mins(1),
            ..quick().retry
        },
        ..quick()
    };
    let client = Client::new(config).unwrap();
    let before = std::time::Instant::now();
    let reader = client
        .get_blob(&repository(&server.host(), "a"), &blob(&content))
        .await
        .unwrap();
    // A bound from below cannot fail on a slow machine.
    assert!(before.elapsed() >= Duration::from_secs(1));
    assert_eq!(read(reader).await.unwrap(), content);
    server.finish();
}

#[tokio::test]
async fn being_told_too_often_ends_with_what_was_said() {
    let content = pattern(10);
    let server = Double::start().await;
    let said = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
    let busy = Reply::status(429).header("Retry-After", "3600").body(said);
    server.on("GET", path(&content)).times(4).reply(busy);
    let error = get(&server, &content).await.unwrap_err();
    assert!(
        error.to_string().contains("TOOMANYREQUESTS: slow down"),
        "{error}"
    );
    assert_eq!(error.retry_after(), Some(quick().retry.longest_pause));
    server.finish();
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left() {
    let content = pattern(SIZE);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    // Connections are taken and never answered.
    let silent = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let config = ClientConfig {
        idle_timeout: Duration::from_millis(50),
        ..quick()
    };
    let error = Client::new(config)
        .unwrap()
        .get_blob(&repository(&host, "a"), &blob(&content))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no data for"), "{error}");
    silent.abort();
}
