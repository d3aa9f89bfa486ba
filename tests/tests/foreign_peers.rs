//! Our registry driven by skopeo and curl, and its storage shared with Debian's docker-registry.

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::fixtures::layout;
use vdkr_tests::layout::{digest, noise, write_image};
use vdkr_tests::peers::{
    ACCEPT, DockerRegistry, crane, crane_push, curl, curl_status, skopeo, skopeo_copy, skopeo_raw,
};
use vdkr_tests::process::{free_port, run, tool};
use vdkr_tests::registry::Registry;

fn oci(path: &std::path::Path) -> String {
    format!("oci:{}", path.display())
}

/// The digest of the one manifest that a layout's index.json names.
fn only_manifest(layout: &std::path::Path) -> String {
    let index: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 1, "{}", layout.display());
    manifests[0]["digest"].as_str().unwrap().to_owned()
}

fn round_trip(source: &std::path::Path) {
    let registry = Registry::start();
    let remote = format!("docker://{}/peer/image:v1", registry.host());
    skopeo_copy(&oci(source), &remote);
    let wanted = only_manifest(source);
    assert_eq!(digest(&skopeo_raw(&remote)), wanted);
    let by_digest = format!("{}/v2/peer/image/manifests/{wanted}", registry.url());
    assert_eq!(digest(&curl(&by_digest)), wanted);

    let dir = TempDir::new().unwrap();
    let back = dir.path().join("back");
    skopeo_copy(&remote, &format!("{}:v1", oci(&back)));
    assert_eq!(only_manifest(&back), wanted);
    for blob in std::fs::read_dir(back.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let bytes = std::fs::read(blob.path()).unwrap();
        assert_eq!(
            digest(&bytes)["sha256:".len()..],
            *blob.file_name().to_str().unwrap()
        );
        assert!(source.join("blobs/sha256").join(blob.file_name()).is_file());
    }
}

#[test]
fn skopeo_copies_an_image_in_and_out_bit_for_bit() {
    round_trip(&layout("qemux86-64", "container-base-latest-oci"));
}

#[test]
fn skopeo_copies_a_debian_rootfs_in_and_out_bit_for_bit() {
    round_trip(&layout("qemux86-64", "debian-base-latest-oci"));
}

#[test]
fn skopeo_copies_an_index_in_and_out_bit_for_bit() {
    round_trip(&layout("qemux86-64", "container-base-multiarch-oci"));
}

#[test]
fn crane_pushes_and_finds_everything_whole() {
    let registry = Registry::start();
    let source = layout("qemux86-64", "debian-base-latest-oci");
    let remote = format!("{}/peer/image:v1", registry.host());
    crane_push(&source, &remote);
    let wanted = only_manifest(&source);
    let told = run(crane().args(["digest", &remote])).expect(0).text();
    assert_eq!(told.trim(), wanted);
    // Reads every layer, and compares digests, sizes and diff IDs.
    run(crane().args(["validate", "--remote", &remote])).expect(0);

    let ours = layout("qemux86-64", "container-base-latest-oci");
    registry
        .run(["push", ours.to_str().unwrap(), "--tag", "v1"])
        .expect(0);
    let remote = format!("{}/yocto/container-base:v1", registry.host());
    run(crane().args(["validate", "--remote", &remote])).expect(0);
    let repositories = run(crane().args(["catalog", &registry.host()])).expect(0);
    assert_eq!(repositories.text(), "peer/image\nyocto/container-base\n");
}

#[test]
fn skopeo_copies_our_pushes() {
    let registry = Registry::start();
    let source = layout("qemux86-64", "container-base-latest-oci");
    registry
        .run(["push", source.to_str().unwrap(), "--tag", "v1"])
        .expect(0);
    let remote = format!("docker://{}/yocto/container-base:v1", registry.host());
    let index: Value = serde_json::from_slice(&skopeo_raw(&remote)).unwrap();
    assert_eq!(
        index["mediaType"],
        "application/vnd.oci.image.index.v1+json"
    );
    assert_eq!(
        index["manifests"][0]["digest"],
        only_manifest(&source).as_str()
    );
    let dir = TempDir::new().unwrap();
    skopeo_copy(&remote, &format!("{}:v1", oci(&dir.path().join("back"))));
}

