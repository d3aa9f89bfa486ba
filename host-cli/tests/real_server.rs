//! What is proved against a double elsewhere, once against the registry itself; and what secure mode
//! shows to whom.

mod rig;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rig::gate::Gate;
use rig::{User, status, stderr, stdout, write_layout};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use vdkr_core::credentials::Credential;
use vdkr_core::digest::Digest;

fn header(pair: &str) -> String {
    let credential = Credential::from_pair(pair).unwrap();
    credential.authorization().unwrap().expose().to_owned()
}

/// A layout of one image for ARM as `docker push` describes it.
fn docker_layout(layout: &Path) -> String {
    const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let digest = Digest::sha256(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let config =
        br#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config = put(config, "application/vnd.docker.container.image.v1+json");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [],
    });
    let entry = put(manifest.to_string().as_bytes(), MANIFEST);
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
    fs::write(layout.join("oci-layout"), version).unwrap();
    entry["digest"].as_str().unwrap().to_owned()
}

#[test]
fn weakness_4b_6_the_registry_keeps_an_image_of_another_architecture() {
    let user = User::with_registry();
    let old = docker_layout(&user.path("arm"));
    let to = format!("docker://{}/yocto/app:v1", user.host());
    status(&user.run(["copy", "oci:arm", &to]), 0);
    let raw = |image: &str| -> Value {
        let output = user.run(["inspect", "--raw", image]);
        status(&output, 0);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // The tag points to the image itself.
    assert!(raw("app:v1").get("config").is_some());

    let layout = user.image("qemux86-64", "app");
    status(
        &user.run(["push", layout.to_str().unwrap(), "--tag", "v1"]),
        0,
    );
    let check = || {
        let index = raw("app:v1");
        let entries = index["manifests"].as_array().unwrap();
        let mut platforms: Vec<_> = entries
            .iter()
            .map(|entry| entry["platform"]["architecture"].as_str().unwrap())
            .collect();
        platforms.sort_unstable();
        assert_eq!(platforms, ["amd64", "arm64"]);
        assert!(entries.iter().any(|entry| entry["digest"] == *old));
        // Both are whole for whoever pulls them.
        let _ = fs::remove_dir_all(user.path("back"));
        status(&user.run(["copy", &to, "oci:back:v1"]), 0);
    };
    check();
    // And stay so, whatever is cleaned up.
    let collect = ["gc", "--yes", "--grace", "0s", "--keep-history", "0"];
    status(&user.run(collect), 0);
    status(&user.run(["fsck"]), 0);
    check();
}

#[test]
fn weakness_4b_12_unchanged_images_cost_the_registry_two_requests_each() {
    const IMAGES: usize = 12;
    let mut user = User::with_registry();
    for number in 0..IMAGES {
        user.image("qemux86-64", &format!("app{number}"));
    }
    user.set("DEPLOY_DIR_IMAGES", user.deploy_dir().to_str().unwrap());
    let gate = Gate::open(&header("me:right"), Some(user.port));
    let host = gate.host();
    let line = [
        "--url",
        &host,
        "push",
        "--strategy",
        "latest",
        "--creds",
        "me:right",
    ];
    let push = || {
        let before = gate.shown().len();
        status(&user.run(line), 0);
        gate.shown().len() - before
    };
    let first = push();
    let again = push();
    // The first of all requests finds out how to speak, and again with the password.
    let greeting = 3;
    assert!(again <= 2 * IMAGES + greeting, "{again} requests");
    assert!(first > again, "{first} requests at first, {again} again");
    // Two for each are needed to know: it did look.
    assert!(again >= IMAGES, "{again} requests");
    let tags = user.run(["list", "--json"]);
    let list: Value = serde_json::from_slice(&tags.stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), IMAGES);
}

/// Somebody with the registry's own certificate who asks everybody for a password.
fn curious(user: &User) -> (u16, Arc<Mutex<Vec<String>>>) {
    let pki = user.storage().join("pki");
    let chain = CertificateDer::pem_file_iter(pki.join("server.crt"))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_file(pki.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let shown = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&shown);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            // A client that goes away is not our matter.
            let _ = refuse(stream, tls, &heard);
        }
    });
    (port, shown)
}

fn refuse(
    stream: TcpStream,
    tls: rustls::ServerConnection,
    shown: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut both = BufReader::new(rustls::StreamOwned::new(tls, stream));
    let mut line = String::new();
    while both.read_line(&mut line)? > 2 {
        shown.lock().unwrap().push(std::mem::take(&mut line));
    }
    let stream = both.get_mut();
    stream.write_all(
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"\r\n\
          Content-Length: 0\r\nConnection: close\r\n\r\n",
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}

#[test]
fn weakness_4b_19_a_password_of_before_is_not_shown_where_there_is_none() {
    let mut user = User::new();
    user.set("CONTAINER_REGISTRY_SECURE", "1");
    user.start();
    let password = fs::read_to_string(user.storage().join("auth/password")).unwrap();
    let secret = header(&format!("yocto:{}", password.trim()));
    status(&user.run(["stop"]), 0);

    for (auth, is_shown) in [("1", true), ("0", false)] {
        let (port, shown) = curious(&user);
        let url = format!("localhost:{port}");
        let mut command = user.command(["catalog"]);
        command
            .env("CONTAINER_REGISTRY_AUTH", auth)
            .env("CONTAINER_REGISTRY_URL", &url);
        let output = command.output().unwrap();
        status(&output, 4);
        let shown = shown.lock().unwrap();
        let heads = shown.iter().filter(|line| line.starts_with("GET "));
        assert!(heads.count() > 0, "nobody came: {}", stderr(&output));
        let authorization =
            |line: &&String| line.to_ascii_lowercase().starts_with("authorization:");
        let found: Vec<_> = shown.iter().filter(authorization).collect();
        assert_eq!(!found.is_empty(), is_shown, "AUTH={auth}: {found:?}");
        assert!(found.iter().all(|line| line.contains(&secret)), "{found:?}");
    }

    // The registry itself runs without, too, although the file is still there.
    user.set("CONTAINER_REGISTRY_AUTH", "0");
    user.start();
    assert!(user.storage().join("auth/password").is_file());
    write_layout(&user.path("app-latest-oci"), "app");
    status(&user.run(["push", "./app-latest-oci", "--tag", "v1"]), 0);
    let explain = stdout(&user.run(["auth", "explain"]));
    assert!(explain.contains("anonymous"), "{explain}");
}
