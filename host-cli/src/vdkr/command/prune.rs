//! `vdkr image prune` and `vdkr system prune`: images that nothing needs.

use std::io::{BufRead as _, Write as _, stderr, stdin};

use vdkr_core::{
    channel::message::{PruneRequest, Removed, Reply, Request},
    digest::Digest,
};

use super::{
    images::{Filter, rows},
    wrong_reply,
};
use crate::{
    out,
    vdkr::{
        error::{Error, Result},
        human,
        image_args::PruneArgs,
        layers,
        session::{Session, interruptible, with_session},
        settings::Settings,
    },
};

/// Asks unless told not to, and removes.
pub async fn run(settings: &Settings, args: &PruneArgs) -> Result<u8> {
    let filters = args.filter.iter().map(|text| Filter::read(text));
    let filters = filters.collect::<Result<Vec<_>>>()?;
    for (filter, text) in filters.iter().zip(&args.filter) {
        if !matches!(filter, Filter::Label(..) | Filter::Until(_)) {
            return Err(Error::usage(format!(
                "--filter {text:?}: prune knows label and until"
            )));
        }
    }
    if !args.force && !args.dry_run && !interruptible(async { confirm(args.all) }).await? {
        return Ok(0);
    }
    let (removed, freed) = with_session(settings, "vdkr prune", async |session| {
        let request = Request::Prune(PruneRequest {
            all: args.all,
            dry_run: args.dry_run,
            only: only(session, &filters).await?,
        });
        match session.ask(&request).await? {
            Reply::Pruned { removed, freed } => {
                if !args.dry_run {
                    layers::settle(session, settings).await?;
                }
                Ok((removed, freed))
            }
            other => Err(wrong_reply(&other)),
        }
    })
    .await?;
    if !removed.is_empty() {
        out!(
            "{}",
            if args.dry_run {
                "Would be deleted:"
            } else {
                "Deleted Images:"
            }
        );
    }
    for step in &removed {
        match step {
            Removed::Untagged(name) => out!("untagged: {name}"),
            Removed::Deleted(digest) => out!("deleted: {digest}"),
        }
    }
    let freed = human::size(freed);
    match args.dry_run {
        true => out!("Space that would be reclaimed: {freed}"),
        false => out!("Total reclaimed space: {freed}"),
    }
    Ok(0)
}

/// The images that fit the filters; no list where there are none.
async fn only(session: &mut Session, filters: &[Filter]) -> Result<Option<Vec<Digest>>> {
    if filters.is_empty() {
        return Ok(None);
    }
    let mut fitting: Vec<Digest> = Vec::new();
    for row in rows(session).await? {
        if filters.iter().all(|filter| filter.fits(&row, None)) {
            let id = Digest::parse(&row.id);
            fitting.extend(id.ok().filter(|id| !fitting.contains(id)));
        }
    }
    Ok(Some(fitting))
}

/// An end of input is no answer: nothing happens, and the error says how to go on.
fn confirm(all: bool) -> Result<bool> {
    let what = match all {
        true => "all images that no container uses",
        false => "all images without a name",
    };
    eprint!("This removes {what}, and what interrupted pulls left. Go on? [y/N] ");
    stderr().flush()?;
    let mut answer = String::new();
    if !matches!(stdin().lock().read_line(&mut answer), Ok(length) if length > 0) {
        eprintln!();
        return Err(Error::usage("nobody answered, so nothing was removed")
            .with_hint("add --force to go on without a question"));
    }
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}
