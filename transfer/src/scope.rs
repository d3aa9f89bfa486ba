//! The scopes of a request as one value: what it needs, and the key of its token.

use std::collections::BTreeMap;
use std::fmt;

use vdkr_core::distribution::Scope;

/// A set of scopes in one order, so that equal sets are equal keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Scopes(Vec<Scope>);

impl Scopes {
    /// Rights within one repository.
    pub(crate) fn repository(name: &str, actions: &[&str]) -> Self {
        Self(vec![Scope::repository(name, actions)])
    }

    /// The list of repositories.
    pub(crate) fn catalog() -> Self {
        Self(vec![Scope::catalog()])
    }

    /// Nothing in particular: only to be let in.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// Reads scopes with spaces between, as a challenge has them; what is no scope is left out.
    pub(crate) fn parse(text: &str) -> Self {
        const MANY: usize = 32;
        let scopes = text.split_ascii_whitespace().take(MANY);
        Self::collect(scopes.filter_map(Scope::parse))
    }

    /// Both.
    pub(crate) fn union(&self, other: &Self) -> Self {
        Self::collect(self.0.iter().chain(&other.0).cloned())
    }

    /// Actions on one resource come together.
    fn collect(scopes: impl Iterator<Item = Scope>) -> Self {
        let mut by_resource: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for scope in scopes {
            let actions = by_resource.entry((scope.kind, scope.name)).or_default();
            actions.extend(scope.actions);
        }
        let joined = |((kind, name), mut actions): (_, Vec<String>)| {
            actions.sort_unstable();
            actions.dedup();
            Scope {
                kind,
                name,
                actions,
            }
        };
        Self(by_resource.into_iter().map(joined).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, scope) in self.0.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            write!(f, "{space}{scope}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_sets_are_equal() {
        let a = Scopes::parse("repository:a/b:push,pull registry:catalog:*");
        let b = Scopes::catalog().union(&Scopes::repository("a/b", &["pull"]));
        let b = b.union(&Scopes::repository("a/b", &["push", "pull"]));
        assert_eq!(a, b);
        assert_eq!(a.to_string(), "registry:catalog:* repository:a/b:pull,push");
        assert_eq!(Scopes::none().to_string(), "");
    }

    proptest! {
        #[test]
        fn parse_is_stable(text in "[a-z:, /*]{0,60}") {
            let once = Scopes::parse(&text);
            prop_assert_eq!(Scopes::parse(&once.to_string()), once);
        }

        #[test]
        fn union_is_symmetric(a in "[a-c:, ]{0,20}", b in "[a-c:, ]{0,20}") {
            let (a, b) = (Scopes::parse(&a), Scopes::parse(&b));
            prop_assert_eq!(a.union(&b), b.union(&a));
        }
    }
}
