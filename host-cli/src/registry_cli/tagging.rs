//! Which tags a push makes.

use anyhow::Result;
use vdkr_core::manifest::Descriptor;
use vdkr_core::tags::{Strategy, TagFacts, explicit_tags, parse_strategies, tags};

use super::config::Config;
use super::error::{WithExit as _, printable};
use super::facts;
use crate::exit::Exit;

/// How tags come about: as given, or by strategies from facts gathered once.
#[derive(Debug)]
pub enum Tagging {
    /// These tags.
    Explicit(Vec<String>),
    /// Tags by strategies, from these facts.
    Strategies(Vec<Strategy>, TagFacts),
}

impl Tagging {
    /// Tags as given, else by the configured strategies. Facts that are missing are warned of once.
    pub fn new(config: &Config, explicit: &[String]) -> Result<Self> {
        if !explicit.is_empty() {
            return Ok(Self::Explicit(explicit_tags(explicit).exit(Exit::Usage)?));
        }
        let words = config.value("tag_strategy").unwrap_or_default();
        let strategies = parse_strategies(words).exit(Exit::Usage)?;
        let facts = facts::gather(config);
        // Said once for the run; `arch` alone depends on the image.
        for warning in tags(&strategies, &with_arch(&facts, "amd64")).warnings {
            eprintln!("warning: {}", printable(&warning));
        }
        Ok(Self::Strategies(strategies, facts))
    }

    /// The tags of an image with these entries, in order.
    pub fn for_image(&self, entries: &[Descriptor]) -> Vec<String> {
        match self {
            Self::Explicit(tags) => tags.clone(),
            Self::Strategies(strategies, facts) => {
                let architectures: Vec<_> = entries
                    .iter()
                    .filter_map(|entry| Some(entry.platform.as_ref()?.architecture.as_str()))
                    .collect();
                let facts = match architectures[..] {
                    [one] => with_arch(facts, one),
                    // An index of several architectures has no tag of one of them.
                    _ => TagFacts {
                        arch: None,
                        ..facts.clone()
                    },
                };
                tags(strategies, &facts).tags
            }
        }
    }
}

/// The facts with an architecture: `TARGET_ARCH`, or the image's in the spelling of Yocto.
fn with_arch(facts: &TagFacts, architecture: &str) -> TagFacts {
    let own = match architecture {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    TagFacts {
        arch: facts.arch.clone().or_else(|| Some(own.to_owned())),
        ..facts.clone()
    }
}
