//! `vdkr system df`: the room that images take.

use serde_json::{Map, Value};
use vdkr_core::channel::message::{Reply, Request, Usage};

use super::wrong_reply;
use crate::vdkr::{
    error::Result, format::Format, human, image_args::DfArgs, session::with_session,
    settings::Settings,
};

const COLUMNS: [(&str, &str); 5] = [
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

/// Shows what the machine's store takes, and what of it could go.
pub async fn run(settings: &Settings, args: &DfArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    let reply = with_session(settings, "vdkr system df", async |session| {
        session.ask(&Request::Usage).await
    })
    .await?;
    let Reply::Usage(usage) = reply else {
        return Err(wrong_reply(&reply));
    };
    crate::output::write(format_args!("{}", format.rows(&rows(&usage), &COLUMNS)?));
    if matches!(format, Format::Table) {
        let used = usage.state_total.saturating_sub(usage.state_available);
        eprintln!(
            "The machine's storage has {}, of which {} are used",
            human::size(usage.state_total),
            human::size(used)
        );
    }
    Ok(0)
}

fn rows(usage: &Usage) -> Vec<Map<String, Value>> {
    let share = |part: u64, whole: u64| {
        let text = human::size(part);
        match part.saturating_mul(100).checked_div(whole) {
            Some(percent) => format!("{text} ({percent}%)"),
            None => text,
        }
    };
    let row = |kind: &str, total: String, active: String, size: u64, reclaimable: u64| {
        let fields = [
            ("Type", kind.to_owned()),
            ("TotalCount", total),
            ("Active", active),
            ("Size", human::size(size)),
            ("Reclaimable", share(reclaimable, size)),
        ];
        let fields = fields.into_iter();
        fields
            .map(|(name, text)| (name.to_owned(), text.into()))
            .collect()
    };
    let spare = usage.spare_size;
    vec![
        row(
            "Images",
            usage.images.to_string(),
            usage.images_active.to_string(),
            usage.layers_size,
            usage.layers_reclaimable,
        ),
        row(
            "Interrupted pulls",
            "-".to_owned(),
            "0".to_owned(),
            spare,
            spare,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let usage = Usage {
            images: 2,
            images_active: 1,
            layers_size: 1000,
            layers_reclaimable: 250,
            ..Usage::default()
        };
        let table = Format::Table.rows(&rows(&usage), &COLUMNS).unwrap();
        assert_eq!(
            table,
            "TYPE                TOTAL   ACTIVE   SIZE   RECLAIMABLE\n\
             Images              2       1        1kB    250B (25%)\n\
             Interrupted pulls   -       0        0B     0B\n"
        );
    }
}
