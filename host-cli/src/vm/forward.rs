//! Published ports: rules of the emulator's user network, which lead ports of this computer to the
//! addresses of containers.
//!
//! The rules and the addresses that they lead to are chosen here, before the container exists;
//! nothing that the guest says has a part in them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
};

use vdkr_core::{
    channel::message::{Failure, FailureCode, Publication, PublishRequest},
    container::ports::{
        BRIDGE_HOST_ADDRESSES, MACHINE_ADDRESS, MAX_PORTS, Protocol, Publish, Published,
        bridge_address,
    },
};

use super::{process::Qemu, qemu::NETWORK, qmp::QmpError, router::ClientId};

/// How often a free port is looked for when any will do.
const TRIES: u32 = 20;

/// The emulator's commands for people, which alone reach its network.
pub trait Commands {
    /// Carries out a command and gives what it printed.
    fn human(&mut self, line: &str) -> impl Future<Output = Result<String, QmpError>>;
}

impl Commands for Qemu {
    async fn human(&mut self, line: &str) -> Result<String, QmpError> {
        self.control().human(line).await
    }
}

/// Why a port is not open.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Somebody else has it.
    #[error("port {port} of {address} ({protocol}) is in use on this computer")]
    InUse {
        /// The address.
        address: Ipv4Addr,
        /// The port or the range.
        port: String,
        /// The protocol.
        protocol: Protocol,
    },
    /// Low ports belong to root, and addresses to their computers.
    #[error("port {port} of {address} ({protocol}) cannot be opened: {source}")]
    Refused {
        /// The address.
        address: Ipv4Addr,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
        /// What the system said.
        source: io::Error,
    },
    /// Every address is taken.
    #[error("too many containers with published ports run on this machine")]
    NoAddress,
    /// Too many ports.
    #[error("{0} ports are published; the most is {MAX_PORTS}")]
    TooMany(usize),
    /// The emulator does not do it.
    #[error("ports cannot be published: {0}")]
    Emulator(#[from] QmpError),
}

impl From<ForwardError> for Failure {
    fn from(error: ForwardError) -> Self {
        let hint = match &error {
            ForwardError::InUse { .. } => "name another port, or leave it out for any free one",
            ForwardError::Refused { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "ports below 1024 belong to root; name a higher one"
            }
            ForwardError::Refused { .. } => "name an address of this computer, or 0.0.0.0",
            ForwardError::NoAddress => "stop one of them first",
            _ => return Self::new(FailureCode::Failed, error.to_string()),
        };
        Self::new(FailureCode::Failed, error.to_string()).with_hint(hint)
    }
}

/// Whose ports they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A connection's; 0 for the only one.
    Client(ClientId),
    /// A container's, which this stream to the agent waits for.
    Container(u32),
}

/// The rules of one machine.
#[derive(Debug, Default)]
pub struct Forwards {
    held: Vec<Held>,
    last: u8,
}

#[derive(Debug)]
struct Held {
    owner: Owner,
    publication: Publication,
}

impl Forwards {
    /// Opens the ports of a container to come, all or none.
    pub async fn open(
        &mut self,
        emulator: &mut impl Commands,
        owner: Owner,
        request: &PublishRequest,
    ) -> Result<Publication, ForwardError> {
        if request.ports.len() > MAX_PORTS {
            return Err(ForwardError::TooMany(request.ports.len()));
        }
        let address = if request.machine {
            MACHINE_ADDRESS
        } else {
            self.free_address()?
        };
        let mut publication = Publication {
            container: request.name.iter().chain(&request.id).cloned().collect(),
            address,
            ports: Vec::new(),
        };
        for rule in &request.ports {
            match open_port(emulator, rule, address).await {
                Ok(port) => publication.ports.push(port),
                Err(error) => {
                    close_ports(emulator, &publication).await;
                    return Err(error);
                }
            }
        }
        self.held.push(Held {
            owner,
            publication: publication.clone(),
        });
        Ok(publication)
    }

    /// Closes everything of an owner who has gone.
    pub async fn close(&mut self, emulator: &mut impl Commands, owner: &Owner) {
        let gone: Vec<_> = self
            .held
            .extract_if(.., |held| held.owner == *owner)
            .collect();
        for held in gone {
            close_ports(emulator, &held.publication).await;
        }
    }

    /// Hands what a connection has published over to a container: what was opened for it by its id,
    /// else all.
    pub fn adopt(&mut self, client: ClientId, container: &str, waits: u32) -> Vec<Publication> {
        let owner = Owner::Client(client);
        let is_named = |held: &Held| held.publication.container.iter().any(|id| id == container);
        let by_id = self
            .held
            .iter()
            .any(|held| held.owner == owner && is_named(held));
        let mut adopted = Vec::new();
        for held in &mut self.held {
            if held.owner == owner && (!by_id || is_named(held)) {
                held.owner = Owner::Container(waits);
                if !is_named(held) {
                    held.publication.container.push(container.to_owned());
                }
                adopted.push(held.publication.clone());
            }
        }
        adopted
    }

