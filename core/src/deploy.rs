//! Names in a deploy directory: which repository the OCI layout of a build becomes.
//!
//! A build leaves a directory with a time in its name and symbolic links to it. What stands there depends
//! on the release and on the image's settings; `MACHINE` is the name of the directory it stands in:
//!
//! | from | form |
//! |---|---|
//! | `IMAGE_BASENAME-OCI_IMAGE_TAG` (the link of `image-oci`) | `<name>-latest-oci`, `<name>-<tag>-oci` |
//! | `IMAGE_NAME` since nanbield | `<name>-<machine>.rootfs-<datetime>-oci`, with `.rootfs` once more before `-oci` in some releases |
//! | `IMAGE_NAME` before it | `<name>-<machine>-<datetime>.rootfs-oci` |
//! | `IMAGE_LINK_NAME`, or an empty `IMAGE_VERSION_SUFFIX` | `<name>-<machine>.rootfs-oci`, `<name>-<machine>-oci` |
//! | an empty `IMAGE_MACHINE_SUFFIX` or `IMAGE_NAME_SUFFIX` | the same without machine or `.rootfs` |
//! | `oci-multiarch` | `<name>-multiarch-oci` |
//! | by hand | `<name>-oci` |

use alloc::borrow::ToOwned;
use alloc::string::String;

use crate::reference::{DEFAULT_TAG, MAX_REPOSITORY, check_repository, check_tag};

/// Machines of OE-core that are cut off wherever the directory stands, since no image is named so.
const QEMU_MACHINES: &[&str] = &[
    "qemux86-64",
    "qemux86",
    "qemuarm64",
    "qemuarmv5",
    "qemuarm",
    "qemuriscv64",
    "qemuriscv32",
    "qemuppc64",
    "qemuppc",
    "qemumips64",
    "qemumips",
    "qemuloongarch64",
];

/// What the name of a layout says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeployName {
    /// The repository: the image's name, made legal.
    pub repository: String,
    /// The tag in the name, if it has one.
    pub tag_hint: Option<String>,
}

/// Reads the name of a layout directory (`…-oci`) in the directory of `machine`; an empty machine is legal.
///
/// `None` when the name does not end in `-oci` or nothing is left of it.
pub fn image_name(dir_name: &str, machine: &str) -> Option<DeployName> {
    from_stem(dir_name.strip_suffix("-oci")?, machine)
}

/// Reads the name of an archive of a layout: `<IMAGE_NAME>-oci.tar`, or as `image-oci` writes it,
/// `<IMAGE_NAME>-oci-<tag>-<arch>-linux.oci-image.tar`; perhaps compressed.
pub fn archive_name(file_name: &str, machine: &str) -> Option<DeployName> {
    let (tar, extension) = file_name.rsplit_once('.')?;
    let plain = if extension == "tar" {
        tar
    } else {
        tar.strip_suffix(".tar")?
    };
    let Some(layout) = plain.strip_suffix("-linux.oci-image") else {
        return image_name(plain, machine);
    };
    let (stem, tag_and_arch) = layout.rsplit_once("-oci-")?;
    let tag = tag_and_arch
        .split('-')
        .next()
        .filter(|tag| check_tag(tag).is_ok());
    let name = from_stem(stem, machine)?;
    Some(DeployName {
        tag_hint: tag.map(ToOwned::to_owned),
        ..name
    })
}

fn from_stem(stem: &str, machine: &str) -> Option<DeployName> {
    let mut rest = stem;
    let mut tag_hint = None;
    // From the end: what the build appends, then the machine, then a tag in front of neither.
    let before = rest;
    rest = cut(rest, ".rootfs");
    rest = cut_datetime(rest);
    rest = cut(rest, ".rootfs");
    if let Some(name) = cut_machine(rest, machine) {
        rest = name;
    } else if rest.len() == before.len() {
        if let Some(name) = non_empty(rest.strip_suffix("-multiarch")) {
            rest = name;
        } else if let Some((name, tag)) = split_tag(rest) {
            rest = cut_machine(cut(name, ".rootfs"), machine).unwrap_or(name);
            tag_hint = Some(tag.to_owned());
        }
    }
    Some(DeployName {
        repository: legal_repository(rest)?,
        tag_hint,
    })
}

fn non_empty(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn cut<'a>(text: &'a str, suffix: &str) -> &'a str {
    non_empty(text.strip_suffix(suffix)).unwrap_or(text)
}

fn cut_machine<'a>(text: &'a str, machine: &str) -> Option<&'a str> {
    let is_cut = |machine: &str| {
        let before = text.strip_suffix(machine).filter(|_| !machine.is_empty())?;
        non_empty(before.strip_suffix('-'))
    };
    is_cut(machine).or_else(|| QEMU_MACHINES.iter().find_map(|machine| is_cut(machine)))
}

/// Cuts `-<DATETIME>`, fourteen digits.
fn cut_datetime(text: &str) -> &str {
    match text.rsplit_once('-') {
        Some((name, time)) if !name.is_empty() && time.len() == 14 && is_number(time) => name,
        _ => text,
    }
}

