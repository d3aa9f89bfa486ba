use alloc::{string::String, vec::Vec};

use serde_json::{Map, Value};

use super::{Descriptor, ImageIndex, ManifestError, ParsedManifest, media_type, parse};
use crate::digest::Digest;
use crate::platform::Platform;

/// Annotation by which an attestation names the image it belongs to (BuildKit).
const ATTESTED: &str = "vnd.docker.reference.digest";

/// Adds manifests to an index and gives the new index's bytes.
///
/// An entry of the same platform is replaced; everything else keeps all its fields, known or not. An
/// entry without a platform (or of `unknown`, as attestations have) only replaces one of the same
/// digest. Where two of `new` have one platform, the later wins. Attestations of a replaced image go
/// with it.
///
/// An index that holds nothing but what we write ourselves has one form, whatever was added when: the
/// entries in the order of their platforms, those without one last. In an index of others the entries
/// keep their places, and new platforms go to the end.
///
/// The result is an OCI index: a Docker list that gets new entries becomes one, because a Docker
/// list may not name OCI manifests while an OCI index may name Docker's. An entry of `new` whose
/// manifest is there already changes nothing; when that holds for all of them, the bytes of
/// `existing` come back as they are. The output depends on nothing but the arguments.
///
/// `existing` must be an index: of a tag that points to a single image, the caller puts that
/// image's descriptor, with the platform of its configuration, before the others in `new`.
pub fn merge_index(existing: Option<&[u8]>, new: &[Descriptor]) -> Result<Vec<u8>, ManifestError> {
    let Some(existing) = existing else {
        return canonical(ImageIndex::default(), new);
    };
    let parsed = parse(existing, None)?;
    let Some(index) = parsed.as_index() else {
        return Err(ManifestError::NotAnIndex(parsed.media_type));
    };
    if new
        .iter()
        .all(|descriptor| is_there(index.manifests.iter(), descriptor))
    {
        return Ok(parsed.raw);
    }
    if is_plain(&parsed, index)? {
        return canonical(index.clone(), new);
    }
    rewrite(&parsed, index, new)
}

/// Whether an index says nothing that [`ImageIndex`] does not hold, so that it can be written anew.
fn is_plain(parsed: &ParsedManifest, index: &ImageIndex) -> Result<bool, ManifestError> {
    let malformed = |error| ManifestError::malformed(super::parse::MANIFEST, &error);
    let value = |json: &[u8]| serde_json::from_slice::<Value>(json).map_err(malformed);
    Ok(value(&parsed.raw)? == value(&index.to_json()?)?)
}

fn canonical(mut index: ImageIndex, new: &[Descriptor]) -> Result<Vec<u8>, ManifestError> {
    let entries = &mut index.manifests;
    for descriptor in new {
        if is_there(entries.iter(), descriptor) {
            continue;
        }
        let (place, gone) = make_place(entries, descriptor, |entry| entry);
        entries.insert(place, descriptor.clone());
        entries.retain(|entry| !is_attestation_of(entry, &gone));
    }
    entries.sort_by_cached_key(|entry| {
        let platform = known_platform(entry).map(Platform::normalised);
        (platform.is_none(), platform, entry.digest.clone())
    });
    // The result obeys the same rules and caps as what it was made from.
    Ok(parse(&index.to_json()?, Some(media_type::OCI_INDEX))?.raw)
}

fn is_attestation_of(entry: &Descriptor, gone: &[Digest]) -> bool {
    let attested = entry.annotations.get(ATTESTED);
    attested.is_some_and(|attested| gone.iter().any(|digest| digest.as_str() == attested))
}

/// An entry as it is understood, and as it was written.
type Entry = (Descriptor, Value);

fn rewrite(
    parsed: &ParsedManifest,
    index: &ImageIndex,
    new: &[Descriptor],
) -> Result<Vec<u8>, ManifestError> {
    let malformed = |error| ManifestError::malformed(super::parse::MANIFEST, &error);
    let mut body: Map<String, Value> = serde_json::from_slice(&parsed.raw).map_err(malformed)?;
    let written = match body.remove("manifests") {
        Some(Value::Array(written)) => written,
        _ => Vec::new(),
    };
    let mut entries: Vec<Entry> = index.manifests.iter().cloned().zip(written).collect();
    for descriptor in new {
        if is_there(entries.iter().map(|(entry, _)| entry), descriptor) {
            continue;
        }
        let (place, gone) = make_place(&mut entries, descriptor, |(entry, _)| entry);
        let value = serde_json::to_value(descriptor).map_err(malformed)?;
        entries.insert(place, (descriptor.clone(), value));
        entries.retain(|(entry, _)| !is_attestation_of(entry, &gone));
    }
    let entries = entries.into_iter().map(|(_, value)| value).collect();
    body.insert("schemaVersion".into(), 2.into());
    body.insert("mediaType".into(), media_type::OCI_INDEX.into());
    body.insert("manifests".into(), Value::Array(entries));
    let json = serde_json::to_vec(&body).map_err(malformed)?;
    // The result obeys the same rules and caps as what it was made from.
    Ok(parse(&json, Some(media_type::OCI_INDEX))?.raw)
}

