//! `vdkr inspect`: everything about containers and images, as JSON or in the words of a template.

use serde_json::{Map, Value, json};
use vdkr_core::channel::message::{ContainerRequest, Publication, Reply, Request};

use super::wrong_reply;
use crate::{
    exit::Exit,
    vdkr::{
        error::{Error, Result},
        format::Format,
        image_args::InspectArgs,
        names,
        session::{Session, say, with_session},
        settings::Settings,
    },
};

/// Describes what is found; what is not gives a sentence each, and the exit status.
pub async fn run(settings: &Settings, args: &InspectArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    if let Some(kind) = args.kind.as_deref()
        && !["container", "image"].contains(&kind)
    {
        return Err(Error::usage(format!(
            "objects of type {kind:?} cannot be inspected; only container and image"
        )));
    }
    let (documents, outcomes) = with_session(settings, "vdkr inspect", async |session| {
        let (mut found, mut outcomes) = (Vec::new(), Vec::new());
        for name in &args.names {
            // One by one, so that a missing one does not hide the others.
            match describe(session, settings, name, args.kind.as_deref()).await {
                Ok(Reply::Inspected { documents }) => {
                    found.extend(documents);
                    outcomes.push(Exit::Done);
                }
                Ok(other) => return Err(wrong_reply(&other)),
                Err(error) if error.exit() == Exit::Unreachable || error.signalled().is_some() => {
                    return Err(error);
                }
                Err(error) => {
                    say(&error.to_string());
                    outcomes.push(error.exit());
                }
            }
        }
        if found.iter().any(is_container) {
            let publications = session.published().await;
            for document in found.iter_mut().filter(|document| is_container(document)) {
                add_ports(document, &publications);
            }
        }
        Ok((found, outcomes))
    })
    .await?;
    match format {
        Format::Template { .. } => {
            for document in &documents {
                crate::output::write(format_args!("{}", format.object(document)?));
            }
        }
        _ => crate::output::write(format_args!("{}", format.object(&documents.into())?)),
    }
    Ok(Exit::of_several(outcomes).code())
}

fn is_container(document: &Value) -> bool {
    document.get("HostConfig").is_some()
}

/// Which ports of this computer lead to a container, this computer alone knows.
fn add_ports(document: &mut Value, publications: &[Publication]) {
    let own = |publication: &&Publication| {
        publication.container.iter().any(|name| {
            let id = document["Id"].as_str() == Some(name);
            id || document["Name"].as_str() == Some(&format!("/{name}"))
        })
    };
    let mut ports = Map::new();
    for port in publications
        .iter()
        .filter(own)
        .flat_map(|publication| &publication.ports)
    {
        let key = format!("{}/{}", port.container, port.protocol);
        let place = json!({ "HostIp": port.address, "HostPort": port.host.to_string() });
        let places = ports.entry(key).or_insert_with(|| json!([]));
        places
            .as_array_mut()
            .into_iter()
            .for_each(|places| places.push(place.clone()));
    }
    for (part, key) in [("NetworkSettings", "Ports"), ("HostConfig", "PortBindings")] {
        if let Some(part) = document.get_mut(part).and_then(Value::as_object_mut) {
            part.insert(key.to_owned(), ports.clone().into());
        }
    }
}

/// Asks for a container of that name, and when there is none for an image.
async fn describe(
    session: &mut Session,
    settings: &Settings,
    name: &str,
    kind: Option<&str>,
) -> Result<Reply> {
    if kind != Some("image") {
        let name = name.to_owned();
        let request = Request::Container(ContainerRequest::Inspect { name });
        match session.ask(&request).await {
            Err(error) if kind.is_none() && error.exit() == Exit::NotFound => {}
            other => return other,
        }
    }
    let names = vec![names::for_agent(session, settings, name).await?];
    session.ask(&Request::Inspect { names }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_where_scripts_look_for_them() {
        let port = |host, address: &str| vdkr_core::container::ports::Published {
            address: address.parse().unwrap(),
            host,
            container: 80,
            protocol: vdkr_core::container::ports::Protocol::Tcp,
        };
        let publications = [
            Publication {
                container: vec!["web".into()],
                address: "10.0.2.128".parse().unwrap(),
                ports: vec![port(8080, "127.0.0.1"), port(9090, "0.0.0.0")],
            },
            Publication {
                container: vec!["other".into()],
                address: "10.0.2.129".parse().unwrap(),
                ports: vec![port(1, "127.0.0.1")],
            },
        ];
        let mut document =
            json!({"Id": "1", "Name": "/web", "HostConfig": {}, "NetworkSettings": {}});
        add_ports(&mut document, &publications);
        let bound = json!({"80/tcp": [
            {"HostIp": "127.0.0.1", "HostPort": "8080"},
            {"HostIp": "0.0.0.0", "HostPort": "9090"},
        ]});
        assert_eq!(document["NetworkSettings"]["Ports"], bound);
        assert_eq!(document["HostConfig"]["PortBindings"], bound);
    }
}
