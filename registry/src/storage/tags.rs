//! Tags of a repository.

use vdkr_core::reference;

use super::{Result, Storage, paths};
use crate::fs::Kind;

impl Storage {
    /// At most `limit` tags after `last` in the order of their bytes, and whether there are more.
    /// `None`: there is no such repository.
    pub fn tags(
        &self,
        repository: &str,
        last: &str,
        limit: usize,
    ) -> Result<Option<(Vec<String>, bool)>> {
        let Some(mut names) = self.tag_names(repository)? else {
            return Ok(None);
        };
        names.retain(|name| name.as_str() > last);
        names.sort_unstable();
        let mut page = Vec::new();
        for name in names {
            // Part of a tag's directory is there before the tag is, and after.
            let link = self.fs.stat(&paths::tag_current(repository, &name))?;
            if !link.is_some_and(|stat| stat.kind == Kind::File && stat.size > 0) {
                continue;
            }
            if page.len() == limit {
                return Ok(Some((page, true)));
            }
            page.push(name);
        }
        Ok(Some((page, false)))
    }

    /// Names that may be tags, in no order. `None`: there is no such repository.
    pub(super) fn tag_names(&self, repository: &str) -> Result<Option<Vec<String>>> {
        let mut names = Vec::new();
        let listed = self.fs.list(&paths::tags(repository), |name, kind| {
            if kind == Kind::Directory && reference::check_tag(name).is_ok() {
                names.push(name.to_owned());
            }
        });
        match listed {
            Ok(()) => Ok(Some(names)),
            Err(error) if error.is_not_found() => {
                Ok(self.has_repository(repository)?.then(Vec::new))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether anything was ever pushed to this repository.
    pub fn has_repository(&self, repository: &str) -> Result<bool> {
        for dir in [paths::manifests(repository), paths::layers(repository)] {
            if self
                .fs
                .stat(&dir)?
                .is_some_and(|stat| stat.kind == Kind::Directory)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
