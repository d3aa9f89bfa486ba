//! Opening a storage: what is made, what is refused, and how the refusal reads.

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::Bench;
use vdkr_registry::{OpenError, Registry, ServerConfig};

#[test]
fn missing_directories_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().join("a/b/storage");
    Registry::open(ServerConfig::new(&storage)).unwrap();
    assert!(storage.join("docker/registry/v2/repositories").is_dir());
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
