//! Deleting, garbage collection, retention, history and checks, as users run them.

mod site;

use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};
use site::{Site, stored_files};
use vdkr_core::digest::Digest;

#[test]
fn weakness_4b_1_delete_removes_what_push_made() {
    let site = Site::new();
    site.push("app", "one", &["v1"]);
    let output = site.run(&["delete", "app:v1"], "", 0);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("gc can free") && told.contains("bytes"),
        "{told}"
    );
    site.fails(&["tags", "app"], 5);
    site.fails(&["delete", "app:v1"], 5);
    site.fails(&["delete", "app"], 2);
}

#[test]
fn weakness_4b_2_a_tag_goes_and_its_twins_stay() {
    let site = Site::new();
    site.push("app", "one", &["20260101-000000", "latest"]);
    site.ok(&["delete", "app:20260101-000000"]);
    assert_eq!(site.ok(&["tags", "app"]), "latest\n");
    site.push("app", "one", &["v1"]);
    let by_digest = format!("app@{}", site.digest_of("app", "latest"));
    // A digest names the tags that would go, and nobody says yes.
    let told = site.fails(&["delete", &by_digest], 1);
    assert!(
        told.contains("latest v1") && told.contains("--yes"),
        "{told}"
    );
    // A no is done as it was said, as with gc and prune.
    let no = site.run(&["delete", &by_digest], "n\n", 0);
    assert!(no.stdout.is_empty(), "{no:?}");
    let told = String::from_utf8(no.stderr).unwrap();
    assert!(
        told.ends_with("Cancelled.\n") && !told.contains("gc can free"),
        "{told}"
    );
    assert_eq!(site.ok(&["tags", "app"]), "latest\nv1\n");
    site.run(&["delete", &by_digest], "y\n", 0);
    site.fails(&["tags", "app"], 5);
    assert_eq!(
        site.ok(&["catalog"]),
        "yocto/app\n",
        "its image is still there by digest"
    );
    site.ok(&["gc", "--yes", "--grace", "0"]);
    assert_eq!(site.ok(&["catalog"]), "", "an empty repository vanishes");
}

#[test]
fn a_platform_that_tags_need_goes_only_when_that_is_said_and_what_is_pinned_stays() {
    let site = Site::new();
    site.push("app", "one", &["v1", "v2"]);
    let index: Value = serde_json::from_str(&site.ok(&["inspect", "--raw", "app:v1"])).unwrap();
    let child = index["manifests"][0]["digest"].as_str().unwrap();
    let child = format!("app@{child}");
    let told = site.fails(&["delete", &child], 1);
    assert!(
        told.contains("v1 v2") && told.contains("a platform") && told.contains("--yes"),
        "{told}"
    );
    let by_digest = format!("app@{}", site.digest_of("app", "v1"));
    site.ok(&["pin", &by_digest]);
    for image in [&child, &by_digest] {
        let told = site.fails(&["delete", image, "--yes"], 1);
        assert!(told.contains("unpin it first"), "{told}");
    }
    assert_eq!(site.ok(&["tags", "app"]), "v1\nv2\n");
    site.ok(&["unpin", &by_digest]);
    // Who says yes beforehand reads what goes, too.
    let told = String::from_utf8(site.run(&["delete", &child, "--yes"], "", 0).stderr).unwrap();
    assert!(told.contains("v1 v2"), "{told}");
    let told = String::from_utf8(site.run(&["delete", &by_digest, "--yes"], "", 0).stderr).unwrap();
    assert!(told.contains("drops these tags: v1 v2"), "{told}");
    // Several at a time; one that fails does not stop the others.
    site.push("app", "two", &["a", "b", "c"]);
    site.fails(&["delete", "app:a", "app:gone", "app:b"], 7);
    assert_eq!(site.ok(&["tags", "app"]), "c\n");
}

