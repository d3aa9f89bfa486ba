//! Names to addresses, by the servers of `/etc/resolv.conf` and no others.

use std::{io, net::SocketAddr, sync::Arc};

use hickory_resolver::TokioResolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::OnceCell;

/// Reads its configuration when it is first needed: a registry with an address in its name needs
/// none. Where the configuration cannot be read, names do not resolve; no public server is asked.
#[derive(Clone, Default)]
pub(super) struct Resolver {
    hickory: Arc<OnceCell<TokioResolver>>,
}

impl Resolver {
    async fn get(&self) -> io::Result<&TokioResolver> {
        let open = || async {
            let builder = TokioResolver::builder_tokio().map_err(unusable)?;
            builder.build().map_err(unusable)
        };
        self.hickory.get_or_try_init(open).await
    }
}

fn unusable(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("/etc/resolv.conf cannot be used: {error}"))
}

fn unknown(name: &str) -> io::Error {
    let words = format!("the name servers know no address of {name}");
    io::Error::new(io::ErrorKind::NotFound, words)
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let resolver = resolver.get().await?;
            let found = resolver.lookup_ip(name.as_str()).await;
            let found = found.map_err(|error| match error {
                error if error.is_no_records_found() => unknown(name.as_str()),
                error => io::Error::other(error),
            })?;
            let addresses: Vec<SocketAddr> = found
                .iter()
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