#[test]
fn docker_registry_serves_our_storage_and_we_serve_its() {
    let dir = TempDir::new().unwrap();
    let source = layout("qemux86-64", "container-base-latest-oci");
    let wanted = only_manifest(&source);

    // Ours first, then theirs on the same directory.
    let ours = Registry::start_on(&dir.path().join("ours"), free_port());
    ours.run(["push", source.to_str().unwrap(), "--tag", "v1"])
        .expect(0);
    skopeo_copy(
        &oci(&source),
        &format!("docker://{}/by/skopeo:v1", ours.host()),
    );
    ours.stop();
    let theirs = DockerRegistry::start(ours.storage(), dir.path());
    assert_eq!(
        digest(&skopeo_raw(&format!(
            "docker://{}/by/skopeo:v1",
            theirs.host()
        ))),
        wanted
    );
    let copy = dir.path().join("copy");
    skopeo_copy(
        &format!("docker://{}/yocto/container-base:v1", theirs.host()),
        &format!("{}:v1", oci(&copy)),
    );
    let catalog: Value =
        serde_json::from_slice(&curl(&format!("{}/v2/_catalog", theirs.url()))).unwrap();
    assert_eq!(
        catalog["repositories"],
        serde_json::json!(["by/skopeo", "yocto/container-base"])
    );
    drop(theirs);

    // Theirs first, then ours.
    let storage = dir.path().join("theirs");
    std::fs::create_dir(&storage).unwrap();
    let theirs = DockerRegistry::start(&storage, dir.path());
    skopeo_copy(
        &oci(&source),
        &format!("docker://{}/by/them:v1", theirs.host()),
    );
    drop(theirs);
    let ours = Registry::start_on(&storage, free_port());
    let remote = format!("docker://{}/by/them:v1", ours.host());
    assert_eq!(digest(&skopeo_raw(&remote)), wanted);
    skopeo_copy(
        &remote,
        &format!("{}:v1", oci(&dir.path().join("ours-copy"))),
    );
    assert_eq!(ours.run(["tags", "by/them"]).expect(0).text().trim(), "v1");
}

#[test]
fn docker_registry_serves_what_our_collector_leaves_and_list_reads_it() {
    let dir = TempDir::new().unwrap();
    let source = layout("qemux86-64", "container-base-multiarch-oci");
    let ours = Registry::start_on(&dir.path().join("ours"), free_port());
    for name in ["kept", "dropped"] {
        let remote = format!("docker://{}/soak/{name}:v1", ours.host());
        skopeo_copy(&oci(&source), &remote);
    }
    let noise_source = dir.path().join("noise-latest-oci");
    write_image(&noise_source, "amd64", &[noise(7, 100_000)]);
    ours.run(["push", noise_source.to_str().unwrap(), "--tag", "v1"])
        .expect(0);
    ours.run(["delete", "soak/dropped:v1"]).expect(0);
    ours.run(["delete", "noise:v1"]).expect(0);
    let report = ours
        .run(["gc", "--yes", "--grace", "0", "--json"])
        .expect(0)
        .text();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert!(
        report["freed_bytes"].as_u64().unwrap() > 100_000,
        "{report}"
    );
    assert_eq!(report["emptied"].as_array().unwrap().len(), 2, "{report}");
    let told: Value = serde_json::from_str(&ours.run(["list", "--json"]).expect(0).text()).unwrap();
    ours.stop();

    let theirs = DockerRegistry::start(ours.storage(), dir.path());
    let catalog: Value =
        serde_json::from_slice(&curl(&format!("{}/v2/_catalog", theirs.url()))).unwrap();
    assert_eq!(catalog["repositories"], serde_json::json!(["soak/kept"]));
    let remote = format!("docker://{}/soak/kept:v1", theirs.host());
    skopeo_copy(&remote, &format!("{}:v1", oci(&dir.path().join("copy"))));
    // The same list, asked for tag by tag.
    let listed = run(ours
        .command()
        .args(["--url", &theirs.host(), "list", "--json"]))
    .expect(0);
    let listed: Value = serde_json::from_str(&listed.text()).unwrap();
    for key in [
        "repository",
        "tag",
        "digest",
        "platforms",
        "size",
        "created",
    ] {
        assert_eq!(listed[0][key], told[0][key], "{key}");
    }
    let refused = run(ours
        .command()
        .args(["--url", &theirs.host(), "gc", "--yes"]));
    assert!(
        refused.stderr.contains("another kind of registry"),
        "{}",
        refused.stderr
    );
}