#[test]
fn weakness_4b_3_deleting_needs_no_configuration_and_no_temporary_tag_stays() {
    let mut site = Site::without_server();
    std::fs::create_dir_all(site.storage()).unwrap();
    // As the old development configuration was: without storage.delete.
    let old = "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: .\n";
    std::fs::write(site.storage().join("registry-config.yml"), old).unwrap();
    site.start();
    site.push("app", "one", &["v1"]);
    assert_eq!(site.ok(&["tags", "app"]), "v1\n");
    site.ok(&["delete", "app:v1"]);
}

#[test]
fn weakness_4b_4_pushing_again_and_again_does_not_fill_the_disk() {
    let site = Site::new();
    for round in 0..6 {
        site.push("app", &format!("content {round}"), &["latest"]);
    }
    let files = || stored_files(&site.v2().join("blobs"));
    assert_eq!(files(), 24);
    let dry = site.ok(&["gc", "--dry-run", "--grace", "0", "--keep-history", "2"]);
    assert!(dry.contains("no tag, history or index names it"), "{dry}");
    assert_eq!(files(), 24);
    let report = site.json(&[
        "gc",
        "--yes",
        "--json",
        "--grace",
        "0",
        "--keep-history",
        "2",
    ]);
    assert_eq!(report["removed_blobs"], json!(12));
    assert_eq!(files(), 12);
    site.ok(&["gc", "--yes", "--grace", "0", "--keep-history", "0"]);
    assert_eq!(files(), 4);
    site.ok(&["fsck"]);
    // With its grace, what was just pushed stays although nothing names it.
    site.ok(&["delete", "app:latest"]);
    site.ok(&["gc", "--yes"]);
    assert_eq!(files(), 4);
}

#[test]
fn weakness_4b_5_gc_without_an_answer_harms_nothing() {
    let mut site = Site::new();
    site.push("app", "one", &["v1"]);
    site.ok(&["delete", "app:v1"]);
    let files = stored_files(&site.v2().join("blobs"));
    let told = site.fails(&["gc", "--grace", "0"], 1);
    assert!(
        told.contains("Proceed with garbage collection? [y/N]"),
        "{told}"
    );
    assert!(told.contains("nothing was changed; add --yes"), "{told}");
    site.ok(&["status"]);
    let told = site.run(&["gc", "--grace", "0"], "n\n", 0);
    assert!(
        String::from_utf8(told.stderr)
            .unwrap()
            .contains("Cancelled.")
    );
    assert_eq!(stored_files(&site.v2().join("blobs")), files);
    site.run(&["gc", "--grace", "0"], "y\n", 0);
    assert_eq!(stored_files(&site.v2().join("blobs")), 0);
    site.ok(&["status"]);

    // Without a server it does the work itself, and starts none.
    site.push("app", "two", &["v1"]);
    site.ok(&["delete", "app:v1"]);
    site.stop();
    site.ok(&["gc", "--yes", "--grace", "0"]);
    assert_eq!(stored_files(&site.v2().join("blobs")), 0);
    site.ok(&["fsck"]);
    site.fails(&["status"], 3);
    // One that serves the storage on another port is not worked against.
    site.start();
    let elsewhere = Site::without_server().port.to_string();
    let told = site.fails(
        &["gc", "--yes", "--url", &format!("localhost:{elsewhere}")],
        3,
    );
    assert!(told.contains("another process serves"), "{told}");
    site.fails(&["gc", "--grace", "soon"], 2);
}

