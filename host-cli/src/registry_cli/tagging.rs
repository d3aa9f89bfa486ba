//! Which tags a push makes.

use anyhow::Result;
use vdkr_core::manifest::Descriptor;
use vdkr_core::tags::{
    Strategy, TagFacts, TagPlan, arch_in_tags, explicit_tags, parse_strategies, tags,
};

use super::config::Config;
use super::error::{WithExit as _, printable};
use super::facts;
use crate::exit::Exit;

/// How tags come about: as given, or by strategies from facts gathered once.
#[derive(Debug)]
pub enum Tagging {
    /// These tags.
    Explicit(Vec<String>),
    /// Tags by strategies.
    Strategies(ByFacts),
}

/// Tags by strategies, from the facts of the run and of each image.
#[derive(Debug)]
pub struct ByFacts {
    /// What is asked for, but for the architecture.
    of_run: Vec<Strategy>,
    /// Whether tags with the architecture are asked for.
    with_arch: bool,
    facts: TagFacts,
    /// What was said once for all images.
    said: Vec<String>,
}

impl Tagging {
    /// Tags as given, else by the configured strategies. What the facts of the run lack is warned of
    /// here, once.
    pub fn new(config: &Config, explicit: &[String]) -> Result<Self> {
        if !explicit.is_empty() {
            return Ok(Self::Explicit(explicit_tags(explicit).exit(Exit::Usage)?));
        }
        let words = config.value("tag_strategy").unwrap_or_default();
        let strategies = parse_strategies(words).exit(Exit::Usage)?;
        let by_facts = ByFacts::new(&strategies, facts::gather(config));
        for warning in &by_facts.said {
            eprintln!("warning: {}", printable(warning));
        }
        Ok(Self::Strategies(by_facts))
    }

    /// The tags of an image with these entries, in order, and what there is to say of it alone.
    pub fn for_image(&self, entries: &[Descriptor]) -> TagPlan {
        match self {
            Self::Explicit(tags) => TagPlan {
                tags: tags.clone(),
                warnings: Vec::new(),
            },
            Self::Strategies(by_facts) => by_facts.plan(entries),
        }
    }
}

impl ByFacts {
    fn new(strategies: &[Strategy], facts: TagFacts) -> Self {
        let of_run: Vec<_> = strategies
            .iter()
            .copied()
            .filter(|strategy| *strategy != Strategy::Arch)
            .collect();
        Self {
            said: tags(&of_run, &facts).warnings,
            with_arch: of_run.len() != strategies.len(),
            of_run,
            facts,
        }
    }

    fn plan(&self, entries: &[Descriptor]) -> TagPlan {
        let mut architectures: Vec<&str> = entries
            .iter()
            .filter_map(|entry| Some(entry.platform.as_ref()?.architecture.as_str()))
            // What stands beside images, such as an attestation, is for none.
            .filter(|architecture| !["", "unknown"].contains(architecture))
            .collect();
        architectures.sort_unstable();
        architectures.dedup();
        let mut strategies = self.of_run.clone();
        let mut facts = self.facts.clone();
        let mut several = None;
        match architectures[..] {
            _ if !self.with_arch => {}
            [] | [_] => {
                let own = architectures.first().copied().unwrap_or_default();
                facts.arch = arch_in_tags(own, self.facts.arch.as_deref());
                strategies.push(Strategy::Arch);
            }
            // An index of several architectures has no tag of one of them.
            _ => {
                several = Some(format!(
                    "{}: it is for {}; no tag made",
                    Strategy::Arch,
                    architectures.join(", ")
                ));
            }
        }
        let mut plan = tags(&strategies, &facts);
        plan.warnings.retain(|warning| !self.said.contains(warning));
        plan.warnings.extend(several);
        plan
    }
}

#[cfg(test)]
mod tests {
    use vdkr_core::digest::Digest;
    use vdkr_core::manifest::media_type::OCI_MANIFEST;
    use vdkr_core::platform::Platform;

    use super::*;

    fn plan(words: &str, target: Option<&str>, architectures: &[&str]) -> TagPlan {
        let facts = TagFacts {
            version: Some("1.2".into()),
            arch: target.map(str::to_owned),
            ..TagFacts::default()
        };
        let entries = architectures.iter().map(|architecture| Descriptor {
            platform: (!architecture.is_empty()).then(|| Platform::linux(architecture)),
            ..Descriptor::new(OCI_MANIFEST, Digest::sha256(b""), 0)
        });
        let entries: Vec<_> = entries.collect();
        ByFacts::new(&parse_strategies(words).unwrap(), facts).plan(&entries)
    }

    #[test]
    fn an_image_says_its_architecture_itself() {
        for (target, architectures, tags) in [
            (Some("x86_64"), &["arm64"][..], "1.2 1.2-aarch64"),
            (Some("x86_64"), &["amd64"], "1.2 1.2-x86_64"),
            (Some("x86_64"), &[""], "1.2 1.2-x86_64"),
            (None, &["arm", "arm"], "1.2 1.2-arm"),
            // A builder's attestation beside it.
            (None, &["arm64", "unknown"], "1.2 1.2-aarch64"),
        ] {
            let plan = plan("arch version", target, architectures);
            assert_eq!(plan.tags.join(" "), tags, "{architectures:?}");
            assert_eq!(plan.warnings, [""; 0], "{architectures:?}");
        }
    }

    #[test]
    fn what_an_image_cannot_have_is_said_of_it() {
        let several = plan("version arch", Some("x86_64"), &["amd64", "arm64"]);
        assert_eq!(several.tags, ["1.2"]);
        assert_eq!(
            several.warnings,
            ["arch: it is for amd64, arm64; no tag made"]
        );
        let unknown = plan("version arch", None, &[""]);
        assert_eq!(unknown.tags, ["1.2"]);
        assert!(unknown.warnings[0].contains("TARGET_ARCH"), "{unknown:?}");
        // What holds for the run was said for the run.
        let run = plan("sha version", None, &["amd64"]);
        assert_eq!(run.warnings, [""; 0]);
    }
}
