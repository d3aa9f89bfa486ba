//! Platforms (OCI image index, "platform") and the choice among the manifests of an index.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::manifest::Descriptor;

/// Where an image runs. Kept as it was read; [`Platform::normalised`] makes two spellings comparable.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// CPU architecture as Go names it: `amd64`, `arm64`, `arm`, …
    pub architecture: String,
    /// Operating system, `linux` for everything this project builds.
    pub os: String,
    /// Version of the operating system; used by Windows images.
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features the operating system must have.
    #[serde(
        rename = "os.features",
        deserialize_with = "list_or_null",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// Variant of the CPU: `v7` of arm, `v8` of arm64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text that is not a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule} (at byte {offset})")]
pub struct PlatformError {
    /// Byte offset of the first offending character; the length of the text where something is missing.
    pub offset: usize,
    /// The rule broken.
    pub rule: PlatformRule,
}

/// The rules of a platform's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlatformRule {
    /// An empty part, or nothing at all.
    #[error("a platform is written os/architecture or os/architecture/variant, like linux/arm64")]
    Empty,
    /// A fourth part.
    #[error("a platform has at most three parts: os/architecture/variant")]
    TooManyParts,
    /// A character outside `A-Za-z0-9_.-`.
    #[error("a platform holds letters, digits, '_', '.' and '-' only")]
    Character,
    /// An operating system alone.
    #[error("a platform needs an architecture, like linux/amd64")]
    NoArchitecture,
}

const OPERATING_SYSTEMS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "macos",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
];

impl Platform {
    /// `linux` on this architecture, in whichever spelling (`x86_64`, `aarch64`, `amd64`, …).
    pub fn linux(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_string(),
            os: "linux".to_string(),
            ..Self::default()
        }
        .normalised()
    }

    /// Reads `os/architecture[/variant]`, or an architecture alone (then of linux); the result is normalised.
    pub fn parse(text: &str) -> Result<Self, PlatformError> {
        let fail = |offset, rule| Err(PlatformError { offset, rule });
        let mut parts: [&str; 3] = [""; 3];
        let mut count = 0;
        let mut offset = 0;
        for part in text.split('/') {
            if count == parts.len() {
                // The separator before the fourth part is the first byte too many.
                return fail(offset - 1, PlatformRule::TooManyParts);
            }
            if part.is_empty() {
                return fail(offset, PlatformRule::Empty);
            }
            if let Some(at) = part
                .bytes()
                .position(|byte| !(byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)))
            {
                return fail(offset + at, PlatformRule::Character);
            }
            parts[count] = part;
            count += 1;
            offset += part.len() + 1;
        }
        if count == 1 {
            if OPERATING_SYSTEMS.contains(&parts[0].to_ascii_lowercase().as_str()) {
                return fail(text.len(), PlatformRule::NoArchitecture);
            }
            return Ok(Self::linux(parts[0]));
        }
        Ok(Self {
            architecture: parts[1].to_string(),
            os: parts[0].to_string(),
            variant: (count == 3).then(|| parts[2].to_string()),
            ..Self::default()
        }
        .normalised())
    }

    /// The platform of a Yocto build's `TARGET_ARCH` (`x86_64`, `aarch64`, `arm`, `powerpc64le`, …).
    ///
    /// An architecture that is not known is kept as it is, in lower case.
    pub fn from_target_arch(target_arch: &str) -> Self {
        Self::linux(target_arch)
    }

    /// One spelling for one platform: lower case, Go's names, and the variant left out where it is the
    /// architecture's ordinary one (amd64 v1, arm64 v8) and written where it matters (arm: `v7`).
    #[must_use]
    pub fn normalised(&self) -> Self {
        let os = match self.os.to_ascii_lowercase().as_str() {
            "" => "linux".to_string(),
            "macos" => "darwin".to_string(),
            other => other.to_string(),
        };
        let written = self.architecture.to_ascii_lowercase();
        let variant = self
            .variant
            .as_deref()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let (architecture, variant) = match written.as_str() {
            "i386" | "i486" | "i586" | "i686" | "x86" => ("386", None),
            "amd64" | "x86_64" | "x86-64" => (
                "amd64",
                numbered(&variant).filter(|variant| variant != "v1"),
            ),
            "arm64" | "aarch64" => ("arm64", arm64_variant(&variant)),
            "armhf" => ("arm", Some("v7".to_string())),
            "armel" => ("arm", Some("v6".to_string())),
            "arm" => (
                "arm",
                Some(numbered(&variant).unwrap_or_else(|| "v7".to_string())),
            ),
            other => (go_name(other), some(&variant)),
        };
        Self {
            architecture: architecture.to_string(),
            os,
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            variant,
        }
    }

    /// How well a program for `image` runs here: 0 is this very platform, more is further away, `None` is
    /// not at all.
    ///
    /// An older variant of the same architecture runs (arm v6 on v7, amd64 v1 on v3), and so does the
    /// 32-bit predecessor: 386 on amd64, arm on arm64.
    pub fn distance(&self, image: &Self) -> Option<u32> {
        /// Further than any variant of the same architecture.
        const PREDECESSOR: u32 = 1000;
        let (own, image) = (self.normalised(), image.normalised());
        if own.os != image.os {
            return None;
        }
        match (own.architecture.as_str(), image.architecture.as_str()) {
            ("amd64", "amd64") => level(&own, 1)?.checked_sub(level(&image, 1)?),
            ("amd64", "386") => Some(PREDECESSOR),
            ("arm", "arm") => level(&own, 7)?.checked_sub(level(&image, 7)?),
            ("arm64", "arm64") => {
                let (own, image) = (arm64_level(&own)?, arm64_level(&image)?);
                // Armv9.n includes Armv8.(n + 5), and nothing newer of the eighth version.
                let newest = if own.0 > image.0 { own.1 + 5 } else { own.1 };
                let major = own.0.checked_sub(image.0)?;
                Some(major * 100 + newest.checked_sub(image.1)?)
            }
            ("arm64", "arm") => Some(PREDECESSOR + 8u32.checked_sub(level(&image, 7)?)?),
            (own_name, image_name) => {
                (own_name == image_name && own.variant == image.variant).then_some(0)
            }
        }
    }

    /// Whether both name the same os, architecture and variant once normalised: such entries of an
    /// index replace each other.
    pub fn same_as(&self, other: &Self) -> bool {
        let (a, b) = (self.normalised(), other.normalised());
        a.os == b.os
            && a.architecture == b.architecture
            && a.variant == b.variant
            && a.os_version == b.os_version
    }
}