    /// Whether this owner has ports.
    pub fn has(&self, owner: &Owner) -> bool {
        self.held.iter().any(|held| held.owner == *owner)
    }

    /// How many containers are waited for.
    pub fn waits(&self) -> usize {
        let waiting = |held: &&Held| matches!(held.owner, Owner::Container(_));
        self.held.iter().filter(waiting).count()
    }

    /// Everything that is open.
    pub fn list(&self) -> Vec<Publication> {
        let publications = self.held.iter().map(|held| held.publication.clone());
        publications.collect()
    }

    /// An address that was not given for as long as possible.
    fn free_address(&mut self) -> Result<Ipv4Addr, ForwardError> {
        let after = self.last;
        let taken = |last: u8| {
            let address = bridge_address(last);
            self.held
                .iter()
                .any(|held| held.publication.address == address)
        };
        let later = BRIDGE_HOST_ADDRESSES.filter(|&last| last > after);
        let found = later
            .chain(BRIDGE_HOST_ADDRESSES)
            .find(|&last| !taken(last))
            .ok_or(ForwardError::NoAddress)?;
        self.last = found;
        Ok(bridge_address(found))
    }
}

/// Opens the first port of the rule's range that is free.
async fn open_port(
    emulator: &mut impl Commands,
    rule: &Publish,
    target: Ipv4Addr,
) -> Result<Published, ForwardError> {
    let (address, protocol) = (rule.address, rule.protocol);
    let any = rule.host == (0, 0);
    let mut candidates = if any {
        vec![0; TRIES as usize]
    } else {
        (rule.host.0..=rule.host.1).collect()
    };
    candidates.truncate(MAX_PORTS);
    for candidate in candidates {
        let host = match try_port(address, candidate, protocol) {
            Ok(port) => port,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
            Err(source) => {
                return Err(ForwardError::Refused {
                    address,
                    port: candidate,
                    protocol,
                    source,
                });
            }
        };
        let container = rule.container;
        let line =
            format!("hostfwd_add {NETWORK} {protocol}:{address}:{host}-{target}:{container}");
        // It prints nothing but complaints; somebody may have been quicker.
        if emulator.human(&line).await?.trim().is_empty() {
            return Ok(Published {
                address,
                host,
                container,
                protocol,
            });
        }
    }
    let port = match rule.host {
        (low, high) if low == high => low.to_string(),
        (low, high) => format!("{low}-{high}"),
    };
    Err(ForwardError::InUse {
        address,
        port,
        protocol,
    })
}

/// Opens a port for a moment, to learn whether it is free or why not; 0 for any.
fn try_port(address: Ipv4Addr, port: u16, protocol: Protocol) -> io::Result<u16> {
    let place = SocketAddrV4::new(address, port);
    let local = match protocol {
        Protocol::Tcp => TcpListener::bind(place)?.local_addr()?,
        Protocol::Udp => UdpSocket::bind(place)?.local_addr()?,
    };
    Ok(local.port())
}

async fn close_ports(emulator: &mut impl Commands, publication: &Publication) {
    for port in &publication.ports {
        let Published {
            address,
            host,
            protocol,
            ..
        } = port;
        // An emulator that has gone has closed them.
        let line = format!("hostfwd_remove {NETWORK} {protocol}:{address}:{host}");
        let _ = emulator.human(&line).await;
    }
}

#[cfg(test)]
mod tests {
    use vdkr_core::container::ports::parse_publish;

    use super::*;

    /// Notes commands; refuses what it is told to.
    #[derive(Default)]
    struct Notes {
        lines: Vec<String>,
        refuse: Option<u16>,
    }

    impl Commands for Notes {
        async fn human(&mut self, line: &str) -> Result<String, QmpError> {
            self.lines.push(line.to_owned());
            let refused = self
                .refuse
                .is_some_and(|port| line.contains(&format!(":{port}-")));
            let text = "could not set up host forwarding rule\r\n";
            Ok(if refused {
                text.to_owned()
            } else {
                String::new()
            })
        }
    }

    fn request(texts: &[&str]) -> PublishRequest {
        PublishRequest {
            ports: texts
                .iter()
                .flat_map(|text| parse_publish(text).unwrap())
                .collect(),
            ..PublishRequest::default()
        }
    }

    /// A port that nobody has right now.
    fn free() -> u16 {
        try_port(Ipv4Addr::LOCALHOST, 0, Protocol::Tcp).unwrap()
    }