/// Takes out what `new` replaces; gives the place for it and the digests that are no longer there.
fn make_place<T>(
    entries: &mut Vec<T>,
    new: &Descriptor,
    descriptor: impl Fn(&T) -> &Descriptor,
) -> (usize, Vec<Digest>) {
    let first = entries
        .iter()
        .position(|entry| replaces(new, descriptor(entry)));
    let mut gone = Vec::new();
    entries.retain(|entry| {
        let entry = descriptor(entry);
        let replaced = replaces(new, entry);
        if replaced && entry.digest != new.digest {
            gone.push(entry.digest.clone());
        }
        !replaced
    });
    (first.unwrap_or(entries.len()), gone)
}

fn replaces(new: &Descriptor, old: &Descriptor) -> bool {
    match (known_platform(new), known_platform(old)) {
        (Some(new), Some(old)) => new.same_as(old),
        // Also when the platform of an entry became known.
        (_, None) => new.digest == old.digest,
        (None, Some(_)) => false,
    }
}

fn known_platform(descriptor: &Descriptor) -> Option<&Platform> {
    let platform = descriptor.platform.as_ref()?;
    let known = |word: &str| !word.is_empty() && word != "unknown";
    (known(&platform.os) && known(&platform.architecture)).then_some(platform)
}

/// Whether this very manifest stands among the entries, alone in its place and with every
/// annotation that the new entry would bring.
fn is_there<'a>(entries: impl Iterator<Item = &'a Descriptor>, new: &Descriptor) -> bool {
    let mut same = entries.filter(|entry| replaces(new, entry));
    let (Some(entry), None) = (same.next(), same.next()) else {
        return false;
    };
    entry.digest == new.digest
        && known_platform(entry).is_some() == known_platform(new).is_some()
        && entry.media_type == new.media_type
        && (new.artifact_type.is_none() || new.artifact_type == entry.artifact_type)
        && new
            .annotations
            .iter()
            .all(|(key, value)| entry.annotations.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString as _, vec};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn entry(platform: Option<&str>, content: &str) -> Descriptor {
        Descriptor {
            platform: platform.map(|platform| {
                let (os, architecture) = platform.split_once('/').unwrap();
                let (architecture, variant) = match architecture.split_once('/') {
                    Some((architecture, variant)) => (architecture, Some(variant.into())),
                    None => (architecture, None),
                };
                Platform {
                    os: os.into(),
                    architecture: architecture.into(),
                    variant,
                    ..Platform::default()
                }
            }),
            ..Descriptor::new(
                media_type::OCI_MANIFEST,
                Digest::sha256(content.as_bytes()),
                content.len() as u64,
            )
        }
    }

    fn entries(json: &[u8]) -> Vec<Descriptor> {
        parse(json, Some(media_type::OCI_INDEX))
            .unwrap()
            .manifests()
            .to_vec()
    }

    #[test]
    fn an_index_of_ours_does_not_tell_in_which_order_it_came_about() {
        let [amd, arm, old] = [
            entry(Some("linux/amd64"), "amd"),
            entry(Some("linux/arm64"), "arm"),
            entry(Some("linux/amd64"), "old"),
        ];
        let add = |index: &[u8], entry: &Descriptor| {
            merge_index(Some(index), core::slice::from_ref(entry)).unwrap()
        };
        let at_once = merge_index(None, &[arm.clone(), amd.clone()]).unwrap();
        let one = merge_index(None, core::slice::from_ref(&old)).unwrap();
        assert_eq!(add(&add(&one, &arm), &amd), at_once);
        let other = merge_index(None, core::slice::from_ref(&arm)).unwrap();
        assert_eq!(add(&other, &amd), at_once);
        // Also where an earlier version wrote it another way.
        let mut spelled: Value = serde_json::from_slice(&other).unwrap();
        spelled["manifests"]
            .as_array_mut()
            .unwrap()
            .push(serde_json::to_value(&old).unwrap());
        let spelled = serde_json::to_vec_pretty(&spelled).unwrap();
        assert_eq!(add(&spelled, &amd), at_once);
    }

    #[test]
    fn a_new_index_has_the_entries_in_order_and_the_later_of_two_wins() {
        let (amd, arm, other) = (
            entry(Some("linux/amd64"), "amd"),
            entry(Some("linux/arm64"), "arm"),
            entry(Some("linux/amd64"), "other"),
        );
        let json = merge_index(None, &[amd.clone(), arm.clone()]).unwrap();
        assert_eq!(entries(&json), [amd.clone(), arm.clone()]);
        assert!(json.starts_with(br#"{"schemaVersion":2,"mediaType":"#));
        let json = merge_index(None, &[amd, arm.clone(), other.clone()]).unwrap();
        assert_eq!(entries(&json), [other, arm]);
        assert!(entries(&merge_index(None, &[]).unwrap()).is_empty());
    }

    #[test]
    fn the_same_platform_is_replaced_where_it_stands() {
        let old = [
            entry(Some("linux/amd64"), "a"),
            entry(Some("linux/arm64/v8"), "b"),
            entry(Some("linux/arm/v7"), "c"),
        ];
        let foreign = json!({"schemaVersion": 2, "manifests": old, "later": 1}).to_string();
        let existing = foreign.into_bytes();
        let new = entry(Some("linux/arm64"), "new");
        let json = merge_index(Some(&existing), core::slice::from_ref(&new)).unwrap();
        assert_eq!(entries(&json), [old[0].clone(), new, old[2].clone()]);
        let v6 = entry(Some("linux/arm/v6"), "v6");
        let json = merge_index(Some(&existing), core::slice::from_ref(&v6)).unwrap();
        assert_eq!(
            entries(&json),
            [old[0].clone(), old[1].clone(), old[2].clone(), v6]
        );
    }

    #[test]
    fn what_is_not_replaced_keeps_every_field() {
        let kept = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::sha256(b"kept").as_str(),
            "size": 4,
            "platform": {"os": "linux", "architecture": "arm64", "later": ["é", 1.5]},
            "annotations": {"b": "\u{1f600}\n\"", "a": ""},
            "later": {"z": 18_446_744_073_709_551_615_u64, "a": -1, "n": null},
        });
        let existing = json!({
            "schemaVersion": 2,
            "manifests": [kept.clone(), serde_json::to_value(entry(Some("linux/amd64"), "x")).unwrap()],
            "annotations": {"k": "v"},
            "artifactType": "a/b",
            "later": [{}],
        });
        let new = entry(Some("linux/amd64"), "new");
        let raw = existing.to_string();
        let json = merge_index(Some(raw.as_bytes()), core::slice::from_ref(&new)).unwrap();
        let merged: Value = serde_json::from_slice(&json).unwrap();
        let mut expected = existing;
        expected["mediaType"] = media_type::OCI_INDEX.into();
        expected["manifests"] = json!([kept, new]);
        assert_eq!(merged, expected);
    }

    #[test]
    fn nothing_new_gives_the_same_bytes() {
        let amd = entry(Some("linux/amd64"), "amd");
        let existing = json!({
            "mediaType": media_type::DOCKER_LIST,
            "schemaVersion": 2,
            "manifests": [amd.clone(), entry(Some("linux/arm64"), "arm")],
        });
        let existing = serde_json::to_vec_pretty(&existing).unwrap();
        assert_eq!(merge_index(Some(&existing), &[amd]).unwrap(), existing);
        assert_eq!(merge_index(Some(&existing), &[]).unwrap(), existing);
        // With something new the list becomes an OCI index and keeps Docker's entries.
        let riscv = entry(Some("linux/riscv64"), "riscv");
        assert_eq!(
            entries(&merge_index(Some(&existing), &[riscv]).unwrap()).len(),
            3
        );
    }

    #[test]
    fn what_is_there_keeps_its_annotations_and_takes_new_ones() {
        let plain = entry(Some("linux/arm64"), "arm");
        let annotated = |key: &str| {
            let mut entry = plain.clone();
            entry.annotations.insert(key.into(), "x".into());
            entry
        };
        let existing = merge_index(None, &[annotated("old")]).unwrap();
        let spelled = Descriptor {
            platform: Some(Platform::parse("linux/aarch64/v8").unwrap()),
            ..plain.clone()
        };
        assert_eq!(merge_index(Some(&existing), &[spelled]).unwrap(), existing);
        let amd = entry(Some("linux/amd64"), "amd");
        let json = merge_index(Some(&existing), &[plain.clone(), amd.clone()]).unwrap();
        assert_eq!(entries(&json), [amd, annotated("old")]);
        let json = merge_index(Some(&existing), &[annotated("new")]).unwrap();
        assert_eq!(entries(&json), [annotated("new")]);
    }

    #[test]
    fn a_platform_listed_twice_is_listed_once_afterwards() {
        let twice = ImageIndex {
            manifests: vec![
                entry(Some("linux/amd64"), "a"),
                entry(Some("linux/amd64"), "b"),
            ],
            ..ImageIndex::default()
        };
        let new = entry(Some("linux/amd64"), "a");
        let json =
            merge_index(Some(&twice.to_json().unwrap()), core::slice::from_ref(&new)).unwrap();
        assert_eq!(entries(&json), [new]);
    }

    #[test]
    fn attestations_follow_their_image() {
        let attestation = |of: &str, content: &str| {
            let mut attestation = entry(Some("unknown/unknown"), content);
            let of = Digest::sha256(of.as_bytes()).as_str().into();
            attestation.annotations.insert(ATTESTED.into(), of);
            attestation
        };
        let old = ImageIndex {
            manifests: vec![
                entry(Some("linux/amd64"), "amd"),
                entry(Some("linux/arm64"), "arm"),
                attestation("amd", "of amd"),
                attestation("arm", "of arm"),
            ],
            ..ImageIndex::default()
        };
        let new = [
            entry(Some("linux/amd64"), "new"),
            attestation("new", "of new"),
        ];
        let json = merge_index(Some(&old.to_json().unwrap()), &new).unwrap();
        let merged = entries(&json);
        assert_eq!(merged[..2], [new[0].clone(), old.manifests[1].clone()]);
        assert_eq!(merged.len(), 4);
        for kept in [&old.manifests[3], &new[1]] {
            assert!(merged.contains(kept), "{kept:?}");
        }
    }

    #[test]
    fn entries_without_a_platform_stand_by_their_digest() {
        let existing = merge_index(None, &[entry(None, "a"), entry(None, "b")]).unwrap();
        assert_eq!(entries(&existing).len(), 2);
        assert_eq!(
            merge_index(Some(&existing), &[entry(None, "a")]).unwrap(),
            existing
        );
        let known = entry(Some("linux/amd64"), "a");
        let json = merge_index(Some(&existing), core::slice::from_ref(&known)).unwrap();
        assert_eq!(entries(&json), [known, entry(None, "b")]);
    }

    #[test]
    fn only_an_index_takes_entries() {
        let image = super::super::ImageManifest {
            artifact_type: None,
            config: Descriptor::new(media_type::OCI_CONFIG, Digest::sha256(b"{}"), 2),
            layers: Vec::new(),
            subject: None,
            annotations: alloc::collections::BTreeMap::new(),
        };
        let error = merge_index(Some(&image.to_json().unwrap()), &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "manifest of type application/vnd.oci.image.manifest.v1+json is not an index"
        );
        assert!(merge_index(Some(b"{}"), &[]).is_err());
        assert!(merge_index(Some(b""), &[]).is_err());
    }

    fn some_entry() -> impl Strategy<Value = Descriptor> {
        const PLATFORMS: [Option<&str>; 4] = [
            None,
            Some("linux/amd64"),
            Some("linux/arm64"),
            Some("unknown/unknown"),
        ];
        (proptest::sample::select(&PLATFORMS[..]), "[a-d]")
            .prop_map(|(platform, content)| entry(platform, &content))
    }

    proptest! {
        #[test]
        fn merging_twice_changes_nothing_and_loses_nothing(
            old in proptest::collection::vec(some_entry(), 0..6),
            new in proptest::collection::vec(some_entry(), 0..4),
        ) {
            let old = ImageIndex { manifests: old, ..ImageIndex::default() };
            let existing = old.to_json().unwrap();
            let once = merge_index(Some(&existing), &new).unwrap();
            prop_assert_eq!(&merge_index(Some(&existing), &new).unwrap(), &once);
            let merged = entries(&once);
            for (index, descriptor) in new.iter().enumerate() {
                let overridden = new[index + 1..].iter().any(|later| replaces(later, descriptor));
                let there = |entry: &Descriptor| {
                    entry.digest == descriptor.digest && replaces(descriptor, entry)
                };
                prop_assert!(overridden || merged.iter().any(there));
            }
            for kept in &old.manifests {
                let replaced = new.iter().any(|new| replaces(new, kept));
                prop_assert!(replaced || merged.contains(kept));
            }
        }
    }
}
