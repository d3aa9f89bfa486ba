//! Requests that a web browser makes for a page.
//!
//! Any page may make the browser of its reader send requests to a registry of the reader's machine or
//! network. Such a page cannot read the answers, but a `POST` that deletes needs none. Browsers say
//! where a request comes from; the clients of registries are no browsers and say nothing.

use alloc::string::String;

use crate::reference::Host;

/// What a request says of the page that it was made for: the values of its headers, where it has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page<'a> {
    /// `Sec-Fetch-Site`.
    pub site: Option<&'a str>,
    /// `Origin`.
    pub origin: Option<&'a str>,
    /// `Host`: what the page's reader, or the page, calls this registry.
    pub host: Option<&'a str>,
}

/// Why a request that would change something is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Somebody else's page made the browser send it.
    #[error("a web page of another site may not change this registry")]
    OtherSite,
    /// The page calls this registry by a name that is not known to be one of its names: a foreign name
    /// can be made to lead to any address (DNS rebinding).
    #[error(
        "a web page may not change this registry under the name {0:?}; \
         use its address, localhost, or a name that it was told to have"
    )]
    OtherName(String),
}

/// Whether a request that would change something may come from where it comes from.
///
/// `names` are names of this registry beside addresses, `localhost` and names of one part (nobody
/// outside can have those); `None` leaves the name unchecked, for where a page of another name gets
/// nowhere anyway: without the certificate for it, or without a password.
pub fn check_page(page: Page<'_>, names: Option<&[String]>) -> Result<(), PageError> {
    let Page { site, origin, host } = page;
    let own = |name: &str| {
        let known = |known: &String| known.eq_ignore_ascii_case(name);
        names.is_some_and(|names| names.iter().any(known))
    };
    match (site, origin) {
        (None, None) => return Ok(()),
        (Some(site), _) if site.eq_ignore_ascii_case("same-origin") => {}
        (Some(site), None) if site.eq_ignore_ascii_case("none") => {}
        (None, Some(origin)) => {
            let from = origin.split_once("://").map(|(_, authority)| authority);
            let same = from
                .zip(host)
                .is_some_and(|(a, b)| a.eq_ignore_ascii_case(b));
            // A proxy may call us otherwise than the page does.
            if !same && !from.and_then(name).is_some_and(|from| own(from.name())) {
                return Err(PageError::OtherSite);
            }
        }
        _ => return Err(PageError::OtherSite),
    }
    let Some(host) = host.and_then(name) else {
        return Err(PageError::OtherName(String::new()));
    };
    if names.is_none() || is_private(&host) || own(host.name()) {
        Ok(())
    } else {
        Err(PageError::OtherName(host.name().into()))
    }
}

fn name(authority: &str) -> Option<Host> {
    Host::parse(authority).ok()
}

/// Whether nobody can make this name lead to where it does not lead already.
fn is_private(host: &Host) -> bool {
    let name = host.name();
    let last = name.rsplit('.').next().unwrap_or_default();
    host.address().is_some() || last.eq_ignore_ascii_case("localhost") || !name.contains('.')
}

#[cfg(test)]
mod tests {
    use alloc::{borrow::ToOwned as _, vec};

    use proptest::prelude::*;

    use super::*;

    fn page<'a>(site: &'a str, origin: &'a str, host: &'a str) -> Page<'a> {
        let given = |value: &'a str| (!value.is_empty()).then_some(value);
        Page {
            site: given(site),
            origin: given(origin),
            host: given(host),
        }
    }

    #[test]
    fn clients_that_are_no_browsers_pass_under_any_name() {
        for host in [
            "",
            "10.0.2.2:5000",
            "evil.example",
            "build.lab.example:5000",
            "x y",
        ] {
            assert_eq!(check_page(page("", "", host), Some(&[])), Ok(()), "{host}");
            assert_eq!(check_page(page("", "", host), None), Ok(()), "{host}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        for (site, origin, host) in [
            ("cross-site", "http://evil.example", "localhost:5000"),
            ("cross-site", "", "localhost:5000"),
            ("cross-site", "http://localhost:5000", "localhost:5000"),
            ("same-site", "http://localhost:3000", "localhost:5000"),
            ("", "http://evil.example", "localhost:5000"),
            ("", "http://localhost:3000", "localhost:5000"),
            ("", "http://localhost", "localhost:5000"),
            ("", "null", "localhost:5000"),
            ("none", "http://evil.example", "localhost:5000"),
            ("nonsense", "", "localhost:5000"),
            ("", "localhost:5000", "localhost:5000"),
            ("", "http://localhost:5000", ""),
        ] {
            for names in [None, Some(&["reg.example".to_owned()][..])] {
                let refused = check_page(page(site, origin, host), names);
                assert_eq!(refused, Err(PageError::OtherSite), "{site} {origin} {host}");
            }
        }
    }

    #[test]
    fn the_registrys_own_pages_pass() {
        let names = vec!["Reg.example".to_owned()];
        for host in [
            "localhost:5000",
            "127.0.0.1:5000",
            "[::1]:5000",
            "10.0.2.2:5000",
            "buildhost:5000",
            "page.localhost",
            "reg.example:5000",
        ] {
            let origin = alloc::format!("http://{host}");
            for site in ["", "same-origin"] {
                let own = page(site, &origin, host);
                assert_eq!(check_page(own, Some(&names)), Ok(()), "{host}");
            }
        }
        let proxied = page("", "https://reg.example", "127.0.0.1:5000");
        assert_eq!(check_page(proxied, Some(&names)), Ok(()));
        assert_eq!(check_page(proxied, Some(&[])), Err(PageError::OtherSite));
        let typed = page("none", "", "localhost:5000");
        assert_eq!(check_page(typed, Some(&names)), Ok(()));
    }

    #[test]
    fn a_foreign_name_for_the_registry_is_refused_where_it_matters() {
        let rebound = page("", "http://evil.example:5000", "evil.example:5000");
        let refused = PageError::OtherName("evil.example".into());
        assert_eq!(check_page(rebound, Some(&[])), Err(refused.clone()));
        let rebound = Page {
            site: Some("same-origin"),
            ..rebound
        };
        assert_eq!(check_page(rebound, Some(&[])), Err(refused));
        assert_eq!(
            check_page(rebound, None),
            Ok(()),
            "with a certificate or a password"
        );
        let nameless = page("same-origin", "", "");
        assert!(matches!(
            check_page(nameless, None),
            Err(PageError::OtherName(_))
        ));
    }

    proptest! {
        #[test]
        fn what_a_browser_calls_cross_site_never_passes(
            origin in "(null|https?://)?[a-z.:0-9]{0,20}",
            host in "[a-z.:0-9]{0,20}",
        ) {
            prop_assert!(check_page(page("cross-site", &origin, &host), None).is_err());
        }

        #[test]
        fn any_headers_are_read(site in ".{0,12}", origin in ".{0,30}", host in ".{0,30}") {
            let _ = check_page(page(&site, &origin, &host), Some(&[]));
        }
    }
}