/// Chooses the entry of an index for this platform: the one at the least [`Platform::distance`], the first
/// of several.
///
/// Where no entry fits, an only entry without a platform is taken: an index of one image need not say
/// where it runs. Its configuration has to be asked then.
pub fn choose<'a>(entries: &'a [Descriptor], platform: &Platform) -> Option<&'a Descriptor> {
    let distance = |entry: &Descriptor| platform.distance(entry.platform.as_ref()?);
    let nearest = entries
        .iter()
        .filter_map(|entry| Some((distance(entry)?, entry)))
        .min_by_key(|(distance, _)| *distance);
    if let Some((_, entry)) = nearest {
        return Some(entry);
    }
    let mut unsaid = entries
        .iter()
        .filter(|entry| entry.platform.is_none() && entry.artifact_type.is_none());
    unsaid.next().filter(|_| unsaid.next().is_none())
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        Self::parse(text)
    }
}

/// Go writes an empty list as `null`.
fn list_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_string())
}

/// `7` is `v7`.
fn numbered(variant: &str) -> Option<String> {
    if variant.starts_with(|first: char| first.is_ascii_digit()) {
        let mut with_v = String::from("v");
        with_v.push_str(variant);
        return Some(with_v);
    }
    some(variant)
}

fn arm64_variant(variant: &str) -> Option<String> {
    match numbered(variant).as_deref() {
        None | Some("v8" | "v8.0") => None,
        Some("v9.0") => Some("v9".to_string()),
        Some(other) => Some(other.to_string()),
    }
}

/// The number of a variant `v7`.
fn level(platform: &Platform, default: u32) -> Option<u32> {
    match &platform.variant {
        None => Some(default),
        Some(variant) => variant
            .strip_prefix('v')?
            .parse()
            .ok()
            .filter(|level| *level <= 99),
    }
}

/// The numbers of a variant `v8.2`.
fn arm64_level(platform: &Platform) -> Option<(u32, u32)> {
    let Some(variant) = &platform.variant else {
        return Some((8, 0));
    };
    let numbers = variant.strip_prefix('v')?;
    let (major, minor) = numbers.split_once('.').unwrap_or((numbers, "0"));
    let small = |text: &str| text.parse().ok().filter(|number| *number <= 99);
    Some((small(major)?, small(minor)?)).filter(|(major, _)| *major >= 8)
}

