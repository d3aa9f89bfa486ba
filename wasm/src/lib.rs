//! The decisions of `vdkr-core` for JavaScript: text in, text or JSON out. An empty text is an argument not
//! given.
//!
//! Each export is one line around a plain function, so that the functions can be tested without an
//! engine. The shape of the JSON is in [`json`]; `npm/index.d.ts` says the same in TypeScript, and
//! `npm/api.js` parses it, so that users of the package see objects.

use serde::Serialize;
use vdkr_core::candidates::{LocalMatch, RegistryPrefix};
use vdkr_core::reference::{Reference, is_image_id};
use vdkr_core::tags::TagFacts;
use vdkr_core::{candidates, deploy, loopback, tags};
use wasm_bindgen::prelude::wasm_bindgen;

pub mod json;

use json::{Candidate, Candidates, DeployName, Explained, Local, Outcome, Problem, TagList};

/// Explains a reference: [`Explained`] or [`Problem`].
#[wasm_bindgen(js_name = parseReference, skip_typescript)]
pub fn parse_reference(text: &str) -> String {
    to_json(&match Reference::parse(text) {
        Ok(reference) => Outcome::Ok(Explained::from(&reference)),
        Err(error) => Outcome::Error(Problem::new(text, "name", error)),
    })
}

/// Whether the text is an image id, which is never turned into a name.
#[wasm_bindgen(js_name = isImageId, skip_typescript)]
pub fn image_id(text: &str) -> bool {
    is_image_id(text)
}

/// Where a pull looks for a name, in order: [`Candidates`] or [`Problem`].
#[wasm_bindgen(js_name = pullCandidates, skip_typescript)]
pub fn pull_candidates(name: &str, registry: &str) -> String {
    to_json(&Outcome::from(with_registry(registry, |registry| {
        let found = candidates::pull_candidates(name, registry)
            .map_err(|error| Problem::new(name, "name", error))?;
        Ok(Candidates {
            candidates: found.iter().map(Candidate::from).collect(),
        })
    })))
}

/// Which of the stored names a name means: [`Local`] or [`Problem`].
#[wasm_bindgen(js_name = resolveLocal, skip_typescript)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "the list comes from JavaScript by value"
)]
pub fn resolve_local(name: &str, registry: &str, stored: Vec<String>) -> String {
    to_json(&Outcome::from(with_registry(registry, |registry| {
        let found = candidates::resolve_local(name, registry, &stored)
            .map_err(|error| Problem::new(name, "name", error))?;
        let (kind, names) = match found {
            LocalMatch::Name(name) => ("name", vec![name]),
            LocalMatch::Ambiguous(names) => ("ambiguous", names),
            LocalMatch::Id => ("id", Vec::new()),
            LocalMatch::None => ("none", Vec::new()),
        };
        Ok(Local { kind, names })
    })))
}

/// A URL or `host[:port]/…` with a loopback host replaced by the gateway, 10.0.2.2 if none is given.
#[wasm_bindgen(js_name = translateLoopback, skip_typescript)]
pub fn translate_loopback(url: &str, gateway: &str) -> String {
    loopback::translate_url(
        url,
        if gateway.is_empty() {
            loopback::DEFAULT_GATEWAY
        } else {
            gateway
        },
    )
}

/// The tags of a push, from a list of strategies and the facts: [`TagList`] or [`Problem`].
#[wasm_bindgen(js_name = tags, skip_typescript)]
pub fn plan_tags(
    strategies: &str,
    timestamp: &str,
    sha: &str,
    branch: &str,
    version: &str,
    arch: &str,
) -> String {
    let fact = |text: &str| Some(text.to_owned());
    let facts = TagFacts {
        timestamp: fact(timestamp),
        git_sha: fact(sha),
        branch: fact(branch),
        version: fact(version),
        arch: fact(arch),
    };
    to_json(&match tags::parse_strategies(strategies) {
        Ok(strategies) => Outcome::Ok(TagList::from(tags::tags(&strategies, &facts))),
        Err(error) => Outcome::Error(Problem::word(strategies, &error)),
    })
}

/// The repository of a layout directory, or of an archive of one, in the directory of `machine`:
/// [`DeployName`] or `null`.
#[wasm_bindgen(js_name = deployName, skip_typescript)]
pub fn deploy_name(name: &str, machine: &str) -> String {
    let found = deploy::image_name(name, machine).or_else(|| deploy::archive_name(name, machine));
    to_json(&found.map(DeployName::from))
}

