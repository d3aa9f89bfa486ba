//! `vdkr container prune`: containers that do not run.

use jiff::Timestamp;
use vdkr_core::channel::message::{ContainerRequest, ContainerRow, ContainerState};

use super::{ask, list};
use crate::vdkr::{
    command::{
        images::Filter,
        prune::{confirm, tell_removed},
    },
    container_args::ContainerPruneArgs,
    error::{Error, Result},
    granted,
    session::{Session, interruptible, with_session},
    settings::Settings,
    words::say,
};

/// Asks unless told not to, and removes.
pub async fn run(settings: &Settings, args: &ContainerPruneArgs) -> Result<u8> {
    let filters = filters(&args.filter)?;
    let question = "all containers that do not run";
    if !args.force && !interruptible(async { confirm(question) }).await? {
        return Ok(0);
    }
    let removed = with_session(settings, "vdkr container prune", async |session| {
        remove(session, settings, &filters, false).await
    })
    .await?;
    tell_removed("Containers", &removed, false);
    Ok(0)
}

/// The filters that containers can be told apart by.
pub fn filters(texts: &[String]) -> Result<Vec<Filter>> {
    let read = texts.iter().map(|text| match Filter::read(text) {
        Ok(filter @ (Filter::Label(..) | Filter::Until(_))) => Ok(filter),
        Ok(_) => Err(Error::usage(format!(
            "--filter {text:?}: prune knows label and until"
        ))),
        Err(error) => Err(error),
    });
    read.collect()
}

/// Removes those that do not run and fit; the ids of those that went. With `dry_run` they stay.
pub async fn remove(
    session: &mut Session,
    settings: &Settings,
    filters: &[Filter],
    dry_run: bool,
) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for row in list(session).await? {
        if !is_over(row.state) || !filters.iter().all(|filter| fits(filter, &row)) {
            continue;
        }
        let request = ContainerRequest::Remove {
            name: row.id.clone(),
            force: false,
            volumes: false,
        };
        if !dry_run && let Err(error) = ask(session, request).await {
            // It may have been started meanwhile, or be gone.
            say(&error.to_string());
            continue;
        }
        removed.push(row.id);
    }
    if !dry_run {
        granted::forget_gone(session, settings).await?;
    }
    Ok(removed)
}

fn is_over(state: ContainerState) -> bool {
    matches!(state, ContainerState::Created | ContainerState::Exited)
}

fn fits(filter: &Filter, row: &ContainerRow) -> bool {
    match filter {
        Filter::Label(name, value, wanted) => {
            let found = row.labels.get(name);
            let has = found.is_some_and(|found| value.as_ref().is_none_or(|v| v == found));
            has == *wanted
        }
        Filter::Until(time) => {
            let made = i64::try_from(row.created_ms).unwrap_or(i64::MAX);
            Timestamp::from_millisecond(made).is_ok_and(|made| made < *time)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes() {
        let row = ContainerRow {
            created_ms: 1_000_000_000_000,
            labels: [("a".to_owned(), "1".to_owned())].into(),
            ..ContainerRow::default()
        };
        for (text, expected) in [
            ("label=a", true),
            ("label=a=1", true),
            ("label=a=2", false),
            ("label!=a", false),
            ("label!=b", true),
            ("until=24h", true),
            ("until=2001-01-01T00:00:00Z", false),
        ] {
            let filters = filters(&[text.to_owned()]).unwrap();
            assert_eq!(fits(&filters[0], &row), expected, "{text}");
        }
        for bad in ["reference=x", "label", "colour=red"] {
            assert!(filters(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert!(is_over(ContainerState::Created) && !is_over(ContainerState::Restarting));
    }
}