#[test]
fn we_push_to_and_import_from_docker_registry() {
    let dir = TempDir::new().unwrap();
    let storage = dir.path().join("theirs");
    std::fs::create_dir(&storage).unwrap();
    let theirs = DockerRegistry::start(&storage, dir.path());
    let source = layout("qemux86-64", "container-base-latest-oci");
    let ours = Registry::start();
    // A registry without conditional PUT gets the same result.
    let push = [
        "--url",
        &theirs.host(),
        "push",
        source.to_str().unwrap(),
        "--tag",
        "v1",
    ];
    ours.run(push).expect(0);
    ours.run(push).expect(0);
    let pushed = skopeo_raw(&format!(
        "docker://{}/yocto/container-base:v1",
        theirs.host()
    ));
    ours.run([
        "import",
        &format!("{}/yocto/container-base:v1", theirs.host()),
        "taken",
    ])
    .expect(0);
    let taken = skopeo_raw(&format!("docker://{}/yocto/taken:v1", ours.host()));
    assert_eq!(pushed, taken, "import keeps the index bit for bit");
}

#[test]
fn curl_reads_ranges_and_sees_errors_in_the_standard_form() {
    let registry = Registry::start();
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("noise-latest-oci");
    let layer = noise(1, 300_000);
    write_image(&source, "amd64", std::slice::from_ref(&layer));
    registry
        .run(["push", source.to_str().unwrap(), "--tag", "v1"])
        .expect(0);
    let blob = format!("{}/v2/yocto/noise/blobs/{}", registry.url(), digest(&layer));
    assert_eq!(curl(&blob), layer);
    let part = run(tool("curl").args(["-fsS", "-r", "1000-1999", &blob])).expect(0);
    assert_eq!(part.stdout, layer[1000..2000]);
    assert_eq!(curl_status(&["-r", "300000-", &blob]), 416);

    let unknown = format!("{}/v2/no/such/manifests/v1", registry.url());
    assert_eq!(curl_status(&["-H", ACCEPT, &unknown]), 404);
    let body = run(tool("curl").args(["-sS", &unknown])).expect(0).stdout;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert!(
        ["MANIFEST_UNKNOWN", "NAME_UNKNOWN"].contains(&body["errors"][0]["code"].as_str().unwrap())
    );
    assert_eq!(
        curl_status(&[&format!("{}/v2/Bad/Name/tags/list", registry.url())]),
        400
    );
}

#[test]
fn weakness_4b_19_skopeo_takes_the_directory_that_holds_the_ca_alone() {
    let dir = TempDir::new().unwrap();
    let storage = dir.path().join("storage");
    let secure = [("CONTAINER_REGISTRY_SECURE", "1")];
    let ours = Registry::start_with(&storage, free_port(), &secure);
    let image = layout("qemux86-64", "container-base-latest-oci");
    ours.run(["push", image.to_str().unwrap(), "--tag", "v1"])
        .expect(0);
    let files: Vec<_> = std::fs::read_dir(storage.join("certs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files, [storage.join("certs/ca.crt")]);
    let text = std::fs::read_to_string(&files[0]).unwrap();
    assert!(text.contains("CERTIFICATE") && !text.contains("PRIVATE"));

    let logins = dir.path().join("auth.json");
    let login = Registry::command(&ours)
        .args(["login", "-u", "yocto", "--password-stdin", "--authfile"])
        .arg(&logins)
        .stdin(std::fs::File::open(storage.join("auth/password")).unwrap())
        .output()
        .unwrap();
    assert!(login.status.success(), "{login:?}");
    let inspect = |certificates: &str| {
        run(skopeo()
            .args(["inspect", "--raw", "--authfile"])
            .arg(&logins)
            .arg("--cert-dir")
            .arg(storage.join(certificates))
            .arg(format!("docker://{}/yocto/container-base:v1", ours.host())))
    };
    inspect("certs").expect(0);
    // The directory of keys does not serve: skopeo takes the server's for a client's.
    assert_ne!(inspect("pki").code(), 0);
}
