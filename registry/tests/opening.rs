//! Opening a storage: what is made, what is refused, and how the refusal reads.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::Bench;
use rustix::io::Errno;
use vdkr_core::digest::Digest;
use vdkr_core::extension::GcOptions;
use vdkr_registry::fs::FaultPlan;
use vdkr_registry::{OpenError, Registry, ServerConfig};

#[test]
fn missing_directories_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("a/b/storage");
    Registry::open(ServerConfig::new(&storage)).unwrap();
    assert!(storage.join("docker/registry/v2/repositories").is_dir());
}

/// The modes of all that is below a directory: directories, then files.
fn modes(dir: &std::path::Path) -> [BTreeSet<u32>; 2] {
    let mut found = [BTreeSet::new(), BTreeSet::new()];
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        found[usize::from(path.is_file())].insert(mode);
        if path.is_dir() {
            let [directories, files] = modes(&path);
            found[0].extend(directories);
            found[1].extend(files);
        }
    }
    found
}

#[tokio::test]
async fn what_is_stored_is_for_those_who_may_use_the_storage() {
    for (mode, directories, files) in [
        (None, 0o700, 0o600),
        (Some(0o700), 0o700, 0o600),
        // On purpose for a group.
        (Some(0o750), 0o750, 0o640),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("storage");
        if let Some(mode) = mode {
            std::fs::create_dir(&storage).unwrap();
            std::fs::set_permissions(&storage, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let bench = Bench::with(|config| config.storage = storage.clone());
        let digest = bench.push_image("yocto/app", "latest", b"layer").await;
        bench.push_index("yocto/app", "v1", [b"1", b"2"]).await;
        let pin = format!("/v2/yocto/app/_vdkr/pins/{digest}");
        bench.send("PUT", &pin, &[], "").await;
        bench.delete("/v2/yocto/app/manifests/v1").await.expect(202);
        let upload = "/v2/yocto/app/blobs/uploads/";
        let begun = bench.send("POST", upload, &[], "").await.expect(202);
        let location = begun.header("location").to_owned();
        let patched = bench.send("PATCH", &location, &[], "part").await;
        patched.expect(202);
        let expected = [BTreeSet::from([directories]), BTreeSet::from([files])];
        assert_eq!(modes(dir.path()), expected, "{mode:?}");
    }
}

#[test]
fn a_file_is_no_storage() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("beneath")] {
        let error = Registry::open(ServerConfig::new(&path)).unwrap_err();
        assert!(matches!(error, OpenError::Create { .. }), "{error:?}");
        assert!(
            error.to_string().contains(&*path.to_string_lossy()),
            "{error}"
        );
    }
}

#[test]
fn a_directory_that_cannot_be_written_says_so() {
    // The superuser may write anywhere, except where the kernel has no files to make.
    let dir = tempfile::tempdir().unwrap();
    let sealed = dir.path().join("sealed");
    std::fs::create_dir(&sealed).unwrap();
    std::fs::set_permissions(&sealed, std::fs::Permissions::from_mode(0o555)).unwrap();
    let storage = if std::fs::write(sealed.join("probe"), "").is_ok() {
        "/proc/self".into()
    } else {
        sealed
    };
    let error = Registry::open(ServerConfig::new(&storage)).unwrap_err();
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("cannot be written") && text.contains("choose another one"),
        "{text}"
    );
}

