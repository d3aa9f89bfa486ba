//! Every key of the configuration.

use std::fmt::Write as _;

/// One configuration key: its name in `config.toml`, its environment variable, its default.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Name in `config.toml` and in the output of `config`.
    pub name: &'static str,
    /// Environment variable.
    pub env: &'static str,
    /// Value when nothing sets it; `None` means unset.
    pub default: Option<&'static str>,
    /// What it means, for help and the manual.
    pub meaning: &'static str,
    /// Whether `config` hides the value.
    pub secret: bool,
}

const fn key(
    name: &'static str,
    env: &'static str,
    default: Option<&'static str>,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        env,
        default,
        meaning,
        secret: false,
    }
}

const fn secret(name: &'static str, env: &'static str, meaning: &'static str) -> Key {
    Key {
        secret: true,
        ..key(name, env, None, meaning)
    }
}

/// Every key, in the order in which `config` prints them.
pub const KEYS: &[Key] = &[
    key(
        "url",
        "CONTAINER_REGISTRY_URL",
        Some("localhost:5000"),
        "the registry, host[:port]",
    ),
    key(
        "namespace",
        "CONTAINER_REGISTRY_NAMESPACE",
        Some("yocto"),
        "put before image names that have no slash",
    ),
    key(
        "storage",
        "CONTAINER_REGISTRY_STORAGE",
        None,
        "the storage directory; not in config.toml, which lies in it",
    ),
    key(
        "listen",
        "CONTAINER_REGISTRY_LISTEN",
        None,
        "addresses that the server listens on, instead of loopback",
    ),
    key(
        "insecure",
        "CONTAINER_REGISTRY_INSECURE",
        None,
        "1, or a list of registries that may do without verified TLS",
    ),
    key(
        "secure",
        "CONTAINER_REGISTRY_SECURE",
        Some("0"),
        "1: secure mode, TLS with a CA of its own and a password",
    ),
    key(
        "auth",
        "CONTAINER_REGISTRY_AUTH",
        None,
        "0: secure mode without a password",
    ),
    key(
        "username",
        "CONTAINER_REGISTRY_USERNAME",
        Some("yocto"),
        "the user of secure mode",
    ),
    key(
        "cert_days",
        "CONTAINER_REGISTRY_CERT_DAYS",
        Some("365"),
        "days that a server certificate holds",
    ),
    key(
        "ca_days",
        "CONTAINER_REGISTRY_CA_DAYS",
        Some("3650"),
        "days that the CA holds",
    ),
    key(
        "cert_san",
        "CONTAINER_REGISTRY_CERT_SAN",
        None,
        "more names of the server certificate: DNS:lab,IP:10.1.2.3",
    ),
    key(
        "tag_strategy",
        "CONTAINER_REGISTRY_TAG_STRATEGY",
        Some("timestamp latest"),
        "which tags push makes; see push --help",
    ),
    key(
        "image_version",
        "IMAGE_VERSION",
        None,
        "the version for the strategies semver and version, and for labels",
    ),
    key(
        "target_arch",
        "TARGET_ARCH",
        None,
        "the architecture for the strategy arch, of images that do not say their own",
    ),
    key(
        "deploy_dir_images",
        "DEPLOY_DIR_IMAGES",
        None,
        "the parent of the machines' deploy directories",
    ),
    key(
        "deploy_dir_image",
        "DEPLOY_DIR_IMAGE",
        None,
        "the deploy directory of one machine; counts more than the parent",
    ),
    key(
        "auth_mode",
        "CONTAINER_REGISTRY_AUTH_MODE",
        Some("login"),
        "where credentials come from: login, none, home, authfile, credsfile, env",
    ),
    key(
        "authfile",
        "CONTAINER_REGISTRY_AUTHFILE",
        None,
        "a docker-style credential file",
    ),
    key(
        "credsfile",
        "CONTAINER_REGISTRY_CREDSFILE",
        None,
        "a file of CONTAINER_REGISTRY_USER, _PASSWORD, _TOKEN lines",
    ),
    key(
        "user",
        "CONTAINER_REGISTRY_USER",
        None,
        "the user to log in as, with the auth mode env",
    ),
    secret(
        "password",
        "CONTAINER_REGISTRY_PASSWORD",
        "that user's password; for start, the password of secure mode",
    ),
    secret(
        "token",
        "CONTAINER_REGISTRY_TOKEN",
        "a bearer token, with the auth mode env",
    ),
];

/// All keys as help and the manual list them.
pub fn listing() -> String {
    let mut text = String::from(
        "Environment and config.toml (an option counts more than the environment, the environment more than the file <storage>/config.toml):\n",
    );
    for key in KEYS {
        let default = key
            .default
            .map_or_else(String::new, |value| format!(" [{value}]"));
        let file = if key.name == "storage" {
            String::new()
        } else {
            format!(" ({})", key.name)
        };
        let _ = writeln!(text, "  {}{file}\n      {}{default}", key.env, key.meaning);
    }
    text
}
