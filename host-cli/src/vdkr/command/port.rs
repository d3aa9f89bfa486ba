//! `vdkr port`: which ports of this computer lead to a container.

use vdkr_core::{
    channel::message::{ContainerReply, ContainerRequest, Publication, Reply, Request},
    container::ports::{Protocol, Published, parse_exposed},
};

use super::wrong_reply;
use crate::{
    exit::Exit,
    out,
    vdkr::{
        args::PortArgs,
        error::{Error, Result},
        publish::no_ports,
        settings::{Settings, StatePlace},
        words::say,
    },
    vm::kept,
};

/// Asks the program that keeps the machine. No machine is started for it.
pub async fn run(settings: &Settings, args: &PortArgs) -> Result<u8> {
    if settings.target.is_some() {
        return Err(no_ports());
    }
    let wanted = args.port.as_deref().map(one_port).transpose()?;
    let mut publications = Vec::new();
    let mut container = args.container.clone();
    let mut runs = false;
    if let StatePlace::Directory(dir) = &settings.state
        && let Some(connection) = kept::connect(dir).await?
    {
        runs = true;
        let list = Request::Container(ContainerRequest::List);
        container = match connection.ask(&list).await? {
            Ok(Reply::Container(ContainerReply::List { containers })) => {
                super::container::named(&containers, &args.container)?
                    .id
                    .clone()
            }
            Ok(other) => return Err(wrong_reply(&other)),
            Err(failure) => return Err(failure.into()),
        };
        publications = match connection.ask(&Request::Published).await? {
            Ok(Reply::Published { publications }) => publications,
            Ok(other) => return Err(wrong_reply(&other)),
            Err(failure) => return Err(failure.into()),
        };
    }
    let ports = of_container(&publications, &container);
    let lines = lines(&ports, wanted);
    if lines.is_empty() {
        let what = match &args.port {
            Some(port) => format!("port {port} of container {}", args.container),
            None => format!("container {}", args.container),
        };
        let why = if runs {
            ""
        } else {
            "no machine runs, so that "
        };
        say(&format!("{why}no port of this computer leads to {what}"));
        // As docker: nothing published is no failure, but asking for a port that is not, is one.
        return Ok(if wanted.is_some() {
            Exit::Failed.code()
        } else {
            Exit::Done.code()
        });
    }
    for line in lines {
        out!("{line}");
    }
    Ok(0)
}

fn one_port(text: &str) -> Result<(u16, Protocol)> {
    let ports = parse_exposed(text).map_err(|error| Error::usage(error.to_string()))?;
    match ports[..] {
        [port] => Ok(port),
        _ => Err(Error::usage(format!("{text:?} is more than one port"))),
    }
}

/// The ports of a container, by its name, its id or the start of its id.
fn of_container<'a>(publications: &'a [Publication], wanted: &str) -> Vec<&'a Published> {
    const ID: usize = 64;
    let names = |publication: &&Publication| {
        let mut names = publication.container.iter();
        names.any(|name| name == wanted || (name.len() == ID && name.starts_with(wanted)))
    };
    let found = publications.iter().filter(names);
    found.flat_map(|publication| &publication.ports).collect()
}

fn lines(ports: &[&Published], wanted: Option<(u16, Protocol)>) -> Vec<String> {
    let shown = ports
        .iter()
        .filter(|port| wanted.is_none_or(|wanted| wanted == (port.container, port.protocol)));
    shown
        .map(|port| {
            let host = format!("{}:{}", port.address, port.host);
            match wanted {
                Some(_) => host,
                None => format!("{}/{} -> {host}", port.container, port.protocol),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_container_is_found_by_name_and_id() {
        let port = |host, container, protocol| Published {
            address: Ipv4Addr::LOCALHOST,
            host,
            container,
            protocol,
        };
        let id = "ab".repeat(32);
        let publications = [Publication {
            container: vec!["web".to_owned(), id.clone()],
            address: Ipv4Addr::new(10, 0, 2, 128),
            ports: vec![port(8080, 80, Protocol::Tcp), port(5353, 53, Protocol::Udp)],
        }];
        for name in ["web", &id, "abab"] {
            assert_eq!(of_container(&publications, name).len(), 2, "{name}");
        }
        for name in ["we", "cd", "b"] {
            assert!(of_container(&publications, name).is_empty(), "{name}");
        }
        let ports = of_container(&publications, "web");
        let all = ["80/tcp -> 127.0.0.1:8080", "53/udp -> 127.0.0.1:5353"];
        assert_eq!(lines(&ports, None), all);
        assert_eq!(lines(&ports, Some((53, Protocol::Udp))), ["127.0.0.1:5353"]);
        assert!(lines(&ports, Some((53, Protocol::Tcp))).is_empty());
        assert!(one_port("80-81").is_err() && one_port("80/udp").is_ok());
    }
}
