//! Serves a storage directory without TLS:
//! `cargo run --example serve -- DIRECTORY [ADDRESS] [sparse]`.

use std::error::Error;

use tokio::net::TcpListener;
use vdkr_registry::{Registry, ServerConfig, serve};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut config = ServerConfig::new(arguments.next().ok_or("which storage directory?")?);
    let address = arguments
        .next()
        .unwrap_or_else(|| "127.0.0.1:5000".to_owned());
    config.sparse_manifests = arguments.next().as_deref() == Some("sparse");
    let registry = Registry::open(config)?;
    let listener = TcpListener::bind(&address).await?;
    println!("{}", listener.local_addr()?);
    serve(listener, registry, std::future::pending()).await?;
    Ok(())
}
