//! Where a server may send us. Redirects, `Location`, `Link` and `realm` are the server's words:
//! none of them may move a request from TLS to plain text, into the machine that runs the client,
//! or to a metadata service of its network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::error::{TransferError, printable};

/// Longest URL that is taken from a server, bytes.
const MAX_URL: usize = 16 * 1024;

/// Where AWS answers for machine credentials over IPv6; over IPv4 the address is link-local.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Addresses that mean "this machine" or "this wire": never a legitimate target for a stranger.
pub(crate) fn is_inward(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                // "This network": Linux connects 0.x to itself.
                || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped().or_else(|| embedded_v4(v6)) {
                return is_inward(IpAddr::V4(v4));
            }
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6 == METADATA_V6
        }
    }
}

/// The IPv4 address inside a NAT64 (`64:ff9b::/96`) or 6to4 (`2002::/16`) address.
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let join = |a: u16, b: u16| Ipv4Addr::from((u32::from(a) << 16) | u32::from(b));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => Some(join(a, b)),
        _ => None,
    }
}

/// Whether this URL names an inward address, without asking a resolver.
pub(crate) fn names_inward(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return true;
    };
    // The parser has already brought every spelling of an IPv4 address to four numbers.
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return is_inward(address);
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost")
}

/// Scheme, host and port are equal.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// A URL for messages: without user name, query and fragment, which may hold secrets.
pub(crate) fn redacted(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for URLs that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    printable(url.as_str(), 400)
}

