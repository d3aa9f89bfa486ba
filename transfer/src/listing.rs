//! Lists: tags and repositories (OCI distribution specification, "Listing Tags"; distribution's
//! catalog). Pages are followed without limit, but only within the registry.

use std::collections::HashSet;

use bytes::Bytes;
use reqwest::header::{HeaderValue, LINK};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use vdkr_core::distribution::next_link;
use vdkr_core::reference::{Host, check_repository, check_tag};

use crate::client::{Client, Places, Repository, join};
use crate::error::TransferError;
use crate::guard::{redacted, same_origin};
use crate::json;
use crate::request::Request;
use crate::scope::Scopes;

/// How many names are asked for at once.
const PAGE: u32 = 1000;
/// Largest page, bytes: some registries do not page and send everything.
const MAX_PAGE: u64 = 32 * 1024 * 1024;
/// Longest `filter` and the like that a page's URL may grow to, bytes.
const MAX_NEXT: usize = 16 * 1024;

#[derive(Deserialize)]
struct TagPage {
    /// Go writes `null` for an empty list.
    #[serde(default)]
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct CatalogPage {
    #[serde(default)]
    repositories: Option<Vec<String>>,
}

impl Client {
    /// All tags of a repository, in the registry's order.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, TransferError> {
        let places = self.places(repository.host())?;
        let endpoint = places.registry();
        let path = format!("tags/list?n={PAGE}");
        let request = self
            .request(endpoint, Method::GET, repository, &path, &["pull"])
            .await?;
        let mut tags = Vec::new();
        self.pages(&places, request, "repository", |page| {
            let page: TagPage = json::object(page)?;
            let found = page.tags.unwrap_or_default();
            tags.extend(found.into_iter().filter(|tag| check_tag(tag).is_ok()));
            Ok(())
        })
        .await?;
        Ok(tags)
    }

    /// All repositories of a registry (`GET /v2/_catalog`). Many public registries refuse this.
    pub async fn catalog(&self, host: &Host) -> Result<Vec<String>, TransferError> {
        let places = self.places(host)?;
        let base = self.sender().base(places.registry()).await?.url;
        let url = join(&base, &format!("_catalog?n={PAGE}"))?;
        let request = Request::new(Method::GET, url, Scopes::catalog());
        let mut names = Vec::new();
        self.pages(&places, request, "catalog", |page| {
            let page: CatalogPage = json::object(page)?;
            let found = page.repositories.unwrap_or_default();
            names.extend(
                found
                    .into_iter()
                    .filter(|name| check_repository(name).is_ok()),
            );
            Ok(())
        })
        .await?;
        Ok(names)
    }

    /// Follows pages from the first on.
    pub(crate) async fn pages(
        &self,
        places: &Places,
        mut request: Request,
        what: &str,
        mut take: impl FnMut(&Bytes) -> Result<(), serde_json::Error>,
    ) -> Result<(), TransferError> {
        let endpoint = places.registry();
        let mut seen = HashSet::new();
        loop {
            let answer = self.call(endpoint, &request).await?;
            if answer.status() != StatusCode::OK {
                return Err(self.fail(endpoint, &request, answer, what).await);
            }
            let from = answer.url().clone();
            let next = next_page(answer.headers().get_all(LINK).iter(), &from)?;
            let page = answer.body(what, MAX_PAGE).await?;
            take(&page).map_err(|error| TransferError::Protocol {
                url: redacted(&from),
                reason: format!("its list cannot be read: {error}"),
            })?;
            seen.insert(request.url);
            match next {
                None => return Ok(()),
                Some(next) if seen.contains(&next) => {
                    return Err(TransferError::Protocol {
                        url: redacted(&from),
                        reason: "its pages go round in a circle".to_owned(),
                    });
                }
                Some(next) => request.url = next,
            }
        }
    }
}

/// The next page, if there is one: a place in the same registry.
fn next_page<'a>(
    headers: impl Iterator<Item = &'a HeaderValue>,
    from: &Url,
) -> Result<Option<Url>, TransferError> {
    let refuse = |target: &str, reason: &str| {
        Err(TransferError::UnsafeTarget {
            origin: redacted(from),
            target: crate::error::printable(target, 100),
            reason: reason.to_owned(),
        })
    };
    for header in headers {
        let Some(target) = header.to_str().ok().and_then(next_link) else {
            continue;
        };
        let Ok(next) = from.join(target) else {
            return refuse(target, "it is not a URL");
        };
        if !same_origin(&next, from) || !next.username().is_empty() || next.password().is_some() {
            return refuse(target, "a list's next page is in the same registry");
        }
        if next.as_str().len() > MAX_NEXT {
            return refuse(target, "it is unreasonably long");
        }
        return Ok(Some(next));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn next(link: &str) -> Result<Option<String>, TransferError> {
        let from = Url::parse("https://r.example/v2/a/tags/list?n=2").unwrap();
        let header = HeaderValue::from_str(link).unwrap();
        Ok(next_page(std::iter::once(&header), &from)?.map(String::from))
    }

    #[test]
    fn the_next_page_is_in_the_same_registry() {
        let good = Some("https://r.example/v2/a/tags/list?last=b&n=2".to_owned());
        for link in [
            r#"</v2/a/tags/list?last=b&n=2>; rel="next""#,
            r#"<?last=b&n=2>; rel="next""#,
            r#"<https://r.example/v2/a/tags/list?last=b&n=2>; rel="next""#,
        ] {
            assert_eq!(next(link).unwrap(), good, "{link}");
        }
        for link in [
            r#"<https://evil.example/v2/a/tags/list>; rel="next""#,
            r#"<http://r.example/v2/a/tags/list>; rel="next""#,
            r#"<https://r.example:444/v2/a/tags/list>; rel="next""#,
            r#"<//evil.example/>; rel="next""#,
            r#"<https://u:p@r.example/>; rel="next""#,
            r#"<file:///etc/passwd>; rel="next""#,
        ] {
            assert!(next(link).is_err(), "{link}");
        }
        assert_eq!(next(r#"</x>; rel="prev""#).unwrap(), None);
    }

    proptest! {
        #[test]
        fn never_leaves_the_registry(link in "[ -~]{0,80}") {
            if let Ok(Some(url)) = next(&link) {
                prop_assert!(url.starts_with("https://r.example/"));
            }
        }
    }
}
