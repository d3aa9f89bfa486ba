//! Ports of this computer for a container that is about to be run.

use vdkr_core::{
    channel::message::{
        Failure, FailureCode, Network, PublishRequest, PullPolicy, PullRequest, RegistrySettings,
        Reply, Request, Sandbox,
    },
    container::ports::{Protocol, Publish, parse_exposed},
};

use super::{
    error::{Error, Result},
    sandbox_options::SandboxOptions,
    session::Session,
};

/// What is known of the container that the ports are for.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its image, as the agent knows it.
    pub image: &'a str,
    /// When the image is pulled.
    pub pull: PullPolicy,
    /// How registries are reached.
    pub settings: &'a RegistrySettings,
}

/// The ports that the options ask for.
pub async fn wanted(
    session: &mut Session,
    options: &SandboxOptions,
    target: &Target<'_>,
) -> Result<Vec<Publish>> {
    let mut ports = options.publish.clone();
    if options.publish_all {
        let exposed = exposed_ports(session, target).await?;
        add_exposed(&mut ports, options.expose.iter().copied().chain(exposed));
    }
    Ok(ports)
}

/// Why ports cannot be had on a target.
pub fn no_ports() -> Error {
    Error::usage("ports are published by the machine that vdkr starts, not by a target").with_hint(
        "a container on a target has the target's network: leave -p out, and reach it at the \
         target's own address",
    )
}

/// Opens ports, and writes into `sandbox` where they lead.
pub async fn publish(
    session: &mut Session,
    ports: Vec<Publish>,
    name: Option<&str>,
    sandbox: &mut Sandbox,
) -> Result<()> {
    let request = PublishRequest {
        ports,
        machine: sandbox.network == Network::Host,
        name: name.map(str::to_owned),
        ..PublishRequest::default()
    };
    let publication = session.publish(&request).await?;
    if !request.machine {
        sandbox.network = Network::Bridge;
        sandbox.address = Some(publication.address);
    }
    Ok(())
}

/// Exposed ports on any free port of this computer, but those that are published already.
fn add_exposed(ports: &mut Vec<Publish>, exposed: impl Iterator<Item = (u16, Protocol)>) {
    for (container, protocol) in exposed {
        let known = |port: &Publish| (port.container, port.protocol) == (container, protocol);
        if !ports.iter().any(known) {
            ports.push(Publish {
                address: std::net::Ipv4Addr::LOCALHOST,
                host: (0, 0),
                container,
                protocol,
            });
        }
    }
}

/// What the image exposes. It is pulled first when it is not there, as `run` would.
async fn exposed_ports(session: &mut Session, target: &Target<'_>) -> Result<Vec<(u16, Protocol)>> {
    let known = match target.pull {
        PullPolicy::Always => None,
        PullPolicy::Never => Some(to_run(session, target).await??),
        PullPolicy::Missing => to_run(session, target).await?.ok(),
    };
    let document = match known {
        Some(name) => inspect(session, name).await.map(Some),
        None => Ok(None),
    };
    let document = match document {
        Ok(Some(document)) => document,
        Err(error) if target.pull == PullPolicy::Never => return Err(error),
        _ => {
            let pull = Request::Pull(PullRequest {
                reference: target.image.to_owned(),
                settings: target.settings.clone(),
                ..PullRequest::default()
            });
            // By the id of what was pulled, whatever the name would match otherwise.
            match session.ask(&pull).await? {
                Reply::Pulled(pulled) => inspect(session, pulled.id).await?,
                other => return Err(super::command::wrong_reply(&other)),
            }
        }
    };
    let exposed = document
        .first()
        .and_then(|document| document.get("Config")?.get("ExposedPorts")?.as_object());
    let mut ports = Vec::new();
    for name in exposed.into_iter().flat_map(|exposed| exposed.keys()) {
        let wrong = |error| Error::usage(format!("the image exposes {name:?}: {error}"));
        ports.extend(parse_exposed(name).map_err(wrong)?);
    }
    Ok(ports)
}

/// The id of the image that `run` would take, or the machine's word that there is none. An agent that
/// is not asked for layers gets the name.
async fn to_run(
    session: &mut Session,
    target: &Target<'_>,
) -> Result<std::result::Result<String, Failure>> {
    let question = Request::Layers {
        image: Some(target.image.to_owned()),
        of_container: false,
        settings: RegistrySettings {
            registry: target.settings.registry.clone(),
            gateway: target.settings.gateway.clone(),
            ..RegistrySettings::default()
        },
    };
    Ok(match session.ask_plainly(&question).await? {
        Ok(Reply::Layers(needed)) if !needed.id.is_empty() => Ok(needed.id),
        Err(failure) if failure.code == FailureCode::NotFound => Err(failure),
        _ => Ok(target.image.to_owned()),
    })
}

async fn inspect(session: &mut Session, name: String) -> Result<Vec<serde_json::Value>> {
    let names = vec![name];
    match session.ask(&Request::Inspect { names }).await? {
        Reply::Inspected { documents } => Ok(documents),
        other => Err(super::command::wrong_reply(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_already_is_not_published_again() {
        let mut ports = vdkr_core::container::ports::parse_publish("8080:80").unwrap();
        let exposed = [
            (80, Protocol::Tcp),
            (53, Protocol::Udp),
            (53, Protocol::Udp),
        ];
        add_exposed(&mut ports, exposed.into_iter());
        let all: Vec<_> = ports
            .iter()
            .map(|port| (port.host, port.container))
            .collect();
        assert_eq!(all, [((8080, 8080), 80), ((0, 0), 53)]);
    }
}