#[test]
fn weakness_4b_13_lists_do_not_end_at_a_hundred() {
    let mut site = Site::without_server();
    let content = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [],
    })
    .to_string();
    let digest = Digest::sha256(content.as_bytes());
    let data = site
        .v2()
        .join("blobs/sha256")
        .join(&digest.hex()[..2])
        .join(digest.hex());
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("data"), &content).unwrap();
    for number in 0..1100 {
        let manifests = site
            .v2()
            .join(format!("repositories/r{number:04}/_manifests"));
        for dir in [
            format!("revisions/sha256/{}", digest.hex()),
            "tags/v1/current".to_owned(),
        ] {
            std::fs::create_dir_all(manifests.join(&dir)).unwrap();
            std::fs::write(manifests.join(dir).join("link"), digest.as_str()).unwrap();
        }
    }
    site.start();
    assert_eq!(site.ok(&["catalog"]).lines().count(), 1100);
    let images = site.json(&["list", "--json"]);
    assert_eq!(images.as_array().unwrap().len(), 1100);
    assert_eq!(images[1099]["repository"], json!("r1099"));
}

#[test]
fn list_tells_and_filters() {
    let site = Site::new();
    site.push("app", "one", &["v1"]);
    site.push("big", &"two ".repeat(1000), &["v2"]);
    let table = site.ok(&["list"]);
    assert!(table.starts_with("IMAGE "), "{table}");
    let row = table
        .lines()
        .find(|line| line.starts_with("yocto/app:v1 "))
        .unwrap();
    assert!(row.contains("linux/amd64") && row.contains("20"), "{row}");
    let sorted = site.ok(&["list", "--sort", "size"]);
    assert!(
        sorted.lines().nth(1).unwrap().starts_with("yocto/big:v2"),
        "{sorted}"
    );
    let named = |args: &[&str]| {
        let images = site.json(&[&["list", "--json"][..], args].concat());
        images.as_array().unwrap().len()
    };
    assert_eq!(named(&["--label", "org.example.layer"]), 2);
    assert_eq!(named(&["--label", "org.example.layer=one"]), 1);
    assert_eq!(named(&["--label", "org.example.layer=none"]), 0);
    site.fails(&["list", "--label", "=x"], 2);
}

#[test]
fn a_tag_goes_back_to_what_it_was() {
    let site = Site::new();
    site.push("app", "first", &["latest"]);
    let first = site.digest_of("app", "latest");
    site.fails(&["rollback", "app:latest"], 5);
    // The history tells times in seconds.
    std::thread::sleep(Duration::from_millis(1100));
    site.push("app", "second", &["latest"]);
    let second = site.digest_of("app", "latest");
    let history = site.ok(&["history", "app"]);
    let lines: Vec<_> = history.lines().collect();
    assert!(
        lines[1].starts_with(&second) && lines[1].ends_with("current"),
        "{history}"
    );
    assert!(lines[2].starts_with(&first), "{history}");
    assert_eq!(
        site.ok(&["rollback", "app:latest"]).split(' ').nth(1),
        Some(&*format!("{first}\n"))
    );
    assert_eq!(site.digest_of("app", "latest"), first);
    // And forth again; garbage collection leaves both alone.
    site.ok(&["gc", "--yes", "--grace", "0"]);
    site.ok(&["rollback", "app:latest", "--to", &second]);
    assert_eq!(site.digest_of("app", "latest"), second);
    site.ok(&["fsck"]);
    site.fails(&["rollback", "app"], 2);
    site.fails(&["rollback", "app:latest", "--to", "sha256:x"], 2);
    let unknown = Digest::sha256(b"unknown").to_string();
    site.fails(&["rollback", "app:latest", "--to", &unknown], 5);
    site.fails(&["history", "app:nothing"], 5);
}

#[test]
fn a_long_history_is_shown_to_its_end() {
    let site = Site::new();
    site.push("app", "first", &["latest"]);
    let repository = site.v2().join("repositories/yocto/app");
    let index = repository.join("_manifests/tags/latest/index/sha256");
    for number in 0..2345_u32 {
        let digest = Digest::sha256(&number.to_be_bytes());
        let dir = index.join(digest.hex());
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("link"), digest.as_str()).unwrap();
    }
    let history = site.json(&["history", "app", "--json"]);
    let entries = history["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2346);
    let digests: std::collections::HashSet<_> = entries
        .iter()
        .map(|entry| &entry["digest"])
        .map(Value::to_string)
        .collect();
    assert_eq!(digests.len(), 2346);
    assert_eq!(site.ok(&["history", "app"]).lines().count(), 2347);
}

