//! `vdkr history`: the steps by which an image was made.

use jiff::Timestamp;
use serde_json::{Map, Value};
use vdkr_core::{channel::message::ExportedImage, manifest::ImageConfig};

use super::images::{created, shorten};
use crate::{
    exit::Exit,
    vdkr::{
        content,
        error::{Error, Result},
        format::Format,
        human,
        image_args::HistoryArgs,
        names,
        session::with_session,
        settings::Settings,
    },
};

/// So much of a command is shown.
const SHORT: usize = 45;
const COLUMNS: [(&str, &str); 5] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// Lists the steps, the last one first.
pub async fn run(settings: &Settings, args: &HistoryArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    let (image, config) = with_session(settings, "vdkr history", async |session| {
        let names = [names::for_agent(session, settings, &args.name).await?];
        let images = content::export(session, &names).await?;
        let Some(image) = images.into_iter().next() else {
            return Err(Error::new(Exit::NotFound, "no image"));
        };
        let raw = content::document(session, &image.id, image.config_size).await?;
        let config = ImageConfig::parse(&raw)
            .map_err(|error| Error::new(Exit::Failed, format!("{}: {error}", image.id)))?;
        Ok((image, config))
    })
    .await?;
    let rows = rows(&image, &config, args, Timestamp::now());
    if args.quiet {
        for row in &rows {
            crate::out!("{}", row["ID"].as_str().unwrap_or_default());
        }
        return Ok(0);
    }
    let columns = match args.human {
        true => COLUMNS,
        false => COLUMNS.map(|column| match column.0 {
            "CreatedSince" => ("CreatedAt", "CREATED AT"),
            _ => column,
        }),
    };
    crate::output::write(format_args!("{}", format.rows(&rows, &columns)?));
    Ok(0)
}

fn rows(
    image: &ExportedImage,
    config: &ImageConfig,
    args: &HistoryArgs,
    now: Timestamp,
) -> Vec<Map<String, Value>> {
    let mut sizes = image.layers.iter().map(|layer| layer.size);
    let mut rows = Vec::new();
    for step in &config.history {
        let size = if step.empty_layer {
            0
        } else {
            sizes.next().unwrap_or(0)
        };
        let by = step.created_by.as_deref().unwrap_or_default();
        // One line is one line, whatever the maker wrote.
        let by: String = by
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let mut by = by.trim().to_owned();
        if !args.no_trunc && by.chars().count() > SHORT {
            by = by.chars().take(SHORT - 1).collect::<String>() + "…";
        }
        let size = match args.human {
            true => human::size(size),
            false => size.to_string(),
        };
        rows.push((step.created.clone(), by, size, step.comment.clone()));
    }
    // Layers that nobody told anything about.
    for size in sizes {
        rows.push((
            config.created.clone(),
            String::new(),
            human::size(size),
            None,
        ));
    }
    let id = shorten(image.id.as_str(), args.no_trunc);
    let count = rows.len();
    let rows = rows.into_iter().enumerate().rev();
    rows.map(|(at, (time, by, size, comment))| {
        let id = if at + 1 == count {
            id.as_str()
        } else {
            "<missing>"
        };
        let comment: String = comment.unwrap_or_default();
        [
            ("ID", id.to_owned()),
            ("CreatedSince", created(time.as_deref(), now)),
            ("CreatedAt", time.unwrap_or_else(|| "N/A".to_owned())),
            ("CreatedBy", by),
            ("Size", size),
            (
                "Comment",
                comment.chars().filter(|c| !c.is_control()).collect(),
            ),
        ]
        .into_iter()
        .map(|(name, text)| (name.to_owned(), text.into()))
        .collect()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use vdkr_core::{
        channel::message::ExportedLayer,
        digest::Digest,
        manifest::{Descriptor, History},
    };

    use super::*;

    #[test]
    fn steps_with_their_layers() {
        let layer = |size| ExportedLayer {
            diff_id: Digest::sha256(b"x"),
            size,
            plain: None,
        };
        let image = ExportedImage {
            id: Digest::sha256(b"id"),
            config_size: 1,
            manifest: Descriptor::new("x", Digest::sha256(b"m"), 1),
            name: None,
            names: vec![],
            digests: vec![],
            layers: vec![layer(1000), layer(2_000_000)],
        };
        let step = |by: &str, empty_layer| History {
            created: Some("2026-01-01T00:00:00Z".into()),
            created_by: Some(by.into()),
            empty_layer,
            ..History::default()
        };
        let config = ImageConfig {
            history: vec![
                step("ADD rootfs\n", false),
                step("ENV a=b", true),
                step(&"x".repeat(60), false),
            ],
            ..ImageConfig::default()
        };
        let args = HistoryArgs {
            name: String::new(),
            format: None,
            human: true,
            no_trunc: false,
            quiet: false,
        };
        let now = "2026-01-03T00:00:00Z".parse().unwrap();
        let table = Format::Table.rows(&rows(&image, &config, &args, now), &COLUMNS);
        let table = table.unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[1].contains("2MB") && lines[1].contains("xxx…"),
            "{table}"
        );
        assert!(
            lines[2].starts_with("<missing>") && lines[2].contains("0B"),
            "{table}"
        );
        assert!(
            lines[3].contains("ADD rootfs  ") && lines[3].contains("1kB"),
            "{table}"
        );
        assert!(lines[3].contains("2 days ago"), "{table}");
    }
}
