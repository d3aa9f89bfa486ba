//! `vdkr image prune`: images that nothing needs.

use std::io::{BufRead as _, Write as _, stderr, stdin};

use vdkr_core::{
    channel::message::{PruneRequest, Removed, Reply, Request},
    digest::Digest,
};

use super::{
    container,
    images::{Filter, rows},
    wrong_reply,
};
use crate::{
    out, out_line,
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
    let filters = container::prune::filters(&args.filter)?;
    let question = format!(
        "{}, and what interrupted pulls left",
        match args.all {
            true => "all images that no container uses",
            false => "all images without a name",
        }
    );
    if !args.force && !args.dry_run && !interruptible(async { confirm(&question) }).await? {
        return Ok(0);
    }
    let pruned = with_session(settings, "vdkr prune", async |session| {
        images(session, settings, args.all, args.dry_run, &filters).await
    })
    .await?;
    tell(&pruned, args.dry_run);
    Ok(0)
}

/// Images that went, or would go, and the bytes that are free then.
pub type Pruned = (Vec<Removed>, u64);

/// Removes images that nothing needs.
pub async fn images(
    session: &mut Session,
    settings: &Settings,
    all: bool,
    dry_run: bool,
    filters: &[Filter],
) -> Result<Pruned> {
    let request = Request::Prune(PruneRequest {
        all,
        dry_run,
        only: only(session, filters).await?,
    });
    match session.ask(&request).await? {
        Reply::Pruned { removed, freed } => {
            if !dry_run {
                layers::settle(session, settings).await?;
            }
            Ok((removed, freed))
        }
        other => Err(wrong_reply(&other)),
    }
}

/// Prints what went, or would go.
pub fn tell((removed, freed): &Pruned, dry_run: bool) {
    let lines: Vec<_> = removed.iter().map(line).collect();
    tell_removed("Images", &lines, dry_run);
    tell_freed(*freed, dry_run);
}

fn line(step: &Removed) -> String {
    match step {
        Removed::Untagged(name) => format!("untagged: {name}"),
        Removed::Deleted(digest) => format!("deleted: {digest}"),
    }
}

/// Prints which of a kind went, or would go, with an empty line behind them; nothing when there are none.
pub fn tell_removed(kind: &str, lines: &[String], dry_run: bool) {
    if lines.is_empty() {
        return;
    }
    match dry_run {
        true => out!("{kind} that would be deleted:"),
        false => out!("Deleted {kind}:"),
    }
    for line in lines {
        out_line!("{line}");
    }
    out!("");
}

/// Prints how many bytes that makes free.
pub fn tell_freed(bytes: u64, dry_run: bool) {
    let freed = human::size(bytes);
    match dry_run {
        true => out!("Space that would be reclaimed: {freed}"),
        false => out!("Total reclaimed space: {freed}"),
    }
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
pub fn confirm(what: &str) -> Result<bool> {
    eprint!("This removes {what}. Go on? [y/N] ");
    stderr().flush()?;
    let mut answer = String::new();
    if !matches!(stdin().lock().read_line(&mut answer), Ok(length) if length > 0) {
        eprintln!();
        return Err(Error::usage("nobody answered, so nothing was removed")
            .with_hint("add --force to go on without a question"));
    }
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}
