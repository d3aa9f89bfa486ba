//! The certificates of a registry in secure mode: the names that its clients use, and the time left.

use anyhow::Result;
use vdkr_core::certificate::{AltName, Validity, missing_names};

use super::Check;
use crate::registry_cli::config::Config;
use crate::registry_cli::secure::{self, Mode};

pub(super) fn checks(config: &Config) -> Result<Vec<Check>> {
    if !Mode::in_use(config)?.is_secure() || !config.registry()?.host().is_loopback() {
        return Ok(Vec::new());
    }
    let pki = secure::pki(config);
    if !pki.server_certificate().exists() {
        return Ok(vec![Check::warn(
            "certificate",
            format!("{} is not there yet", pki.server_certificate().display()),
            "container-registry start makes it",
        )]);
    }
    let (ca, server) = match pki.show() {
        Ok(both) => both,
        Err(error) => {
            return Ok(vec![Check::fail(
                "certificate",
                error.to_string(),
                "container-registry pki renew makes it anew",
            )]);
        }
    };
    let (wanted, now) = (secure::wanted(config)?.names, secure::now());
    Ok(vec![
        names(&server.names, &wanted),
        life(
            "certificate life",
            server.validity,
            now,
            "restart the server, which renews it: container-registry pki renew",
        ),
        life(
            "ca life",
            ca.validity,
            now,
            "container-registry pki renew --ca, then give the new one to all clients",
        ),
    ])
}

fn names(present: &[AltName], wanted: &[AltName]) -> Check {
    let words = |names: &[&AltName]| {
        let words: Vec<_> = names.iter().map(ToString::to_string).collect();
        words.join(", ")
    };
    let missing = missing_names(present, wanted);
    if missing.is_empty() {
        let present: Vec<_> = present.iter().collect();
        return Check::ok("certificate", format!("is for {}", words(&present)));
    }
    Check::warn(
        "certificate",
        format!("is not for {}", words(&missing)),
        "container-registry pki renew, or restart the server: it is made anew for the same CA",
    )
}

fn life(subject: &'static str, validity: Validity, now: i64, advice: &str) -> Check {
    if !validity.holds(now) {
        let word = if now < validity.not_before {
            "is not valid yet: is the clock right?"
        } else {
            "has ended"
        };
        return Check::fail(subject, word, advice);
    }
    let found = format!("{} days left", validity.days_left(now));
    if validity.renewal_due(now) {
        return Check::warn(subject, found, advice);
    }
    Check::ok(subject, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry_cli::doctor::Verdict;

    #[test]
    fn names_that_are_missing_are_told() {
        let list = |text: &str| AltName::parse_list(text).unwrap();
        let present = list("localhost,10.0.2.2");
        assert_eq!(names(&present, &present).verdict, Verdict::Ok);
        let check = names(&present, &list("localhost,board.example"));
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.found.contains("board.example"), "{}", check.found);
        assert!(!check.found.contains("localhost"), "{}", check.found);
    }

    #[test]
    fn the_time_left_is_told() {
        const DAY: i64 = 86_400;
        let validity = Validity {
            not_before: 0,
            not_after: 365 * DAY,
        };
        let at = |day: i64| life("certificate life", validity, day * DAY, "").verdict;
        assert_eq!(at(1), Verdict::Ok);
        assert_eq!(at(360), Verdict::Warn);
        assert_eq!(at(366), Verdict::Fail);
        assert_eq!(at(-1), Verdict::Fail);
    }
}
