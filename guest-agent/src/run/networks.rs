//! Which container has which address, and whose network others may join.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    rc::Rc,
};

use vdkr_core::{
    channel::message::{self, Sandbox},
    container::ports::{BRIDGE_GUEST_ADDRESSES, BRIDGE_HOST_ADDRESSES, bridge_address},
};

use super::{RunError, spec::Network};
use crate::boot::network::first_device;

/// The containers that run, by id.
#[derive(Debug, Default)]
pub struct Networks {
    members: RefCell<BTreeMap<String, Member>>,
    last: Cell<u8>,
    places: Cell<u64>,
}

#[derive(Clone, Debug)]
struct Member {
    network: Network,
    pid: Option<u32>,
    dir: PathBuf,
    place: u64,
}

/// A container's place among the networks; given up when this is dropped.
#[derive(Debug)]
pub struct Place {
    networks: Rc<Networks>,
    id: String,
    /// Which of all places it is: a container that starts again has another.
    number: u64,
    /// The container's network.
    pub network: Network,
    /// Directory of the container whose files of name resolution hold here too.
    pub shared_files: Option<PathBuf>,
}

impl Networks {
    /// Finds a place for a container; `bridge` says whether the machine can have one, `other` is the
    /// id of the container whose network is to be joined.
    pub fn enter(
        self: &Rc<Self>,
        id: &str,
        dir: &Path,
        sandbox: &Sandbox,
        bridge: Bridge,
        other: Option<&str>,
    ) -> Result<Place, RunError> {
        let mut shared_files = None;
        let network = match (&sandbox.network, bridge) {
            (message::Network::Host, _) | (message::Network::Default, Bridge::Missing(_)) => {
                Network::Host
            }
            (message::Network::None, _) => Network::None,
            (message::Network::Bridge, Bridge::Missing(why)) => {
                return Err(RunError::Refused(format!(
                    "this machine has no bridge network: {why}; use --network host"
                )));
            }
            (message::Network::Bridge | message::Network::Default, Bridge::On(link)) => {
                Network::Bridge {
                    link,
                    address: self.address(sandbox.address)?,
                }
            }
            (message::Network::Container(wanted), _) => {
                let (member, pid) = self.find(wanted, other)?;
                shared_files = Some(member.dir);
                match member.network {
                    Network::Host => Network::Host,
                    _ => Network::Process(pid),
                }
            }
        };
        let number = self.places.get();
        self.places.set(number + 1);
        let member = Member {
            network: network.clone(),
            pid: None,
            dir: dir.to_owned(),
            place: number,
        };
        self.members.borrow_mut().insert(id.to_owned(), member);
        Ok(Place {
            networks: Rc::clone(self),
            id: id.to_owned(),
            number,
            network,
            shared_files,
        })
    }

    /// The address asked for, or the one after the last that was given out.
    fn address(&self, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, RunError> {
        let members = self.members.borrow();
        let taken = |address: Ipv4Addr| {
            let has = |member: &Member| matches!(member.network, Network::Bridge { address: its, .. } if its == address);
            members.values().any(has)
        };
        if let Some(address) = wanted {
            let theirs = BRIDGE_HOST_ADDRESSES
                .map(bridge_address)
                .any(|one| one == address);
            if !theirs || taken(address) {
                return Err(RunError::Refused(format!(
                    "address {address} cannot be given"
                )));
            }
            return Ok(address);
        }
        let after = self.last.get();
        let later = BRIDGE_GUEST_ADDRESSES.filter(|&last| last > after);
        let found = later
            .chain(BRIDGE_GUEST_ADDRESSES)
            .find(|&last| !taken(bridge_address(last)))
            .ok_or_else(|| {
                RunError::Refused(
                    "every address of the bridge is taken; use --network host".to_owned(),
                )
            })?;
        self.last.set(found);
        Ok(bridge_address(found))
    }

    /// A container that runs.
    fn find(&self, wanted: &str, id: Option<&str>) -> Result<(Member, u32), RunError> {
        let members = self.members.borrow();
        let found = id.and_then(|id| members.get(id));
        let running = found.and_then(|member| Some((member.clone(), member.pid?)));
        running.ok_or_else(|| {
            RunError::Refused(format!(
                "cannot join the network of container {wanted:?}: no such container is running"
            ))
        })
    }
}

impl Place {
    /// Tells the number of the container's first process, so that others may join it.
    pub fn started(&self, pid: u32) {
        if let Some(member) = self.networks.members.borrow_mut().get_mut(&self.id) {
            member.pid = Some(pid);
        }
    }

