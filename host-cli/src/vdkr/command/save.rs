//! `vdkr save`: images into an archive.

use std::io::{IsTerminal as _, stdout};

use vdkr_core::{
    channel::message::ImageRow,
    reference::{Reference, is_image_id},
};

use super::images::rows;
use crate::{
    progress::Mode,
    vdkr::{
        content::{
            export,
            out::Out,
            save::{Archive, Wanted},
        },
        error::{Error, Result},
        human,
        image_args::SaveArgs,
        layers::Archives,
        logins, names, registry,
        session::{Session, interruptible, with_session},
        settings::Settings,
    },
};

/// Writes the archive; nothing of it is there unless all of it is, and is what its digests say.
pub async fn run(settings: &Settings, args: &SaveArgs) -> Result<u8> {
    for name in &args.names {
        registry::check_name(name)?;
    }
    let out = match &args.output {
        Some(path) => Out::file(path)?,
        None if stdout().is_terminal() => {
            return Err(Error::usage("an archive is nothing for a terminal")
                .with_hint("name a file with -o FILE, or send it on: vdkr save NAME | ..."));
        }
        None => Out::Stdout,
    };
    let given = logins::given(settings)?;
    let is_docker = args.format.starts_with("docker");
    let is_told = settings.global.progress != Mode::None;
    with_session(settings, "vdkr save", async |session| {
        interruptible(async {
            let mut archive = Archive::new(out, is_docker);
            for image in wanted(session, settings, &args.names).await? {
                let mut told = |digest: &vdkr_core::digest::Digest, size| {
                    if is_told {
                        eprintln!("{}: saved ({})", digest.short(), human::size(size));
                    }
                };
                let kept = Archives::of(session, settings, &given, &image.image).await?;
                archive.add(session, &image, &kept, &mut told).await?;
            }
            archive.finish().await
        })
        .await
    })
    .await?;
    Ok(0)
}

/// The images, each once with all of the names that were asked for. As with docker, a repository
/// alone stands for all of its tags.
async fn wanted(
    session: &mut Session,
    settings: &Settings,
    names: &[String],
) -> Result<Vec<Wanted>> {
    let known = rows(session).await?;
    let mut wanted: Vec<Wanted> = Vec::new();
    for name in names {
        let asked = match tags(&known, name) {
            tags if tags.is_empty() => vec![names::for_agent(session, settings, name).await?],
            tags => tags,
        };
        for image in export(session, &asked).await? {
            let name = image.name.clone();
            let at = wanted.iter().position(|other| other.image.id == image.id);
            let at = at.unwrap_or_else(|| {
                wanted.push(Wanted {
                    image,
                    names: Vec::new(),
                });
                wanted.len() - 1
            });
            let names = &mut wanted[at].names;
            names.extend(name.filter(|name| !names.contains(name)));
        }
    }
    Ok(wanted)
}

/// All tags of a repository that the user named without one.
fn tags(known: &[ImageRow], name: &str) -> Vec<String> {
    let Ok(reference) = Reference::parse(name) else {
        return Vec::new();
    };
    if is_image_id(name) || reference.tag().is_some() || reference.digest().is_some() {
        return Vec::new();
    }
    let is_meant = |row: &ImageRow| match Reference::parse(&row.name) {
        Ok(stored) => stored.without_tag() == reference,
        Err(_) => false,
    };
    let meant = known.iter().filter(|row| is_meant(row));
    meant
        .filter_map(|row| Some(format!("{}:{}", row.name, row.tag.as_ref()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_stands_for_its_tags() {
        let row = |name: &str, tag: Option<&str>| ImageRow {
            name: name.into(),
            tag: tag.map(Into::into),
            ..ImageRow::default()
        };
        let known = [
            row("alpine", Some("1")),
            row("alpine", Some("2")),
            row("alpine", None),
            row("h:5000/alpine", Some("3")),
        ];
        assert_eq!(tags(&known, "alpine"), ["alpine:1", "alpine:2"]);
        assert_eq!(
            tags(&known, "docker.io/library/alpine"),
            ["alpine:1", "alpine:2"]
        );
        assert_eq!(tags(&known, "h:5000/alpine"), ["h:5000/alpine:3"]);
        for alone in ["alpine:1", "other", "0123456789ab"] {
            assert_eq!(tags(&known, alone), [""; 0], "{alone}");
        }
    }
}