    #[tokio::test]
    async fn ports_open_and_close_with_their_owner() {
        let (mut forwards, mut notes) = (Forwards::default(), Notes::default());
        let port = free();
        let asked = request(&[&format!("{port}:80"), "53/udp"]);
        let owner = Owner::Client(7);
        let open = forwards
            .open(&mut notes, owner.clone(), &asked)
            .await
            .unwrap();
        assert_eq!(open.address, Ipv4Addr::new(10, 0, 2, 128));
        assert_eq!(open.ports[0].host, port);
        assert_ne!(open.ports[1].host, 0);
        assert_eq!(
            notes.lines[0],
            format!("hostfwd_add net0 tcp:127.0.0.1:{port}-10.0.2.128:80")
        );
        assert!(notes.lines[1].starts_with("hostfwd_add net0 udp:127.0.0.1:"));

        forwards.close(&mut notes, &Owner::Client(8)).await;
        assert_eq!(notes.lines.len(), 2);
        forwards.close(&mut notes, &owner).await;
        assert_eq!(
            notes.lines[2],
            format!("hostfwd_remove net0 tcp:127.0.0.1:{port}")
        );
        assert!(forwards.list().is_empty() && notes.lines.len() == 4);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_and_nothing_stays_open() {
        let (mut forwards, mut notes) = (Forwards::default(), Notes::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = listener.local_addr().unwrap().port();
        let port = free();
        let asked = request(&[&format!("{port}:1"), &format!("{taken}:2")]);
        let error = forwards
            .open(&mut notes, Owner::Client(1), &asked)
            .await
            .unwrap_err();
        let text = error.to_string();
        assert_eq!(
            text,
            format!("port {taken} of 127.0.0.1 (tcp) is in use on this computer")
        );
        assert_eq!(
            notes.lines.last().unwrap(),
            &format!("hostfwd_remove net0 tcp:127.0.0.1:{port}")
        );
        assert!(forwards.list().is_empty());
        // Another protocol is another port.
        let asked = request(&[&format!("{taken}:2/udp")]);
        assert!(
            forwards
                .open(&mut notes, Owner::Client(1), &asked)
                .await
                .is_ok()
        );
        // One that the emulator cannot have, as somebody was quicker.
        notes.refuse = Some(port);
        let asked = request(&[&format!("{port}:1")]);
        assert!(
            forwards
                .open(&mut notes, Owner::Client(1), &asked)
                .await
                .is_err()
        );
        // An address of another computer.
        let asked = request(&["192.0.2.1:80:80"]);
        let error = forwards
            .open(&mut notes, Owner::Client(1), &asked)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("192.0.2.1"), "{error}");
    }

    #[tokio::test]
    async fn a_container_takes_its_ports_over() {
        let (mut forwards, mut notes) = (Forwards::default(), Notes::default());
        let asked = PublishRequest {
            name: Some("web".to_owned()),
            ..request(&["80"])
        };
        forwards
            .open(&mut notes, Owner::Client(1), &asked)
            .await
            .unwrap();
        let adopted = forwards.adopt(1, "abc", 9);
        assert_eq!(adopted[0].container, ["web", "abc"]);
        forwards.close(&mut notes, &Owner::Client(1)).await;
        assert_eq!((forwards.list().len(), forwards.waits()), (1, 1));
        assert!(forwards.has(&Owner::Container(9)));
        forwards.close(&mut notes, &Owner::Container(9)).await;
        assert_eq!((forwards.list().len(), forwards.waits()), (0, 0));
    }

    #[tokio::test]
    async fn ports_opened_for_several_containers_are_not_mixed() {
        let (mut forwards, mut notes) = (Forwards::default(), Notes::default());
        for id in ["aa", "bb"] {
            let asked = PublishRequest {
                name: Some(id.to_owned()),
                ..request(&["80"])
            };
            let owner = Owner::Client(1);
            forwards.open(&mut notes, owner, &asked).await.unwrap();
        }
        assert_eq!(forwards.adopt(1, "bb", 9)[0].container, ["bb"]);
        assert!(forwards.has(&Owner::Client(1)));
        assert_eq!(forwards.adopt(1, "aa", 10)[0].container, ["aa"]);
        assert!(!forwards.has(&Owner::Client(1)));
    }

    #[tokio::test]
    async fn addresses_rest_before_they_are_given_again() {
        let (mut forwards, mut notes) = (Forwards::default(), Notes::default());
        let mut seen = Vec::new();
        for _ in BRIDGE_HOST_ADDRESSES {
            let open = forwards
                .open(&mut notes, Owner::Client(1), &request(&[]))
                .await
                .unwrap();
            seen.push(open.address);
        }
        assert!(
            forwards
                .open(&mut notes, Owner::Client(1), &request(&[]))
                .await
                .is_err()
        );
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), BRIDGE_HOST_ADDRESSES.count());
        let machine = PublishRequest {
            machine: true,
            ..request(&[])
        };
        let open = forwards
            .open(&mut notes, Owner::Client(1), &machine)
            .await
            .unwrap();
        assert_eq!(open.address, MACHINE_ADDRESS);
    }
}
