//! `pull` into an engine: the agent asks the candidates and fetches, and the engine is given what was
//! found, under the name that the user gave and the one that it was found under.

use vdkr_core::{
    channel::message::{Event, Failure, FailureCode, LogLevel, PullRequest, Pulled},
    digest::Digest,
    engine::{
        EngineKind,
        rows::{full_id, has_config, has_layers, keeps_manifests, text},
    },
    reference::Reference,
};
use vdkr_transfer::pull::{Image, Question};

use super::Engine;
use crate::{channel::stream::SharedStream, machine, pull::client, request::cancelled};

impl Engine {
    /// Pulls an image into the engine's store.
    pub(super) async fn pull(
        &self,
        request: &PullRequest,
        stream: &SharedStream,
    ) -> Result<Pulled, Failure> {
        let cancel = stream.cancelled().clone();
        tokio::select! {
            pulled = self.pull_all(request, stream) => match pulled {
                Err(_) if cancel.is_cancelled() => Err(cancelled()),
                pulled => pulled,
            },
            () = cancel.cancelled() => Err(cancelled()),
        }
    }

    async fn pull_all(
        &self,
        request: &PullRequest,
        stream: &SharedStream,
    ) -> Result<Pulled, Failure> {
        // One that does not answer is told of before anything is fetched.
        let version = self.version().await?;
        let events = |event: Event| stream.event(&event);
        let question = Question {
            reference: &request.reference,
            platform: request.platform.as_deref(),
            architecture: machine::architecture(),
            settings: &request.settings,
            reach: &Clone::clone,
        };
        let client = client(&request.settings)?;
        let asked = question.ask(&client, &events, stream.cancelled()).await;
        let (remote, image) = asked?;
        let mut names = names(&request.reference, &remote.reference);
        let id = image.parsed.config.digest.to_string();
        let mut known = self.has(&id, &image, false).await?;
        // Docker's engine on the store of containerd knows no image by its configuration's digest, and
        // loses one that has no name.
        if known.is_none() && self.kind() == EngineKind::Docker {
            let info = self.client.get("/info").await?;
            if keeps_manifests(&info) {
                if names.is_empty() {
                    names.extend(name_of_digest(&remote.reference, &image.digest));
                }
                for name in names.iter().map(ToString::to_string) {
                    if known.is_none() {
                        known = self.has(&name, &image, true).await?;
                    }
                }
            }
        }
        let known = match known {
            Some(id) => id,
            None => {
                self.load(&remote, &image, &names, &version, &events)
                    .await?;
                self.loaded(&id, &image, names.first()).await?
            }
        };
        for name in &names {
            self.name(&known, name).await?;
        }
        let name = match (remote.reference.digest(), names.first()) {
            (None, _) => remote.reference.to_string(),
            (Some(_), given) => {
                let name = given.map_or_else(|| known.clone(), ToString::to_string);
                let kind = self.kind();
                let what = if given.is_some() { "name" } else { "id" };
                events(Event::Log {
                    level: LogLevel::Warn,
                    message: format!(
                        "{kind} has no such name for an image that is handed to it by digest: use \
                         its {what} {name}"
                    ),
                });
                name
            }
        };
        Ok(Pulled {
            name,
            digest: image.digest.to_string(),
            id: known,
            size: image.compressed(),
        })
    }

    /// The id of an image that the engine has and that is this one. Engines have ids of different kinds,
    /// but all know the digests of the layers; under a name also its configuration has to be the same.
    async fn has(
        &self,
        called: &str,
        image: &Image,
        by_name: bool,
    ) -> Result<Option<String>, Failure> {
        let said = match self.client.get(&format!("/images/{called}/json")).await {
            Ok(said) => said,
            Err(failure) if failure.code == FailureCode::NotFound => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let config = || serde_json::from_slice(&image.config_raw).unwrap_or_default();
        let is_this = has_layers(&said, image.config.rootfs.diff_ids.iter())
            && (!by_name || has_config(&said, &config()));
        Ok(is_this.then(|| full_id(text(&said, "Id"))))
    }

    /// The id that an image has in the engine after it was loaded.
    async fn loaded(
        &self,
        id: &str,
        image: &Image,
        name: Option<&Reference>,
    ) -> Result<String, Failure> {
        let name = name.map(ToString::to_string);
        for called in name.iter().map(String::as_str).chain([id]) {
            if let Some(id) = self.has(called, image, false).await? {
                return Ok(id);
            }
        }
        let text = format!("{} took {id} and does not have it now", self.kind());
        Err(Failure::new(FailureCode::Failed, text).with_hint("see the log of the engine"))
    }
}

/// The name of an image that was asked for by its digest, in an engine that has to have one.
fn name_of_digest(found: &Reference, digest: &Digest) -> Option<Reference> {
    let tag = digest.to_string().replace(':', "-");
    let name = format!("{}/{}:{tag}", found.host(), found.repository());
    Reference::parse(&name).ok()
}

/// The names that an image gets: the one that it was found under, and the one that was asked for. A
/// digest is no name.
fn names(asked: &str, found: &Reference) -> Vec<Reference> {
    if found.digest().is_some() {
        return Vec::new();
    }
    let asked = Reference::parse(asked).ok();
    let asked = asked.filter(|asked| asked.digest().is_none());
    let asked = asked.and_then(|asked| match asked.tag() {
        Some(_) => Some(asked),
        None => asked.with_tag("latest").ok(),
    });
    let asked = asked.filter(|asked| asked.to_string() != found.to_string());
    std::iter::once(found.clone()).chain(asked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_the_name_that_was_asked_for() {
        let named = |asked: &str, found: &str| {
            let names = names(asked, &Reference::parse(found).unwrap());
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            named("alpine", "10.0.2.2:5000/yocto/alpine:latest"),
            [
                "10.0.2.2:5000/yocto/alpine:latest",
                "docker.io/library/alpine:latest"
            ]
        );
        assert_eq!(named("alpine", "docker.io/library/alpine:latest").len(), 1);
        assert_eq!(named("h:1/a:2", "h:1/a:2"), ["h:1/a:2"]);
        let digest = format!("h:1/a@sha256:{}", "0".repeat(64));
        assert_eq!(named(&digest, &digest), [] as [&str; 0]);
        let found = Reference::parse(&digest).unwrap();
        let kept = name_of_digest(&found, found.digest().unwrap()).unwrap();
        assert_eq!(kept.to_string(), format!("h:1/a:sha256-{}", "0".repeat(64)));
    }
}
