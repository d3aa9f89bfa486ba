//! The few rtnetlink requests that bring an interface up (`rtnetlink(7)`), put together by hand.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_BRIDGE: u32 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const HEADER_LEN: usize = 16;

/// A request without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    /// Switches an interface on.
    pub fn link_up(index: u32) -> Self {
        let mut body = vec![0; 4];
        body.extend(index.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        Self {
            kind: RTM_NEWLINK,
            flags: 0,
            body,
        }
    }

    /// Makes an interface on another one, `link`, in the network that the descriptor `target` is.
    pub fn macvlan(link: u32, name: &str, hardware: [u8; 6], target: u32) -> Self {
        let mut data = Vec::new();
        attribute(
            &mut data,
            IFLA_MACVLAN_MODE,
            &MACVLAN_MODE_BRIDGE.to_ne_bytes(),
        );
        let mut info = Vec::new();
        attribute(&mut info, IFLA_INFO_KIND, b"macvlan");
        attribute(&mut info, IFLA_INFO_DATA, &data);
        let mut body = vec![0; 16];
        attribute(&mut body, IFLA_LINK, &link.to_ne_bytes());
        attribute(&mut body, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        attribute(&mut body, IFLA_ADDRESS, &hardware);
        attribute(&mut body, IFLA_NET_NS_FD, &target.to_ne_bytes());
        attribute(&mut body, IFLA_LINKINFO, &info);
        Self {
            kind: RTM_NEWLINK,
            flags: NLM_F_CREATE | NLM_F_EXCL,
            body,
        }
    }

    /// Gives an interface that is off another name.
    pub fn rename(index: u32, name: &str) -> Self {
        let mut body = vec![0; 4];
        body.extend(index.to_ne_bytes());
        body.extend([0; 8]);
        attribute(&mut body, IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        Self {
            kind: RTM_NEWLINK,
            flags: 0,
            body,
        }
    }

    /// Gives an interface an address.
    pub fn address(index: u32, address: Ipv4Addr, prefix: u8) -> Self {
        let mut body = vec![AF_INET, prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        attribute(&mut body, IFA_LOCAL, &address.octets());
        attribute(&mut body, IFA_ADDRESS, &address.octets());
        Self {
            kind: RTM_NEWADDR,
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            body,
        }
    }

    /// Makes a gateway the way to everywhere else.
    pub fn default_route(index: u32, gateway: Ipv4Addr) -> Self {
        let mut body = vec![
            AF_INET,
            0,
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_BOOT,
            0,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        attribute(&mut body, RTA_GATEWAY, &gateway.octets());
        attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
        Self {
            kind: RTM_NEWROUTE,
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            body,
        }
    }

    /// The whole message; the kernel's answer carries the same `sequence`.
    fn encode(&self, sequence: u32) -> Vec<u8> {
        let length = (HEADER_LEN + self.body.len()) as u32;
        let flags = NLM_F_REQUEST | NLM_F_ACK | self.flags;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(self.kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(&self.body);
        message
    }
}

/// Appends an attribute, filled up to a multiple of four.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16;
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A connection to the kernel's routing tables.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Connects.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a request and waits for its answer.
    pub fn request(&mut self, request: &Request) -> io::Result<()> {
        self.sequence += 1;
        let fd = self.socket.as_raw_fd();
        send(fd, &request.encode(self.sequence), MsgFlags::empty())?;
        let mut answer = [0; 4096];
        loop {
            let length = recv(fd, &mut answer, MsgFlags::empty())?;
            let answer = answer.get(..length).unwrap_or_default();
            match parse_answer(answer, self.sequence) {
                Some(0) => return Ok(()),
                Some(error) => return Err(io::Error::from_raw_os_error(error)),
                None if length == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                None => {}
            }
        }
    }
}

/// The error number in an answer to the request `sequence`; 0 is success.
fn parse_answer(answer: &[u8], sequence: u32) -> Option<i32> {
    let field = |at: usize| {
        answer
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
    };
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    (kind == NLMSG_ERROR && u32::from_ne_bytes(field(8)?) == sequence)
        .then(|| field(HEADER_LEN).map(|bytes| i32::from_ne_bytes(bytes).saturating_neg()))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_request_has_the_kernels_layout() {
        let message = Request::address(3, Ipv4Addr::new(10, 0, 2, 15), 24).encode(7);
        let mut expected = Vec::new();
        expected.extend(40_u32.to_ne_bytes());
        expected.extend(20_u16.to_ne_bytes());
        expected.extend(0x505_u16.to_ne_bytes());
        expected.extend(7_u32.to_ne_bytes());
        expected.extend(0_u32.to_ne_bytes());
        expected.extend([2, 24, 0, 0]);
        expected.extend(3_u32.to_ne_bytes());
        for kind in [2_u16, 1] {
            expected.extend(8_u16.to_ne_bytes());
            expected.extend(kind.to_ne_bytes());
            expected.extend([10, 0, 2, 15]);
        }
        assert_eq!(message, expected);
    }

    #[test]
    fn attributes_are_filled_up_but_tell_their_length() {
        let request = Request::macvlan(2, "eth0", [2, 0x76, 10, 0, 2, 16], 9);
        assert_eq!(request.body.len() % 4, 0);
        // Behind the header: the link (8 bytes), then the name with its end, five bytes long.
        let name = &request.body[24..36];
        assert_eq!(
            name[..4],
            [9_u16.to_ne_bytes(), 3_u16.to_ne_bytes()].concat()
        );
        assert_eq!(&name[4..], b"eth0\0\0\0\0");
    }

    #[test]
    fn answers_are_matched_by_their_sequence() {
        let mut answer = Vec::new();
        answer.extend(36_u32.to_ne_bytes());
        answer.extend(NLMSG_ERROR.to_ne_bytes());
        answer.extend(0_u16.to_ne_bytes());
        answer.extend(5_u32.to_ne_bytes());
        answer.extend(0_u32.to_ne_bytes());
        answer.extend((-17_i32).to_ne_bytes());
        assert_eq!(parse_answer(&answer, 5), Some(17));
        assert_eq!(parse_answer(&answer, 6), None);
        for length in 0..answer.len() {
            assert_eq!(parse_answer(&answer[..length], 5), None);
        }
    }

    #[test]
    fn the_kernel_understands_requests() {
        // Interface 1 is `lo`; in a sandbox without the right to change it the kernel says so.
        let mut netlink = Netlink::open().unwrap();
        match netlink.request(&Request::link_up(1)) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
        let error = netlink.request(&Request::link_up(0x7fff_fff0)).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(1 | 19)), "{error}");
    }
}
