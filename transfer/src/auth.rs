//! Who is shown which credential: challenges are answered with Basic, or with a token of the Bearer
//! flow (distribution, `auth/token`), and credentials go to no place that does not belong to the
//! registry they are for.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use reqwest::Url;
use reqwest::header::WWW_AUTHENTICATE;
use tokio::sync::OnceCell;
use vdkr_core::credentials::Credential;
use vdkr_core::distribution::parse_challenges;
use vdkr_core::reference::Host;

use crate::config::{ClientConfig, Trust};
use crate::endpoint::Base;
use crate::error::TransferError;
use crate::guard::{follow, names_inward};
use crate::http::{Authorization, Http, Lane, Response};
use crate::scope::Scopes;
use crate::token::{Tokens, Wanted, lock};

/// Registries whose token server has another name. (A parent domain needs no entry.)
const PAIRS: &[(&str, &str)] = &[("docker.io", "auth.docker.io")];

/// A request that is about to be made, or was refused.
pub(crate) struct Visit<'a> {
    pub(crate) http: &'a Http,
    pub(crate) tokens: &'a Tokens,
    pub(crate) host: &'a Host,
    pub(crate) base: &'a Base,
    pub(crate) scopes: &'a Scopes,
}

/// What is known about how one endpoint wants to be asked.
#[derive(Default)]
pub(crate) struct Gate {
    demand: Mutex<Option<Demand>>,
    credential: OnceCell<Credential>,
    /// Scopes that turned out to need more than was thought.
    wider: Mutex<HashMap<Scopes, Scopes>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Demand {
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
        /// Whether the realm belongs to the registry, so that credentials may go there.
        trusted: bool,
    },
}

impl Gate {
    /// Learns from an answer to a request that showed nothing.
    pub(crate) fn greet(&self, base: &Base, answer: &Response) {
        if answer.status() == reqwest::StatusCode::UNAUTHORIZED {
            // Errors come up again, with context, when the first real request is refused.
            let demand = Offer::read(answer).demand(base, |_| false).ok().flatten();
            // A realm is trusted only by the full rule, which knows the settings.
            if !matches!(demand, Some(Demand::Bearer { .. })) {
                *lock(&self.demand) = demand;
            }
        }
    }

    /// What to show for a request of these scopes, as far as is known by now.
    pub(crate) async fn authorize(
        &self,
        visit: &Visit<'_>,
    ) -> Result<Authorization, TransferError> {
        let Visit {
            http, host, scopes, ..
        } = *visit;
        let demand = lock(&self.demand).clone();
        let Some(demand) = demand else {
            return Ok(Authorization::Nothing);
        };
        let credential = self.credential(http, host).await?;
        let (realm, service, trusted) = match (demand, credential) {
            (_, Credential::Bearer(token)) => return Ok(Authorization::Bearer(token.clone())),
            (Demand::Basic, Credential::Basic { username, password }) => {
                return Ok(Authorization::Basic {
                    username: username.clone(),
                    password: password.clone(),
                });
            }
            (Demand::Basic, _) => return Ok(Authorization::Nothing),
            (
                Demand::Bearer {
                    realm,
                    service,
                    trusted,
                },
                _,
            ) => (realm, service, trusted),
        };
        let wider = lock(&self.wider).get(scopes).cloned();
        let wanted = Wanted {
            lane: lane(host, visit.base, &realm, http.config()),
            host: host.clone(),
            realm,
            service,
            scopes: wider.unwrap_or_else(|| scopes.clone()),
        };
        let shown = if trusted {
            credential
        } else {
            &Credential::Anonymous
        };
        let token = visit.tokens.get(http, &wanted, shown).await?;
        Ok(Authorization::Bearer(token))
    }

