use super::*;
use crate::engine::scripted::{run, scripted};

#[test]
fn documents_and_refusals() {
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{\"\r\n5\r\na\":1}\r\n0\r\n\r\n";
    let (said, asked) = scripted(b"\r\n\r\n", chunked, async |client| {
        client.get("/info").await
    });
    assert_eq!(said.unwrap()["a"], 1);
    assert!(
        asked.starts_with("GET /info HTTP/1.1\r\nHost: engine\r\n"),
        "{asked}"
    );
    let refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 34\r\n\r\n{\"message\":\"No such container: x\"}";
    let (failed, asked) = scripted(b"{}", refusal, async |client| {
        client.post("/x", Some(&serde_json::json!({}))).await
    });
    let failure = failed.unwrap_err();
    assert_eq!(failure.code, FailureCode::NotFound);
    assert_eq!(failure.message, "docker: No such container: x");
    assert!(asked.contains("Content-Length: 2\r\n"), "{asked}");
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{";
    let (failed, _) = scripted(b"\r\n\r\n", cut, async |client| client.get("/x").await);
    assert!(failed.unwrap_err().message.contains("within an answer"));
    let (failed, _) = scripted(b"\r\n\r\n", b"", async |client| client.get("/x").await);
    assert!(failed.unwrap_err().message.contains("before the answer"));
}

#[test]
fn an_engine_that_is_not_there_is_told_of_with_what_helps() {
    let client = Client::new(EngineKind::Podman, "/nowhere/podman.sock".into());
    let failure = run(client.get("/info")).unwrap_err();
    assert_eq!(failure.code, FailureCode::Unreachable);
    assert!(
        failure.message.contains("/nowhere/podman.sock"),
        "{failure}"
    );
    assert!(
        failure
            .hint
            .unwrap()
            .contains("systemctl start podman.socket")
    );
}

#[test]
fn an_upload_ends_only_when_it_is_finished() {
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    let (said, sent) = scripted(b"0\r\n\r\n", ok, async |client| {
        let mut upload = client.upload("POST", "/images/load").await?;
        upload.send(b"abc").await?;
        upload.send(b"").await?;
        upload.finish().await
    });
    assert_eq!(said.unwrap(), b"{}");
    assert!(sent.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), "{sent}");
    let ((), sent) = scripted(b"0\r\n\r\n", b"", async |client| {
        let mut upload = client.upload("POST", "/images/load").await.unwrap();
        upload.send(b"abc").await.unwrap();
    });
    assert!(sent.ends_with("\r\n\r\n3\r\nabc\r\n"), "{sent}");
    let full = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: x/y\r\n\r\n{\"message\":\"no space left\"}";
    let gone = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n{\"message\":\"none\"}\r\n0\r\n\r\n";
    for (says, code, words) in [
        (&full[..], FailureCode::Failed, "docker: no space left"),
        (&gone[..], FailureCode::NotFound, "docker: none"),
    ] {
        let (failed, _) = scripted(b"abc", says, async |client| {
            let mut upload = client.upload("POST", "/images/load").await?;
            loop {
                upload.send(b"abc").await?;
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            Ok::<(), Failure>(())
        });
        let failure = failed.unwrap_err();
        assert_eq!((failure.code, failure.message.as_str()), (code, words));
    }
    let (failed, _) = scripted(b"abc", b"", async |client| {
        let mut upload = client.upload("POST", "/images/load").await?;
        loop {
            upload.send(b"abc").await?;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        Ok::<(), Failure>(())
    });
    let message = failed.unwrap_err().message;
    assert!(message.contains("the connection failed"), "{message}");
}

#[test]
fn many_small_chunks_are_read_in_their_order() {
    let chunk: &[u8] = b"1\r\na\r\n2\r\nbc\r\n";
    let mut says =
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    says.extend(chunk.repeat(200_000));
    says.extend(b"0\r\n\r\n");
    let (came, _) = scripted(b"\r\n\r\n", Vec::leak(says), async |client| {
        client.open("/x").await?.bytes(1 << 20).await
    });
    assert!(came.unwrap() == b"abc".repeat(200_000));
}

#[test]
fn requests_have_the_version_that_both_know() {
    let versions = b"HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\n{\"ApiVersion\":\"1.41\",\"MinAPIVersion\":\"1.12\"}";
    let (said, asked) = scripted(b"\r\n\r\n", versions, async |client| {
        let client = Client::new(client.kind, client.socket.clone());
        client
            .versions()
            .await
            .map(|_| client.prefix.borrow().clone())
    });
    assert_eq!(said.unwrap().as_deref(), Some("/v1.41"));
    assert!(asked.starts_with("GET /version "), "{asked}");
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    let (said, asked) = scripted(b"\r\n\r\n", ok, async |client| {
        let client = Client::new(client.kind, client.socket.clone());
        client.prefix.replace(Some("/v1.41".to_owned()));
        client.get("/info").await
    });
    assert!(
        said.is_ok() && asked.starts_with("GET /v1.41/info "),
        "{asked}"
    );
}

#[test]
fn the_version_of_an_engine_that_was_replaced_is_asked_for_again() {
    let old = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 54\r\n\r\n{\"message\":\"client version 1.41 is too old. It wants\"}";
    let (left, _) = scripted(b"\r\n\r\n", old, async |client| {
        client.prefix.replace(Some("/v1.41".to_owned()));
        let failure = client.get("/info").await.unwrap_err();
        assert!(failure.message.contains("too old"), "{failure:?}");
        Ok::<_, Failure>(client.prefix.borrow().clone())
    });
    assert_eq!(left.unwrap(), None);
}

#[test]
fn a_hijacked_connection_has_what_came_with_its_head() {
    let says = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nfirst";
    let (came, asked) = scripted(b"\r\n\r\n", says, async |client| {
        let raw = client.hijack("/containers/x/attach", None).await?;
        let (mut reader, mut came) = (raw.reader, raw.waiting);
        reader.read_to_end(&mut came).await.unwrap();
        Ok::<_, Failure>(came)
    });
    assert_eq!(came.unwrap(), b"first");
    assert!(asked.contains("Upgrade: tcp\r\n"), "{asked}");
}