/// Resolves `target` as the server of `from` meant it, and decides whether it may be followed.
/// `registry` is where the conversation began: only a registry that is itself inward may point inward.
pub(crate) fn follow(target: &str, from: &Url, registry: &Url) -> Result<Url, TransferError> {
    let refuse = |shown: String, reason: &str| {
        Err(TransferError::UnsafeTarget {
            origin: redacted(from),
            target: shown,
            reason: reason.to_owned(),
        })
    };
    if target.len() > MAX_URL {
        return refuse(printable(target, 60), "it is unreasonably long");
    }
    let Ok(mut url) = from.join(target) else {
        return refuse(printable(target, 60), "it is not a URL");
    };
    url.set_fragment(None);
    if same_origin(&url, registry) && url.username().is_empty() && url.password().is_none() {
        return Ok(url);
    }
    let shown = redacted(&url);
    if !matches!(url.scheme(), "http" | "https") {
        return refuse(shown, "it is neither http nor https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse(shown, "it holds a user name or password");
    }
    if url.scheme() == "http" && (from.scheme() == "https" || registry.scheme() == "https") {
        return refuse(shown, "it leaves TLS");
    }
    if names_inward(&url) && !names_inward(registry) {
        return refuse(shown, "it leads into the local machine or network link");
    }
    Ok(url)
}

/// Like [`follow`] for an upload's `Location`. Registries behind a proxy that ends TLS often name
/// themselves with `http`; as that is plainly the same registry, the scheme is put right.
pub(crate) fn follow_location(
    target: &str,
    from: &Url,
    registry: &Url,
) -> Result<Url, TransferError> {
    if let Ok(url) = from.join(target)
        && url.scheme() == "http"
        && registry.scheme() == "https"
        && url.host_str() == registry.host_str()
        && (url.port().is_none() || url.port() == registry.port_or_known_default())
    {
        let mut mended = url;
        if mended.set_scheme("https").is_ok() && mended.set_port(registry.port()).is_ok() {
            return follow(mended.as_str(), from, registry);
        }
    }
    follow(target, from, registry)
}

/// Leaves inward addresses out of what names resolve to, so that a foreign name cannot lead inward
/// either.
pub(crate) struct OutwardResolver(pub(crate) Option<Arc<dyn Resolve>>);

impl Resolve for OutwardResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let shown = printable(name.as_str(), 253);
        let found: Resolving = match &self.0 {
            Some(resolver) => resolver.resolve(name),
            None => Box::pin(async move {
                let found: Vec<SocketAddr> =
                    tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
                Ok(Box::new(found.into_iter()) as Addrs)
            }),
        };
        Box::pin(async move {
            let outward: Vec<SocketAddr> = found
                .await?
                .filter(|address| !is_inward(address.ip()))
                .collect();
            if outward.is_empty() {
                return Err(
                    format!("{shown} resolves to addresses of this machine or link only").into(),
                );
            }
            Ok(Box::new(outward.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn inward_addresses() {
        for text in [
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fd00:ec2::254",
        ] {
            assert!(is_inward(text.parse().unwrap()), "{text}");
        }
        for text in [
            "10.0.2.2",
            "192.168.1.1",
            "8.8.8.8",
            "2001:db8::1",
            "fd00::1",
        ] {
            assert!(!is_inward(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_may_be_followed() {
        let registry = url("https://r.example/v2/");
        let from = url("https://r.example/v2/a/blobs/x");
        for (target, end) in [
            ("/v2/b", Some("https://r.example/v2/b")),
            ("?x=1", Some("https://r.example/v2/a/blobs/x?x=1")),
            (
                "https://cdn.example/x?sig=1#f",
                Some("https://cdn.example/x?sig=1"),
            ),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("http://cdn.example/x", None),
            ("http://r.example/x", None),
            ("https://u:p@cdn.example/x", None),
            ("https://u@r.example/x", None),
            ("https://127.0.0.1/x", None),
            ("https://2130706433/x", None),
            ("https://0x7f.1/x", None),
            ("https://[::ffff:7f00:1]/x", None),
            ("https://169.254.169.254/latest", None),
            ("https://localhost:5000/x", None),
            ("https://a.LOCALHOST./x", None),
            ("file:///etc/passwd", None),
            ("data:,x", None),
            ("https://[", None),
        ] {
            let got = follow(target, &from, &registry);
            assert_eq!(got.as_ref().ok().map(Url::as_str), end, "{target}: {got:?}");
        }
    }

    #[test]
    fn a_local_registry_may_point_to_local_places() {
        let registry = url("http://127.0.0.1:5000/v2/");
        for target in [
            "http://localhost:9000/x",
            "http://cdn.example/x",
            "https://[::1]/x",
        ] {
            assert!(follow(target, &registry, &registry).is_ok(), "{target}");
        }
        // A second hop starts from TLS and stays there.
        let hop = url("https://cdn.example/x");
        assert!(follow("http://cdn.example/x", &hop, &registry).is_err());
    }

    #[test]
    fn a_location_that_lost_its_tls_is_mended_on_the_same_host_only() {
        let registry = url("https://r.example:8443/v2/");
        let ends = |target| {
            follow_location(target, &registry, &registry)
                .ok()
                .map(|url| url.to_string())
        };
        let mended = Some("https://r.example:8443/u?s=1".to_owned());
        assert_eq!(ends("http://r.example/u?s=1"), mended);
        assert_eq!(ends("http://r.example:8443/u?s=1"), mended);
        assert_eq!(ends("http://r.example:81/u"), None);
        assert_eq!(ends("http://other.example/u"), None);
    }

    #[test]
    fn messages_show_no_secrets() {
        let shown = redacted(&url("https://user:secret@h:1/p?token=secret#secret"));
        assert_eq!(shown, "https://h:1/p");
    }

    proptest! {
        #[test]
        fn never_panics_and_never_leaves_tls(target in ".{0,80}") {
            let registry = url("https://r.example/v2/");
            for followed in [
                follow(&target, &registry, &registry),
                follow_location(&target, &registry, &registry),
            ].into_iter().flatten() {
                prop_assert_eq!(followed.scheme(), "https");
                prop_assert!(!names_inward(&followed));
            }
        }

        #[test]
        fn no_spelling_of_loopback_passes(a in 0u32..0x00ff_ffff, hex: bool) {
            let number = 0x7f00_0000 + a;
            let host = if hex { format!("0x{number:x}") } else { number.to_string() };
            let registry = url("https://r.example/v2/");
            let target = format!("https://{host}/");
            prop_assert!(follow(&target, &registry, &registry).is_err());
        }
    }
}