    /// Learns from a 401 to a request that showed `shown`. What [`Gate::authorize`] gives afterwards
    /// is another thing to show, or the same if there is nothing better. False when asking again is of
    /// no use: the token was fetched since the request had `begun`, for all that the challenge names.
    pub(crate) fn challenged(
        &self,
        visit: &Visit<'_>,
        shown: &Authorization,
        begun: Instant,
        answer: &Response,
    ) -> Result<bool, TransferError> {
        let Visit { base, scopes, .. } = *visit;
        let offer = Offer::read(answer);
        let config = visit.http.config();
        let trusted = |realm: &Url| belongs(visit.host, &base.url, realm, config);
        let Some(demand) = offer.demand(base, trusted)? else {
            return Ok(false);
        };
        let mut useful = true;
        if let Demand::Bearer { .. } = demand {
            let mut wider_than_before = false;
            if let Some((_, _, Some(asked))) = offer.bearer.first() {
                let wanted = scopes.union(&Scopes::parse(asked));
                let mut wider = lock(&self.wider);
                wider_than_before = wanted != *wider.get(scopes).unwrap_or(scopes);
                if wanted != *scopes {
                    wider.insert(scopes.clone(), wanted);
                }
            }
            if let Authorization::Bearer(stale) = shown {
                useful = !visit.tokens.refuse(stale, begun) || wider_than_before;
            }
        }
        *lock(&self.demand) = Some(demand);
        Ok(useful)
    }

    /// What the user should know when access was refused for good.
    pub(crate) fn hint(&self, host: &Host) -> Option<String> {
        let demand = lock(&self.demand).clone();
        match (demand, self.credential.get()) {
            (
                Some(Demand::Bearer {
                    realm,
                    trusted: false,
                    ..
                }),
                Some(credential),
            ) if *credential != Credential::Anonymous => Some(format!(
                "the credentials for {host} were not sent to {}, which is not known to belong to it",
                realm.host_str().unwrap_or_default()
            )),
            (_, None | Some(Credential::Anonymous)) => {
                Some(format!("no credentials are set for {host}"))
            }
            _ => None,
        }
    }

    async fn credential(&self, http: &Http, host: &Host) -> Result<&Credential, TransferError> {
        self.credential
            .get_or_try_init(|| async {
                let source = http.config().credentials.clone();
                let asked = host.clone();
                let failed = |reason| TransferError::Credentials {
                    host: host.to_string(),
                    reason,
                };
                tokio::task::spawn_blocking(move || source.credential(&asked))
                    .await
                    .map_err(|_| TransferError::Cancelled)?
                    .map_err(failed)
            })
            .await
    }
}

/// The challenges of one 401.
struct Offer {
    basic: bool,
    /// `realm`, `service` and `scope` of the Bearer challenges.
    bearer: Vec<(String, Option<String>, Option<String>)>,
}

impl Offer {
    fn read(answer: &Response) -> Self {
        let mut offer = Self {
            basic: false,
            bearer: Vec::new(),
        };
        for value in answer.headers().get_all(WWW_AUTHENTICATE) {
            // A header that cannot be read offers nothing; another one may.
            let found = value.to_str().ok().map(parse_challenges);
            for challenge in found.and_then(Result::ok).unwrap_or_default() {
                let text = |name| challenge.parameter(name).map(str::to_owned);
                if challenge.is_basic() {
                    offer.basic = true;
                } else if challenge.is_bearer()
                    && let Some(realm) = text("realm")
                {
                    offer.bearer.push((realm, text("service"), text("scope")));
                }
            }
        }
        offer
    }

    /// The one to answer: Bearer if it can be, else Basic.
    fn demand(
        &self,
        base: &Base,
        trusted: impl Fn(&Url) -> bool,
    ) -> Result<Option<Demand>, TransferError> {
        let Some((realm, service, _)) = self.bearer.first() else {
            return Ok(self.basic.then_some(Demand::Basic));
        };
        match follow(realm, &base.url, &base.url) {
            Ok(realm) => Ok(Some(Demand::Bearer {
                trusted: trusted(&realm),
                realm,
                service: service.clone(),
            })),
            Err(_) if self.basic => Ok(Some(Demand::Basic)),
            Err(error) => Err(error),
        }
    }
}

