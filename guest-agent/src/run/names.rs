//! The files of name resolution in a container: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use vdkr_core::channel::message::Sandbox;

use super::{
    RunError,
    container::check_hostname,
    spec::{BoundFile, Network},
};
use crate::boot::network::GATEWAY;

const FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];
/// The word for the host's own address.
const HOST_GATEWAY: &str = "host-gateway";

/// The files that lie in a container's directory, bound over those in `/etc`.
pub fn bound_files(dir: &Path) -> Vec<BoundFile> {
    FILES
        .map(|name| BoundFile {
            source: dir.join(name),
            target: format!("/etc/{name}"),
        })
        .into()
}

/// Writes the files into a container's directory.
pub fn write_files(
    dir: &Path,
    hostname: &str,
    sandbox: &Sandbox,
    network: &Network,
) -> Result<Vec<BoundFile>, RunError> {
    let machine = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let address = match network {
        Network::Bridge { address, .. } => Some(*address),
        _ => None,
    };
    let texts = [
        resolv_conf(&machine, sandbox)?,
        hosts(hostname, address, sandbox)?,
        format!("{hostname}\n"),
    ];
    for (name, text) in FILES.iter().zip(texts) {
        let path = dir.join(name);
        fs::write(&path, text).map_err(RunError::io(format!("write {}", path.display())))?;
    }
    Ok(bound_files(dir))
}

/// Without servers, domains or options of its own a container has those of the machine.
fn resolv_conf(machine: &str, sandbox: &Sandbox) -> Result<String, RunError> {
    let own = [&sandbox.dns, &sandbox.dns_search, &sandbox.dns_options];
    let [servers, domains, options] = own;
    let mut text = String::new();
    for line in machine.lines() {
        let replaced = match line.split_whitespace().next() {
            Some("nameserver") => !servers.is_empty(),
            Some("search" | "domain") => !domains.is_empty(),
            Some("options") => !options.is_empty(),
            _ => false,
        };
        if !replaced {
            text += line;
            text.push('\n');
        }
    }
    for server in servers {
        let address: IpAddr = server
            .parse()
            .map_err(|_| RunError::Refused(format!("name server {server:?} is no address")))?;
        let _ = writeln!(text, "nameserver {address}");
    }
    let words = [("search", domains), ("options", options)];
    for (word, values) in words.iter().filter(|(_, values)| !values.is_empty()) {
        for value in *values {
            let plain = |byte: u8| byte.is_ascii_graphic();
            if value.is_empty() || !value.bytes().all(plain) {
                let text = format!("{value:?} cannot stand in resolv.conf");
                return Err(RunError::Refused(text));
            }
        }
        // A dot alone means that names are not looked up in any domain.
        if values.iter().all(|value| *word == "search" && value == ".") {
            continue;
        }
        let _ = writeln!(text, "{word} {}", values.join(" "));
    }
    Ok(text)
}

fn hosts(hostname: &str, address: Option<Ipv4Addr>, sandbox: &Sandbox) -> Result<String, RunError> {
    let mut text = match address {
        Some(address) => format!("127.0.0.1\tlocalhost\n{address}\t{hostname}\n"),
        None => format!("127.0.0.1\tlocalhost {hostname}\n"),
    };
    text += "::1\tlocalhost ip6-localhost ip6-loopback\n";
    for entry in &sandbox.extra_hosts {
        check_hostname(&entry.name)?;
        let address = if entry.address == HOST_GATEWAY {
            GATEWAY.into()
        } else {
            entry.address.parse::<IpAddr>().map_err(|_| {
                let (name, address) = (&entry.name, &entry.address);
                RunError::Refused(format!("address {address:?} of host {name} is none"))
            })?
        };
        let _ = writeln!(text, "{address}\t{}", entry.name);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use vdkr_core::channel::message::HostEntry;

    use super::*;

    #[test]
    fn name_servers_replace_the_machines() {
        let machine = "nameserver 10.0.2.3\nsearch home\noptions ndots:1\n";
        let text = |sandbox: &Sandbox| resolv_conf(machine, sandbox).unwrap();
        assert_eq!(text(&Sandbox::default()), machine);
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let sandbox = Sandbox {
            dns: words(&["1.1.1.1", "::1"]),
            dns_search: words(&["a.example", "b.example"]),
            dns_options: words(&["ndots:2"]),
            ..Sandbox::default()
        };
        let expected =
            "nameserver 1.1.1.1\nnameserver ::1\nsearch a.example b.example\noptions ndots:2\n";
        assert_eq!(text(&sandbox), expected);
        let none = Sandbox {
            dns_search: words(&["."]),
            ..Sandbox::default()
        };
        assert_eq!(text(&none), "nameserver 10.0.2.3\noptions ndots:1\n");
        for bad in ["x", "1.1.1.1\nsearch evil", ""] {
            let sandbox = Sandbox {
                dns: words(&[bad]),
                ..Sandbox::default()
            };
            assert!(resolv_conf(machine, &sandbox).is_err(), "{bad:?}");
            let sandbox = Sandbox {
                dns_search: words(&["a\nnameserver 6.6.6.6"]),
                ..Sandbox::default()
            };
            assert!(resolv_conf(machine, &sandbox).is_err());
        }
    }

    #[test]
    fn hosts_have_addresses() {
        let entry = |name: &str, address: &str| Sandbox {
            extra_hosts: vec![HostEntry {
                name: name.to_owned(),
                address: address.to_owned(),
            }],
            ..Sandbox::default()
        };
        let own = Some(Ipv4Addr::new(10, 0, 2, 16));
        let text = hosts("box", own, &entry("db", "10.1.1.1")).unwrap();
        assert!(
            text.contains("10.0.2.16\tbox\n") && text.ends_with("10.1.1.1\tdb\n"),
            "{text}"
        );
        let text = hosts("box", None, &entry("up", HOST_GATEWAY)).unwrap();
        assert!(
            text.contains("localhost box\n") && text.ends_with("10.0.2.2\tup\n"),
            "{text}"
        );
        for (name, address) in [
            ("db", "x"),
            ("a b", "1.1.1.1"),
            ("db", "1.1.1.1\n2.2.2.2 x"),
        ] {
            assert!(hosts("box", None, &entry(name, address)).is_err());
        }
    }
}
