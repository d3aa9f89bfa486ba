//! `images`, `inspect`, `remove`, `tag` and `prune` with an engine's images.

use serde_json::Value;
use vdkr_core::{
    channel::message::{
        Done, Failure, FailureCode, PruneRequest, RegistrySettings, Removed, Reply,
    },
    engine::rows::{EngineImage, text},
    reference::Reference,
};

use super::{Engine, client::with_query, familiar, tell};
use crate::channel::stream::SharedStream;

impl Engine {
    /// A line for each name.
    pub(super) async fn list_images(&self) -> Done {
        let images = self.images().await?;
        let images = images.iter().flat_map(EngineImage::rows).collect();
        Ok(Reply::Images { images })
    }

    /// Describes images, each under the name that was asked for.
    pub(super) async fn inspect_images(&self, names: &[String]) -> Done {
        let mut documents = Vec::new();
        for name in names {
            let known = self.find(name, &RegistrySettings::default()).await?;
            let target = format!("/images/{}/json", known.image.id);
            documents.push(self.client.get(&target).await?);
        }
        Ok(Reply::Inspected { documents })
    }

    /// Takes names away, and what no name is left of. All names are looked up before anything goes; what
    /// went before one was refused is told.
    pub(super) async fn remove_images(
        &self,
        names: &[String],
        force: bool,
        stream: &SharedStream,
    ) -> Done {
        let mut called = Vec::new();
        for name in names {
            let known = self.find(name, &RegistrySettings::default()).await?;
            called.push(known.called().to_owned());
        }
        let force = if force { "1" } else { "0" };
        let mut removed = Vec::new();
        for name in called {
            let target = with_query(&format!("/images/{name}"), &[("force", force)]);
            match self.client.delete(&target).await {
                Ok(answer) => removed.extend(steps(&answer)),
                Err(failure) => {
                    let removed = removed.into_iter().map(|step| match step {
                        Removed::Untagged(name) => format!("untagged: {name}"),
                        Removed::Deleted(id) => format!("deleted: {id}"),
                    });
                    tell(stream, removed);
                    return Err(failure);
                }
            }
        }
        Ok(Reply::Removed { removed })
    }

    /// Gives an image one more name.
    pub(super) async fn tag_image(&self, source: &str, target: &str) -> Done {
        let name = Reference::parse(target).map_err(|error| {
            let text = format!("{target:?} is not an image name: {error}");
            Failure::new(FailureCode::Usage, text)
        })?;
        if name.digest().is_some() {
            let text = format!("{target:?} cannot be used: a digest is no name to give");
            return Err(Failure::new(FailureCode::Usage, text));
        }
        let known = self.find(source, &RegistrySettings::default()).await?;
        self.name(&known.image.id, &name).await?;
        Ok(Reply::Tagged)
    }

    /// Gives the image of an id a name.
    pub(super) async fn name(&self, id: &str, name: &Reference) -> Result<(), Failure> {
        let repository = format!("{}/{}", name.host(), name.repository());
        let tag = name.tag().unwrap_or("latest");
        let query = [("repo", repository.as_str()), ("tag", tag)];
        let target = with_query(&format!("/images/{id}/tag"), &query);
        self.client.post(&target, None).await.map(|_| ())
    }

    /// Removes images that nothing names, or with `all` those that no container uses.
    pub(super) async fn prune_images(&self, request: &PruneRequest) -> Done {
        let containers = self.client.get("/containers/json?all=1").await?;
        let used: Vec<&str> = containers
            .as_array()
            .into_iter()
            .flatten()
            .map(|container: &Value| text(container, "ImageID"))
            .map(|id| id.trim_start_matches("sha256:"))
            .collect();
        let wanted = |image: &EngineImage| {
            let only = request.only.as_ref();
            let is_used = used.contains(&image.id.trim_start_matches("sha256:"));
            (request.all || image.tags.is_empty())
                && !is_used
                && only.is_none_or(|only| only.iter().any(|id| id.to_string() == image.id))
        };
        let (mut removed, mut freed) = (Vec::new(), 0_u64);
        for image in self.images().await?.into_iter().filter(wanted) {
            let names: Vec<_> = image.tags.iter().map(String::as_str).collect();
            if request.dry_run {
                freed = freed.saturating_add(image.size);
                removed.extend(names.iter().map(|name| Removed::Untagged(familiar(name))));
                removed.push(Removed::Deleted(image.id.clone()));
                continue;
            }
            let names = if names.is_empty() {
                vec![image.id.as_str()]
            } else {
                names
            };
            let before = removed.len();
            for name in names {
                let target = format!("/images/{name}?force=0");
                // What somebody uses by now stays, and what somebody else has removed has gone.
                let answer = self.client.delete_unused(&target).await?;
                removed.extend(steps(&answer.unwrap_or_default()));
            }
            let is_deleted = |step: &Removed| matches!(step, Removed::Deleted(_));
            if removed.iter().skip(before).any(is_deleted) {
                freed = freed.saturating_add(image.size);
            }
        }
        Ok(Reply::Pruned { removed, freed })
    }
}

/// What an engine says that it has removed.
fn steps(answer: &Value) -> impl Iterator<Item = Removed> {
    let steps = answer.as_array().into_iter().flatten();
    steps.filter_map(
        |step| match (text(step, "Untagged"), text(step, "Deleted")) {
            ("", "") => None,
            ("", id) => Some(Removed::Deleted(id.to_owned())),
            (name, _) => Some(Removed::Untagged(familiar(name))),
        },
    )
}