#[test]
fn a_deleted_tag_comes_back() {
    let site = Site::new();
    site.push("app", "first", &["v1"]);
    let digest = site.digest_of("app", "v1");
    site.ok(&["delete", "app:v1"]);
    site.fails(&["inspect", "app:v1"], 5);
    let history = site.ok(&["history", "app:v1"]);
    let told = history.lines().nth(1).unwrap();
    assert!(
        told.starts_with(&digest) && told.contains("deleted"),
        "{history}"
    );
    site.ok(&["rollback", "app:v1"]);
    assert_eq!(site.digest_of("app", "v1"), digest);
    // Until garbage collection has taken it, which says what it leaves for now.
    site.ok(&["delete", "app:v1"]);
    let told = site.ok(&["gc", "--yes"]);
    assert!(told.contains("kept until the grace of 1h"), "{told}");
    assert!(told.contains("--grace 0s"), "{told}");
    site.ok(&["gc", "--yes", "--grace", "0"]);
    site.fails(&["rollback", "app:v1"], 5);
}

/// A pull client that knows this registry and one that is asked next, as `vdkr` does.
async fn pull(site: &Site, next: u16) -> Result<(), vdkr_transfer::pull::ImageError> {
    use vdkr_transfer::pull::{Question, client_config, connect};
    let settings = vdkr_core::channel::message::RegistrySettings {
        registry: Some(format!("127.0.0.1:{}/yocto", site.port)),
        ..Default::default()
    };
    let elsewhere = format!("127.0.0.1:{next}/library/app:v1");
    let elsewhere = vdkr_core::reference::Reference::parse(&elsewhere).unwrap();
    let question = Question {
        reference: "app:v1",
        platform: None,
        architecture: "amd64",
        settings: &settings,
        reach: &|reference| match reference.host().to_string().as_str() {
            "docker.io" => elsewhere.clone(),
            _ => reference.clone(),
        },
    };
    let client = connect(client_config(&settings).unwrap()).unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    question.ask(&client, &|_| (), &stop).await.map(drop)
}