    /// The container's own address.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self.network {
            Network::Bridge { address, .. } => Some(address),
            _ => None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut members = self.networks.members.borrow_mut();
        if members
            .get(&self.id)
            .is_some_and(|member| member.place == self.number)
        {
            members.remove(&self.id);
        }
    }
}

/// Whether containers can have addresses of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bridge {
    /// On the interface of this index.
    On(u32),
    /// Not at all, and why.
    Missing(&'static str),
}

impl Bridge {
    /// Looks what this machine has.
    pub fn find(own_machine: bool) -> Self {
        if !own_machine {
            return Self::Missing("the agent does not have the machine for itself");
        }
        if !Path::new("/sys/module/macvlan").exists() {
            return Self::Missing("its kernel has no module macvlan");
        }
        match first_device() {
            Ok(Some(index)) => Self::On(index),
            _ => Self::Missing("it has no network interface"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(networks: &Rc<Networks>, id: &str, sandbox: &Sandbox) -> Result<Place, RunError> {
        let dir = Path::new("/containers").join(id);
        let other = match &sandbox.network {
            message::Network::Container(id) => Some(id.as_str()),
            _ => None,
        };
        networks.enter(id, &dir, sandbox, Bridge::On(2), other)
    }

    fn with(network: message::Network) -> Sandbox {
        Sandbox {
            network,
            ..Sandbox::default()
        }
    }

    #[test]
    fn addresses_are_given_once_and_come_back() {
        let networks = Rc::new(Networks::default());
        let sandbox = Sandbox::default();
        let places: Vec<_> = BRIDGE_GUEST_ADDRESSES
            .map(|last| enter(&networks, &last.to_string(), &sandbox).unwrap())
            .collect();
        let mut addresses: Vec<_> = places.iter().filter_map(Place::address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), BRIDGE_GUEST_ADDRESSES.count());
        assert!(enter(&networks, "one more", &sandbox).is_err());
        drop(places);
        let first = enter(&networks, "a", &sandbox).unwrap().address();
        let second = enter(&networks, "b", &sandbox).unwrap().address();
        assert_ne!(first, second, "an address rests before it is given again");
    }

    #[test]
    fn an_earlier_place_that_is_given_up_late_leaves_the_later_one() {
        let networks = Rc::new(Networks::default());
        let earlier = enter(&networks, "a", &Sandbox::default()).unwrap();
        let later = enter(&networks, "a", &Sandbox::default()).unwrap();
        later.started(5);
        drop(earlier);
        let other = with(message::Network::Container("a".into()));
        assert_eq!(
            enter(&networks, "b", &other).unwrap().network,
            Network::Process(5)
        );
        drop(later);
        assert!(enter(&networks, "c", &other).is_err());
    }

    #[test]
    fn the_host_gives_out_its_own_part() {
        let networks = Rc::new(Networks::default());
        let at = |last: u8| Sandbox {
            address: Some(bridge_address(last)),
            ..Sandbox::default()
        };
        let place = enter(&networks, "a", &at(200)).unwrap();
        assert_eq!(place.address(), Some(bridge_address(200)));
        assert!(enter(&networks, "b", &at(200)).is_err());
        for not_theirs in [0, 2, 3, 15, 20, 255] {
            assert!(
                enter(&networks, "c", &at(not_theirs)).is_err(),
                "{not_theirs}"
            );
        }
    }

    #[test]
    fn others_are_joined_while_they_run() {
        let networks = Rc::new(Networks::default());
        let first = enter(&networks, "one", &Sandbox::default()).unwrap();
        let join = |id: &str| {
            let other = with(message::Network::Container(id.into()));
            enter(&networks, "joiner", &other)
        };
        assert!(join("one").is_err(), "it has not started");
        first.started(77);
        let place = join("one").unwrap();
        assert_eq!(place.network, Network::Process(77));
        assert_eq!(place.shared_files, Some("/containers/one".into()));
        let second = enter(&networks, "two", &with(message::Network::Host)).unwrap();
        second.started(78);
        assert_eq!(join("two").unwrap().network, Network::Host);
        drop(first);
        let error = join("one").unwrap_err().to_string();
        assert!(
            error.contains("\"one\"") && error.contains("running"),
            "{error}"
        );
    }

    #[test]
    fn without_a_bridge_only_asking_for_it_is_an_error() {
        let networks = Rc::new(Networks::default());
        let missing = Bridge::Missing("its kernel is small");
        let enter = |sandbox| networks.enter("a", Path::new("/c"), &sandbox, missing, None);
        assert_eq!(enter(Sandbox::default()).unwrap().network, Network::Host);
        let error = enter(with(message::Network::Bridge))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("its kernel is small") && error.contains("--network host"),
            "{error}"
        );
    }
}