/// A registry's credential may go to a token server that has the registry's own host name or that
/// of a domain it is part of, is its well-known partner, or was named in the settings.
fn belongs(host: &Host, base: &Url, realm: &Url, config: &ClientConfig) -> bool {
    let (Some(registry), Some(server)) = (base.host_str(), realm.host_str()) else {
        return false;
    };
    let server_host = Host::parse(server).ok();
    let plain = realm.scheme() == "http";
    let may_be_plain = server_host
        .as_ref()
        .is_some_and(|server| (config.trust)(server) != Trust::Tls);
    let same = registry == server;
    // Plain text to the registry itself was settled when the registry was chosen.
    if plain && !same && !may_be_plain {
        return false;
    }
    let name = host.name().to_ascii_lowercase();
    let parent = server.contains('.')
        && server_host.is_some_and(|server| server.address().is_none())
        && registry
            .strip_suffix(server)
            .is_some_and(|rest| rest.ends_with('.'));
    let pair = PAIRS.contains(&(name.as_str(), server));
    same || parent || pair || granted(host, server, config)
}

fn granted(host: &Host, server: &str, config: &ClientConfig) -> bool {
    config
        .realms
        .iter()
        .any(|(registry, realm)| registry == host && realm.eq_ignore_ascii_case(server))
}

/// The connection for a token server.
fn lane(host: &Host, base: &Base, realm: &Url, config: &ClientConfig) -> Lane {
    let name = realm.host_str().unwrap_or_default();
    if base.url.host_str() == Some(name) {
        return base.lane;
    }
    if granted(host, name, config)
        && let Ok(server) = Host::parse(name)
    {
        return match (config.trust)(&server) {
            Trust::Tls => Lane::Verified,
            Trust::PlainOrTls => Lane::Direct,
            Trust::Insecure => Lane::Insecure,
        };
    }
    if names_inward(realm) {
        return Lane::Direct;
    }
    Lane::Outward
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::trust_rule;

    fn belongs_with(registry: &str, realm: &str, grants: &[(&str, &str)]) -> bool {
        let host = Host::parse(registry).unwrap();
        let name = if host.is_docker_hub() {
            "registry-1.docker.io".to_owned()
        } else {
            registry.to_owned()
        };
        let scheme = if host.is_loopback() { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{name}/v2/")).unwrap();
        let config = ClientConfig {
            realms: grants
                .iter()
                .map(|(host, realm)| (Host::parse(host).unwrap(), (*realm).to_owned()))
                .collect(),
            trust: trust_rule(Vec::new()),
            ..ClientConfig::default()
        };
        belongs(&host, &base, &Url::parse(realm).unwrap(), &config)
    }

    #[test]
    fn credentials_go_to_the_registrys_own_token_server_only() {
        for (registry, realm, expected) in [
            ("ghcr.io", "https://ghcr.io/token", true),
            ("docker.io", "https://auth.docker.io/token", true),
            (
                "docker.io",
                "https://auth.docker.io.evil.example/token",
                false,
            ),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("registry.gitlab.com", "https://lab.com/jwt/auth", false),
            ("r.example.com", "https://com/token", false),
            ("r.example.com", "https://auth.example.com/token", false),
            ("ghcr.io", "https://auth.docker.io/token", false),
            ("r.example:8443", "https://r.example/token", true),
            ("10.1.2.3:5000", "https://2.3/token", false),
            ("localhost:5000", "http://localhost:5001/token", true),
            ("localhost:5000", "http://127.0.0.1:5001/token", false),
            ("localhost:5000", "http://auth.example/token", false),
        ] {
            assert_eq!(
                belongs_with(registry, realm, &[]),
                expected,
                "{registry} {realm}"
            );
        }
    }

    #[test]
    fn a_setting_widens_the_rule_for_one_pair() {
        let grants = [
            ("r.example.com", "auth.example.com"),
            ("localhost:5000", "auth.example"),
        ];
        assert!(belongs_with(
            "r.example.com",
            "https://auth.example.com/t",
            &grants
        ));
        assert!(!belongs_with(
            "r.example.com",
            "https://auth.example/t",
            &grants
        ));
        assert!(!belongs_with(
            "other.example.com",
            "https://auth.example.com/t",
            &grants
        ));
        // A grant does not make plain text legal.
        assert!(!belongs_with(
            "localhost:5000",
            "http://auth.example/t",
            &grants
        ));
    }
}