#[test]
fn a_storage_with_parts_behind_symbolic_links_is_refused() {
    for part in [
        "docker",
        "docker/registry/v2/blobs",
        "docker/registry/v2/repositories",
    ] {
        let dir = tempfile::tempdir().unwrap();
        Registry::open(ServerConfig::new(dir.path())).unwrap();
        std::fs::rename(dir.path().join(part), dir.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("moved"), dir.path().join(part)).unwrap();
        let error = Registry::open(ServerConfig::new(dir.path())).unwrap_err();
        assert!(matches!(error, OpenError::Storage(_)), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(part) && text.contains("symbolic link"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_storage_reached_through_a_symbolic_link_is_served() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("real")).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("real", &link).unwrap();
    let bench = Bench::with(|config| config.storage = link);
    bench.push_image("yocto/app", "latest", b"layer").await;
    bench
        .get("/v2/yocto/app/manifests/latest")
        .await
        .expect(200);
    assert!(
        dir.path()
            .join("real/docker/registry/v2/repositories/yocto/app")
            .is_dir()
    );
}

/// An image and a blob that nothing names, in a storage whose disk changes as a plan says.
async fn filled() -> (Bench, Arc<FaultPlan>, Digest) {
    let plan = Arc::new(FaultPlan::new());
    let bench = Bench::new();
    bench.push_image("yocto/app", "latest", b"layer").await;
    let garbage = bench.push_blob("yocto/app", b"garbage").await;
    (bench, plan, garbage)
}

#[tokio::test]
async fn a_full_disk_is_served_and_can_be_cleaned_up() {
    let (bench, plan, garbage) = filled().await;
    plan.refuse(Some(Errno::NOSPC));
    let full = Bench::on(Arc::clone(&bench.dir), |config| {
        config.fault_plan = Some(Arc::clone(&plan));
    });
    drop(bench);
    let latest = "/v2/yocto/app/manifests/latest";
    let body = full.get(latest).await.expect(200).body;
    assert!(!full.registry.storage().is_shared().unwrap());
    full.try_push_blob("yocto/app", b"more")
        .await
        .refused(507, "STORAGE_FULL");
    let headers = [("content-type", "application/vnd.oci.image.manifest.v1+json")];
    full.send(
        "PUT",
        "/v2/yocto/app/manifests/more",
        &headers,
        [&body[..], b" "].concat(),
    )
    .await
    .refused(507, "STORAGE_FULL");
    let options = GcOptions {
        grace: 0,
        history: 0,
        ..GcOptions::default()
    };
    let report = full
        .registry
        .storage()
        .collect_garbage(&options, &AtomicBool::new(false))
        .unwrap();
    assert_eq!(
        (report.removed_blobs, report.freed_bytes),
        (1, 7),
        "{report:?}"
    );
    assert!(!full.blob_file(&garbage).exists());
    full.delete("/v2/yocto/app/manifests/latest")
        .await
        .expect(202);

    plan.refuse(None);
    full.push_image("yocto/app", "latest", b"layer").await;
    full.get(latest).await.expect(200);
}

#[tokio::test]
async fn a_storage_that_is_mounted_read_only_is_served_so() {
    let (bench, plan, _) = filled().await;
    plan.refuse(Some(Errno::ROFS));
    let read_only = Bench::on(Arc::clone(&bench.dir), |config| {
        config.fault_plan = Some(Arc::clone(&plan));
    });
    let latest = "/v2/yocto/app/manifests/latest";
    read_only.get(latest).await.expect(200);
    read_only.head(latest).await.expect(200);
    for (method, path) in [
        ("DELETE", latest),
        ("POST", "/v2/yocto/app/blobs/uploads/"),
        ("POST", "/v2/_vdkr/storage/gc"),
    ] {
        let answer = read_only.send(method, path, &[], "").await;
        answer.refused(405, "UNSUPPORTED");
    }
}

#[tokio::test]
async fn too_many_open_files_pass_and_are_no_failure() {
    let plan = Arc::new(FaultPlan::new());
    let bench = Bench::planned(&plan);
    let digest = bench.push_blob("yocto/app", b"content").await;
    let blob = format!("/v2/yocto/app/blobs/{digest}");
    for errno in [Errno::MFILE, Errno::NFILE] {
        plan.spoil(plan.count(), vdkr_registry::fs::Fault::Error(errno));
        let answer = bench.get(&blob).await.refused(503, "UNAVAILABLE");
        assert_eq!(answer.header("retry-after"), "5");
        bench.get(&blob).await.expect(200);
    }
}