/// Splits off a tag: `latest`, the `timestamp` strategy's `20260112-143022`, a version like `1.2.3`,
/// `v2` or `1.2.3-rc1`. Any other word is part of the name: `core-image-minimal-dev` is an image.
fn split_tag(text: &str) -> Option<(&str, &str)> {
    let (name, last) = text.rsplit_once('-')?;
    let split = if last == DEFAULT_TAG {
        (name, last)
    } else if let Some((first, date)) = name.rsplit_once('-').filter(|(_, previous)| {
        (previous.len() == 8 && is_number(previous) && last.len() == 6 && is_number(last))
            || (is_version(previous) && previous.contains('.') && is_pre_release(last))
    }) {
        (first, &text[text.len() - date.len() - 1 - last.len()..])
    } else if is_version(last) {
        (name, last)
    } else {
        return None;
    };
    (!split.0.is_empty()).then_some(split)
}

/// `1.2.3`, `v2`, `7`; a bare 32 or 64 ends the name of many a machine and is none.
fn is_version(word: &str) -> bool {
    let numbers = word.strip_prefix('v').unwrap_or(word);
    numbers.split('.').all(is_number) && !matches!(word, "32" | "64")
}

fn is_pre_release(word: &str) -> bool {
    ["rc", "alpha", "beta", "pre"].iter().any(|kind| {
        word.strip_prefix(kind).is_some_and(|number| {
            number.is_empty() || number.trim_start_matches('.').split('.').all(is_number)
        })
    })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A recipe's name is a legal repository but for upper case, `+` and the like, which become `-`.
fn legal_repository(name: &str) -> Option<String> {
    if name.len() <= MAX_REPOSITORY && !name.contains('/') && check_repository(name).is_ok() {
        return Some(name.to_owned());
    }
    let mut repository = String::new();
    let mut gap = "";
    for character in name.chars() {
        match character.to_ascii_lowercase() {
            letter @ ('a'..='z' | '0'..='9') => {
                if !repository.is_empty() {
                    repository.push_str(gap);
                }
                repository.push(letter);
                gap = "";
            }
            '.' if gap.is_empty() => gap = ".",
            '_' if gap.is_empty() => gap = "_",
            _ => gap = "-",
        }
    }
    (check_repository(&repository).is_ok()).then_some(repository)
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    /// Rows of the table that the tests of the npm package read as well.
    #[derive(serde::Deserialize)]
    struct Table {
        directories: Vec<(String, String, String, Option<String>)>,
        archives: Vec<(String, String, Option<String>)>,
        others: Vec<String>,
    }

    fn table() -> Table {
        serde_json::from_str(include_str!("../tables/deploy.json")).unwrap()
    }

    #[test]
    fn directories() {
        let Table {
            directories,
            others,
            ..
        } = table();
        for (directory, machine, repository, tag_hint) in directories {
            let expected = Some(DeployName {
                repository,
                tag_hint,
            });
            assert_eq!(
                image_name(&directory, &machine),
                expected,
                "{directory} under {machine:?}"
            );
        }
        for directory in others {
            assert_eq!(image_name(&directory, "qemux86-64"), None, "{directory}");
        }
    }
    #[test]
    fn archives() {
        for (file, repository, tag_hint) in table().archives {
            let expected = Some(DeployName {
                repository,
                tag_hint,
            });
            assert_eq!(archive_name(&file, "qemux86-64"), expected, "{file}");
        }
        for file in [
            "",
            "app.tar",
            "app-oci",
            "app-oci.zip",
            ".tar",
            "x-linux.oci-image.tar",
        ] {
            assert_eq!(archive_name(file, "qemux86-64"), None, "{file}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_is_legal(name in ".{0,40}", machine in ".{0,12}") {
            for found in [image_name(&name, &machine), image_name(&format!("{name}-oci"), &machine), archive_name(&name, &machine)].into_iter().flatten() {
                prop_assert!(check_repository(&found.repository).is_ok(), "{found:?}");
                if let Some(tag) = found.tag_hint {
                    prop_assert!(check_tag(&tag).is_ok(), "{tag}");
                }
            }
        }

        /// Any image on any machine, in every form a build writes.
        #[test]
        fn any_machine(
            name in "[a-z]{2,6}(-[a-z]{2,6}){0,2}",
            machine in "[a-z]{2,6}[0-9]{0,2}(-[a-z0-9]{2,5}){0,2}",
        ) {
            prop_assume!(!name.ends_with("-latest") && !name.ends_with("-multiarch"));
            prop_assume!(name != machine && !name.ends_with(&format!("-{machine}")));
            for directory in [
                format!("{name}-latest-oci"),
                format!("{name}-multiarch-oci"),
                format!("{name}-1.2.3-oci"),
                format!("{name}-oci"),
                format!("{name}-{machine}-oci"),
                format!("{name}-{machine}.rootfs-oci"),
                format!("{name}-{machine}.rootfs-20260112143022-oci"),
                format!("{name}-{machine}-20260112143022.rootfs-oci"),
                format!("{name}-{machine}.rootfs-20260112143022.rootfs-oci"),
            ] {
                let found = image_name(&directory, &machine);
                prop_assert_eq!(found.map(|found| found.repository), Some(name.clone()), "{}", directory);
            }
        }
    }
}