#[tokio::test]
async fn a_damaged_image_is_never_pulled_from_the_public_registry_instead() {
    let site = Site::new();
    site.push("app", "mine", &["v1"]);
    let public = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    public.set_nonblocking(true).unwrap();
    let next = public.local_addr().unwrap().port();
    let digest = Digest::parse(&site.digest_of("app", "v1")).unwrap();
    let data = site
        .v2()
        .join("blobs/sha256")
        .join(&digest.hex()[..2])
        .join(digest.hex())
        .join("data");
    let whole = std::fs::read(&data).unwrap();
    let damage = |content: Option<&[u8]>| match content {
        Some(content) => std::fs::write(&data, content).unwrap(),
        None => std::fs::remove_file(&data).unwrap(),
    };
    for content in [Some(&b""[..]), Some(&whole[1..]), None] {
        damage(content);
        let error = pull(&site, next).await.unwrap_err();
        let text = format!("{error:?}");
        assert!(text.contains("MANIFEST_DAMAGED"), "{text}");
    }
    site.run(&["fsck"], "", 6);
    let error = format!("{:?}", pull(&site, next).await.unwrap_err());
    assert!(error.contains("MANIFEST_DAMAGED"), "{error}");
    assert!(public.accept().is_err(), "the public registry was asked");
    // It says "push it again", and that is enough.
    site.push("app", "mine", &["v1"]);
    assert_eq!(std::fs::read(&data).unwrap(), whole);
    // Only what this registry does not know is asked for elsewhere. Damaged images can be deleted.
    damage(Some(&whole[1..]));
    site.ok(&["delete", "app:v1"]);
    site.ok(&["delete", &format!("app@{digest}"), "--yes"]);
    let asked = pull(&site, next);
    let seen = async {
        loop {
            if let Ok((stream, _)) = public.accept() {
                break drop(stream);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = asked => panic!("it came to an end without asking"),
        () = seen => {}
    }
}

#[test]
fn prune_deletes_what_no_rule_keeps_and_explains() {
    let site = Site::new();
    for (number, tag) in ["n1", "n2", "v1.0", "n3", "n4"].iter().enumerate() {
        site.push("app", &format!("content {number}"), &[*tag]);
        let current = site.v2().join(format!(
            "repositories/yocto/app/_manifests/tags/{tag}/current/link"
        ));
        let then =
            std::time::SystemTime::now() - Duration::from_secs(86_400 * (10 - number as u64));
        std::fs::File::options()
            .write(true)
            .open(current)
            .unwrap()
            .set_modified(then)
            .unwrap();
    }
    site.fails(&["prune"], 2);
    site.fails(&["prune", "--keep", "[x]"], 2);
    site.fails(&["prune", "nothing", "--keep-last", "1"], 5);
    let rules = [
        "prune",
        "app",
        "--keep-last",
        "1",
        "--keep",
        "v*",
        "--younger-than",
        "8d",
    ];
    let explained = site.ok(&[&rules[..], &["--explain", "--dry-run"]].concat());
    assert!(explained.contains("matches --keep"), "{explained}");
    assert!(
        explained.contains("number 5, 10d old, kept by no rule"),
        "{explained}"
    );
    let told = site.fails(&rules, 1);
    assert!(told.contains("Delete 2 of 5 tags?"), "{told}");
    assert_eq!(site.ok(&["tags", "app"]).lines().count(), 5);
    site.ok(&["pin", "app:n1"]);
    site.ok(&[&rules[..], &["--yes"]].concat());
    assert_eq!(site.ok(&["tags", "app"]), "n1\nn3\nn4\nv1.0\n");
    site.ok(&["unpin", "app:n1"]);
    let verdicts = site.json(&[&rules[..], &["--yes", "--json"]].concat());
    assert_eq!(verdicts[0]["keep"], json!(false));
    assert_eq!(site.ok(&["tags", "app"]), "n3\nn4\nv1.0\n");
    site.ok(&["prune", "--keep-last", "0", "--yes"]);
    assert_eq!(site.ok(&["tags", "app"]), "n4\n", "the last one stays");
    site.ok(&["prune", "--keep-last", "0", "--allow-empty", "--yes"]);
    site.fails(&["tags", "app"], 5);
}

#[test]
fn fsck_finds_damage_and_says_what_to_push_again() {
    let mut site = Site::new();
    site.push("app", "sound content", &["v1"]);
    assert!(site.ok(&["fsck"]).contains("everything is right"));
    let layer = Digest::sha256(b"sound content");
    let data = site
        .v2()
        .join("blobs/sha256")
        .join(&layer.hex()[..2])
        .join(layer.hex())
        .join("data");
    std::fs::write(&data, "sOund content").unwrap();
    site.run(&["fsck", "--dry-run"], "", 6);
    assert!(data.exists());
    let told = String::from_utf8(site.run(&["fsck"], "", 6).stdout).unwrap();
    assert!(told.contains("push again yocto/app:v1"), "{told}");
    assert!(told.contains("quarantine"), "{told}");
    assert!(!data.exists());
    site.run(&["fsck"], "", 6);
    site.push("app", "sound content", &["v1"]);
    site.ok(&["fsck"]);
    // The same without a server.
    std::fs::write(&data, "sOund content").unwrap();
    site.stop();
    let report = site.run(&["fsck", "--json"], "", 6).stdout;
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["quarantined"][0]["digest"], json!(layer));
}