/// Go's name of an architecture that Yocto or the kernel spells otherwise.
fn go_name(architecture: &str) -> &str {
    match architecture {
        "loongarch64" => "loong64",
        "mipsel" => "mipsle",
        "mips64el" => "mips64le",
        "powerpc" => "ppc",
        "powerpc64" => "ppc64",
        "powerpc64le" | "ppc64el" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString as _;

    use proptest::prelude::*;

    use super::*;
    use crate::digest::Digest;

    #[test]
    fn spellings() {
        for (text, normal) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/3", "linux/amd64/v3"),
            ("Linux/ARM64/V8", "linux/arm64"),
            ("linux/aarch64/8", "linux/arm64"),
            ("linux/arm64/v9.0", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("i686", "linux/386"),
            ("aarch64", "linux/arm64"),
            ("riscv64", "linux/riscv64"),
            ("windows/amd64", "windows/amd64"),
            ("macos/arm64", "darwin/arm64"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), normal, "{text}");
        }
    }

    #[test]
    fn yocto_target_arch() {
        for (target_arch, platform) in [
            ("x86_64", "linux/amd64"),
            ("i586", "linux/386"),
            ("aarch64", "linux/arm64"),
            ("arm", "linux/arm/v7"),
            ("riscv64", "linux/riscv64"),
            ("powerpc64le", "linux/ppc64le"),
            ("mipsel", "linux/mipsle"),
            ("loongarch64", "linux/loong64"),
            ("microblazeel", "linux/microblazeel"),
        ] {
            assert_eq!(
                Platform::from_target_arch(target_arch).to_string(),
                platform
            );
        }
    }

    #[test]
    fn errors_say_where_and_why() {
        for (text, offset, rule) in [
            ("", 0, PlatformRule::Empty),
            ("linux", 5, PlatformRule::NoArchitecture),
            ("linux/", 6, PlatformRule::Empty),
            ("/amd64", 0, PlatformRule::Empty),
            ("linux//v7", 6, PlatformRule::Empty),
            ("linux/arm/v7/x", 12, PlatformRule::TooManyParts),
            ("linux/a m", 7, PlatformRule::Character),
            ("linux/é", 6, PlatformRule::Character),
        ] {
            let error = Platform::parse(text).unwrap_err();
            assert_eq!((error.offset, error.rule), (offset, rule), "{text:?}");
        }
    }

    #[test]
    fn json_uses_the_names_of_the_specification() {
        let text = r#"{"architecture":"arm","os":"linux","os.version":"1","variant":"v7"}"#;
        let platform: Platform = serde_json::from_str(text).unwrap();
        assert_eq!(platform.os_version.as_deref(), Some("1"));
        assert_eq!(serde_json::to_string(&platform).unwrap(), text);
        let nulls = r#"{"architecture":"arm","os":"linux","os.features":null,"variant":null}"#;
        assert_eq!(
            serde_json::from_str::<Platform>(nulls)
                .unwrap()
                .os_features
                .len(),
            0
        );
    }

    #[test]
    fn same_platform_in_two_spellings() {
        let plain = Platform {
            architecture: "arm64".into(),
            os: "linux".into(),
            ..Platform::default()
        };
        let v8 = Platform {
            variant: Some("v8".into()),
            ..plain.clone()
        };
        let v9 = Platform {
            variant: Some("v9".into()),
            ..plain.clone()
        };
        assert!(plain.same_as(&v8));
        assert!(!plain.same_as(&v9));
    }

    #[test]
    fn distances() {
        // host, image, distance
        for (host, image, distance) in [
            ("amd64", "linux/amd64", Some(0)),
            ("amd64", "linux/amd64/v1", Some(0)),
            ("amd64", "linux/amd64/v2", None),
            ("linux/amd64/v3", "linux/amd64", Some(2)),
            ("amd64", "linux/386", Some(1000)),
            ("amd64", "linux/arm64", None),
            ("amd64", "windows/amd64", None),
            ("386", "linux/amd64", None),
            ("386", "linux/386", Some(0)),
            ("arm", "linux/arm/v7", Some(0)),
            ("arm", "linux/arm/v6", Some(1)),
            ("linux/arm/v6", "linux/arm", None),
            ("arm", "linux/arm/v8", None),
            ("arm", "linux/arm64", None),
            ("arm64", "linux/arm64/v8", Some(0)),
            ("arm64", "linux/arm64/v8.1", None),
            ("linux/arm64/v8.2", "linux/arm64", Some(2)),
            ("linux/arm64/v9", "linux/arm64/v8.5", Some(100)),
            ("linux/arm64/v9", "linux/arm64/v8.6", None),
            ("linux/arm64/v9", "linux/arm64/v9", Some(0)),
            ("arm64", "linux/arm64/v9", None),
            ("arm64", "linux/arm/v8", Some(1000)),
            ("arm64", "linux/arm/v6", Some(1002)),
            ("arm64", "linux/arm64/odd", None),
            ("riscv64", "linux/riscv64", Some(0)),
            ("linux/ppc64le/power8", "linux/ppc64le", None),
        ] {
            let host = Platform::parse(host).unwrap();
            let image = Platform::parse(image).unwrap();
            assert_eq!(host.distance(&image), distance, "{image} on {host}");
        }
    }

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let entry = |platform: &&str| Descriptor {
            platform: (!platform.is_empty()).then(|| Platform::parse(platform).unwrap()),
            ..Descriptor::new(
                "application/vnd.oci.image.manifest.v1+json",
                Digest::sha256(b""),
                1,
            )
        };
        platforms.iter().map(entry).collect()
    }

    #[test]
    fn choice() {
        // platform, entries, position of the chosen one
        let table: &[(&str, &[&str], Option<usize>)] = &[
            ("amd64", &["linux/arm64", "linux/amd64"], Some(1)),
            ("amd64", &["linux/386", "linux/amd64"], Some(1)),
            ("amd64", &["linux/386", "linux/arm64"], Some(0)),
            ("amd64", &["linux/arm64", "windows/amd64"], None),
            ("amd64", &["linux/amd64", "linux/amd64"], Some(0)),
            ("arm64", &["linux/arm/v7", "linux/arm64/v8"], Some(1)),
            (
                "linux/arm/v7",
                &["linux/arm/v5", "linux/arm/v6", "linux/arm64"],
                Some(1),
            ),
            ("amd64", &["linux/amd64", "unknown/unknown"], Some(0)),
            ("arm64", &["linux/amd64", "unknown/unknown"], None),
            ("amd64", &[""], Some(0)),
            ("amd64", &["", "linux/amd64"], Some(1)),
            ("amd64", &["", "linux/arm64"], Some(0)),
            ("amd64", &["", ""], None),
            ("amd64", &[], None),
        ];
        for (platform, entries, expected) in table {
            let entries_read = index(entries);
            let chosen = choose(&entries_read, &Platform::parse(platform).unwrap());
            let position = chosen
                .and_then(|chosen| entries_read.iter().position(|e| core::ptr::eq(e, chosen)));
            assert_eq!(position, *expected, "{platform} among {entries:?}");
        }
        let mut signature = index(&[""]);
        signature[0].artifact_type = Some("application/vnd.example.signature".into());
        assert_eq!(choose(&signature, &Platform::linux("amd64")), None);
    }

    proptest! {
        #[test]
        fn distance_never_panics(text in "(arm|arm64|amd64)/v?[0-9.]{0,12}", other in "(arm|arm64|amd64)/v?[0-9.]{0,12}") {
            let read = |text: &str| Platform::parse(&format!("linux/{}", text.trim_end_matches('/'))).unwrap();
            let (one, two) = (read(&text), read(&other));
            if one.distance(&two) == Some(0) {
                prop_assert!(one.same_as(&two) || two.distance(&one) == Some(0));
            }
        }

        #[test]
        fn never_panics_and_points_inside(text in ".{0,40}") {
            if let Err(error) = Platform::parse(&text) {
                prop_assert!(text.is_char_boundary(error.offset));
            }
        }

        #[test]
        fn round_trip(text in "[a-zA-Z0-9_.-]{1,8}(/[a-zA-Z0-9_.-]{1,8}){1,2}") {
            let platform = Platform::parse(&text).unwrap();
            prop_assert_eq!(Platform::parse(&platform.to_string()).unwrap(), platform.clone());
            prop_assert_eq!(platform.normalised(), platform);
        }
    }
}
