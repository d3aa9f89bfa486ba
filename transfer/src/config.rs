//! Settings of a client.

use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::Resolve;
use vdkr_core::credentials::Credential;
use vdkr_core::reference::Host;

use crate::retry::RetryPolicy;
use crate::tls::Roots;
use crate::upload::journal::UploadJournal;
use crate::upload::local::LocalSessions;

/// How a registry's host may be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Verified TLS and nothing else.
    Tls,
    /// Plain HTTP, or verified TLS when that is what listens. For loopback and for the gateway of a
    /// virtual machine.
    PlainOrTls,
    /// TLS without a look at the certificate, else plain HTTP. Only for hosts that the user named
    /// insecure.
    Insecure,
}

/// Decides for each host. Asked with the host as the reference or setting wrote it.
pub type TrustRule = Arc<dyn Fn(&Host) -> Trust + Send + Sync>;

/// The ordinary rule: loopback may be plain, the hosts of `insecure` are not verified, everything
/// else is verified TLS. An entry without a port stands for all ports of that name.
pub fn trust_rule(insecure: Vec<Host>) -> TrustRule {
    Arc::new(move |host| {
        let listed = insecure.iter().any(|entry| {
            entry.name().eq_ignore_ascii_case(host.name())
                && (entry.port().is_none() || entry.port() == host.port())
        });
        if listed {
            Trust::Insecure
        } else if host.is_loopback() {
            Trust::PlainOrTls
        } else {
            Trust::Tls
        }
    })
}

/// Copies of a registry that are asked first when something is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The registry it stands for: `docker.io`.
    pub host: Host,
    /// Where to ask, in order: `[http[s]://]host[:port][/namespace]`. A scheme does not make plain
    /// HTTP legal: the trust rule does. The namespace is put before the repository's name.
    pub endpoints: Vec<String>,
}

/// Finds the credential of a registry.
pub trait CredentialSource: Send + Sync {
    /// The credential for this registry. Called on a thread where blocking is allowed (a credential
    /// helper is a program), once for each host that asks for authentication.
    ///
    /// The error is a sentence without secrets.
    fn credential(&self, host: &Host) -> Result<Credential, String>;
}

impl<F> CredentialSource for F
where
    F: Fn(&Host) -> Result<Credential, String> + Send + Sync,
{
    fn credential(&self, host: &Host) -> Result<Credential, String> {
        self(host)
    }
}

/// A source that knows nobody.
pub fn anonymous() -> Arc<dyn CredentialSource> {
    Arc::new(|_: &Host| Ok(Credential::Anonymous))
}

/// Settings of a [`Client`](crate::Client).
#[derive(Clone)]
pub struct ClientConfig {
    /// Whom to trust.
    pub roots: Roots,
    /// Hosts whose certificates are checked against authorities of their own instead of `roots`, as
    /// a private registry's. A certificate says nothing about ports: all of that name count.
    pub host_roots: Vec<(Host, Roots)>,
    /// How names are resolved; `None` asks the system.
    pub resolver: Option<Arc<dyn Resolve>>,
    /// Which hosts may do without verified TLS.
    pub trust: TrustRule,
    /// Copies to ask first.
    pub mirrors: Vec<Mirror>,
    /// Where credentials come from.
    pub credentials: Arc<dyn CredentialSource>,
    /// Token servers, by host name, that may see the credentials of a registry although neither
    /// their name nor the table of well-known pairs says that they belong to it.
    pub realms: Vec<(Host, String)>,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Where uploads are noted, so that a later run can go on with them.
    pub journal: Option<UploadJournal>,
    /// Registries whose upload sessions can be written to as files.
    pub local_sessions: Option<Arc<dyn LocalSessions>>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long the other side may stay silent while it owes us something.
    pub idle_timeout: Duration,
    /// How long it may take to answer once it has all of a blob: it hashes, syncs, perhaps copies.
    pub commit_timeout: Duration,
}

impl Default for ClientConfig {
    /// No roots, no credentials, no mirrors; plain HTTP for loopback only.
    fn default() -> Self {
        Self {
            roots: Roots::none(),
            host_roots: Vec::new(),
            resolver: None,
            trust: trust_rule(Vec::new()),
            mirrors: Vec::new(),
            credentials: anonymous(),
            realms: Vec::new(),
            user_agent: concat!("vdkr/", env!("CARGO_PKG_VERSION")).to_owned(),
            retry: RetryPolicy::default(),
            journal: None,
            local_sessions: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(1),
            commit_timeout: Duration::from_mins(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_named_hosts() {
        let insecure = ["10.0.2.2:5000", "lab"].map(|host| Host::parse(host).unwrap());
        let rule = trust_rule(insecure.to_vec());
        for (host, trust) in [
            ("localhost:5000", Trust::PlainOrTls),
            ("127.0.0.9", Trust::PlainOrTls),
            ("[::1]:5000", Trust::PlainOrTls),
            ("localhost.example.com", Trust::Tls),
            ("docker.io", Trust::Tls),
            ("10.0.2.2:5000", Trust::Insecure),
            ("10.0.2.2:5001", Trust::Tls),
            ("LAB:1234", Trust::Insecure),
            ("lab", Trust::Insecure),
        ] {
            assert_eq!(rule(&Host::parse(host).unwrap()), trust, "{host}");
        }
    }
}