fn with_registry<T>(
    registry: &str,
    then: impl FnOnce(Option<&RegistryPrefix>) -> Result<T, Problem>,
) -> Result<T, Problem> {
    if registry.is_empty() {
        return then(None);
    }
    let registry = RegistryPrefix::parse(registry)
        .map_err(|error| Problem::new(registry, "registry", error))?;
    then(Some(&registry))
}

fn to_json<T: Serialize>(value: &T) -> String {
    // These shapes have text keys only, and writing to memory does not fail.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn references() {
        assert_eq!(
            read(&parse_reference("localhost:5000/yocto/app:1")),
            json!({
                "ok": true,
                "host": "localhost:5000",
                "hostName": "localhost",
                "port": 5000,
                "explicitHost": true,
                "loopback": true,
                "repository": "yocto/app",
                "tag": "1",
                "digest": null,
                "familiar": "localhost:5000/yocto/app:1",
                "canonical": "localhost:5000/yocto/app:1",
            })
        );
        let alpine = read(&parse_reference("alpine"));
        assert_eq!(alpine["canonical"], "docker.io/library/alpine");
        assert_eq!(alpine["tag"], Value::Null);
        assert_eq!(alpine["explicitHost"], false);
        assert_eq!(
            read(&parse_reference("Foo//bar:")),
            json!({"ok": false, "error": {
                "field": "name",
                "offset": 4,
                "rule": "repository-empty",
                "message": "a repository name, or a part of it between slashes, must not be empty",
            }})
        );
    }

    #[test]
    fn offsets_count_as_javascript_does() {
        // Four bytes of UTF-8 in front of the tag, two units of UTF-16 in a JavaScript string.
        let error = &read(&pull_candidates("app", "😀"))["error"];
        assert_eq!(
            (&error["field"], &error["offset"]),
            (&json!("registry"), &json!(0))
        );
        let error = &read(&with_sha("latest 😀 newest"))["error"];
        assert_eq!(error["offset"], 7);
        let error = &read(&with_sha("latest\u{3000}newest"))["error"];
        assert_eq!(
            (&error["offset"], &error["rule"]),
            (&json!(7), &json!("strategy"))
        );
    }

    #[test]
    fn candidates_and_stored_names() {
        assert_eq!(
            read(&pull_candidates("app", "10.0.2.2:5000/yocto")),
            json!({"ok": true, "candidates": [
                {"source": "registry", "reference": "10.0.2.2:5000/yocto/app:latest"},
                {"source": "docker-hub", "reference": "docker.io/library/app:latest"},
            ]})
        );
        let without = read(&pull_candidates("app", ""));
        assert_eq!(without["candidates"][0]["source"], "docker-hub");
        assert_eq!(
            read(&resolve_local(
                "app",
                "",
                vec!["h.x/a/app:latest".into(), "h.y/app:1".into()]
            )),
            json!({"ok": true, "kind": "name", "names": ["h.x/a/app:latest"]})
        );
    }

    fn with_sha(strategies: &str) -> String {
        plan_tags(strategies, "", "a1b2c3d", "", "", "")
    }

    #[test]
    fn tag_lists() {
        assert_eq!(
            read(&with_sha("sha latest arch")),
            json!({"ok": true, "tags": ["a1b2c3d", "latest"], "warnings": [
                "arch: no architecture is known (TARGET_ARCH); no tag made"
            ]})
        );
        let all = plan_tags("timestamp,branch,version,arch", "t", "s", "b", "v", "a");
        assert_eq!(
            read(&all)["tags"],
            json!(["t", "b", "v", "t-a", "b-a", "v-a"])
        );
    }

    #[test]
    fn the_rest() {
        assert!(image_id("0123456789ab"));
        assert_eq!(
            translate_loopback("http://localhost:5000/v2/", ""),
            "http://10.0.2.2:5000/v2/"
        );
        assert_eq!(
            translate_loopback("localhost", "192.168.7.1"),
            "192.168.7.1"
        );
        assert_eq!(
            read(&deploy_name(
                "app-my-board.rootfs-20260112143022-oci",
                "my-board"
            )),
            json!({"repository": "app", "tag": null})
        );
        assert_eq!(
            deploy_name("app-latest-oci.tar", ""),
            r#"{"repository":"app","tag":"latest"}"#
        );
        assert_eq!(deploy_name("app", ""), "null");
    }
}
