//! Where things lie: the layout of the CNCF Distribution project, version 2.
//!
//! Names that come in here are checked ones (repositories and tags by the grammar of
//! `vdkr_core::reference`, digests by their type), so that no component is `..`, empty or absolute.

use vdkr_core::digest::{Algorithm, Digest};

pub(crate) const BLOBS: &str = "docker/registry/v2/blobs";
pub(crate) const REPOSITORIES: &str = "docker/registry/v2/repositories";
/// What is ours alone. Distribution walks `blobs` and `repositories` and never looks here.
pub(crate) const TEMPORARY: &str = "docker/registry/v2/_vdkr/tmp";
/// Where `fsck` moves what is not what its name says.
pub(crate) const QUARANTINE: &str = "docker/registry/v2/_vdkr/quarantine";
/// Locked by whoever collects garbage or checks the storage.
pub(crate) const OURS: &str = "docker/registry/v2/_vdkr";

pub(crate) fn blob_data(digest: &Digest) -> String {
    let hex = digest.hex();
    format!(
        "{BLOBS}/{}/{}/{hex}/data",
        digest.algorithm().name(),
        &hex[..2]
    )
}

pub(crate) fn repository(name: &str) -> String {
    format!("{REPOSITORIES}/{name}")
}

pub(crate) fn layers(name: &str) -> String {
    format!("{REPOSITORIES}/{name}/_layers")
}

pub(crate) fn layer_link(name: &str, digest: &Digest) -> String {
    link(&layers(name), digest)
}

pub(crate) fn manifests(name: &str) -> String {
    format!("{REPOSITORIES}/{name}/_manifests")
}

pub(crate) fn revisions(name: &str, algorithm: Algorithm) -> String {
    format!(
        "{REPOSITORIES}/{name}/_manifests/revisions/{}",
        algorithm.name()
    )
}

pub(crate) fn revision_link(name: &str, digest: &Digest) -> String {
    link(
        &format!("{REPOSITORIES}/{name}/_manifests/revisions"),
        digest,
    )
}

pub(crate) fn tags(name: &str) -> String {
    format!("{REPOSITORIES}/{name}/_manifests/tags")
}

pub(crate) fn tag(name: &str, tag: &str) -> String {
    format!("{REPOSITORIES}/{name}/_manifests/tags/{tag}")
}

pub(crate) fn tag_current(name: &str, tag: &str) -> String {
    format!("{REPOSITORIES}/{name}/_manifests/tags/{tag}/current/link")
}

pub(crate) fn tag_index_link(name: &str, tag: &str, digest: &Digest) -> String {
    link(
        &format!("{REPOSITORIES}/{name}/_manifests/tags/{tag}/index"),
        digest,
    )
}

pub(crate) fn upload(name: &str, id: &str) -> String {
    format!("{REPOSITORIES}/{name}/_uploads/{id}")
}

pub(crate) fn upload_data(name: &str, id: &str) -> String {
    format!("{REPOSITORIES}/{name}/_uploads/{id}/data")
}

pub(crate) fn tag_index(name: &str, tag: &str, algorithm: Algorithm) -> String {
    format!(
        "{REPOSITORIES}/{name}/_manifests/tags/{tag}/index/{}",
        algorithm.name()
    )
}

pub(crate) fn uploads(name: &str) -> String {
    format!("{REPOSITORIES}/{name}/_uploads")
}

pub(crate) fn layers_by(name: &str, algorithm: Algorithm) -> String {
    format!("{REPOSITORIES}/{name}/_layers/{}", algorithm.name())
}

/// What tags pointed to before they were deleted.
pub(crate) fn deleted(name: &str) -> String {
    format!("{REPOSITORIES}/{name}/_vdkr/deleted")
}

/// Distribution passes by what begins with an underscore and is none of its own names.
pub(crate) fn pins(name: &str, algorithm: Algorithm) -> String {
    format!("{REPOSITORIES}/{name}/_vdkr/pins/{}", algorithm.name())
}

pub(crate) fn pin_link(name: &str, digest: &Digest) -> String {
    link(&format!("{REPOSITORIES}/{name}/_vdkr/pins"), digest)
}

fn link(dir: &str, digest: &Digest) -> String {
    format!("{dir}/{}/{}/link", digest.algorithm().name(), digest.hex())
}

/// The directory that holds `path`; `.` for a name in the root.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or(".", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_that_of_distribution() {
        let digest = Digest::sha256(b"");
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(
            blob_data(&digest),
            format!("docker/registry/v2/blobs/sha256/e3/{hex}/data")
        );
        let repository = "docker/registry/v2/repositories/yocto/app";
        assert_eq!(
            layer_link("yocto/app", &digest),
            format!("{repository}/_layers/sha256/{hex}/link")
        );
        assert_eq!(
            revision_link("yocto/app", &digest),
            format!("{repository}/_manifests/revisions/sha256/{hex}/link")
        );
        assert_eq!(
            tag_current("yocto/app", "1.0"),
            format!("{repository}/_manifests/tags/1.0/current/link")
        );
        assert_eq!(
            tag_index_link("yocto/app", "1.0", &digest),
            format!("{repository}/_manifests/tags/1.0/index/sha256/{hex}/link")
        );
        assert_eq!(
            upload_data("yocto/app", "id"),
            format!("{repository}/_uploads/id/data")
        );
        assert_eq!(parent("a/b/c"), "a/b");
        assert_eq!(parent("a"), ".");
    }
}
