//! Media types of manifests, configurations and layers.

use alloc::string::String;

/// Image manifest of OCI.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Image index of OCI.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Image configuration of OCI.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Uncompressed layer of OCI.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Layer of OCI, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Layer of OCI, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// The empty object `{}`, for artifacts without a configuration.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Image manifest of Docker, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Manifest list of Docker.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Image configuration of Docker.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Layer of Docker, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

const DOCKER_SCHEMA1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// What a client that can read every supported manifest puts into `Accept`, best first.
pub const MANIFEST_TYPES: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// The type without parameters, in lower case (`Text/Plain; charset=x` is `text/plain`).
pub fn essence(media_type: &str) -> String {
    media_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Whether content of this type is an index.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether content of this type is an image manifest.
pub fn is_image(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether content of this type is Docker's first, no longer supported manifest.
pub fn is_schema1(media_type: &str) -> bool {
    DOCKER_SCHEMA1.contains(&media_type)
}

/// Whether content of this type is JSON, and nothing that a browser would show as a page.
pub fn is_json(media_type: &str) -> bool {
    media_type
        .strip_prefix("application/")
        .is_some_and(|name| name == "json" || name.ends_with("+json"))
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// zstd.
    Zstd,
}

/// How a layer of this type is compressed, or `None` when it is no layer of a file system.
pub fn layer_compression(media_type: &str) -> Option<Compression> {
    if let Some(docker) = media_type.strip_prefix("application/vnd.docker.image.rootfs.") {
        return match docker {
            "diff.tar" | "foreign.diff.tar" => Some(Compression::None),
            "diff.tar.gzip" | "foreign.diff.tar.gzip" => Some(Compression::Gzip),
            "diff.tar.zstd" => Some(Compression::Zstd),
            _ => None,
        };
    }
    let oci = media_type.strip_prefix("application/vnd.oci.image.layer.")?;
    match oci.strip_prefix("nondistributable.").unwrap_or(oci) {
        "v1.tar" => Some(Compression::None),
        "v1.tar+gzip" => Some(Compression::Gzip),
        "v1.tar+zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

/// Whether a layer of this type may lawfully be absent from a registry: its bytes are at a vendor.
pub fn is_nondistributable(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_tell_their_compression() {
        for (media_type, compression) in [
            (OCI_LAYER, Some(Compression::None)),
            (OCI_LAYER_GZIP, Some(Compression::Gzip)),
            (OCI_LAYER_ZSTD, Some(Compression::Zstd)),
            (DOCKER_LAYER_GZIP, Some(Compression::Gzip)),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                Some(Compression::Gzip),
            ),
            ("application/vnd.oci.image.layer.v1.tar+br", None),
            (OCI_CONFIG, None),
            ("", None),
        ] {
            assert_eq!(layer_compression(media_type), compression, "{media_type}");
        }
        assert!(!is_nondistributable(OCI_LAYER_GZIP));
        assert!(is_nondistributable(
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        ));
    }

    #[test]
    fn parameters_and_case_do_not_count() {
        assert_eq!(
            essence(" Application/JSON ; charset=utf-8"),
            "application/json"
        );
        assert_eq!(essence(""), "");
        assert_eq!(essence(";;"), "");
    }
}
