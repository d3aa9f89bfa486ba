//! The names of the repositories.

use vdkr_core::reference;

use super::{Result, Storage, paths};
use crate::fs::Kind;

/// What the walk is to find.
struct Search<'s> {
    last: &'s str,
    limit: usize,
    found: Vec<String>,
    more: bool,
}

impl Storage {
    /// At most `limit` repositories after `last`, and whether there are more.
    ///
    /// The order is that of Distribution: by component, so that `a/b` comes before `a-b`. It lets the
    /// walk skip what lies before `last` and stop at the end of the page.
    pub fn catalog(&self, last: &str, limit: usize) -> Result<(Vec<String>, bool)> {
        let mut search = Search {
            last,
            limit,
            found: Vec::new(),
            more: false,
        };
        self.search("", &mut search)?;
        Ok((search.found, search.more))
    }

    fn search(&self, name: &str, search: &mut Search<'_>) -> Result<()> {
        let mut below = Vec::new();
        let mut is_repository = false;
        let dir = match name {
            "" => paths::REPOSITORIES.to_owned(),
            name => paths::repository(name),
        };
        let listed = self.fs.list(&dir, |entry, kind| {
            if kind == Kind::Directory {
                is_repository |= entry == "_manifests";
                if !entry.starts_with('_') {
                    below.push(entry.to_owned());
                }
            }
        });
        match listed {
            // Deleted since its name was read.
            Err(error) if error.is_not_found() => return Ok(()),
            listed => listed?,
        }
        if is_repository && after(name, search.last) && reference::check_repository(name).is_ok() {
            if search.found.len() == search.limit {
                search.more = true;
                return Ok(());
            }
            search.found.push(name.to_owned());
        }
        below.sort_unstable();
        for entry in below {
            let name = if name.is_empty() {
                entry
            } else {
                format!("{name}/{entry}")
            };
            if !may_hold_after(&name, search.last) {
                continue;
            }
            self.search(&name, search)?;
            if search.more {
                break;
            }
        }
        Ok(())
    }
}

/// Whether `name` comes after `last`.
fn after(name: &str, last: &str) -> bool {
    last.is_empty() || name.split('/').gt(last.split('/'))
}

/// Whether `name`, or anything beneath it, comes after `last`.
fn may_hold_after(name: &str, last: &str) -> bool {
    let beneath = last
        .strip_prefix(name)
        .is_some_and(|rest| rest.starts_with('/'));
    beneath || name == last || after(name, last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn order_is_by_component() {
        assert!(after("a-b", "a/b"));
        assert!(after("a/b", "a"));
        assert!(!after("a", "a"));
        assert!(after("a", ""));
        assert!(may_hold_after("a", "a/b"));
        assert!(!may_hold_after("a", "a-b"));
        assert!(may_hold_after("a", "a"), "a/b comes after a");
    }

    proptest! {
        #[test]
        fn nothing_is_skipped_that_lies_after(
            name in "[a-c]{1,2}(/[a-c]{1,2}){0,2}",
            last in "([a-c]{1,2}(/[a-c]{1,2}){0,2})?",
        ) {
            if after(&name, &last) {
                for (at, _) in name.match_indices('/') {
                    prop_assert!(may_hold_after(&name[..at], &last));
                }
                prop_assert!(may_hold_after(&name, &last));
            }
        }
    }
}
