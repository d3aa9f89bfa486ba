//! `vdkr inspect`: everything about containers, images and volumes, as JSON or in the words of a
//! template.

use serde_json::{Map, Value, json};
use vdkr_core::{
    channel::message::{ContainerRequest, Publication, Reply, Request, VolumeAction},
    container::ports::Publish,
};

use super::{volume, wrong_reply};
use crate::{
    exit::Exit,
    vdkr::{
        error::{Error, Result},
        format::Format,
        granted,
        image_args::InspectArgs,
        names,
        session::{Session, with_session},
        settings::Settings,
        words::say,
    },
};

/// Describes what is found; what is not gives a sentence each, and the exit status.
pub async fn run(settings: &Settings, args: &InspectArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    if let Some(kind) = args.kind.as_deref()
        && !["container", "image", "volume"].contains(&kind)
    {
        return Err(Error::usage(format!(
            "objects of type {kind:?} cannot be inspected; only container, image and volume"
        )));
    }
    let (documents, outcomes) = with_session(settings, "vdkr inspect", async |session| {
        let (mut found, mut outcomes) = (Vec::new(), Vec::new());
        for name in &args.names {
            // One by one, so that a missing one does not hide the others.
            match describe(session, settings, name, args.kind.as_deref()).await {
                Ok(documents) => {
                    found.extend(documents);
                    outcomes.push(Exit::Done);
                }
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
                let id = document["Id"].as_str().unwrap_or_default();
                // A note that is damaged is told of when the container starts.
                let noted = granted::ports(settings, id).unwrap_or_default();
                add_bindings(document, &noted);
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

/// What a container's ports were asked to be, which holds when it does not run too.
fn add_bindings(document: &mut Value, noted: &[Publish]) {
    if noted.is_empty() {
        return;
    }
    let mut bindings = Map::new();
    for port in noted {
        let host = match port.host {
            (0, _) => String::new(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let place = json!({ "HostIp": port.address, "HostPort": host });
        let key = format!("{}/{}", port.container, port.protocol);
        let places = bindings.entry(key).or_insert_with(|| json!([]));
        places
            .as_array_mut()
            .into_iter()
            .for_each(|places| places.push(place.clone()));
    }
    if let Some(part) = document
        .get_mut("HostConfig")
        .and_then(Value::as_object_mut)
    {
        part.insert("PortBindings".to_owned(), bindings.into());
    }
}

/// Asks for a container of that name, when there is none for an image, and then for a volume.
async fn describe(
    session: &mut Session,
    settings: &Settings,
    name: &str,
    kind: Option<&str>,
) -> Result<Vec<Value>> {
    let mut missing = None;
    for asked in ["container", "image", "volume"] {
        if kind.is_some_and(|kind| kind != asked) {
            continue;
        }
        let request = match asked {
            "container" => Request::Container(ContainerRequest::Inspect {
                name: name.to_owned(),
            }),
            "image" => match names::for_agent(session, settings, name).await {
                Ok(name) => Request::Inspect { names: vec![name] },
                Err(error) if kind.is_none() => {
                    missing = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            },
            _ => Request::Volume {
                action: VolumeAction::List {
                    names: vec![name.to_owned()],
                },
            },
        };
        match session.ask(&request).await {
            Ok(Reply::Inspected { documents }) => return Ok(documents),
            Ok(Reply::Volumes { volumes }) => {
                return Ok(volumes.iter().map(volume::document).collect());
            }
            Ok(other) => return Err(wrong_reply(&other)),
            Err(error)
                if kind.is_some()
                    || error.exit() == Exit::Unreachable
                    || error.signalled().is_some() =>
            {
                return Err(error);
            }
            // A volume may have a name that no image can have; what is said of images is told when
            // there is none.
            Err(error) if asked == "image" => missing = Some(error),
            Err(error) if asked == "volume" || error.exit() == Exit::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // What is wrong with the name itself is worth more than that there is nothing of it.
    Err(match missing {
        Some(error) if error.exit() != Exit::NotFound => error,
        _ => Error::new(
            Exit::NotFound,
            format!("no container, image or volume {name:?} here"),
        )
        .with_hint("`ps -a`, `images` and `volume ls` list what is here"),
    })
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
        // What was asked for stays when nothing is open any more.
        let noted = vdkr_core::container::ports::parse_publish("8080-8081:80").unwrap();
        let any = vdkr_core::container::ports::parse_publish("0.0.0.0::53/udp").unwrap();
        add_ports(&mut document, &[]);
        add_bindings(&mut document, &[noted, any].concat());
        assert_eq!(document["NetworkSettings"]["Ports"], json!({}));
        let bindings = &document["HostConfig"]["PortBindings"];
        assert_eq!(
            bindings["53/udp"],
            json!([{"HostIp": "0.0.0.0", "HostPort": ""}])
        );
        let ports = bindings["80/tcp"].as_array().unwrap();
        assert_eq!(ports[0]["HostIp"], "127.0.0.1");
        assert_eq!(ports[0]["HostPort"], "8080-8081");
    }
}
